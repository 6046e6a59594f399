"""Running error analysis carried through a pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cpwl.arrays import EPS, SMALLEST
from cpwl.network.program.passes import preactivations, stage_values
from cpwl.network.program.program import Program, Ref, Step, call, run, stage_plan
from cpwl.network.program.rounding import gamma, magnitude


def rounding_errors(
    program: Program, z: Tensor, stage: int, input_error: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Switching functions of one stage, the bound on their rounding errors, and its fresh part.

    The bound takes the input to be off by at most ``input_error`` (1, *input_shape).
    """
    if z.shape[0] == 0:  # no rows, no magnitudes
        values = preactivations(program, z, stage)
        nothing = torch.zeros(values.shape[1], dtype=torch.float64)
        return values, nothing, nothing
    carried, fresh = Analysis(program, carry=True), Analysis(program, carry=False)
    fresh.magnitudes = carried.magnitudes
    carried.errors[0] = input_error

    def record(index: int, step: Step, env: list[Any]) -> Any:
        value = carried.step(index, step, env)
        fresh.record(index, step, env)
        return value

    with torch.no_grad():
        env = run(program, stage_plan(program, stage), z, record)
        values = stage_values(program, env, stage)
        return values, carried.of_stage(stage, env), fresh.of_stage(stage, env)


def output_bound(program: Program, z: Tensor, input_error: Tensor | None = None) -> Tensor:
    """Bound on the rounding error of the output over the rows of z, (1, *output_shape)."""
    analysis = Analysis(program, carry=True)
    analysis.errors[0] = input_error
    with torch.no_grad():
        env = run(program, program.output_plan, z, analysis.step)
    error = analysis.errors.get(program.output)
    return torch.zeros_like(env[program.output][:1]) if error is None else error


def rounding_noise(program: Program, z: Tensor, draws: int = 3) -> float:
    """Largest change of an output where all numbers on the way move by eps, either way at random.

    No bound, but near the size of the errors that are really met: those that numbers leave behind
    which cancel, in their layer or later, are in it.
    """
    generator = torch.Generator().manual_seed(0)

    def moved(value: Any) -> Any:
        sign = torch.randint(0, 2, value.shape, generator=generator) * 2 - 1
        return value + value * (EPS * sign)

    def perturbed(index: int, step: Step, env: list[Any]) -> Any:
        value = call(step, env)
        return value if step.kind in ("size", "fixed") else moved(value)

    with torch.no_grad():
        plain = run(program, program.output_plan, z)[program.output]
        changes = [
            run(program, program.output_plan, moved(z), perturbed)[program.output] - plain
            for _ in range(draws)
        ]
    return max(float(change.abs().max()) for change in changes)


