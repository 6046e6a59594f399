"""Activation patterns along a segment, by bisection and nothing but forward passes in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def pattern_of(module: nn.Module, z: Tensor) -> Tensor:
    """Tell which inputs of the module's ReLUs are positive at latents z, (n, units)."""
    seen: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, given, __: seen.append(given[0].flatten(1) > 0))
        for layer in module.modules()
        if isinstance(layer, nn.ReLU)
    ]
    try:
        with torch.no_grad():
            module(z)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(seen, dim=1)


def changes(patterns: Callable[[Tensor], Tensor], low: float, high: float, within: float) -> Tensor:
    """Find where the pattern (n, units) changes between two places, ascending.

    The places of one pattern form an interval: an interval whose ends agree holds no change, and
    every other one is halved. Changes less than ``within`` apart may be one.
    """
    left, right = torch.tensor([low]).double(), torch.tensor([high]).double()
    while len(left) and (right - left).max() > within:
        middle = (left + right) / 2
        left, right = torch.cat([left, middle]), torch.cat([middle, right])
        differ = (patterns(left) != patterns(right)).any(dim=1)
        left, right = left[differ], right[differ]
    return left.sort().values
