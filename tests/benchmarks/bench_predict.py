"""How far predictions deviate, and how often their intervals hold, where 16 products are too few.

    pytest tests/benchmarks/bench_predict.py -s

A row is a spectrum and a share k / r_eff. "second": the share of 300 Jacobians, turned at random,
that "predict" takes from more rows, since their first products say 0.5 < k / r_eff <= 0.8. Of
these: the products of one, the root mean square deviation from E psi_W and E nu_W in standard
deviations of one draw (1 for "paper"), and how often the 95 % intervals hold another draw. The last
two columns are the coverage of all, also of those predicted from 16 products or drawn. TAEF2 is
one of the spectra where CPWL_DATA is set. Ten minutes of one thread.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from support.matrices import Matrices
from torch import Tensor

from approx import JacobianOperator, Spectrum, spectrum
from approx.sketches import Probes
from approx.spectra import prediction
from approx.spectra.predicted import FAR, NEAR
from bridges.networks import pretrained

SHARES = 0.55, 0.7, FAR
LEAST = 0.93
BATCH, BATCHES, DRAWS = 50, 6, 150
_n = 300
_i = torch.arange(1, _n + 1, dtype=torch.float64)
_normal = torch.special.ndtri(1 - (_i - 0.5) / _n)


def _lead(*values: float) -> Tensor:
    return torch.cat([torch.tensor(values), torch.ones(_n - len(values))]).double()


SPECTRA: dict[str, Tensor] = {
    "flat": _lead(),
    "uniform": 1 - (_i - 1) / _n,
    "power 0.25": _i**-0.25,
    "power 0.35": _i**-0.35,
    "lognormal 0.5": (_normal / 2).exp(),
    "exponential": -((_i - 0.5) / _n).log(),
    "condition 100": torch.logspace(0, -2, _n, dtype=torch.float64),
    "outlier 5": _lead(5),
    "outliers 7, 4": _lead(7, 4),
    "rank 150": (_i <= _n / 2).double(),
}


def taef2() -> Tensor:
    """Return the singular values of TAEF2's Jacobian 3072 x 512 at a photograph."""
    folder = Path(os.environ["CPWL_DATA"])
    z = pretrained.photograph_latents(4, ("astronaut",), folder=folder)
    with JacobianOperator(pretrained.taef2_decoder(folder), z) as op:
        values = spectrum(op, method="exact").singular_values
    assert values is not None
    return values[0]


def haar(rows: int, k: int, seed: int) -> Tensor:
    """Return BATCH matrices (rows, k) with orthonormal columns."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(BATCH, rows, k, generator=generator, dtype=torch.float64)).Q


def law(values: Tensor, rows: int, k: int) -> dict[str, Tensor]:
    """Return psi and nu (DRAWS,) of W J for Haar W, by their definitions."""
    parts = [haar(rows, k, k + i)[:, : len(values)] for i in range(DRAWS // BATCH)]
    s = torch.cat([torch.linalg.svdvals(values[:, None] * w) for w in parts])
    alpha = s / s.sum(dim=1, keepdim=True)
    return {"psi": s.log().sum(dim=1), "nu": (-torch.special.xlogy(alpha, alpha).sum(dim=1)).exp()}


def held(runs: list[Spectrum], name: str, draws: Tensor, at: Tensor) -> float:
    """Return how often the intervals of the Jacobians `at` hold a draw."""
    low, high = torch.cat([getattr(run, f"{name}_interval") for run in runs])[at, :, None].unbind(1)
    return float(((low <= draws) & (draws <= high)).double().mean())


def test_intervals_hold_where_more_rows_are_taken() -> None:
    spectra = SPECTRA | ({"TAEF2": taef2()} if "CPWL_DATA" in os.environ else {})
    print(
        "\n| spectrum | k | k / r_eff | second | products | psi: deviation | coverage "
        "| nu: deviation | coverage | psi of all | nu of all |\n" + "|---" * 11 + "|"
    )
    low = []
    for name, values in spectra.items():
        rows = 2 * len(values)
        r_eff = float(values.square().sum() ** 2 / values.pow(4).sum())
        runs: dict[float, list[Spectrum]] = {share: [] for share in SHARES}
        firsts = []
        for seed in range(BATCHES):
            op = Matrices(haar(rows, len(values), 10**6 + seed) * values)
            firsts.append(prediction.effective_rank(prediction.measure(op, 16, Probes(seed)).found))
            for share, made in runs.items():
                k = round(share * r_eff)
                made.append(spectrum(op, method="predict", k=k, generator=seed))
        for share, made in runs.items():
            k = round(share * r_eff)
            at = (k > NEAR * torch.cat(firsts)) & ~torch.cat([run.fell_back for run in made])
            row, everywhere = "", ""
            for descriptor, drawn in law(values, rows, k).items():
                value = torch.cat([getattr(run, descriptor) for run in made])[at]
                off = (value - drawn.mean()).square().mean().sqrt() / drawn.std()
                mine = held(made, descriptor, drawn, at)
                whole = held(made, descriptor, drawn, torch.ones_like(at))
                row += f"| {off:.1f} | {mine:.3f} "
                everywhere += f"| {whole:.3f} "
                if at.sum() > BATCH and mine < LEAST:
                    low.append(f"{name} at {share}, {descriptor}: {mine:.3f}")
            products = max(round(k / 3), 16) + 10
            print(f"| {name} | {k} | {share} | {at.double().mean():.2f} | {products} {row}"
                  f"{everywhere}|", flush=True)  # fmt: skip
    assert not low, f"Expected intervals that hold in at least {LEAST:.0%}, got {', '.join(low)}"
