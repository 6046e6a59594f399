"""Kernels on packed activation patterns."""

from __future__ import annotations

import numpy as np
from numba import uint64

from cpwl.arrays.kernels import inlined, kernel


@inlined
def _popcount(word):
    """Count the set bits of a 64-bit word."""
    word = word - ((word >> uint64(1)) & uint64(0x5555555555555555))
    word = (word & uint64(0x3333333333333333)) + ((word >> uint64(2)) & uint64(0x3333333333333333))
    word = (word + (word >> uint64(4))) & uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * uint64(0x0101010101010101)) >> uint64(56))


@inlined
def _lowest(word):
    """Give the index of the lowest set bit of a non-zero word."""
    return _popcount((word & (~word + uint64(1))) - uint64(1))


@inlined
def _bit(words, column):
    """Tell whether bit ``column`` of a packed row is set."""
    return (words[column >> 6] >> uint64(column & 63)) & uint64(1) != uint64(0)


@kernel
def spread_bits(source, column, fill, start, stop, target):
    """Rewrite packed rows on other columns: bit k goes to bit ``column[k]``, or nowhere at -1.

    ``fill`` (packed) holds the bits of the columns that the source does not have.
    """
    for r in range(start, stop):
        for w in range(target.shape[1]):
            target[r, w] = fill[w]
        for w in range(source.shape[1]):
            word = source[r, w]
            while word != uint64(0):
                c = column[64 * w + _lowest(word)]
                word &= word - uint64(1)
                if c >= 0:
                    target[r, c >> 6] |= uint64(1) << uint64(c & 63)


@kernel
def unpack_pieces(patterns, bit_unit, base, pieces):
    """Write the piece of every unit: its base plus the number of its bits that are set."""
    for r in range(patterns.shape[0]):
        for u in range(base.shape[0]):
            pieces[r, u] = base[u]
        for w in range(patterns.shape[1]):
            word = patterns[r, w]
            while word != uint64(0):
                pieces[r, bit_unit[64 * w + _lowest(word)]] += 1
                word &= word - uint64(1)


@kernel
def first_switches(patterns, sides, bit_unit, bit_of, above, found):
    """Find the first bit in which two cells differ, of a unit above which (-1: none) no other does.

    ``bit_of`` has a bit of each unit, -1 where it never switches.
    """
    for r in range(sides.shape[0]):
        one, other = patterns[sides[r, 0]], patterns[sides[r, 1]]
        for w in range(patterns.shape[1]):
            word = one[w] ^ other[w]
            while word != uint64(0) and found[r] < 0:
                j = 64 * w + _lowest(word)
                word &= word - uint64(1)
                u = above[bit_unit[j]]
                while u >= 0 and (bit_of[u] < 0 or _bit(one, bit_of[u]) == _bit(other, bit_of[u])):
                    u = above[u]
                if u < 0:
                    found[r] = j


@kernel
def clear_lost(patterns, parent_bit, piece, child_bit, start, stop):
    """Clear the bits of children whose parent (bit -1: always) is on the given piece."""
    for c in range(start, stop):
        for k in range(child_bit.shape[0]):
            if parent_bit[k] < 0 or _bit(patterns[c], parent_bit[k]) == (piece[k] == 1):
                j = child_bit[k]
                patterns[c, j >> 6] &= ~(uint64(1) << uint64(j & 63))
