"""The half-planes that a pattern of a large network stands for, exactly, by remainders.

The same rows as in `cpwl.proof.cells`, and the same conditions; but a row is held by its
remainders modulo some primes, see `cpwl.proof.residues`. Affine steps are then float64 matrix
products of integers below 2^53, some tens of forward passes for a cell, and a convolution is the
product of its weights with the entries that its outputs look at. Conditions are decided in float64
with an error bound, and where that leaves them open, or a row is asked for, in integers.
"""

from __future__ import annotations

import hashlib
from fractions import Fraction
from math import ceil, inf, log2
from typing import NamedTuple

import numpy as np
from flint import fmpz
from numpy.typing import NDArray

from cpwl.errors import CertificateError
from cpwl.proof.cells import (
    LOST,
    Bound,
    Cell,
    NoSuchPieceError,
    Row,
    between,
    play,
)
from cpwl.proof.exact_network import (
    Affine,
    Bend,
    Contest,
    ExactNetwork,
    Pieces,
    describe,
    size,
    sources,
    units,
)
from cpwl.proof.modular_steps import UP, Linear, Scalars, prepared
from cpwl.proof.residues import Residues, lowest_shift

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class _Value(NamedTuple):
    """Remainders (n, entries, P + 1) of the rows times 2^shift; no entry exceeds ``largest``."""

    rows: NDArray[np.float32]
    largest: float


class _Group(NamedTuple):
    """Conditions sign * (row of entry - that of other - knot) >= 0 on the value of a step."""

    source: int
    entry: Integers
    other: Integers  # -1: none
    sign: Floats
    knot: Floats
    unit: Integers
    strict: NDArray[np.bool_]
    rows: Floats  # (m, P + 1) about
    off: Floats  # (m, P + 1) bounds on their errors; 0 where a row's entry is exactly zero


