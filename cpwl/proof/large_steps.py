"""Affine steps of large networks: convolutions as such, and steps that move or scale entries.

The coefficients are those of `cpwl.network.program.read_step`: the gradients of single outputs. A
step whose outputs look at one entry of an operand each, whatever its numbers are, is read by some
20 calls: which entry that is follows from the digits of its number.
"""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from torch import Tensor
from torch.autograd import forward_ad

from cpwl.network.program import AffineMap, Program, Step, call, read_step, single_values
from cpwl.proof.exact_network import MOST_GATHERED, Convolution, Matrix, plain_matrix

# Operations of which an output looks at one entry of each operand at most. Whether one of another
# kind does cannot be asked of its numbers: small entries are lost in sums with large ones.
_SINGLE = {
    "_native_batch_norm_legit_no_training", "_to_copy", "_unsafe_view", "add", "alias", "cat",
    "clone", "constant_pad_nd", "div", "expand", "flip", "mul", "neg", "permute", "pixel_shuffle",
    "pixel_unshuffle", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "repeat",
    "replication_pad1d", "replication_pad2d", "replication_pad3d", "roll", "select", "slice",
    "split", "split_with_sizes", "squeeze", "stack", "sub", "transpose", "unsqueeze",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "view",
}  # fmt: skip

Read = tuple[list[tuple[int, Matrix | Convolution]], NDArray[np.float64]]


def read_large(program: Program, step: Step) -> Read | str:
    """Read a step: its operands' matrices and its offset, or why that is impossible."""
    if not (step.leading and all(program.steps[i].leading for i in step.data)):
        return f"the batch axis of {step.name} is not the first"
    reading = _Reading(program, step)
    if step.operation == "convolution" and isinstance(step.args[1], Tensor):
        made = _convolution(program, step)
        gathered = made.groups * made.weights[0].size * prod(made.out[1:])
        if gathered > MOST_GATHERED:
            return f"the outputs of {step.name} look at {gathered:,} entries"
        return [(step.data[0], made)], reading.offset
    single = step.data if step.operation in _SINGLE else ()
    held = ((source, reading.single_entries(source)) for source in single)
    parts: list[tuple[int, Matrix | Convolution]] = [(i, m) for i, m in held if m is not None]
    if len(parts) == len(step.data):
        return parts, reading.offset
    try:
        found = read_step(program, step)
    except (NotImplementedError, RuntimeError) as error:  # torch has no derivative
        return f"{step.name} ({step.target}) has no matrix: {error}"
    if found is None:
        return f"the matrix of {step.name} ({step.target}) is too large to be read"
    return listed(found), found.offset


def listed(found: AffineMap) -> list[tuple[int, Matrix | Convolution]]:
    """Bring the matrices of a step's operands to the form that a proof has."""
    return [(part.source, plain_matrix(coo_array(part.matrix))) for part in found.parts]


def _convolution(program: Program, step: Step) -> Convolution:
    """Read the arguments of a convolution."""
    _, weight, _, stride, padding, dilation, transposed, _, groups = step.args
    weights = weight.detach().to(torch.float64).numpy()
    if transposed:  # (channels of the input, channels of an output's group, *taps)
        blocks = weights.reshape(groups, -1, *weights.shape[1:]).swapaxes(1, 2)
        weights = blocks.reshape(-1, *blocks.shape[2:])
    size = program.steps[step.data[0]].single[1:]

    def each(x: list[int]) -> tuple[int, ...]:
        """One number for each axis."""
        return tuple(x) * ((len(size) - 1) // len(x))

    return Convolution(
        size=size,
        out=step.single[1:],
        stride=each(stride),
        padding=each(padding),
        dilation=each(dilation),
        groups=groups,
        transposed=bool(transposed),
        weights=weights.copy(),
    )


class _Reading:
    """An affine step as a function of its operands."""

    def __init__(self, program: Program, step: Step) -> None:
        self._step, self._constants = step, single_values(program)
        self._shapes = {i: program.steps[i].single for i in step.data}
        with torch.no_grad():
            self.offset = self._of({}).reshape(-1).numpy().copy()

    def _of(self, values: dict[int, Tensor]) -> Tensor:
        zeros = {i: torch.zeros(shape, dtype=torch.float64) for i, shape in self._shapes.items()}
        return call(self._step, {**self._constants, **zeros, **values})

    def single_entries(self, source: int) -> Matrix | None:
        """Read the share of an operand of which each output looks at one entry at most."""
        shape = self._shapes[source]
        n, outputs = prod(shape), len(self.offset)
        number = np.arange(1, n + 1)
        found = np.zeros(outputs, np.int64)
        for bit in range(n.bit_length()):
            digit = torch.from_numpy((number >> bit & 1).astype(np.float64)).reshape(shape)
            found += (self._pushed(source, digit) != 0).astype(np.int64) << bit
        rows = np.flatnonzero(found)
        column = found[rows] - 1
        if (column >= n).any():
            return None
        # outputs that look at the same entry are told apart by passes of their own
        order = np.argsort(column, kind="stable")
        turn = np.empty(len(rows), np.int64)
        first = np.searchsorted(column[order], column[order])
        turn[order] = np.arange(len(rows)) - first
        if turn.max(initial=0) > 64:
            return None
        values = np.zeros(len(rows))
        for k in range(int(turn.max(initial=-1)) + 1):
            mine = turn == k
            gradient = self._pulled(source, rows[mine])
            values[mine] = gradient[column[mine]]
            gradient[column[mine]] = 0.0
            if gradient.any():
                return None
        matrix = coo_array((values, (rows, column)), shape=(outputs, n))
        return plain_matrix(matrix) if self._agrees(source, matrix) else None

    def _pushed(self, source: int, way: Tensor) -> NDArray[np.float64]:
        """Return the derivative of all outputs along a way: the offset adds no rounding to it."""
        with forward_ad.dual_level():
            x = forward_ad.make_dual(torch.zeros_like(way), way)
            out = forward_ad.unpack_dual(self._of({source: x})).tangent
        return np.zeros(len(self.offset)) if out is None else out.detach().reshape(-1).numpy()

    def _pulled(self, source: int, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Sum of the gradients of some outputs."""
        x = torch.zeros(self._shapes[source], dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            out = self._of({source: x})
        weight = torch.zeros(len(self.offset), dtype=torch.float64)
        weight[torch.from_numpy(rows)] = 1.0
        if not out.requires_grad:
            return np.zeros(x.numel())
        (pulled,) = torch.autograd.grad(out, x, weight.reshape(out.shape), allow_unused=True)
        return np.zeros(x.numel()) if pulled is None else pulled.reshape(-1).numpy().copy()

    def _agrees(self, source: int, matrix: coo_array) -> bool:
        """Hold the matrix against the step at a random point."""
        x = np.random.default_rng(0).uniform(1, 2, prod(self._shapes[source]))
        with torch.no_grad():
            value = torch.from_numpy(x).reshape(self._shapes[source])
            out = self._of({source: value}).reshape(-1).numpy()
        made = np.asarray(matrix @ x)
        scale = np.abs(made) + np.abs(self.offset)
        return bool((np.abs(out - self.offset - made) <= 1e-9 * scale).all())
