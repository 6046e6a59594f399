"""The engine of any dimension: counts known in closed form, invariants, and the 2-D engine."""

from __future__ import annotations

import inspect
import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from oracles.brute import arrangement_cells, arrangement_faces
from oracles.layers import ABS, LINEAR, RELU, WAVE, Pool, hardtanh, layer, leaky, network
from support.agreement import capture, pattern_set
from support.lattices import (
    arbitrated,
    assert_sound,
    corner_sets,
    counts,
    inner_counts,
    layers_on_box,
    named,
    one_layer,
    pieces,
    refined,
)
from support.strategies import random_network

import cpwl
from bridges.networks.toys import random_mlp
from cpwl.engine.columns import Columns
from cpwl.engine.rational.arbiter import Vertices
from cpwl.engine.space import cutting_kernels as kernels
from cpwl.engine.space import lattice_kernels
from cpwl.engine.space.cutting import split
from cpwl.engine.space.lattice import Lattice, nbytes, whole
from cpwl.network.program import read_matrices

RNG = np.random.default_rng(0)


pytestmark = pytest.mark.usefixtures("one_thread")


def box(dim: int, radius: float = 10.0) -> cpwl.Domain:
    return cpwl.box([-radius] * dim, [radius] * dim)


def generic_rows(count: int, dim: int) -> tuple[list, list]:
    """Return hyperplanes in general position, all of whose vertices lie within [-1, 1]^dim."""
    rows = [[math.cos(t * k) for k in range(dim)] for t in range(1, count + 1)]
    return rows, [1e-3 * math.sin(t * t) for t in range(1, count + 1)]


# --- closed forms ------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "count"), [(1, 20), (2, 20), (3, 12), (4, 8), (5, 7), (6, 7)])
def test_one_generic_layer_has_the_faces_that_buck_counted(dim: int, count: int) -> None:
    made = refined(one_layer(*generic_rows(count, dim)), box(dim, 1.0))
    assert_sound(made.lattice)
    expected = [arrangement_faces(count, dim, k) for k in range(dim + 1)]
    assert inner_counts(made.lattice) == expected
    assert expected[dim] == arrangement_cells(count, dim)
    assert expected[dim] == sum(math.comb(count, i) for i in range(dim + 1))


@pytest.mark.parametrize(
    ("widths", "cells"),
    [((3, 16, 16, 3), 4287), ((4, 10, 10, 3), 5672), ((3, 32, 32, 3), 39175)],
)
def test_networks_with_known_numbers_of_cells(widths: tuple[int, ...], cells: int) -> None:
    dim = widths[0]
    net = cpwl.Network.from_torch(random_mlp(widths).double(), (dim,))
    partition = cpwl.subdivide(net, box(dim), progress=False)
    assert partition.num_cells == cells
    assert len(pattern_set(partition)) == cells
    assert partition.status.exact
    assert partition.status.arbitrated <= cells // 1000


def test_more_columns_than_a_word_has_bits_make_a_grid() -> None:
    planes = [30, 25, 15]
    rows = [
        row for row, count in zip(np.eye(3).tolist(), planes, strict=True) for _ in range(count)
    ]
    bias = [x for count in planes for x in np.linspace(-0.9, 0.87, count)]
    order = RNG.permutation(sum(planes))
    made = refined(one_layer([rows[i] for i in order], [bias[i] for i in order]), box(3, 1.0))
    lattice = made.lattice
    assert counts(lattice)[0] == math.prod(n + 2 for n in planes)
    assert counts(lattice)[3] == math.prod(n + 1 for n in planes)
    assert lattice.patterns.shape[1] == 2
    assert len(np.unique(pieces(made), axis=0)) == counts(lattice)[3]
    inner = lattice.facet_bit[lattice.facet_bit >= 0]
    assert (np.bincount(made.bit_unit[inner]) > 0).all()


