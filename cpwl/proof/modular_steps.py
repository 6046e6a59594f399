"""The coefficients of a network's steps as remainders, and what is multiplied by them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cpwl.proof.cells import NoSuchPieceError
from cpwl.proof.exact_network import (
    Affine,
    Bend,
    Convolution,
    Matrix,
    Pieces,
    Wave,
    gathered,
)
from cpwl.proof.residues import Residues, lowest_shift

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

UP = 1 + 1e-9  # covers the rounding of bounds that need not be sharp


class Dense:
    """A matrix, or the blocks of a convolution's groups, as remainders."""

    def __init__(self, weights: Floats, columns: Integers) -> None:
        self._weights = weights  # (groups, outputs, terms)
        self._columns = columns  # (groups, terms, positions) entries; their number: none
        self.shift = lowest_shift(weights)
        self.terms = weights.shape[2]
        self.sum = float(np.abs(weights).sum(axis=2).max(initial=0.0)) * UP

    def reduce(self, residues: Residues) -> None:
        """Take the remainders."""
        self._rows = residues.of(self._weights, self.shift).astype(np.float32)

    def times(self, x: NDArray[np.float32]) -> Floats:
        """Multiply rows (n, entries, P + 1): integers up to 2^52."""
        count, entries, width = x.shape
        groups, outputs, terms = self._weights.shape
        positions = self._columns.shape[2]
        out = np.empty((count, groups, outputs, positions * width))
        padded = np.zeros((entries + 1, width))
        picked = np.empty((groups, terms, positions, width))
        for i in range(count):
            padded[:-1] = x[i]
            np.take(padded, self._columns, axis=0, out=picked, mode="clip")
            flat = picked.reshape(groups, terms, -1)
            np.matmul(self._rows[i].astype(np.float64), flat, out=out[i])
        return out.reshape(count, -1, width)


class Sparse:
    """A sparse matrix as remainders: the j-th entries of all rows at once."""

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix
        self.shift = lowest_shift(matrix.values)
        self.terms = int(matrix.counts.max(initial=0))
        row = np.repeat(np.arange(matrix.shape[0]), matrix.counts)
        self.sum = float(np.bincount(row, np.abs(matrix.values)).max(initial=0.0)) * UP
        place = np.arange(len(row)) - (np.cumsum(matrix.counts) - matrix.counts)[row]
        self._rows = [(row[place == j], np.flatnonzero(place == j)) for j in range(self.terms)]

    def reduce(self, residues: Residues) -> None:
        """Take the remainders."""
        self._values = residues.of(self._matrix.values, self.shift).astype(np.float32)

    def times(self, x: NDArray[np.float32]) -> Floats:
        """Multiply rows (n, entries, P + 1): integers up to 2^52."""
        out = np.zeros((len(x), self._matrix.shape[0], x.shape[2]))
        for rows, entries in self._rows:
            factor = self._values[:, entries, None].astype(np.float64)
            out[:, rows] += factor * x[:, self._matrix.columns[entries]]
        return out


class Linear:
    """What an affine step multiplies and adds."""

    def __init__(self, step: Affine) -> None:
        self.parts = [_weights(part.matrix) for part in step.parts]
        self.shift = max((part.shift for part in self.parts), default=0)
        self.offset_shift = lowest_shift(step.offset)
        self.terms = max((part.terms for part in self.parts), default=1)
        self._offset = float(np.abs(step.offset).max(initial=0.0))

    def reduce(self, residues: Residues) -> None:
        """Take the remainders."""
        for part in self.parts:
            part.reduce(residues)

    def bound(self, largest: list[float]) -> float:
        """Bound the entries, from those of the parts' sources."""
        total = sum(part.sum * x for part, x in zip(self.parts, largest, strict=True))
        return (total + self._offset) * UP


def _weights(matrix: Matrix | Convolution) -> Dense | Sparse:
    """Choose how a matrix is multiplied."""
    if isinstance(matrix, Convolution):
        groups = matrix.groups
        shape = (groups, matrix.out[0] // groups, -1)
        return Dense(matrix.weights.reshape(shape), gathered(matrix))
    height, width = matrix.shape
    if 4 * len(matrix.values) < height * width:
        return Sparse(matrix)
    table = np.zeros((1, height, width))
    table[0, np.repeat(np.arange(height), matrix.counts), matrix.columns] = matrix.values
    return Dense(table, np.arange(width).reshape(1, -1, 1))


class Scalars:
    """Slopes and offsets of scalar units: each one's among the numbers that occur."""

    def __init__(self, step: Pieces) -> None:
        finite = np.isfinite(step.slopes) & np.isfinite(step.offsets)
        self._broken, self._first = ~finite, step.first_unit
        slopes, self._slope = np.unique(np.where(finite, step.slopes, 0.0), return_inverse=True)
        offsets, self._offset = np.unique(np.where(finite, step.offsets, 0.0), return_inverse=True)
        shape = step.slopes.shape
        self._slope, self._offset = self._slope.reshape(shape), self._offset.reshape(shape)
        self.slopes = slopes
        self.offsets = offsets if offsets.any() else None
        self._kept = bool(np.isin(slopes, (-1.0, 0.0, 1.0)).all())  # nothing to reduce
        self.shift = lowest_shift(slopes)
        self.offset_shift = lowest_shift(offsets)
        self.terms = 1
        self._steep = float(np.abs(slopes).max(initial=0.0))
        self._far = float(np.abs(offsets).max(initial=0.0))

    def reduce(self, residues: Residues) -> None:
        """Take the remainders."""
        self._table = residues.of(self.slopes, self.shift)
        self._reduced = residues.reduced

    def times(self, rows: NDArray[np.float32], pieces: Integers) -> NDArray[np.floating]:
        """Multiply rows (n, units, P + 1) by the slopes of the pieces."""
        every = np.arange(len(pieces))
        broken = np.flatnonzero(self._broken[pieces, every])
        if len(broken):
            raise NoSuchPieceError(self._first + int(broken[0]), int(pieces[broken[0]]))
        chosen = self._slope[pieces, every]
        if self._kept:
            return rows * self.slopes[chosen, None].astype(np.float32)
        return self._reduced(rows * self._table[:, chosen, None])

    def add(self, residues: Residues, made: Floats, pieces: Integers, shift: int) -> None:
        """Add the offsets of the pieces, in place."""
        assert self.offsets is not None
        every = np.arange(len(pieces))
        made[:, :, -1] += residues.of(self.offsets, shift)[:, self._offset[pieces, every]]
        residues.reduced(made)

    def bound(self, largest: list[float]) -> float:
        """Bound the entries, from those of the source."""
        return (self._steep * largest[0] + self._far) * UP


class Chosen:
    """A contest passes entries on."""

    shift = offset_shift = 0
    terms = 1

    def reduce(self, residues: Residues) -> None:
        """Nothing is multiplied."""

    def bound(self, largest: list[float]) -> float:
        """Bound the entries, from those of the source."""
        return largest[0]


def prepared(step: Affine | Bend) -> Linear | Scalars | Chosen:
    """Prepare what a step multiplies."""
    if isinstance(step, Affine):
        return Linear(step)
    if isinstance(step, Wave):
        raise ValueError(
            "Expected a large network without triangle waves, got one. Use cpwl.check, which works "
            "in float64."
        )
    return Scalars(step) if isinstance(step, Pieces) else Chosen()
