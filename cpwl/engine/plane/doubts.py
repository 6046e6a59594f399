"""What float64 leaves open at the vertices and edges of a complex: settled exactly, or counted."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import Floats, Ints
from cpwl.engine import column_kernels
from cpwl.engine.columns import Columns
from cpwl.engine.plane.meetings import Meetings, Ordered
from cpwl.engine.plane.questions import Questions
from cpwl.engine.rational import Arbiter

# Without rational arithmetic, what lies within this many times what counts as zero is looked at.
_ASK_WITHIN = 64.0
# All doubts are looked at where there are at most so many, times the units of the network.
_FEW = 2**22
# A unit that is exactly zero at more vertices of a block than this is taken to be dead there.
_DEAD_ABOVE = 8
_OPEN = 2  # among signs


class Rows(NamedTuple):
    """Vertices whose units are at hand: those held from blocks before, then those of a block."""

    names: Ints  # (H + B,) the arbiter's numbers
    error: Floats  # (H + B,)
    held: Floats  # (H, n_stage)
    new: Floats  # (B, n_stage)

    @property
    def parts(self) -> list[tuple[slice, Floats]]:
        """The rows of the held (if there are any) and of the new values, with the values."""
        n = len(self.held)
        both = [(slice(0, n), self.held), (slice(n, n + len(self.new)), self.new)]
        return both if n else both[1:]


class Decisions:
    """What float64 leaves open in one stage: settled in bulk or by the arbiter, or counted."""

    def __init__(
        self,
        arbiter: Arbiter,
        columns: Columns,
        questions: Questions | None = None,
        meetings: Meetings | None = None,
    ) -> None:
        self.arbiter = arbiter
        self.questions = questions
        self.meetings = meetings
        self.columns = columns
        self.undecided = 0
        self._made: dict[tuple[int, int], int] = {}  # vertices that are held come several times

    def settle(
        self,
        kept: Ints,
        rows: Rows,
        in_doubt: list[int],
        pos: NDArray[np.uint64],
        neg: NDArray[np.uint64],
    ) -> None:
        """Set the bits of the values in doubt, or count them.

        ``in_doubt`` says how many these are in each part of the rows. Without rational arithmetic
        they keep the bits that they have, unless they are close to zero; held ones were counted
        when they were new.
        """
        if not self.arbiter.exact:
            self.undecided += in_doubt[-1]
            if self.questions is not None and sum(in_doubt):
                few = sum(in_doubt) * self.questions.units <= _FEW
                self._refine(self.questions, kept, rows, pos, neg, few=few)
            return
        if not any(in_doubt):
            return
        chosen = self.columns.take(kept)
        for (span, values), count in zip(rows.parts, in_doubt, strict=True):
            if count == 0:
                continue
            row, column = np.empty((2, count), np.int64)
            column_kernels.list_doubts(
                values, rows.error[span], chosen.unit, chosen.knot, chosen.slack, chosen.lipschitz,
                row, column,
            )  # fmt: skip
            row += span.start
            sign = self._signs(rows.names[row], rows.error[row], kept[column])
            bit = np.uint64(1) << (column & 63).astype(np.uint64)
            for packed, wanted in ((pos, sign > 0), (neg, sign < 0)):
                at = row[wanted], column[wanted] >> 6
                np.bitwise_or.at(packed, at, bit[wanted])

    def _refine(
        self, questions: Questions, kept: Ints, rows: Rows, pos: NDArray[np.uint64],
        neg: NDArray[np.uint64], *, few: bool,
    ) -> None:  # fmt: skip
        """Decide in about 106 bits what lies close to zero, or all doubts if there are few."""
        chosen = self.columns.take(kept)
        within, slope = _ASK_WITHIN * chosen.tolerance, np.zeros(len(kept))
        if few:
            within, slope = chosen.slack, chosen.lipschitz
        for span, values in rows.parts:
            room = 64
            while True:
                row, column = np.empty((2, room), np.int64)
                found = column_kernels.list_doubts(
                    values, rows.error[span], chosen.unit, chosen.knot, within, slope, row, column
                )
                if found <= room:
                    break
                room = found
            row, column = row[:found], column[:found]
            zero = values[row, chosen.unit[column]] == chosen.knot[column]
            often = np.bincount(column[zero], minlength=len(kept)) > _DEAD_ABOVE
            asked = ~(zero & often[column])
            row, column = row[asked] + span.start, column[asked]
            keys = list(zip(rows.names[row].tolist(), kept[column].tolist(), strict=True))
            fresh = np.array([key not in self._made for key in keys], np.bool_)
            which = kept[column[fresh]]
            sign, proven = questions.signs(
                rows.names[row[fresh]], self.columns.unit[which], self.columns.knot[which]
            )
            new = [key for key, one in zip(keys, fresh.tolist(), strict=True) if one]
            self._made.update(zip(new, np.where(proven, sign, _OPEN).tolist(), strict=True))
            for key, r, c in zip(keys, row.tolist(), column.tolist(), strict=True):
                made = self._made[key]
                if made != _OPEN:
                    bit, word = np.uint64(1) << np.uint64(c & 63), c >> 6
                    for packed, on in ((pos, made > 0), (neg, made < 0)):
                        packed[r, word] = packed[r, word] & ~bit | (bit if on else np.uint64(0))

    def _signs(self, names: Ints, error: Floats, columns: Ints) -> NDArray[np.int8]:
        """Have the signs of columns at vertices decided, each pair once."""
        keys = list(zip(names.tolist(), columns.tolist(), strict=True))
        fresh = np.array([key not in self._made for key in keys], np.bool_)
        where, which = names[fresh], self.columns.take(columns[fresh])
        signs, left = np.zeros(len(where), np.int8), np.ones(len(where), np.bool_)
        if self.meetings is not None:
            sizes = 2 * (which.slack + which.lipschitz * error[fresh])
            signs, proven = self.meetings.signs(where, which.unit, which.knot, sizes)
            left = ~proven
        signs[left] = self.arbiter.signs(
            where[left], self.columns.stage, which.unit[left], which.knot[left]
        )
        asked = [key for key, new in zip(keys, fresh.tolist(), strict=True) if new]
        self._made.update(zip(asked, signs.tolist(), strict=True))
        return np.array([self._made[key] for key in keys], np.int8)

    def order(self, edges: Ints, names: Ints, which: list[Ints]) -> list[Ordered | None]:
        """Order the columns that cross each of some edges exactly.

        None if that is out of reach; the crossings in doubt then fall together.

        Parameters
        ----------
        edges, names : (n,), (n, 2)
            The edges, and their ends.
        which : list of n arrays
            Columns.
        """
        found: list[Ordered | None] = [None] * len(edges)
        if self.meetings is not None and len(edges):
            columns = self.columns.take(np.concatenate(which))
            count = np.array([len(one) for one in which])
            found = self.meetings.order(edges, count, columns.unit, columns.knot)
        return [
            made if made is not None else self._order_one(*pair)
            for made, *pair in zip(found, names, which, strict=True)
        ]

    def _order_one(self, names: Ints, which: Ints) -> Ordered | None:
        if not self.arbiter.exact:
            self.undecided += 1
            if self.questions is None:
                return None
            one = self.questions.order(names, self.columns.unit[which], self.columns.knot[which])
            return None if one is None else Ordered(*one)
        places = self.arbiter.places(
            int(names[0]), int(names[1]), self.columns.stage,
            self.columns.unit[which], self.columns.knot[which],
        )  # fmt: skip
        order = sorted(range(len(places)), key=places.__getitem__)
        fresh = [i == 0 or places[order[i]] != places[order[i - 1]] for i in range(len(order))]
        where = [float(Fraction(int(places[i].p), int(places[i].q))) for i in order]
        return Ordered(np.array(order), np.array(where), np.array(fresh))