class ModularPatterns:
    """Evaluates patterns as `cpwl.proof.cells.Patterns` does, on large networks.

    Parameters are those of `Patterns`.

    Raises
    ------
    ValueError
        The network has a triangle wave, or its exact values have too many bits.
    """

    def __init__(
        self, network: ExactNetwork, origin: Floats, basis: Floats, sides: list[Row]
    ) -> None:
        self.network = network
        self._sides = sides
        first = np.concatenate([basis, origin.reshape(1, -1)]).T
        self._steps = [prepared(step) for step in network.steps]
        self.shifts = [lowest_shift(first)]
        self._reach = [0]
        bounds = [float(np.abs(first).max()) * UP]
        bits, terms = 1, 1
        for step, ready in zip(network.steps, self._steps, strict=True):
            shift = max((self.shifts[source] for source in sources(step)), default=0)
            self.shifts.append(max(shift + ready.shift, ready.offset_shift))
            bounds.append(ready.bound([bounds[source] for source in sources(step)]))
            terms = max(terms, ready.terms)
            last = max((self._reach[source] for source in sources(step)), default=0)
            self._reach.append(max([last, *(units(step) + 1).tolist()]))
        try:
            for step in network.steps:
                if not isinstance(step, Affine):
                    bits = max(bits, _bits(2 * bounds[step.source], self.shifts[step.source]))
            self.residues = Residues(terms, bits)
        except OverflowError as error:
            raise ValueError(
                f"Expected a network whose exact values have some 5,000 bits at most, got {error}. "
                "Use cpwl.check, which works in float64."
            ) from error
        rows = self.residues.of(first, self.shifts[0]).astype(np.float32)
        self._values: list[_Value | None] = [_Value(rows, bounds[0])]
        self._values += [None] * len(network.steps)
        self._groups: list[list[_Group]] = [[] for _ in network.steps]
        self._lost: list[list[int]] = [[] for _ in network.steps]
        for ready in self._steps:
            ready.reduce(self.residues)

    def cell(self, number: int, pieces: NDArray[np.integer], first: int) -> Cell:
        """Conditions of a pattern that differs from the one before from unit `first` on."""
        for index, step in enumerate(self.network.steps):
            if self._reach[index + 1] <= first and self._values[index + 1] is not None:
                continue
            if isinstance(step, Affine):
                self._values[index + 1] = self._affine(index, step)
            else:
                try:
                    self._values[index + 1] = self._bend(index, step, pieces)
                except NoSuchPieceError as fault:
                    named = describe(self.network, fault.unit)
                    raise CertificateError(
                        number, f"{named} on a piece that it has", f"piece {fault.piece}"
                    ) from None
        key = pieces.astype(np.int32)
        for lost in self._lost:
            key[lost] = LOST
        held = [group for groups in self._groups for group in groups]
        # equal patterns have equal digests
        return Cell(_Conditions(self, held), hashlib.sha256(key.tobytes()).digest())

    def value(self, number: int) -> _Value:
        """Value of a step of this cell."""
        value = self._values[number]
        assert value is not None
        return value

    def _affine(self, index: int, step: Affine) -> _Value:
        """Apply an affine step."""
        ready, residues = self._steps[index], self.residues
        assert isinstance(ready, Linear)
        shift = self.shifts[index + 1]
        width = self.value(0).rows.shape[2]
        total = np.zeros((len(residues), len(step.offset), width))
        for part, weights in zip(step.parts, ready.parts, strict=True):
            made = weights.times(self.value(part.source).rows)
            up = shift - self.shifts[part.source] - weights.shift
            _lift(residues, residues.reduced(made), up)
            total += made
        if step.offset.any():
            total[:, :, -1] += residues.of(step.offset, shift)
        rows = residues.reduced(total).astype(np.float32)
        return _Value(rows, ready.bound([self.value(part.source).largest for part in step.parts]))

    def _bend(self, index: int, step: Bend, pieces: NDArray[np.integer]) -> _Value:
        """Choose the pieces of a step's units; note the conditions for that."""
        source, ready = self.value(step.source), self._steps[index]
        shift = self.shifts[step.source]
        n = self.residues.needed(_bits(source.largest, shift))
        rows, off = self.residues.approximate(source.rows[:n], shift)
        largest = float((np.abs(rows) + off).max(initial=0.0)) * UP
        self._values[step.source] = source._replace(largest=largest)
        mine = pieces[units(step)].astype(np.int64)
        if isinstance(step, Contest):
            group, self._lost[index], outputs = _contest(step, rows, off, mine)
            self._groups[index] = [group]
            return _Value(source.rows[:, outputs], largest)
        assert isinstance(step, Pieces)
        assert isinstance(ready, Scalars)
        self._groups[index] = _pieces(step, rows, off, mine)
        made = ready.times(source.rows, mine)
        if ready.offsets is not None:
            made, residues = made.astype(np.float64), self.residues
            _lift(residues, made, self.shifts[index + 1] - shift - ready.shift)
            ready.add(residues, made, mine, self.shifts[index + 1])
        return _Value(made.astype(np.float32, copy=False), ready.bound([largest]))

    def row(self, group: _Group, i: int) -> Row:
        """Give the exact row of a condition."""
        value = self.value(group.source).rows[:, group.entry[i]].astype(np.float64)
        if group.other[i] >= 0:
            value -= self.value(group.source).rows[:, group.other[i]]
        row = self.residues.integers(value)
        return between(row, self.shifts[group.source], float(group.knot[i]), int(group.sign[i]))


