"""Bounded domains, and the affine slices that carry them into a latent space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cpwl._convex import convex_loop, polygon_area

Array = NDArray[np.float64]


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
    """

    origin: Array
    basis: Array
    anchors: Array | None = None

    def __post_init__(self) -> None:
        origin = _floats(self.origin, "origin")
        basis = _floats(self.basis, "basis")
        if origin.ndim == 0 or origin.size == 0:
            raise ValueError(
                f"Expected an origin with at least one entry, got shape {origin.shape}. "
                "Give the latent without its batch axis, for example shape (2,) or (4, 8, 8)."
            )
        if basis.ndim != origin.ndim + 1 or basis.shape[1:] != origin.shape or len(basis) == 0:
            raise ValueError(
                f"Expected a basis of shape (P, {_listed(origin.shape)}) with P >= 1 to go "
                f"with an origin of shape {origin.shape}, got shape {basis.shape}. "
                "Stack one direction per slice axis along a new first axis."
            )
        rank = int(np.linalg.matrix_rank(basis.reshape(len(basis), -1)))
        if rank < len(basis):
            raise ValueError(
                f"Expected {len(basis)} linearly independent basis rows, got rank {rank}. "
                "Drop the rows that the others already span, or choose other directions."
            )
        object.__setattr__(self, "origin", origin)
        object.__setattr__(self, "basis", basis)
        if self.anchors is not None:
            anchors = _floats(self.anchors, "anchors")
            if anchors.ndim != 2 or anchors.shape[1] != len(basis):
                raise ValueError(
                    f"Expected anchors of shape (k, {len(basis)}), one row of slice coordinates "
                    f"per latent, got shape {anchors.shape}. Use Slice.through or project."
                )
            object.__setattr__(self, "anchors", anchors)

    @classmethod
    def through(cls, z0: Any, z1: Any, z2: Any | None = None) -> Slice:
        """Return the line through two latents or the plane through three, orthonormally.

        Parameters
        ----------
        z0, z1, z2 : array_like or torch.Tensor, (*latent,)
            z0 lies at coordinates 0, z1 on the positive first axis, z2 in the upper half plane;
            slice distances are latent distances. `anchors` holds the coordinates of each.

        Raises
        ------
        ValueError
            Latents of different shapes, coinciding, or all on one line.
        """
        latents = [_floats(z, f"z{i}") for i, z in enumerate((z0, z1, z2)) if z is not None]
        if any(z.shape != latents[0].shape for z in latents):
            shapes = ", ".join(str(z.shape) for z in latents)
            raise ValueError(
                f"Expected latents of one shape, got {shapes}. "
                "Give each latent in the network's own input shape, without a batch axis."
            )
        edges = [(z - latents[0]).ravel() for z in latents[1:]]
        # the rounding error of a projection is a few eps of the projected vector's length
        tolerance = 64 * np.finfo(np.float64).eps * math.sqrt(max(1, latents[0].size))
        rows: list[Array] = []
        anchors = np.zeros((len(latents), len(edges)))
        for i, edge in enumerate(edges):
            rest = edge.copy()
            for _ in range(2):  # the second pass restores orthogonality where the first cancels
                for row in rows:
                    rest -= (row @ rest) * row
            length = float(np.linalg.norm(rest))
            if length <= tolerance * float(np.linalg.norm(edge)):
                what = f"z{i + 1} on the line through the others" if rows else "z0 equal to z1"
                raise ValueError(
                    f"Expected {len(latents)} latents that are not collinear, got {what}. "
                    "Choose latents that span a plane (three) or a line (two)."
                )
            anchors[i + 1, :i] = [row @ edge for row in rows]
            anchors[i + 1, i] = length
            rows.append(rest / length)
        basis = np.stack(rows).reshape(len(rows), *latents[0].shape)
        return cls(latents[0], basis, anchors)

    @property
    def dim(self) -> int:
        """The number P of slice coordinates."""
        return len(self.basis)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent, without a batch axis."""
        return self.origin.shape

    def embed(self, s: Any) -> Array:
        """Return the latents (N, *latent) at slice coordinates s (N, P)."""
        s = _floats(s, "slice coordinates")
        if s.ndim != 2 or s.shape[1] != self.dim:
            raise ValueError(
                f"Expected slice coordinates of shape (N, {self.dim}), got shape {s.shape}. "
                "Give one row per point."
            )
        return self.origin + np.tensordot(s, self.basis, axes=1)

    def project(self, z: Any) -> Array:
        """Return the slice coordinates (N, P) of the points nearest to latents (N, *latent)."""
        z = _floats(z, "latents")
        if z.shape[1:] != self.latent_shape or z.ndim != self.origin.ndim + 1:
            raise ValueError(
                f"Expected latents of shape (N, {_listed(self.latent_shape)}), got shape "
                f"{z.shape}. Add a batch axis to a single latent: z[None]."
            )
        flat = self.basis.reshape(self.dim, -1)
        return np.linalg.lstsq(flat.T, (z - self.origin).reshape(len(z), -1).T, rcond=None)[0].T

    def box(self, lo: Any, hi: Any) -> Domain:
        """Return the axis-aligned interval or rectangle lo <= s <= hi in slice coordinates."""
        low, high = _bounds(lo, hi)
        if len(low) != self.dim:
            raise ValueError(
                f"Expected lo and hi with {self.dim} entries, one per slice axis, got {len(low)}. "
                "Give bounds in slice coordinates, not in latent coordinates."
            )
        if self.dim == 1:
            return Domain(np.array([low, high]), self)
        if self.dim == 2:
            (x0, y0), (x1, y1) = low, high
            return Domain(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]), self)
        raise _wrong_dimension(self.dim)

    def polygon(self, vertices: Any) -> Domain:
        """Return the convex polygon with these corners (M, 2), in order, as slice coordinates."""
        if self.dim != 2:
            raise ValueError(
                f"Expected a slice with two axes for a polygon, got {self.dim}. "
                "Use box or segment on a one-dimensional slice."
            )
        return Domain(_floats(vertices, "vertices"), self)

    def segment(self, lo: float, hi: float) -> Domain:
        """Return the interval lo <= s <= hi of a one-dimensional slice."""
        if self.dim != 1:
            raise ValueError(
                f"Expected a slice with one axis for a segment, got {self.dim}. "
                "Build the slice from two latents, or use cpwl.segment(a, b)."
            )
        return self.box(lo, hi)


@dataclass(frozen=True, eq=False)
class Domain:
    """A bounded interval or convex polygon in slice coordinates.

    Parameters
    ----------
    corners : (M, P) array_like
        P = 2: the corners in order, either way round; stored anticlockwise, without repeated
        corners and without corners on a side (decided in exact arithmetic). P = 1: [[lo], [hi]].
    slice : Slice
        The embedding of these coordinates into the latent space.

    Raises
    ------
    ValueError
        NaN or inf, lo >= hi, fewer than three distinct corners, zero area, or a polygon that is
        not convex.
    """

    corners: Array
    slice: Slice

    def __post_init__(self) -> None:
        corners = _floats(self.corners, "corners")
        dim = self.slice.dim
        if dim > 2:
            raise _wrong_dimension(dim)
        if corners.ndim != 2 or corners.shape[1] != dim:
            raise ValueError(
                f"Expected corners of shape (M, {dim}), one row of slice coordinates per corner, "
                f"got shape {corners.shape}. Give one (x, y) pair per corner for a polygon."
            )
        if dim == 1:
            if len(corners) != 2:
                raise ValueError(
                    f"Expected the two ends of an interval, [[lo], [hi]], got {len(corners)} rows. "
                    "Use box(lo, hi) or segment(a, b)."
                )
            _bounds(corners[0], corners[1])
        else:
            corners = convex_loop(corners)
        corners.setflags(write=False)
        object.__setattr__(self, "corners", corners)

    @property
    def dim(self) -> int:
        """The dimension P of the domain, 1 or 2."""
        return self.slice.dim

    @property
    def volume(self) -> float:
        """Length or area in slice coordinates, correctly rounded."""
        if self.dim == 1:
            return float(self.corners[1, 0] - self.corners[0, 0])
        return polygon_area(self.corners)


def box(lo: Any, hi: Any) -> Domain:
    """Return the interval or rectangle lo <= z <= hi of the latent space R^1 or R^2 itself.

    Parameters
    ----------
    lo, hi : (P,) array_like, P = 1 or 2
        A plain number stands for P = 1.

    Raises
    ------
    ValueError
        lo >= hi on an axis, lengths that differ, or P > 2.

    Examples
    --------
    >>> box([-10, -10], [10, 10]).volume
    400.0
    """
    low, _ = _bounds(lo, hi)
    return _identity(len(low)).box(lo, hi)


def polygon(vertices: Any) -> Domain:
    """Return the convex polygon with these corners (M, 2), in order, in R^2 itself."""
    return _identity(2).polygon(vertices)


def segment(a: Any, b: Any) -> Domain:
    """Return the segment from latent a to latent b, with arc length 0..|b - a| as its coordinate.

    Parameters
    ----------
    a, b : array_like or torch.Tensor, (*latent,)
        Two distinct latents of one shape; plain numbers stand for shape (1,).
    """
    line = Slice.through(np.atleast_1d(_floats(a, "a")), np.atleast_1d(_floats(b, "b")))
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
    basis : array_like or torch.Tensor, (P, *latent), P = 1 or 2
        Orthonormal rows.

    Raises
    ------
    ValueError
        A radius that is not positive, rows that are not orthonormal, or P > 2.
    """
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(
            f"Expected a positive, finite radius, got {radius}. "
            "Use a small number such as 1e-3, in units of the latent space."
        )
    plane = Slice(_floats(center, "center"), _floats(basis, "basis"))
    flat = plane.basis.reshape(plane.dim, -1)
    defect = float(np.abs(flat @ flat.T - np.eye(plane.dim)).max())
    if defect > 1e-6:  # a basis orthonormalised in float32 passes
        raise ValueError(
            f"Expected orthonormal basis rows, got rows whose Gram matrix is off the identity by "
            f"{defect:.2g}. Orthonormalise them first: numpy.linalg.qr(basis.T)[0].T."
        )
    r = float(radius)
    if plane.dim == 1:
        return plane.segment(-r, r)
    if plane.dim == 2:
        return plane.polygon([[r, 0.0], [0.0, r], [-r, 0.0], [0.0, -r]])
    raise _wrong_dimension(plane.dim)


