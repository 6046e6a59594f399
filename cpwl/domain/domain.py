"""Bounded domains, and the affine slices that carry them into a latent space."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product
from numbers import Real
from typing import Any

import numpy as np

from cpwl.arrays import EPS, SMALLEST, UNIT_ROUNDOFF, Floats, magnitude
from cpwl.domain.arguments import MAX_DIM as MAX_DIM
from cpwl.domain.arguments import bounds, check_dim, floats, half_spaces, listed, roundoff
from cpwl.domain.convex_loop import anticlockwise, convex_loop
from cpwl.domain.corners import Points, Sides, cut, exact, hull, rounded, volume

# Roundings that a latent may have suffered, for its place in the span of others to be open.
_ROUNDED_AT_MOST = 8


@dataclass(frozen=True, eq=False)
class Slice:
    """An affine embedding s -> origin + s @ basis of R^P into a latent space of any shape.

    Parameters
    ----------
    origin : array_like or torch.Tensor, (*latent,)
        The latent at slice coordinates 0. Stored as a read-only float64 array.
    basis : array_like or torch.Tensor, (P, *latent)
        P >= 1 linearly independent rows; they need not be orthonormal.
    anchors : (k, P) array_like, optional
        Slice coordinates of the latents that the slice was built through.

    Raises
    ------
    ValueError
        Shapes that do not fit, NaN or inf, or linearly dependent rows.

    Examples
    --------
    >>> import cpwl
    >>> plane = cpwl.Slice([0, 0, 1], [[1, 0, 0], [0, 1, 0]])
    >>> plane.embed([[2, 3]]).tolist()
    [[2.0, 3.0, 1.0]]
    >>> plane.project([[2, 3, 9]]).round(12).tolist()
    [[2.0, 3.0]]
    """

    origin: Floats
    basis: Floats
    anchors: Floats | None = None

    def __post_init__(self) -> None:
        origin = floats(self.origin, "origin")
        basis = floats(self.basis, "basis")
        if origin.ndim == 0 or origin.size == 0:
            raise ValueError(
                f"Expected an origin with at least one entry, got shape {origin.shape}. "
                "Give the latent without its batch axis, for example shape (2,) or (4, 8, 8)."
            )
        if basis.ndim != origin.ndim + 1 or basis.shape[1:] != origin.shape or len(basis) == 0:
            raise ValueError(
                f"Expected a basis of shape (P, {listed(origin.shape)}) with P >= 1 to go "
                f"with an origin of shape {origin.shape}, got shape {basis.shape}. "
                "Stack one direction per slice axis along a new first axis."
            )
        rows = basis.reshape(len(basis), -1)
        rows = rows / np.maximum(np.abs(rows).max(axis=1, keepdims=True), SMALLEST)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1.0)
        tolerance = 2 * max(rows.shape) * roundoff(self.basis)
        rank = int(np.linalg.matrix_rank(rows, tol=tolerance))
        if rank < len(basis):
            raise ValueError(
                f"Expected {len(basis)} linearly independent basis rows, got rank {rank}. "
                "Drop the rows that the others already span, or choose other directions."
            )
        object.__setattr__(self, "origin", origin)
        object.__setattr__(self, "basis", basis)
        if self.anchors is not None:
            anchors = floats(self.anchors, "anchors")
            if anchors.ndim != 2 or anchors.shape[1] != len(basis):
                raise ValueError(
                    f"Expected anchors of shape (k, {len(basis)}), one row of slice coordinates "
                    f"per latent, got shape {anchors.shape}. Use Slice.through or project."
                )
            object.__setattr__(self, "anchors", anchors)

    @classmethod
    def through(cls, *given: Any) -> Slice:
        """Return the line through two latents, the plane through three, ..., orthonormally.

        Parameters
        ----------
        *given : array_like or torch.Tensor, (*latent,)
            Two to seven latents z0, z1 and so on. z0 lies at coordinates 0, z1 on the positive
            first axis, z2 in the upper half plane, and so on; slice distances are latent distances.
            `anchors` holds the coordinates of each.

        Raises
        ------
        ValueError
            Latents of different shapes, fewer than two, more than seven, or one that is in the
            span of those before it up to the rounding of the latents, whose precision is that of
            their dtype.

        Examples
        --------
        >>> import cpwl
        >>> plane = cpwl.Slice.through([0, 0, 0], [3, 4, 0], [0, 0, 2])
        >>> plane.anchors.tolist()
        [[0.0, 0.0], [5.0, 0.0], [0.0, 2.0]]
        """
        latents = [floats(z, f"z{i}") for i, z in enumerate(given)]
        if len(latents) < 2:
            raise ValueError(
                f"Expected two to seven latents, got {len(latents)}. "
                "Give each as an argument: cpwl.Slice.through(z0, z1, z2), or (*latents)."
            )
        check_dim(len(latents) - 1)
        if any(z.shape != latents[0].shape for z in latents):
            shapes = ", ".join(str(z.shape) for z in latents)
            raise ValueError(
                f"Expected latents of one shape, got {shapes}. "
                "Give each latent in the network's own input shape, without a batch axis."
            )
        edges = [(z - latents[0]).ravel() for z in latents[1:]]
        # what the latents themselves were rounded by, and their differences therefore
        rounded = [roundoff(z) for z in given]
        off = [u * _length(z.ravel()) for u, z in zip(rounded, latents, strict=True)]
        # the rounding error of a projection is a few eps of the projected vector's length
        arithmetic = 64 * EPS * math.sqrt(max(1, latents[0].size))
        rows: list[Floats] = []
        doubts: list[float] = []  # errors of the rows
        anchors = np.zeros((len(latents), len(edges)))
        for i, edge in enumerate(edges):
            rest = edge.copy()
            for _ in range(2):  # the second pass restores orthogonality where the first cancels
                for row in rows:
                    rest -= (row @ rest) * row
            length = _length(rest)
            along = [float(row @ edge) for row in rows]
            error = (
                off[0] + off[i + 1] + sum(abs(x) * e for x, e in zip(along, doubts, strict=True))
            )
            if length <= max(_ROUNDED_AT_MOST * error, arithmetic * _length(edge)):
                what = ["equal to z0", "on the line through z0 and z1"]
                what = [*what, *[f"in the {i}-dimensional span of those before it"] * (i - 1)][i]
                if max(rounded) > UNIT_ROUNDOFF:
                    what += f" up to the {-math.log10(max(rounded)):.0f} digits that they have"
                raise ValueError(
                    f"Expected {len(latents)} latents that span {len(edges)} dimensions, got "
                    f"z{i + 1} {what}. Leave it out, or choose another."
                )
            anchors[i + 1, :i] = along
            anchors[i + 1, i] = length
            rows.append(rest / length)
            doubts.append(error / length)
        basis = np.stack(rows).reshape(len(rows), *latents[0].shape)
        return cls(latents[0], basis, anchors)

    def __repr__(self) -> str:
        """Summarise: a basis of images would fill the screen."""
        anchors = "" if self.anchors is None else f", through {len(self.anchors)} latents"
        return f"Slice({self.dim}-D in a latent space of shape {self.latent_shape}{anchors})"

    @property
    def dim(self) -> int:
        """The number P of slice coordinates."""
        return len(self.basis)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent, without a batch axis."""
        return self.origin.shape

    def embed(self, s: Any) -> Floats:
        """Return the latents (N, *latent) at slice coordinates s (N, P)."""
        s = floats(s, "slice coordinates")
        if s.ndim != 2 or s.shape[1] != self.dim:
            raise ValueError(
                f"Expected slice coordinates of shape (N, {self.dim}), got shape {s.shape}. "
                "Give one row per point."
            )
        flat = np.dot(s, self.basis.reshape(self.dim, -1))
        return self.origin + flat.reshape(len(s), *self.latent_shape)

    def project(self, z: Any) -> Floats:
        """Return the slice coordinates (N, P) of the points nearest to latents (N, *latent).

        Latents may be flat, (N, E), or, where those of the slice are, of any shape of E entries.
        """
        z = floats(z, "latents")
        if z.ndim < 2 or not _same_entries(z.shape[1:], self.latent_shape):
            raise ValueError(
                f"Expected latents of shape (N, {listed(self.latent_shape)}), got shape "
                f"{z.shape}. Add a batch axis to a single latent: z[None]."
            )
        z = z.reshape(-1, *self.latent_shape)
        flat = self.basis.reshape(self.dim, -1)
        return np.linalg.lstsq(flat.T, (z - self.origin).reshape(len(z), -1).T, rcond=None)[0].T

    def box(self, lo: Any, hi: Any) -> Domain:
        """Return the axis-aligned box lo <= s <= hi in slice coordinates."""
        low, high = bounds(lo, hi)
        check_dim(self.dim)
        if len(low) != self.dim:
            raise ValueError(
                f"Expected lo and hi with {self.dim} entries, one per slice axis, got {len(low)}. "
                "Give bounds in slice coordinates, not in latent coordinates."
            )
        if self.dim == 2:
            (x0, y0), (x1, y1) = low, high
            return Domain(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]), self)
        return Domain(np.array(list(product(*zip(low, high, strict=True)))), self)

    def around(self, margin: float = 0.5) -> Domain:
        """Return the box around the anchors, widened on every side.

        Parameters
        ----------
        margin : float
            Added on each side, in units of the anchors' largest extent along an axis.

        Raises
        ------
        ValueError
            A slice without anchors, or a margin that leaves no box.

        Examples
        --------
        >>> import cpwl
        >>> plane = cpwl.Slice.through([0, 0, 0], [3, 4, 0], [0, 0, 2])
        >>> plane.around(0.1).corners.tolist()
        [[-0.5, -0.5], [5.5, -0.5], [5.5, 2.5], [-0.5, 2.5]]
        """
        if self.anchors is None:
            raise ValueError(
                "Expected a slice with anchors, got one without. Build it by Slice.through(z0, z1, "
                "z2), or give bounds: slice.box(lo, hi)."
            )
        low, high = self.anchors.min(axis=0), self.anchors.max(axis=0)
        extent = high - low
        real = isinstance(margin, Real) and np.isfinite(float(margin))
        if not (real and 2 * margin * extent.max() > -extent.min()):
            raise ValueError(
                f"Expected a margin that leaves a box around anchors of the extent "
                f"{extent.tolist()}, got {margin!r}. 0 is the smallest box that holds them."
            )
        return self.box(low - margin * extent.max(), high + margin * extent.max())

    def polygon(self, vertices: Any) -> Domain:
        """Return the convex polygon with these corners (M, 2), in order, as slice coordinates."""
        if self.dim != 2:
            raise ValueError(
                f"Expected a slice with two axes for a polygon, got {self.dim}. "
                "Use box, simplex or polytope."
            )
        return Domain(floats(vertices, "vertices"), self)

    def segment(self, lo: float, hi: float) -> Domain:
        """Return the interval lo <= s <= hi of a one-dimensional slice."""
        if self.dim != 1:
            raise ValueError(
                f"Expected a slice with one axis for a segment, got {self.dim}. "
                "Build the slice from two latents, or use cpwl.segment(a, b)."
            )
        return self.box(lo, hi)

    def simplex(self, vertices: Any) -> Domain:
        """Return the simplex with these corners (P + 1, P), in any order, as slice coordinates."""
        corners = floats(vertices, "vertices")
        check_dim(self.dim)
        if corners.shape != (self.dim + 1, self.dim):
            raise ValueError(
                f"Expected a simplex of {self.dim + 1} vertices, of shape "
                f"({self.dim + 1}, {self.dim}), got shape {corners.shape}. "
                "Give one row of slice coordinates per vertex, one vertex more than axes."
            )
        return Domain(np.sort(corners, axis=0) if self.dim == 1 else corners, self)

    def polytope(self, A: Any, b: Any) -> Domain:
        """Return {s : A s <= b}, with A (m, P) and b (m,); see `cpwl.polytope`."""
        normals, limits = half_spaces(A, b)
        check_dim(self.dim)
        if normals.shape[1] != self.dim:
            raise ValueError(
                f"Expected A with {self.dim} columns, one per slice axis, got {normals.shape[1]}. "
                "Give half-spaces in slice coordinates, not in latent coordinates."
            )
        corners, sides = cut(normals, limits)
        if self.dim == 2:
            corners, sides = anticlockwise(corners), ()
        return Domain(rounded(corners), self, corners, sides)


