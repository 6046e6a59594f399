"""Rows of a table from the batches' results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    done = [part for part in parts if isinstance(part, Done)]
    failed = [part for part in parts if isinstance(part, Failed)]
    if not done:
        raise ValueError(
            f"Expected at least one latent that can be described, got {len(failed)} that fail, the "
            f"first with: {failed[0].reason}"
        )
    first = done[0].spectrum
    notes = [note for part in done for note in (part.spectrum.note, part.uncounted)]
    names = [name for name in LONG_NAMES if plan.basis is not None or name not in KNOTS]
    return Descriptors(
        **{name: np.concatenate([_column(part, name) for part in parts]) for name in names},
        **dict.fromkeys(() if plan.basis is not None else KNOTS),
        **_counted([part.knots for part in done if part.knots is not None]),
        method=first.method,
        used=first.used.partition(",")[0],
        definition=first.definition,
        subscript=first.subscript,
        k=first.k,
        seed=plan.options.seed,
        directions=0 if plan.basis is None else len(plan.basis),
        radius=plan.radius,
        dtype=_named(plan.ran_in),
        latent_shape=done[0].latent_shape,
        output_shape=done[0].output_shape,
        note=" ".join(dict.fromkeys(n for n in (plan.note, *notes) if n)),
        failures=tuple((part.number, part.reason) for part in failed),
        complete=complete,
    )


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


def _counted(counted: list[Knots]) -> dict[str, Any]:
    """Return how delta was counted; empty values without a neighbourhood."""
    if not counted:
        names = {"knots_method": "", "knots_dtype": "", "passes": 0, "units": 0, "passed_over": ()}
        return names | {"suggested_radius": math.nan}
    first = counted[0]
    return {
        "knots_method": first.method,
        "knots_dtype": _named(first.dtype),
        "passes": first.passes,
        "units": int(first.units.sum()),
        "passed_over": tuple(dict.fromkeys(name for c in counted for name in c.passed_over)),
        "suggested_radius": float(np.median([c.suggested_radius for c in counted]))
        if all(bool((c.count == 0).all()) for c in counted)
        else math.nan,
    }


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
