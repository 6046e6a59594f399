"""Certificates of damaged partitions fail, and name the cell."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import damage
from support.damage import (
    bit_of,
    cells_of,
    failure,
    flipped,
    inner_facets,
    loop,
    marked,
    sides,
    with_cells,
)

import cpwl
from bridges.networks.toys import random_mlp

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(name="small")
def _small() -> cpwl.Partition:
    return damage.small()


def test_every_flipped_bit_fails_in_its_cell(small) -> None:
    choose = random.Random(0)
    bits = np.flatnonzero(small.bit_unit >= 0).tolist()
    for _ in range(60):
        cell, bit = choose.randrange(small.num_cells), choose.choice(bits)
        assert failure(flipped(small, cell, bit)).cell == cell


def test_a_bit_of_no_unit_fails_in_its_cell(small) -> None:
    bit = int(np.flatnonzero(small.bit_unit < 0)[5])
    error = failure(flipped(small, 11, bit))
    assert str(error).startswith("cell 11: expected bits of units only, got bit ")


def test_a_unit_on_another_piece_is_named(small) -> None:
    # a unit of the last stage that bounds nothing here: nothing else changes
    mine = set(small.facet_unit[sides(small, 5)].tolist())
    unit = next(u for u in small.bit_unit.tolist() if u >= 8 and u not in mine)
    piece = 1 - small.pieces()[5, unit]
    text = str(failure(flipped(small, 5, bit_of(small, unit))))
    assert text.startswith(f"cell 5: expected unit {unit} (relu 3) on piece {piece} as its ")
    assert "got it on another piece at the corner (" in text
    assert "in exact arithmetic" in text


@pytest.mark.parametrize("axis", [0, 1])
def test_a_moved_vertex_fails_in_a_cell_that_has_it(small, axis) -> None:
    for vertex in range(0, len(small.points), 3):
        points = small.points.copy()
        points[vertex, axis] += 1e-9
        error = failure(replace(small, points=points))
        assert error.cell is not None
        assert vertex in loop(small, error.cell)
        assert f"vertex {vertex} within 7.3e-11 of (" in str(error)
        assert "1e-09 off" in str(error)
    points[0] = np.nan
    assert failure(replace(small, points=points)).cell is not None


def test_a_missing_cell_is_found_by_the_facets_beside_it(small) -> None:
    for cell in range(0, small.num_cells, 5):
        loops, facets = cells_of(small)
        neighbours = set(small.facet_cells[sides(small, cell)].ravel().tolist()) - {cell, -1}
        patterns = np.delete(small.patterns, cell, axis=0)
        del loops[cell], facets[cell]

        # nothing else changed: facets still name it, or the cell that has its number now
        error = failure(with_cells(small, loops, facets, patterns))
        assert error.cell is not None

        # facets name no cell there
        beside = small.facet_cells.copy()
        beside[beside == cell] = -1
        beside[beside > cell] -= 1
        kept = (beside >= 0).any(axis=1)
        left = np.cumsum(kept) - 1
        facets = [left[f] for f in facets]
        ends = small.facet_points[kept]
        hole = with_cells(
            small, loops, facets, patterns, facet_cells=beside[kept],
            facet_unit=small.facet_unit[kept], facet_corners=ends.ravel(),
            facet_offsets=2 * np.arange(len(ends) + 1),
        )  # fmt: skip
        error = failure(hole)
        assert error.cell in {n - (n > cell) for n in neighbours}
        assert "expected a neighbour across facet" in str(error)

        # and no unit either: as if it were outside of the domain
        unit = np.where((hole.facet_cells >= 0).all(1), hole.facet_unit, -1).astype(np.int32)
        error = failure(replace(hole, facet_unit=unit))
        assert error.cell in {n - (n > cell) for n in neighbours}


def test_merged_cells_fail_in_the_union(small) -> None:
    for facet in inner_facets(small)[::7].tolist():
        one, other = small.facet_cells[facet].tolist()
        loops, facets = cells_of(small)
        joined = [[], []]
        for cell in (one, other):
            at = int(np.flatnonzero(facets[cell] == facet)[0]) + 1
            joined[0] += np.roll(loops[cell], -at)[:-1].tolist()
            joined[1] += np.roll(facets[cell], -at)[:-1].tolist()
        loops[one], facets[one] = np.array(joined[0]), np.array(joined[1])
        del loops[other], facets[other]
        beside = small.facet_cells.copy()
        beside[beside == other] = one
        beside[beside > other] -= 1
        kept = np.arange(len(beside)) != facet
        facets = [f - (f > facet) for f in facets]
        for pattern in (one, other):
            patterns = small.patterns.copy()
            patterns[one] = patterns[pattern]
            merged = with_cells(
                small, loops, facets, np.delete(patterns, other, axis=0),
                facet_cells=beside[kept], facet_unit=small.facet_unit[kept],
                facet_corners=small.facet_points[kept].ravel(),
                facet_offsets=2 * np.arange(kept.sum() + 1),
            )  # fmt: skip
            assert failure(merged).cell == one - (one > other)


def test_a_repeated_cell_fails(small) -> None:
    loops, facets = cells_of(small)
    patterns = np.concatenate([small.patterns, small.patterns[7:8]])
    error = failure(with_cells(small, [*loops, loops[7]], [*facets, facets[7]], patterns))
    assert error.cell in (7, small.num_cells)

    # with facets, vertices and all of its own, in place of the boundary that it then lies beyond
    count, n = len(small.facet_unit), len(loops[7])
    corners = len(small.points) + np.arange(n)
    ends = np.stack([corners, np.roll(corners, -1)], axis=1)
    copied = with_cells(
        small, [*loops, corners], [*facets, count + np.arange(n)], patterns,
        points=np.concatenate([small.points, small.points[loops[7]]]),
        facet_cells=np.concatenate([small.facet_cells, [[small.num_cells, -1]] * n]),
        facet_unit=np.concatenate([small.facet_unit, -np.ones(n, np.int32)]),
        facet_corners=np.concatenate([small.facet_corners, ends.ravel()]),
        facet_offsets=2 * np.arange(count + n + 1),
    )  # fmt: skip
    assert failure(copied).cell == small.num_cells


def test_an_extra_sliver_fails(small) -> None:
    # a cell between an inner facet and its own middle
    facet = int(inner_facets(small)[4])
    one, other = small.facet_cells[facet].tolist()
    a, b = small.facet_points[facet].tolist()
    m, count, sliver = len(small.points), len(small.facet_unit), small.num_cells
    loops, facets = cells_of(small)
    at = int(np.flatnonzero(facets[other] == facet)[0])
    assert loops[other][at] == b
    loops[other] = np.insert(loops[other], at + 1, m)
    facets[other] = np.insert(facets[other], at + 1, count + 1)
    facets[other][at] = count
    beside = np.concatenate([small.facet_cells, [[sliver, other], [sliver, other]]])
    beside[facet] = [one, sliver]
    added = with_cells(
        small, [*loops, np.array([b, a, m])], [*facets, np.array([facet, count + 1, count])],
        np.concatenate([small.patterns, small.patterns[other][None]]),
        points=np.concatenate([small.points, small.points[[a, b]].mean(0, keepdims=True)]),
        facet_cells=beside,
        facet_unit=np.append(small.facet_unit, [small.facet_unit[facet]] * 2),
        facet_corners=np.append(small.facet_corners, [m, b, a, m]),
        facet_offsets=2 * np.arange(count + 3),
    )  # fmt: skip
    assert failure(added).cell in (sliver, other)


def test_a_vertex_inside_a_side_fails(small) -> None:
    facet = int(inner_facets(small)[4])
    error = failure(marked(small, facet, 0.5))
    assert error.cell in small.facet_cells[facet]
    assert "corners, as many as the knots beside it make, got " in str(error)


def test_a_facet_with_the_label_of_another_unit_fails(small) -> None:
    for facet in inner_facets(small)[::9].tolist():
        unit = small.facet_unit.copy()
        unit[facet] = (unit[facet] + 1) % 16
        assert failure(replace(small, facet_unit=unit)).cell in small.facet_cells[facet]


def test_exchanged_neighbours_fail(small) -> None:
    beside = small.facet_cells.copy()
    facet = int(inner_facets(small)[3])
    beside[facet] = beside[facet, ::-1]
    error = failure(replace(small, facet_cells=beside))
    assert error.cell in beside[facet]
    assert f"expected facet {facet} to name it as the cell on that side" in str(error)


def test_a_clockwise_cell_fails(small) -> None:
    loops, facets = cells_of(small)
    loops[2], facets[2] = loops[2][::-1], np.roll(facets[2][::-1], -1)
    assert failure(with_cells(small, loops, facets, small.patterns)).cell == 2


def test_numbers_out_of_range_fail(small) -> None:
    corners, unit = small.cell_corners.copy(), small.facet_unit.copy()
    corners[-1] = len(small.points)
    error = failure(replace(small, cell_corners=corners))
    assert error.cell == small.num_cells - 1
    unit[0] = 16
    assert "Expected facet_unit from -1 to 15" in str(failure(replace(small, facet_unit=unit)))
    offsets = small.cell_facet_offsets + 1
    assert "equal to cell_offsets" in str(failure(replace(small, cell_facet_offsets=offsets)))
    stray = np.concatenate([small.points, [[0.0, 0.0]]])
    assert "got vertex" in str(failure(replace(small, points=stray)))


def test_another_domain_fails(small) -> None:
    shifted = replace(small, domain=cpwl.box([-10, -10], [10, 10.5]))
    assert failure(shifted).cell is not None


def test_another_network_fails(small) -> None:
    module = random_mlp((2, 8, 8, 3))
    with torch.no_grad():
        module[0].weight[0, 0] += 2**-20  # type: ignore[operator]
    other = cpwl.Network.from_torch(module, (2,))
    assert failure(replace(small, network=other)).cell is not None
