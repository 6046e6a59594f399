"""Max-pooling on a cell: the lead of every window's winner over its other candidates.

The matches of a tournament decide a winner, and only that matters. On a cell the winner of a window
leads every other candidate, so that a window of k candidates takes k - 1 comparisons: as many as it
has matches, whose places among the units they take.
"""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from cpwl.arrays import Ints
from cpwl.engine.precise import expansion_kernels as kernels
from cpwl.engine.precise.expansions import Expansion, empty, moved
from cpwl.network.program import Program, Tournament


class Field:
    """The candidates of every window of a tournament.

    A node of its tree is a candidate, an entry of the flat sample, or the winner of a match.

    Attributes
    ----------
    unit : (matches,) ascending
        Number within the network of each match, which is a place as well.
    window, entrant : (matches,)
        A window of each place, and one of its candidates but the first.
    opener : (windows,)
        The first candidate.
    match_window : (matches,)
        The window of each match.
    """

    def __init__(self, program: Program, index: int) -> None:
        step = program.steps[index]
        bend = step.nonlinearity
        assert isinstance(bend, Tournament)
        (source,) = step.data
        self._size = size = prod(program.steps[source].single)
        self._largest = bend.largest
        nodes, rounds, units = np.arange(size), [], [np.empty(0, np.int64)]
        for k, (left, right, passing) in enumerate(
            zip(bend.left, bend.right, bend.passing, strict=True)
        ):
            first = size + sum(map(len, units))
            rounds.append(np.stack([nodes[left.numpy()], nodes[right.numpy()]]))
            units.append(program.first_unit[index, k] + np.arange(len(left)))
            nodes = np.concatenate([np.arange(first, first + len(left)), nodes[passing.numpy()]])
        self.unit = np.concatenate(units)
        self._sides = np.concatenate([np.empty((2, 0), np.int64), *rounds], axis=1)
        self._final = nodes[bend.final.numpy()]
        below = [[k] for k in range(size)]
        for left, right in self._sides.T.tolist():
            below.append(below[left] + below[right])
        windows = [below[node] for node in self._final.tolist()]
        self.opener = np.array([w[0] for w in windows])
        self.window = np.repeat(np.arange(len(windows)), [len(w) - 1 for w in windows])
        self.entrant = np.array([k for w in windows for k in w[1:]], np.int64)
        owner = np.full(size + len(self.unit), -1)
        owner[self._final] = np.arange(len(windows))
        for match in range(len(self.unit) - 1, -1, -1):
            owner[self._sides[:, match]] = owner[size + match]
        self.match_window = owner[size:]

    def winners(self, pieces: NDArray[np.int32], windows: Ints) -> Ints:
        """Name the winners (n, m) of some windows, by the pieces (n, num_units) of the network."""
        node = np.tile(self._final[windows], (len(pieces), 1))
        while (node >= self._size).any():
            row, column = np.nonzero(node >= self._size)
            match = node[row, column] - self._size
            second = (pieces[row, self.unit[match]] > 0) != self._largest
            node[row, column] = self._sides[second.astype(np.int64), match]
        return node

    def played(self, x: Expansion, pieces: NDArray[np.int32]) -> tuple[Ints, Ints]:
        """Name the winner (B, windows) of every window, and count the ties (B,), see `Held`.

        Rows of the flat values are B points, then B directions each.
        """
        winners = np.empty((len(pieces), len(self._final)), np.int64)
        ties = np.zeros(len(pieces), np.int64)
        hi, lo, _ = x.flat
        kernels.play(hi, lo, pieces, self.unit, self._sides, self._final, self._largest, winners,
                     ties)  # fmt: skip
        return winners, ties

    def compared(self, winners: Ints, place: int) -> tuple[int, int]:
        """Name the winner and the candidate that one place compares, of winners (windows,)."""
        mine, entrant = int(winners[self.window[place]]), int(self.entrant[place])
        return mine, int(self.opener[self.window[place]]) if mine == entrant else entrant

    def place(self, winner: int, window: int, rival: int) -> int:
        """Find where the winner of a window is compared with a rival."""
        second = winner if rival == self.opener[window] else rival
        first, last = np.searchsorted(self.window, [window, window + 1])
        return int(first + np.flatnonzero(self.entrant[first:last] == second)[0])

    def leads(self, x: Expansion, winners: Ints) -> Expansion:
        """Lead (rows, matches) of the winners; rows are B points, then B directions each."""
        first = winners[:, self.window]
        second = np.where(first == self.entrant, self.opener[self.window], self.entrant)
        if not self._largest:
            first, second = second, first
        made = empty(len(x.hi), (len(self.unit),))
        kernels.differences(*x.flat, first, second, *made.flat)
        return made


def gathered(x: Expansion, entries: Ints) -> Expansion:
    """Take entries (B, n) of the flat values; rows are B points, then B directions each."""
    wide = torch.from_numpy(np.tile(entries, (len(x.hi) // len(entries), 1)))
    return moved(x, lambda part: part.gather(1, wide))
