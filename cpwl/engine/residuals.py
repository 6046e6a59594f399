"""Bounds on the errors of vertices from what the knots through them leave at their coordinates.

The bounds that vertices are made with add up from stage to stage, because nothing is assumed about
how the network bends near a vertex. Where they have become large, better ones follow from the
result. On a cell w at the vertex x*, every unit through x* is an affine function p_i with
p_i(x*) = 0. At the coordinates x that we have, G (x* - x) = -p(x), where G holds the gradients of
the p_i, and therefore

    |x - x*| <= |p(x)| / (least singular value of G).

The p_i are evaluated with all units held on their pieces of w, at P + 1 places, so that nothing
bends in between, and one cell tells of all the vertices that it has.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cpwl.arrays import EPS, UNIT_ROUNDOFF, Floats, Ints, prefix
from cpwl.engine.bounds import Bounds
from cpwl.network import Network
from cpwl.network.program import held_switching

# Blocks of vertices: larger ones leave the caches, and those of images take gigabytes.
_BLOCK_BYTES_AT_MOST = 2**26
_BLOCK_ROWS = (32, 4096)
# An inverse of a P x P matrix, P <= 6, by elimination with row exchanges is off by at most so many
# roundoffs times its condition number (Higham, Accuracy and Stability of Numerical Algorithms, 2nd
# ed., section 14.3: some P^3 times the growth of the elements, at most 2^(P - 1)).
_INVERSION = 2.0**13


class Cells(NamedTuple):
    """Cells of a complex: pieces of all units, and some of the corners, one at least."""

    pieces: NDArray[np.int32]  # (m, num_units)
    owner: Ints  # (k,) cell of each corner, ascending
    corners: Floats  # (k, P), known within `reach`


def can_tighten(network: Network, stages: int) -> bool:
    """Whether all units of the first stages have finitely many breakpoints, known beforehand."""
    return not any(network.stage_is_periodic(stage) for stage in range(stages))


def knot_table(row: Ints, knot: Ints, n: int, absent: int) -> Ints:
    """Lay pairs (row, knot), ascending in rows, out as a table (n, m) filled up with ``absent``."""
    count = np.bincount(row, minlength=n)
    table = np.full((n, int(count.max())), absent, np.int64)
    table[row, np.arange(len(row)) - np.repeat(prefix(count)[:-1], count)] = knot
    return table


def reach(bounds: Bounds) -> float:
    """Largest error bound of a vertex, or of a cell's corner, that is of use."""
    return bounds.margin / 2


def covering(vertex: Ints, cell: Ints, n: int) -> Ints:
    """Choose a cell for each of n vertices, from pairs (vertex, cell): few cells in all.

    Again and again, cells are taken that have more of the vertices left than any other cell there.
    """
    chosen = np.full(n, -1)
    ties = np.random.default_rng(0).permutation(int(cell.max(initial=0)) + 1)
    while len(vertex):
        key = np.bincount(cell)[cell] * len(ties) + ties[cell]
        best = np.zeros(n, np.int64)
        np.maximum.at(best, vertex, key)
        beaten = np.zeros(len(ties), np.bool_)
        beaten[cell[key < best[vertex]]] = True
        taken = ~beaten[cell]
        chosen[vertex[taken]] = cell[taken]
        left = chosen[vertex] < 0
        vertex, cell = vertex[left], cell[left]
    return chosen


def residual_errors(
    network: Network,
    bounds: Bounds,
    stages: int,
    cells: Cells,
    cell: Ints,
    points: Floats,
    error: Floats,
    knots: Ints,
    sides: Floats,
) -> Floats:
    """Bound the errors of vertices anew.

    Parameters
    ----------
    stages : int
        Stages that the knots belong to.
    cell : (n,)
        Which of the cells has each vertex.
    points, error : (n, P), (n,)
        The vertices, and the bounds on their errors so far, at most `reach`.
    knots : (n, m)
        Units whose knots pass through each vertex, -1 - i for side i of the domain, and any number
        from num_units on for none; see `knot_table`.
    sides : (number of sides, P + 2)
        Unit normals, offsets and errors: normal . x - offset = 0 on the side, within the error.

    Returns
    -------
    (n,) float64
        Never larger than ``error``.

    Notes
    -----
    Cost: P + 1 forward passes a cell.
    """
    out = error.copy()
    places = _simplices(cells.owner, cells.corners, reach(bounds))
    row_bytes = 24 * network.num_units + network.bytes_per_sample(stages - 1)
    fit = _BLOCK_BYTES_AT_MOST // (row_bytes * (points.shape[1] + 1))
    size = int(np.clip(fit, *_BLOCK_ROWS))
    order = np.argsort(cell, kind="stable")
    for first in range(0, len(places), size):
        part = slice(first, first + size)
        block = order[slice(*np.searchsorted(cell[order], [first, first + size]))]
        out[block] = np.minimum(
            error[block],
            _block(
                network, bounds, stages, places[part], cells.pieces[part], cell[block] - first,
                points[block], error[block], knots[block], sides,
            ),
        )  # fmt: skip
    return out


