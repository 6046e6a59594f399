"""A folder with what is done of a survey: a header, one file a tile, and all cells where wanted.

    survey.json            format, code version, network, domain, tiles, options
    tiles/00000012.npz     what is kept of a tile
    cells/00000012.parquet its cells
    lock, owner.json       who writes

A tile's result is written last and whole: what has a result is done. Of a tile that is halved it
says where. The folder may lie on anything that is mounted and has locks; what a survey keeps is
small, but for the cells.
"""

from __future__ import annotations

import io
import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import numpy as np
from filelock import FileLock, Timeout
from torch import Tensor
from torch.export import ExportedProgram

from cpwl.contents import open_archive, parse_json, read_array
from cpwl.domain import Domain
from cpwl.files import atomic_path, ending_as_error, is_part
from cpwl.network import Network
from cpwl.storage import SAME, digest, fingerprint, fingerprint_distance, hexadecimal
from cpwl.surveys.measurement import Arrays

FORMAT = "cpwl survey 3"
_HEADER, _LOCK, _OWNER = "survey.json", "lock", "owner.json"
_PARTS = {"counts", "status", "facets", "sums", "psi_bins", "psi_volumes", "nu_bins", "nu_volumes",
          "keys", "regions", "pairs", "pair_stages", "along", "along_offsets"}  # fmt: skip


def code_version() -> str:
    """Return the version of this package, as far as it is installed."""
    try:
        return version("cpwl")
    except PackageNotFoundError:
        return "not installed"


def folder_of(store: str | os.PathLike[str]) -> Path:
    """Return the folder that was given, or raise ValueError."""
    if not isinstance(store, str | os.PathLike) or not os.fspath(store):
        raise ValueError(f"Expected store as a path, got {store!r}. Name a folder.")
    return Path(store)


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Make a folder a store that this process alone writes to.

    Raises
    ------
    BlockingIOError
        Another process writes to it.
    ValueError
        A folder of something else.
    OSError
        It cannot be made or written to.
    """
    with _told(folder):
        if folder.exists() and not (folder.is_dir() and _may_be_store(folder)):
            raise ValueError(
                f"Expected a new folder or the store of a survey at {folder}, got something else. "
                "Give another path."
            )
        (folder / "tiles").mkdir(parents=True, exist_ok=True)
    owner = folder / _OWNER
    lock = FileLock(folder / _LOCK)
    try:
        with _told(folder):
            lock.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(
            f"Expected a store that nobody writes to, got {folder}, to which {_said(owner)} is "
            "writing. Wait for it, or stop it and call again: what it has done is kept."
        ) from None
    try:
        if owner.exists():
            warnings.warn(
                f"Took {folder} over from {_said(owner)}, which has ended without leave.",
                RuntimeWarning,
                stacklevel=4,
            )
        me = {"process": os.getpid(), "host": socket.gethostname()}
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        with _told(folder):
            owner.write_text(json.dumps(me | {"since": since}))
        with ending_as_error():
            yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Say of which store the system speaks."""
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        raise OSError(
            error.errno,
            f"Expected a folder for the store at {folder} that can be made and written to, got "
            f"'{error.strerror or error}'. See to that, or give another path",
        ) from error


def _may_be_store(folder: Path) -> bool:
    held = {path.name for path in folder.iterdir() if not is_part(path, _HEADER)}
    return _HEADER in held or held <= {_LOCK, _OWNER, "tiles"}


def _said(owner: Path) -> str:
    """Name the process that wrote last."""
    try:
        who = json.loads(owner.read_text())
        return f"process {who['process']} on {who['host']} (since {who['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def header_of(
    network: Network, domain: Domain, tiles: tuple[int, ...] | str, options: dict[str, Any]
) -> dict[str, Any]:
    """Return everything that defines a survey."""
    place = domain.slice
    arrays = {"origin": place.origin, "basis": place.basis}
    # in the domain, at fixed shares of the way between its first corner and each other one
    corners = domain.corners
    ways = np.linspace(0, 1, 7)[:, None, None]
    points = (corners[:1] + ways * (corners[1:] - corners[:1])).reshape(-1, domain.dim)
    return {
        "format": FORMAT,
        "cpwl": code_version(),
        "input_shape": list(network.input_shape),
        "output_shape": list(network.output_shape),
        "stage_offsets": np.asarray(network.stage_offsets).tolist(),
        "fingerprint": fingerprint(network, domain, points).tolist(),
        # of units that are dead at all of these points no output tells
        "weights": digest(_weights(network)),
        "domain": [list(map(hexadecimal, point)) for point in domain.exact_corners],
        "slice": digest(arrays),
        "tiles": tiles if isinstance(tiles, str) else list(tiles),
        **options,
    }


