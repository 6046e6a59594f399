"""The complex that the n-dimensional engine refines: all faces of all dimensions, by incidence."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import Floats, Ints, Ragged, in_parallel, prefix
from cpwl.domain import Domain, face_lattice
from cpwl.engine.rational import Vertices
from cpwl.engine.space import lattice_kernels as kernels


@dataclass(frozen=True, eq=False)
class Lattice:
    """Faces of a subdivided polytope of dimension P.

    Facets are the faces of dimension P - 1 (for P = 1 the vertices). A face is convex, and the
    cells meet face to face, but for cells that were merged: then a face of dimension k may have
    several faces of dimension k - 1 in one plane.
    """

    points: Floats  # (V, P)
    error: Floats  # (V,) bound on the distance of a point from the exact vertex
    likely: Floats  # (V,) the same as an estimate
    names: Ints  # (V,) the arbiter's numbers of the vertices
    faces: tuple[Ragged, ...]  # entry k - 1: dimension k = 1..P, by the faces of dimension k - 1
    facet_bit: NDArray[np.int32]  # (F,) bit of the pattern that differs, -1 - i on domain side i
    patterns: NDArray[np.uint64]  # (C, W) packed bits of the stages so far


def whole(domain: Domain, corners: Vertices) -> Lattice:
    """Make the lattice of an undivided domain with these corners."""
    faces = face_lattice(domain.sides, len(corners.points), domain.dim)
    sides = -1 - np.arange(len(domain.sides), dtype=np.int32)
    if domain.dim == 1:  # sides are vertices then
        sides = sides[np.argsort(np.concatenate(domain.sides))]
        faces = (Ragged(np.array([0, 2]), np.array([0, 1], np.int32)),)
    points, error, names = corners
    return Lattice(
        points=points,
        error=error,
        likely=error.copy(),
        names=names,
        faces=faces,
        facet_bit=sides,
        patterns=np.empty((1, 0), np.uint64),
    )


def nbytes(lattice: Lattice) -> int:
    """Sum the sizes of a lattice's arrays."""
    single = [x for x in vars(lattice).values() if isinstance(x, np.ndarray)]
    return sum(x.nbytes for rows in (single, *lattice.faces) for x in rows)


class Corners(NamedTuple):
    """A lattice as a partition describes it."""

    cells: Ragged  # vertices, ascending
    cell_facets: Ragged  # ascending
    facets: Ragged  # vertices, ascending
    sides: NDArray[np.int32]  # (F, 2) cells


def corners(lattice: Lattice, pool: ThreadPoolExecutor) -> Corners:
    """List the vertices of cells and facets, and the cells of facets.

    Cost: the sum over all faces, of all dimensions from 2 up, of the vertices of their facets.
    """
    n_points = len(lattice.points)
    vertices = Ragged(np.arange(n_points + 1), np.arange(n_points, dtype=np.int32))
    facets = vertices
    for k, faces in enumerate(lattice.faces, 1):
        sort = k >= len(lattice.faces) - 1  # facets and cells
        facets, vertices = vertices, _corners_of(faces, vertices, n_points, pool, sort=sort)
    cells = lattice.faces[-1]
    cell_facets = Ragged(cells.offsets, cells.items.copy())
    kernels.sort_rows(*cell_facets)
    sides = np.full((len(lattice.facet_bit), 2), -1, np.int32)
    kernels.facet_sides(*cell_facets, lattice.facet_bit, lattice.patterns, sides)
    return Corners(vertices, cell_facets, facets, sides)


def _corners_of(
    faces: Ragged, below: Ragged, n_points: int, pool: ThreadPoolExecutor, *, sort: bool
) -> Ragged:
    """List the vertices of faces from those of their boundaries."""
    size = np.empty(len(faces.offsets) - 1, np.int64)

    def collect(start: int, stop: int) -> list[NDArray[np.int32]]:
        mark = np.full(n_points, -1, np.int32)
        parts = []
        room = 2 * int(faces.offsets[stop] - faces.offsets[start]) + 64
        while start < stop:
            out = np.empty(room, np.int32)
            left = kernels.collect_corners(start, stop, *faces, *below, mark, sort, size, out)
            parts.append(out[: size[start:left].sum()])
            room = room if left > start else 2 * room
            start = left
        return parts

    nanoseconds = 10 * len(below.items) / len(below.offsets)
    parts = in_parallel(pool, collect, np.diff(faces.offsets), nanoseconds)
    return Ragged(prefix(size), np.concatenate([part for chunk in parts for part in chunk]))


def compact(start: Ints, size: NDArray[np.int32], items: NDArray[np.int32]) -> Ragged:
    """Lay ragged rows end to end."""
    offsets = prefix(size)
    out = np.empty(offsets[-1], np.int32)
    kernels.pack_rows(start, size, items, offsets, out)
    return Ragged(offsets, out)


@dataclass(frozen=True, eq=False)
class RefinedLattice:
    """A lattice with the meaning of its bits, and how far it goes."""

    lattice: Lattice
    bit_unit: NDArray[np.int32]  # (64 W,) unit of each bit, -1 for padding
    base: NDArray[np.int32]  # (num_units,) piece of each unit where none of its bits is set
    undecided: int
    broken: int
    stages: int  # that were worked off
    needed: int  # bytes that the next stage would have taken, 0 if all were worked off
