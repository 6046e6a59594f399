"""Real decoders with real latents: photographs through TAEF2, digits and letters through a VAE.

The smaller generators of `$CPWL_DATA` are built in `models.py`.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import models
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# photographs that the wheel of scikit-image carries: nothing is downloaded
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


class Block(nn.Module):
    """Residual block of three convolutions; `pooled` ones add a branch with a GroupNorm first.

    The names of its parts are those of the published state dict's keys.
    """

    def __init__(self, channels: int, pooled: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, channels, 3, padding=1)]
        for _ in range(2):
            layers += [nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)]
        self.conv = nn.Sequential(*layers)
        self.pool = None
        if pooled:
            inside = 4 * channels
            self.pool = nn.Sequential(
                nn.Conv2d(channels, inside, 1, bias=False), nn.GroupNorm(4, inside), nn.ReLU(),
                nn.Conv2d(inside, channels, 1, bias=False),
            )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(x + self.conv(x))


class Squash(nn.Module):
    """3 tanh(x / 3): latents outside of [-3, 3] are no pictures."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


def taef2_encoder(data: Path) -> nn.Module:
    """TAEF2 encoder, 3 x 8h x 8w in [0, 1] -> 32 x h x w."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), Block(64)]
    for stage in range(3):
        layers.append(nn.Conv2d(64, 64, 3, stride=2, padding=1, bias=False))
        layers += [Block(64, pooled=stage == 2) for _ in range(3)]
    layers.append(nn.Conv2d(64, 32, 3, padding=1))
    return _loaded(nn.Sequential(*layers), data, "taef2_encoder.pth")


def taef2_decoder(data: Path) -> nn.Module:
    """TAEF2 decoder, 32 x h x w -> 3 x 8h x 8w in about [0, 1]."""
    layers: list[nn.Module] = [Squash(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()]
    for stage in range(3):
        layers += [Block(64, pooled=stage == 0) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 3, padding=1, bias=False)]
    layers += [Block(64), nn.Conv2d(64, 3, 3, padding=1)]
    return _loaded(nn.Sequential(*layers), data, "taef2_decoder.pth")


def _loaded(module: nn.Module, data: Path, name: str) -> nn.Module:
    """Load weights kept in float16; every key has its place, or this raises."""
    module.load_state_dict(models._state(data / "weights" / name))
    return module.eval()


def photograph(name: str, size: int) -> Tensor:
    """Return the middle of a photograph, (3, size, size) in [0, 1]."""
    import skimage.data
    import skimage.transform

    picture = getattr(skimage.data, name)()
    side = min(picture.shape[:2])
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    square = picture[top : top + side, left : left + side, :3]
    small = skimage.transform.resize(square, (size, size), anti_aliasing=True)
    return torch.from_numpy(small.astype(np.float32)).permute(2, 0, 1).contiguous()


def photograph_latents(data: Path, side: int, names: Sequence[str] = PHOTOGRAPHS) -> Tensor:
    """Return photographs as TAEF2 latents, (names, 32, side, side)."""
    with torch.no_grad():
        return taef2_encoder(data)(torch.stack([photograph(name, 8 * side) for name in names]))


class Images(NamedTuple):
    """Pictures of characters.

    Attributes
    ----------
    pixels : (N, 784) float32
        In [0, 1].
    labels : (N,) uint8
        0 to 9: digits, or the letters A to J.
    """

    pixels: NDArray[np.float32]
    labels: NDArray[np.uint8]


def read_images(data: Path, kind: str, count: int = 10_000) -> Images:
    """Read the first test images of "mnist" or "notmnist"."""
    folder = data / kind
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(16 + 784 * count)[16:], np.uint8).reshape(-1, 784)
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(8 + count)[8:], np.uint8)
    return Images(pixels.astype(np.float32) / 255, labels)


def codes(data: Path, images: Images) -> Tensor:
    """Encode images with the MNIST VAE: the means of their posteriors, (N, 20)."""
    with torch.no_grad():
        return models.mnist_vae_encoder(data)(torch.from_numpy(images.pixels))
