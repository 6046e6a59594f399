"""The half-planes that a pattern stands for, in exact arithmetic.

A *row* (a_1, ..., a_P, c) of integers is the affine function s -> a s + c of the slice coordinates,
up to a positive factor. A pattern makes every unit an affine function; its cell is where each of
these lies between the two breakpoints that its piece names. A match of a contest that is not lost
on the way to an output asks that its winner is not beaten by any entry of the other side, whatever
the matches there say: those are without effect.
"""

from __future__ import annotations

import itertools
import operator
from fractions import Fraction
from typing import NamedTuple, Protocol

import numpy as np
from flint import fmpz, fmpz_mat
from numpy.typing import NDArray

from cpwl.errors import CertificateError
from cpwl.proof.exact_network import (
    Affine,
    Bend,
    Contest,
    ExactNetwork,
    Matrix,
    Pieces,
    Step,
    Wave,
    describe,
    sources,
    units,
)

Row = list[fmpz]

LOST = -(2**31)  # the piece of a unit without effect, in patterns that are compared


class ExactDomain(NamedTuple):
    """A convex domain and its place in the input.

    Attributes
    ----------
    corners : tuple of tuple of Fraction
        Anticlockwise (2-D) or ascending (1-D).
    origin : (E,) float64
    basis : (P, E) float64
    """

    corners: tuple[tuple[Fraction, ...], ...]
    origin: NDArray[np.float64]
    basis: NDArray[np.float64]


class Bound(NamedTuple):
    """A condition ``row`` >= 0 on a cell.

    Attributes
    ----------
    row : list of fmpz
    unit : int
        Whose it is; -1 for a side of the domain.
    strict : bool
        Whether the row must not vanish on the whole cell: a unit that equals its breakpoint is on
        the piece below.
    """

    row: Row
    unit: int
    strict: bool


