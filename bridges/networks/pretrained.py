"""Real generators with their published weights, and the pictures that they were trained on.

Every function takes the folder that holds the files; without one `bridges.networks.data.path` finds
or downloads them, and its errors are those of every function here.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from approx.decoder import whole
from bridges.networks import data
from bridges.networks.weights import loaded, read

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
"""Photographs that the wheel of scikit-image carries: nothing is downloaded."""


def mnist_gan(folder: Path | None = None) -> nn.Sequential:
    """Return the MNIST GAN generator, 64 -> 256 -> 256 -> 784, tanh at the end.

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
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 784),
        nn.Tanh(),
    )  # fmt: skip
    return loaded(module, read("weights/mnist_gan_mlp.ckpt", folder))


def mnist_vae_decoder(folder: Path | None = None) -> nn.Sequential:
    """Return the MNIST VAE decoder, 20 -> 400 -> 784, sigmoid at the end.

    Parameters
    ----------
    folder : Path, optional
        That holds the files; as for `bridges.networks.data.path`.

    Returns
    -------
    nn.Sequential
        In evaluation mode, float32, with the published weights.
    """
    module = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784), nn.Sigmoid())
    return loaded(module, _part(read("weights/mnist_vae.pth", folder), {"fc3": "0", "fc4": "2"}))


def mnist_vae_encoder(folder: Path | None = None) -> nn.Sequential:
    """Return the MNIST VAE encoder to the mean of the latent, 784 -> 400 -> 20.

    Parameters
    ----------
    folder : Path, optional
        That holds the files; as for `bridges.networks.data.path`.

    Returns
    -------
    nn.Sequential
        In evaluation mode, float32, with the published weights.
    """
    module = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 20))
    return loaded(module, _part(read("weights/mnist_vae.pth", folder), {"fc1": "0", "fc21": "2"}))


def dcgan_faces(folder: Path | None = None) -> nn.Sequential:
    """Return the DCGAN face generator, 100 x 1 x 1 -> 3 x 64 x 64, tanh at the end.

    Parameters
    ----------
    folder : Path, optional
        That holds the files; as for `bridges.networks.data.path`.

    Returns
    -------
    nn.Sequential
        In evaluation mode, float32, with the published weights.
    """
    channels = (100, 512, 256, 128, 64, 3)
    layers: list[nn.Module] = []
    for k, (fan_in, fan_out) in enumerate(pairwise(channels)):
        stride, padding = (1, 0) if k == 0 else (2, 1)
        layers.append(nn.ConvTranspose2d(fan_in, fan_out, 4, stride, padding, bias=False))
        if k < 4:
            layers += [nn.BatchNorm2d(fan_out), nn.ReLU(inplace=True)]
    module = nn.Sequential(*layers, nn.Tanh())
    state = read("weights/dcgan_faces.pth", folder)
    state = state.get("netG_state_dict", state)  # as published, or bare
    # its keys differ from ours in their prefix only; the order is that of the layers
    return loaded(module, dict(zip(module.state_dict(), state.values(), strict=True)))


class Dncnn(nn.Module):
    """Denoiser x - body(x) of grey pictures, (1, h, w) of any size; piecewise linear."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Take away the noise that the body finds."""
        return x - self.body(x)


def bias_free_dncnn(folder: Path | None = None) -> Dncnn:
    """Return the bias-free DnCNN of grey photographs, 1 x h x w -> 1 x h x w.

    20 convolutions of 3 x 3, 64 channels and 19 ReLU between them, no bias anywhere: the denoiser
    is linear in every cell, and f(c x) = c f(x) for c > 0 (S. Mohan et al., "Robust and
    interpretable blind image denoising via bias-free convolutional neural networks", 2020).

    Parameters
    ----------
    folder : Path, optional
        That holds the files; as for `bridges.networks.data.path`.

    Returns
    -------
    Dncnn
        In evaluation mode, float32, with the published weights. Each convolution is multiplied by
        the norm behind it, weight / (sqrt(running_var) + 1e-5), which has no mean and no bias.
    """
    with torch.serialization.safe_globals([argparse.Namespace]):  # of the training's options
        state = read("denoiser/bf_dncnn_0-100.pt", folder)["model"][0]
    kernels = [state["first_layer.weight"]]
    for k in range(18):
        norm = {name: state[f"bn_layer_list.{k}.{name}"] for name in ("weight", "running_var")}
        scale = norm["weight"] / (norm["running_var"].sqrt() + 1e-5)
        kernels.append(state[f"hidden_layer_list.{k}.weight"] * scale[:, None, None, None])
    kernels.append(state["last_layer.weight"])
    layers: list[nn.Module] = []
    for kernel in kernels:
        after, before = kernel.shape[:2]
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.ReLU()]
    body = nn.Sequential(*layers[:-1])
    return Dncnn(loaded(body, dict(zip(body.state_dict(), kernels, strict=True)))).eval()


