"""Partitions kept as one .npz without pickles.

A digest of all arrays and of the header is stored and compared, so that a file that was damaged or
changed is refused. It guards against accidents and not against forgery: whoever can write a file
can also write its digest.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from cpwl.arrays import Floats, Ints, Ragged, prefix
from cpwl.contents import open_archive, parse_json, read_array
from cpwl.domain import MAX_DIM, Domain, Slice
from cpwl.files import atomic_path
from cpwl.partition import require_network

if TYPE_CHECKING:
    from cpwl.network import Network
    from cpwl.partition import Partition, Status

FORMAT = "cpwl partition 3"
# rounding moves a sum of a fingerprint by about 1e-16 of its magnitude times the depth; one float32
# weight changed in its last bit moves it by about 1e-8 over the number of units
SAME = 1e-12
_OLDER = {
    "cpwl partition 1": "has neither facets of n dimensions nor a proof of its signs",
    "cpwl partition 2": "has no digest of its arrays",
}

# name -> (dtype, axes); one row per array of a Partition, to which its skeleton is added
_ARRAYS = {
    "points": ("f8", 2),
    "cell_offsets": ("i8", 1),
    "cell_corners": ("i4", 1),
    "cell_facet_offsets": ("i8", 1),
    "cell_facets": ("i4", 1),
    "facet_offsets": ("i8", 1),
    "facet_corners": ("i4", 1),
    "facet_cells": ("i4", 2),
    "facet_unit": ("i4", 1),
    "patterns": ("u8", 2),
    "bit_unit": ("i4", 1),
    "unit_base": ("i4", 1),
}
_FACES = {
    f"faces_{level}{end}": (dtype, 1)
    for level in range(1, MAX_DIM)
    for end, dtype in (("_offsets", "i8"), ("", "i4"))
}
# what goes with a Partition's own arrays; None: any number of axes
_OTHERS = {
    "corners": ("f8", 2),
    "slice_origin": ("f8", None),
    "slice_basis": ("f8", None),
    "slice_anchors": ("f8", 2),
    "stage_offsets": ("i8", 1),
    "fingerprint": ("f8", 2),
    "side_offsets": ("i8", 1),
    "side_corners": ("i4", 1),
    "header": ("U", 0),
    "digest": ("U", 0),
}
_KINDS = {**_ARRAYS, **_FACES, **_OTHERS}
_MAY_LACK = {"slice_anchors", *_FACES}


def save_partition(partition: Partition, path: str | os.PathLike[str]) -> None:
    """Write a partition to one .npz file, whole or not at all.

    Stored are all arrays, the domain with its slice, the status, and a fingerprint of the network
    (not the network itself): see `load_partition`. The name is kept as given.

    Raises
    ------
    FileNotFoundError
        The folder of `path` does not exist.
    ValueError
        A partition that was itself loaded without its network.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "square.npz")
    ...     cpwl.save_partition(partition, path)
    ...     print(path.is_file())
    True
    """
    network = require_network(partition)
    place = partition.domain.slice
    header = {
        "format": FORMAT,
        "status": {name: _plain(value) for name, value in partition.status._asdict().items()},
        "input_shape": list(network.input_shape),
        "output_shape": list(network.output_shape),
        # corners that half-spaces gave are fractions, of which the array below holds the nearest
        "exact_corners": [
            list(map(hexadecimal, point)) for point in partition.domain.exact_corners
        ],
    }
    arrays: dict[str, NDArray[Any]] = {name: getattr(partition, name) for name in _ARRAYS}
    arrays |= {
        "header": np.array(json.dumps(header)),
        "corners": partition.domain.corners,
        "slice_origin": place.origin,
        "slice_basis": place.basis,
        "stage_offsets": np.asarray(network.stage_offsets, np.int64),
        "fingerprint": fingerprint(network, partition.domain, partition.points),
    }
    if place.anchors is not None:
        arrays["slice_anchors"] = place.anchors
    sides = partition.domain.sides
    arrays["side_offsets"] = prefix(np.array([len(side) for side in sides]))
    arrays["side_corners"] = np.concatenate(sides).astype(np.int32)
    for level, faces in enumerate(partition.skeleton, 1):
        arrays |= dict(zip(_level(level), faces, strict=True))
    arrays["digest"] = np.array(digest(arrays))
    with atomic_path(path) as part, open(part, "wb") as handle:
        cast(Any, np.savez)(handle, allow_pickle=False, **arrays)


def load_partition(path: str | os.PathLike[str], network: Network | None = None) -> Partition:
    """Read a partition written by `save_partition`.

    Parameters
    ----------
    path : str or path
        The .npz file. Nothing in it is unpickled.
    network : Network, optional
        The network that was subdivided. Without it the geometry, patterns and status are there,
        but ``status.exact`` is False, since nothing says whose cells these are; whatever evaluates
        the network raises an error that says so.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        Not a partition file, a damaged one, one whose arrays were changed after it was written, or
        a network other than the one stored.

    Notes
    -----
    The file's arrays have a digest, which shows damage; whoever forges a file can forge it as well.
    What was computed from a network is proven again by `cpwl.certify`, or checked by `cpwl.check`.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "square.npz")
    ...     cpwl.save_partition(partition, path)
    ...     cpwl.load_partition(path, network)
    Partition(4 cells, 12 facets, 9 vertices in 2-D, complete)
    """
    from cpwl.partition import Partition

    place = Path(path)
    if not place.is_file():
        raise FileNotFoundError(
            f"Expected a partition file, got no file at {place}. Check the path."
        )
    stored = _read(place)
    try:
        header = _header(stored)
        slice_ = Slice(stored["slice_origin"], stored["slice_basis"], stored.get("slice_anchors"))
        domain = _domain(stored, header["exact_corners"], slice_)
        arrays = {name: stored[name] for name in _ARRAYS}
        levels = range(1, domain.dim) if domain.dim > 2 else ()
        skeleton = tuple(Ragged(*(stored[name] for name in _level(k))) for k in levels)
        stages = stored["stage_offsets"]
        shapes = [tuple(header["input_shape"]), tuple(header["output_shape"])]
        _validate(arrays, skeleton, domain.dim, int(stages[-1]))
        status = _status(header["status"], len(stages) - 1)
    except (KeyError, TypeError, ValueError, IndexError, ArithmeticError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)[:200]
        raise ValueError(
            f"Expected a partition ({FORMAT}) in {place}, got a file that does not fit: {reason}. "
            "Subdivide again and write it with cpwl.save_partition(partition, path) of this "
            "version of cpwl."
        ) from error
    if network is None:
        status = status._replace(exact=False)
    else:
        expected = stored["fingerprint"]
        _check_network(network, shapes, stages, domain, arrays["points"], expected)
    return Partition(network=network, domain=domain, skeleton=skeleton, status=status, **arrays)


def digest(arrays: dict[str, NDArray[Any]]) -> str:
    """Return the SHA-256 of arrays in the order of their names, the header among them."""
    hashed = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        hashed.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()


def fingerprint(network: Network, domain: Domain, points: Floats) -> Floats:
    """Return numbers that tell networks apart: (n, 2) sums of values and of their magnitudes.

    The outputs at up to 24 of the partition's points, spread over the domain, and every stage's
    preactivations at 3 of them, each summed with fixed signs. Sums and not a hash of bytes, because
    the last bits of a product differ between machines and thread counts. A change of parameters
    that shows at none of these points is not seen.
    """
    spread = points[np.linspace(0, len(points) - 1, min(24, len(points))).astype(np.int64)]
    rows = []
    for i, s in enumerate(spread):  # one by one: a sample of a large network may take 1 GB
        z = torch.from_numpy(domain.slice.embed(s[None]))
        rows.append(network(z).numpy().ravel())
        if i % 8 == 0:
            stages = range(network.num_stages)
            rows += [network.preactivations(z, stage).numpy().ravel() for stage in stages]
    result = np.empty((len(rows), 2))
    for row, values in zip(result, rows, strict=True):
        # the signs of an irrational rotation: fixed, balanced, without a short period
        turns = np.arange(1, len(values) + 1) * 0.6180339887498949 % 1
        row[0] = values @ np.where(turns < 0.5, 1.0, -1.0)
        row[1] = np.abs(values).sum()
    return result


def fingerprint_distance(found: Floats, expected: Floats) -> float:
    """Return how far two fingerprints are apart; those of one network at most `SAME`."""
    if found.shape != expected.shape:
        return np.inf
    off = np.abs(found[:, 0] - expected[:, 0]) / (expected[:, 1] + 1e-300)
    return float(off.max(initial=0.0))


def _check_network(
    network: Network,
    shapes: list[tuple[int, ...]],
    stages: Ints,
    domain: Domain,
    points: Floats,
    expected: Floats,
) -> None:
    """Raise unless this is the network whose partition was stored."""
    sizes = np.asarray(network.stage_offsets)
    found_shapes = [tuple(network.input_shape), tuple(network.output_shape)]
    if found_shapes != shapes or not np.array_equal(sizes, stages):
        raise ValueError(
            f"Expected the stored network, {shapes[0]} -> {shapes[1]} with units by stage from "
            f"{stages.tolist()}, got {found_shapes[0]} -> {found_shapes[1]} from {sizes.tolist()}. "
            "Pass the network that was subdivided, or none to use the geometry alone."
        )
    distance = fingerprint_distance(fingerprint(network, domain, points), expected)
    if not distance <= SAME:
        raise ValueError(
            "Expected the stored network, got one of the same shape with other parameters (values "
            f"at fixed points differ by {distance:.2g} of their magnitude). Pass the network that "
            "was subdivided, or none to use the geometry alone."
        )


def _read(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays that a partition has, or raise with what is wrong with the file."""
    stored = {}
    try:
        with open_archive(path) as archive:
            for member, info in archive.members.items():
                name = member.removesuffix(".npy")
                if name not in _KINDS or name == member:
                    raise ValueError(f"member {member[:60]!r}, which no partition has")
                body = io.BytesIO(archive.read(member))
                stored[name] = _typed(name, read_array(body, info.file_size))
    except ValueError as error:
        raise ValueError(
            f"Expected a whole .npz file written by cpwl.save_partition in {path}, got something "
            f"else or a damaged file ({error}). Write it again, or choose the right file."
        ) from error
    return stored


