"""Checks of a partition's arrays alone: incidence, shapes, boundary and patterns, all complete.

The checks of shapes hold for polygons and intervals; `cpwl.checks.space` has those for P >= 3.
They take a run of cells or facets at a time, so that memory stays at a few bytes a cell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import Floats, Ints, next_corner, unpack
from cpwl.checks.findings import EPS, SMALLEST, Log, Tolerances
from cpwl.partition import Partition


def _cell_chunks(partition: Partition, cells: int) -> Iterator[tuple[int, Ints, slice]]:
    """Yield (first cell, offsets from 0, corner slice) of runs of so many cells."""
    offsets = partition.cell_offsets
    for first in range(0, partition.num_cells, cells):
        own = offsets[first : first + cells + 1]
        yield first, own - own[0], slice(int(own[0]), int(own[-1]))


def indices_fit(partition: Partition, log: Log) -> bool:
    """Check shapes and index ranges, on which all other checks rely."""
    p = partition
    points, facets, cells, dim = len(p.points), p.num_facets, p.num_cells, p.dim
    outside = np.flatnonzero(~np.isfinite(p.points).all(axis=1))
    log.add("points are finite", "point", points, outside)
    wrong = np.union1d(
        _bad_rows(p.cell_offsets, p.cell_corners, dim + 1, points),
        _bad_rows(p.cell_facet_offsets, p.cell_facets, dim + 1, facets),
    )
    same = np.array_equal(p.cell_offsets, p.cell_facet_offsets) and (
        dim == 2 or (np.diff(p.cell_offsets) == 2).all()
    )
    if dim <= 2 and not same:
        wrong = np.union1d(wrong, [0])
    log.add("cells name corners and facets that exist", "cell", cells, wrong)
    wrong = _bad_rows(p.facet_offsets, p.facet_corners, dim, points)
    if dim <= 2 and not (np.diff(p.facet_offsets) == dim).all():
        wrong = np.union1d(wrong, [0])
    if not len(p.facet_cells) == len(p.facet_unit) == facets:
        wrong = np.union1d(wrong, [0])
    else:
        bad = (p.facet_cells < -1).any(1) | (p.facet_cells >= cells).any(1)
        bad |= (p.facet_unit < -1) | (p.facet_unit >= len(p.unit_base))
        wrong = np.union1d(wrong, np.flatnonzero(bad))
    log.add("facets name points, cells and units that exist", "facet", facets, wrong)
    if dim > 2:
        below, missing = points, int(len(p.skeleton) != dim - 1)
        for k, (offsets, items) in enumerate(p.skeleton, 1):
            missing += len(_bad_rows(offsets, items, k + 1, below))
            missing += int(k == 1 and len(items) != 2 * (len(offsets) - 1))
            below = len(offsets) - 1
        missing += int(below != facets)
        log.add("faces name faces that exist", "skeleton", dim - 1, np.zeros(missing, np.int64))
    lengths = {len(p.patterns), cells}, {64 * p.patterns.shape[1], len(p.bit_unit)}
    wrong = np.flatnonzero([len(pair) > 1 for pair in lengths])
    log.add("every cell has a pattern, every bit a unit", "array", 2, wrong)
    partial = np.zeros(int(not p.status.complete), np.int64)
    log.add("subdivide calls it complete", "partition", 1, partial)
    return not any(one.failures for one in log.findings[:-1])


def _bad_rows(offsets: Ints, items: NDArray, least: int, high: int) -> Ints:
    """Return the rows that are too short or have items outside 0..high - 1."""
    if offsets[0] != 0 or offsets[-1] != len(items) or (np.diff(offsets) < 0).any():
        return np.zeros(1, np.int64)
    bad = np.diff(offsets) < least
    outside = np.flatnonzero((items < 0) | (items >= high))
    bad[np.searchsorted(offsets, outside, side="right") - 1] = True
    return np.flatnonzero(bad)


def check_incidence(partition: Partition, log: Log) -> int:
    """Check that loops and facets name one another, once, with opposite orientations."""
    p = partition
    facets = p.num_facets
    seen = np.zeros(2 * facets, np.uint8)  # how often side 0 or 1 of each facet is in a loop
    used = np.zeros(len(p.points), np.bool_)
    wrong = []
    for first, offsets, corners in _cell_chunks(p, log.limits.cells):
        start = p.cell_corners[corners].astype(np.int64)
        facet = p.cell_facets[corners].astype(np.int64)
        cell = np.repeat(np.arange(first, first + len(offsets) - 1), np.diff(offsets))
        if p.dim == 2:
            end = start[next_corner(offsets)]
            ends = p.facet_points[facet]
            along = (ends[:, 0] == start) & (ends[:, 1] == end)
            against = (ends[:, 1] == start) & (ends[:, 0] == end)
            side = np.where(along, 0, 1)
            fits = along | against
        else:  # the facet at the lower end has the cell above it
            side = np.tile([1, 0], len(offsets) - 1)
            fits = p.facet_points[facet, 0] == start
        fits &= p.facet_cells[facet, side] == cell
        wrong.append(np.unique(cell[~fits]))
        times = np.bincount(2 * facet + side, minlength=2 * facets)
        seen += np.minimum(times, 2).astype(np.uint8)
        used[start] = True
    log.add("loops and facets agree", "cell", p.num_cells, np.concatenate(wrong))
    expected = (p.facet_cells >= 0).reshape(-1)
    unmatched = np.unique(np.flatnonzero(seen != expected) // 2)
    log.add("each side of a facet is in one loop", "facet", facets, unmatched)
    check_sides(p, log)
    log.add("points are corners", "point", len(p.points), np.flatnonzero(~used))
    euler = len(p.points) - p.num_cells
    if p.dim == 2:
        euler += 2 * p.num_cells - facets
    log.add("Euler characteristic is 1", "partition", 1, np.zeros(int(euler != 1), np.int64))
    return euler


def check_sides(partition: Partition, log: Log) -> None:
    """Check that facets have two different cells and a unit, or one cell and none."""
    sides = partition.facet_cells >= 0
    same = sides.all(1) & (partition.facet_cells[:, 0] == partition.facet_cells[:, 1])
    wrong = np.flatnonzero(~sides.any(1) | same | (sides.all(1) == (partition.facet_unit < 0)))
    name = "facets have two cells and a unit, or bound the domain"
    log.add(name, "facet", partition.num_facets, wrong)


def rounding(partition: Partition, tolerances: Tolerances) -> float:
    """How far rounding may move a point."""
    return tolerances.geometry * EPS * max(float(np.abs(partition.points).max()), 1e-300)


def check_geometry(
    partition: Partition, log: Log, tolerances: Tolerances
) -> tuple[float, float, int]:
    """Check shapes and boundary; return volume error, smallest volume, number of flat cells."""
    figures = _check_shapes(partition, log, tolerances)
    _check_boundary(partition, log, tolerances)
    return figures


def _check_shapes(
    partition: Partition, log: Log, tolerances: Tolerances
) -> tuple[float, float, int]:
    """Check that cells are convex and anticlockwise; return volume error, smallest, flat cells."""
    p, off = partition, rounding(partition, tolerances)
    total, smallest, flat = 0.0, math.inf, 0
    negative, dented = [], []
    for first, offsets, corners in _cell_chunks(p, log.limits.cells):
        z = p.points[p.cell_corners[corners]]
        starts = offsets[:-1]
        if p.dim == 1:
            volume = z[1::2, 0] - z[::2, 0]
            slack = np.full(len(volume), off)
        else:
            following = next_corner(offsets)
            edge = z[following] - z
            length = np.hypot(edge[:, 0], edge[:, 1])
            # from the cell's own first corner, so that small cells far out keep their digits
            local = z - np.repeat(z[starts], np.diff(offsets), axis=0)
            volume = np.add.reduceat(_cross(local, local[following]), starts) / 2
            slack = off * np.add.reduceat(length, starts)
            turn = _cross(edge, edge[following])
            bent = turn < -off * (length + length[following])
            dented.append(first + np.flatnonzero(np.logical_or.reduceat(bent, starts)))
        negative.append(first + np.flatnonzero(volume < -slack))
        flat += int((np.abs(volume) <= slack).sum())
        total += float(volume.sum())
        smallest = min(smallest, float(volume.min()))
    error = abs(total - p.domain.volume) / max(p.domain.volume, SMALLEST)
    log.add("cells are anticlockwise", "cell", p.num_cells, np.concatenate(negative))
    if p.dim == 2:
        log.add("cells are convex", "cell", p.num_cells, np.concatenate(dented))
    allowed = tolerances.geometry * EPS * math.sqrt(p.num_cells)
    wrong = np.zeros(int(not error <= max(allowed, 1e-12)), np.int64)
    log.add("volumes add up to the domain's", "partition", 1, wrong)
    return error, smallest, flat


def _cross(a: Floats, b: Floats) -> Floats:
    """Cross products of rows of two arrays (n, 2)."""
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def _check_boundary(partition: Partition, log: Log, tolerances: Tolerances) -> None:
    """Check that the outer facets lie on the domain's sides and cover them once."""
    p, off = partition, rounding(partition, tolerances)
    outer = np.flatnonzero((p.facet_cells < 0).any(1))
    corners = p.domain.corners
    if p.dim == 1:
        above = (p.facet_cells[outer, 0] < 0).astype(np.int64)  # the lower end has its cell above
        ends = np.where(above == 1, corners[0, 0], corners[1, 0])
        wrong = np.abs(p.points[p.facet_points[outer, 0], 0] - ends) > off
        log.add("outer facets lie on the boundary", "facet", len(outer), outer[wrong])
        return
    ends = p.points[p.facet_points[outer]]  # (n, 2, 2), the cell on their left
    turned = p.facet_cells[outer, 0] < 0
    ends[turned] = ends[turned, ::-1]
    covered, on_side = np.zeros(len(corners)), np.zeros(len(outer), np.bool_)
    lengths = np.linalg.norm(np.roll(corners, -1, axis=0) - corners, axis=1)
    for side, (start, end) in enumerate(zip(corners, np.roll(corners, -1, axis=0), strict=True)):
        unit = (end - start) / lengths[side]
        local = ends - start
        along = local @ unit
        across = local @ np.array([-unit[1], unit[0]])
        on = (np.abs(across) <= off).all(1) & (along[:, 0] <= along[:, 1] + off)
        on &= (along >= -off).all(1) & (along <= lengths[side] + off).all(1)
        # a facet shorter than `off` at a corner lies on both sides: it counts for the first
        fresh = on & ~on_side
        covered[side] = (along[fresh, 1] - along[fresh, 0]).sum()
        on_side |= on
    log.add("outer facets lie on the boundary", "facet", len(outer), outer[~on_side])
    allowed = off * (4 + np.sqrt(len(outer)))
    wrong = np.flatnonzero(np.abs(covered - lengths) > allowed)
    log.add("outer facets cover the boundary", "side", len(corners), wrong)


