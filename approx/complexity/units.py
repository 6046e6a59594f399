"""The table of operations that bend: where the knots of their units lie, how they curve.

`knots` watches a decoder run and looks every operation of ATen up in `TABLE` by its name, so
`nn.ReLU()`, `F.relu`, `x.relu_()` and a scripted relu are one entry. A new operation is one entry,
with the reader that it names. Activations written out by hand, x * sigmoid(x) or where(x > 0, x,
0.1 * x), are recognised in `watching`. A slope of 1, or a bound at infinity, is no knot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["AFFINE", "TABLE", "Operation", "Units", "Window", "find_units", "written_out_silu"]

Curvature = Callable[[Tensor], Tensor]


class Window(NamedTuple):
    """Windows of a pooling in one dimension.

    Attributes
    ----------
    places : Tensor
        (outputs, candidates) int64, on the entries' device; the dimension's size stands for "no
        candidate here".
    gaps : bool
        Whether any candidate is missing.
    """

    places: Tensor
    gaps: bool


class Units(NamedTuple):
    """The units of one call: one for every element of `entering` (or one for every window)."""

    entering: Tensor
    # one knot per unit for each entry: where entering == at
    at: tuple[float | Tensor, ...] = (0.0,)
    # second derivative of a smooth activation, as a function of h - (first knot)
    curvature: Curvature | None = None
    # pooling: one for each of the last dimensions
    windows: tuple[Window, ...] = ()
    # the smallest candidate wins instead of the largest
    smallest: bool = False
    # truth values, to be broadcast: units whose pieces are alike, and which have no knot
    still: Tensor | None = None
    # h is so many times what enters
    scale: float = 1.0


class Operation(NamedTuple):
    """One operation: how its units are read off a call."""

    # from its arguments to its units, or to None for a call that has none; no reader for a bend or
    # jump that is no unit here: the result names it, so that nothing goes unsaid
    units: Callable[..., Units | None] | None
    # values of the result at the knots, if it has them nowhere else but on a flat piece
    levels: Callable[[Units], tuple[float, ...]] | None = None


def find_units(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Units | None:
    """Units of a call of the operation `name`, or None where it has none."""
    reader = TABLE[name].units if name in TABLE else None
    if reader is None:
        return None
    return reader(*args, **kwargs)


# ---------------------------------------------------------------------------- pieces


def _at(*knots: float, curvature: Curvature | None = None) -> Callable[..., Units]:
    def read(input: Tensor, *_: Any, **__: Any) -> Units:
        return Units(input, knots, curvature)

    return read


def _leaky_relu(input: Tensor, negative_slope: float = 0.01) -> Units | None:
    return Units(input) if negative_slope != 1 else None


def _prelu(input: Tensor, weight: Tensor) -> Units:
    return Units(input, still=weight == 1)


def _rrelu(x: Tensor, _: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, *__: Any) -> Any:
    return _leaky_relu(x, (lower + upper) / 2)


def _hardswish_curvature(h: Tensor) -> Tensor:
    # h is shifted by the first knot
    return ((h > 0) & (h < 6)).to(h.dtype) / 3


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, *_: Any, **__: Any):
    return _clamp(input, min_val, max_val)


def _shrink(input: Tensor, lambd: float = 0.5) -> Units | None:
    return Units(input, (-float(lambd), float(lambd))) if lambd else None


def _threshold(input: Tensor, threshold: float, *_: Any, **__: Any) -> Units:
    return Units(input, (float(threshold),))


def _clamp(input: Tensor, min: Any = None, max: Any = None, **_: Any) -> Units | None:
    bounds = tuple(bound for bound in (min, max) if bound is not None)
    if len(bounds) == 2 and not any(isinstance(b, Tensor) for b in bounds) and min >= max:
        return None  # a constant
    return Units(input, tuple(b if isinstance(b, Tensor) else float(b) for b in bounds))


def _clamp_min(input: Tensor, min: Any, **_: Any) -> Units | None:
    return _clamp(input, min=min)


def _clamp_max(input: Tensor, max: Any, **_: Any) -> Units | None:
    return _clamp(input, max=max)


def _two(input: Tensor, other: Tensor) -> Units | None:
    # the larger (or smaller) of two: where they meet
    shape = torch.broadcast_shapes(input.shape, other.shape)
    first, second = (x if x.shape == shape else x.expand(shape) for x in (input, other))
    return None if input is other else Units(first, (second,))


# ---------------------------------------------------------------------------- smooth ones


def _elu(input: Tensor, alpha: float = 1.0, scale: Any = 1.0, input_scale: Any = 1.0, **_: Any):
    # F.elu's third argument is `inplace`, ATen's is `scale`
    scale = 1.0 if isinstance(scale, bool) else scale
    steepness = input_scale**2 * scale * alpha

    def curvature(h: Tensor) -> Tensor:
        return torch.where(h < 0, steepness * torch.exp(input_scale * h.clamp(max=0)), 0.0)

    return Units(input, curvature=curvature)


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
    return Units(input, curvature=_gelu_curvature, scale=math.sqrt(2))


def _softplus(input: Tensor, beta: float = 1.0, *_: Any, **__: Any) -> Units:
    def curvature(h: Tensor) -> Tensor:
        gate = torch.sigmoid(beta * h)
        return beta * gate * (1 - gate)

    return Units(input, curvature=curvature)


def _log_sigmoid(input: Tensor, *_: Any, **__: Any) -> Units:
    return _softplus(input)


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
            first = step * torch.arange(outputs, device=input.device) - margin
            index = first[:, None] + gap * torch.arange(kernel, device=input.device)
            gaps = margin > 0 or step * (outputs - 1) + gap * (kernel - 1) >= size
            windows.append(Window(index.masked_fill((index < 0) | (index >= size), size), gaps))
        return Units(input, windows=tuple(windows))

    return read


def _adaptive_max_pool(dimensions: int) -> Callable[..., Units]:
    def read(input: Tensor, output_size: Any, *_: Any, **__: Any) -> Units:
        windows = []
        sizes = input.shape[-dimensions:]
        for size, wanted in zip(sizes, _per_dimension(output_size, dimensions), strict=True):
            outputs = size if wanted is None else wanted
            i = torch.arange(outputs, device=input.device)[:, None]
            lengths = {-(-(j + 1) * size // outputs) - j * size // outputs for j in range(outputs)}
            index = i * size // outputs + torch.arange(max(lengths), device=input.device)
            beyond = index >= -(-(i + 1) * size // outputs)
            windows.append(Window(index.masked_fill(beyond, size), len(lengths) > 1))
        return Units(input, windows=tuple(windows))

    return read


def _unsupported(name: str) -> Callable[..., Units]:
    def read(*_: Any, **__: Any) -> Units:
        raise NotImplementedError(
            f"Expected activations that torch executes as operations of their own, got {name}, "
            "whose units lie inside one fused operation: write it out with its activations"
        )

    return read


def _extremum(smallest: bool) -> Callable[..., Units | None]:
    def read(input: Tensor, dim: Any = None, *_: Any, **__: Any) -> Units | None:
        dims = [dim] if isinstance(dim, int) else list(dim or ())
        dims = sorted(d % input.ndim for d in dims)
        if not dims:  # over all latents at once: a property of the batch, not of a latent
            return None
        moved = input.movedim(dims, list(range(input.ndim - len(dims), input.ndim)))
        windows = tuple(
            Window(torch.arange(input.shape[d], device=input.device)[None], gaps=False)
            for d in dims
        )
        return Units(moved, windows=windows, smallest=smallest)

    return read


# ---------------------------------------------------------------------------- the table


def _same(*names: str, units: Callable[..., Units | None] | None) -> dict[str, Operation]:
    return dict.fromkeys(names, Operation(units))


def _level(*names: str, units: Callable[..., Units | None]) -> dict[str, Operation]:
    """Return operations that leave their knots where they are."""
    return dict.fromkeys(
        names, Operation(units, lambda found: tuple(k for k in found.at if isinstance(k, float)))
    )


TABLE: Mapping[str, Operation] = MappingProxyType(
    {
        **_level("relu", "abs", units=_at(0.0)),
        **_level("leaky_relu", units=_leaky_relu),
        **_level("prelu_kernel", units=_prelu),
        **_level("rrelu_with_noise", units=_rrelu),
        "hardsigmoid": Operation(_at(-3.0, 3.0), lambda _: (0.0, 1.0)),
        "hardswish": Operation(_at(-3.0, 3.0, curvature=_hardswish_curvature)),
        **_level("hardtanh", units=_hardtanh),
        "hardshrink": Operation(_shrink),
        "softshrink": Operation(_shrink, lambda _: (0.0,)),
        **_level("threshold", units=_threshold),
        **_level("clamp", units=_clamp),
        **_level("clamp_min", units=_clamp_min),
        **_level("clamp_max", units=_clamp_max),
        **_level("maximum", "minimum", "fmax", "fmin", units=_two),
        **_same("max", "amax", units=_extremum(smallest=False)),
        **_same("min", "amin", units=_extremum(smallest=True)),
        **_level("elu", units=_elu),
        **_level("celu", units=_celu),
        **_level("silu", units=_at(0.0, curvature=_silu_curvature)),
        **_level("gelu", units=_gelu),
        **_same("erf", "special_erf", units=_erf),
        "softplus": Operation(_softplus),
        "log_sigmoid_forward": Operation(_log_sigmoid),
        **_level("mish", units=_at(0.0, curvature=_mish_curvature)),
        **{
            f"{name}{end}": Operation(reader(dimensions))
            for dimensions, end in ((2, ""), (3, ""), (2, "_with_indices"), (3, "_with_indices"))
            for name, reader in (
                (f"max_pool{dimensions}d", _max_pool),
                (f"adaptive_max_pool{dimensions}d", _adaptive_max_pool),
            )
        },
        **{
            name: Operation(_unsupported(name))
            for name in (
                *("fractional_max_pool2d", "fractional_max_pool3d", "miopen_rnn", "cudnn_rnn"),
                "mkldnn_rnn_layer",
            )
        },
        **_same(
            *("softmax", "log_softmax", "safe_softmax", "glu", "sigmoid", "tanh", "exp", "log"),
            *("sin", "cos", "atan", "erfc", "special_erfc"),
            *("round", "floor", "ceil", "trunc", "fmod", "remainder", "frac"),
            *("sort", "topk", "argmax", "argmin", "argsort", "median", "cummax", "cummin"),
            *("kthvalue", "mode", "aminmax"),
            units=None,
        ),
    }
)

# of one argument; what else runs is named if there are no units
AFFINE = frozenset(
    [
        *("add", "sub", "rsub", "neg", "mul", "div", "sum", "mean", "cumsum", "lerp"),
        *("mm", "bmm", "addmm", "baddbmm", "addbmm", "addmv", "mv", "dot", "convolution"),
        *("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "avg_pool1d"),
        *("avg_pool2d", "avg_pool3d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
        *("clone", "copy", "to_copy", "contiguous", "lift_fresh", "fill", "zero", "empty_like"),
        *("zeros_like", "ones_like", "new_zeros", "cat", "stack", "flip", "roll", "repeat"),
        *("constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d"),
        *("replication_pad1d", "replication_pad2d", "replication_pad3d", "tril", "triu"),
        *("index", "index_select", "gather", "index_put", "index_add", "scatter", "scatter_add"),
        *("select_scatter", "slice_scatter", "masked_fill", "where", "grid_sampler_2d"),
        *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d"),
        *("upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", "col2im", "im2col"),
        *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "fft_r2c", "fft_c2r", "fft_c2c"),
        *("unsafe_view", "unsafe_split", "is_nonzero", "local_scalar_dense", "isfinite"),
    ]
)
