"""ONNX operations over windows and channels: convolution, pooling, normalisation."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cpwl.network.files.onnx.nodes import Array, Function, Node, Operation
from cpwl.network.files.onnx.resizing import along_axes


class Windows(NamedTuple):
    """Windows over the spatial axes, one entry per axis; `dilated` is the kernel with its gaps."""

    sizes: tuple[int, ...]
    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]
    dilated: list[int]


def _windows(node: Node, kernel: list[int]) -> Windows:
    sizes, count = node.shape()[2:], len(kernel)
    a = node.attributes
    strides = list(a.get("strides") or [1] * count)
    dilations = list(a.get("dilations") or [1] * count)
    pads = list(a.get("pads") or [0] * (2 * count))
    if not 1 <= count <= 3 or len(sizes) != count:
        node.refuse(f"with a kernel {kernel} on {len(sizes)} spatial axes")
    if (len(strides), len(dilations), len(pads)) != (count, count, 2 * count):
        node.refuse(f"with strides {strides}, dilations {dilations}, pads {pads}")
    if min(*kernel, *strides, *dilations) < 1 or min(pads) < 0:
        node.refuse(f"with kernel {kernel}, strides {strides}, dilations {dilations}, pads {pads}")
    dilated = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    before, after = pads[:count], pads[count:]
    automatic = a.get("auto_pad") or "NOTSET"
    if automatic == "VALID":
        before, after = [0] * count, [0] * count
    elif automatic in ("SAME_UPPER", "SAME_LOWER"):
        if any(pads) and node.type != "ConvTranspose":
            node.refuse(f"with auto_pad={automatic} and pads {pads}")
        totals = [
            max(0, (-(-n // s) - 1) * s + k - n)
            for n, s, k in zip(sizes, strides, dilated, strict=True)
        ]
        before, after = _shared(totals, upper=automatic == "SAME_UPPER")
    elif automatic != "NOTSET":
        node.refuse(f"with auto_pad={automatic}")
    if node.type != "ConvTranspose":
        padded = [n + b + c for n, b, c in zip(sizes, before, after, strict=True)]
        node.require(prod(node.shape()[:2]) * prod(padded))
        if any(n < k for n, k in zip(padded, dilated, strict=True)):
            node.refuse(f"with a kernel {dilated} larger than its padded input {padded}")
    return Windows(sizes, kernel, strides, dilations, before, after, dilated)


def _shared(totals: list[int], *, upper: bool) -> tuple[list[int], list[int]]:
    """Share padding out; the odd one goes to the end (upper) or to the beginning."""
    small, large = [n // 2 for n in totals], [n - n // 2 for n in totals]
    return (small, large) if upper else (large, small)


def _flat(before: list[int], after: list[int]) -> list[int]:
    """List padding as torch wants it: last axis first."""
    return [p for pair in reversed(list(zip(before, after, strict=True))) for p in pair]


def _weight_shape(node: Node) -> tuple[int, ...]:
    weight = node.shape(1)
    given = node.attributes.get("kernel_shape")
    if given and list(given) != list(weight[2:]):
        node.refuse(f"with kernel_shape={list(given)} and weights of shape {list(weight)}")
    return weight


def _conv(node: Node) -> Function:
    weight = _weight_shape(node)
    w = _windows(node, list(weight[2:]))
    groups = node.attributes["group"]
    function = (functional.conv1d, functional.conv2d, functional.conv3d)[len(w.kernel) - 1]
    if w.before == w.after:
        return lambda x, k, b=None: function(x, k, b, w.strides, w.before, w.dilations, groups)
    pads = _flat(w.before, w.after)
    return lambda x, k, b=None: function(
        functional.pad(x, pads), k, b, w.strides, 0, w.dilations, groups
    )


def _conv_transpose(node: Node) -> Function:
    weight = _weight_shape(node)
    w = _windows(node, list(weight[2:]))
    a, count = node.attributes, len(w.kernel)
    groups = a["group"]
    added = list(a.get("output_padding") or [0] * count)
    full = [s * (n - 1) + k for s, n, k in zip(w.strides, w.sizes, w.dilated, strict=True)]
    automatic = a.get("auto_pad") or "NOTSET"
    before, after = w.before, w.after
    target = a.get("output_shape")
    if automatic.startswith("SAME") and not target:
        target = [n * s for n, s in zip(w.sizes, w.strides, strict=True)]
    if target:
        target = list(target)[-count:]
        totals = [f + e - t for f, e, t in zip(full, added, target, strict=True)]
        if any(n % 2 for n in totals) and automatic == "NOTSET":
            node.refuse(f"with output_shape={target}, whose padding is odd: pass pads")
        before, after = _shared(totals, upper=automatic == "SAME_UPPER")
    result = [f - b - c + e for f, b, c, e in zip(full, before, after, added, strict=True)]
    node.require(
        node.shape()[0]
        * weight[1]
        * groups
        * prod(max(m, n) for m, n in zip(result, full, strict=True))
    )
    if min(*added, *result, *before, *after) < 0:
        node.refuse(f"with pads {before + after} and output_padding {added}")
    function = (
        functional.conv_transpose1d,
        functional.conv_transpose2d,
        functional.conv_transpose3d,
    )[count - 1]
    native = all(e < max(s, d) for e, s, d in zip(added, w.strides, w.dilations, strict=True))
    if before == after and native:
        return lambda x, k, b=None: function(x, k, b, w.strides, before, added, groups, w.dilations)
    pads = _flat([-n for n in before], [e - n for e, n in zip(added, after, strict=True)])

    def call(x: Tensor, k: Tensor, b: Tensor | None = None) -> Tensor:
        y = functional.pad(function(x, k, None, w.strides, 0, 0, groups, w.dilations), pads)
        return y if b is None else y + b.reshape(-1, *[1] * count)

    return call


def _spans(node: Node, w: Windows, axis: int) -> list[tuple[int, int]]:
    """Windows along an axis: where each begins and ends, padding included."""
    n, step, kernel = w.sizes[axis], w.strides[axis], w.dilated[axis]
    room = n + w.before[axis] + w.after[axis] - kernel
    count = room // step + 1
    # A window that would begin in the padding behind the input does not count.
    if node.attributes.get("ceil_mode") and room % step and count * step < n + w.before[axis]:
        count += 1
    starts = [k * step - w.before[axis] for k in range(count)]
    return [(start, start + kernel) for start in starts]


def _max_pool(node: Node) -> Function:
    w = _windows(node, list(node.attributes["kernel_shape"]))
    count = len(w.kernel)
    spans = [_spans(node, w, k) for k in range(count)]
    node.require(prod(node.shape()[:2]) * prod(map(len, spans)) * prod(w.kernel))
    function = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[count - 1]
    small = all(2 * p <= k for p, k in zip(w.before, w.kernel, strict=True))
    if w.before == w.after and small and not node.attributes.get("ceil_mode"):
        return lambda x: function(x, w.kernel, w.strides, w.before, w.dilations)
    # Windows cut by the border are pooled apart, each kind with its own kernel: padding never wins.
    groups = [_cut(node, w, spans[k], k) for k in range(count)]

    def pool(x: Tensor, axis: int, chosen: list[Any]) -> Tensor:
        if axis == count:
            for k, (begin, end, _) in enumerate(chosen):
                x = x.narrow(k + 2, begin, end - begin)
            return function(x, [g[2] for g in chosen], w.strides, 0, w.dilations)
        parts = [pool(x, axis + 1, [*chosen, group]) for group in groups[axis]]
        return parts[0] if len(parts) == 1 else torch.cat(parts, axis + 2)

    return lambda x: pool(x, 0, [])


def _cut(
    node: Node, w: Windows, spans: list[tuple[int, int]], axis: int
) -> list[tuple[int, int, int]]:
    """Group windows of equally many entries: first entry, end, entries per window."""
    n, gap = w.sizes[axis], w.dilations[axis]
    runs: list[list[int]] = []
    for start, end in spans:
        taps = [t for t in range(start, end, gap) if 0 <= t < n]
        if not taps:
            node.refuse("with windows that hold padding alone")
        if runs and runs[-1][2] == len(taps) and taps[0] - runs[-1][3] == w.strides[axis]:
            runs[-1][1], runs[-1][3] = taps[-1] + 1, taps[0]
        else:
            runs.append([taps[0], taps[-1] + 1, len(taps), taps[0]])
    return [(begin, end, taps) for begin, end, taps, _ in runs]


def _average_pool(node: Node) -> Any:
    w = _windows(node, list(node.attributes["kernel_shape"]))
    count = len(w.kernel)
    included = bool(node.attributes.get("count_include_pad", 0))
    function = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[count - 1]
    small = all(2 * p <= k for p, k in zip(w.before, w.kernel, strict=True))
    plain = not node.attributes.get("ceil_mode") and set(w.dilations) == {1}
    if w.before == w.after and small and plain:
        return lambda x: function(x, w.kernel, w.strides, w.before, False, included)
    return along_axes(node, [(k + 2, _averages(node, w, k, included)) for k in range(count)])


def _averages(node: Node, w: Windows, axis: int, included: bool) -> Array:
    """Means over the windows along an axis, as a matrix."""
    n = w.sizes[axis]
    spans = _spans(node, w, axis)
    node.require(len(spans) * n)
    matrix = np.zeros((len(spans), n))
    for row, (start, end) in enumerate(spans):
        taps = range(start, end, w.dilations[axis])
        inside = [t for t in taps if 0 <= t < n]
        counted = [t for t in taps if t < n + w.after[axis]] if included else inside
        if not counted:
            node.refuse("with windows that hold padding alone")
        matrix[row, inside] = 1 / len(counted)
    return matrix


def _global_pool(node: Node) -> Function:
    axes = tuple(range(2, len(node.shape())))
    if not axes:
        node.refuse("without spatial axes")
    if node.type == "GlobalMaxPool":
        return lambda x: x.amax(axes, keepdim=True)
    return lambda x: x.mean(axes, keepdim=True)


def _batch_norm(node: Node) -> Function:
    eps = float(node.attributes["epsilon"])
    if node.version < 14 and node.listed > 1:
        node.refuse("with the outputs of training")
    if len(node.shape()) < 2:
        node.refuse("without a channel axis")
    return lambda x, w, b, mean, var: functional.batch_norm(x, mean, var, w, b, eps=eps)


def _channels(x: Tensor, parameter: Tensor) -> Tensor:
    return parameter.reshape(-1, *[1] * (x.ndim - 2))


def _instance_norm(node: Node) -> Function:
    eps = float(node.attributes["epsilon"])
    axes = tuple(range(2, len(node.shape())))
    if not axes:
        node.refuse("without spatial axes")

    def call(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        centred = x - x.mean(axes, keepdim=True)
        scale = torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)
        return centred * scale * _channels(x, w) + _channels(x, b)

    return call


def _group_norm(node: Node) -> Function:
    eps, groups = float(node.attributes["epsilon"]), int(node.attributes["num_groups"])
    channels = node.shape()[1] if len(node.shape()) > 1 else 0
    if groups < 1 or channels % groups:
        node.refuse(f"with {groups} groups of {channels} channels")
    each = channels // groups if node.version < 21 else 1

    def call(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return functional.group_norm(
            x, groups, w.repeat_interleave(each), b.repeat_interleave(each), eps
        )

    return call


def _local_response(node: Node) -> Any:
    a = node.attributes
    size, channels = int(a["size"]), node.shape()[1]
    alpha, beta, bias = float(a["alpha"]), float(a["beta"]), float(a["bias"])
    if size < 1:
        node.refuse(f"with size={size}")
    place = np.arange(channels)
    offset = place[None, :] - place[:, None]
    near = (offset >= -((size - 1) // 2)) & (offset <= -(-(size - 1) // 2))
    node.require(near.size)
    sums, arrays = along_axes(node, [(1, near / size)])
    return lambda x, *m: x / (bias + alpha * sums(x.square(), *m)) ** beta, arrays


WINDOWS: dict[str, Operation] = {
    "Conv": Operation(
        _conv, "samples",
        ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"), tensors=3,
    ),
    "ConvTranspose": Operation(
        _conv_transpose, "samples",
        ("auto_pad", "dilations", "group", "kernel_shape", "output_padding", "output_shape",
         "pads", "strides"), tensors=3,
    ),
    # storage_order is about the indices, which nothing may read.
    "MaxPool": Operation(
        _max_pool, "samples",
        ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "storage_order", "strides"),
    ),
    "AveragePool": Operation(
        _average_pool, "samples",
        ("auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads",
         "strides"),
    ),
    "GlobalAveragePool": Operation(_global_pool, "samples"),
    "GlobalMaxPool": Operation(_global_pool, "samples"),
    # momentum acts in training alone.
    "BatchNormalization": Operation(_batch_norm, "samples", ("epsilon", "momentum"), tensors=5),
    "InstanceNormalization": Operation(_instance_norm, "samples", ("epsilon",), tensors=3),
    "GroupNormalization": Operation(
        _group_norm, "samples", ("epsilon", "num_groups"), tensors=3
    ),
    "LRN": Operation(_local_response, "samples", ("alpha", "beta", "bias", "size")),
}  # fmt: skip
