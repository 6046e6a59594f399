"""Entries that are the same function of the slice, or equal at a vertex, by how they are computed.

No bound proves a zero, but equal sums of equal terms are equal. An entry's name says how it comes
about: of the input its place in the slice, of an affine step its constant and the coefficients with
the names of what they multiply, of a function of one operand its pieces and the operand's name.
Filters that see the same pixels twice have equal names. What dead units leave is a number.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from fractions import Fraction
from math import isfinite, prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cpwl.arrays import Ints
from cpwl.domain import Slice
from cpwl.network.program import Pointwise, Program, Ref, call, single_values

# Rows of affine steps that are read, at a backward pass each.
_ROWS_AT_MOST = 4096


class Row(NamedTuple):
    """An entry of an affine step: a constant, and coefficients of entries of other steps."""

    offset: float
    terms: list[tuple[float, int, int]]  # coefficient, step, entry


class Rows:
    """Reads entries of affine steps."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._constants = single_values(program)
        self._of: dict[tuple[int, int], Row] = {}
        self._traced: dict[int, tuple[list[Tensor], Tensor]] = {}

    def of(self, index: int, entry: int) -> Row | None:
        """Read an entry; None once too many were read."""
        key = index, entry
        if key not in self._of and len(self._of) < _ROWS_AT_MOST:
            self._of[key] = self._read(index, entry)
        return self._of.get(key)

    def _read(self, index: int, entry: int) -> Row:
        sources = self.program.steps[index].data
        values, out = self._trace(index)
        rows = [None] * len(values)
        if out.requires_grad:  # not a constant
            with torch.enable_grad():
                one = out[entry]
            rows = torch.autograd.grad(one, values, allow_unused=True, retain_graph=True)
        terms = []
        for source, row in zip(sources, rows, strict=True):
            if row is not None:
                flat = row.reshape(-1).numpy()
                terms += [(float(flat[k]), source, k) for k in np.flatnonzero(flat).tolist()]
        return Row(float(out[entry].detach()), terms)

    def _trace(self, index: int) -> tuple[list[Tensor], Tensor]:
        """Apply a step to zeros that derivatives are taken by."""
        if index not in self._traced:
            step = self.program.steps[index]
            shapes = (self.program.steps[i].single for i in step.data)
            with torch.enable_grad():
                values = [torch.zeros(s, dtype=torch.float64, requires_grad=True) for s in shapes]
                found = dict(zip(step.data, values, strict=True))
                out = call(step, {**self._constants, **found}).reshape(-1)
            self._traced[index] = values, out
        return self._traced[index]


class Identities:
    """Tells entries of steps that are the same function; False where that is not seen."""

    def __init__(self, program: Program, slice_: Slice) -> None:
        self._program = program
        self._input = np.column_stack(
            [slice_.origin.reshape(-1), slice_.basis.reshape(slice_.dim, -1).T]
        )
        self._names: dict[tuple[int, int], int] = {}
        self._numbers: dict[Hashable, int] = {}
        self.rows = Rows(program)

    def same(self, step: int, a: int, b: int) -> bool:
        """Whether two entries of a step's flat value are the same function."""
        return a == b or self._name(step, a) == self._name(step, b)

    def same_units(self, a: int, b: int) -> bool:
        """Whether two units of functions of one operand switch on the same function."""
        one, other = (operand_of(self._program, unit) for unit in (a, b))
        if one is None or other is None:
            return False
        return self._name(*one) == self._name(*other)

    def _name(self, index: int, entry: int) -> int:
        key = index, entry
        if key not in self._names:
            made = self._made(index, entry)
            self._names[key] = self._numbers.setdefault(made, len(self._numbers))
        return self._names[key]

    def _made(self, index: int, entry: int) -> Hashable:
        """Say how an entry comes about; by its place alone where that is not looked into."""
        step = self._program.steps[index]
        place = ("place", index, entry)
        if index == 0:
            return ("input", *self._input[entry].tolist())
        row = self.rows.of(index, entry) if step.kind == "affine" else None
        if row is not None:
            terms = ((weight, self._name(source, k)) for weight, source, k in row.terms)
            return ("sum", row.offset, *sorted(terms))
        bend = step.nonlinearity
        if isinstance(bend, Pointwise) and isinstance(step.args[0], Ref):
            kinds = (bend.points, bend.slopes, bend.offsets)
            numbers = tuple(_number(bend, c, entry) for kind in kinds for c in kind)
            return ("bend", bend.kind, *numbers, self._name(step.args[0].index, entry))
        return place


class Constants:
    """Values of entries that are constant on a cell, or known at one of its vertices, exactly.

    Dead units are, and so is what sees nothing else; a unit whose knot passes through the vertex
    has its value there by definition.

    Parameters
    ----------
    pieces : (num_units,)
        Those of the cell.
    winners : mapping
        Winners (windows,) of the max-poolings, by their steps.
    level : mapping
        Knots of the units that are level with one by definition.
    """

    def __init__(
        self, rows: Rows, pieces: Ints, winners: Mapping[int, Ints], level: Mapping[int, float]
    ) -> None:
        self._rows, self._pieces, self._winners, self._level = rows, pieces, winners, level
        self._values: dict[tuple[int, int], Fraction | None] = {}

    def same(self, step: int, a: int, b: int) -> bool:
        """Whether two entries of a step's flat value are known, and equal."""
        value = self.of(step, a)
        return value is not None and value == self.of(step, b)

    def is_level(self, unit: int, knot: float) -> bool:
        """Whether what a unit switches on is known, and equals a knot."""
        operand = operand_of(self._rows.program, unit)
        value = None if operand is None or not isfinite(knot) else self.of(*operand)
        return value is not None and value == Fraction(knot)

    def of(self, index: int, entry: int) -> Fraction | None:
        """Value of an entry; None where it is not known."""
        key = index, entry
        if key not in self._values:
            self._values[key] = self._found(index, entry)
        return self._values[key]

    def _found(self, index: int, entry: int) -> Fraction | None:
        program = self._rows.program
        step = program.steps[index]
        bend = step.nonlinearity
        if index in self._winners:
            (source,) = step.data
            return self.of(source, int(self._winners[index][entry]))
        if isinstance(bend, Pointwise) and isinstance(step.args[0], Ref):
            unit = program.first_unit[index, 0] + entry
            slope, offset = (
                _number(bend, kind[self._pieces[unit]], entry)
                for kind in (bend.slopes, bend.offsets)
            )
            if not isfinite(offset):
                return None
            if slope == 0:
                return Fraction(offset)
            knot = self._level.get(unit)
            below = self.of(step.args[0].index, entry) if knot is None else Fraction(knot)
            return None if below is None else Fraction(slope) * below + Fraction(offset)
        row = self._rows.of(index, entry) if step.kind == "affine" else None
        if row is None:
            return None
        total = Fraction(row.offset)
        for weight, source, k in row.terms:
            value = self.of(source, k)
            if value is None:
                return None
            total += Fraction(weight) * value
        return total


def operand_of(program: Program, unit: int) -> tuple[int, int] | None:
    """Name the step and the entry that a unit of one operand switches on."""
    for (index, _), first in program.first_unit.items():
        step = program.steps[index]
        bend = step.nonlinearity
        if isinstance(bend, Pointwise) and first <= unit < first + prod(bend.shapes[0]):
            (source,) = step.data
            return source, unit - first
    return None


def _number(bend: Pointwise, coefficient: Any, entry: int) -> float:
    """Coefficient of an entry."""
    if not isinstance(coefficient, Tensor):
        return float(coefficient)
    return float(coefficient.expand(bend.shapes[0]).reshape(-1)[entry])
