"""Checks of the arrays of a partition in three dimensions or more, all complete.

Together they say that the cells are convex polytopes with closed surfaces, glued in pairs along
facets, on opposite sides of them, with outer facets that cover the domain's boundary once. Then
every point of the domain is in exactly one cell, up to the boundaries. Runs of faces are worked on
at a time, so that memory stays bounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpwl._arrays import Ragged, take_rows
from cpwl._check_complex import check_sides, rounding, set_bits
from cpwl._findings import SMALLEST, Log, Tolerances
from cpwl._measure import half_spaces, levels, measures, normals
from cpwl._polytope import face_lattice
from cpwl.partition import Partition

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_ITEMS_AT_ONCE = 1 << 20
_FACETS_AT_ONCE = 1 << 16


def check_incidence(partition: Partition, log: Log) -> int:
    """Check how cells, facets and their faces name one another; return the Euler characteristic."""
    p = partition
    _check_pairs(p, log)
    check_sides(p, log)
    _check_order(p, log)
    below = _vertices(p)
    faces = levels(p)
    for k, level in enumerate(faces, 1):
        smaller, larger = _kind(k - 1, p.dim), _kind(k, p.dim)
        used = np.bincount(level.items, minlength=len(below.offsets) - 1) > 0
        log.add(f"{smaller}s bound {larger}s", smaller, len(used), np.flatnonzero(~used))
        if k > 1:
            log.add(f"{larger}s are closed", larger, len(level.offsets) - 1, _open(level, below))
        below = level
    _check_corners(p, log)
    counts = face_counts(p)
    euler = sum(count * (-1) ** k for k, count in enumerate(counts))
    log.add("Euler characteristic is 1", "partition", 1, np.zeros(int(euler != 1), np.int64))
    return euler


def _vertices(p: Partition) -> Ragged:
    """Return the vertices as faces that list themselves."""
    return Ragged(np.arange(len(p.points) + 1), np.arange(len(p.points), dtype=np.int32))


def _kind(k: int, dim: int) -> str:
    """Name the faces of dimension k."""
    return {0: "point", dim - 1: "facet", dim: "cell", 1: "edge"}.get(k, f"{k}-face")


def face_counts(partition: Partition) -> tuple[int, ...]:
    """Return the numbers of faces of dimension 0..P."""
    return len(partition.points), *(len(faces.offsets) - 1 for faces in levels(partition))


def _check_pairs(p: Partition, log: Log) -> None:
    """Check that a cell lists the facets that list it, each once."""
    owner = np.repeat(np.arange(p.num_cells), np.diff(p.cell_facet_offsets))
    ours = p.cell_facets.astype(np.int64) * p.num_cells + owner
    facet, side = np.nonzero(p.facet_cells >= 0)
    theirs = facet * p.num_cells + p.facet_cells[facet, side]
    ours, theirs = np.sort(ours), np.sort(theirs)
    wrong = np.empty(0, np.int64)
    if not np.array_equal(ours, theirs) or (np.diff(ours) == 0).any():
        again = ours[1:][np.diff(ours) == 0]
        wrong = np.unique(np.concatenate([np.setxor1d(ours, theirs), again]) % p.num_cells)
    log.add("cells and facets agree", "cell", p.num_cells, wrong)


def _check_order(p: Partition, log: Log) -> None:
    """Check that a facet's first cell is the one below its unit's breakpoint."""
    inner = np.flatnonzero((p.facet_cells >= 0).all(1))
    wrong = [np.flatnonzero(p.facet_cells[:, 0] < 0)]  # on the boundary the one cell is first
    for start in range(0, len(inner), _FACETS_AT_ONCE):
        facet = inner[start : start + _FACETS_AT_ONCE]
        first, second = p.facet_cells[facet].T
        row, unit = set_bits(p.patterns[first] & ~p.patterns[second], p.bit_unit)
        wrong.append(facet[np.unique(row[unit == p.facet_unit[facet[row]]])])
    log.add("facets name the cell below first", "facet", p.num_facets, np.concatenate(wrong))


def _runs(sizes: Ints) -> Iterator[Ints]:
    """Cut 0..len(sizes) - 1 into runs whose sizes add up to about _ITEMS_AT_ONCE."""
    run = np.cumsum(sizes) // _ITEMS_AT_ONCE
    return iter(np.split(np.arange(len(sizes)), np.flatnonzero(np.diff(run)) + 1))


def _open(faces: Ragged, below: Ragged) -> Ints:
    """Return the faces that are not closed: some ridge is not on exactly two of their facets."""
    inner = np.diff(below.offsets)
    sizes = np.add.reduceat(inner[faces.items], faces.offsets[:-1])
    wrong = [np.empty(0, np.int64)]
    for run in _runs(sizes):
        _, facets = take_rows(faces, run)
        _, ridges = take_rows(below, facets)
        width = int(ridges.max()) + 1
        key = np.sort(np.repeat(run, sizes[run]) * width + ridges)
        starts = np.flatnonzero(np.diff(key, prepend=-1))
        times = np.diff(starts, append=len(key))
        wrong.append(np.unique(key[starts[times != 2]] // width))
    return np.concatenate(wrong)


def _check_corners(p: Partition, log: Log) -> None:
    """Check that the corners listed of facets and cells are those of their faces, ascending."""
    corners = Ragged(p.facet_offsets, p.facet_corners)
    found = _unlike(p.skeleton, _vertices(p), corners)
    log.add("facets list their corners", "facet", p.num_facets, found)
    cells = Ragged(p.cell_facet_offsets, p.cell_facets)
    found = _unlike((cells,), corners, Ragged(p.cell_offsets, p.cell_corners))
    log.add("cells list their corners", "cell", p.num_cells, found)


def _unlike(faces: tuple[Ragged, ...], corners: Ragged, listed: Ragged) -> Ints:
    """Return the faces whose listed corners are not those found by going down from them."""
    wrong = [np.empty(0, np.int64)]
    width = 1 + max(int(level.items.max()) for level in (*faces, corners, listed))
    for run in _runs(16 * np.diff(faces[-1].offsets)):
        owner, face = run, run
        key = owner
        for level in (*faces[::-1], corners):
            sizes, face = take_rows(level, face)
            key = np.sort(np.repeat(owner, sizes) * width + face)
            key = key[np.diff(key, prepend=-1) > 0]
            owner, face = np.divmod(key, width)
        sizes, items = take_rows(listed, run)
        given = np.repeat(run, sizes) * width + items
        if not np.array_equal(given, key):
            descends = np.flatnonzero(np.diff(given) <= 0)
            wrong += [np.setxor1d(given, key) // width, given[descends] // width]
    return np.unique(np.concatenate(wrong))


class Planes(NamedTuple):
    """The hyperplanes of the facets."""

    base: NDArray[np.int32]  # (F,) a corner of each
    outward: Floats  # (F, P) unit normal, away from the first cell
    area: Floats  # (F,)
    lever: Floats  # (F,) how far a height at distance 1 moves when a corner moves by 1


def check_geometry(
    partition: Partition, log: Log, tolerances: Tolerances
) -> tuple[float, float, int]:
    """Check shapes and boundary; return volume error, smallest volume, number of flat cells."""
    off, planes = rounding(partition, tolerances), _planes(partition)
    figures = _check_shapes(partition, log, tolerances, off, planes)
    _check_flat(partition, log, off, planes)
    _check_boundary(partition, log, off, planes)
    return figures


def _check_shapes(
    p: Partition, log: Log, tolerances: Tolerances, off: float, planes: Planes
) -> tuple[float, float, int]:
    """Check that cells are convex, and on the sides of their facets that `facet_cells` says.

    Volumes come from the divergence theorem; those of cells that pass are not negative.
    """
    total, smallest, flat = 0.0, math.inf, 0
    dented = []
    corners = Ragged(p.cell_offsets, p.cell_corners)
    facets = Ragged(p.cell_facet_offsets, p.cell_facets)
    for run in _runs(np.diff(p.cell_offsets) * np.diff(p.cell_facet_offsets)):
        count, facet = take_rows(facets, run)
        row = np.repeat(np.arange(len(run)), count)
        turn = np.where(p.facet_cells[facet, 0] == run[row], 1.0, -1.0)
        base, outward = p.points[planes.base[facet]], planes.outward[facet]
        # from the cell's own first corner, so that small cells far out keep their digits
        first = p.points[p.cell_corners[p.cell_offsets[run]]]
        height = turn * np.einsum("ip,ip->i", base - first[row], outward)
        volume = np.bincount(row, height * planes.area[facet], len(run)) / p.dim
        slack = off * np.bincount(row, planes.area[facet], len(run))
        flat += int((np.abs(volume) <= slack).sum())
        total += float(volume.sum())
        smallest = min(smallest, float(volume.min()))
        # every corner of the cell over every one of its facets
        size, corner = take_rows(corners, run[row])
        item = np.repeat(np.arange(len(facet)), size)
        arm = p.points[corner] - base[item]
        above = turn[item] * np.einsum("ip,ip->i", arm, outward[item])
        allowed = off * (1 + np.linalg.norm(arm, axis=1) * planes.lever[facet[item]])
        dented.append(run[np.unique(row[item[above > allowed]])])
    log.add("cells are convex", "cell", p.num_cells, np.concatenate(dented))
    error = abs(total - p.domain.volume) / max(p.domain.volume, SMALLEST)
    allowed = max(tolerances.geometry * np.finfo(np.float64).eps * math.sqrt(p.num_cells), 1e-12)
    wrong = np.zeros(int(not error <= allowed), np.int64)
    log.add("volumes add up to the domain's", "partition", 1, wrong)
    return error, smallest, flat


def _check_flat(p: Partition, log: Log, off: float, planes: Planes) -> None:
    """Check that the corners of a facet lie in one hyperplane."""
    corners, bent = Ragged(p.facet_offsets, p.facet_corners), []
    for run in _runs(np.diff(p.facet_offsets)):
        size, corner = take_rows(corners, run)
        facet = np.repeat(run, size)
        arm = p.points[corner] - p.points[planes.base[facet]]
        above = np.abs(np.einsum("ip,ip->i", arm, planes.outward[facet]))
        allowed = off * (1 + np.linalg.norm(arm, axis=1) * planes.lever[facet])
        bent.append(np.unique(facet[above > allowed]))
    log.add("facets are flat", "facet", p.num_facets, np.concatenate(bent))


def _check_boundary(p: Partition, log: Log, off: float, planes: Planes) -> None:
    """Check that the outer facets lie on the domain's sides and cover them once."""
    domain = p.domain
    lattice = face_lattice(domain.sides, len(domain.corners), domain.dim)
    *_, edges, sides = measures(domain.corners, lattice[:-1])
    size = np.linalg.norm(sides.minors, axis=1)
    allowed = 4 * off * _perimeter(lattice[-2], edges.minors)
    covered = np.zeros(len(size))
    outer = np.flatnonzero((p.facet_cells < 0).any(1))
    count, corner = take_rows(Ragged(p.facet_offsets, p.facet_corners), outer)
    row = np.repeat(np.arange(len(outer)), count)
    free = np.ones(len(outer), np.bool_)
    for side, (outward, offset) in enumerate(zip(*half_spaces(domain), strict=True)):
        far = np.abs(p.points @ outward - offset) > 4 * off
        # a facet smaller than `off` at an edge lies on two sides: it counts for the first
        fresh = (np.bincount(row, far[corner], len(outer)) == 0) & free
        free &= ~fresh
        found = outer[fresh]
        covered[side] = planes.area[found].sum()
        blur = planes.lever[found] * planes.area[found]
        allowed[side] += 4 * off * math.sqrt(float(np.square(blur).sum()))
    log.add("outer facets lie on the boundary", "facet", len(outer), outer[free])
    wrong = np.flatnonzero(~(np.abs(covered - size) <= allowed))
    log.add("outer facets cover the boundary", "side", len(size), wrong)


def _planes(p: Partition) -> Planes:
    """Measure the facets, and turn their normals away from the first cell, towards the second."""
    *_, ridges, facets = measures(p.points, p.skeleton)
    vector = normals(facets.minors)
    area = np.linalg.norm(vector, axis=1)
    unit = vector / np.where(area > 0, area, 1.0)[:, None]
    sizes = np.diff(p.cell_offsets)
    middle = np.add.reduceat(p.points[p.cell_corners], p.cell_offsets[:-1]) / sizes[:, None]
    first, second = p.facet_cells.T
    # from middle to middle: seen from a cell thinner than rounding alone, no side would be certain
    ahead = np.where(second[:, None] < 0, facets.centroid, middle[second]) - middle[first]
    unit[np.einsum("fp,fp->f", ahead, unit) < 0] *= -1
    lever = _perimeter(p.skeleton[-1], ridges.minors) / np.maximum(area, 1e-300)
    return Planes(facets.apex, unit, area, lever)


def _perimeter(facets: Ragged, minors: Floats) -> Floats:
    """Add up the volumes of every facet's ridges."""
    return np.add.reduceat(np.linalg.norm(minors, axis=1)[facets.items], facets.offsets[:-1])
