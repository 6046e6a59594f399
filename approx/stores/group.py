"""A store as it is read: its header, which chunks are done, and rows of a column."""

from __future__ import annotations

import json
import os
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from approx.stores.errors import StoreError, imported
from approx.stores.folder import Folder, folder, get, get_all, names_in, parsed, sealed, unsealed

FORMAT = 1
"""Version of the format; a store of a newer one is refused."""

HEADER = "cpwl_store"
END = "run/end.json"


@dataclass(frozen=True, eq=False)
class Marker:
    """What is kept of a chunk that is done, in a file that is written after its columns.

    Attributes
    ----------
    rows : int
        Fewer than a chunk's in the last one.
    digest : str
        Of its latents.
    checksums : mapping from str to int
        CRC-32 of each column's rows.
    details : mapping
        What else belongs to the chunk, of JSON.
    """

    rows: int
    digest: str
    checksums: Mapping[str, int]
    details: Mapping[str, Any]

    def text(self) -> bytes:
        """Return the file's text, sealed with a checksum of its own."""
        return json.dumps(sealed(dict(vars(self)))).encode()


@dataclass(frozen=True, eq=False)
class Store:
    """A store at one moment. What runs write to it later, it does not see.

    Attributes
    ----------
    at : Folder
        Where it is.
    header : mapping
        What defines the run, and the `chunk` length.
    markers : mapping from int to Marker
        The chunks that are done, by number.
    latents : int or None
        How many the job has; None where nobody has counted them yet.
    """

    at: Folder
    header: Mapping[str, Any]
    markers: Mapping[int, Marker]
    latents: int | None

    def __repr__(self) -> str:
        return f"Store({self.at.url!r}, {self.done:,} of {self.latents or 'unknown'} rows)"

    @property
    def chunk(self) -> int:
        """Rows of a chunk."""
        return int(self.header["chunk"])

    @property
    def rows(self) -> int:
        """Rows up to the end of the last chunk that is done."""
        return max((i * self.chunk + m.rows for i, m in self.markers.items()), default=0)

    @property
    def done(self) -> int:
        """Rows that are done."""
        return sum(marker.rows for marker in self.markers.values())

    @property
    def complete(self) -> bool:
        """Whether every row is done."""
        return self.latents is not None and self.done == self.latents

    def names(self) -> list[str]:
        """Return the columns' names, none before a chunk is done."""
        return [*self.markers[min(self.markers)].checksums] if self.markers else []

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return rows of a column, each chunk compared with its checksum.

        Rows that are not done are NaN, False or 0.

        Raises
        ------
        StoreError
            A chunk is damaged.
        """
        stop = self.rows if stop is None else min(stop, self.rows)
        if name not in self.names():
            raise KeyError(name)
        if start >= stop:
            return self._array(name)[:0]
        first = start // self.chunk * self.chunk
        last = min(-(-stop // self.chunk) * self.chunk, self.rows)
        values = self._values(name, first, last)
        for number, part in spans(first, last, self.chunk):
            here = values[part.start - first : part.stop - first]
            marker = self.markers.get(number)
            if marker is None:
                here[:] = np.nan if here.dtype.kind == "f" else 0
            elif checksum(here[: marker.rows]) != marker.checksums[name]:
                raise self._damaged(name, number, "other values")
        return values[start - first : stop - first]

    def _array(self, name: str) -> Any:
        return imported("zarr").open_array(store=self.at.place, path=name, mode="r")

    def _values(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Read chunks at once, or one by one to find which of those that are done is damaged."""
        try:
            array = self._array(name)
        except Exception as error:  # whatever zarr says of a file that is not its own
            raise unreadable(self.at, name, error) from error
        try:
            return np.asarray(array[start:stop])
        except Exception:  # whatever its codecs say of bytes that are not theirs
            values = np.zeros(stop - start, dtype=array.dtype)
            for number, part in spans(start, stop, self.chunk):
                if number in self.markers:
                    try:
                        values[part.start - start : part.stop - start] = array[part]
                    except Exception as error:
                        raise self._damaged(name, number, error) from error
            return values

    def _damaged(self, name: str, number: int, got: Any) -> StoreError:
        first = number * self.chunk
        return StoreError(
            f"Expected column {name} of {self.at.url} as it was written, got {got} in rows "
            f"{first:,} to {first + self.markers[number].rows - 1:,}: delete "
            f"{self.at.path(marker_name(number))} and describe the same latents to the store "
            "again, which does this chunk alone."
        )


