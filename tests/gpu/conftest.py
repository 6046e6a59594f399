"""The devices on which the tests of this folder are run.

CPWL_DEVICES="cpu" (or "cuda:1,mps") names them in place of what is there: on the CPU, which the
others are held against, the bodies are then known to run.
"""

from __future__ import annotations

import os

import pytest
import torch


def available() -> list[str]:
    named = os.environ.get("CPWL_DEVICES")
    if named:
        return named.split(",")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return [name for name, is_there in there.items() if is_there]


@pytest.fixture(params=available() or [None], ids=str)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Return a device that is there, of each kind."""
    if request.param is None:
        pytest.skip("no GPU is there; CPWL_DEVICES=cpu runs these tests on the CPU")
    return torch.device(request.param)
