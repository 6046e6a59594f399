"""One layer of units between two linear maps, whose knots are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Between(nn.Module):
    """A linear map to units, what they do, and a sum, in float64."""

    def __init__(self, act: Callable[[Tensor], Tensor], units: int = 40, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(units, 6, generator=generator, dtype=torch.float64))
        self.act = act

    def entering(self, z: Tensor) -> Tensor:
        return z @ self.weight.T

    def forward(self, z: Tensor) -> Tensor:
        y = self.act(self.entering(z))
        return y.flatten(1) @ torch.ones(math.prod(y.shape[1:]), 3, dtype=z.dtype)
