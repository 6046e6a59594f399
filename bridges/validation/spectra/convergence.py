"""Errors of every method against the number of Jacobian products that it is given."""

from __future__ import annotations

from functools import partial

import numpy as np

from approx import Spectrum, spectrum
from approx.spectra import DenseOperator
from bridges.validation.spectra.result import Curve, Law, Runs
from bridges.validation.spectra.runs import predict, run
from cpwl.arrays import Floats, Ints

_BLOCK, _DEPTH = 4, 51  # of "topk", by default
_PRODUCTS = 8, 16, 32, 64  # of "predict"


def of_paper(runs: Runs, law: Law) -> Curve:
    """Average 1, 2, 4, ... draws, down to eight such averages."""
    seeds = len(runs.psi)
    sizes = [2**i for i in range(20) if 8 * 2**i <= seeds] or [1]

    def error(values: Floats, truth: Floats, size: int) -> float:
        groups = seeds // size
        means = values[: groups * size].reshape(groups, size, -1).mean(axis=1)
        return _rms(means - truth.mean(axis=0))

    return Curve(
        np.array([float(size * runs.products) for size in sizes]),
        np.array([error(runs.psi, law.psi, size) for size in sizes]),
        np.array([error(runs.nu, law.nu, size) for size in sizes]),
    )


def of_predict(op: DenseOperator, given: Runs, seeds: Ints, law: Law) -> Curve:
    """Predict from 8, 16, 32, 64 products, as far as these are fewer than k."""
    k = given.k
    found = []
    for products in (p for p in _PRODUCTS if p < k):
        runs = given
        if products != given.products:
            runs = run(partial(predict, products=products), op, k, seeds)
        own = ~runs.fell_back
        if own.mean() < 0.5:  # what is left is a choice by the estimate itself
            continue
        psi, nu = (x - t.mean(axis=0) for x, t in ((runs.psi, law.psi), (runs.nu, law.nu)))
        found.append((products, _rms(psi[own]), _rms(nu[own])))
    return _curve(found)


def of_topk(op: DenseOperator, k: int, seeds: Ints, psi: Floats, nu: Floats) -> Curve:
    """Deepen the Krylov space from the first depth that holds k directions; psi, nu (n,): truth."""
    shallow = -(-k // _BLOCK)
    depths = sorted(
        {d for i in range(5) if (d := shallow * 2**i) < _DEPTH} | {max(shallow, _DEPTH)}
    )
    found = []
    for depth in depths:
        runs = run(partial(_krylov, depth=depth), op, k, seeds[:2])
        if found and runs.products == found[-1][0]:  # the space was all there is
            break
        found.append((runs.products, _rms(runs.psi - psi), _rms(runs.nu - nu)))
    return _curve(found)


def _krylov(op: DenseOperator, k: int, seed: int, *, depth: int) -> Spectrum:
    return spectrum(op, method="topk", k=k, generator=seed, block=_BLOCK, depth=depth)


def of_runs(runs: Runs, psi: Floats, nu: Floats) -> Curve:
    """Return the one point of a method as it was run; psi, nu (n,): truth."""
    return _curve([(runs.products, _rms(runs.psi - psi), _rms(runs.nu - nu))])


def _curve(found: list[tuple[int, float, float]]) -> Curve:
    products, psi, nu = np.array(found, np.float64).reshape(-1, 3).T
    return Curve(products, psi, nu)


def _rms(x: Floats) -> float:
    return float(np.sqrt(np.square(x).mean()))
