"""Kernels are compiled where nothing can be kept on disk, and say when they are compiled."""

from __future__ import annotations

import errno
import warnings
from pathlib import Path

import numba.core.caching
import pytest

import cpwl
from cpwl.arrays import inlined, kernel, kernels, on_compilation


def test_kernels_are_compiled_without_a_folder_for_them(monkeypatch):
    """A read-only installation without a home: numba finds no folder at all."""
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    kernels._warn.cache_clear()

    @kernel
    def twice(x):
        return 2 * x

    @inlined
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

    kernels._warn.cache_clear()

    @kernel
    def twice(x):
        return 2 * x

    monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, "save", full)
    with pytest.warns(RuntimeWarning, match="No space left on device.* Set NUMBA_CACHE_DIR"):
        assert twice(2) == 4


def test_every_kernel_is_compiled_in_this_way():
    files = Path(cpwl.__file__).parent.rglob("*.py")
    others = [file.name for file in files if "from numba import njit" in file.read_text()]
    assert others == ["kernels.py"]


def double(x):
    return x + x


def test_compilation_is_noticed_and_reading_from_the_disk_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))
    told: list[int] = []
    with on_compilation(lambda: told.append(1)):
        kernel(double)(2)
        assert told == [1]
        kernel(double)(3)  # from the file that the first has written
    assert told == [1]
