"""Counts of cells and faces against the formulas of Zaslavsky and Buck.

The knots of a network's first stage are hyperplanes. If they are in general position, every set of
i of them that meets inside the domain adds one cell to those of the sets below it (Zaslavsky 1975),
and C(i, P - k) faces of dimension k (Buck 1943). The sets are counted here from the hyperplanes
and the domain's sides alone; nothing is taken from the partition but the numbers to compare.
"""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np
import torch

from cpwl.arrays import Floats
from cpwl.checks.findings import Log
from cpwl.checks.space import face_counts
from cpwl.geometry import half_spaces, levels
from cpwl.network import Network
from cpwl.partition import Partition

# Planes are told apart, and corners from the planes that miss them, at this share of the domain.
_CLEAR = 1e-7


class Arrangement(NamedTuple):
    """The knots of the first stage as an arrangement of hyperplanes.

    Attributes
    ----------
    reason : str
        Why the formulas do not apply; empty if they do.
    knots : int
        Hyperplanes that meet the domain's interior.
    meets : tuple of P + 1 ints
        How many sets of i = 0..P of them have a common point inside the domain. In a domain that
        is large enough these are the binomials C(knots, i), and the cells those of all of R^P.
    cells, expected_cells : int
        Different patterns of the first stage, and the sum of `meets`.
    faces, expected_faces : tuple of ints
        Faces of dimension 0..P inside the domain, and Buck's formula for them; empty if the network
        has more stages than one.
    """

    reason: str
    knots: int = 0
    meets: tuple[int, ...] = ()
    cells: int = 0
    expected_cells: int = 0
    faces: tuple[int, ...] = ()
    expected_faces: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.reason:
            return f"does not apply: {self.reason}"
        terms = " + ".join(map(str, self.meets))
        figures = f"{self.cells} cells, expected {terms} = {self.expected_cells}"
        if self.faces:
            figures += f"; faces inside {self.faces}, expected {self.expected_faces}"
        return figures


def check_counts(partition: Partition, log: Log) -> Arrangement:
    """Compare the cells of the first stage, and all faces if there is no other, with formulas."""
    p, network = partition, partition.network
    if network is None or not p.status.complete:
        return Arrangement("no network, or not complete")
    if not network.num_stages or len(network.contests):
        return Arrangement("max-pooling" if len(network.contests) else "no knots at all")
    if not 1e-100 < float(np.ptp(p.domain.corners, axis=0).max()) < 1e100:
        return Arrangement("the domain is too small or too large to intersect planes in float64")
    found = _hyperplanes(p, network)
    if found is None:
        return Arrangement("a knot is not certain in float64")
    normals, offsets = found
    knots, dim = len(normals), p.dim
    planes, sides = half_spaces(p.domain)
    if knots * comb(knots + len(sides), dim) > log.limits.intersections:
        return Arrangement(f"{knots} knots and {len(sides)} sides are too many to intersect", knots)
    meets = _meets(p, normals, offsets, planes, sides)
    if meets is None:
        return Arrangement("knots are not in general position", knots)
    # a word of a pattern has bits of one stage
    units = p.bit_unit.reshape(-1, 64)[:, 0]
    first = p.patterns[:, (units >= 0) & (units < network.stage_offsets[1])]
    cells = len(np.unique(first, axis=0))
    counts = Arrangement("", knots, meets=meets, cells=cells, expected_cells=sum(meets))
    wrong = np.zeros(int(cells != sum(meets)), np.int64)
    log.add("first stage obeys Zaslavsky's formula", "partition", 1, wrong)
    if network.num_stages > 1:
        return counts
    faces = _inner_faces(p)
    expected = tuple(
        sum(comb(i, dim - k) * count for i, count in enumerate(meets)) for k in range(dim + 1)
    )
    wrong = np.flatnonzero(np.array(faces) != np.array(expected))
    log.add("faces obey Buck's formula", "dimension", dim + 1, wrong)
    return counts._replace(faces=faces, expected_faces=expected)


def _hyperplanes(p: Partition, network: Network) -> tuple[Floats, Floats] | None:
    """Return unit normals (n, P) and offsets (n,) of the first stage's knots inside the domain.

    None where rounding moves one of them by more than `_CLEAR` allows, or may put it there.
    """
    corners = p.domain.corners
    middle, extent = corners.mean(axis=0), float(np.ptp(corners, axis=0).max())
    at = np.vstack([corners, middle, middle + extent * np.eye(p.dim)])
    z = torch.from_numpy(np.ascontiguousarray(p.domain.slice.embed(at)))
    value = network.preactivations(z, 0).numpy()
    rounding = np.asarray(network.rounding_error(z, 0))
    low, high = value[: len(corners)].min(axis=0), value[: len(corners)].max(axis=0)
    with np.errstate(over="ignore"):
        extends = high - low
    clear = (100 * rounding <= _CLEAR * extends) & (extends > 1e-290) & (extends < 1e290)
    near = _CLEAR * extends + rounding
    knots = network.knots(0, low - near, high + near)
    near = near[knots.unit]
    inside = (knots.value >= low[knots.unit] - near) & (knots.value <= high[knots.unit] + near)
    units, level = knots.unit[inside], knots.value[inside]
    if not clear[units].all():
        return None
    centre = value[len(corners)]
    gradient = ((value[len(corners) + 1 :] - centre) / extent).T[units]
    largest = np.abs(gradient).max(axis=1, initial=0.0)
    gradient /= largest[:, None]  # squares of the smallest would vanish
    size = np.linalg.norm(gradient, axis=1)
    normals = gradient / size[:, None]
    return normals, (level - centre[units]) / largest / size + normals @ middle


