"""How often the intervals of "paper" and "predict" hold psi_W and nu_W of another draw of W."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import pytest
import torch
from scipy.special import stdtrit
from support.matrices import Diagonal
from torch import Tensor

from approx import spectrum
from approx.spectra.result import student


class Cell(NamedTuple):
    """What was measured of one spectrum, k, method and descriptor, over seeds and draws of W."""

    name: str
    k: int
    method: str
    descriptor: str
    coverage: float
    width: float
    spread: float  # standard deviation over W


def spectra(n: int) -> dict[str, Tensor]:
    i = torch.arange(1, n + 1, dtype=torch.float64)

    def top(*values: float) -> Tensor:
        return torch.cat([torch.tensor(values).double(), torch.ones(n - len(values)).double()])

    def step(at: int, high: float, low: float) -> Tensor:
        return torch.where(i <= at, high, low).double()

    return {
        "flat": top(),
        "j^-0.25": i**-0.25,
        "j^-0.5": i**-0.5,
        "j^-1": i**-1,
        "j^-2": i**-2,
        "spike 5": top(5),
        "spike 10": top(10),
        "spike 100": top(100),
        "4 spikes": top(30, 20, 10, 5),
        "rank 3": step(3, 1, 0),
        "rank 10": step(10, 1, 0),
        "rank 40": step(40, 1, 0),
        "half zero": step(n // 2, 1, 0),
        "two levels": step(n // 10, 10, 0.1),
        "lognormal": torch.special.ndtri((i.flip(0) - 0.5) / n).exp(),
        "condition 1e2": torch.logspace(0, -2, n, dtype=torch.float64),
        "condition 1e8": torch.logspace(0, -8, n, dtype=torch.float64),
    }


def law(values: Tensor, rows: int, k: int, draws: int) -> dict[str, Tensor]:
    """Return psi and nu (draws, B) of W J for Haar W, by their definitions."""
    generator = torch.Generator().manual_seed(20_000 + k)
    psi, nu = [], []
    for _ in range(draws):
        g = torch.randn(rows, k, generator=generator, dtype=torch.float64)
        w = torch.linalg.qr(g).Q[: values.shape[1]]
        triangles = torch.linalg.qr(values[:, :, None] * w, mode="r").R
        s = torch.linalg.svdvals(triangles)
        psi.append(torch.where(s > 1e-13 * s[:, :1], s, 1).log().sum(dim=1))
        alpha = s / s.sum(dim=1, keepdim=True)
        nu.append((-torch.special.xlogy(alpha, alpha).sum(dim=1)).exp())
    return {"psi": torch.stack(psi), "nu": torch.stack(nu)}


def campaign(
    names: Iterable[str], rows: int, columns: int, k: int, methods: Iterable[str], seeds: int
) -> list[Cell]:
    """Cover 400 draws of W by the interval of each seed."""
    values = torch.stack([spectra(columns)[name] for name in names])
    truth = law(values, rows, k, 400)
    cells = []
    for method in methods:
        op = Diagonal(values, rows)
        runs = [spectrum(op, method=method, k=k, generator=s) for s in range(seeds)]
        for descriptor, draws in truth.items():
            ends = torch.stack([getattr(run, f"{descriptor}_interval") for run in runs])
            low, high = ends[:, None].unbind(dim=3)  # (seeds, 1, B)
            rounding = 1e-10 * (1 + draws.abs())
            held = (low <= draws + rounding) & (draws - rounding <= high)
            coverage, width = held.double().mean(dim=(0, 1)), (high - low).mean(dim=(0, 1))
            columns_of = zip(names, coverage, width, draws.std(dim=0), strict=True)
            cells += [Cell(n, k, method, descriptor, *map(float, x)) for n, *x in columns_of]
    return cells


def upper(coverage: float, n: int, z: float = 2.576) -> float:
    """Return the upper end of Wilson's 99 % interval."""
    centre = coverage + z**2 / (2 * n)
    half = z * math.sqrt(coverage * (1 - coverage) / n + z**2 / (4 * n**2))
    return (centre + half) / (1 + z**2 / n)


