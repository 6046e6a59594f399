"""The table of torch functions that bend: where the knots of their units lie, how they curve.

`knots` watches a decoder run and looks every torch function up in `TABLE` by the name of its ATen
operation, so `nn.ReLU()`, `F.relu`, `x.relu_()` and `torch.ops.aten.relu.default` are one entry. A
new operation is one entry, with the reader that it names. Activations written out by hand, such as
x * sigmoid(x), are recognised in `watching`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu, softplus

__all__ = ["TABLE", "Operation", "Units", "find_units", "operation_name", "written_out_silu"]

Curvature = Callable[[Tensor], Tensor]


class Units(NamedTuple):
    """The units of one call: one for every element of `entering` (or one for every window)."""

    entering: Tensor
    # one knot per unit for each entry: where entering == at
    at: tuple[float | Tensor, ...] = (0.0,)
    # second derivative of a smooth activation, as a function of h - (first knot)
    curvature: Curvature | None = None
    # pooling: for each of the last dimensions, (outputs, candidates) indices; the size of that
    # dimension stands for "no candidate here"
    windows: tuple[Tensor, ...] = ()
    # the smallest candidate wins instead of the largest
    smallest: bool = False


class Operation(NamedTuple):
    """One torch function: how its units are read off a call."""

    # from its arguments to its units, or to None for a call that has none; no reader for a bend or
    # jump that is no unit here: the result names it, so that nothing goes unsaid
    units: Callable[..., Units | None] | None
    # the same by functions that vmap knows under forward mode, where it has no rule of its own
    written_out: Callable[..., Tensor] | None = None


def operation_name(function: Callable[..., Any]) -> str:
    """Name of the ATen operation behind any spelling of it, without in-place underscores."""
    if isinstance(function, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        namespace, name = str(function).split(".")[:2]
        return name.strip("_") if namespace == "aten" else f"{namespace}::{name}"
    return getattr(function, "__name__", "").strip("_")


def find_units(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Units | None:
    """Units of a call of the operation `name`, or None where it has none."""
    reader = TABLE[name].units if name in TABLE else None
    if reader is None:
        return None
    named = {"input" if key == "self" else key: value for key, value in kwargs.items()}
    return reader(*args, **named)


# ---------------------------------------------------------------------------- pieces


def _at(*knots: float, curvature: Curvature | None = None) -> Callable[..., Units]:
    def read(input: Tensor, *_: Any, **__: Any) -> Units:
        return Units(input, knots, curvature)

    return read


def _rrelu(x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, *_: Any, **__: Any) -> Tensor:
    return leaky_relu(x, (lower + upper) / 2)


def _hardswish_curvature(h: Tensor) -> Tensor:
    # h is shifted by the first knot
    return ((h > 0) & (h < 6)).to(h.dtype) / 3


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, *_: Any, **__: Any):
    return Units(input, (float(min_val), float(max_val)))


def _shrink(input: Tensor, lambd: float = 0.5, *_: Any, **__: Any) -> Units:
    return Units(input, (-float(lambd), float(lambd)) if lambd else (0.0,))


def _threshold(input: Tensor, threshold: float, *_: Any, **__: Any) -> Units:
    return Units(input, (float(threshold),))


def _clamp(input: Tensor, min: Any = None, max: Any = None, **_: Any) -> Units | None:
    bounds = tuple(bound for bound in (min, max) if bound is not None)
    at = tuple(bound if isinstance(bound, Tensor) else float(bound) for bound in bounds)
    at = tuple(bound for bound in at if isinstance(bound, Tensor) or math.isfinite(bound))
    return Units(input, at) if at else None


def _clamp_min(input: Tensor, min: Any, **_: Any) -> Units | None:
    return _clamp(input, min=min)


def _clamp_max(input: Tensor, max: Any, **_: Any) -> Units | None:
    return _clamp(input, max=max)


def _two(input: Tensor, other: Tensor, **_: Any) -> Units:
    # the larger (or smaller) of two: where they meet
    first, second = torch.broadcast_tensors(input, other)
    return Units(first, (second,))


# ---------------------------------------------------------------------------- smooth ones


def _elu(input: Tensor, alpha: float = 1.0, scale: Any = 1.0, input_scale: Any = 1.0, **_: Any):
    # F.elu's third argument is `inplace`, ATen's is `scale`
    scale = 1.0 if isinstance(scale, bool) else scale
    steepness = input_scale**2 * scale * alpha

    def curvature(h: Tensor) -> Tensor:
        return torch.where(h < 0, steepness * torch.exp(input_scale * h.clamp(max=0)), 0.0)

    return Units(input, curvature=curvature)


def _selu(input: Tensor, *_: Any, **__: Any) -> Units:
    return _elu(input, 1.6732632423543772, 1.0507009873554805)


def _celu(input: Tensor, alpha: float = 1.0, *_: Any, **__: Any) -> Units:
    return _elu(input, alpha, 1.0, 1.0 / alpha)


def _silu_curvature(h: Tensor) -> Tensor:
    gate = torch.sigmoid(h)
    return gate * (1 - gate) * (2 + h * (1 - 2 * gate))


def written_out_silu(x: Tensor, scale: float) -> Units:
    """Units of x sigmoid(scale x) = silu(scale x) / scale."""
    return Units(x, curvature=lambda h: scale * _silu_curvature(scale * h))


def _gelu_curvature(h: Tensor) -> Tensor:
    return (2 - h**2) * torch.exp(-(h**2) / 2) / math.sqrt(2 * math.pi)


def _tanh_gelu_curvature(h: Tensor) -> Tensor:
    # h/2 (1 + tanh u), u = c (h + a h^3)
    c, a = math.sqrt(2 / math.pi), 0.044715
    height = torch.tanh(c * (h + a * h**3))
    slope, bend = c * (1 + 3 * a * h**2), 6 * a * c * h
    return (1 - height**2) * (slope + 0.5 * h * (bend - 2 * height * slope**2))


def _gelu(input: Tensor, *_: Any, approximate: str = "none", **__: Any) -> Units:
    return Units(
        input, curvature=_tanh_gelu_curvature if approximate == "tanh" else _gelu_curvature
    )


def _erf(input: Tensor, **_: Any) -> Units:
    # exporters write GELU as h/2 (1 + erf(h / sqrt 2))
    return Units(input * math.sqrt(2), curvature=_gelu_curvature)


def _softplus(input: Tensor, beta: float = 1.0, *_: Any, **__: Any) -> Units:
    def curvature(h: Tensor) -> Tensor:
        gate = torch.sigmoid(beta * h)
        return beta * gate * (1 - gate)

    return Units(input, curvature=curvature)


def _log_sigmoid(input: Tensor, *_: Any, **__: Any) -> Units:
    return _softplus(input)


def _mish(x: Tensor) -> Tensor:
    return x * torch.tanh(softplus(x))


def _mish_curvature(h: Tensor) -> Tensor:
    gate, height = torch.sigmoid(h), torch.tanh(softplus(h))
    room = 1 - height**2
    return room * (2 * gate + h * (gate * (1 - gate) - 2 * height * gate**2))


# ---------------------------------------------------------------------------- pooling


def _per_dimension(value: Any, dimensions: int, default: Any = None) -> list[int]:
    """`value` once for every dimension; empty or None stands for the default."""
    if value is None or (isinstance(value, (tuple, list)) and not value):
        value = default
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    return values * dimensions if len(values) == 1 else values


def _max_pool(dimensions: int) -> Callable[..., Units]:
    def read(
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        *_: Any,
        **__: Any,
    ) -> Units:
        kernels = _per_dimension(kernel_size, dimensions)
        steps = _per_dimension(stride, dimensions, kernels)
        margins, gaps = _per_dimension(padding, dimensions), _per_dimension(dilation, dimensions)
        windows = []
        for size, kernel, step, margin, gap in zip(
            input.shape[-dimensions:], kernels, steps, margins, gaps, strict=True
        ):
            room = size + 2 * margin - gap * (kernel - 1) - 1
            outputs = (-(-room // step) if ceil_mode else room // step) + 1
            # a window that would begin in the right margin is dropped, as torch does
            if ceil_mode and (outputs - 1) * step >= size + margin:
                outputs -= 1
            index = step * torch.arange(outputs)[:, None] + gap * torch.arange(kernel) - margin
            windows.append(torch.where((index < 0) | (index >= size), size, index))
        return Units(input, windows=tuple(windows))

    return read


def _adaptive_max_pool(dimensions: int) -> Callable[..., Units]:
    def read(input: Tensor, output_size: Any, *_: Any, **__: Any) -> Units:
        windows = []
        sizes = input.shape[-dimensions:]
        for size, wanted in zip(sizes, _per_dimension(output_size, dimensions), strict=True):
            outputs = size if wanted is None else wanted
            first = [i * size // outputs for i in range(outputs)]
            last = [-(-(i + 1) * size // outputs) for i in range(outputs)]
            widest = max(b - a for a, b in zip(first, last, strict=True))
            index = torch.tensor(first)[:, None] + torch.arange(widest)
            windows.append(torch.where(index < torch.tensor(last)[:, None], index, size))
        return Units(input, windows=tuple(windows))

    return read


def _unsupported(name: str) -> Callable[..., Units]:
    def read(*_: Any, **__: Any) -> Units:
        raise NotImplementedError(
            f"Expected activations that torch executes as functions of their own, got {name}, "
            "whose units lie inside one fused operation: write it out with its activations"
        )

    return read


def _extremum(smallest: bool) -> Callable[..., Units | None]:
    def read(input: Tensor, dim: Any = None, *_: Any, **named: Any) -> Units | None:
        other = named.get("other", dim)
        if isinstance(other, Tensor):
            return _two(input, other)
        dims = [dim] if isinstance(dim, int) else list(dim or ())
        dims = sorted(d % input.ndim for d in dims)
        # over all latents at once: a property of the batch, not of a latent
        if not dims or 0 in dims:
            return None
        moved = input.movedim(dims, list(range(input.ndim - len(dims), input.ndim)))
        windows = tuple(torch.arange(input.shape[d])[None] for d in dims)
        return Units(moved, windows=windows, smallest=smallest)

    return read


# ---------------------------------------------------------------------------- the table


def _same(*names: str, units: Callable[..., Units | None] | None) -> dict[str, Operation]:
    return dict.fromkeys(names, Operation(units))


TABLE: Mapping[str, Operation] = MappingProxyType(
    {
        **_same("relu", "leaky_relu", "prelu", "abs", "absolute", units=_at(0.0)),
        "rrelu": Operation(_at(0.0), written_out=_rrelu),
        "relu6": Operation(_at(0.0, 6.0)),
        "hardsigmoid": Operation(_at(-3.0, 3.0)),
        "hardswish": Operation(_at(-3.0, 3.0, curvature=_hardswish_curvature)),
        "hardtanh": Operation(_hardtanh),
        **_same("hardshrink", "softshrink", units=_shrink),
        "threshold": Operation(_threshold),
        **_same("clamp", "clip", units=_clamp),
        "clamp_min": Operation(_clamp_min),
        "clamp_max": Operation(_clamp_max),
        **_same("maximum", "minimum", "fmax", "fmin", units=_two),
        **_same("max", "amax", units=_extremum(smallest=False)),
        **_same("min", "amin", units=_extremum(smallest=True)),
        "elu": Operation(_elu),
        "selu": Operation(_selu),
        "celu": Operation(_celu),
        "silu": Operation(_at(0.0, curvature=_silu_curvature)),
        "gelu": Operation(_gelu),
        **_same("erf", "special_erf", units=_erf),
        "softplus": Operation(_softplus),
        **_same("log_sigmoid", "logsigmoid", "log_sigmoid_forward", units=_log_sigmoid),
        "mish": Operation(_at(0.0, curvature=_mish_curvature), written_out=_mish),
        **{
            f"{name}{end}": Operation(reader(dimensions))
            for dimensions in (1, 2, 3)
            for end in ("", "_with_indices")
            for name, reader in (
                (f"max_pool{dimensions}d", _max_pool),
                (f"adaptive_max_pool{dimensions}d", _adaptive_max_pool),
            )
        },
        **{
            name: Operation(_unsupported(name))
            for name in (
                *("fractional_max_pool2d", "fractional_max_pool2d_with_indices"),
                *("fractional_max_pool3d", "fractional_max_pool3d_with_indices"),
                *("rnn_relu", "rnn_relu_cell"),
            )
        },
        **_same(
            *("softmax", "log_softmax", "softmin", "scaled_dot_product_attention"),
            *("multi_head_attention_forward", "gru", "lstm", "rnn_tanh", "glu"),
            *("sigmoid", "special_expit", "tanh", "exp", "log", "sin", "cos", "atan"),
            *("softsign", "tanhshrink", "erfc", "special_erfc"),
            *("where", "sign", "sgn", "heaviside", "round", "floor", "ceil", "trunc", "fmod"),
            *("sort", "topk", "argmax", "argmin", "argsort", "median", "cummax", "cummin"),
            *("gt", "ge", "lt", "le", "masked_fill", "remainder", "lp_pool2d"),
            units=None,
        ),
    }
)
