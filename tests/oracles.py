"""Rational recursive splitting: the partition of a small network with no rounding anywhere.

Shares no code with the engine and uses none of its ideas: every cell is cut by every knot of every
unit, one after the other, in integer arithmetic on homogeneous coordinates. A row (a, b, c) stands
for a x + b y + c over a denominator that the whole layer shares, a point for (x, y, w) with w > 0,
a knot for its row; the sign of a unit at a corner is the sign of an integer dot product. In 1-D
rows and points lose their middle entry.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

from layers import Layer, Pool, Rational, Scalar

Row = tuple[int, ...]
Point = tuple[Fraction, ...]


@dataclass(frozen=True)
class Cell:
    """One cell: the piece of every unit (pools: the winner), its corners and its affine map."""

    pattern: tuple[int, ...]
    shape: Shape
    rows: tuple[Row, ...]
    denominator: int

    @cached_property
    def corners(self) -> tuple[Point, ...]:
        """Strictly convex and anticlockwise in 2-D, ascending in 1-D."""
        return tuple(tuple(Fraction(x, p[-1]) for x in p[:-1]) for p in self.shape.corners)

    @cached_property
    def volume(self) -> Fraction:
        """Area in 2-D, length in 1-D."""
        if len(self.corners[0]) == 1:
            return self.corners[1][0] - self.corners[0][0]
        turned = (*self.corners[1:], self.corners[0])
        pairs = zip(self.corners, turned, strict=True)
        return sum((p[0] * q[1] - p[1] * q[0] for p, q in pairs), Fraction(0)) / 2

    @cached_property
    def affine(self) -> tuple[tuple[tuple[Fraction, ...], ...], tuple[Fraction, ...]]:
        """(A, b) of the network's output on the cell."""
        exact = [tuple(Fraction(x, self.denominator) for x in row) for row in self.rows]
        return tuple(row[:-1] for row in exact), tuple(row[-1] for row in exact)


class Shape(NamedTuple):
    """Corners and, from each corner to the next, the side's line; in 1-D two ends and no lines."""

    corners: tuple[Row, ...]
    sides: tuple[Row, ...]


class _Values(NamedTuple):
    """The affine maps of one layer's outputs on a cell: integer rows over one denominator."""

    rows: tuple[Row, ...]
    denominator: int


def subdivide(
    layers: Sequence[Layer],
    corners: Sequence[Sequence[Rational]],
    embedding: Sequence[Sequence[Rational]] | None = None,
) -> list[Cell]:
    """Return every cell of a network over a convex domain.

    Parameters
    ----------
    layers : sequence of Layer
        The last one's outputs are the network's.
    corners : (M, P) rationals
        A strictly convex polygon, anticlockwise (P = 2), or the two ends, ascending (P = 1).
    embedding : (E, P + 1) rationals, optional
        The latent's coordinates as affine functions of the slice's; the identity if absent.

    Notes
    -----
    A unit's piece on a cell is the number of its knots below it, where a unit that equals its knot
    on all of the cell is not above it. Takes 0.4 ms a cell for a 20-20-20 network, 1.6 ms for
    64-64-64.
    """
    dim = len(corners[0])
    points = [_integers([Fraction(x) for x in (*corner, 1)])[0] for corner in corners]
    turned = points[1:] + points[:1]
    sides = [_cross(p, q) for p, q in zip(points, turned, strict=True)] if dim == 2 else []
    if embedding is None:
        embedding = [[int(i == j) for j in range(dim + 1)] for i in range(dim)]
    exact = [[Fraction(x) for x in row] for row in embedding]
    denominator = math.lcm(*(x.denominator for row in exact for x in row))
    latent = _Values(tuple(tuple(int(x * denominator) for x in row) for row in exact), denominator)
    prepared = [_Prepared.of(layer) for layer in layers]
    return list(_descend(prepared, Shape(tuple(points), tuple(sides)), (), [latent]))


def _descend(
    layers: list[_Prepared], shape: Shape, pattern: tuple[int, ...], outputs: list[_Values]
) -> Iterator[Cell]:
    """Yield the cells of `shape` that the layers not yet in `outputs` make."""
    if len(outputs) > len(layers):
        yield Cell(pattern, shape, *outputs[-1])
        return
    layer = layers[len(outputs) - 1]
    before = layer.preactivations(outputs)
    split = _split_pools if isinstance(layer.units, Pool) else _split_scalars
    for part, pieces in split(layer, before, shape):
        after = layer.apply(before, pieces)
        yield from _descend(layers, part, pattern + pieces, [*outputs, after])


