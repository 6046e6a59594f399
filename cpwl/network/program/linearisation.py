"""A pass linearised at a point: the affine functions whose signs bound the point's cell.

While all units stay on their pieces, every switching function is affine. A unit's piece lies
between two breakpoints, of which one may be missing:

    lower < f(x) <= upper,    f(x) = value + slope . (x - z)

A max-pooling has one function for each loser instead: the winner minus that candidate. Matches
inside a losing half of the tournament have no effect, and bound nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cpwl.arrays import EPS, UNIT_ROUNDOFF, Floats, Ints
from cpwl.network.program.error_analysis import Analysis
from cpwl.network.program.max_pooling import Tournament
from cpwl.network.program.nonlinearities import MaybeError, Nonlinearity, Triangle, piece_of
from cpwl.network.program.passes import apply_pieces, held_pieces
from cpwl.network.program.program import Program, Step, fill, run
from cpwl.network.program.rounding import magnitude
from cpwl.network.program.tangents import direct, linear_parts, moving


class Linearisation(NamedTuple):
    """The functions that bound a cell, K of them, and the map on it, E inputs to D outputs.

    The errors bound |computed - exact|, entry by entry; that of a slope holds for all its entries.
    """

    pieces: Ints  # (num_units,), 0 for a unit without effect
    unit: Ints  # (K,)
    value: Floats  # (K,)
    value_error: Floats  # (K,)
    slope: Floats  # (K, E)
    slope_error: Floats  # (K,)
    lower: Floats  # (K,), -inf for none
    upper: Floats  # (K,), inf for none
    A: Floats  # (D, E)
    b: Floats  # (D,)


class Functions(NamedTuple):
    """The functions of one operation: entries of its switching function, or pairs of candidates."""

    unit: Ints
    lower: Floats
    upper: Floats
    pairs: tuple[Tensor, Tensor] | None  # winner and loser, as positions in a flat sample


def linearise(program: Program, z: Tensor, num_units: int) -> Linearisation:
    """Linearise at z (1, *input_shape): one forward pass, and one of E directions."""
    pieces = torch.zeros((1, num_units), dtype=torch.int64)
    functions: dict[int, Functions] = {}
    of_values = Analysis(program, carry=True)
    of_slopes = Analysis(program, carry=True, directions=True)
    values: dict[int, Floats] = {}
    slopes: dict[int, Floats] = {}
    value_errors: dict[int, Floats] = {}
    slope_errors: dict[int, Floats] = {}
    parts = linear_parts(program)

    def at_point(index: int, step: Step, env: list[Any]) -> Any:
        bend = step.nonlinearity
        if bend is not None:
            inputs = [fill(arg, env) for arg in step.args]
            for round, shape in enumerate(bend.shapes):
                first, count = program.first_unit[index, round], int(np.prod(shape))
                h = bend.switching(inputs, round)
                pieces[:, first : first + count] = piece_of(bend, h, round).reshape(1, count)
            found = _functions(program, index, bend, pieces)
            functions[index] = found
            values[index] = _evaluate(bend, found, inputs)[0]
            value_errors[index] = _error(bend, found, *of_values.operands(index, env))
        return of_values.step(index, step, env)

    def along(index: int, step: Step, env: list[Any]) -> Any:
        bend, slope = step.nonlinearity, direct(program, parts, given, index, step, env)
        if bend is None:
            of_slopes.record(index, step, env)
            return slope
        found, operands = functions[index], of_slopes.operands(index, env)
        slopes[index] = _evaluate(bend, found, moving(step, env))
        slope_errors[index] = _error(bend, found, *operands)
        # a unit held on its piece passes errors on as it does directions: one that is off, none
        errors = [
            torch.zeros_like(size) if error is None else error
            for error, size in zip(*operands, strict=True)
        ]
        passed = bend.linear(errors, held_pieces(program, index, step, pieces)).abs()
        rounded = magnitude(slope, step.single, step.leading) * (2 * UNIT_ROUNDOFF)
        of_slopes.errors[index] = (passed * (1 + 4 * EPS) + rounded).expand(step.single)
        return slope

    size = z.numel()
    with torch.no_grad():
        run(program, program.output_plan, z, at_point)
        given = pieces.expand(size, -1)
        directions = torch.eye(size, dtype=torch.float64).reshape(size, *z.shape[1:])
        A = run(program, program.output_plan, directions, along)[program.output]
        b = apply_pieces(program, torch.zeros_like(z), pieces)
    order = sorted(functions)
    unit = _joined([functions[i].unit for i in order], np.int64)
    rank = np.argsort(unit, kind="stable")
    slope = np.concatenate([slopes[i].T for i in order] or [np.zeros((0, size))])
    return Linearisation(
        pieces=pieces[0].numpy(),
        unit=unit[rank],
        value=_joined([values[i] for i in order])[rank],
        value_error=_joined([value_errors[i] for i in order])[rank],
        slope=slope if np.array_equal(rank, np.arange(len(rank))) else slope[rank],
        slope_error=_joined([slope_errors[i] for i in order])[rank],
        lower=_joined([functions[i].lower for i in order])[rank],
        upper=_joined([functions[i].upper for i in order])[rank],
        A=np.ascontiguousarray(A.reshape(size, -1).numpy().T) + 0.0,
        b=b.reshape(-1).numpy() + 0.0,
    )


def _functions(program: Program, index: int, bend: Nonlinearity, pieces: Tensor) -> Functions:
    """List the functions of an operation with all its units on these pieces (1, num_units).

    Clears the pieces of units without effect.
    """
    held = held_pieces(program, index, program.steps[index], pieces)
    first = [program.first_unit[index, round] for round in range(len(held))]
    if isinstance(bend, Tournament):
        return _matches(bend, first, held, pieces)
    piece = held[0].reshape(-1)
    if isinstance(bend, Triangle):
        lower, upper = bend.knot(piece), bend.knot(piece + 1)
    else:
        ends = torch.full((1, len(piece)), torch.inf, dtype=torch.float64)
        rows = [point.reshape(1, -1) for point in bend.breaks(0)]
        table = torch.cat([-ends, torch.sort(torch.cat(rows), dim=0).values, ends])
        lower, upper = table.gather(0, piece[None])[0], table.gather(0, piece[None] + 1)[0]
    return Functions(first[0] + np.arange(len(piece)), lower.numpy(), upper.numpy(), None)


def _matches(
    bend: Tournament, first: Sequence[int], held: Sequence[Tensor], pieces: Tensor
) -> Functions:
    """Pair each output's winner with all other candidates, in the match where the two meet."""
    units, pairs = [np.zeros(0, np.int64)], [torch.zeros((2, 0), dtype=torch.int64)]
    # from the final back to the candidates: the slots whose winner is an output
    winners = torch.unique(bend.final)
    for round in range(len(held) - 1, -1, -1):
        piece = held[round].reshape(-1)
        count = len(piece)
        effective = winners[winners < count]
        lost = torch.ones(count, dtype=torch.bool)
        lost[effective] = False
        pieces[0, first[round] + torch.nonzero(lost)[:, 0]] = 0
        left_wins = (piece[effective] > 0) == bend.largest
        left, right = bend.left[round][effective], bend.right[round][effective]
        won, beaten = torch.where(left_wins, left, right), torch.where(left_wins, right, left)
        match, loser = _candidates(bend, round, beaten)
        winner = _winner(bend, round, won, held)[match]
        units.append(first[round] + effective[match].numpy())
        pairs.append(torch.stack([winner, loser]))
        winners = torch.unique(
            torch.cat([won, bend.passing[round][winners[winners >= count] - count]])
        )
    unit = np.concatenate(units)
    ends = (0.0, np.inf) if bend.largest else (-np.inf, 0.0)
    lower, upper = (np.full(len(unit), end) for end in ends)
    return Functions(unit, lower, upper, tuple(torch.cat(pairs, dim=1)))  # type: ignore[arg-type]


