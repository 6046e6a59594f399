"""The affine steps of a program as sparse matrices, read off entry by entry.

A row of a step's matrix is the gradient of one output: every entry is a product of a float64
coefficient with 1, so that nothing is rounded on the way; the offset is what the step gives for
zero. These matrices are what the word *exact* refers to: rational arithmetic works with them, and
the running error bounds cover the difference to what torch computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from cpwl.arrays import Floats
from cpwl.network.program.error_analysis import single_values
from cpwl.network.program.program import Program, Step, call, is_batched

# A step with more places in its dense matrix, or a network with more units, is not read: reading
# takes seconds, and max-pooling over zeros asks for exact values at every vertex, which are then as
# many integers as there are units.
_MOST_PLACES = 2**26
_MOST_UNITS = 8192
_BLOCK = 256


class Part(NamedTuple):
    """The share of one operand: out += matrix @ value of step ``source``.

    ``rows`` are the Euclidean norms of the matrix's rows, ``norm`` bounds its spectral norm.
    """

    source: int
    matrix: csr_array
    rows: Floats
    norm: float


class AffineMap(NamedTuple):
    """An affine step on flat samples: offset + the sum of its parts."""

    parts: tuple[Part, ...]
    offset: Floats


@dataclass(frozen=True, eq=False)
class Matrices:
    """Every affine step of a program, or the reason why they cannot all be held."""

    steps: Mapping[int, AffineMap]
    entries: int = 0
    reason: str = ""

    @property
    def complete(self) -> bool:
        """Whether exact arithmetic is possible."""
        return not self.reason


def read_matrices(program: Program, *, most_entries: int = 2**20) -> Matrices:
    """Read all affine steps, unless together they have more than `most_entries` coefficients.

    Cost: one backward pass of each step for each of its outputs.
    """
    units = sum(head.units for heads in program.heads for head in heads)
    if units > _MOST_UNITS:
        return Matrices({}, reason=f"it has {units:,} units, more than {_MOST_UNITS:,}")
    for step in program.steps:
        if step.kind == "affine":
            places = sum(prod(program.steps[i].single) for i in step.data) * prod(step.single)
            if places > _MOST_PLACES:
                return Matrices(
                    {},
                    reason=f"{step.name} ({step.target}) would be a matrix of {places:,} entries",
                )
    constants = single_values(program)
    steps: dict[int, AffineMap] = {}
    entries = 0
    for index, step in enumerate(program.steps):
        if step.kind != "affine":
            continue
        try:
            steps[index] = _read(program, step, constants)
        except (NotImplementedError, RuntimeError) as error:  # torch has no derivative
            return Matrices({}, reason=f"{step.name} ({step.target}) has no matrix: {error}")
        entries += sum(part.matrix.nnz for part in steps[index].parts)
        if entries > most_entries:
            reason = f"its affine operations have more than {most_entries:,} entries"
            return Matrices({}, reason=reason)
    return Matrices(steps, entries)


def read_step(program: Program, step: Step) -> AffineMap | None:
    """Read one affine step; None if its dense matrix would have too many places."""
    places = sum(prod(program.steps[i].single) for i in step.data) * prod(step.single)
    return None if places > _MOST_PLACES else _read(program, step, single_values(program))


def _read(program: Program, step: Step, constants: Mapping[int, Any]) -> AffineMap:
    """Read one affine step."""
    singles = {i: program.steps[i].single for i in step.data}
    batched = is_batched(program, step)

    def function(*values: Tensor) -> Tensor:
        return call(step, {**constants, **dict(zip(step.data, values, strict=True))})

    def zeros(n: int) -> tuple[Tensor, ...]:
        return tuple(
            torch.zeros((n, *singles[i][1:]) if batched else singles[i], dtype=torch.float64)
            for i in step.data
        )

    with torch.no_grad():
        offset = function(*zeros(1)).reshape(-1).numpy().copy()
    size_out = len(offset)
    rows: list[list[tuple[NDArray, NDArray, NDArray]]] = [[] for _ in step.data]
    for first in range(0, size_out, _BLOCK if batched else 1):
        n = min(_BLOCK if batched else 1, size_out - first)
        with torch.enable_grad():
            values = [value.requires_grad_() for value in zeros(n)]
            out = function(*values)
        unit = torch.zeros(n, size_out, dtype=torch.float64)
        unit[:, first:].fill_diagonal_(1)
        pulled = torch.autograd.grad(out, values, unit.reshape(out.shape), allow_unused=True)
        for entries, gradient in zip(rows, pulled, strict=True):
            if gradient is not None:
                dense = gradient.reshape(n, -1).numpy()
                row, column = np.nonzero(dense)
                entries.append((row + first, column, dense[row, column]))
    parts = []
    for source, entries in zip(step.data, rows, strict=True):
        shape = (size_out, prod(singles[source]))
        if entries:  # row by row: nothing is left to sort or to add up
            row, column, entry = (np.concatenate(x) for x in zip(*entries, strict=True))
            starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=size_out))])
            matrix = csr_array((entry, column, starts), shape=shape)
        else:
            matrix = csr_array(shape, dtype=np.float64)
        parts.append(Part(source, matrix, _row_norms(matrix), _spectral_bound(matrix)))
    return AffineMap(tuple(parts), offset)


def _row_norms(matrix: csr_array) -> Floats:
    """Bound the rows' Euclidean norms from above."""
    row = np.repeat(np.arange(len(matrix.indptr) - 1), np.diff(matrix.indptr))
    largest = np.zeros(len(matrix.indptr) - 1)
    np.maximum.at(largest, row, np.abs(matrix.data))
    sums = np.zeros(len(largest))
    np.add.at(sums, row, (matrix.data / largest[row]) ** 2)  # entries are not zero
    return np.sqrt(sums) * largest * (1 + 1e-12) + 2.0**-1074


def _spectral_bound(matrix: csr_array) -> float:
    """Bound the spectral norm: by the rows and columns, or for small ones by a trace of powers.

    With G = M^T M, ||M||^16 <= ||G^4||_F^2 <= rank ||M||^16: at most rank^(1/16) too large.
    """
    scale = float(np.abs(matrix.data).max(initial=0.0))
    if scale == 0.0:
        return 0.0
    share, (height, width) = np.abs(matrix.data) / scale, matrix.shape or (0, 0)
    row = np.repeat(np.arange(height), np.diff(matrix.indptr))
    down, across = (np.bincount(x, share).max() for x in (matrix.indices, row))
    bound = float(np.sqrt(down * across))
    if max(height, width) <= 2048:
        dense = matrix.toarray() / scale
        gram = dense.T @ dense if dense.shape[1] <= dense.shape[0] else dense @ dense.T
        size = float(np.abs(gram).max())
        power = gram / size
        power = power @ power
        power = power @ power
        bound = min(bound, float(np.linalg.norm(power)) ** 0.125 * size**0.5)
    return bound * scale * (1 + 1e-9) + 2.0**-1074