# --- against the engine of the plane -----------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dim", [1, 2])
def test_generic_networks_agree_with_the_engine_of_the_plane(dim: int, seed: int) -> None:
    net = capture(random_network(seed, (12, 9, 7), (RELU, hardtanh(), ABS), dim))
    _assert_same_partition(net, box(dim, 3.0))


def test_wide_layers_agree_with_the_engine_of_the_plane() -> None:
    _assert_same_partition(capture(random_network(1, (90, 70), dim=2)), box(2, 0.5))


@pytest.mark.parametrize("units", [Pool(2), Pool(5), WAVE])
@pytest.mark.parametrize("dim", [1, 2])
def test_pools_and_waves_agree_with_the_engine_of_the_plane(dim: int, units) -> None:
    net = capture(random_network(3, (4, 3, 3), (units, RELU, Pool(3)), dim))
    _assert_same_partition(net, box(dim, 2.0))


def test_polygons_agree_with_the_engine_of_the_plane() -> None:
    net = capture(random_network(2, (10, 8), dim=2))
    corners_ = [[0.0, -2.0], [2.0, 0.0], [1.0, 2.0], [-1.5, 1.5], [-2.0, -1.0]]
    _assert_same_partition(net, cpwl.polygon(corners_))


def _assert_same_partition(net: cpwl.Network, domain: cpwl.Domain) -> None:
    """Compare patterns, vertices, and the facets by the patterns on their two sides."""
    made = refined(net, domain)
    assert_sound(made.lattice)
    partition = cpwl.subdivide(net, domain, progress=False)
    mine, theirs = pieces(made), partition.pieces()
    order, their_order = (np.lexsort(x.T) for x in (mine, theirs))
    assert np.array_equal(mine[order], theirs[their_order])
    points = made.lattice.points
    assert len(points) == len(partition.points)
    rows, their_rows = (x[np.lexsort(x.round(9).T)] for x in (points, partition.points))
    assert np.abs(rows - their_rows).max() < 1e-9
    sides = named(made.lattice).sides
    units = np.append(made.bit_unit, -1)[np.maximum(made.lattice.facet_bit, -1)]
    found = {
        (_number(mine[a]), _number(mine[b] if b >= 0 else None), int(unit))
        for (a, b), unit in zip(sides, units, strict=True)
    }
    expected = set()
    for (a, b), unit in zip(partition.facet_cells, partition.facet_unit, strict=True):
        pair = [_number(theirs[c] if c >= 0 else None) for c in (a, b)]
        expected |= {(*pair, int(unit)), (*pair[::-1], int(unit))}
    assert found <= expected
    assert len(found) * 2 == len(expected)


def _number(row: NDArray | None) -> bytes:
    return b"" if row is None else row.astype(np.int64).tobytes()


# --- degenerate networks -----------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 3, 4, 5])
def test_networks_without_biases_are_fans(dim: int) -> None:
    rows = RNG.integers(-2, 3, (dim + 3, dim)).astype(float).tolist()
    made = refined(one_layer(rows, [0.0] * len(rows)), box(dim))
    assert_sound(made.lattice)
    origin = np.flatnonzero(np.abs(made.lattice.points).max(axis=1) == 0)
    assert len(origin) == 1
    assert all(origin[0] in row for row in corner_sets(made.lattice, dim))
    # cells come in opposite pairs, with opposite patterns
    own = np.array([any(row) for row in rows])
    found = pieces(made)[:, : len(rows)][:, own]
    assert {tuple(row) for row in found} == {tuple(1 - row) for row in found}


