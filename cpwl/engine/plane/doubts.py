"""What float64 leaves open at the vertices and edges of a complex: settled exactly, or counted."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import Floats, Ints
from cpwl.engine import column_kernels
from cpwl.engine.columns import Columns
from cpwl.engine.rational import Arbiter


class Decisions:
    """What float64 leaves open in one stage: settled by the arbiter, or counted."""

    def __init__(self, arbiter: Arbiter, stage: int, columns: Columns) -> None:
        self.arbiter = arbiter
        self.stage = stage
        self.columns = columns
        self.undecided = 0
        self.waiting = 0
        self._made: dict[tuple[int, int], int] = {}  # vertices that are held come several times

    def found(self, held: int, new: int) -> None:
        """Take note of how many values are in doubt."""
        if self.arbiter.exact:
            self.waiting = held + new
        else:
            self.undecided += new

    def settle(
        self,
        kept: Ints,
        names: Ints,
        held: Floats,
        values: Floats,
        error: Floats,
        pos: NDArray[np.uint64],
        neg: NDArray[np.uint64],
    ) -> None:
        """Set the bits of the values that are waiting."""
        chosen = self.columns.take(kept)[:4]
        for block, first in ((held, 0), (values, len(held))):
            row, column = np.empty((2, self.waiting), np.int64)
            mine = error[first : first + len(block)]
            n = column_kernels.list_doubts(block, mine, *chosen, row, column)
            row, column = row[:n] + first, column[:n]
            keys = list(zip(names[row].tolist(), kept[column].tolist(), strict=True))
            fresh = np.array([key not in self._made for key in keys], np.bool_)
            which = kept[column[fresh]]
            signs = self.arbiter.signs(
                names[row[fresh]], self.stage, self.columns.unit[which], self.columns.value[which]
            )
            asked = [key for key, new in zip(keys, fresh.tolist(), strict=True) if new]
            self._made.update(zip(asked, signs.tolist(), strict=True))
            sign = np.array([self._made[key] for key in keys], np.int8)
            bit = np.uint64(1) << (column & 63).astype(np.uint64)
            for packed, wanted in ((pos, sign > 0), (neg, sign < 0)):
                at = row[wanted], column[wanted] >> 6
                np.bitwise_or.at(packed, at, bit[wanted])
        self.waiting = 0

    def order(
        self, names: Ints, kept: Ints, crossing: NDArray[np.int32]
    ) -> tuple[Ints, Floats, NDArray[np.bool_]] | None:
        """Order the crossings of an edge exactly: order, places, which differ from the one before.

        None if that is out of reach; the crossings in doubt then fall together.
        """
        if not self.arbiter.exact:
            self.undecided += 1
            return None
        which = kept[crossing]
        places = self.arbiter.places(
            int(names[0]), int(names[1]), self.stage,
            self.columns.unit[which], self.columns.value[which],
        )  # fmt: skip
        order = sorted(range(len(places)), key=places.__getitem__)
        fresh = [i == 0 or places[order[i]] != places[order[i - 1]] for i in range(len(order))]
        where = [float(Fraction(int(places[i].p), int(places[i].q))) for i in order]
        return np.array(order), np.array(where), np.array(fresh)
