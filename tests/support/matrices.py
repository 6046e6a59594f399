"""Explicit matrices behind the interface of a Jacobian operator, and decoders for calibration."""

from __future__ import annotations

from collections.abc import Callable

import torch
from support.decoders import SiluBlock, latents, seeded
from torch import Tensor, nn
from torch.func import jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel


class Matrices:
    """Matrices (B, D, d) with the products of a JacobianOperator."""

    def __init__(self, J: Tensor) -> None:
        self.J = J
        self.batch, self.rows, self.columns = J.shape
        self.dtype, self.device = J.dtype, J.device
        self.products = 0

    def matmat(self, X: Tensor) -> Tensor:
        assert X.shape[-2] == self.columns
        self.products += X.shape[-1]
        return self.J @ X.to(self.dtype)

    def rmatmat(self, Y: Tensor) -> Tensor:
        assert Y.shape[-2] == self.rows
        self.products += Y.shape[-1]
        return self.J.mT @ Y.to(self.dtype)

    def dense(self, max_bytes: float = 1e9) -> Tensor:
        assert self.J.nbytes <= max_bytes
        return self.J


class Diagonal:
    """Matrices (B, D, d) with singular values (B, d), on the diagonal: cheap products.

    A Haar W does not tell them from others with the same values.
    """

    dtype, device = torch.float64, torch.device("cpu")

    def __init__(self, values: Tensor, rows: int) -> None:
        self.values = values
        self.batch, self.columns = values.shape
        self.rows = rows

    def matmat(self, X: Tensor) -> Tensor:
        return nn.functional.pad(self.values[:, :, None] * X, (0, 0, 0, self.rows - self.columns))

    def rmatmat(self, Y: Tensor) -> Tensor:
        return self.values[:, :, None] * Y[..., : self.columns, :]

    def dense(self, max_bytes: float = 1e9) -> Tensor:
        raise NotImplementedError


def with_values(values: Tensor, rows: int, columns: int, seed: int = 31415926) -> Tensor:
    """Return a (rows, columns) float64 matrix with these singular values, random directions."""
    generator = torch.Generator().manual_seed(seed)
    k = len(values)
    left = torch.linalg.qr(torch.randn(rows, k, generator=generator).double()).Q
    right = torch.linalg.qr(torch.randn(columns, k, generator=generator).double()).Q
    return left * values.double() @ right.T


def jacobians(module: nn.Module, z: Tensor) -> Tensor:
    """Return the dense Jacobians (B, D, d) by reverse mode in float64."""
    module = module.double()
    one = jacrev(lambda x: module(x[None]).flatten())
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no rule for vmap
        return vmap(one)(z.double()).flatten(2).detach()


def _mlp(*layers: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Linear(240, 400), layers[0](), nn.Linear(400, 400), layers[1](), nn.Linear(400, 600)
    )


def _convolutions(act: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1), act(), nn.Upsample(scale_factor=2),
        nn.Conv2d(16, 16, 3, padding=1), act(), nn.Conv2d(16, 3, 3, padding=1),
    )  # fmt: skip


# latents large enough that k / r_eff <= 0.5 leaves a k beyond the 16 products of a prediction
WIDE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "relu_mlp": (lambda: _mlp(nn.ReLU, nn.ReLU), (240,)),
    "relu_conv": (lambda: _convolutions(nn.ReLU), (4, 8, 8)),
    "leaky_conv": (lambda: _convolutions(lambda: nn.LeakyReLU(0.1)), (4, 8, 8)),
    "silu_conv": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1),
            SiluBlock(8),
            nn.Upsample(scale_factor=2),
            nn.GroupNorm(4, 8),
            nn.SiLU(),
            nn.Conv2d(8, 3, 3, padding=1),
        ),
        (4, 8, 8),
    ),
    "gelu_mlp": (lambda: _mlp(nn.GELU, nn.GELU), (240,)),
    "tanh_mlp": (lambda: _mlp(nn.Tanh, nn.Softplus), (240,)),
}


def wide(name: str, batch: int = 1) -> tuple[nn.Module, Tensor]:
    """Return a decoder of `WIDE` in float64 and latents for it."""
    make, shape = WIDE[name]
    module, _ = seeded(make, shape, 0)
    return module.double(), latents(shape, batch).double()
