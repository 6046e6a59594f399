"""Certificates: what they prove, that nothing damaged passes, and their files."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from agreement import capture, domain_of, subdivide_and_compare
from hypothesis import given
from layers import LINEAR, RELU, Pool, layer, network
from numpy.typing import NDArray
from strategies import (
    ALL,
    SCALARS,
    WAVE,
    architectures,
    degenerate_networks,
    domains,
    generic_networks,
    nightly,
    ordinary,
    some_architectures,
)
from torch import nn

import cpwl
from bridges import cli
from bridges.toys import random_mlp
from cpwl import CertificateError
from cpwl._proof_cells import ExactDomain, Patterns
from cpwl._proof_reading import read_exactly

BOX = cpwl.box([-10, -10], [10, 10])


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small() -> cpwl.Partition:
    """Return 2-8-8-3 on the box: enough cells for every kind of damage."""
    captured = cpwl.Network.from_torch(random_mlp((2, 8, 8, 3)), (2,))
    return cpwl.subdivide(captured, BOX, progress=False)


@pytest.fixture
def proof(small, tmp_path):
    """Return the path of a written proof."""
    cpwl.certify(small, progress=False).save(tmp_path / "proof.json")
    return tmp_path / "proof.json"


def failure(partition: cpwl.Partition) -> CertificateError:
    """Return how a damaged partition fails; its message names the cell that the error does."""
    with pytest.raises(CertificateError) as failed:
        cpwl.certify(partition, progress=False)
    error = failed.value
    start = "Expected " if error.cell is None else f"cell {error.cell}: expected "
    assert str(error).startswith(start)
    assert ", got " in str(error)
    return error


def loop(p: cpwl.Partition, cell: int) -> NDArray:
    return p.cell_corners[p.cell_offsets[cell] : p.cell_offsets[cell + 1]]


def sides(p: cpwl.Partition, cell: int) -> NDArray:
    return p.cell_facets[p.cell_offsets[cell] : p.cell_offsets[cell + 1]]


def with_cells(
    p: cpwl.Partition, loops: list[NDArray], facets: list[NDArray], patterns: NDArray, **rest
) -> cpwl.Partition:
    """Return the partition with other cells."""
    offsets = np.cumsum([0, *map(len, loops)])
    return replace(
        p, cell_offsets=offsets, cell_facet_offsets=offsets, patterns=patterns,
        cell_corners=np.concatenate(loops).astype(np.int32),
        cell_facets=np.concatenate(facets).astype(np.int32), **rest,
    )  # fmt: skip


def cells_of(p: cpwl.Partition) -> tuple[list[NDArray], list[NDArray]]:
    numbers = range(p.num_cells)
    return [loop(p, c) for c in numbers], [sides(p, c) for c in numbers]


def flipped(p: cpwl.Partition, cell: int, bit: int) -> cpwl.Partition:
    """Return the partition with one bit of one pattern changed."""
    patterns = p.patterns.copy()
    patterns[cell, bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    return replace(p, patterns=patterns)


def bit_of(p: cpwl.Partition, unit: int) -> int:
    return int(np.flatnonzero(p.bit_unit == unit)[0])


def inner_facets(p: cpwl.Partition) -> NDArray:
    return np.flatnonzero((p.facet_cells >= 0).all(axis=1))


# what holds


def test_2000_cells_are_proven_in_seconds() -> None:
    captured = cpwl.Network.from_torch(random_mlp((2, 20, 20, 20, 3)), (2,))
    partition = cpwl.subdivide(captured, BOX, progress=False)
    start = time.perf_counter()
    certificate = cpwl.certify(partition, progress=False)
    assert time.perf_counter() - start < 30
    assert (certificate.cells, certificate.points) == (1839, len(partition.points))
    assert (certificate.units, certificate.dim) == (60, 2)
    assert certificate.area == Fraction(400)
    assert certificate.rounding is not None
    assert certificate.rounding <= 1e-11
    # 60 units and 4 sides of the box are decided at every corner; two of them meet there
    assert certificate.signs == 64 * len(partition.cell_corners)
    assert certificate.ties >= 2 * len(partition.cell_corners)
    assert str(certificate).startswith("proven: 1,839 cells with ")


def test_the_bar_is_on_stderr_and_can_be_left_out(small, capsys) -> None:
    cpwl.certify(small)
    out, err = capsys.readouterr()
    assert "certify" in err
    assert out == ""
    cpwl.certify(small, progress=False)
    assert capsys.readouterr() == ("", "")


def test_the_area_of_a_slanted_domain_is_exact() -> None:
    captured = cpwl.Network.from_torch(random_mlp((5, 8, 3)), (5,))
    latents = np.random.default_rng(0).normal(size=(3, 5))
    domain = cpwl.Slice.through(*latents).polygon([[0.1, 0.2], [0.7, 0.3], [0.3, 1.1]])
    certificate = cpwl.certify(cpwl.subdivide(captured, domain, progress=False), progress=False)
    (a, b), (c, d), (e, f) = [[Fraction(x) for x in corner] for corner in domain.corners.tolist()]
    assert certificate.area == ((c - a) * (f - b) - (e - a) * (d - b)) / 2


def test_an_affine_network_has_one_cell() -> None:
    captured = cpwl.Network.from_torch(nn.Linear(2, 3), (2,))
    certificate = cpwl.certify(cpwl.subdivide(captured, BOX, progress=False), progress=False)
    assert (certificate.cells, certificate.units, certificate.points) == (1, 0, 4)


def test_intervals_are_proven_as_well() -> None:
    captured = cpwl.Network.from_torch(random_mlp((1, 12, 12, 2)), (1,))
    partition = cpwl.subdivide(captured, cpwl.box([-10], [10]), progress=False)
    certificate = cpwl.certify(partition, progress=False)
    assert certificate.area == 20
    assert certificate.points == partition.num_cells + 1
    assert "tile the domain of length 20" in str(certificate)
    moved = partition.points.copy()
    moved[2] += 1e-9
    assert failure(replace(partition, points=moved)).cell is not None


class Mixed(nn.Module):
    """Convolutions, batch-norm, pooling, a skip connection and every kind of unit."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 16)
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.prelu = nn.PReLU(2, 0.3)
        self.pool = nn.MaxPool2d(2)
        self.last = nn.Linear(8 + 2, 4)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        h = nn.functional.leaky_relu(self.first(z), 0.1).reshape(-1, 1, 4, 4)
        h = self.pool(self.prelu(self.norm(self.conv(h)))).flatten(1)
        h = torch.cat([nn.functional.hardtanh(h), z.abs()], 1)
        h = torch.maximum(h, torch.minimum(h * 0.5, 1 - h))
        h = self.last(h)
        return nn.functional.relu6(h) + nn.functional.hardsigmoid(h)