def _simplices(owner: Ints, corners: Floats, step: float) -> Floats:
    """Choose P + 1 places (m, P + 1, P) for each cell, none near the span of the others.

    They are corners of the cell, one after the other the farthest from those before, as long as it
    extends further than a step; then places a step away.
    """
    dim = corners.shape[1]
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    last = np.append(first[1:], len(owner)) - 1
    out = np.repeat(corners[first, None], dim + 1, axis=1)
    away = corners - out[owner, 0]
    free = np.broadcast_to(np.eye(dim), (len(first), dim, dim))  # axes without what is spanned
    for k in range(1, dim + 1):
        height = np.linalg.norm(away, axis=1)
        far = np.lexsort([height, owner])[last]
        axis = np.linalg.norm(free, axis=2).argmax(axis=1)
        beside = free[np.arange(len(free)), axis]
        wide = (height[far] >= step)[:, None]
        along = np.where(wide, away[far], beside)
        along = along / np.linalg.norm(along, axis=1, keepdims=True)
        out[:, k] = np.where(wide, corners[far], out[:, 0] + step * along)
        away = away - (away * along[owner]).sum(axis=1, keepdims=True) * along[owner]
        free = free - (free @ along[:, :, None]) * along[:, None]
    return out


def _block(
    network: Network,
    bounds: Bounds,
    stages: int,
    places: Floats,
    pieces: NDArray[np.int32],
    cell: Ints,
    points: Floats,
    error: Floats,
    knots: Ints,
    sides: Floats,
) -> Floats:
    """Bound one block; inf where it cannot be done."""
    m, _, dim = places.shape
    count = int(network.stage_offsets[stages])
    latents = torch.from_numpy(bounds.slice.embed(places.reshape(-1, dim)))
    held = torch.from_numpy(np.repeat(pieces, dim + 1, axis=0))
    values = held_switching(network.program, latents, held, stages).numpy()
    values = values.reshape(m, dim + 1, -1)

    inside = (knots >= 0) & (knots < count)
    unit = np.where(inside, knots, 0)
    at = np.moveaxis(values[cell[:, None], :, unit], 2, 1)  # (n, P + 1, number of knots)
    slack = bounds.unit_slack[unit]
    # With the edges E of the simplex, the change of a function along them is E gradient.
    edges = places[:, 1:] - places[:, :1]
    inverse = np.linalg.inv(edges)
    steep = np.linalg.norm(inverse, 2, axis=(1, 2))
    lost = _INVERSION * UNIT_ROUNDOFF * np.linalg.norm(edges, axis=(1, 2)) * steep
    inverse, steep, lost = inverse[cell], steep[cell, None], lost[cell, None]
    change = at[:, 1:] - at[:, :1]
    size = np.linalg.norm(change, axis=1)
    gradient = np.moveaxis(inverse @ change, 1, 2)  # (n, number of knots, P)
    doubt = steep * (2 * np.sqrt(dim) * slack + 2 * lost * size)

    way = points - places[cell, 0]
    weight = (way[:, None] @ inverse)[:, 0]
    here = at[:, 0] + (weight[..., None] * change).sum(axis=1)
    spread = np.abs(weight).sum(axis=1, keepdims=True)
    off = (np.abs(1 - weight.sum(axis=1, keepdims=True)) + spread) * slack
    off += 2 * lost * steep * np.linalg.norm(way, axis=1, keepdims=True) * size
    off += 4 * (dim + 1) * EPS * (np.abs(at[:, 0]) + spread * size)
    value, known = _breakpoints(
        network, stages, unit, here, off + error[:, None] * bounds.unit_lipschitz[unit]
    )
    residual = np.abs(here - value) + off + 2 * EPS * np.abs(value)

    on_side = knots < 0
    side = sides[np.where(on_side, -1 - knots, 0)]
    gradient = np.where(on_side[..., None], side[..., :dim], gradient)
    aside = np.abs((side[..., :dim] * points[:, None, :]).sum(-1) - side[..., dim])
    residual = np.where(on_side, aside + side[..., dim + 1], residual)
    doubt = np.where(on_side, 8 * EPS, doubt)

    length = np.linalg.norm(gradient, axis=2) - doubt
    used = (on_side | (inside & known)) & (length > 2 * doubt)
    scale = np.where(used, 1 / np.where(used, length, 1.0), 0.0)
    least = np.linalg.svd(gradient * scale[..., None], compute_uv=False)[:, -1]
    sure = least - np.linalg.norm(doubt * scale, axis=1) - 1e-12
    total = np.linalg.norm(np.where(used, residual, 0.0) * scale, axis=1)
    return np.where(sure > 0, total / np.where(sure > 0, sure, 1.0), np.inf) * (1 + 1e-9)


def _breakpoints(
    network: Network,
    stages: int,
    unit: Ints,
    at: Floats,
    within: Floats,
) -> tuple[Floats, NDArray[np.bool_]]:
    """Breakpoint of each unit near a value, and whether it is the only one."""
    tables = [network.knots(stage) for stage in range(stages)]
    owner = np.concatenate(
        [t.unit + network.stage_offsets[stage] for stage, t in enumerate(tables)]
    )
    value = np.concatenate([t.value for t in tables])
    nearest = np.full(at.shape, np.inf)
    possible = np.zeros(at.shape, np.int64)
    first = np.searchsorted(owner, unit)
    for k in range(int(np.bincount(owner).max(initial=0))):
        place = np.minimum(first + k, len(owner) - 1)
        candidate = np.where(owner[place] == unit, value[place], np.inf)
        near = np.abs(at - candidate) <= within
        possible += near
        nearest = np.where(np.abs(at - candidate) < np.abs(at - nearest), candidate, nearest)
    known = (possible == 1) & np.isfinite(nearest)
    return np.where(known, nearest, 0.0), known
