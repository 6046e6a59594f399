"""Files and folders that appear under their final name only when they are whole."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import signal
import socket
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Signals that end a process at once, without the chance to delete what it has begun to write.
_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it there on success, delete it on any failure.

    The temporary name ends like the final one, so that writers which choose a format by the
    suffix work unchanged. A reader sees the old file or the new one, never a part of it. Ctrl-C,
    SIGTERM and SIGHUP are failures; what a killed process leaves, the next one that writes the
    same file deletes.

    Parameters
    ----------
    path : str or path
        The final name. An existing file is replaced.

    Raises
    ------
    FileNotFoundError
        The folder of `path` does not exist.
    OSError
        The disk is full.
    RuntimeError
        The body finished without writing the file.
    """
    with _part(Path(path)) as (final, part):
        yield part
        if not part.is_file():
            raise RuntimeError(
                f"Expected {part.name} to be written, got no file. "
                "Write to the path that atomic_path yields, under that very name."
            )
        with open(part, "rb+") as handle:
            os.fsync(handle.fileno())  # the name must not outlive a crash that the bytes do not
        os.replace(part, final)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder's name; as `atomic_path` otherwise.

    A folder that was there before goes out of the way first: the name may be missing for an
    instant, but never belongs to a part of a store.
    """
    with _part(Path(path)) as (final, part):
        old = part.with_name(part.name.replace(".part", ".old"))
        try:
            yield part
            if final.exists():
                os.replace(final, old)
            os.replace(part, final)
        finally:
            if old.exists() and not final.exists():
                os.replace(old, final)
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _part(final: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the final and a temporary name, which is gone in the end, whatever happens."""
    if not final.parent.is_dir():
        raise FileNotFoundError(
            f"Expected an existing folder for {final.name}, got {final.parent}. "
            "Create the folder first, or give another path."
        )
    _sweep(final)
    owner = f"{_host()}-{os.getpid()}-{secrets.token_hex(4)}"
    part = final.with_name(f".{final.stem}.{owner}.part{final.suffix}")
    try:
        with ending_as_error():
            yield final, part
    except OSError as error:
        if error.errno in _FULL or os.strerror(errno.ENOSPC) in str(error) or _is_short(error):
            raise OSError(
                error.errno or errno.ENOSPC,
                f"Expected room on the disk for {final}, got none ({error.strerror or error}). "
                "Free some, or give another path",
            ) from error
        raise
    finally:
        _delete(part)


def _is_short(error: OSError) -> bool:
    """Whether numpy wrote less than it had to, which it says in words alone."""
    return error.errno is None and " requested and " in str(error)


@contextmanager
def ending_as_error() -> Iterator[None]:
    """Turn signals that end the process into SystemExit, where nobody else handles them."""

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    mine = []
    if threading.current_thread() is threading.main_thread():
        mine = [number for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL]
    for number in mine:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)


def is_part(path: Path, final: str) -> bool:
    """Whether a file is what a process that writes a file of this name has begun, or has left."""
    return _part_of(Path(final), "[0-9a-f]{8}").fullmatch(path.name) is not None


def _part_of(final: Path, host: str) -> re.Pattern[str]:
    """Match the temporary names of a file on a host: process, and kind."""
    return re.compile(
        rf"\.{re.escape(final.stem)}\.{host}-(\d+)-[0-9a-f]{{8}}\.(part|old)"
        rf"{re.escape(final.suffix)}"
    )


def _sweep(final: Path) -> None:
    """Delete what processes of this machine that are no more have left of a file."""
    name = _part_of(final, _host())
    for path in final.parent.iterdir():
        found = name.fullmatch(path.name)
        if found and not _is_alive(int(found[1])) and (found[2] == "part" or final.exists()):
            _delete(path)


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # where signal 0 ends the process; nothing is swept there
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