class Conditions(Protocol):
    """All conditions of a pattern, the domain's sides first, and the unit of each: -1 for sides."""

    @property
    def units(self) -> NDArray[np.int64]:
        """Unit of each condition."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Bound: ...

    def vanished(self) -> int | None:
        """Find a strict condition that vanishes identically."""
        ...

    def hold(self, corners: list[tuple[fmpz, ...]]) -> tuple[tuple[int, int] | None, int]:
        """Find a condition and a corner where it does not hold; count those that are equal."""
        ...


class Cell(NamedTuple):
    """The conditions of a pattern; ``key`` is equal for patterns that differ in lost units only."""

    bounds: Conditions
    key: bytes


class _Listed(list[Bound]):
    """Conditions whose rows are at hand."""

    units: NDArray[np.int64]

    def vanished(self) -> int | None:
        return next((i for i, b in enumerate(self) if b.strict and not any(b.row)), None)

    def hold(self, corners: list[tuple[fmpz, ...]]) -> tuple[tuple[int, int] | None, int]:
        at = fmpz_mat([list(corner) for corner in corners]).transpose()
        values = (fmpz_mat([bound.row for bound in self]) * at).entries()
        if min(values) < 0:
            place = next(i for i, value in enumerate(values) if value < 0)
            return divmod(place, len(corners)), 0
        return None, sum(value == 0 for value in values)


class _Value(NamedTuple):
    """Rows over the common denominator 2^shift: the exact values of a step on a cell."""

    rows: list[Row]
    shift: int


class _Weights(NamedTuple):
    """A matrix over the common denominator 2^shift; `dense`, or ragged columns and numbers."""

    shift: int
    dense: fmpz_mat | None
    columns: list[list[int]]
    numbers: list[list[int]]


class Patterns:
    """Evaluates the patterns of a network; patterns in lexicographic order share their beginnings.

    Parameters
    ----------
    network : ExactNetwork
    origin : (E,) float64
    basis : (P, E) float64
    sides : list of rows
        Conditions of the domain, which come before those of the units.
    """

    def __init__(
        self,
        network: ExactNetwork,
        origin: NDArray[np.float64],
        basis: NDArray[np.float64],
        sides: list[Row],
    ) -> None:
        self.network = network
        self.zero = [fmpz(0)] * (len(basis) + 1)
        self.sides = [Bound(row, -1, False) for row in sides]
        numbers, shift = integers(np.concatenate([basis, origin.reshape(1, -1)]).T)
        self.values = [_Value([list(map(fmpz, row)) for row in numbers], shift)]
        self.values += [_Value([], 0)] * len(network.steps)
        self.bounds: list[list[Bound]] = [[] for _ in network.steps]
        self.lost: list[list[int]] = [[] for _ in network.steps]
        self.weights = [_prepare(step) for step in network.steps]
        # 1 + the last unit that a value depends on
        self.reach = [0]
        for step in network.steps:
            last = max((self.reach[source] for source in sources(step)), default=0)
            self.reach.append(max([last, *(units(step) + 1).tolist()]))

    def cell(self, number: int, pieces: NDArray[np.integer], first: int) -> Cell:
        """Conditions of a pattern that differs from the one before from unit `first` on."""
        for index, step in enumerate(self.network.steps):
            if self.reach[index + 1] <= first and self.values[index + 1].rows:
                continue
            if isinstance(step, Affine):
                self.values[index + 1] = self._affine(step, self.weights[index])
            else:
                self._bend(number, index, step, pieces)
        bounds = _Listed(self.sides)
        for more in self.bounds:
            bounds += more
        bounds.units = np.array([bound.unit for bound in bounds], np.int64)
        key = pieces.astype(np.int32)
        for lost in self.lost:
            key[lost] = LOST
        return Cell(bounds, key.tobytes())

    def _affine(self, step: Affine, weights: list[_Weights]) -> _Value:
        """Apply an affine step."""
        total = _Value([self.zero] * len(step.offset), 0)
        for part, (shift, dense, columns, numbers) in zip(step.parts, weights, strict=False):
            rows, below = self.values[part.source]
            if dense is not None:
                product = (dense * fmpz_mat(rows)).tolist()
            else:
                product = [_combine(w, c, rows) for c, w in zip(columns, numbers, strict=True)]
            made = _Value(product, shift + below)
            total = made if part is step.parts[0] else _sum(total, made)
        return _moved(total, weights[-1]) if len(weights) > len(step.parts) else total

    def _bend(self, cell: int, index: int, step: Bend, pieces: NDArray[np.integer]) -> None:
        """Choose the pieces of a step's units; note the conditions for that."""
        source = self.values[step.source]
        mine = pieces[units(step)].tolist()
        try:
            if isinstance(step, Contest):
                rows, self.bounds[index], self.lost[index] = _contest(step, source.rows, mine)
                value = _Value(rows, source.shift)
            elif isinstance(step, Wave):
                value, self.bounds[index] = _wave(step, source, mine)
            else:
                value, self.bounds[index] = _pieces(step, source, mine)
            self.values[index + 1] = value
        except NoSuchPieceError as fault:
            named = describe(self.network, fault.unit)
            raise CertificateError(
                cell, f"{named} on a piece that it has", f"piece {fault.piece}"
            ) from None


class NoSuchPieceError(Exception):
    """A unit is said to be on a piece that it does not have."""

    def __init__(self, unit: int, piece: int) -> None:
        self.unit, self.piece = unit, piece


def side_rows(corners: tuple[tuple[Fraction, ...], ...]) -> list[Row]:
    """Rows that are >= 0 on the domain: between corners i and i + 1 (2-D), lower and upper end."""
    if len(corners[0]) == 1:
        (low,), (high,) = corners
        return [_whole([Fraction(1), -low]), _whole([Fraction(-1), high])]
    rows = []
    for (x, y), (u, v) in zip(corners, corners[1:] + corners[:1], strict=True):
        rows.append(_whole([y - v, u - x, x * v - y * u]))
    return rows


