"""The bounds of `topk` hold as often as they say, and say something."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from support.matrices import Matrices, with_values
from torch import Tensor

from approx import Spectrum, spectrum
from approx.spectra.largest import rank_between

ROWS, COLUMNS, K = 140, 100, 20
i = torch.arange(1, COLUMNS + 1, dtype=torch.float64)

SPECTRA: dict[str, Tensor] = {
    "equal": torch.ones(COLUMNS).double(),
    "flat": 1 + 0.3 * i.flip(0) / COLUMNS,
    "power 0.5": i**-0.5,
    "power 1": i**-1,
    "power 2": i**-2,
    "exponential": torch.exp(-i / 5),
    "one spike": torch.where(i == 1, 30, 1.2 - 0.4 * i / COLUMNS),
    "eight spikes": torch.where(i <= 8, 20 - i, 1.2 - 0.4 * i / COLUMNS),
    "multiplicity 2": ((i + 1) // 2) ** -0.5,
    "multiplicity 12": torch.where(i <= 12, 1, i**-0.5),
    "clusters": 2.0 ** -((i - 1) // 10),
    "rank k": torch.where(i <= K, i**-0.5, 0),
    "half zeros": torch.where(i <= COLUMNS // 2, 2 - i / COLUMNS, 0),
    "condition 1e8": 10 ** (-8 * (i - 1) / (COLUMNS - 1)),
}


def by_definition(values: Tensor) -> tuple[float, float]:
    values = values[values > 0]
    alpha = values / values.sum()
    return float(values.log().sum()), math.exp(-float((alpha * alpha.log()).sum()))


def coverage(name: str, k: int, seeds: range, **options: int) -> tuple[float, float, list[float]]:
    """Return how often the intervals of psi and of nu hold the truth, and the widths of psi's."""
    op = Matrices(with_values(SPECTRA[name], ROWS, COLUMNS)[None])
    truth, held, widths = by_definition(SPECTRA[name][:k]), [0, 0], []
    for seed in seeds:
        found = spectrum(op, method="topk", k=k, generator=seed, **options)
        for n, interval in enumerate((found.psi_interval[0], found.nu_interval[0])):
            low, high = interval.tolist()
            held[n] += low <= truth[n] <= high
        widths.append(float(found.psi_interval.diff()))
        assert found.psi <= truth[0] + 1e-6
    return held[0] / len(seeds), held[1] / len(seeds), widths


def wilson(share: float, count: int, z: float = 2.576) -> float:
    """Return the upper end of the interval of a share."""
    middle = share + z**2 / (2 * count)
    root = math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return (middle + z * root) / (1 + z**2 / count)


@pytest.mark.parametrize("name", SPECTRA)
def test_the_interval_holds_the_truth(name: str):
    for options in ({"block": 4, "depth": 8}, {"block": 1, "depth": 30}):
        psi, nu, _ = coverage(name, K, range(10), **options)
        assert psi == nu == 1


@pytest.mark.nightly
@pytest.mark.parametrize("name", SPECTRA)
def test_the_interval_holds_the_truth_as_often_as_it_says(name: str):
    print()
    for k in 1, 2, 3, K:
        for block, depth in (4, 5), (1, 22), (8, 4):
            psi, nu, widths = coverage(name, k, range(200), block=block, depth=depth)
            print(f"{name:16} k {k:3} {block} x {depth:2}: {psi:.3f} {nu:.3f}, "
                  f"width {sum(widths) / len(widths):.3g}")  # fmt: skip
            assert wilson(psi, 200) >= 0.95
            assert wilson(nu, 200) >= 0.95


def test_the_interval_is_narrow_where_values_fall_and_where_they_are_equal():
    for name, most in (("power 1", 1e-6), ("power 0.5", 0.05), ("equal", 0.5), ("flat", 1.5)):
        assert max(coverage(name, K, range(5), block=4, depth=14)[2]) < most


def test_what_is_overlooked_is_in_the_interval():
    """A start finds one of equal values, and each that it goes on with one more: not all here."""
    op = Matrices(with_values(torch.cat([2 * torch.ones(50), torch.zeros(50)]), 140, 100)[None])
    found = spectrum(op, method="topk", k=20, block=1, depth=20, generator=0)
    assert found.rank < 20
    low, high = found.psi_interval[0].tolist()
    assert low < found.psi < 20 * math.log(2) <= high


def test_values_in_float32_are_bounded_up_to_their_rounding():
    for name in ("flat", "power 1"):
        J = with_values(SPECTRA[name], ROWS, COLUMNS)[None].float()
        psi, nu = by_definition(torch.linalg.svdvals(J[0].double())[:K])
        found: Spectrum = spectrum(Matrices(J), method="topk", k=K, depth=20, generator=0)
        assert found.psi_interval[0, 0] <= psi <= found.psi_interval[0, 1]
        assert found.nu_interval[0, 0] <= nu <= found.nu_interval[0, 1]
        assert found.psi_interval.diff() < 0.1


@example([(0.0, 1e-3), (2.0**-52, 0.0)], 0)
@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from([0.0, 1e-3, 0.3, 2.0])), min_size=1, max_size=5
    ),
    st.integers(0, 2**31),
)
def test_nu_between_bounds_is_no_less_and_no_more(ends: list[tuple[float, float]], seed: int):
    low = torch.tensor([a for a, _ in ends]).double().sort(descending=True).values
    high = torch.tensor([a + b for a, b in ends]).double().sort(descending=True).values
    least, most = rank_between(low[None], high[None])[0].tolist()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(200, len(ends), generator=generator, dtype=torch.float64)
    inside = low + drawn * (high - low)
    # tiny ends too: the level of most equal values may be any of them
    share = torch.cat([torch.linspace(0, 1, 2000), torch.logspace(-20, 0, 500)]).double()
    levels = torch.cat([share * high[0], low, high])[:, None]
    inside = _ranks(torch.cat([inside, levels.clamp(low, high)]))
    assert least <= inside.min() + 1e-9
    assert inside.max() - 1e-9 <= most <= inside.max() + 0.05
    corners = torch.cartesian_prod(*torch.stack([low, high], dim=1)).reshape(-1, len(ends))
    assert least == pytest.approx(float(_ranks(corners).min()), abs=1e-9)


def _ranks(sigma: Tensor) -> Tensor:
    """Oracle: by the definition, of every row; 0 of zeros."""
    total = sigma.sum(dim=1)
    alpha = sigma / total.clamp_min(1e-300)[:, None]
    return torch.where(total > 0, torch.special.entr(alpha).sum(dim=1).exp(), 0)
