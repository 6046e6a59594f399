"""Descriptors over the plane through three latents, and along a path of latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from approx.decoder import check_latents
from approx.tables import Descriptors, describe, imported

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["along", "field", "latents_at"]

_AT_A_TIME = 64  # latents of the plane made in advance


def field(
    decoder: Callable[[Tensor], Any],
    anchors: Tensor | Sequence[Tensor],
    resolution: int | tuple[int, int] = 64,
    *,
    margin: float = 0.25,
    **options: Any,
) -> xr.Dataset:
    """Describe the plane through three latents on a grid.

    Parameters
    ----------
    decoder : callable
        As for `describe`.
    anchors : Tensor or three Tensors
        (3, *latent_shape), not on one line.
    resolution : int or (int, int)
        Pixels along u and v; an int is the longer side's, and pixels are about square.
    margin : float
        Room around the anchors on each side, as a share of the longer side of their bounding box.
    **options
        As for `describe`: method, k, neighbourhood, generator, dtype, ... With ``store=`` the same
        call goes on with an unfinished plane; the store has its pixels in the order of
        ``maps.psi.values.ravel()``.

    Returns
    -------
    xarray.Dataset
        The columns of `Descriptors` over the dimensions (v, u). The coordinates u and v of pixel
        centres are lengths in latent space: the first anchor is the origin, u points to the second
        and v is orthogonal to u on the side of the third. `anchor_u` and `anchor_v` (anchor) hold
        the anchors' places, `origin` (coordinate) and `basis` (axis, coordinate) the plane. After
        Ctrl-C the pixels that are missing are NaN and the attribute `complete` is 0.

    Raises
    ------
    ValueError
        Not three finite anchors, three on a line, or a resolution below 2.
    ImportError
        If xarray is not installed.

    Other exceptions are those of `describe`.

    Notes
    -----
    Cost: u times v latents of `describe`. Maps after A. I. Humayun et al., "What secrets do your
    manifolds hold?", 2024, figure 5.

    Examples
    --------
    >>> import torch
    >>> from approx import field
    >>> decoder = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    >>> anchors = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    >>> maps = field(decoder, anchors, 6, margin=0, neighbourhood=(2, 0.1), progress=False)
    >>> dict(maps.psi.sizes), maps.u.values.round(2).tolist()
    ({'v': 3, 'u': 6}, [0.17, 0.5, 0.83, 1.17, 1.5, 1.83])
    """
    xr = imported("xarray")
    given = anchors if isinstance(anchors, Tensor) else torch.stack(list(anchors))
    check_latents(given)
    origin, basis, places = _plane(given)
    u, v = _grid(places, resolution, margin)
    shape = given.shape[1:]

    def rows() -> Iterator[Tensor]:
        uu, vv = (grid.ravel() for grid in np.meshgrid(u, v))
        for start in range(0, uu.size, _AT_A_TIME):
            part = slice(start, start + _AT_A_TIME)
            z = _on_plane(origin, basis, uu[part], vv[part])
            yield z.reshape(-1, *shape).to(given.dtype).to(given.device)

    table = describe(decoder, rows(), total=u.size * v.size, **options)
    data: dict[str, Any] = {
        name: (("v", "u"), column.reshape(v.size, u.size), table.described(name))
        for name, column in _padded(table, u.size * v.size).items()
    }
    data |= {
        "origin": ("coordinate", origin.numpy()),
        "basis": (("axis", "coordinate"), basis.numpy()),
        "anchor_u": ("anchor", places[:, 0]),
        "anchor_v": ("anchor", places[:, 1]),
    }
    coords = {
        "u": ("u", u, {"long_name": "distance along the plane, towards the second anchor"}),
        "v": ("v", v, {"long_name": "distance along the plane, towards the third anchor"}),
    }
    return xr.Dataset(data, coords=coords, attrs=table.attributes() | _kept(given))


def along(
    decoder: Callable[[Tensor], Any],
    path: Tensor | Sequence[Tensor],
    *,
    times: ArrayLike | None = None,
    **options: Any,
) -> xr.Dataset:
    """Describe the latents of a path, such as a denoising trajectory.

    Parameters
    ----------
    decoder : callable
        As for `describe`.
    path : Tensor or sequence of Tensors
        (T, *latent_shape).
    times : (T,) array_like, optional
        A number for each step, such as the sampler's time; by default 0, 1, ..., T - 1.
    **options
        As for `describe`.

    Returns
    -------
    xarray.Dataset
        The columns of `Descriptors` over the dimension step, with the coordinates `step` (the
        times) and `distance`, the length of the path up to there in latent space, and the latents
        themselves (step, coordinate). After Ctrl-C the steps that are missing are NaN.

    Raises
    ------
    ValueError
        Latents that are not finite, or a number of times other than T.
    ImportError
        If xarray is not installed.

    Other exceptions are those of `describe`.

    Notes
    -----
    Cost: T latents of `describe`.

    Examples
    --------
    >>> import torch
    >>> from approx import along
    >>> path = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0]])
    >>> curve = along(torch.nn.Linear(2, 4), path, neighbourhood=None, progress=False)
    >>> curve.psi.dims, curve.distance.values.tolist()
    (('step',), [0.0, 5.0, 6.0])
    """
    xr = imported("xarray")
    given = path if isinstance(path, Tensor) else torch.stack(list(path))
    check_latents(given)
    steps = np.arange(len(given)) if times is None else np.asarray(times)
    if steps.shape != (len(given),):
        raise ValueError(
            f"Expected one time for each of {len(given)} latents, got shape {steps.shape}: give "
            "as many, or leave times out."
        )
    table = describe(decoder, given, **options)
    data: dict[str, Any] = {
        name: ("step", column, table.described(name))
        for name, column in _padded(table, len(given)).items()
    }
    flat = given.detach().cpu().flatten(1)
    flat = flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat
    data["latents"] = (("step", "coordinate"), flat.numpy())
    lengths = torch.linalg.vector_norm(flat.double().diff(dim=0), dim=1).cumsum(0).numpy()
    distance = np.concatenate([[0.0], lengths])
    coords = {
        "step": steps,
        "distance": ("step", distance, {"long_name": "length of the path in latent space"}),
    }
    return xr.Dataset(data, coords=coords, attrs=table.attributes() | _kept(given))


def latents_at(
    dataset: xr.Dataset,
    indices: Sequence[int] | NDArray[np.integer],
    *,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return latents of a `field` or of a path by their numbers.

    Parameters
    ----------
    dataset : xarray.Dataset
        From `field` or `along`.
    indices : (n,) sequence of int
        Steps of the path, or pixels in the order of ``dataset.psi.values.ravel()``.
    device : torch.device or str
        Where to put them.

    Returns
    -------
    Tensor
        (n, *latent_shape), in the dtype of the latents that made the dataset.

    Raises
    ------
    ValueError
        A dataset that holds no latents.

    Examples
    --------
    >>> import torch
    >>> from approx import along, latents_at
    >>> path = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    >>> curve = along(torch.nn.Linear(2, 4), path, neighbourhood=None, progress=False)
    >>> latents_at(curve, [1])
    tensor([[3., 4.]])
    """
    chosen = np.asarray(indices, dtype=np.int64)
    if "basis" in dataset:
        row, column = np.divmod(chosen, dataset.sizes["u"])
        origin, basis = (torch.from_numpy(dataset[x].values.copy()) for x in ("origin", "basis"))
        z = _on_plane(origin, basis, dataset.u.values[column], dataset.v.values[row])
    elif "latents" in dataset:
        z = torch.from_numpy(dataset["latents"].values[chosen])
    else:
        raise ValueError(
            f"Expected a dataset from field or along, got one with "
            f"{', '.join(map(str, dataset.data_vars))}: "
            "it does not say where its latents are."
        )
    shape = np.atleast_1d(dataset.attrs["latent_shape"]).tolist()
    dtype = getattr(torch, dataset.attrs["latent_dtype"])
    return z.reshape(-1, *shape).to(dtype).to(device)