@dataclass(frozen=True)
class _Prepared:
    """A layer over integers: weight and bias over `denominator`."""

    weight: tuple[Row, ...]
    bias: Row
    denominator: int
    units: Scalar | Pool
    inputs: tuple[int, ...]

    @classmethod
    def of(cls, layer: Layer) -> _Prepared:
        entries = [*layer.bias, *(x for row in layer.weight for x in row)]
        denominator = math.lcm(*(x.denominator for x in entries))
        return cls(
            tuple(tuple(int(x * denominator) for x in row) for row in layer.weight),
            tuple(int(x * denominator) for x in layer.bias),
            denominator,
            layer.units,
            layer.inputs,
        )

    def preactivations(self, outputs: list[_Values]) -> _Values:
        """W x + b, with x the concatenation of the outputs that the layer reads."""
        common = math.lcm(*(outputs[i].denominator for i in self.inputs))
        rows = [
            tuple(x * (common // outputs[i].denominator) for x in row)
            for i in self.inputs
            for row in outputs[i].rows
        ]
        columns = list(zip(*rows, strict=True))
        after = []
        for weights, bias in zip(self.weight, self.bias, strict=True):
            row = [sum(map(int.__mul__, weights, column)) for column in columns]
            row[-1] += bias * common
            after.append(tuple(row))
        return _Values(tuple(after), common * self.denominator)

    def apply(self, before: _Values, pieces: tuple[int, ...]) -> _Values:
        """Return the layer's outputs with every unit on its piece."""
        units = self.units
        if isinstance(units, Pool):
            winners = (group * units.size + piece for group, piece in enumerate(pieces))
            return _Values(tuple(before.rows[i] for i in winners), before.denominator)
        chosen = [_piece(units, piece) for piece in pieces]
        common = math.lcm(*(x.denominator for pair in chosen for x in pair))
        rows = []
        for row, (slope, intercept) in zip(before.rows, chosen, strict=True):
            scaled = [int(slope * common) * x for x in row]
            scaled[-1] += int(intercept * common) * before.denominator
            rows.append(tuple(scaled))
        return _Values(tuple(rows), before.denominator * common)


def _piece(units: Scalar, piece: int) -> tuple[Fraction, Fraction]:
    """Slope and intercept of a piece."""
    if units.period is None:
        return units.slopes[piece], units.intercepts[piece]
    turns, within = divmod(piece, len(units.slopes))
    slope = units.slopes[within]
    return slope, units.intercepts[within] - slope * turns * units.period


def _knots(units: Scalar, row: Row, denominator: int, shape: Shape) -> tuple[int, list[Fraction]]:
    """Piece below the first knot, and the knots ascending; if periodic, those near the cell."""
    if units.period is None:
        return 0, list(units.knots)
    values = [Fraction(_dot(row, p), denominator * p[-1]) for p in shape.corners]
    count = len(units.slopes)
    starts = [Fraction(0), *units.knots]  # piece k of one period begins at starts[k]
    first = math.floor(min(values) / units.period) - 1
    last = math.ceil(max(values) / units.period) + 1
    knots = [turn * units.period + start for turn in range(first, last) for start in starts]
    return first * count - 1, knots


def _split_scalars(
    layer: _Prepared, before: _Values, shape: Shape
) -> Iterator[tuple[Shape, tuple[int, ...]]]:
    assert isinstance(layer.units, Scalar)
    parts: list[tuple[Shape, tuple[int, ...]]] = [(shape, ())]
    for row in before.rows:
        base, knots = _knots(layer.units, row, before.denominator, shape)
        lines = [_minus(row, before.denominator, knot) for knot in knots]
        finer = []
        for part, pieces in parts:
            rest: Shape | None = part
            for passed, line in enumerate(lines):
                if rest is None:
                    break
                below, rest = _cut(rest, line)
                if below is not None:
                    finer.append((below, (*pieces, base + passed)))
            if rest is not None:
                finer.append((rest, (*pieces, base + len(lines))))
        parts = finer
    yield from parts


def _split_pools(
    layer: _Prepared, before: _Values, shape: Shape
) -> Iterator[tuple[Shape, tuple[int, ...]]]:
    """Cells of the winners: an earlier row keeps what it shares with a later one."""
    assert isinstance(layer.units, Pool)
    size = layer.units.size
    parts: list[tuple[Shape, tuple[int, ...]]] = [(shape, ())]
    for start in range(0, len(before.rows), size):
        rows = before.rows[start : start + size]
        finer = []
        for part, pieces in parts:
            for winner, row in enumerate(rows):
                rest: Shape | None = part
                for other, against in enumerate(rows):
                    if rest is None or other == winner:
                        continue
                    lead = tuple(x - y for x, y in zip(row, against, strict=True))
                    if other < winner:
                        rest = _cut(rest, lead)[1]
                    else:
                        rest = _cut(rest, tuple(-x for x in lead))[0]
                if rest is not None:
                    finer.append((rest, (*pieces, winner)))
        parts = finer
    yield from parts


def _cut(shape: Shape, line: Row) -> tuple[Shape | None, Shape | None]:
    """Return the parts where the line's form is <= 0 and > 0, None where that has no interior."""
    signs = [_sign(_dot(line, point)) for point in shape.corners]
    if max(signs) <= 0:
        return shape, None
    if min(signs) >= 0:
        return None, shape
    if len(line) == 2:
        low, high = shape.corners
        middle = _normal((-line[1], line[0]))
        parts = (Shape((low, middle), ()), Shape((middle, high), ()))
        return parts if signs[0] < 0 else (parts[1], parts[0])
    halves = []
    for side in (-1, 1):
        corners: list[Row] = []
        sides: list[Row] = []
        for i, (point, edge) in enumerate(zip(shape.corners, shape.sides, strict=True)):
            here, there = signs[i] * side, signs[(i + 1) % len(signs)] * side
            if here >= 0:
                corners.append(point)
                # leaving exactly at a corner: the next side is the cut
                sides.append(edge if here > 0 or there > 0 else line)
            if here * there < 0:
                corners.append(_normal(_cross(edge, line)))
                sides.append(edge if there > 0 else line)
        halves.append(Shape(tuple(corners), tuple(sides)))
    return halves[0], halves[1]


def adjacency(cells: Sequence[Cell]) -> set[tuple[int, int]]:
    """Return the pairs (i < j) of cells that share a segment of positive length (1-D: a point)."""
    along: dict[Row, list[tuple[Fraction, Fraction, int]]] = defaultdict(list)
    pairs: set[tuple[int, int]] = set()
    if len(cells[0].corners[0]) == 1:
        at = defaultdict(list)
        for i, cell in enumerate(cells):
            for corner in cell.corners:
                at[corner].append(i)
        return {(min(two), max(two)) for two in at.values() if len(two) == 2}
    for i, cell in enumerate(cells):
        turned = (*cell.corners[1:], cell.corners[0])
        for p, q, side in zip(cell.corners, turned, cell.shape.sides, strict=True):
            line = _primitive(side)
            axis = 0 if line[1] else 1
            along[line].append((min(p[axis], q[axis]), max(p[axis], q[axis]), i))
    for sides in along.values():
        sides.sort()
        open_sides: list[tuple[Fraction, int]] = []
        for low, high, i in sides:
            open_sides = [(end, j) for end, j in open_sides if end > low]
            pairs.update((min(i, j), max(i, j)) for _, j in open_sides)
            open_sides.append((high, i))
    return pairs


def _dot(line: Row, point: Row) -> int:
    return sum(map(int.__mul__, line, point))


def _minus(row: Row, denominator: int, knot: Fraction) -> Row:
    """Return an integer form with the sign of row / denominator - knot."""
    scaled = [x * knot.denominator for x in row]
    scaled[-1] -= knot.numerator * denominator
    return tuple(scaled)


def _cross(p: Row, q: Row) -> Row:
    """Join two points by a line, or meet two lines in a point."""
    return (
        p[1] * q[2] - p[2] * q[1],
        p[2] * q[0] - p[0] * q[2],
        p[0] * q[1] - p[1] * q[0],
    )


def _normal(point: Row) -> Row:
    """Bring a point to lowest terms and a positive last entry."""
    common = math.gcd(*point)
    common = common if point[-1] > 0 else -common
    return tuple(x // common for x in point)


def _primitive(line: Row) -> Row:
    """Bring a line to lowest terms and a positive first non-zero entry."""
    common = math.gcd(*line)
    leading = next(x for x in line if x)
    common = common if leading > 0 else -common
    return tuple(x // common for x in line)


def _integers(values: Sequence[Fraction]) -> tuple[Row, int]:
    """Integers over the least common denominator."""
    common = math.lcm(*(x.denominator for x in values))
    return tuple(int(x * common) for x in values), common


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)
