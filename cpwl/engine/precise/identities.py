"""Entries that are the same function of the slice, recognised by how they are computed.

No bound proves a zero, but equal sums of equal terms are equal. An entry's name says how it comes
about: of the input its place in the slice, of an affine step its constant and the coefficients with
the names of what they multiply, of a function of one operand its pieces and the operand's name.
Filters that see the same pixels twice have equal names.
"""

from __future__ import annotations

from collections.abc import Hashable
from math import prod

import numpy as np
import torch

from cpwl.domain import Slice
from cpwl.network.program import Pointwise, Program, Ref, call, single_values

# Rows of affine steps that are read, at a backward pass each.
_ROWS_AT_MOST = 4096


class Identities:
    """Tells entries of steps that are the same function; False where that is not seen."""

    def __init__(self, program: Program, slice_: Slice) -> None:
        self._program = program
        self._input = np.column_stack(
            [slice_.origin.reshape(-1), slice_.basis.reshape(slice_.dim, -1).T]
        )
        self._names: dict[tuple[int, int], int] = {}
        self._numbers: dict[Hashable, int] = {}
        self._constants = single_values(program)
        self._rows = 0

    def same(self, step: int, a: int, b: int) -> bool:
        """Whether two entries of a step's flat value are the same function."""
        return a == b or self._name(step, a) == self._name(step, b)

    def same_units(self, a: int, b: int) -> bool:
        """Whether two units of functions of one operand switch on the same function."""
        one, other = self._unit(a), self._unit(b)
        if one is None or other is None:
            return False
        return self._name(*one) == self._name(*other)

    def _unit(self, unit: int) -> tuple[int, int] | None:
        """Name the step and the entry that a unit switches on."""
        for (index, _), first in self._program.first_unit.items():
            step = self._program.steps[index]
            bend = step.nonlinearity
            if isinstance(bend, Pointwise) and first <= unit < first + prod(bend.shapes[0]):
                (source,) = step.data
                return source, unit - first
        return None

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
        if step.kind == "affine" and self._rows < _ROWS_AT_MOST:
            self._rows += 1
            return self._sum(index, entry)
        bend = step.nonlinearity
        if isinstance(bend, Pointwise) and isinstance(step.args[0], Ref):
            kinds = (bend.points, bend.slopes, bend.offsets)
            numbers = tuple(
                float(torch.as_tensor(c).expand(bend.shapes[0]).reshape(-1)[entry])
                for kind in kinds for c in kind
            )  # fmt: skip
            return ("bend", bend.kind, *numbers, self._name(step.args[0].index, entry))
        return place

    def _sum(self, index: int, entry: int) -> Hashable:
        program = self._program
        step = program.steps[index]
        with torch.enable_grad():
            values = [
                torch.zeros(program.steps[i].single, dtype=torch.float64, requires_grad=True)
                for i in step.data
            ]
            found = dict(zip(step.data, values, strict=True))
            out = call(step, {**self._constants, **found}).reshape(-1)[entry]
            rows = [None] * len(values)
            if out.requires_grad:  # not a constant
                rows = torch.autograd.grad(out, values, allow_unused=True)
        terms = []
        for source, row in zip(step.data, rows, strict=True):
            if row is not None:
                flat = row.reshape(-1).numpy()
                terms += [
                    (float(flat[k]), self._name(source, k)) for k in np.flatnonzero(flat).tolist()
                ]
        return ("sum", float(out.detach()), *sorted(terms))