def mixed() -> nn.Module:
    torch.manual_seed(3)
    module = Mixed().double()
    with torch.no_grad():
        for value in (module.norm.running_mean, module.norm.weight, module.norm.bias):
            assert value is not None
            value.add_(torch.randn(2, dtype=torch.float64) / 4)
        module.norm.running_var.mul_(1.7)  # type: ignore[union-attr]
    return module.eval()


def test_convolutions_pooling_and_skips_are_proven() -> None:
    captured = cpwl.Network.from_torch(mixed(), (2,))
    partition = cpwl.subdivide(captured, cpwl.box([-4, -4], [4, 4]), progress=False)
    assert partition.num_cells > 100
    certificate = cpwl.certify(partition, progress=False)
    assert (certificate.cells, certificate.area) == (partition.num_cells, 64)


@pytest.mark.parametrize(
    "module",
    [mixed(), nn.Sequential(nn.Linear(2, 9), nn.Unflatten(1, (1, 3, 3)), nn.MaxPool2d(3))],
    ids=["mixed", "one pool"],
)
def test_the_exact_reading_agrees_with_torch(module) -> None:
    # a random point lies strictly inside the conditions of the pieces that torch finds for it
    captured = cpwl.Network.from_torch(module, (2,))
    points = np.random.default_rng(1).uniform(-4, 4, (40, 2))
    pieces = captured.pieces(torch.from_numpy(points)).numpy()
    corners = tuple(tuple(map(Fraction, c)) for c in ((-4, -4), (4, -4), (4, 4), (-4, 4)))
    patterns = Patterns(read_exactly(captured), ExactDomain(corners, np.zeros(2), np.eye(2)))
    for number, (point, row) in enumerate(zip(points.tolist(), pieces, strict=True)):
        bounds = patterns.cell(number, row, 0).bounds
        assert len({bound.unit for bound in bounds}) > 1
        x, y = map(Fraction, point)
        for (a, b, c), _, _ in bounds:
            assert int(a) * x + int(b) * y + int(c) > 0


# what coincides