def test_a_deep_network_without_biases_is_a_fan() -> None:
    made = layers_on_box(
        network(
            layer([[1, 0, 0], [0, 1, 0], [-1, 2, 1], [1, 1, -1]], [0] * 4),
            layer([[1, -1, 1, 0], [-2, 1, 1, 1], [0, 1, -1, 2]], [0] * 3),
            layer([[1, -1, 1]], [0], LINEAR),
        ),
        1.0,
    )
    assert_sound(made.lattice)
    assert all(
        np.abs(made.lattice.points[list(row)]).max(axis=1).min() == 0
        for row in corner_sets(made.lattice, 3)
    )


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
def test_equal_opposite_and_parallel_units_cut_slabs(dim: int) -> None:
    row, zero = [1.0] * dim, [0.0] * dim
    rows = [zero, row, [-1.0] * dim, [2.0] * dim, row, row, zero]
    made = refined(one_layer(rows, [0.5, 0, 0, 0, -1, -100, -0.5]), box(dim))
    assert_sound(made.lattice)
    assert counts(made.lattice)[dim] == 3
    assert {tuple(row[:7]) for row in pieces(made).tolist()} == {
        (1, 0, 1, 0, 0, 0, 0),
        (1, 1, 0, 1, 0, 0, 0),
        (1, 1, 0, 1, 1, 0, 0),
    }
    # coinciding knots have the name of the first unit
    bit = made.lattice.facet_bit
    assert sorted(set(made.bit_unit[bit[bit >= 0]].tolist())) == [1, 4]


def test_knots_along_sides_edges_and_corners_of_the_domain_cut_nothing() -> None:
    rows = [[1, 0, 0], [-1, 0, 0], [1, 1, 0], [-1, -1, 0], [1, 1, 1], [-1, -1, -1]]
    made = refined(one_layer(rows, [2, -2, 4, -4, 6, -6]), box(3, 2.0))
    assert counts(made.lattice) == [8, 12, 6, 1]
    assert pieces(made)[:, :6].tolist() == [[1, 0, 1, 0, 1, 0]]


def test_cuts_through_corners_and_along_diagonals() -> None:
    # through the cube's edges and corners: flat faces of every dimension bound the cuts
    rows = [[1, -1, 0], [0, 1, -1], [1, 0, -1], [1, 1, 1], [1, 1, -2]]
    made = refined(one_layer(rows, [0] * 5), box(3, 1.0))
    assert_sound(made.lattice)
    lattice = made.lattice
    near = np.linalg.norm(lattice.points - [1.0, 1.0, 1.0], axis=1)
    assert (near < 1e-9).sum() == 1
    assert len(np.unique(pieces(made), axis=0)) == counts(lattice)[3]


def test_units_that_vanish_on_whole_cells() -> None:
    made = layers_on_box(
        network(
            layer(np.eye(3).tolist(), [0] * 3),
            layer([[1, -1, 0], [-1, 0, 1], [1, 0, 0], [0, -1, 0]], [0] * 4),
            layer([[1, 1, 1, 1]], [0], LINEAR),
        ),
        2.0,
    )
    assert_sound(made.lattice)
    found = pieces(made)
    dead = (found[:, :2] == 0).all(axis=1)
    assert (found[dead, 3] == 0).all()


@pytest.mark.parametrize("dim", [3, 4])
def test_ties_in_a_pool_are_no_knots(dim: int) -> None:
    # the largest of +-x_i, each twice: a cone over each side of the cube
    rows = [[side * (axis == i) for i in range(dim)] for axis in range(dim) for side in (-1, 1)]
    pool = network(layer([*rows, *rows], [0] * 4 * dim, Pool(4 * dim)), layer([[1]], [0], LINEAR))
    lattice = layers_on_box(pool, 1.0).lattice
    assert_sound(lattice)
    assert counts(lattice)[dim] == 2 * dim
    assert counts(lattice)[0] == 2**dim + 1
    # the cones' facets, and the sides of the cube, each in one piece
    ridges = 2**2 * math.comb(dim, 2)
    assert counts(lattice)[dim - 1] == ridges + 2 * dim


def test_cells_behind_pools_are_cut_as_any_other() -> None:
    made = layers_on_box(random_network(5, (3, 4, 2), (Pool(5), RELU, Pool(2)), 3), 2.0)
    assert_sound(made.lattice)
    assert made.undecided == 0


def test_waves_have_all_their_knots() -> None:
    made = layers_on_box(
        network(layer(np.eye(3).tolist(), [0.25] * 3, WAVE), layer([[1] * 3], [0], LINEAR)), 4.0
    )
    assert_sound(made.lattice)
    assert counts(made.lattice)[3] == 9**3


