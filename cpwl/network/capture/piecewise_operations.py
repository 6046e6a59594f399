"""Piecewise-linear operations: what torch calls them, and which units they consist of.

`TABLE`, at the end, has the rule of every ATen operation that may be continuous and piecewise
linear, and of those that are refused for a reason of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from cpwl.arrays import Ints
from cpwl.network.capture.affine_operations import Call, NotPiecewiseLinear
from cpwl.network.program import (
    Coefficient,
    Extremum,
    Nonlinearity,
    Pointwise,
    adaptive_windows,
    clamp_pieces,
    make_tournament,
    pooling_taps,
    strided_windows,
)

_OUTSIDE_WAVES = (
    "; only inside a triangle wave, abs(remainder(x + a, p) - p/2), "
    "abs(x - p*floor(x/p + 1/2)), asin(sin(x)) or acos(cos(x)), is it accepted"
)


class Bend(NamedTuple):
    """A CPWL operation: operands, pieces and, for tournaments, the contests of each round."""

    nonlinearity: Nonlinearity
    operands: tuple[Any, ...]
    contests: tuple[Ints, ...] = ()


class Rewrite(NamedTuple):
    """An operation that is expressed by others: (function, args after the data) in order."""

    calls: tuple[tuple[Callable[..., Any], tuple[Any, ...]], ...]


def nonlinear_rule(call: Call) -> Bend | Rewrite | None:
    """Apply the rule of an operation; None where `TABLE` does not know it."""
    rule = TABLE.get(call.name)
    return None if rule is None else rule(call)


def _refuse(reason: str) -> Callable[[Call], NoReturn]:
    """Return the rule of an operation that is never piecewise linear."""

    def rule(call: Call) -> NoReturn:
        raise NotPiecewiseLinear(reason)

    return rule


def _argument(call: Call, position: int, name: str, default: Any) -> Any:
    if len(call.args) > position:
        return call.args[position]
    return call.kwargs.get(name, default)


def _shape(call: Call) -> tuple[int, ...]:
    return tuple(call.out_shape[1:])


def _bent(
    call: Call,
    kind: str,
    below: Coefficient,
    function: Callable[[Tensor], Tensor],
    knot: Coefficient = 0.0,
) -> Bend:
    """Return an operation of slope `below` up to its knot at 0 and of slope 1 beyond."""
    bend = Pointwise(
        kind=kind,
        shapes=(_shape(call),),
        points=(knot,),
        slopes=(below, 1.0),
        offsets=(0.0, 0.0),
        function=function,
    )
    return Bend(bend, call.args[:1])


def _relu(call: Call) -> Bend:
    return _bent(call, "relu", 0.0, torch.relu)


def _leaky(call: Call) -> Bend | Rewrite:
    if call.name == "rrelu_with_noise_functional":
        if _argument(call, 4, "training", False):
            raise NotPiecewiseLinear("rrelu in training mode is random; call module.eval() first")
        lower, upper = _argument(call, 2, "lower", 0.125), _argument(call, 3, "upper", 1 / 3)
        slope = (lower + upper) / 2
    else:
        slope = float(_argument(call, 1, "negative_slope", 0.01))
    if slope == 1.0:
        return Rewrite(())
    return _bent(call, "leaky_relu", slope, lambda x: torch.nn.functional.leaky_relu(x, slope))


def _prelu(call: Call) -> Bend | Rewrite:
    if call.data[1]:
        raise NotPiecewiseLinear("its slope depends on the input")
    weight = call.args[1].to(torch.float64).flatten()
    shape = _shape(call)
    if bool((weight == 1).all()):
        return Rewrite(())
    slope = weight.reshape(-1, *[1] * (len(shape) - 1))
    zero = torch.where(slope == 1, inf, 0.0).to(torch.float64)
    return _bent(call, "prelu", slope, lambda x: torch.where(x > 0, x, slope * x), zero)


def _end(call: Call, position: int, name: str) -> Any:
    """One end of a clamp: None, number, or tensor without a batch axis."""
    value = _argument(call, position, name, None)
    if position < len(call.data) and call.data[position]:
        raise NotPiecewiseLinear("its limit depends on the input; use torch.maximum or minimum")
    if not isinstance(value, Tensor):
        return None if value is None else float(value)
    value = value.to(torch.float64)
    if value.numel() == 1:
        return value.item()
    if value.ndim == len(call.out_shape) and value.shape[0] == 1:
        return value[0]
    return value


def _clamp(call: Call) -> Bend | Rewrite:
    if call.name == "clamp_min":
        low, high = _end(call, 1, "min"), None
    elif call.name == "clamp_max":
        low, high = None, _end(call, 1, "max")
    elif call.name == "hardtanh":
        low, high = _argument(call, 1, "min_val", -1.0), _argument(call, 2, "max_val", 1.0)
    else:
        low, high = _end(call, 1, "min"), _end(call, 2, "max")
    low = None if isinstance(low, (int, float)) and low == -inf else low
    high = None if isinstance(high, (int, float)) and high == inf else high
    if low is None and high is None:
        return Rewrite(())
    if low is not None and not isinstance(low, Tensor):
        low = float(low)
    if high is not None and not isinstance(high, Tensor):
        high = float(high)
    return Bend(clamp_pieces(call.name, _shape(call), low, high), call.args[:1])


def _abs(call: Call) -> Bend:
    return _bent(call, "abs", -1.0, torch.abs)


def _threshold(call: Call) -> Bend:
    threshold, value = float(call.args[1]), float(call.args[2])
    if threshold != value:
        raise NotPiecewiseLinear(
            f"it jumps from {value} to {threshold} at its threshold; it is continuous only where "
            "value equals threshold"
        )
    return Bend(clamp_pieces("threshold", _shape(call), threshold, None), call.args[:1])


def _hardsigmoid(call: Call) -> Rewrite:
    # By its parts, so that its knots and thirds stay exact: clamp(x + 3, 0, 6) / 6.
    return Rewrite(
        (
            (torch.ops.aten.add.Tensor, (3.0,)),
            (torch.ops.aten.hardtanh.default, (0.0, 6.0)),
            (torch.ops.aten.div.Tensor, (6.0,)),
        )
    )


def _extremum(call: Call) -> Bend:
    largest = call.name == "maximum"
    return Bend(Extremum(call.name, (_shape(call),), largest), call.args[:2])


def _reduction(call: Call) -> Bend | Rewrite:
    """Lower amax/amin, max.dim/min.dim."""
    largest = call.name in ("amax", "max")
    shape = call.shapes[0]
    assert shape is not None
    if call.name in ("max", "min"):
        if (
            len(call.args) < 2
            or isinstance(call.args[1], Tensor)
            or (len(call.data) > 1 and call.data[1])
        ):
            raise NotPiecewiseLinear("it reduces over the batch axis; give it dim=")
        axes, keep = [call.args[1]], bool(_argument(call, 2, "keepdim", False))
    else:
        axes = list(_argument(call, 1, "dim", []) or [])
        keep = bool(_argument(call, 2, "keepdim", False))
    axes = [axis % len(shape) for axis in axes]
    if not axes or 0 in axes:
        raise NotPiecewiseLinear("it reduces over the batch axis, so samples influence each other")
    sample = shape[1:]
    grid = np.arange(int(np.prod(sample))).reshape(sample)
    moved = np.moveaxis(grid, [axis - 1 for axis in axes], range(-len(axes), 0))
    taps = moved.reshape(-1, int(np.prod([shape[axis] for axis in axes])))
    reduce = torch.amax if largest else torch.amin
    return _tournament(
        call, "amax" if largest else "amin", largest, taps, lambda x: reduce(x, axes, keep)
    )


def _pool(call: Call) -> Bend | Rewrite:
    shape = call.shapes[0]
    assert shape is not None
    spatial = 3 if "3d" in call.name else 2 if "2d" in call.name else 1
    sizes = shape[-spatial:]
    outs = call.out_shape[-spatial:]
    if call.name.startswith("adaptive"):
        windows = [adaptive_windows(size, out) for size, out in zip(sizes, outs, strict=True)]
    else:
        kernel = _axes(call.args[1], spatial)
        stride = _axes(_argument(call, 2, "stride", None) or kernel, spatial)
        padding = _axes(_argument(call, 3, "padding", 0), spatial)
        dilation = _axes(_argument(call, 4, "dilation", 1), spatial)
        windows = [
            strided_windows(*numbers)
            for numbers in zip(sizes, outs, kernel, stride, padding, dilation, strict=True)
        ]
    channels = int(np.prod(shape[1:-spatial]))
    taps = pooling_taps(channels, sizes, windows)
    function, args, kwargs = call.function, call.args[1:], call.kwargs

    def native(x: Tensor) -> Tensor:
        result = function(x, *args, **kwargs)
        return result[0] if isinstance(result, tuple) else result

    return _tournament(call, "max_pool" if "adaptive" not in call.name else "adaptive_max_pool",
                       True, taps, native)  # fmt: skip


def _tournament(
    call: Call,
    kind: str,
    largest: bool,
    taps: Ints,
    native: Callable[[Tensor], Tensor],
) -> Bend | Rewrite:
    if taps.shape[1] == 1 or int((taps >= 0).sum(axis=1).max()) == 1:
        index = torch.from_numpy(taps.max(axis=1))
        shape = _shape(call)
        return Rewrite(((_gather, (index, shape)),))
    tournament, contests = make_tournament(kind, native, largest, taps, _shape(call))
    return Bend(tournament, call.args[:1], contests)


def _gather(x: Tensor, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x.flatten(1).index_select(1, index).reshape(x.shape[0], *shape)


def _axes(value: Any, count: int) -> list[int]:
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    return listed * count if len(listed) == 1 else listed


TABLE: dict[str, Callable[[Call], Bend | Rewrite]] = {
    "relu": _relu,
    **dict.fromkeys(("leaky_relu", "rrelu_with_noise_functional"), _leaky),
    **dict.fromkeys(("prelu", "_prelu_kernel"), _prelu),
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max", "hardtanh"), _clamp),
    "abs": _abs,
    "threshold": _threshold,
    "hardsigmoid": _hardsigmoid,
    **dict.fromkeys(("maximum", "minimum"), _extremum),
    **dict.fromkeys(("amax", "amin", "max", "min"), _reduction),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), _pool),
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool3d_with_indices"), _pool),
    **dict.fromkeys(("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"), _pool),
    **dict.fromkeys(
        ("le", "lt", "ge", "gt", "eq", "ne"),
        _refuse(
            "it compares input-dependent values, which in general jumps (hardshrink, elu and "
            "torch.where consist of it); write it with relu, clamp, abs or maximum"
        ),
    ),
    **dict.fromkeys(
        ("sort", "topk", "kthvalue", "median", "nanmedian", "cummax", "cummin", "aminmax"),
        _refuse("it compares the samples of a batch; give it dim="),
    ),
    **dict.fromkeys(("ceil", "trunc", "frac", "sign", "fmod"), _refuse("it jumps")),
    **dict.fromkeys(
        ("floor", "round", "remainder", "floor_divide"), _refuse("it jumps" + _OUTSIDE_WAVES)
    ),
    **dict.fromkeys(
        ("sin", "cos", "asin", "acos"), _refuse("it is not piecewise linear" + _OUTSIDE_WAVES)
    ),
}