def _weights(network: Network) -> Arrays:
    """Return the parameters, buffers and constants of what a network was captured from."""
    source, state = network.origin.source, network.origin.state or {}
    if isinstance(source, ExportedProgram):
        held = {**source.state_dict, **source.constants, **state}
    else:
        held = {**source.state_dict(), **state}
    return {k: v.detach().double().numpy() for k, v in held.items() if isinstance(v, Tensor)}


def read_header(folder: Path) -> dict[str, Any] | None:
    """Return what defines the survey in a store, or None where it is new."""
    path = folder / _HEADER
    if not path.exists():
        return None
    try:
        header = parse_json(path.read_bytes())
        written = str(header["format"])
        tiles = header["tiles"]
        whole = tiles == "auto" or (
            isinstance(tiles, list) and all(type(n) is int and n > 0 for n in tiles)
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    if written != FORMAT:
        raise ValueError(
            f"Expected a store of the format '{FORMAT}' at {folder}, got '{written[:40]}'. Use the "
            "version of cpwl that wrote it, or give another path."
        )
    if not whole:
        raise _damaged(path, ValueError("its tiles are not whole numbers"))
    return header


def write_header(folder: Path, header: dict[str, Any]) -> None:
    """Begin a store."""
    with atomic_path(folder / _HEADER) as part:
        part.write_text(json.dumps(header))


def require_same(folder: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise ValueError with everything in which a store is of another survey."""
    meant = {
        "cpwl": "the version of cpwl", "input_shape": "the network", "output_shape": "the network",
        "stage_offsets": "the network",
        "domain": "the domain", "slice": "the slice",
        "weights": "the network's parameters", "fingerprint": "the network's parameters",
        "tiles": "tiles", "maps": "maps",
        "cells": "cells", "proof": "proof",
    }  # fmt: skip
    shown = ("cpwl", "tiles", "maps", "cells", "proof")
    differ: dict[str, str] = {}
    for name, what in meant.items():
        here, there = wanted[name], stored.get(name)
        same = here == there
        if name == "fingerprint" and not {"the domain", "the slice"}.isdisjoint(differ):
            continue  # taken at points of the domain
        if name == "fingerprint" and not same:
            try:
                theirs = np.array(there, np.float64)
                same = fingerprint_distance(np.array(here), theirs) <= SAME
            except (ValueError, TypeError, IndexError):
                same = False
        if not same:
            differ.setdefault(
                what, f"{what} ({there} there, {here} here)" if name in shown else what
            )
    if differ:
        raise ValueError(
            f"Expected the survey that {folder} holds, got one that differs in "
            f"{', '.join(differ.values())}. Give another store, or what it was begun with."
        )


def result_path(folder: Path, number: int) -> Path:
    """Return where a tile's result is, once it is done."""
    return folder / "tiles" / f"{number:08d}.npz"


def cells_path(folder: Path, number: int) -> Path:
    """Return where a tile's cells are."""
    return folder / "cells" / f"{number:08d}.parquet"


def write_result(folder: Path, number: int, arrays: Arrays) -> None:
    """Write what is kept of a tile, whole or not at all."""
    with atomic_path(result_path(folder, number)) as part, open(part, "wb") as handle:
        every = arrays | {"digest": np.array(_signed(folder, number, arrays))}
        cast(Any, np.savez)(handle, allow_pickle=False, **every)


def _signed(folder: Path, number: int, arrays: Arrays) -> str:
    """Return a digest of arrays, of which tile they are, and of which survey."""
    header = np.frombuffer((folder / _HEADER).read_bytes(), np.uint8)
    return digest(arrays | {"tile": np.array(number), "survey": header})


def read_result(folder: Path, number: int, *, cells: bool) -> Arrays:
    """Read what was kept of a tile.

    Raises
    ------
    ValueError
        A damaged file, one of another tile or survey, or a result without its cells.
    """
    path = result_path(folder, number)
    try:
        found: Arrays = {}
        with open_archive(path) as archive:
            for member, info in archive.members.items():
                body = io.BytesIO(archive.read(member))
                found[member.removesuffix(".npy")] = read_array(body, info.file_size)
        written = str(found.pop("digest", ""))
        if set(found) not in (_PARTS, {"cut"}) or written != _signed(folder, number, found):
            raise ValueError("its arrays are not those that were written of this tile")
        if cells and "cut" not in found and not cells_path(folder, number).is_file():
            raise ValueError("the file with its cells is gone")
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    return found


def _damaged(path: Path, error: Exception) -> ValueError:
    remedy = "Delete it and call again: that tile alone is made anew."
    if path.name == _HEADER:
        remedy = "Give another path."
    return ValueError(f"Expected a whole file at {path}, got a damaged one ({error}). {remedy}")
