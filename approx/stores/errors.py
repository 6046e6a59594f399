"""What goes wrong with a store, and with packages that are not there."""

from __future__ import annotations

import errno
import importlib
from typing import Any

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StoreError(ValueError):
    """A store that is another's, damaged, in use, of a newer format, or no store at all.

    The message says what was expected, what was got and what to do. Nothing was changed in it.

    Examples
    --------
    >>> import approx
    >>> try:
    ...     approx.open_store("no-such-folder.zarr")
    ... except approx.StoreError as error:
    ...     print(error)
    Expected a store at no-such-folder.zarr, got nothing: describe(..., store=...) makes one.
    """


def not_written(url: str, error: OSError) -> StoreError:
    """Return the error of a full disk, or of a place that cannot be written to."""
    if isinstance(error, FileExistsError | NotADirectoryError):  # of a folder above the store
        return StoreError(
            f"Expected a folder for the store {url}, got {error}: choose a place in a folder."
        )
    remedy = "make room" if error.errno in _FULL else "see to that"
    return StoreError(
        f"Expected room and leave to write to {url}, got {error}: {remedy} and call again, which "
        "goes on after the chunks that are in it."
    )


def imported(name: str) -> Any:
    """Import an optional package, or say how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"Expected {name} to be installed, got {error}: pip install 'cpwl[table]'."
        ) from error
