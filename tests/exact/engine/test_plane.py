"""The engine against the rational oracle and against known counts."""

from __future__ import annotations

import inspect
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from oracles import splitting
from oracles.brute import arrangement_cells
from oracles.layers import (
    ABS,
    LINEAR,
    RELU,
    RELU6,
    WAVE,
    Layer,
    Pool,
    Units,
    from_sequential,
    hardtanh,
    layer,
    leaky,
    network,
)
from support.agreement import (
    assert_agrees,
    assert_checked,
    capture,
    domain_of,
    pattern_set,
    sampled_patterns,
    subdivide_and_compare,
)
from support.samples import mlp
from support.strategies import (
    ALL,
    BOX,
    INTERVALS,
    POLYGONS,
    generic_networks,
    nightly,
    ordinary,
    random_network,
    some_architectures,
)
from torch import nn

import cpwl
from bridges.networks.toys import random_mlp
from cpwl.arrays import pattern_kernels
from cpwl.engine import column_kernels
from cpwl.engine.plane import cutting_kernels, edge_kernels

COUNTS = {20: 1839, 64: 18863, 128: 65799, 256: 269845}
SQUARE = ((-10.0, -10.0), (10.0, -10.0), (10.0, 10.0), (-10.0, 10.0))


pytestmark = pytest.mark.usefixtures("one_thread")


def benchmark_module(width: int) -> nn.Sequential:
    return random_mlp((2, width, width, width, 3))


def benchmark_partition(width: int, **options: int) -> cpwl.Partition:
    captured = cpwl.Network.from_torch(benchmark_module(width), (2,))
    return cpwl.subdivide(captured, cpwl.polygon(SQUARE), progress=False, **options)


@pytest.fixture(scope="module")
def smallest() -> cpwl.Partition:
    return benchmark_partition(20)


