"""Rows of the agreement of psi and nu, with the limits that each method's own claim puts."""

from __future__ import annotations

import math
from typing import assert_never

import numpy as np
from scipy.stats import chi2, rankdata

from approx.spectra import METHODS
from bridges.validation.findings import Row
from bridges.validation.spectra.haar import largest
from bridges.validation.spectra.result import Law, Runs, Single, Spectra, Truth
from cpwl.arrays import Floats

LIMIT = 1e-9
"""Relative error of a Jacobian that is taken for rounding; as for the section on Jacobians."""
DESCRIPTORS = "psi", "nu"

_BIAS = 4.0  # standard errors of a mean
_CONFIDENCE = 0.95
_TAIL = 1e-4  # of the chi-square law of a variance from S seeds, on either side
_GROUPS = 8  # rows below which one draw says little about another


def rows_of(result: Spectra) -> tuple[Row, ...]:
    """Return the rows of a result that has none yet."""
    found, runs, gaps = result.truth, result.runs, result.gaps
    rows: list[Row] = []
    own = {name: one for name, one in runs.items() if not result.repeats_paper(one)}
    for name, one in runs.items():
        claim = METHODS[one.method].claim
        if name not in own:
            rows.append(_fell_back(name, one))
        elif claim == "exact":
            rows += _exact(name, one, found)
        elif claim == "bound":
            rows += _bounded(name, one, found)
        elif claim == "interval":
            rows += _random(name, one, result.laws[one.k], found)
        else:
            assert_never(claim)
    if result.single is not None:
        rows.append(_in_single(result.single))
    worst = max(gaps, key=lambda name: gaps[name])
    rows.append(
        _row(
            "psi", f"{worst}, matrix-free", "worst difference from dense J", gaps[worst],
            high=LIMIT * float(found.condition(runs[worst].k).max()),
            note="the first seed; the method that differs most",
        )
    )  # fmt: skip
    for name, one in own.items():
        if METHODS[one.method].claim != "exact":
            rows += _against_all(name, one, found)
    for k, law in result.laws.items():
        rows += _theory(k, law, found)
    for name, curve in result.convergence.items():
        if not math.isnan(curve.slope("psi")):
            rows.append(
                _row(
                    "psi", _case(name, runs[name]), "slope of log error on log products",
                    curve.slope("psi"),
                    note=f"{curve.products[0]:.0f} to {curve.products[-1]:.0f} products",
                )
            )  # fmt: skip
    return tuple(rows)


def _exact(name: str, one: Runs, found: Truth) -> list[Row]:
    psi, nu = largest(found, one.k)
    clear = found.clear
    note = "" if clear.all() else f"; {int((~clear).sum())} latents of unclear rank left out"
    error = np.abs(one.psi[0] - psi) / np.where(psi != 0, found.condition(one.k), 1.0)
    relative = np.abs(one.nu[0] - nu) / np.where(nu > 0, nu, 1.0)
    return [
        _row(
            "psi", _case(name, one), "worst error over condition", _max(error[clear]), high=LIMIT,
            note="condition: sum of |J|_F / sigma_i, by Weyl" + note,
        ),
        _row(
            "nu", _case(name, one), "worst relative error", _max(relative[clear]), high=LIMIT,
            note=note[2:],
        ),
    ]  # fmt: skip


def _in_single(single: Single) -> Row:
    """Claim that psi from products in float32 keeps its stated error, or is NaN."""
    known = np.isfinite(single.psi) & single.same
    apart, error = np.abs(single.psi - single.exact)[known], single.error[known]
    # a zero Jacobian has neither
    ratio = np.where(apart > 0, apart / np.where(error > 0, error, math.ulp(0.0)), 0.0)
    note = f"at {int(known.sum())} of {len(known)} latents"
    if (~single.same).any():
        note += f"; {int((~single.same).sum())} on another cell in float32"
    if np.isnan(single.psi).any():
        note += f"; NaN at {int(np.isnan(single.psi).sum())}"
    return _row(
        "psi", "all of J, in float32", "worst error over stated error", _max(ratio),
        high=_BIAS if known.any() else math.nan, note=note,
    )  # fmt: skip


def _bounded(name: str, one: Runs, found: Truth) -> list[Row]:
    """Claim that the interval from the value to the value with its bound holds the truth."""
    rows = []
    slack = LIMIT * found.condition(one.k)
    for descriptor, exact in zip(DESCRIPTORS, largest(found, one.k), strict=True):
        value, _, interval = one.of(descriptor)
        room = slack if descriptor == "psi" else LIMIT * exact
        inside = (interval[..., 0] - room <= exact) & (exact <= interval[..., 1] + room)
        error = _max(np.abs(value - exact)[:, found.clear])
        note = f"worst error {error:.2g}, from {one.products} products"
        share = inside[:, found.clear].mean() if found.clear.any() else math.nan
        rows.append(
            _row(descriptor, _case(name, one), "coverage of the bound", share, 1.0, note=note)
        )
    return rows


