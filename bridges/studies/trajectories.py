"""Descriptors along guided sampling: Figures 8 and 12 of the paper, and a diffusion transformer.

Claims of A. I. Humayun et al., "What secrets do your manifolds hold?" (arXiv 2408.08307), on the
pretrained latent diffusion of MNIST's digits. A seed is one noise with one digit, drawn at every
guidance, so that effects are differences within a seed. Needs the extra cpwl[diffusers].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from approx.diffusion import record
from bridges.networks import pipelines
from bridges.networks.diffusion import mnist_classifier
from bridges.studies.claims import Claim, Direction, Invariant, Study, whole_seeds
from bridges.studies.denoiser_maps import estimates, unrolled
from bridges.studies.digits import (
    NAMES,
    OPTIONS,
    WORDS,
    Floats,
    Table,
    described,
    sampled,
    settled,
    untrained_decoder,
)

GUIDANCES = (0, 1, 3, 5, 7.5, 9)
"""Of Figure 8. Effects are over those from 1 on: at 0 the digit is not what was asked for."""

GUIDED = 2.0  # the transformer
PLACES = ("sample", "clean")  # of `record`
TOGETHER = 8
"""Seeds at a time, and at least as many as the transformer has."""


class Size(NamedTuple):
    """How much is run.

    Attributes
    ----------
    seeds : int
        Where none are given.
    guidances : tuple of float
    steps, every : int
        Of sampling, and between two that are described.
    transformers, points : int
        Seeds of the transformer, and steps at which its map is described.
    unrolled : int
        Steps of the unrolled maps.
    """

    seeds: int
    guidances: tuple[float, ...]
    steps: int
    every: int
    transformers: int
    points: int
    unrolled: int


FULL = Size(40, GUIDANCES, 50, 5, 8, 6, 4)
SMALL = Size(4, (1, 5, 9), 10, 5, 1, 2, 2)


def study(size: Size, seeds: Sequence[int]) -> Study:
    """Run the study at some size; `FULL` takes some ten minutes of one core.

    After Ctrl-C it is of the seeds that are whole, in groups of `TOGETHER`.

    Its data: `guidances`; `steps`, those that were described, with `sigmas`; `curves`, by
    descriptor, place and guidance (steps, 5): mean over seeds, its 95 % interval, quartiles;
    `ends`, by quantity and guidance, a number a seed; `transformer`, the same by descriptor alone.
    """
    transformer, dit = _transformer(size, seeds)
    pipe = pipelines.mnist_pipeline()
    pipe.set_progress_bar_config(disable=True)
    groups = [seeds[k : k + TOGETHER] for k in range(0, len(seeds), TOGETHER)]
    parts = whole_seeds(range(len(groups)), lambda k: _seeds(pipe, size, groups[k]))
    seeds = tuple(seed for group in groups[: len(parts)] for seed in group)
    found = {name: _joined([part[name] for part in parts]) for name in parts[0]}
    ends, along, compared = found["ends"], found["along"], found["compared"]
    data = {
        "guidances": list(size.guidances),
        "steps": found["steps"],
        "sigmas": found["sigmas"],
        "curves": {
            name: {
                place: {
                    f"{g:g}": _bands(values[i]) for i, g in enumerate(size.guidances)
                }
                for place, values in by_place.items()
            }
            for name, by_place in along.items()
        },
        "ends": {
            name: {f"{g:g}": row for g, row in zip(size.guidances, values, strict=True)}
            for name, values in ends.items()
        },
        "transformer": transformer,
    }  # fmt: skip
    claims = [*_claims(size, ends, along, compared), *dit]
    held = _invariants(pipe, seeds, found, size, transformer)
    return Study("trajectories", size == FULL, seeds, tuple(claims), tuple(held), data)


def _seeds(pipe: Any, size: Size, seeds: Sequence[int]) -> dict[str, Any]:
    """Return what some seeds give, those along the last axis, and what is the same for all."""
    labels, noise = _start(seeds)
    runs = [_sampled(pipe, labels, noise, guidance, size) for guidance in size.guidances]
    z = torch.stack([r.end for r in runs])
    with torch.no_grad():
        pictures = pipe.vae.decode(z.flatten(0, 1)).sample.clamp(0, 1)
        seen = mnist_classifier()(pictures).argmax(dim=1).view(len(runs), -1)
    ends = {name: np.stack([r.ends[name] for r in runs]) for name in NAMES}
    ends["norm"] = z.flatten(2).norm(dim=2).double().numpy()
    ends["right"] = (seen == labels).double().numpy()
    ends["settled"] = np.stack([r.settled for r in runs])
    along = {
        name: {place: np.stack([r.along[place][name] for r in runs]) for place in PLACES}
        for name in NAMES
    }
    gaps = [(r.end - r.last).abs().flatten(1).amax(dim=1).numpy() for r in runs]
    return {
        "ends": ends, "along": along, "compared": _compared(pipe, z, size, seeds),
        "gaps": np.stack(gaps), "steps": runs[0].steps, "sigmas": runs[0].sigmas,
    }  # fmt: skip


def _joined(parts: Sequence[Any]) -> Any:
    """Return tables of groups of seeds as one, arrays joined along the last axis."""
    first = parts[0]
    if isinstance(first, dict):
        return {name: _joined([part[name] for part in parts]) for name in first}
    return np.concatenate(parts, axis=-1) if isinstance(first, np.ndarray) else first


def _start(seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the labels (N,) and the noise (N, 1, 6, 6) of seeds."""
    return torch.tensor([seed % 10 for seed in seeds]), _normal(seeds, (1, 6, 6))


