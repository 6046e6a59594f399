"""Merging of the cells of a lattice that max-pooling cut without effect.

The cells on both sides of such a knot have the same pattern, and their union is convex; see
`cpwl.engine.contests`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import Ints, Ragged, prefix
from cpwl.engine.columns import units_of
from cpwl.engine.contests import clear_lost, compare_sides, components, contests_of
from cpwl.engine.space import lattice_kernels as kernels
from cpwl.engine.space.lattice import Lattice
from cpwl.network import Network


def merge_contested(
    lattice: Lattice,
    network: Network,
    stage: int,
    bit_unit: NDArray[np.int32],
    base: NDArray[np.int32],
    pool: ThreadPoolExecutor,
) -> Lattice:
    """Clear the bits that have no effect and merge the cells that then agree.

    Parameters
    ----------
    stage
        What its contests leave without effect is cleared.
    bit_unit, base
        As in `cpwl.engine.contests.clear_lost`.
    """
    contests = contests_of(network, stage)
    cleared, patterns = clear_lost(lattice.patterns, contests, bit_unit, base, pool)
    if len(cleared) == 0:
        return lattice
    bit = lattice.facet_bit.copy()
    sides = np.full((len(bit), 2), -1, np.int32)
    kernels.facet_sides(*lattice.faces[-1], bit, lattice.patterns, sides)
    found = compare_sides(patterns, cleared, network, bit_unit, units_of(bit, bit_unit), sides)
    bit[found.left] = found.deciding
    return merge(replace(lattice, patterns=patterns, facet_bit=bit), found.removed)


def merge(lattice: Lattice, removed: Ints) -> Lattice:
    """Drop facets between cells of one pattern, and all faces that nothing ends at any more.

        +-----+-----+         +-----------+
        |  A  :  A  |   ->    |     A     |    ':' goes, and the vertex above it; the vertex below
        +-----+-----+         +-----+-----+    stays as long as the knot '|' under it ends there
              |                     |

    From dimension P - 1 down: a face that lies in no face of one dimension more any longer is
    dropped. One that lies in exactly two is dropped, and the two are joined: cells are convex, so
    the two lie in one flat. Only a face of dimension P - 2 in two different sides of the domain
    stays: it is a ridge of the domain itself. (Faces of the domain of a smaller dimension k lie in
    P - k or more.)

    Cost: n log n in the incidences of the lattice.
    """
    if len(removed) == 0:
        return lattice
    group, gone = _joined(lattice, removed)
    number = [_numbered(g, lost) for g, lost in zip(group, gone, strict=True)]
    faces = [
        _renumbered(old, number[k], number[k - 1]) for k, old in enumerate(lattice.faces, start=1)
    ]
    vertices = number[0] >= 0
    return replace(
        lattice,
        points=lattice.points[vertices],
        error=lattice.error[vertices],
        likely=lattice.likely[vertices],
        names=lattice.names[vertices],
        faces=tuple(faces),
        facet_bit=lattice.facet_bit[_firsts(number[-2])],
        patterns=lattice.patterns[_firsts(number[-1])],
    )


def _joined(lattice: Lattice, removed: Ints) -> tuple[list[NDArray], list[NDArray[np.bool_]]]:
    """Group the faces of each dimension 0..P that are joined, and flag those that are dropped."""
    dim = len(lattice.faces)
    counts = [len(lattice.points), *(len(faces.offsets) - 1 for faces in lattice.faces)]
    gone = [np.zeros(n, np.bool_) for n in counts]
    group: list[NDArray] = [np.arange(n) for n in counts]
    gone[dim - 1][removed] = True
    side = np.minimum(lattice.facet_bit, 0)  # of the domain; 0 inside
    for k in range(dim - 1, -1, -1):
        owner, item = _incidences(lattice.faces[k])
        alive = ~gone[k + 1][owner]
        owner, item = owner[alive], item[alive]
        if k < dim - 1:
            count = np.bincount(item, minlength=counts[k])
            gone[k] = count == 0
            pairs = _pairs(owner, item, count == 2)
            if k == dim - 2:
                pairs = pairs[side[pairs[:, 1]] == side[pairs[:, 2]]]
            gone[k][pairs[:, 0]] = True
        else:
            between = gone[k][item]
            pairs = _pairs(owner, item, np.bincount(item[between], minlength=counts[k]) == 2)
        group[k + 1] = components(pairs[:, 1], pairs[:, 2], counts[k + 1])
    return group, gone


def _renumbered(faces: Ragged, number: Ints, below: Ints) -> Ragged:
    """List the new faces by the new numbers of their boundaries, ascending; -1 is gone."""
    owner, item = _incidences(faces)
    owner, item = number[owner], below[item]
    alive = (owner >= 0) & (item >= 0)
    n_items = int(below.max()) + 1
    rows, items = np.divmod(np.unique(owner[alive] * n_items + item[alive]), n_items)
    sizes = np.bincount(rows, minlength=int(number.max()) + 1)
    return Ragged(prefix(sizes), items.astype(np.int32))


def _incidences(faces: Ragged) -> tuple[Ints, Ints]:
    """List the pairs of a face and a face of its boundary."""
    owner = np.repeat(np.arange(len(faces.offsets) - 1), np.diff(faces.offsets))
    return owner, faces.items.astype(np.int64)


def _pairs(owner: NDArray, item: NDArray, chosen: NDArray[np.bool_]) -> Ints:
    """List (item, owner, owner) for the chosen items, each of which has two owners."""
    at = np.flatnonzero(chosen[item])
    at = at[np.argsort(item[at], kind="stable")].reshape(-1, 2)
    return np.stack([item[at[:, 0]], owner[at[:, 0]], owner[at[:, 1]]], axis=1)


def _numbered(group: Ints, gone: NDArray[np.bool_]) -> Ints:
    """Give the groups that stay numbers in their order, and -1 to what is gone."""
    stays = np.zeros(int(group.max()) + 1, np.bool_)
    stays[group[~gone]] = True
    new = np.where(stays, np.cumsum(stays) - 1, -1)
    return np.where(gone, -1, new[group])


def _firsts(number: Ints) -> Ints:
    """Find the first member of every number."""
    first = np.empty(int(number.max()) + 1, np.int64)
    order = np.flatnonzero(number >= 0)[::-1]
    first[number[order]] = order
    return first
