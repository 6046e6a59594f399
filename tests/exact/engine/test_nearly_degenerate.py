"""Networks that only exact arithmetic can tell from degenerate ones, and extreme exponents."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from oracles import splitting
from oracles.bodies import Body, bodies, cube, domain_of, exact_of
from oracles.layers import ABS, LINEAR, RELU, Layer, layer, leaky, network
from support.agreement import CLOSE, capture, subdivide_and_compare
from support.strategies import (
    BOX,
    INTERVALS,
    cancelling_network,
    cancelling_networks,
    degenerate_networks,
    generic_networks,
    nearly_degenerate_networks,
    nightly,
    ordinary,
    places,
    shapes,
    some_architectures,
)
from support.sweeps import sweep

import cpwl

pytestmark = pytest.mark.usefixtures("one_thread")


def one_layer(weight: list, bias: list) -> tuple[Layer, ...]:
    """Return a ReLU layer and a linear one behind it."""
    return network(layer(weight, bias), layer([[1] * len(bias)], [0], LINEAR))


@pytest.mark.parametrize(("dim", "examples"), [(1, 12), (2, 20), (3, 15), (4, 6), (5, 4), (6, 3)])
def test_nearly_degenerate_networks_agree_with_the_oracle(dim: int, examples: int) -> None:
    sweep(nearly_degenerate_networks, dim, ordinary(examples), thin=True)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("dim", "examples"), [(1, 200), (2, 400), (3, 300), (4, 100), (5, 60), (6, 30)]
)
def test_many_nearly_degenerate_networks_agree_with_the_oracle(dim: int, examples: int) -> None:
    sweep(nearly_degenerate_networks, dim, nightly(examples), thin=True)


@pytest.mark.parametrize(("dim", "examples"), [(1, 10), (2, 10), (3, 4), (4, 2)])
def test_networks_of_small_differences_agree_with_the_oracle(dim: int, examples: int) -> None:
    differ(dim, ordinary(examples))


@pytest.mark.nightly
@pytest.mark.parametrize(("dim", "examples"), [(1, 200), (2, 200), (3, 60), (4, 20)])
def test_many_networks_of_small_differences_agree(dim: int, examples: int) -> None:
    differ(dim, nightly(examples))


def differ(dim: int, profile: settings) -> None:
    @settings(profile, phases=[Phase.explicit, Phase.generate])
    @given(cancelling_networks(dim), st.sampled_from(INTERVALS if dim == 1 else bodies(dim)))
    def agree(layers, domain) -> None:
        # where knots are all but parallel, vertices and with them volumes are good to CLOSE only
        subdivide_and_compare(layers, domain, thin=True, share=CLOSE)

    agree()


@pytest.mark.parametrize("dim", [3, 4])
def test_vertices_that_cancellation_moves_are_put_back(dim: int, monkeypatch) -> None:
    # float64 puts them 1e-12 off the planes that they are on
    layers, domain = cancelling_network(3, dim), cube(dim)
    subdivide_and_compare(layers, domain, thin=True)
    monkeypatch.setattr(
        "cpwl.engine.enumeration.straightened", lambda lattice, *_, **__: lattice.points
    )
    moved = cpwl.subdivide(capture(layers), domain.domain(), progress=False)
    wrong = {one.name for one in cpwl.check(moved).findings if one.failures}
    assert wrong == {"facets are flat", "cells are convex"}


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize(
    "networks",
    [
        lambda dim: degenerate_networks(shapes(dim)),
        lambda dim: nearly_degenerate_networks(shapes(dim)),
        cancelling_networks,
    ],
)
@pytest.mark.parametrize(
    "profile",
    [ordinary(6), pytest.param(nightly(100), marks=pytest.mark.nightly)],
    ids=["few", "many"],
)
def test_certificates_count_what_the_oracle_counts(networks, dim: int, profile: settings) -> None:
    @settings(profile, phases=[Phase.explicit, Phase.generate])
    @given(networks(dim), places(dim))
    def agree(layers, domain) -> None:
        partition = cpwl.subdivide(capture(layers), domain_of(domain), progress=False)
        proof = cpwl.certify(partition, progress=False)
        cells = splitting.subdivide(layers, exact_of(domain))
        assert proof.cells == len(cells)
        assert proof.area == sum(cell.volume for cell in cells)
        assert proof.points == len({corner for cell in cells for corner in cell.shape.corners})

    agree()


@pytest.mark.parametrize("factor", [3.0, 0.1, 1 / 3, 0.7])
@pytest.mark.parametrize("domain", [BOX, cube(3)])
def test_a_multiple_that_float64_rounds_is_another_unit(factor: float, domain) -> None:
    dim = domain.dim if isinstance(domain, Body) else 2
    row, bias = [0.1, 0.7, -0.3][:dim], 0.2
    multiple = [factor * x for x in row]
    layers = one_layer([row, multiple], [bias, factor * bias])
    rounded = any(
        Fraction(x) * Fraction(bias) != Fraction(y) * Fraction(factor * bias)
        for x, y in zip(multiple, row, strict=True)
    )
    assert rounded
    partition = subdivide_and_compare(layers, domain, thin=True)
    assert partition.num_cells > 2


def test_the_same_multiple_by_a_power_of_two_is_the_same_unit() -> None:
    layers = one_layer([[0.1, 0.7, -0.3], [0.4, 2.8, -1.2]], [0.2, 0.8])
    assert subdivide_and_compare(layers, cube(3)).num_cells == 2


def test_a_line_that_misses_a_crossing_by_one_bit() -> None:
    # the first two cross in (0, 0.3); the third passes there, above or below it
    counts = set()
    for bias in (-0.3, math.nextafter(-0.3, 0), math.nextafter(-0.3, -1)):
        layers = one_layer([[1, 0], [0.1, 1], [1, 1]], [0, -0.3, bias])
        counts.add((bias + 0.3, subdivide_and_compare(layers, BOX, thin=True).num_cells))
    assert sorted(count for _, count in counts) == [6, 7, 7]


def test_planes_that_miss_a_crossing_by_one_bit() -> None:
    for bias, cells in ((-0.3, 14), (math.nextafter(-0.3, 0), 15), (math.nextafter(-0.3, -1), 15)):
        layers = one_layer([[1, 0, 0], [0, 1, 0], [0, 0.1, 1], [1, 1, 1]], [0, 0, -0.3, bias])
        assert subdivide_and_compare(layers, cube(3), thin=True).num_cells == cells


def test_a_unit_that_is_nothing_but_rounding_noise() -> None:
    # 3 relu(r) - relu(fl(3 r)): of the order of 1e-17 on half of the domain, zero on the other
    row, bias = [0.1, 0.7], 0.2
    layers = network(
        layer([row, [3 * x for x in row]], [bias, 3 * bias]),
        layer([[3, -1], [-3, 1]], [0, 0]),
        layer([[1, 1]], [0], LINEAR),
    )
    partition = subdivide_and_compare(layers, BOX, thin=True)
    assert partition.num_cells == len(splitting.subdivide(layers, BOX)) > 2


def test_knots_that_miss_one_another_on_an_interval() -> None:
    layers = one_layer([[3], [1], [0.1]], [-1, -1 / 3, -0.1 / 3])
    partition = subdivide_and_compare(layers, INTERVALS[1], thin=True)
    exact = {Fraction(1, 3), Fraction(1 / 3), Fraction(0.1 / 3) / Fraction(0.1)}
    assert partition.num_cells == len(exact) + 1


# --- exponents ------------------------------------------------------------------------------------

# a positive factor on a unit's row does not move its knot
HOMOGENEOUS = some_architectures(5, 2, (RELU, ABS, leaky(Fraction(1, 4)), leaky(-1)), skips=False)
SOLID = some_architectures(3, 3, (RELU, ABS), skips=False)


def scaled(layers: tuple[Layer, ...], exponents: list[int], undo: bool) -> tuple[Layer, ...]:
    """Multiply the first layer's rows by powers of two, and divide the next one's columns."""
    first, second, *rest = layers
    factors = [Fraction(2) ** e for e, _ in zip(exponents, first.bias, strict=False)]
    weight = [[f * x for x in row] for f, row in zip(factors, first.weight, strict=True)]
    bias = [f * x for f, x in zip(factors, first.bias, strict=True)]
    columns = second.weight
    if undo:
        columns = [[x / f for f, x in zip(factors, row, strict=True)] for row in second.weight]
    return network(
        layer(weight, bias, first.units),
        layer(columns, second.bias, second.units),
        *(layer(x.weight, x.bias, x.units) for x in rest),
    )


def undo_exponents(layers, domain, data) -> None:
    exponents = data.draw(
        st.lists(st.sampled_from((-1000, -400, 0, 300, 900)), min_size=9, max_size=9)
    )
    changed = subdivide_and_compare(scaled(layers, exponents, undo=True), domain)
    assert changed.num_cells == subdivide_and_compare(layers, domain).num_cells


@ordinary(15)
@given(degenerate_networks(HOMOGENEOUS), places(2), st.data())
def test_exponents_that_the_next_layer_undoes(layers, domain, data) -> None:
    undo_exponents(layers, domain, data)


@ordinary(15)
@given(degenerate_networks(SOLID), places(3), st.data())
def test_exponents_that_the_next_layer_undoes_in_space(layers, domain, data) -> None:
    undo_exponents(layers, domain, data)


@ordinary(15)
@given(
    st.one_of(degenerate_networks(HOMOGENEOUS), generic_networks(HOMOGENEOUS)), places(2), st.data()
)
def test_exponents_that_nothing_undoes(layers, domain, data) -> None:
    # what one layer makes tiny or huge meets what it leaves as it was in the next
    exponents = data.draw(
        st.lists(st.sampled_from((-1020, -60, 0, 1, 400)), min_size=9, max_size=9)
    )
    changed = representable(scaled(layers, exponents, undo=False))
    subdivide_and_compare(changed, domain, thin=True, magnitude=2.0**420)


def representable(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Round all numbers to float64, which subnormal products may need."""
    return network(
        *(
            layer(
                [[float(x) for x in row] for row in one.weight],
                [float(x) for x in one.bias],
                one.units,
            )
            for one in layers
        )
    )


