"""The polytopes of the rational oracle: incidences, volumes and cuts against what is known."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import hypothesis.strategies as st
import pytest
from hypothesis import given
from oracles.bodies import bodies, corner_simplex, cross, cube, pyramid
from oracles.homogeneous import determinant, homogeneous, rank, rational
from oracles.polytopes import Polytope, box, common_facets, half_spaces
from support.strategies import ordinary


def assert_sound(body: Polytope) -> None:
    """Require all that the representation promises, by ranks instead of incidences."""
    corners = set(body.corners)
    assert len(corners) == len(body.corners)
    for v, corner in enumerate(body.corners):
        assert corner[-1] > 0
        assert math.gcd(*corner) == 1
        on = [wall for i, wall in enumerate(body.walls) if body.on[v] >> i & 1]
        assert rank([wall[:-1] for wall in on]) == body.dim
        for i, wall in enumerate(body.walls):
            value = sum(a * x for a, x in zip(wall, corner, strict=True))
            assert (value > 0) == (not body.on[v] >> i & 1)
            assert value >= 0
    for facet in body.facets:
        assert rank([p for v, p in enumerate(body.corners) if facet >> v & 1]) == body.dim
    edges = set(body.edges())
    assert {frozenset((body.corners[u], body.corners[v])) for u, v in edges} == body.faces(1)
    for u, v in itertools.combinations(range(len(body.corners)), 2):
        shared = body.on[u] & body.on[v]
        walls = [wall[:-1] for i, wall in enumerate(body.walls) if shared >> i & 1]
        assert ((u, v) in edges) == (rank(walls) == body.dim - 1)


@pytest.mark.parametrize("dim", range(1, 7))
def test_a_cube_has_its_faces_and_volume(dim: int) -> None:
    body = cube(dim).exact()
    assert (len(body.corners), len(body.walls)) == (2**dim, 2 * dim)
    for k in range(dim + 1):
        assert len(body.faces(k)) == math.comb(dim, k) * 2 ** (dim - k)
    assert len(list(body.edges())) == dim * 2 ** (dim - 1)
    assert body.volume == 4**dim
    assert_sound(body)


@pytest.mark.parametrize("dim", range(1, 7))
def test_a_simplex_has_its_faces_and_volume(dim: int) -> None:
    body = corner_simplex(dim, 3).exact()
    assert (len(body.corners), len(body.walls)) == (dim + 1, dim + 1)
    assert len(list(body.edges())) == math.comb(dim + 1, 2)
    assert body.volume == Fraction(3**dim, math.factorial(dim))
    assert_sound(body)


@pytest.mark.parametrize("dim", range(2, 7))
def test_a_cross_polytope_has_its_faces_and_volume(dim: int) -> None:
    body = cross(dim, 1).exact()
    assert (len(body.corners), len(body.walls)) == (2 * dim, 2**dim)
    for k in range(dim):
        assert len(body.faces(k)) == math.comb(dim, k + 1) * 2 ** (k + 1)
    assert len(list(body.edges())) == 2 * dim * (dim - 1)
    assert body.volume == Fraction(2**dim, math.factorial(dim))
    assert_sound(body)


@pytest.mark.parametrize("dim", range(2, 6))
def test_a_pyramid_has_its_faces_and_volume(dim: int) -> None:
    body = pyramid(dim).exact()
    assert (len(body.corners), len(body.walls)) == (2 ** (dim - 1) + 1, 2 * dim - 1)
    assert body.volume == Fraction(4 ** (dim - 1) * 4, dim)
    assert_sound(body)


def test_walls_that_are_not_facets_are_left_out() -> None:
    redundant = [[1, 0], [-1, 0], [0, 1], [0, -1], [1, 1], [1, 1], [2, 1]]
    body = half_spaces(redundant, [1, 1, 1, 1, 2, 9, 3])
    assert body == half_spaces(redundant[:4], [1] * 4)
    with pytest.raises(AssertionError):
        half_spaces([[1, 0], [-1, 0], [0, 1]], [1, 1, 1])


def test_determinants_and_ranks_are_exact() -> None:
    table = [(0, 2, 1), (3, 0, 5), (7, 1, 0)]
    assert determinant(table) == 0 * (0 - 5) - 2 * (0 - 35) + 1 * (3 - 0)
    assert determinant([(1, 2, 3), (4, 5, 6), (7, 8, 9)]) == 0
    assert rank([(1, 2, 3), (4, 5, 6), (7, 8, 9), (2, 4, 6)]) == 2
    assert rank([(0, 0), (0, 0)]) == 0
    large = 10**40
    assert determinant([(large, 1), (large + 1, 1)]) == -1


@st.composite
def cuts(draw: st.DrawFn) -> tuple[Polytope, list[tuple[int, ...]]]:
    """A body and forms of small integers, which often pass through its corners."""
    dim = draw(st.integers(1, 4))
    body = draw(st.sampled_from(bodies(dim) if dim > 1 else (cube(1),))).exact()
    numbers = st.lists(st.integers(-2, 2), min_size=dim, max_size=dim)
    count = draw(st.integers(1, 5 if dim < 4 else 3))
    forms = [(*draw(numbers), draw(st.sampled_from((0, 0, 1, -2)))) for _ in range(count)]
    return body, forms


@ordinary(60)
@given(cuts())
def test_parts_of_a_body_are_sound_and_fill_it(case) -> None:
    body, forms = case
    parts = [body]
    for form in forms:
        halves = [half for part in parts for half in part.cut(form)]
        parts = [half for half in halves if half is not None]
    for part in parts:
        assert_sound(part)
        assert part.volume > 0
        assert part.rounded_volume() == pytest.approx(float(part.volume), rel=1e-12)
    assert sum(part.volume for part in parts) == body.volume
    pairs = common_facets(parts)
    centres = [
        tuple(sum(x) / len(part.corners) for x in zip(*map(rational, part.corners), strict=True))
        for part in parts
    ]
    for i, part in enumerate(parts):
        holding = [j for j, other in enumerate(parts) if other.holds(homogeneous(centres[i]))]
        assert holding == [i]
        # an arrangement is face to face: a facet is its vertices
        for j in range(i):
            shared = set(part.corners) & set(parts[j].corners)
            assert ((j, i) in pairs) == (rank(sorted(shared)) == body.dim)


def test_facets_that_overlap_in_part_are_common() -> None:
    halves = [x for x in cube(3).exact().cut((1, 0, 0, 0)) if x is not None]
    left, right = halves
    upper, lower = (x for x in left.cut((0, 1, 0, 0)) if x is not None)
    front, behind = (x for x in right.cut((0, 0, 1, 0)) if x is not None)
    # every piece of one half shares a square with every piece of the other
    assert len(common_facets([upper, lower, front, behind])) == 6
    # these two meet in an edge
    first, second = (x for x in right.cut((0, 1, 0, 0)) if x is not None)
    assert common_facets([upper, lower, first, second]) == {(0, 1), (0, 2), (1, 3), (2, 3)}


def test_a_body_of_any_rational_numbers_is_exact() -> None:
    body = box([Fraction(1, 3), 0.1, 2**-1060], [1, 0.3, 2**400])
    expected = Fraction(2, 3) * (Fraction(0.3) - Fraction(0.1)) * (2**400 - Fraction(1, 2**1060))
    assert body.volume == expected
