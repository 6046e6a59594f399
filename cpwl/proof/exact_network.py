"""A network in a proof: four kinds of steps with float64 coefficients, as plain data.

Value 0 is the flat input; value i + 1 is what step i makes. Float64 numbers are rationals, so this
is an exact description, and all that a proof needs of the network.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_GATHERED = 2**26
"""Entries that the outputs of a convolution look at, one output channel of each group."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Matrix(NamedTuple):
    """A sparse matrix: row i has the next ``counts[i]`` of the columns and values."""

    shape: tuple[int, int]
    counts: Integers
    columns: Integers
    values: Floats


class Convolution(NamedTuple):
    """A convolution, or the transpose of one, as a matrix whose entries are not listed.

    The output at o is the sum over taps t of the weight times the input at o * stride - padding +
    t * dilation, or, transposed, at the place that this leads from: (o + padding - t * dilation) /
    stride; where there is no such place, nothing.

    Attributes
    ----------
    size, out : (channels, *axes)
        Of the value that is read, and of the one that is made.
    stride, padding, dilation : one for each axis
    weights : (channels of the output, channels of a group of the input, *taps)
    """

    size: tuple[int, ...]
    out: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool
    weights: Floats


class Part(NamedTuple):
    """One operand of an affine step."""

    source: int
    matrix: Matrix | Convolution


class Affine(NamedTuple):
    """The offset (n,) plus each part's matrix times the value it refers to."""

    parts: tuple[Part, ...]
    offset: Floats


class Pieces(NamedTuple):
    """n units in a row, each with the breakpoints ``points[:, i]`` and K + 1 affine pieces.

    The piece of a unit is the number of its breakpoints below its argument; a breakpoint of +inf
    (-inf) is never (always) below it.
    """

    source: int
    first_unit: int
    points: Floats
    slopes: Floats
    offsets: Floats


class Wave(NamedTuple):
    """n triangle waves offset + scale * |((h + phase) mod period) - period / 2|.

    Piece k of a unit lies above its breakpoint k * period / 2 - phase.
    """

    source: int
    first_unit: int
    size: int
    period: float
    phase: float
    scale: float
    offset: float


class Contest(NamedTuple):
    """Largest (smallest) entries by matches of two; match i is won on the left where it is larger.

    Sides and outputs are nodes: an entry of the source, or n + i for the winner of match i, n the
    size of the source. On piece 1 of its unit, the left side of a match is greater than the right.
    """

    source: int
    units: Integers
    left: Integers
    right: Integers
    outputs: Integers
    largest: bool


Bend = Pieces | Wave | Contest
Step = Affine | Bend


class ExactNetwork(NamedTuple):
    """All that decides the pieces of the units.

    Attributes
    ----------
    inputs : int
        Entries of the flat input.
    units : int
    steps : tuple of Step
        Those that a unit depends on.
    names : tuple of str
        Of every step, for messages.
    tail : str
        SHA-256 of the steps behind the last units, which decide no piece.
    """

    inputs: int
    units: int
    steps: tuple[Step, ...]
    names: tuple[str, ...]
    tail: str


def sources(step: Step) -> tuple[int, ...]:
    """Values that a step reads."""
    return tuple(part.source for part in step.parts) if isinstance(step, Affine) else (step.source,)


def size(step: Step) -> int:
    """Entries of the value that a step makes."""
    if isinstance(step, Affine):
        return len(step.offset)
    if isinstance(step, Wave):
        return step.size
    return step.points.shape[1] if isinstance(step, Pieces) else len(step.outputs)


def units(step: Step) -> Integers:
    """Numbers of a step's units."""
    if isinstance(step, Affine):
        return np.empty(0, np.int64)
    if isinstance(step, Contest):
        return step.units
    return step.first_unit + np.arange(size(step))


def plain_matrix(matrix: Any) -> Matrix:
    """Bring a matrix of coordinates to its entries that are not zero, row by row, ascending."""
    row, column = (np.asarray(x, np.int64) for x in matrix.coords)
    order = np.lexsort((column, row))
    order = order[matrix.data[order] != 0]
    height, width = matrix.shape
    counts = np.bincount(row[order], minlength=height)
    return Matrix((height, width), counts, column[order], matrix.data[order].astype(np.float64))


def gathered(c: Convolution) -> Integers:
    """Entries (groups, terms, positions) that the outputs' sums take; the number of all: none."""
    at, inside = np.zeros((1, 1), np.int64), np.ones((1, 1), np.bool_)
    axes = zip(
        c.size[1:], c.out[1:], c.weights.shape[2:], c.stride, c.padding, c.dilation, strict=True
    )
    for n, outputs, taps, stride, padding, dilation in axes:
        o, t = np.arange(outputs)[None], np.arange(taps)[:, None]
        rest = np.zeros((1, 1), np.int64)
        if c.transposed:
            place, rest = np.divmod(o + padding - t * dilation, stride)
        else:
            place = o * stride - padding + t * dilation
        fits = (rest == 0) & (place >= 0) & (place < n)
        shape = (at.shape[0] * taps, at.shape[1] * outputs)
        at = (at[:, None, :, None] * n + place[None, :, None]).reshape(shape)
        inside = (inside[:, None, :, None] & fits[None, :, None]).reshape(shape)
    channel = np.arange(c.size[0]).reshape(c.groups, -1, 1, 1) * prod(c.size[1:])
    found = np.where(inside, channel + at, prod(c.size))
    return found.reshape(c.groups, -1, at.shape[1])


def _matrices(network: ExactNetwork) -> list[Matrix | Convolution]:
    affine = (step for step in network.steps if isinstance(step, Affine))
    return [part.matrix for step in affine for part in step.parts]


