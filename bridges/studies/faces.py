"""Faces of a DCGAN weighed by local scaling: all its coordinates, and a section of 8.

Claims of MaGNET and polarity sampling, as in `bridges.studies.sampling`. Whole psi of the 100
coordinates differs by tens of nats from latent to latent, so that almost any weight lies on one of
them: what a pool would be worth is measured, and a section of 8 coordinates is sampled, with the
other 92 held at a draw of the prior. There are no real faces here, and no classifier of them:
nothing tells precision or recall. Variety is measured in pixels alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize, special
from scipy.spatial.distance import pdist
from torch import nn
from torch.distributions import Normal, Uniform
from torch.nn import functional

from approx import sampling
from approx.populations import vendi
from bridges.networks import pretrained
from bridges.studies.claims import Direction, Study, stacked, whole_seeds
from bridges.studies.digits import Floats
from bridges.studies.sampling import (
    HALF,
    KEPT,
    RHOS,
    Section,
    invariants,
    largest,
    off_by,
    sampled,
    tempered,
    uniform,
)

WORDS = {
    "vendi": "Vendi score of differences from the mean face",
    "distance": "mean distance of two samples (root mean square over pixels)",
    "brightness": "standard deviation of brightness",
}
PAPER: Mapping[str, Direction] = {
    "vendi": "rises", "distance": "rises", "brightness": "not said",
}  # fmt: skip
# float32 is off by 0.01 nats at most on whole psi, and four times as fast
OPTIONS: Mapping[str, Any] = {"dtype": torch.float32, "progress": False}


class Size(NamedTuple):
    """How much is run.

    Attributes
    ----------
    seeds : int
        Where none are given.
    pool, drawn : int
        Latents of a section that are weighed, and samples of them.
    rhos : tuple of float
        In rising order, symmetric, 0 among them.
    shuffles : int
        Of the weights; one more is the control.
    whole : int
        Latents of all 100 coordinates.
    """

    seeds: int
    pool: int
    drawn: int
    rhos: tuple[float, ...]
    shuffles: int
    whole: int


FULL = Size(6, 128, 64, RHOS, 4, 10)
SMALL = Size(2, 56, 28, (-0.1, 0.0, 0.1), 2, 1)


def study(size: Size, seeds: Sequence[int]) -> Study:
    """Run the study at some size; `FULL` takes some three minutes of one core.

    Its data: `rhos`; `section`, with `polarity` and `magnet` as in `bridges.studies.sampling`, of
    the quantities in `WORDS`, `std` of psi over the pool, and `rho`, the largest that no seed
    refuses in either sign; `whole`: `psi` of latents (latents, seeds), `ess` of all of them as one
    pool (rhos,), and `half`, the rho of either sign for which that pool is worth half its latents.
    Ctrl-C keeps the seeds before it.
    """
    generator = nn.Sequential(nn.Unflatten(1, (100, 1, 1)), *pretrained.dcgan_faces())
    each = whole_seeds(seeds, lambda seed: _seed(generator, size, seed))
    found = stacked(each)
    section, psi = found["section"], found["psi"]
    section["rho"] = largest(size.rhos, section["polarity"]["vendi"])
    whole = {"psi": psi, "ess": [_worth(rho, psi) for rho in size.rhos], "half": _half(psi)}
    name = "faces, section"
    claims = (
        *tempered(name, size.rhos, section, PAPER, WORDS), *uniform(name, section, PAPER, WORDS),
    )  # fmt: skip
    held = invariants(size.rhos, size.pool, {name: section}, found["off"], 1e-3)
    data = {"rhos": list(size.rhos), "section": section, "whole": whole}
    return Study("faces", size == FULL, tuple(seeds)[: len(each)], claims, held, data)


def _seed(generator: nn.Module, size: Size, seed: int) -> dict[str, Any]:
    """Return what one seed gives: whole psi, the section, and how far psi of that is off."""
    prior = Normal(torch.zeros(100), 1.0)
    whole = sampling.measure(generator, prior, size.whole, seed=seed, **OPTIONS)
    held = torch.randn(100 - KEPT, generator=torch.Generator().manual_seed(seed))
    section = Section(generator, held)
    side = torch.full((KEPT,), HALF)
    tempering = sampling.measure(
        section, Normal(torch.zeros(KEPT), 1.0), size.pool, seed=seed, **OPTIONS
    )
    box = sampling.measure(section, Uniform(-side, side), size.pool, seed=seed, **OPTIONS)
    look, even = (
        partial(sampled, partial(_variety, _pixels(section, pool)), tuple(WORDS), pool,
                size.shuffles, seed)
        for pool in (tempering, box)
    )  # fmt: skip
    draw = partial(sampling.polarity, None, tempering, size.drawn, seed=seed)
    row = {
        "polarity": stacked([look(rho, partial(draw, rho)) for rho in size.rhos]),
        "magnet": even(1.0, partial(sampling.magnet, None, box, size.drawn, seed=seed)),
        "std": tempering.table.psi.std(),
    }
    return {"psi": whole.table.psi, "section": row, "off": off_by(section, tempering)}


def _pixels(section: nn.Module, pool: sampling.Pool) -> Floats:
    """Return the faces of a pool (N, 768), 16 x 16 pixels in [0, 1]."""
    with torch.no_grad():
        faces = torch.cat([section(z) for z in pool.latents(np.arange(len(pool))).split(64)])
    return (functional.avg_pool2d(faces, 4).flatten(1).double().numpy() + 1) / 2


def _variety(pixels: Floats, indices: NDArray[np.int64]) -> dict[str, float]:
    """Return how faces of a pool differ, by number."""
    some = pixels[indices]
    return {
        # faces differ by little from their mean, which would fill all cosines
        "vendi": vendi(some - pixels.mean(axis=0)),
        "distance": float(pdist(some).mean() / some.shape[1] ** 0.5),
        "brightness": float(some.mean(axis=1).std()),
    }


def _worth(rho: float, psi: Floats) -> float:
    """Return the effective sample size of latents weighed by exp(rho psi)."""
    return float(1 / np.square(special.softmax(rho * psi.ravel())).sum())


def _half(psi: Floats) -> list[float]:
    """Return the rho of either sign for which a pool is worth half its latents.

    It is NaN where no rho to 2 makes it worth so little.
    """

    def lacks(rho: float) -> float:
        return _worth(rho, psi) - psi.size / 2

    found: list[Any] = [
        optimize.brentq(lacks, 0.0, end) if lacks(end) < 0 else np.nan for end in (-2.0, 2.0)
    ]
    return [float(rho) for rho in found]
