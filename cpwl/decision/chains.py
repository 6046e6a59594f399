"""Links between nodes, strung into chains: outlines of polygons, polylines."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import Ints, kernel


class Chains(NamedTuple):
    """Chains of nodes: those of chain i are ``nodes[offsets[i]:offsets[i + 1]]``."""

    offsets: Ints  # (n + 1,)
    nodes: Ints
    link: Ints  # (n,) the first link of each
    closed: NDArray[np.bool_]  # (n,) the last node is linked to the first


def chains(links: Ints) -> Chains:
    """Join links (L, 2) where exactly two of them meet.

    A chain that is not closed begins and ends where one link ends or more than two meet. Where the
    links of a chain point the same way, the chain does too. No link joins a node to itself.
    """
    ends = np.ascontiguousarray(links, np.int64).reshape(-1)
    order = np.argsort(ends, kind="stable")
    _, first, count = np.unique(ends[order], return_index=True, return_counts=True)
    one, other = order[first[count == 2]], order[first[count == 2] + 1]
    mate = np.full(len(ends), -1)
    mate[one], mate[other] = other, one
    size = len(links)
    offsets, nodes = np.zeros(size + 1, np.int64), np.empty(2 * size, np.int64)
    link, closed = np.empty(size, np.int64), np.empty(size, np.bool_)
    n = _string(ends, mate, offsets, nodes, link, closed)
    return Chains(offsets[: n + 1], nodes[: offsets[n]], link[:n], closed[:n])


@kernel
def _string(ends, mate, offsets, nodes, link, closed):
    """Walk from end to end. The ends of link l are 2 l and 2 l + 1, end e's mate is on its node."""
    seen = np.zeros(len(link), np.bool_)
    count, place = 0, 0
    for turn in range(3):  # from where a link begins, from where one ends, and around
        for start in range(turn % 2, len(ends), 2):
            if seen[start >> 1] or (turn < 2 and mate[start] >= 0):
                continue
            end, last = start, start
            while end >= 0 and not seen[end >> 1]:
                seen[end >> 1] = True
                nodes[place] = ends[end]
                place += 1
                last = end ^ 1
                end = mate[last]
            if turn < 2:
                nodes[place] = ends[last]
                place += 1
            link[count], closed[count] = start >> 1, turn == 2
            count += 1
            offsets[count] = place
    return count
