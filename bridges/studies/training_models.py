"""Autoencoders and denoisers in training, and what the study `training` measures of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from approx import bind, describe, whitening
from bridges.monitor import Monitor
from bridges.networks.autoencoders import Vae
from bridges.networks.diffusion import mnist_denoiser, mnist_encoder
from bridges.networks.pretrained import read_images
from bridges.networks.training import train_denoiser, train_vae
from bridges.studies.digits import Floats

KINDS: Mapping[str, Literal["mnist", "fashion-mnist", "notmnist"]] = {
    "digits": "mnist", "clothes": "fashion-mnist", "letters": "notmnist",
}  # fmt: skip
ABRUPT = "no warm-up"
"""The training without noise whose KL divergence has its whole weight from the first step."""
WORDS = {
    "psi": "local scaling", "psi after": "local scaling after the sigmoid",
    "psi white": "white local scaling", "psi white after": "white local scaling after the sigmoid",
    "nu white": "white local rank", "nu white after": "white local rank after the sigmoid",
    "delta": "local complexity", "delta white": "white local complexity",
}  # fmt: skip
WHITE = tuple(name for name in WORDS if "white" in name)
RADIUS = 0.1  # of the cross-polytope in which knots are counted; latents deviate by about 1
TIME = 0.5  # from 0, noise, to 1, at which the denoiser is described
RATE = 1e-3  # of the denoiser's fine-tuning, a quarter of that of its training
OF_DENOISER = {"psi": "local scaling", "nu": "local rank", "soft": "soft complexity"}

Numbers = dict[str, float]


class Size(NamedTuple):
    """How much is run.

    Attributes
    ----------
    seeds : int
        Where none are given.
    noises : tuple of float
        Standard deviations of noise on the training images: 0 first, the negative control second.
    images, shown : int
        That are trained on, and other ones whose codes are measured.
    steps, mixed, batch, warmup : int
        Of training, and of that with few classes; images in each; and until the KL divergence has
        its whole weight.
    measured : tuple of int
        Steps, from 0 to the last.
    settled : int
        One of these: where the start, which depends on the first weights alone, is over.
    latents, width, depth : int
        Of the autoencoders.
    tuned : tuple of int
        Steps of fine-tuning that are measured, from 0 to the last.
    classes : tuple of int
        In rising order.
    denoiser, codes : int
        Steps of fine-tuning the denoiser, and noisy latents at which it is measured.
    """

    seeds: int
    noises: tuple[float, ...]
    images: int
    shown: int
    steps: int
    mixed: int
    batch: int
    warmup: int
    measured: tuple[int, ...]
    settled: int
    latents: int
    width: int
    depth: int
    tuned: tuple[int, ...]
    classes: tuple[int, ...]
    denoiser: int
    codes: int


class Parts(NamedTuple):
    """What all seeds share, by kind of image.

    Attributes
    ----------
    train, shown : mapping of Tensor
        Images (N, 784).
    labelled, tested : (Tensor, array)
        Training and test digits to choose classes from, and their labels.
    codes : mapping of (Tensor, Tensor)
        Latents (N, 1, 6, 6) and labels that the denoiser is trained on.
    """

    train: Mapping[str, Tensor]
    shown: Mapping[str, Tensor]
    labelled: tuple[Tensor, Any]
    tested: tuple[Tensor, Any]
    codes: Mapping[str, tuple[Tensor, Tensor]]


def parts_of(size: Size) -> Parts:
    """Read images, and encode them for the denoiser."""
    encoder = mnist_encoder()
    # the rarest digit is one in eleven
    digits = read_images("mnist", min(60_000, 12 * size.images), part="train")
    tested = read_images("mnist", min(10_000, 20 * size.shown))
    train, shown, codes = {}, {}, {}
    for name, kind in KINDS.items():
        if kind == "notmnist":  # has no images for training
            both = read_images(kind, size.images + size.shown)
            one, other, labels = both.pixels, both.pixels[size.images :], both.labels
        else:
            some = digits if kind == "mnist" else read_images(kind, size.images, part="train")
            one, other, labels = some.pixels, read_images(kind, size.shown).pixels, some.labels
        train[name], shown[name] = torch.from_numpy(one[: size.images]), torch.from_numpy(other)
        with torch.no_grad():
            pictures = train[name].view(-1, 1, 28, 28).split(500)
            z = torch.cat([encoder(part)[:, :1] for part in pictures])
        codes[name] = z, torch.from_numpy(labels[: size.images].astype(np.int64))
    return Parts(
        train, shown, (torch.from_numpy(digits.pixels), digits.labels),
        (torch.from_numpy(tested.pixels), tested.labels), codes,
    )  # fmt: skip


# -- measures --------------------------------------------------------------------------------------


def _described(vae: Vae, images: Tensor, of: Tensor, raw: bool = True) -> Numbers:
    """Return means over images' codes of `WORDS`, white by the codes of others, or of `WHITE`."""
    with torch.no_grad():
        z = vae.encode(images)[0]
        mean, log_variance = vae.encode(of)
    white = whitening(mean, log_variance.exp())
    found: Numbers = {"log volume": white.log_volume} if raw else {}
    latents = {" white": white.coordinates(z)} | ({"": z} if raw else {})
    for after, plain in (("", vae.decoder), (" after", vae.decode)):
        for name, u in latents.items():
            decoder = white.decoder(plain) if name else plain
            # directions and all else of one seed, the same for every model
            table = describe(
                decoder, u, method="exact", neighbourhood=None if after else (4, RADIUS), seed=0,
                batch=len(u), progress=False,
            )  # fmt: skip
            kept = {f"psi{name}{after}": table.psi, f"nu{name}{after}": table.nu}
            if table.delta is not None:
                kept[f"delta{name}"] = table.delta
            found |= {key: float(np.mean(value)) for key, value in kept.items()}
    return {name: value for name, value in found.items() if name in (*WORDS, "log volume")}


