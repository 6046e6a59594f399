"""Decorators of kernels: functions that numba compiles once, releasing the GIL."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
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
def on_compilation(notify: Callable[[bool], object]) -> Iterator[None]:
    """Call ``notify`` when kernels begin (True) and cease (False) to be compiled, not read."""
    with event.install_listener("numba:compile", _Compilations(notify)):
        yield


def _compiled(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Compile, and keep the result in NUMBA_CACHE_DIR, the package's own folder or the user's.

    Where none can be written, in a read-only installation without a home, or the disk is full, one
    warning says so.
    """
    every: dict[str, Any] = {"nogil": True, "no_cfunc_wrapper": True, **options}
    made = njit(**every)(function)
    _keep(made)
    return made


def _keep(kernel: Any) -> None:
    """Have a kernel kept on disk, or a warning given once it has been compiled."""
    try:
        kernel.enable_caching()
        keep = kernel._cache.save_overload
    except RuntimeError as error:  # numba finds no folder
        if "no locator" not in str(error):
            raise
        keep = None

    def save(signature: Any, data: Any) -> None:
        try:
            if keep is None:
                _warn("no folder can be written")
            else:
                keep(signature, data)
        except OSError as error:
            _warn(str(error))

    kernel._cache.save_overload = save


@cache
def _warn(reason: str) -> None:
    warnings.warn(
        f"Expected a folder that keeps compiled kernels, got none ({reason}): every run compiles "
        "them anew, which takes seconds. Set NUMBA_CACHE_DIR to a folder that you may write.",
        RuntimeWarning,
        stacklevel=2,
    )


class _Compilations(event.Listener):
    """Listens to compilations; those of inner kernels are part of their callers'."""

    def __init__(self, notify: Callable[[bool], object]) -> None:
        self._notify = notify
        self._depth = 0  # changed under numba's lock of the compiler alone

    def on_start(self, event: event.Event) -> None:
        self._depth += 1
        if self._depth == 1:
            self._notify(True)

    def on_end(self, event: event.Event) -> None:
        self._depth = max(0, self._depth - 1)  # one may have begun before this listened
        if self._depth == 0:
            self._notify(False)