# -- sampling ------------------------------------------------------------------------------------


class Run(NamedTuple):
    """Samples of all seeds at one guidance.

    Attributes
    ----------
    end : (N, ...) Tensor
    last : (N, ...) Tensor
        The estimate of x_0 at the last step.
    settled : (N,) float64
        The step from which on the estimate stays within 5 % of the end.
    steps, sigmas : (S,)
        Those that are described.
    along : dict of dict
        By place and descriptor, (S, N) float64.
    ends : dict
        By descriptor, (N,) float64, at the end.
    """

    end: Tensor
    last: Tensor
    settled: Floats
    steps: list[int]
    sigmas: list[float]
    along: dict[str, Table]
    ends: Table


def _sampled(pipe: Any, labels: Tensor, noise: Tensor, guidance: float, size: Size) -> Run:
    """Draw a sample for each seed, and describe the decoder along the way."""
    with record(pipe, every=size.every, at=PLACES, **OPTIONS) as run:
        x, clean, sigmas = sampled(pipe, labels, noise, guidance, size.steps)
    found = run.columns()
    rows = {
        place: {name: found[name][found["at"] == place].reshape(-1, len(noise)) for name in NAMES}
        for place in PLACES
    }
    steps = found["step"][found["at"] == "clean"][:: len(noise)].tolist()
    along = {place: {k: v[: len(steps)] for k, v in rows[place].items()} for place in PLACES}
    ends = {name: values[-1] for name, values in rows["sample"].items()}  # behind the last step
    still = settled(clean, x[-1])
    return Run(x[-1], clean[-1], still, steps, [sigmas[s] for s in steps], along, ends)


def _normal(seeds: Sequence[int], shape: tuple[int, ...], stream: int = 0) -> Tensor:
    """Return noise (N, *shape), of each seed by itself."""
    made = (torch.Generator().manual_seed(1000 * stream + seed) for seed in seeds)
    return torch.stack([torch.randn(shape, generator=generator) for generator in made])


# -- claims --------------------------------------------------------------------------------------


def _compared(pipe: Any, z: Tensor, size: Size, seeds: Sequence[int]) -> dict[str, Table]:
    """Return descriptors at latents (G, N) of other norms or directions, and of other decoders."""
    norm = z.flatten(2).norm(dim=2)[..., None, None, None]
    first = size.guidances.index(1)
    directions = _normal(seeds, (1, 6, 6), stream=1)
    directions = directions / directions.flatten(1).norm(dim=1)[:, None, None, None]
    untrained = [
        described(untrained_decoder(seed), z[:, i : i + 1])
        for i, seed in enumerate(seeds)
    ]  # fmt: skip
    return {
        "equal norm": described(pipe.vae.decode, z * (norm[first] / norm)),
        "random": described(pipe.vae.decode, norm * directions),
        "untrained": {
            name: np.concatenate([t[name] for t in untrained], axis=1) for name in NAMES
        },
    }  # fmt: skip


def _claims(
    size: Size, ends: Table, along: dict[str, Any], compared: dict[str, Table]
) -> list[Claim]:
    """Return the claims about guidance: slopes over it, from 1 on."""
    used = [i for i, g in enumerate(size.guidances) if g >= 1]
    guidances = np.array([size.guidances[i] for i in used])
    over = f"over guidance {guidances[0]:g} to {guidances[-1]:g}"

    def slope(claim: str, paper: Direction, words: str, values: Floats) -> Claim:
        return Claim(claim, paper, f"slope of {words} {over}", _slopes(guidances, values[used]))

    claims = []
    for name, paper in zip(NAMES, ("falls", "falls", "not said"), strict=True):
        words = WORDS[name]
        claims += [
            slope(f"Figure 8: {words} at the end of sampling", paper, name, ends[name]),
            *(
                slope(
                    f"Figure 8: {words} at {where}, mean of the steps",
                    paper, name, along[name][place].mean(axis=1),
                )
                for place, where in zip(PLACES, ("x_t", "the estimate of x_0"), strict=True)
            ),
            slope(f"{words} at the end, at equal norm", paper, name, compared["equal norm"][name]),
            Claim(
                f"{words} at the end, at equal norm (regression)", paper,
                f"coefficient of guidance beside log |z| and the seed, jackknife, {over}",
                _beside(guidances, ends[name][used], np.log(ends["norm"][used])),
            ),
            Claim(
                f"{words} at the end, where LeNet-5 sees the digit", paper,
                f"slope of {name} {over}",
                _slopes(guidances, ends[name][used], ends["right"][used] > 0),
            ),
        ]  # fmt: skip
    claims += [
        slope("norm of the latent at the end", "not said", "|z|", ends["norm"]),
        slope(
            "Figure 12: step from which the estimate of x_0 stays within 5 % of the end",
            "not said", "the step", ends["settled"],
        ),
    ]  # fmt: skip
    for name in NAMES:
        claims += [
            slope(f"control: {WORDS[name]} at random latents of the same norms",
                  "none", name, compared["random"][name]),
            slope(f"control: {WORDS[name]} of untrained decoders at the same latents",
                  "none", name, compared["untrained"][name]),
        ]  # fmt: skip
    return claims