@ordinary(40)
@given(degenerate_networks(some_architectures(12, units=(*SCALARS, WAVE))), domains(2))
def test_degenerate_networks_are_proven(layers, corners) -> None:
    partition = subdivide_and_compare(layers, corners)
    assert cpwl.certify(partition, progress=False).cells == partition.num_cells


@ordinary(30)
@given(degenerate_networks(some_architectures(6, units=(Pool(2), RELU, Pool(5)))), domains(2))
def test_degenerate_networks_with_pools_are_proven(layers, corners) -> None:
    cpwl.certify(subdivide_and_compare(layers, corners), progress=False)


@ordinary(30)
@given(degenerate_networks(some_architectures(10, 1, ALL)), domains(1))
def test_degenerate_networks_on_an_interval_are_proven(layers, corners) -> None:
    cpwl.certify(subdivide_and_compare(layers, corners), progress=False)


@ordinary(20)
@given(generic_networks(some_architectures(12, units=ALL)), domains(2))
def test_generic_networks_are_proven(layers, corners) -> None:
    cpwl.certify(subdivide_and_compare(layers, corners), progress=False)


@pytest.mark.nightly
@nightly(500)
@given(degenerate_networks(architectures(units=ALL, width=6)), domains(2))
def test_many_degenerate_networks_are_proven(layers, corners) -> None:
    partition = cpwl.subdivide(capture(layers), domain_of(corners), progress=False)
    cpwl.certify(partition, progress=False)


def test_a_unit_that_vanishes_on_a_cell_has_to_be_on_the_lower_piece() -> None:
    # the second unit is relu(relu(x)) - 0: zero on all of x < 0
    layers = network(layer([[1, 0]], [0]), layer([[1]], [0]), layer([[1]], [0], LINEAR))
    partition = subdivide_and_compare(layers, BOX.corners.tolist())
    assert partition.pieces().sum(axis=1).tolist() in ([0, 2], [2, 0])
    cell = int(np.argmin(partition.pieces().sum(axis=1)))
    error = failure(flipped(partition, cell, bit_of(partition, 1)))
    assert error.cell == cell
    assert "on the piece below a breakpoint that it equals on all of the cell" in str(error)


def test_a_unit_without_effect_may_be_on_either_piece() -> None:
    layers = network(
        layer([[1, 0], [0, 1], [1, 1], [-1, 0]], [0, 0, 1, 0], Pool(4)), layer([[1]], [0], LINEAR)
    )
    partition = subdivide_and_compare(layers, BOX.corners.tolist())
    # while the third match is won on one side, the match on the other has no effect
    left = partition.pieces()[:, 2] == 1
    without_effect = {0: ~left, 1: left, 2: np.zeros_like(left)}
    assert all(lost.any() for lost in (left, ~left))
    for unit, lost in without_effect.items():
        for cell in range(partition.num_cells):
            damaged = flipped(partition, cell, bit_of(partition, unit))
            if lost[cell]:
                cpwl.certify(damaged, progress=False)
            else:
                assert failure(damaged).cell == cell


# what does not hold


def test_every_flipped_bit_fails_in_its_cell(small) -> None:
    choose = random.Random(0)
    bits = np.flatnonzero(small.bit_unit >= 0).tolist()
    for _ in range(60):
        cell, bit = choose.randrange(small.num_cells), choose.choice(bits)
        assert failure(flipped(small, cell, bit)).cell == cell


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


def marked(p: cpwl.Partition, facet: int, at: float) -> cpwl.Partition:
    """Return the partition with an inner facet split in two at some part of it."""
    a, b = p.facet_points[facet].tolist()
    middle, count = len(p.points), len(p.facet_unit)
    loops, facets = cells_of(p)
    for cell, start in zip(p.facet_cells[facet].tolist(), (a, b), strict=True):
        slot = int(np.flatnonzero(facets[cell] == facet)[0])
        assert loops[cell][slot] == start
        loops[cell] = np.insert(loops[cell], slot + 1, middle)
        order = (facet, count) if start == a else (count, facet)
        facets[cell] = np.insert(np.delete(facets[cell], slot), [slot, slot], order)
    ends = np.concatenate([p.facet_points, [[middle, b]]])
    ends[facet] = a, middle
    point = (1 - at) * p.points[a] + at * p.points[b]
    return with_cells(
        p, loops, facets, p.patterns, points=np.concatenate([p.points, point[None]]),
        facet_cells=np.concatenate([p.facet_cells, p.facet_cells[facet][None]]),
        facet_unit=np.append(p.facet_unit, p.facet_unit[facet]),
        facet_corners=ends.ravel(), facet_offsets=2 * np.arange(count + 2),
    )  # fmt: skip


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