# cells in which the law or its spread has to be found out: of one row, of a rank that is k, near
# all of the latent's directions, of directions that few probes have seen
@pytest.mark.parametrize(
    ("names", "shape", "k", "method"),
    [
        (("flat", "j^-1", "spike 100", "rank 3", "half zero"), (120, 60), 1, "paper"),
        (("spike 5", "spike 100", "rank 3"), (120, 60), 3, "predict"),
        (("rank 10", "spike 5", "j^-0.5"), (120, 60), 10, "paper"),
        (("flat", "j^-2"), (60, 30), 29, "paper"),
        (("rank 10", "j^-0.5"), (60, 30), 30, "paper"),
        (("spike 5",), (600, 300), 17, "predict"),
    ],
)
@pytest.mark.usefixtures("one_thread")
def test_an_interval_holds_another_draw_as_often_as_it_says(
    names: tuple[str, ...], shape: tuple[int, int], k: int, method: str
):
    for cell in campaign(names, *shape, k, [method], 100):
        assert cell.coverage > 0.925, cell
        assert cell.coverage < 0.999 or cell.spread < 1e-9, cell


@pytest.mark.usefixtures("one_thread")
def test_a_law_that_is_one_point_has_an_interval_of_rounding():
    """All singular values equal, d = D = k, and k = 1 for nu_W."""
    values = torch.full((1, 20), 3.0, dtype=torch.float64)
    found = spectrum(Diagonal(values, 20), method="paper", k=20, generator=0)
    low, high = found.psi_interval[0]
    assert low <= 20 * math.log(3) <= high
    assert high - low < 1e-10
    low, high = found.nu_interval[0]
    assert low <= 20 <= high
    assert high - low < 1e-10
    one = spectrum(Diagonal(values, 20), method="paper", k=1, generator=0)
    assert one.nu_interval.tolist() == [[1, 1]]
    assert one.products == 16


def test_quantiles_are_those_of_student():
    freedom = torch.tensor([3, 4, 7.5, 15, 55, 1e6, math.inf], dtype=torch.float64)
    expected = torch.from_numpy(stdtrit(freedom.clamp_max(1e12).numpy(), 0.975))
    torch.testing.assert_close(student(freedom), expected, rtol=2e-3, atol=0)


@pytest.mark.nightly
@pytest.mark.usefixtures("one_thread")
def test_no_cell_of_the_campaign_is_below_95_percent():
    """Prints its table with `-s`. 5 minutes."""
    seeds, cells = 400, []
    for k in 1, 2, 3, 5, 10, 20, 40, 59, 60:
        cells += campaign(tuple(spectra(60)), 120, 60, k, ["paper"], seeds)
    for k in 17, 20, 40:
        cells += campaign(tuple(spectra(300)), 600, 300, k, ["predict"], seeds)
    for k in 120, 150:
        cells += campaign(("flat", "spike 5", "half zero"), 600, 300, k, ["predict"], seeds // 4)
    for c in cells:
        print(
            f"{c.name:14} k = {c.k:3} {c.method:7} {c.descriptor:3} coverage {c.coverage:.3f} "
            f"width {c.width:8.4f} = {c.width / max(c.spread, 1e-12) / 4:5.2f} * 4 sd"
        )
    random = [c for c in cells if c.spread > 1e-9]
    for method in "paper", "predict":
        for descriptor in "psi", "nu":
            mine = [c.coverage for c in random if (c.method, c.descriptor) == (method, descriptor)]
            pooled = sum(mine) / len(mine)
            print(f"{method} {descriptor}: pooled {pooled:.3f}, least {min(mine):.3f}")
            assert 0.94 <= pooled <= 0.97
    low = [c for c in cells if upper(c.coverage, seeds) < 0.95]
    assert not low
