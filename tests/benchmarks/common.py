"""Networks and results of the benchmarks, for interpreters too that lack what cpwl needs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Found(NamedTuple):
    """How many cells (for `floor`: vertices), whether they are all, a point (float64) in each."""

    cells: int
    complete: bool = True
    centres: Callable[[], Tensor] | None = None


def make_network(widths: str) -> nn.Sequential:
    """Return Linear, ReLU, ..., Linear of dashed widths, as initialised after manual_seed(0)."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(int(n) for n in widths.split("-")):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def digest(module: nn.Sequential) -> str:
    """Return a hash of the parameters: engines in different environments had the same network."""
    data = b"".join(p.detach().numpy().tobytes() for p in module.parameters())
    return hashlib.sha256(data).hexdigest()[:16]


def count_patterns(module: nn.Sequential, points: Tensor) -> int:
    """Count the different activation patterns at points (N, P), evaluated in float64."""
    module, signs = module.double(), []
    with torch.no_grad():
        x = points.double()
        for layer in module:
            x = layer(x)
            if isinstance(layer, nn.Linear):
                signs.append(x > 0)
    return len(torch.unique(torch.cat(signs[:-1], 1), dim=0))
