"""Bounds on the errors of float64 over a domain: rounding errors and Lipschitz constants.

A switching function h is computed at a float64 point x near a vertex x* that is known within
``error``. Then

    |computed h(x) - h(x*)| <= slack + lipschitz * error,

where ``slack`` comes from a running error analysis (see `cpwl.network.program.rounding`) and
``lipschitz`` from the spectral norms of the affine operations in between. The magnitudes in the
analysis hold for the whole domain: h is affine on every cell, and the units of the stages before
were bounded at all vertices.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cpwl.arrays import Floats
from cpwl.domain import Slice
from cpwl.network import Network
from cpwl.network.program import (
    Analysis,
    Extremum,
    Pointwise,
    Program,
    Ref,
    Step,
    Tournament,
    Triangle,
    gamma,
    largest_slope,
    stage_plan,
)

# For what is rounded in computing the bounds themselves.
_UP = 1 + 1e-9


class StageBounds(NamedTuple):
    """Bounds for the units of one stage, each (n_stage,).

    ``fresh`` is what the last layer rounds at the values that float64 has over the domain: no
    bound, but near the size of the errors that are really met. ``terms`` is the longest sum in that
    layer.
    """

    slack: Floats
    lipschitz: Floats
    fresh: Floats
    terms: int


class Bounds:
    """Bounds of one stage after the other, as the ranges of the units become known.

    Parameters
    ----------
    network : Network
    slice : Slice
        Lipschitz constants are with respect to its coordinates.
    corners : (M, P)
        Corners of the domain.

    Attributes
    ----------
    margin : float
        The bounds hold within this distance of the domain, and there also for the affine function
        that a unit is on a cell.
    unit_slack, unit_lipschitz : (num_units,)
        Those of the stages that were asked for.
    """

    def __init__(self, network: Network, slice: Slice, corners: Floats) -> None:
        self._network = network
        self.slice = slice
        self.margin = 1e-3 * float(np.ptp(corners, axis=0).max())
        self.unit_slack = np.full(network.num_units, np.inf)
        self.unit_lipschitz = np.full(network.num_units, np.inf)
        program = network.program
        # The rigorous ranges are as wide as the errors, which outgrow the values themselves behind
        # some ten layers of a large network: magnitudes of its own keep what is fresh true to size.
        self._analysis = _RangeAnalysis(program, network.num_units, carry=True)
        self._fresh = _RangeAnalysis(program, network.num_units, carry=False)
        shape = program.steps[0].single
        basis = slice.basis.reshape(slice.dim, -1)
        far = np.abs(corners).max(axis=0) + self.margin
        size = np.abs(basis).T @ far + np.abs(slice.origin.reshape(-1))
        for analysis in (self._analysis, self._fresh):
            analysis.magnitudes[0] = torch.from_numpy(size * _UP).reshape(shape)
            if not _is_identity(slice):
                rounding = torch.from_numpy(size * gamma(slice.dim + 1)).reshape(shape)
                analysis.errors[0] = rounding
        self._slopes = _Slopes(network, basis, self._analysis.absolute)
        self._done = {0}

    @np.errstate(over="ignore")  # infinity is a bound
    def stage(self, stage: int) -> StageBounds:
        """Bounds of a stage; the ranges of all stages before must have been given."""
        program = self._network.program
        terms = 1
        with torch.no_grad():
            for index in stage_plan(program, stage).order:
                if index not in self._done:
                    step = program.steps[index]
                    self._done.add(index)
                    if step.kind not in ("size", "fixed"):
                        self._analysis.advance(index, step)
                        self._fresh.advance(index, step)
                        self._slopes.step(index, step)
                    terms = max(terms, step.rounding.terms if step.rounding else 1)
            slack = self._analysis.of_stage(stage, []).numpy() * _UP + 2.0**-1000
            fresh = self._fresh.of_stage(stage, []).numpy() + 2.0**-1000
        lipschitz = self._slopes.of_stage(stage) * _UP + 2.0**-1000
        first = int(self._network.stage_offsets[stage])
        self.unit_slack[first : first + len(slack)] = slack
        self.unit_lipschitz[first : first + len(slack)] = lipschitz
        return StageBounds(slack, lipschitz, fresh, terms)

    def give(self, stage: int, low: Floats, high: Floats, error: float) -> None:
        """Take a stage's computed values (n_stage,) at vertices known within ``error``."""
        first = int(self._network.stage_offsets[stage])
        span = slice(first, first + len(low))
        off = self.unit_slack[span] + self.unit_lipschitz[span] * error
        reach = self.margin * self.unit_lipschitz[span]
        self._analysis.low[span] = (low - off) - reach
        self._analysis.high[span] = (high + off) + reach
        self._fresh.low[span], self._fresh.high[span] = low, high


