"""ONNX operations that move entries: shapes, slices, joining, padding."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cpwl.network.files.onnx.nodes import Function, Node, Operation

PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def to_shape(target: Callable[[Node], list[int]]) -> Callable[[Node], Function]:
    """Build a reshape to what `target` says."""

    def build(node: Node) -> Function:
        size = target(node)
        return lambda x, *rest: x.reshape(size)

    return build


def _flatten(node: Node) -> list[int]:
    shape = node.shape()
    axis = int(node.attributes["axis"])
    if not -len(shape) <= axis <= len(shape):
        node.refuse(f"with axis {axis} on {len(shape)} axes")
    axis = axis % len(shape) if axis < 0 else axis
    return [prod(shape[:axis]), prod(shape[axis:])]


def _reshape(node: Node) -> list[int]:
    target, shape = node.integers("shape", 1), node.shape()
    if target is None or min(target, default=0) < -1 or target.count(-1) > 1:
        node.refuse(f"to {target}")
    if not node.attributes.get("allowzero"):
        if any(n == 0 and k >= len(shape) for k, n in enumerate(target)):
            node.refuse(f"to {target} from {list(shape)}")
        target = [shape[k] if n == 0 else n for k, n in enumerate(target)]
    rest = prod(n for n in target if n != -1)
    if -1 in target and rest and prod(shape) % rest == 0:
        target = [prod(shape) // rest if n == -1 else n for n in target]
    if prod(target) != prod(shape):
        node.refuse(f"to {target} from {list(shape)}")
    return target


def _squeeze(node: Node) -> list[int]:
    shape, axes = node.shape(), node.integers("axes", 1)
    if axes is None:
        # An open batch is not one because its example is.
        return [n for k, n in enumerate(shape) if n != 1 or (k == 0 and node.free)]
    listed = [node.axis(a) for a in axes]
    if any(shape[a] != 1 for a in listed):
        node.refuse(f"of axes {axes} of the shape {list(shape)}")
    return [n for k, n in enumerate(shape) if k not in listed]


def _unsqueeze(node: Node) -> list[int]:
    axes = node.integers("axes", 1) or []
    if len(axes) > 16:
        node.refuse(f"with {len(axes)} axes")
    rank = len(node.shape()) + len(axes)
    listed = {node.axis(a, rank) for a in axes}
    if len(listed) < len(axes):
        node.refuse(f"with axes {axes}")
    rest = iter(node.shape())
    return [1 if k in listed else next(rest) for k in range(rank)]


def joins_samples(node: Node) -> bool:
    """Whether a change of shape keeps a batch of one first, but not an open batch."""
    rank = len(node.shape())
    if node.type == "Flatten":
        return node.attributes["axis"] in (0, -rank)
    if node.type == "Reshape":
        target = node.integers("shape", 1) or [0]
        return target[0] == 1 and -1 in target
    axes = node.integers("axes", 1) or []
    return 0 in axes or -(rank + (len(axes) if node.type == "Unsqueeze" else 0)) in axes


def _one_axis(node: Node) -> list[int]:
    """Axis attribute, from the front."""
    return [node.axis(int(node.attributes.get("axis", 0)))]


def _concat(node: Node) -> Function:
    axis = node.axis(int(node.attributes["axis"])) + node.whole
    known = [value is not None and value.known for value in node.inputs]
    if not any(known) or not axis or all(known):
        return lambda *parts: torch.cat(parts, axis)

    def call(*parts: Tensor) -> Tensor:
        count = next(x.shape[0] for x, k in zip(parts, known, strict=True) if not k)
        wide = [
            x.expand(count, *x.shape[1 - node.whole :]) if k else x
            for x, k in zip(parts, known, strict=True)
        ]
        return torch.cat(wide, axis)

    return call


def _gather(node: Node) -> tuple[Function, list[Any]]:
    axis = _one_axis(node)[0]
    index, size = node.constant(1), node.shape()[axis]
    assert index is not None
    if index.size and not (-size <= index.min() and index.max() < size):
        node.refuse(f"with indices {index.min()} to {index.max()} on an axis of {size}")
    node.require(prod(node.shape()) // max(1, size) * index.size)
    place = axis + node.whole
    if index.ndim == 0:
        position = int(index) % size
        return lambda x, *rest: x.select(place, position), []
    shape = list(index.shape)

    def call(x: Tensor, where: Tensor) -> Tensor:
        picked = x.index_select(place, where)
        return picked if len(shape) == 1 else picked.unflatten(place, shape)

    return call, [(index.reshape(-1) % size).astype(np.int64)]


def _ranges(node: Node) -> list[tuple[int, range]]:
    """Axes of a slice with the positions that it takes."""
    starts, ends = node.integers("starts", 1) or [], node.integers("ends", 2) or []
    axes = node.integers("axes", 3)
    axes = list(range(len(starts))) if axes is None else axes
    steps = node.integers("steps", 4) or [1] * len(starts)
    if len({len(starts), len(ends), len(axes), len(steps)}) > 1 or 0 in steps:
        node.refuse(f"with starts {starts}, ends {ends}, axes {axes}, steps {steps}")
    found = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        place = node.axis(axis)
        size = node.shape()[place]
        # An end before the first entry: Python's slice would count it from the back.
        last = None if step < 0 and end < -size else end
        taken = range(size)[start:last:step]
        open_end = (start, step) == (0, 1) and end >= 2**31 - 1
        if taken != range(size) or (node.free and place == 0 and not open_end):
            found.append((place, taken))
    return found


def _slice(node: Node) -> tuple[Function, list[Any]]:
    ranges = _ranges(node)
    if any(not len(r) for _, r in ranges):
        node.refuse("with an empty result")
    back = [np.array(r, np.int64) for _, r in ranges if r.step < 0]

    def call(x: Tensor, *given: Tensor) -> Tensor:
        rest = list(given[len(given) - len(back) :])
        for axis, taken in ranges:
            if taken.step < 0:
                x = x.index_select(axis + node.whole, rest.pop(0))
            else:
                x = torch.ops.aten.slice.Tensor(
                    x, axis + node.whole, taken.start, taken.stop, taken.step
                )
        return x

    return call, back


def _sliced_axes(node: Node) -> list[int]:
    return [axis for axis, _ in _ranges(node)]


def _split(node: Node) -> Function:
    axis = _one_axis(node)[0]
    size, parts = node.shape()[axis], len(node.outputs)
    sizes = node.integers("split", 1)
    if sizes is None:
        count = int(node.attributes.get("num_outputs") or parts)
        each = -(-size // parts)
        sizes = [each] * (parts - 1) + [size - each * (parts - 1)]
        if count != parts or (node.version < 18 and size % parts):
            node.refuse(f"of {size} entries into {parts} parts")
    if len(sizes) != parts or sum(sizes) != size or min(sizes) < 0:
        node.refuse(f"of {size} entries into parts of {sizes}")
    place = axis + node.whole
    starts = [sum(sizes[:k]) for k in range(parts)]

    def call(x: Tensor, *rest: Any) -> list[Tensor | None]:
        return [
            None if name is None else torch.ops.aten.slice.Tensor(x, place, a, a + n)
            for name, a, n in zip(node.outputs, starts, sizes, strict=True)
        ]

    return call


def _pads(node: Node) -> list[tuple[int, int]]:
    """Entries added before and after each axis."""
    rank = len(node.shape())
    pads = node.integers("pads", 1) or []
    given = node.integers("axes", 3)
    axes = [node.axis(a) for a in (range(rank) if given is None else given)]
    if len(pads) != 2 * len(axes) or len(set(axes)) < len(axes):
        node.refuse(f"with pads {pads} for axes {axes}")
    pairs = [(0, 0)] * rank
    for k, axis in enumerate(axes):
        pairs[axis] = (pads[k], pads[k + len(axes)])
    sizes = [n + sum(p) for n, p in zip(node.shape(), pairs, strict=True)]
    if min(sizes, default=1) < 1 or any(
        -min(p) > n for n, p in zip(node.shape(), pairs, strict=True)
    ):
        node.refuse(f"with pads {pads} on the shape {list(node.shape())}")
    node.require(prod(sizes))
    return pairs


def _pad(node: Node) -> Any:
    pairs = _pads(node)
    how = node.attributes.get("mode", "constant")
    if how not in PAD_MODES:
        node.refuse(f"with mode={how}")
    if how != "constant":
        return _picked(node, pairs, how)
    value = node.number(2, "value")
    fill = 0.0 if value is None else value
    while pairs and pairs[0] == (0, 0):
        pairs = pairs[1:]
    flat = [p for pair in reversed(pairs) for p in pair]
    if not flat:
        return lambda x, *rest: x
    return lambda x, *rest: functional.pad(x, flat, "constant", fill)


def _picked(node: Node, pairs: list[tuple[int, int]], how: str) -> tuple[Function, list[Any]]:
    """Pad with entries of the tensor itself."""
    plan, arrays = [], []
    for axis, (before, after) in enumerate(pairs):
        n = node.shape()[axis]
        if (before, after) == (0, 0):
            continue
        if min(before, after) < 0 and how != "edge":
            node.refuse(f"with negative pads {[before, after]} and mode={how}")
        place = np.arange(-before, n + after)
        if how == "reflect":
            if n == 1 or max(before, after) >= n:
                node.refuse(f"with a reflection of {max(before, after)} on an axis of {n}")
            place = np.abs(place)
            place = (n - 1) - np.abs((n - 1) - place)
        place = place.clip(0, n - 1) if how == "edge" else place % n
        plan.append(axis + node.whole)
        arrays.append(place.astype(np.int64))

    def call(x: Tensor, *given: Tensor) -> Tensor:
        for axis, index in zip(plan, given[len(given) - len(plan) :], strict=True):
            x = x.index_select(axis, index)
        return x

    return call, arrays


def _padded_axes(node: Node) -> list[int]:
    return [k for k, pair in enumerate(_pads(node)) if pair != (0, 0)]


def _depth_to_space(node: Node) -> Function:
    size, mode = int(node.attributes["blocksize"]), node.attributes.get("mode", "DCR")
    shape = node.shape()
    if size < 1 or len(shape) != 4 or shape[1] % size**2 or mode not in ("DCR", "CRD"):
        node.refuse(f"with blocksize={size}, mode={mode} on the shape {list(shape)}")
    if mode == "CRD":
        return lambda x: functional.pixel_shuffle(x, size)
    depth, h, w = shape[1] // size**2, shape[2], shape[3]

    def call(x: Tensor) -> Tensor:
        x = x.reshape(-1, size, size, depth, h, w).permute(0, 3, 4, 1, 5, 2)
        return x.reshape(-1, depth, h * size, w * size)

    return call


def _space_to_depth(node: Node) -> Function:
    size, shape = int(node.attributes["blocksize"]), node.shape()
    if size < 1 or len(shape) != 4 or shape[2] % size or shape[3] % size:
        node.refuse(f"with blocksize={size} on the shape {list(shape)}")
    if node.attributes.get("mode", "DCR") != "DCR":
        node.refuse(f"with mode={node.attributes['mode']}")
    c, h, w = shape[1], shape[2] // size, shape[3] // size

    def call(x: Tensor) -> Tensor:
        x = x.reshape(-1, c, h, size, w, size).permute(0, 3, 5, 1, 2, 4)
        return x.reshape(-1, c * size**2, h, w)

    return call


def _order(node: Node) -> list[int]:
    rank = len(node.shape())
    order = node.attributes.get("perm")
    order = list(reversed(range(rank))) if order is None else [int(k) for k in order]
    if sorted(order) != list(range(rank)):
        node.refuse(f"with perm={order} on {rank} axes")
    return order


def _transpose(node: Node) -> Function:
    order = _order(node)
    if node.whole:
        order = [0, *(k + 1 for k in order)]
    return lambda x: x.permute(order)


def _turned_axes(node: Node) -> list[int]:
    return [k for k, n in enumerate(_order(node)) if k != n]


def _triangle(node: Node) -> Function:
    if len(node.shape()) < 2:
        node.refuse("on less than two axes")
    offset = int(node.number(1) or 0)
    function = torch.triu if node.attributes.get("upper", 1) else torch.tril
    return lambda x, *rest: function(x, offset)


def _last_two(node: Node) -> list[int]:
    return [len(node.shape()) - 2, len(node.shape()) - 1]


def _moves(*settings: int, attributes: tuple[str, ...] = (), tensors: int = 2) -> Operation:
    return Operation(lambda node: None, "moves", attributes, settings, tensors)


SHAPES: dict[str, Operation] = {
    "Flatten": Operation(to_shape(_flatten), "reshape", ("axis",)),
    "Reshape": Operation(to_shape(_reshape), "reshape", ("allowzero", "shape"), (1,), 2),
    "Squeeze": Operation(to_shape(_squeeze), "reshape", ("axes",), (1,), 2),
    "Unsqueeze": Operation(to_shape(_unsqueeze), "reshape", ("axes",), (1,), 2),
    "Concat": Operation(_concat, "axes", ("axis",), tensors=-1, axes=_one_axis),
    "Gather": Operation(_gather, "axes", ("axis",), (1,), 2, axes=_one_axis),
    "Slice": Operation(
        _slice, "axes", ("axes", "ends", "starts"), (1, 2, 3, 4), 5, axes=_sliced_axes
    ),
    "Split": Operation(
        _split, "axes", ("axis", "num_outputs", "split"), (1,), 2, outputs=-1, axes=_one_axis
    ),
    "Pad": Operation(
        _pad, "axes", ("mode", "pads", "value"), (1, 2, 3), 4, axes=_padded_axes
    ),
    "DepthToSpace": Operation(_depth_to_space, "samples", ("blocksize", "mode")),
    "SpaceToDepth": Operation(_space_to_depth, "samples", ("blocksize", "mode")),
    "Transpose": Operation(_transpose, "axes", ("perm",), axes=_turned_axes),
    "Trilu": Operation(_triangle, "axes", ("upper",), (1,), 2, axes=_last_two),
    "Expand": _moves(1),
    "Tile": _moves(1),
    "GatherElements": _moves(1, attributes=("axis",)),
    "GatherND": _moves(1, attributes=("batch_dims",)),
    "ScatterElements": _moves(1, attributes=("axis",), tensors=3),
    "ScatterND": _moves(1, tensors=3),
    "ReverseSequence": _moves(1, attributes=("batch_axis", "time_axis")),
    "Compress": _moves(1, attributes=("axis",)),
}  # fmt: skip
