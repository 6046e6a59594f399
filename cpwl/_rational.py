"""The network in rational arithmetic at one point.

Numbers of one vector share a denominator q 2^s: q comes from the point, 2^s from the float64
coefficients, which are integers times powers of two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flint import fmpq, fmpz, fmpz_mat
from numpy.typing import NDArray
from scipy.sparse import csr_array

from cpwl._matrices import Matrices
from cpwl._nonlinear import Extremum, Pointwise, Triangle
from cpwl._program import Program, Ref
from cpwl._tournament import Tournament
from cpwl.domain import Slice

Positions = NDArray[np.int64]
Point = tuple[fmpq, ...]


class Vector(NamedTuple):
    """Entries ``numbers[i] / (q 2^shift)`` at the ascending ``positions[i]`` of a flat tensor."""

    positions: Positions
    numbers: list[fmpz]
    q: fmpz
    shift: int

    def has(self, positions: NDArray[np.integer]) -> bool:
        """Whether all these positions are there."""
        place = np.searchsorted(self.positions, positions)
        inside = place < len(self.positions)
        return bool(inside.all() and (self.positions[place] == positions).all())

    def minus(self, position: int, value: float) -> fmpq:
        """Entry minus a float64 number."""
        number = self.numbers[int(np.searchsorted(self.positions, position))]
        return fmpq(number, self.q << self.shift) - exact(value)

    def compare(self, position: int, value: float) -> int:
        """Sign of the entry minus a float64 number."""
        number = self.numbers[int(np.searchsorted(self.positions, position))]
        return _compare(number, self.q, self.shift, value)

    def at(self, positions: NDArray[np.integer]) -> list[fmpz]:
        """Numbers at some of the positions."""
        return [self.numbers[i] for i in np.searchsorted(self.positions, positions).tolist()]


class Block(NamedTuple):
    """Rows of a matrix on the columns that they use, as integers over 2^shift."""

    columns: Positions
    matrix: fmpz_mat
    shift: int


def exact(value: float) -> fmpq:
    """Return the rational number that a float64 is."""
    return fmpq(*float(value).as_integer_ratio())


class Evaluator:
    """Evaluates a network at rational points; keeps what does not depend on the point."""

    def __init__(self, program: Program, matrices: Matrices, slice_: Slice) -> None:
        self._program = program
        self._matrices = matrices
        self._slice = slice_
        self._cones: dict[int, tuple[list[_HeadUnits], dict[int, Positions]]] = {}
        self._blocks: dict[tuple[int, int, bytes], Block] = {}

    def stages(self, last: int, point: Point) -> dict[int, Vector]:
        """All switching functions of the stages up to one, at a point in slice coordinates."""
        if last not in self._cones:
            counts = [sum(h.units for h in heads) for heads in self._program.heads[: last + 1]]
            heads = _heads(self._program, {s: np.arange(n) for s, n in enumerate(counts)})
            self._cones[last] = heads, _cone(self._program, self._matrices, heads)
        return self._evaluate(*self._cones[last], point)

    def units(self, stage: int, units: Positions, point: Point) -> Vector:
        """Evaluate some switching functions of a stage, and no more than they depend on."""
        heads = _heads(self._program, {stage: units})
        needed = _cone(self._program, self._matrices, heads)
        return self._evaluate(heads, needed, point)[stage]

    def _evaluate(
        self, heads: list[_HeadUnits], needed: dict[int, Positions], point: Point
    ) -> dict[int, Vector]:
        program = self._program
        env = {0: _embed(self._slice, point, needed.get(0, np.zeros(0, np.int64)))}
        for index in sorted(needed):
            step = program.steps[index]
            if step.kind == "affine":
                env[index] = self._affine(index, needed[index], env)
            elif step.kind == "cpwl":
                env[index] = _bend(program, index, needed[index], env)
        parts: dict[int, list[tuple[int, Vector]]] = {}
        for stage, step, round_, first, units in heads:
            parts.setdefault(stage, []).append(
                (first, _switching(program, step, round_, units, env))
            )
        return {stage: _join(found) for stage, found in parts.items()}

    def _affine(self, index: int, rows: Positions, env: Mapping[int, Vector]) -> Vector:
        """Apply an affine step to the rows asked for."""
        step = self._matrices.steps[index]
        sums: list[tuple[list[fmpz], int]] = []
        for part in step.parts:
            source = env[part.source]
            key = index, part.source, rows.tobytes()
            if key not in self._blocks:
                columns = _columns(part.matrix, rows)
                dense = part.matrix[rows][:, columns].toarray()
                self._blocks[key] = Block(columns, *_integers(dense))
            block = self._blocks[key]
            if len(block.columns) == 0:
                continue
            numbers = block.matrix * fmpz_mat(len(block.columns), 1, source.at(block.columns))
            sums.append((numbers.entries(), block.shift + source.shift))
        if not sums:
            sums.append(([fmpz(0)] * len(rows), 0))
        most = max(shift for _, shift in sums)
        total = [fmpz(0)] * len(rows)
        for numbers, shift in sums:
            total = [t + (n << (most - shift)) for t, n in zip(total, numbers, strict=True)]
        return _shifted(rows, total, env[0].q, most, step.offset[rows])


class _HeadUnits(NamedTuple):
    """Units asked for of one head: ``first`` is the head's first unit within its stage."""

    stage: int
    step: int
    round: int
    first: int
    units: Positions