def _whole(row: list[Fraction]) -> Row:
    """Multiply a row by its common denominator."""
    common = fmpz(1)
    for x in row:
        common = common.lcm(x.denominator)
    return [x.numerator * (common // x.denominator) for x in row]


def integers(values: NDArray[np.float64]) -> tuple[list[list[int]], int]:
    """Write a float64 matrix as integers over 2^shift."""
    ratios = [[x.as_integer_ratio() for x in row] for row in values.tolist()]
    shift = max((d.bit_length() - 1 for row in ratios for _, d in row), default=0)
    return [[p << (shift - d.bit_length() + 1) for p, d in row] for row in ratios], shift


def _prepare(step: Step) -> list[_Weights]:
    """Integers of an affine step's matrices, and of its offset if it has one."""
    if not isinstance(step, Affine):
        return []
    made = []
    for _, matrix in step.parts:
        if not isinstance(matrix, Matrix):
            raise TypeError("a convolution whose matrix is not listed")  # see tiling.prove
        (numbers,), shift = integers(matrix.values.reshape(1, -1))
        ends = np.cumsum(matrix.counts)[:-1]
        columns = [part.tolist() for part in np.split(matrix.columns, ends)]
        cuts = [0, *ends.tolist(), len(numbers)]
        rows = [numbers[a:b] for a, b in itertools.pairwise(cuts)]
        dense = None
        if 2 * len(numbers) > matrix.shape[0] * matrix.shape[1]:
            table = np.zeros(matrix.shape, object)
            table[np.repeat(np.arange(len(rows)), matrix.counts), matrix.columns] = numbers
            dense, columns, rows = fmpz_mat(table.tolist()), [], []
        made.append(_Weights(shift, dense, columns, rows))
    if step.offset.any() or not step.parts:
        numbers, shift = integers(step.offset.reshape(-1, 1))
        made.append(_Weights(shift, None, [], numbers))
    return made


def _combine(weights: list[int], columns: list[int], rows: list[Row]) -> Row:
    """Weighted sum of some rows."""
    if len(columns) == 1 and weights[0] == 1:
        return rows[columns[0]]
    picked = [rows[j] for j in columns]
    width = range(len(rows[0]))
    return [sum(map(operator.mul, weights, [row[k] for row in picked]), fmpz(0)) for k in width]


def _lift(value: _Value, shift: int) -> list[Row]:
    """Rows over a larger denominator."""
    up = shift - value.shift
    return value.rows if up == 0 else [[x << up for x in row] for row in value.rows]


def _sum(a: _Value, b: _Value) -> _Value:
    """Add two values."""
    shift = max(a.shift, b.shift)
    pairs = zip(_lift(a, shift), _lift(b, shift), strict=True)
    return _Value([[x + y for x, y in zip(p, q, strict=True)] for p, q in pairs], shift)


def _moved(value: _Value, offset: _Weights) -> _Value:
    """Add constants."""
    shift = max(value.shift, offset.shift)
    up = shift - offset.shift
    rows = _lift(value, shift)
    return _Value(
        [[*row[:-1], row[-1] + (b << up)] for row, (b,) in zip(rows, offset.numbers, strict=True)],
        shift,
    )


def between(row: Row, shift: int, knot: float | Fraction, sign: int) -> Row:
    """Row of sign * (value - knot), the knot an integer over a power of two."""
    if knot:
        p, d = knot.as_integer_ratio()
        down = d.bit_length() - 1
        lift = max(0, down - shift)
        row = [x << lift for x in row]
        row[-1] -= fmpz(p) << (shift + lift - down)
    return row if sign > 0 else [-x for x in row]


def _pieces(step: Pieces, source: _Value, chosen: list[int]) -> tuple[_Value, list[Bound]]:
    """Apply the chosen pieces of scalar units."""
    knots = len(step.points)
    points = step.points.T.tolist()
    bounds: list[Bound] = []
    for j, (row, piece, points_here) in enumerate(zip(source.rows, chosen, points, strict=True)):
        unit = step.first_unit + j
        below = points_here[piece - 1] if 0 < piece <= knots else -np.inf
        above = points_here[piece] if 0 <= piece < knots else np.inf
        if not 0 <= piece <= knots or below == np.inf or above == -np.inf:
            raise NoSuchPieceError(unit, piece)
        if below != -np.inf:
            bounds.append(Bound(between(row, source.shift, below, 1), unit, True))
        if above != np.inf:
            bounds.append(Bound(between(row, source.shift, above, -1), unit, False))
    every = np.arange(len(chosen))
    slopes, offsets = step.slopes[chosen, every], step.offsets[chosen, every]
    if not (np.isfinite(slopes).all() and np.isfinite(offsets).all()):
        wrong = int(np.argmin(np.isfinite(slopes) & np.isfinite(offsets)))
        raise NoSuchPieceError(step.first_unit + wrong, chosen[wrong])
    return _scaled(source, slopes, offsets), bounds


def _scaled(source: _Value, slopes: NDArray, offsets: NDArray) -> _Value:
    """Multiply row by row, and add."""
    (numbers,), shift = integers(slopes.reshape(1, -1))
    zero = [fmpz(0)] * len(source.rows[0])
    rows = [
        row if w == 1 else [w * x for x in row] if w else zero
        for w, row in zip(numbers, source.rows, strict=True)
    ]
    value = _Value(rows, source.shift + shift)
    if not offsets.any():
        return value
    constants, down = integers(offsets.reshape(-1, 1))
    return _moved(value, _Weights(down, None, [], constants))


def _wave(step: Wave, source: _Value, chosen: list[int]) -> tuple[_Value, list[Bound]]:
    """Apply the chosen pieces of triangle waves."""
    half, phase = Fraction(step.period) / 2, Fraction(step.phase)
    scale, offset = Fraction(step.scale), Fraction(step.offset)
    bounds: list[Bound] = []
    lines = []
    for j, (row, k) in enumerate(zip(source.rows, chosen, strict=True)):
        below, above = (m * half - phase for m in (k, k + 1))
        bounds.append(Bound(between(row, source.shift, below, 1), step.first_unit + j, True))
        bounds.append(Bound(between(row, source.shift, above, -1), step.first_unit + j, False))
        slope = scale if k % 2 else -scale
        lines.append((slope, offset - slope * ((k + (k + 1) % 2) * half - phase)))
    shift = max(x.denominator.bit_length() - 1 for line in lines for x in line)
    wide = _lift(source, max(source.shift, shift))
    total = max(source.shift, shift) + shift
    rows = []
    for row, (slope, intercept) in zip(wide, lines, strict=True):
        made = [x * int(slope * 2**shift) for x in row]
        made[-1] += int(intercept * 2**total)
        rows.append(made)
    return _Value(rows, total), bounds


def winners(step: Contest, entries: int, chosen: list[int]) -> list[int]:
    """Return the entry that stands at every node of a contest: itself, or the match's winner."""
    leaf = list(range(entries))
    sides = zip(step.left.tolist(), step.right.tolist(), strict=True)
    for (left, right), unit, piece in zip(sides, step.units.tolist(), chosen, strict=True):
        if piece not in (0, 1):
            raise NoSuchPieceError(unit, piece)
        leaf.append(leaf[left if (piece == 1) == step.largest else right])
    return leaf


class Match(NamedTuple):
    """Condition of a unit of a contest: an entry is not below another one, or above it."""

    above: int
    below: int
    unit: int
    strict: bool


def play(
    step: Contest, entries: int, chosen: list[int]
) -> tuple[list[Match], list[int], list[int]]:
    """Play all matches: conditions, the units without effect, and the entries that are put out."""
    sides = list(zip(step.left.tolist(), step.right.tolist(), strict=True))
    numbers = step.units.tolist()
    leaf = winners(step, entries, chosen)
    counts = np.zeros(entries + len(sides), np.bool_)
    counts[step.outputs] = True
    found: list[Match] = []
    lost: list[int] = []
    for match in range(len(sides) - 1, -1, -1):
        if not counts[entries + match]:
            lost.append(numbers[match])
            continue
        left, right = sides[match]
        wins, loses = (left, right) if (chosen[match] == 1) == step.largest else (right, left)
        counts[wins] = True
        best = leaf[wins]
        waiting = [loses]
        while waiting:
            other = waiting.pop()
            if other >= entries:
                waiting += sides[other - entries]
                continue
            above, below = (best, other) if step.largest else (other, best)
            found.append(Match(above, below, numbers[match], chosen[match] == 1))
    return found, lost, [leaf[node] for node in step.outputs.tolist()]


def _contest(
    step: Contest, rows: list[Row], chosen: list[int]
) -> tuple[list[Row], list[Bound], list[int]]:
    """Play all matches: winning rows, conditions, and the units without effect."""
    found, lost, outputs = play(step, len(rows), chosen)
    bounds = []
    for match in found:
        row = [x - y for x, y in zip(rows[match.above], rows[match.below], strict=True)]
        bounds.append(Bound(row, match.unit, match.strict))
    return [rows[entry] for entry in outputs], bounds, lost
