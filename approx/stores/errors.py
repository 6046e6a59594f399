"""What goes wrong with a store, and with packages that are not there."""

from __future__ import annotations

import importlib
from typing import Any


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


def imported(name: str) -> Any:
    """Import an optional package, or say how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"Expected {name} to be installed, got {error}: pip install 'cpwl[table]'."
        ) from error
