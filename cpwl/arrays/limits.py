"""Limits that a caller gives: numbers that are large enough, or a refusal."""

from __future__ import annotations

from math import isfinite
from numbers import Integral, Real
from typing import Any


def require_at_least(
    least: float, value: Any, name: str, remedy: str, *, whole: bool = False
) -> None:
    """Refuse a limit that is smaller, infinite or no number.

    Raises
    ------
    ValueError
        Naming the limit, what was given and what to do.
    """
    kind = Integral if whole else Real
    fits = isinstance(value, kind) and not isinstance(value, bool)
    if not (fits and isfinite(value) and float(value) >= least):
        what = "a whole number" if whole else "a finite number"
        raise ValueError(f"Expected {name} as {what} of {least:g} or more, got {value!r}. {remedy}")
