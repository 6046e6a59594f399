"""The affine steps of a program on numbers hi + lo: L x + b, with a bound on the error.

The constant b is what the step gives for zero: nothing is rounded there. The linear part depends on
the kind of step. What moves entries is applied to hi, lo and the bound. What multiplies by a weight
is applied to slices: data and weights are cut into integers of so few bits that every sum of their
products stays below 2^53, where float64 rounds nothing, in whatever order the products are added up
(Ozaki, Ogita, Oishi and Rump, Error-free transformations of matrix multiplication, Numer.
Algorithms 2012). All other steps are applied by their sparse matrix, in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil, floor, log2, prod
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from cpwl.engine.precise import expansion_kernels as kernels
from cpwl.engine.precise.expansions import Expansion, added, empty, scaled
from cpwl.network.program import Program, Ref, Step, call, fill, read_step, single_values

# The products of slices amount to about this many bits.
BITS = 104
# Data are cut this many bits below the largest error that they come with.
_BELOW_ERROR = 3
# Positions of the two factors and of the bias in the arguments.
_PRODUCTS: dict[str, tuple[int, int, int | None]] = {
    "convolution": (0, 1, 2),
    "linear": (0, 1, 2),
    "addmm": (1, 2, 0),
    "mm": (0, 1, None),
    "matmul": (0, 1, None),
}
_FACTORS = ("mul", "div", "true_divide", "batch_norm", "native_batch_norm",
            "_native_batch_norm_legit_no_training")  # fmt: skip
_SUMS = {"add": 1.0, "sub": -1.0}

Environment = Mapping[int, Expansion]
Apply = Callable[[Environment, int], Expansion]


class OutOfReachError(Exception):
    """A step that cannot be evaluated in higher precision, and why."""


def prepare(program: Program, index: int) -> Apply:
    """Prepare a step: a function of the values of steps and the number of rows that are points.

    The other rows are directions, which constants do not move.

    Raises
    ------
    OutOfReachError
        The batch axis is not the first one, or the step's matrix is too large to be read.
    """
    step = program.steps[index]
    if not (step.leading and all(program.steps[i].leading for i in step.data)):
        raise OutOfReachError(f"the batch axis of {step.name} ({step.target}) is not the first")
    name = step.operation
    assert step.rounding is not None
    if step.rounding.terms == 0:
        return _move(program, step)
    makers = (_product, _elementwise, _sum)
    for make, names in zip(makers, (_PRODUCTS, _FACTORS, _SUMS), strict=True):
        made = make(program, step, name) if name in names else None
        if made is not None:
            return made
    return _by_matrix(program, step)


def _zeros(program: Program, step: Step, rows: int = 1) -> dict[int, Tensor]:
    singles = {i: program.steps[i].single for i in step.data}
    return {
        i: torch.zeros((rows, *single[1:]), dtype=torch.float64) for i, single in singles.items()
    }


def _offset(program: Program, step: Step) -> Tensor:
    """Apply the step to zero, (1, ...)."""
    return call(step, {**single_values(program), **_zeros(program, step)})


# --- moving ------------------------------------------------------------------------------------


def _move(program: Program, step: Step) -> Apply:
    offset = _offset(program, step)
    still = not bool(offset.any())
    linear = step.rounding.linear or step.function  # type: ignore[union-attr]
    constants = _Constants(program, step)

    def apply(env: Environment, values: int) -> Expansion:
        rows = len(env[step.data[0]].hi)
        known = constants.of(rows)
        hi, lo = (call(step, {**known, **_part(env, step, k)}) for k in (0, 1))
        all_of = {**known, **_part(env, step, 2)}
        args = [fill(value, all_of) for value in step.args]
        error = linear(*args, **{k: fill(v, all_of) for k, v in step.kwargs.items()})
        if not still:  # exact: an entry is a constant, or one that was moved
            hi = torch.cat([hi[:values], hi[values:] - offset])
            lo = lo - offset
        return Expansion(hi, lo, error)

    return apply


def _part(env: Environment, step: Step, k: int) -> dict[int, Tensor]:
    return {i: env[i][k] for i in step.data}


class _Constants:
    """Values of the steps that depend on the batch size alone, for the batch sizes seen."""

    def __init__(self, program: Program, step: Step) -> None:
        self._program = program
        self._needed = any(i not in step.data for i in step.inputs)
        self._of: dict[int, dict[int, Any]] = {}

    def of(self, rows: int) -> dict[int, Any]:
        if not self._needed:
            return {}
        if rows not in self._of:
            self._of[rows] = single_values(self._program, rows)
        return self._of[rows]


# --- adding ------------------------------------------------------------------------------------


def _sum(program: Program, step: Step, name: str) -> Apply | None:
    """Sum or difference of two operands, of which one may be a constant."""
    if step.kwargs.get("alpha", 1) != 1 or len(step.args) != 2:
        return None
    sign = _SUMS[name]
    a, b = step.args
    offset = _offset(program, step)
    data = [isinstance(x, Ref) and x.index in step.data for x in (a, b)]

    def apply(env: Environment, values: int) -> Expansion:
        if all(data):
            return added(env[a.index], env[b.index], sign)
        x = env[a.index] if data[0] else env[b.index]
        shape = torch.broadcast_shapes(x.hi.shape, offset.shape)
        factor = torch.full((1, *shape[1:]), 1.0 if data[0] else sign, dtype=torch.float64)
        wide = Expansion(*(part.expand(shape).contiguous() for part in x))
        return scaled(wide, factor, offset.expand(1, *shape[1:]), values)

    return apply


# --- multiplying entry by entry ----------------------------------------------------------------


def _elementwise(program: Program, step: Step, name: str) -> Apply | None:
    """Multiply every entry by a number."""
    if len(step.data) != 1 or program.steps[step.data[0]].single != step.single:
        return None
    (source,) = step.data
    constants = single_values(program)
    with torch.enable_grad():
        x = torch.zeros(step.single, dtype=torch.float64, requires_grad=True)
        (factor,) = torch.autograd.grad(call(step, {**constants, source: x}).sum(), x)
    offset = _offset(program, step)
    return lambda env, values: scaled(env[source], factor, offset, values)


# --- multiplying by weights --------------------------------------------------------------------


class _Weights(NamedTuple):
    """A weight as the sum of integers times powers of two; the first is 2^(exponent - bits + 1)."""

    slices: list[Any]
    exponent: int
    size: Any  # absolute values


def _slice_bits(terms: int) -> int:
    """Bits of a slice: products of two of them, summed over so many terms, stay below 2^53."""
    return min(26, floor((55 - log2(max(terms, 1))) / 2))


def _sliced(weight: np.ndarray, bits: int) -> tuple[list[np.ndarray], int]:
    """Cut a weight into as many slices as it has bits for, at most BITS; see `kernels.cut`."""
    sizes = np.abs(weight[weight != 0])
    top, least = float(sizes.max(initial=0.0)), float(sizes.min(initial=1.0))
    if not (top < 2.0**300 and least > 2.0**-300):  # bounds must neither overflow nor vanish
        raise OutOfReachError(f"its weights have magnitudes from {least:.3g} to {top:.3g}")
    exponent = max(int(np.frexp(top)[1]), -300)
    rest, found = weight.copy(), []
    for s in range(ceil(BITS / bits)):
        unit = 2.0 ** (exponent - bits + 1 - bits * s)
        whole = np.rint(rest / unit)
        rest = rest - whole * unit  # exact
        found.append(whole)
        if not rest.any():
            break
    return found, exponent


def _product(program: Program, step: Step, name: str) -> Apply | None:
    """Convolution or matrix product with a constant weight."""
    first, second, bias = _PRODUCTS[name]
    if any(v != 1 for v in step.kwargs.values()) or len(step.data) != 1:
        return None
    data, weight = (
        (k, step.args[j]) for k, j in ((first, second), (second, first))
        if isinstance(step.args[k], Ref) and step.args[k].index in step.data
    ).__next__()  # fmt: skip
    if not isinstance(weight, Tensor) or (name == "matmul" and data != first):
        return None
    at = second if data == first else first
    args = list(step.args)
    if bias is not None and len(args) > bias:
        args[bias] = None if name != "addmm" else torch.zeros(1, dtype=torch.float64)
    bits = _slice_bits(step.rounding.terms)  # type: ignore[union-attr]
    slices, exponent = _sliced(weight.detach().numpy(), bits)
    weights = _Weights([torch.from_numpy(s) for s in slices], exponent, weight.detach().abs())

    def multiply(x: Tensor, w: Tensor) -> Tensor:
        filled = list(args)
        filled[data], filled[at] = x, w
        return step.function(*filled)

    shape = program.steps[step.data[0]].single[1:]
    made = _Multiplication(
        multiply, weights, bits, step.rounding.terms, shape, tested=name != "convolution"  # type: ignore[union-attr]
    )  # fmt: skip
    offset = _offset(program, step).reshape(-1).numpy()
    (source,) = step.data
    out = step.single[1:]
    return lambda env, values: made.apply(env[source], offset, values, out)


def _by_matrix(program: Program, step: Step) -> Apply:
    """Apply the step's sparse matrix."""
    try:
        made = read_step(program, step)
    except (NotImplementedError, RuntimeError) as error:
        raise OutOfReachError(f"{step.name} ({step.target}) has no matrix: {error}") from error
    if made is None:
        raise OutOfReachError(f"the matrix of {step.name} ({step.target}) is too large to be read")
    parts = []
    for part in made.parts:
        matrix: csr_array = part.matrix
        terms = int(np.diff(matrix.indptr).max(initial=0))
        bits = _slice_bits(terms)
        slices, exponent = _sliced(matrix.data, bits)
        weights = _Weights([_with(matrix, s) for s in slices], exponent, abs(matrix))
        shape = (prod(program.steps[part.source].single),)
        made_part = _Multiplication(_times, weights, bits, terms, shape, tested=True)
        parts.append((part.source, made_part))
    out = step.single[1:]

    def apply(env: Environment, values: int) -> Expansion:
        total: Expansion | None = None
        for source, part in parts:
            x = env[source]
            flat = Expansion(*(p.reshape(len(p), -1) for p in x))
            offset = made.offset if total is None else np.zeros_like(made.offset)
            found = part.apply(flat, offset, values, out)
            total = found if total is None else added(total, found)
        assert total is not None
        return total

    return apply


