"""Kernels where compiled code cannot be kept on disk."""

from __future__ import annotations

import errno
import warnings
from pathlib import Path

import numba.core.caching
import pytest

import cpwl
from cpwl.arrays import compiling, njit


def test_kernels_are_compiled_without_a_folder_for_them(monkeypatch):
    """A read-only installation without a home: numba finds no folder at all."""
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    compiling._warn.cache_clear()

    @njit(cache=True, nogil=True)
    def twice(x):
        return 2 * x

    @njit(cache=True, nogil=True, inline="always")
    def thrice(x):
        return 3 * x

    with pytest.warns(RuntimeWarning, match="Expected a folder .* Set NUMBA_CACHE_DIR to a folder"):
        assert twice(2) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one warning is enough
        assert twice(1.5) == 3.0
        assert thrice(2) == 6


def test_kernels_are_compiled_although_the_disk_is_full(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    compiling._warn.cache_clear()

    @njit(cache=True, nogil=True)
    def twice(x):
        return 2 * x

    monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, "save", full)
    with pytest.warns(RuntimeWarning, match="No space left on device.* Set NUMBA_CACHE_DIR"):
        assert twice(2) == 4


def test_every_kernel_is_compiled_in_this_way():
    files = Path(cpwl.__file__).parent.rglob("*.py")
    others = [file.name for file in files if "from numba import njit" in file.read_text()]
    assert others == []
