"""Columns of a stage: its units at their breakpoints, with what decides their signs.

Both engines read a stage in the same way: units are evaluated at all vertices, in blocks; each
breakpoint that a unit may reach makes a column; a column that is positive at some vertices but not
at all of them gets a bit of the patterns.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import EPS, Floats, Ints, in_parallel, pattern_kernels
from cpwl.engine import column_kernels
from cpwl.engine.bounds import StageBounds
from cpwl.network import Network

# Larger blocks gain nothing in BLAS, leave the caches, and have their pages mapped anew each time.
_BLOCK_BYTES_AT_MOST = 2**26
_BLOCK_ROWS_AT_MOST = 16384
_BLOCK_ROWS_AT_LEAST = 64
# What layers before the last carry over stays below its bound by this factor and more.
_CARRIED_BELOW_BOUND = 64
# Where a network is too large for rational arithmetic, zero is what lies within this many times the
# last layer's part of the error bound. The whole bound grows with depth much faster than errors do.
# Of 30 degenerate networks in 2 to 4 dimensions that were treated as too large, every pattern came
# out right, with and without a cap at the column's slack.
_ZERO_WITHIN = 16.0


class Columns(NamedTuple):
    """Columns of one stage.

    A column's value, computed at a computed point, is off by at most slack + lipschitz * (distance
    of the point from the exact vertex).
    """

    stage: int
    unit: Ints  # (K,) counted within the stage, ascending
    knot: Floats  # (K,) the unit's breakpoint, ascending within a unit
    slack: Floats  # (K,)
    lipschitz: Floats  # (K,)
    tolerance: Floats  # (K,) what is within slack and within this is zero; inf if signs are proven
    noise: Floats  # (K,) size of the errors that really occur

    def take(self, which: Ints) -> Columns:
        """Return some of the columns."""
        return self._replace(
            unit=self.unit[which], knot=self.knot[which], slack=self.slack[which],
            lipschitz=self.lipschitz[which], tolerance=self.tolerance[which],
            noise=self.noise[which],
        )  # fmt: skip


def block_rows(network: Network, stage: int, memory: int) -> int:
    """Count the vertices of a block that is evaluated at once within so many bytes."""
    n_units = int(network.stage_offsets[stage + 1] - network.stage_offsets[stage])
    row_bytes = network.bytes_per_sample(stage) + 16 * n_units
    fit = min(memory, _BLOCK_BYTES_AT_MOST) // row_bytes
    return int(min(_BLOCK_ROWS_AT_MOST, max(_BLOCK_ROWS_AT_LEAST, fit)))


def unit_range(values: Floats, pool: ThreadPoolExecutor) -> tuple[Floats, Floats]:
    """Smallest and largest value of every unit; inf and -inf without rows.

    Raises
    ------
    FloatingPointError
        A value is not finite.
    """

    def work(start: int, stop: int) -> Floats:
        out = np.empty((3, values.shape[1]))
        column_kernels.column_range(values[start:stop], *out)
        return out

    parts = in_parallel(pool, work, len(values), nanoseconds=values.shape[1])
    low, high, defect = np.stack(parts, axis=1)
    if np.isnan(defect).any():
        raise FloatingPointError(
            "Expected finite pre-activations on the whole domain, got inf or NaN: the network "
            "overflows float64 there. Choose a smaller domain or rescale the weights."
        )
    return low.min(axis=0), high.max(axis=0)


def read_columns(
    network: Network,
    stage: int,
    bound: StageBounds,
    span: tuple[Floats, Floats] | None,
    error: float,
    *,
    proven: bool,
) -> tuple[Columns, Ints]:
    """List the columns of a stage, and the piece (n_stage,) of each unit below its first one.

    Parameters
    ----------
    span : pair of (n_stage,) arrays, or None
        Range of the units over the domain; only a periodic stage needs it.
    error : float
        Largest bound on the error of a vertex of the domain.
    proven : bool
        Rational arithmetic decides what float64 leaves open.
    """
    reach = None, None
    if network.stage_is_periodic(stage):
        assert span is not None
        low, high = span
        # so that a unit that only touches a knot has it too, wherever the domain ends
        margin = bound.slack + bound.lipschitz * error
        margin += 8 * EPS * np.maximum(np.abs(low), np.abs(high))
        reach = low - 2 * margin, high + 2 * margin
    unit, knot, base = network.knots(stage, *reach)
    rounding = 2 * EPS * np.abs(knot)
    slack = bound.slack[unit] + rounding
    tolerance = np.full(len(slack), np.inf)
    if not proven:
        tolerance = _ZERO_WITHIN * bound.fresh[unit] + rounding
    # The rounding error of a sum of n terms is some sqrt(n) times smaller than its bound (Higham
    # and Mary, A new approach to probabilistic rounding error analysis, SIAM J. Sci. Comput. 2019),
    # and the partial sums as much smaller than the sum of magnitudes in the bound.
    noise = np.maximum(bound.fresh[unit], slack / _CARRIED_BELOW_BOUND) / bound.terms
    columns = Columns(
        stage=stage, unit=unit, knot=knot, slack=slack, lipschitz=bound.lipschitz[unit],
        tolerance=tolerance, noise=noise,
    )  # fmt: skip
    return columns, base


def units_of(bits: NDArray[np.int32], bit_unit: NDArray[np.int32]) -> NDArray[np.int32]:
    """Name the unit of each bit; negative numbers, for sides of the domain, stay."""
    return np.where(bits < 0, bits, np.append(bit_unit, np.int32(-1))[np.maximum(bits, 0)])


def pieces_of(
    patterns: NDArray[np.uint64], bit_unit: NDArray[np.int32], base: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Name the piece (n, num_units) of every unit on the cells with these patterns (n, W)."""
    out = np.empty((len(patterns), len(base)), np.int32)
    pattern_kernels.unpack_pieces(patterns, bit_unit, base, out)
    return out
