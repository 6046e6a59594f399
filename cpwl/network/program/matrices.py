"""The affine steps of a program as sparse matrices, read off entry by entry.

A row of a step's matrix is the gradient of one output, a column what the step's linear part gives
for a unit vector: every entry is a product of a float64 coefficient with 1, so that nothing is
rounded on the way; the offset is what the step gives for zero. These matrices are what the word
*exact* refers to: rational arithmetic works with them, and the running error bounds cover the
difference to what torch computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csc_array, csr_array
from torch import Tensor

from cpwl.arrays import Floats, Ints
from cpwl.network.program.error_analysis import single_values
from cpwl.network.program.program import Program, Step, call, is_batched
from cpwl.network.program.tangents import linear_part

# A step with more places in its dense matrix, or a network with more units, is not read: reading
# takes seconds, and max-pooling over zeros asks for exact values at every vertex, which are then as
# many integers as there are units.
_MOST_PLACES = 2**26
_MOST_UNITS = 8192
# Row by row, a step is read by as many gradients as it has outputs, each with that many places.
_MOST_GRADIENT_PLACES = 2**31
_BLOCK = 256
_BLOCK_PLACES = 2**22
# What rounds a coefficient once at most gives the same for unit vectors of its inputs and of its
# outputs, as does what moves entries. Factors of an interpolation are sums of products, rounded in
# one order on the way there and in another on the way back: those are the way back's.
_ROUND_ONCE = {
    "add", "addmm", "baddbmm", "bmm", "convolution", "div", "linear", "matmul", "mm", "mul", "mv",
    "rsub", "sub", "true_divide",
}  # fmt: skip


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


class _TooManyError(Exception):
    """A step has more entries than there is room for."""


def read_matrices(program: Program, *, most_entries: int = 2**20) -> Matrices:
    """Read all affine steps, unless together they have more than `most_entries` coefficients.

    Cost: one pass of each step for each of its outputs, or of its inputs where those are fewer, up
    to the last coefficient that there is room for.
    """
    units = sum(head.units for heads in program.heads for head in heads)
    if units > _MOST_UNITS:
        return Matrices({}, reason=f"it has {units:,} units, more than {_MOST_UNITS:,}")
    affine = [(index, step) for index, step in enumerate(program.steps) if step.kind == "affine"]
    for _, step in affine:
        reason = _obstacle(program, step)
        if reason:
            return Matrices({}, reason=f"{step.name} ({step.target}) {reason}")
    constants = single_values(program)
    steps: dict[int, AffineMap] = {}
    entries = 0
    for index, step in affine:
        try:
            steps[index] = _read(program, step, constants, most_entries - entries)
        except (NotImplementedError, RuntimeError) as error:  # torch has no derivative
            return Matrices({}, reason=f"{step.name} ({step.target}) has no matrix: {error}")
        except _TooManyError:
            reason = f"its affine operations have more than {most_entries:,} entries"
            return Matrices({}, reason=reason)
        entries += sum(part.matrix.nnz for part in steps[index].parts)
    return Matrices(steps, entries)


def read_step(program: Program, step: Step) -> AffineMap | None:
    """Read one affine step; None if its dense matrix would have too many places."""
    if _obstacle(program, step):
        return None
    return _read(program, step, single_values(program), _MOST_PLACES)


def _obstacle(program: Program, step: Step) -> str:
    """Say why a step is not read; empty where it is."""
    inputs, outputs = _sizes(program, step)
    if inputs * outputs > _MOST_PLACES:
        return f"would be a matrix of {inputs * outputs:,} entries"
    gradients = 0 if _by_columns(program, step) else outputs * (inputs + outputs)
    if gradients > _MOST_GRADIENT_PLACES:
        return f"has {outputs:,} outputs, too many to be read one by one"
    return ""


def _sizes(program: Program, step: Step) -> tuple[int, int]:
    """Entries of all operands, and of the value."""
    return sum(prod(program.steps[i].single) for i in step.data), prod(step.single)


def _by_columns(program: Program, step: Step) -> bool:
    """Whether a step is read by unit vectors of its inputs: where those are fewer, and as good."""
    inputs, outputs = _sizes(program, step)
    assert step.rounding is not None
    return inputs < outputs and (step.rounding.terms == 0 or step.operation in _ROUND_ONCE)


def _read(program: Program, step: Step, constants: Mapping[int, Any], room: int) -> AffineMap:
    """Read one affine step, as long as its entries find room."""
    singles = [program.steps[i].single for i in step.data]
    batched, columns = is_batched(program, step), _by_columns(program, step)
    each = sum(_sizes(program, step)) + step.scratch
    most = max(1, min(_BLOCK, _BLOCK_PLACES // each)) if batched else 1

    def zeros(n: int) -> list[Tensor]:
        return [
            torch.zeros((n, *single[1:]) if batched else single, dtype=torch.float64)
            for single in singles
        ]

    def env(values: list[Tensor]) -> dict[int, Any]:
        return {**constants, **dict(zip(step.data, values, strict=True))}

    def by_rows() -> Iterator[tuple[int, Tensor]]:
        for unit in _unit_vectors(len(offset), most):
            with torch.enable_grad():
                values = [value.requires_grad_() for value in zeros(len(unit))]
                out = call(step, env(values))
            pulled = torch.autograd.grad(out, values, unit.reshape(out.shape), allow_unused=True)
            yield from ((k, gradient) for k, gradient in enumerate(pulled) if gradient is not None)

    def by_columns() -> Iterator[tuple[int, Tensor]]:
        linear = linear_part(step) if offset.any() else lambda env: call(step, env)
        for k, single in enumerate(singles):
            for unit in _unit_vectors(prod(single), most):
                values = zeros(len(unit))
                values[k] = unit.reshape(values[k].shape)
                yield k, linear(env(values))

    read: list[list[tuple[Ints, Ints, Floats]]] = [[] for _ in singles]
    with torch.no_grad():
        offset = call(step, env(zeros(1))).reshape(-1).numpy().copy()
        for k, found in by_columns() if columns else by_rows():
            dense = found.reshape(-1, len(offset) if columns else prod(singles[k])).numpy()
            room -= int(np.count_nonzero(dense))
            if room < 0:
                raise _TooManyError
            unit, place = np.nonzero(dense)
            read[k].append((np.bincount(unit, minlength=len(dense)), place, dense[unit, place]))
    parts = []
    for source, single, blocks in zip(step.data, singles, read, strict=True):
        shape = (len(offset), prod(single))
        if blocks:  # unit vector by unit vector: nothing is left to sort or to add up
            counts, place, entry = (np.concatenate(x) for x in zip(*blocks, strict=True))
            held = (entry, place, np.concatenate([[0], np.cumsum(counts)]))
            matrix = csc_array(held, shape).tocsr() if columns else csr_array(held, shape)
        else:
            matrix = csr_array(shape, dtype=np.float64)
        parts.append(Part(source, matrix, _row_norms(matrix), _spectral_bound(matrix)))
    return AffineMap(tuple(parts), offset)


def _unit_vectors(size: int, most: int) -> Iterator[Tensor]:
    """Yield all unit vectors as rows (n, size), at most so many at a time."""
    for first in range(0, size, most):
        unit = torch.zeros(min(most, size - first), size, dtype=torch.float64)
        unit[:, first:].fill_diagonal_(1)
        yield unit


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
