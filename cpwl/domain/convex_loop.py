"""Convex polygons with float64 corners, judged in exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from cpwl.arrays import Floats
from cpwl.domain.corners import Point, Points, exact


def _doubled_area(points: Points) -> Fraction:
    """Return twice the signed area of a closed loop, exactly."""
    pairs = zip(points, points[1:] + points[:1], strict=True)
    return sum((p[0] * q[1] - q[0] * p[1] for p, q in pairs), Fraction(0))


def anticlockwise(corners: Points) -> Points:
    """Return the corners of a convex polygon, given in ascending order, anticlockwise."""
    first, *between, last = corners
    lower = [p for p in between if _turn(first, last, p) < 0]
    upper = [p for p in between if _turn(first, last, p) > 0]
    return first, *lower, last, *reversed(upper)


def convex_loop(corners: Floats) -> Floats:
    """Return the strictly convex anticlockwise loop of these corners, or raise."""
    distinct = len(np.unique(corners, axis=0))
    if distinct < 3:
        raise ValueError(
            f"Expected at least three distinct corners, got {distinct}. "
            "Add corners, or use segment(a, b) for a one-dimensional domain."
        )
    corners = corners[np.any(corners != np.roll(corners, 1, axis=0), axis=1)]
    points = exact(corners)
    second = next(p for p in points if p != points[0])
    if all(_turn(points[0], second, p) == 0 for p in points):
        raise ValueError(
            f"Expected a polygon of positive area, got {len(points)} corners on one line. "
            "Move a corner off the line, or use segment(a, b) for a one-dimensional domain."
        )
    if _doubled_area(points) < 0:
        points, corners = points[::-1], corners[::-1]
    points, corners = _drop_flat_corners(points, corners)
    turns = [
        _turn(points[i - 1], points[i], points[(i + 1) % len(points)]) for i in range(len(points))
    ]
    upward = [
        (q[1], q[0]) > (p[1], p[0]) for p, q in zip(points, points[1:] + points[:1], strict=True)
    ]
    # one full turn: the edges point up along one run and down along the other
    rounds = sum(up and not upward[i - 1] for i, up in enumerate(upward))
    bad = [i for i, turn in enumerate(turns) if turn <= 0]
    if bad or rounds != 1:
        fault = f"winds {rounds} times around"
        if bad:
            fault = f"turns the wrong way at corner {tuple(corners[bad[0]].tolist())}"
        raise ValueError(
            f"Expected a convex polygon with its corners in order, got one that {fault}. "
            "Give the corners in order around the polygon, take their convex hull "
            "(scipy.spatial.ConvexHull), or cut the domain into convex parts."
        )
    return np.ascontiguousarray(corners)


def _turn(a: Point, b: Point, c: Point) -> Fraction:
    """Return the doubled area of the triangle a, b, c: positive for a left turn."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _drop_flat_corners(points: Points, corners: Floats) -> tuple[Points, Floats]:
    """Drop corners on a side, and corners that rounding alone has pushed inside one.

    A corner that is exactly convex always stays. A corner placed on a side, like the middle of a
    slanted edge, may be off it by the rounding of its own coordinates.
    """
    eps = float(np.finfo(np.float64).eps)
    scale = float(np.abs(corners).max())
    i = 0
    kept = list(range(len(points)))
    while i < len(kept) and len(kept) > 3:
        a, b, c = (points[kept[j % len(kept)]] for j in (i - 1, i, i + 1))
        turn = _turn(a, b, c)
        length = math.hypot(float(c[0] - a[0]), float(c[1] - a[1]))
        forward = (b[0] - a[0]) * (c[0] - b[0]) + (b[1] - a[1]) * (c[1] - b[1]) > 0
        if turn <= 0 and forward and float(-turn) <= 4 * eps * scale * length:
            del kept[i]
            i = max(0, i - 1)
        else:
            i += 1
    return tuple(points[k] for k in kept), corners[kept]
