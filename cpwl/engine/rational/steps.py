"""The steps of a network in rational arithmetic.

A step's value follows from the values of the steps that it reads. What does not depend on them,
the coefficients as integers, is prepared once. The shift of a value (see
`cpwl.engine.rational.numbers`) is the same at every point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from operator import mul
from typing import Protocol

import numpy as np
from flint import fmpz, fmpz_mat
from scipy.sparse import csr_array

from cpwl.arrays import Floats
from cpwl.engine.rational.numbers import Constants, Vector, aligned, compare, integers
from cpwl.network.program import Program, Ref, max_pooling, nonlinearities, single_values

Values = Mapping[int, Vector]
# The point in slice coordinates among the values of the steps.
POINT = -1
# An entry costs about LOOP_COST times more in a loop over rows than in a matrix of flint's. For
# fewer rows than BLOCK_ROWS_AT_LEAST the loop is less work even so.
_LOOP_COST = 6
_BLOCK_ROWS_AT_LEAST = 3


class Affine:
    """An affine step: offset + the sum of its parts."""

    def __init__(self, parts: Sequence[tuple[int, csr_array]], offset: Floats) -> None:
        self._size = len(offset)
        self._parts = [(source, _Matrix(matrix)) for source, matrix in parts if matrix.nnz]
        self._offset = integers(offset) if offset.any() else None

    def value(self, values: Values) -> Vector:
        """Apply the step."""
        terms = [matrix.times(values[source]) for source, matrix in self._parts]
        if not terms:
            terms.append(Vector([fmpz(0)] * self._size, values[POINT].q, 0))
        total, *others = aligned(terms)
        for term in others:
            pairs = zip(total.numbers, term.numbers, strict=True)
            total = total._replace(numbers=[a + b for a, b in pairs])
        return total if self._offset is None else total.plus(self._offset)


class _Matrix:
    """A float64 matrix in integers: blocks of rows with entries in the same columns."""

    def __init__(self, matrix: csr_array) -> None:
        self._height, width = matrix.shape  # type: ignore[misc]
        numbers, self._shift = integers(matrix.data)
        ends = np.asarray(matrix.indptr).tolist()
        columns = matrix.indices.tolist()
        self._picked: list[int] | None = None
        if ends == list(range(self._height + 1)) and (matrix.data == 1).all():
            self._picked = columns
            self._same = columns == list(range(width))
            return
        full = _LOOP_COST * matrix.nnz >= self._height * width
        alike: dict[bytes, list[int]] = {}
        for row, (start, end) in enumerate(pairwise(ends)):
            pattern = b"" if full else matrix.indices[start:end].tobytes()
            alike.setdefault(pattern, []).append(row)
        self._blocks: list[tuple[list[int], list[int], fmpz_mat]] = []
        self._rows: list[tuple[int, list[int], list[fmpz]]] = []
        for rows in alike.values():
            if len(rows) < _BLOCK_ROWS_AT_LEAST and not full:
                spans = [slice(ends[row], ends[row + 1]) for row in rows]
                self._rows += [
                    (r, columns[s], numbers[s]) for r, s in zip(rows, spans, strict=True)
                ]
                continue
            used = list(range(width)) if full else columns[ends[rows[0]] : ends[rows[0] + 1]]
            place = {column: i for i, column in enumerate(used)}
            block = fmpz_mat(len(rows), len(used))
            for i, row in enumerate(rows):
                for k in range(ends[row], ends[row + 1]):
                    block[i, place[columns[k]]] = numbers[k]
            self._blocks.append((rows, used, block))

    def times(self, x: Vector) -> Vector:
        """Multiply by a vector."""
        at = x.numbers.__getitem__
        if self._picked is not None:
            return x if self._same else x._replace(numbers=list(map(at, self._picked)))
        zero = fmpz(0)
        out = [zero] * self._height
        for rows, columns, block in self._blocks:
            product = block * fmpz_mat(len(columns), 1, list(map(at, columns)))
            for row, number in zip(rows, product.entries(), strict=True):
                out[row] = number
        for row, columns, numbers in self._rows:
            out[row] = sum(map(mul, numbers, map(at, columns)), zero)
        return Vector(out, x.q, self._shift + x.shift)


class Bend(Protocol):
    """A CPWL step."""

    def value(self, values: Values) -> Vector:
        """Apply the step."""
        ...

    def switching(self, values: Values, round_: int) -> Vector:
        """Evaluate the functions whose signs decide the pieces, of one round of matches."""
        ...


def bend_of(program: Program, index: int) -> Bend:
    """Prepare a CPWL step."""
    step = program.steps[index]
    nonlinearity = step.nonlinearity
    if isinstance(nonlinearity, max_pooling.Tournament):
        (source,) = step.data
        return _Tournament(nonlinearity, source)
    assert nonlinearity is not None
    operands = [_Operand(program, arg, nonlinearity.shapes[0]) for arg in step.args]
    if isinstance(nonlinearity, nonlinearities.Extremum):
        return _Extremum(nonlinearity, operands)
    if isinstance(nonlinearity, nonlinearities.Triangle):
        return _Triangle(nonlinearity, operands[0])
    assert isinstance(nonlinearity, nonlinearities.Pointwise)
    return _Pointwise(nonlinearity, operands[0])


class _Operand:
    """An operand of a CPWL step, broadcast to the step's shape."""

    def __init__(self, program: Program, arg: object, shape: tuple[int, ...]) -> None:
        self._constants: Constants | None = None
        if isinstance(arg, Ref) and program.steps[arg.index].kind == "fixed":
            arg = single_values(program)[arg.index]
        if not isinstance(arg, Ref):
            self._constants = integers(_spread(arg, shape))
            return
        self._source = arg.index
        single = program.steps[arg.index].single
        grid = np.arange(int(np.prod(single))).reshape(single)
        places = np.broadcast_to(grid, (1, *shape)).reshape(-1)
        self._places = None if np.array_equal(places, grid.reshape(-1)) else places.tolist()

    def value(self, values: Values) -> Vector:
        """Look the operand's entries up."""
        if self._constants is not None:
            return self._constants.over(values[POINT].q)
        x = values[self._source]
        return (
            x if self._places is None else x._replace(numbers=[x.numbers[i] for i in self._places])
        )


