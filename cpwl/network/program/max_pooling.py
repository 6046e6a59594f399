"""Max-pooling and amax as balanced tournaments of pairwise maxima.

Each output is the winner among its candidates. In every round the remaining candidates of an output
meet in pairs, an odd one passes; each pair is one unit, each round one stage:

    candidates  x0  x1  x2  x3  x4        round 0: units (x0, x1), (x2, x3); x4 passes
                  u0      u1    x4        round 1: unit (u0, u1); x4 passes
                      u2        x4        round 2: unit (u2, x4)
                           u3

While u2 is on the piece where u0 wins, the piece of u1 has no effect: the *contests*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cpwl.arrays import UNIT_ROUNDOFF, Ints
from cpwl.network.program.nonlinearities import MaybeError, add_errors

Indices = Ints


@dataclass(frozen=True, eq=False)
class Tournament:
    """The largest (or smallest) of several entries of a sample, for every output.

    Attributes
    ----------
    left, right : tuple of (pairs,) int64 tensors
        Opponents of each round, as positions among the candidates then remaining.
    passing : tuple of int64 tensors
        Positions of those that pass; the next candidates are the winners, then the passing.
    final : int64 tensor
        Position of every output among the candidates after the last round.
    out_shape : tuple of int
        Shape of the output without the batch axis.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    native: Any
    largest: bool
    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]
    passing: tuple[Tensor, ...]
    final: Tensor
    out_shape: tuple[int, ...]

    def forward(self, *inputs: Any) -> Tensor:
        """Apply torch's own operation."""
        return self.native(inputs[0])

    def switching(self, inputs: Sequence[Any], round: int, held: Sequence[Tensor] = ()) -> Tensor:
        """Left minus right opponent of every pair of the round."""
        x = inputs[0].flatten(1)
        for k in range(round):
            x = self._next(x, k, held[k] if held else None)
        return x.index_select(1, self.left[round]) - x.index_select(1, self.right[round])

    def breaks(self, round: int) -> tuple[Tensor, ...]:
        """One knot, where both opponents are equal."""
        return (torch.zeros(self.shapes[round], dtype=torch.float64),)

    def select(self, inputs: Sequence[Any], pieces: Sequence[Tensor]) -> Tensor:
        """Follow the winners that the pieces name."""
        x = inputs[0].flatten(1)
        for k, piece in enumerate(pieces):
            x = self._next(x, k, piece)
        return x.index_select(1, self.final).reshape(x.shape[0], *self.out_shape)

    linear = select

    def error(self, errors: Sequence[MaybeError], magnitudes: Sequence[Tensor]) -> MaybeError:
        """Never more than the largest error among an output's candidates."""
        if errors[0] is None:
            return None
        return self.largest_candidate(errors[0])

    def switching_error(
        self, errors: Sequence[MaybeError], magnitudes: Sequence[Tensor], round: int
    ) -> MaybeError:
        """Both opponents' errors and the rounding of one subtraction."""
        error = errors[0]
        passed = None if error is None else self.candidate_pairs(error, round)
        return add_errors(passed, self.candidate_pairs(magnitudes[0], round) * UNIT_ROUNDOFF)

    def largest_candidate(self, x: Tensor) -> Tensor:
        """Largest of the numbers (N, ...) of every output's candidates."""
        largest = self._largest(x.flatten(1), len(self.left))
        return largest.index_select(1, self.final).reshape(len(x), *self.out_shape)

    def candidate_pairs(self, x: Tensor, round: int) -> Tensor:
        """Sum over every pair of a round of the largest numbers below both opponents."""
        return self._pairs(self._largest(x.flatten(1), round), round)

    def _next(self, x: Tensor, k: int, piece: Tensor | None) -> Tensor:
        a, b = x.index_select(1, self.left[k]), x.index_select(1, self.right[k])
        if piece is not None:
            winner = torch.where((piece > 0) == self.largest, a, b)
        else:
            winner = torch.maximum(a, b) if self.largest else torch.minimum(a, b)
        if self.passing[k].numel() == 0:
            return winner
        return torch.cat([winner, x.index_select(1, self.passing[k])], dim=1)

    def _largest(self, x: Tensor, rounds: int) -> Tensor:
        for k in range(rounds):
            winner = torch.maximum(
                x.index_select(1, self.left[k]), x.index_select(1, self.right[k])
            )
            x = torch.cat([winner, x.index_select(1, self.passing[k])], dim=1)
        return x

    def _pairs(self, x: Tensor, k: int) -> Tensor:
        return x.index_select(1, self.left[k]) + x.index_select(1, self.right[k])


