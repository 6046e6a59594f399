"""The steps between one stage and the next: what they start from, and what goes on behind them."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from cpwl.network.program.program import Plan, Program, Step, make_plan, stage_plan


class Segment(NamedTuple):
    """How the switching functions of a stage come about.

    Attributes
    ----------
    start, behind : tuple of int
        Steps that have run for the stages before (or for this one as well), and whose values later
        ones read.
    rest, whole : Plan
        From the values of `start` and from the input; both leave those of `behind`.
    saved : int
        Multiplications per sample that the values of `behind` have taken.
    """

    start: tuple[int, ...]
    behind: tuple[int, ...]
    rest: Plan
    whole: Plan
    saved: int


def segments(program: Program) -> tuple[Segment, ...]:
    """Cut a program at its stages."""
    steps = program.steps
    operands = [{i for head in heads for i in steps[head.step].inputs} for heads in program.heads]
    first: dict[int, int] = {}  # stage that takes the step, or reads its value
    last: dict[int, int] = {}
    for stage in range(len(program.heads)):
        for index in stage_plan(program, stage).order:
            first.setdefault(index, stage)
            last[index] = stage
    read_last = {i: stage for stage, read in enumerate(operands) for i in read}
    start: tuple[int, ...] = ()
    found = []
    for stage, read in enumerate(operands):
        # what follows from the batch size is found again in every segment, for the batch at hand
        later = {i for i in last if last[i] > stage and (first[i] > stage or _of_batch(steps[i]))}
        needed = {i for index in later for i in steps[index].inputs}
        needed.update(i for i in read_last if read_last[i] > stage)
        behind = tuple(
            i
            for i in sorted(needed)
            if first.get(i, stage + 1) <= stage and not _of_batch(steps[i])
        )
        rest = make_plan(steps, read.union(behind), {0, *start})
        whole = make_plan(steps, read.union(behind))
        saved = cost(program, make_plan(steps, behind))
        found.append(Segment(start, behind, rest, whole, saved))
        start = behind
    return tuple(found)


def cost(program: Program, plan: Plan) -> int:
    """Count the multiplications of a plan per sample."""
    return sum(_multiplications(program.steps[i]) for i in plan.order)


def _multiplications(step: Step) -> int:
    """Count the multiplications of a step per sample, one an output where it has none."""
    return prod(step.single) * max(1, step.rounding.terms if step.rounding else 1)


def _of_batch(step: Step) -> bool:
    """Whether the value follows from the batch size alone."""
    return step.kind in ("size", "fixed")