def _slopes(x: Floats, y: Floats, use: NDArray[np.bool_] | None = None) -> tuple[float, ...]:
    """Return least-squares slopes of the columns of y (G, N) over x (G,).

    Columns with fewer than three rows in `use` are left out.
    """
    use = np.ones(y.shape, dtype=bool) if use is None else use
    found = (
        np.polyfit(x[mask], column[mask], 1)[0]
        for column, mask in zip(y.T, use.T, strict=True)
        if mask.sum() >= min(3, len(x))
    )
    return tuple(float(value) for value in found)


def _beside(x: Floats, y: Floats, other: Floats) -> tuple[float, ...]:
    """Return jackknife values, one a seed, of the coefficient of x (G,) beside another regressor.

    y and `other` are (G, N); each seed has an intercept of its own.
    """

    def coefficient(keep: NDArray[np.intp]) -> float:
        centred = [
            (v - v.mean(axis=0)).ravel()
            for v in (np.tile(x[:, None], (1, len(keep))), other[:, keep], y[:, keep])
        ]
        return float(np.linalg.lstsq(np.stack(centred[:2], axis=1), centred[2])[0][0])

    everyone = np.arange(y.shape[1])
    n, whole = len(everyone), coefficient(everyone)
    if n < 3:
        return (float("nan"),) * n
    return tuple(n * whole - (n - 1) * coefficient(np.delete(everyone, i)) for i in everyone)


def _bands(values: Floats) -> Floats:
    """Return mean, ends of its 95 % interval, and quartiles of (S, N) over N, as (S, 5)."""
    half = 1.96 * values.std(axis=1, ddof=1 if values.shape[1] > 1 else 0) / values.shape[1] ** 0.5
    mean = values.mean(axis=1)
    low, high = np.quantile(values, [0.25, 0.75], axis=1)
    return np.stack([mean, mean - half, mean + half, low, high], axis=1)


# -- the transformer, and what must hold -----------------------------------------------------------


def _transformer(size: Size, seeds: Sequence[int]) -> tuple[dict[str, Any], list[Claim]]:
    """Return the curves of the transformer's map from x_t to the estimate of x_0, and claims."""
    seeds = list(seeds)[: size.transformers]
    pipe = pipelines.transformer_pipeline()
    pipe.set_progress_bar_config(disable=True)
    labels = torch.tensor([seed % 10 for seed in seeds])
    noise = _normal(seeds, (1, 28, 28))
    x, _, sigmas = sampled(pipe, labels, noise, GUIDED, size.steps)
    steps = np.linspace(0, size.steps - 1, size.points).round().astype(int).tolist()
    found = [
        estimates(pipe, x[step], step, labels, GUIDED) for step in tqdm(steps, desc="transformer")
    ]
    values = {name: np.stack([table[name] for table in found]) for name in NAMES}
    data = {
        "steps": steps,
        "sigmas": [sigmas[step] for step in steps],
        "curves": {name: _bands(v) for name, v in values.items()},
        "values": values,
    }
    claims = [
        Claim(
            f"diffusion transformer: {WORDS[name]} of x_t to x_0", "not said",
            f"{name} at the last step minus at the first", tuple((v[-1] - v[0]).tolist()),
        )
        for name, v in values.items()
    ]  # fmt: skip
    whole, parts = unrolled(pipe, noise[:1], labels[:1], GUIDED, size.unrolled)
    return data | {"unrolled": [whole, parts]}, claims


def _invariants(
    pipe: Any, seeds: Sequence[int], found: dict[str, Any], size: Size, dit: dict[str, Any]
) -> list[Invariant]:
    """Return what holds whatever the claims are."""
    labels, noise = _start(seeds[:3])
    apart = float(found["gaps"].max())
    spread = float(np.ptp(found["along"]["psi"]["sample"][:, 0], axis=0).max())
    latent = unrolled(pipe, noise, labels, size.guidances[-1], size.steps // 2)
    held = [
        Invariant("the last estimate of x_0 is the sample", apart < 1e-5, f"within {apart:.1e}"),
        Invariant("no guidance changes psi at the noise", spread < 1e-3, f"within {spread:.1e}"),
    ]
    for words, (whole, parts) in (("latents", latent), ("pictures", dit["unrolled"])):
        off = float(np.abs(whole - parts).max())
        held.append(
            Invariant(
                f"psi of all steps at once is the sum of the steps, {words}",
                off < 1e-6 * float(np.abs(whole).max()),
                f"within {off:.1e} of {float(np.abs(whole).max()):.4g}",
            )
        )
    return held