# --- points ------------------------------------------------------------------------------------


def test_nearly_parallel_planes_meet_where_they_do() -> None:
    tilt = 2.0**-40
    rows = [[1.0, 1.0, 0.0], [1.0, 1.0 + tilt, tilt], [1.0, -1.0, 0.0]]
    made = refined(one_layer(rows, [0.0, -0.3 * tilt, -0.1]), box(3, 1.0))
    assert_sound(made.lattice)
    points = made.lattice.points
    # x + y = 0 and y + z = 0.3 and x - y = 0.1
    exact = np.array([0.05, -0.05, 0.35])
    assert np.linalg.norm(points - exact, axis=1).min() < 1e-14
    assert made.lattice.error.max() < 1e-4


@pytest.mark.parametrize("radius", [1e5, 1e30, 1e300])
def test_the_size_of_the_domain_adds_nothing(radius: float) -> None:
    # far out, vertices near the origin are known to no digit, and their order along a line neither
    net = capture(random_network(0, (8, 6), dim=3))
    far, near = (refined(net, box(3, r)) for r in (radius, 1e4))
    assert_sound(far.lattice)
    assert counts(far.lattice) == counts(near.lattice)
    assert {tuple(row) for row in pieces(far)} == {tuple(row) for row in pieces(near)}
    sorted_, expected = (np.sort(np.abs(x.lattice.points).max(axis=1)) for x in (far, near))
    inside = expected < 1e4
    assert np.allclose(sorted_[: inside.sum()], expected[inside], rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    ("dim", "widths"), [(1, (9,) * 5), (2, (8,) * 6), (3, (10, 8, 6)), (3, (6,) * 8), (4, (6,) * 4)]
)
def test_errors_are_bounded(dim: int, widths: tuple[int, ...]) -> None:
    net = capture(random_network(7, widths, (RELU, leaky(-0.5)), dim))
    made, arbiter = arbitrated(net, box(dim, 1.0))
    lattice = made.lattice
    some = RNG.permutation(len(lattice.points))[:200]
    some = np.append(some, np.argsort(lattice.error)[-30:])
    off = np.linalg.norm(lattice.points[some] - arbiter.points(lattice.names[some]), axis=1)
    assert (off <= lattice.error[some]).all()
    assert (off <= 4 * lattice.likely[some]).all()
    assert off.max() < 1e-11


@pytest.mark.parametrize("near", [1e-3, 1e-6, 1e-9])
def test_coordinates_are_good_where_columns_cancel(near: float) -> None:
    rng = np.random.default_rng(0)
    rows, bias = rng.normal(size=(4, 3)), rng.normal(size=4)
    twins = rows + near * rng.normal(size=(4, 3)), bias + near * rng.normal(size=4)
    second = rng.normal(size=(5, 4))
    against = -second * (1 + near * rng.normal(size=(5, 4)))
    layers = network(
        layer(np.vstack([rows, twins[0]]).tolist(), [*bias, *twins[1]]),
        layer(np.hstack([second, against]).tolist(), (near * rng.normal(size=5)).tolist()),
        layer([[1] * 5], [0], LINEAR),
    )
    made, arbiter = arbitrated(capture(layers), box(3))
    assert_sound(made.lattice)
    off = np.abs(made.lattice.points - arbiter.points(made.lattice.names)).max(axis=1)
    assert off.max() < 1e-10
    assert (off <= made.lattice.error).all()


# --- what cannot be proven, or does not fit ----------------------------------------------------


class _Nobody:
    """A judge that decides nothing."""

    exact = False

    def add(self, *args):
        raise AssertionError

    signs = points = add


