"""Measurement of psi and nu by every method, against what it says it estimates and against A_w."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from approx.spectra import METHODS
from bridges.validation.autograd import true_jacobians
from bridges.validation.spectra import convergence
from bridges.validation.spectra.haar import largest, law, truth
from bridges.validation.spectra.result import Curve, Law, Runs, Spectra, Truth
from bridges.validation.spectra.rows import rows_of
from bridges.validation.spectra.runs import (
    Estimator,
    Matrices,
    default_methods,
    estimated_jacobians,
    matrix_free_gap,
    predict,
    run,
    topk,
)
from bridges.validation.spectra.single import in_single
from bridges.validation.subject import Subject, uniform
from cpwl.arrays import Ints

_NUMBERS = 2**26  # entries of the Jacobians of all latents
_SHARE = 0.35  # k over the smallest effective rank: predictions are safe below 0.5
_PRODUCTS = 16  # of a prediction, which is none unless k is more


def measure(
    subject: Subject,
    *,
    methods: Mapping[str, Estimator] | None = None,
    k: int | None = None,
    latents: int = 48,
    seeds: int = 80,
    draws: int = 400,
    seed: int = 0,
) -> Spectra:
    """Run every method over seeds at uniform latents, and compare with two truths.

    Parameters
    ----------
    subject : Subject
    methods : mapping of str to Estimator, optional
        Functions of an operator in float64, k and a seed that return an `approx.Spectrum`, whose
        `method` says what it estimates. By default `default_methods()`: exact, topk, paper,
        predict.
    k : int, optional
        Singular values, between 1 and min(D, E). By default 0.35 of the smallest effective rank of
        the latents, if that is more than the 16 products from which the paper's sketch is then
        predicted; else min(D, E) / 2, and at least 2.
    latents : int
        How many; fewer where their Jacobians have more than 2^26 entries together.
    seeds : int
        At least 2. Of "topk", whose claim is a bound for each, 4 at most. With 80, limits are below
        what a forgotten scale factor, k log sqrt(D / k), does to psi of a latent with k = 2.
    draws : int
        Of W, for the law of psi_W and nu_W; at least 2.
    seed : int
        Of all of these.

    Returns
    -------
    Spectra

    Raises
    ------
    ValueError
        A count that is too small, k out of range, no method, or one that says to estimate
        something unknown.

    Notes
    -----
    First truth: what a method says it estimates. "exact" and "topk": the k largest singular values
    of A_w (autograd's Jacobian without cells). "paper" and "predict": psi_W and nu_W for a random
    orthonormal W (k, D), whose law is drawn from the singular values of A_w by numpy. The limits:

    - exact: psi moves by at most the relative error of J, 1e-9 as in the section on Jacobians,
      times the sum of |J|_F / sigma_i; nu by 1e-9 of itself.
    - exact in float32, which is what `describe` does by default: psi is within 4 stated errors
      where float32 is on the same cell.
    - topk: the interval always holds it, more often than the 95 % that it claims.
    - paper, predict: a bias over seeds and latents of at most 4 standard errors. Probes are common
      to latents, so these are over seeds alone. The root mean square of the stated standard error
      over that of the difference from another draw of W: within the chi-square limits, at 1e-4 on
      either side, of a variance from so many seeds; claimed for 8 <= k <= min(D, E) / 2, where the
      stated error, of leading order in k, applies. The high limit of nu is sqrt 2 of that: its
      error may count what is due to pairs of rows twice, and allows for an unseen direction. The
      95 % interval holds another draw of W with a frequency of at least
      0.95 - 3 sqrt(0.95 x 0.05 / seeds).

    Second truth: psi and nu of all singular values of A_w. Nothing is claimed: W J has another
    spectrum, whose psi follows from ||J||_F and an effective rank.

    Seeds are run on the dense Jacobian that the operator's products make, which costs a thousandth;
    the first seed is run on the operator itself as well, and has to agree.

    A Jacobian's singular values are zero where numpy.linalg.matrix_rank says so. Latents where
    rounding could decide that otherwise are left out of the claims of "exact" and "topk".
    """
    for name, value, least in (("latents", latents, 1), ("seeds", seeds, 2), ("draws", draws, 2)):
        if value < least:
            raise ValueError(f"Expected {name} >= {least}, got {value}: errors are from as many.")
    methods = default_methods() if methods is None else methods
    if not methods:
        raise ValueError("Expected methods, got none: leave them out for the default ones.")
    rng = np.random.default_rng(seed)
    count = max(1, min(latents, _NUMBERS // (subject.outputs * subject.latent_size)))
    at = uniform(subject, count, rng)
    found = truth(true_jacobians(subject, at))
    smaller = found.values.shape[1]
    k = _default(found) if k is None else k
    if not 1 <= k <= smaller:
        raise ValueError(f"Expected k between 1 and min(D, E) = {smaller}, got {k}.")
    probes = rng.integers(2**62, size=seeds)
    op = estimated_jacobians(subject, at)
    runs = {name: run(estimator, op, k, probes) for name, estimator in methods.items()}
    _require_known(runs)
    gaps = {
        name: matrix_free_gap(subject, at, estimator, k, int(probes[0]), runs[name])
        for name, estimator in methods.items()
    }
    sizes = sorted({one.k for one in runs.values() if METHODS[one.method].claim == "interval"})
    laws = {
        size: law(found.values, found.outputs, found.columns, size, draws, rng) for size in sizes
    }
    curves = {
        name: _converging(methods[name], one, op, found, laws, probes) for name, one in runs.items()
    }
    result = Spectra(
        latents=at,
        truth=found,
        k=k,
        runs=MappingProxyType(runs),
        laws=MappingProxyType(laws),
        convergence=MappingProxyType(curves),
        gaps=MappingProxyType(gaps),
        single=in_single(subject, at),
    )
    return replace(result, rows=rows_of(result))


def _default(found: Truth) -> int:
    """Return k well below the smallest effective rank, or half of a small latent's coordinates."""
    smaller, r = found.values.shape[1], found.effective_rank
    k = 0 if np.isnan(r).all() else int(_SHARE * np.nanmin(r))
    return min(k, smaller // 2) if k > _PRODUCTS else min(max(2, smaller // 2), smaller)


def _converging(
    estimator: Estimator,
    one: Runs,
    op: Matrices,
    found: Truth,
    laws: Mapping[int, Law],
    probes: Ints,
) -> Curve:
    """Return errors over products: of approx's own methods a sweep, of others what they gave."""
    if one.method == "paper":
        return convergence.of_paper(one, laws[one.k])
    if getattr(estimator, "func", None) is predict:
        return convergence.of_predict(op, one, probes, laws[one.k])
    if one.method == "predict":
        return convergence.of_runs(one, *(d.mean(axis=0) for d in laws[one.k]))
    if estimator is topk:
        return convergence.of_topk(op, one.k, probes, *largest(found, one.k))
    return convergence.of_runs(one, *largest(found, one.k))


def _require_known(runs: Mapping[str, Runs]) -> None:
    """Refuse estimates of nothing that is known here."""
    # "auto" is two of the others
    known = [name for name in METHODS if name != "auto"]
    *others, last = known[::-1]
    for name, one in runs.items():
        if one.method not in known:
            raise ValueError(
                f"Expected '{name}' to return a Spectrum whose method is {', '.join(others)} or "
                f"{last}, got '{one.method}': say which of their definitions it estimates."
            )
