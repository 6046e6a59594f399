"""Compilation of kernels by numba, which keeps them on disk where a folder can be written."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numba


def njit(*, cache: bool, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile as `numba.njit`; a kernel that cannot be kept on disk is compiled all the same.

    The folder is NUMBA_CACHE_DIR, the package's own or the user's. Where none can be written, in a
    read-only installation without a home, or the disk is full, one warning says so.
    """

    def compiled(function: Callable[..., Any]) -> Any:
        made = numba.njit(**options)(function)
        if cache:
            _keep(made)
        return made

    return compiled


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
