"""Nodes of constants, computed as the ONNX operator sets define them.

`onnx.reference` evaluates one node at a time, of listed operations alone, and only after the size
of the result is known to be small.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cpwl.network.files.onnx.nodes import Array, Node, fitting
from cpwl.network.files.onnx.parsing import read_tensor

if TYPE_CHECKING:
    import onnx


def fold(node: Node, proto: onnx.NodeProto, opset: int) -> list[Array] | None:
    """Evaluate a node whose inputs are constants; None if its operation is not listed.

    Raises
    ------
    CaptureError
        If the result would be too large, or the inputs do not fit the operation.
    """
    size = SIZES.get(node.type)
    if size is None:
        return None
    names = [f"input_{k}" if node.inputs[k] is not None else "" for k in range(len(node.inputs))]
    arrays = {
        name: value.array
        for name, value in zip(names, node.inputs, strict=True)
        if value is not None and value.array is not None
    }
    with fitting(node):
        node.require(int(size(node, [a for a in arrays.values() if a is not None])))
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # overflows stay in the values
            return [
                np.asarray(value) for value in _evaluator(proto, names, opset).run(None, arrays)
            ]


def positions(node: Node, proto: onnx.NodeProto, opset: int) -> Array:
    """Where each entry of the result comes from, for a node that only copies entries.

    The entries of all tensor inputs are numbered one after the other, in C order.
    """
    names, feeds, first = [], {}, 0
    listed = MOVED[node.type]
    for k, value in enumerate(node.inputs):
        names.append(f"input_{k}" if value is not None else "")
        if value is None:
            continue
        if k in listed:
            count = prod(value.shape)
            node.require(first + count)
            feeds[names[-1]] = np.arange(first, first + count).reshape(value.shape)
            first += count
        else:
            feeds[names[-1]] = value.array
    with fitting(node):
        tensors = [v for v in feeds.values() if v is not None]
        node.require(int(SIZES[node.type](node, tensors)))
        return np.asarray(_evaluator(proto, names, opset).run(None, feeds)[0])


# Inputs whose entries an operation only moves.
MOVED = {
    "GatherElements": (0,), "GatherND": (0,), "ScatterND": (0, 2), "ScatterElements": (0, 2),
    "ReverseSequence": (0,), "Compress": (0,), "Tile": (0,), "Expand": (0,),
    "SpaceToDepth": (0,),
}  # fmt: skip


def _evaluator(proto: onnx.NodeProto, names: list[str], opset: int) -> Any:
    import onnx
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    node = onnx.NodeProto()
    node.CopyFrom(proto)
    del node.input[:], node.output[:]
    node.input.extend(names)
    node.output.extend(f"output_{k}" for k in range(max(1, len(proto.output))))
    unknown = onnx.TypeProto()
    inputs = [helper.make_value_info(name, unknown) for name in names if name]
    outputs = [helper.make_value_info(name, unknown) for name in node.output]
    graph = helper.make_graph([node], "node", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return ReferenceEvaluator(model)


def constant(node: Node, proto: onnx.NodeProto, path: Path) -> Array:
    """Value of a Constant node."""
    attributes = node.attributes
    if list(attributes) == ["value"]:
        return read_tensor(attributes["value"], path)
    kinds = {"value_float": np.float32, "value_floats": np.float32,
             "value_int": np.int64, "value_ints": np.int64}  # fmt: skip
    for name, kind in kinds.items():
        if list(attributes) == [name]:
            return np.asarray(attributes[name], kind)
    node.refuse(f"with {', '.join(attributes) or 'no value'}")


def dequantized(node: Node) -> Array:
    """Real numbers of whole ones: (x - zero point) * scale."""
    x, scale, zero = (node.constant(k) for k in range(3))
    assert x is not None
    assert scale is not None
    axis, block = int(node.attributes.get("axis", 1)), int(node.attributes.get("block_size", 0))
    kind = int(node.attributes.get("output_dtype", 0))
    if block < 0 or kind not in (0, 1) or (zero is not None and zero.shape != scale.shape):
        node.refuse(f"with block_size={block}, output_dtype={kind}")

    def spread(value: Array) -> Array:
        if value.size == 1 and not block:
            return value.reshape(())
        place = node.axis(axis, x.ndim)
        if not block:
            return value.reshape([-1 if k == place else 1 for k in range(x.ndim)])
        return np.repeat(value, block, place)[tuple(slice(0, n) for n in x.shape)]

    with fitting(node):
        node.require(scale.size * max(1, block))
        wide = x.astype(np.float64)
        shifted = wide if zero is None else wide - spread(zero.astype(np.float64))
        result = shifted.astype(np.float32) * spread(scale.astype(np.float32))
        if result.shape != x.shape:
            node.refuse(f"with scales of shape {list(scale.shape)}")
        return result.astype(np.float32 if kind else scale.dtype)


Size = Callable[[Node, list[Array]], int]


def _broadcast(node: Node, arrays: list[Array]) -> int:
    return prod(np.broadcast_shapes(*(a.shape for a in arrays)))


def _total(node: Node, arrays: list[Array]) -> int:
    return sum(a.size for a in arrays) + 1


def _target(node: Node, arrays: list[Array]) -> int:
    return prod(max(1, int(n)) for n in arrays[0].reshape(-1))


def _expanded(node: Node, arrays: list[Array]) -> int:
    return prod(np.broadcast_shapes(arrays[0].shape, tuple(int(n) for n in arrays[1])))


def _tiled(node: Node, arrays: list[Array]) -> int:
    return arrays[0].size * prod(int(n) for n in arrays[1].reshape(-1))


def _range(node: Node, arrays: list[Array]) -> int:
    start, limit, step = (a.reshape(-1)[0].item() for a in arrays)
    return max(0, int((limit - start) / step) + 1)


def _gathered(node: Node, arrays: list[Array]) -> int:
    return arrays[1].size * max(1, arrays[0].size)


def _gathered_along(node: Node, arrays: list[Array]) -> int:
    data, index = arrays
    axis = node.axis(int(node.attributes.get("axis", 0)), data.ndim)
    return index.size * prod(n for k, n in enumerate(data.shape) if k != axis)


def _matrices(node: Node, arrays: list[Array]) -> int:
    a, b = (x if x.ndim > 1 else x.reshape(1, -1) for x in arrays[:2])
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return prod(lead) * max(a.shape[-2:]) * max(b.shape[-2:])


def _one_hot(node: Node, arrays: list[Array]) -> int:
    return arrays[0].size * int(arrays[1].reshape(-1)[0])


def _padded(node: Node, arrays: list[Array]) -> int:
    pads = [int(n) for n in arrays[1].reshape(-1)]
    given = [int(n) for n in arrays[3].reshape(-1)] if len(arrays) > 3 else range(arrays[0].ndim)
    axes = [node.axis(a, arrays[0].ndim) for a in given]
    sizes = list(arrays[0].shape)
    for k, axis in enumerate(axes):
        sizes[axis] += pads[k] + pads[k + len(axes)]
    return prod(sizes)


# Pure operations, each with the size of its result: no random numbers, no state, no subgraphs.
# fmt: off
SIZES: dict[str, Size] = {
    **dict.fromkeys((
        "Add", "Sub", "Mul", "Div", "Mod", "Pow", "Min", "Max", "Sum", "Mean", "And", "Or", "Xor",
        "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Where", "BitShift",
        "BitwiseAnd", "BitwiseOr", "BitwiseXor",
    ), _broadcast),
    **dict.fromkeys((
        "Abs", "BitwiseNot", "Cast", "Ceil", "Clip", "Concat", "Compress", "Constant",
        "CumSum", "DequantizeLinear", "Exp", "EyeLike", "Flatten", "Floor", "GatherElements",
        "Identity", "IsInf", "IsNaN", "Log", "Neg", "NonZero", "Not", "QuantizeLinear",
        "Reciprocal", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Relu",
        "Reshape", "ReverseSequence", "Round", "ScatterElements", "ScatterND", "Sign",
        "Slice", "SpaceToDepth", "DepthToSpace", "Split", "Sqrt", "Squeeze", "TopK", "Transpose",
        "Trilu", "Unsqueeze", "Sin", "Cos", "Tanh", "Sigmoid", "Erf", "ArgMax", "ArgMin",
        "DynamicQuantizeLinear",
    ), _total),
    "ConstantOfShape": _target,
    "Expand": _expanded,
    "Tile": _tiled,
    "Range": _range,
    "Gather": _gathered_along,
    "GatherND": _gathered,
    "MatMul": _matrices,
    "OneHot": _one_hot,
    "Pad": _padded,
}
# fmt: on