def _heads(program: Program, targets: Mapping[int, Positions]) -> list[_HeadUnits]:
    """Distribute the units of stages over the heads that they belong to."""
    found = []
    for stage, units in targets.items():
        first = 0
        for head in program.heads[stage]:
            mine = units[(units >= first) & (units < first + head.units)] - first
            if len(mine):
                found.append(_HeadUnits(stage, head.step, head.round, first, mine))
            first += head.units
    return found


def _cone(program: Program, matrices: Matrices, heads: list[_HeadUnits]) -> dict[int, Positions]:
    """Positions of every step that the heads depend on."""
    wanted: dict[int, list[Positions]] = {}
    for head in heads:
        for source, positions in _switching_needs(program, head.step, head.round, head.units):
            wanted.setdefault(source, []).append(positions)
    needed: dict[int, Positions] = {}
    for index in range(len(program.steps) - 1, -1, -1):
        if index not in wanted:
            continue
        rows = np.unique(np.concatenate(wanted[index]))
        needed[index] = rows
        step = program.steps[index]
        if step.kind == "affine":
            for part in matrices.steps[index].parts:
                wanted.setdefault(part.source, []).append(_columns(part.matrix, rows))
        elif step.kind == "cpwl":
            for source, positions in _bend_needs(program, index, rows):
                wanted.setdefault(source, []).append(positions)
    return needed


def _columns(matrix: csr_array, rows: Positions) -> Positions:
    """Columns with an entry in some rows."""
    return np.unique(matrix[rows].indices).astype(np.int64)


