"""Small singular values: kept to the stated error, or psi is NaN; against the weights as stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from support.decoders import double
from support.matrices import Matrices, jacobians, with_values
from torch import Tensor, nn

from approx import JacobianOperator, Spectrum, describe, spectrum
from approx.sketches import probes, projected
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


class Stored(Matrices):
    """Matrices in float64, with products in float32 and a way to those in float64."""

    def __init__(self, J: Tensor) -> None:
        super().__init__(J.float())
        self.stored = J

    @contextmanager
    def refined(self, latents: Tensor, dtype: torch.dtype = torch.float64) -> Iterator[Matrices]:
        yield Matrices(self.stored[latents].to(dtype))


def test_only_the_latents_in_doubt_are_done_again():
    well = with_values(torch.linspace(2, 1, 30), 50, 30)
    ill = with_values(torch.logspace(0, -9, 30, dtype=torch.float64), 50, 30)
    op = Stored(torch.stack([well, ill, well]))
    for method in "exact", "paper":
        found = spectrum(op, method=method, generator=3)
        assert found.used == f"{method}, in float64 for 1 of 3 latents"
        # paper takes four rows more than k
        assert found.products == 2 * (30 if method == "exact" else 34)
        assert found.doubtful.tolist() == [0, 0, 0]
        assert found.note == ""
        wide = spectrum(Matrices(ill[None]), method=method, generator=3)
        assert found.psi[1] == wide.psi[0]
        assert found.psi[0] == spectrum(Stored(well[None]), method=method, generator=3).psi[0]
    assert spectrum(Stored(well[None])).used == "exact"


def test_a_prediction_that_fell_back_is_done_again():
    flat = with_values(torch.linspace(2, 1, 130), 150, 130)
    ill = torch.cat([torch.ones(18), torch.logspace(-6, -9, 112)]).double()
    op = Stored(torch.stack([flat, with_values(ill, 150, 130)]))
    found = spectrum(op, k=20, generator=3)
    assert found.fell_back.tolist() == [False, True]
    assert found.used == "predict for 1, paper for 1 of 2 latents, in float64 for 1 of 2 latents"
    paper = spectrum(Matrices(op.stored[1:]), method="paper", k=20, generator=3)
    torch.testing.assert_close(found.psi[1:], paper.psi, rtol=0, atol=1e-6)
    assert spectrum(Stored(flat[None]), k=20, generator=3).psi == found.psi[0]


@pytest.mark.parametrize("method", ["auto", "exact", "paper"])
def test_zeros_of_a_decoder_are_zeros_in_either_precision(method: str):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 50))  # a bottleneck
        z = torch.randn(4, 20)
    with JacobianOperator(module, z) as op:
        single = spectrum(op, method=method, generator=0)
    with JacobianOperator(double(module), z.double()) as op:
        wide = spectrum(op, method=method, generator=0)
    ranks = torch.linalg.matrix_rank(jacobians(double(module), z))
    assert ranks.max() < 8  # some units are dead
    assert single.rank.tolist() == wide.rank.tolist() == ranks.tolist()
    torch.testing.assert_close(single.psi, wide.psi, rtol=0, atol=1e-10)


class Single(nn.Module):
    """Computes in float32 whatever it is given, as some normalisation layers do."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() * 1.1).to(x.dtype)


class Uncopyable(nn.Linear):
    def __deepcopy__(self, memo: object) -> nn.Module:
        raise RuntimeError("not to be copied")


def test_what_cannot_be_refined_is_not_a_number():
    values = torch.logspace(0, -6, 30, dtype=torch.float64)
    weight = with_values(values, 50, 30).float()
    with JacobianOperator(lambda z: z @ weight.T, torch.randn(2, 30)) as op:
        found = spectrum(op)  # a function is rebuilt around copies
        loose = spectrum(op, tolerance=1e-3)
    assert ((found.psi - torch.linalg.svdvals(weight.double()).log().sum()).abs() < 1e-8).all()
    layer = Uncopyable(30, 50, bias=False)
    layer.weight.data = weight
    with JacobianOperator(layer, torch.randn(2, 30)) as op:
        found = spectrum(op)
    assert found.psi.isnan().all()
    assert found.psi_stderr.isnan().all()
    assert found.psi_interval.isnan().all()
    assert found.note.startswith(
        "2 of 2 latents have singular values that float32 does not tell from rounding; use float64 "
        "(Expected "
    )
    layer = nn.Linear(30, 50, bias=False)
    layer.weight.data = weight
    # a copy in float64 that is none
    with JacobianOperator(nn.Sequential(Single(), layer), torch.randn(2, 30)) as op:
        found = spectrum(op)
        assert found.psi.isnan().all()
        assert found.note.endswith("(its copy in float64 converts to float32 inside)")
    nu = spectrum(Matrices(weight[None].double())).nu
    torch.testing.assert_close(found.nu, nu.expand(2), rtol=1e-5, atol=0)
    # the caller's own tolerance leaves none in doubt
    assert (loose.rank.tolist(), loose.note) == ([15, 15], "")
    bare = spectrum(Matrices(weight[None]))
    assert bare.note.endswith("use float64 (Matrices has no `refined`)")
    assert bare.psi.isnan().all()


