"""A partition's claims on corners, facets and units, held against the proof of its cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from flint import fmpq, fmpz
from numpy.typing import NDArray

from cpwl._proof_arrays import facet_ends
from cpwl._proof_cells import Cell, Row
from cpwl._proof_network import CertificateError, ExactNetwork, describe
from cpwl._proof_tiling import Point, Sides, rounded, show
from cpwl.partition import Partition

ROUNDING = 2.0**-40
"""How far a float64 vertex may be from the exact one, on each axis: this times the largest
coordinate of the domain's corners."""


class Claims:
    """Follows the proof cell by cell: `choose` and `visit` are what `prove` calls.

    Every facet is a side. No vertex lies inside a side of a cell: knots of continuous functions do
    not end, and those that max-pooling makes without effect end in corners.
    """

    def __init__(self, partition: Partition, network: ExactNetwork) -> None:
        self.partition = partition
        self.network = network
        self.ends = facet_ends(partition)
        self.points: dict[int, tuple[Point, int]] = {}
        self.largest = 0.0
        self.allowed = ROUNDING * float(np.abs(partition.domain.corners).max())

    def choose(self, number: int, cell: Cell) -> Sequence[int]:
        """Find the conditions that the cell's facets lie on."""
        p = self.partition
        a, b = p.cell_offsets[number : number + 2]
        return [self._condition(number, cell, f) for f in p.cell_facets[a:b].tolist()]

    def _condition(self, number: int, cell: Cell, facet: int) -> int:
        """Find the condition whose line is a facet's, by the unit that it is labelled with."""
        unit = int(self.partition.facet_unit[facet])
        rows = {
            i: bound.row
            for i, bound in enumerate(cell.bounds)
            if bound.unit == unit and any(bound.row[:-1])
        }
        if not rows:
            raise CertificateError(
                number,
                f"facet {facet} on a knot of {describe(self.network, unit)}, its label",
                "no such knot beside the cell",
            )
        if len(rows) == 1:
            return next(iter(rows))
        ends = self.partition.points[self.ends[facet]]
        away = {i: max(_distance(row, end) for end in ends) for i, row in rows.items()}
        near = [i for i in rows if away[i] <= self.allowed]
        middle = [fmpq(*x.as_integer_ratio()) for x in ends.mean(axis=0).tolist()]
        for i in near:  # of lines that float64 cannot tell apart, the one that bounds the cell
            foot = _foot(rows[i], middle)
            if all(_value(rows[j], foot) >= 0 for j in near):
                return i
        return min(away, key=lambda i: away[i])

    def visit(self, number: int, cell: Cell, sides: Sides) -> None:
        """Compare the exact corners of a cell with the claimed ones."""
        p = self.partition
        a, b = p.cell_offsets[number : number + 2]
        loop = p.cell_corners[a:b]
        if p.dim == 2:  # sides 0 and 1 meet where facet 1 starts
            loop = np.roll(loop, -1)
        for vertex, point in zip(loop.tolist(), sides.corners, strict=True):
            self._compare(number, vertex, point)

    def _compare(self, number: int, vertex: int, point: Point) -> None:
        """Require a vertex to be this exact point, whichever cell says so."""
        known, other = self.points.setdefault(vertex, (point, number))
        if known is not point and known != point:
            raise CertificateError(
                number,
                f"vertex {vertex} at {show(known)} as in cell {other}",
                f"it at {show(point)}, another point in exact arithmetic",
            )
        claimed = self.partition.points[vertex]
        away = float(np.abs(claimed - rounded(point)).max())
        self.largest = max(self.largest, away)
        if away > self.allowed:
            raise CertificateError(
                number,
                f"vertex {vertex} within {self.allowed:.2g} of {show(point)}, where its sides meet",
                f"it {away:.2g} off",
            )


def _exact(point: NDArray[np.float64]) -> Point:
    """Return a float64 point exactly."""
    ratios = [x.as_integer_ratio() for x in point.tolist()]
    common = max(d for _, d in ratios)
    return (*(fmpz(n * (common // d)) for n, d in ratios), fmpz(common))


def _distance(row: Row, point: NDArray[np.float64]) -> float:
    """Distance of a float64 point from a line, up to a factor of sqrt(2)."""
    at = _exact(point)
    try:
        return int(abs(_value(row, at))) / int(max(map(abs, row[:-1])) * at[-1])
    except OverflowError:  # beyond float64: far away
        return np.inf


def _value(row: Row, point: Sequence[fmpz | fmpq]) -> fmpz | fmpq:
    """Row at a point in homogeneous coordinates."""
    return sum((x * y for x, y in zip(row, point, strict=True)), fmpz(0))


def _foot(row: Row, point: list[fmpq]) -> list[fmpq]:
    """Foot of the perpendicular from a point to a line."""
    square = sum((x * x for x in row[:-1]), fmpz(0))
    t = _value(row, [*point, fmpq(1)]) / square
    return [*(x - t * a for x, a in zip(point, row[:-1], strict=True)), fmpq(1)]
