"""The network in rational arithmetic, against torch where float64 rounds nothing."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from flint import fmpq
from torch import Tensor, nn

import cpwl
from cpwl.engine.rational.evaluator import Evaluator, Line, located
from cpwl.engine.rational.numbers import Vector, integers


class Calling(nn.Module):
    """Two affine layers of multiples of 1/8 around a function, and a ReLU behind."""

    def __init__(self, bend: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, width), nn.LazyLinear(5)
        self.bend = bend

    def forward(self, z: Tensor) -> Tensor:
        """Evaluate."""
        return torch.relu(self.second(self.bend(self.first(z))))


def _residual(x: Tensor) -> Tensor:
    return torch.cat([x.abs() + torch.relu(x), 2 - x.flip(1)], dim=1)


def _pooled(x: Tensor) -> Tensor:
    return torch.nn.functional.max_pool1d(x[:, None], 3, 2).flatten(1)


def _convolved(x: Tensor) -> Tensor:
    kernel = torch.tensor([[[0.5, 0.0, -2.0]]], dtype=x.dtype)
    return torch.relu(torch.nn.functional.conv1d(x[:, None], kernel, padding=1).flatten(1))


BENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "leaky relu": lambda x: torch.nn.functional.leaky_relu(x, 0.25),
    "clamp": lambda x: x.clamp(-0.5, 0.75),
    "clamp from below": lambda x: x.clamp(min=0.375),
    "clamp to tensors": lambda x: x.clamp(min=-torch.arange(8.0), max=torch.arange(8.0) - 2),
    "wave": lambda x: (torch.remainder(x + 0.5, 2) - 1).abs() * 3 + 0.25,
    "maximum": lambda x: torch.maximum(x, 0.25 - x),
    "minimum of a constant": lambda x: torch.minimum(x, torch.tensor(0.25, dtype=x.dtype)),
    "maximum of zeros": lambda x: torch.maximum(x, torch.zeros(x.shape[0], 8, dtype=x.dtype)),
    "residual": _residual,
    "max-pool": _pooled,
    "convolution": _convolved,
}  # fmt: skip


@pytest.fixture(params=BENDS)
def network(request: pytest.FixtureRequest) -> cpwl.Network:
    """Return a network whose float64 values at multiples of 1/8 are exact."""
    module = Calling(BENDS[request.param], 8)
    module(torch.zeros(1, 3))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randint(-16, 17, parameter.shape, generator=generator) / 8)
    found = cpwl.Network.from_torch(module, (3,))
    assert found.matrices.complete
    return found


def _evaluator(network: cpwl.Network) -> Evaluator:
    """Evaluate on a slice through the corners (0, 0, 0), (1, 1, 0) and (0, 1, 2)."""
    plane = cpwl.Slice(np.zeros(3), np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 2.0]]))
    return Evaluator(network.program, network.matrices, plane)


def _rationals(vector: Vector) -> list[Fraction]:
    entries = [fmpq(n, vector.q << vector.shift) for n in vector.numbers]
    return [Fraction(int(x.p), int(x.q)) for x in entries]


def test_values_are_those_of_float64_where_it_is_exact(network: cpwl.Network) -> None:
    evaluator = _evaluator(network)
    for x, y in ((0, 0), (3, -5), (-17, 2), (40, 9), (-31, -23)):
        latent = torch.tensor([[x, x + y, 2 * y]], dtype=torch.float64) / 8
        known = located((fmpq(x, 8), fmpq(y, 8)))
        for stage in range(network.num_stages):
            values = evaluator.stage(stage, known, None)
            expected = network.preactivations(latent, stage)[0].tolist()
            assert _rationals(values) == [Fraction(v) for v in expected]
            for i, value in enumerate(expected):
                assert values.minus(i, value) == 0
                assert values.compare(i, value) == 0
                assert (values.compare(i, value + 1), values.compare(i, -torch.inf)) == (-1, 1)


def test_interpolation_gives_what_evaluation_gives(network: cpwl.Network) -> None:
    evaluator = _evaluator(network)
    start = fmpq(1, 3), fmpq(-2, 7)
    end = start[0] + fmpq(1, 2**30), start[1] - fmpq(3, 2**30)
    t = fmpq(5, 11)
    middle = tuple(a + t * (b - a) for a, b in zip(start, end, strict=True))
    ends = located(start), located(end)
    for known in ends:
        evaluator.stage(network.num_stages - 1, known, None)
    line = Line(*ends, t, network.num_stages)
    for stage in range(network.num_stages):
        alone, between = located(middle), located(middle)
        assert evaluator.stage(stage, between, line) == evaluator.stage(stage, alone, None)
        assert all(alone[step] == value for step, value in between.items())


def test_a_line_says_nothing_beyond_its_stage() -> None:
    module = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.ones_like(parameter))
    network = cpwl.Network.from_torch(module, (1,))
    evaluator = Evaluator(
        network.program, network.matrices, cpwl.Slice(np.zeros(1), np.ones((1, 1)))
    )
    ends = located((fmpq(-3),)), located((fmpq(1),))
    for known in ends:
        evaluator.stage(1, known, None)
    bends_within = Line(*ends, fmpq(1, 4), stage=0)
    at_minus_two = evaluator.stage(1, located((fmpq(-2),)), bends_within)
    assert _rationals(at_minus_two) == [1]


def test_integers_have_the_smallest_denominator() -> None:
    numbers, shift = integers([[1.0, -0.75], [0.0, 2.0**-1074]])
    assert (numbers[2], numbers[3], shift) == (0, 1, 1074)
    assert (numbers[0], numbers[1]) == (2**1074, -3 * 2**1072)
    assert integers([4.0, -(2.0**1023)]) == ([4, -(2**1023)], 0)
    assert integers([0.0]) == ([0], 0)
    assert integers([]) == ([], 0)