def _typed(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Require an array's dtype and axes, and that its numbers are finite."""
    kind, axes = _KINDS[name]
    fits = array.dtype.kind == "U" if kind == "U" else array.dtype == np.dtype(kind)
    if not fits or (axes is not None and array.ndim != axes):
        raise ValueError(f"{name} has dtype {array.dtype} and shape {array.shape}")
    if kind == "f8" and not np.isfinite(array).all():
        raise ValueError(f"{name} is not finite")
    return array


def _header(stored: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Read the header, and require the file to be as it was written."""
    header = parse_json(str(stored["header"]).encode())
    written = str(header["format"])
    if written != FORMAT:
        raise ValueError(f"{written[:40]!r} {_OLDER.get(written, 'is another format')}")
    missing = sorted(set(_KINDS) - set(stored) - _MAY_LACK)
    if missing:
        raise ValueError(f"it lacks {missing[0]!r}")
    rest = {name: array for name, array in stored.items() if name != "digest"}
    if str(stored["digest"]) != digest(rest):
        raise ValueError("its arrays are not those that were written; their digest differs")
    return header


def _status(stored: dict[str, Any], stages: int) -> Status:
    """Read the status, whose values have to be of their types and possible together."""
    from cpwl.partition import Status

    status = Status(**stored)
    flags = all(type(value) is bool for value in status[:2])
    counts = all(type(value) is int and value >= 0 for value in status[2:])
    possible = flags and counts and status.stages <= stages and status.complete >= status.exact
    if not possible or status.complete > (status.stages == stages and not status.needed):
        raise ValueError(f"a status that cannot be: {str(stored)[:200]}")
    return status


def _domain(
    stored: dict[str, NDArray[Any]], exact_corners: list[list[str]], place: Slice
) -> Domain:
    """Return the stored domain, or raise ValueError."""
    offsets, on = stored["side_offsets"].tolist(), stored["side_corners"].tolist()
    exact = tuple(
        tuple(Fraction(*(int(part, 16) for part in x.split("/"))) for x in point)
        for point in exact_corners
    )
    if set(on) == set(range(len(exact))) and offsets[-1] == len(on):
        sides = tuple(tuple(on[first:last]) for first, last in pairwise(offsets))
        domain = Domain(stored["corners"], place, exact, sides)
        if np.array_equal(domain.corners, stored["corners"]):
            return domain
    raise ValueError("its domain's corners and sides do not fit each other")


def hexadecimal(x: Fraction) -> str:
    """Write a fraction in hexadecimal, for which Python has no limit of length."""
    return f"{x.numerator:x}/{x.denominator:x}"


def _level(dim: int) -> tuple[str, str]:
    """Name the two arrays of the faces of one dimension."""
    return f"faces_{dim}_offsets", f"faces_{dim}"


def _validate(
    arrays: dict[str, NDArray[Any]], skeleton: tuple[Ragged, ...], dim: int, num_units: int
) -> None:
    """Raise ValueError where the arrays do not fit each other."""
    for level, faces in enumerate(skeleton, 1):
        arrays = arrays | dict(zip(_level(level), faces, strict=True))
    cells, facets = len(arrays["cell_offsets"]) - 1, len(arrays["facet_offsets"]) - 1
    points = len(arrays["points"])

    def within(name: str, low: int, high: int) -> bool:
        array = arrays[name]
        return array.size == 0 or (int(array.min()) >= low and int(array.max()) < high)

    def rows(offsets: str, items: str, least: int, high: int) -> bool:
        """Whether rows have at least so many items, all of them existing."""
        start = arrays[offsets]
        ends = len(start) > 0 and start[0] == 0 and start[-1] == len(arrays[items])
        return bool(ends and (np.diff(start) >= least).all()) and within(items, 0, high)

    below = [points, *(len(faces.offsets) - 1 for faces in skeleton)]
    whole = (
        rows("cell_offsets", "cell_corners", dim + 1, points)
        and rows("cell_facet_offsets", "cell_facets", dim + 1, facets)
        and rows("facet_offsets", "facet_corners", dim, points)
        and all(rows(*_level(k), k + 1, below[k - 1]) for k in range(1, len(below)))
        and (not skeleton or below[-1] == facets)
        and len(arrays["cell_facet_offsets"]) == cells + 1
        and len(arrays["patterns"]) == cells
        and len(arrays["facet_cells"]) == len(arrays["facet_unit"]) == facets
        and (dim > 2 or len(arrays["facet_corners"]) == dim * facets)
        and arrays["points"].shape[1] == dim
        and arrays["facet_cells"].shape[1] == 2
        and len(arrays["bit_unit"]) == 64 * arrays["patterns"].shape[1]
        and len(arrays["unit_base"]) == num_units
        and within("facet_cells", -1, cells)
        and within("facet_unit", -1, num_units)
        and within("bit_unit", -1, num_units)
    )
    if not whole:
        raise ValueError("its arrays do not fit each other")


def _plain(value: Any) -> Any:
    """Return a value of the status as JSON holds it."""
    return value.item() if isinstance(value, np.generic) else value
