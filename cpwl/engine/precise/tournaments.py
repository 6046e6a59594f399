"""Max-pooling on a cell: the lead of every window's winner over its other candidates.

The matches of a tournament decide a winner, and only that matters. On a cell the winner of a window
leads every other candidate, so that a window of k candidates takes k - 1 comparisons: as many as it
has matches, whose places among the units they take.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpwl.arrays import Ints
from cpwl.engine.precise.expansions import Expansion, added, moved
from cpwl.network.program import Tournament


class Field:
    """The candidates of every window of a tournament.

    Attributes
    ----------
    first, units : int
        Place of the matches among the units of the network, and their number.
    window, entrant : (units,)
        A window of each place, and one of its candidates but the first.
    opener : (windows,)
        The first candidate.
    match_window : (units,)
        The window of each match.
    """

    def __init__(self, bend: Tournament, first: int) -> None:
        self.bend = bend
        self.first = first
        self.units = sum(shape[0] for shape in bend.shapes)
        size = 1 + max(
            (int(t.max()) for t in (bend.left[0], bend.right[0], bend.passing[0], bend.final)
             if t.numel()), default=0,
        ) if bend.left else 1 + int(bend.final.max())  # fmt: skip
        groups: list[list[int]] = [[k] for k in range(size)]
        played: list[list[int]] = [[] for _ in range(size)]
        count = 0
        for left, right, passing in zip(bend.left, bend.right, bend.passing, strict=True):
            pairs = list(zip(left.tolist(), right.tolist(), strict=True))
            through = passing.tolist()
            groups = [groups[a] + groups[b] for a, b in pairs] + [groups[k] for k in through]
            played = [[*played[a], *played[b], count + n] for n, (a, b) in enumerate(pairs)] + [
                played[k] for k in through
            ]
            count += len(pairs)
        windows = [groups[k] for k in bend.final.tolist()]
        self.match_window = np.full(self.units, -1)
        for number, k in enumerate(bend.final.tolist()):
            self.match_window[played[k]] = number
        self.opener = np.array([w[0] for w in windows])
        self.window = np.repeat(np.arange(len(windows)), [len(w) - 1 for w in windows])
        self.entrant = np.array([k for w in windows for k in w[1:]], np.int64)

    def winners(self, pieces: list[Tensor], size: int) -> Ints:
        """Name the winner (B, windows) of every window, an entry of the flat sample."""
        entries = torch.arange(size, dtype=torch.float64).expand(len(pieces[0]), -1)
        return self.bend.select([entries], pieces).flatten(1).numpy().astype(np.int64)

    def others(self, winners: Ints) -> Ints:
        """Name the candidate (B, units) that each place compares the winner with."""
        mine = winners[:, self.window]
        return np.where(mine == self.entrant, self.opener[self.window], self.entrant)

    def compared(self, winners: Ints, place: int) -> tuple[int, int]:
        """Name the winner and the candidate that one place compares, of winners (windows,)."""
        mine, entrant = int(winners[self.window[place]]), int(self.entrant[place])
        return mine, int(self.opener[self.window[place]]) if mine == entrant else entrant

    def places(self, winners: Ints, window: Ints, rival: Ints) -> Ints:
        """Find where the winner (n,) of a window (n,) is compared with a rival (n,)."""
        second = np.where(rival == self.opener[window], winners, rival)
        key = self.window * (self.entrant.max(initial=0) + 1) + self.entrant
        order = np.argsort(key)
        wanted = window * (self.entrant.max(initial=0) + 1) + second
        return order[np.searchsorted(key[order], wanted)]

    def leads(self, x: Expansion, winners: Ints) -> Expansion:
        """Lead (rows, units) of the winners; rows are B points, then B directions each."""
        first, second = winners[:, self.window], self.others(winners)
        if not self.bend.largest:
            first, second = second, first
        return added(gathered(x, first), gathered(x, second), -1.0)

    def ties(self, x: Expansion, pieces: list[Tensor]) -> NDArray[np.int64]:
        """Count the matches (B,) that are level on all of a cell, on whose upper piece it is."""
        count = len(pieces[0])
        found = np.zeros(count, np.int64)
        index = torch.arange(x.hi.shape[1], dtype=torch.float64).expand(count, -1)
        for k, piece in enumerate(pieces):
            left, right = (index.index_select(1, side[k]).long() for side in
                           (self.bend.left, self.bend.right))  # fmt: skip
            values = x.hi[:count]  # few matches are level at the point, and all parts see only them
            level = (piece > 0) & (values.gather(1, left) == values.gather(1, right))
            cell, match = level.nonzero(as_tuple=True)
            mine, theirs = left[cell, match], right[cell, match]
            rows = cell + count * torch.arange(len(x.hi) // count)[:, None]
            alike = torch.stack([part[rows, mine] == part[rows, theirs] for part in x[:2]])
            found += np.bincount(cell[alike.all(0).all(0)].numpy(), minlength=count)
            index = self.bend._next(index, k, piece)
        return found


def gathered(x: Expansion, entries: Ints) -> Expansion:
    """Take entries (B, n) of the flat values; rows are B points, then B directions each."""
    wide = torch.from_numpy(np.tile(entries, (len(x.hi) // len(entries), 1)))
    return moved(x, lambda part: part.gather(1, wide))
