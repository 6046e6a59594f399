"""Kernels compile where nothing can be cached, and say when they compile."""

from __future__ import annotations

import warnings

import pytest
from numba.core import caching

from cpwl.arrays import kernel, on_compilation


def double(x):
    """Double a number."""
    return x + x


def test_without_a_place_for_a_cache_kernels_compile_with_one_warning(monkeypatch) -> None:
    # as in an installation that is read-only, for a user without a writable home
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
    with pytest.warns(UserWarning, match=r"Set NUMBA_CACHE_DIR to a folder of yours\.$") as caught:
        compiled = kernel(double)
    assert len(caught) == 1
    assert compiled(2) == 4
    with warnings.catch_warnings(record=True) as again:
        warnings.simplefilter("default")
        kernel(double)
        kernel(double)
    assert len(again) == 1


def test_compilation_is_noticed_and_reading_from_the_cache_is_not(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))
    told: list[int] = []
    with on_compilation(lambda: told.append(1)):
        kernel(double)(2)
        assert told == [1]
        kernel(double)(3)  # the file that the first has written
    assert told == [1]
