"""Agreement of a partition's arrays: numbers in range, facets and cells that name one another."""

from __future__ import annotations

from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from cpwl.errors import CertificateError
from cpwl.partition import Partition
from cpwl.proof.exact_network import ExactNetwork, describe


def shortest(lowest: int, highest: int) -> type[np.int8] | type[np.int32]:
    """Type of an array of pieces: those of a large network take most of a proof's memory."""
    return np.int8 if lowest >= 0 and highest < 128 else np.int32


def unpack(p: Partition) -> NDArray[np.integer]:
    """Pieces (C, units) of all cells, without the engine's kernel."""
    octets = np.ascontiguousarray(p.patterns).astype("<u8").view(np.uint8)
    bits = np.unpackbits(octets.reshape(len(p.patterns), -1), axis=1, bitorder="little")
    idle = np.argwhere((bits == 1) & (p.bit_unit < 0))
    if len(idle):
        cell, bit = idle[0].tolist()
        _fail(cell, "bits of units only", f"bit {bit} set, which belongs to none")
    counts = np.bincount(p.bit_unit[p.bit_unit >= 0], minlength=len(p.unit_base))
    kind = shortest(p.unit_base.min(initial=0), (p.unit_base + counts).max(initial=0))
    pieces = np.repeat(p.unit_base[None].astype(kind), len(bits), axis=0)
    for bit in np.flatnonzero(p.bit_unit >= 0):
        pieces[:, p.bit_unit[bit]] += bits[:, bit]
    return pieces


def _facet_ends(p: Partition) -> NDArray[np.int32]:
    """Vertices (F, P) of the facets of a partition in 1-D or 2-D."""
    return p.facet_corners.reshape(-1, p.dim)


def require_arrays(p: Partition) -> None:
    """Require lengths and numbers that fit, naming a cell where one is at fault."""
    cells, facets, dim = p.num_cells, len(p.facet_unit), p.dim
    if not np.array_equal(p.cell_facet_offsets, p.cell_offsets):
        _fail(None, "cell_facet_offsets equal to cell_offsets", "others")
    for name, offsets, total in (
        ("cell_offsets", p.cell_offsets, len(p.cell_corners)),
        ("cell_offsets", p.cell_offsets, len(p.cell_facets)),
        ("facet_offsets", p.facet_offsets, len(p.facet_corners)),
    ):
        if offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 0).any():
            _fail(None, f"{name} that ascend from 0 to {total}", f"{offsets[0]} to {offsets[-1]}")
    if len(p.patterns) != cells or len(p.bit_unit) != 64 * p.patterns.shape[1]:
        _fail(None, f"{cells} patterns and a unit for each bit", f"shape {p.patterns.shape}")
    if p.facet_cells.shape != (facets, 2) or len(p.facet_offsets) != facets + 1:
        _fail(None, f"two cells for each of {facets} facets", f"shape {p.facet_cells.shape}")
    if (np.diff(p.facet_offsets) != dim).any():
        _fail(None, f"facets with {dim} vertices", "others")
    owner = np.repeat(np.arange(cells), np.diff(p.cell_offsets))
    for name, items, count in (
        ("vertices", p.cell_corners, len(p.points)),
        ("facets", p.cell_facets, facets),
    ):
        bad = np.flatnonzero((items < 0) | (items >= count))
        if len(bad):
            _fail(int(owner[bad[0]]), f"{name} below {count}", f"{items[bad[0]]}")
    lost = np.flatnonzero(~np.isfinite(p.points[p.cell_corners]).all(axis=1))
    if len(lost):
        vertex = p.cell_corners[lost[0]]
        _fail(int(owner[lost[0]]), f"vertex {vertex} to be finite", f"{p.points[vertex].tolist()}")
    units = len(p.unit_base)
    for name, items, low, high in (
        ("facet_corners", p.facet_corners, 0, len(p.points)),
        ("facet_unit", p.facet_unit, -1, units),
        ("bit_unit", p.bit_unit, -1, units),
    ):
        if len(items) and (items.min() < low or items.max() >= high):
            _fail(None, f"{name} from {low} to {high - 1}", f"{items.min()} to {items.max()}")
    few = np.flatnonzero(np.diff(p.cell_offsets) < dim + 1)
    if len(few):
        _fail(int(few[0]), f"at least {dim + 1} corners", f"{np.diff(p.cell_offsets)[few[0]]}")


