"""Rows of the counted knots: claims at the declared radius, and what is only reported."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from bridges.validation.complexity.neighbourhoods import zaslavsky
from bridges.validation.complexity.result import Complexity
from bridges.validation.findings import Row
from cpwl.arrays import Floats, Ints

_COVERED = 0.99  # of float32's errors, by what `approx.knots` says of its undecided units


def rows_of(result: Complexity) -> tuple[Row, ...]:
    """Return the rows of a result that has none yet, those of each P together."""
    if result.units == 0:
        note = "the network has no units, hence no knots"
        return (_row("knots", "exact", "units", 0.0, note=note),)
    rows = [row for q in range(len(result.directions)) for row in _at_radius(result, q)]
    if result.directions:
        rows += _everywhere(result)
    return (*rows, *_left_out(result))


def _left_out(result: Complexity) -> list[Row]:
    """Say which P were left out."""
    if not result.left_out:
        return []
    case = "P = " + ", ".join(map(str, result.left_out))
    size = math.prod(result.z.shape[3:])
    note = f"left out: a latent has no more than {size} orthogonal directions"
    return [_row("directions", case, "coordinates of a latent", float(size), note=note)]


def radius_text(radius: float) -> str:
    """Write a radius in few characters: 1e-5, 0.03, 14."""
    if radius < 1e-2:
        digits, exponent = f"{radius:.0e}".split("e")
        return f"{digits}e{int(exponent)}"
    return f"{radius:.2g}"


def _row(
    quantity: str,
    case: str,
    statistic: str,
    value: float,
    low: float = math.nan,
    high: float = math.nan,
    note: str = "",
) -> Row:
    return Row("complexity", quantity, case, statistic, float(value), low=low, high=high, note=note)


def _at_radius(result: Complexity, q: int) -> list[Row]:
    """Return the rows of one P at the declared radius, and its radii of validity."""
    P, r = result.directions[q], int(np.flatnonzero(result.radii == result.radius)[0])
    place = f"P = {P}, r = {radius_text(result.radius)}"
    rows = []
    for name, claimed in (
        ("jvp float64", True),
        ("hull float64", True),
        ("jvp float32", False),
        ("hull float32", False),
    ):
        share = _shares(result, q, name)
        notes = [_sweep(result, q, share)]
        if claimed:
            notes.insert(0, _differing(result, q, r, name))
        rows.append(
            _row(
                "knots",
                f"{name}, {place}",
                "share of latents with the exact number",
                share[r],
                low=1.0 if claimed else math.nan,
                note="; ".join(filter(None, notes)),
            )
        )
    rows += [_covered(result, q, r, place), _bound(result, q, r, place)]
    return rows + _valid(result, q)


def _shares(result: Complexity, q: int, name: str) -> Floats:
    """Return the share of the enumerated latents with the exact number of knots, by radius."""
    known = result.knots[q] >= 0
    return _ratio((known & (result.counts[name][q] == result.knots[q])).sum(1), known.sum(1))


def _ratio(part: Ints, whole: Ints) -> Floats:
    """Divide; NaN where there is nothing."""
    return np.where(whole > 0, part / np.maximum(whole, 1), math.nan)


def _sweep(result: Complexity, q: int, values: Floats) -> str:
    """Write one number for every decade of the radius, and for the largest."""
    decade = np.abs(np.log10(result.radii) - np.round(np.log10(result.radii))) < 1e-6
    decade[-1] = True
    texts = []
    for r in np.flatnonzero(decade).tolist():
        known, all_ = int((result.knots[q, r] >= 0).sum()), len(result.planted)
        text = f"{values[r]:.2f}" if known else "-"
        partly = f" ({known} of {all_})" if 0 < known < all_ else ""
        texts.append(f"{radius_text(result.radii[r])} {text}{partly}")
    return "by radius: " + ", ".join(texts)


def _differing(result: Complexity, q: int, r: int, name: str) -> str:
    """Say at how many latents equality is proven, and where it fails by most."""
    known = result.knots[q, r] >= 0
    text = f"proven at {int(result.proven[q, r].sum())} of {int(known.sum())}"
    if not known.all():
        text += f", {int((~known).sum())} not enumerated"
    off = np.where(known, np.abs(result.counts[name][q, r] - result.knots[q, r]), 0)
    if off.any():
        worst = int(off.argmax())
        text += (
            f"; worst at latent {worst}: {result.counts[name][q, r, worst]} for "
            f"{result.knots[q, r, worst]}"
        )
    return text


def _covered(result: Complexity, q: int, r: int, place: str) -> Row:
    off = np.abs(result.counts["jvp float32"][q, r] - result.counts["jvp float64"][q, r])
    covered = off <= result.undecided[q, r]
    spread = 3 * math.sqrt(_COVERED * (1 - _COVERED) / len(covered))
    return _row(
        "knots", f"jvp float32 against float64, {place}", "share within its undecided units",
        covered.mean(), low=_COVERED - spread,
        note=f"0.99 is claimed, limit 3 standard errors below; {int((off > 0).sum())} latents "
        f"miscounted, {result.undecided[q, r].mean():.2g} units undecided on average",
    )  # fmt: skip


def _bound(result: Complexity, q: int, r: int, place: str) -> Row:
    known = result.cells[q] >= 0
    ratio = _above(result.cells[q], result.counts["jvp float64"][q], result.directions[q])
    largest = np.where(known, ratio, -math.inf).max(axis=1)
    largest[~known.any(axis=1)] = math.nan
    return _row(
        "cells", f"Zaslavsky of jvp float64, {place}", "largest ratio of cells to the bound",
        largest[r], high=1.0, note=_sweep(result, q, largest),
    )  # fmt: skip


def _above(cells: Ints, knots: Ints, P: int) -> Floats:
    """Return cells divided by Zaslavsky's bound."""
    bound = [zaslavsky(max(n, 0), P) for n in knots.ravel().tolist()]
    return cells / np.array(bound, dtype=np.float64).reshape(cells.shape)


