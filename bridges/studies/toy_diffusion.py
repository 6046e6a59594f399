"""Descriptors of a toy diffusion over the plane and over training: Figures 3 and 19 of the paper.

Claims of A. I. Humayun et al., "What secrets do your manifolds hold?" (arXiv 2408.08307), on a ReLU
denoiser of the dinosaur of the Datasaurus. At a fixed time it is piecewise affine in x: its cells
give psi, nu and delta exactly, beside what `approx` estimates. A seed is one training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import cpwl
from bridges.networks.datasaurus import (
    IdealDenoiser,
    ToyDenoiser,
    read_datasaurus,
    signal_shares,
    toy_ddpm,
)
from bridges.networks.toys import one_thread
from bridges.studies.associations import rank_correlation
from bridges.studies.claims import Claim, Invariant, Study, whole_seeds
from bridges.studies.digits import Floats, Table
from bridges.studies.toy_maps import (
    HALF,
    MAPS,
    RADIUS,
    ExactMap,
    cells_nearby,
    distances,
    estimated,
    exact_partition,
    noisy,
    plane,
)

TIMES = (6, 17, 28, 39, 50)
"""Of the figures, out of 1, ..., 50."""

QUANTITIES = {
    "step psi": "psi of x_t to x_{t-1}",
    "step nu": "nu of x_t to x_{t-1}",
    "clean psi": "psi of x_t to x_0",
    "clean nu": "nu of x_t to x_0",
    "delta": "delta",
}
"""What is described: of two maps that have the same knots, and so the same delta."""


class Size(NamedTuple):
    """How much is run.

    Attributes
    ----------
    seeds : int
        Where none are given.
    marks : tuple of int
        Training steps that are described: untrained, early, between, late.
    width, batch : int
        Of the denoiser and its training.
    pixels, samples : int
        Of a side of the square; and noisy points a time.
    """

    seeds: int
    marks: tuple[int, int, int, int]
    width: int
    batch: int
    pixels: int
    samples: int


FULL = Size(10, (0, 100, 1_000, 6_000), 128, 512, 40, 400)
SMALL = Size(3, (0, 50, 200, 600), 32, 256, 24, 100)


def study(size: Size, seeds: Sequence[int]) -> Study:
    """Run the study at some size; `FULL` takes some six minutes of one core.

    After Ctrl-C it is of the seeds that are whole.

    Its data: `times`, `marks`, `shares` (abar at the times); `correlations` with the distance to
    the data, by place ("plane" or "noisy", at samples x_t), quantity and training steps
    (seeds, times), in "plane" also of "exact delta"; `means` at samples x_t likewise;
    `apart`, the mean distance at samples x_t to what the ideal denoiser has, likewise;
    `ideal`, by place and quantity, its correlations (times), of the last seed's samples;
    `schedule`, psi of the step (times) where the prediction is constant, and where it is that of a
    Gaussian of unit variance; `delta` (seeds, 2, times), the correlation of cells and knots over
    the plane, early and late.
    """
    points = read_datasaurus()
    with one_thread():
        found = whole_seeds(seeds, lambda seed: _seed(points, size, seed))
    seeds = tuple(seeds)[: len(found)]
    shares = signal_shares()[list(TIMES)]
    data: dict[str, Any] = {
        "times": list(TIMES),
        "marks": list(size.marks),
        "shares": shares.numpy(),
        "correlations": {
            place: _stacked([seed.correlations[place] for seed in found])
            for place in ("plane", "noisy")
        },
        "means": _stacked([seed.means for seed in found]),
        "apart": _stacked([seed.apart for seed in found]),
        "ideal": found[-1].ideal,
        "schedule": _schedule_alone(),
        "delta": np.array([seed.cells_and_knots for seed in found]),
    }
    held = _invariants(points, found, size, seeds[0])
    return Study("toy_diffusion", size == FULL, seeds, tuple(_claims(data, size)), held, data)


# -- one seed ----------------------------------------------------------------------------------


class Seed(NamedTuple):
    """What one training gives: rows by time in lists, by training steps in dictionaries.

    Attributes
    ----------
    correlations, means, apart : dict
        As in the study's data.
    ideal : dict
        By place and quantity, (times,).
    cells_and_knots : (2, times)
        Their correlation, early and late.
    off : float
        Largest difference of psi or nu from the exact ones.
    exact, same : bool
        Whether each partition is complete and proven; whether delta is 0 exactly where there is one
        cell.
    """

    correlations: dict[str, dict[str, dict[str, list[float]]]]
    means: dict[str, dict[str, list[float]]]
    apart: dict[str, dict[str, list[float]]]
    ideal: dict[str, dict[str, list[float]]]
    cells_and_knots: list[list[float]]
    off: float
    exact: bool
    same: bool


def _seed(points: Tensor, size: Size, seed: int) -> Seed:
    """Train once, and describe each checkpoint."""
    trained = toy_ddpm(points, steps=size.marks[-1], marks=size.marks, width=size.width,
                       batch=size.batch, seed=seed)  # fmt: skip
    ideal = IdealDenoiser(points, signal_shares())
    grid = plane(size.pixels)
    inside = (grid.abs().amax(dim=1) < HALF - RADIUS).numpy()
    correlations: dict[str, Any] = {"plane": {}, "noisy": {}}
    perfect: dict[str, Any] = {"plane": {}, "noisy": {}}
    means: dict[str, Any] = {}
    apart: dict[str, Any] = {}
    agreed: dict[int, list[float]] = {size.marks[1]: [], size.marks[3]: []}  # early and late
    off, exact, same = 0.0, True, True

    def put(table: dict[str, Any], name: str, mark: int, value: float) -> None:
        table.setdefault(name, {}).setdefault(str(mark), []).append(value)

    for t in TIMES:
        x = torch.cat([grid, noisy(points, t, size.samples, seed)])
        far = distances(points, t, x)
        parts = {"plane": slice(len(grid)), "noisy": slice(len(grid), None)}
        best = estimated(ideal, t, x, delta=False)
        for place, part in parts.items():
            for name, values in best.items():
                perfect[place].setdefault(name, []).append(
                    rank_correlation(values[part], far[part])
                )
        for mark, denoiser in trained.denoisers.items():
            table = estimated(denoiser, t, x)
            for name, values in table.items():
                for place, part in parts.items():
                    put(correlations[place], name, mark, rank_correlation(values[part], far[part]))
                put(means, name, mark, float(values[parts["noisy"]].mean()))
                if name in best:
                    gap = np.abs(values - best[name])[parts["noisy"]]
                    put(apart, name, mark, float(gap.mean()))
            if mark not in agreed:
                continue
            partition, gap = _beside(denoiser, t, grid, table)
            cells = cells_nearby(partition, grid.numpy()[inside])
            knots = table["delta"][: len(grid)][inside]
            nearest = far[: len(grid)][inside]
            put(correlations["plane"], "exact delta", mark, rank_correlation(cells, nearest))
            agreed[mark].append(rank_correlation(cells, knots))
            off = max(off, gap)
            exact &= partition.status.complete and partition.status.exact
            same &= bool(((cells == 1) == (knots == 0)).all())
    return Seed(correlations, means, apart, perfect, list(agreed.values()), off, exact, same)


def _beside(
    denoiser: ToyDenoiser, t: int, grid: Tensor, table: Table
) -> tuple[cpwl.Partition, float]:
    """Return the partition, and how far psi and nu of its cells are from the estimates.

    The cells of both maps are those of the step; J of the estimate of x_0 follows from its J.
    """
    partition = exact_partition(denoiser, "step", t)
    cells = cpwl.locate(partition, grid.numpy())
    A, _ = next(cpwl.affine_maps(partition, cells, chunk=len(cells)))
    step, clean = (ExactMap(denoiser, name, t) for name in MAPS)
    eye = np.eye(2)
    found = {"step": A, "clean": clean.a * eye + clean.b / step.b * (A - step.a * eye)}
    off = 0.0
    for name, jacobians in found.items():
        exact = _psi_nu(jacobians)
        for kind, values in zip(("psi", "nu"), exact, strict=True):
            gaps = np.abs(values - table[f"{name} {kind}"][: len(grid)])
            off = max(off, float(gaps.max()))
    return partition, off


def _psi_nu(jacobians: Floats) -> tuple[Floats, Floats]:
    """Return psi and nu of regular matrices (N, 2, 2)."""
    sigma = np.linalg.svd(jacobians, compute_uv=False)
    shares = sigma / sigma.sum(axis=1, keepdims=True)
    return np.log(sigma).sum(axis=1), np.exp(-(shares * np.log(shares)).sum(axis=1))


def _stacked(seeds: Sequence[dict[str, dict[str, list[float]]]]) -> dict[str, dict[str, Floats]]:
    """Return tables of lists (times,) as tables of arrays (seeds, times)."""
    return {
        name: {mark: np.array([seed[name][mark] for seed in seeds]) for mark in rows}
        for name, rows in seeds[0].items()
    }


# -- claims, and what must hold ------------------------------------------------------------------


def _claims(data: dict[str, Any], size: Size) -> list[Claim]:
    """Return the claims: correlations by time, what training changes, and controls."""
    untrained, early, _, late = (str(mark) for mark in size.marks)
    plane = data["correlations"]["plane"]
    claims = [
        Claim(
            f"Figure 3: {words} and the distance to the data, t = {t}", "not said",
            "Spearman's correlation over the plane, late", tuple(plane[name][late][:, i].tolist()),
        )
        for name, words in QUANTITIES.items() for i, t in enumerate(TIMES)
    ]  # fmt: skip
    for name, words in QUANTITIES.items():
        sizes = {mark: np.abs(plane[name][mark]) for mark in (untrained, early, late)}
        for other, against in (("early", early), ("untrained", untrained)):
            gains = sizes[late] - sizes[against]
            for when, values in (("t = 6", gains[:, 0]), ("mean of the times", gains.mean(axis=1))):
                claims.append(
                    Claim(
                        f"Figure 19: {words} reflects the data more, late than {other}, {when}",
                        "rises",
                        f"size of the correlation over the plane, late minus {other}",
                        tuple(values.tolist()),
                    )
                )
    for name in data["apart"]:
        ratios = np.log10(data["apart"][name][late] / data["apart"][name][early])
        claims += [
            Claim(
                f"{QUANTITIES[name]}: distance to the ideal denoiser's, t = {t}", "not said",
                "late over early: log10 of the mean at samples x_t", tuple(column.tolist()),
            )
            for t, column in zip(TIMES[:2], ratios.T[:2], strict=True)
        ]  # fmt: skip
    claims += [
        Claim(
            f"control: {words} of untrained networks and the distance to the data", "none",
            "Spearman's correlation over the plane, mean of the times",
            tuple(plane[name][untrained].mean(axis=1).tolist()),
        )
        for name, words in QUANTITIES.items()
    ]  # fmt: skip
    psi = data["means"]["step psi"][late]
    for words, alone in (
        ("", np.zeros(len(TIMES))),
        (", less that of a constant prediction", np.array(data["schedule"]["constant"])),
        (", less that of a Gaussian of unit variance", np.array(data["schedule"]["gaussian"])),
    ):
        rest = psi - alone
        claims.append(
            Claim(
                f"psi of x_t to x_{{t-1}} over time{words}", "not said",
                f"mean at samples x_t: t = {TIMES[0]} minus t = {TIMES[-1]}, late",
                tuple((rest[:, 0] - rest[:, -1]).tolist()),
            )
        )  # fmt: skip
    return claims


def _schedule_alone() -> dict[str, list[float]]:
    """Return psi of the step at the times, for predictions that know nothing of the data.

    A constant has a x + const, and log a^2; a Gaussian of unit variance eps = sqrt(1 - abar) x.
    """
    alone: dict[str, list[float]] = {"constant": [], "gaussian": []}
    for t in TIMES:
        step = ExactMap(nn.Identity(), "step", t)
        spread = float((1 - signal_shares()[t]).sqrt())
        alone["constant"].append(2 * float(np.log(step.a)))
        alone["gaussian"].append(2 * float(np.log(step.a + step.b * spread)))
    return alone


class _Constant(nn.Module):
    """A prediction that is the same everywhere, but for what autograd needs."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 0 * x + 0.3