def unreadable(at: Folder, name: str, error: Exception) -> StoreError:
    """Return the error of a column that zarr cannot open."""
    return StoreError(
        f"Expected column {name} of {at.url} as it was written, got a damaged zarr.json in it "
        f"({error}): put a copy of that file back, or make the store again."
    )


def open_group(url: str | os.PathLike[str]) -> Store:
    """Open a store to read it, with or without a run on it.

    Raises
    ------
    StoreError
        Nothing is there, or another thing than a store; a store of a newer format, or whose header
        is damaged.
    """
    at = folder(url)
    header = read_header(at, expected="a store")
    if header is None:
        raise StoreError(
            f"Expected a store at {at.url}, got nothing: describe(..., store=...) makes one."
        )
    return Store(at, header, read_markers(at), read_end(at))


def read_header(
    at: Folder, *, expected: str = "a store or an empty place"
) -> dict[str, Any] | None:
    """Return a store's header, None where a store may be made."""
    text = get(at, "zarr.json")
    if text is None:
        # what a run that was killed at its start leaves
        strange = [x for x in names_in(at) if x != "run" and not x.endswith(".partial")]
        if strange:
            got = "a file" if at.fs.isfile(at.root) else ", ".join(strange[:3])
            raise StoreError(f"Expected {expected} at {at.url}, got {got}: choose another place.")
        return None
    group = parsed(text)
    attributes = group.get("attributes") if isinstance(group, dict) else None
    if isinstance(attributes, dict) and HEADER not in attributes:
        raise StoreError(
            f"Expected a store of descriptors at {at.url}, got another Zarr group: choose another "
            "place."
        )
    header = attributes.get(HEADER) if isinstance(attributes, dict) else None
    version = header.get("format") if isinstance(header, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise StoreError(
            f"Expected a store of format {FORMAT} at {at.url}, got {version}: it was made by a "
            "newer version of cpwl; install that."
        )
    found = unsealed(header)
    if found is None:
        raise StoreError(
            f"Expected the header of {at.url} as it was written, got a damaged zarr.json: put a "
            "copy of that file back, or choose another place."
        )
    return found


def read_markers(at: Folder) -> dict[int, Marker]:
    """Return the chunks that are done; of a damaged marker its chunk is not, with a warning."""
    names = [name for name in names_in(at, "run") if name[:-5].isdigit() and name[-5:] == ".json"]
    found: dict[int, Marker] = {}
    for name, text in get_all(at, (f"run/{name}" for name in names)).items():
        inside = unsealed(parsed(text))
        if inside is None:
            warnings.warn(
                f"{at.path(name)} is damaged: its chunk counts as not done.",
                RuntimeWarning,
                stacklevel=3,
            )
            continue
        found[int(name[4:-5])] = Marker(**inside)
    return dict(sorted(found.items()))


def read_end(at: Folder) -> int | None:
    """Return how many latents the job has, if they were counted."""
    text = get(at, END)
    inside = None if text is None else unsealed(parsed(text))
    return None if inside is None else inside["latents"]


def marker_name(number: int) -> str:
    """Return the name of a chunk's marker in the store."""
    return f"run/{number:06d}.json"


def spans(start: int, stop: int, chunk: int) -> Iterator[tuple[int, slice]]:
    """Yield the chunks that rows are of: number, and the rows in each."""
    for number in range(start // chunk, -(-stop // chunk)):
        yield number, slice(max(start, number * chunk), min(stop, (number + 1) * chunk))


def checksum(values: NDArray[Any]) -> int:
    """Return the CRC-32 of a column's rows."""
    return zlib.crc32(np.ascontiguousarray(values).data)
