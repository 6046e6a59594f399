"""Predictions over many seeds: unbiased for psi_W and nu_W, and intervals that hold."""

from __future__ import annotations

import zlib
from functools import cache

import pytest
import torch
from support.matrices import WIDE, Matrices, jacobians, wide, with_values
from torch import Tensor

from approx import Spectrum, spectrum
from approx.sketches import Probes
from approx.spectra import prediction
from approx.spectra.predicted import NEAR, estimate

DESCRIPTORS = "psi", "nu"


def effective_rank(J: Tensor) -> float:
    s = torch.linalg.svdvals(J)
    return float((s**2).sum() ** 2 / (s**4).sum())


@cache
def decoder(name: str) -> tuple[Matrices, float]:
    module, z = wide(name)
    J = jacobians(module, z)
    return Matrices(J), effective_rank(J[0])


def draws(op: Matrices, k: int, seeds: range, method: str) -> list[Spectrum]:
    return [spectrum(op, method=method, k=k, generator=s) for s in seeds]  # type: ignore[arg-type]


def collect(runs: list[Spectrum], name: str) -> Tensor:
    return torch.cat([getattr(r, name) for r in runs])


def errors(predicted: list[Spectrum], drawn: list[Spectrum], name: str) -> tuple[float, float]:
    """Return the mean error of predictions for independent draws of W, and its standard error."""
    value, target = collect(predicted, name), collect(drawn, name)
    spread = value.var() / len(value) + target.var() / len(target)
    return float(value.mean() - target.mean()), float(spread.sqrt())


def coverage(predicted: list[Spectrum], drawn: list[Spectrum], name: str) -> float:
    """Return how often the interval of a prediction holds psi_W of an independent W."""
    low, high = collect(predicted, f"{name}_interval").T
    target = collect(drawn, name)[: len(low)]
    return float(((low <= target) & (target <= high)).double().mean())


# a piecewise linear and a smooth one on every commit, all of them by night
@pytest.mark.parametrize(
    "name",
    [
        "leaky_conv", "gelu_mlp",
        *(pytest.param(name, marks=pytest.mark.nightly)
          for name in WIDE if name not in ("leaky_conv", "gelu_mlp")),
    ],
)  # fmt: skip
def test_predictions_of_decoders_are_unbiased_and_their_intervals_hold(name: str):
    """200 seeds; psi_W and nu_W of W J by their definition, from 400 other seeds."""
    op, r = decoder(name)
    k = int(0.3 * r)
    assert k > 16
    start = zlib.crc32(name.encode())  # other probes for each decoder
    predicted = draws(op, k, range(start, start + 200), "predict")
    drawn = draws(op, k, range(start + 1000, start + 1400), "paper")
    assert not any(p.fell_back.any() for p in predicted)
    assert all(p.products == 16 for p in predicted)
    for descriptor in DESCRIPTORS:
        error, stderr = errors(predicted, drawn, descriptor)
        assert abs(error) < 2 * stderr, descriptor
        assert 0.90 <= coverage(predicted, drawn, descriptor) <= 0.99, descriptor


SPECTRA = {
    # sigma^2 as j^-1: outliers, k lambda_1 far above 1, where any expansion in moments diverges
    "power law": torch.arange(1, 1001, dtype=torch.float64) ** -0.35,
    "flat": torch.ones(300, dtype=torch.float64),
    "lognormal": torch.exp(torch.special.ndtri((torch.arange(400).double() + 0.5) / 400) / 2),
    "one outlier": torch.cat([torch.tensor([6.0]), torch.ones(500)]).double(),
}

# by a few directions: beyond the reach of 16 products "predict" makes all k for nearly all of them
DOMINATED = ["power law", "one outlier"]


@pytest.mark.nightly
@pytest.mark.parametrize("share", [0.1, 0.3, 0.45])
@pytest.mark.parametrize("name", SPECTRA)
def test_predictions_on_prescribed_spectra(name: str, share: float):
    """Without falling back, whose choice by an estimated r_eff would select among the seeds."""
    J = with_values(SPECTRA[name], len(SPECTRA[name]) + 100, len(SPECTRA[name]))[None]
    op = Matrices(J)
    k = max(17, int(share * effective_rank(J[0])))
    drawn = draws(op, k, range(10_000, 10_300), "paper")
    results = []
    for seed in range(600):
        seen = prediction.measure(op, 16, Probes(seed))
        results.append([
            estimate(of(seen.found, k), of(seen.other, k))
            for of in (prediction.scaling, prediction.rank)
        ])  # fmt: skip
    for i, descriptor in enumerate(DESCRIPTORS):
        value = torch.cat([r[i][0] for r in results])
        low, high = torch.cat([r[i][2] for r in results]).T
        target = collect(drawn, descriptor)
        error = value.mean() - target.mean()
        stderr = (value.var() / len(value) + target.var() / len(target)).sqrt()
        # r_eff of an estimate from two continued probes has a bias of second order in its error
        assert abs(error) < 2 * stderr + 0.2 * value.std(), descriptor
        target = target.repeat(2)
        covered = ((low <= target) & (target <= high)).double().mean()
        # two probes see too much of a dominating direction, or miss it: the intervals are wide
        assert 0.92 <= covered <= (1 if name in DOMINATED else 0.99), descriptor