def _valid(result: Complexity, q: int) -> list[Row]:
    """Return from which radii on knots fold, and the count differs, at the uniform latents."""
    P, uniform = result.directions[q], ~result.planted
    known = result.knots[q][:, uniform] >= 0
    differs = known & (result.counts["jvp float64"][q] != result.knots[q])[:, uniform]
    first = np.where(differs, result.radii[:, None], math.inf).min(axis=0)
    swept = "" if P <= 2 else " (of those swept)"
    rows = []
    for quantity, case, values in (
        ("folds", f"exact, P = {P}", result.fold_radius[q]),
        ("knots", f"jvp float64 differs from exact, P = {P}", first),
    ):
        some = np.isfinite(values)
        largest = radius_text(float(np.max(result.radii[known.any(axis=1)], initial=0.0)))
        median = float(np.median(values))
        middle = f"above {largest}" if math.isinf(median) else radius_text(median)
        note = f"median {middle}, {int((~some).sum())} of {len(some)} latents without, up to "
        rows.append(
            _row(
                quantity,
                case,
                "smallest radius",
                values.min(),
                note=note + largest + (swept if quantity == "folds" else " (of those swept)"),
            )
        )
    return rows


def _everywhere(result: Complexity) -> list[Row]:
    """Return what the two theorems say, over all P and radii, and what was left out."""
    known = result.knots >= 0
    rows = [_where_proven(result, name, known) for name in ("jvp float64", "hull float64")]
    ratio = np.stack(
        [_above(result.cells[q], result.knots[q], P) for q, P in enumerate(result.directions)]
    )
    straight, folded = known & (result.folds == 0), known & (result.folds > 0)
    rows.append(
        _row(
            "cells",
            "Zaslavsky of the exact knots, all P and radii",
            "largest ratio of cells to the bound where nothing folds",
            ratio[straight].max() if straight.any() else math.nan,
            high=1.0,
            note=f"{int(straight.sum())} neighbourhoods"
            f"{_among(ratio[folded] > 1, 'with folds', 'have more cells')}",
        )
    )
    if not known.all():
        gaps = [
            f"P = {P}: {_gaps(result.radii, known[q])}"
            for q, P in enumerate(result.directions)
            if not known[q].all()
        ]
        rows.append(
            _row(
                "cells",
                "exact, all P and radii",
                "share of neighbourhoods enumerated",
                known.mean(),
                note="too many cells: " + "; ".join(gaps),
            )
        )
    return rows


def _where_proven(result: Complexity, name: str, known: NDArray[np.bool_]) -> Row:
    """Claim that a method is exact wherever the theorem holds."""
    equal = result.counts[name] == result.knots
    return _row(
        "knots",
        f"{name}, all P and radii",
        "share exact where the theorem holds",
        equal[result.proven].mean() if result.proven.any() else math.nan,
        low=1.0,
        note=f"it holds in {int(result.proven.sum())} of {int(known.sum())} "
        f"neighbourhoods{_among(equal[known & ~result.proven], 'others', 'are exact too')}",
    )


def _among(flags: NDArray[np.bool_], whose: str, what: str) -> str:
    """Say how many of some neighbourhoods have a property, or nothing if there are none."""
    return f"; of {flags.size} {whose} {flags.mean():.0%} {what}" if flags.size else ""


def _gaps(radii: Floats, known: NDArray[np.bool_]) -> str:
    """Say from which radii on neighbourhoods were not enumerated."""
    some, none = ~known.all(axis=1), ~known.any(axis=1)
    text = f"some from r = {radius_text(radii[some].min())} on"
    return text + (f", all from {radius_text(radii[none].min())}" if none.any() else "")
