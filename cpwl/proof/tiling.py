"""The proof itself: cells of distinct patterns, in the domain, whose areas add up to the domain's.

Why this is a proof. Let a cell claim a pattern and a polygon.

1. At every corner of the polygon every condition of the pattern (`_proof_cells`) holds, exactly.
   They are affine, so they hold on the polygon, which also lies in the domain.
2. No condition that has to be strict vanishes identically, so in the polygon's interior all strict
   ones are strict. Taking units stage by stage, every interior point is on the pattern's pieces.
3. The triangles that join the first corner to the sides have positive orientation; since all
   corners lie on one side of a line through the first one, they do not overlap. The polygon is
   their union, and its area the sum of theirs.
4. Patterns are distinct (apart from units without effect, which are left out), so by 2 no two
   interiors meet.
5. The areas sum to the area of the domain. By 1 and 4 the polygons cover it, up to their sides.

So every pattern that occurs on an open set is in the list, and its polygon is all of its cell. In
1-D read interval for polygon and length for area.

Without 5, for some of the cells: the sides lie on conditions of the pattern, and no point outside
of the polygon meets these. So a polygon is all of its pattern's cell, whatever is beside it.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from fractions import Fraction
from math import inf
from typing import NamedTuple

import numpy as np
from flint import fmpq, fmpz
from numpy.typing import NDArray
from tqdm import tqdm

from cpwl.errors import CertificateError
from cpwl.proof.cells import Bound, Cell, Conditions, ExactDomain, Patterns, side_rows
from cpwl.proof.exact_network import ExactNetwork, describe, has_convolutions
from cpwl.proof.modular_cells import ModularPatterns
from cpwl.proof.place import nearest

Point = tuple[fmpz, ...]
"""A point in lowest terms: numerators, then their common denominator, which is positive."""


class Proven(NamedTuple):
    """What has been proven.

    Attributes
    ----------
    cells : list of int
        Those that were proven.
    points : int
        Distinct corners of cells.
    signs : int
        Conditions decided at a corner.
    ties : int
        Those among them that hold with equality.
    area : Fraction
        Of the domain (length in 1-D).
    share : float
        Of the area that the cells cover; 1.0 is exact, and the others are rounded.
    """

    cells: list[int]
    points: int
    signs: int
    ties: int
    area: Fraction
    share: float


class Sides(NamedTuple):
    """Sides of a cell in order, as numbers of its conditions; consecutive ones meet in corners."""

    chosen: Sequence[int]
    corners: list[Point]


def prove(
    network: ExactNetwork,
    domain: ExactDomain,
    pieces: NDArray[np.integer],
    choose: Callable[[int, Cell], Sequence[int]],
    visit: Callable[[int, Cell, Sides], None],
    *,
    partial: bool = False,
    seconds: float = inf,
    progress: bool,
) -> Proven:
    """Prove that patterns (C, units) and the sides that `choose` names tile the domain.

    `visit` is called with every cell whose polygon has been proven to lie in its pattern's cell.
    ``partial`` patterns need not cover the domain, nor do those that were proven when time is up.

    Raises
    ------
    CertificateError
        Naming the cell.
    """
    if len(pieces) == 0:
        raise CertificateError(None, "at least one cell", "none")
    order, first = lexicographic(pieces)
    outer = side_rows(domain.corners)
    kind = ModularPatterns if has_convolutions(network) else Patterns
    patterns = kind(network, domain.origin, domain.basis, outer)
    seen: dict[bytes, int] = {}
    border = _Border(len(outer))
    signs = ties = 0
    bar = tqdm(order.tolist(), desc="certify", unit="cell", disable=not progress)
    done: list[int] = []
    end = time.monotonic() + seconds
    for number, start in zip(bar, first, strict=True):
        if done and time.monotonic() > end:
            bar.close()
            break
        cell = patterns.cell(number, pieces[number], start)
        chosen = choose(number, cell)
        sides = Sides(chosen, meet(number, cell.bounds, chosen, len(domain.basis)))
        ties += _hold(network, number, pieces[number], cell.bounds, sides.corners)
        signs += len(cell.bounds) * len(sides.corners)
        other = seen.setdefault(cell.key, number)
        if other != number:
            raise CertificateError(number, "a pattern of its own", f"that of cell {other} again")
        visit(number, cell, sides)
        border.add(number, sides)
        done.append(number)
    area = _area(domain)
    share = 1.0
    if partial or len(done) < len(pieces):
        share = border.share(area)
    else:
        covered = border.area()
        if covered != area:
            raise border.hole(area - covered)
    return Proven(done, len(border.number), signs, ties, area, share)


def lexicographic(pieces: NDArray[np.integer]) -> tuple[NDArray[np.int64], list[int]]:
    """Order the patterns; say where each first differs from the one before (the first: at 0)."""
    varies = np.flatnonzero(pieces.min(axis=0) != pieces.max(axis=0))
    order = np.arange(len(pieces))
    if len(varies):
        order = np.lexsort(pieces[:, varies[::-1]].T)
    first = [0]
    for a, b in itertools.pairwise(order):
        differ = pieces[a, varies] != pieces[b, varies]
        first.append(int(varies[np.argmax(differ)]) if differ.any() else pieces.shape[1])
    return order, first


def meet(cell: int, bounds: Conditions, chosen: Sequence[int], dim: int) -> list[Point]:
    """Corners of a cell: corner i lies on sides i and i + 1 (1-D: on side i)."""
    if not all(0 <= i < len(bounds) for i in chosen):
        raise CertificateError(cell, f"sides below {len(bounds)}", f"{max(chosen)}")
    if dim == 1:
        if len(chosen) != 2:
            raise CertificateError(cell, "two ends", f"{len(chosen)}")
        ends = []
        for i, sign in zip(chosen, (1, -1), strict=True):
            a, b = bounds[i].row
            if a * sign <= 0:
                raise CertificateError(cell, "a lower and an upper end", "two of one kind")
            ends.append(_lowest((-b * sign, a * sign)))
        return ends
    if len(chosen) < 3:
        raise CertificateError(cell, "at least three sides", f"{len(chosen)}")
    rows = [bounds[i].row for i in chosen]
    corners = []
    for i, (p, q) in enumerate(zip(rows, rows[1:] + rows[:1], strict=True)):
        w = p[0] * q[1] - p[1] * q[0]
        if w <= 0:
            raise CertificateError(
                cell,
                "sides that turn left from one to the next",
                f"sides {i} and {(i + 1) % len(rows)}, which do not",
            )
        corners.append(_lowest((p[1] * q[2] - p[2] * q[1], p[2] * q[0] - p[0] * q[2], w)))
    return corners


def _lowest(point: Point) -> Point:
    """Divide by the greatest common divisor."""
    common = point[-1]
    for x in point[:-1]:
        common = common.gcd(x)
    return tuple(x // common for x in point)


def _hold(
    network: ExactNetwork,
    cell: int,
    pieces: NDArray[np.integer],
    bounds: Conditions,
    corners: list[Point],
) -> int:
    """Require all conditions at all corners and a positive area; count those that are equal."""
    vanished = bounds.vanished()
    if vanished is not None:
        unit = bounds[vanished].unit
        raise CertificateError(
            cell,
            f"{describe(network, unit)} on the piece below a breakpoint that it equals "
            "on all of the cell",
            f"it on piece {pieces[unit]}, above",
        )
    _require_orientation(cell, corners)
    failed, ties = bounds.hold(corners)
    if failed is not None:
        _complain(network, cell, pieces, bounds[failed[0]], corners[failed[1]])
    return ties


def _complain(
    network: ExactNetwork, cell: int, pieces: NDArray[np.integer], bound: Bound, corner: Point
) -> None:
    """Raise for a condition that does not hold at a corner."""
    where = f"the corner {show(corner)}"
    if bound.unit < 0:
        raise CertificateError(cell, "corners in the domain", f"{where} outside")
    raise CertificateError(
        cell,
        f"{describe(network, bound.unit)} on piece {pieces[bound.unit]} as its pattern says",
        f"it on another piece at {where}, in exact arithmetic",
    )


def show(point: Point) -> str:
    """Write a point for a message."""
    return f"({', '.join(f'{x:.6g}' for x in rounded(point))})"


def rounded(point: Point) -> tuple[float, ...]:
    """Round a point's coordinates correctly; those beyond float64 become infinite."""
    below = int(point[-1])
    return tuple(nearest(Fraction(int(x), below)) for x in point[:-1])


