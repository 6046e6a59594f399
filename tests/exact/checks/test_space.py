"""`cpwl.check` accepts partitions of space that are right and names what is wrong with others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from oracles.layers import LINEAR, layer, network
from support.agreement import capture
from support.grids import grid, uncut
from support.strategies import cancelling_network, random_network

import cpwl
from cpwl.arrays.ragged import Ragged, prefix
from cpwl.checks import Limits

Change = Callable[[cpwl.Partition], cpwl.Partition]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def space() -> cpwl.Partition:
    return cpwl.subdivide(
        capture(random_network(1, (5, 3), dim=3)), cpwl.box([-2] * 3, [2] * 3), progress=False
    )


def failed(partition: cpwl.Partition) -> set[str]:
    return {one.name for one in cpwl.check(partition).findings if one.failures}


def edited(partition: cpwl.Partition, name: str, index, value) -> cpwl.Partition:
    """Return a copy with one entry of one array replaced."""
    array = getattr(partition, name).copy()
    array[index] = value
    return replace(partition, **{name: array})


def reskinned(partition: cpwl.Partition, level: int, change) -> cpwl.Partition:
    """Return a copy with the items of one level of the skeleton changed."""
    skeleton = list(partition.skeleton)
    skeleton[level] = Ragged(skeleton[level].offsets, change(skeleton[level].items.copy()))
    return replace(partition, skeleton=tuple(skeleton))


def inner_facet(partition: cpwl.Partition) -> int:
    return int(np.flatnonzero(partition.facet_unit >= 0)[0])


def inner_point(partition: cpwl.Partition) -> int:
    """Return a vertex that is not on the boundary."""
    rows = np.repeat(partition.facet_unit < 0, np.diff(partition.facet_offsets))
    return int(np.setdiff1d(np.arange(len(partition.points)), partition.facet_corners[rows])[0])


def without_cell(partition: cpwl.Partition, cell: int) -> cpwl.Partition:
    """Leave a cell out; its facets stay, with nothing behind them."""
    kept = np.arange(partition.num_cells) != cell
    number = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)
    cells = np.sort(number[partition.facet_cells], axis=1)[:, ::-1]
    used = cells[:, 0] >= 0
    new = np.cumsum(used) - 1

    def rows(offsets, items):
        sizes = np.diff(offsets)[kept]
        return prefix(sizes), items[np.repeat(kept, np.diff(offsets))]

    facets = rows(partition.cell_facet_offsets, partition.cell_facets)
    last = partition.skeleton[-1]
    on = np.repeat(used, np.diff(last.offsets))
    ridges = Ragged(prefix(np.diff(last.offsets)[used]), last.items[on])
    on = np.repeat(used, np.diff(partition.facet_offsets))
    corners = rows(partition.cell_offsets, partition.cell_corners)
    return replace(
        partition,
        cell_offsets=corners[0],
        cell_corners=corners[1],
        cell_facet_offsets=facets[0],
        cell_facets=new[facets[1]].astype(np.int32),
        facet_offsets=prefix(np.diff(partition.facet_offsets)[used]),
        facet_corners=partition.facet_corners[on],
        facet_cells=cells[used].astype(np.int32),
        facet_unit=np.where(cells[used].min(axis=1) < 0, -1, partition.facet_unit[used]),
        skeleton=(*partition.skeleton[:-1], ridges),
        patterns=partition.patterns[kept],
    )


def merged(partition: cpwl.Partition) -> cpwl.Partition:
    """Join the two cells at an inner facet of a grid into one box, as if no knot were there."""
    facet = inner_facet(partition)
    a, b = sorted(partition.facet_cells[facet].tolist())
    number = np.arange(partition.num_cells + 1)
    number[b], number[-1] = a, -1
    number[b + 1 : -1] -= 1
    cell_rows = np.split(partition.cell_facets, partition.cell_facet_offsets[1:-1])
    corner_rows = np.split(partition.cell_corners, partition.cell_offsets[1:-1])
    cell_rows[a] = np.setxor1d(cell_rows[a], cell_rows[b])
    corner_rows[a] = np.union1d(corner_rows[a], corner_rows[b])
    del cell_rows[b], corner_rows[b]
    kept = np.arange(partition.num_facets) != facet
    new = np.cumsum(kept) - 1
    last = partition.skeleton[-1]
    faces, ridges = (
        [row for i, row in enumerate(np.split(items, offsets[1:-1])) if i != facet]
        for offsets, items in ((partition.facet_offsets, partition.facet_corners), last)
    )
    return replace(
        partition,
        cell_offsets=prefix(np.array([len(row) for row in corner_rows])),
        cell_corners=np.concatenate(corner_rows),
        cell_facet_offsets=prefix(np.array([len(row) for row in cell_rows])),
        cell_facets=new[np.concatenate(cell_rows)].astype(np.int32),
        facet_offsets=prefix(np.array([len(row) for row in faces])),
        facet_corners=np.concatenate(faces),
        facet_cells=number[partition.facet_cells[kept]].astype(np.int32),
        facet_unit=partition.facet_unit[kept],
        skeleton=(
            *partition.skeleton[:-1],
            Ragged(prefix(np.array([len(row) for row in ridges])), np.concatenate(ridges)),
        ),
        patterns=np.delete(partition.patterns, b, axis=0),
    )


def torn(partition: cpwl.Partition) -> cpwl.Partition:
    """List an inner facet twice, once for either cell, as if two parts had not been glued."""
    facet = inner_facet(partition)
    first, second = partition.facet_cells[facet]
    row = slice(*partition.facet_offsets[facet : facet + 2])
    last = partition.skeleton[-1]
    ridges = last.items[slice(*last.offsets[facet : facet + 2])]
    own = slice(*partition.cell_facet_offsets[second : second + 2])
    facets = partition.cell_facets.copy()
    facets[own][facets[own] == facet] = partition.num_facets
    cells = np.vstack([partition.facet_cells, [second, -1]]).astype(np.int32)
    cells[facet] = first, -1
    unit = np.append(partition.facet_unit, np.int32(-1))
    unit[facet] = -1
    more = prefix(np.append(np.diff(last.offsets), len(ridges)))
    return replace(
        partition,
        cell_facets=facets,
        facet_offsets=np.append(
            partition.facet_offsets, partition.facet_offsets[-1] + row.stop - row.start
        ),
        facet_corners=np.append(partition.facet_corners, partition.facet_corners[row]),
        facet_cells=cells,
        facet_unit=unit,
        skeleton=(*partition.skeleton[:-1], Ragged(more, np.append(last.items, ridges))),
    )


def _moved(distance: float) -> Change:
    def change(p: cpwl.Partition) -> cpwl.Partition:
        point = inner_point(p)
        return edited(p, "points", point, p.points[point] + distance)

    return change


def _swapped(p: cpwl.Partition) -> cpwl.Partition:
    facet = inner_facet(p)
    return edited(p, "facet_cells", facet, p.facet_cells[facet, ::-1])


def _another_edge_end(p: cpwl.Partition) -> cpwl.Partition:
    return reskinned(p, 0, lambda items: np.append(items[:-1], (items[-1] + 1) % len(p.points)))


def _another_ridge(p: cpwl.Partition) -> cpwl.Partition:
    edges = len(p.edges)
    return reskinned(p, 1, lambda items: np.append(items[:-1], (items[-1] + 7) % edges))


def _other_cells_facet(p: cpwl.Partition) -> cpwl.Partition:
    missing = np.setdiff1d(np.arange(p.num_facets), p.cell_facets[slice(*p.cell_facet_offsets[:2])])
    return edited(p, "cell_facets", 0, missing[0])


def _unsorted_corners(p: cpwl.Partition) -> cpwl.Partition:
    return edited(p, "cell_corners", slice(0, 2), p.cell_corners[1::-1])


def _facet_with_another_corner(p: cpwl.Partition) -> cpwl.Partition:
    missing = np.setdiff1d(np.arange(len(p.points)), p.facet_corners[slice(*p.facet_offsets[:2])])
    return edited(p, "facet_corners", 0, missing[0])


def _unused_point(p: cpwl.Partition) -> cpwl.Partition:
    return replace(p, points=np.vstack([p.points, np.zeros((1, p.dim))]))


def _another_unit(p: cpwl.Partition) -> cpwl.Partition:
    facet = inner_facet(p)
    return edited(p, "facet_unit", facet, (p.facet_unit[facet] + 1) % len(p.unit_base))


def _flipped_bit(p: cpwl.Partition) -> cpwl.Partition:
    return edited(p, "patterns", (3, 0), p.patterns[3, 0] ^ np.uint64(2))


DAMAGE: dict[str, tuple[Change, set[str]]] = {
    "a vertex moved by 1e-9": (_moved(1e-9), {"units that change across a facet vanish there"}),
    "a vertex moved far": (_moved(3.0), {"cells are convex", "facets are flat"}),
    "a point of the boundary moved": (
        lambda p: edited(p, "points", 0, p.points[0] * 0.999),
        {"outer facets lie on the boundary"},
    ),
    "a cell missing": (
        lambda p: without_cell(p, 0),
        {"volumes add up to the domain's", "outer facets lie on the boundary"},
    ),
    "a facet twice": (torn, {"Euler characteristic is 1", "outer facets lie on the boundary"}),
    "cells of a facet swapped": (_swapped, {"facets name the cell below first"}),
    "a facet of another unit": (_another_unit, {"a facet's unit moves by one breakpoint"}),
    "an inner facet without a unit": (
        lambda p: edited(p, "facet_unit", inner_facet(p), -1),
        {"facets have two cells and a unit, or bound the domain"},
    ),
    "a facet with one cell twice": (
        lambda p: edited(p, "facet_cells", (inner_facet(p), 1), p.facet_cells[inner_facet(p), 0]),
        {"facets have two cells and a unit, or bound the domain", "cells and facets agree"},
    ),
    "an edge to another vertex": (_another_edge_end, {"facets are closed"}),
    "a facet with another ridge": (_another_ridge, {"facets are closed", "cells are closed"}),
    "a cell with another facet": (
        _other_cells_facet,
        {"cells and facets agree", "cells are closed", "cells list their corners"},
    ),
    "corners in another order": (_unsorted_corners, {"cells list their corners"}),
    "a facet with another corner": (
        _facet_with_another_corner,
        {"facets list their corners", "cells list their corners"},
    ),
    "a point of no cell": (_unused_point, {"points bound edges", "Euler characteristic is 1"}),
    "a flipped bit": (_flipped_bit, {"patterns are the network's at the centres"}),
    "a repeated pattern": (
        lambda p: edited(p, "patterns", 3, p.patterns[4]),
        {"patterns are distinct"},
    ),
    "another base": (
        lambda p: edited(p, "unit_base", 0, p.unit_base[0] + 1),
        {"patterns are the network's at the centres"},
    ),
    "a smaller domain": (
        lambda p: replace(p, domain=cpwl.box([-1.9] * 3, [1.9] * 3)),
        {"volumes add up to the domain's", "outer facets lie on the boundary"},
    ),
}


def test_right_partitions_pass(space) -> None:
    for partition in (space, grid((0.1,), (-0.3, 0.2), (), (0.5,)), grid((0.1, 0.4), (-0.3,), ())):
        report = cpwl.check(partition).require()
        assert report.euler == 1
        assert report.volume_error < 1e-14
        assert report.flat_cells == 0
        assert report.smallest_volume == pytest.approx(cpwl.volumes(partition).min())
        assert report.continuity_error < 1e-12
        assert report.knot_error < 4
    assert cpwl.check(replace(space, network=None)).ok
    assert cpwl.check(uncut(cpwl.cross_polytope(np.zeros(5), 1.0, np.eye(5)))).ok


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(space, damage) -> None:
    change, names = DAMAGE[damage]
    found = failed(change(space))
    assert names <= found, found


@pytest.mark.parametrize("dim", [3, 4])
def test_any_vertex_moved_by_1e_12_is_found_without_the_network(dim) -> None:
    cube = cpwl.box([-2] * dim, [2] * dim)
    network = capture(random_network(1, (5, 3), dim=dim))
    partition = replace(cpwl.subdivide(network, cube, progress=False), network=None)
    assert cpwl.check(partition).ok
    rng = np.random.default_rng(0)
    for vertex in range(len(partition.points)):
        step = rng.standard_normal(dim)
        moved = partition.points[vertex] + 2e-12 * step / np.linalg.norm(step)
        assert failed(edited(partition, "points", vertex, moved)), vertex


@pytest.mark.parametrize("dim", [3, 4])
def test_slivers_are_judged_by_the_rounding_of_their_corners(dim) -> None:
    # facets 1e-10 wide, whose planes rounding turns by 1e-6: none of them is wrong
    cube = cpwl.box([-2] * dim, [2] * dim)
    network = capture(cancelling_network(0, dim))
    partition = replace(cpwl.subdivide(network, cube, progress=False), network=None)
    assert cpwl.check(partition).require().flat_cells > 0
    rng = np.random.default_rng(0)
    for vertex in rng.choice(len(partition.points), 50, replace=False):
        step = rng.standard_normal(dim)
        moved = partition.points[vertex] + 1e-6 * step / np.linalg.norm(step)
        assert failed(edited(partition, "points", vertex, moved)), vertex


def test_a_cell_on_the_wrong_side_of_a_facet_is_found() -> None:
    # the plane between two boxes is moved beyond the second one, which is then inside out
    partition = grid((0.1,), (), ())
    on = partition.points[:, 0] == 0.1
    moved = edited(partition, "points", (on, 0), 1.5)
    assert {"cells are convex", "volumes add up to the domain's"} <= failed(moved)


def test_cells_that_should_be_apart_are_counted() -> None:
    partition = grid((0.1, 0.4), (-0.3,), (0.7,))
    found = failed(merged(partition))
    assert "first stage obeys Zaslavsky's formula" in found
    assert "faces obey Buck's formula" in found
    report = cpwl.check(merged(partition))
    assert report.arrangement.cells == report.arrangement.expected_cells - 1 == 11
    assert "11 cells, expected 1 + 4 + 5 + 2 = 12; faces inside (2, 11, 19, 11)" in str(report)


def test_indices_out_of_range_end_the_check(space) -> None:
    much = 1 << 20
    for change, name in (
        (lambda p: edited(p, "cell_corners", 5, much), "cells name corners and facets that exist"),
        (lambda p: edited(p, "cell_facets", 5, -1), "cells name corners and facets that exist"),
        (
            lambda p: edited(p, "facet_corners", 5, much),
            "facets name points, cells and units that exist",
        ),
        (
            lambda p: edited(p, "facet_cells", (0, 0), much),
            "facets name points, cells and units that exist",
        ),
        (
            lambda p: replace(p, facet_unit=p.facet_unit[:-1]),
            "facets name points, cells and units that exist",
        ),
        (lambda p: reskinned(p, 0, lambda x: x + len(p.points)), "faces name faces that exist"),
        (lambda p: replace(p, skeleton=p.skeleton[:1]), "faces name faces that exist"),
        (lambda p: edited(p, "points", (0, 0), np.nan), "points are finite"),
    ):
        report = cpwl.check(change(space))
        assert {one.name for one in report.findings if one.failures} == {name}
        assert str(report.arrangement) == "does not apply: its arrays do not fit each other"
        with pytest.raises(cpwl.PartitionError, match=name):
            report.require()


def test_the_formulas_say_where_they_do_not_apply(space) -> None:
    assert cpwl.check(space).arrangement.faces == ()  # two stages: only the cells of the first
    partial = replace(space, network=None)
    assert cpwl.check(partial).arrangement.reason == "no network, or not complete"
    linear = capture(network(layer([[1.0, 2.0, 3.0]], [0.0], LINEAR)))
    whole = cpwl.subdivide(linear, cpwl.box([-1] * 3, [1] * 3), progress=False)
    assert cpwl.check(whole).require().arrangement.reason == "no knots at all"
    twice = [[1.0, 0.5, 0.25], [2.0, 1.0, 0.5], [0.0, 0.0, 1.0]]
    for rows in (twice, np.vstack([np.eye(3), np.ones((1, 3))]).tolist()):
        net = capture(network(layer(rows, [0.0] * len(rows))))
        found = cpwl.check(cpwl.subdivide(net, cpwl.box([-1] * 3, [1] * 3), progress=False))
        assert found.require().arrangement.reason == "knots are not in general position"
    through_a_corner = capture(network(layer([[1.0, 1.0, 1.0]], [-3.0])))
    corner = cpwl.subdivide(through_a_corner, cpwl.box([-1] * 3, [1] * 3), progress=False)
    assert cpwl.check(corner).require().arrangement.reason == "knots are not in general position"


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [1e-310, 1e-200, 1e-30, 1e30, 1e300])
def test_domains_of_any_size_are_checked(dim, size) -> None:
    net = capture(network(layer(np.eye(min(dim, 2), dim).tolist(), [0.0] * min(dim, 2))))
    partition = cpwl.subdivide(net, cpwl.box([-1.0] * dim, [2.0] * dim), progress=False)
    domain = cpwl.box([-size] * dim, [2 * size] * dim)
    partition = replace(partition, points=size * partition.points, domain=domain)
    report = cpwl.check(partition).require()
    assert report.volume_error < 1e-14
    assert report.cells == 2 ** min(dim, 2)
    axes = [[-0.5, 1.0]] * min(dim, 2) + [[0.5]] * max(dim - 2, 0)
    centres = {tuple(size * x for x in row) for row in product(*axes)}
    found = {tuple(row) for row in cpwl.centroids(partition).tolist()}
    assert np.allclose(sorted(found), sorted(centres), rtol=1e-12, atol=0)
    with np.errstate(over="ignore", under="ignore"):
        largest = np.multiply.reduce([2 * size] * min(dim, 2) + [3 * size] * max(dim - 2, 0))
    assert cpwl.volumes(partition).max() == pytest.approx(largest, rel=1e-12)


def test_too_many_knots_to_intersect_are_not_counted(space) -> None:
    reason = cpwl.check(space, limits=Limits(intersections=10)).arrangement.reason
    assert reason == "5 knots and 6 sides are too many to intersect"


def test_chunks_do_not_change_the_report(space) -> None:
    partitions = [space, *(change(space) for change, _ in DAMAGE.values())]
    whole = [cpwl.check(partition) for partition in partitions]
    for partition, before in zip(partitions, whole, strict=True):
        after = cpwl.check(partition, limits=Limits(items=50, facets=5))
        assert [one.failures for one in after.findings] == [x.failures for x in before.findings]
