"""A captured network as a straight-line program of torch calls, and its execution.

A `Program` is a list of `Step`s in topological order; step 0 is the input. Running one is a loop
over a *plan*: the steps that some targets need, each with the tensors that are dead after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cpwl.network.program.nonlinearities import Nonlinearity
from cpwl.network.program.rounding import Rounding

Values = Sequence[Any] | Mapping[int, Any]


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands for the value of another step in a step's arguments."""

    index: int


@dataclass(frozen=True, eq=False)
class Step:
    """One torch call.

    Attributes
    ----------
    name, target : str
        Module path and operation, for messages and listings.
    kind : str
        "input", "size" (an integer that depends on the batch size), "fixed" (a tensor that depends
        on nothing but the batch size), "affine", "cpwl" or "refused" (only in listings).
    function, args, kwargs
        The call; `Ref` stands for other steps' values.
    inputs : tuple of int
        Every step that the arguments refer to.
    data : tuple of int
        Those of them that depend on the network's input.
    single : tuple of int
        Shape of the value for a batch of one.
    leading : bool
        Whether the batch axis is the first one and holds nothing else.
    rounding : Rounding or None
        How an affine step rounds and passes errors on.
    nonlinearity : Nonlinearity or None
        Set for "cpwl" steps; `function` is then its `forward`.
    scratch : int
        Values per sample that torch needs besides input and output (im2col buffers).
    """

    name: str
    target: str
    kind: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int, ...]
    data: tuple[int, ...]
    single: tuple[int, ...]
    leading: bool
    rounding: Rounding | None = None
    nonlinearity: Nonlinearity | None = None
    scratch: int = 0

    @property
    def operation(self) -> str:
        """Name of the torch operation, without namespace and overload."""
        return self.target.split(".")[1] if self.target.startswith("aten.") else self.target


class Plan(NamedTuple):
    """Steps to run, in order, and for each the steps whose values are dead after it."""

    order: tuple[int, ...]
    dead: tuple[tuple[int, ...], ...]


class Head(NamedTuple):
    """The units of one round of one CPWL step."""

    step: int
    round: int
    units: int


@dataclass(frozen=True, eq=False)
class Program:
    """Steps, output, and for every stage its heads; `stage_plan` says how to reach them."""

    steps: tuple[Step, ...]
    output: int
    heads: tuple[tuple[Head, ...], ...]
    output_plan: Plan
    first_unit: Mapping[tuple[int, int], int] = field(repr=False)


def references(value: Any) -> list[int]:
    """List the steps that an argument refers to."""
    if isinstance(value, Ref):
        return [value.index]
    if isinstance(value, (list, tuple)):
        return [index for item in value for index in references(item)]
    return []


def fill(value: Any, env: Values) -> Any:
    """Put values in place of references."""
    if isinstance(value, Ref):
        return env[value.index]
    if isinstance(value, (list, tuple)):
        return [fill(item, env) for item in value]
    return value


def call(step: Step, env: Values, function: Callable[..., Any] | None = None) -> Any:
    """Run one step, or another function with its arguments."""
    function = function or step.function
    args = [fill(value, env) for value in step.args]
    if not step.kwargs:
        return function(*args)
    return function(*args, **{key: fill(value, env) for key, value in step.kwargs.items()})


def make_plan(steps: Sequence[Step], targets: Iterable[int], known: Iterable[int] = (0,)) -> Plan:
    """Order the steps that `targets` need; everything else dies after its last use.

    Those that are ``known`` need not run: the input, or values held from an earlier pass as well.
    """
    keep, given = set(targets), set(known)
    needed = set(keep)
    for index in range(len(steps) - 1, 0, -1):
        if index in needed and index not in given:
            needed.update(steps[index].inputs)
    order = tuple(sorted(needed - given))
    last_use = {source: index for index in order for source in steps[index].inputs}
    dying: dict[int, list[int]] = {}
    for source, index in last_use.items():
        if source not in keep:
            dying.setdefault(index, []).append(source)
    return Plan(order, tuple(tuple(dying.get(index, ())) for index in order))


def is_batched(program: Program, step: Step) -> bool:
    """Whether samples of a step's operands, along the first axis, give samples of its value."""
    own = all(i in step.data for i in step.inputs)
    return own and step.leading and all(program.steps[i].leading for i in step.data)


def stage_plan(program: Program, stage: int) -> Plan:
    """Order the steps that a stage's switching functions need.

    Made when asked for: all plans of a network of n stages would hold n^2 numbers.
    """
    steps = program.steps
    return make_plan(
        steps, {index for head in program.heads[stage] for index in steps[head.step].inputs}
    )


def run(
    program: Program,
    plan: Plan,
    z: Tensor,
    evaluate: Callable[[int, Step, list[Any]], Any] | None = None,
    known: Mapping[int, Tensor] | None = None,
) -> list[Any]:
    """Run a plan on a batch; the returned list holds the values that are still alive.

    `evaluate(index, step, env)`, where given, computes a step's value instead of `call`; ``known``
    are the values that the plan takes as known besides the input.
    """
    steps = program.steps
    env: list[Any] = [None] * len(steps)
    env[0] = z
    for index, value in (known or {}).items():
        env[index] = value
    for index, dead in zip(plan.order, plan.dead, strict=True):
        step = steps[index]
        env[index] = call(step, env) if evaluate is None else evaluate(index, step, env)
        for source in dead:
            env[source] = None
    return env


def switching(program: Program, head: Head, env: Sequence[Any]) -> Tensor:
    """Flat switching function (N, units) of a head, from the values of its step's inputs."""
    step = program.steps[head.step]
    assert step.nonlinearity is not None
    h = step.nonlinearity.switching([fill(value, env) for value in step.args], head.round)
    return h.reshape(h.shape[0], head.units)


def peak_values(program: Program, plan: Plan, stage_width: int) -> int:
    """Count the largest number of values per sample that a plan holds at one time."""
    steps = program.steps
    live = {0: prod(steps[0].single)}
    peak = 0
    for index, dead in zip(plan.order, plan.dead, strict=True):
        step = steps[index]
        live[index] = 0 if step.kind in ("size", "fixed") else prod(step.single)
        peak = max(peak, sum(live.values()) + step.scratch)
        for source in dead:
            live.pop(source, None)
    # Concatenating or subtracting the switching functions makes one more copy of the stage.
    return max(peak, sum(live.values()) + 2 * stage_width)


def as_batch(z: Any, input_shape: tuple[int, ...]) -> Tensor:
    """Bring z to a float64 CPU tensor of shape (N, *input_shape), or say what is wrong.

    Rows of as many entries are taken where they, or the inputs, are flat.
    """
    if not isinstance(z, Tensor):
        z = torch.as_tensor(z)
    sample = tuple(z.shape[1:])
    if sample != input_shape or z.ndim == 0:
        flat = len(sample) == 1 or (len(input_shape) == 1 and z.ndim > 1)
        if not flat or prod(sample) != prod(input_shape):
            entries = f" or (N, {prod(input_shape)})" if len(input_shape) > 1 else ""
            raise ValueError(
                f"Expected a batch of inputs of shape (N, {', '.join(map(str, input_shape))})"
                f"{entries}, got {tuple(z.shape)}. Put the batch axis first (z[None] for a single "
                "input)."
            )
        z = z.reshape(-1, *input_shape)
    return z.to(device="cpu", dtype=torch.float64)