@pytest.mark.parametrize("offset", [1e4, 1e5, 1e6])
def test_digits_lost_inside_a_decoder_are_measured(offset: float):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer, z = nn.Linear(8, 16), torch.randn(5, 8)
    with JacobianOperator(lambda z: torch.sin(layer(z) + offset), z) as op:
        found = spectrum(op)
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    slopes = torch.cos(z.double() @ weight.T + bias + offset)
    truth = torch.linalg.svdvals(slopes[:, :, None] * weight).log().sum(dim=1)
    assert (found.psi_stderr > 1e-4).logical_or(found.psi_stderr < 1e-7).all()
    assert ((found.psi - truth).abs() < found.psi_stderr).all()
    table = describe(lambda z: torch.sin(layer(z) + offset), z, neighbourhood=None, progress=False)
    assert (abs(table.psi - truth.numpy()) < table.psi_error).all()


def test_a_jacobian_that_underflows_is_done_again():
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    small = torch.tensor(1e-30)
    with JacobianOperator(lambda z: z @ weight.T * small * small, torch.ones(2, 4)) as op:
        found = spectrum(op)
    truth = torch.linalg.svdvals(weight.double()).log().sum() + 6 * small.double().log()
    torch.testing.assert_close(found.psi, truth.expand(2))
    layer = Uncopyable(4, 3)
    with JacobianOperator(lambda z: layer(z) * 0, torch.ones(2, 4)) as op:
        assert spectrum(op).psi.isnan().all()


def test_casts_to_half_precision_inside_leave_no_error_of_zero():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Linear(4, 8)
    with JacobianOperator(lambda z: module(z.half().float()), torch.ones(2, 4)) as op:
        assert (spectrum(op, method="paper", k=2, generator=0).psi_stderr > 1e-2).all()


def test_what_float64_does_not_tell_from_zero_is_not_a_number():
    values = torch.tensor([1, 0.5, 1e-14], dtype=torch.float64)
    J = torch.zeros(1, 5, 3, dtype=torch.float64)
    J[0, :3] = values.diag()
    found = spectrum(Matrices(J))
    assert found.note == (
        "1 of 1 latents have singular values that float64 does not tell from zero; say with "
        "tolerance= what is zero"
    )
    assert found.psi.isnan().all()
    assert (found.rank.tolist(), found.doubtful.tolist()) == ([2], [1])
    dropped = spectrum(Matrices(J), tolerance=1e-13)
    assert (dropped.psi.exp().item(), dropped.rank.tolist()) == (pytest.approx(0.5), [2])
    J[0, 2, 2] = 1e-12  # more than rounding, though less than matrix_rank's for a long side
    long = torch.cat([J, J.new_zeros(1, 9000, 3)], dim=1)
    torch.testing.assert_close(spectrum(Matrices(long)).psi.exp().item(), 5e-13, rtol=1e-6, atol=0)


def test_half_precision_is_measured_and_not_refined():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(300, 400), nn.ReLU(), nn.Linear(400, 600))
        z = torch.randn(2, 300)
    with JacobianOperator(module, z) as op:
        assert op.precision == torch.float32
        single = spectrum(op, method="paper", k=20, generator=1)
    with JacobianOperator(module, z, dtype=torch.bfloat16) as op:
        assert (op.precision, op.dtype) == (torch.bfloat16, torch.float32)
        half = spectrum(op, method="paper", k=20, generator=1)
        narrow = spectrum(op, method="paper", k=300, generator=1)
    assert half.used == "paper"
    assert (half.psi_stderr > single.psi_stderr).all()
    rounding = (half.psi_stderr.square() - single.psi_stderr.square()).sqrt()
    assert ((half.psi - single.psi).abs() < rounding).all()
    assert (rounding < 0.2).all()
    assert narrow.psi.isnan().all()
    assert narrow.note == (
        "2 of 2 latents have singular values that bfloat16 does not tell from rounding; use float64"
    )


def test_products_with_nearly_square_probes_are_as_exact_as_others():
    J = with_values(torch.linspace(2, 1, 100), 100, 130)
    W = haar(100, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, _ = projected(Matrices(J[None].float()), 100, probes.Probes(0))
    error = torch.linalg.matrix_norm(y[0] - J.mT @ W, 2)
    assert error < 32 * torch.finfo(torch.float32).eps * 2


def test_singular_values_of_pieces(monkeypatch):
    Y = torch.randn(3, 500, 7, generator=torch.Generator().manual_seed(0))
    whole = torch.linalg.svdvals(Y.double())
    monkeypatch.setattr(probes, "_WIDENED", 100)
    torch.testing.assert_close(probes.singular_values(Y), whole, rtol=1e-13, atol=0)
    torch.testing.assert_close(probes.singular_values(Y.mT), whole, rtol=1e-13, atol=0)
