"""Coefficients of affine steps: gradients bit for bit, at the cost of the matrix's places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import cpwl
from cpwl.network.program import Program, Step, call, read_matrices, read_step, single_values


class Function(nn.Module):
    """A function of the input and of random numbers."""

    numbers: Tensor

    def __init__(self, of: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.of = of
        self.register_buffer("numbers", torch.rand(3000))

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate."""
        return self.of(x, self.numbers)


def _addmm(x: Tensor, r: Tensor) -> Tensor:
    return torch.addmm(r[:200], x, r[200:1200].view(5, 200), beta=0.3, alpha=0.7)


def _late(x: Tensor, r: Tensor) -> Tensor:
    return (r[:600].view(200, 3) @ x.T + r[:200, None]).T


TALL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(2, 300), (2,)),
    "linear without bias": (lambda: nn.Linear(3, 400, bias=False), (3,)),
    "linear on rows": (lambda: nn.Linear(2, 90), (4, 2)),
    "convolution": (lambda: nn.Conv2d(2, 30, 3, padding=1), (2, 4, 4)),
    "transposed convolution": (lambda: nn.ConvTranspose2d(6, 8, 7, 3, groups=2), (6, 1, 2)),
    "convolutions and norms": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(4, 6, 4), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 1),
            nn.Upsample(scale_factor=2), nn.AvgPool2d(3, 2, 1),
        ),
        (4, 1, 1),
    ),
    "addmm": (lambda: Function(_addmm), (5,)),
    "factors": (lambda: Function(lambda x, r: x[..., None] * r[:90] + x[..., None] / r[9:99]),
                (3,)),
    "sums": (lambda: Function(lambda x, r: torch.add(x[:, :, None], x[:, None], alpha=0.3)), (20,)),
    "constants": (lambda: Function(lambda x, r: r[:90] - x[..., None]), (3,)),
    "pads": (lambda: nn.Sequential(nn.ConstantPad2d(3, 0.5), nn.ReflectionPad2d(3)), (2, 2, 2)),
    "moves": (lambda: Function(lambda x, r: torch.cat([x, x.flip(1)], 1).repeat(1, 99)[:, ::2]),
              (5,)),
    "the batch axis behind": (lambda: Function(_late), (3,)),
    "bilinear": (lambda: nn.Upsample(size=(13, 17), mode="bilinear"), (2, 3, 3)),
    "trilinear": (lambda: nn.Upsample(scale_factor=3, mode="trilinear"), (1, 3, 3, 3)),
}  # fmt: skip
# Their factors are rounded more than once, and are those of the gradients: read one by one.
ONE_BY_ONE = ("bilinear", "trilinear")


def captured(name: str) -> Program:
    """Capture a module with random numbers."""
    make, shape = TALL[name]
    torch.manual_seed(0)
    module = make().double().eval()
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_var, 0.5, 2)  # type: ignore[arg-type]
    return cpwl.Network.from_torch(module, shape).program


def gradients(program: Program, step: Step) -> list[np.ndarray]:
    """Matrices of a step's operands, output by output."""
    constants = single_values(program)
    values = [
        torch.zeros(program.steps[i].single, dtype=torch.float64, requires_grad=True)
        for i in step.data
    ]
    out = call(step, {**constants, **dict(zip(step.data, values, strict=True))}).reshape(-1)
    rows = [torch.autograd.grad(y, values, retain_graph=True) for y in out]
    return [torch.stack(x).reshape(len(out), -1).numpy() for x in zip(*rows, strict=True)]


@pytest.mark.parametrize("name", TALL)
def test_coefficients_are_gradients_bit_for_bit(name: str) -> None:
    program = captured(name)
    matrices = read_matrices(program)
    assert matrices.complete
    for index, read in matrices.steps.items():
        expected = gradients(program, program.steps[index])
        for part, dense in zip(read.parts, expected, strict=True):
            assert part.matrix.has_canonical_format
            assert part.matrix.nnz == np.count_nonzero(dense)
            np.testing.assert_array_equal(part.matrix.toarray(), dense)


class Counted:
    """A step's function, and how many numbers it has returned."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function, self.numbers = function, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Call the function."""
        found = self.function(*args, **kwargs)
        self.numbers += found.numel()
        return found

    def __getattr__(self, name: str) -> Any:
        """Look up what torch knows of the function."""
        return getattr(self.function, name)


def counted(program: Program) -> tuple[Program, list[Counted]]:
    """Count what the affine steps return: as many numbers as the gradients asked for, or more."""
    functions: list[Counted] = []
    steps = []
    for step in program.steps:
        if step.kind == "affine":
            functions.append(Counted(step.function))
            step = replace(step, function=functions[-1])
        steps.append(step)
    return replace(program, steps=tuple(steps)), functions


@pytest.mark.parametrize("name", [name for name in TALL if name not in ONE_BY_ONE])
def test_reading_costs_the_places_of_the_matrices(name: str) -> None:
    program, functions = counted(captured(name))
    assert read_matrices(program).complete
    affine = [step for step in program.steps if step.kind == "affine"]
    for step, function in zip(affine, functions, strict=True):
        offset = prod(step.single)
        places = sum(prod(program.steps[i].single) for i in step.data) * offset
        assert 0 < function.numbers <= places + offset


@pytest.mark.parametrize("sizes", [(4000, 4000), (10, 400_000), (400_000, 10)])
def test_reading_ends_with_the_room_for_entries(sizes: tuple[int, int]) -> None:
    program = cpwl.Network.from_torch(nn.Linear(*sizes), sizes[:1]).program
    program, (function,) = counted(program)
    found = read_matrices(program, most_entries=50_000)
    assert found.reason == "its affine operations have more than 50,000 entries"
    assert function.numbers <= 2**22 + sizes[1]


def test_steps_of_too_many_gradients_are_not_read() -> None:
    module = nn.Upsample(size=(300, 300), mode="bilinear")
    network = cpwl.Network.from_torch(module, (1, 1, 1))
    program, (function,) = counted(network.program)
    reason = read_matrices(program).reason
    assert reason.endswith("has 90,000 outputs, too many to be read one by one")
    assert reason == network.matrices.reason
    assert read_step(program, program.steps[program.output]) is None
    assert function.numbers == 0
