"""Small seeded decoders for the tests of `approx`.

Each call makes (module in eval mode, latent shape). `CPWL` are continuous piecewise linear,
`SMOOTH` are not; both map float32 latents (B, *shape) to outputs with more coordinates.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

Made = tuple[nn.Module, tuple[int, ...]]


def seeded(make: Callable[[], nn.Module], shape: tuple[int, ...], seed: int) -> Made:
    """Make a module from a seed of its own, leaving the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval(), shape


def latents(shape: Sequence[int], batch: int = 3, seed: int = 0) -> Tensor:
    """Return (batch, *shape) standard normal float32 latents."""
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


def relu_mlp(seed: int = 0) -> Made:
    def make() -> nn.Module:
        return nn.Sequential(
            nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(inplace=True),
            nn.Linear(48, 60),
        )  # fmt: skip

    return seeded(make, (12,), seed)


def relu_conv(seed: int = 0) -> Made:
    """Transposed convolutions with batch normalisation, as a DCGAN has them."""

    def make() -> nn.Module:
        module = nn.Sequential(
            nn.ConvTranspose2d(6, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(True),
            nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(True),
            nn.Conv2d(8, 2, 3, padding=1),
        )  # fmt: skip
        for layer in module:
            if isinstance(layer, nn.BatchNorm2d):  # statistics as after training
                assert layer.running_mean is not None
                assert layer.running_var is not None
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.5, 2)
        return module

    return seeded(make, (6, 2, 2), seed)


class Residual(nn.Module):
    """Two convolutions around a functional LeakyReLU, added to what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x + self.second(F.relu(self.first(x))), 0.1)


def leaky_residual(seed: int = 0) -> Made:
    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), Residual(8), nn.Upsample(scale_factor=2),
            Residual(8), nn.Conv2d(8, 3, 1),
        )  # fmt: skip

    return seeded(make, (3, 3, 3), seed)


def max_pooling(seed: int = 0) -> Made:
    def make() -> nn.Module:
        return nn.Sequential(
            nn.Linear(10, 128), nn.Unflatten(1, (2, 8, 8)), nn.MaxPool2d(2), nn.Conv2d(2, 6, 3),
            nn.ReLU(), nn.Flatten(), nn.Linear(24, 40),
        )  # fmt: skip

    return seeded(make, (10,), seed)


class SiluBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice, added to what came in, as diffusion decoders do."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(4, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(4, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(y)))


class Attention(nn.Module):
    """Self-attention over the positions of an image through torch's fused function."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens)[:, None].chunk(3, dim=-1)
        y = self.out(F.scaled_dot_product_attention(q, k, v)[:, 0])
        return x + y.transpose(1, 2).reshape(x.shape)


def silu_conv(seed: int = 0) -> Made:
    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1), SiluBlock(8), nn.Upsample(scale_factor=2),
            nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1),
        )  # fmt: skip

    return seeded(make, (4, 3, 3), seed)


def gelu_mlp(seed: int = 0) -> Made:
    def make() -> nn.Module:
        return nn.Sequential(
            nn.Linear(12, 40), nn.GELU(), nn.Linear(40, 40), nn.GELU("tanh"), nn.Linear(40, 50)
        )

    return seeded(make, (12,), seed)


def attention(seed: int = 0) -> Made:
    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1), SiluBlock(8), Attention(8), SiluBlock(8),
            nn.Upsample(scale_factor=2), nn.Conv2d(8, 3, 3, padding=1),
        )  # fmt: skip

    return seeded(make, (4, 3, 3), seed)


CPWL: dict[str, Callable[..., Made]] = {
    "relu_mlp": relu_mlp,
    "relu_conv": relu_conv,
    "leaky_residual": leaky_residual,
    "max_pooling": max_pooling,
}
SMOOTH: dict[str, Callable[..., Made]] = {
    "silu_conv": silu_conv,
    "gelu_mlp": gelu_mlp,
    "attention": attention,
}
DECODERS = CPWL | SMOOTH


def linear(values: Sequence[float], rows: int = 40, seed: int = 0) -> Made:
    """Make a linear map without bias, in float64, with these singular values."""
    generator = torch.Generator().manual_seed(seed)
    k = len(values)
    assert k <= rows
    left, _ = torch.linalg.qr(torch.randn(rows, k, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(k, k, generator=generator, dtype=torch.float64))
    module = nn.Linear(k, rows, bias=False, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(left * torch.tensor(values, dtype=torch.float64) @ right.T)
    return module.eval(), (k,)


class Decoded(NamedTuple):
    """What `structured` returns, as diffusers' decoders do."""

    sample: Tensor
    note: str


class Structured(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: Tensor) -> Any:
        return Decoded(self.inner(z), "decoded")

    def decode(self, z: Tensor) -> Any:
        """Decode by another name, as autoencoders have it."""
        return self(z)


def structured(seed: int = 0) -> Made:
    """Make a decoder that returns a structure with the tensor in `.sample`."""
    inner, shape = silu_conv(seed)
    return Structured(inner).eval(), shape


def gap(got: Tensor, expected: Tensor) -> float:
    """Return the relative error in the Frobenius norm."""
    return float(((got.double() - expected).norm() / expected.norm()).detach())


def dense(module: nn.Module, z: Tensor) -> Tensor:
    """Oracle: the (B, D, d) Jacobians in float64, one latent and one output at a time."""
    module, z = double(module), z.double()
    jacobian = torch.autograd.functional.jacobian  # a loop of torch.autograd.grad
    matrices = [jacobian(lambda x: module(x[None])[0].flatten(), one) for one in z]
    return torch.stack(matrices).flatten(2)


def double(module: nn.Module) -> nn.Module:
    """Return a copy in float64."""
    return copy.deepcopy(module).double()


def blocks(op: Any, k: int = 7) -> tuple[Tensor, Tensor]:
    """Return a block X of latents, one for each of the batch, and one of outputs, Y, for all."""
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(op.batch, op.columns, k, generator=generator, dtype=op.dtype)
    return X, torch.randn(op.rows, k, generator=generator, dtype=op.dtype)
