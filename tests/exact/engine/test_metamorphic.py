"""What must not change when a network or a domain is rewritten, in the plane and above."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from numpy.typing import NDArray
from oracles.bodies import Body, cube
from oracles.layers import ABS, RELU, Layer, hardtanh, leaky
from scipy.optimize import linear_sum_assignment
from support.agreement import assert_checked, capture, layer_of
from support.strategies import (
    SCALARS,
    Architecture,
    degenerate_networks,
    generic_networks,
    nightly,
    ordinary,
    some_architectures,
)

import cpwl

Key = tuple[int, ...]

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(rule: Callable[[int, st.DataObject], None]) -> Callable[..., None]:
    """Return a test of a rule in two to four dimensions, on a few networks or, by night, on many.

    A seed has no smaller one, and looking for smaller architectures is slow.
    """

    @pytest.mark.parametrize("dim", [2, 3, 4])
    @pytest.mark.parametrize(
        "profile",
        [ordinary(6), pytest.param(nightly(60), marks=pytest.mark.nightly)],
        ids=["few", "many"],
    )
    def test(dim: int, profile: settings) -> None:
        @settings(profile, phases=[Phase.explicit, Phase.generate])
        @given(st.data())
        def holds(data: st.DataObject) -> None:
            rule(dim, data)

        holds()

    return test


def chains(dim: int) -> st.SearchStrategy[Architecture]:
    """No skips and no pools: a pool is no bag of units that can be permuted one by one."""
    if dim == 2:
        return some_architectures(6, dim, SCALARS, skips=False)
    few = (RELU, hardtanh(), ABS, leaky(Fraction(1, 4)), RELU)
    return some_architectures(5, dim, few, 4 if dim == 3 else 3, skips=False)


def networks(shapes: st.SearchStrategy[Architecture]) -> st.SearchStrategy[tuple[Layer, ...]]:
    return st.one_of(degenerate_networks(shapes), generic_networks(shapes))


def subdivide(layers: tuple[Layer, ...], body: Body | None = None) -> cpwl.Partition:
    domain = (body or cube(len(layers[0].weight[0]))).domain()
    partition = cpwl.subdivide(capture(layers), domain, progress=False)
    assert_checked(partition)
    return partition


def units_of_first_layer(partition: cpwl.Partition) -> NDArray[np.int64]:
    assert partition.network is not None
    groups = partition.network.groups
    return np.arange(groups[0].shape[0] if groups and layer_of(groups[0].name) == 0 else 0)


def assert_same_cells(
    a: cpwl.Partition,
    b: cpwl.Partition,
    of_b: NDArray[np.int64] | None = None,
    turned: NDArray[np.float64] | None = None,
) -> None:
    """Compare cells by pattern: volumes, vertices, facets and neighbours.

    `of_b` are the units of b in the order of a's, and `turned` takes points of a to points of b.
    """
    pieces_b = b.pieces() if of_b is None else b.pieces()[:, of_b]
    keys = [[tuple(row) for row in pieces.tolist()] for pieces in (a.pieces(), pieces_b)]
    assert sorted(keys[0]) == sorted(keys[1])
    assert len(set(keys[0])) == len(keys[0])
    ours, theirs = (
        dict(zip(key, cpwl.volumes(p), strict=True)) for key, p in zip(keys, (a, b), strict=True)
    )
    for key, volume in ours.items():
        assert abs(theirs[key] - volume) <= 1e-9 * volume + 1e-13 * a.domain.volume
    assert neighbours(a, keys[0]) == neighbours(b, keys[1])
    left, right = vertices(a, keys[0]), vertices(b, keys[1])
    assert left.keys() == right.keys()
    for key, points in left.items():
        here = points if turned is None else points @ turned.T
        distance = np.abs(here[:, None] - right[key]).max(axis=-1)
        assert len(distance) == len(distance[0])
        assert distance[linear_sum_assignment(distance)].max() < 1e-9


def neighbours(partition: cpwl.Partition, keys: list[Key]) -> dict[frozenset[Key], int]:
    """Count the facets between any two cells, and on the boundary of each."""
    found: dict[frozenset[Key], int] = defaultdict(int)
    for pair in partition.facet_cells.tolist():
        found[frozenset(keys[cell] for cell in pair if cell >= 0)] += 1
    return found


def vertices(partition: cpwl.Partition, keys: list[Key]) -> dict[frozenset[Key], NDArray]:
    """Return the points that belong to the same cells, by these cells."""
    held: list[set[Key]] = [set() for _ in partition.points]
    for key, corners in zip(
        keys, np.split(partition.cell_corners, partition.cell_offsets[1:-1]), strict=True
    ):
        for vertex in corners:
            held[vertex].add(key)
    found = defaultdict(list)
    for point, cells in zip(partition.points, held, strict=True):
        found[frozenset(cells)].append(point)
    return {key: np.array(points) for key, points in found.items()}


@drawn
def test_the_order_of_units_does_not_matter(dim: int, data) -> None:
    layers = data.draw(networks(chains(dim)))
    one, behind = layers[0], layers[1]
    order = data.draw(st.permutations(range(one.width)))
    changed = replace(
        one,
        weight=tuple(one.weight[i] for i in order),
        bias=tuple(one.bias[i] for i in order),
    )
    columns = tuple(tuple(row[i] for i in order) for row in behind.weight)
    b = subdivide((changed, replace(behind, weight=columns), *layers[2:]))
    units = np.arange(len(b.unit_base))
    first = units_of_first_layer(b)
    units[first] = np.argsort(order)[: len(first)]
    assert_same_cells(subdivide(layers), b, units)


@drawn
def test_a_power_of_two_on_a_row_does_not_move_its_knot(dim: int, data) -> None:
    relus = some_architectures(3, dim, (RELU,), 5 - dim // 2, skips=False)
    layers = data.draw(networks(relus))
    row = data.draw(st.integers(0, layers[0].width - 1))
    factor = data.draw(st.sampled_from([Fraction(1, 64), Fraction(1024), Fraction(2) ** -300]))
    one, behind = layers[0], layers[1]
    weight, bias = list(one.weight), list(one.bias)
    weight[row] = tuple(x * factor for x in weight[row])
    bias[row] *= factor
    # the next layer undoes it exactly
    columns = tuple(
        tuple(x / factor if i == row else x for i, x in enumerate(r)) for r in behind.weight
    )
    scaled = replace(one, weight=tuple(weight), bias=tuple(bias))
    b = subdivide((scaled, replace(behind, weight=columns), *layers[2:]))
    assert_same_cells(subdivide(layers), b)


@drawn
def test_a_duplicated_unit_adds_nothing(dim: int, data) -> None:
    layers = data.draw(networks(chains(dim)))
    one, behind = layers[0], layers[1]
    row = data.draw(st.integers(0, one.width - 1))
    doubled = replace(one, weight=(*one.weight, one.weight[row]), bias=(*one.bias, one.bias[row]))
    # the copy is read with weight 0, or half of the original's weight goes to it
    halve = data.draw(st.booleans())
    columns = []
    for r in behind.weight:
        half = r[row] / 2 if halve else Fraction(0)
        columns.append((*(x - half if i == row else x for i, x in enumerate(r)), half))
    b = subdivide((doubled, replace(behind, weight=tuple(columns)), *layers[2:]))
    units = np.arange(len(b.unit_base))
    copies = units_of_first_layer(b)[-1:]
    np.testing.assert_array_equal(b.pieces()[:, copies], b.pieces()[:, row : row + len(copies)])
    assert_same_cells(subdivide(layers), b, np.delete(units, copies))


@drawn
def test_halves_of_the_domain_glue_to_the_whole(dim: int, data) -> None:
    layers = data.draw(networks(chains(dim)))
    cut = data.draw(st.sampled_from([0.0, 0.5, -1.25]))
    whole = subdivide(layers)
    low, high = (-2.0,) * dim, (2.0,) * dim
    left = subdivide(layers, Body("box", (low, (cut, *high[1:]))))
    right = subdivide(layers, Body("box", ((cut, *low[1:]), high)))
    glued: dict[Key, float] = defaultdict(float)
    for part in (left, right):
        for pattern, volume in zip(part.pieces().tolist(), cpwl.volumes(part), strict=True):
            glued[tuple(pattern)] += volume
    exact = dict(zip(map(tuple, whole.pieces().tolist()), cpwl.volumes(whole), strict=True))
    assert glued.keys() == exact.keys()
    for pattern, volume in exact.items():
        assert abs(glued[pattern] - volume) < 1e-11 * 4**dim
    crossing = left.num_cells + right.num_cells - whole.num_cells
    spans = [
        x.min() < cut - 1e-9 and x.max() > cut + 1e-9
        for x in np.split(whole.points[whole.cell_corners, 0], whole.cell_offsets[1:-1])
    ]
    assert crossing == sum(spans)


@drawn
def test_turning_the_domain_with_the_network_turns_the_cells(dim: int, data) -> None:
    # the axes permuted, some of them turned round: the cube is its own image, W reads R^-1
    layers = data.draw(networks(chains(dim)))
    axes = data.draw(st.permutations(range(dim)))
    signs = data.draw(st.lists(st.sampled_from((-1, 1)), min_size=dim, max_size=dim))
    weight = tuple(
        tuple(sign * row[axis] for sign, axis in zip(signs, axes, strict=True))
        for row in layers[0].weight
    )
    b = subdivide((replace(layers[0], weight=weight), *layers[1:]))
    turned = np.zeros((dim, dim))
    turned[np.arange(dim), axes] = signs
    assert_same_cells(subdivide(layers), b, turned=turned)