def _cut_by_noise(noise: float, seed: int, dim: int) -> tuple[Lattice, int, int]:
    """Cut a box by random planes whose values are off by as much as may be off."""
    rng = np.random.default_rng(seed)
    domain = box(dim, 1.0)
    lattice = whole(domain, Vertices(domain.corners, np.zeros(2**dim), np.arange(2**dim)))
    normals, offsets = rng.normal(size=(12, dim)), rng.uniform(-0.3, 0.3, 12)
    undecided = broken = 0
    for stage in range(4):
        mine = slice(3 * stage, 3 * stage + 3)
        values = lattice.points @ normals[mine].T - offsets[mine]
        values += rng.uniform(-noise, noise, values.shape)
        slopes, slack = np.linalg.norm(normals[mine], axis=1), np.full(3, noise)
        columns = Columns(
            stage=stage, unit=np.arange(3), knot=np.zeros(3), slack=slack, lipschitz=slopes,
            tolerance=np.zeros(3), noise=slack,
        )  # fmt: skip
        made = split(lattice, values, columns, _Nobody().points, _Nobody(), 2**30)
        lattice = made.lattice
        undecided += made.undecided
        broken += made.broken
    return lattice, undecided, broken


@pytest.mark.parametrize("dim", [2, 3, 4])
def test_inconsistent_signs_leave_cells_whole_but_break_nothing(dim: int) -> None:
    found = []
    for seed in range(12):
        lattice, undecided, broken = _cut_by_noise(0.3, seed, dim)
        assert_sound(lattice, flat=False)
        assert undecided > 0
        found.append(broken)
    assert max(found) > 0


def test_networks_out_of_reach_of_rational_arithmetic_are_cut_all_the_same() -> None:
    layers = random_network(2, (9, 8, 7, 6), dim=3)
    net = capture(layers)
    proven = cpwl.subdivide(net, box(3, 1.0), progress=False)
    net = replace(net, matrices=read_matrices(net.program, most_entries=10))
    assert not net.matrices.complete
    partition = cpwl.subdivide(net, box(3, 1.0), progress=False)
    assert pattern_set(partition) == pattern_set(proven)
    assert partition.status.complete
    assert partition.status.arbitrated == partition.status.broken == 0
    assert not partition.status.exact


def test_networks_that_overflow_are_refused() -> None:
    rows = (1e3 * np.eye(3)).tolist()
    net = capture(network(*(layer(rows, [0] * 3) for _ in range(3)), layer([[1] * 3], [0], LINEAR)))
    text = "Expected finite pre-activations on the whole domain, got inf or NaN"
    with pytest.raises(FloatingPointError, match=text):
        cpwl.subdivide(net, box(3, 1e303), progress=False)


def test_consistent_signs_need_nobody() -> None:
    lattice, undecided, broken = _cut_by_noise(0.0, 0, 3)
    assert_sound(lattice)
    assert undecided == broken == 0


@pytest.mark.parametrize("dim", [2, 3])
def test_a_memory_too_small_gives_the_stages_that_fit(dim: int) -> None:
    layers = random_network(0, (9, 9, 9), dim=dim)
    sum_up = layer([[1] * 9], [0], LINEAR)
    parts = [layers_on_box(network(*layers[:n], sum_up), 1.0).lattice for n in (1, 2, 3)]
    before = [1, *(counts(part)[dim] for part in parts)]
    found = []
    for memory in 2 ** np.arange(11, 22, 0.5):
        made = layers_on_box(layers, 1.0, int(memory))
        assert counts(made.lattice)[dim] == before[made.stages]
        assert made.needed == 0 if made.stages == 3 else made.needed > memory - nbytes(made.lattice)
        found.append(made.stages)
    assert found == sorted(found)
    assert len(set(found)) >= 3


def test_partitions_that_do_not_fit_say_so() -> None:
    net = capture(random_network(0, (12, 12, 12), dim=3))
    partition = cpwl.subdivide(net, box(3, 1.0), memory=2**17, progress=False)
    status = partition.status
    assert not status.complete
    assert not status.exact
    assert status.stages < 3
    assert status.needed > 2**17
    assert "INCOMPLETE" in repr(partition)
    assert "complete=False" in partition._repr_html_()


