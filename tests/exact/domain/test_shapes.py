"""Polytopes by half-spaces and by corners: corners, sides, faces and volumes, and every refusal."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import polytopes
from oracles.homogeneous import determinant, homogeneous, integers, rank, rational
from support.strategies import nightly, ordinary

import cpwl
from cpwl.domain.corners import face_lattice, hull, volume

Outcome = str | tuple[set[tuple[Fraction, ...]], set[frozenset[tuple[Fraction, ...]]]]


def faces(domain: cpwl.Domain) -> list[list[frozenset[int]]]:
    """Return the corners of every face of dimension 0..P, having checked how the faces fit."""
    lattice = face_lattice(domain.sides, len(domain.corners), domain.dim)
    assert len(lattice) == domain.dim
    levels = [[frozenset([corner]) for corner in range(len(domain.corners))]]
    below: list[set[int]] = []  # the faces of dimension k - 2 by face of dimension k - 1
    for k, (offsets, items) in enumerate(lattice, 1):
        assert (offsets.dtype, items.dtype) == (np.int64, np.int32)
        parts = [items[a:b].tolist() for a, b in itertools.pairwise(offsets)]
        assert all(part == sorted(set(part)) for part in parts)
        if k > 1:  # two faces of dimension k - 1 meet at each one of dimension k - 2
            for part in parts:
                assert set(Counter(i for facet in part for i in below[facet]).values()) == {2}
        levels.append([frozenset().union(*(levels[-1][i] for i in part)) for part in parts])
        assert len(set(levels[-1])) == len(parts)
        below = [set(part) for part in parts]
        for face in levels[-1]:
            points = [homogeneous(domain.exact_corners[corner]) for corner in face]
            assert rank(points) == k + 1
    assert levels[-2] == list(map(frozenset, domain.sides))
    assert levels[-1] == [frozenset(range(len(domain.corners)))]
    assert sum((-1) ** k * len(level) for k, level in enumerate(levels)) == 1
    return levels


def counts(domain: cpwl.Domain) -> list[int]:
    return [len(level) for level in faces(domain)]


def outcome(A: Any, b: Any) -> Outcome:
    """Return the corners and the sides by their corners, or the word for what is wrong."""
    try:
        domain = cpwl.polytope(A, b)
    except ValueError as error:
        words = {"an empty": "empty", "no end": "unbounded", "span only": "flat"}
        return next(word for text, word in words.items() if text in str(error))
    corners = domain.exact_corners
    assert len(set(corners)) == len(corners)
    assert all(list(side) == sorted(side) for side in domain.sides)
    sides = {frozenset(corners[i] for i in side) for side in domain.sides}
    assert len(sides) == len(domain.sides)
    np.testing.assert_array_equal(domain.corners, [[float(x) for x in p] for p in corners])
    return set(corners), sides


def by_subsets(A: list[list[int]], b: list[int]) -> Outcome:
    """Solve for the common point of every P hyperplanes, and keep those in all half-spaces.

    Half-spaces |s| <= 10^6 come on top: beyond all corners of the integers that are tested, so
    whatever reaches them has no end.
    """
    dim, reach = len(A[0]), 10**6
    eye = np.eye(dim, dtype=int).tolist()
    rows = [*A, *eye, *(-np.eye(dim, dtype=int)).tolist()]
    limits = [*b, *[reach] * (2 * dim)]
    corners = set()
    for subset in itertools.combinations(range(len(rows)), dim):
        matrix = [tuple(rows[i]) for i in subset]
        scale = determinant(matrix)
        if scale:
            point = tuple(
                Fraction(
                    determinant(
                        [
                            (*row[:j], limits[i], *row[j + 1 :])
                            for i, row in zip(subset, matrix, strict=True)
                        ]
                    ),
                    scale,
                )
                for j in range(dim)
            )
            if all(_dot(row, point) <= c for row, c in zip(rows, limits, strict=True)):
                corners.add(point)
    if not corners:
        return "empty"
    if any(abs(x) == reach for point in corners for x in point):
        return "unbounded"
    if rank([homogeneous(point) for point in corners]) <= dim:
        return "flat"
    sides = set()
    for row, c in zip(A, b, strict=True):
        side = frozenset(point for point in corners if any(row) and _dot(row, point) == c)
        if side and rank([homogeneous(point) for point in side]) == dim:
            sides.add(side)
    return corners, sides


def _dot(row: list[int], point: tuple[Fraction, ...]) -> Fraction:
    return sum((a * x for a, x in zip(row, point, strict=True)), Fraction(0))


@st.composite
def integer_half_spaces(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    """Draw rows and limits in -2..2: repeated, redundant, zero, contradictory, degenerate."""
    dim = draw(st.integers(1, 4))
    number = st.integers(-2, 2)
    rows = draw(st.lists(st.lists(number, min_size=dim, max_size=dim), min_size=1, max_size=7))
    limits = [draw(number) for _ in rows]
    if draw(st.sampled_from([True, True, False])):
        eye = np.eye(dim, dtype=int)
        rows += [*eye.tolist(), *(-eye).tolist()]
        limits += [2] * (2 * dim)
    return rows, limits


@ordinary(80)
@given(integer_half_spaces())
def test_half_spaces_agree_with_all_subsets_of_their_rows(given_rows):
    A, b = given_rows
    assert outcome(A, b) == by_subsets(A, b)


@pytest.mark.nightly
@nightly(1000)
@given(integer_half_spaces())
def test_many_half_spaces_agree_with_all_subsets_of_their_rows(given_rows):
    A, b = given_rows
    assert outcome(A, b) == by_subsets(A, b)


@pytest.mark.parametrize(("dim", "rows"), [(1, 6), (2, 9), (3, 12), (4, 10), (5, 10), (6, 9)])
def test_random_half_spaces_have_the_oracles_corners_sides_and_volume(dim, rows):
    rng = np.random.default_rng(dim)
    A = np.vstack([rng.normal(size=(rows, dim)), np.eye(dim), -np.eye(dim)])
    b = np.concatenate([rng.uniform(0.1, 1, rows), np.full(2 * dim, 2.0)])
    domain = cpwl.polytope(A, b)
    expected = polytopes.half_spaces(A.tolist(), b.tolist())
    corners = [rational(point) for point in expected.corners]
    on = [[p for v, p in enumerate(corners) if facet >> v & 1] for facet in expected.facets]
    assert outcome(A, b) == (set(corners), set(map(frozenset, on)))
    assert domain.volume == float(expected.volume)
    assert counts(domain) == [len(expected.faces(k)) for k in range(dim + 1)]
    assert_same(hull(domain.exact_corners), domain)


def assert_same(found: tuple[Any, Any], domain: cpwl.Domain) -> None:
    """Require the same corners and, in whatever order, the same sides."""
    assert found[0] == domain.exact_corners
    assert set(found[1]) == set(domain.sides)


@pytest.mark.parametrize("dim", range(1, 7))
def test_a_box_has_its_faces_and_volume(dim):
    low, high = -np.arange(1.0, dim + 1), np.arange(2.0, dim + 2)
    domain = cpwl.box(low, high)
    # corner, inner point or end, on every axis: 3^P - 1 faces beside the box itself
    assert counts(domain) == [math.comb(dim, k) * 2 ** (dim - k) for k in range(dim + 1)]
    assert domain.volume == math.prod((high - low).tolist())
    assert {tuple(p) for p in domain.corners.tolist()} == set(
        itertools.product(*zip(low, high, strict=True))
    )
    eye = np.eye(dim)
    assert outcome(np.vstack([eye, -eye]), [*high, *-low]) == by_corners(domain)


def by_corners(domain: cpwl.Domain) -> Outcome:
    corners = domain.exact_corners
    return set(corners), {frozenset(corners[i] for i in side) for side in domain.sides}


@pytest.mark.parametrize("dim", range(1, 7))
def test_a_cross_polytope_has_its_faces_and_volume(dim):
    domain = cpwl.cross_polytope(np.zeros(dim), 0.5, np.eye(dim))
    assert counts(domain) == [math.comb(dim, k + 1) * 2 ** (k + 1) for k in range(dim)] + [1]
    assert domain.volume == 1 / math.factorial(dim)
    signs = list(itertools.product([-1, 1], repeat=dim))
    assert outcome(signs, [0.5] * 2**dim) == by_corners(domain)


@pytest.mark.parametrize("dim", range(1, 7))
def test_a_simplex_has_its_faces_and_volume_in_any_order(dim):
    vertices = np.vstack([np.zeros(dim), np.diag(np.arange(1.0, dim + 1))])
    for order in (vertices, vertices[::-1]):
        domain = cpwl.simplex(order)
        assert counts(domain) == [math.comb(dim + 1, k + 1) for k in range(dim + 1)]
        assert domain.volume == 1
    tight = np.vstack([-np.eye(dim), 1 / np.arange(1.0, dim + 1)])
    assert cpwl.polytope(tight, [0] * dim + [1]).volume == pytest.approx(1, rel=1e-15)


@pytest.mark.parametrize("dim", range(3, 7))
def test_a_pyramid_has_an_apex_on_more_sides_than_its_dimension(dim):
    # over a box of dimension P - 1: |x_j| + z <= 1, z >= 0
    base = np.vstack([np.eye(dim - 1), -np.eye(dim - 1)])
    A = np.vstack([np.column_stack([base, np.ones(2 * dim - 2)]), -np.eye(dim)[-1:]])
    domain = cpwl.polytope(A, [1] * (2 * dim - 2) + [0])
    cube = [math.comb(dim - 1, k) * 2 ** (dim - 1 - k) for k in range(dim)]
    assert counts(domain) == [a + b for a, b in zip([*cube, 0], [1, *cube], strict=True)]
    assert domain.volume == float(Fraction(2 ** (dim - 1), dim))
    apex = domain.exact_corners.index((Fraction(0),) * (dim - 1) + (Fraction(1),))
    assert [apex in side for side in domain.sides] == [True] * (2 * dim - 2) + [False]


@pytest.mark.parametrize(("dim", "number"), [(3, 9), (4, 9), (5, 8), (6, 9)])
def test_cyclic_polytopes_have_the_most_faces(dim, number):
    points = [[float(t**k) for k in range(1, dim + 1)] for t in range(-4, number - 4)]
    slice_ = cpwl.Slice(np.zeros(dim), np.eye(dim))
    domain = cpwl.Domain(np.array(points), slice_)
    f = counts(domain)
    # any floor(P / 2) corners span a face, and the number of sides follows (Gale's evenness)
    assert f[: dim // 2] == [math.comb(number, k + 1) for k in range(dim // 2)]
    half = dim // 2
    if dim % 2:
        assert f[-2] == 2 * math.comb(number - half - 1, half)
    else:
        assert f[-2] == number * math.comb(number - half, half) // (number - half)


@pytest.mark.parametrize("dim", range(3, 7))
def test_a_domain_is_the_hull_of_points_in_any_order(dim):
    box = cpwl.box([-1] * dim, [1] * dim)
    rng = np.random.default_rng(dim)
    inside = np.vstack([np.zeros(dim), rng.uniform(-1, 1, (3, dim)), np.eye(dim), box.corners[:2]])
    points = rng.permutation(np.vstack([box.corners, inside, [[1.0] * (dim - 1) + [0.5]]]))
    domain = cpwl.Domain(points, box.slice)
    assert by_corners(domain) == by_corners(box)
    assert domain.volume == 2**dim


def test_corners_of_half_spaces_are_rational_and_rounded_once():
    domain = cpwl.polytope([[3, 0], [-1, 0], [0, -7], [1, 7]], [1, 0, 0, 1])
    third, seventh = Fraction(1, 3), Fraction(1, 7)
    expected = ((0, 0), (third, 0), (third, 2 * third * seventh), (0, seventh))
    assert domain.exact_corners == expected  # anticlockwise from the least one
    assert domain.corners.tolist() == [[float(x) for x in point] for point in expected]
    assert domain.sides == ((0, 1), (1, 2), (2, 3), (0, 3))
    assert domain.volume == float(Fraction(5, 126))
    interval = cpwl.polytope([[-3], [7], [14]], [1, 2, 5])
    assert interval.exact_corners == ((-third,), (Fraction(2, 7),))
    assert (interval.sides, interval.volume) == (((0,), (1,)), float(Fraction(13, 21)))


def test_a_domain_that_float64_cannot_resolve_is_still_exact():
    # the strip 0 <= y - x <= 1e-30 over 0 <= x <= 1
    domain = cpwl.polytope([[1, -1], [-1, 1], [1, 0], [-1, 0]], [0, 1e-30, 1, 0])
    assert domain.corners.tolist() == [[0, 0], [1, 1], [1, 1], [0, 1e-30]]
    assert len(set(domain.exact_corners)) == 4
    assert domain.volume == 1e-30


def test_sides_come_in_the_order_of_their_first_rows():
    A = [[0, 0, 1], [0, 0, 2], [1, 0, 0], [0, 0, 0], [-1, 0, 0], [5, 5, 5], [0, 1, 0]]
    A += [[0, -1, 0], [0, 0, -1], [1, 0, 0]]
    domain = cpwl.polytope(A, [1, 2, 1, 0, 1, 99, 1, 1, 1, 3])
    normals = [
        np.ptp(domain.corners[list(side)], axis=0).tolist().index(0) for side in domain.sides
    ]
    assert normals == [2, 0, 0, 1, 1, 2]
    assert domain.corners[list(domain.sides[0]), 2].tolist() == [1] * 4


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
@pytest.mark.parametrize("dim", range(1, 7))
def test_huge_and_tiny_numbers_are_numbers(dim, scale):
    low, high = [5e-324] * dim, [1e300] * dim
    A = np.vstack([np.eye(dim), -scale * np.eye(dim)])
    least = Fraction(5e-324 * scale) / Fraction(scale)
    domain = cpwl.polytope(A, [*high, *np.multiply(low, -scale)])
    ends = [tuple(point) for point in itertools.product([least, Fraction(1e300)], repeat=dim)]
    assert set(domain.exact_corners) == set(ends)
    assert domain.volume == (1e300 if dim == 1 else math.inf)
    assert cpwl.box(low, [1e-310] * dim).volume == (1e-310 - 5e-324 if dim == 1 else 0)


BOUND = st.floats(-(2.0**40), 2.0**40)


@ordinary(100)
@given(
    st.integers(1, 6).flatmap(lambda p: st.lists(st.tuples(BOUND, BOUND), min_size=p, max_size=p))
)
def test_the_volume_of_a_box_is_rounded_once(ends):
    low, high = np.array([sorted(end) for end in ends]).T
    high = np.where(low == high, low + 1, high)
    exact = math.prod(
        Fraction(b) - Fraction(a) for a, b in zip(low.tolist(), high.tolist(), strict=True)
    )
    assert cpwl.box(low, high).volume == float(exact)


@ordinary(100)
@given(st.integers(2, 5).flatmap(lambda p: st.tuples(st.just(p), st.integers(0, 2**32 - 1))))
def test_the_volume_of_a_simplex_is_its_determinant(case):
    dim, seed = case
    vertices = np.random.default_rng(seed).normal(size=(dim + 1, dim)).astype(np.float32)
    rows, common = integers([Fraction(float(x)) for x in vertices.ravel()])
    points = [(*rows[i * dim : (i + 1) * dim], common) for i in range(dim + 1)]
    scale = common ** (dim + 1) * math.factorial(dim)
    assert cpwl.simplex(vertices).volume == float(Fraction(abs(determinant(points)), scale))


def test_a_volume_halfway_between_two_numbers_goes_to_the_even_one():
    # two triangles, of areas 1/3 and 2/3 + 2^-53
    tie = 1 + Fraction(1, 2**53)
    corners = [(0, 0), (1, 0), (1, Fraction(2, 3)), (0, 2 * tie - Fraction(2, 3))]
    points = tuple((Fraction(x), Fraction(y)) for x, y in corners)
    assert volume(points, ((0, 1), (1, 2), (2, 3), (0, 3))) == 1.0
    above = (*points[:3], (Fraction(0), points[3][1] + Fraction(1, 2**3000)))
    assert volume(above, ((0, 1), (1, 2), (2, 3), (0, 3))) == 1 + 2.0**-52


def test_shapes_on_a_slice_are_in_its_coordinates():
    place = cpwl.Slice(np.arange(5.0), np.eye(5)[1:4])
    eye = np.eye(3)
    for domain in (
        place.box([0] * 3, [2] * 3),
        place.polytope(np.vstack([eye, -eye]), [2, 2, 2, 0, 0, 0]),
    ):
        assert domain.slice is place
        assert (domain.dim, domain.volume) == (3, 8)
        assert domain.corners[[0, -1]].tolist() == [[0, 0, 0], [2, 2, 2]]
    simplex = place.simplex([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 6]])
    assert (simplex.slice, simplex.volume) == (place, 1)


SPACE = cpwl.Slice(np.zeros(5), np.eye(5)[:3])
CUBE = np.vstack([np.eye(3), -np.eye(3)])

BAD = {
    "empty": (
        lambda: cpwl.polytope([[1, 0], [-1, 0], [0, 1], [0, -1]], [0, -1, 1, 1]),
        r"half-spaces with a common point, got an empty intersection\. Check the signs",
    ),
    "empty by a hair": (
        lambda: cpwl.polytope([[1, 1], [-1, 0], [0, -1]], [1, -0.5, -0.5 - 2**-53]),
        r"an empty intersection",
    ),
    "empty strip": (lambda: cpwl.polytope([[1, 2], [-1, -2]], [0, -1]), r"an empty inter"),
    "impossible zero row": (
        lambda: cpwl.polytope([*CUBE, [0, 0, 0]], [1] * 6 + [-1e-320]),
        r"an empty intersection",
    ),
    "unbounded": (
        lambda: cpwl.polytope(CUBE[:5], [1] * 5),
        r"intersection is bounded, got one that has no end along \(0, 0, -1\)\. Add the half-sp",
    ),
    "half-plane": (lambda: cpwl.polytope([[1, 0]], [1]), r"has no end along \((-1, 0|0, 1)\)"),
    "strip": (lambda: cpwl.polytope([[1, 2], [-1, -2]], [1, 1]), r"no end along \(-1, 0\.5\)"),
    "everything": (lambda: cpwl.polytope([[0, 0]], [0]), r"has no end along \((1, 0|0, 1)\)"),
    "flat": (
        lambda: cpwl.polytope([*CUBE, [1, 1, 1], [-1, -1, -1]], [1] * 6 + [0, 0]),
        r"domain of dimension 3, got one whose corners span only 2\. Take a slice with as",
    ),
    "one point": (lambda: cpwl.polytope(CUBE, [1, 1, 1, -1, -1, -1]), r"corners span only 0\."),
    "corner out of range": (
        lambda: cpwl.polytope([[1e-300, 0], [-1, 0], [0, 1], [0, -1]], [1e300, 0, 1, 0]),
        r"corners within the range of float64, got one beyond 1\.8e308\. Scale the coordinates",
    ),
    "seven axes": (
        lambda: cpwl.polytope(np.eye(7), np.ones(7)),
        r"dimension 1 to 6, got 7\. The number .* grows too fast .* cpwl\.Slice\.through",
    ),
    "no columns": (
        lambda: cpwl.polytope(np.empty((3, 0)), np.ones(3)),
        r"A of shape \(m, P\) and b of shape \(m,\) with m, P >= 1, got shapes \(3, 0\) and \(3,\)",
    ),
    "no rows": (lambda: cpwl.polytope(np.empty((0, 3)), []), r"got shapes \(0, 3\) and \(0,\)\."),
    "another number of limits": (
        lambda: cpwl.polytope(CUBE, [1] * 5),
        r"got shapes \(6, 3\) and \(5,\)\. Give one row and one limit per half-space",
    ),
    "not finite": (lambda: cpwl.polytope(CUBE, [1] * 5 + [math.inf]), r"b to be finite, got 1 NaN"),
    "not a number": (
        lambda: cpwl.polytope(math.nan * CUBE, [1] * 6),
        r"A to be finite, got 18 NaN or infinite of 18",
    ),
    "half-spaces of another slice": (
        lambda: SPACE.polytope(np.eye(2), [1, 1]),
        r"A with 3 columns, one per slice axis, got 2\. Give half-spaces in slice coordinates",
    ),
    "polytope on seven axes": (
        lambda: cpwl.Slice(np.zeros(7), np.eye(7)).polytope(np.eye(7), np.ones(7)),
        r"dimension 1 to 6, got 7",
    ),
    "simplex of too few": (
        lambda: SPACE.simplex(np.eye(3)),
        r"a simplex of 4 vertices, of shape \(4, 3\), got shape \(3, 3\)\. Give one row",
    ),
    "simplex without axes": (
        lambda: cpwl.simplex([]),
        r"of shape \(P \+ 1, P\), got shape \(0,\)\.",
    ),
    "simplex of seven axes": (lambda: cpwl.simplex(np.eye(8, 7)), r"dimension 1 to 6, got 7"),
    "flat simplex": (
        lambda: cpwl.simplex([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]),
        r"dimension 3, got one whose corners span only 2",
    ),
    "flat triangle": (lambda: cpwl.simplex([[0, 0], [1, 1], [2, 2]]), r"3 corners on one line"),
    "simplex of one point": (lambda: cpwl.simplex([1, 1]), r"of shape \(P \+ 1, P\)"),
    "equal ends": (lambda: cpwl.simplex([[1], [1]]), r"lo < hi on every axis"),
    "hull of nothing": (
        lambda: cpwl.Domain(np.empty((0, 3)), SPACE),
        r"corners of shape \(M, 3\), .* got shape \(0, 3\)\.",
    ),
    "hull of too few": (lambda: cpwl.Domain(np.eye(3), SPACE), r"corners span only 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_error(case):
    build, text = BAD[case]
    with pytest.raises(ValueError, match=text):
        build()
