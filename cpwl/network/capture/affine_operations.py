"""Affine operations: what torch calls them, when they are affine, and how they round.

`TABLE`, at the end, has the rule of every ATen operation that may be affine. A rule returns how to
execute a call; it raises `NotPiecewiseLinear` with a reason where the call is not affine in its
input-dependent arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cpwl.network.program import Rounding, absolute

aten = torch.ops.aten


class NotPiecewiseLinear(Exception):  # noqa: N818 - a verdict, caught where the place is known
    """Carries the reason why an operation is refused."""


class Call(NamedTuple):
    """An operation under classification.

    Attributes
    ----------
    name : str
        Operation without namespace and overload.
    data : tuple of bool
        Which positional arguments depend on the input (for a list: any of its entries).
    shapes : tuple
        Shape of every tensor argument at the example batch, None for others.
    batch_axes : tuple
        Position of the batch axis of every positional argument, None where there is none.
    out_shape : tuple of int
        Shape of the result at the example batch.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    data: tuple[bool, ...]
    shapes: tuple[tuple[int, ...] | None, ...]
    batch_axes: tuple[int | None, ...]
    out_shape: tuple[int, ...]
    list_data: tuple[bool, ...]


class Affine(NamedTuple):
    """How to execute an affine operation; function None means that it returns its first input."""

    function: Callable[..., Tensor] | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rounding: Rounding
    scratch: int = 0


def affine_rule(call: Call) -> Affine | None:
    """Apply the rule of an operation; None where `TABLE` does not know it."""
    rule = TABLE.get(call.name)
    return None if rule is None else rule(call)


def _identity(call: Call) -> Affine:
    if call.name in ("dropout", "feature_dropout", "native_dropout") and call.args[2]:
        raise NotPiecewiseLinear("dropout in training mode is random; call module.eval() first")
    dtype = call.kwargs.get("dtype")
    if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:
        raise NotPiecewiseLinear(f"it rounds input-dependent values to {dtype}")
    return Affine(None, call.args, call.kwargs, Rounding(0))


def _reshape(call: Call) -> Affine:
    _first_only(call)
    if isinstance(call.args[1], torch.dtype):
        if call.args[1] != torch.float64:
            raise NotPiecewiseLinear(f"it reads the bits of numbers as {call.args[1]}")
        return Affine(None, call.args, call.kwargs, Rounding(0))
    return Affine(torch.reshape, call.args, call.kwargs, Rounding(0))


def _move(call: Call) -> Affine:
    _first_only(call)
    return Affine(_squeeze(call), call.args, call.kwargs, Rounding(0))


def _squeeze(call: Call) -> Callable[..., Tensor]:
    if call.name == "squeeze" and len(call.args) == 1:
        # A batch of one would lose its batch axis: name the other axes of length one.
        shape = call.shapes[0]
        assert shape is not None
        axes = [k for k, n in enumerate(shape) if n == 1]
        return lambda x: aten.squeeze.dims(x, axes)
    return call.function


def _first_only(call: Call) -> None:
    if any(call.data[1:]):
        raise NotPiecewiseLinear("where it reads depends on the input")


def _pool(call: Call) -> Affine:
    kernel = call.args[1]
    terms = prod(kernel) if isinstance(kernel, (list, tuple)) else kernel
    return Affine(call.function, call.args, call.kwargs, Rounding(terms + 1))


