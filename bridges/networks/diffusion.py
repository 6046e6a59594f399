"""Small diffusion models of handwritten characters, with their published weights.

Latent decoders, the denoisers of their latents and a transformer on pixels, all smooth (GELU and
attention), by S. Dominguez (github.com/sofia-dominguezc/MNIST-diffusion), and a classifier of
digits by C. Singh to score what they draw. `folder` is as for `bridges.networks.data.path`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bridges.networks.weights import loaded, read


class Attention(nn.Module):
    """Add to every pixel what it makes of the others; named as the keys of the state dicts."""

    def __init__(self, channels: int, heads: int, size: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(channels, heads * size)
        self.k_proj = nn.Linear(channels, heads * size)
        self.v_proj = nn.Linear(channels, heads * size)
        self.out_proj = nn.Linear(heads * size, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the pixels of x (B, channels, height, width)."""
        pixels = x.flatten(2).mT
        q, k, v = (
            layer(pixels).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        found = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out_proj(found.transpose(1, 2).flatten(2)).mT.reshape(x.shape)


class Bottleneck(nn.Module):
    """Add a convolution of each channel alone, between two that mix more channels."""

    def __init__(self, channels: int, inside: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(channels, inside, 1), nn.GELU(),
            nn.Conv2d(inside, inside, 3, padding=1, groups=inside, padding_mode="reflect"),
            nn.GELU(), nn.Conv2d(inside, channels, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Add what the convolutions make of x."""
        return x + self.network(x)


def _block(channels: int, times: int, heads: int, size: int) -> nn.Sequential:
    """Return attention and a bottleneck, named as the keys of the state dicts."""
    block = nn.Sequential()
    block.add_module("attn", Attention(channels, heads, size))
    block.add_module("conv", Bottleneck(channels, times * channels))
    return block


def mnist_decoder(folder: Path | None = None) -> nn.Sequential:
    """Return the decoder of the MNIST diffusion model, 1 x 6 x 6 -> 1 x 28 x 28; smooth.

    Parameters
    ----------
    folder : Path, optional
        That holds the files; as for `bridges.networks.data.path`.

    Returns
    -------
    nn.Sequential
        In evaluation mode, float32, with the published weights. Ink is about 1, paper about 0.
    """
    return _decoder("mnist_diffusion/vae.pth", folder, 16, 32, (4, 3, 6), nn.Upsample(28))


def emnist_decoder(folder: Path | None = None) -> nn.Sequential:
    """Return the decoder of the EMNIST diffusion model, 1 x 7 x 7 -> 1 x 28 x 28; smooth.

    Parameters
    ----------
    folder : Path, optional
        That holds the files; as for `bridges.networks.data.path`.

    Returns
    -------
    nn.Sequential
        In evaluation mode, float32, with the published weights. Letters lie as EMNIST has them,
        mirrored at the diagonal.
    """
    up = nn.Upsample(scale_factor=2)
    return _decoder("emnist_diffusion/autoencoder.pth", folder, 32, 48, (5, 4, 8), up)


def mnist_encoder(folder: Path | None = None) -> nn.Sequential:
    """Return the encoder of the MNIST diffusion model, 1 x 28 x 28 -> 2 x 6 x 6.

    Parameters
    ----------
    folder : Path, optional
        That holds the files; as for `bridges.networks.data.path`.

    Returns
    -------
    nn.Sequential
        In evaluation mode, float32, with the published weights. The first channel is the mean of
        the latent, the second is taken as the logarithm of its variance.
    """
    module = nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2), nn.GELU(),
        nn.Conv2d(16, 32, 3, padding=1, padding_mode="reflect"), nn.GELU(), nn.MaxPool2d(2),
        *(_block(32, 4, 3, 6) for _ in range(3)), nn.Conv2d(32, 2, 1),
    )  # fmt: skip
    return loaded(module, _half("encoder.", read("mnist_diffusion/vae.pth", folder)))


def _decoder(
    name: str,
    folder: Path | None,
    fine: int,
    coarse: int,
    block: tuple[int, int, int],
    last: nn.Module,
) -> nn.Sequential:
    module = nn.Sequential(
        nn.Conv2d(1, coarse, 1), *(_block(coarse, *block) for _ in range(3)),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(coarse, fine, 3, padding=1, padding_mode="reflect"),
        last, nn.Conv2d(fine, 1, 5, padding=2),
    )  # fmt: skip
    return loaded(module, _half("decoder.", read(name, folder)))


def _half(name: str, state: dict[str, Any]) -> dict[str, Any]:
    return {key[len(name) :]: value for key, value in state.items() if key.startswith(name)}


class Denoiser(nn.Module):
    """Velocity of a latent on its way from noise at t = 0 to a picture at t = 1.

    Parameters
    ----------
    classes : int
        Of characters.
    side : int
        Height and width of a latent.
    times : int
        Channels inside of the bottleneck, per channel outside.
    """

    def __init__(self, classes: int, side: int, times: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(3, 32, 5, padding=2), nn.GELU(), _block(32, times, 3, 8), nn.GELU(),
            nn.Conv2d(32, 1, 5, padding=2),
        )  # fmt: skip
        self.yemb = nn.Linear(classes, side * side, bias=False)
        self.temb = nn.Linear(classes, side * side)
        self.nums = nn.Parameter(torch.linspace(0, 1, classes), requires_grad=False)
        self.log_scalar = nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the velocity (B, 1, side, side).

        Parameters
        ----------
        z : Tensor
            (B, 1, side, side).
        t : Tensor
            (B,), from 0 to 1.
        y : Tensor
            (B, classes), one 1 in each row; zeros for a character of any class.
        """
        bumps = ((t[:, None] - self.nums).square() / self.log_scalar.exp()).exp()
        pictures = (layer(v).view(z.shape) for layer, v in ((self.temb, bumps), (self.yemb, y)))
        return self.network(torch.cat([z, *pictures], dim=1))


def mnist_denoiser(folder: Path | None = None) -> Denoiser:
    """Return the denoiser of latents of `mnist_decoder`: (z, t, y) -> velocity, of 10 classes.

    Parameters
    ----------
    folder : Path, optional
        That holds the files; as for `bridges.networks.data.path`.

    Returns
    -------
    Denoiser
        In evaluation mode, float32, with the published weights.
    """
    return loaded(Denoiser(10, 6, 4), read("mnist_diffusion/latent_denoiser.pth", folder))


def emnist_denoiser(folder: Path | None = None) -> Denoiser:
    """Return the denoiser of latents of `emnist_decoder`: (z, t, y) -> velocity, of 47 classes.

    Parameters
    ----------
    folder : Path, optional
        That holds the files; as for `bridges.networks.data.path`.

    Returns
    -------
    Denoiser
        In evaluation mode, float32, with the published weights.
    """
    return loaded(Denoiser(47, 7, 5), read("emnist_diffusion/latent_denoiser.pth", folder))


class Transformer(nn.Module):
    """Picture of a digit 1 x 28 x 28 that is expected behind a noisy one."""

    def __init__(self) -> None:
        super().__init__()
        width = 64
        self.patch_embed = nn.Conv2d(1, width, 7, 7)
        self.pos_embed = nn.Parameter(torch.zeros(1, 16, width))
        self.transformer = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(width, 4, 256, activation="gelu", batch_first=True)
                for _ in range(4)
            )
        )
        self.unpatch = nn.ConvTranspose2d(width, 1, 7, 7)
        self.y_encoder = nn.Embedding(11, 2 * width)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the expected pictures (B, 1, 28, 28).

        Parameters
        ----------
        x : Tensor
            (B, 1, 28, 28): t times a picture, and 1 - t times noise.
        t : Tensor
            (B,), from 0 to 1.
        y : Tensor
            (B,) int64, the digits; -1 for any.
        """
        patches = self.patch_embed(x)
        tokens = patches.flatten(2).mT + self.pos_embed
        rates = torch.exp(torch.linspace(0, -math.log(1e4), 64, dtype=x.dtype, device=x.device))
        angles = t[:, None] * rates
        time = torch.cat([angles.sin(), angles.cos()], dim=1)
        digit = self.y_encoder(torch.where(y < 0, 10, y))
        told = torch.cat([time, digit], dim=1).unflatten(1, (4, 64))
        tokens = self.transformer(torch.cat([tokens, told], dim=1))[:, :16]
        return self.unpatch(tokens.mT.reshape(patches.shape))


def mnist_transformer(folder: Path | None = None) -> Transformer:
    """Return a diffusion transformer of digits: (x, t, y) -> picture, 1 x 28 x 28.

    Parameters
    ----------
    folder : Path, optional
        That holds the files; as for `bridges.networks.data.path`.

    Returns
    -------
    Transformer
        In evaluation mode, float32, with the published weights.
    """
    return loaded(Transformer(), read("mnist_diffusion/transformer.pth", folder))


def mnist_classifier(folder: Path | None = None) -> nn.Sequential:
    """Return LeNet-5 for digits 1 x 28 x 28 in [0, 1] -> 10 logits.

    Parameters
    ----------
    folder : Path, optional
        That holds the files; as for `bridges.networks.data.path`.

    Returns
    -------
    nn.Sequential
        In evaluation mode, float32, with the published weights.
    """
    module = nn.Sequential(
        nn.ZeroPad2d(2), nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5),
        nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 120, 5), nn.ReLU(), nn.Flatten(),
        nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip
    state = read("weights/mnist_lenet5.pth", folder)
    # its keys differ from ours in their names only; the order is that of the layers
    return loaded(module, dict(zip(module.state_dict(), state.values(), strict=True)))