# what is refused


def test_a_partition_of_some_stages_is_refused(small) -> None:
    part = replace(small, status=small.status._replace(complete=False, stages=1))
    assert "Expected a partition by all 2 stages of its network, got one by the first 1" in str(
        failure(part)
    )


def test_a_partition_without_its_network_is_refused(small, tmp_path) -> None:
    small.save(tmp_path / "p.npz")
    with pytest.raises(ValueError, match="Expected a partition with its network"):
        cpwl.certify(cpwl.load_partition(tmp_path / "p.npz"), progress=False)
    again = cpwl.load_partition(tmp_path / "p.npz", network=small.network)
    assert cpwl.certify(again, progress=False).cells == small.num_cells


def test_three_dimensions_are_refused() -> None:
    captured = cpwl.Network.from_torch(random_mlp((3, 4, 2)), (3,))
    solid = cpwl.subdivide(captured, cpwl.box([-1] * 3, [1] * 3), progress=False)
    with pytest.raises(ValueError, match=r"to certify, got 3\. Use cpwl\.check, which works"):
        cpwl.certify(solid, progress=False)


def test_a_large_network_is_refused() -> None:
    wide = nn.Sequential(nn.Linear(2, 1100), nn.ReLU(), nn.Linear(1100, 1100), nn.ReLU())
    captured = cpwl.Network.from_torch(wide, (2,))
    tiny = cpwl.subdivide(captured, cpwl.box([0, 0], [1e-6, 1e-6]), progress=False)
    with pytest.raises(ValueError, match=r"at most 1,048,576 coefficients.*got one where its aff"):
        cpwl.certify(tiny, progress=False)


# files


def test_a_proof_is_proven_again_from_its_file(small, proof) -> None:
    certificate, again = cpwl.certify(small, progress=False), cpwl.verify(proof, progress=False)
    assert again == replace(certificate, rounding=None, seconds=again.seconds)
    assert cpwl.verify(proof, small.network, progress=False).digest == certificate.digest
    assert proof.stat().st_size < 40 * small.num_cells + 25 * (2 * 8 + 8 * 8 + 8 * 3) + 2000


@ordinary(25)
@given(degenerate_networks(some_architectures(8, units=ALL)), domains(2))
def test_every_kind_of_step_survives_its_file(tmp_path_factory, layers, corners) -> None:
    path = tmp_path_factory.mktemp("proofs") / "proof.json"
    partition = cpwl.subdivide(capture(layers), domain_of(corners), progress=False)
    certificate = cpwl.certify(partition, progress=False)
    certificate.save(path)
    again = cpwl.verify(path, partition.network, progress=False)
    assert again == replace(certificate, rounding=None, seconds=again.seconds)


def test_a_proof_is_about_its_network(proof) -> None:
    other = cpwl.Network.from_torch(random_mlp((2, 8, 8, 3), seed=1), (2,))
    with pytest.raises(CertificateError, match=r"a proof about this network \(2 inputs, 16 units"):
        cpwl.verify(proof, other, progress=False)
    # the last layer decides no piece, but is part of the network
    module = random_mlp((2, 8, 8, 3))
    with torch.no_grad():
        module[4].weight[0, 0] += 1e-6  # type: ignore[operator]
    with pytest.raises(CertificateError, match="got one about another"):
        cpwl.verify(proof, cpwl.Network.from_torch(module, (2,)), progress=False)


def change(path, alter) -> None:
    content = json.loads(path.read_text())
    alter(content)
    path.write_text(json.dumps(content))


def drop_cell(content: dict) -> None:
    content["sides"]["conditions"] = content["sides"]["conditions"][content["sides"]["counts"][0] :]
    del content["sides"]["counts"][0]
    content["patterns"]["packed"] = content["patterns"]["packed"][4 * 4 :]


def swap_sides(content: dict) -> None:
    listed = content["sides"]["conditions"]
    listed[0], listed[1] = listed[1], listed[0]


