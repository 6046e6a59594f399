"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder with the real networks and data sets, from the environment variable CPWL_DATA."""
    folder = os.environ.get("CPWL_DATA")
    if not folder:
        pytest.skip("set the environment variable CPWL_DATA to the folder with the real networks")
    return Path(folder)