def _candidates(bend: Tournament, round: int, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Expand the slots of a round to the candidates below them: (row of `slots`, candidate)."""
    row = torch.arange(len(slots))
    for k in range(round - 1, -1, -1):
        count = len(bend.left[k])
        match, through = slots < count, slots >= count
        met = slots[match]
        slots = torch.cat(
            [bend.left[k][met], bend.right[k][met], bend.passing[k][slots[through] - count]]
        )
        row = torch.cat([row[match], row[match], row[through]])
    return row, slots


def _winner(bend: Tournament, round: int, slots: Tensor, held: Sequence[Tensor]) -> Tensor:
    """Return the candidate that won each slot of a round."""
    for k in range(round - 1, -1, -1):
        count = len(bend.left[k])
        met = torch.clamp(slots, max=count - 1)
        left_wins = (held[k].reshape(-1)[met] > 0) == bend.largest
        through = torch.cat([torch.zeros(count, dtype=torch.int64), bend.passing[k]])[slots]
        won = torch.where(left_wins, bend.left[k][met], bend.right[k][met])
        slots = torch.where(slots < count, won, through)
    return slots


def _evaluate(bend: Nonlinearity, functions: Functions, inputs: Sequence[Any]) -> Floats:
    """Evaluate the functions, or their slopes: (N, K)."""
    if functions.pairs is None:
        h = bend.switching(inputs, 0)
        return h.reshape(len(h), -1).numpy()
    x = inputs[0].flatten(1)
    winner, loser = functions.pairs
    return (x[:, winner] - x[:, loser]).numpy()


def _error(
    bend: Nonlinearity,
    functions: Functions,
    errors: Sequence[MaybeError],
    magnitudes: Sequence[Tensor],
) -> Floats:
    """Bound the functions' errors (K,) from the operands' errors and magnitudes."""
    if functions.pairs is None:
        error = bend.switching_error(errors, magnitudes, 0)
        bound = torch.zeros(()) if error is None else error
        return bound.expand(1, *bend.shapes[0]).reshape(-1).to(torch.float64).numpy()
    each = magnitudes[0].reshape(1, -1) * UNIT_ROUNDOFF
    if errors[0] is not None:
        each = each + errors[0].reshape(1, -1)
    winner, loser = functions.pairs
    return ((each[0, winner] + each[0, loser]) * (1 + 4 * EPS)).numpy()


def _joined(parts: Sequence[Any], dtype: type = np.float64) -> Any:
    return np.concatenate([np.zeros(0, dtype), *parts])
