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

from math import prod, sqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cpwl.arrays import SMALLEST, Floats
from cpwl.domain import Slice
from cpwl.network import Network
from cpwl.network.program import (
    Extremum,
    MaybeError,
    Nonlinearity,
    Pointwise,
    Ref,
    Step,
    Tournament,
    Triangle,
    absolute_part,
    gamma,
    is_batched,
    largest_slope,
    offset_size,
    single_values,
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
        basis = slice.basis.reshape(slice.dim, -1)
        far = np.abs(corners).max(axis=0) + self.margin
        size = np.abs(basis).T @ far + np.abs(slice.origin.reshape(-1))
        error = 0.0 if _is_identity(slice) else gamma(slice.dim + 1)
        self._steps = _Steps(network, basis, size, size * error)

    @np.errstate(over="ignore")  # infinity is a bound
    def stage(self, stage: int) -> StageBounds:
        """Bounds of a stage; the ranges of all stages before must have been given."""
        terms = 1
        with torch.no_grad():
            for index in self._network.segments[stage].rest.order:
                step = self._network.program.steps[index]
                if step.kind not in ("size", "fixed") and index not in self._steps.known:
                    self._steps.advance(index, step)
                    terms = max(terms, step.rounding.terms if step.rounding else 1)
            slack, fresh, lipschitz = self._steps.of_stage(stage)
        slack, lipschitz = slack * _UP + 2.0**-1000, lipschitz * _UP + 2.0**-1000
        first = int(self._network.stage_offsets[stage])
        self.unit_slack[first : first + len(slack)] = slack
        self.unit_lipschitz[first : first + len(slack)] = lipschitz
        return StageBounds(slack, lipschitz, fresh + 2.0**-1000, terms)

    def give(self, stage: int, low: Floats, high: Floats, error: float) -> None:
        """Take a stage's computed values (n_stage,) at vertices known within ``error``."""
        first = int(self._network.stage_offsets[stage])
        span = slice(first, first + len(low))
        off = self.unit_slack[span] + self.unit_lipschitz[span] * error
        reach = self.margin * self.unit_lipschitz[span]
        self._steps.low[:, span] = (low - off) - reach, low
        self._steps.high[:, span] = (high + off) + reach, high
        self._steps.reach[0, span] = reach


# Samples of what is known of a step, see `_Steps`.
_SIZES, _ERRORS, _SLOPE = slice(0, 2), slice(2, 4), slice(4, 5)
_FRESH_ERROR, _SAMPLES = 3, 5


class _Steps:
    """A running error analysis whose magnitudes follow from ranges of the units, not from a batch.

    ``known[i]`` are five samples of step i's shape: magnitudes of its value over the domain, errors
    of the value, and bounds on the gradient of every entry. Magnitudes and errors come twice.

    The first ones are rigorous, and the magnitudes as wide as the errors, which outgrow the values
    themselves behind some ten layers of a large network. The second ones keep what is fresh true to
    size: magnitudes of the values that float64 has, and errors that start afresh in every layer,
    where an affine step takes what comes from a unit to be exact. Likewise ``low`` and ``high``,
    the ranges of the units, and ``reach``, how far they go on straight beyond a cell.

    ``norm[i]`` bounds the spectral norm of step i's Jacobian with respect to the slice's
    coordinates, and ``jacobian[i]`` is that Jacobian while no unit lies before it.
    """

    def __init__(self, network: Network, basis: Floats, size: Floats, error: Floats) -> None:
        self._program, self._matrices = network.program, network.matrices
        self._single = single_values(network.program)
        self._past: set[int] = set()  # steps whose fresh error is that of a unit's value
        self.low = np.full((2, network.num_units), -np.inf)
        self.high = np.full((2, network.num_units), np.inf)
        self.reach = np.zeros((2, network.num_units))
        known = np.stack([size * _UP, size * _UP, error, error, np.zeros_like(size)])
        self.known = {0: known.reshape(_SAMPLES, *self._program.steps[0].single)}
        self.norm: dict[int, float] = {}
        self.jacobian: dict[int, Floats] = {0: np.ascontiguousarray(basis.T)}
        self._from_jacobian(0)

    def of_stage(self, stage: int) -> Floats:
        """Rigorous and fresh errors, and slopes, of a stage's switching functions, (3, n_stage)."""
        found = []
        for head in self._program.heads[stage]:
            step = self._program.steps[head.step]
            bend = step.nonlinearity
            assert bend is not None
            sizes, errors, slopes = self._operands(step)
            error = bend.switching_error(errors, sizes, head.round)
            if isinstance(bend, Tournament):
                slope = bend.candidate_pairs(slopes[0], head.round)
            else:
                slope = sum(slopes[1:], slopes[0])
            out = np.empty((3, *bend.shapes[head.round]))
            assert error is not None
            out[:2], out[2:] = error.numpy(), slope.numpy()
            found.append(out.reshape(3, -1))
        return np.concatenate(found, axis=1)

    def advance(self, index: int, step: Step) -> None:
        """Bound one step from the steps that it reads."""
        if step.kind == "affine":
            self._affine(index, step)
        else:
            self._bent(index, step)

    def _affine(self, index: int, step: Step) -> None:
        rounding = step.rounding
        assert rounding is not None
        unit = gamma(rounding.terms) if rounding.terms else 0.0
        values = {i: self.known[i].copy() for i in step.data}
        for i, value in values.items():
            if unit and i in self._past:
                value[_FRESH_ERROR] = 0.0
            if unit:
                # The factor covers the rounding of this very sum of non-negative terms.
                value[_ERRORS] *= 1 + 2 * unit
                value[_ERRORS] += unit * value[_SIZES]
        samples = {i: torch.from_numpy(value) for i, value in values.items()}
        self.known[index] = out = self._absolute(step, samples)
        constant = offset_size(step, self._single, {i: x[0] for i, x in samples.items()})
        if constant is not None:
            size = constant.numpy()
            out[_SIZES] += size
            out[_ERRORS] += unit * size
        if unit:  # each product may also lose what is below the smallest subnormal number
            out[_ERRORS] += rounding.terms * SMALLEST
        elif not self._past.isdisjoint(step.data):
            self._past.add(index)
        out[_SIZES] *= _UP
        out[_SLOPE] *= _UP
        self._steepness(index, step)

    def _absolute(self, step: Step, samples: dict[int, Tensor]) -> Floats:
        """Apply |L| of an affine step to samples: at once where its batch axis is the first one."""
        if is_batched(self._program, step):
            batch = {i: x[:, 0] for i, x in samples.items()}
            return absolute_part(step, self._single, batch).numpy()[:, None].copy()
        each = (dict(zip(samples, x, strict=True)) for x in zip(*samples.values(), strict=True))
        return np.stack([absolute_part(step, self._single, x).numpy() for x in each])

    def _steepness(self, index: int, step: Step) -> None:
        """Bound the Jacobian of an affine step by its matrices as well."""
        self.norm[index] = self._length(index)
        if not self._matrices.complete:
            return
        parts = self._matrices.steps[index].parts
        if all(i in self.jacobian for i in step.data):
            size = prod(step.single)
            self.jacobian[index] = sum(
                (p.matrix @ self.jacobian[p.source] for p in parts),
                np.zeros((size, self.jacobian[0].shape[1])),
            )
            self._from_jacobian(index)
            return
        rows = sum(p.rows * self.norm[p.source] for p in parts)
        slope = self.known[index][_SLOPE]
        np.minimum(slope, np.asarray(rows).reshape(slope.shape), out=slope)
        passed = sum(p.norm * self.norm[p.source] for p in parts)
        self.norm[index] = min(passed * _UP, self._length(index))

    def _from_jacobian(self, index: int) -> None:
        jacobian = self.jacobian[index]
        largest = np.abs(jacobian).max(initial=0.0)
        scale = largest if largest > 0 else 1.0
        scaled = jacobian / scale
        rows = np.sqrt((scaled * scaled).sum(axis=1)) * scale * _UP + 2.0**-1000
        self.known[index][_SLOPE] = rows.reshape(self._program.steps[index].single)
        largest = np.linalg.svd(scaled, compute_uv=False)[0]
        self.norm[index] = float(largest) * scale * _UP + 2.0**-1000

    def _length(self, index: int) -> float:
        """Bound the Jacobian's norm by the gradients of all entries."""
        slope = self.known[index][_SLOPE].reshape(-1)
        return sqrt(slope @ slope) * _UP

    def _bent(self, index: int, step: Step) -> None:
        """Bound a CPWL step."""
        bend = step.nonlinearity
        assert bend is not None
        self._past.add(index)
        within = self._within(index, step, bend) if isinstance(bend, Pointwise) else None
        sizes, errors, slopes = self._operands(step)
        size = _size(bend, sizes) if within is None else within
        if isinstance(bend, Tournament):
            slope = bend.largest_candidate(slopes[0])
            passed = float("inf")  # one entry may win in several windows
        elif isinstance(bend, Extremum):
            slope = torch.maximum(*slopes)
            refs = [a.index for a in step.args if isinstance(a, Ref)]
            passed = float(np.linalg.norm([self.norm[i] for i in refs if i in self.norm]))
        else:
            assert isinstance(bend, (Pointwise, Triangle))
            steepest = largest_slope(bend)
            slope, passed = slopes[0] * steepest, self.norm[_source(step)] * float(steepest.max())
        error = bend.error(errors, sizes)
        assert error is not None
        self.known[index] = known = np.empty((_SAMPLES, *step.single))
        known[_SIZES, 0], known[_ERRORS, 0] = size.numpy() * _UP, error.numpy()
        known[_SLOPE, 0] = slope.numpy()
        self.norm[index] = min(passed * _UP, self._length(index))

    def _within(self, index: int, step: Step, bend: Pointwise) -> Tensor:
        """Largest magnitudes (2, ...) within the ranges of units; lower those of the operand."""
        first, shape = self._program.first_unit[index, 0], bend.shapes[0]
        span = slice(first, first + prod(shape))
        low, high, reach = (
            x[:, span].reshape(2, *shape) for x in (self.low, self.high, self.reach)
        )
        own = self.known[_source(step)][_SIZES, 0]
        np.minimum(own, np.maximum(np.abs(low), np.abs(high)) * _UP, out=own)
        # A piecewise-linear function is largest at the ends of its range or at a breakpoint, from
        # where both pieces go on.
        knots = [np.broadcast_to(p.numpy(), low.shape) for p in bend.breaks(0)]
        inside = np.minimum(np.maximum(knots, low), high)
        ends = torch.from_numpy(np.concatenate([low, high, *inside]))
        sizes = bend.forward(ends).abs().numpy().reshape(-1, *low.shape)
        beyond = (inside == knots) & (sizes[2:] > 0)
        sizes[2:] += np.where(beyond, reach * bend.steepest.numpy(), 0.0)
        return torch.from_numpy(sizes.max(axis=0))

    def _operands(self, step: Step) -> tuple[list[Tensor], list[MaybeError], list[Tensor]]:
        """Magnitudes, errors (2, ...) and slopes (1, ...) of a CPWL step's operands.

        Those of a constant are single numbers, or samples; it has no errors.
        """
        sizes, errors, slopes = [], [], []
        for arg in step.args:
            if isinstance(arg, Ref) and arg.index in self.known:
                known = torch.from_numpy(self.known[arg.index][:, 0])
                sizes.append(known[_SIZES])
                errors.append(known[_ERRORS])
                slopes.append(known[_SLOPE])
            else:
                value = self._single[arg.index] if isinstance(arg, Ref) else arg
                sizes.append(torch.as_tensor(value, dtype=torch.float64).abs())
                errors.append(None)
                slopes.append(torch.zeros((), dtype=torch.float64))
        return sizes, errors, slopes


def _size(bend: Nonlinearity, sizes: list[Tensor]) -> Tensor:
    """Largest magnitudes of a CPWL step's value from those of its operands."""
    if isinstance(bend, Triangle):
        top = abs(bend.offset) + abs(bend.scale) * bend.period
        return (sizes[0] * 0).nan_to_num() + top
    if isinstance(bend, Tournament):
        return bend.largest_candidate(sizes[0])
    assert isinstance(bend, Extremum)
    return torch.maximum(*sizes)


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
