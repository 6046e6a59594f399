"""ONNX operators that move entries: shapes, slices, concatenation, padding."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from cpwl.errors import CaptureError

Function = Callable[..., Any]


class Node(NamedTuple):
    """An ONNX node: its attributes, and the values of those inputs that are constants."""

    type: str
    attributes: dict[str, Any]
    constants: tuple[Tensor | None, ...]
    outputs: int
    version: int

    def integers(self, name: str, position: int) -> list[int] | None:
        """Integers given as an attribute (older operator sets) or as a constant input."""
        if name in self.attributes:
            value = self.attributes[name]
            return list(value) if not isinstance(value, int) else [value]
        tensor = self.constant(position)
        return None if tensor is None else [int(item) for item in tensor.flatten().tolist()]

    def constant(self, position: int) -> Tensor | None:
        """Constant input, None where it is absent or computed."""
        return self.constants[position] if position < len(self.constants) else None


def _flatten(node: Node) -> Function:
    axis = node.attributes.get("axis", 1)
    if axis != 1:
        raise CaptureError(
            f"Expected ONNX Flatten with axis=1, got axis={axis}, which joins the batch axis. "
            "Export the model with nn.Flatten()."
        )
    return lambda x: torch.flatten(x, 1)


def _reshape(node: Node) -> Function:
    target = node.integers("shape", 1)
    keep_zero = bool(node.attributes.get("allowzero", 0))

    def call(x: Tensor, shape: Any = None) -> Tensor:
        sizes = list(shape) if target is None else list(target)
        if not keep_zero:
            sizes = [
                x.shape[k] if isinstance(n, int) and n == 0 else n for k, n in enumerate(sizes)
            ]
        # A leading 1 is the batch size that the file was exported with.
        leads = isinstance(sizes[0], int) and sizes[0] in (1, -1)
        if leads and (-1 in sizes[1:] or prod(sizes[1:]) == prod(x.shape[1:])):
            sizes[0] = x.shape[0]
        return x.reshape(sizes)

    return call


def axes_of(node: Node, position: int = 1) -> list[int] | None:
    """Axes as an attribute or an input."""
    return node.integers("axes", position)


def _squeeze(node: Node) -> Function:
    axes = axes_of(node)

    def call(x: Any, given: Any = None) -> Any:
        if isinstance(x, list):
            return x[0]
        if axes is None:
            return x.squeeze(tuple(k for k in range(1, x.ndim) if x.shape[k] == 1))
        return x.squeeze(tuple(axes))

    return call


def _unsqueeze(node: Node) -> Function:
    axes = axes_of(node) or []

    def call(x: Any, given: Any = None) -> Any:
        if not isinstance(x, Tensor):
            return [x]
        rank = x.ndim + len(axes)
        for axis in sorted(axis % rank for axis in axes):
            x = x.unsqueeze(axis)
        return x

    return call


def _concat(node: Node) -> Function:
    axis = node.attributes["axis"]

    def call(*parts: Any) -> Any:
        if any(isinstance(part, list) for part in parts):
            return [n for part in parts for n in _as_list(part)]
        return torch.cat(parts, axis)

    return call


def _gather(node: Node) -> Function:
    axis = node.attributes.get("axis", 0)

    def call(x: Any, index: Tensor) -> Any:
        if isinstance(x, list):
            picked = [x[int(k)] for k in index.flatten().tolist()]
            return picked if index.ndim else picked[0]
        if index.ndim == 0:
            return x.select(axis, int(index))
        flat = x.index_select(axis, index.flatten() % x.shape[axis])
        return flat.unflatten(axis, list(index.shape)) if index.ndim > 1 else flat

    position = node.constant(1)
    if position is None:
        return call
    return lambda x, index=None: call(x, position)


def _slice(node: Node) -> Function:
    starts, ends = node.integers("starts", 1) or [], node.integers("ends", 2) or []
    axes = node.integers("axes", 3)
    steps = node.integers("steps", 4) or [1] * len(starts)

    def call(x: Any, *given: Any) -> Any:
        if isinstance(x, list):
            return x[starts[0] : ends[0] : steps[0]]
        for axis, start, end, step in zip(
            axes or range(len(starts)), starts, ends, steps, strict=True
        ):
            size = x.shape[axis]
            if step < 0:
                picked = list(range(int(size)))[start : None if end < -size else end : step]
                x = x.index_select(axis, torch.tensor(picked))
            else:
                x = torch.ops.aten.slice.Tensor(x, axis, start, end, step)
        return x

    return call


def _split(node: Node) -> Function:
    axis = node.attributes.get("axis", 0)
    sizes = node.integers("split", 1)

    def call(x: Tensor, given: Any = None) -> Any:
        if sizes is not None:
            parts = torch.split(x, sizes, axis)
        else:
            parts = torch.split(x, -(-x.shape[axis] // node.outputs), axis)
        return parts[0] if node.outputs == 1 else parts

    return call


def _pad(node: Node) -> Function:
    pads = node.integers("pads", 1) or []
    value = node.constant(2)
    fill = float(value) if value is not None else float(node.attributes.get("value", 0.0))
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    how = mode[node.attributes.get("mode", "constant")]
    count = len(pads) // 2
    pairs = [(pads[k], pads[k + count]) for k in range(count)]
    while pairs and pairs[0] == (0, 0) and (how == "constant" or len(pairs) > 1):
        pairs = pairs[1:]
        if how != "constant" and count - len(pairs) == 2:
            break
    flat = [p for pair in reversed(pairs) for p in pair]
    if how == "constant":
        return lambda x, *rest: functional.pad(x, flat, how, fill)
    return lambda x, *rest: functional.pad(x, flat, how)


def _depth_to_space(node: Node) -> Function:
    size = node.attributes["blocksize"]
    if node.attributes.get("mode", "DCR") == "CRD":
        return lambda x: functional.pixel_shuffle(x, size)

    def call(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return x.reshape(n, c // size**2, h * size, w * size)

    return call


def _transpose(node: Node) -> Function:
    order = node.attributes.get("perm")
    return lambda x: x.permute(order if order is not None else list(reversed(range(x.ndim))))


def _cast(node: Node) -> Function:
    kinds = {6: torch.int32, 7: torch.int64, 9: torch.bool}
    kind = kinds.get(node.attributes["to"])
    return lambda x: x.to(kind) if kind is not None and isinstance(x, Tensor) else x


def _expand(node: Node) -> Function:
    target = node.integers("shape", 1)

    def call(x: Tensor, shape: Any = None) -> Tensor:
        sizes = list(target) if target is not None else list(shape)
        lead = len(sizes) - x.ndim
        kept = [x.shape[k - lead] if k >= lead and n == 1 else n for k, n in enumerate(sizes)]
        return x.expand(kept)

    return call


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, Tensor):
        return value.flatten().tolist()
    return value if isinstance(value, list) else [value]


def _shape_of(x: Tensor) -> list[Any]:
    return list(x.shape)


SHAPE_CONVERTERS: dict[str, Callable[[Node], Function]] = {
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "Split": _split,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "Transpose": _transpose,
    "Cast": _cast,
    "Expand": _expand,
    "Shape": lambda node: _shape_of,
}
