"""Numbers for stages and units."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import Ints
from cpwl.network.program import Head, Program, Step, make_plan


def number_units(steps: tuple[Step, ...], last_stage: Sequence[int], output: int) -> Program:
    """Give stages and units their numbers."""
    output_plan = make_plan(steps, [output])
    by_stage: dict[int, list[Head]] = {}
    for index in output_plan.order:
        nonlinearity = steps[index].nonlinearity
        if nonlinearity is None:
            continue
        start = last_stage[index] - len(nonlinearity.shapes) + 1
        for round, shape in enumerate(nonlinearity.shapes):
            by_stage.setdefault(start + round, []).append(Head(index, round, prod(shape)))
    heads = tuple(tuple(by_stage[stage]) for stage in range(len(by_stage)))
    first_unit, unit = {}, 0
    for stage in heads:
        for head in stage:
            first_unit[head.step, head.round] = unit
            unit += head.units
    return Program(
        steps=steps,
        output=output,
        heads=heads,
        output_plan=output_plan,
        first_unit=first_unit,
    )


def number_contests(program: Program, contests: dict[int, tuple[Ints, ...]]) -> NDArray[np.int32]:
    """Translate contests, which count units within a tournament, to the network's numbers."""
    rows = [np.zeros((0, 3), np.int64)]
    first_unit = program.first_unit
    for index, rounds in contests.items():
        nonlinearity = program.steps[index].nonlinearity
        if nonlinearity is None or (index, 0) not in first_unit:
            continue
        # Within a tournament units count over all rounds; in the network each round has a stage.
        number = np.concatenate(
            [
                first_unit[index, round] + np.arange(prod(shape))
                for round, shape in enumerate(nonlinearity.shapes)
            ]
        )
        for round, contest in enumerate(rounds):
            row = contest.copy()
            row[:, 0] += first_unit[index, round]
            row[:, 2] = number[contest[:, 2]]
            rows.append(row)
    return np.concatenate(rows).astype(np.int32)
