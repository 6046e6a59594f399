"""Face lattices straight from the engine, and what must hold for every one of them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from oracles.layers import LINEAR, Layer, layer, network
from support.agreement import capture

import cpwl
from cpwl.arrays.ragged import Ragged
from cpwl.engine.rational.arbiter import Arbiter
from cpwl.engine.space.lattice import Corners, Lattice, RefinedLattice, corners
from cpwl.engine.space.refinement import refine_lattice
from cpwl.engine.work import Work


def refined(net: cpwl.Network, domain: cpwl.Domain, memory: int = 2**30) -> RefinedLattice:
    """Subdivide a domain of any dimension as a lattice, also where `subdivide` would not."""
    return arbitrated(net, domain, memory)[0]


def arbitrated(
    net: cpwl.Network, domain: cpwl.Domain, memory: int = 2**30
) -> tuple[RefinedLattice, Arbiter]:
    """Subdivide a domain as a lattice, and return who knows its vertices exactly as well."""
    with ThreadPoolExecutor(1) as pool:
        arbiter = Arbiter(net, domain)
        work = Work(
            network=net, arbiter=arbiter, slice=domain.slice, memory=memory, pool=pool,
            report=lambda share, cells: None,
        )  # fmt: skip
        return refine_lattice(work, domain), arbiter


def one_layer(weight: Sequence, bias: Sequence) -> cpwl.Network:
    """Return a layer of ReLUs and a linear one."""
    return capture(network(layer(weight, bias), layer([[1] * len(bias)], [0], LINEAR)))


def layers_on_box(layers: Sequence[Layer], radius: float, memory: int = 2**30) -> RefinedLattice:
    """Subdivide the box [-radius, radius]^P."""
    net = capture(layers)
    dim = net.input_shape[0]
    return refined(net, cpwl.box([-radius] * dim, [radius] * dim), memory)


def named(lattice: Lattice) -> Corners:
    """List the corners of cells and facets."""
    with ThreadPoolExecutor(2) as pool:
        return corners(lattice, pool)


def counts(lattice: Lattice) -> list[int]:
    """Count the faces of dimension 0 to P."""
    return [len(lattice.points), *(len(faces.offsets) - 1 for faces in lattice.faces)]


def inner_counts(lattice: Lattice) -> list[int]:
    """Count the faces of dimension 0 to P that do not lie in the domain's boundary."""
    dim = len(lattice.faces)
    outside = lattice.facet_bit < 0
    found = [int((~outside).sum()), counts(lattice)[dim]]
    for faces in reversed(lattice.faces[: dim - 1]):
        owner, item = incidences(faces)
        below = np.zeros(int(faces.items.max()) + 1, np.bool_)
        below[item[outside[owner]]] = True
        outside = below
        found.insert(0, int((~outside).sum()))
    return found


def incidences(faces: Ragged) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """List the pairs of a face and a face of its boundary."""
    return np.repeat(np.arange(len(faces.offsets) - 1), np.diff(faces.offsets)), faces.items


def corner_sets(lattice: Lattice, dim: int) -> list[frozenset[int]]:
    """Return the vertices of every face of a dimension."""
    sets = [frozenset([v]) for v in range(len(lattice.points))]
    for faces in lattice.faces[:dim]:
        rows = np.split(faces.items, faces.offsets[1:-1])
        sets = [frozenset().union(*(sets[i] for i in row)) for row in rows]
    return sets


def pieces(made: RefinedLattice) -> NDArray[np.int64]:
    """Return the piece of every unit on every cell."""
    found = np.tile(made.base.astype(np.int64), (len(made.lattice.patterns), 1))
    words = made.lattice.patterns
    for bit in np.flatnonzero(made.bit_unit >= 0):
        found[:, made.bit_unit[bit]] += (words[:, bit >> 6] >> np.uint64(bit & 63) & 1).astype(int)
    return found


def assert_sound(lattice: Lattice, *, flat: bool = True) -> None:
    """Require a complex of polytopes: whatever holds for all of them without a coordinate.

    In a face of dimension k every face of dimension k - 2 lies in exactly two of dimension k - 1,
    its boundary has the Euler characteristic of a sphere, and no two faces have the same vertices.
    Every facet has two cells, or one on the boundary, and the cells' patterns differ in its bit.
    Unless `flat`, the faces may be curved: several of them may have the same vertices.
    """
    n = counts(lattice)
    assert sum((-1) ** k * count for k, count in enumerate(n)) == 1
    ends = lattice.faces[0].items.reshape(-1, 2)
    assert (ends[:, 0] != ends[:, 1]).all()
    for k, faces in enumerate(lattice.faces, 1):
        owner, item = incidences(faces)
        assert len(np.unique(owner * n[k - 1] + item)) == len(item)
        assert len(np.unique(item)) == n[k - 1]
        assert not flat or len(set(corner_sets(lattice, k))) == n[k]
        signs = (-1) ** (k - 1) * np.bincount(owner, minlength=n[k])
        for below in range(k - 2, -1, -1):
            mine = lattice.faces[below]
            sizes = np.diff(mine.offsets)[item]
            first = np.repeat(mine.offsets[item] - np.cumsum(sizes) + sizes, sizes)
            pairs = np.repeat(owner, sizes) * n[below]
            pairs += mine.items[first + np.arange(sizes.sum())]
            pairs, times = np.unique(pairs, return_counts=True)
            if below == k - 2:
                assert (times == 2).all()
            owner, item = np.divmod(pairs, n[below])
            signs += (-1) ** below * np.bincount(owner, minlength=n[k])
        assert (signs == 1 - (-1) ** k).all()
    owner, facet = incidences(lattice.faces[-1])
    boundary = lattice.facet_bit < 0
    assert (np.bincount(facet)[boundary] == 1).all()
    assert (np.bincount(facet)[~boundary] == 2).all()
    inner = ~boundary[facet]
    order = np.argsort(facet[inner], kind="stable")
    pairs = owner[inner][order].reshape(-1, 2)
    bit = lattice.facet_bit[~boundary].astype(np.uint64)
    word = (bit >> np.uint64(6)).astype(np.int64)
    differ = lattice.patterns[pairs[:, 0], word] ^ lattice.patterns[pairs[:, 1], word]
    assert (differ >> (bit & np.uint64(63)) & np.uint64(1) == 1).all()
