"""Small files of a store, each written whole, through fsspec."""

from __future__ import annotations

import json
import os
import uuid
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from approx.stores.errors import StoreError, imported


class Folder(NamedTuple):
    """A folder on a file system of fsspec."""

    fs: Any
    root: str
    # what zarr opens, whatever the current folder is by then
    place: str | Path
    # as it was given, for messages
    url: str
    local: bool

    def path(self, name: str) -> str:
        """Return the file system's path of a file by its name in the folder."""
        return f"{self.root}/{name}"


def folder(url: str | os.PathLike[str]) -> Folder:
    """Return the folder of a path or of a URL that fsspec knows."""
    fsspec = imported("fsspec")
    if not isinstance(url, str | os.PathLike) or not (given := str(url)):
        raise StoreError(f"Expected store as a path or a URL, got {url!r}: name a folder.")
    if "://" not in given:  # whatever else fsspec makes of names with :: in them
        given = os.path.abspath(os.path.expanduser(given))
        return Folder(fsspec.filesystem("file"), given, Path(given), str(url), True)
    given = given.rstrip("/")
    try:
        fs, root = fsspec.core.url_to_fs(given)
    except (ValueError, ImportError) as error:  # an unknown protocol, or one of another package
        raise type(error)(
            f"Expected store as a path or a URL that fsspec opens, got {given}: {error}."
        ) from error
    names = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    local, root = "file" in names, root.rstrip("/")
    # zarr takes no file:// with a folder that is not there yet
    return Folder(fs, root, Path(root) if local else given, given, local)


def put(at: Folder, name: str, data: bytes) -> None:
    """Write a file as a whole: a reader finds the old one or the new one, and no part of either."""
    if not at.local:  # an object is there when it is whole
        at.fs.pipe_file(at.path(name), data)
        return
    part = _part(at, name, data)
    try:
        os.replace(part, at.path(name))
    except OSError:
        part.unlink(missing_ok=True)
        raise


def create(at: Folder, name: str, data: bytes) -> bool:
    """Write a file that is not there yet; False if it is."""
    try:
        if not at.local:
            at.fs.pipe_file(at.path(name), data, mode="create")
            return True
        part = _part(at, name, data)
        try:
            os.link(part, at.path(name))  # fails where there is one, and the file is whole at once
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            with open(at.path(name), "xb") as file:
                file.write(data)
        finally:
            part.unlink(missing_ok=True)
    except FileExistsError:
        return False
    return True


def _part(at: Folder, name: str, data: bytes) -> Path:
    path = Path(at.path(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        part.write_bytes(data)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    return part


def get(at: Folder, name: str) -> bytes | None:
    """Return what a file holds, or None without one.

    Raises
    ------
    StoreError
        A folder has its name.
    """
    try:
        return at.fs.cat_file(at.path(name))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except IsADirectoryError:
        raise StoreError(
            f"Expected a file {name} in the store {at.url}, got a folder: remove it, or choose "
            "another store."
        ) from None


def get_all(at: Folder, names: Iterable[str]) -> dict[str, bytes]:
    """Return what files hold, at once where the file system can; without those that are gone."""
    paths = {at.path(name): name for name in names}
    if not paths:
        return {}
    if at.local:
        found = {name: get(at, name) for name in paths.values()}
        return {name: data for name, data in found.items() if data is not None}
    read = at.fs.cat(list(paths), on_error="omit")
    return {paths[path]: data for path, data in read.items()}


def names_in(at: Folder, inside: str = "") -> list[str]:
    """Return the names in a folder, empty where there is none."""
    path = f"{at.root}/{inside}" if inside else at.root
    at.fs.invalidate_cache(path)
    try:
        found = at.fs.ls(path, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name.rstrip("/").rpartition("/")[2] for name in found)


def remove(at: Folder, name: str) -> None:
    """Remove a file, if it is there."""
    with suppress(FileNotFoundError):
        at.fs.rm_file(at.path(name))


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """Return an object of JSON with a checksum of itself."""
    return {**value, "checksum": _checksum(value)}


def unsealed(value: Any) -> dict[str, Any] | None:
    """Return the object that was sealed, or None if it is damaged."""
    if not isinstance(value, dict) or "checksum" not in value:
        return None
    inside = {name: item for name, item in value.items() if name != "checksum"}
    return inside if value["checksum"] == _checksum(inside) else None


def parsed(data: bytes) -> Any:
    """Return JSON's value, or None where it is none."""
    try:
        return json.loads(data)
    except ValueError:
        return None


def _checksum(value: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())
