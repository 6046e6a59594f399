"""Domains and slices: geometry, and the text of every error."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cpwl

SQUARE = [[0, 0], [1, 0], [1, 1], [0, 1]]


def test_box_is_the_latent_plane_itself():
    domain = cpwl.box([-10, -5], [10, 5])
    assert domain.dim == 2
    assert domain.volume == 200
    assert domain.corners.tolist() == [[-10, -5], [10, -5], [10, 5], [-10, 5]]
    np.testing.assert_array_equal(domain.slice.embed(domain.corners), domain.corners)


@pytest.mark.parametrize("domain", [cpwl.box(-1, 3), cpwl.box([-1], [3])])
def test_box_with_one_axis_is_an_interval(domain):
    assert domain.corners.tolist() == [[-1], [3]]
    assert (domain.dim, domain.volume) == (1, 4)


def test_polygon_is_stored_anticlockwise_without_flat_or_repeated_corners():
    clockwise = [[0, 0], [0, 0], [0, 1], [0.5, 1], [1, 1], [1, 0], [0.25, 0], [0, 0]]
    domain = cpwl.polygon(clockwise)
    assert {tuple(p) for p in domain.corners.tolist()} == {tuple(p) for p in SQUARE}
    assert len(domain.corners) == 4
    assert domain.volume == 1


def test_a_thin_triangle_keeps_its_exactly_convex_corner():
    domain = cpwl.polygon([[0, 0], [1, 0], [0.5, 1e-300]])
    assert len(domain.corners) == 3
    assert domain.volume == 0.5e-300


@given(st.floats(-math.pi, math.pi), st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_corners_on_a_slanted_side_may_be_off_it_by_rounding(angle, parts):
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    corners = np.array(SQUARE) @ turn.T
    middle = [corners[0] + t * (corners[1] - corners[0]) for t in sorted(parts)]
    domain = cpwl.polygon([corners[0], *middle, *corners[1:]])
    assert domain.volume == pytest.approx(1, abs=1e-14)


def test_arrays_are_read_only_copies():
    origin = np.zeros(3)
    plane = cpwl.Slice(origin, np.eye(3)[:2])
    origin[0] = 1
    assert plane.origin[0] == 0
    domain = plane.box([0, 0], [1, 1])
    for array in (plane.origin, plane.basis, domain.corners):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@pytest.mark.parametrize("shape", [(2,), (5,), (4, 8, 8)])
def test_slice_through_three_latents_puts_them_at_known_coordinates(shape):
    z = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    plane = cpwl.Slice.through(*z)
    assert plane.latent_shape == shape
    flat = plane.basis.reshape(2, -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(2), atol=1e-14)
    assert plane.anchors is not None
    np.testing.assert_allclose(plane.embed(plane.anchors), z, atol=1e-12)
    np.testing.assert_allclose(plane.project(z), plane.anchors, atol=1e-12)
    assert plane.anchors[0].tolist() == [0, 0]
    assert plane.anchors[1, 1] == 0
    assert plane.anchors[1, 0] > 0
    assert plane.anchors[2, 1] > 0


@pytest.mark.parametrize("dim", range(1, 7))
def test_slice_through_latents_has_an_axis_for_each_but_the_first(dim):
    z = np.random.default_rng(dim).normal(size=(dim + 1, 3, 4))
    space = cpwl.Slice.through(*z)
    flat = space.basis.reshape(dim, -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(dim), atol=1e-14)
    anchors = space.anchors
    assert anchors is not None
    np.testing.assert_array_equal(np.triu(anchors), 0)
    assert np.all(np.diagonal(anchors, -1) > 0)
    np.testing.assert_allclose(space.embed(anchors), z, atol=1e-12)
    volume = np.prod(np.diagonal(anchors, -1)) / math.factorial(dim)
    assert space.simplex(anchors).volume == pytest.approx(volume, rel=1e-13)


def test_corners_are_exact_and_on_two_sides_each():
    domain = cpwl.polygon(np.array(SQUARE) / 10)
    tenth = Fraction(0.1)
    assert domain.exact_corners == ((0, 0), (tenth, 0), (tenth, tenth), (0, tenth))
    assert domain.sides == ((0, 1), (1, 2), (2, 3), (0, 3))
    interval = cpwl.segment([0, 0], [3, 4])
    assert (interval.exact_corners, interval.sides) == (((0,), (5,)), ((0,), (1,)))


def test_nearly_collinear_latents_still_give_an_orthonormal_basis():
    z = np.array([[1, 2, 3], [2, 4, 6], [3, 6, 9 + 1e-9]])
    plane = cpwl.Slice.through(*z)
    np.testing.assert_allclose(plane.basis @ plane.basis.T, np.eye(2), atol=1e-14)
    np.testing.assert_allclose(plane.embed(plane.anchors), z, atol=1e-12)


@pytest.mark.parametrize(
    "kind", [np.float16, np.float32, np.float64, torch.float32, torch.bfloat16]
)
@pytest.mark.parametrize("count", [3, 4, 6])
@pytest.mark.parametrize("start", [0.0, 100.0])
def test_latents_in_the_span_of_others_are_found_in_any_precision(kind, count, start):
    """Three in a row, the last a rounded mean, two nearly the same: no axis of rounding noise."""
    for seed in range(5):
        z = start + np.random.default_rng(seed).normal(size=(count, 16))
        row, mean, near = z.copy(), z.copy(), z.copy()
        row[-1] = 3 * z[1] - 2 * z[0]
        mean[-1] = z[:-1].mean(axis=0)
        near[-1] = z[0]
        for latents in (row, mean, near):
            given = _in_precision(latents, kind)
            if latents is near:
                given[-1] = _in_precision(latents[-1] * (1 + 2.0**-52), kind)
            with pytest.raises(ValueError, match=r"got z\d .*\. Leave it out"):
                cpwl.Slice.through(*given)
        if start == 0.0 or kind not in (np.float16, torch.bfloat16):
            assert cpwl.Slice.through(*_in_precision(z, kind)).dim == count - 1
        basis = _in_precision(row[1:] - start, kind)
        if start == 0.0 and count > 3:
            basis[-1] = basis[0] + basis[1]
            with pytest.raises(ValueError, match="linearly independent basis rows"):
                cpwl.Slice(np.zeros(16), basis)


def test_basis_rows_of_different_lengths_are_independent():
    assert cpwl.Slice([0, 0], [[1e300, 0], [0, 1e-300]]).dim == 2


def _in_precision(values, kind):
    return (
        torch.from_numpy(values).to(kind) if isinstance(kind, torch.dtype) else values.astype(kind)
    )


def test_project_inverts_embed_on_a_skewed_basis():
    plane = cpwl.Slice(np.ones((2, 3)), np.arange(12.0).reshape(2, 2, 3) ** 2)
    s = np.array([[0.5, -2], [3, 0.25]])
    np.testing.assert_allclose(plane.project(plane.embed(s)), s, atol=1e-12)


def test_segment_is_parametrised_by_arc_length():
    a, b = torch.zeros(1, 4), torch.tensor([[0.0, 3.0, 0.0, 4.0]])
    domain = cpwl.segment(a, b)
    assert domain.corners.tolist() == [[0], [5]]
    assert domain.slice.anchors is not None
    assert domain.slice.anchors.tolist() == [[0], [5]]
    np.testing.assert_allclose(domain.slice.embed([[2.5]])[0], [[0, 1.5, 0, 2]])
    assert cpwl.segment(1, 4).volume == 3


def test_segment_of_a_line_slice_is_in_slice_coordinates():
    line = cpwl.Slice.through([0, 0], [1, 1])
    assert line.segment(-1, 2).corners.tolist() == [[-1], [2]]


def test_cross_polytope_has_its_corners_on_the_axes():
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 2)))[0].T
    center = np.arange(6.0)
    domain = cpwl.cross_polytope(center, 0.5, basis)
    offsets = domain.slice.embed(domain.corners) - center
    np.testing.assert_allclose(np.abs(offsets @ basis.T).sum(1), 0.5)
    assert domain.volume == 0.5  # 2 r^2
    assert cpwl.cross_polytope(center, 0.5, basis[:1]).corners.tolist() == [[-0.5], [0.5]]


PLANE = cpwl.Slice(np.zeros(3), np.eye(3)[:2])
LINE = cpwl.Slice(np.zeros(3), np.eye(3)[:1])
SPACE = cpwl.Slice(np.zeros(3), np.eye(3))
PENTAGRAM = [[math.cos(4 * math.pi * k / 5), math.sin(4 * math.pi * k / 5)] for k in range(5)]


@pytest.mark.parametrize("margin", [0, 0.25, 3])
def test_the_box_around_the_anchors_is_equally_wider_on_every_side(margin):
    plane = cpwl.Slice.through([0, 0, 0], [4, 0, 0], [1, 1, 0], [1, 0, 2])
    box = plane.around(margin)
    np.testing.assert_allclose(box.corners.min(axis=0), -4 * margin)
    np.testing.assert_allclose(box.corners.max(axis=0), np.add([4, 1, 2], 4 * margin))


def test_large_domains_and_slices_are_summarised_in_a_line():
    latents = np.random.default_rng(0).normal(size=(7, 3, 64, 64))
    around = cpwl.Slice.through(*latents).around(0)
    assert repr(around.slice) == (
        "Slice(6-D in a latent space of shape (3, 64, 64), through 7 latents)"
    )
    assert repr(around).startswith("Domain(64 corners within [")
    assert len(repr(around)) < 300


BAD = {
    "few corners": (
        lambda: cpwl.polygon([[0, 0], [1, 0], [1, 0], [0, 0]]),
        r"at least three distinct corners, got 2\. Add corners, or use segment",
    ),
    "no corners": (lambda: cpwl.polygon(np.empty((0, 2))), r"three distinct corners, got 0\."),
    "zero area": (
        lambda: cpwl.polygon([[0, 0], [1, 1], [2, 2], [0, 0]]),
        r"positive area, got 3 corners on one line\. Move a corner",
    ),
    "non-convex": (
        lambda: cpwl.polygon([[0, 0], [2, 0], [0.5, 0.5], [0, 2]]),
        r"convex polygon .* turns the wrong way at corner \(0\.5, 0\.5\)\. .* convex hull",
    ),
    "spike": (
        lambda: cpwl.polygon([[0, 0], [2, 0], [1, 0], [1, 1]]),
        r"turns the wrong way at corner \(2\.0, 0\.0\)",
    ),
    "winds twice": (lambda: cpwl.polygon(PENTAGRAM), r"convex polygon .* winds 2 times around\."),
    "wrong shape": (
        lambda: cpwl.polygon([[0, 0, 0]] * 3),
        r"corners of shape \(M, 2\), .* \(3, 3\)",
    ),
    "flat corners": (lambda: PLANE.polygon([0, 1, 2]), r"corners of shape \(M, 2\), .* \(3,\)\."),
    "not finite": (
        lambda: cpwl.polygon([[0, 0], [1, math.nan], [0, math.inf]]),
        r"vertices to be finite, got 2 NaN or infinite of 6 entries\. Remove",
    ),
    "infinite box": (lambda: cpwl.box([0, 0], [1, math.inf]), r"hi to be finite, got 1 NaN"),
    "ragged": (lambda: cpwl.polygon([[0, 0], [1]]), r"one rectangular array, got list"),
    "text": (lambda: cpwl.box("a", "b"), r"lo as real numbers .* got str .* Give a list"),
    "complex": (
        lambda: cpwl.segment([0], [1j]),
        r"b as real numbers .* got list \(dtype complex128\)",
    ),
    "complex tensor": (
        lambda: cpwl.segment(torch.zeros(1), torch.zeros(1, dtype=torch.complex64)),
        r"b as real numbers .* got ndarray \(dtype complex64\)",
    ),
    "lo above hi": (
        lambda: cpwl.box([0, 2], [1, 1]),
        r"lo < hi on every axis, got lo = 2 and hi = 1 on axis 1\. Swap them",
    ),
    "lo equal to hi": (lambda: cpwl.box([0, 1], [1, 1]), r"lo < hi on every axis"),
    "bounds of two lengths": (
        lambda: cpwl.box([0, 0], [1]),
        r"two vectors of one length, got shapes \(2,\) and \(1,\)\. Give one number per axis",
    ),
    "seven axes": (
        lambda: cpwl.box([0] * 7, [1] * 7),
        r"dimension 1 to 6, got 7\. The number of cells, .* \(3\^7 - 1 of a box\), grows too fast "
        r".*Take a slice of at most 6 axes .*Slice\.through",
    ),
    "box on another slice": (
        lambda: PLANE.box([0], [1]),
        r"with 2 entries, one per slice axis, got 1",
    ),
    "polygon on a line": (
        lambda: LINE.polygon(SQUARE),
        r"two axes for a polygon, got 1\. Use box, simplex or polytope",
    ),
    "polygon in space": (
        lambda: SPACE.polygon(SQUARE),
        r"slice with two axes for a polygon, got 3\. Use box, simplex or polytope",
    ),
    "segment on a plane": (lambda: PLANE.segment(0, 1), r"one axis for a segment, got 2\. Build"),
    "interval of three rows": (
        lambda: cpwl.Domain(np.array([[0.0], [1.0], [2.0]]), LINE),
        r"two ends of an interval, \[\[lo\], \[hi\]\], got 3 rows\. Use box",
    ),
    "interval backwards": (lambda: LINE.segment(1, 0), r"lo < hi .* lo = 1 and hi = 0 on axis 0"),
    "collinear anchors": (
        lambda: cpwl.Slice.through([0, 0, 0], [1, 2, 3], [3, 6, 9]),
        r"3 latents that span 2 dimensions, got z2 on the line through z0 and z1\. Leave it out",
    ),
    "collinear up to rounding": (
        lambda: cpwl.Slice.through([0.1, 0.2], [0.4, 0.7], [0.1 + 0.3 / 7, 0.2 + 0.5 / 7]),
        r"z2 on the line through z0 and z1",
    ),
    "four latents of a plane": (
        lambda: cpwl.Slice.through(*np.eye(3), [0.5, 0.25, 0.25]),
        r"4 latents that span 3 dimensions, got z3 in the 2-dimensional span of those before it\.",
    ),
    "eight latents": (
        lambda: cpwl.Slice.through(*np.eye(8)),
        r"dimension 1 to 6, got 7\. The number of cells",
    ),
    "equal anchors": (
        lambda: cpwl.Slice.through([1, 2], [1, 2], [3, 4]),
        r"3 latents that span 2 dimensions, got z1 equal to z0\.",
    ),
    "equal ends": (lambda: cpwl.segment([1, 2], [1, 2]), r"2 latents .* got z1 equal to z0\."),
    "latents of two shapes": (
        lambda: cpwl.Slice.through([0, 0], [1, 2], [[3, 4]]),
        r"latents of one shape, got \(2,\), \(2,\), \(1, 2\)\. Give each latent",
    ),
    "latent without axes": (
        lambda: cpwl.Slice(np.float64(1), [[1]]),
        r"an origin with at least one entry, got shape \(\)\. .* without its batch axis",
    ),
    "empty latent": (lambda: cpwl.Slice(np.zeros(0), np.zeros((1, 0))), r"got shape \(0,\)"),
    "basis of another shape": (
        lambda: cpwl.Slice(np.zeros((1, 8)), np.zeros((2, 8))),
        r"basis of shape \(P, 1, 8\) with P >= 1 .* got shape \(2, 8\)\. Stack one direction",
    ),
    "empty basis": (lambda: cpwl.Slice([0, 0], np.zeros((0, 2))), r"with P >= 1 .* \(0, 2\)\."),
    "dependent rows": (
        lambda: cpwl.Slice([0, 0, 0], [[1, 0, 0], [2, 0, 0]]),
        r"2 linearly independent basis rows, got rank 1\. Drop the rows",
    ),
    "anchors of another shape": (
        lambda: cpwl.Slice([0, 0], np.eye(2), [[0, 0, 0]]),
        r"anchors of shape \(k, 2\), .* got shape \(1, 3\)\. Use Slice\.through",
    ),
    "embed": (
        lambda: PLANE.embed([0, 0]),
        r"coordinates of shape \(N, 2\), got shape \(2,\)\. Give",
    ),
    "project": (
        lambda: PLANE.project([0, 0, 0]),
        r"latents of shape \(N, 3\), .*\(3,\)\. Add a batch",
    ),
    "around without anchors": (
        lambda: cpwl.Slice([0, 0], np.eye(2)).around(),
        r"a slice with anchors, got one without\. Build it by Slice\.through",
    ),
    "around with a margin that leaves nothing": (
        lambda: cpwl.Slice.through([0, 0], [2, 0], [0, 1]).around(-0.5),
        r"a margin that leaves a box around anchors of the extent .*, got -0\.5\. 0 is",
    ),
    "around with margins": (
        lambda: cpwl.Slice.through([0, 0], [2, 0], [0, 1]).around([0.1, 0.2]),
        r"a margin that leaves a box around anchors of the extent .*, got \[0\.1, 0\.2\]\. 0 is",
    ),
    "radius": (
        lambda: cpwl.cross_polytope([0, 0], 0, np.eye(2)),
        r"positive, finite radius, got 0\. Use a small number",
    ),
    "skewed basis": (
        lambda: cpwl.cross_polytope([0, 0], 1, [[1, 0], [1, 1]]),
        r"orthonormal basis rows, got rows whose Gram .* off the identity by 1\. Ortho",
    ),
    "cross-polytope of seven axes": (
        lambda: cpwl.cross_polytope(np.zeros(7), 1, np.eye(7)),
        r"dimension 1 to 6, got 7\.",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_error(case):
    build, text = BAD[case]
    with pytest.raises(ValueError, match=text):
        build()


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_latents_are_no_slice(count):
    with pytest.raises(ValueError, match=f"Expected two to seven latents, got {count}"):
        cpwl.Slice.through(*np.zeros((count, 3)))
