"""ONNX Resize and Upsample: one interpolation matrix per axis, by the operator set's formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cpwl.network.files.onnx.nodes import Array, Function, Node, Operation

NEAREST = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}
COORDINATES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric",
    "tf_half_pixel_for_nn", "tf_crop_and_resize",
)  # fmt: skip


def along_axes(node: Node, matrices: list[tuple[int, Array]]) -> tuple[Function, list[Array]]:
    """Apply a matrix along each axis; a matrix of single ones only picks entries.

    Returns
    -------
    function : callable
        Of a tensor and the arrays.
    arrays : list of arrays
    """
    size = int(np.prod(node.shape()))
    plan: list[tuple[int, bool]] = []
    arrays: list[Array] = []
    for axis, matrix in matrices:
        rows, columns = matrix.shape
        size = size // max(1, columns) * rows
        node.require(size)
        if rows == columns and np.array_equal(matrix, np.eye(rows)):
            continue
        picks = bool(((matrix == 0) | (matrix == 1)).all() and (matrix.sum(1) == 1).all())
        plan.append((axis + node.whole, picks))
        arrays.append(matrix.argmax(1) if picks else matrix.T.copy())

    def call(x: Tensor, *given: Tensor) -> Tensor:
        for (axis, picks), array in zip(plan, given, strict=True):
            if picks:
                x = x.index_select(axis, array)
            elif axis == x.ndim - 1:
                x = torch.matmul(x, array.to(x.dtype))
            else:
                x = torch.matmul(x.movedim(axis, -1), array.to(x.dtype)).movedim(-1, axis)
        return x

    return call, arrays


def _resize(node: Node) -> Any:
    shape, a = node.shape(), node.attributes
    axes, scales, lengths = _sizes(node)
    mode = {"bilinear": "linear"}.get(a.get("mode", "nearest"), a.get("mode", "nearest"))
    how = a.get("coordinate_transformation_mode") or "asymmetric"
    if node.type == "Upsample" or node.version < 11:
        how = "asymmetric"
    if mode not in ("nearest", "linear", "cubic") or how not in COORDINATES:
        node.refuse(f"with mode={mode}, coordinate_transformation_mode={how}")
    regions = _regions(node, axes, how)
    matrices: list[tuple[int, Array]] = []
    outside: list[tuple[int, Array]] = []
    for k, axis in enumerate(axes):
        n = shape[axis]
        node.require(lengths[k] * max(n, 1), "entries of one interpolation matrix")
        if how != "tf_crop_and_resize" and lengths[k] == n and scales[k] == 1:
            continue
        exact, length = scales[k] * n, lengths[k]
        unsure = how == "align_corners" or (how == "pytorch_half_pixel" and length == 1)
        if unsure and abs(exact - length) > 1e-3:
            # The operator set counts the scaled length here, runtimes the rounded one.
            node.refuse(f"with {how} and {scales[k]} times {n} entries")
        # Entries are picked as runtimes pick them, in float32: 1 / 0.33333334 is 3.
        real = np.float32 if mode == "nearest" else np.float64
        x = _coordinates(lengths[k], n, real(scales[k]), how, regions[k])
        matrices.append((axis, _matrix(node, x, n, scales[k], mode)))
        if how == "tf_crop_and_resize":
            outside.append((axis, (x < 0) | (x > n - 1)))
    function, arrays = along_axes(node, matrices)
    if not any(mask.any() for _, mask in outside):
        return function, arrays
    return _with_outside(node, function, arrays, outside, len(shape))


def _with_outside(
    node: Node, function: Function, arrays: list[Array], outside: list[tuple[int, Array]], rank: int
) -> tuple[Function, list[Array]]:
    """Put `extrapolation_value` wherever a coordinate lies outside along some axis."""
    value = float(node.attributes.get("extrapolation_value", 0.0))
    mask = np.zeros([1] * rank, bool)
    for axis, out in outside:
        mask = mask | out.reshape([-1 if k == axis else 1 for k in range(rank)])

    def call(x: Tensor, *given: Tensor) -> Tensor:
        return function(x, *given[:-1]).masked_fill(given[-1], value)

    return call, [*arrays, mask]


def _sizes(node: Node) -> tuple[list[int], list[float], list[int]]:
    """Axes that are resized, with their scales and new lengths."""
    shape, a = node.shape(), node.attributes
    rank = len(shape)
    listed = a.get("axes")
    axes = [node.axis(int(k)) for k in (range(rank) if listed is None else listed)]
    position = 1 if node.type == "Upsample" or node.version < 11 else 2
    given = a.get("scales")
    scales = node.constant(position) if given is None else np.asarray(given)
    sizes = node.constant(3)
    if sizes is not None and sizes.size:
        return _from_sizes(node, axes, [int(n) for n in sizes.reshape(-1)])
    if scales is None or scales.size != len(axes):
        node.refuse(f"without one scale or size for each of {len(axes)} axes")
    factors = [float(s) for s in scales.reshape(-1)]
    if not all(np.isfinite(s) and s > 0 for s in factors):
        node.refuse(f"with scales {factors}")
    lengths = [int(np.floor(shape[k] * s)) for k, s in zip(axes, factors, strict=True)]
    return axes, factors, _positive(node, lengths)


def _from_sizes(
    node: Node, axes: list[int], sizes: list[int]
) -> tuple[list[int], list[float], list[int]]:
    shape = node.shape()
    policy = node.attributes.get("keep_aspect_ratio_policy") or "stretch"
    if len(sizes) != len(axes) or policy not in ("stretch", "not_larger", "not_smaller"):
        node.refuse(f"with sizes {sizes}, keep_aspect_ratio_policy={policy}")
    _positive(node, sizes)
    scales = [n / shape[k] for k, n in zip(axes, sizes, strict=True)]
    if policy != "stretch":
        scale = min(scales) if policy == "not_larger" else max(scales)
        scales = [scale] * len(axes)
        sizes = [int(np.floor(scale * shape[k] + 0.5)) for k in axes]
    return axes, scales, _positive(node, sizes)


def _positive(node: Node, lengths: list[int]) -> list[int]:
    if min(lengths, default=1) < 1:
        node.refuse(f"to lengths {lengths}")
    return lengths


def _regions(node: Node, axes: list[int], how: str) -> list[tuple[float, float]]:
    if how != "tf_crop_and_resize":
        return [(0.0, 1.0)] * len(axes)
    roi = node.constant(1)
    if roi is None or roi.size != 2 * len(axes):
        node.refuse("with tf_crop_and_resize but without a region for each axis")
    ends = [float(r) for r in roi.reshape(-1)]
    return list(zip(ends[: len(axes)], ends[len(axes) :], strict=True))


def _coordinates(length: int, n: int, scale: Any, how: str, region: tuple[float, float]) -> Array:
    """Where the new entries lie among the old ones."""
    x = np.arange(length, dtype=scale.dtype)
    exact = scale * n
    if how == "align_corners":
        return x * (n - 1) / (length - 1) if length != 1 else np.zeros_like(x)
    if how == "asymmetric":
        return x / scale
    if how == "tf_half_pixel_for_nn":
        return (x + 0.5) / scale
    if how == "pytorch_half_pixel":
        return (x + 0.5) / scale - 0.5 if exact > 1 else np.zeros_like(x)
    if how == "half_pixel_symmetric":
        adjustment = length / exact
        centre = n / 2
        return centre * (1 - adjustment) + (x + 0.5) / scale - 0.5
    if how == "tf_crop_and_resize":
        start, end = region
        if length == 1:
            return np.full_like(x, 0.5 * (start + end) * (n - 1))
        return start * (n - 1) + x * (end - start) * (n - 1) / (length - 1)
    return (x + 0.5) / scale - 0.5


def _matrix(node: Node, x: Array, n: int, scale: float, mode: str) -> Array:
    """Weights of the old entries (columns) in the new ones (rows)."""
    a = node.attributes
    matrix = np.zeros((len(x), n))
    rows = np.arange(len(x))
    if mode == "nearest":
        # without the attribute, up to operator set 10: downwards, upwards where entries are dropped
        rounding = a.get("nearest_mode") or ("floor" if scale >= 1 else "ceil")
        if rounding not in NEAREST:
            node.refuse(f"with nearest_mode={rounding}")
        matrix[rows, np.clip(NEAREST[rounding](x), 0, n - 1).astype(int)] = 1
        return matrix
    stretch = min(scale, 1.0) if a.get("antialias") else 1.0
    reach = 1 if mode == "linear" else 2
    first = np.floor(x) - np.ceil(reach / stretch) + 1
    taps = (first[:, None] + np.arange(2 * int(np.ceil(reach / stretch)))).astype(np.int64)
    node.require(taps.size, "taps of an interpolation")
    weights = _kernel(mode, (x[:, None] - taps) * stretch, float(a.get("cubic_coeff_a") or -0.75))
    inside = (taps >= 0) & (taps < n)
    if a.get("exclude_outside"):
        weights = np.where(inside, weights, 0)
    if a.get("exclude_outside") or stretch != 1:
        weights = weights / weights.sum(1, keepdims=True)
    np.add.at(matrix, (rows[:, None], np.clip(taps, 0, n - 1)), weights)
    return matrix


def _kernel(mode: str, x: Array, a: float) -> Array:
    x = np.abs(x)
    if mode == "linear":
        return np.maximum(0.0, 1 - x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _resized_axes(node: Node) -> list[int]:
    axes, scales, lengths = _sizes(node)
    moved = [
        k for k, s, n in zip(axes, scales, lengths, strict=True) if s != 1 or n != node.shape()[k]
    ]
    sizes = node.constant(3)
    if node.free and sizes is not None and sizes.size and 0 in axes:
        moved.append(0)  # a length for the batch, too
    crops = node.attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    return axes if crops else moved


RESIZING: dict[str, Operation] = {
    "Resize": Operation(
        _resize, "axes",
        ("antialias", "axes", "coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside",
         "extrapolation_value", "keep_aspect_ratio_policy", "mode", "nearest_mode"),
        settings=(1, 2, 3), tensors=4, axes=_resized_axes,
    ),
    "Upsample": Operation(
        _resize, "axes", ("mode", "scales"), settings=(1,), tensors=2, axes=_resized_axes
    ),
}  # fmt: skip
