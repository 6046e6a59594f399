"""A partition's claims on corners, facets and units, held against the proof of its cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from flint import fmpz

from cpwl.errors import CertificateError
from cpwl.partition import Partition
from cpwl.proof.cells import Cell, Conditions, Row
from cpwl.proof.exact_network import ExactNetwork, describe
from cpwl.proof.tiling import Point, Sides, meet, rounded, show

ROUNDING = 2.0**-37
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
        self.domain_sides = len(partition.domain.exact_corners)
        self.points: dict[int, tuple[Point, int]] = {}
        self.largest = 0.0
        self.allowed = ROUNDING * float(np.abs(partition.domain.corners).max())

    def choose(self, number: int, cell: Cell) -> Sequence[int]:
        """Cut the domain by the units that the cell's facets are labelled with; find the facets.

        Nothing is taken from the claimed coordinates: in a thin cell they cannot tell sides apart.
        """
        p = self.partition
        a, b = p.cell_offsets[number : number + 2]
        labels = p.facet_unit[p.cell_facets[a:b]].tolist()
        sides = list(range(self.domain_sides))
        corners = meet(number, cell.bounds, sides, p.dim)
        mine = np.isin(cell.bounds.units, labels) & (cell.bounds.units >= 0)
        for i in np.flatnonzero(mine).tolist():
            bound = cell.bounds[i]
            values = [_value(bound.row, corner) for corner in corners]
            if min(values) < 0:
                if max(values) <= 0:
                    named = describe(self.network, bound.unit)
                    raise CertificateError(
                        number,
                        f"a cell that {named}, the unit of one of its facets, leaves open",
                        "nothing on its piece there",
                    )
                sides = _cut(sides, i, [value > 0 for value in values])
                corners = meet(number, cell.bounds, sides, p.dim)
        if len(sides) != b - a:
            raise CertificateError(
                number,
                f"{len(sides)} corners, as many as the knots beside it make",
                f"{b - a}",
            )
        return self._aligned(number, cell.bounds, labels, sides, corners)

    def _aligned(
        self, number: int, bounds: Conditions, labels: list[int], sides: list[int], at: list[Point]
    ) -> list[int]:
        """Turn the sides so that the first is the first facet's: by distance and the labels."""
        p = self.partition
        n, start = len(sides), int(p.cell_offsets[number])
        claimed = p.points[p.cell_corners[start : start + n]]
        # side k ends in exact corner k; facet k in claimed corner k + 1 (1-D: k)
        exact = np.roll([rounded(corner) for corner in at], p.dim - 1, axis=0)
        turns = range(n if p.dim == 2 else 1)
        away = [float(np.abs(claimed - np.roll(exact, -turn, axis=0)).max()) for turn in turns]
        for turn in sorted(turns, key=away.__getitem__):
            turned = sides[turn:] + sides[:turn]
            if all(_on_knot(bounds, side, unit) for side, unit in zip(turned, labels, strict=True)):
                return turned
        turn = int(np.argmin(away))
        turned = sides[turn:] + sides[:turn]
        k = next(k for k in range(n) if not _on_knot(bounds, turned[k], labels[k]))
        raise CertificateError(
            number,
            f"facet {p.cell_facets[start + k]} on a knot of {describe(self.network, labels[k])}, "
            "its label",
            "no such knot along it",
        )

    def visit(self, number: int, cell: Cell, sides: Sides) -> None:
        """Compare the exact corners of a cell with the claimed ones."""
        p = self.partition
        a, b = p.cell_offsets[number : number + 2]
        loop = np.roll(p.cell_corners[a:b], 1 - p.dim)
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


def _cut(sides: list[int], new: int, inside: list[bool]) -> list[int]:
    """Sides of what a condition leaves; side k ends in corner k, and `inside` is about corners.

    Corners on the condition's line count as outside: sides that only touch it there go.
    """
    if len(sides) == 2:  # 1-D: a lower and an upper end
        return [sides[0] if inside[0] else new, sides[1] if inside[1] else new]
    left = []
    for k, side in enumerate(sides):
        if inside[k - 1] or inside[k]:
            left.append(side)
            if not inside[k]:
                left.append(new)
    return left


def _on_knot(bounds: Conditions, side: int, unit: int) -> bool:
    """Whether a side lies on the line of one of a unit's conditions."""
    if bounds.units[side] == unit:
        return True
    row = bounds[side].row
    mine = np.flatnonzero(bounds.units == unit).tolist()
    return any(_same_line(bounds[i].row, row) for i in mine)


def _same_line(a: Row, b: Row) -> bool:
    """Whether two rows are positive multiples of each other."""
    pivot = next((k for k, x in enumerate(a[:-1]) if x), None)
    if pivot is None or a[pivot] * b[pivot] <= 0:
        return False
    return all(x * b[pivot] == y * a[pivot] for x, y in zip(a, b, strict=True))


def _value(row: Row, point: Point) -> fmpz:
    """Row at a point, times something positive."""
    return sum((x * y for x, y in zip(row, point, strict=True)), fmpz(0))
