"""Training of variational autoencoders, kept in files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.func import functional_call

from bridges.networks.autoencoders import Vae, negative_bound
from bridges.networks.pretrained import read_images
from bridges.networks.training.loop import (
    Trained,
    Watch,
    begin_from,
    counts,
    descend,
    fingerprint,
    levels,
    read_checkpoint,
    restoring,
)


def train_vae(
    images: ArrayLike | Tensor,
    *,
    steps: int,
    batch: int = 128,
    rate: float = 1e-3,
    beta: float = 1.0,
    warmup: int = 1000,
    latents: int = 20,
    width: int = 128,
    depth: int = 5,
    noise: float = 0.0,
    weight_noise: float = 0.0,
    seed: int = 0,
    start: Vae | None = None,
    decoder_only: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    every: int = 500,
    progress: bool = True,
    watch: Watch | None = None,
) -> Trained[Vae]:
    """Train a variational autoencoder, or train one further on other images.

    Parameters
    ----------
    images : (N, D) Tensor or array_like
        In [0, 1], of any dtype; trained on in float32, drawn with replacement.
    steps : int
        Of Adam.
    batch : int
        Images a step.
    rate : float
        Of all steps: a training of fewer steps is the beginning of one of more.
    beta : float
        Weight of the KL divergence; 1 is the evidence lower bound.
    warmup : int
        Steps in which that weight rises from 0: without them most latents of a deep autoencoder are
        never used. Give 0 for a training whose loss is the same at each step.
    latents, width, depth : int
        As for `Vae`.
    noise : float
        Standard deviation of what is added to the images, once and for all steps, before they are
        clamped to [0, 1].
    weight_noise : float
        Standard deviation of what is added to all weights at each step for its gradient, and taken
        away again.
    seed : int
        Of weights, batches, posteriors and noise. The same batches and posteriors' noise are drawn
        whatever the noise levels. torch's own generator is not touched.
    start : Vae, optional
        Whose weights are trained further, in a copy, with a new Adam. It must have the sizes above.
    decoder_only : bool
        Whether the encoder stays as it is, and with it what the latents mean.
    checkpoint : path, optional
        A file that every `every` steps are written to, and that training goes on from where it is
        there already; where all steps are done, it is only read. The result is that of a run
        without a stop, bit for bit.
    every : int
        Steps between two checkpoints.
    progress : bool
        Whether to show a bar.
    watch : callable, optional
        Called with the module and the number of steps done: before the first step, and after each.
        A `bridges.Monitor` measures there.

    Returns
    -------
    Trained
        Its losses are those of noisy images and weights, in nats. After Ctrl-C what is done so far,
        with a warning.

    Raises
    ------
    ValueError
        Images that are not finite in [0, 1]; options that are not as said above; a start of other
        sizes; a checkpoint of other options; a loss that is not finite: the last checkpoint stays.

    Notes
    -----
    D. P. Kingma, M. Welling, "Auto-encoding variational Bayes", 2014; I. Higgins et al.,
    "beta-VAE", 2017; C. K. Sønderby et al., "Ladder variational autoencoders", 2016, for the
    warm-up. A step of 128 images of MNIST takes 5 to 7 ms on one core.

    Examples
    --------
    >>> import torch
    >>> from bridges.networks.training import train_vae
    >>> images = torch.eye(8)
    >>> sizes = {"latents": 2, "width": 16, "depth": 1, "progress": False}
    >>> trained = train_vae(images, steps=20, rate=0.01, **sizes)
    >>> bool(trained.losses[-1] < trained.losses[0])
    True
    >>> more = train_vae(images.flip(0), steps=5, start=trained.module, **sizes)
    """
    images = _pixels(images)
    noise, weight_noise, beta, rate = levels(
        noise=noise, weight_noise=weight_noise, beta=beta, rate=rate
    )
    steps, seed, warmup = counts(0, steps=steps, seed=seed, warmup=warmup)
    batch, latents, width, depth = counts(1, batch=batch, latents=latents, width=width, depth=depth)
    sizes = {"latents": latents, "width": width, "depth": depth, "pixels": images.shape[1]}
    options = {
        "vae": True, **sizes, "images": len(images), "sum": fingerprint(iter([images])),
        "steps": steps, "batch": batch, "rate": rate, "beta": beta, "warmup": warmup,
        "noise": noise, "weight_noise": weight_noise, "seed": seed, "decoder_only": decoder_only,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = Vae(**sizes).to(images.device)
    if start is not None:
        begin_from(vae, start)
    options["start"] = None if start is None else fingerprint(start.parameters())
    vae.encoder.requires_grad_(not decoder_only)
    if noise:
        images = (images + noise * _normal(images, seed)).clamp(0, 1)

    def loss_of(generator: torch.Generator, step: int) -> Tensor:
        rows = torch.randint(len(images), (batch,), generator=generator)
        drawn = torch.randn(batch, latents, generator=generator).to(images)
        x = images[rows.to(images.device)]
        weights: dict[str, Tensor] = dict(vae.named_parameters())
        if weight_noise:  # of its own seed at each step, which no checkpoint has to hold
            moved = (_normal(w, seed, step, k) for k, w in enumerate(weights.values()))
            weights = {
                name: w + weight_noise * m
                for (name, w), m in zip(weights.items(), moved, strict=True)
            }
        risen = min(1.0, step / warmup) if warmup else 1.0
        return negative_bound(x, functional_call(vae, weights, (x, drawn)), risen * beta)

    trained = descend(
        vae, loss_of,
        options=options, steps=steps, rate=rate, seed=seed, decay=False,
        checkpoint=checkpoint, every=every, progress=progress, watch=watch,
    )  # fmt: skip
    vae.encoder.requires_grad_(True)
    return trained


def cached_vae(
    file: str | os.PathLike[str],
    kind: Literal["mnist", "fashion-mnist", "notmnist"] = "mnist",
    count: int = 60_000,
    *,
    part: Literal["train", "t10k"] = "train",
    folder: Path | None = None,
    steps: int = 10_000,
    **options: Any,
) -> Trained[Vae]:
    """Return the autoencoder of a data set that a file has, or train it and keep it there.

    Parameters
    ----------
    file : path
        The `checkpoint` of `train_vae`.
    kind, count, part, folder
        Of images, as for `read_images`.
    steps, **options
        As for `train_vae`. 10,000 steps take about a minute on one core.

    Returns
    -------
    Trained

    Raises
    ------
    ValueError
        As `train_vae` and `read_images`; a file of other options.
    """
    pixels = read_images(kind, count, folder, part=part).pixels
    return train_vae(pixels, steps=steps, checkpoint=file, **options)


def load_vae(file: str | os.PathLike[str]) -> Trained[Vae]:
    """Read an autoencoder that `train_vae` wrote, without the images that it was trained on.

    Parameters
    ----------
    file : path
        A checkpoint; nothing in it is executed.

    Returns
    -------
    Trained
        Not complete where its training has more steps.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        A file of something else, or one that is damaged or lacks a part.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import torch
    >>> from bridges.networks.training import load_vae, train_vae
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder, "vae.pt")
    ...     _ = train_vae(torch.eye(8), steps=3, width=16, checkpoint=file, progress=False)
    ...     found = load_vae(file)
    >>> found.complete, found.module.decoder[0].weight.shape
    (True, torch.Size([16, 20]))
    """
    state = read_checkpoint(file)
    options = state["options"]
    if not options.get("vae"):
        raise ValueError(
            f"Expected an autoencoder in '{file}', got the checkpoint of another training: give "
            "a file of train_vae."
        )
    with restoring(file):
        vae = Vae(**{name: options[name] for name in ("latents", "width", "depth", "pixels")})
        vae.load_state_dict(state["module"])
        complete = len(state["losses"]) == options["steps"]
    return Trained(vae.eval(), state["losses"], complete)


def _normal(like: Tensor, *seeds: int) -> Tensor:
    """Return standard normal numbers, of a tensor's shape, that only the seeds determine."""
    seed = np.random.SeedSequence(seeds).generate_state(2, np.uint32)
    generator = torch.Generator().manual_seed(int(seed[0]) << 31 | int(seed[1]) >> 1)
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)


def _pixels(images: Any) -> Tensor:
    """Return images as float32, or refuse what is none."""
    try:
        found = torch.as_tensor(images).detach()
        fits = found.ndim == 2 and found.numel() > 0
        ends = f" with entries from {found.min():g} to {found.max():g}" if found.numel() else ""
        if fits and ((found >= 0) & (found <= 1)).all():
            return found.float()
        got = f"shape {tuple(found.shape)}{ends}"
    except (TypeError, ValueError, RuntimeError):  # no numbers, or complex or sparse ones
        got = type(images).__name__
    raise ValueError(
        f"Expected images (N, D) from 0 to 1, got {got}: flatten them, and divide bytes by 255."
    )
