"""What the tests of describe() share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from support import decoders
from torch import Tensor, nn

from approx import Descriptors, describe

ERRORS = ("psi_error", "nu_error", "psi_low", "psi_high", "nu_low", "nu_high")


def quiet(decoder: Callable[[Tensor], Any], latents: Any, **options: Any) -> Descriptors:
    return describe(decoder, latents, **{"generator": 5, "progress": False} | options)


def wide(seed: int = 0) -> decoders.Made:
    """An MLP with a flat enough spectrum for "predict" to predict."""

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(300, 400), nn.LeakyReLU(0.5), nn.Linear(400, 400))

    return decoders.seeded(make, (300,), seed)


def assert_same(one: Descriptors, other: Descriptors, rtol: float = 2e-5) -> None:
    """Equal to float32's rounding, and counts exactly."""
    assert len(one) == len(other)
    for name, column in one.columns().items():
        if column.dtype == np.float64:
            atol = 1e-4 if name in ERRORS or name in ("psi", "nu") else 1e-6
            np.testing.assert_allclose(other.columns()[name], column, rtol, atol, err_msg=name)
        elif name != "products":
            np.testing.assert_array_equal(other.columns()[name], column, err_msg=name)


class Calls(nn.Module):
    """Counts the latents of each call, and may do something on the n-th."""

    def __init__(
        self, inner: nn.Module, on: int = -1, act: Callable[[], None] | None = None
    ) -> None:
        super().__init__()
        self.inner, self.on, self.act = inner, on, act
        self.sizes: list[int] = []

    def forward(self, z: Tensor) -> Tensor:
        self.sizes.append(len(z))
        if len(self.sizes) == self.on and self.act is not None:
            self.act()
        return self.inner(z)

    @classmethod
    def after(cls, done: Any, inner: nn.Module, act: Callable[[], None], **options: Any) -> Calls:
        """Act on the first call after these latents are described, counted in a run of them."""
        calls = cls(inner).eval()
        quiet(calls, done, **options)
        return cls(inner, on=len(calls.sizes) + 1, act=act).eval()

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return copy.deepcopy(self.inner, memo)  # copies are not counted