class _Conditions:
    """Conditions of a cell, the domain's sides first; rows are made when they are asked for."""

    def __init__(self, patterns: ModularPatterns, groups: list[_Group]) -> None:
        self._patterns, self._groups = patterns, groups
        self._sides = patterns._sides
        self._starts = np.cumsum([len(self._sides), *(len(g.unit) for g in groups)])
        outer = np.full(len(self._sides), -1)
        self.units: Integers = np.concatenate([outer, *(g.unit for g in groups)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, i: int) -> Bound:
        if not 0 <= i < len(self):
            raise IndexError(i)
        if i < len(self._sides):
            return Bound(self._sides[i], -1, False)
        k = int(np.searchsorted(self._starts, i, "right")) - 1
        group, j = self._groups[k], i - int(self._starts[k])
        return Bound(self._patterns.row(group, j), int(group.unit[j]), bool(group.strict[j]))

    def vanished(self) -> int | None:
        """Find a strict condition that vanishes identically."""
        for start, group in zip(self._starts, self._groups, strict=False):
            small = group.strict & (np.abs(group.rows) <= group.off).all(axis=1)
            for j in np.flatnonzero(small).tolist():
                if not any(self[int(start) + j].row):
                    return int(start) + j
        return None

    def hold(self, corners: list[tuple[fmpz, ...]]) -> tuple[tuple[int, int] | None, int]:
        """Find a condition and a corner where it does not hold; count those that are equal."""
        ties = 0
        at, off = _rounded(corners)
        exact = [(i, k) for i in range(len(self._sides)) for k in range(len(corners))]
        for start, group in zip(self._starts, self._groups, strict=False):
            values = group.rows @ at
            size_ = np.abs(group.rows)
            doubt = (size_ @ (np.abs(at) * 2.0**-49 + off) + group.off @ (np.abs(at) + off)) * UP
            doubt += 2.0**-1000
            zero = ((size_ + group.off) == 0).all(axis=1)[:, None]
            ties += int(zero.sum()) * len(corners)
            below = np.argwhere(values < -doubt)
            if len(below):
                i, k = below[0].tolist()
                return (int(start) + i, k), ties
            open_ = ~(values > doubt) & ~zero
            exact += [(int(start) + i, k) for i, k in np.argwhere(open_).tolist()]
        row, last = [], -1
        for i, k in exact:
            if i != last:
                row, last = self[i].row, i
            value = sum((x * y for x, y in zip(row, corners[k], strict=True)), fmpz(0))
            if value < 0:
                return (i, k), ties
            ties += value == 0
        return None, ties


def _rounded(corners: list[tuple[fmpz, ...]]) -> tuple[Floats, Floats]:
    """Corners (P + 1, n) in float64 with 1 below, and bounds on their errors."""
    table = [[float(Fraction(int(x), int(c[-1]))) for x in c] for c in corners]
    at = np.array(table, np.float64).T
    off = np.abs(at) * 2.0**-53 + 2.0**-1074
    off[-1] = 0.0
    return at, off


def _bits(largest: float, shift: int) -> int:
    """Bits of integers largest * 2^shift."""
    return max(1, ceil(log2(max(largest, 2.0**-1000)) + 1e-6) + shift)


def _lift(residues: Residues, rows: Floats, up: int) -> None:
    """Multiply remainders by 2^up, in place."""
    if up:
        rows *= residues.powers(up)[:, None, None]
        residues.reduced(rows)


# --- conditions --------------------------------------------------------------------------------


def _pieces(step: Pieces, rows: Floats, off: Floats, chosen: Integers) -> list[_Group]:
    """Conditions of scalar units: above the breakpoint below the piece, not above the next."""
    n, knots = size(step), len(step.points)
    every = np.arange(n)
    outside = (chosen < 0) | (chosen > knots)
    edge = np.full((1, n), inf)
    points = np.concatenate([-edge, step.points, edge])
    piece = np.where(outside, 0, chosen)
    below, above = points[piece, every], points[piece + 1, every]
    wrong = np.flatnonzero(outside | (below == inf) | (above == -inf))
    if len(wrong):
        raise NoSuchPieceError(step.first_unit + int(wrong[0]), int(chosen[wrong[0]]))
    groups = []
    for knot, sign, strict in ((below, 1.0, True), (above, -1.0, False)):
        entry = np.flatnonzero(np.isfinite(knot))
        at = knot[entry]
        row, doubt = sign * rows[entry], off[entry].copy()
        row[:, -1] -= sign * at
        moved = at != 0
        doubt[moved, -1] += (np.abs(rows[entry[moved], -1]) + np.abs(at[moved])) * 2.0**-52
        none, signs = np.full(len(entry), -1), np.full(len(entry), sign)
        unit, must = step.first_unit + entry, np.full(len(entry), strict)
        groups.append(_Group(step.source, entry, none, signs, at, unit, must, row, doubt))
    return groups


def _contest(
    step: Contest, rows: Floats, off: Floats, chosen: Integers
) -> tuple[_Group, list[int], list[int]]:
    """Play all matches: conditions, the units without effect, and the winning entries."""
    found, lost, outputs = play(step, len(rows), chosen.tolist())
    a, b, unit, strict = np.array(found, np.int64).reshape(-1, 4).T
    row = rows[a] - rows[b]
    doubt = off[a] + off[b]
    doubt += np.where(doubt > 0, np.abs(row) * 2.0**-52, 0.0)
    signs, knots = np.ones(len(a)), np.zeros(len(a))
    group = _Group(step.source, a, b, signs, knots, unit, strict == 1, row, doubt)
    return group, lost, outputs