class LatentDecoder(nn.Module):
    """Small decoder of Stable Diffusion latents, 4 x h x w -> 3 x 2h x 2w; piecewise linear."""

    def __init__(self) -> None:
        super().__init__()
        kernels = (7, 5, 3, 3, 3, 3, 3, 3)
        channels = (4, 8, 16, 32, 64, 32, 16, 8, 3)
        for k, size in enumerate(kernels):
            setattr(self, f"conv{k + 1}", nn.Conv2d(channels[k], channels[k + 1], size))

    def forward(self, x: Tensor) -> Tensor:
        """Upsample, pad, and eight convolutions."""
        x = functional.interpolate(x, scale_factor=2.0)
        x = functional.pad(x, (11, 11, 11, 11))
        for k in range(8):
            x = functional.leaky_relu(getattr(self, f"conv{k + 1}")(x), 0.1)
        return x


def sd_latent_decoder(folder: Path | None = None) -> LatentDecoder:
    """Return a preview decoder of Stable Diffusion latents, 4 x h x w -> 3 x 2h x 2w.

    It is `vae_approx_sd15`, and piecewise linear. Its convolutions have no padding and take away
    what the one padding in front of them adds, so that any height and width will do.

    Parameters
    ----------
    folder : Path, optional
        That holds the files; as for `bridges.networks.data.path`.

    Returns
    -------
    LatentDecoder
        In evaluation mode, float32, with the published weights.
    """
    return loaded(LatentDecoder(), read("weights/vae_approx_sd15.pt", folder))


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
        """Add what the convolutions make of x."""
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(x + self.conv(x))


class Squash(nn.Module):
    """3 tanh(x / 3): latents outside of [-3, 3] are no pictures."""

    def forward(self, x: Tensor) -> Tensor:
        """Squash every entry."""
        return 3 * torch.tanh(x / 3)


def taef2_encoder(folder: Path | None = None) -> nn.Sequential:
    """Return the TAEF2 encoder, 3 x 8h x 8w in [0, 1] -> 32 x h x w.

    Parameters
    ----------
    folder : Path, optional
        That holds the files; as for `bridges.networks.data.path`.

    Returns
    -------
    nn.Sequential
        In evaluation mode, float32, with the published weights.
    """
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), Block(64)]
    for stage in range(3):
        layers.append(nn.Conv2d(64, 64, 3, stride=2, padding=1, bias=False))
        layers += [Block(64, pooled=stage == 2) for _ in range(3)]
    layers.append(nn.Conv2d(64, 32, 3, padding=1))
    return loaded(nn.Sequential(*layers), read("weights/taef2_encoder.pth", folder))


def taef2_decoder(folder: Path | None = None) -> nn.Sequential:
    """Return the TAEF2 decoder, 32 x h x w -> 3 x 8h x 8w in about [0, 1]; not piecewise linear.

    It is not piecewise linear: tanh squashes the latent, and a GroupNorm divides.

    Parameters
    ----------
    folder : Path, optional
        That holds the files; as for `bridges.networks.data.path`.

    Returns
    -------
    nn.Sequential
        In evaluation mode, float32, with the published weights.
    """
    layers: list[nn.Module] = [Squash(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()]
    for stage in range(3):
        layers += [Block(64, pooled=stage == 0) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 3, padding=1, bias=False)]
    layers += [Block(64), nn.Conv2d(64, 3, 3, padding=1)]
    return loaded(nn.Sequential(*layers), read("weights/taef2_decoder.pth", folder))


class Images(NamedTuple):
    """Pictures of characters or clothes.

    Attributes
    ----------
    pixels : (N, 784) float32 ndarray
        In [0, 1].
    labels : (N,) uint8 ndarray
        0 to 9: digits, the letters A to J, or kinds of clothes.
    """

    pixels: NDArray[np.float32]
    labels: NDArray[np.uint8]