def make_tournament(
    kind: str, native: Any, largest: bool, taps: Indices, out_shape: tuple[int, ...]
) -> tuple[Tournament, tuple[Indices, ...]]:
    """Lay out the rounds.

    Parameters
    ----------
    taps : (outputs, k) int64
        Flat positions of each output's candidates in the input sample, -1 for none.

    Returns
    -------
    tournament : Tournament
    contests : per round, (rows, 5) int64
        parent unit, piece, round and number of the child unit within it, for every unit of the
        losing half of the tree; numbers count within a round. (The parent's round is the index.)
    """
    order = np.argsort(taps < 0, axis=1, kind="stable")
    candidates = np.take_along_axis(taps, order, axis=1)
    counts = (taps >= 0).sum(axis=1)
    rows = np.arange(len(taps))
    left, right, passing, shapes, contests = [], [], [], [], []
    origin: Indices | None = None  # unit (counted over all rounds) behind each working position
    first = 0
    beneath = _Subtrees()
    while counts.max() > 1:
        width = candidates.shape[1]
        half = (width + 1) // 2
        slots = np.arange(half)
        paired = 2 * slots[None, :] + 1 < counts[:, None]
        lone = 2 * slots[None, :] + 1 == counts[:, None]
        a = candidates[:, 0::2]
        b = np.full_like(a, -1)
        b[:, : width // 2] = candidates[:, 1::2]
        first_half, second_half, through = a[paired], b[paired], a[lone]
        units = len(first_half)
        below = [
            np.full(units, -1) if origin is None else origin[side]
            for side in (first_half, second_half)
        ]
        contests.append(beneath.contests(below[0], below[1], largest))
        beneath = beneath.extended(below[0], below[1], first)
        unit_ids = first + np.arange(units)
        passed = np.full(len(through), -1) if origin is None else origin[through]
        origin = np.concatenate([unit_ids, passed])
        candidates = np.full((len(taps), half), -1)
        candidates[paired] = np.arange(units)
        candidates[lone] = units + np.arange(len(through))
        counts = (counts + 1) // 2
        left.append(torch.from_numpy(first_half))
        right.append(torch.from_numpy(second_half))
        passing.append(torch.from_numpy(through))
        shapes.append((units,))
        first += units
    final = torch.from_numpy(candidates[rows, 0])
    tournament = Tournament(
        kind=kind,
        shapes=tuple(shapes),
        native=native,
        largest=largest,
        left=tuple(left),
        right=tuple(right),
        passing=tuple(passing),
        final=final,
        out_shape=out_shape,
    )
    return tournament, tuple(contests)


class _Subtrees:
    """Units below each unit, as one ragged array; units are counted over all rounds."""

    def __init__(self, offsets: Indices | None = None, members: Indices | None = None) -> None:
        self.offsets = np.zeros(1, np.int64) if offsets is None else offsets
        self.members = np.zeros(0, np.int64) if members is None else members

    def of(self, units: Indices) -> tuple[Indices, Indices]:
        """Return (row, member): for every entry of `units` itself and all units below it."""
        rows = np.flatnonzero(units >= 0)
        roots = units[rows]
        lengths = self.offsets[roots + 1] - self.offsets[roots]
        row = np.repeat(rows, lengths)
        start = np.repeat(self.offsets[roots] - np.cumsum(lengths) + lengths, lengths)
        member = self.members[start + np.arange(len(row))]
        return np.concatenate([rows, row]), np.concatenate([roots, member])

    def contests(self, left: Indices, right: Indices, largest: bool) -> Indices:
        """Rows (unit within the round, piece, child): piece 1 means left > right."""
        left_row, left_child = self.of(left)
        right_row, right_child = self.of(right)
        left_loses = 0 if largest else 1
        return np.concatenate(
            [
                np.stack([left_row, np.full_like(left_row, left_loses), left_child], axis=1),
                np.stack([right_row, np.full_like(right_row, 1 - left_loses), right_child], axis=1),
            ]
        )

    def extended(self, left: Indices, right: Indices, first: int) -> _Subtrees:
        """Append a round whose units have these children (-1: an input)."""
        row, member = map(np.concatenate, zip(self.of(left), self.of(right), strict=True))
        order = np.argsort(row, kind="stable")
        lengths = np.bincount(row, minlength=len(left))
        offsets = np.concatenate([self.offsets, self.offsets[-1] + np.cumsum(lengths)])
        return _Subtrees(offsets, np.concatenate([self.members, member[order]]))


def pooling_taps(
    channels: int,
    sizes: Sequence[int],
    windows: Sequence[Indices],
) -> Indices:
    """Combine one-dimensional windows into taps of flat (channels, *sizes) samples.

    Parameters
    ----------
    windows : per axis, (out, k) int64
        Positions along the axis, -1 for padding (whose value is minus infinity: it never wins).

    Returns
    -------
    (channels * prod(out), prod(k)) int64
    """
    position = np.zeros((1, 1), np.int64)
    for size, window in zip(sizes, windows, strict=True):
        outer, inner = position[:, None, :, None], window[None, :, None, :]
        joined = np.where((outer >= 0) & (inner >= 0), outer * size + inner, -1)
        position = joined.reshape(-1, position.shape[1] * window.shape[1])
    volume = int(np.prod(sizes, dtype=np.int64))
    channel = np.arange(channels)[:, None, None] * volume
    return np.where(position >= 0, channel + position, -1).reshape(-1, position.shape[1])


def strided_windows(
    size: int, out: int, kernel: int, stride: int, padding: int, dilation: int
) -> Indices:
    """Window positions along one axis of an ordinary pooling."""
    position = np.arange(out)[:, None] * stride - padding + np.arange(kernel)[None] * dilation
    return np.where((position >= 0) & (position < size), position, -1)


def adaptive_windows(size: int, out: int) -> Indices:
    """Window positions along one axis of an adaptive pooling: floor(i s/o) to ceil((i+1) s/o)."""
    start = np.arange(out) * size // out
    end = -(-(np.arange(1, out + 1) * size) // out)
    position = start[:, None] + np.arange((end - start).max())[None]
    return np.where(position < end[:, None], position, -1)
