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

from cpwl.arrays import Floats, Ints, Ragged, prefix, take_rows
from cpwl.checks.findings import SMALLEST, Log, Tolerances
from cpwl.checks.plane import check_sides, rounding, set_bits
from cpwl.domain import face_lattice
from cpwl.geometry import flatness_kernels as kernels
from cpwl.geometry import half_spaces, levels, measures, normals
from cpwl.partition import Partition


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
    for start in range(0, len(inner), log.limits.facets):
        facet = inner[start : start + log.limits.facets]
        first, second = p.facet_cells[facet].T
        row, unit = set_bits(p.patterns[first] & ~p.patterns[second], p.bit_unit)
        wrong.append(facet[np.unique(row[unit == p.facet_unit[facet[row]]])])
    log.add("facets name the cell below first", "facet", p.num_facets, np.concatenate(wrong))


def _runs(sizes: Ints, items: int) -> Iterator[Ints]:
    """Cut 0..len(sizes) - 1 into runs whose sizes add up to about so many items."""
    run = np.cumsum(sizes) // items
    return iter(np.split(np.arange(len(sizes)), np.flatnonzero(np.diff(run)) + 1))


def _open(faces: Ragged, below: Ragged) -> Ints:
    """Return the faces that are not closed: some ridge is not on exactly two of their facets."""
    wrong = np.empty(len(faces.offsets) - 1, np.bool_)
    mark, times = np.empty((2, 1 + int(below.items.max(initial=0))), np.int64)
    kernels.open_faces(*faces, *below, mark, times, wrong)
    return np.flatnonzero(wrong)


def _check_corners(p: Partition, log: Log) -> None:
    """Check that the corners listed of facets and cells are those of their faces, ascending."""
    mark = np.empty(len(p.points), np.int64)
    below = _vertices(p)
    for level in p.skeleton[:-1]:
        size = np.empty(len(level.offsets) - 1, np.int64)
        kernels.count_corners(*level, *below, mark, size)
        items = np.empty(size.sum(), np.int32)
        kernels.list_corners(*level, *below, mark, items)
        below = Ragged(prefix(size), items)
    facets = Ragged(p.facet_offsets, p.facet_corners)
    wrong = np.empty(p.num_facets, np.bool_)
    kernels.unlike(*p.skeleton[-1], *below, *facets, mark, wrong)
    log.add("facets list their corners", "facet", p.num_facets, np.flatnonzero(wrong))
    wrong = np.empty(p.num_cells, np.bool_)
    cells = p.cell_facet_offsets, p.cell_facets
    kernels.unlike(*cells, *facets, p.cell_offsets, p.cell_corners, mark, wrong)
    log.add("cells list their corners", "cell", p.num_cells, np.flatnonzero(wrong))


class Facets(NamedTuple):
    """What is measured of the facets."""

    base: NDArray[np.int32]  # (F,) a corner of each
    outward: Floats  # (F, P) normal, away from the first cell, as long as the facet is large
    area: Floats  # (F,)
    perimeter: Floats  # (F,) how much the area changes when corners move by 1


def check_geometry(
    partition: Partition, log: Log, tolerances: Tolerances
) -> tuple[float, float, int]:
    """Check shapes and boundary; return volume error, smallest volume, number of flat cells."""
    off = rounding(partition, tolerances)
    outward = _check_shapes(partition, log, off)
    facets = _measure(partition, outward)
    figures = _check_volumes(partition, log, tolerances, off, facets)
    _check_boundary(partition, log, off, facets)
    return figures


def _check_shapes(p: Partition, log: Log, off: float) -> Floats:
    """Check that facets are flat and cells convex, on the sides that `facet_cells` says.

    Returns the facets' unit normals, away from their first cells.
    """
    outward = np.empty((p.num_facets, p.dim))
    bent, dented = np.empty(p.num_facets, np.bool_), np.empty((p.num_facets, 2), np.bool_)
    kernels.look_along_facets(
        p.points, np.arange(p.num_facets), p.facet_offsets, p.facet_corners, p.facet_cells,
        p.cell_offsets, p.cell_corners, off, outward, bent, dented,
    )  # fmt: skip
    log.add("facets are flat", "facet", p.num_facets, np.flatnonzero(bent))
    log.add("cells are convex", "cell", p.num_cells, np.unique(p.facet_cells[dented]))
    return outward


def _check_volumes(
    p: Partition, log: Log, tolerances: Tolerances, off: float, facets: Facets
) -> tuple[float, float, int]:
    """Check that volumes, by the divergence theorem, add up; return error, smallest, flat cells."""
    total, smallest, flat = 0.0, math.inf, 0
    listed = Ragged(p.cell_facet_offsets, p.cell_facets)
    for run in _runs(np.diff(p.cell_facet_offsets), log.limits.items):
        count, facet = take_rows(listed, run)
        row = np.repeat(np.arange(len(run)), count)
        turn = np.where(p.facet_cells[facet, 0] == run[row], 1.0, -1.0)
        # from the cell's own first corner, so that small cells far out keep their digits
        first = p.points[p.cell_corners[p.cell_offsets[run]]]
        arm = p.points[facets.base[facet]] - first[row]
        cone = turn * np.einsum("ip,ip->i", arm, facets.outward[facet])
        volume = np.bincount(row, cone, len(run)) / p.dim
        slack = off * np.bincount(row, facets.area[facet], len(run))
        flat += int((np.abs(volume) <= slack).sum())
        total += float(volume.sum())
        smallest = min(smallest, float(volume.min()))
    error = abs(total - p.domain.volume) / max(p.domain.volume, SMALLEST)
    allowed = max(tolerances.geometry * np.finfo(np.float64).eps * math.sqrt(p.num_cells), 1e-12)
    wrong = np.zeros(int(not error <= allowed), np.int64)
    log.add("volumes add up to the domain's", "partition", 1, wrong)
    return error, smallest, flat


def _check_boundary(p: Partition, log: Log, off: float, facets: Facets) -> None:
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
        covered[side] = facets.area[found].sum()
        allowed[side] += 4 * off * math.sqrt(float(np.square(facets.perimeter[found]).sum()))
    log.add("outer facets lie on the boundary", "facet", len(outer), outer[free])
    wrong = np.flatnonzero(~(np.abs(covered - size) <= allowed))
    log.add("outer facets cover the boundary", "side", len(size), wrong)


def _measure(p: Partition, outward: Floats) -> Facets:
    """Measure the facets; their unit normals say which way is outward."""
    *_, ridges, facets = measures(p.points, p.skeleton)
    vector = normals(facets.minors)
    vector[np.einsum("fp,fp->f", vector, outward) < 0] *= -1
    perimeter = _perimeter(p.skeleton[-1], ridges.minors)
    return Facets(facets.apex, vector, np.linalg.norm(vector, axis=1), perimeter)


def _perimeter(facets: Ragged, minors: Floats) -> Floats:
    """Add up the volumes of every facet's ridges."""
    return np.add.reduceat(np.linalg.norm(minors, axis=1)[facets.items], facets.offsets[:-1])