# -- one seed --------------------------------------------------------------------------------------


def one_seed(parts: Parts, size: Size, seed: int) -> dict[str, Any]:
    """Return what `training.study` describes, of one seed."""
    options: dict[str, Any] = {
        "batch": size.batch, "latents": size.latents, "width": size.width, "depth": size.depth,
        "seed": seed, "progress": False,
    }  # fmt: skip
    digits, shown = parts.train["digits"], parts.shown["digits"]
    trainings = {f"{noise:g}": {"noise": noise, "warmup": size.warmup} for noise in size.noises}
    trainings[ABRUPT] = {"noise": 0.0, "warmup": 0}
    curves, losses, base = {}, {}, None
    for name, more in trainings.items():
        monitor = Monitor(lambda vae: _described(vae, shown, digits), every=size.measured)
        trained = train_vae(digits, steps=size.steps, watch=monitor, **more, **options)
        base = base or trained.module
        curves[name] = _columns(monitor)
        tenth = size.steps // 10
        losses[name] = [
            float(trained.losses[part].mean()) for part in (slice(tenth), slice(-tenth, None))
        ]
    assert base is not None
    return {
        "curves": curves,
        "losses": losses,
        "tuned": _tuned(parts, size, base, options),
        "classes": _classes(parts, size, seed, options),
        "denoiser": _denoisers(parts, size, seed),
    }


def _columns(monitor: Monitor) -> dict[str, Floats]:
    return {
        name: np.asarray(v, np.float64) for name, v in monitor.columns().items() if name != "step"
    }


def _tuned(
    parts: Parts, size: Size, base: Vae, options: Mapping[str, Any]
) -> dict[str, dict[str, Floats]]:
    """Return measures along the fine-tuning of the decoder to each kind, the encoder fixed."""

    def measure(vae: Vae) -> Numbers:
        return {
            f"{where}: {name}": value
            for where, images in parts.shown.items()
            for name, value in _described(vae, images, parts.train["digits"], raw=False).items()
        }

    found = {}
    for kind, images in parts.train.items():
        monitor = Monitor(measure, every=size.tuned)
        train_vae(
            images, steps=size.tuned[-1], warmup=0, start=base, decoder_only=True, watch=monitor,
            **options,
        )  # fmt: skip
        found[kind] = _columns(monitor)
    return found


def _classes(
    parts: Parts, size: Size, seed: int, options: Mapping[str, Any]
) -> dict[str, dict[str, list[float]]]:
    """Return measures of models of ever more classes, each class in all the models after it."""
    order = np.random.default_rng(seed).permutation(10)
    found: dict[str, dict[str, list[float]]] = {
        where: {name: [] for name in WHITE} for where in ("same", "own")
    }
    for count in size.classes:
        images, shown = (
            pixels[np.flatnonzero(np.isin(labels, order[:number]))[:some]]
            for (pixels, labels), number, some in (
                (parts.labelled, count, size.images), (parts.tested, count, size.shown)
            )
        )  # fmt: skip
        first = parts.tested[0][np.flatnonzero(parts.tested[1] == order[0])[: size.shown]]
        vae = train_vae(images, steps=size.mixed, warmup=size.warmup, **options).module
        for where, pictures in (("same", first), ("own", shown)):
            for name, value in _described(vae, pictures, images, raw=False).items():
                found[where][name].append(value)
    return found


def _denoisers(parts: Parts, size: Size, seed: int) -> dict[str, Numbers]:
    """Return measures of the estimate of x_0 of digits, before and after training it further."""
    start = mnist_denoiser()
    z, labels = parts.codes["digits"]
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(z), (size.codes,), generator=generator)
    noise = torch.randn(size.codes, *z.shape[1:], generator=generator)
    x, y = TIME * z[rows] + (1 - TIME) * noise, nn.functional.one_hot(labels[rows], 10)
    found = {"start": _estimate(start, x, y)}
    for kind, (latents, of) in parts.codes.items():
        trained = train_denoiser(
            latents, of, steps=size.denoiser, rate=RATE, start=start, seed=seed, progress=False
        )
        found[kind] = _estimate(trained.module, x, y)
    return found


def _estimate(denoiser: nn.Module, x: Tensor, y: Tensor) -> Numbers:
    """Return means of psi, nu and soft complexity of noisy latent -> estimate of x_0."""
    wide = copy.deepcopy(denoiser).double().requires_grad_(False)

    def clean(x: Tensor, *, y: Tensor) -> Tensor:  # the velocity leads from noise to x_0
        velocity: Tensor = wide(x, torch.full((len(x),), TIME, dtype=x.dtype), y)
        return x + (1 - TIME) * velocity

    table = describe(
        bind(clean, y=y.double()), x.double(), method="exact", neighbourhood=(4, RADIUS), seed=0,
        batch=len(x), progress=False,
    )  # fmt: skip
    return {name: float(np.mean(table.columns()[name])) for name in OF_DENOISER}
