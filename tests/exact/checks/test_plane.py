"""`cpwl.check` accepts what is right and names what is wrong."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles.layers import ABS, RELU, Pool, hardtanh, layer, network
from support.agreement import capture, domain_of
from support.strategies import BOX, cancelling_network, random_network

import cpwl
from cpwl import PartitionError
from cpwl.checks import Limits

pytestmark = pytest.mark.usefixtures("one_thread")


def subdivide(layers, corners=BOX) -> cpwl.Partition:
    return cpwl.subdivide(capture(layers), domain_of(corners), progress=False)


@pytest.fixture(scope="module")
def plane() -> cpwl.Partition:
    return subdivide(random_network(0, (6, 5), (RELU, hardtanh())))


@pytest.fixture(scope="module")
def line() -> cpwl.Partition:
    return subdivide(random_network(1, (6, 5), (RELU, ABS), dim=1), ((-2.0,), (2.0,)))


def failed(partition: cpwl.Partition) -> set[str]:
    report = cpwl.check(partition)
    assert report.ok == (not any(one.failures for one in report.findings))
    return {one.name for one in report.findings if one.failures}


def edited(partition: cpwl.Partition, name: str, index, value) -> cpwl.Partition:
    """Return a copy with one entry of one array replaced."""
    array = getattr(partition, name).copy()
    array[index] = value
    return replace(partition, **{name: array})


def test_right_partitions_pass(plane, line) -> None:
    for partition in (plane, line):
        report = cpwl.check(partition)
        assert report.require() is report
        assert report.euler == 1
        assert report.volume_error < 1e-14
        assert report.smallest_volume > 0
        assert report.flat_cells == 0
        assert report.continuity_error < 1e-12
        assert report.output_error < 1e-12
        assert report.knot_error < 4
        assert report.sampled_cells == report.cells == partition.num_cells
        assert 0 < report.sampled_facets <= report.facets


def test_pools_pass() -> None:
    assert cpwl.check(subdivide(random_network(0, (3, 3), (Pool(3), Pool(4))))).require()


def test_maps_that_are_small_by_cancellation_pass() -> None:
    # outputs of 1e-10, as differences of numbers of about 1: their rounding is that of the latter
    partition = subdivide(cancelling_network(717, 1), ((0.0,), (1.0,)))
    assert cpwl.check(partition).require().continuity_error == 0.0
    base = partition.unit_base.copy()
    base[partition.bit_unit[0]] -= 1
    assert "maps are the network's at the centres" in failed(replace(partition, unit_base=base))


def test_thousands_of_knots_of_one_unit_are_not_compared_in_pairs() -> None:
    # all 16,383 knots with one another, or with every sample, took 40 s after 0.05 s
    class Wave(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (torch.remainder(x, 0.125) - 0.0625).abs()

    partition = cpwl.subdivide(
        cpwl.Network.from_torch(Wave(), (1,)), cpwl.box([-511.97], [511.97]), progress=False
    )
    began = time.process_time()
    report = cpwl.check(partition).require()
    assert time.process_time() - began < 10
    assert report.arrangement.reason == "16383 knots and 2 sides are too many to intersect"


def test_a_sample_is_reproducible_and_bounded(plane) -> None:
    report = cpwl.check(plane, samples=5)
    assert report.ok
    assert report.sampled_cells == 5
    assert report.sampled_facets <= 10
    assert report == cpwl.check(plane, samples=5)
    cpwl.check(plane, samples=5, generator=np.random.default_rng(1)).require()


def test_the_report_is_a_table(plane) -> None:
    text = str(cpwl.check(plane))
    lines = text.splitlines()
    assert f"{plane.num_cells}, {len(plane.facet_points)}, {len(plane.points)}" in lines[0]
    assert "Euler characteristic" in lines[1]
    assert lines[-1].endswith("ok")
    bad = str(cpwl.check(edited(plane, "patterns", 3, plane.patterns[4])))
    assert f"FAILS: 1 of {plane.num_cells}, first cell 4 around (" in bad


def test_require_names_what_failed_and_where(plane) -> None:
    bad = edited(plane, "patterns", 3, plane.patterns[4])
    with pytest.raises(PartitionError, match=r"passes all \d+ checks, got \d+ that fail") as error:
        cpwl.check(bad).require()
    text = str(error.value)
    assert f"patterns are distinct: 1 of {plane.num_cells} fail, first cell 4 around (" in text
    assert "subdivide again" in text


def test_a_clockwise_loop_is_found(plane) -> None:
    loop = slice(plane.cell_offsets[2], plane.cell_offsets[3])
    backwards = edited(plane, "cell_corners", loop, plane.cell_corners[loop][::-1])
    assert {"cells are anticlockwise", "loops and facets agree"} <= failed(backwards)


def test_a_dented_cell_is_found() -> None:
    partition = subdivide(network(layer([[1, 0], [0, 1]], [0, 0])))
    centre = int(np.flatnonzero((partition.points == 0).all(axis=1))[0])
    moved = edited(partition, "points", centre, [0.5, 0.5])
    assert "cells are convex" not in failed(moved)
    moved = edited(partition, "points", centre, [1.5, 1.75])
    assert "cells are convex" in failed(moved)
    assert "cells are anticlockwise" not in failed(moved)
    moved = edited(partition, "points", centre, [2.5, 2.5])
    assert {"cells are convex", "cells are anticlockwise"} <= failed(moved)


def test_a_moved_point_is_off_its_knots(plane) -> None:
    outer = plane.facet_points[(plane.facet_cells < 0).any(1)]
    inside = np.setdiff1d(np.arange(len(plane.points)), outer)[0]
    moved = edited(plane, "points", inside, plane.points[inside] + 1e-9)
    names = failed(moved)
    assert "units that change across a facet vanish there" in names
    assert "volumes add up to the domain's" not in names


def test_a_boundary_point_off_the_boundary_is_found(plane) -> None:
    outer = plane.facet_points[(plane.facet_cells < 0).any(1)][0, 0]
    moved = edited(plane, "points", outer, plane.points[outer] * 0.999)
    assert "outer facets lie on the boundary" in failed(moved)


def test_a_missing_cell_leaves_a_hole(plane) -> None:
    kept = np.ones(plane.num_cells, bool)
    kept[0] = False
    corner = np.repeat(kept, np.diff(plane.cell_offsets))
    number = np.where(kept, np.cumsum(kept) - 1, -1)
    cells = np.where(plane.facet_cells >= 0, number[plane.facet_cells], -1).astype(np.int32)
    partition = replace(
        plane,
        cell_offsets=np.concatenate([[0], np.cumsum(np.diff(plane.cell_offsets)[kept])]),
        cell_corners=plane.cell_corners[corner],
        cell_facet_offsets=np.concatenate([[0], np.cumsum(np.diff(plane.cell_offsets)[kept])]),
        cell_facets=plane.cell_facets[corner],
        patterns=plane.patterns[kept],
        facet_cells=cells,
    )
    names = failed(partition)
    assert {"Euler characteristic is 1", "volumes add up to the domain's"} <= names
    assert "outer facets lie on the boundary" in names


def test_a_doubled_vertex_is_found(plane) -> None:
    # the seam of two tiles glued without identifying a vertex: one facet is listed twice
    facet = int(np.flatnonzero((plane.facet_cells >= 0).all(1))[0])
    left, right = plane.facet_cells[facet]
    loop = slice(plane.cell_offsets[right], plane.cell_offsets[right + 1])
    facets = plane.cell_facets.copy()
    facets[loop][facets[loop] == facet] = len(plane.facet_points)
    torn = replace(
        plane,
        cell_facets=facets,
        facet_offsets=2 * np.arange(len(plane.facet_points) + 2),
        facet_corners=np.append(plane.facet_corners, plane.facet_points[facet]),
        facet_cells=np.vstack([plane.facet_cells, [-1, right]]).astype(np.int32),
        facet_unit=np.append(plane.facet_unit, np.int32(-1)),
    )
    torn = edited(edited(torn, "facet_cells", facet, [left, -1]), "facet_unit", facet, -1)
    assert {"Euler characteristic is 1", "outer facets lie on the boundary"} <= failed(torn)


def test_an_unused_point_is_found(plane) -> None:
    assert "points are corners" in failed(
        replace(plane, points=np.vstack([plane.points, [[0.0, 0.0]]]))
    )


def test_swapped_sides_of_a_facet_are_found(plane) -> None:
    facet = int(np.flatnonzero((plane.facet_cells >= 0).all(1))[0])
    swapped = edited(plane, "facet_cells", facet, plane.facet_cells[facet, ::-1])
    assert "loops and facets agree" in failed(swapped)


def test_a_facet_of_the_wrong_unit_is_found(plane) -> None:
    facet = int(np.flatnonzero((plane.facet_cells >= 0).all(1))[0])
    other = (plane.facet_unit[facet] + 1) % len(plane.unit_base)
    assert "a facet's unit moves by one breakpoint" in failed(
        edited(plane, "facet_unit", facet, other)
    )


def test_an_inner_facet_without_a_unit_is_found(plane) -> None:
    facet = int(np.flatnonzero((plane.facet_cells >= 0).all(1))[0])
    assert "facets have two cells and a unit, or bound the domain" in failed(
        edited(plane, "facet_unit", facet, -1)
    )


@pytest.mark.parametrize("bit", [0, 3])
def test_a_flipped_bit_is_found(plane, bit: int) -> None:
    patterns = plane.patterns.copy()
    patterns[7, 0] ^= np.uint64(1 << bit)
    names = failed(replace(plane, patterns=patterns))
    assert {
        "patterns are the network's at the centres",
        "a facet's unit moves by one breakpoint",
    } & names


def test_a_wrong_base_is_found(plane, line) -> None:
    for partition in (plane, line):
        still = np.setdiff1d(np.arange(len(partition.unit_base)), partition.bit_unit)
        unit = int(still[0]) if len(still) else 0
        names = failed(edited(partition, "unit_base", unit, partition.unit_base[unit] + 1))
        assert "patterns are the network's at the centres" in names


def test_another_network_is_found(plane) -> None:
    one, *rest = random_network(0, (6, 5), (RELU, hardtanh()))
    weight = tuple((row[0] * 1.25, *row[1:]) for row in one.weight)
    perturbed = capture((replace(one, weight=weight), *rest))
    names = failed(replace(plane, network=perturbed))
    assert "units that change across a facet vanish there" in names
    assert "maps agree on facets" in names


def test_indices_out_of_range_end_the_check(plane) -> None:
    bad = edited(plane, "cell_corners", 5, len(plane.points))
    report = cpwl.check(bad)
    assert not report.ok
    assert np.isnan(report.volume_error)
    with pytest.raises(PartitionError, match="cells name corners and facets that exist"):
        report.require()
    for name, index in (("facet_corners", 0), ("facet_cells", (0, 0)), ("facet_unit", 0)):
        bad = edited(plane, name, index, 1 << 20)
        assert failed(bad) == {"facets name points, cells and units that exist"}
    assert "points are finite" in failed(edited(plane, "points", (0, 0), np.nan))


def test_an_incomplete_partition_is_not_ok(plane) -> None:
    partial = replace(plane, status=plane.status._replace(complete=False))
    assert failed(partial) == {"subdivide calls it complete"}


def test_without_a_network_the_arrays_are_checked(plane) -> None:
    report = cpwl.check(replace(plane, network=None))
    assert report.ok
    assert report.sampled_cells == 0
    assert np.isnan(report.output_error)
    assert np.isnan(report.knot_error)


def test_a_wrong_order_on_a_line_is_found(line) -> None:
    swapped = edited(line, "points", slice(1, 3), line.points[2:0:-1])
    assert "cells are anticlockwise" in failed(swapped)
    assert "outer facets lie on the boundary" in failed(edited(line, "points", 0, -1.99))
    wrong = edited(line, "facet_cells", 1, line.facet_cells[1, ::-1])
    assert "loops and facets agree" in failed(wrong)


def test_chunks_do_not_change_the_report(plane) -> None:
    whole = cpwl.check(plane)
    chunked = cpwl.check(plane, limits=Limits(cells=7, facets=5, bytes=4096))
    assert [one.failures for one in whole.findings] == [one.failures for one in chunked.findings]
    assert chunked.volume_error < 1e-13
    assert chunked.smallest_volume == whole.smallest_volume