@pytest.mark.parametrize("domain", [BOX, cube(3), INTERVALS[0]])
@pytest.mark.parametrize("unit", [2.0**-1060, 1e-310, 5e-324])
def test_subnormal_weights_have_the_knots_of_their_exact_values(domain, unit: float) -> None:
    dim = domain.dim if isinstance(domain, Body) else len(domain[0])
    rows = [[7, 3, -5], [-2, 5, 1], [3, 3, 3], [1, -4, 2]]
    weight = [[x * unit for x in row[:dim]] for row in rows]
    layers = network(
        layer(weight, [unit, -3 * unit, 2 * unit, 0]),
        layer([[1, -1, 2, 1], [2, 1, -1, 0.5]], [-unit, unit]),
        layer([[1, 1]], [0], LINEAR),
    )
    partition = subdivide_and_compare(layers, domain)
    assert partition.num_cells > 4


def test_subnormal_differences_decide() -> None:
    # x - y + 2^-1074 (x + y): the smallest number that there is tilts the knot off the corners
    tiny = 5e-324
    layers = network(
        layer([[1, -1], [1, 1], [-1, -1]], [0, 0, 0]),
        layer([[1, tiny, -tiny], [1, 0, 0]], [0, 0]),
        layer([[1, 1]], [0], LINEAR),
    )
    subdivide_and_compare(layers, BOX, thin=True)


@pytest.mark.parametrize("domain", [BOX, cube(3)])
def test_huge_weights_are_exact_until_float64_overflows(domain) -> None:
    dim = domain.dim if isinstance(domain, Body) else 2
    rows = [[7, 3, -5], [-2, 5, 1], [3, 3, 3]]
    huge = 2.0**400
    body = [
        layer([[x * huge for x in row[:dim]] for row in rows], [huge, 0, -huge]),
        layer([[huge, -huge, 2 * huge], [1, 1, -1]], [-huge, huge]),
    ]
    last = layer([[2.0**-800, 2.0**-400]], [0], LINEAR)
    # next to numbers of 2^800 the second layer's biases are nothing to float64
    assert subdivide_and_compare(network(*body, last), domain, thin=True).num_cells > 3
    far = cube(dim, 2.0**300).domain()
    with pytest.raises(FloatingPointError, match=r"overflows float64.*smaller domain"):
        cpwl.subdivide(capture(network(*body, last)), far, progress=False)