def _with(matrix: csr_array, entries: np.ndarray) -> csr_array:
    return csr_array((entries, matrix.indices, matrix.indptr), shape=matrix.shape)


def _times(x: Tensor, matrix: csr_array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray((matrix @ x.numpy().T).T))


class _Multiplication:
    """Multiplies data by a weight, both in slices."""

    def __init__(
        self,
        multiply: Callable[[Tensor, Any], Tensor],
        weights: _Weights,
        bits: int,
        terms: int,
        shape: tuple[int, ...],
        *,
        tested: bool,
    ) -> None:
        self._multiply = multiply
        self._weights = weights
        self._bits = bits
        self._terms = terms
        self._shape = shape
        self._always = tested
        self._tested: set[int] = set()

    def apply(
        self, x: Expansion, offset: np.ndarray, values: int, out_shape: tuple[int, ...]
    ) -> Expansion:
        """Multiply, and add the offset to the first rows."""
        rows, bits = len(x.hi), self._bits
        self._test(rows)
        flat = x.flat
        top, off = np.empty((2, rows))
        kernels.largest(flat[0], flat[2], top, off)
        exponent = np.maximum(
            np.frexp(np.where(np.isfinite(top), top, 1.0))[1].astype(np.int64), -300
        )
        known = np.isfinite(top) & np.isfinite(off) & (exponent < 300)
        levels = self._levels(exponent[known & (top > 0)], off[known & (top > 0)])

        slices = np.empty((levels, *flat[0].shape))
        carried = np.empty(flat[0].shape)
        usable = [np.where(known[:, None], part, 0.0) if not known.all() else part for part in flat]
        kernels.cut(*usable, exponent, bits, slices, carried)
        carried[~known] = np.inf
        pieces = torch.from_numpy(slices).reshape(levels, rows, *self._shape)
        order = sorted(
            ((i + j, i, j) for i in range(len(self._weights.slices)) for j in range(levels - i)),
            reverse=True,
        )
        pairs = np.empty((len(order), rows, prod(out_shape)))
        for p, (_, i, j) in enumerate(order):
            found = self._multiply(pieces[j], self._weights.slices[i])
            pairs[p] = found.reshape(rows, -1).numpy()
        with np.errstate(invalid="ignore"):
            passed = self._multiply(
                torch.from_numpy(carried).reshape(rows, *self._shape), self._weights.size
            ).reshape(rows, -1).numpy()  # fmt: skip
        grown = passed * (1 + (self._terms + 8) * 2.0**-52)
        weight = exponent + self._weights.exponent
        unseen = len(self._weights.slices) * self._terms * np.ldexp(1.0, weight - bits * levels)
        made = empty(rows, out_shape)
        kernels.join(
            pairs, np.array([level for level, _, _ in order]), weight - 2 * bits + 2, bits, offset,
            values, grown, unseen, *made.flat,
        )  # fmt: skip
        return made

    def _levels(self, exponent: np.ndarray, off: np.ndarray) -> int:
        """Count the slices: to below the errors that the data come with, or to BITS bits."""
        most = ceil(BITS / self._bits)
        if len(exponent) == 0 or not (off > 0).all():
            return most
        needed = float((exponent - np.log2(off)).max()) + _BELOW_ERROR
        return int(np.clip(ceil(needed / self._bits), 1, most))

    def _test(self, rows: int) -> None:
        """See to it that torch sums products as they are, for so many rows.

        An algorithm that transforms the data, as Winograd's or by FFT, is found out by random
        slices of all bits: their products are integers, and add up over two parts of the data.
        """
        if self._always or rows in self._tested:
            return
        random, most = np.random.default_rng(rows), 2 ** (self._bits - 1)
        x, w = (
            torch.from_numpy(random.integers(-most, most + 1, shape).astype(np.float64))
            for shape in ((rows, *self._shape), tuple(self._weights.size.shape))
        )
        part = torch.round(x / 2.0**11) * 2.0**11
        whole, one, other = (self._multiply(data, w) for data in (x, part, x - part))
        if not (torch.equal(whole, one + other) and torch.equal(whole, torch.round(whole))):
            raise OutOfReachError("torch does not sum the products of a convolution as they are")
        self._tested.add(rows)
