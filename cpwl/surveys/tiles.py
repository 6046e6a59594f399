"""Tiles of a domain: halves of halves, cut along lines on which no vertex is expected."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from itertools import product
from typing import NamedTuple

import numpy as np

from cpwl.arrays import Floats, Ragged, take_rows
from cpwl.domain import Domain
from cpwl.engine import attempt
from cpwl.network import Network
from cpwl.network.program import Matrices
from cpwl.partition import Partition

# Where to cut, as shares of a tile: numbers that no network has, so that no knot runs along.
_NUDGES = (0.0123457, 0.0505423, -0.0157696, 0.0293978, -0.0411539, 0.0372281)
# A trial counts the cells in so many boxes, each of so many cells in a tile of as many as wanted,
# and is over with the first that has several times as many. Pieces of cells are enumerated as well.
_TRIALS, _TRIAL_CELLS, _CROWDED, _PIECES = 8, 200, 4, 4

Loop = tuple[tuple[Fraction, ...], ...]


class Cut(NamedTuple):
    """A line across a tile."""

    axis: int
    line: float


class Border(NamedTuple):
    """A side of a tile inside the domain: the tile that was cut along it, and where this one is."""

    cut: int
    axis: int
    line: float
    above: bool


class Tile(NamedTuple):
    """A part of a domain, whose number is 1; the halves of tile k are 2k and 2k + 1."""

    number: int
    domain: Domain
    borders: tuple[Border, ...] = ()


def halves(tile: Tile, cut: Cut) -> list[Tile]:
    """Return the parts of a tile on both sides of a line, without one that is flat."""
    found = []
    for above in (False, True):
        part = clipped(tile.domain, *cut, above=above)
        kept = [own for own in tile.borders if (own.axis, own.above) != (cut.axis, above)]
        border = Border(tile.number, *cut, above)
        if part is not None:
            found.append(Tile(2 * tile.number + above, part, (*kept, border)))
    return found


def middle(domain: Domain) -> Cut:
    """Return a line across the middle of the longest side."""
    low, high = domain.corners.min(axis=0), domain.corners.max(axis=0)
    axis = int(np.argmax(high - low))
    return Cut(axis, float(low[axis] + (0.5 + _NUDGES[axis]) * (high[axis] - low[axis])))


def even_cuts(domain: Domain, shape: tuple[int, ...]) -> dict[int, Cut]:
    """Return the cuts, by the tile they halve, that make so many equal tiles along each axis."""
    low, high = domain.corners.min(axis=0), domain.corners.max(axis=0)
    cuts = {}
    waiting = [(1, tuple((0, n) for n in shape))]
    while waiting:
        number, spans = waiting.pop()
        axis = max(range(len(spans)), key=lambda k: spans[k][1] - spans[k][0])
        start, stop = spans[axis]
        if stop - start == 1:
            continue
        at = (start + stop) // 2
        share = (at + _NUDGES[axis]) / shape[axis]
        cuts[number] = Cut(axis, float(low[axis] + share * (high[axis] - low[axis])))
        for half, span in ((2 * number, (start, at)), (2 * number + 1, (at, stop))):
            waiting.append((half, (*spans[:axis], span, *spans[axis + 1 :])))
    return cuts


def clipped(domain: Domain, axis: int, line: float, *, above: bool) -> Domain | None:
    """Return the part of a domain on one side of a line, exactly; None where it is flat."""
    if domain.dim > 2:
        low, high = ([ends(column) for column in zip(*domain.exact_corners, strict=True)]
                     for ends in (min, max))  # fmt: skip
        bound, tighter = (low, max) if above else (high, min)
        bound[axis] = tighter(bound[axis], Fraction(line))
        if not all(a < b for a, b in zip(low, high, strict=True)):
            return None
        corners = tuple(product(*zip(low, high, strict=True)))
        return Domain(np.array(corners, np.float64), domain.slice, corners)
    loop = _half(domain.exact_corners, axis, Fraction(line), 1 if above else -1)
    if len(loop) <= domain.dim:
        return None
    return Domain(np.array(loop, np.float64), domain.slice, loop)


def is_box(domain: Domain) -> bool:
    """Whether a domain has the corners of a box."""
    ends = [(min(column), max(column)) for column in zip(*domain.exact_corners, strict=True)]
    return set(domain.exact_corners) == set(product(*ends))


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


def fitting(network: Network, domain: Domain, wanted: int, memory: int) -> list[float] | None:
    """Return the most cells after each stage of a domain that may have as many as are wanted.

    None where a few small boxes tell of more. Twice as many are allowed in the end; before, half as
    many again, as the boxes tell of the growth from stage to stage. Any number where even these do
    not fit into the memory, as halves would not.
    """
    # estimates need no proof
    unproven = replace(network, matrices=Matrices({}, reason="cells are counted only"))
    share = min(0.25, (_TRIAL_CELLS / wanted) ** (1 / domain.dim))
    most = _CROWDED * max(1.0, wanted * share**domain.dim)
    pieces = [_PIECES * most] * network.num_stages
    cells, volume = np.zeros(network.num_stages), 0.0
    for box in _spread(domain, share):
        found = attempt(unproven, box, pieces, memory=memory, proof="float64")
        if found is not None and found.status.needed:
            return [math.inf] * network.num_stages
        if found is None or (own := _cells_by_stage(network, found))[-1] > most:
            return None
        cells, volume = cells + own, volume + box.volume
    if float(cells[-1]) * domain.volume > wanted * volume:  # of numbers that may be infinite
        return None
    growth = (cells + 1) / (cells[-1] + 1)
    return [*(3 * wanted * growth[:-1]).tolist(), 2 * wanted]


def _cells_by_stage(network: Network, partition: Partition) -> Floats:
    """Count the cells after each stage whose lowest corner is inside.

    Of all cells of a domain, each is counted so in one of its parts.
    """
    rank = np.argsort(np.argsort(partition.points[:, 0]))
    outer = np.flatnonzero((partition.facet_cells < 0).any(axis=1))
    _, corners = take_rows(Ragged(partition.facet_offsets, partition.facet_corners), outer)
    inside = np.ones(len(rank), np.bool_)
    inside[rank[corners]] = False
    lowest = np.minimum.reduceat(rank[partition.cell_corners], partition.cell_offsets[:-1])
    first = partition.bit_unit[::64]  # of each word
    counts = []
    for end in network.stage_offsets[1:]:
        words = partition.patterns[:, first < end]
        order = np.lexsort((lowest, *words.T))
        new = np.ones(len(order), np.bool_)
        new[1:] = (words[order[1:]] != words[order[:-1]]).any(axis=1)
        counts.append(inside[lowest[order[new]]].sum())
    return np.array(counts, np.float64)


def _spread(domain: Domain, share: float) -> list[Domain]:
    """Return small boxes spread over a domain, the parts of them that lie in it."""
    low, high = domain.corners.min(axis=0), domain.corners.max(axis=0)
    size = share * (high - low)
    # the additive sequence of the generalised golden ratio, which is even in any dimension
    ratio = max(np.roots([1.0, *[0.0] * (domain.dim - 1), -1.0, -1.0]).real)
    steps: Floats = ratio ** -np.arange(1.0, domain.dim + 1)
    found: list[Domain] = []
    k = 0
    while len(found) < _TRIALS and k < 100 * _TRIALS:
        start = low + ((k + 1) * steps) % 1 * (high - low - size)
        part = _within(domain, start, start + size)
        found += [] if part is None else [part]
        k += 1
    return found or [domain]


def _within(domain: Domain, low: Floats, high: Floats) -> Domain | None:
    """Return the part of a domain within bounds along each axis."""
    part: Domain | None = domain
    for ends, above in ((low, True), (high, False)):
        for axis, line in enumerate(ends.tolist()):
            part = None if part is None else clipped(part, axis, line, above=above)
    return part