def _identity(dim: int) -> Slice:
    """Return the slice that is all of R^dim."""
    return Slice(np.zeros(dim), np.eye(dim))


def _listed(shape: tuple[int, ...]) -> str:
    """Return the entries of a shape, for a message."""
    return ", ".join(map(str, shape))


def _wrong_dimension(dim: int) -> ValueError:
    """Build the error for a domain of a dimension that is not enumerated."""
    return ValueError(
        f"Expected a domain of dimension 1 or 2, got {dim}. "
        "Take a slice of one or two axes through the latent space: cpwl.Slice.through(z0, z1, z2)."
    )


def _floats(values: Any, name: str) -> Array:
    """Copy to a read-only float64 array; refuse what is not real and finite."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.to(torch.float64).numpy() if not values.is_complex() else values.numpy()
    try:
        raw = np.asarray(values)
        if raw.dtype.kind not in "biuf":
            raise TypeError(f"dtype {raw.dtype}")
        array = np.array(raw, dtype=np.float64, order="C")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected {name} as real numbers in one rectangular array, got {type(values).__name__}"
            f" ({error}). Give a list, a numpy array or a torch tensor of real numbers."
        ) from None
    if not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise ValueError(
            f"Expected {name} to be finite, got {bad} NaN or infinite of {array.size} entries. "
            "Remove or replace them."
        )
    array.setflags(write=False)
    return array


def _bounds(lo: Any, hi: Any) -> tuple[Array, Array]:
    """Return lo and hi as vectors of one length with lo < hi."""
    low, high = np.atleast_1d(_floats(lo, "lo")), np.atleast_1d(_floats(hi, "hi"))
    if low.ndim != 1 or low.shape != high.shape or len(low) == 0:
        raise ValueError(
            f"Expected lo and hi as two vectors of one length, got shapes {low.shape} and "
            f"{high.shape}. Give one number per axis, for example box([-1, -1], [1, 1])."
        )
    for axis in np.flatnonzero(low >= high):
        raise ValueError(
            f"Expected lo < hi on every axis, got lo = {low[axis]:g} and hi = {high[axis]:g} on "
            f"axis {axis}. Swap them, or widen the domain."
        )
    return low, high
