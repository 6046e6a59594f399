"""Contents of files that others wrote: members, arrays and JSON, checked before memory is taken.

What a file declares is compared with the bytes that it has, so that no reader takes more memory
than a few times the file's size. Every function raises ValueError with what is wrong, as the end of
a sentence; readers put the file's name and the remedy around it.
"""

from __future__ import annotations

import ast
import json
import os
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

_LONGEST_HEADER = 10_000
_MOST_AXES = 32
_MOST_DIGITS = 64
_MAGIC = b"\x93NUMPY"
# what zipfile raises about a damaged archive
_DAMAGE = (
    zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, struct.error,
    UnicodeDecodeError,
)  # fmt: skip


class Archive(NamedTuple):
    """An open zip file of stored members, by name."""

    file: zipfile.ZipFile
    members: dict[str, zipfile.ZipInfo]

    def read(self, name: str) -> bytes:
        """Return a member's bytes; KeyError where there is none, ValueError where it is damaged."""
        info = self.members[name]
        try:
            return self.file.read(info)
        except _DAMAGE as error:
            raise ValueError(f"member {name!r} is damaged ({error})") from error


class Header(NamedTuple):
    """What a .npy file says of its array; `start` is where the numbers begin."""

    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    start: int


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open a zip file whose members are stored as they are, which is how NumPy and torch write.

    Compressed members are refused rather than unpacked: their size is known only afterwards.
    """
    with open(path, "rb") as handle:
        try:
            archive = zipfile.ZipFile(handle)
        except (*_DAMAGE, ValueError) as error:
            raise ValueError(f"no whole zip archive ({error})") from error
        with archive:
            yield Archive(archive, _members(archive.infolist(), os.fstat(handle.fileno()).st_size))


def _members(listed: list[zipfile.ZipInfo], size: int) -> dict[str, zipfile.ZipInfo]:
    """Return members by name, or raise where they are not what `open_archive` takes."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in listed:
        name = info.filename
        if name in members:
            raise ValueError(f"two members of the name {name[:60]!r}")
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise ValueError(f"a member of the name {name[:60]!r}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ValueError(f"member {name[:60]!r} is compressed or encrypted, not stored")
        members[name] = info
    total = sum(max(info.file_size, info.compress_size) for info in members.values())
    if total > size:
        raise ValueError(f"members of {total:,} bytes in a file of {size:,}")
    return members


def parse_json(data: bytes) -> Any:
    """Read JSON as its standard has it: no NaN, no infinity, no key twice, no endless depth."""
    try:
        text = data.decode("utf-8")
        return json.loads(
            text, parse_constant=_no_constant, parse_int=_integer, object_pairs_hook=_unique
        )
    except UnicodeDecodeError:
        raise ValueError("bytes that are no text") from None
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} in a file without such numbers")


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a whole number of {len(text):,} digits")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs."""
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:40]!r} twice")
    return made


def array_header(stream: BinaryIO, size: int) -> Header:
    """Read the header of a .npy file of `size` bytes and require that its array fills the rest."""
    start = stream.read(8)
    if start[:2] == b"PK":
        raise ValueError("an archive of several arrays")
    if start[:6] != _MAGIC or start[6:] not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
        raise ValueError("no .npy array")
    wide = start[6] > 1
    length = int.from_bytes(stream.read(4 if wide else 2), "little")
    if length > min(_LONGEST_HEADER, size):
        raise ValueError(f"a header of {length:,} bytes")
    dtype, shape, fortran = _described(stream.read(length))
    begin = 8 + (4 if wide else 2) + length
    held, declared = size - begin, prod(shape) * dtype.itemsize
    if held != declared:
        raise ValueError(f"{held:,} bytes for {dtype} of shape {shape}, which take {declared:,}")
    return Header(dtype, shape, fortran, begin)


def _described(text: bytes) -> tuple[np.dtype, tuple[int, ...], bool]:
    """Read dtype, shape and order from a header's text."""
    try:
        stated = ast.literal_eval(text.decode("utf-8").strip())
        descr, fortran, shape = (stated[key] for key in ("descr", "fortran_order", "shape"))
        plain = isinstance(descr, str) and isinstance(fortran, bool) and isinstance(shape, tuple)
        dtype = np.dtype(descr) if plain and len(stated) == 3 else None
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise ValueError("a header that cannot be read") from error
    if dtype is None or dtype.hasobject or dtype.names or dtype.subdtype or not dtype.itemsize:
        raise ValueError("a header that describes no numbers")
    if not dtype.isnative:
        raise ValueError(f"{dtype.str} in the byte order of other machines")
    sizes = all(type(n) is int and 0 <= n < 2**62 for n in shape)
    if not sizes or len(shape) > _MOST_AXES:
        raise ValueError(f"shape {str(shape)[:60]}")
    return dtype, shape, fortran


def read_array(stream: BinaryIO, size: int) -> NDArray[Any]:
    """Read a .npy file of `size` bytes: plain numbers or text in this machine's byte order."""
    header = array_header(stream, size)
    order = "F" if header.fortran else "C"
    flat = np.frombuffer(bytearray(stream.read(size - header.start)), header.dtype)
    if flat.size != prod(header.shape):
        raise ValueError("fewer bytes than its size says")
    return flat.reshape(header.shape, order=order)


def map_array(path: Path) -> NDArray[Any]:
    """Map a .npy file that may be larger than memory, read-only."""
    size = path.stat().st_size
    with open(path, "rb") as stream:
        header = array_header(stream, size)
    if size == header.start:
        return np.empty(header.shape, header.dtype)
    order = "F" if header.fortran else "C"
    return np.memmap(path, header.dtype, "r", header.start, header.shape, order)
