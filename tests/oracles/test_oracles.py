"""The oracles against one another, against closed forms and against torch."""

from __future__ import annotations

import math
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from oracles import splitting
from oracles.brute import arrangement_cells, feasible_patterns
from oracles.layers import ABS, LINEAR, RELU, WAVE, Pool, hardtanh, layer, network, to_torch
from support.strategies import (
    BOX,
    SCALARS,
    architectures,
    degenerate_networks,
    domains,
    generic_networks,
    ordinary,
    random_network,
)

SETTINGS = ordinary(25)


def _close(exact, computed) -> bool:
    return bool(np.allclose(np.array(exact, dtype=float), computed, rtol=1e-9, atol=1e-9))


@pytest.mark.parametrize("lines", [1, 2, 5, 8])
def test_lines_in_general_position_make_the_count_of_buck(lines: int) -> None:
    # tangents of a parabola: no three concurrent, i and j cross at (-i - j, ij)
    one = layer([[k, 1] for k in range(lines)], [k**2 for k in range(lines)])
    cells = splitting.subdivide(network(one), [(-20, -99), (20, -99), (20, 99), (-20, 99)])
    assert len(cells) == arrangement_cells(lines)
    # every line is cut in `lines` segments by the others
    assert len(splitting.adjacency(cells)) == lines**2


@pytest.mark.parametrize("depth", [1, 3, 6])
def test_a_sawtooth_of_depth_l_has_two_to_the_l_pieces(depth: int) -> None:
    tooth = [layer([[1], [1]], [0, -0.5]), layer([[2, -4]], [0], LINEAR)]
    cells = splitting.subdivide(network(*(tooth * depth)), [(0,), (1,)])
    assert len(cells) == 2**depth
    assert {cell.volume for cell in cells} == {Fraction(1, 2**depth)}
    assert {cell.affine[0][0][0] for cell in cells} == {2**depth, -(2**depth)}
    assert len(splitting.adjacency(cells)) == 2**depth - 1


@SETTINGS
@given(degenerate_networks(architectures(depth=2, width=3, skips=False)), domains(2))
def test_brute_force_finds_the_patterns_of_degenerate_networks(layers, corners) -> None:
    cells = splitting.subdivide(layers, corners)
    assert feasible_patterns(layers, corners) == {cell.pattern for cell in cells}


@SETTINGS
@given(degenerate_networks(architectures(1, depth=2, width=3, skips=False)), domains(1))
def test_brute_force_finds_the_patterns_on_an_interval(layers, corners) -> None:
    cells = splitting.subdivide(layers, corners)
    assert feasible_patterns(layers, corners) == {cell.pattern for cell in cells}


@pytest.mark.parametrize("seed", range(3))
def test_brute_force_finds_the_patterns_of_generic_networks(seed: int) -> None:
    layers = random_network(seed, (5, 3))
    cells = splitting.subdivide(layers, BOX)
    assert feasible_patterns(layers, BOX) == {cell.pattern for cell in cells}


@SETTINGS
@given(
    st.one_of(
        generic_networks(architectures()),
        degenerate_networks(architectures(units=(*SCALARS, Pool(2), Pool(3)))),
    ),
    domains(2),
)
def test_the_cells_are_a_tiling_with_the_maps_of_torch(layers, corners) -> None:
    cells = splitting.subdivide(layers, corners)
    assert sum(cell.volume for cell in cells) == splitting.subdivide((), corners)[0].volume
    assert len({cell.pattern for cell in cells}) == len(cells)
    module = to_torch(layers)
    centres = [[sum(x) / len(x) for x in zip(*cell.corners, strict=True)] for cell in cells]
    with torch.no_grad():
        values = module(torch.tensor([[float(x) for x in c] for c in centres], dtype=torch.float64))
    for cell, centre, value in zip(cells, centres, values, strict=True):
        assert cell.volume > 0
        matrix, offset = cell.affine
        image = [
            sum(a * x for a, x in zip(row, centre, strict=True)) + b
            for row, b in zip(matrix, offset, strict=True)
        ]
        assert _close(image, value)


