"""Decoders with random weights, one for each kind of layer; `toys` gives them domains."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Make a module from a seed, in evaluation mode and without gradients.

    The caller's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval().requires_grad_(False)


def conv() -> nn.Module:
    """Three convolutions, 8 x 4 x 4 -> 3 x 16 x 16.

    Orthogonal kernels keep most singular values of the Jacobian within a factor of five, so that
    its effective rank is more than half the latent's 128 coordinates.
    """
    module = nn.Sequential(
        nn.ConvTranspose2d(8, 16, 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.ConvTranspose2d(16, 3, 4, stride=2, padding=1),
    )  # fmt: skip
    for layer in module:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            assert layer.bias is not None
            nn.init.orthogonal_(layer.weight, gain=1.5)
            nn.init.normal_(layer.bias, std=0.1)
    return module


class Residual(nn.Module):
    """Two convolutions around a ReLU, added to what came in, and a leaky ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the convolutions make of x."""
        return functional.leaky_relu(x + self.second(torch.relu(self.first(x))), 0.1)


def residual() -> nn.Module:
    """Two residual blocks around an upsampling, 4 x 3 x 3 -> 3 x 6 x 6."""
    return nn.Sequential(
        nn.Conv2d(4, 12, 3, padding=1), Residual(12), nn.Upsample(scale_factor=2), Residual(12),
        nn.Conv2d(12, 3, 3, padding=1),
    )  # fmt: skip


def max_pooling() -> nn.Module:
    """Windows of 2 x 2, of which only the largest entry is decoded further, 12 -> 3 x 8 x 8."""
    return nn.Sequential(
        nn.Linear(12, 256), nn.Unflatten(1, (4, 8, 8)), nn.MaxPool2d(2),
        nn.ConvTranspose2d(4, 8, 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(8, 3, 3, padding=1),
    )  # fmt: skip


class SiluBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice, added to what came in, as diffusion decoders do."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(4, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(4, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the convolutions make of x."""
        y = self.conv1(functional.silu(self.norm1(x)))
        return x + self.conv2(functional.silu(self.norm2(y)))


class Attention(nn.Module):
    """Self-attention over the positions of an image, added to what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Let every position look at every other."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens)[:, None].chunk(3, dim=-1)
        y = self.out(functional.scaled_dot_product_attention(q, k, v)[:, 0])
        return x + y.transpose(1, 2).reshape(x.shape)


def smooth() -> nn.Module:
    """SiLU, GroupNorm and attention in the order of a diffusion decoder, 4 x 4 x 4 -> 3 x 8 x 8."""
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), SiluBlock(8), Attention(8), SiluBlock(8),
        nn.Upsample(scale_factor=2), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1),
    )  # fmt: skip
