"""The network modulo primes, on cells of a partition: it tells true zeros, many at a time.

All units are held on their pieces of a cell, so that everything is affine: values at the origin of
the slice, and derivatives. These are integers over a power of two, and so have remainders modulo a
prime. What is small and zero modulo enough primes is zero. Remainders are kept in float64, between
-p / 2 and p / 2, with primes so small that no sum of products is rounded.
"""

from __future__ import annotations

from functools import cached_property
from math import floor, log2
from typing import NamedTuple

import numpy as np
import torch
from flint import fmpz
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from cpwl.arrays import Floats
from cpwl.domain import Slice
from cpwl.engine.rational.numbers import integers
from cpwl.network import Network
from cpwl.network.program import Extremum, Pointwise, Ref, Step, held_pieces, make_plan
from cpwl.network.program import single_values as constants_of

# Matrices with fewer zeros than this share are multiplied as if they had none.
_DENSE_ABOVE = 0.1


class Residues:
    """Evaluates the first stages of a network modulo one prime after the other.

    Parameters
    ----------
    network : Network
        Of functions of one operand with finitely many pieces, maxima and minima of two, and affine
        operations that are read as matrices.
    """

    def __init__(self, network: Network, slice_: Slice) -> None:
        self._network, self._program = network, network.program
        self._start = np.stack([slice_.origin.reshape(-1), *slice_.basis.reshape(slice_.dim, -1)])
        self._constants = constants_of(network.program)
        self._primes: list[int] = []
        self._matrices: dict[tuple[int, int], list[tuple[int, Floats | csr_array]]] = {}

    @cached_property
    def bits(self) -> int:
        """Every prime is larger than two to this power."""
        terms = 1
        for step in self._network.matrices.steps.values():
            longest = (int(np.diff(part.matrix.indptr).max(initial=1)) for part in step.parts)
            terms = max(terms, sum(longest) + 1)
        return min(24, floor((52 - log2(terms)) / 2))

    def prime(self, k: int) -> int:
        """Return the k-th prime, the largest ones first."""
        while len(self._primes) <= k:
            p = (self._primes[-1] if self._primes else 2 ** (self.bits + 1)) - 1
            while not fmpz(p).is_prime():
                p -= 1
            self._primes.append(p)
        return self._primes[k]

    def of(self, k: int, numbers: ArrayLike) -> Floats:
        """Remainders of finite float64 numbers modulo the k-th prime."""
        p = self.prime(k)
        values = np.asarray(numbers, np.float64)
        if (values == np.rint(values)).all() and (np.abs(values) < p / 2).all():
            return values
        mantissa, exponent = np.frexp(values)
        power, which = np.unique(exponent, return_inverse=True)
        scale = np.array([pow(2, int(e) - 53, p) for e in power])[which.reshape(values.shape)]
        found = (np.ldexp(mantissa, 53).astype(np.int64) % p) * scale % p
        return np.where(found > p // 2, found - p, found).astype(np.float64)

    def reduced(self, k: int, numbers: Floats) -> Floats:
        """Remainders of integers up to 2^52."""
        p = self.prime(k)
        return numbers - p * np.rint(numbers / p)

    def held(self, k: int, pieces: NDArray[np.int32], stages: int) -> Floats:
        """Units of the first stages modulo the k-th prime, (B, P + 1, units).

        Entry [b, 0] is the value at the origin, [b, 1 + d] the derivative along coordinate d.

        Parameters
        ----------
        pieces : (B, num_units)
            Those of the cells.
        """
        program, count, rows = self._program, len(pieces), len(self._start)
        heads = {head.step for heads in program.heads[:stages] for head in heads}
        plan = make_plan(program.steps, sorted(heads))
        out = np.empty((rows, count, int(self._network.stage_offsets[stages])))
        start = np.repeat(self.of(k, self._start), count, axis=0)
        env = {0: start}
        for index, dead in zip(plan.order, plan.dead, strict=True):
            step = program.steps[index]
            if step.kind == "affine":
                env[index] = self._affine(k, index, env, count)
            elif step.nonlinearity is not None:
                first = program.first_unit[index, 0]
                operands = self._operands(k, step, env, count)
                switch = operands[0] if len(operands) == 1 else operands[0] - operands[1]
                wide = self.reduced(k, switch).reshape(rows, count, -1)
                out[:, :, first : first + wide.shape[2]] = wide
                if index != plan.order[-1]:
                    here = held_pieces(program, index, step, torch.from_numpy(pieces))
                    env[index] = self._bent(k, step, operands, here, count)
            for source in dead:
                env.pop(source, None)
        return np.ascontiguousarray(out.swapaxes(0, 1))

    def _affine(self, k: int, index: int, env: dict[int, Floats], count: int) -> Floats:
        key = k, index
        if key not in self._matrices:
            self._matrices[key] = [
                (part.source, _residual(self.of(k, part.matrix.data), part.matrix))
                for part in self._network.matrices.steps[index].parts
            ]
        offset = self.of(k, self._network.matrices.steps[index].offset)
        total = np.zeros((len(self._start) * count, len(offset)))
        for source, matrix in self._matrices[key]:
            total += np.ascontiguousarray((matrix @ env[source].T).T)
        total[:count] += offset
        return self.reduced(k, total)

    def _operands(self, k: int, step: Step, env: dict[int, Floats], count: int) -> list[Floats]:
        """Operands of a CPWL step, (rows, ...); constants stand still."""
        rows, shape = len(self._start) * count, step.nonlinearity.shapes[0]  # type: ignore[union-attr]
        wanted = 2 if isinstance(step.nonlinearity, Extremum) else 1
        found = []
        for arg in step.args[:wanted]:
            if isinstance(arg, Ref) and arg.index in env:
                single = self._program.steps[arg.index].single[1:]
                value = env[arg.index].reshape(rows, *single)
                found.append(np.broadcast_to(value, (rows, *shape)))
                continue
            number = self._constants[arg.index] if isinstance(arg, Ref) else arg
            wide = np.zeros((rows, *shape))
            wide[:count] = self.of(k, np.asarray(number, np.float64))
            found.append(wide)
        return found

    def _bent(
        self, k: int, step: Step, operands: list[Floats], pieces: list[torch.Tensor], count: int
    ) -> Floats:
        """Apply the affine maps of the given pieces."""
        bend, rows = step.nonlinearity, len(self._start)
        if isinstance(bend, Pointwise):
            one = torch.ones(count, *bend.shapes[0], dtype=torch.float64)
            slope = self.of(k, bend.linear([one], pieces).numpy())
            offset = self.of(k, bend.select([torch.zeros_like(one)], pieces).numpy())
            out = operands[0].reshape(rows, *slope.shape) * slope
            out[0] += offset
            return self.reduced(k, out).reshape(rows * count, -1)
        repeated = [piece.repeat(rows, *[1] * (piece.ndim - 1)) for piece in pieces]
        parts = [torch.from_numpy(np.array(x)) for x in operands]  # a view may be read-only
        return bend.select(parts, repeated).numpy().reshape(rows * count, -1)  # type: ignore[union-attr]

    @cached_property
    def shifts(self) -> NDArray[np.int64]:
        """Powers of two that the units of the stages, minus their knots, are integers over.

        At the origin of the slice, and along its coordinates.
        """
        program = self._program
        of = {0: integers(self._start).shift}
        knots = {}
        for index, step in enumerate(program.steps):
            if step.kind == "affine":
                read = self._network.matrices.steps[index]
                parts = [integers(part.matrix.data).shift + of[part.source] for part in read.parts]
                of[index] = max([integers(read.offset).shift, *parts])
            elif step.nonlinearity is not None:
                knots[index] = self._bend_shift(step, of)
                of[index] = knots[index].behind
        return np.array(
            [max(knots[head.step].before for head in heads) for heads in program.heads], np.int64
        )

    def _bend_shift(self, step: Step, of: dict[int, int]) -> _Shift:
        bend = step.nonlinearity
        refs = [arg for arg in step.args if isinstance(arg, Ref)]
        known = [of[arg.index] for arg in refs if arg.index in of]
        if isinstance(bend, Pointwise):
            slopes, offsets, points = (
                max(integers(_finite(x)).shift for x in table)
                for table in (bend.slopes, bend.offsets, bend.points)
            )
            return _Shift(max(*known, points), max(known[0] + slopes, offsets))
        numbers = [self._constants[a.index] for a in refs if a.index not in of]
        numbers += [arg for arg in step.args[:2] if not isinstance(arg, Ref)]
        most = max([*known, *(integers(_finite(x)).shift for x in numbers)])
        return _Shift(most, most)


class _Shift(NamedTuple):
    """Powers of two that a CPWL step's units, and its value, are integers over."""

    before: int
    behind: int


def _finite(value: object) -> Floats:
    numbers = np.asarray(value, np.float64)
    return np.where(np.isfinite(numbers), numbers, 0.0)


def _residual(entries: Floats, matrix: csr_array) -> Floats | csr_array:
    """Put remainders into a matrix's entries, or into a dense one if few are zero."""
    height, width = matrix.shape  # type: ignore[misc]
    made = csr_array((entries, matrix.indices, matrix.indptr), shape=(height, width))
    return made.toarray() if made.nnz > _DENSE_ABOVE * height * width else made