@SETTINGS
@given(degenerate_networks(architectures(units=(*SCALARS, Pool(2)))), domains(2))
def test_neighbours_agree_on_the_corners_that_they_share(layers, corners) -> None:
    cells = splitting.subdivide(layers, corners)
    for i, j in splitting.adjacency(cells):
        for corner in set(cells[i].corners) & set(cells[j].corners):
            values = []
            for cell in (cells[i], cells[j]):
                matrix, offset = cell.affine
                values.append(
                    [
                        sum(a * x for a, x in zip(row, corner, strict=True)) + b
                        for row, b in zip(matrix, offset, strict=True)
                    ]
                )
            assert values[0] == values[1]


def test_a_pool_of_four_planes_has_one_cell_for_each_winner() -> None:
    pyramid = layer([[1, 0], [-1, 0], [0, 1], [0, -1]], [0] * 4, Pool(4))
    cells = splitting.subdivide(network(pyramid), BOX)
    assert sorted(cell.pattern for cell in cells) == [(0,), (1,), (2,), (3,)]
    assert {cell.volume for cell in cells} == {Fraction(4)}
    assert len(splitting.adjacency(cells)) == 4


def test_a_pool_whose_rows_coincide_is_won_by_the_first() -> None:
    tied = layer([[1, 0], [1, 0], [0, 0]], [0] * 3, Pool(3))
    cells = splitting.subdivide(network(tied), BOX)
    assert sorted(cell.pattern for cell in cells) == [(0,), (2,)]


def test_a_periodic_unit_is_cut_at_every_period() -> None:
    cells = splitting.subdivide(network(layer([[1]], [0], WAVE)), [(-2.5,), (2.5,)])
    assert [cell.pattern for cell in cells] == [(-3,), (-2,), (-1,), (0,), (1,), (2,)]
    for cell in cells:
        (((slope,),), (offset,)) = cell.affine
        middle = (cell.corners[0][0] + cell.corners[1][0]) / 2
        assert slope * middle + offset == abs(middle % 2 - 1)


def test_units_that_vanish_on_a_cell_sit_on_the_lower_piece() -> None:
    layers = network(layer([[1, 0]], [0]), layer([[1], [-1], [0]], [0, 0, 0]))
    cells = splitting.subdivide(layers, BOX)
    assert {cell.pattern for cell in cells} == {(0, 0, 0, 0), (1, 1, 0, 0)}


def test_two_breakpoints_make_three_pieces() -> None:
    cells = splitting.subdivide(network(layer([[2, 0], [0, 1]], [0, 5], hardtanh())), BOX)
    assert [cell.pattern for cell in cells] == [(0, 2), (1, 2), (2, 2)]
    assert [cell.volume for cell in cells] == [6, 4, 6]


def test_an_embedding_takes_the_slice_into_the_latent_space() -> None:
    # the line (x, 1 - x, 2): the second unit's knot lies at x = 1/3
    one = layer([[1, 0, 0], [-2, 1, 0]], [0, 0], RELU)
    cells = splitting.subdivide(network(one), [(-1,), (1,)], [(1, 0), (-1, 1), (0, 2)])
    assert sorted(cell.corners[1][0] for cell in cells) == [0, Fraction(1, 3), 1]
    assert cells[0].affine == (((0,), (-3,)), (0, 1))


def test_a_description_that_float64_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="float64 represents exactly"):
        to_torch(network(layer([[Fraction(1, 3)]], [0], ABS)))


def test_the_count_of_buck_takes_the_crossings_inside() -> None:
    assert arrangement_cells(4, crossings=0) == 5
    assert arrangement_cells(4) == 1 + 4 + math.comb(4, 2)