class Analysis:
    """Magnitudes and error bounds of the steps of one pass, filled as the pass goes on.

    `errors[i]` has a batch axis of one; None (or absent) means that step i is exact. Without
    `carry` the operands of an affine step that come from a non-linearity are taken to be exact, so
    that errors start afresh in every layer; `past` holds the steps whose error is such a one.
    Of `directions` instead of points constants take no part.
    """

    def __init__(self, program: Program, *, carry: bool, directions: bool = False) -> None:
        self.program = program
        self.carry = carry
        self.directions = directions
        self.errors: dict[int, Tensor | None] = {}
        self.magnitudes: dict[int, Tensor] = {}
        self.past: set[int] = set()
        self.single = single_values(program)

    def step(self, index: int, step: Step, env: list[Any]) -> Any:
        """Compute a step's value and its error bound."""
        self.record(index, step, env)
        return call(step, env)

    def record(self, index: int, step: Step, env: list[Any]) -> None:
        """Bound the error of a step from its operands."""
        if step.kind in ("size", "fixed"):
            return
        if step.nonlinearity is None:
            self.errors[index] = self._affine(step, env)
            assert step.rounding is not None
            if step.rounding.terms == 0 and not self.past.isdisjoint(step.data):
                self.past.add(index)
        else:
            self.past.add(index)
            errors, magnitudes = self.operands(index, env)
            error = step.nonlinearity.error(errors, magnitudes)
            self.errors[index] = None if error is None else error.expand(step.single)

    def of_stage(self, stage: int, env: list[Any]) -> Tensor:
        """Bounds of all switching functions of a stage, (n_stage,)."""
        bounds = []
        for head in self.program.heads[stage]:
            nonlinearity = self.program.steps[head.step].nonlinearity
            assert nonlinearity is not None
            errors, magnitudes = self.operands(head.step, env)
            error = nonlinearity.switching_error(errors, magnitudes, head.round)
            bound = torch.zeros(head.units, dtype=torch.float64)
            if error is not None:
                shape = nonlinearity.shapes[head.round]
                bound = error.expand(1, *shape).reshape(-1)
            bounds.append(bound)
        return torch.cat(bounds)

    def operands(self, index: int, env: list[Any]) -> tuple[list[Tensor | None], list[Tensor]]:
        """Errors and magnitudes of a CPWL step's operands."""
        errors: list[Tensor | None] = []
        magnitudes: list[Tensor] = []
        for arg in self.program.steps[index].args:
            if isinstance(arg, Ref) and arg.index not in self.single:
                errors.append(self.errors.get(arg.index))
                magnitudes.append(self._magnitude(arg.index, env))
            else:
                value = self.single[arg.index] if isinstance(arg, Ref) else arg
                errors.append(None)
                magnitudes.append(torch.as_tensor(value, dtype=torch.float64).abs())
        return errors, magnitudes

    def _affine(self, step: Step, env: list[Any]) -> Tensor | None:
        rounding = step.rounding
        assert rounding is not None
        errors = {index: self.errors.get(index) for index in step.data}
        if rounding.terms and not self.carry:
            errors = {i: None if i in self.past else error for i, error in errors.items()}
        if rounding.terms == 0 and all(error is None for error in errors.values()):
            return None
        unit = gamma(rounding.terms) if rounding.terms else 0.0
        values: dict[int, Tensor] = {}
        for index, error in errors.items():
            source = self.program.steps[index]
            if unit:
                error_in = self._magnitude(index, env) * unit
                # The factor covers the rounding of this very sum of non-negative terms.
                values[index] = error_in if error is None else error_in + error * (1 + 2 * unit)
            else:
                zero = torch.zeros(source.single, dtype=torch.float64)
                values[index] = zero if error is None else error
        bound = absolute_part(step, self.single, values)
        constant = None if self.directions or not unit else offset_size(step, self.single, values)
        if constant is not None:
            bound = bound + unit * constant
        # each product may also lose what is below the smallest subnormal number
        return bound + rounding.terms * SMALLEST

    def _magnitude(self, index: int, env: list[Any]) -> Tensor:
        if index not in self.magnitudes:
            step = self.program.steps[index]
            self.magnitudes[index] = magnitude(env[index], step.single, step.leading)
        return self.magnitudes[index]


def absolute_part(step: Step, fixed: Mapping[int, Any], values: Mapping[int, Tensor]) -> Tensor:
    """Apply |L| of an affine step to non-negative values of its operands.

    ``fixed`` are the operands that follow from the batch size.
    """
    assert step.rounding is not None
    return call(step, {**fixed, **values}, step.rounding.linear)


def offset_size(
    step: Step, fixed: Mapping[int, Any], values: Mapping[int, Tensor]
) -> Tensor | None:
    """Return |b| of an affine step, where there is one, from any values of its operands."""
    assert step.rounding is not None
    if step.rounding.terms == 0:  # entries are only moved; constants may stand between them
        zeros = {i: torch.zeros_like(value) for i, value in values.items()}
        return call(step, {**fixed, **zeros}).abs()
    constant = step.rounding.constant
    return None if constant is None else call(step, {**fixed, **values}, constant)


def single_values(program: Program, rows: int = 1) -> dict[int, Any]:
    """Integers and tensors that follow from the batch size alone, by default for a batch of one."""
    values: dict[int, Any] = {}
    zero = torch.zeros((), dtype=torch.float64)
    for index, step in enumerate(program.steps):
        if step.kind not in ("size", "fixed"):
            continue
        # A size may be read off any tensor; only its shape matters.
        for i in step.data:
            single = program.steps[i].single
            values[i] = zero.expand(single if rows == 1 else (rows, *single[1:]))
        values[index] = call(step, values)
        for i in step.data:
            del values[i]
    return values
