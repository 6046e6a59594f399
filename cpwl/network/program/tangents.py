"""The linear part of a pass with all units held on their pieces: directions instead of points.

A step maps a point x to L x + b, and a direction t to L t. Offsets b take no part, so that
directions keep their digits whatever the offsets are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cpwl.network.program.error_analysis import single_values
from cpwl.network.program.passes import held_pieces
from cpwl.network.program.program import Program, Ref, Step, Values, call, fill, run

LinearPart = Callable[[Values], Tensor]


def linear_parts(program: Program) -> dict[int, LinearPart]:
    """Say how the affine steps with an offset map directions, from the values of all steps.

    The others map directions as they map points. Cost: every step once, for a single sample.
    """
    found = {}
    constants = single_values(program)
    with torch.no_grad():
        for index in program.output_plan.order:
            step = program.steps[index]
            if step.kind != "affine":
                continue
            zeros = {
                i: torch.zeros(program.steps[i].single, dtype=torch.float64) for i in step.data
            }
            offset = call(step, {**constants, **zeros})
            if offset.any():
                found[index] = linear_part(step)
    return found


def apply_slopes(
    program: Program, parts: Mapping[int, LinearPart], t: Tensor, given: Tensor
) -> Tensor:
    """Map directions t (N, *input_shape) with every unit held on a piece."""

    def follow(index: int, step: Step, env: list[Any]) -> Any:
        return direct(program, parts, given, index, step, env)

    return run(program, program.output_plan, t, follow)[program.output]


def direct(
    program: Program,
    parts: Mapping[int, LinearPart],
    given: Tensor,
    index: int,
    step: Step,
    env: list[Any],
) -> Any:
    """Map the directions of a step's operands, its units held on their pieces."""
    if step.nonlinearity is not None:
        return step.nonlinearity.linear(moving(step, env), held_pieces(program, index, step, given))
    part = parts.get(index)
    return call(step, env) if part is None else part(env)


def moving(step: Step, env: list[Any]) -> list[Any]:
    """Return the directions of a CPWL step's operands: constants do not move."""
    return [
        env[arg.index]
        if isinstance(arg, Ref) and arg.index in step.data
        else torch.zeros_like(torch.as_tensor(fill(arg, env), dtype=torch.float64))
        for arg in step.args
    ]


def linear_part(step: Step) -> LinearPart:
    """Drop the bias of a layer; of any other step take the derivative, at twice the cost."""
    args, function = step.args, step.function
    packet = getattr(getattr(function, "overloadpacket", None), "__name__", "")
    moving = [isinstance(arg, Ref) and arg.index in step.data for arg in args]
    if packet == "linear" and moving == [True, False, False]:
        return lambda env: function(*(fill(arg, env) for arg in args[:2]))
    if packet == "convolution":
        bare = (*args[:2], None, *args[3:])
        return lambda env: function(*(fill(arg, env) for arg in bare))
    if packet == "addmm" and not moving[0] and not step.kwargs:
        return lambda env: torch.mm(*(fill(arg, env) for arg in args[1:]))
    return lambda env: _derivative(step, env)


def _derivative(step: Step, env: Values) -> Tensor:
    """Differentiate a step at zero, in the directions of its operands."""

    def function(*values: Tensor) -> Tensor:
        return call(step, {**fixed, **dict(zip(step.data, values, strict=True))})

    fixed = {i: env[i] for i in step.inputs if i not in step.data}
    directions = tuple(env[i] for i in step.data)
    zeros = tuple(torch.zeros_like(direction) for direction in directions)
    return torch.func.jvp(function, zeros, directions)[1]