def coefficients(network: ExactNetwork) -> int:
    """Count the numbers that a network multiplies with."""
    listed = _matrices(network)
    return sum(m.weights.size if isinstance(m, Convolution) else len(m.values) for m in listed)


def has_convolutions(network: ExactNetwork) -> bool:
    """Whether the network has a convolution whose matrix is not listed."""
    return any(isinstance(matrix, Convolution) for matrix in _matrices(network))


def _unit_count(step: Bend) -> int:
    """Return how many units a step has."""
    return len(step.units) if isinstance(step, Contest) else size(step)


def find_fault(network: ExactNetwork) -> str:
    """Say where the steps do not fit together; empty where they do."""
    sizes, total = [network.inputs], 0
    found: list[int] = []
    for number, step in enumerate(network.steps):
        fault = _fault(step, sizes)
        if fault:
            return f"step {number} {fault}"
        sizes.append(size(step))
        total += 0 if isinstance(step, Affine) else _unit_count(step)
        if total > network.units:  # before they are listed
            return f"its steps have {total} units, not 0 to {network.units - 1}"
        found += units(step).tolist()
    if len(found) != network.units or sorted(found) != list(range(network.units)):
        return f"its steps have {len(found)} units, not 0 to {network.units - 1}"
    return "" if len(network.names) == len(network.steps) else "steps and names differ in number"


def _fault(step: Step, sizes: list[int]) -> str:
    """Say what is wrong with one step behind values of these sizes."""
    if not all(0 <= source < len(sizes) for source in sources(step)):
        return "reads a value that does not come before it"
    if isinstance(step, Affine):
        return _affine_fault(step, sizes)
    width = sizes[step.source]
    if isinstance(step, Contest):
        nodes = width + len(step.units)
        ahead = width + np.arange(len(step.units))
        sides = np.stack([step.left, step.right])
        if not len(step.units) == len(step.left) == len(step.right):
            return "has matches without two sides and a unit"
        if (sides < 0).any() or (sides >= ahead).any():
            return "has matches between sides that do not come before them"
        if (step.outputs < 0).any() or (step.outputs >= nodes).any():
            return "has outputs that are no candidates"
        used = np.concatenate([sides.ravel(), step.outputs])
        if len(np.unique(used[used >= width])) < (used >= width).sum():
            return "has a match that is used twice"
        return ""
    if size(step) != width:
        return f"has {size(step)} units for {width} arguments"
    if isinstance(step, Wave):
        numbers = (step.period, step.phase, step.scale, step.offset)
        return "" if np.isfinite(numbers).all() and step.period > 0 else "has no positive period"
    knots, n = step.points.shape
    if step.slopes.shape != (knots + 1, n) or step.offsets.shape != (knots + 1, n):
        return "has not one piece more than breakpoints"
    if np.isnan(step.points).any() or (np.diff(step.points, axis=0) < 0).any():
        return "has breakpoints that do not ascend"
    return ""


def _affine_fault(step: Affine, sizes: list[int]) -> str:
    """Say what is wrong with an affine step."""
    for source, matrix in step.parts:
        if isinstance(matrix, Convolution):
            fault = _convolution_fault(matrix, len(step.offset), sizes[source])
            if fault:
                return fault
            continue
        rows, columns = matrix.shape
        if (rows, columns) != (len(step.offset), sizes[source]) or len(matrix.counts) != rows:
            return f"has a matrix of {rows} x {columns} for {sizes[source]} entries"
        total = int(matrix.counts.sum())
        if (matrix.counts < 0).any() or not total == len(matrix.columns) == len(matrix.values):
            return "has a matrix whose rows do not fit its entries"
        if total and not (matrix.columns.min() >= 0 and matrix.columns.max() < columns):
            return "has a matrix with entries outside it"
        row = np.repeat(np.arange(rows), matrix.counts)
        if len(np.unique(row * columns + matrix.columns)) < total:
            return "has a matrix with an entry twice"
        if not np.isfinite(matrix.values).all():
            return "has an entry that is not finite"
    return "" if np.isfinite(step.offset).all() else "has an offset that is not finite"


def _convolution_fault(c: Convolution, rows: int, columns: int) -> str:
    """Say what is wrong with a convolution."""
    axes, ones = len(c.size) - 1, (*c.size, *c.out, *c.stride, *c.dilation, c.groups)
    lengths = {len(c.out) - 1, len(c.stride), len(c.padding), len(c.dilation), c.weights.ndim - 2}
    if lengths != {axes} or min(ones) < 1:
        return "has a convolution whose axes do not fit"
    channels = (c.out[0], c.size[0] / c.groups)
    if c.weights.shape[:2] != channels or c.out[0] % c.groups or c.weights.size == 0:
        return "has a convolution whose weights do not fit its channels"
    if (prod(c.out), prod(c.size)) != (rows, columns):
        return f"has a convolution of {prod(c.out)} x {prod(c.size)} for {columns} entries"
    reach = [(t - 1) * d + p for t, d, p in zip(c.weights.shape[2:], c.dilation, c.padding,
                                                strict=True)]  # fmt: skip
    reach += [o * s for o, s in zip(c.out[1:], c.stride, strict=True)]
    if min(c.padding) < 0 or max(reach) >= 2**31:
        return "has a convolution that reaches too far"
    if c.groups * c.weights[0].size * prod(c.out[1:]) > MOST_GATHERED:
        return "has a convolution that is too large"
    return "" if np.isfinite(c.weights).all() else "has an entry that is not finite"


def describe(network: ExactNetwork, unit: int) -> str:
    """Name a unit, for a message."""
    for step, name in zip(network.steps, network.names, strict=True):
        if unit in units(step):
            return f"unit {unit} ({name})"
    return f"unit {unit}"
