"""Functions on the file's axes, made to run on a batch of samples that never meet.

Each operation is written for the file's own axes. How it runs on a batch depends on its kind:

pointwise   entry by entry, with broadcasting
axes        entries meet along certain axes only
samples     the first axis of its first input is a batch by definition
reshape     entries keep their order
moves       entries are copied from places that numbers on them tell
products    matrices in the last two axes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cpwl.errors import CaptureError
from cpwl.network.files.onnx.nodes import Array, Function, Node, Operation, Value
from cpwl.network.files.onnx.shapes import joins_samples


@dataclass
class Batch:
    """How a file counts samples.

    Attributes
    ----------
    size : int
        Samples in the file's shapes: 1, or the number that the file fixes.
    free : bool
        Whether the file leaves that number open.
    touched : str or None
        The first node that looks along the axis of the samples.
    """

    size: int
    free: bool = False
    touched: str | None = None

    def rows(self, shape: Sequence[int]) -> bool:
        """Whether a value of this shape has the samples as its first axis."""
        return len(shape) > 0 and shape[0] == self.size

    def sample(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Sizes behind the samples' axis."""
        return tuple(shape[1:] if self.rows(shape) else shape)

    def touch(self, node: Node) -> None:
        """Note a node that works along the file's batch axis."""
        if self.size != 1:
            raise CaptureError(
                f"Expected samples that do not meet, got ONNX {node.type} '{node.place}', which "
                f"works along the batch axis of size {self.size}. Export the model with batch 1."
            )
        self.touched = self.touched or f"{node.type} '{node.place}'"

    def widen(self, x: Tensor, value: Value) -> Tensor:
        """Put the file's first axis of length one back behind the samples."""
        return x.unsqueeze(1) if self.rows(value.shape) else x

    def narrow(self, x: Tensor | None) -> Tensor | None:
        """Undo `widen`."""
        return x.squeeze(1) if x is not None and x.ndim > 1 and x.shape[1] == self.size else x


def on_samples(
    node: Node, operation: Operation, batch: Batch, result: tuple[int, ...], plain: Any
) -> Any:
    """Return what `operation.build` returns, for tensors with the samples in front.

    Parameters
    ----------
    result : tuple of int
        Shape of the (first) result in the file.
    plain : tuple
        What `build` returned for the file's own axes, with its arrays.

    Raises
    ------
    CaptureError
        Where samples would meet, and the file has more than one.
    """
    tensors = [
        v for k, v in enumerate(node.inputs) if v is not None and k not in operation.settings
    ]
    data = [value for value in tensors if not value.known]
    if operation.kind == "reshape":
        if (node.free and joins_samples(node)) or not (
            batch.rows(data[0].shape) and batch.rows(result)
        ):
            batch.touch(node)
        size = [-1, *batch.sample(result)]
        if prod(size[1:]) == 0:
            node.refuse("with an empty result")
        return lambda x, *rest: x.reshape(size)
    if DIRECT[operation.kind](node, operation, batch, tensors):
        return plain
    if operation.kind == "samples":
        return _merged(node, operation, batch)
    batch.touch(node)
    return _whole(node, operation, batch, tensors)


def move_entries(
    node: Node, index: Array, tensors: list[Value], batch: Batch | None
) -> tuple[Function, list[Array]]:
    """Pick entries by number from all tensors, laid out in one row per sample."""
    shape, known = index.shape, [value.known for value in tensors]
    size = list(shape)
    if batch is not None:
        literal = node.free and node.type not in ("Expand", "Tile")
        held = all(batch.rows(v.shape) for v in tensors if not v.known)
        if literal or batch.size != 1 or not (held and batch.rows(shape)):
            batch.touch(node)
        size = [-1, *batch.sample(shape)]

    def call(*given: Tensor) -> Tensor:
        *parts, where = given
        count = 1
        if batch is not None:
            count = next(x.shape[0] for x, k in zip(parts, known, strict=True) if not k)
        flat = [
            x.reshape(1, -1).expand(count, -1) if k else x.reshape(count, -1)
            for x, k in zip(parts, known, strict=True)
        ]
        row = flat[0] if len(flat) == 1 else torch.cat(flat, 1)
        return row.index_select(1, where).reshape(size)

    return call, [index.reshape(-1).astype(np.int64)]


