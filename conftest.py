"""Fixtures of examples: those in docstrings, README.md and the recipes."""

import sys

import pytest


@pytest.fixture(autouse=True)
def closed_figures(request: pytest.FixtureRequest):
    """Close the figures that an example opened: matplotlib warns of too many."""
    yield
    if isinstance(request.node, pytest.DoctestItem) and "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