def _random(name: str, one: Runs, law: Law, found: Truth) -> list[Row]:
    """Claim no bias for psi_W and nu_W, the stated error, and the stated interval."""
    rows = []
    seeds, smaller = len(one.psi), min(found.outputs, found.columns)
    case = _case(name, one)
    share = one.fell_back.mean()
    aside = f"; {share:.0%} fell back to all k products" if share > 0 else ""
    for descriptor in DESCRIPTORS:
        value, stderr, interval = one.of(descriptor)
        target = law.psi if descriptor == "psi" else law.nu
        slack = LIMIT * max(1.0, float(np.abs(target).max()))
        # probes and draws of W are common to the latents: only their seeds are independent
        error = math.sqrt(_variance_of_mean(value) + _variance_of_mean(target))
        limit = _BIAS * error + slack
        mean = float(value.mean() - target.mean())
        note = f"limits: 4 standard errors over {seeds} seeds" + aside
        rows.append(_row(descriptor, case, "bias", mean, -limit, limit, note=note))
        actual = float(np.sqrt(np.square(value[:, None] - target).mean()))
        stated = float(np.sqrt(np.square(stderr).mean()))
        if actual > slack and seeds > 1:
            low, high = _spread_limits(seeds)
            note = f"limits: chi-square of {seeds - 1} seeds"
            if descriptor == "nu":
                high *= math.sqrt(2)
                why = "allows for a direction that no row has seen"
                if one.method == "paper" or one.fell_back.any():
                    why = "may count all of the variance twice"
                note += f", high one x sqrt 2: the stated one {why}"
            if not _GROUPS <= one.k <= smaller / 2:
                low, high = math.nan, math.nan
                note = f"no claim outside {_GROUPS} <= k <= min(D, E) / 2 = {smaller / 2:g}"
            rows.append(
                _row(descriptor, case, "stated error over actual", stated / actual, low, high,
                     note=note)
            )  # fmt: skip
        inside = (interval[:, None, :, 0] - slack <= target) & (
            target <= interval[:, None, :, 1] + slack
        )
        low = _CONFIDENCE - 3 * math.sqrt(_CONFIDENCE * (1 - _CONFIDENCE) / seeds)
        rows.append(
            _row(descriptor, case, "coverage of the 95 % interval", float(inside.mean()), low,
                 note=f"of another draw of W; worst latent {inside.mean(axis=(0, 1)).min():.2f}")
        )  # fmt: skip
    return rows


def _against_all(name: str, one: Runs, found: Truth) -> list[Row]:
    """Report how far the estimates are from psi and nu of the generator itself."""
    rows = []
    for descriptor, exact in zip(DESCRIPTORS, largest(found, found.values.shape[1]), strict=True):
        value = one.of(descriptor)[0]
        apart = (value - exact).mean(axis=0)
        note = f"{apart.std():.2g} is its standard deviation over latents"
        case = f"{_case(name, one)}, all of J"
        rows.append(_row(descriptor, case, "bias", float(apart.mean()), note=note))
        if np.ptp(exact) > 0:
            ranks = [_rank_correlation(v, exact) for v in value if np.ptp(v) > 0]
            rows.append(
                _row(descriptor, case, "rank correlation",
                     float(np.mean(ranks)) if ranks else math.nan,
                     note="Spearman's over latents, mean over seeds")
            )  # fmt: skip
    return rows


def _theory(k: int, law: Law, found: Truth) -> list[Row]:
    """Report how far psi_W and nu_W are from a Frobenius norm and an effective rank."""
    share = k / found.effective_rank
    if np.isnan(share).all():  # nothing but zero Jacobians
        return []
    psi, nu = leading_order(found, k)
    note = f"k / r_eff = {np.nanmedian(share):.2f}; the formula is for small ones"
    added = f"; orthonormal rows of W add about k^2 / (4 D) = {k**2 / (4 * found.outputs):.2g}"
    return [
        _row(
            name, f"W J, k = {k}", f"mean less {formula}",
            float(np.nanmean(drawn.mean(axis=0) - expected)), note=note + more,
        )
        for name, formula, drawn, expected, more in (
            ("psi", "k log(|J|_F / sqrt D) - k^2 / (4 r_eff)", law.psi, psi, added),
            ("nu", "k exp(-k / (8 r_eff))", law.nu, nu, ""),
        )
    ]  # fmt: skip


def leading_order(found: Truth, k: int) -> tuple[Floats, Floats]:
    """Return psi_W and nu_W (n,) to first order in k / r_eff; NaN for a zero Jacobian."""
    r = found.effective_rank
    norm = np.linalg.norm(found.values, axis=1)
    size = np.log(np.where(norm > 0, norm, np.nan) / math.sqrt(found.outputs))
    return k * size - k**2 / (4 * r), k * np.exp(-k / (8 * r))


def _fell_back(name: str, one: Runs) -> Row:
    note = f"its numbers are those of paper: k = {one.k} is too near its products, or to r_eff"
    return _row("psi, nu", _case(name, one), "share that fell back", 1.0, note=note)


def _spread_limits(seeds: int) -> tuple[float, float]:
    """Return limits of stated over actual errors: the actual one is from as many seeds."""
    freedom = seeds - 1
    high, low = chi2.ppf([_TAIL, 1 - _TAIL], freedom)
    return math.sqrt(freedom / low), math.sqrt(freedom / high)


def _variance_of_mean(values: Floats) -> float:
    """Variance of the mean over seeds and latents of (S, n), seeds being independent."""
    means = values.mean(axis=1)
    return float(means.var(ddof=1) / len(means)) if len(means) > 1 else 0.0


def _case(name: str, one: Runs) -> str:
    return f"{name}, k = {one.k}"


def _rank_correlation(a: Floats, b: Floats) -> float:
    """Return Spearman's correlation: that of the ranks, ties at their mean."""
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _max(values: Floats) -> float:
    return float(values.max()) if len(values.ravel()) else math.nan


def _row(
    quantity: str, case: str, statistic: str, value: float, low: float = math.nan,
    high: float = math.nan, note: str = "",
) -> Row:  # fmt: skip
    return Row("spectrum", quantity, case, statistic, float(value), low=low, high=high, note=note)