def _meets(
    p: Partition, normals: Floats, offsets: Floats, planes: Floats, sides: Floats
) -> tuple[int, ...] | None:
    """Count the sets of i hyperplanes that meet inside the domain, or None where that is unclear.

    Such a set meets a polytope if there is a lowest point of both in some direction: where it
    meets P - i sides, below which the rest lies. Sides are moved by small random distances, so
    that no more than P of them meet in a point: once outwards and once inwards. Where knots are
    clear of the domain's faces both give the same numbers.
    """
    random = np.random.default_rng(0)
    n, dim = len(normals), p.dim
    extent = float(np.ptp(p.domain.corners, axis=0).max())
    shifts = _CLEAR * extent * random.uniform(1, 2, len(sides))
    # no seed: weights drawn from the same one were parallel to it
    downwards = np.cos(1.0 + np.arange(dim))
    rows = np.vstack([normals, planes])
    sets = np.array(list(combinations(range(len(rows)), dim)))
    counts = np.zeros((2, dim + 1), np.int64)
    run = max(256, (1 << 18) // len(rows))  # distances of a run from all hyperplanes stay in cache
    for start in range(0, len(sets), run):
        chosen = sets[start : start + run]
        with np.errstate(all="ignore"):  # pivots whose inverse is not representable
            determinant = np.linalg.det(rows[chosen])
            chosen = chosen[np.isfinite(determinant) & (determinant != 0)]
            inverse = np.linalg.inv(rows[chosen])
        clear = np.linalg.norm(inverse, axis=(1, 2)) < 1 / _CLEAR
        chosen, inverse = chosen[clear], inverse[clear]
        own = chosen < n
        # lowest where the direction is a combination of the sides' outward normals, negated
        weight = np.einsum("p,spk->sk", downwards, inverse)
        if (np.abs(weight) < _CLEAR * np.abs(weight).max(axis=1, keepdims=True))[~own].any():
            return None
        lowest = (own | (weight < 0)).all(axis=1)
        size = own.sum(axis=1)
        for k, sign in enumerate((1.0, -1.0)):
            limits = sides + sign * shifts
            point = np.einsum("spk,sk->sp", inverse, np.concatenate([offsets, limits])[chosen])
            over = point @ planes.T - limits
            on = (chosen[:, :, None] == n + np.arange(len(sides))).any(axis=1)
            inside = ((over <= 0) | on).all(axis=1)
            counts[k] += np.bincount(size[lowest & inside], minlength=dim + 1)
            if (size == dim).any():
                full = inside & (size == dim)
                away = np.abs(point[full] @ normals.T - offsets)
                np.put_along_axis(away, chosen[full], np.inf, axis=1)
                if (away <= _CLEAR * extent).any():
                    return None
    if (counts[0] != counts[1]).any() or _dependent(normals, offsets, extent):
        return None
    return tuple(counts[0].tolist())


def _dependent(normals: Floats, offsets: Floats, extent: float) -> bool:
    """Whether some of the hyperplanes meet in more than they would in general position."""
    for i in range(2, normals.shape[1] + 1):
        sets = np.array(list(combinations(range(len(normals)), i)), np.int64).reshape(-1, i)
        chosen = normals[sets]
        # a determinant costs less than singular values, whose squares' product it is: all but the
        # smallest are at most i
        gram = np.linalg.det(chosen @ chosen.swapaxes(1, 2))
        near = gram <= 4 * _CLEAR**2 * float(i) ** (i - 1)
        sets = sets[near]
        left, size, _ = np.linalg.svd(chosen[near], full_matrices=False)
        flat = size[:, -1] <= _CLEAR
        gap = np.abs(np.einsum("si,si->s", left[flat, :, -1], offsets[sets[flat]]))
        if (gap <= _CLEAR * extent).any():
            return True
    return False


def _inner_faces(p: Partition) -> tuple[int, ...]:
    """Return the numbers of faces of dimension 0..P that are not on the domain's boundary."""
    if p.dim == 1:
        return int((p.facet_unit >= 0).sum()), p.num_cells
    counts = face_counts(p)
    outer = p.facet_unit < 0
    found = [counts[-1], counts[-2] - int(outer.sum())]
    faces = levels(p)
    for k in range(p.dim - 2, -1, -1):
        offsets, items = faces[k]
        on_boundary = np.zeros(counts[k], np.bool_)
        on_boundary[items[np.repeat(outer, np.diff(offsets))]] = True
        outer = on_boundary
        found.append(counts[k] - int(outer.sum()))
    return tuple(found[::-1])
