"""Tiles of a domain: cut by lines on which no vertex is expected, in rational arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np

from cpwl.arrays import Floats
from cpwl.domain import Domain
from cpwl.engine import subdivide
from cpwl.network import Network

# Where to cut, as shares of a tile: numbers that no network has, so that no knot runs along.
_NUDGES = (0.0123457, 0.0505423, -0.0157696, 0.0293978, -0.0411539, 0.0372281)
# A tile of so many cells takes some 100 MB; its border has a few per cent of them.
_CELLS = 200_000
# of patterns, for networks of so many units that these take more than everything else
_PATTERN_BYTES = 256 * 2**20
# A trial counts the cells in so many boxes, of so many cells or more unless they are this large;
# how large these must be, it finds with the first few.
_TRIALS, _FEW, _TRIAL_CELLS, _LARGEST_TRIAL = 32, 6, 100, 1 / 32

Loop = tuple[tuple[Fraction, ...], ...]


class Border(NamedTuple):
    """A side of a tile inside the domain, and the tile beyond it."""

    axis: int
    line: float
    beyond: int


@dataclass(frozen=True, eq=False)
class Grid:
    """A domain cut into tiles, which are numbered in C order; those outside of it are left out."""

    domain: Domain
    shape: tuple[int, ...]

    @cached_property
    def lines(self) -> list[list[float]]:
        """Coordinates of the cuts along each axis, ascending."""
        low, high = self.domain.corners.min(axis=0), self.domain.corners.max(axis=0)
        found = []
        for axis, n in enumerate(self.shape):
            places = (np.arange(1, n) + _NUDGES[axis]) / n
            found.append((low[axis] + places * (high[axis] - low[axis])).tolist())
        return found

    @cached_property
    def tiles(self) -> dict[int, Domain]:
        """The tiles by their numbers."""
        bounds = [list(pairwise([-math.inf, *own, math.inf])) for own in self.lines]
        cut = ((k, clipped(self.domain, ends)) for k, ends in enumerate(product(*bounds)))
        return {k: tile for k, tile in cut if tile is not None}

    def borders(self, number: int) -> Iterator[Border]:
        """Yield the inner sides of a tile, in an order that depends on the grid alone."""
        place = np.unravel_index(number, self.shape)
        for axis, lines in enumerate(self.lines):
            stride = math.prod(self.shape[axis + 1 :])
            at = int(place[axis])
            if at > 0:
                yield Border(axis, lines[at - 1], number - stride)
            if at < len(lines):
                yield Border(axis, lines[at], number + stride)


def clipped(domain: Domain, bounds: tuple[tuple[float, float], ...]) -> Domain | None:
    """Return the part of a domain within bounds along each axis, exactly; None where it is flat."""
    if domain.dim > 2:
        low, high = domain.corners.min(axis=0), domain.corners.max(axis=0)
        low = np.maximum(low, [lo for lo, _ in bounds])
        high = np.minimum(high, [hi for _, hi in bounds])
        return domain.slice.box(low, high) if (low < high).all() else None
    loop: Loop = domain.exact_corners
    for axis, ends in enumerate(bounds):
        for line, sign in zip(ends, (1, -1), strict=True):
            if math.isfinite(line):
                loop = _half(loop, axis, Fraction(line), sign)
    if len(loop) <= domain.dim:
        return None
    return Domain(np.array(loop, np.float64), domain.slice, loop)


def is_box(domain: Domain) -> bool:
    """Whether a domain has the corners of a box."""
    ends = zip(domain.corners.min(axis=0), domain.corners.max(axis=0), strict=True)
    return set(map(tuple, domain.corners.tolist())) == set(product(*ends))


def _half(loop: Loop, axis: int, line: Fraction, sign: int) -> Loop:
    """Clip the ends of a segment or the corners of a convex polygon to one side of a line."""
    kept = []
    for i, start in enumerate(loop):
        end = loop[(i + 1) % len(loop)]
        inside, then = (sign * (point[axis] - line) for point in (start, end))
        if inside >= 0:
            kept.append(start)
        if inside * then < 0:
            share = inside / (inside - then)
            kept.append(tuple(a + share * (b - a) for a, b in zip(start, end, strict=True)))
    if loop and len(loop[0]) == 1:  # both directions along a segment cross
        kept = sorted(set(kept))
    return tuple(kept)


def fitting_shape(network: Network, domain: Domain, memory: int) -> tuple[int, ...]:
    """Return how many tiles along each axis make about `_CELLS` a tile, from a few small boxes."""
    wanted = min(_CELLS, 8 * _PATTERN_BYTES // max(1, network.num_units))
    low, high = domain.corners.min(axis=0), domain.corners.max(axis=0)

    def tried(share: float, count: int) -> list[tuple[int, float]]:
        return [
            (
                subdivide(network, part, memory=memory, proof="float64", progress=False).num_cells,
                part.volume,
            )
            for part in _spread(domain, share, count)
        ]

    share = _LARGEST_TRIAL / 16
    while share < _LARGEST_TRIAL and np.mean(tried(share, _FEW), axis=0)[0] < _TRIAL_CELLS:
        share *= 2
    found = tried(share, _TRIALS)
    cells, volume = np.sum(found, axis=0)
    # tiles are of one size: where cells are dense they may have four times as many
    # (per whole box: one that the domain's boundary cuts to a sliver has a cell or two)
    most, whole = np.max(found, axis=0)
    densest = most / whole / 4
    tiles = max(1.0, max(cells / volume, densest) * domain.volume / wanted)
    side = (domain.volume / tiles) ** (1 / domain.dim)
    if tiles == 1:
        return (1,) * domain.dim
    return tuple(max(1, math.ceil(float(extent) / side)) for extent in high - low)


def _spread(domain: Domain, share: float, count: int) -> list[Domain]:
    """Return small boxes spread over a domain, the parts of them that lie in it."""
    low, high = domain.corners.min(axis=0), domain.corners.max(axis=0)
    size = share * (high - low)
    # the additive sequence of the generalised golden ratio, which is even in any dimension
    ratio = max(np.roots([1.0, *[0.0] * (domain.dim - 1), -1.0, -1.0]).real)
    steps: Floats = ratio ** -np.arange(1.0, domain.dim + 1)
    found: list[Domain] = []
    k = 0
    while len(found) < count and k < 100 * count:
        start = low + ((k + 1) * steps) % 1 * (high - low - size)
        part = clipped(domain, tuple(zip(start.tolist(), (start + size).tolist(), strict=True)))
        found += [] if part is None else [part]
        k += 1
    return found or [domain]
