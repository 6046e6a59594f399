"""What is decided in bulk, modulo primes and in about 106 bits, against rational numbers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from fractions import Fraction
from itertools import pairwise
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from oracles.bodies import domain_of
from support.agreement import capture
from support.strategies import (
    cancelling_networks,
    degenerate_networks,
    generic_networks,
    nearly_degenerate_networks,
    nightly,
    ordinary,
    places,
    shapes,
    some_architectures,
)
from torch import nn

import cpwl
from cpwl.engine import precise
from cpwl.engine.plane import cutting, meetings, refinement
from cpwl.engine.rational import Arbiter, Residues

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORKS = {
    "generic": lambda dim: generic_networks(shapes(dim)),
    "degenerate": lambda dim: degenerate_networks(some_architectures(8, dim)),
    "nearly degenerate": lambda dim: nearly_degenerate_networks(some_architectures(8, dim)),
    "cancelling": cancelling_networks,
}


@contextmanager
def counting() -> Iterator[Counter]:
    """Count what rational numbers decide."""
    count: Counter = Counter()
    signs, places_of = Arbiter.signs, Arbiter.places

    def counted(self, vertices, *rest):
        count["signs"] += len(vertices)
        return signs(self, vertices, *rest)

    def placed(self, a, b, stage, unit, value):
        count["places"] += len(unit)
        return places_of(self, a, b, stage, unit, value)

    with patch.object(Arbiter, "signs", counted), patch.object(Arbiter, "places", placed):
        yield count


def both(
    network: cpwl.Network, domain: cpwl.Domain, memory: int = 2**30
) -> tuple[Counter, Counter]:
    """Compare both ways bit by bit; returns what rational numbers decided with and without bulk."""
    with (
        patch.object(meetings, "FEWEST", 1), patch.object(cutting, "FEWEST", 1),
        patch.object(meetings, "_VERTICES_A_PRIME", 1e-3), counting() as left,
    ):  # fmt: skip
        found = cpwl.subdivide(network, domain, memory=memory, progress=False)
    with patch.object(refinement, "tools_for", lambda work: None), counting() as all_of_them:
        plain = cpwl.subdivide(network, domain, memory=memory, progress=False)
    assert found.status == plain.status
    for field in fields(cpwl.Partition):
        a, b = getattr(found, field.name), getattr(plain, field.name)
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b, err_msg=field.name)
    return left, all_of_them


def sweep(kind: str, dim: int, profile: settings) -> tuple[Counter, Counter]:
    left, all_of_them = Counter(), Counter()

    @settings(profile, phases=[Phase.explicit, Phase.generate])
    @given(NETWORKS[kind](dim), places(dim))
    def agree(layers, domain) -> None:
        counts = both(capture(layers), domain_of(domain))
        left.update(counts[0])
        all_of_them.update(counts[1])

    agree()
    return left, all_of_them


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("kind", NETWORKS)
def test_small_networks_come_out_the_same(kind: str, dim: int) -> None:
    left, all_of_them = sweep(kind, dim, ordinary(25))
    assert kind == "generic" or left.total() < 0.5 * all_of_them.total(), (left, all_of_them)


@pytest.mark.nightly
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("kind", NETWORKS)
def test_many_small_networks_come_out_the_same(kind: str, dim: int) -> None:
    sweep(kind, dim, nightly(300))


class Maxima(nn.Module):
    """Two layers whose units are the larger of two functions, and their sum clipped."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 12).double(), nn.Linear(6, 8).double()
        self.last = nn.Linear(4, 2).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.first(x).chunk(2, dim=1)
        c, d = self.second(torch.maximum(a, b)).chunk(2, dim=1)
        return self.last(torch.minimum(c, d).clamp(-0.3, 0.2))


