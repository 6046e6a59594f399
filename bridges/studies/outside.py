"""Images unlike those that a model was trained on: what is measured of them, model by model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from approx import describe
from bridges.networks import pretrained
from bridges.networks.diffusion import mnist_decoder, mnist_denoiser, mnist_encoder
from bridges.networks.training import train_vae

Floats = NDArray[np.float64]
Table = dict[str, Floats]

KINDS = {"mnist": "digits", "notmnist": "letters", "fashion-mnist": "clothes"}
LETTERS = 7_000
"""Letters to train on: there are 10,000 in all, and the others are looked at."""
SAMPLING, GUIDANCE = 20, 2.0
"""Steps of the latent diffusion, and its guidance by the digit."""
DIRECTIONS, RADIUS = 20, 0.1
"""Of the neighbourhood in which knots are counted: some ten of them are met."""


class Model(NamedTuple):
    """A decoder, and the latents of images.

    Attributes
    ----------
    kind : str
        The images that it was trained on, a key of `KINDS`.
    encode : callable
        From images (N, 784) in [0, 1] to latents.
    decoder : nn.Module
        To what stands before the squashing function.
    squash : nn.Module or None
        Sigmoid or tanh; None where the decoder ends without one.
    picture : callable
        From squashed outputs to images (N, 784).
    """

    kind: str
    encode: Callable[[Tensor], Tensor]
    decoder: nn.Module
    squash: nn.Module | None
    picture: Callable[[Tensor], Tensor]


def published_vae() -> Model:
    """Return the published autoencoder of digits, 20 latents and one hidden layer."""
    decoder = pretrained.mnist_vae_decoder()
    return Model(
        "mnist", pretrained.mnist_vae_encoder(), decoder[:-1], decoder[-1], nn.Identity()
    )  # fmt: skip


def trained_vae(kind: str, pixels: NDArray[np.float32], steps: int, seed: int) -> Model:
    """Return an autoencoder of five hidden layers of 128, trained on images (N, 784) of a kind."""
    vae = train_vae(pixels, steps=steps, warmup=steps // 4, seed=seed, progress=False)
    module = vae.module.requires_grad_(False)
    return Model(kind, lambda x: module.encode(x)[0], module.decoder, nn.Sigmoid(), nn.Identity())


def latent_autoencoder() -> Model:
    """Return the autoencoder of the latent diffusion of digits; smooth, and without a sigmoid."""
    encoder = mnist_encoder()
    return Model(
        "mnist", lambda x: encoder(x.view(-1, 1, 28, 28))[:, :1], mnist_decoder(), None,
        lambda y: y.flatten(1),
    )  # fmt: skip


def inverted_gan(steps: int, seed: int) -> Model:
    """Return the published GAN of digits, whose latents are found by inversion."""
    gan = pretrained.mnist_gan().requires_grad_(False)

    def encode(x: Tensor) -> Tensor:
        return invert(gan, 2 * x - 1, steps=steps, seed=seed)

    return Model("mnist", encode, gan[:-1], gan[-1], lambda y: (y + 1) / 2)


@torch.enable_grad()  # also where encoders run without
def invert(
    generator: nn.Module,
    images: Tensor,
    *,
    latents: int = 64,
    steps: int = 200,
    starts: int = 4,
    rate: float = 0.05,
    seed: int = 0,
) -> Tensor:
    """Return the latents (N, latents) whose pictures are near images (N, D) in squared error.

    Adam from standard normal latents; of several starts the best is kept. Nothing holds latents to
    the prior, so that their norm tells how far out an image was found.

    Examples
    --------
    >>> import torch
    >>> from bridges.studies.outside import invert
    >>> z = invert(torch.nn.Identity(), torch.ones(2, 3), latents=3)
    >>> bool((z - 1).abs().max() < 0.01)
    True
    """
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(starts, len(images), latents, generator=draw).requires_grad_()
    adam = torch.optim.Adam([z], lr=rate)

    def error() -> Tensor:
        return (generator(z.flatten(0, 1)).view(starts, *images.shape) - images).square().mean(2)

    for _ in range(steps):
        adam.zero_grad()
        error().sum().backward()
        adam.step()
    with torch.no_grad():
        best = error().argmin(dim=0)
        return z.detach()[best, torch.arange(len(images))]


def measured(model: Model, samples: Sequence[Tensor], seed: int = 0) -> list[Table]:
    """Return the descriptors of each sample of images (N, 784) and two baselines, each (N,).

    "psi", "nu" and "delta" are before the squashing function, "psi after" and "nu after" behind it,
    "psi_W" is that of one random projection to as many pixels as there are latents, before it. For
    a smooth decoder "delta" is the soft complexity. The baselines are "norm" of the latents and
    "error", the mean squared one of what they decode to.
    """
    with torch.no_grad():
        codes = [model.encode(x) for x in samples]
    ends = np.cumsum([len(x) for x in samples])[:-1]
    z = torch.cat(codes)
    whole = described(model, z, seed)
    options: dict[str, Any] = {"method": "paper", "neighbourhood": None, "seed": seed}
    projected = describe(model.decoder, z, progress=False, **options)
    whole["psi_W"] = np.asarray(projected.psi, dtype=np.float64)
    parts = {name: np.split(values, ends) for name, values in whole.items()}
    parts["error"] = [
        (decoded(model, z) - x).square().mean(dim=1).double().numpy()
        for z, x in zip(codes, samples, strict=True)
    ]
    return [{name: part[k] for name, part in parts.items()} for k in range(len(samples))]


def described(model: Model, z: Tensor, seed: int = 0) -> Table:
    """Return what `measured` does of latents alone, but for the projection."""
    options: dict[str, Any] = {"seed": seed, "progress": False}
    smooth = model.squash is None  # the radius counts knots alone
    table = describe(
        model.decoder, z, neighbourhood=(4, 1e-2) if smooth else (DIRECTIONS, RADIUS), **options
    ).columns()
    found = {"psi": table["psi"], "nu": table["nu"], "delta": table["soft" if smooth else "delta"]}
    if model.squash is not None:
        squashed = nn.Sequential(model.decoder, model.squash)
        after = describe(squashed, z, neighbourhood=None, **options)
        found |= {"psi after": after.psi, "nu after": after.nu}
    found["norm"] = z.flatten(1).norm(dim=1).double().numpy()
    return {name: np.asarray(values, dtype=np.float64) for name, values in found.items()}


def decoded(model: Model, z: Tensor) -> Tensor:
    """Return the images (N, 784) of latents."""
    with torch.no_grad():
        outputs = model.decoder(z)
        return model.picture(outputs if model.squash is None else model.squash(outputs))


def drawn(model: Model, count: int, seed: int) -> Tensor:
    """Return latents of digits: of the latent diffusion where the decoder is smooth, or normal.

    The diffusion is asked for the digits 0 to 9 in turn.
    """
    draw = torch.Generator().manual_seed(seed)
    if model.squash is not None:
        return torch.randn(count, 20, generator=draw)
    denoiser, z = mnist_denoiser(), torch.randn(count, 1, 6, 6, generator=draw)
    y = nn.functional.one_hot(torch.arange(count) % 10, 10).float()
    with torch.no_grad():
        for step in range(SAMPLING):
            t = torch.full((count,), step / SAMPLING)
            told, free = (denoiser(z, t, label) for label in (y, 0 * y))
            z = z + (free + GUIDANCE * (told - free)) / SAMPLING
    return z


def mahalanobis(features: ArrayLike, training: ArrayLike, labels: ArrayLike) -> Floats:
    """Return the Mahalanobis distance of features (N, F) to the nearest class of the training's.

    The covariance is shared by the classes (K. Lee et al., "A simple unified framework for
    detecting out-of-distribution samples", 2018); 1e-3 of its mean variance is added to the
    diagonal, for features that are 0 in all of the training.

    Examples
    --------
    >>> from bridges.studies.outside import mahalanobis
    >>> training = [[-1.0, 0.0], [1.0, 0.0], [0.0, -2.0], [0.0, 2.0]]
    >>> mahalanobis([[1.0, 0.0], [0.0, 2.0]], training, [0, 0, 0, 0]).round(1).tolist()
    [1.4, 1.4]
    """
    x, known, given = np.asarray(features), np.asarray(training), np.asarray(labels)
    classes = np.unique(given)
    means = np.stack([known[given == c].mean(axis=0) for c in classes])
    inner = known - means[np.searchsorted(classes, given)]
    covariance = inner.T @ inner / len(known)
    covariance += 1e-3 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    inverse = np.linalg.inv(covariance)
    away = x[:, None] - means
    return np.sqrt(np.einsum("ncf,fg,ncg->nc", away, inverse, away).min(axis=1))