@dataclass(frozen=True, eq=False)
class Domain:
    """A bounded convex polytope of dimension P = 1 to 6 in slice coordinates.

    It is the convex hull of `exact_corners`: of its float64 corners, unless half-spaces gave it.

    Parameters
    ----------
    corners : (M, P) array_like
        P = 1: [[lo], [hi]]. P = 2: the corners in order, either way round; stored anticlockwise,
        without repeated corners and without corners on a side. P >= 3: points in any order; stored
        without those that are no corners of their convex hull. All decided in exact arithmetic.
    slice : Slice
        The embedding of these coordinates into the latent space.
    exact_corners : tuple of M tuples of P fractions, optional
        The corners where float64 cannot hold them, in the order of `corners`, which are these
        rounded. Left out: `corners`.
    sides : tuple of tuples, optional
        For every side, the facets of the polytope, the corners on it, by number, ascending. Left
        out: found, for P >= 3 by `cpwl.domain.corners.hull`. What is given is not proven again.

    Raises
    ------
    ValueError
        NaN or inf, P > 6, lo >= hi, fewer than three distinct corners, no volume, or a polygon
        that is not convex.

    Examples
    --------
    >>> import cpwl
    >>> square = cpwl.Domain([[0, 0], [0, 2], [2, 2], [2, 0]], cpwl.Slice([0, 0], [[1, 0], [0, 1]]))
    >>> square.volume, square.corners.tolist()
    (4.0, [[2.0, 0.0], [2.0, 2.0], [0.0, 2.0], [0.0, 0.0]])
    """

    corners: Floats
    slice: Slice
    exact_corners: Points = ()
    sides: Sides = ()

    def __post_init__(self) -> None:
        corners = floats(self.corners, "corners")
        points, sides, dim = self.exact_corners, self.sides, self.slice.dim
        check_dim(dim)
        if corners.ndim != 2 or corners.shape[1] != dim or (dim > 2 and not len(corners)):
            raise ValueError(
                f"Expected corners of shape (M, {dim}), one row of slice coordinates per corner, "
                f"got shape {corners.shape}. Give one (x, y) pair per corner for a polygon."
            )
        if dim == 1 and not points:
            if len(corners) != 2:
                raise ValueError(
                    f"Expected the two ends of an interval, [[lo], [hi]], got {len(corners)} rows. "
                    "Use box(lo, hi) or segment(a, b)."
                )
            bounds(corners[0], corners[1])
        if dim == 2 and not points:
            corners = convex_loop(corners)
        points = points or exact(corners)
        if dim > 2 and not sides:
            points, sides = hull(points)
        if dim <= 2:
            ends = range(len(points))
            sides = tuple(
                (i,) if dim == 1 else tuple(sorted((i, (i + 1) % len(points)))) for i in ends
            )
        object.__setattr__(self, "corners", rounded(points))
        object.__setattr__(self, "exact_corners", points)
        object.__setattr__(self, "sides", sides)

    def __repr__(self) -> str:
        """Summarise: a polytope in six dimensions may have hundreds of corners."""
        ends = zip(self.corners.min(axis=0), self.corners.max(axis=0), strict=True)
        within = " x ".join(f"[{low:.6g}, {high:.6g}]" for low, high in ends)
        return f"Domain({len(self.corners)} corners within {within}, {self.slice!r})"

    @property
    def dim(self) -> int:
        """The dimension P of the domain, 1 to 6."""
        return self.slice.dim

    @property
    def volume(self) -> float:
        """Length, area, ... in slice coordinates, correctly rounded."""
        return volume(self.exact_corners, self.sides)


def in_shape(domain: Domain, shape: tuple[int, ...]) -> Domain:
    """Return a domain in latents of a shape; those of its slice or this one may be flat.

    Raises
    ------
    ValueError
        Another number of entries, or two shapes that are not flat.
    """
    place = domain.slice
    if place.latent_shape == shape:
        return domain
    if not _same_entries(place.latent_shape, shape):
        raise ValueError(
            f"Expected a domain in latents of shape {shape}, got {place.latent_shape}. Build it "
            "from latents of that shape, without a batch axis, or flat ones: for example "
            "cpwl.Slice.through(z0, z1, z2).box(lo, hi)."
        )
    origin = place.origin.reshape(shape)
    basis = place.basis.reshape(place.dim, *shape)
    return replace(domain, slice=Slice(origin, basis, place.anchors))


def _same_entries(given: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether latents are of one shape, or as many entries of which one side is flat."""
    flat = 1 in (len(given), len(wanted))
    return given == wanted or (flat and math.prod(given) == math.prod(wanted))


def _length(vector: Floats) -> float:
    """Euclidean norm, for numbers of any size."""
    exponent = magnitude(vector)
    return math.ldexp(float(np.linalg.norm(np.ldexp(vector, -exponent))), exponent)
