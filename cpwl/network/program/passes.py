"""Passes over a `Program`: values, switching functions, error bounds, pieces, fixed pieces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cpwl.network.program.nonlinearities import piece_of
from cpwl.network.program.program import (
    Head,
    Plan,
    Program,
    Step,
    call,
    fill,
    make_plan,
    run,
    stage_plan,
    switching,
)


def evaluate(program: Program, z: Tensor) -> Tensor:
    """Forward pass."""
    with torch.no_grad():
        return run(program, program.output_plan, z)[program.output]


def preactivations(program: Program, z: Tensor, stage: int) -> Tensor:
    """Switching functions of one stage, (N, n_stage)."""
    with torch.no_grad():
        env = run(program, stage_plan(program, stage), z)
        return stage_values(program, env, stage)


def stage_units(
    program: Program, plan: Plan, z: Tensor, known: Mapping[int, Tensor], stage: int
) -> tuple[Tensor, list[Any]]:
    """Switching functions of one stage, (N, n_stage), by a plan of its `Segment`; what is alive.

    ``known`` are the values of the segment's start, where the plan takes these as known.
    """
    with torch.no_grad():
        env = run(program, plan, z, known=known)
        return stage_values(program, env, stage), env


def pieces(program: Program, z: Tensor, num_units: int) -> Tensor:
    """Piece of every unit, (N, num_units) int64, in one forward pass."""
    found = torch.zeros((z.shape[0], num_units), dtype=torch.int64)

    def step_pieces(index: int, step: Step, env: list[Any]) -> Any:
        if step.nonlinearity is not None:
            inputs = [fill(arg, env) for arg in step.args]
            for round in range(len(step.nonlinearity.shapes)):
                h = step.nonlinearity.switching(inputs, round)
                piece = piece_of(step.nonlinearity, h, round)
                piece = piece.reshape(z.shape[0], _count(step.nonlinearity.shapes[round]))
                first = program.first_unit[index, round]
                found[:, first : first + piece.shape[1]] = piece
        return call(step, env)

    with torch.no_grad():
        run(program, program.output_plan, z, step_pieces)
    return found


def apply_pieces(program: Program, z: Tensor, given: Tensor) -> Tensor:
    """Forward pass with every unit held on a piece; differentiable in z."""

    def select(index: int, step: Step, env: list[Any]) -> Any:
        if step.nonlinearity is None:
            return call(step, env)
        inputs = [fill(arg, env) for arg in step.args]
        return step.nonlinearity.select(inputs, held_pieces(program, index, step, given))

    return run(program, program.output_plan, z, select)[program.output]


def held_switching(program: Program, z: Tensor, given: Tensor, stages: int) -> Tensor:
    """Switching functions of the first stages, (N, units), with every unit held on a piece."""
    heads = {head for stage in program.heads[:stages] for head in stage}
    plan = make_plan(program.steps, {head.step for head in heads})
    last = max(head.step for head in heads)
    count = sum(head.units for head in heads)
    found = torch.empty((z.shape[0], count), dtype=torch.float64)

    def select(index: int, step: Step, env: list[Any]) -> Any:
        if step.nonlinearity is None:
            return call(step, env)
        inputs = [fill(arg, env) for arg in step.args]
        held = held_pieces(program, index, step, given)
        for round in range(len(held)):
            if Head(index, round, held[round][0].numel()) in heads:
                h = step.nonlinearity.switching(inputs, round, held[:round])
                first = program.first_unit[index, round]
                found[:, first : first + h[0].numel()] = h.reshape(h.shape[0], -1)
        return None if index == last else step.nonlinearity.select(inputs, held)

    with torch.no_grad():
        run(program, plan, z, select)
    return found


def held_pieces(program: Program, index: int, step: Step, given: Tensor) -> list[Tensor]:
    """Pieces of a CPWL step's units, round by round."""
    assert step.nonlinearity is not None
    held = []
    for round, shape in enumerate(step.nonlinearity.shapes):
        first = program.first_unit[index, round]
        held.append(given[:, first : first + _count(shape)].reshape(given.shape[0], *shape))
    return held


def stage_values(program: Program, env: list[Any], stage: int) -> Tensor:
    """Collect what the units of a stage switch on, (B, n_stage)."""
    parts = [switching(program, head, env) for head in program.heads[stage]]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