def check_distinct(partition: Partition, log: Log) -> None:
    """Check that no two cells have the same pattern, through a 64-bit hash of each."""
    patterns = partition.patterns
    cells, words = patterns.shape
    random = np.random.default_rng(0).integers(0, 2**63, size=words, dtype=np.uint64)
    hashes = np.zeros(cells, np.uint64)
    for word, factor in enumerate(random):
        mixed = patterns[:, word] * (2 * factor + np.uint64(1))
        hashes ^= mixed ^ (mixed >> np.uint64(31))
        hashes *= np.uint64(0x9E3779B97F4A7C15)
    order = np.argsort(hashes, kind="stable")
    again = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    # hashes that collide by chance are not a failure: compare the rows
    same = (patterns[order[again]] == patterns[order[again + 1]]).all(axis=1)
    log.add("patterns are distinct", "cell", cells, order[again + 1][same])


class Differences(NamedTuple):
    """Units other than the facet's own in which the patterns across it differ."""

    facet: Ints
    unit: Ints


def check_differences(partition: Partition, log: Log) -> Differences:
    """Check that the facet's unit moves by one breakpoint; collect what else changes."""
    p = partition
    inner = np.flatnonzero((p.facet_cells >= 0).all(1))
    wrong, facets, units = [], [], []
    for first in range(0, len(inner), log.limits.facets):
        facet = inner[first : first + log.limits.facets]
        left, right = p.facet_cells[facet].T
        changed = p.patterns[left] ^ p.patterns[right]
        row, unit = set_bits(changed, p.bit_unit)
        own = unit == p.facet_unit[facet[row]]
        moves = np.bincount(row[own], minlength=len(facet))
        padding = np.bincount(row[unit < 0], minlength=len(facet))
        wrong.append(facet[(moves != 1) | (padding > 0)])
        others = ~own & (unit >= 0)
        facets.append(facet[row[others]])
        units.append(unit[others])
    nothing = [np.empty(0, np.int64)]
    log.add(
        "a facet's unit moves by one breakpoint",
        "facet",
        len(inner),
        np.concatenate(nothing + wrong),
    )
    return Differences(np.concatenate(nothing + facets), np.concatenate(nothing + units))


def set_bits(words: NDArray[np.uint64], bit_unit: NDArray[np.int32]) -> tuple[Ints, Ints]:
    """Return (row, unit) of every set bit of packed rows."""
    row, word = np.nonzero(words)
    place, bit = np.nonzero(unpack(words[row, word][:, None]))
    return row[place], bit_unit[64 * word[place] + bit].astype(np.int64)
