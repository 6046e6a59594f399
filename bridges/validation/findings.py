"""One compared number, and whether the two sides agree on it."""

from __future__ import annotations

import math
from typing import NamedTuple


class Row(NamedTuple):
    """One number of a comparison, with the limits that agreement puts on it.

    Attributes
    ----------
    section : str
        "jacobian", "spectrum", "complexity" or "density".
    quantity : str
        What is compared: "A_w", "psi", "knots", "entropy".
    case : str
        How: the method, and what was varied ("predict, k = 20"; "jvp float64, P = 2, r = 1e-5").
    statistic : str
        Which number `value` is: "worst relative error", "bias", "coverage", "p-value".
    value : float
        What was measured.
    low, high : float
        Agreement is ``low <= value <= high``; NaN on a side without a limit. Where both are NaN
        the number is only reported.
    note : str
        Where the worst case is, what the limit comes from, or why a number is missing.
    """

    section: str
    quantity: str
    case: str
    statistic: str
    value: float
    low: float = math.nan
    high: float = math.nan
    note: str = ""

    @property
    def claimed(self) -> bool:
        """Whether there is a limit, so that the row can fail."""
        return not (math.isnan(self.low) and math.isnan(self.high))

    @property
    def agrees(self) -> bool:
        """Whether the value is within its limits; NaN is not, wherever there is one."""
        if not self.claimed:
            return True
        return not (
            math.isnan(self.value) or self.value < self.low or self.value > self.high
        )  # a comparison with a limit of NaN is False

    @property
    def verdict(self) -> str:
        """Return "agrees" or "DISAGREES", or nothing where no limit is claimed."""
        if not self.claimed:
            return ""
        return "agrees" if self.agrees else "DISAGREES"

    @property
    def name(self) -> str:
        """What an error message calls the row."""
        return f"{self.section}: {self.quantity}, {self.case}: {self.statistic}"
