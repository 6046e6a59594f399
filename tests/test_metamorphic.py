"""What must not change when a network or a domain is rewritten."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
from agreement import assert_checked, capture
from bodies import domain_of
from hypothesis import given
from layers import RELU, Layer
from strategies import BOX, degenerate_networks, generic_networks, ordinary, some_architectures
from torch import set_num_threads

import cpwl

SETTINGS = ordinary(20)
# a pool is no bag of units that can be permuted one by one
CHAINS = some_architectures(6, skips=False)
RELUS = some_architectures(3, units=(RELU,), skips=False)
NETWORKS = st.one_of(degenerate_networks(CHAINS), generic_networks(CHAINS))


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    set_num_threads(1)


def subdivide(layers: tuple[Layer, ...], corners=BOX) -> cpwl.Partition:
    partition = cpwl.subdivide(capture(layers), domain_of(corners), progress=False)
    assert_checked(partition)
    return partition


def centres(partition: cpwl.Partition) -> np.ndarray:
    sums = np.add.reduceat(partition.points[partition.cell_corners], partition.cell_offsets[:-1])
    return sums / np.diff(partition.cell_offsets)[:, None]


def assert_same_cells(a: cpwl.Partition, b: cpwl.Partition) -> None:
    """Compare counts, centres and volumes, in any order of cells."""
    assert a.num_cells == b.num_cells
    assert len(a.points) == len(b.points)
    assert len(a.facet_points) == len(b.facet_points)
    order = [np.lexsort(np.round(centres(p), 7).T) for p in (a, b)]
    for quantity in (centres, cpwl.volumes):
        ours, theirs = (quantity(p)[o] for p, o in zip((a, b), order, strict=True))
        np.testing.assert_allclose(ours, theirs, atol=1e-8)


def permute(layers: tuple[Layer, ...], place: int, order: list[int]) -> tuple[Layer, ...]:
    """Permute the units of one layer, and the columns of the next."""
    one, behind = layers[place], layers[place + 1]
    changed = list(layers)
    changed[place] = replace(
        one,
        weight=tuple(one.weight[i] for i in order),
        bias=tuple(one.bias[i] for i in order),
    )
    columns = tuple(tuple(row[i] for i in order) for row in behind.weight)
    changed[place + 1] = replace(behind, weight=columns)
    return tuple(changed)


@SETTINGS
@given(NETWORKS, st.data())
def test_the_order_of_units_does_not_matter(layers, data) -> None:
    order = data.draw(st.permutations(range(layers[0].width)))
    assert_same_cells(subdivide(layers), subdivide(permute(layers, 0, order)))


@SETTINGS
@given(
    st.one_of(degenerate_networks(RELUS), generic_networks(RELUS)),
    st.sampled_from([Fraction(1, 64), Fraction(3), Fraction(1024)]),
    st.data(),
)
def test_a_positive_factor_on_a_row_does_not_move_its_knot(layers, factor, data) -> None:
    row = data.draw(st.integers(0, layers[0].width - 1))
    one = layers[0]
    weight, bias = [list(r) for r in one.weight], list(one.bias)
    # what float64 rounds in the product would be another network
    if any(Fraction(float(x * factor)) != x * factor for x in (*weight[row], bias[row])):
        factor = Fraction(2)
    weight[row] = [x * factor for x in weight[row]]
    bias[row] *= factor
    scaled = replace(one, weight=tuple(map(tuple, weight)), bias=tuple(bias))
    first = layers[1]
    # a power of two is undone exactly in the next layer; other factors: leave that layer out
    if factor.numerator == 1 or factor.numerator & (factor.numerator - 1) == 0:
        columns = tuple(
            tuple(x / factor if i == row else x for i, x in enumerate(r)) for r in first.weight
        )
        changed = (scaled, replace(first, weight=columns), *layers[2:])
        a, b = subdivide(layers), subdivide(changed)
        np.testing.assert_array_equal(a.pieces(), b.pieces())
    else:
        a, b = subdivide(layers[:1]), subdivide((scaled,))
    assert_same_cells(a, b)


@SETTINGS
@given(NETWORKS, st.data())
def test_a_duplicated_unit_adds_nothing(layers, data) -> None:
    one, behind = layers[0], layers[1]
    row = data.draw(st.integers(0, one.width - 1))
    doubled = replace(one, weight=(*one.weight, one.weight[row]), bias=(*one.bias, one.bias[row]))
    # the copy is read with weight 0, or half of the original's weight goes to it
    halve = data.draw(st.booleans())
    columns = []
    for r in behind.weight:
        half = r[row] / 2 if halve else Fraction(0)
        columns.append((*(x - half if i == row else x for i, x in enumerate(r)), half))
    changed = (doubled, replace(behind, weight=tuple(columns)), *layers[2:])
    a, b = subdivide(layers), subdivide(changed)
    assert_same_cells(a, b)


@SETTINGS
@given(NETWORKS, st.sampled_from([0.0, 0.5, -1.25]))
def test_halves_of_the_domain_glue_to_the_whole(layers, cut: float) -> None:
    whole = subdivide(layers)
    left = subdivide(layers, ((-2.0, -2.0), (cut, -2.0), (cut, 2.0), (-2.0, 2.0)))
    right = subdivide(layers, ((cut, -2.0), (2.0, -2.0), (2.0, 2.0), (cut, 2.0)))
    glued: dict[tuple, float] = {}
    for part in (left, right):
        for pattern, volume in zip(part.pieces().tolist(), cpwl.volumes(part), strict=True):
            glued[tuple(pattern)] = glued.get(tuple(pattern), 0.0) + volume
    exact = dict(zip(map(tuple, whole.pieces().tolist()), cpwl.volumes(whole), strict=True))
    assert glued.keys() == exact.keys()
    for pattern, volume in exact.items():
        assert abs(glued[pattern] - volume) < 1e-8
    crossing = left.num_cells + right.num_cells - whole.num_cells
    spans = [
        x.min() < cut - 1e-9 and x.max() > cut + 1e-9
        for x in np.split(whole.points[whole.cell_corners, 0], whole.cell_offsets[1:-1])
    ]
    assert crossing == sum(spans)


@SETTINGS
@given(NETWORKS)
def test_turning_the_domain_with_the_network_turns_the_cells(layers) -> None:
    # (x, y) -> (-y, x): the network reads W R^-1, the domain is its own image
    turned = replace(layers[0], weight=tuple((-row[1], row[0]) for row in layers[0].weight))
    a, b = subdivide(layers), subdivide((turned, *layers[1:]))
    assert a.num_cells == b.num_cells
    np.testing.assert_allclose(np.sort(cpwl.volumes(a)), np.sort(cpwl.volumes(b)), atol=1e-8)
    assert {tuple(x) for x in a.pieces().tolist()} == {tuple(x) for x in b.pieces().tolist()}