def require_incidence(p: Partition, network: ExactNetwork) -> None:
    """Require cells and facets to agree on what lies beside what, and at what."""
    facet = p.cell_facets
    owner = np.repeat(np.arange(p.num_cells), np.diff(p.cell_offsets))
    column = _columns(p, owner)
    stated = p.facet_cells[facet, column]
    wrong = np.flatnonzero(stated != owner)
    if len(wrong):
        at = wrong[0]
        _fail(
            int(owner[at]),
            f"facet {facet[at]} to name it as the cell on that side",
            f"it naming {_cell_or_none(int(stated[at]))}",
        )
    uses = np.bincount(2 * facet + column, minlength=p.facet_cells.size).reshape(-1, 2)
    twice = np.flatnonzero(uses[facet, column] > 1)
    if len(twice):
        at = twice[0]
        _fail(int(owner[at]), f"facet {facet[at]} once", "it twice")
    for at, side in np.argwhere((p.facet_cells != -1) & (uses == 0)).tolist():
        other = int(p.facet_cells[at, 1 - side])
        named = int(p.facet_cells[at, side])
        _fail(
            other if uses[at, 1 - side] else named,
            f"cell {named} beside it across facet {at}, as the facet says",
            f"no cell {named} with that facet",
        )
    stray = np.flatnonzero((p.facet_cells == -1).all(axis=1))
    if len(stray):
        _fail(None, "facets of cells", f"facet {stray[0]} of none")
    outside = p.facet_cells.min(axis=1, initial=0) < 0
    for at in np.flatnonzero(outside != (p.facet_unit < 0)).tolist():
        cell = int(p.facet_cells[at].max())
        if outside[at]:
            named = describe(network, int(p.facet_unit[at]))
            _fail(cell, f"a neighbour across facet {at}, a knot of {named}", "no cell there")
        _fail(cell, f"the boundary of the domain at facet {at}, which has no unit", "two cells")


def require_corners(p: Partition) -> None:
    """Require every vertex to be a corner of a cell."""
    used = np.bincount(p.cell_corners, minlength=len(p.points))
    if not used.all():
        _fail(None, "vertices that are corners of cells", f"vertex {np.argmin(used)} of none")


def _columns(p: Partition, owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of a facet's two cells each cell should be, corner by corner."""
    following = np.arange(1, len(owner) + 1)
    following[p.cell_offsets[1:] - 1] = p.cell_offsets[:-1]
    ends, start = _facet_ends(p)[p.cell_facets], p.cell_corners
    if p.dim == 1:  # a cell is above its lower end and below its upper one
        column = np.tile([1, 0], p.num_cells)
        fits = ends[:, 0] == start
    else:
        forward = (ends[:, 0] == start) & (ends[:, 1] == start[following])
        backward = (ends[:, 1] == start) & (ends[:, 0] == start[following])
        column, fits = np.where(forward, 0, 1), forward != backward
    wrong = np.flatnonzero(~fits)
    if len(wrong):
        at = wrong[0]
        _fail(
            int(owner[at]),
            f"facet {p.cell_facets[at]} from its vertex {start[at]} on",
            f"one between vertices {ends[at].tolist()}",
        )
    return column


def _cell_or_none(cell: int) -> str:
    return "no cell" if cell < 0 else f"cell {cell}"


def _fail(cell: int | None, expected: str, got: str) -> NoReturn:
    raise CertificateError(cell, expected, got)
