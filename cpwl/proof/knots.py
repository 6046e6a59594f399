"""Knots of single units as exact rows, from the patterns of cells beside them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cpwl.domain import Slice
from cpwl.network import Network
from cpwl.proof.cells import Patterns, winners
from cpwl.proof.exact_network import Affine, Bend, Contest, Wave, units
from cpwl.proof.reading import read_exactly
from cpwl.proof.tiling import lexicographic


def knot_rows(
    network: Network,
    place: Slice,
    pieces: NDArray[np.integer],
    unit: NDArray[np.integer],
    lower: NDArray[np.integer],
    *,
    progress: bool = False,
) -> list[list[Fraction]]:
    """Return (a_1, ..., a_P, c) for each knot: the unit minus its breakpoint is a s + c.

    Parameters
    ----------
    network : Network
    place : Slice
    pieces : (n, num_units)
        A pattern for each knot.
    unit, lower : (n,)
        The unit, and its piece below the knot.
    progress : bool
        Whether to show a bar.

    Raises
    ------
    ValueError
        As for `read_exactly`.
    """
    exact = read_exactly(network)
    owner: dict[int, tuple[Bend, int]] = {}
    for step in exact.steps:
        if not isinstance(step, Affine):
            owner |= {number: (step, i) for i, number in enumerate(units(step).tolist())}
    patterns = Patterns(exact, place.origin, place.basis.reshape(place.dim, -1), [])
    found: list[list[Fraction]] = [[]] * len(pieces)
    order, first = lexicographic(pieces) if len(pieces) else ([], [])
    bar = tqdm(order, desc="knots", unit="knot", delay=1, disable=not progress)
    for number, start in zip(bar, first, strict=True):
        patterns.cell(number, pieces[number], start)
        step, i = owner[int(unit[number])]
        rows, shift = patterns.values[step.source]
        row, piece = rows[i], int(lower[number])
        knot = Fraction(0)
        if isinstance(step, Contest):
            leaf = winners(step, len(rows), pieces[number, step.units].tolist())
            sides = (rows[leaf[side[i]]] for side in (step.left, step.right))
            row = [a - b for a, b in zip(*sides, strict=True)]
        elif isinstance(step, Wave):
            knot = (piece + 1) * Fraction(step.period) / 2 - Fraction(step.phase)
        else:
            knot = Fraction(step.points[piece, i])
        found[number] = [Fraction(int(x), 1 << shift) for x in row]
        found[number][-1] -= knot
    return found
