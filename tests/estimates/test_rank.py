"""Small singular values: kept to the stated error, or psi is NaN; against the weights as stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from support.decoders import double
from support.matrices import jacobians, with_values
from torch import Tensor, nn

from approx import JacobianOperator, Spectrum, spectrum
from approx.sketches.probes import haar

SIZES = (40, 20), (20, 40), (150, 100), (100, 150), (200, 130), (130, 200)
CONDITIONS = 1.0, 1e2, 1e4, 1e6, 1e8, 1e10, 1e12
EPS = torch.finfo(torch.float64).eps


def logspace(n: int, condition: float, g: torch.Generator) -> Tensor:
    return torch.logspace(0, -math.log10(condition), n, dtype=torch.float64)


def spike(n: int, condition: float, g: torch.Generator) -> Tensor:
    values = torch.full((n,), 1 / condition, dtype=torch.float64)
    values[0] = 1
    return values


def clusters(n: int, condition: float, g: torch.Generator) -> Tensor:
    levels = torch.tensor([1, condition**-0.5, 1 / condition], dtype=torch.float64)
    return levels.repeat_interleave(-(-n // 3))[:n]


def scattered(n: int, condition: float, g: torch.Generator) -> Tensor:
    values = condition ** -torch.rand(n, generator=g, dtype=torch.float64)
    values[:2] = torch.tensor([1, 1 / condition])
    return values.sort(descending=True).values


SPECTRA: dict[str, Callable[..., Tensor]] = {
    "logspace": logspace,
    "spike": spike,
    "clusters": clusters,
    "scattered": scattered,
}


class Case(NamedTuple):
    module: nn.Module
    z: Tensor
    condition: float


def linear(name: str, rows: int, columns: int, condition: float, seed: int) -> Iterator[Case]:
    """Make linear maps of prescribed singular values, before their weights are rounded."""
    g = torch.Generator().manual_seed(seed)
    values = SPECTRA[name](min(rows, columns), condition, g)
    for dtype in torch.float32, torch.float64:
        module = nn.Linear(columns, rows, dtype=dtype)
        module.weight.data = with_values(values, rows, columns, seed).to(dtype)
        yield Case(module, torch.randn(2, columns, generator=g).to(dtype), condition)


def network(activation: Callable[[], nn.Module], depth: int, normed: bool, seed: int) -> Case:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Linear(30, 48)]
        for _ in range(depth):
            layers += [nn.LayerNorm(48)] if normed else []
            layers += [activation(), nn.Linear(48, 48)]
        module = nn.Sequential(*layers, activation(), nn.Linear(48, 70))
        z = torch.randn(1, 30)
    values = torch.linalg.svdvals(jacobians(double(module), z))
    return Case(module, z, float((values[:, 0] / values[:, -1]).max()))


def psi_of(values: Tensor) -> Tensor:
    """Return the sum of the logarithms of what is not zero in float64."""
    return torch.where(values > 32 * EPS * values[:, :1], values, 1).log().sum(dim=1)


class Tally:
    """How many psi were off by more than four stated errors, and how many were not known."""

    def __init__(self) -> None:
        self.count = self.off = self.known = self.unknown = 0
        self.seen: list[str] = []

    def add(self, found: Spectrum, values: Tensor, case: Case) -> None:
        """Count against the singular values of which psi is to be."""
        psi = psi_of(values)
        stated = found.psi_stderr
        if found.method == "paper":  # of the rounding alone, without the spread over W
            eps = EPS if "float64" in found.used else torch.finfo(case.z.dtype).eps
            relative = 32 * eps * values[:, :1] / values
            squares = torch.where(relative < 1, relative, 0).square().sum(dim=1)
            stated = torch.minimum(stated, squares.sqrt() + squares / 2)
        off = (found.psi - psi).abs() > 4 * stated
        self.count += len(psi)
        self.off += int(off.sum())
        if case.condition <= (1e5 if case.z.dtype == torch.float32 else 1e12):
            self.known += len(psi)
            self.unknown += int(found.psi.isnan().sum())
        if off.any() or found.psi.isnan().any():
            self.seen.append(f"{found.method} {found.used} {case} {found.psi} {psi} {stated}")
        # no NaN without a reason
        assert (found.doubtful[found.psi.isnan()] > 0).all()
        assert bool(found.note) == bool(found.psi.isnan().any())
        assert found.nu.isfinite().all()


def compare(case: Case, tally: Tally, draws: tuple[int, ...]) -> None:
    """Compare the whole Jacobian, and W J of one W, with the truth of the weights as stored."""
    J = jacobians(double(case.module), case.z)
    rows, columns = J.shape[1:]
    with JacobianOperator(case.module, case.z) as op:
        methods = ("auto", "exact") if min(rows, columns) <= 120 else ("exact",)
        for method in methods:
            tally.add(spectrum(op, method=method), torch.linalg.svdvals(J), case)
        for k in draws:
            if k > min(rows, columns):
                continue
            W = haar(rows, k, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
            found = spectrum(op, method="paper", k=k, generator=k)
            tally.add(found, torch.linalg.svdvals(W.mT @ J), case)


def check(tally: Tally) -> None:
    assert tally.off <= 0.01 * tally.count, tally.seen
    assert tally.unknown <= 0.01 * tally.known, tally.seen


def test_small_values_of_linear_maps_are_kept_to_the_stated_error():
    tally = Tally()
    for number, condition in enumerate(CONDITIONS):
        for name in SPECTRA:
            rows, columns = SIZES[number % 4]
            for case in linear(name, rows, columns, condition, seed=number):
                compare(case, tally, (7, 120 if number % 2 else min(rows, columns)))
    check(tally)


@pytest.mark.nightly
def test_small_values_of_linear_maps_of_all_sizes():
    tally = Tally()
    for condition in CONDITIONS:
        for name in SPECTRA:
            for rows, columns in SIZES:
                for seed in range(2):
                    for case in linear(name, rows, columns, condition, seed):
                        compare(case, tally, (1, 7, 19, 60, 100, 120))
    check(tally)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.Tanh])
def test_small_values_of_networks_are_kept_to_the_stated_error(activation, normed: bool):
    tally = Tally()
    for seed in range(6):
        single = network(activation, (1, 6, 14)[seed % 3], normed, seed)
        compare(single, tally, (7, 30))
        wide = single._replace(module=double(single.module), z=single.z.double())
        compare(wide, tally, (7, 30))
    check(tally)
