"""Descriptors of memorised samples: Figures 8 and 12 of the paper, on a small denoiser.

Whether the descriptors of A. I. Humayun et al., "What secrets do your manifolds hold?" (arXiv
2408.08307), tell memorised samples from others. A seed is a choice of digits, and the denoisers of
latents that are trained on them. The abstract names memorisation, without a direction.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from approx.diffusion import Level, Schedule, maps
from approx.populations import auroc, compressed_size
from bridges.networks.diffusion import Denoiser, mnist_decoder, mnist_encoder
from bridges.networks.pretrained import read_images
from bridges.networks.training import train_denoiser
from bridges.studies.claims import Claim, Invariant, Study, whole_seeds
from bridges.studies.digits import (
    NAMES,
    WORDS,
    Floats,
    Table,
    described,
    settled,
    untrained_decoder,
)

PLANTED, TIMES = 10, 500
"""Digits that are planted, and how often each; they are half of the latents of that training."""

MEMORISED = 1 / 3
"""Below this ratio of distances to the nearest and to the second training digit."""

STRATA = 5  # of compressed size


class Size(NamedTuple):
    """How much is run.

    Attributes
    ----------
    seeds : int
        Where none are given.
    trainings : tuple of str
        How many digits, or "planted".
    digits : int
        That are read, and that "planted" draws from.
    training, batch : int
        Steps of training and latents in each.
    samples, steps : int
        Of each denoiser, and the steps of sampling.
    times : tuple of float
        From 0, noise, to 1, at which the denoiser is described; times of sampling.
    """

    seeds: int
    trainings: tuple[str, ...]
    digits: int
    training: int
    batch: int
    samples: int
    steps: int
    times: tuple[float, ...]


FULL = Size(5, ("10", "100", "1000", "10000", "planted"), 10_000, 3_000, 64, 100, 20, (0.5, 0.8))
SMALL = Size(2, ("4", "planted"), 40, 30, 8, 6, 5, (0.8,))


class Digits(NamedTuple):
    """Training digits: latents (N, 1, 6, 6), what the decoder makes of them (N, 784), labels."""

    latents: Tensor
    pictures: Tensor
    labels: Tensor


def study(size: Size, seeds: Sequence[int]) -> Study:
    """Run the study at some size; `FULL` takes some half an hour of one core.

    After Ctrl-C it is of the seeds that are whole.

    Its data: `trainings`; `share` that is memorised, by training, a number a seed; `samples`, one
    table a seed with a row for each sample: training (its number), ratio, bytes, settled, and every
    score; `shown`, of the first seed: latents by training, and their nearest training images.
    """
    decoder = mnist_decoder()
    everything = _digits(size.digits, decoder)
    found = whole_seeds(seeds, lambda seed: _seed(size, seed, everything, decoder))
    seeds = tuple(seeds)[: len(found)]
    tables, shown, fell = zip(*found, strict=True)
    share = {
        training: [
            float((table["ratio"][table["training"] == number] < MEMORISED).mean())
            for table in tables
        ]
        for number, training in enumerate(size.trainings)
    }
    data = {
        "trainings": list(size.trainings), "share": share, "samples": tables, "shown": shown[0],
        "size": size._asdict(),
    }  # fmt: skip
    by_count = sorted((int(t), float(np.mean(v))) for t, v in share.items() if t.isdigit())
    shares = [value for _, value in by_count]
    invariants = (
        Invariant("the loss falls in training", max(fell) < 1, f"to {max(fell):.2f} of the start"),
        Invariant(
            "more digits are not memorised more", shares == sorted(shares, reverse=True),
            ", ".join(f"{count}: {value:.0%}" for count, value in by_count),
        ),
    )  # fmt: skip
    claims = tuple(_claims(tables, seeds, size))
    return Study("memorisation", size == FULL, seeds, claims, invariants, data)


# -- training and sampling -------------------------------------------------------------------------


def _digits(count: int, decoder: nn.Module) -> Digits:
    images = read_images("mnist", count, part="train")
    pictures = torch.from_numpy(images.pixels).view(-1, 1, 28, 28)
    encoder = mnist_encoder()
    with torch.no_grad():
        z = torch.cat([encoder(part)[:, :1] for part in pictures.split(500)])
        decoded = torch.cat([decoder(part).flatten(1) for part in z.split(500)])
    return Digits(z, decoded, torch.from_numpy(images.labels.astype(np.int64)))


def _rows(size: Size, training: str, seed: int) -> Tensor:
    """Return the digits that a denoiser is trained on, one that is planted many times."""
    order = torch.randperm(size.digits, generator=torch.Generator().manual_seed(seed))
    if training != "planted":
        return order[: int(training)]
    half = size.digits // 2
    planted = order[:PLANTED].repeat_interleave(min(TIMES, half // PLANTED))
    return torch.cat([planted, order[PLANTED : PLANTED + half]])


def _seed(
    size: Size, seed: int, everything: Digits, decoder: nn.Module
) -> tuple[Table, dict[str, Any], float]:
    """Return scores of all samples, the first samples by training, and the loss that fell least."""
    parts, shown, fell = [], {}, []
    for number, training in enumerate(tqdm(size.trainings, desc=f"seed {seed}", leave=False)):
        table, shown[training], loss = _trained(size, training, seed, everything, decoder)
        parts.append({"training": np.full(size.samples, float(number)), **table})
        fell.append(loss)
    return {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}, shown, max(fell)


def _trained(
    size: Size, training: str, seed: int, everything: Digits, decoder: nn.Module
) -> tuple[Table, dict[str, Any], float]:
    """Train a denoiser, and return scores of its samples, the first of them, and its loss."""
    rows = _rows(size, training, seed)
    made = train_denoiser(
        everything.latents[rows], everything.labels[rows],
        steps=size.training, batch=size.batch, seed=seed, progress=False,
    )  # fmt: skip
    tenth = len(made.losses) // 10
    fell = float(made.losses[-tenth:].mean() / made.losses[:tenth].mean())
    generator = torch.Generator().manual_seed(1000 + seed)
    noise = torch.randn(size.samples, 1, 6, 6, generator=generator)
    drawn = rows[torch.randint(len(rows), (size.samples,), generator=generator)]
    y = functional.one_hot(everything.labels[drawn], 10).float()
    denoiser = made.module.requires_grad_(False)
    x, clean, schedule, guided = _sampled(denoiser, noise, y, size.steps)
    z = x[-1]
    with torch.no_grad():
        pictures = decoder(z)
    distinct = rows.unique()
    near = torch.cdist(pictures.flatten(1), everything.pictures[distinct]).topk(2, largest=False)
    table: dict[str, Any] = {
        "ratio": (near.values[:, 0] / near.values[:, 1]).double().numpy(),
        "bytes": compressed_size(pictures.clamp(0, 1)),
        "settled": settled(clean, z),
        "guidance": guided.double().numpy(),
        "norm": z.flatten(1).norm(dim=1).double().numpy(),
    }
    table |= {f"decoder {k}": v for k, v in described(decoder, z).items()}
    untrained = untrained_decoder(seed)
    table |= {f"untrained {k}": v for k, v in described(untrained, z).items()}
    wide = functools.partial(_velocity, copy.deepcopy(denoiser).double())
    for time in size.times:
        step = schedule.index(time)
        estimate = maps.clean(wide, schedule, schedule.times[step], y=y.double())
        found = described(estimate, x[step].double(), method="exact")
        table |= {f"denoiser {k}, t = {time:g}": v for k, v in found.items()}
        table[f"dimension, t = {time:g}"] = _dimension(denoiser, x[step], y, time)
    first = {"latents": z[:10].flatten(1).numpy(), "nearest": distinct[near.indices[:10, 0]]}
    return table, first, fell


def _velocity(denoiser: Denoiser, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Return noise minus latent, as `Schedule` has velocities."""
    return -denoiser(x, t, y)


