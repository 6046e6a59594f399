"""Files that appear under their final name only when they are whole."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it there on success, delete it on any failure.

    The temporary name ends like the final one, so that writers which choose a format by the
    suffix work unchanged. A reader sees the old file or the new one, never a part of it.

    Parameters
    ----------
    path : str or path
        The final name. An existing file is replaced.

    Raises
    ------
    FileNotFoundError
        The folder of `path` does not exist.
    RuntimeError
        The body finished without writing the file.
    """
    final = Path(path)
    if not final.parent.is_dir():
        raise FileNotFoundError(
            f"Expected an existing folder for {final.name}, got {final.parent}. "
            "Create the folder first, or give another path."
        )
    part = final.with_name(f".{final.stem}.{secrets.token_hex(4)}.part{final.suffix}")
    try:
        yield part
        if not part.is_file():
            raise RuntimeError(
                f"Expected {part.name} to be written, got no file. "
                "Write to the path that atomic_path yields, under that very name."
            )
        with open(part, "rb+") as handle:
            os.fsync(handle.fileno())  # the name must not outlive a crash that the bytes do not
        os.replace(part, final)
    finally:
        part.unlink(missing_ok=True)
