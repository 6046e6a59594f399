"""Decorators of kernels: functions that numba compiles once, releasing the GIL."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from numba import njit
from numba.core import event


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls."""
    return _compiled(function, {})


def inner(function: Callable[..., Any]) -> Any:
    """Compile a function that only kernels call: without a wrapper for Python, a quarter faster."""
    return _compiled(function, {"no_cpython_wrapper": True})


def inlined(function: Callable[..., Any]) -> Any:
    """Copy a function into the kernels that call it."""
    return _compiled(function, {"inline": "always"})


@contextmanager
def on_compilation(notify: Callable[[], object]) -> Iterator[None]:
    """Call ``notify`` whenever a kernel is compiled, rather than read from the cache."""
    with event.install_listener("numba:compile", _Starts(notify)):
        yield


def _compiled(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Compile, and keep the result on disk where there is a place for it."""
    options = {"nogil": True, "no_cfunc_wrapper": True, **options}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError as error:
        if "no locator" not in str(error):
            raise
        warnings.warn(
            "Expected a folder where compiled kernels can be kept, got none that can be written: "
            "they are compiled anew in every process. Set NUMBA_CACHE_DIR to a folder of yours.",
            stacklevel=1,  # one place for all kernels, so that it is said once
        )
        return njit(**options)(function)


class _Starts(event.Listener):
    """Listens to the starts of compilations."""

    def __init__(self, notify: Callable[[], object]) -> None:
        self._notify = notify

    def on_start(self, event: event.Event) -> None:
        self._notify()

    def on_end(self, event: event.Event) -> None:
        pass
