"""Random decoders of many kinds, and layers whose derivatives are not of what they compute."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from support.decoders import Attention, SiluBlock
from torch import Tensor, nn

ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Tanh, nn.ELU, nn.Softplus, nn.Sigmoid,
    nn.Hardswish, nn.ReLU6, nn.Mish, nn.PReLU,
)  # fmt: skip


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Single(nn.Module):
    """Normalise in float32, whatever comes in, as guided diffusion's GroupNorm32 does."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), x.shape[1:]).to(x.dtype)


class Share(nn.Module):
    """A share of the layer comes by a way that autograd does not follow."""

    def __init__(self, inner: nn.Module, share: float, cut: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.share, self.cut = inner, share, cut

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return (1 - self.share) * y + self.share * self.cut(y)


def made(
    seed: int, fault: Callable[[nn.Module], nn.Module] | None = None
) -> tuple[nn.Module, Tensor]:
    """Make a decoder in eval mode and two latents; `fault` wraps one of its layers."""
    choose = random.Random(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers, shape = _images(choose) if choose.random() < 0.5 else _rows(choose)
        if fault is not None:
            at = choose.randrange(1, len(layers))
            layers[at] = fault(layers[at])
        scale = choose.choice([0.1, 1.0, 1.0, 10.0])
        module = nn.Sequential(*layers).eval()
        return module, scale * torch.randn(2, *shape)


def _rows(choose: random.Random) -> tuple[list[nn.Module], tuple[int, ...]]:
    size, width = choose.choice([1, 2, 8, 64]), choose.choice([4, 32, 256])
    activation = choose.choice(ACTIVATIONS)
    layers: list[nn.Module] = [nn.Linear(size, width), activation()]
    for _ in range(choose.randrange(1, 8)):
        inner = nn.Sequential(nn.Linear(width, width), activation())
        layers.append(Residual(inner) if choose.random() < 0.4 else inner)
        kind = choose.random()
        if kind < 0.2:
            layers.append(nn.LayerNorm(width))
        elif kind < 0.35:
            layers.append(Single())
        elif kind < 0.5:
            batch = nn.BatchNorm1d(width)
            assert batch.running_mean is not None
            batch.running_mean.normal_(0, 0.3)
            layers.append(batch)
    layers.append(nn.Linear(width, choose.choice([1, 10, 300])))
    return layers, (size,)


def _images(choose: random.Random) -> tuple[list[nn.Module], tuple[int, ...]]:
    channels, side = choose.choice([8, 16]), choose.choice([2, 4, 8])
    activation = choose.choice(ACTIVATIONS)
    layers: list[nn.Module] = [nn.Conv2d(4, channels, 3, padding=1), activation()]
    for _ in range(choose.randrange(1, 5)):
        kind = choose.random()
        if kind < 0.3:
            layers.append(SiluBlock(channels))
        elif kind < 0.45:
            layers.append(Attention(channels))
        elif kind < 0.6:
            layers += [nn.ConvTranspose2d(channels, channels, 4, 2, 1), nn.BatchNorm2d(channels)]
            layers.append(activation())
        elif kind < 0.7:
            layers.append(nn.MaxPool2d(2, 1, 1))
        elif kind < 0.8:
            layers.append(nn.Upsample(scale_factor=2, mode=choose.choice(["nearest", "bilinear"])))
        else:
            layers += [nn.Conv2d(channels, channels, 3, padding=1), activation()]
    layers.append(nn.Conv2d(channels, 3, 3, padding=1))
    return layers, (4, side, side)
