"""Domains by their shape: boxes, polygons, segments, simplices, and more.

A shape is one function that returns `Domain(corners, slice)`. Shapes that also exist in the
coordinates of a slice are methods of `Slice`, applied here to all of R^P.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cpwl.domain.arguments import bounds, check_dim, floats, half_spaces
from cpwl.domain.domain import Domain, Slice


def box(lo: Any, hi: Any) -> Domain:
    """Return the box lo <= z <= hi of the latent space R^P itself.

    Parameters
    ----------
    lo, hi : (P,) array_like, P = 1 to 6
        A plain number stands for P = 1.

    Raises
    ------
    ValueError
        lo >= hi on an axis, lengths that differ, or P > 6.

    Examples
    --------
    >>> import cpwl
    >>> cpwl.box([-10, -10], [10, 10]).volume
    400.0
    """
    low, _ = bounds(lo, hi)
    return _identity(len(low)).box(lo, hi)


def polygon(vertices: Any) -> Domain:
    """Return the convex polygon with these corners, in order, in R^2 itself.

    Parameters
    ----------
    vertices : (M, 2) array_like
        Either way round; the stored corners run anticlockwise.

    Raises
    ------
    ValueError
        Fewer than three distinct corners, corners on one line, or a polygon that is not convex.

    Examples
    --------
    >>> import cpwl
    >>> cpwl.polygon([[0, 0], [1, 0], [0, 1]]).volume
    0.5
    """
    return _identity(2).polygon(vertices)


def segment(a: Any, b: Any) -> Domain:
    """Return the segment from latent a to latent b, with arc length 0..|b - a| as its coordinate.

    Parameters
    ----------
    a, b : array_like or torch.Tensor, (*latent,)
        Two distinct latents of one shape; plain numbers stand for shape (1,).

    Raises
    ------
    ValueError
        Equal latents, latents of different shapes, NaN or inf.

    Examples
    --------
    >>> import cpwl
    >>> cpwl.segment([0, 0], [3, 4]).volume
    5.0
    """
    line = Slice.through(np.atleast_1d(floats(a, "a")), np.atleast_1d(floats(b, "b")))
    assert line.anchors is not None  # `through` always sets them
    return Domain(line.anchors, line)


def cross_polytope(center: Any, radius: float, basis: Any) -> Domain:
    """Return V_z = {z + s @ basis : ||s||_1 <= radius}, the neighbourhood of local complexity.

    Parameters
    ----------
    center : array_like or torch.Tensor, (*latent,)
        The point z; the origin of the slice.
    radius : float
        Positive; the corners are at +-radius on each slice axis.
    basis : array_like or torch.Tensor, (P, *latent), P = 1 to 6
        Orthonormal rows.

    Raises
    ------
    ValueError
        A radius that is not positive, rows that are not orthonormal, or P > 6.

    Examples
    --------
    >>> import cpwl
    >>> cpwl.cross_polytope([0, 0, 1], 0.5, [[1, 0, 0], [0, 1, 0]]).volume
    0.5
    """
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(
            f"Expected a positive, finite radius, got {radius}. "
            "Use a small number such as 1e-3, in units of the latent space."
        )
    plane = Slice(floats(center, "center"), floats(basis, "basis"))
    flat = plane.basis.reshape(plane.dim, -1)
    defect = float(np.abs(flat @ flat.T - np.eye(plane.dim)).max())
    if defect > 1e-6:  # a basis orthonormalised in float32 passes
        raise ValueError(
            f"Expected orthonormal basis rows, got rows whose Gram matrix is off the identity by "
            f"{defect:.2g}. Orthonormalise them first: numpy.linalg.qr(basis.T)[0].T."
        )
    check_dim(plane.dim)
    r = float(radius)
    if plane.dim == 1:
        return plane.segment(-r, r)
    if plane.dim == 2:
        return plane.polygon([[r, 0.0], [0.0, r], [-r, 0.0], [0.0, -r]])
    return Domain(r * np.concatenate([np.eye(plane.dim), -np.eye(plane.dim)]), plane)


def simplex(vertices: Any) -> Domain:
    """Return the simplex with these corners (P + 1, P), in any order, in R^P itself, P = 1 to 6.

    Raises
    ------
    ValueError
        Another number of vertices, vertices in one hyperplane, or P > 6.

    Examples
    --------
    >>> import cpwl
    >>> cpwl.simplex([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 3]]).volume
    0.5
    """
    corners = floats(vertices, "vertices")
    if corners.ndim != 2 or corners.shape[1] == 0:
        raise ValueError(
            f"Expected vertices of shape (P + 1, P), got shape {corners.shape}. "
            "Give one row per vertex, one vertex more than axes."
        )
    return _identity(corners.shape[1]).simplex(corners)


def polytope(A: Any, b: Any) -> Domain:
    """Return the bounded intersection of half-spaces {z : A z <= b} of R^P itself.

    Parameters
    ----------
    A : (m, P) array_like, P = 1 to 6
        One row per half-space. Rows may repeat, be redundant or be zero, and any number of them
        may meet in a corner.
    b : (m,) array_like
        One limit per half-space.

    Raises
    ------
    ValueError
        An intersection that is empty, unbounded or of a lower dimension, NaN or inf, or P > 6.

    Notes
    -----
    The domain is that of the float64 entries as they are: its corners are rational, all of them
    found, and all cases told apart, in whole numbers by the double description method. Sides come
    in the order of their first rows. Cost: milliseconds for tens of half-spaces; it grows with the
    number of corners, at most of the order of m^floor(P / 2).

    Examples
    --------
    >>> import cpwl
    >>> corner = cpwl.polytope([[-1, 0, 0], [0, -1, 0], [0, 0, -1], [1, 1, 3]], [0, 0, 0, 1])
    >>> corner.exact_corners[1]
    (Fraction(0, 1), Fraction(0, 1), Fraction(1, 3))
    """
    normals, limits = half_spaces(A, b)
    return _identity(normals.shape[1]).polytope(normals, limits)


def _identity(dim: int) -> Slice:
    """Return the slice that is all of R^dim."""
    check_dim(dim)
    return Slice(np.zeros(dim), np.eye(dim))
