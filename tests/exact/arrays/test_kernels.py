"""Kernels are compiled where nothing can be kept on disk, and say when they are compiled."""

from __future__ import annotations

import errno
import warnings
from pathlib import Path

import numba.core.caching
import pytest
import torch

import cpwl
from cpwl.arrays import inlined, kernel, kernels, on_compilation
from cpwl.engine import enumeration


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
    told: list[bool] = []
    with on_compilation(told.append):
        kernel(double)(2)
        assert told == [True, False]
        kernel(double)(3)  # from the file that the first has written
    assert told == [True, False]


def nested(x):
    return _double(x) + 1


_double = kernel(lambda x: x + x)


def test_kernels_inside_a_kernel_are_compiled_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))
    told: list[bool] = []
    with on_compilation(told.append):
        kernel(nested)(2)
    assert told == [True, False]


def test_the_bar_says_that_kernels_are_compiled_only_while_they_are(capsys, tmp_path, monkeypatch):
    """Also where the last stage is done by then."""
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))
    plain = enumeration._finish

    def finish(*arguments):
        kernel(double)(2j)
        return plain(*arguments)

    monkeypatch.setattr(enumeration, "_finish", finish)
    network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    shown = capsys.readouterr().err
    assert "compiling kernels, once: 100%" in shown
    assert shown.strip().rpartition("\r")[2].startswith("subdivide: 100%")