BEYOND = {
    **{name: values[:: -(-len(values) // 300)] for name, values in SPECTRA.items()},
    "uniform": torch.linspace(1, 1 / 300, 300, dtype=torch.float64),
    "condition 100": torch.logspace(0, -2, 300, dtype=torch.float64),
    "rank 150": torch.cat([torch.ones(150), torch.zeros(150)]).double(),
}


@pytest.mark.nightly
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("share", [0.55, 0.7, 0.8])
@pytest.mark.parametrize("name", BEYOND)
def test_intervals_hold_beyond_the_reach_of_16_products(name: str, share: float):
    """As shipped, over Jacobians turned at random, and those alone that more rows are taken for."""
    values = BEYOND[name]
    n, generator = len(values), torch.Generator().manual_seed(zlib.crc32(name.encode()))
    r_eff = float(values.square().sum() ** 2 / values.pow(4).sum())
    k = round(share * r_eff)
    runs, drawn, second = [], [], []
    for seed in range(20):
        g = torch.randn(20, n + 100, n, generator=generator, dtype=torch.float64)
        op = Matrices(torch.linalg.qr(g).Q * values)
        runs.append(spectrum(op, method="predict", k=k, generator=seed))
        drawn.append(spectrum(op, method="paper", k=k, generator=10_000 + seed))
        m, *_ = prediction.measure(op, 16, Probes(seed))
        first = prediction.effective_rank(m)
        second.append((k > NEAR * first) & ~runs[-1].fell_back)
    at = torch.cat(second)
    assert at.sum() < 20 if name in DOMINATED else at.sum() > 50
    for descriptor in DESCRIPTORS:
        low, high = collect(runs, f"{descriptor}_interval").unbind(dim=1)
        target = collect(drawn, descriptor)
        held = (low[:, None] <= target) & (target <= high[:, None])
        assert held.double().mean() > 0.93, descriptor
        if name not in DOMINATED:
            assert held[at].double().mean() > 0.93, descriptor


@pytest.mark.nightly
@pytest.mark.parametrize("name", WIDE)
def test_standard_errors_are_the_standard_deviations(name: str):
    op, r = decoder(name)
    k = int(0.3 * r)
    predicted = draws(op, k, range(400), "predict")
    drawn = draws(op, k, range(10_000, 10_400), "paper")
    for descriptor in DESCRIPTORS:
        spread = collect(drawn, descriptor).var()
        actual = (collect(predicted, descriptor).var() + spread).sqrt()
        stated = collect(predicted, f"{descriptor}_stderr").square().mean().sqrt()
        assert 0.9 < stated / actual < 1.15, descriptor
        stated = collect(drawn, f"{descriptor}_stderr").square().mean().sqrt()
        assert 0.85 < stated / (2 * spread).sqrt() < 1.35, descriptor


def test_the_leading_order_would_be_biased():
    """Why `predict` is not k log(||J||_F / sqrt D) - k^2 / (4 r_eff): at its best, with exact J."""
    values = torch.cat([torch.full((8,), 3.0), torch.ones(500)]).double()
    J = with_values(values, 700, 508)
    op, k = Matrices(J[None]), 60
    r = effective_rank(J)
    assert k / r < 0.3
    drawn = draws(op, k, range(100), "paper")
    leading = k / 2 * (J.square().sum() / 700).log() - k**2 / (4 * r)
    predicted = draws(op, k, range(1000, 1100), "predict")
    error, stderr = errors(predicted, drawn, "psi")
    assert abs(error) < 2 * stderr
    assert abs(leading - collect(drawn, "psi").mean()) > 5 * stderr


@pytest.mark.parametrize(
    ("k", "columns", "rows"),
    [
        (6, 6, 12), (9, 5, 30),
        *(pytest.param(*sizes, marks=pytest.mark.nightly) for sizes in ((1, 1, 3), (36, 36, 108))),
    ],
)  # fmt: skip
def test_one_draw_that_sees_all_of_the_jacobian_knows_its_spread(k: int, columns: int, rows: int):
    """k = d, or a rank below k: psi_W is psi of J and a term whose law is known."""
    J = with_values(torch.linspace(1, 3, columns).double(), rows, columns)
    J = torch.cat([J, J.new_zeros(rows, 4)], dim=1) if k > columns else J
    op = Matrices(J[None])
    given, drawn = (draws(op, k, range(s, s + 400), "paper") for s in (0, 1000))
    assert all(int(run.rank) == columns for run in given)
    assert 0.92 <= coverage(given, drawn, "psi") <= 0.98
    assert 0.9 < float(given[0].psi_stderr) / float(collect(drawn, "psi").std() * 2**0.5) < 1.1