def _whole(node: Node, operation: Operation, batch: Batch, tensors: list[Value]) -> Any:
    """Run with the samples' axis in front of all axes of the file."""
    built = operation.build(replace(node, whole=1))
    function, arrays = built if isinstance(built, tuple) else (built, [])
    rank = max(len(value.shape) for value in tensors)
    pad = operation.kind in ("pointwise", "products")

    def call(*given: Any) -> Any:
        wide = []
        for x, value in zip(given, tensors, strict=False):
            if not value.known:
                x = batch.widen(x, value)
                if pad and 0 < len(value.shape) < rank and operation.kind == "pointwise":
                    x = x.reshape(x.shape[0], *[1] * (rank - len(value.shape)), *value.shape)
                elif pad and not value.shape:
                    x = x.reshape(x.shape[0], *[1] * rank)
            wide.append(x)
        result = function(*wide, *given[len(wide) :])
        if isinstance(result, (tuple, list)):
            return [batch.narrow(part) for part in result]
        return batch.narrow(result)

    return call, arrays


def _merged(node: Node, operation: Operation, batch: Batch) -> Any:
    """Count the file's own first axis among the samples."""
    built = operation.build(node)
    function, arrays = built if isinstance(built, tuple) else (built, [])
    first = node.shape()[0] if node.shape() else 1
    batch.touch(node)

    def call(x: Tensor, *rest: Any) -> Any:
        result = function(x.flatten(0, 1), *rest)
        if isinstance(result, (tuple, list)):
            return [part.unflatten(0, (-1, first)) for part in result]
        return result.unflatten(0, (-1, first))

    return call, arrays


def _pointwise(node: Node, operation: Operation, batch: Batch, tensors: list[Value]) -> bool:
    rank = max(len(value.shape) for value in tensors)
    return all(
        len(v.shape) < rank or v.shape[0] == 1
        if v.known
        else len(v.shape) == rank and batch.rows(v.shape)
        for v in tensors
    )


def _axes(node: Node, operation: Operation, batch: Batch, tensors: list[Value]) -> bool:
    assert operation.axes is not None
    rank = max(len(value.shape) for value in tensors)
    apart = all(
        (node.type != "Concat" and len(v.shape) < rank) or v.shape[0] == 1
        if v.known
        else batch.rows(v.shape)
        for v in tensors
    )
    return apart and 0 not in operation.axes(node)


def _samples(node: Node, operation: Operation, batch: Batch, tensors: list[Value]) -> bool:
    if tensors[0].known or not all(value.known for value in tensors[1:]):
        node.refuse("where its weights depend on the model's input")
    return batch.rows(tensors[0].shape)


def _products(node: Node, operation: Operation, batch: Batch, tensors: list[Value]) -> bool:
    if node.type not in ("MatMul", "Gemm") or node.attributes.get("transA"):
        return False
    a, b = tensors[:2]
    rank = max(len(a.shape), len(b.shape))
    for k, value in enumerate((a, b)):
        if value.known:
            fits = len(value.shape) == 2 or (2 < len(value.shape) == rank and value.shape[0] == 1)
        else:
            fits = len(value.shape) == rank >= 2 + k and batch.rows(value.shape)
        if not fits:
            return False
    if a.known and len(a.shape) > 2 and len(a.shape) > len(b.shape):
        return False
    rest = tensors[2:]
    return all(
        len(v.shape) < 2 or v.shape[0] == 1
        if v.known
        else len(v.shape) == 2 and batch.rows(v.shape)
        for v in rest
    )


DIRECT = {
    "pointwise": _pointwise,
    "axes": _axes,
    "samples": _samples,
    "products": _products,
}
