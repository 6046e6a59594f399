"""Working a domain off stage by stage, whole or, where memory is short, in tiles."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cpwl import _complex
from cpwl._arrays import nbytes, padded
from cpwl._merge import merge_contested
from cpwl._signs import stage_signs
from cpwl._tiles import Refined, TilesDisagreeError, cut_polygon, glue
from cpwl.network import Network

# Where to cut, as offsets in strips: numbers that no network has, so that no knot runs along.
_NUDGES = (0.0123457, 0.0505423, -0.0157696, 0.0293978)
_DEEPEST = 12


@dataclass(frozen=True)
class Work:
    """What all stages and tiles share."""

    network: Network
    embed: Callable[[NDArray[np.float64]], torch.Tensor]
    memory: int
    pool: ThreadPoolExecutor
    report: Callable[[float, int], None]  # share of the domain's work done, cells found


def refine(work: Work, corners: NDArray[np.float64], share: float = 1.0, depth: int = 0) -> Refined:
    """Subdivide a convex polygon (or segment), in strips if it needs more than the memory.

    Parameters
    ----------
    corners : (M, P)
        The domain in slice coordinates.
    share : float
        Its share of the whole domain, for the progress report.

    Raises
    ------
    MemoryError
        Even a small part of the domain does not fit.
    """
    try:
        return _whole(work, corners, share)
    except _complex.TooLargeError as error:
        needed = error.needed
    if depth == _DEEPEST:
        raise MemoryError(
            f"Expected a working set of at most {work.memory:,} bytes, but {share:.1e} of the "
            f"domain still needs {needed:,} bytes. Raise `memory`, or choose a smaller domain."
        )
    low, high = corners.min(axis=0), corners.max(axis=0)
    axis = int(np.argmax(high - low))
    n = int(np.clip(np.ceil(2.5 * needed / work.memory), 2, 16))
    for nudge in _NUDGES:
        lines = low[axis] + (np.arange(1, n) + nudge) / n * (high[axis] - low[axis])
        strips = cut_polygon(corners, axis, lines)
        tiles = [refine(work, strip, share / n, depth + 1) for strip in strips]
        try:
            return glue(tiles, axis, lines, corners, work.network, work.pool)
        except TilesDisagreeError:
            work.report(-share, 0)
    raise ArithmeticError(
        f"Expected neighbouring strips of the domain to agree along their border, but all "
        f"{len(_NUDGES)} choices of it failed: knots lie within rounding error there. "
        "Raise `memory` so that no strips are needed."
    )


def _whole(work: Work, corners: NDArray[np.float64], share: float) -> Refined:
    """Subdivide a domain in one go."""
    network = work.network
    current = _complex.whole(corners)
    base = np.zeros(network.num_units, np.int32)
    bit_unit, bit_piece = np.empty(0, np.int32), np.empty(0, np.int64)
    stage_of_contest = (
        np.searchsorted(network.stage_offsets, network.contests[:, 0], side="right") - 1
    )
    zeros = 0
    for stage in range(network.num_stages):
        first = int(network.stage_offsets[stage])
        signs = stage_signs(
            network, stage, work.embed, current.points, current.edge_points,
            work.memory // 2, work.pool,
        )  # fmt: skip
        base[first : first + len(signs.base)] = signs.base
        zeros += signs.zeros
        if len(signs.unit):
            column_unit = (first + signs.unit).astype(np.int32)
            room = work.memory - nbytes(current) - nbytes(signs)
            current = _complex.split(current, signs, column_unit, room, work.pool)
            bit_unit = np.concatenate([bit_unit, padded(column_unit, np.int32)])
            bit_piece = np.concatenate([bit_piece, padded(signs.piece, np.int64)])
        contests = network.contests[stage_of_contest == stage]
        if len(contests):
            fixed = np.arange(len(current.points)) < len(corners)
            current = merge_contested(current, contests, bit_unit, base, fixed, work.pool)
        work.report(share / network.num_stages, len(current.patterns))
    return Refined(current, bit_unit, bit_piece, base, zeros)