def _adaptive_pool(call: Call) -> Affine:
    shape = call.shapes[0]
    assert shape is not None
    out = call.args[1] if isinstance(call.args[1], (list, tuple)) else [call.args[1]]
    terms = prod(-(-size // o) + 1 for size, o in zip(shape[-len(out) :], out, strict=True))
    return Affine(call.function, call.args, call.kwargs, Rounding(terms + 1))


def _interpolation(call: Call) -> Affine:
    return Affine(call.function, call.args, call.kwargs, Rounding(16))


def _over_batch(call: Call, axes: Any) -> None:
    batch, shape = call.batch_axes[0], call.shapes[0]
    assert shape is not None
    listed = axes if isinstance(axes, (list, tuple)) else [axes]
    if axes is None or not listed or batch in [axis % len(shape) for axis in listed]:
        raise NotPiecewiseLinear("it reduces over the batch axis, so samples influence each other")


def _reduction(call: Call) -> Affine:
    axes = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim")
    _over_batch(call, axes)
    shape = call.shapes[0]
    assert shape is not None
    listed: list[Any] = list(axes) if isinstance(axes, (list, tuple)) else [axes]
    terms = prod(shape[axis] for axis in listed) + 1
    kwargs = {key: value for key, value in call.kwargs.items() if key != "dtype"}
    return Affine(call.function, call.args, kwargs, Rounding(terms))


def _cumsum(call: Call) -> Affine:
    _over_batch(call, call.args[1])
    shape = call.shapes[0]
    assert shape is not None
    axis: int = call.args[1]
    return Affine(call.function, call.args, {}, Rounding(shape[axis]))


def _product(call: Call) -> Affine:
    if sum(call.data) != 1:
        raise NotPiecewiseLinear("it multiplies two tensors that both depend on the input")
    if call.name == "linear" and not call.data[0]:
        raise NotPiecewiseLinear("its weight or bias depends on the input")
    shape = call.shapes[0]
    assert shape is not None
    rounding = Rounding(shape[-1] + 1, absolute(call.function))
    if call.name == "linear":
        rounding = Rounding(
            shape[-1] + 1,
            lambda x, w, b=None: torch.nn.functional.linear(x, w.abs()),
            lambda x, w, b=None: None if b is None else b.abs(),
        )
    return Affine(call.function, call.args, call.kwargs, rounding)


def _addmm(call: Call) -> Affine:
    if call.data[1] and call.data[2]:
        raise NotPiecewiseLinear("it multiplies two tensors that both depend on the input")
    shape = call.shapes[1]
    assert shape is not None
    plain = absolute(call.function)
    if call.data[0]:
        return Affine(call.function, call.args, call.kwargs, Rounding(shape[-1] + 3, plain))

    def linear(b: Tensor, x: Tensor, w: Tensor, **kwargs: Any) -> Tensor:
        return plain(torch.zeros_like(b), x, w, **kwargs)

    def constant(b: Tensor, x: Tensor, w: Tensor, **kwargs: Any) -> Tensor:
        return b.abs() * abs(kwargs.get("beta", 1))

    return Affine(call.function, call.args, call.kwargs, Rounding(shape[-1] + 3, linear, constant))


def _convolution(call: Call) -> Affine:
    if any(call.data[1:3]):
        raise NotPiecewiseLinear("its weight or bias depends on the input")
    weight, transposed = call.shapes[1], call.args[6]
    assert weight is not None
    groups = call.args[8]
    volume = prod(weight[2:])
    terms = (weight[0] // groups if transposed else weight[1]) * volume + 1

    def linear(x: Tensor, w: Tensor, b: Tensor | None, *rest: Any) -> Tensor:
        return call.function(x, w.abs(), None, *rest)

    def constant(x: Tensor, w: Tensor, b: Tensor | None, *rest: Any) -> Tensor | None:
        return None if b is None else b.abs().reshape(-1, *[1] * (w.ndim - 2))

    columns = 0 if transposed or volume == 1 else weight[1] * volume * prod(call.out_shape[2:])
    return Affine(call.function, call.args, {}, Rounding(terms, linear, constant), scratch=columns)


def _batch_norm(call: Call) -> Affine:
    x, weight, bias, mean, variance = call.args[:5]
    training = call.args[5] if call.name in ("native_batch_norm", "batch_norm") else False
    if training:
        raise NotPiecewiseLinear(
            "batch-norm in training mode mixes the samples of a batch; call module.eval() first"
        )
    if any(call.data[1:5]) or mean is None or variance is None:
        raise NotPiecewiseLinear("its statistics depend on the input")
    eps = call.args[7] if call.name in ("native_batch_norm", "batch_norm") else call.args[6]
    if not all(value is None or isinstance(value, Tensor) for value in call.args[1:5]):
        # Statistics repeated for every sample of the batch (instance-norm).
        return Affine(
            _scale_late, (*call.args[:5], eps), {}, Rounding(8, _scale_bound, _shift_bound)
        )
    # The network's exact meaning is this scale and shift, rounded once to float64 here.
    shape = call.shapes[0]
    assert shape is not None
    scale, shift = _scales(torch.empty(shape, device="meta"), weight, bias, mean, variance, eps)
    args = (x, scale, shift)
    rounding = Rounding(2, lambda x, a, b: x * a.abs(), lambda x, a, b: b.abs())
    return Affine(_scale_shift, args, {}, rounding)


def _scale_late(x: Tensor, *statistics: Any) -> Tensor:
    scale, shift = _scales(x, *statistics)
    return torch.addcmul(shift, x, scale)


def _scale_bound(x: Tensor, *statistics: Any) -> Tensor:
    return x * _scales(x, *statistics)[0].abs()


def _shift_bound(x: Tensor, *statistics: Any) -> Tensor:
    return _scales(x, *statistics)[1].abs()


def _scales(
    x: Tensor, weight: Any, bias: Any, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    scale = 1 / torch.sqrt(variance + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    axes = (-1, *[1] * (x.ndim - 2))
    return scale.reshape(axes), shift.reshape(axes)


def _scale_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, x, scale)


def _add(call: Call) -> Affine:
    alpha = call.kwargs.get("alpha", 1)
    sides = call.data[:2]
    factors = (abs(alpha), 1) if call.name == "rsub" else (1, abs(alpha))

    def side(value: Any, k: int, wanted: bool) -> Any:
        if sides[k] != wanted:
            return torch.zeros_like(value) if isinstance(value, Tensor) else 0.0
        return abs(value) * factors[k]

    def linear(a: Any, b: Any, **kwargs: Any) -> Tensor:
        return side(a, 0, True) + side(b, 1, True)

    def constant(a: Any, b: Any, **kwargs: Any) -> Tensor | None:
        if all(sides):
            return None
        still = side(b, 1, False) if sides[0] else side(a, 0, False)
        return torch.as_tensor(still, dtype=torch.float64)

    terms = 1 if alpha in (1, -1) else 2
    return Affine(call.function, call.args, call.kwargs, Rounding(terms, linear, constant))


def _number(value: Any) -> Any:
    """Return a constant mask as zeros and ones."""
    mask = isinstance(value, Tensor) and value.dtype == torch.bool
    return value.to(torch.float64) if mask else value


def _mul(call: Call) -> Affine:
    if all(call.data[:2]):
        raise NotPiecewiseLinear("it multiplies two tensors that both depend on the input")
    args = tuple(map(_number, call.args[:2]))
    return Affine(call.function, args, {}, Rounding(1, lambda a, b: torch.mul(abs(a), abs(b))))


def _div(call: Call) -> Affine:
    if call.data[1]:
        raise NotPiecewiseLinear("it divides by a tensor that depends on the input")
    if call.kwargs.get("rounding_mode") is not None:
        raise NotPiecewiseLinear("it rounds, which jumps (outside a recognised triangle wave)")
    return Affine(call.function, call.args, {}, Rounding(1, lambda a, b: torch.div(a, abs(b))))


def _join(call: Call) -> Affine:
    flags = call.list_data
    function = call.function
    # New-style names of the axis: cat(tensors, dim), stack(tensors, dim).
    axis = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0)
    if call.name == "cat" and call.batch_axes[0] == axis:
        raise NotPiecewiseLinear("it joins along the batch axis, so samples influence each other")

    def linear(tensors: list[Tensor], *rest: Any, **kwargs: Any) -> Tensor:
        parts = [t if f else torch.zeros_like(t) for t, f in zip(tensors, flags, strict=True)]
        return function(parts, *rest, **kwargs)

    return Affine(function, call.args, call.kwargs, Rounding(0, linear))


def _pad(call: Call) -> Affine:
    def linear(x: Tensor, pad: list[int], *rest: Any) -> Tensor:
        return aten.constant_pad_nd.default(x, pad, 0.0)

    return Affine(call.function, call.args, call.kwargs, Rounding(0, linear))


def _negate(call: Call) -> Affine:
    return Affine(call.function, call.args, {}, Rounding(0, lambda x: x))


def _where(call: Call) -> Affine:
    if call.data[0]:
        raise NotPiecewiseLinear(
            "its condition depends on the input, which in general jumps; write it with relu, "
            "clamp, abs or maximum"
        )
    data = call.data

    def linear(condition: Tensor, a: Any, b: Any) -> Tensor:
        first = a if data[1] else torch.zeros((), dtype=torch.float64)
        second = b if data[2] else torch.zeros((), dtype=torch.float64)
        return torch.where(condition, first, second)

    return Affine(call.function, call.args, {}, Rounding(0, linear))


def _masked_fill(call: Call) -> Affine:
    if any(call.data[1:]):
        raise NotPiecewiseLinear("its mask or value depends on the input")

    def linear(x: Tensor, mask: Tensor, value: Any) -> Tensor:
        return torch.masked_fill(x, mask, 0.0)

    return Affine(call.function, call.args, {}, Rounding(0, linear))


def _copy(call: Call) -> Affine:
    shape = call.shapes[1]
    if shape is None or len(shape) != len(call.out_shape):
        raise NotPiecewiseLinear("it copies to a tensor with more axes; expand before")
    if shape != call.out_shape:
        size = list(call.out_shape)
        size[call.batch_axes[1] or 0] = -1
        return Affine(lambda a, b: b.expand(size), call.args, {}, Rounding(0))
    return Affine(None, call.args[1:], {}, Rounding(0))


def _scatter(call: Call) -> Affine:
    data = call.data

    def linear(base: Tensor, source: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
        return call.function(
            base if data[0] else torch.zeros_like(base),
            source if data[1] else torch.zeros_like(source),
            *rest,
            **kwargs,
        )

    return Affine(call.function, call.args, call.kwargs, Rounding(0, linear))


def _placed(call: Call) -> Affine:
    """Put or add entries of several tensors in constant places."""
    data = call.data
    where = [k for k in range(1, len(data)) if data[k] and _is_places(call, k)]
    if where:
        raise NotPiecewiseLinear("where it writes depends on the input")
    reduce = call.kwargs.get("reduce", call.args[4] if len(call.args) > 4 else None)
    if call.name == "scatter" and reduce == "add" and call.shapes[3] is not None:
        call = call._replace(name="scatter_add", function=aten.scatter_add.default, kwargs={})
    elif reduce not in (None, "sum", "mean"):
        raise NotPiecewiseLinear(
            f"its '{reduce}' over places is not taken; gather the places, then reduce over an axis"
        )
    shape = call.shapes[0]
    assert shape is not None

    def linear(*args: Any, **kwargs: Any) -> Tensor:
        return call.function(*_blank(args, [not flag for flag in data]), **kwargs)

    def constant(*args: Any, **kwargs: Any) -> Tensor:
        return call.function(*_blank(map(_magnitude, args), data), **kwargs)

    adds = call.name in ("scatter_add", "index_add", "scatter_reduce") or call.args[3:4] == (True,)
    terms = prod(shape[1:]) + 1 if adds else 0
    return Affine(call.function, call.args, call.kwargs, Rounding(terms, linear, constant))


def _is_places(call: Call, k: int) -> bool:
    value = call.function._schema.arguments[k].name  # type: ignore[attr-defined]
    return value in ("index", "indices", "mask")


def _magnitude(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.abs()
    return abs(value) if isinstance(value, float) else value


def _blank(args: Iterable[Any], flags: Sequence[bool]) -> list[Any]:
    """Put zeros in place of the numbers that are flagged."""

    def blank(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.zeros_like(value) if value.is_floating_point() else value
        return 0.0 if isinstance(value, float) else value

    return [blank(v) if flag else v for v, flag in zip(args, flags, strict=True)]


def _sampled(call: Call) -> Affine:
    """Read an image at constant places."""
    _first_only(call)
    if call.args[2] != 2:
        return _interpolation(call)

    # The absolute weights of a cubic add up to at most 1.375 an axis.
    def linear(x: Tensor, grid: Tensor, *rest: Any) -> Tensor:
        top = 2 * x.flatten(2).amax(2)
        return top[..., None, None].expand(*top.shape, *grid.shape[1:-1])

    return Affine(call.function, call.args, call.kwargs, Rounding(32, linear))


def _resampled(call: Call) -> Affine:
    """Bound weights that may be negative, an axis at a time."""
    shape = call.shapes[0]
    assert shape is not None

    def linear(x: Tensor, size: list[int], corners: bool, *scales: Any) -> Tensor:
        a, b = scales if len(scales) == 2 else (None, None)
        rows = torch.eye(shape[2], dtype=x.dtype)[:, None, :, None]
        columns = torch.eye(shape[3], dtype=x.dtype)[:, None, None, :]
        down = call.function(rows, [size[0], 1], corners, a, None).abs().flatten(1)
        across = call.function(columns, [1, size[1]], corners, None, b).abs().flatten(1)
        return down.T @ x @ across

    terms = 4 * (shape[2] + shape[3])
    return Affine(call.function, call.args, call.kwargs, Rounding(terms, linear))


def _trilinear(call: Call) -> Affine:
    if sum(call.data) != 1:
        raise NotPiecewiseLinear("it multiplies two tensors that both depend on the input")
    sizes = [max(prod(shape), 1) for shape in call.shapes if shape is not None]
    return Affine(call.function, call.args, call.kwargs,
                  Rounding(max(sizes) + 2, absolute(call.function)))  # fmt: skip


def _power(call: Call) -> Affine:
    if any(call.data[1:]) or not isinstance(call.args[1], (int, float)) or call.args[1] != 1:
        raise NotPiecewiseLinear("it is not piecewise linear, unless the exponent is 1")
    return Affine(None, call.args, {}, Rounding(0))


def _fold(call: Call) -> Affine:
    return Affine(call.function, call.args, call.kwargs, Rounding(prod(call.args[2])))


# fmt: off
TABLE: dict[str, Callable[[Call], Affine]] = {
    **dict.fromkeys((
        "clone", "contiguous", "detach", "alias", "lift_fresh_copy", "lift_fresh", "_to_copy",
        "to", "dropout", "feature_dropout", "native_dropout", "positive",
    ), _identity),
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten"), _reshape),
    **dict.fromkeys((
        "permute", "transpose", "t", "squeeze", "unsqueeze", "expand", "slice", "select", "flip",
        "roll", "index_select", "index", "_unsafe_index", "masked_select", "embedding", "repeat",
        "unfold", "im2col", "diagonal", "gather",
        "tril", "triu", "narrow", "movedim", "unflatten", "tile", "swapaxes", "pixel_shuffle",
        "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "reflection_pad1d",
        "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
        "replication_pad3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
        "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d",
    ), _move),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _pool),
    **dict.fromkeys((
        "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d",
        "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    ), _adaptive_pool),
    **dict.fromkeys(
        ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"), _interpolation
    ),
    **dict.fromkeys(("mm", "bmm", "matmul", "mv", "dot", "linear"), _product),
    **dict.fromkeys(("sum", "mean"), _reduction),
    "cumsum": _cumsum,
    **dict.fromkeys(("addmm", "baddbmm"), _addmm),
    "convolution": _convolution,
    **dict.fromkeys(
        ("_native_batch_norm_legit_no_training", "native_batch_norm", "batch_norm"), _batch_norm
    ),
    **dict.fromkeys(("add", "sub", "rsub"), _add),
    "mul": _mul,
    **dict.fromkeys(("div", "true_divide"), _div),
    "neg": _negate,
    **dict.fromkeys(("cat", "stack"), _join),
    "constant_pad_nd": _pad,
    "where": _where,
    "masked_fill": _masked_fill,
    "copy": _copy,
    **dict.fromkeys(("slice_scatter", "select_scatter"), _scatter),
    "col2im": _fold,
    **dict.fromkeys((
        "scatter", "scatter_add", "scatter_reduce", "index_put", "_unsafe_index_put", "index_add",
        "index_copy", "index_fill", "masked_scatter", "diagonal_scatter",
    ), _placed),
    **dict.fromkeys(("grid_sampler_2d", "grid_sampler_3d", "_grid_sampler_2d_cpu_fallback"),
                    _sampled),
    **dict.fromkeys(("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"), _resampled),
    "_trilinear": _trilinear,
    "pow": _power,
}
# fmt: on