@pytest.mark.parametrize(
    ("widths", "units"),
    [
        ((6,), (RELU,)),
        ((4, 4), (RELU,)),
        ((5, 4, 3), (RELU,)),
        ((6, 5), (leaky(Fraction(1, 8)), RELU)),
        ((4, 4), (hardtanh(), ABS)),
        ((3, 3, 3), (ABS, RELU6, leaky(-1))),
        ((3, 3), (WAVE, RELU)),
        ((3, 2), (RELU, WAVE)),
        ((3, 4), (Pool(2), RELU)),
        ((3, 3), (RELU, Pool(3))),
        ((2, 2), (Pool(4), Pool(5))),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_random_networks_agree_with_the_oracle(widths, units, seed: int) -> None:
    subdivide_and_compare(random_network(seed, widths, units), BOX)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("corners", [*POLYGONS[1:], *INTERVALS])
def test_random_networks_agree_on_other_domains(corners, seed: int) -> None:
    dim = len(corners[0])
    subdivide_and_compare(random_network(seed, (6, 4), (RELU, ABS), dim), corners)


@ordinary(10)
@given(generic_networks(some_architectures(6, units=ALL, width=5)))
def test_generic_networks_agree_with_the_oracle(layers) -> None:
    subdivide_and_compare(layers, BOX)


@pytest.mark.nightly
@nightly(1000)
@given(generic_networks(some_architectures(30, units=ALL, width=6)))
def test_many_generic_networks_agree_with_the_oracle(layers) -> None:
    subdivide_and_compare(layers, BOX)


@pytest.mark.nightly
@nightly(500)
@given(generic_networks(some_architectures(30, 1, ALL, width=6)))
def test_many_generic_networks_on_an_interval_agree_with_the_oracle(layers) -> None:
    subdivide_and_compare(layers, INTERVALS[0])


def test_skip_connections_and_branches_agree_with_the_oracle() -> None:
    rng = np.random.default_rng(5)

    def draw(rows: int, columns: int, units: Units, inputs: tuple[int, ...]) -> Layer:
        weight, bias = rng.normal(size=(rows, columns)), rng.normal(size=rows)
        return layer(weight.tolist(), bias.tolist(), units, inputs)

    layers = network(
        draw(4, 2, RELU, (0,)),
        draw(3, 2, ABS, (0,)),
        draw(3, 9, RELU, (0, 1, 2)),
        draw(2, 5, hardtanh(), (0, 3)),
        draw(2, 5, LINEAR, (4, 2)),
    )
    subdivide_and_compare(layers, BOX)


@pytest.mark.parametrize("lines", [1, 3, 12])
def test_lines_in_general_position_make_the_count_of_buck(lines: int) -> None:
    # tangents of a parabola: no three concurrent, i and j cross at (-i - j, ij)
    layers = network(layer([[k, 1] for k in range(lines)], [k**2 for k in range(lines)]))
    corners = [(-40, -400), (40, -400), (40, 400), (-40, 400)]
    partition = cpwl.subdivide(capture(layers), domain_of(corners), progress=False)
    assert_checked(partition)
    assert partition.num_cells == arrangement_cells(lines)


@pytest.mark.parametrize("depth", [1, 4, 10])
def test_a_sawtooth_of_depth_l_has_two_to_the_l_pieces(depth: int) -> None:
    tooth = [layer([[1], [1]], [0, -0.5]), layer([[2, -4]], [0], LINEAR)]
    layers = network(*(tooth * depth))
    partition = cpwl.subdivide(capture(layers), domain_of([(0,), (1,)]), progress=False)
    assert_checked(partition)
    assert partition.num_cells == 2**depth
    np.testing.assert_allclose(cpwl.volumes(partition), 0.5**depth, rtol=1e-12)


def test_a_sawtooth_in_the_plane_is_cut_in_strips() -> None:
    tooth = [layer([[1, 0], [1, 0]], [0, -0.5]), layer([[2, -4], [0, 0]], [0, 0], LINEAR)]
    layers = network(*(tooth * 5))
    partition = subdivide_and_compare(layers, [(0, 0), (1, 0), (1, 1), (0, 1)])
    assert partition.num_cells == 2**5


def test_a_slice_of_a_larger_latent_space_agrees_with_the_oracle() -> None:
    layers = random_network(3, (6, 5), dim=4)
    origin = np.array([0.5, -0.25, 1.0, 0.0])
    basis = np.array([[1.0, 0.5, 0.0, -1.0], [0.0, 0.25, 2.0, 1.0]])
    place = cpwl.Slice(origin, basis)
    partition = cpwl.subdivide(capture(layers), place.polygon(BOX), progress=False)
    assert_checked(partition)
    embedding = np.column_stack([basis.T, origin]).tolist()
    assert_agrees(partition, layers, splitting.subdivide(layers, BOX, embedding))


def test_a_network_without_units_has_one_cell() -> None:
    partition = subdivide_and_compare(network(layer([[1, 2], [3, 4]], [5, 6], LINEAR)), BOX)
    assert partition.num_cells == 1


def test_the_smallest_benchmark_network_agrees_with_the_oracle(smallest) -> None:
    assert_checked(smallest)
    layers = from_sequential(benchmark_module(20))
    cells = splitting.subdivide(layers, SQUARE)
    assert smallest.num_cells == len(cells) == COUNTS[20]
    hidden = [cell.pattern[:60] for cell in cells]
    assert {tuple(row) for row in smallest.pieces().tolist()} == set(hidden)


@pytest.mark.nightly
def test_all_cells_of_the_benchmark_networks_agree_with_the_oracle(smallest) -> None:
    for width, partition in ((20, smallest), (64, benchmark_partition(64))):
        layers = from_sequential(benchmark_module(width))
        cells = splitting.subdivide(layers, SQUARE)
        hidden = {cell.pattern[: 3 * width] for cell in cells}
        assert {tuple(row) for row in partition.pieces().tolist()} == hidden
        assert float(cpwl.volumes(partition).min()) == pytest.approx(
            float(min(cell.volume for cell in cells)), rel=1e-4
        )


@pytest.mark.parametrize(
    "width",
    [
        64,
        pytest.param(128, marks=pytest.mark.nightly),
        pytest.param(256, marks=pytest.mark.nightly),
    ],
)
def test_the_benchmark_networks_have_their_known_counts(width: int) -> None:
    partition = benchmark_partition(width)
    assert partition.num_cells == COUNTS[width]
    assert partition.status.complete
    cpwl.check(partition).require()
    random = torch.Generator().manual_seed(1)
    points = 20 * torch.rand(20000, 2, dtype=torch.float64, generator=random) - 10
    sampled = sampled_patterns(benchmark_module(width), points)
    assert {row.tobytes() for row in sampled} <= pattern_set(partition)


def test_memory_does_not_change_the_partition(smallest) -> None:
    for memory in (1 << 16, 1 << 20):
        bounded = benchmark_partition(20, memory=memory)
        cpwl.check(bounded).require()
        assert_same_cells(smallest, bounded)


@pytest.mark.nightly
def test_memory_does_not_change_a_large_partition() -> None:
    bounded = benchmark_partition(128, memory=1 << 22)
    cpwl.check(bounded).require()
    assert_same_cells(benchmark_partition(128), bounded)


@pytest.mark.parametrize(
    "seed", [0, 3, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in (1, 2))]
)
def test_memory_does_not_change_mixed_networks(seed: int) -> None:
    layers = random_network(seed, (7, 6, 5), (RELU, Pool(3), hardtanh()))
    whole = subdivide_and_compare(layers, POLYGONS[3])
    bounded = subdivide_and_compare(layers, POLYGONS[3], memory=1 << 12)
    assert_same_cells(whole, bounded)


def test_memory_does_not_change_the_points_of_an_interval() -> None:
    layers = random_network(4, (9, 9, 9), dim=1)
    whole = subdivide_and_compare(layers, INTERVALS[0])
    assert_same_cells(whole, subdivide_and_compare(layers, INTERVALS[0], memory=1 << 10))


def assert_same_cells(a: cpwl.Partition, b: cpwl.Partition) -> None:
    """Compare patterns, polygons and facets, in any order."""
    assert (len(a.points), len(a.facet_points)) == (len(b.points), len(b.facet_points))
    order = [np.lexsort(p.pieces().T) for p in (a, b)]
    found = []
    for p, cells in zip((a, b), order, strict=True):
        rank = np.argsort(cells)
        inner = np.flatnonzero((p.facet_cells >= 0).all(1))
        pairs = np.sort(rank[p.facet_cells[inner]], axis=1)
        facets = np.column_stack([pairs, p.facet_unit[inner]])
        sizes = np.diff(p.cell_offsets)[cells]
        found.append((p.pieces()[cells], sizes, facets[np.lexsort(facets.T)]))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    ours, theirs = (cpwl.volumes(p)[cells] for p, cells in zip((a, b), order, strict=True))
    np.testing.assert_allclose(ours, theirs, atol=1e-12 * a.domain.volume)


def assert_same_partition(a: cpwl.Partition, b: cpwl.Partition) -> None:
    """Compare all arrays bit for bit."""
    for name in (
        *("points", "cell_offsets", "cell_corners", "cell_facets", "facet_corners"),
        *("facet_cells", "facet_unit", "patterns", "bit_unit", "unit_base"),
    ):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_compiled_kernels_agree_bitwise_with_python(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = [
        subdivide_and_compare(random_network(0, (5, 4), units), BOX)
        for units in ((RELU, ABS), (Pool(3), hardtanh()))
    ]
    swapped = 0
    for file in (column_kernels, cutting_kernels, edge_kernels, pattern_kernels):
        for name, kernel in inspect.getmembers(file):
            if hasattr(kernel, "py_func"):
                monkeypatch.setattr(file, name, kernel.py_func)
                swapped += 1
    assert swapped > 30
    for units, expected in zip(((RELU, ABS), (Pool(3), hardtanh())), compiled, strict=True):
        layers = random_network(0, (5, 4), units)
        plain = cpwl.subdivide(capture(layers), domain_of(BOX), progress=False)
        assert_same_partition(expected, plain)


def test_memory_that_not_even_a_strip_fits_gives_the_first_stages_and_what_is_needed() -> None:
    network = cpwl.Network.from_torch(benchmark_module(20), (2,))
    square = cpwl.box([-10, -10], [10, 10])
    made = cpwl.subdivide(network, square, memory=1000, progress=False)
    assert not made.status.complete
    assert not made.status.exact
    assert made.status.stages == 0
    assert made.num_cells == 1
    assert made.status.needed > 1000
    assert "INCOMPLETE" in repr(made)
    assert (made.pieces() == -1).all()
    with pytest.raises(cpwl.PartitionError, match="memory ran out"):
        cpwl.local_scaling(made)


def test_strips_of_strips_have_no_line_through_a_corner_of_their_own() -> None:
    """A corner that both axes cut at one share of a triangle is similar to the whole."""
    network = cpwl.Network.from_torch(mlp(2, 12, 12, 3, seed=1), (2,))
    domain = cpwl.polygon([[-2, -2], [2, -1], [2, 2], [-1, 2]])
    made = cpwl.subdivide(network, domain, memory=100, progress=False)
    assert made.status.needed > 100


def test_domain_of_another_latent_shape_is_refused() -> None:
    network = cpwl.Network.from_torch(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), (3,))
    with pytest.raises(ValueError, match=r"latents of shape \(3,\), got \(2,\)\. Build it from"):
        cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]), progress=False)


def test_overflow_is_refused() -> None:
    module = benchmark_module(20)
    with torch.no_grad():
        module[0].weight.mul_(1000)
    network = cpwl.Network.from_torch(module, (2,))
    with pytest.raises(FloatingPointError, match=r"overflows float64.*smaller domain"):
        cpwl.subdivide(network, cpwl.box([0, 0], [1e306, 1e306]), progress=False)