def _embed(slice_: Slice, point: Point, positions: Positions) -> Vector:
    """Latent origin + point @ basis, at some of its entries."""
    q = fmpz(1)
    for x in point:
        q = q.lcm(x.q)
    scaled = [x.p * (q // x.q) for x in point]
    basis = slice_.basis.reshape(slice_.dim, -1)[:, positions].T
    matrix, shift = _integers(np.ascontiguousarray(basis))
    numbers = (matrix * fmpz_mat(len(scaled), 1, scaled)).entries() if len(positions) else []
    return _shifted(positions, numbers, q, shift, slice_.origin.reshape(-1)[positions])


def _integers(matrix: NDArray[np.float64]) -> tuple[fmpz_mat, int]:
    """Write a float64 matrix as integers over 2^shift."""
    mantissa, exponent = np.frexp(matrix)
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    power = exponent.astype(np.int64) - 53
    used = whole != 0
    lowest = int(power[used].min()) if used.any() else 0
    lift = np.where(used, power - lowest, 0).reshape(-1)
    numbers = [w << up for w, up in zip(whole.reshape(-1).tolist(), lift.tolist(), strict=True)]
    if lowest > 0:
        numbers, lowest = [n << lowest for n in numbers], 0
    return fmpz_mat(len(matrix), matrix.shape[1], numbers), -lowest


def _shifted(
    positions: Positions, numbers: list[fmpz], q: fmpz, shift: int, offset: NDArray[np.float64]
) -> Vector:
    """Add float64 offsets to numbers / (q 2^shift)."""
    if not offset.any():
        return Vector(positions, numbers, q, shift)
    ratios = [x.as_integer_ratio() for x in offset.tolist()]
    most = max(shift, max(d.bit_length() - 1 for _, d in ratios))
    moved = [
        (n << (most - shift)) + ((fmpz(p) * q) << (most - d.bit_length() + 1))
        for n, (p, d) in zip(numbers, ratios, strict=True)
    ]
    return Vector(positions, moved, q, most)


def _operands(program: Program, index: int) -> list[tuple[int | None, NDArray]]:
    """Operands of a CPWL step on its output's entries: (source, positions) or (None, values)."""
    step = program.steps[index]
    bend = step.nonlinearity
    assert bend is not None
    shape = (1, *bend.shapes[0])
    found: list[tuple[int | None, NDArray]] = []
    for arg in step.args:
        if isinstance(arg, Ref):
            single = program.steps[arg.index].single
            grid = np.arange(int(np.prod(single))).reshape(single)
            found.append((arg.index, np.broadcast_to(grid, shape).reshape(-1)))
        else:
            found.append((None, np.broadcast_to(_numbers(arg), shape).reshape(-1)))
    return found


def _numbers(value: Any) -> NDArray[np.float64]:
    """Bring a constant operand or coefficient to float64."""
    return np.asarray(value, dtype=np.float64)


def _bend_needs(program: Program, index: int, rows: Positions) -> list[tuple[int, Positions]]:
    """Entries of its operands that some outputs of a CPWL step depend on."""
    bend = program.steps[index].nonlinearity
    if isinstance(bend, Tournament):
        alive = np.unique(bend.final.numpy()[rows])
        return [(_source(program, index), _candidates(bend, alive, len(bend.left)))]
    return [(s, p[rows]) for s, p in _operands(program, index) if s is not None]


def _switching_needs(
    program: Program, index: int, round_: int, units: Positions
) -> list[tuple[int, Positions]]:
    """Entries of its operands that some switching functions of a CPWL step depend on."""
    bend = program.steps[index].nonlinearity
    if isinstance(bend, Tournament):
        both = np.concatenate([bend.left[round_].numpy()[units], bend.right[round_].numpy()[units]])
        return [(_source(program, index), _candidates(bend, np.unique(both), round_))]
    return _bend_needs(program, index, units)


def _source(program: Program, index: int) -> int:
    """Name the step whose entries a tournament compares."""
    arg = program.steps[index].args[0]
    assert isinstance(arg, Ref)
    return arg.index


def _candidates(bend: Tournament, alive: Positions, rounds: int) -> Positions:
    """Entries of the sample from which the given candidates after some rounds come."""
    for k in range(rounds - 1, -1, -1):
        left, right = bend.left[k].numpy(), bend.right[k].numpy()
        units = alive[alive < len(left)]
        passed = bend.passing[k].numpy()[alive[alive >= len(left)] - len(left)]
        alive = np.unique(np.concatenate([left[units], right[units], passed]))
    return alive


def _bend(program: Program, index: int, rows: Positions, env: Mapping[int, Vector]) -> Vector:
    """Apply a CPWL step."""
    bend = program.steps[index].nonlinearity
    if isinstance(bend, Tournament):
        x = env[_source(program, index)]
        left = _play(bend, x, len(bend.left))
        return Vector(rows, [left[i] for i in bend.final.numpy()[rows].tolist()], x.q, x.shift)
    operands = [_operand(source, values, rows, env) for source, values in _operands(program, index)]
    if isinstance(bend, Extremum):
        a, b = _aligned(operands)
        choose = max if bend.largest else min
        chosen = [choose(x, y) for x, y in zip(a.numbers, b.numbers, strict=True)]
        return Vector(rows, chosen, a.q, a.shift)
    h = operands[0]
    if isinstance(bend, Triangle):
        lines = [_wave_piece(bend, n, h) for n in h.numbers]
        h = _shifted(rows, h.numbers, h.q, h.shift, np.array([-end for _, end in lines]))
        lines = [(slope, bend.offset) for slope, _ in lines]
    else:
        assert isinstance(bend, Pointwise)
        points, slopes, offsets = (
            [np.broadcast_to(_numbers(x), (1, *bend.shapes[0])).reshape(-1)[rows] for x in table]
            for table in (bend.points, bend.slopes, bend.offsets)
        )
        lines = []
        for i, number in enumerate(h.numbers):
            piece = sum(_compare(number, h.q, h.shift, float(p[i])) > 0 for p in points)
            lines.append((float(slopes[piece][i]), float(offsets[piece][i])))
    slope = [exact(s) for s, _ in lines]
    deep = max((int(s.q).bit_length() - 1 for s in slope), default=0)
    scaled = [n * ((s.p << deep) // s.q) for n, s in zip(h.numbers, slope, strict=True)]
    return _shifted(rows, scaled, h.q, h.shift + deep, np.array([o for _, o in lines]))


def _wave_piece(bend: Triangle, number: fmpz, h: Vector) -> tuple[float, float]:
    """Slope of a triangle wave on the interval that a value lies in, and where it is lowest."""
    half = exact(bend.period / 2)
    at = (fmpq(number, h.q << h.shift) + exact(bend.phase)) / half
    k = int(at.ceil()) - 1
    slope = bend.scale if k % 2 else -bend.scale
    end = (k + (k % 2 == 0)) * (bend.period / 2) - bend.phase
    return slope, end


def _switching(
    program: Program, index: int, round_: int, units: Positions, env: Mapping[int, Vector]
) -> Vector:
    """Switching functions of some units of one round of a CPWL step."""
    bend = program.steps[index].nonlinearity
    if isinstance(bend, Tournament):
        x = env[_source(program, index)]
        left = _play(bend, x, round_)
        pairs = zip(
            bend.left[round_].numpy()[units].tolist(),
            bend.right[round_].numpy()[units].tolist(),
            strict=True,
        )
        return Vector(units, [left[a] - left[b] for a, b in pairs], x.q, x.shift)
    operands = [
        _operand(source, values, units, env) for source, values in _operands(program, index)
    ]
    if isinstance(bend, Extremum):
        a, b = _aligned(operands)
        both = zip(a.numbers, b.numbers, strict=True)
        return Vector(units, [x - y for x, y in both], a.q, a.shift)
    return Vector(units, operands[0].numbers, operands[0].q, operands[0].shift)


def _play(bend: Tournament, x: Vector, rounds: int) -> dict[int, fmpz]:
    """Play the first rounds among the candidates that are known."""
    choose = max if bend.largest else min
    known = dict(zip(x.positions.tolist(), x.numbers, strict=True))
    for k in range(rounds):
        left, right = bend.left[k].tolist(), bend.right[k].tolist()
        after = {
            i: choose(known[a], known[b])
            for i, (a, b) in enumerate(zip(left, right, strict=True))
            if a in known and b in known
        }
        passing = enumerate(bend.passing[k].tolist(), len(left))
        after.update((i, known[p]) for i, p in passing if p in known)
        known = after
    return known


def _operand(
    source: int | None, values: NDArray, rows: Positions, env: Mapping[int, Vector]
) -> Vector:
    """One operand of a CPWL step at some of its outputs."""
    if source is not None:
        x = env[source]
        return Vector(rows, x.at(values[rows]), x.q, x.shift)
    q = env[0].q
    return _shifted(rows, [fmpz(0)] * len(rows), q, 0, values[rows])


def _aligned(operands: list[Vector]) -> list[Vector]:
    """Bring vectors to one denominator."""
    most = max(x.shift for x in operands)
    return [
        Vector(x.positions, [n << (most - x.shift) for n in x.numbers], x.q, most) for x in operands
    ]


def _join(parts: list[tuple[int, Vector]]) -> Vector:
    """Put the heads of a stage side by side."""
    aligned = _aligned([vector for _, vector in parts])
    positions = np.concatenate([first + v.positions for first, v in parts])
    numbers = [n for vector in aligned for n in vector.numbers]
    return Vector(positions, numbers, aligned[0].q, aligned[0].shift)


def _compare(number: fmpz, q: fmpz, shift: int, value: float) -> int:
    """Sign of number / (q 2^shift) - value."""
    if value == 0.0:
        difference = number
    elif np.isinf(value):
        return -1 if value > 0 else 1
    else:
        p, d = value.as_integer_ratio()
        difference = number * d - ((p * q) << shift)
    return int(difference > 0) - int(difference < 0)
