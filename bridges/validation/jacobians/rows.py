"""Rows of the Jacobians' agreement: what is claimed of the errors, and within which limits."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from bridges.validation.autograd import SWITCHED
from bridges.validation.findings import Row
from bridges.validation.jacobians.result import (
    AUTOGRAD,
    DIFFERENCES,
    ESTIMATE,
    FORWARD,
    REVERSE,
    SINGLE,
    VALUES,
    Jacobians,
)
from bridges.validation.subject import Latents
from cpwl.arrays import Floats


def rows_of(result: Jacobians) -> tuple[Row, ...]:
    """Return the rows of a result that has none yet."""
    return tuple(_smooth(result) if result.elsewhere is None else _exact(result, result.elsewhere))


def _smooth(result: Jacobians) -> list[Row]:
    """Sum the errors up where there are no cells."""
    rows = [
        _worst(result, "J", f"{name} against autograd", result.errors[f"{name}, {AUTOGRAD}"])
        for name in (FORWARD, REVERSE)
    ]
    against = f"{FORWARD} against central differences"
    found = _worst(result, "J", against, result.errors[DIFFERENCES], limit=1.0)
    rows.append(found._replace(statistic="worst error over its estimate"))
    rows.append(
        Row(
            "jacobian", "J", DIFFERENCES, "worst error estimate",
            float(result.errors[ESTIMATE].max()),
            note="relative; from two steps, with the rounding of the values",
        )
    )  # fmt: skip
    return rows


def _exact(result: Jacobians, elsewhere: Latents) -> list[Row]:
    """Sum the errors up where A_w is known."""
    errors, clear = result.errors, result.clear
    size = result.latents.z[0].numel()
    of = f"of {result.cells:,}"
    if size > result.directions:
        of += f"; along the slice's {result.directions} directions, as E = {size:,}"
    rows = [
        Row("jacobian", "cells", "one latent in each", "compared", float(len(clear)), note=of),
        Row(
            "jacobian", "cells", "one latent in each", "unclear", float((~clear).sum()),
            note="latents within float64's rounding of a knot, without a claim",
        ),
    ]  # fmt: skip
    for name in (AUTOGRAD, FORWARD, REVERSE):
        rows.append(_worst(result, "A_w", name, errors[name], mask=clear))
        rows.append(_median("A_w", name, errors[name][clear]))
    # values are continuous across knots
    rows.append(_worst(result, "A_w z + b_w", VALUES, errors[VALUES], at=elsewhere))
    rows.append(_median("A_w z + b_w", VALUES, errors[VALUES]))
    for name in (FORWARD, REVERSE):
        error = errors[f"{name}, {AUTOGRAD}"]
        rows.append(_worst(result, "J", f"{name} against autograd", error))
    single = errors[SINGLE]
    rows += [
        Row(
            "jacobian", "A_w", SINGLE, "share on another cell", float((single > SWITCHED).mean()),
            note=f"relative error above {SWITCHED:g}: float32 has another activation pattern",
        ),
        _median("A_w", SINGLE, single[single <= SWITCHED])._replace(note="of the others"),
    ]  # fmt: skip
    return rows


def _worst(
    result: Jacobians,
    quantity: str,
    case: str,
    error: Floats,
    *,
    at: Latents | None = None,
    mask: NDArray[np.bool_] | None = None,
    limit: float | None = None,
) -> Row:
    """Return the row of the largest error and where it is; NaN, which fails, if there is none.

    By default at the result's latents, all of them, and within its limit.
    """
    at = result.latents if at is None else at
    where = np.arange(len(error)) if mask is None else np.flatnonzero(mask)
    value, note = math.nan, "no latent is clear of float64's rounding of a knot"
    if len(where):
        i = where[np.argmax(np.nan_to_num(error[where], nan=math.inf))]
        place = ", ".join(f"{x:.6g}" for x in at.s[i])
        cell = f"cell {at.cells[i]}, " if at.cells[i] >= 0 else ""
        value = float(error[i])
        note = f"{cell}s = ({place})" if value != 0 else "the same to the last bit everywhere"
    return Row(
        "jacobian", quantity, case, "worst relative error", value,
        high=result.limit if limit is None else limit, note=note,
    )  # fmt: skip


def _median(quantity: str, case: str, error: Floats) -> Row:
    value = float(np.median(error)) if len(error) else math.nan
    return Row("jacobian", quantity, case, "median relative error", value)
