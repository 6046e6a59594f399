"""Random ONNX graphs of the operations that the reader takes, and onnxruntime's values of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]


class Graph:
    """A graph under construction from draws of a generator; `value` is the last result."""

    def __init__(self, rng: np.random.Generator, opset: int) -> None:
        self.rng, self.opset = rng, opset
        self.rank = int(rng.integers(2, 5))
        self.shape = [1, *(int(n) for n in rng.integers(1, 6, self.rank - 1))]
        self.first = list(self.shape)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.value = "x"
        # earlier values with their shapes: skip connections
        self.earlier = [("x", list(self.shape))]

    def pick(self, *options: Any) -> Any:
        """Draw one of several."""
        return options[int(self.rng.integers(len(options)))]

    def constant(self, array: Any, kind: Any = np.float32) -> str:
        """Add an initialiser, sometimes behind a node that hides it."""
        name = f"c{len(self.constants)}"
        array = np.asarray(array, kind)
        self.constants[name] = array
        hidden = self.pick(None, None, None, "Identity", "Cast")
        if hidden is None:
            return name
        extra: dict[str, Any] = {}
        if hidden == "Cast":
            extra["to"] = helper.np_dtype_to_tensor_dtype(array.dtype)
            if array.dtype == np.int64 and np.abs(array).max(initial=0) < 100:
                self.constants[name] = array.astype(np.int8)
        self.nodes.append(helper.make_node(hidden, [name], [f"{name}h"], **extra))
        return f"{name}h"

    def numbers(self, *shape: int) -> Array:
        """Draw small numbers on a coarse grid, on which float32 is exact for a while."""
        return self.rng.integers(-8, 9, shape) / 4

    def node(
        self, kind: str, *inputs: str, shape: list[int] | None = None, **attributes: Any
    ) -> None:
        """Add a node that reads the last result (as `self.value` among `inputs`)."""
        name = f"v{len(self.nodes)}"
        label = self.pick("", f"a/b.c/{name}", name, "result", "forward", "training", "to")
        label = "" if any(node.name == label for node in self.nodes) else label
        self.nodes.append(helper.make_node(kind, list(inputs), [name], label, **attributes))
        self.value = name
        self.shape = self.shape if shape is None else shape
        self.earlier.append((name, list(self.shape)))

    def model(self) -> onnx.ModelProto:
        """Return the model."""
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.first)
        y = helper.make_tensor_value_info(self.value, TensorProto.FLOAT, None)
        tensors = [numpy_helper.from_array(a, name) for name, a in self.constants.items()]
        graph = helper.make_graph(self.nodes, "random", [x], [y], tensors)
        opset = helper.make_opsetid("", self.opset)
        return helper.make_model(graph, opset_imports=[opset], ir_version=9)


def _pointwise(g: Graph) -> None:
    kind = g.pick(
        "Relu", "Abs", "Neg", "LeakyRelu", "Clip", "HardSigmoid", "Sigmoid", "Elu", "Softplus"
    )
    if kind == "Clip":
        g.node(kind, g.value, g.pick("", g.constant(-1.25)), g.pick("", g.constant(0.75)))
    elif kind in ("LeakyRelu", "Elu"):
        g.node(kind, g.value, alpha=0.25)
    else:
        g.node(kind, g.value)


def _arithmetic(g: Graph) -> None:
    kind = g.pick("Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu", "Where", "Pow")
    shape = [g.pick(1, n) for n in g.shape]
    shape = shape[int(g.rng.integers(0, len(shape) + 1)) :]
    array = g.numbers(*shape)
    if kind == "Div":
        array = np.where(array == 0, 2, array)
    if kind == "Where":
        g.node(kind, g.constant(array > 0, bool), g.value, g.constant(0.5))
        g.shape = list(np.broadcast_shapes(g.shape, array.shape))
        return
    if kind == "Pow":
        g.node(kind, g.value, g.constant(2.0))
        return
    pair = [g.value, g.constant(array)]
    if kind in ("Sub", "Mul", "Add") and g.rng.integers(2):
        pair.reverse()
    g.node(kind, *pair)


def _skip(g: Graph) -> None:
    same = [name for name, shape in g.earlier if shape == g.shape]
    other = g.pick(g.value, *same)
    if g.rng.integers(2) or len(g.shape) < 2:
        g.node(g.pick("Add", "Sub", "Max", "Mean"), g.value, other)
    else:
        axis = int(g.rng.integers(1, len(g.shape)))
        shape = list(g.shape)
        shape[axis] *= 2
        g.node("Concat", g.value, other, axis=axis - g.pick(0, len(shape)), shape=shape)


def _reshape(g: Graph) -> None:
    kind = g.pick("Reshape", "Flatten", "Unsqueeze", "Transpose", "Squeeze")
    shape, rank = list(g.shape), len(g.shape)
    if kind == "Flatten":
        axis = int(g.rng.integers(-rank, rank + 1))
        front = axis % rank if axis < 0 else axis
        g.node(
            kind,
            g.value,
            axis=axis,
            shape=[int(np.prod(shape[:front])), int(np.prod(shape[front:]))],
        )
    elif kind == "Reshape":
        cut = int(g.rng.integers(1, rank))
        target = [*shape[:cut], int(np.prod(shape[cut:]))]
        written = [0 if k and g.rng.integers(2) else n for k, n in enumerate(target)]
        written[-1] = g.pick(-1, target[-1])
        g.node(kind, g.value, g.constant(written, np.int64), shape=target)
    elif kind == "Unsqueeze" and rank < 5:
        axis = int(g.rng.integers(0, rank + 1))
        g.node(kind, g.value, g.constant([axis], np.int64), shape=[*shape[:axis], 1, *shape[axis:]])
    elif kind == "Squeeze" and 1 in shape[1:]:
        axis = 1 + shape[1:].index(1)
        g.node(
            kind,
            g.value,
            g.constant([axis - rank], np.int64),
            shape=shape[:axis] + shape[axis + 1 :],
        )
    elif kind == "Transpose":
        order = [int(k) for k in g.rng.permutation(rank)]
        g.node(kind, g.value, perm=order, shape=[shape[k] for k in order])


def _select(g: Graph) -> None:
    rank, shape = len(g.shape), list(g.shape)
    if rank < 2:
        return
    axis = int(g.rng.integers(0, rank))
    n = shape[axis]
    kind = g.pick("Gather", "Slice", "Tile", "CumSum", "Expand", "Pad", "Split")
    if kind == "Gather":
        index = g.rng.integers(-n, n, int(g.rng.integers(1, 4)))
        shape[axis] = len(index)
        g.node(kind, g.value, g.constant(index, np.int64), axis=axis - g.pick(0, rank), shape=shape)
    elif kind == "Slice":
        step = g.pick(1, 2, -1)
        taken = range(n)[::step]
        start, end = (-1, -9999) if step < 0 else (0, g.pick(n, 9999))
        shape[axis] = len(taken)
        settings = [g.constant([v], np.int64) for v in (start, end, axis, step)]
        g.node(kind, g.value, *settings, shape=shape)
    elif kind == "Tile":
        shape[axis] *= 2
        repeats = [2 if k == axis else 1 for k in range(rank)]
        g.node(kind, g.value, g.constant(repeats, np.int64), shape=shape)
    elif kind == "CumSum":
        g.node(
            kind, g.value, g.constant(axis, np.int64), exclusive=g.pick(0, 1), reverse=g.pick(0, 1)
        )
    elif kind == "Expand":
        target = [3 if m == 1 and k else m for k, m in enumerate(shape)]
        g.node(kind, g.value, g.constant(target, np.int64), shape=target)
    elif kind == "Pad":
        pads = [int(p) for p in g.rng.integers(0, 2, 2 * rank)]
        mode = g.pick("constant", "edge")
        shape = [m + pads[k] + pads[k + rank] for k, m in enumerate(shape)]
        g.node(kind, g.value, g.constant(pads, np.int64), mode=mode, shape=shape)
    elif n > 1:
        name = f"s{len(g.nodes)}"
        cut = g.constant([1, n - 1], np.int64)
        g.nodes.append(helper.make_node("Split", [g.value, cut], [name, f"{name}b"], axis=axis))
        shape[axis] = n - 1
        g.value, g.shape = f"{name}b", shape


def _reduce(g: Graph) -> None:
    rank = len(g.shape)
    if rank < 2:
        return
    axis = int(g.rng.integers(1, rank))
    kind = g.pick(
        "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "Softmax", "TopK"
    )
    shape = list(g.shape)
    if kind == "Softmax":
        g.node(kind, g.value, axis=axis)
    elif kind == "TopK":
        name = f"t{len(g.nodes)}"
        k = g.constant([1], np.int64)
        g.nodes.append(helper.make_node(kind, [g.value, k], [name, f"{name}i"], axis=axis))
        shape[axis] = 1
        g.value, g.shape = name, shape
    else:
        keep = g.pick(0, 1)
        shape[axis : axis + 1] = [1] * keep
        if g.opset >= 18 or kind == "ReduceSum":
            g.node(kind, g.value, g.constant([axis], np.int64), keepdims=keep, shape=shape)
        else:
            g.node(kind, g.value, axes=[axis], keepdims=keep, shape=shape)


def _product(g: Graph) -> None:
    rank, n = len(g.shape), g.shape[-1]
    if rank == 2 and g.rng.integers(2):
        transposed = g.pick(0, 1)
        weight = g.numbers(3, n) if transposed else g.numbers(n, 3)
        bias = [g.constant(g.numbers(*g.pick((3,), (1, 3), (1,))))] if g.rng.integers(2) else []
        g.node(
            "Gemm",
            g.value,
            g.constant(weight),
            *bias,
            transB=transposed,
            alpha=0.5,
            shape=[g.shape[0], 3],
        )
    elif rank > 2 and g.rng.integers(2):
        weight = g.numbers(2, g.shape[-2])
        g.node("MatMul", g.constant(weight), g.value, shape=[*g.shape[:-2], 2, n])
    else:
        g.node("MatMul", g.value, g.constant(g.numbers(n, 2)), shape=[*g.shape[:-1], 2])


def _window(g: Graph) -> None:
    count = len(g.shape) - 2
    if not 1 <= count <= 2 or 0 in g.shape:
        return
    kind = g.pick("Conv", "MaxPool", "AveragePool", "ConvTranspose", "Resize", "BatchNormalization")
    kernel = [int(min(n, g.rng.integers(1, 4))) for n in g.shape[2:]]
    channels = g.shape[1]
    strides = [int(s) for s in g.rng.integers(1, 3, count)]
    pads = [int(g.rng.integers(0, k)) for k in kernel * 2]
    options: dict[str, Any] = {"kernel_shape": kernel, "strides": strides}
    options |= g.pick(
        {"pads": pads},
        {"auto_pad": "SAME_UPPER"},
        {"auto_pad": "SAME_LOWER"},
        {"auto_pad": "VALID"},
    )
    if kind == "BatchNormalization":
        four = [g.constant(g.numbers(channels)) for _ in range(3)]
        g.node(kind, g.value, *four, g.constant(g.numbers(channels) ** 2 + 1))
        return
    if kind == "Resize":
        scales = [1.0, 1.0, *(g.pick(0.5, 1.5, 2.0, 3.0) for _ in range(count))]
        mode = g.pick("nearest", "linear")
        how = g.pick("half_pixel", "asymmetric", "pytorch_half_pixel")
        if any(int(n * s) < 1 for n, s in zip(g.shape, scales, strict=True)):
            return
        extra = (
            {"nearest_mode": g.pick("floor", "ceil", "round_prefer_floor")}
            if mode == "nearest"
            else {}
        )
        g.node(
            kind,
            g.value,
            "",
            g.constant(scales),
            mode=mode,
            coordinate_transformation_mode=how,
            **extra,
        )
    elif kind == "Conv":
        g.node(kind, g.value, g.constant(g.numbers(2, channels, *kernel)), **options)
    elif kind == "ConvTranspose":
        options = {"kernel_shape": kernel, "strides": strides, "pads": [p // 2 for p in pads]}
        g.node(kind, g.value, g.constant(g.numbers(channels, 2, *kernel)), **options)
    elif kind == "MaxPool":
        g.node(kind, g.value, ceil_mode=g.pick(0, 1) if "pads" in options else 0, **options)
    else:
        g.node(kind, g.value, count_include_pad=g.pick(0, 1), **options)
    # The shape follows from many numbers: it is asked of the reference where it is needed.
    g.shape = _shape_of(g)
    g.earlier[-1] = (g.value, list(g.shape))


def _shape_of(g: Graph) -> list[int]:
    from onnx import shape_inference

    model = shape_inference.infer_shapes(g.model(), data_prop=True)
    dims = model.graph.output[0].type.tensor_type.shape.dim
    return [d.dim_value for d in dims]


MAKERS = (_pointwise, _arithmetic, _skip, _reshape, _select, _reduce, _product, _window, _window)


def open_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """Leave the batch of a model open."""
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    return model


def random_model(seed: int) -> onnx.ModelProto:
    """Draw a model of one to seven nodes for a batch of one."""
    rng = np.random.default_rng(seed)
    g = Graph(rng, int(rng.choice([13, 17, 18, 21])))
    for _ in range(int(rng.integers(1, 8))):
        before = (g.value, list(g.shape))
        MAKERS[int(rng.integers(len(MAKERS)))](g)
        if not g.shape or 0 in g.shape or np.prod(g.shape) > 4000 or len(g.shape) < 2:
            g.value, g.shape = before
    if not g.nodes or g.value == "x":
        g.node("Relu", g.value)
    return g.model()
