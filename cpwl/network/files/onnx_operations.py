"""ONNX operators as torch calls. Each converter maps a node to a function of the node's inputs.

A converter may also return a tensor: the node is then a constant. Integer inputs that say how to
do something (axes, pads, shapes) must be constants, or, for shapes, lists made from `Shape`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cpwl.errors import CaptureError
from cpwl.network.files.onnx_shapes import SHAPE_CONVERTERS, Function, Node, axes_of


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
            return functional.linear(x, weight, b)
        return functional.linear(x, weight) + b

    return call


def _symmetric(node: Node, count: int) -> tuple[list[int], list[int] | None]:
    """Return padding for torch, and padding to apply beforehand where the sides differ."""
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
        function = (
            functional.conv_transpose1d,
            functional.conv_transpose2d,
            functional.conv_transpose3d,
        )[count - 1]
        added = a.get("output_padding", [0] * count)
        return lambda x, w, b=None: function(x, w, b, stride, padding, added, groups, dilation)
    plain = (functional.conv1d, functional.conv2d, functional.conv3d)[count - 1]

    def call(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        x = x if extra is None else functional.pad(x, extra)
        return plain(x, w, b, stride, padding, dilation, groups)

    return call


def _batch_norm(node: Node) -> Function:
    eps = node.attributes.get("epsilon", 1e-5)
    return lambda x, w, b, mean, var: functional.batch_norm(x, mean, var, w, b, eps=eps)


def _max_pool(node: Node) -> Function:
    a = node.attributes
    kernel = a["kernel_shape"]
    count = len(kernel)
    padding, extra = _symmetric(node, count)
    function = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[count - 1]
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
    if extra is not None and not included:
        raise CaptureError(
            "Expected equal pads on both sides of ONNX AveragePool, got unequal ones. "
            "Export the model with symmetric pads."
        )
    function = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[count - 1]
    stride = a.get("strides", [1] * count)
    ceil = bool(a.get("ceil_mode", 0))

    def call(x: Tensor) -> Tensor:
        x = x if extra is None else functional.pad(x, extra)
        return function(x, kernel, stride, padding, ceil, included)

    return call


def _global_pool(node: Node) -> Function:
    if node.type == "GlobalMaxPool":
        return lambda x: x.amax(tuple(range(2, x.ndim)), keepdim=True)
    return lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True)


def _reduce(node: Node) -> Function:
    axes = axes_of(node)
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
        return lambda x, *rest: functional.interpolate(
            x, size=size, scale_factor=factors, mode="nearest"
        )
    if mode == "linear" and how in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        names = {1: "linear", 2: "bilinear", 3: "trilinear"}
        corners = how == "align_corners"
        return lambda x, *rest: functional.interpolate(
            x, size=size, scale_factor=factors, mode=names[spatial], align_corners=corners
        )
    raise CaptureError(
        f"Expected ONNX {node.type} in a mode that torch has, got {mode} with {how}. "
        "Export the model from torch.nn.Upsample."
    )


def _leaky_relu(node: Node) -> Function:
    return partial(functional.leaky_relu, negative_slope=node.attributes.get("alpha", 0.01))


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


def _constant(node: Node) -> Tensor:
    for key, value in node.attributes.items():
        if key == "value":
            return value
        if key.startswith("value_"):
            return torch.tensor(value)
    raise CaptureError("Expected a value on ONNX Constant, got none. Export the model anew.")


CONVERTERS: dict[str, Callable[[Node], Any]] = {
    **SHAPE_CONVERTERS,
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
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "ReduceMax": _reduce,
    "ReduceMin": _reduce,
    "Clip": _clip,
    "Resize": _resize,
    "Upsample": _resize,
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "HardSigmoid": _hard_sigmoid,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Constant": _constant,
}
