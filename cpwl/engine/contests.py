"""Contests of max-pooling: bits without effect on the outputs, and cells of equal patterns.

A max-pooling unit is captured as a tree of pairwise maxima. A knot inside a half of the tree that
loses has no effect: the cells on its two sides are one, and so are the cells on the two sides of
the line along which a domain was cut into strips.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cpwl.arrays import Ints, in_parallel, pattern_kernels
from cpwl.network import Network


class Contested(NamedTuple):
    """Facets on knots that may have no effect."""

    removed: Ints  # between cells that agree
    left: Ints  # between cells that do not
    deciding: Ints  # (len(left),) the bits that the latter are named after


def contests_of(network: Network, stage: int) -> NDArray[np.int32]:
    """Return the contests that are decided in a stage: those whose parent unit belongs to it."""
    parent = network.contests[:, 0]
    first, last = network.stage_offsets[stage : stage + 2]
    return network.contests[(first <= parent) & (parent < last)]


def clear_lost(
    patterns: NDArray[np.uint64],
    contests: NDArray[np.int32],
    bit_unit: NDArray[np.int32],
    base: NDArray[np.int32],
    pool: ThreadPoolExecutor,
) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
    """Clear the bits of units that have no effect.

    Parameters
    ----------
    contests : (K, 3)
        (parent unit, piece, child unit): while the parent is on the piece, the child has no effect.
    bit_unit : (64 * W,)
        Unit of each bit of the patterns, -1 for padding.
    base : (num_units,)
        Pieces of the units that do not vary.

    Returns
    -------
    tuple
        The units that may have been cleared, and the patterns.
    """
    bit_of = np.full(len(base), -1, np.int64)
    used = np.flatnonzero(bit_unit >= 0)
    bit_of[bit_unit[used]] = used
    parent, piece, child = contests.T
    matters = (bit_of[child] >= 0) & ((bit_of[parent] >= 0) | (base[parent] == piece))
    parent, piece, child = parent[matters], piece[matters], child[matters]
    if len(child) == 0:
        return child, patterns
    patterns = patterns.copy()
    in_parallel(
        pool,
        lambda a, b: pattern_kernels.clear_lost(
            patterns, bit_of[parent], piece, bit_of[child], a, b
        ),
        len(patterns),
        nanoseconds=2 * len(child),
    )
    return child, patterns


def compare_sides(
    patterns: NDArray[np.uint64],
    cleared: NDArray,
    network: Network,
    bit_unit: NDArray[np.int32],
    unit: NDArray,
    sides: NDArray,
) -> Contested:
    """Sort out the facets (unit, two cells) on knots of units that may have been cleared.

    A facet that stays is named after the first unit that switches with an effect on both sides: of
    a window the match in which the winners meet, above which all are decided alike. Those two cells
    give it that name in every domain. A match beneath may differ in one domain and not in another.
    """
    candidates = np.flatnonzero(np.isin(unit, cleared))
    same = same_pattern(patterns, *sides[candidates].T)
    left = candidates[~same]
    above = np.full(network.num_units, network.num_units, np.int64)
    np.minimum.at(above, network.contests[:, 2], network.contests[:, 0])
    above[above == network.num_units] = -1
    bit_of = np.full(network.num_units, -1, np.int64)
    used = np.flatnonzero(bit_unit >= 0)
    bit_of[bit_unit[used]] = used
    deciding = np.full(len(left), -1, np.int64)
    pattern_kernels.first_switches(
        patterns, sides[left].astype(np.int64), bit_unit, bit_of, above, deciding
    )
    return Contested(candidates[same], left, deciding)


def same_pattern(patterns: NDArray[np.uint64], a: NDArray, b: NDArray) -> NDArray[np.bool_]:
    """Compare the patterns of pairs of cells, a word at a time to save memory."""
    same = np.ones(len(a), np.bool_)
    for word in range(patterns.shape[1]):
        same &= patterns[a, word] == patterns[b, word]
    return same


def components(a: NDArray, b: NDArray, n: int) -> NDArray[np.int32]:
    """Label the connected components of n nodes, in the order of their first nodes."""
    return connected_components(coo_array((np.ones(len(a), np.bool_), (a, b)), (n, n)), False)[1]