def _sampled(
    denoiser: Denoiser, noise: Tensor, y: Tensor, steps: int
) -> tuple[Tensor, Tensor, Schedule, Tensor]:
    """Return samples (steps + 1, N, ...), estimates of x_0, and what the label changes (N,).

    The last is the mean over the steps of |conditional - unconditional velocity|, after Y. Wen et
    al., "Detecting, explaining, and mitigating memorization in diffusion models", 2024.
    """
    levels = tuple(Level(i / steps, i / steps, 1 - i / steps) for i in range(steps + 1))
    schedule = Schedule(levels, "flow_prediction")
    x, clean, changed = [noise], [], []
    with torch.no_grad():
        for level, after in pairwise(levels):
            t = torch.full((len(noise),), level.time)
            told, free = (_velocity(denoiser, x[-1], t, label) for label in (y, 0 * y))
            clean.append(schedule.clean(x[-1], told, level))
            changed.append((told - free).flatten(1).norm(dim=1))
            x.append(schedule.stepped(x[-1], told, level, after))
    return torch.stack(x), torch.stack(clean), schedule, torch.stack(changed).mean(dim=0)


def _dimension(denoiser: Denoiser, x: Tensor, y: Tensor, time: float) -> Floats:
    """Return t times the trace of the Jacobian of the estimate of x_0, an estimate of dimension.

    Near data on a plane that estimate is a projection onto it, divided by t, by Tweedie's formula.
    """
    x = x.detach().requires_grad_()
    t = torch.full((len(x),), time, dtype=x.dtype)
    estimate = (x + (1 - time) * denoiser(x, t, y)).flatten(1)
    trace = torch.zeros(len(x), dtype=torch.float64)
    for i, entries in enumerate(estimate.unbind(dim=1)):
        (row,) = torch.autograd.grad(entries.sum(), x, retain_graph=True)
        trace += row.flatten(1)[:, i]
    return time * trace.numpy()