class _RangeAnalysis(Analysis):
    """An error analysis whose magnitudes follow from ranges of the units instead of a batch."""

    def __init__(self, program: Program, num_units: int, *, carry: bool) -> None:
        super().__init__(program, carry=carry)
        self.low = np.full(num_units, -np.inf)
        self.high = np.full(num_units, np.inf)

    def advance(self, index: int, step: Step) -> None:
        """Bound magnitude and error of one step's value."""
        magnitudes = self.magnitudes
        if step.kind == "affine":
            self.record(index, step, [])
            values = {i: magnitudes[i] for i in step.data}
            magnitudes[index] = self.absolute(step, values, 1.0) * _UP
        else:
            bend = step.nonlinearity
            if isinstance(bend, Pointwise):
                low, high = self._range(index, bend.shapes[0])
                source = _source(step)
                spread = torch.maximum(low.abs(), high.abs()) * _UP
                magnitudes[source] = torch.minimum(magnitudes[source], spread.reshape(
                    magnitudes[source].shape))  # fmt: skip
            self.record(index, step, [])
            magnitudes[index] = self._bent(index, step) * _UP

    def _range(self, index: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Range of the units of a pointwise step, with a batch axis of one."""
        first = self.program.first_unit[index, 0]
        span = slice(first, first + prod(shape))
        low, high = self.low[span], self.high[span]
        return tuple(torch.from_numpy(x.reshape(1, *shape)) for x in (low, high))  # type: ignore[return-value]

    def _bent(self, index: int, step: Step) -> Tensor:
        """Largest magnitude of a CPWL step's value."""
        bend = step.nonlinearity
        assert bend is not None
        _, operands = self.operands(index, [])
        if isinstance(bend, Pointwise):
            # a piecewise-linear function is largest at the ends of its range or at a breakpoint
            low, high = self._range(index, bend.shapes[0])
            at = [low, high, *(p[None].clamp(low, high) for p in bend.breaks(0))]
            return torch.stack([bend.forward(h).abs() for h in at]).amax(0)
        if isinstance(bend, Triangle):
            return (operands[0] * 0).nan_to_num() + abs(bend.offset) + abs(bend.scale) * bend.period
        if isinstance(bend, Tournament):
            return bend.largest_candidate(operands[0])
        assert isinstance(bend, Extremum)
        return torch.maximum(*operands).expand(step.single)

    def _magnitude(self, index: int, env: list[Any]) -> Tensor:
        return self.magnitudes[index]


class _Slopes:
    """Lipschitz constants of the steps with respect to the slice's coordinates.

    ``rows[i]`` bounds the gradient of every entry of step i's value, ``norm[i]`` the spectral norm
    of its Jacobian, and ``jacobian[i]`` is that Jacobian while no unit lies before it;
    ``absolute`` is that of `Analysis`.
    """

    def __init__(self, network: Network, basis: Floats, absolute: Callable[..., Tensor]) -> None:
        self.network = network
        self._absolute = absolute
        self.rows: dict[int, Tensor] = {}
        self.norm: dict[int, float] = {}
        self.jacobian: dict[int, Floats] = {0: np.ascontiguousarray(basis.T)}
        self._from_jacobian(0)

    def of_stage(self, stage: int) -> Floats:
        """Lipschitz constants of a stage's switching functions, (n_stage,)."""
        program = self.network.program
        found = []
        for head in program.heads[stage]:
            step = program.steps[head.step]
            rows = self._operands(step)
            bend = step.nonlinearity
            if isinstance(bend, Tournament):
                bound = bend.candidate_pairs(rows[0], head.round)
            else:
                bound = sum(rows[1:], rows[0])
            found.append(bound.expand(1, *bend.shapes[head.round]).reshape(-1))  # type: ignore[union-attr]
        return torch.cat(found).numpy()

    def step(self, index: int, step: Step) -> None:
        """Bound one step from the steps that it reads."""
        if step.kind == "affine":
            self._affine(index, step)
            return
        bend = step.nonlinearity
        rows = self._operands(step)
        if isinstance(bend, Tournament):
            out = bend.largest_candidate(rows[0])
            passed = float("inf")  # one entry may win in several windows
        elif isinstance(bend, Extremum):
            out = torch.maximum(*rows)
            refs = [a.index for a in step.args if isinstance(a, Ref)]
            norms = [self.norm[i] for i in refs if i in self.norm]
            passed = float(np.linalg.norm(norms))
        else:
            assert isinstance(bend, (Pointwise, Triangle))
            slope = largest_slope(bend)
            out = rows[0] * slope
            passed = self.norm[_source(step)] * float(slope.max())
        self.rows[index] = out.expand(step.single)
        self.norm[index] = min(passed, float(self.rows[index].norm())) * _UP

    def _affine(self, index: int, step: Step) -> None:
        self.rows[index] = self._absolute(step, {i: self.rows[i] for i in step.data}, 0.0) * _UP
        self.norm[index] = float(self.rows[index].norm()) * _UP
        if not self.network.matrices.complete:
            return
        parts = self.network.matrices.steps[index].parts
        if all(i in self.jacobian for i in step.data):
            size = prod(step.single)
            self.jacobian[index] = sum(
                (p.matrix @ self.jacobian[p.source] for p in parts),
                np.zeros((size, self.jacobian[0].shape[1])),
            )
            self._from_jacobian(index)
            return
        rows = sum(p.rows * self.norm[p.source] for p in parts)
        self.rows[index] = torch.minimum(
            self.rows[index], torch.from_numpy(np.asarray(rows)).reshape(step.single)
        )
        passed = sum(p.norm * self.norm[p.source] for p in parts)
        self.norm[index] = min(passed, float(self.rows[index].norm())) * _UP

    def _from_jacobian(self, index: int) -> None:
        jacobian = self.jacobian[index]
        largest = np.abs(jacobian).max(initial=0.0)
        scale = largest if largest > 0 else 1.0
        rows = np.linalg.norm(jacobian / scale, axis=1) * scale * _UP + 2.0**-1000
        single = self.network.program.steps[index].single
        self.rows[index] = torch.from_numpy(rows).reshape(single)
        self.norm[index] = float(np.linalg.norm(jacobian / scale, 2)) * scale * _UP + 2.0**-1000

    def _operands(self, step: Step) -> list[Tensor]:
        """Slopes of a CPWL step's operands; constants have none."""
        zero = torch.zeros((), dtype=torch.float64)
        return [
            self.rows.get(arg.index, zero) if isinstance(arg, Ref) else zero for arg in step.args
        ]


def _source(step: Step) -> int:
    """Name the step that a CPWL step of one operand reads."""
    arg = step.args[0]
    assert isinstance(arg, Ref)
    return arg.index


def _is_identity(slice_: Slice) -> bool:
    """Whether embedding rounds nothing."""
    basis = slice_.basis.reshape(slice_.dim, -1)
    one = np.array_equal(basis, np.eye(*basis.shape))
    return one and not slice_.origin.any()