class _Pointwise:
    def __init__(self, bend: nonlinearities.Pointwise, operand: _Operand) -> None:
        self._operand = operand
        shape = bend.shapes[0]
        points, slopes, offsets = (
            np.stack([_spread(x, shape) for x in table], axis=1)
            for table in (bend.points, bend.slopes, bend.offsets)
        )
        self._relu = np.array_equal(slopes, np.tile([0.0, 1.0], (len(slopes), 1)))
        self._relu &= not points.any() and not offsets.any()
        self._points = points.tolist()
        # the offset of a piece that no number reaches may be infinite
        self._slopes, self._offsets = (
            integers(x) for x in (slopes, np.where(np.isfinite(offsets), offsets, 0.0))
        )
        self._pieces = slopes.shape[1]

    def value(self, values: Values) -> Vector:
        h = self._operand.value(values)
        if self._relu:
            zero = fmpz(0)
            return h._replace(numbers=[n if n > 0 else zero for n in h.numbers])
        chosen = [
            i * self._pieces + sum(compare(n, h.q, h.shift, point) > 0 for point in points)
            for i, (n, points) in enumerate(zip(h.numbers, self._points, strict=True))
        ]
        slopes, offsets = (
            Constants([table.numbers[k] for k in chosen], table.shift)
            for table in (self._slopes, self._offsets)
        )
        scaled = [n * slope for n, slope in zip(h.numbers, slopes.numbers, strict=True)]
        return Vector(scaled, h.q, h.shift + slopes.shift).plus(offsets)

    def switching(self, values: Values, round_: int) -> Vector:
        return self._operand.value(values)


class _Triangle:
    def __init__(self, wave: nonlinearities.Triangle, operand: _Operand) -> None:
        self._operand = operand
        self._times = integers([wave.period / 2, wave.phase])
        self._scale = integers([wave.scale])
        self._offset = wave.offset

    def value(self, values: Values) -> Vector:
        h = self._operand.value(values)
        times, h = aligned([self._times.over(h.q), h])
        half, phase = times.numbers
        (scale,) = self._scale.numbers
        numbers = []
        for n in h.numbers:
            k = -(-(n + phase) // half) - 1  # interval; on a knot, the one below it
            odd = k % 2 == 1
            wave = n + phase - (k if odd else k + 1) * half
            numbers.append(wave * scale if odd else -wave * scale)
        y = Vector(numbers, h.q, h.shift + self._scale.shift)
        return y.plus(integers([self._offset] * len(numbers)))

    def switching(self, values: Values, round_: int) -> Vector:
        return self._operand.value(values)


class _Extremum:
    def __init__(self, bend: nonlinearities.Extremum, operands: list[_Operand]) -> None:
        self._operands = operands
        self._choose = max if bend.largest else min

    def value(self, values: Values) -> Vector:
        a, b = aligned([operand.value(values) for operand in self._operands])
        return a._replace(numbers=list(map(self._choose, a.numbers, b.numbers)))

    def switching(self, values: Values, round_: int) -> Vector:
        a, b = aligned([operand.value(values) for operand in self._operands])
        return a._replace(numbers=[x - y for x, y in zip(a.numbers, b.numbers, strict=True)])


class _Tournament:
    def __init__(self, bend: max_pooling.Tournament, source: int) -> None:
        self._source = source
        self._choose = max if bend.largest else min
        self._pairs = [
            (left.tolist(), right.tolist())
            for left, right in zip(bend.left, bend.right, strict=True)
        ]
        self._passing = [passing.tolist() for passing in bend.passing]
        self._final = bend.final.tolist()

    def value(self, values: Values) -> Vector:
        x = values[self._source]
        left = self._play(x.numbers, len(self._pairs))
        return x._replace(numbers=[left[i] for i in self._final])

    def switching(self, values: Values, round_: int) -> Vector:
        x = values[self._source]
        left = self._play(x.numbers, round_)
        pairs = zip(*self._pairs[round_], strict=True)
        return x._replace(numbers=[left[a] - left[b] for a, b in pairs])

    def _play(self, numbers: list[fmpz], rounds: int) -> list[fmpz]:
        """Return who is left after the first rounds."""
        for (left, right), passing in zip(self._pairs[:rounds], self._passing, strict=False):
            at = numbers.__getitem__
            winners = list(map(self._choose, map(at, left), map(at, right)))
            numbers = winners + [at(i) for i in passing]
        return numbers


def _spread(value: object, shape: tuple[int, ...]) -> Floats:
    """Broadcast a constant operand or coefficient to a flat sample."""
    return np.broadcast_to(np.asarray(value, dtype=np.float64), (1, *shape)).reshape(-1)
