"""Columns: a unit and one of its breakpoints each, with what decides their signs."""

from __future__ import annotations

from typing import NamedTuple

from cpwl.arrays import Floats, Ints


class Columns(NamedTuple):
    """Columns with what decides their signs; see `_kernels.pack_signs`."""

    unit: Ints
    value: Floats
    slack: Floats
    slope: Floats
    tolerance: Floats
    noise: Floats  # size of the errors that are really met

    def take(self, which: Ints) -> Columns:
        """Return some of the columns."""
        return Columns(
            self.unit[which], self.value[which], self.slack[which], self.slope[which],
            self.tolerance[which], self.noise[which],
        )  # fmt: skip