def _invariants(points: Tensor, found: list[Seed], size: Size, seed: int) -> tuple[Invariant, ...]:
    """Return what holds whatever the claims are."""
    off = max(s.off for s in found)
    ideal, gaps, flat = IdealDenoiser(points, signal_shares()), [], []
    for t, constant in zip(TIMES, _schedule_alone()["constant"], strict=True):
        x = noisy(points, t, size.samples, seed)
        table = estimated(ideal, t, x, delta=False)
        closed = ideal.jacobian(x, torch.full((len(x),), t))
        psi, nu = _psi_nu(closed.numpy())
        gaps += [np.abs(psi - table["clean psi"]).max(), np.abs(nu - table["clean nu"]).max()]
        flat.append(np.abs(estimated(_Constant(), t, x, delta=False)["step psi"] - constant).max())
    untrained = toy_ddpm(points, steps=0, marks=(), width=size.width, seed=seed).denoisers[0]
    partition = exact_partition(untrained, "step", TIMES[0])
    some = plane(size.pixels).numpy()[:: size.pixels + 1][1:-1]  # along the diagonal
    assert partition.network is not None
    alone = [cpwl.local_complexity(partition.network, z, RADIUS, np.eye(2)) for z in some]
    counted = cells_nearby(partition, some)
    return (
        Invariant("psi and nu of approx are those of the exact cells", off < 1e-6,
                  f"within {off:.1e}"),
        Invariant("every partition is complete and proven", all(s.exact for s in found),
                  f"{2 * len(found) * len(TIMES)} of them, early and late"),
        Invariant("no knot is counted exactly where the neighbourhood lies in one cell",
                  all(s.same for s in found), "at every pixel"),
        Invariant("cells of the square near a point are those of its neighbourhood alone",
                  bool((np.array(alone) == counted).all()), f"at {len(some)} points"),
        Invariant("the ideal denoiser's psi and nu are those of its closed form",
                  max(gaps) < 1e-6, f"within {max(gaps):.1e}"),
        Invariant("psi of a constant prediction is the schedule's", max(flat) < 1e-9,
                  f"within {max(flat):.1e}"),
    )  # fmt: skip
