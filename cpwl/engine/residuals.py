"""Bounds on the errors of vertices from what the knots through them leave at their coordinates.

The bounds that vertices are made with add up from stage to stage, because nothing is assumed about
how the network bends near a vertex. Where they have become large, better ones follow from the
result. On a cell w at the vertex x*, every unit through x* is an affine function p_i with
p_i(x*) = 0. At the coordinates x that we have, G (x* - x) = -p(x), where G holds the gradients of
the p_i, and therefore

    |x - x*| <= |p(x)| / (least singular value of G).

The p_i are evaluated with all units held on their pieces of w, at x and at one point beside it for
each coordinate, so that nothing bends in between.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from cpwl.arrays import EPS, Floats, Ints, prefix
from cpwl.engine.bounds import Bounds
from cpwl.network import Network
from cpwl.network.program import held_switching

# Blocks of vertices: larger ones leave the caches, and those of images take gigabytes.
_BLOCK_BYTES_AT_MOST = 2**26
_BLOCK_ROWS = (32, 4096)


def can_tighten(network: Network, stages: int) -> bool:
    """Whether all units of the first stages have finitely many breakpoints, known beforehand."""
    return not any(network.stage_is_periodic(stage) for stage in range(stages))


def knot_table(row: Ints, knot: Ints, n: int, absent: int) -> Ints:
    """Lay pairs (row, knot), ascending in rows, out as a table (n, m) filled up with ``absent``."""
    count = np.bincount(row, minlength=n)
    table = np.full((n, int(count.max())), absent, np.int64)
    table[row, np.arange(len(row)) - np.repeat(prefix(count)[:-1], count)] = knot
    return table


def residual_errors(
    network: Network,
    bounds: Bounds,
    stages: int,
    points: Floats,
    error: Floats,
    pieces: NDArray[np.int32],
    knots: Ints,
    sides: Floats,
) -> Floats:
    """Bound the errors of vertices anew.

    Parameters
    ----------
    stages : int
        Stages that the knots belong to.
    points, error : (n, P), (n,)
        The vertices, and the bounds on their errors so far.
    pieces : (n, num_units)
        Those of a cell at each vertex.
    knots : (n, m)
        Units whose knots pass through each vertex, -1 - i for side i of the domain, and any number
        from num_units on for none; see `knot_table`.
    sides : (number of sides, P + 2)
        Unit normals, offsets and errors: normal . x - offset = 0 on the side, within the error.

    Returns
    -------
    (n,) float64
        Never larger than ``error``.
    """
    out = error.copy()
    step = bounds.margin / 2
    row_bytes = 24 * network.num_units + network.bytes_per_sample(stages - 1)
    fit = _BLOCK_BYTES_AT_MOST // (row_bytes * (points.shape[1] + 1))
    block_rows = int(np.clip(fit, *_BLOCK_ROWS))
    for first in range(0, len(points), block_rows):
        rows = slice(first, first + block_rows)
        usable = error[rows] <= step
        if usable.any():
            block = np.arange(first, first + len(usable))[usable]
            out[block] = np.minimum(
                error[block],
                _block(
                    network, bounds, stages, points[block], error[block], pieces[block],
                    knots[block], sides, step,
                ),
            )  # fmt: skip
    return out


def _block(
    network: Network,
    bounds: Bounds,
    stages: int,
    points: Floats,
    error: Floats,
    pieces: NDArray[np.int32],
    knots: Ints,
    sides: Floats,
    step: float,
) -> Floats:
    """Bound one block; inf where it cannot be done."""
    n, dim = points.shape
    count = int(network.stage_offsets[stages])
    beside = points[:, None, :] + step * np.concatenate([np.zeros((1, dim)), np.eye(dim)])
    latents = torch.from_numpy(bounds.slice.embed(beside.reshape(-1, dim)))
    held = torch.from_numpy(np.repeat(pieces, dim + 1, axis=0))
    values = held_switching(network.program, latents, held, stages).numpy()
    values = values.reshape(n, dim + 1, -1)

    inside = (knots >= 0) & (knots < count)
    unit = np.where(inside, knots, 0)
    at = np.take_along_axis(values, unit[:, None, :], axis=2)  # (n, P + 1, m)
    slack = 2 * bounds.unit_slack[unit]  # twice: for coordinates off the cell
    value, known = _breakpoints(
        network, stages, unit, at[:, 0], slack + error[:, None] * bounds.unit_lipschitz[unit]
    )
    gradient = np.moveaxis(at[:, 1:] - at[:, :1], 1, 2) / step  # (n, m, P)
    residual = np.abs(at[:, 0] - value) + slack + 2 * EPS * np.abs(value)
    doubt = 2 * np.sqrt(dim) * slack / step

    on_side = knots < 0
    side = sides[np.where(on_side, -1 - knots, 0)]
    gradient = np.where(on_side[..., None], side[..., :dim], gradient)
    off = np.abs((side[..., :dim] * points[:, None, :]).sum(-1) - side[..., dim])
    residual = np.where(on_side, off + side[..., dim + 1], residual)
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
