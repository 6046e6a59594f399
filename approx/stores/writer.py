"""A store as it is written: by one run at a time, a chunk as a whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from approx.stores.errors import StoreError, imported, not_written
from approx.stores.folder import Folder, folder, get, parsed, put, remove, sealed
from approx.stores.group import (
    END,
    FORMAT,
    HEADER,
    Marker,
    Store,
    checksum,
    marker_name,
    read_end,
    read_header,
    read_markers,
    unreadable,
)
from approx.stores.locking import Lock


class Writer:
    """The one writer of a store; from `writing`.

    Attributes
    ----------
    header : dict or None
        None until `start`, in a place without a store.
    markers : dict from int to Marker
        The chunks that are done.
    latents : int or None
        How many the job has, as far as that was counted.
    """

    def __init__(self, at: Folder, lock: Lock) -> None:
        self.at = at
        self._lock = lock
        self._arrays: dict[str, Any] = {}
        self.header = read_header(at)
        self.markers = {} if self.header is None else read_markers(at)
        self.latents = None if self.header is None else read_end(at)

    def start(self, header: Mapping[str, Any]) -> None:
        """Make the store with its header: JSON, with the `chunk` length."""
        self.header = {"format": FORMAT, **header}
        self._write("run/zarr.json", _group({}))
        self._write("zarr.json", _group({HEADER: sealed(self.header)}))

    def compare(self, given: Mapping[str, Any]) -> None:
        """Refuse what is asked for now where the header has another value.

        Raises
        ------
        StoreError
            Names each field that differs, with what is stored and what was given.
        """
        header = self.header or {}
        other = [name for name, value in given.items() if header.get(name) != value]
        if other:
            stored = ", ".join(f"{name}={header.get(name)!r}" for name in other)
            now = ", ".join(f"{name}={given[name]!r}" for name in other)
            raise StoreError(
                f"Expected {stored}, with which {self.at.url} was begun; got {now}: give the "
                "former, or choose another place for another run."
            )

    def commit(
        self,
        number: int,
        digest: str,
        columns: Mapping[str, NDArray[Any]],
        details: Mapping[str, Any],
        *,
        described: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Write a chunk: its columns, and then its marker, by which it is done.

        Parameters
        ----------
        number : int
            Of the chunk.
        digest : str
            Of its latents.
        columns : mapping from str to (rows,) arrays
            float64, int64 or bool; the same names for every chunk.
        details : mapping
            What else belongs to the chunk, of JSON.
        described : mapping, optional
            Attributes of new columns.

        Raises
        ------
        StoreError
            It could not be written: the chunks before are as they were. Or another run took over.
        """
        self._lock.check()
        rows = len(next(iter(columns.values())))
        start = number * self._chunk
        try:
            if self.markers.pop(number, None) is not None:
                remove(self.at, marker_name(number))
            for name, values in columns.items():
                array = self._column(name, values, (described or {}).get(name, {}))
                length = max(start + rows, self.latents or 0)
                if array.shape[0] < length:
                    array.resize((length,))
                array[start : start + rows] = values
            sums = {name: checksum(values) for name, values in columns.items()}
            marker = Marker(rows, digest, sums, dict(details))
            put(self.at, marker_name(number), marker.text())
        except OSError as error:
            raise not_written(self.at.url, error) from error
        self.markers[number] = marker

    def expect(self, latents: int) -> None:
        """Keep how many latents the job has."""
        if latents != self.latents:
            self._write(END, json.dumps(sealed({"latents": latents})).encode())
            self.latents = latents

    def finish(self, attributes: Mapping[str, Any]) -> None:
        """Give what the table is to readers of Zarr, as attributes of the group."""
        group = parsed(get(self.at, "zarr.json") or b"")
        self._write("zarr.json", _group({HEADER: group["attributes"][HEADER], **attributes}))

    def store(self) -> Store:
        """Return the store as it is now."""
        assert self.header is not None
        return Store(self.at, self.header, dict(sorted(self.markers.items())), self.latents)

    @property
    def _chunk(self) -> int:
        assert self.header is not None, "start() comes first"
        return int(self.header["chunk"])

    def _write(self, name: str, data: bytes) -> None:
        self._lock.check()
        try:
            put(self.at, name, data)
        except OSError as error:
            raise not_written(self.at.url, error) from error

    def _column(self, name: str, values: NDArray[Any], attributes: Mapping[str, Any]) -> Any:
        if name not in self._arrays:
            zarr = imported("zarr")
            try:
                found = zarr.open_array(store=self.at.place, path=name, mode="r+")
            except FileNotFoundError:
                found = zarr.create_array(
                    store=self.at.place,
                    name=name,
                    shape=(0,),
                    chunks=(self._chunk,),
                    dtype=values.dtype,
                    fill_value=np.nan if values.dtype.kind == "f" else 0,
                    dimension_names=("latent",),
                    attributes=dict(attributes),
                )
            except OSError:  # a disk, and no file, that cannot be read
                raise
            except Exception as error:  # whatever zarr says of a file that is not its own
                raise unreadable(self.at, name, error) from error
            self._arrays[name] = found
        return self._arrays[name]


@contextmanager
def writing(url: str | os.PathLike[str]) -> Iterator[Writer]:
    """Open a store, or the place for a new one, as its only writer.

    Raises
    ------
    StoreError
        Another run is on it; another thing is there; a newer format; a damaged header.
    ImportError
        If zarr is not installed.
    """
    imported("zarr")
    at = folder(url)
    read_header(at)  # refused before a lock is written into somebody's folder
    with Lock(at) as lock:
        yield Writer(at, lock)


def digest(*arrays: ArrayLike) -> str:
    """Return the SHA-256 of arrays' values, dtypes and shapes, in 32 digits."""
    found = hashlib.sha256()
    for array in arrays:
        # not ascontiguousarray, which gives a scalar an axis
        values = np.asarray(array, order="C")
        found.update(f"{values.dtype.str}{values.shape}".encode())
        found.update(values.reshape(-1).view(np.uint8).data)
    return found.hexdigest()[:32]


def _group(attributes: Mapping[str, Any]) -> bytes:
    group = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    return json.dumps(group, indent=1).encode()
