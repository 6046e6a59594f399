"""Triangle waves against breakpoints in rational arithmetic, written out here."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import cpwl

pytestmark = pytest.mark.usefixtures("one_thread")

Line = list[tuple[Fraction, Fraction]]  # places and values, linear in between
LONG = [0.1, 1 / 3, math.pi, 1 + 2.0**-40, 1e-3 / 3, 2 * math.e, 0.7e-7, 12345.6789, 2.0]


class Waves(nn.Module):
    """Stages of |((w x + b) mod p) - p / 2| s - c, a ReLU behind each but the first."""

    def __init__(self, stages: list[tuple[float, ...]]) -> None:
        super().__init__()
        self.stages = stages

    def forward(self, x: Tensor) -> Tensor:
        for i, (w, b, p, s, c) in enumerate(self.stages):
            x = torch.relu(x) if i else x
            x = (torch.remainder(x * w + b, p) - p / 2).abs() * s - c
        return x


def bent(line: Line, knots, function) -> Line:
    """Add the crossings with `knots(low, high)`, strictly inside, and map the values."""
    out = [line[0]]
    for (x0, y0), (x1, y1) in pairwise(line):
        inside = [k for k in knots(min(y0, y1), max(y0, y1)) if min(y0, y1) < k < max(y0, y1)]
        out += sorted((x0 + (k - y0) / (y1 - y0) * (x1 - x0), k) for k in inside)
        out.append((x1, y1))
    return [(x, function(y)) for x, y in out]


def waved(line: Line, w: float, b: float, p: float, s: float, c: float) -> Line:
    weight, shift, half = Fraction(w), Fraction(b), Fraction(p) / 2
    scale, offset = Fraction(s), Fraction(c)

    def knots(low: Fraction, high: Fraction) -> list[Fraction]:
        return [k * half for k in range(math.floor(low / half), math.ceil(high / half) + 1)]

    line = [(x, weight * y + shift) for x, y in line]
    return bent(line, knots, lambda y: abs(y % (2 * half) - half) * scale - offset)


def exact_line(stages: list[tuple[float, ...]], low: float, high: float) -> Line:
    line = [(Fraction(x), Fraction(x)) for x in (low, high)]
    for i, stage in enumerate(stages):
        if i:
            line = bent(line, lambda *_: [Fraction(0)], lambda y: max(y, Fraction(0)))
        line = waved(line, *stage)
    return line


def compare(stages: list[tuple[float, ...]], low: float, high: float) -> cpwl.Partition:
    network = cpwl.Network.from_torch(Waves(stages).double(), (1,))
    partition = cpwl.subdivide(network, cpwl.box([low], [high]), progress=False)
    assert partition.status.complete
    assert partition.status.exact
    line = exact_line(stages, low, high)
    got = np.sort(partition.points[:, 0])
    assert len(got) == len(line)
    want = np.array([float(x) for x, _ in line])
    largest = max(abs(low), abs(high), *(p for _, _, p, _, _ in stages[1:]))
    assert np.abs(got - want).max() <= 2.0**-47 * largest
    assert cpwl.certify(partition, progress=False)
    assert cpwl.check(partition).ok
    # the maps, at the middle of each cell
    order = np.argsort(partition.points[partition.cell_corners.reshape(-1, 2), 0].mean(axis=1))
    maps = list(cpwl.affine_maps(partition))
    slope, base = (np.concatenate([m[i] for m in maps]).reshape(-1)[order] for i in (0, 1))
    steep = max(1.0, *(abs(w * s) for w, _, _, s, _ in stages)) ** len(stages)
    for a, b, ((x0, y0), (x1, y1)) in zip(slope, base, pairwise(line), strict=True):
        true = (y1 - y0) / (x1 - x0)
        assert abs(Fraction(a) - true) <= 1e-13 * steep
        off = Fraction(a) * (x0 + x1) / 2 + Fraction(b) - (y0 + y1) / 2
        assert abs(off) <= 1e-14 * steep * max(largest, 1.0)
    return partition


def test_knots_round_nowhere() -> None:
    """The wave's peaks are 2^-40 above the ReLU's knot: two knots within 2^-39, 100 times."""
    period = 2 + 2.0**-39
    partition = compare([(1, 0, period, 1, 1), (1, 0, 4.0, 1, 0)], 1799.7, 2000.0)
    assert partition.num_cells == 401
    torch.set_default_dtype(torch.float16)
    try:
        again = cpwl.subdivide(partition.network, partition.domain, progress=False)
    finally:
        torch.set_default_dtype(torch.float32)
    assert again.num_cells == 401


@pytest.mark.parametrize(
    ("stages", "low", "high"),
    [
        ([(1, 0, 0.1, 1, 0)], 0.0, 10.0),
        ([(1, 0.3, 0.1, 0.7, 0.01)], 500_000.05, 500_010.0),  # k beyond 10^7
        ([(0.7, 0.1, 1 / 3, 3, 0.2), (1.5, -0.1, 0.1, 1, 0)], -3.0, 4.0),
        ([(2.0**-100, 0, 2.0**-104 / 3, 1, 0)], -1.0, 2.0),
    ],
)
def test_waves_agree_with_rational_breakpoints(stages, low, high) -> None:
    compare(stages, low, high)


def sweep(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(count):
        stages = []
        for _ in range(random.integers(1, 4)):
            w, s = random.choice([1.0, -0.5, 0.3, 7.0], 2)
            p = float(random.choice(LONG))
            b, c = p * random.choice([0, 0.25, 0.1, -3], 2)
            stages.append((float(w), float(b), p, float(abs(s)), float(c)))
        first = stages[0]
        length = 20 * first[2]
        stages[1:] = [(w, b, max(p, first[2] / 9), s, c) for w, b, p, s, c in stages[1:]]
        low = float(random.choice([0, 1e3, 1e6, -1e7])) * first[2]
        compare(stages, low, low + length)


def test_a_sweep_of_long_periods() -> None:
    sweep(0, 3)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1, 11))
def test_more_sweeps(seed: int) -> None:
    sweep(seed, 3)


@pytest.mark.parametrize("name", ["asin", "acos"])
def test_inverse_sines_have_the_period_of_float64(name: str) -> None:
    class Composed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.asin(torch.sin(x)) if name == "asin" else torch.acos(torch.cos(x))

    network = cpwl.Network.from_torch(Composed(), (1,))
    partition = cpwl.subdivide(network, cpwl.box([1000.0], [1100.0]), progress=False)
    half, phase = Fraction(math.pi), Fraction(math.pi) / (2 if name == "asin" else 1)
    knots = [k * half - phase for k in range(500)]
    want = [float(k) for k in knots if 1000 < k < 1100]
    np.testing.assert_allclose(np.sort(partition.points[:, 0])[1:-1], want, rtol=2.0**-51)
    assert cpwl.certify(partition, progress=False)


@pytest.mark.parametrize(
    ("function", "half"),
    [
        (lambda x: (x / 3 - torch.round(x / 3)).abs(), Fraction(3, 2)),
        (lambda x: (x * 3 - torch.floor(x * 3) - 0.5).abs(), 1 / (2 * Fraction(3))),
        (lambda x: (x * 0.3 - torch.floor(x * 0.3) - 0.5).abs(), 1 / (2 * Fraction(0.3))),
        (lambda x: (x - 0.7 * torch.round(x / 0.7)).abs(), Fraction(0.7) / 2),
        (lambda x: (x - 0.7 * torch.floor(x / 0.7) - 0.35).abs(), Fraction(0.7) / 2),
        (lambda x: (torch.remainder(x, -0.7) + 0.35).abs(), Fraction(0.7) / 2),
    ],
)
def test_every_way_to_write_a_wave_has_exact_knots(function, half: Fraction) -> None:
    class Written(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    network = cpwl.Network.from_torch(Written(), (1,))
    partition = cpwl.subdivide(network, cpwl.box([-100.0], [100.0]), progress=False)
    count = math.floor(100 / half)
    want = [float(k * half) for k in range(-count, count + 1) if abs(k * half) < 100]
    assert partition.status.exact
    np.testing.assert_allclose(np.sort(partition.points[:, 0])[1:-1], want, 0, 2.0**-51 * 100)


def test_knots_that_float64_cannot_tell_apart_are_refused() -> None:
    network = cpwl.Network.from_torch(Waves([(1, 0, 0.1, 1, 0)]).double(), (1,))
    with pytest.raises(FloatingPointError, match="Expected arguments of a triangle wave within"):
        cpwl.subdivide(network, cpwl.box([1e15], [1e15 + 10]), progress=False)