WRONG = {
    "a weight": lambda c: c["network"]["steps"][0]["parts"][0]["values"].__setitem__(3, "0x1p-2"),
    "the area": lambda c: c["claims"].update(area="191/1"),
    "the number of cells": lambda c: c["claims"].update(cells=7),
    "the digest": lambda c: c["claims"].update(digest="0" * 64),
    "the tail": lambda c: c["network"].update(tail="0" * 64),
    "the domain": lambda c: c["domain"]["corners"][2].__setitem__(0, "b/1"),
    "the slice": lambda c: c["domain"]["basis"][0].__setitem__(0, "0x1.1p+0"),
    "the sides": swap_sides,
    "a side": lambda c: c["sides"]["conditions"].__setitem__(0, 10**6),
    "a piece": lambda c: c["patterns"]["lowest"].__setitem__(2, 1),
    "a breakpoint": lambda c: c["network"]["steps"][1]["points"][0].__setitem__(0, "0x1p-3"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_changed_proof_does_not_hold(proof, what) -> None:
    change(proof, WRONG[what])
    with pytest.raises(CertificateError, match="xpected "):
        cpwl.verify(proof, progress=False)


def test_a_proof_with_a_cell_less_names_the_cell_beside_the_hole(small, tmp_path) -> None:
    certificate = cpwl.certify(small, progress=False)
    held = certificate._proof
    less = held._replace(pieces=held.pieces[1:], sides=held.sides[1:])
    replace(certificate, _proof=less, cells=certificate.cells - 1).save(tmp_path / "p.json")
    with pytest.raises(CertificateError, match="no cell beside its side") as failed:
        cpwl.verify(tmp_path / "p.json", progress=False)
    beside = set(small.facet_cells[sides(small, 0)].ravel().tolist())
    assert failed.value.cell is not None
    assert failed.value.cell + 1 in beside
    assert "is missing" in str(failed.value)


BROKEN = {
    "format": (lambda c: c.update(format="cpwl proof 9"), "format 'cpwl proof 9'"),
    "no steps": (lambda c: c["network"].pop("steps"), "steps"),
    "kind": (lambda c: c["network"]["steps"][0].update(kind="eval"), "a step of kind 'eval'"),
    "source": (lambda c: c["network"]["steps"][0]["parts"][0].update(source=7), "step 0 reads"),
    "columns": (lambda c: c["network"]["steps"][0]["parts"][0]["columns"].__setitem__(0, 99),
                "entries outside it"),
    "infinite": (lambda c: c["network"]["steps"][0]["offset"].__setitem__(0, "inf"),
                 "offset that is not finite"),
    "units": (lambda c: c["network"].update(units=17), "16 units, not 0 to 16"),
    "bits": (lambda c: c["patterns"]["bits"].__setitem__(0, 60), "patterns that are not of 16"),
    "wide": (lambda c: c["patterns"]["lowest"].__setitem__(0, 2**31 - 1), "are not of 16 units"),
    "packed": (lambda c: c["patterns"].update(packed="AAAA"), "3 bytes of patterns"),
    "base64": (lambda c: c["patterns"].update(packed="?"), "base64"),
    "counts": (lambda c: c["sides"]["counts"].__setitem__(0, -3), "'-3' where a whole number"),
    "more counts": (lambda c: c["sides"]["counts"].append(4), "do not fit their counts"),
    "huge count": (lambda c: c["sides"]["counts"].__setitem__(0, 2**61), "do not fit"),
    "ratio": (lambda c: c["domain"]["corners"][0].__setitem__(0, "1/0"), "where a ratio"),
    "long ratio": (lambda c: c["domain"]["corners"][0].__setitem__(0, "1" * 5000 + "/1"),
                   "where a ratio is needed"),
    "not convex": (lambda c: c["domain"]["corners"].reverse(), "no convex domain"),
    "latent": (lambda c: c["domain"]["origin"].append("0x0p+0"), "for 2 inputs"),
    "name": (lambda c: c["network"]["names"].__setitem__(0, 3), "names that are no text"),
    "list": (lambda c: c.update(network=[1, 2]), "list indices"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_damaged_proof_is_said_to_be_one(proof, what) -> None:
    alter, text = BROKEN[what]
    change(proof, alter)
    with pytest.raises(ValueError, match=r"Expected a proof \(cpwl proof 1\) in ") as failed:
        cpwl.verify(proof, progress=False)
    assert not isinstance(failed.value, CertificateError)
    assert text in str(failed.value)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "NaN", "[" * 100_000, '{"format": NaN}', "\x00", "1" * 5000, "é"]
)
def test_what_is_no_proof_is_said_to_be_none(tmp_path, content) -> None:
    path = tmp_path / "proof.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"Expected a proof \(cpwl proof 1\)"):
        cpwl.verify(path, progress=False)
    with pytest.raises(FileNotFoundError, match="got no file at"):
        cpwl.verify(tmp_path / "none.json", progress=False)


def test_no_change_of_a_byte_passes_unless_it_changes_nothing(proof) -> None:
    original = cpwl.verify(proof, progress=False)
    text, choose = proof.read_text(), random.Random(5)
    refused = 0
    for _ in range(150):
        place = choose.randrange(len(text))
        letter = choose.choice('0123456789abcdefx.p-+",:[]{}AZ')
        proof.write_text(text[:place] + letter + text[place + 1 :])
        try:
            again = cpwl.verify(proof, progress=False)
        except ValueError:
            refused += 1
        else:  # another letter of a name, or "001.8p+0" for "0x1.8p+0"
            assert (again.digest, again.cells) == (original.digest, original.cells)
    assert refused > 130


# the command line


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Return a function that runs the command beside a model: status, stdout, stderr."""
    batch = {0: torch.export.Dim("batch")}
    for seed in (0, 1):
        module = random_mlp((2, 8, 8, 3), seed).eval()
        exported = torch.export.export(module, (torch.zeros(2, 2),), dynamic_shapes=(batch,))
        torch.export.save(exported, tmp_path / f"model{seed}.pt2")
    monkeypatch.chdir(tmp_path)

    def command(line):
        with pytest.raises(SystemExit) as stopped:
            cli.main(line.split())
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return command


def test_the_command_line_certifies_and_verifies(run, small, tmp_path) -> None:
    status, out, err = run("partition model0.pt2 --box -10 10 --certify -o p.npz -o p.json")
    assert (status, err) == (0, "")
    assert f"proven: {small.num_cells} cells with {len(small.points)} corners tile" in out
    assert "wrote p.npz\nwrote p.json\n" in out
    # the file and the module that it was exported from are one network
    digest = cpwl.certify(small, progress=False).digest
    assert cpwl.verify(tmp_path / "p.json", small.network, progress=False).digest == digest

    for line in ("verify p.json", "verify p.json model0.pt2"):
        status, out, err = run(line)
        assert (status, err) == (0, "")
        assert out.startswith(f"proven: {small.num_cells} cells with ")
        assert out.endswith(f"{digest[:16]}\n")
    status, out, err = run("verify p.json model1.pt2")
    assert (status, out) == (1, "")
    assert err.startswith("cpwl: Expected a proof about this network (2 inputs, 16 units")
    assert err.count("\n") == 1


def test_the_command_line_certifies_without_writing(run, tmp_path) -> None:
    before = sorted(tmp_path.iterdir())
    status, out, _ = run("partition model0.pt2 --box -10 10 --certify")
    assert status == 0
    assert "proven: " in out
    assert sorted(tmp_path.iterdir()) == before


def test_a_partition_that_is_not_proven_is_not_written(run, monkeypatch, tmp_path) -> None:
    subdivide = cpwl.subdivide

    def wrong(*arguments, **options):
        partition = subdivide(*arguments, **options)
        return flipped(partition, 3, 0)

    monkeypatch.setattr(cpwl, "subdivide", wrong)
    status, _, err = run("partition model0.pt2 --box -10 10 --certify -o p.npz -o p.json")
    assert status == 1
    assert err.startswith("cpwl: cell 3: expected ")
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("p.*"))


def test_a_file_that_is_no_proof_is_a_user_error(run, tmp_path) -> None:
    (tmp_path / "p.json").write_text("{}")
    status, _, err = run("verify p.json")
    assert status == 2
    assert err.startswith("cpwl: Expected a proof (cpwl proof 1) in p.json, got a file that does")
    status, _, err = run("verify none.json")
    assert (status, "got no file at none.json" in err) == (2, True)
    status, _, err = run("partition model0.pt2 --box -10 10")
    assert (status, "Missing option '-o' / '--output', or '--certify'." in err) == (2, True)


def test_what_cannot_be_proven_is_refused_before_the_work(run, monkeypatch, tmp_path) -> None:
    module = random_mlp((3, 4, 2))
    batch = {0: torch.export.Dim("batch")}
    exported = torch.export.export(module, (torch.zeros(2, 3),), dynamic_shapes=(batch,))
    torch.export.save(exported, tmp_path / "solid.pt2")
    monkeypatch.delattr(cpwl, "subdivide")
    for line in (
        "partition solid.pt2 --box 0 1 --certify",
        "partition solid.pt2 --box 0 1 -o p.json",
    ):
        status, _, err = run(line)
        assert (status, "to certify, got 3. Use cpwl.check" in err) == (2, True)
