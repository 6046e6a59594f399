"""Numbers given by a caller: copied, or refused with what is wrong with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cpwl.arrays import UNIT_ROUNDOFF, Floats

MAX_DIM = 6


def floats(values: Any, name: str) -> Floats:
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


def roundoff(values: Any) -> float:
    """Relative rounding error that numbers of a caller bring along, by their precision."""
    if isinstance(values, torch.Tensor):
        kind = values.dtype if values.is_floating_point() else torch.float64
        return max(torch.finfo(kind).eps / 2, UNIT_ROUNDOFF)
    kind = np.asarray(values).dtype
    return max(float(np.finfo(kind).eps) / 2, UNIT_ROUNDOFF) if kind.kind == "f" else UNIT_ROUNDOFF


def bounds(lo: Any, hi: Any) -> tuple[Floats, Floats]:
    """Return lo and hi as vectors of one length with lo < hi."""
    low, high = np.atleast_1d(floats(lo, "lo")), np.atleast_1d(floats(hi, "hi"))
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


def half_spaces(A: Any, b: Any) -> tuple[Floats, Floats]:
    """Return the matrix (m, P) and the vector (m,) of A s <= b."""
    normals, limits = floats(A, "A"), floats(b, "b")
    if normals.ndim != 2 or normals.size == 0 or limits.shape != normals.shape[:1]:
        raise ValueError(
            f"Expected A of shape (m, P) and b of shape (m,) with m, P >= 1, got shapes "
            f"{normals.shape} and {limits.shape}. Give one row and one limit per half-space."
        )
    return normals, limits


def check_dim(dim: int) -> None:
    """Refuse a dimension whose partitions are out of reach."""
    if dim > MAX_DIM:
        raise ValueError(
            f"Expected a domain of dimension 1 to {MAX_DIM}, got {dim}. The number of cells, and "
            f"of the faces of each (3^{dim} - 1 of a box), grows too fast to list them. Take a "
            f"slice of at most {MAX_DIM} axes through the latent space: "
            "cpwl.Slice.through(z0, z1, z2)."
        )


def listed(shape: tuple[int, ...]) -> str:
    """Return the entries of a shape, for a message."""
    return ", ".join(map(str, shape))