def _require_orientation(cell: int, corners: list[Point]) -> None:
    """Require the triangles from the first corner (1-D: the interval) to be positive."""
    if len(corners[0]) == 2:
        (x, v), (y, w) = corners
        if y * v <= x * w:
            raise CertificateError(cell, "a positive length", "ends that do not ascend")
        return
    a, b, c = corners[0]
    for (d, e, f), (g, h, i) in itertools.pairwise(corners[1:]):
        if a * (e * i - f * h) + b * (f * g - d * i) + c * (d * h - e * g) <= 0:
            raise CertificateError(
                cell, "a polygon of positive area whose corners run anticlockwise", "another"
            )


def _area(domain: ExactDomain) -> Fraction:
    """Exact area or length of the domain."""
    corners = domain.corners
    if len(corners[0]) == 1:
        return corners[1][0] - corners[0][0]
    pairs = zip(corners, corners[1:] + corners[:1], strict=True)
    return sum((x * v - y * u for (x, y), (u, v) in pairs), Fraction(0)) / 2


class _Border:
    """Adds up areas edge by edge.

    The doubled area of a polygon is the sum of x v - y u over its edges (x, y) -> (u, v). An edge
    that two cells run along in opposite directions contributes a number and its negative, so the
    sum over all cells is that over the edges that are left.
    """

    def __init__(self, domain_sides: int) -> None:
        self.domain_sides = domain_sides
        self.number: dict[Point, int] = {}
        self.left: dict[tuple[int, int], tuple[int, bool]] = {}

    def add(self, cell: int, sides: Sides) -> None:
        """Add the edges of a cell."""
        points = [self.number.setdefault(p, len(self.number)) for p in sides.corners]
        outer = [side < self.domain_sides for side in sides.chosen]
        if len(sides.corners[0]) == 2:  # 1-D: the ends, from below and from above
            edges = [(-1 - points[0], points[0]), (points[1], -1 - points[1])]
        else:
            edges = list(zip(points[-1:] + points[:-1], points, strict=True))
        for (a, b), at_border in zip(edges, outer, strict=True):
            # distinct cells do not overlap: an edge has one cell on its left
            if (b, a) in self.left:
                del self.left[b, a]
            else:
                self.left[a, b] = (cell, at_border)

    def _terms(self) -> list[fmpq]:
        """Shares of the edges that are left in the sum of all areas or lengths."""
        points = list(self.number)
        terms = []
        for a, b in self.left:
            if len(points[0]) == 2:
                x, w = points[max(a, b)]
                terms.append(fmpq(-x if a < 0 else x, w))
            else:
                (x, y, w), (u, v, t) = points[a], points[b]
                terms.append(fmpq(x * v - y * u, 2 * w * t))
        return terms

    def share(self, area: Fraction) -> float:
        """Sum of all areas or lengths over this one, each rounded to 2^-256 of it; below 1."""
        unit = fmpq(area.denominator << 256, area.numerator)
        total = sum((int((term * unit).floor()) for term in self._terms()), 0)
        return min(total / 2**256, 1 - 2.0**-53)

    def area(self) -> Fraction:
        """Sum of all areas or lengths."""
        terms = self._terms()
        while len(terms) > 1:  # in pairs: the numbers stay short as long as possible
            pairs = [a + b for a, b in zip(terms[::2], terms[1::2], strict=False)]
            terms = pairs + terms[2 * len(pairs) :]
        total = terms[0] if terms else fmpq(0)
        return Fraction(int(total.p), int(total.q))

    def hole(self, area: Fraction) -> CertificateError:
        """Name a cell beside what no cell covers."""
        expected = "cells that cover the domain"
        points = list(self.number)
        if len(points[0]) == 2:
            ends = {max(edge): cell for edge, (cell, outer) in self.left.items() if not outer}
            place, cell = next(iter(ends.items()))
            return CertificateError(
                cell,
                expected,
                f"none beside it at {show(points[place])}; {nearest(area):.6g} is missing",
            )
        lines: dict[tuple[Point, int], list] = defaultdict(list)
        for (a, b), (cell, outer) in self.left.items():
            if outer:
                continue
            p, q = points[a], points[b]
            row = _lowest_row(p, q)
            axis = 0 if row[1] else 1
            start, end = (Fraction(int(r[axis]), int(r[2])) for r in (p, q))
            lines[row, axis].append((start, end, cell))
        for (_, axis), edges in lines.items():
            found = _uncovered(edges)
            if found is not None:
                cell, low, high = found
                where = f"with {'xy'[axis]} from {nearest(low):.6g} to {nearest(high):.6g}"
                return CertificateError(
                    cell,
                    f"{expected}",
                    f"no cell beside its side {where}; an area of {nearest(area):.6g} is missing",
                )
        return CertificateError(None, expected, f"an area of {nearest(area):.6g} missing")


def _lowest_row(p: Point, q: Point) -> Point:
    """Line through two points in lowest terms, the same for both directions."""
    row = (p[1] * q[2] - p[2] * q[1], p[2] * q[0] - p[0] * q[2], p[0] * q[1] - p[1] * q[0])
    common = row[0].gcd(row[1]).gcd(row[2])
    common = common if next(x for x in row if x) > 0 else -common
    return tuple(x // common for x in row)


def _uncovered(
    edges: list[tuple[Fraction, Fraction, int]],
) -> tuple[int, Fraction, Fraction] | None:
    """Find a stretch of a line with a cell on one side only."""
    stops = sorted({x for start, end, _ in edges for x in (start, end)})
    for low, high in itertools.pairwise(stops):
        here = [
            (end > start, cell)
            for start, end, cell in edges
            if min(start, end) <= low and max(start, end) >= high
        ]
        if len({way for way, _ in here}) == 1:
            return here[0][1], low, high
    return None
