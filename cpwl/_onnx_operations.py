"""ONNX operators as torch calls. Each converter maps a node to a function of the node's inputs.

A converter may also return a tensor: the node is then a constant. Integer inputs that say how to
do something (axes, pads, shapes) must be constants, or, for shapes, lists made from `Shape`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cpwl._errors import CaptureError

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


def _simple(function: Function) -> Callable[[Node], Function]:
    return lambda node: function


def _fold_left(function: Function) -> Callable[[Node], Function]:
    def call(*tensors: Tensor) -> Tensor:
        total = tensors[0]
        for tensor in tensors[1:]:
            total = function(total, tensor)
        return total

    return lambda node: call


def _gemm(node: Node) -> Function:
    a = node.attributes
    alpha, beta = a.get("alpha", 1.0), a.get("beta", 1.0)

    def call(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        x = x.t() if a.get("transA") else x
        weight = w if a.get("transB") else w.t()
        weight = weight if alpha == 1 else weight * alpha
        if b is not None and beta != 1:
            b = b * beta
        if b is None or b.ndim == 1:
            return F.linear(x, weight, b)
        return F.linear(x, weight) + b

    return call


def _symmetric(node: Node, count: int) -> tuple[list[int], list[int] | None]:
    """Padding for torch, and padding to apply beforehand where the sides differ."""
    pads = list(node.attributes.get("pads", [0] * (2 * count)))
    automatic = node.attributes.get("auto_pad", "NOTSET")
    if automatic not in ("NOTSET", "VALID"):
        raise CaptureError(
            f"Expected explicit pads on ONNX {node.type}, got auto_pad={automatic}. "
            "Export the model with explicit pads."
        )
    before, after = pads[:count], pads[count:]
    if before == after:
        return before, None
    return [0] * count, [p for k in reversed(range(count)) for p in (before[k], after[k])]


def _conv(node: Node) -> Function:
    a = node.attributes
    weight = node.constant(1)
    count = len(a["kernel_shape"]) if weight is None else weight.ndim - 2
    padding, extra = _symmetric(node, count)
    stride = a.get("strides", [1] * count)
    dilation = a.get("dilations", [1] * count)
    groups = a.get("group", 1)
    if node.type == "ConvTranspose":
        if extra is not None or "output_shape" in a:
            raise CaptureError(
                "Expected equal pads on both sides of ONNX ConvTranspose, got unequal ones or "
                "output_shape. Export the model with symmetric pads."
            )
        function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[count - 1]
        added = a.get("output_padding", [0] * count)
        return lambda x, w, b=None: function(x, w, b, stride, padding, added, groups, dilation)
    plain = (F.conv1d, F.conv2d, F.conv3d)[count - 1]

    def call(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        x = x if extra is None else F.pad(x, extra)
        return plain(x, w, b, stride, padding, dilation, groups)

    return call


def _batch_norm(node: Node) -> Function:
    eps = node.attributes.get("epsilon", 1e-5)
    return lambda x, w, b, mean, var: F.batch_norm(x, mean, var, w, b, eps=eps)


def _max_pool(node: Node) -> Function:
    a = node.attributes
    kernel = a["kernel_shape"]
    count = len(kernel)
    padding, extra = _symmetric(node, count)
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[count - 1]
    if extra is not None:
        raise CaptureError(
            "Expected equal pads on both sides of ONNX MaxPool, got unequal ones. "
            "Export the model with symmetric pads."
        )
    stride = a.get("strides", [1] * count)
    dilation = a.get("dilations", [1] * count)
    ceil = bool(a.get("ceil_mode", 0))
    return lambda x: function(x, kernel, stride, padding, dilation, ceil)


def _average_pool(node: Node) -> Function:
    a = node.attributes
    kernel = a["kernel_shape"]
    count = len(kernel)
    padding, extra = _symmetric(node, count)
    included = bool(a.get("count_include_pad", 0))
    if extra is not None:
        if not included:
            raise CaptureError(
                "Expected equal pads on both sides of ONNX AveragePool, got unequal ones. "
                "Export the model with symmetric pads."
            )
    function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[count - 1]
    stride = a.get("strides", [1] * count)
    ceil = bool(a.get("ceil_mode", 0))

    def call(x: Tensor) -> Tensor:
        x = x if extra is None else F.pad(x, extra)
        return function(x, kernel, stride, padding, ceil, included)

    return call


def _global_pool(node: Node) -> Function:
    if node.type == "GlobalMaxPool":
        return lambda x: x.amax(tuple(range(2, x.ndim)), keepdim=True)
    return lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True)


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
        if isinstance(sizes[0], int) and sizes[0] == 1:
            sizes[0] = x.shape[0]
        elif isinstance(sizes[0], int) and sizes[0] == -1 and -1 not in sizes[1:]:
            sizes[0] = x.shape[0]
        return x.reshape(sizes)

    return call


def _axes(node: Node, position: int = 1) -> list[int] | None:
    return node.integers("axes", position)


def _squeeze(node: Node) -> Function:
    axes = _axes(node)

    def call(x: Any, given: Any = None) -> Any:
        if isinstance(x, list):
            return x[0]
        if axes is None:
            return x.squeeze(tuple(k for k in range(1, x.ndim) if x.shape[k] == 1))
        return x.squeeze(tuple(axes))

    return call


def _unsqueeze(node: Node) -> Function:
    axes = _axes(node) or []

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
        return lambda x, *rest: F.pad(x, flat, how, fill)
    return lambda x, *rest: F.pad(x, flat, how)


def _reduce(node: Node) -> Function:
    axes = _axes(node)
    keep = bool(node.attributes.get("keepdims", 1))
    function: Function = {
        "ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax,
        "ReduceMin": torch.amin,
    }[node.type]  # fmt: skip
    if axes is None:
        raise CaptureError(
            f"Expected axes on ONNX {node.type}, got none, which reduces over the batch axis. "
            "Name the axes to reduce."
        )
    return lambda x, *rest: function(x, tuple(axes), keepdim=keep)


def _clip(node: Node) -> Function:
    low, high = node.constant(1), node.constant(2)
    lower = node.attributes.get("min", None if low is None else float(low))
    upper = node.attributes.get("max", None if high is None else float(high))
    if lower is None and upper is None:
        return lambda x, *rest: x
    return lambda x, *rest: torch.clamp(x, lower, upper)


def _resize(node: Node) -> Function:
    a = node.attributes
    mode = a.get("mode", "nearest")
    scales = node.constant(1 if node.type == "Upsample" or node.version < 11 else 2)
    listed = list(a["scales"]) if "scales" in a else scales.tolist() if scales is not None else []
    sizes = node.integers("sizes", 3)
    how = a.get(
        "coordinate_transformation_mode", "half_pixel" if node.version >= 11 else "asymmetric"
    )
    if (listed and any(s != 1 for s in listed[:2])) or not (listed or sizes):
        raise CaptureError(
            f"Expected ONNX {node.type} with constant scales or sizes of the spatial axes, got "
            f"{listed or 'none'}. Export the model with fixed scale factors."
        )
    spatial = (len(listed) or len(sizes or [])) - 2
    whole = all(float(s).is_integer() for s in listed)
    size = sizes[2:] if sizes else None
    factors = None if size else listed[2:]
    if mode == "nearest" and (how in ("asymmetric", "pytorch_half_pixel") or whole):
        return lambda x, *rest: F.interpolate(x, size=size, scale_factor=factors, mode="nearest")
    if mode == "linear" and how in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        names = {1: "linear", 2: "bilinear", 3: "trilinear"}
        corners = how == "align_corners"
        return lambda x, *rest: F.interpolate(
            x, size=size, scale_factor=factors, mode=names[spatial], align_corners=corners
        )
    raise CaptureError(
        f"Expected ONNX {node.type} in a mode that torch has, got {mode} with {how}. "
        "Export the model from torch.nn.Upsample."
    )


def _depth_to_space(node: Node) -> Function:
    size = node.attributes["blocksize"]
    if node.attributes.get("mode", "DCR") == "CRD":
        return lambda x: F.pixel_shuffle(x, size)

    def call(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return x.reshape(n, c // size**2, h * size, w * size)

    return call


def _leaky_relu(node: Node) -> Function:
    return partial(F.leaky_relu, negative_slope=node.attributes.get("alpha", 0.01))


def _hard_sigmoid(node: Node) -> Function:
    alpha, beta = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    return lambda x: torch.clamp(alpha * x + beta, 0.0, 1.0)


def _prelu(node: Node) -> Function:
    def call(x: Tensor, slope: Tensor) -> Tensor:
        return torch.relu(x) - slope * torch.relu(-x)

    return call


def _softmax(node: Node) -> Function:
    function = torch.softmax if node.type == "Softmax" else torch.log_softmax
    return partial(function, dim=node.attributes.get("axis", -1))


def _transpose(node: Node) -> Function:
    order = node.attributes.get("perm")
    return lambda x: x.permute(order if order is not None else list(reversed(range(x.ndim))))


def _cast(node: Node) -> Function:
    kinds = {6: torch.int32, 7: torch.int64, 9: torch.bool}
    kind = kinds.get(node.attributes["to"])
    return lambda x: x.to(kind) if kind is not None and isinstance(x, Tensor) else x


def _constant(node: Node) -> Tensor:
    for key, value in node.attributes.items():
        if key == "value":
            return value
        if key.startswith("value_"):
            return torch.tensor(value)
    raise CaptureError("Expected a value on ONNX Constant, got none. Export the model anew.")


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


CONVERTERS: dict[str, Callable[[Node], Any]] = {
    "Add": _simple(torch.add),
    "Sub": _simple(torch.sub),
    "Mul": _simple(torch.mul),
    "Div": _simple(torch.div),
    "Neg": _simple(torch.neg),
    "Abs": _simple(torch.abs),
    "MatMul": _simple(torch.matmul),
    "Relu": _simple(torch.relu),
    "Tanh": _simple(torch.tanh),
    "Sigmoid": _simple(torch.sigmoid),
    "Exp": _simple(torch.exp),
    "Sin": _simple(torch.sin),
    "Cos": _simple(torch.cos),
    "Floor": _simple(torch.floor),
    "Sqrt": _simple(torch.sqrt),
    "Identity": _simple(lambda x: x),
    "Dropout": _simple(lambda x, *rest: x),
    "Shape": _simple(lambda x: list(x.shape)),
    "Sum": _fold_left(torch.add),
    "Max": _fold_left(torch.maximum),
    "Min": _fold_left(torch.minimum),
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvTranspose": _conv,
    "BatchNormalization": _batch_norm,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "Split": _split,
    "Pad": _pad,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "ReduceMax": _reduce,
    "ReduceMin": _reduce,
    "Clip": _clip,
    "Resize": _resize,
    "Upsample": _resize,
    "DepthToSpace": _depth_to_space,
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "HardSigmoid": _hard_sigmoid,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Transpose": _transpose,
    "Cast": _cast,
    "Constant": _constant,
    "Expand": _expand,
}
