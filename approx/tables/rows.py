"""Rows of a table from the batches' results."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from approx.complexity import Knots
from approx.spectra import Spectrum
from approx.tables.plan import Plan
from approx.tables.table import KNOTS, LONG_NAMES, Descriptors


@dataclass(frozen=True, eq=False)
class Done:
    """Results of one batch, and how many products they took."""

    spectrum: Spectrum
    knots: Knots | None
    products: int
    latent_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    # why knots are None though they were asked for
    uncounted: str = ""


@dataclass(frozen=True, eq=False)
class Failed:
    """One latent that could not be described, by its number in the job."""

    number: int
    reason: str


_SPECTRA: dict[str, Callable[[Spectrum], Tensor]] = {
    "psi": lambda s: s.psi,
    "psi_error": lambda s: s.psi_stderr,
    "psi_low": lambda s: s.psi_interval[:, 0],
    "psi_high": lambda s: s.psi_interval[:, 1],
    "nu": lambda s: s.nu,
    "nu_error": lambda s: s.nu_stderr,
    "nu_low": lambda s: s.nu_interval[:, 0],
    "nu_high": lambda s: s.nu_interval[:, 1],
    "effective_rank": lambda s: s.effective_rank,
    "rank": lambda s: s.rank,
    "doubtful": lambda s: s.doubtful,
    "fell_back": lambda s: s.fell_back,
}

_KNOTS: dict[str, Callable[[Knots], Tensor]] = {
    "delta": lambda c: c.count,
    "delta_error": lambda c: c.undecided,
    "density": lambda c: c.density,
    "soft": lambda c: c.soft,
    "zaslavsky": lambda c: c.zaslavsky,
}


def join(plan: Plan, parts: Sequence[Done | Failed], *, complete: bool) -> Descriptors:
    """Join the batches' results, at least one of them done; rows of NaN for what failed."""
    scalars = summary([details(plan, parts)], complete=complete)
    return Descriptors(**(dict.fromkeys(KNOTS) | columns(plan, parts)), **scalars)


def columns(plan: Plan, parts: Sequence[Done | Failed]) -> dict[str, NDArray[Any]]:
    """Return the columns of some batches, those of delta only where it was asked for."""
    names = [name for name in LONG_NAMES if plan.basis is not None or name not in KNOTS]
    return {name: np.concatenate([_column(part, name) for part in parts]) for name in names}


def details(plan: Plan, parts: Sequence[Done | Failed]) -> dict[str, Any]:
    """Return what else belongs to some batches, in types of JSON."""
    done = [part for part in parts if isinstance(part, Done)]
    counted = [part.knots for part in done if part.knots is not None]
    notes = [note for part in done for note in (part.spectrum.note, part.uncounted)]
    return {
        "table": _settings(plan, done[0]) if done else None,
        "knots": _counting(counted[0]) if counted else None,
        "passed_over": list(dict.fromkeys(name for c in counted for name in c.passed_over)),
        # of every batch, for a median over all of them
        "suggested": [float(c.suggested_radius) for c in counted],
        "without_knots": [
            sum(int((c.count == 0).sum()) for c in counted),
            sum(len(c.count) for c in counted),
        ],
        "notes": list(dict.fromkeys(note for note in (plan.note, *notes) if note)),
        "fell_back": sum(int(part.spectrum.fell_back.sum()) for part in done),
        "continued": sum(int(part.spectrum.continued.sum()) for part in done),
        "failures": [[part.number, part.reason] for part in parts if isinstance(part, Failed)],
    }


def summary(parts: Sequence[Mapping[str, Any]], *, complete: bool) -> dict[str, Any]:
    """Return the fields of a table that are no columns, from the details of its parts."""
    failed = [(number, reason) for part in parts for number, reason in part["failures"]]
    settings = next((part["table"] for part in parts if part["table"] is not None), None)
    if settings is None:
        raise ValueError(
            f"Expected at least one latent that can be described, got {len(failed)} that fail, the "
            f"first with: {failed[0][1]}"
        )
    counting = next((part["knots"] for part in parts if part["knots"] is not None), None)
    radii = [radius for part in parts for radius in part["suggested"] if math.isfinite(radius)]
    zero, rows = np.sum([part["without_knots"] for part in parts], axis=0)
    return {
        **settings,
        "latent_shape": tuple(settings["latent_shape"]),
        "output_shape": tuple(settings["output_shape"]),
        **(counting or {"knots_method": "", "knots_dtype": "", "passes": 0, "units": 0}),
        "passed_over": tuple(dict.fromkeys(name for part in parts for name in part["passed_over"])),
        "suggested_radius": float(np.median(radii)) if radii and 2 * zero > rows else math.nan,
        "note": " ".join(dict.fromkeys(note for part in parts for note in part["notes"])),
        # those of older stores do not tell
        "continued": sum(part.get("continued", 0) for part in parts),
        "failures": tuple(failed),
        "complete": complete,
    }


def _settings(plan: Plan, first: Done) -> dict[str, Any]:
    found = first.spectrum
    return {
        "method": found.method,
        # the rows tell what became of a prediction
        "used": "predict" if found.fell_back.any() else found.used.split()[0].rstrip(","),
        "definition": found.definition,
        "subscript": found.subscript,
        "k": int(found.k),
        "seed": plan.options.seed,
        "directions": 0 if plan.basis is None else len(plan.basis),
        "radius": plan.radius,
        "dtype": named_dtype(plan.ran_in),
        "latent_shape": list(first.latent_shape),
        "output_shape": list(first.output_shape),
    }


def _counting(first: Knots) -> dict[str, Any]:
    return {
        "knots_method": first.method,
        "knots_dtype": named_dtype(first.dtype),
        "passes": first.passes,
        "units": int(first.units.sum()),
    }


def _column(part: Done | Failed, name: str) -> NDArray[Any]:
    """Return a batch's part of a column; real numbers in float64, which not every device has."""
    if name == "products":
        return np.full(1, 0) if isinstance(part, Failed) else _filled(part, part.products)
    if isinstance(part, Failed):
        return np.full(1, False) if name == "fell_back" else np.full(1, math.nan)
    if name in _SPECTRA:
        values = _SPECTRA[name](part.spectrum).cpu()
    else:
        if part.knots is None:
            return np.full(len(part.spectrum.psi), math.nan)
        values = _KNOTS[name](part.knots).cpu()
    return (values if name == "fell_back" else values.double()).numpy()


def _filled(part: Done, value: int) -> NDArray[np.int64]:
    return np.full(len(part.spectrum.psi), value, dtype=np.int64)


def named_dtype(dtype: torch.dtype) -> str:
    """Return a dtype's name without torch's."""
    return str(dtype).removeprefix("torch.")
