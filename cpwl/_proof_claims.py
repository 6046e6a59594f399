"""A partition's claims on corners, facets and units, held against the proof of its cells."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

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


class _Side(NamedTuple):
    """A side of a cell with vertices inside it: those from its start to its end."""

    cell: int
    row: Row
    vertices: list[int]


class Claims:
    """Follows the proof cell by cell: `choose` and `visit` are what `prove` calls.

    A corner of a claimed loop may lie inside a side of its cell, where it is a corner of a
    neighbour only. The proof knows whole sides; such corners are looked at in `finish`.
    """

    def __init__(self, partition: Partition, network: ExactNetwork) -> None:
        self.partition = partition
        self.network = network
        self.ends = facet_ends(partition)
        self.points: dict[int, tuple[Point, int]] = {}
        self.marked: list[_Side] = []
        self.starts: list[int] = []  # the slots of the present cell at which its sides start
        self.largest = 0.0
        self.allowed = ROUNDING * float(np.abs(partition.domain.corners).max())

    def choose(self, number: int, cell: Cell) -> Sequence[int]:
        """Find the conditions that the cell's facets lie on; facets in one line are one side."""
        p = self.partition
        a, b = p.cell_offsets[number : number + 2]
        found = [self._condition(number, cell, f) for f in p.cell_facets[a:b].tolist()]
        self.starts = list(range(len(found)))
        if p.dim == 2:
            rows = [cell.bounds[i].row for i in found]
            self.starts = [i for i in self.starts if not _same_line(rows[i - 1], rows[i])]
        return [found[i] for i in self.starts]

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
        loop = p.cell_corners[a:b].tolist()
        if p.dim == 1:
            for vertex, point in zip(loop, sides.corners, strict=True):
                self._compare(number, vertex, point)
            return
        # sides[k] runs from slot starts[k] to slot ends[k], where corners[k] is
        ends = [*self.starts[1:], self.starts[0] + len(loop)]
        for start, end, chosen, point in zip(
            self.starts, ends, sides.chosen, sides.corners, strict=True
        ):
            along = [loop[i % len(loop)] for i in range(start, end + 1)]
            self._compare(number, along[-1], point)
            if len(along) > 2:
                self.marked.append(_Side(number, cell.bounds[chosen].row, along))

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
        if not away <= self.allowed:  # or it is NaN
            raise CertificateError(
                number,
                f"vertex {vertex} within {self.allowed:.2g} of {show(point)}, where its sides meet",
                f"it {away:.2g} off",
            )

    def finish(self) -> None:
        """Hold vertices inside sides, and those of no cell, against the rest."""
        for cell, row, vertices in self.marked:
            along = []
            for vertex in vertices:
                known = self.points.get(vertex)
                if known is not None:
                    point, off = known[0], _value(row, known[0]) != 0
                else:  # inside a side of every cell that has it: a mere mark
                    claimed = self.partition.points[vertex]
                    point, away = _exact(claimed), _distance(row, claimed)
                    self.largest, off = max(self.largest, away), not away <= self.allowed
                if off:
                    raise CertificateError(
                        cell, f"vertex {vertex} on one of its sides", f"it at {show(point)}, off it"
                    )
                along.append(fmpq(row[1] * point[0] - row[0] * point[1], point[2]))
            if any(a >= b for a, b in itertools.pairwise(along)):
                raise CertificateError(
                    cell, f"vertices {vertices} in this order on a side", "them in another"
                )
        used = np.zeros(len(self.partition.points), np.bool_)
        used[self.partition.cell_corners] = True
        if not used.all():
            raise CertificateError(
                None, "vertices that are corners of cells", f"vertex {np.argmin(used)} of none"
            )


def _same_line(a: Row, b: Row) -> bool:
    """Whether two rows are positive multiples of each other."""
    if a is b:
        return True
    if a[0] * b[1] != a[1] * b[0] or a[0] * b[2] != a[2] * b[0] or a[1] * b[2] != a[2] * b[1]:
        return False
    return a[0] * b[0] + a[1] * b[1] > 0


def _exact(point: NDArray[np.float64]) -> Point:
    """Return a float64 point exactly."""
    ratios = [x.as_integer_ratio() for x in point.tolist()]
    common = max(d for _, d in ratios)
    return (*(fmpz(n * (common // d)) for n, d in ratios), fmpz(common))


def _distance(row: Row, point: NDArray[np.float64]) -> float:
    """Distance of a float64 point from a line, up to sqrt(2); infinite if it is not finite."""
    if not np.isfinite(point).all():
        return np.inf
    at = _exact(point)
    return int(abs(_value(row, at))) / int(max(map(abs, row[:-1])) * at[-1])


def _value(row: Row, point: Sequence[fmpz | fmpq]) -> fmpz | fmpq:
    """Row at a point in homogeneous coordinates."""
    return sum((x * y for x, y in zip(row, point, strict=True)), fmpz(0))


def _foot(row: Row, point: list[fmpq]) -> list[fmpq]:
    """Foot of the perpendicular from a point to a line."""
    square = sum((x * x for x in row[:-1]), fmpz(0))
    t = _value(row, [*point, fmpq(1)]) / square
    return [*(x - t * a for x, a in zip(point, row[:-1], strict=True)), fmpq(1)]
