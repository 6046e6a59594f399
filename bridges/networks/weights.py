"""Published weights, read from files that run no code, and put into modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from bridges.networks import data

_Module = TypeVar("_Module", bound=nn.Module)


def read(name: str, folder: Path | None) -> dict[str, Any]:
    """Read a state dict, `name` and `folder` as for `data.path`; some were saved on a GPU."""
    return torch.load(data.path(name, folder), map_location="cpu", weights_only=True)


def loaded(module: _Module, state: dict[str, Any]) -> _Module:
    """Load weights, in the module's own float32; every key has its place, or this raises."""
    module.load_state_dict(state)
    return module.eval()
