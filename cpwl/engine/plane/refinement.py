"""Refinement of a polygon or segment stage by stage: whole or, where memory is short, in strips."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import nbytes, padded
from cpwl.engine.bounds import Bounds
from cpwl.engine.plane import cutting
from cpwl.engine.plane.complex import Complex, Refined, whole
from cpwl.engine.plane.live import Live
from cpwl.engine.plane.meetings import Meetings, Tools, tools_for
from cpwl.engine.plane.merging import merge_contested
from cpwl.engine.plane.questions import Questions
from cpwl.engine.plane.signs import StageSigns, stage_signs
from cpwl.engine.plane.strips import StripsDisagreeError, cut_polygon, glue
from cpwl.engine.plane.tightening import sharpen, tighten
from cpwl.engine.rational import Vertices
from cpwl.engine.residuals import can_tighten
from cpwl.engine.work import TooLargeError, Work, require_few
from cpwl.network.program import cost, stage_plan

# Where to cut, as offsets in strips: numbers that no network has, so that no knot runs along.
_NUDGES = (0.0123457, 0.0505423, -0.0157696, 0.0293978)
_NESTED_STRIPS_AT_MOST = 12
_STRIPS_TO_SAVE_TIME_AT_MOST = 3  # nested; see `live`
# Error bounds of vertices, as shares of the domain's extent. TIGHTEN_ABOVE: bound the vertex anew
# from the residuals of its knots, once all bounds above add up to TIGHTEN_SUMS_ABOVE: less than
# that is not expected to leave a sign in doubt. RECOMPUTE_ABOVE: compute the vertex exactly, which
# costs as much as settling one doubtful sign. TIGHTEN_ABOVE at 1e-8, as in space, leaves 3,340
# signs of ACAS Xu 1_1 open, at 1e-9 1,452, at 1e-10 1,193. Other values change the last bits of
# the vertices of such networks.
_TIGHTEN_ABOVE = 1e-9
_TIGHTEN_SUMS_ABOVE = 1e-6
_RECOMPUTE_ABOVE = 1e-6


def refine(work: Work, corners: Vertices, share: float = 1.0, depth: int = 0) -> Refined:
    """Subdivide a convex polygon (or segment), in strips if it needs more than the memory.

    Parameters
    ----------
    corners : Vertices
        The domain in slice coordinates.
    share : float
        Its share of the whole domain, for the progress report.

    Raises
    ------
    TooLargeError
        Even a small part of the domain does not fit.
    """
    try:
        return _whole(work, corners, share, strips=depth < _STRIPS_TO_SAVE_TIME_AT_MOST)
    except TooLargeError as error:
        needed, wanted = error.needed, error.wanted
    if depth == _NESTED_STRIPS_AT_MOST:
        raise TooLargeError(needed)
    low, high = corners.points.min(axis=0), corners.points.max(axis=0)
    axis = int(np.argmax(high - low))
    n = int(np.clip(np.ceil(2.5 * needed / work.memory), 2, 16))
    for nudge in _NUDGES:
        # another one in every depth: shares of similar corners would meet corners of strips
        shares = (np.arange(1, n) + nudge / (1 + depth)) / n
        lines = low[axis] + shares * (high[axis] - low[axis])
        cut = cut_polygon(corners, axis, lines.tolist(), work.arbiter)
        strips = [refine(work, strip, share / n, depth + 1) for strip in cut]
        try:
            return glue(strips, axis, lines, corners, work.network, work.pool)
        except StripsDisagreeError:
            work.report(-share, 0)
    if wanted:
        return _whole(work, corners, share)
    raise ArithmeticError(
        f"Expected neighbouring strips of the domain to agree along their border, but all "
        f"{len(_NUDGES)} choices of it failed: knots lie within rounding error there. "
        "Raise `memory` so that no strips are needed."
    )


def coarse(work: Work, corners: Vertices) -> Refined:
    """Subdivide a domain by as many stages as fit into the memory."""
    try:
        return _whole(work, corners, 1.0)
    except TooLargeError as error:
        needed, stages = error.needed, error.stage
    made = _whole(work, corners, 1.0, stages=stages)
    return replace(made, stages=stages, needed=needed)


def _whole(
    work: Work,
    corners: Vertices,
    share: float,
    *,
    stages: int | None = None,
    strips: bool = False,
) -> Refined:
    """Subdivide a domain in one go, by all stages or the first few; or ask for ``strips``."""
    network = work.network
    current = whole(corners)
    bounds = Bounds(network, work.slice, corners.points)
    live = Live(work, strips=strips)
    base = np.zeros(network.num_units, np.int32)
    bit_unit, bit_piece = np.empty(0, np.int32), np.empty(0, np.int64)
    undecided = 0
    tools = tools_for(work)
    for stage in range(network.num_stages if stages is None else stages):
        first = int(network.stage_offsets[stage])
        so_far = Refined(current, bit_unit, bit_piece, base, 0, stage)
        questions = None if work.evaluator is None else Questions(work, so_far, stage)
        meetings = None if tools is None else Meetings(tools, so_far, stage + 1, bounds)
        signs = stage_signs(
            work, stage, current.vertices, current.edge_points, bounds, live, questions, meetings
        )
        base[first : first + len(signs.base)] = signs.base
        undecided += signs.undecided
        if len(signs.unit):
            column_unit = (first + signs.unit).astype(np.int32)
            current = _split(work, current, signs, stage, column_unit, live, questions, meetings)
            bit_unit = np.concatenate([bit_unit, padded(column_unit, np.int32)])
            bit_piece = np.concatenate([bit_piece, padded(signs.piece, np.int64)])
            so_far = Refined(current, bit_unit, bit_piece, base, 0, stage + 1)
            current = _improve(work, so_far, bounds, corners, tools)
        fixed = np.arange(len(current.points)) < len(corners.points)
        current = merge_contested(current, network, stage, bit_unit, base, fixed, work.pool)
        work.report(share / network.num_stages, len(current.patterns))
        require_few(work, stage, len(current.patterns))
    undecided += current.undecided
    return Refined(
        complex=current, bit_unit=bit_unit, bit_piece=bit_piece, base=base, undecided=undecided,
        stages=network.num_stages,
    )  # fmt: skip


def _split(
    work: Work,
    current: Complex,
    signs: StageSigns,
    stage: int,
    column_unit: NDArray[np.int32],
    live: Live,
    questions: Questions | None,
    meetings: Meetings | None,
) -> Complex:
    """Cut all cells by the columns of a stage; tensors are held only where room is left."""
    room = work.memory - nbytes(current) - nbytes(signs)
    while True:
        left = room - live.nbytes
        try:
            return cutting.split(
                current, signs, stage, column_unit, work.arbiter, left, work.pool, questions,
                meetings,
            )  # fmt: skip
        except TooLargeError as error:
            if live.nbytes == 0 or error.needed > room:
                raise TooLargeError(error.needed, stage) from None
        live.drop()


def _improve(
    work: Work, made: Refined, bounds: Bounds, corners: Vertices, tools: Tools | None
) -> Complex:
    """Lower the error bounds of the vertices to where they leave few signs in doubt."""
    network, arbiter, current, stages = work.network, work.arbiter, made.complex, made.stages
    meetings = None if tools is None else Meetings(tools, made, stages, bounds)
    if stages == network.num_stages:  # no signs are left
        return sharpen(current, arbiter, np.finfo(float).max, meetings)
    if not arbiter.exact:
        return current
    extent = float(np.ptp(corners.points, axis=0).max())
    largest = _TIGHTEN_ABOVE * extent
    total = current.error[current.error > largest].sum()
    if total > _TIGHTEN_SUMS_ABOVE * extent and can_tighten(network, stages):
        one = cost(network.program, stage_plan(network.program, stages - 1))
        with work.threads.large(one * len(current.points)):
            current = tighten(
                current, network, bounds, stages, corners, made.bit_unit, made.base, largest
            )
    return sharpen(current, arbiter, _RECOMPUTE_ABOVE * extent, meetings)
