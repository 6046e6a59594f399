"""The units of a network as affine functions on cells, in about 106 bits.

All units are held on their pieces of a cell, so that everything is affine. A cell takes P + 1 rows:
the values at one point, and the derivatives along the coordinates of the slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpwl.arrays import Floats, Ints
from cpwl.domain import Slice
from cpwl.engine.precise.affine_steps import Apply, OutOfReachError, prepare
from cpwl.engine.precise.expansions import Expansion, added, moved, scaled
from cpwl.engine.precise.tournaments import Field, gathered
from cpwl.network import Network
from cpwl.network.program import (
    Extremum,
    Pointwise,
    Ref,
    Step,
    Tournament,
    fill,
    held_pieces,
    make_plan,
    single_values,
)

__all__ = ["Evaluator", "Held", "OutOfReachError"]


class Held(NamedTuple):
    """What units switch on, as affine functions on B cells: within ``error`` of hi + lo.

    Entry [b, 0] is the value at the cell's point, [b, 1 + d] the derivative along coordinate d. The
    matches of a max-pooling stand for the leads of its winners, see `Field`; ``ties`` counts those
    of a cell that are level on all of it although the cell is on their upper piece, and ``winners``
    holds those (B, windows) of the step with a number.
    """

    hi: Floats  # (B, P + 1, units)
    lo: Floats
    error: Floats
    ties: NDArray[np.int64]  # (B,)
    winners: dict[int, Ints]


class Evaluator:
    """Evaluates the first stages of a network; prepares every step once.

    Raises
    ------
    OutOfReachError
        A step cannot be evaluated in this way.
    """

    def __init__(self, network: Network, slice_: Slice) -> None:
        self.network = network
        self.slice = slice_
        program = network.program
        self._plan = make_plan(program.steps, [h.step for heads in program.heads for h in heads])
        self._steps: dict[int, Apply] = {}
        self.fields: dict[int, Field] = {}
        for index in self._plan.order:
            step = program.steps[index]
            if step.kind == "affine":
                self._steps[index] = prepare(program, index)
            elif isinstance(step.nonlinearity, Tournament):
                self.fields[index] = Field(program, index)
            elif step.nonlinearity is not None:
                if not isinstance(step.nonlinearity, (Pointwise, Extremum)):
                    kind = step.nonlinearity.kind
                    raise OutOfReachError(f"{step.name} ({kind}) has breakpoints without end")
                if any(isinstance(a, Ref) and not program.steps[a.index].leading
                       for a in step.args):  # fmt: skip
                    raise OutOfReachError(f"the batch axis of {step.name} is not the first")
        self._constants = single_values(program)

    @property
    def bytes_per_cell(self) -> int:
        """Memory that a cell takes."""
        dim, steps = self.slice.dim, self.network.program.steps
        widest = max(prod(step.single) for step in steps)
        # slices, some 15 products of them, and the live tensors
        return 8 * (dim + 1) * (3 * self.network.num_units + 40 * widest)

    def held(self, points: Floats, pieces: NDArray[np.int32], stages: int) -> Held:
        """Evaluate the units of the first stages on cells.

        Parameters
        ----------
        points : (B, P)
            A point for each cell, anywhere.
        pieces : (B, num_units)
            Those of the cell.
        """
        count, dim = points.shape
        program = self.network.program
        units = int(self.network.stage_offsets[stages])
        heads = {(h.step, h.round): h.units for heads in program.heads[:stages] for h in heads}
        last = max(step for step, _ in heads)
        out = np.zeros((3, count, dim + 1, units))
        ties = np.zeros(count, np.int64)
        winners: dict[int, Ints] = {}
        given = torch.from_numpy(pieces)
        env: dict[int, Expansion] = {0: self._embedded(points)}
        dead = dict(zip(self._plan.order, self._plan.dead, strict=True))
        for index in self._plan.order:
            if index > last:
                break
            step = program.steps[index]
            if step.kind == "affine":
                env[index] = self._steps[index](env, count)
            elif step.nonlinearity is not None:
                operands = self._operands(step, env, count)
                if index in self.fields:
                    flat = moved(operands[0], lambda part: part.flatten(1))
                    winners[index], level = self.fields[index].played(flat, pieces)
                    ties += level
                    switch = self.fields[index].leads(flat, winners[index])
                    if index < last:
                        chosen = gathered(flat, winners[index])
                        shape = (-1, *step.single[1:])
                        env[index] = Expansion(*(part.reshape(shape) for part in chosen))
                else:
                    switch = _switch(step, operands)
                    if index < last:
                        here = held_pieces(program, index, step, given)
                        env[index] = _selected(step, operands, here, count)
                shape = (dim + 1, count, switch.hi[0].numel())
                rows = [part.reshape(shape).numpy().swapaxes(0, 1) for part in switch]
                done = 0
                for round, shape in enumerate(step.nonlinearity.shapes):
                    first, size = program.first_unit[index, round], prod(shape)
                    if first < units:  # a max-pooling takes several stages
                        for k, part in enumerate(rows):
                            out[k, :, :, first : first + size] = part[..., done : done + size]
                    done += size
            for source in dead[index]:
                env.pop(source, None)
        return Held(out[0], out[1], out[2], ties, winners)

    def _embedded(self, points: Floats) -> Expansion:
        """Embed points and directions."""
        (count, dim), shape = points.shape, self.network.program.steps[0].single[1:]
        basis = torch.from_numpy(self.slice.basis.reshape(dim, -1).copy())
        origin = torch.from_numpy(self.slice.origin.reshape(1, -1).copy())
        total = Expansion(
            origin.expand(count, -1).contiguous(),
            torch.zeros(count, origin.shape[1], dtype=torch.float64),
            torch.zeros(count, origin.shape[1], dtype=torch.float64),
        )
        for d in range(dim):
            factor = torch.from_numpy(np.ascontiguousarray(points[:, d : d + 1]))
            way = Expansion(basis[d].expand(count, -1).contiguous(), *total[1:])
            way = way._replace(lo=torch.zeros_like(way.hi), error=torch.zeros_like(way.hi))
            wide = factor.expand(count, origin.shape[1])
            total = added(total, scaled(way, wide, torch.zeros_like(wide), 0))
        rows = basis.repeat_interleave(count, dim=0)
        none = torch.zeros_like(rows)
        hi, lo, error = (
            torch.cat([a, b]).reshape(-1, *shape)
            for a, b in zip(total, (rows, none, none), strict=True)
        )
        return Expansion(hi, lo, error)

    def _operands(self, step: Step, env: dict[int, Expansion], values: int) -> list[Expansion]:
        """Operands of a CPWL step; constants stand still."""
        rows = len(next(iter(env.values())).hi)
        found = []
        for arg in step.args:
            if isinstance(arg, Ref) and arg.index in env:
                found.append(env[arg.index])
            elif step.nonlinearity is not None and len(found) < _count(step):
                value = fill(arg, self._constants) if isinstance(arg, Ref) else arg
                number = torch.as_tensor(value, dtype=torch.float64)
                wide = number.expand(1, *step.single[1:])
                still = torch.zeros(rows, *step.single[1:], dtype=torch.float64)
                hi = still.clone()
                hi[:values] = wide
                found.append(Expansion(hi, still, still.clone()))
        return found


def _switch(step: Step, operands: Sequence[Expansion]) -> Expansion:
    """Give what the units of a pointwise step, or of a larger or smaller of two, switch on."""
    if isinstance(step.nonlinearity, Pointwise):
        return operands[0]
    return added(operands[0], operands[1], -1.0)


def _count(step: Step) -> int:
    """Count the operands of a CPWL step."""
    return 2 if isinstance(step.nonlinearity, Extremum) else 1


def _selected(
    step: Step, operands: Sequence[Expansion], pieces: list[Tensor], values: int
) -> Expansion:
    """Apply the affine maps of the given pieces."""
    bend = step.nonlinearity
    x = operands[0]
    if isinstance(bend, Pointwise):
        one = torch.ones(values, *x.hi.shape[1:], dtype=torch.float64)
        factor = bend.linear([one], pieces)
        offset = bend.select([torch.zeros_like(one)], pieces)
        return scaled(x, factor.expand_as(one), offset.expand_as(one), values)
    assert isinstance(bend, Extremum)
    repeated = [p.repeat(len(x.hi) // values, *[1] * (p.ndim - 1)) for p in pieces]
    parts = zip(*operands, strict=True)
    return Expansion(*(bend.select(part, repeated).contiguous() for part in parts))