def drawn(kind: str, seed: int) -> nn.Sequential | Maxima:
    """Draw a deep network with planted ties, or nearly so."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    if kind == "maxima":
        module = Maxima()
        with torch.no_grad():  # of equal functions, some of them
            module.first.weight[6:9], module.first.bias[6:9] = (
                module.first.weight[:3], module.first.bias[:3],
            )  # fmt: skip
        return module
    layers: list[nn.Module] = []
    for fan_in, fan_out in ((2, 12), (12, 12), (12, 12), (12, 2)):
        one = nn.Linear(fan_in, fan_out).double()
        half = fan_out // 2
        with torch.no_grad():
            if kind == "integers":
                one.weight.copy_(torch.from_numpy(rng.integers(-2, 3, one.weight.shape)))
                one.bias.copy_(torch.from_numpy(rng.integers(-1, 2, fan_out)))
            if kind in ("twins", "nearly twins"):
                factor = -1.0 if kind == "twins" else 1 / 3
                one.weight[half:], one.bias[half:] = (
                    factor * one.weight[:half],
                    factor * one.bias[:half],
                )
            if kind == "through the origin":
                one.bias.zero_()
        layers += [one, nn.LeakyReLU(0.1) if seed % 2 else nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("kind", "share"),
    [("integers", 0.0), ("twins", 0.0), ("nearly twins", 0.25), ("through the origin", 0.0),
     ("maxima", 0.0)],
)  # fmt: skip
def test_planted_ties_come_out_the_same_and_few_are_left(kind: str, share: float, seed: int):
    network = cpwl.Network.from_torch(drawn(kind, seed), (2,))
    left, all_of_them = both(network, cpwl.box([-2, -2], [3, 2]))
    assert all_of_them.total() > 10
    assert left.total() <= share * all_of_them.total(), (left, all_of_them)


def test_strips_come_out_the_same() -> None:
    network = cpwl.Network.from_torch(drawn("twins", 0), (2,))
    left, all_of_them = both(network, cpwl.box([-2, -2], [3, 2]), memory=60_000)
    assert all_of_them.total() > 20 > left.total()


def test_what_106_bits_cannot_evaluate_is_left_to_rational_numbers() -> None:
    module = drawn("nearly twins", 0)
    assert isinstance(module, nn.Sequential)
    with torch.no_grad():  # too small for the bounds; the third layer's ties are left to them
        module[4].get_parameter("weight")[0, 0] = 2.0**-400
    network = cpwl.Network.from_torch(module, (2,))
    left, all_of_them = both(network, cpwl.box([-2, -2], [3, 2]))
    assert left.total() > 0.5 * all_of_them.total() > 0


@pytest.mark.parametrize("seed", range(3))
def test_remainders_are_those_of_the_exact_functions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    widths = (2, 5, 4, 3)
    linear = [nn.Linear(a, b).double() for a, b in pairwise(widths)]
    slope = Fraction(0.1)
    module = nn.Sequential(
        *(m for one in linear for m in (one, nn.LeakyReLU(0.1))), nn.Linear(3, 1)
    )
    network = cpwl.Network.from_torch(module.double(), (2,))
    origin, basis = rng.normal(size=2), rng.normal(size=(2, 2))
    slice_ = cpwl.Slice(origin, basis)
    pieces = rng.integers(0, 2, (4, network.num_units)).astype(np.int32)
    residues = Residues(network, slice_)
    for k, stages in ((0, 3), (3, 2)):
        p = residues.prime(k)
        held = residues.held(k, pieces, stages)
        assert 2**residues.bits < p < 2 ** (residues.bits + 1)
        for cell, piece in enumerate(pieces.tolist()):
            rows = [[Fraction(x) for x in row.tolist()] for row in (origin, *basis)]
            first = 0
            for stage in range(stages):
                weight, bias = (x.tolist() for x in (linear[stage].weight, linear[stage].bias))
                rows = [
                    [
                        sum(Fraction(w) * x for w, x in zip(line, row, strict=True))
                        for line in weight
                    ]
                    for row in rows
                ]
                rows[0] = [x + Fraction(b) for x, b in zip(rows[0], bias, strict=True)]
                wanted = [[x.numerator * pow(x.denominator, -1, p) % p for x in r] for r in rows]
                here = slice(first, first + len(bias))
                np.testing.assert_array_equal(held[cell][:, here] % p, wanted)
                one = 2 ** int(residues.shifts[stage])
                assert all((x * one).denominator == 1 for row in rows for x in row)
                slopes = [1 if on else slope for on in piece[here]]
                rows = [[s * x for s, x in zip(slopes, row, strict=True)] for row in rows]
                first += len(bias)


class LargerOfTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(2, 1), nn.Linear(2, 1), nn.Linear(1, 1)
        with torch.no_grad():
            for layer, weight, bias in (
                (self.one, [1.0, 2.0], 3.0), (self.two, [4.0, -1.0], 0.0), (self.last, [5.0], 1.0),
            ):  # fmt: skip
                layer.weight.copy_(torch.tensor([weight]))
                layer.bias.fill_(bias)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.last(torch.maximum(self.one(z), self.two(z))))


def test_remainders_behind_the_larger_of_two_are_those_of_its_piece() -> None:
    network = cpwl.Network.from_torch(LargerOfTwo().double(), (2,))
    residues = Residues(network, cpwl.Slice(np.zeros(2), np.eye(2)))
    found = residues.held(0, np.array([[0, 1], [1, 1]], np.int32), 2)[..., 1]
    one, two = (5 * np.array(row) for row in ((3, 1, 2), (0, 4, -1)))  # at the origin, along x, y
    assert sorted(map(list, found.tolist())) == sorted([[16, *one[1:]], [1, *two[1:]]])


def test_a_miss_that_is_a_multiple_of_the_first_prime_is_no_meeting() -> None:
    # x = 0, y = 0 and x + y = miss; below what float64 tells, zero modulo the first prime
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    prime = Residues(
        cpwl.Network.from_torch(module, (2,)), cpwl.Slice(np.zeros(2), np.eye(2))
    ).prime(0)
    for miss, cells in ((0.0, 6), (prime * 2.0**-80, 7)):
        with torch.no_grad():
            module[0].get_parameter("weight").copy_(torch.tensor([[1, 0], [0, 1], [1, 1]]))
            module[0].get_parameter("bias").copy_(torch.tensor([0, 0, -miss], dtype=torch.float64))
        network = cpwl.Network.from_torch(module, (2,))
        left, all_of_them = both(network, cpwl.box([-1, -1], [1, 1]))
        assert (
            cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]), progress=False).num_cells == cells
        )
        assert left.total() == 0 < all_of_them.total()


@given(st.integers(0, 2**32 - 1))
@ordinary(50)
def test_places_between_roots_lie_within_their_errors(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ends = rng.normal(size=(2, 5, 2))
    if seed % 2:  # all but the same
        ends[1] = ends[0] + rng.normal(size=(5, 2)) * 2.0**-40
    t = rng.random(5)[:, None]
    hi = np.stack([*ends, ends[0] + t * (ends[1] - ends[0])])
    lo = hi * rng.normal(size=hi.shape) * 2.0**-56
    radius = np.abs(hi).max(axis=2) * 2.0**-100
    start, stop, root = (precise.Roots(*parts) for parts in zip(hi, lo, radius, strict=True))
    found = precise.between(root, start, stop)
    for i in range(5):
        axis = int(np.argmax(np.abs(hi[1, i] - hi[0, i])))
        a, b, x = (Fraction(hi[k, i, axis]) + Fraction(lo[k, i, axis]) for k in range(3))
        r = Fraction(radius[0, i]), Fraction(radius[1, i]), Fraction(radius[2, i])
        place, off = Fraction(found[0][i]) + Fraction(found[1][i]), Fraction(found[2][i])
        for signs in ((1, -1, 1), (-1, 1, 1), (1, 1, -1), (-1, -1, -1), (0, 0, 0)):
            u, v, w = (n + s * q for n, s, q in zip((a, b, x), signs, r, strict=True))
            assert abs((w - u) / (v - u) - place) <= off
        assert off < 2.0**-50


def test_a_number_is_rounded_only_where_all_near_it_round_alike() -> None:
    one = np.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.3])
    lo = np.array([0.0, 2.0**-54, -(2.0**-55), -(2.0**-54), 0.0, 0.0])
    radius = np.array([2.0**-60, 2.0**-54, 2.0**-60, 2.0**-100, 2.0**-1000, np.inf])
    told = [True, False, True, False, False, False]
    assert meetings._rounded(one, lo, radius).tolist() == told