def _plane(anchors: Tensor) -> tuple[Tensor, Tensor, NDArray[np.float64]]:
    """Return origin (d,), orthonormal basis (2, d) and the anchors' coordinates (3, 2)."""
    if len(anchors) != 3:
        raise ValueError(
            f"Expected three anchors (3, *latent_shape), got {len(anchors)}: they span the plane."
        )
    points = anchors.detach().cpu().double().flatten(1).numpy()
    first, second = points[1:] - points[0]
    long, wide = _dot(first, first) ** 0.5, _dot(second, second) ** 0.5
    u = first / long if long else first
    v, along = second, 0.0
    for _ in range(2):  # once leaves a share of u where the sides are nearly parallel
        share = _dot(v, u)
        v, along = v - share * u, along + share
    high = _dot(v, v) ** 0.5
    if min(long, high) <= 1e-9 * max(long, wide):
        raise ValueError(
            "Expected three anchors that span a plane, got three on one line: choose others."
        )
    basis = np.stack([u, v / high])
    places = np.array([[0.0, 0.0], [long, 0.0], [along, high]])
    return torch.from_numpy(points[0]), torch.from_numpy(basis), places


def _dot(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return a product that is the same on every machine: a store's latents are compared by it."""
    return math.fsum((a * b).tolist())


def _grid(
    places: NDArray[np.float64], resolution: int | tuple[int, int], margin: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the centres of pixels along u and v."""
    low, high = places.min(axis=0), places.max(axis=0)
    room = margin * (high - low).max()
    if not (margin >= 0 and np.isfinite(margin)):
        raise ValueError(f"Expected a margin of 0 or more, got {margin}: 0.25 is the default.")
    low, high = low - room, high + room
    size = high - low
    if isinstance(resolution, int):
        counts = [max(1, round(resolution * side / size.max())) for side in size]
    else:
        counts = list(resolution)
    if len(counts) != 2 or max(counts) < 2 or min(counts) < 1:
        raise ValueError(
            f"Expected a resolution of at least 2, or two numbers of pixels, got {resolution!r}."
        )
    u, v = (low[i] + (np.arange(count) + 0.5) * (size[i] / count) for i, count in enumerate(counts))
    return u, v


def _on_plane(
    origin: Tensor, basis: Tensor, u: NDArray[np.float64], v: NDArray[np.float64]
) -> Tensor:
    """Return the points of the plane, (n, d) in float64."""
    # element by element, which rounds alike everywhere; a product of matrices does not
    first, second = basis.numpy()
    return torch.from_numpy(origin.numpy() + u[:, None] * first + v[:, None] * second)


def _padded(table: Descriptors, total: int) -> Mapping[str, NDArray[Any]]:
    """Return the columns, with NaN for latents that were not reached."""
    columns = table.columns()
    missing = total - len(table)
    if not missing:
        return columns
    return {
        name: np.concatenate([column.astype(np.float64), np.full(missing, np.nan)])
        for name, column in columns.items()
    }


def _kept(latents: Tensor) -> dict[Literal["latent_dtype"], str]:
    return {"latent_dtype": str(latents.dtype).removeprefix("torch.")}