# -- claims ----------------------------------------------------------------------------------------


def _claims(tables: Sequence[Table], seeds: Sequence[int], size: Size) -> list[Claim]:
    """Return AUROC - 0.5 of every score, over all samples, matched, and within one denoiser."""
    effect = f"AUROC - 0.5 of memorised (ratio < {MEMORISED:.2f})"

    def claim(words: str, name: str, way: str, **kind: Any) -> Claim:
        values = tuple(_effect(t, name, way, s) for t, s in zip(tables, seeds, strict=True))
        return Claim(words, kind.get("paper", "not said"), f"{effect}, {way}", values)

    scores = {f"decoder {name}": f"{WORDS[name]} of the decoder" for name in NAMES}
    for t in size.times:
        scores |= {
            f"denoiser {n}, t = {t:g}": f"{WORDS[n]} of the denoiser, t = {t:g}" for n in NAMES
        }
        dimension = f"dimension, t = {t:g}"
        scores[dimension] = f"baseline: local {dimension}"
    scores |= {
        "guidance": "baseline: norm of what the label changes",
        "norm": "baseline: norm of the latent",
        "settled": "Figure 12: step from which the estimate of x_0 stays within 5 % of the end",
    }  # fmt: skip
    claims = [
        claim(words, name, way)
        for name, words in scores.items()
        for way in ("all", "matched", "planted")
    ]
    for name in NAMES:
        words = f"control: {WORDS[name]} of the decoder, labels shuffled"
        claims.append(claim(words, f"decoder {name}", "shuffled", paper="none"))
        words = f"control: {WORDS[name]} of an untrained decoder, matched"
        claims.append(claim(words, f"untrained {name}", "matched", paper="none"))
    return claims


def _effect(table: Table, name: str, way: str, seed: int) -> float:
    """Return AUROC - 0.5 over all samples, within strata of bytes, or of the last denoiser."""
    score, label = table[name], table["ratio"] < MEMORISED
    if way == "matched":
        inner = np.quantile(table["bytes"], np.linspace(0, 1, STRATA + 1)[1:-1])
        return _auroc(score, label, np.searchsorted(inner, table["bytes"])) - 0.5
    if way == "shuffled":
        label = np.random.default_rng(seed).permutation(label)
    if way == "planted":
        of = table["training"] == table["training"].max()
        score, label = score[of], label[of]
    return _auroc(score, label) - 0.5


def _auroc(score: Floats, label: Any, strata: Any | None = None) -> float:
    """Return the AUROC of a label, over all pairs or those within a stratum."""
    within = None if strata is None else (strata[label], strata[~label])
    return auroc(score[label], score[~label], within).value