def test_the_work_takes_no_more_memory_than_it_may() -> None:
    net = capture(random_network(0, (16, 16), dim=3))
    cpwl.subdivide(net, box(3, 0.1), progress=False)  # compiles
    full, most = _traced(net, 2**31)
    assert full.status.complete
    seen = set()
    for share in (1.0, 0.7, 0.5, 0.3, 0.1):
        memory = int(share * most)
        partition, peak = _traced(net, memory)
        assert peak <= 1.1 * memory + 2**18
        seen.add(partition.status.stages)
        if partition.status.stages == 1:
            assert most / 3 < partition.status.needed < 3 * most
    assert seen >= {1, 2}


def _traced(net: cpwl.Network, memory: int) -> tuple[cpwl.Partition, int]:
    """Subdivide a cube, and return the most bytes that were held at once."""
    tracemalloc.start()
    try:
        partition = cpwl.subdivide(net, box(3), memory=memory, progress=False)
        return partition, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# --- the partition -----------------------------------------------------------------------------


def test_partitions_name_corners_facets_and_sides() -> None:
    partition = cpwl.subdivide(
        capture(random_network(4, (6, 4), dim=3)), box(3, 1.0), progress=False
    )
    assert [len(level.offsets) - 1 for level in partition.skeleton] == [
        len(partition.edges),
        partition.num_facets,
    ]
    cells = _rows(partition.cell_offsets, partition.cell_corners)
    facets = _rows(partition.facet_offsets, partition.facet_corners)
    for row in (*cells, *facets, *_rows(partition.cell_facet_offsets, partition.cell_facets)):
        assert (np.diff(row) > 0).all()
    found = partition.pieces()
    for cell, row in enumerate(_rows(partition.cell_facet_offsets, partition.cell_facets)):
        assert set(np.concatenate([facets[i] for i in row])) == set(cells[cell])
        assert (partition.facet_cells[row] == cell).any(axis=1).all()
    for (a, b), unit in zip(partition.facet_cells, partition.facet_unit, strict=True):
        if unit < 0:
            assert b == -1
        else:
            assert found[b, unit] == found[a, unit] + 1
            assert (found[a] != found[b]).sum() == 1


def _rows(offsets: NDArray[np.int64], items: NDArray[np.int32]) -> list[NDArray[np.int32]]:
    return np.split(items, offsets[1:-1])


# --- kernels -----------------------------------------------------------------------------------


def test_kernels_agree_with_their_python(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = network(
        layer([[1, -1, 0], [0, 1, -1], [1, 1, 1], [0.3, -0.7, 0.2], [1, 1, 1]], [0, 0, 0, 0.1, 0]),
        layer([[1, -1, 0.5, 1, 0], [1, 1, -1, 0, 1]], [-0.2, 0.1]),
        layer([[1, 1]], [0], LINEAR),
    )
    compiled = layers_on_box(layers, 1.0)
    found = named(compiled.lattice)
    noisy = _cut_by_noise(0.3, 1, 3)
    swapped = [
        (file, name, f)
        for file in (kernels, lattice_kernels)
        for name, f in vars(file).items()
        if hasattr(f, "py_func")
    ]
    assert len(swapped) > 10
    for file, name, f in swapped:
        monkeypatch.setattr(file, name, inspect.unwrap(f.py_func))
    for mine, theirs in (
        (layers_on_box(layers, 1.0).lattice, compiled.lattice),
        (_cut_by_noise(0.3, 1, 3)[0], noisy[0]),
    ):
        for name, value in vars(mine).items():
            other = getattr(theirs, name)
            if name == "faces":
                assert all(
                    np.array_equal(x, y)
                    for a, b in zip(value, other, strict=True)
                    for x, y in zip(a, b, strict=True)
                )
            else:
                assert np.array_equal(value, other), name
    again = named(compiled.lattice)
    for a, b in zip(found, again, strict=True):
        pairs = zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]
        assert all(np.array_equal(x, y) for x, y in pairs)
