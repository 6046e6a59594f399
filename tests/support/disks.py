"""File systems that fail on demand, for tests of what is written to them."""

from __future__ import annotations

import errno
import os
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class SmallDisk(MemoryFileSystem):
    """Files in memory under small://, full after `room` more writes."""

    protocol = "small"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    room: ClassVar[float] = float("inf")

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("small://"))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        if SmallDisk.room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        SmallDisk.room -= 1
        super().pipe_file(path, value, mode=mode, **options)


def small_disk() -> type[SmallDisk]:
    """An empty one, with room."""
    fsspec.register_implementation("small", SmallDisk, clobber=True)
    SmallDisk.store.clear()
    SmallDisk.pseudo_dirs[:] = [""]
    SmallDisk.room = float("inf")
    return SmallDisk