def read_images(
    kind: Literal["mnist", "fashion-mnist", "notmnist"],
    count: int = 10_000,
    folder: Path | None = None,
    *,
    part: Literal["t10k", "train"] = "t10k",
) -> Images:
    """Read the first images: handwritten digits, clothes, or letters from many typefaces.

    Parameters
    ----------
    kind : {"mnist", "fashion-mnist", "notmnist"}
        Digits, clothes or letters, each of ten classes. The handwritten letters of EMNIST come in
        one archive of half a gigabyte, and are not among the files known here.
    count : int
        How many, of 10,000, or of the 60,000 for training.
    folder : Path, optional
        That holds the files; as for `bridges.networks.data.path`.
    part : {"t10k", "train"}
        The test images, or those for training, which "notmnist" has not.

    Returns
    -------
    Images

    Raises
    ------
    ValueError
        A kind or part that there is not, or more images than the file has.
    """
    count, found = whole(count, "count", "say how many images."), []
    for name, head, size in (("images-idx3", 16, 784), ("labels-idx1", 8, 1)):
        file = f"{kind}/{part}-{name}-ubyte.gz"
        if file not in data.FILES:
            raise ValueError(
                "Expected the images of 'mnist' or 'fashion-mnist', or the 't10k' ones of "
                f"'notmnist', got those of '{kind}' for '{part}': choose one of these."
            )
        with gzip.open(data.path(file, folder)) as opened:
            read = np.frombuffer(opened.read(head + size * count)[head:], np.uint8)
        if len(read) < size * count:
            got = len(read) // size
            raise ValueError(f"Expected {count:,} images in {file}, got {got:,}: ask for fewer.")
        found.append(read)
    return Images(np.divide(found[0].reshape(-1, 784), 255, dtype=np.float32), found[1])


def first_of(images: Images, labels: Sequence[int]) -> Images:
    """Return the first picture with each of these labels.

    Parameters
    ----------
    images : Images
        From `read_images`.
    labels : sequence of int
        Each of them a label of some picture.

    Returns
    -------
    Images
        In the order of the labels.

    Raises
    ------
    IndexError
        No picture has the label.

    Examples
    --------
    >>> import numpy as np
    >>> from bridges.networks.pretrained import Images, first_of
    >>> images = Images(np.eye(3, 784, dtype=np.float32), np.array([7, 1, 7], np.uint8))
    >>> first_of(images, (1, 7)).pixels.argmax(axis=1)
    array([1, 0])
    """
    chosen = [int(np.flatnonzero(images.labels == label)[0]) for label in labels]
    return Images(images.pixels[chosen], images.labels[chosen])


def codes(images: Images, folder: Path | None = None) -> Tensor:
    """Encode images with the MNIST VAE.

    Parameters
    ----------
    images : Images
        N digits, or anything of their size.
    folder : Path, optional
        That holds the weights; as for `bridges.networks.data.path`.

    Returns
    -------
    (N, 20) float32 Tensor
        The means of their posteriors.
    """
    with torch.no_grad():
        return mnist_vae_encoder(folder)(torch.from_numpy(images.pixels))


def photograph(name: str, size: int) -> Tensor:
    """Return the middle of a photograph.

    Parameters
    ----------
    name : str
        One of `PHOTOGRAPHS`.
    size : int
        Height and width in pixels.

    Returns
    -------
    (3, size, size) float32 Tensor
        In [0, 1].

    Raises
    ------
    ImportError
        scikit-image is not installed.
    """
    import skimage.data
    import skimage.transform

    picture = getattr(skimage.data, name)()
    side = min(picture.shape[:2])
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    square = picture[top : top + side, left : left + side, :3]
    small = skimage.transform.resize(square, (size, size), anti_aliasing=True)
    return torch.from_numpy(np.asarray(small, np.float32)).permute(2, 0, 1).contiguous()


def photograph_latents(
    side: int, names: Sequence[str] = PHOTOGRAPHS, folder: Path | None = None
) -> Tensor:
    """Return photographs as TAEF2 latents.

    Parameters
    ----------
    side : int
        Height and width of a latent; a photograph has 8 times as many pixels.
    names : sequence of str
        Of `PHOTOGRAPHS`.
    folder : Path, optional
        That holds the weights; as for `bridges.networks.data.path`.

    Returns
    -------
    (len(names), 32, side, side) float32 Tensor

    Raises
    ------
    ImportError
        scikit-image is not installed.
    """
    with torch.no_grad():
        return taef2_encoder(folder)(torch.stack([photograph(name, 8 * side) for name in names]))


def _part(state: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Return the entries of some layers, under the names that they have with us."""
    pairs = ((key.split(".", 1), value) for key, value in state.items())
    return {f"{names[old]}.{rest}": value for (old, rest), value in pairs if old in names}
