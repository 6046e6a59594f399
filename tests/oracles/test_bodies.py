"""Domains against the rational oracle: corners, sides and volumes of bodies of any dimension."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from oracles import polytopes
from oracles.bodies import Body, bodies
from oracles.homogeneous import homogeneous
from support.strategies import ordinary

import cpwl


def assert_same_body(domain: cpwl.Domain, exact: polytopes.Polytope) -> None:
    """Compare corners and sides exactly, the volume up to its rounding."""
    corners = [homogeneous(corner) for corner in domain.exact_corners]
    assert len(set(corners)) == len(corners)
    assert set(corners) == set(exact.corners)
    sides = [frozenset(corners[i] for i in side) for side in domain.sides]
    assert len(set(sides)) == len(sides)
    assert set(sides) == exact.faces(exact.dim - 1)
    assert all(list(side) == sorted(side) for side in domain.sides)
    rounded = [[float(x) for x in corner] for corner in domain.exact_corners]
    np.testing.assert_array_equal(domain.corners, rounded)
    assert domain.volume == float(exact.volume)


@pytest.mark.parametrize(
    "body",
    [body for dim in range(2, 7) for body in bodies(dim)],
    ids=lambda body: f"{body.kind}-{body.dim}",
)
def test_the_bodies_of_the_sweeps_are_what_the_oracle_cuts(body: Body) -> None:
    assert_same_body(body.domain(), body.exact())


@st.composite
def half_spaces(draw: st.DrawFn) -> Body:
    """Small integer rows in any number and order, many of them redundant, inside of a cube."""
    dim = draw(st.integers(1, 5))
    numbers = st.lists(st.integers(-2, 2), min_size=dim, max_size=dim)
    count = draw(st.integers(0, 6 if dim < 5 else 3))
    bounds = st.sampled_from((1.0, 2.0, 3.0, 1 / 3, 0.1))
    rows = [tuple(map(float, (*draw(numbers), draw(bounds)))) for _ in range(count)]
    for axis in range(dim):
        for side in (-1.0, 1.0):
            rows.append((*(side * (axis == i) for i in range(dim)), draw(bounds)))
    return Body("half-spaces", tuple(draw(st.permutations(rows))))


@ordinary(60)
@given(half_spaces())
def test_half_spaces_make_the_body_of_the_oracle(body: Body) -> None:
    assert_same_body(body.domain(), body.exact())


@ordinary(30)
@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_simplices_are_exact(dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.integers(-3, 4, size=(dim + 1, dim)) * rng.choice((1.0, 0.1, 1 / 3))
    body = Body("simplex", tuple(map(tuple, corners.tolist())))
    points = [homogeneous(corner) for corner in body.rows]
    if polytopes.determinant(points):
        assert_same_body(body.domain(), body.exact())
    else:
        with pytest.raises(ValueError, match=r"Expected"):
            body.domain()
