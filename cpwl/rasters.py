"""Partitions as rasters: descriptors at the centres of pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from cpwl.arrays import Floats
from cpwl.descriptors import DESCRIPTORS, spectrum
from cpwl.dual import locate
from cpwl.export import columns_of, imported
from cpwl.partition import require_partition

if TYPE_CHECKING:
    from xarray import Dataset

    from cpwl.partition import Partition

_AXES = "uvwxyz"


def to_xarray(
    partition: Partition,
    resolution: int | Sequence[int] | Dataset = 64,
    descriptors: Iterable[str] | Mapping[str, ArrayLike] = ("psi", "nu", "rank"),
    *,
    wrt: str = "slice",
) -> Dataset:
    """Return descriptors on a grid of pixels, as `approx.field` lays it out.

    Parameters
    ----------
    partition : Partition
        Of any dimension P.
    resolution : int, P ints or xarray.Dataset
        Pixels along u, v, ... over the box around the domain; an int is the longest side's, and
        pixels are about square. A Dataset from `approx.field`, or from here: its pixels, whose
        plane must be the partition's slice.
    descriptors : iterable of names, or mapping of names to (C,) arrays
        As for `to_pandas`.
    wrt : {"slice", "latent"}
        What psi, nu, condition and rank are of: the map from slice coordinates, or that of the
        whole latent space, which `approx` estimates.

    Returns
    -------
    xarray.Dataset
        The descriptors at the centres of pixels, NaN outside the domain, and `cell` (-1 there),
        over the dimensions (v, u); in general (..., v, u). The coordinates u, v, ... are those of
        the slice. `origin` (coordinate) and `basis` (axis, coordinate) hold the slice.

    Raises
    ------
    ImportError
        xarray is missing.
    ValueError
        As for `describe` and `spectrum`; also a resolution below 1, or a Dataset on another plane.

    Notes
    -----
    A pixel on a knot gets one of the cells that touch there. Cost: `describe`, and `locate` of all
    pixels. `wrt="latent"` takes min(D, E) passes for each cell.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [3, 1]))
    >>> maps = cpwl.to_xarray(partition, 4)
    >>> maps.u.values.tolist(), maps.psi.dims, maps.cell.values.tolist()
    ([-0.5, 0.5, 1.5, 2.5], ('v', 'u'), [[0, 1, 1, 1], [3, 2, 2, 2]])
    >>> float(abs(cpwl.to_xarray(partition, maps).psi - maps.psi).max())
    0.0
    """
    require_partition(partition)
    xarray: Any = imported("xarray", "table")
    axes, place = _AXES[: partition.dim], partition.domain.slice
    origin, basis = place.origin.reshape(-1), place.basis.reshape(partition.dim, -1)
    turn, shift = np.eye(len(axes)), np.zeros(len(axes))
    if isinstance(resolution, xarray.Dataset):
        like: Any = resolution
        ticks, turn, shift = _pixels_of(like, axes, origin, basis)
        origin, basis = like["origin"].values, like["basis"].values
    else:
        ticks = _pixels(partition, resolution)
    grid = np.stack(np.meshgrid(*ticks[::-1], indexing="ij")[::-1], axis=-1)
    shape = grid.shape[:-1]
    cell = locate(partition, grid.reshape(-1, len(axes)) @ turn + shift)
    dims = tuple(axes[::-1])
    source = None
    if wrt != "slice" and not isinstance(descriptors, Mapping):
        source = spectrum(partition, wrt=wrt)
    data: dict[str, Any] = {
        "cell": (dims, cell.reshape(shape), {"long_name": "number of the cell"})
    }
    for name, column in columns_of(partition, descriptors, source).items():
        pixels = np.where(cell < 0, np.nan, column[cell].astype(np.float64))
        attrs = {} if isinstance(descriptors, Mapping) else _described(name, wrt)
        data[name] = (dims, pixels.reshape(shape), attrs)
    data |= {"origin": ("coordinate", origin), "basis": (("axis", "coordinate"), basis)}
    coords = {axis: (axis, tick) for axis, tick in zip(axes, ticks, strict=True)}
    attrs = {"latent_shape": list(place.latent_shape), "latent_dtype": "float64", "wrt": wrt}
    return xarray.Dataset(data, coords=coords, attrs=attrs)


def _described(name: str, wrt: str) -> dict[str, str]:
    """Return the attributes of a descriptor's variable."""
    entry = DESCRIPTORS[name]
    label, definition = entry.label, entry.definition
    if wrt == "latent":
        label = label.replace(" in the slice", "")
        definition = definition.replace("slice coordinates", "latents")
    return {"long_name": label, "units": entry.unit, "definition": definition}


def _pixels(partition: Partition, resolution: Any) -> list[Floats]:
    """Return the centres of pixels along each axis of the box around the domain."""
    corners = partition.domain.corners
    low, size = corners.min(axis=0), np.ptp(corners, axis=0)
    counts = np.array(resolution)
    if not (counts.dtype.kind in "iu" and counts.shape in ((), size.shape) and (counts > 0).all()):
        raise ValueError(
            f"Expected a number of pixels of at least 1, or {partition.dim} of them, or a dataset "
            f"with pixels, got {resolution!r}. Give 64 for 64 along the longest side."
        )
    if counts.ndim == 0:
        counts = [max(1, round(resolution * side / size.max())) for side in size]
    return [a + (np.arange(n) + 0.5) * (b / n) for a, b, n in zip(low, size, counts, strict=True)]


def _pixels_of(
    like: Dataset, axes: str, origin: Floats, basis: Floats
) -> tuple[list[Floats], Floats, Floats]:
    """Return the pixels of a dataset along each axis; ``u @ turn + shift`` is their place.

    The dataset's plane must be the slice with this origin (E,) and basis (P, E).
    """
    missing = [name for name in (*axes, "origin", "basis") if name not in like.variables]
    if missing:
        raise ValueError(
            f"Expected a dataset from approx.field or cpwl.to_xarray, with {', '.join(axes)}, "
            f"origin and basis, got one without {', '.join(missing)}. Give a number of pixels."
        )
    if like["basis"].shape != basis.shape:
        raise ValueError(
            f"Expected a dataset on a slice with a basis of shape {basis.shape}, got "
            f"{like['basis'].shape}. Subdivide the slice that the dataset was made on."
        )
    ticks = [np.asarray(like[axis].values, np.float64) for axis in axes]
    reach = np.array([max(abs(tick.min()), abs(tick.max())) for tick in ticks])
    apart = np.vstack([like["origin"].values - origin, like["basis"].values])
    inverse = np.linalg.pinv(basis)
    inside = apart @ inverse
    off = np.linalg.norm((apart - inside @ basis) * np.append(1.0, reach)[:, None])
    if off > 1e-9 * (np.linalg.norm(origin) + np.linalg.norm(reach)):
        raise ValueError(
            f"Expected a dataset on the partition's slice, got one on a plane {off:.3g} away. "
            "Build the slice from the same anchors: cpwl.Slice.through(*anchors)."
        )
    return ticks, inside[1:], inside[0]
