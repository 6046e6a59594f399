"""The ONNX operations that the reader takes, `OPERATIONS`, each with what it honours.

Here: arithmetic entry by entry, reductions and products of matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from string import ascii_letters
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cpwl.network.files.onnx.nodes import Function, Node, Operation
from cpwl.network.files.onnx.resizing import RESIZING
from cpwl.network.files.onnx.shapes import SHAPES
from cpwl.network.files.onnx.windows import WINDOWS

FLOATS = (1, 10, 11, 16)  # float32, float16, float64, bfloat16 in ONNX
BOOL = 9


def _entries(function: Function, tensors: int = 1, result: int | None = None) -> Operation:
    """Record a torch function that works entry by entry."""
    return Operation(lambda node: function, "pointwise", tensors=tensors, result=result)


def _folded(function: Function, tensors: int = -1) -> Operation:
    """Record a torch function of two, applied from left to right."""

    def call(*tensors: Tensor) -> Tensor:
        total = tensors[0]
        for tensor in tensors[1:]:
            total = function(total, tensor)
        return total

    return Operation(lambda node: call, "pointwise", tensors=tensors)


def _mean(node: Node) -> Function:
    count = len(node.inputs)
    return lambda *tensors: sum(tensors[1:], tensors[0]) / count


def _shaped(make: Callable[..., Function], *names: str) -> Operation:
    """Record a function with numbers from attributes."""

    def build(node: Node) -> Function:
        return make(*(float(node.attributes[name]) for name in names))

    return Operation(build, "pointwise", names)


def _clip(node: Node) -> Function:
    lower, upper = node.number(1, "min"), node.number(2, "max")
    if lower is None and upper is None:
        return lambda x, *rest: x
    if lower is not None and upper is not None and lower > upper:
        node.refuse(f"with min={lower} above max={upper}")
    return lambda x, *rest: torch.clamp(x, lower, upper)


def _prelu(node: Node) -> Function:
    if np.broadcast_shapes(node.shape(0), node.shape(1)) != node.shape(0):
        node.refuse(f"with slopes of shape {list(node.shape(1))} for {list(node.shape(0))}")
    return lambda x, slope: torch.relu(x) - slope * torch.relu(-x)


def _dropout(node: Node) -> Function:
    mode = node.constant(2)
    if mode is not None and mode.any():
        node.refuse("in training mode, which is random")
    return lambda x, *rest: x


def _cast(node: Node) -> Any:
    source = node.inputs[0]
    assert source is not None
    to = int(node.attributes["to"])
    if to not in (*FLOATS, BOOL):
        node.refuse(f"of values that depend on the model's input to type {to}, which jumps")
    if to == source.type or (to != BOOL and source.type != BOOL):
        return lambda x, *rest: x
    if to == BOOL:
        return lambda x: x != 0
    # The second tensor only tells the type in which the module runs.
    return lambda x, one: x.to(one.dtype), [np.ones((), np.float32)]


def _pow(node: Node) -> Function:
    array = node.constant(1)
    if array is not None and array.size == 1 and array.ndim <= len(node.shape(0)):
        exponent = float(array.reshape(-1)[0])
        if exponent == 1:
            return lambda x, *rest: x
        return lambda x, *rest: torch.pow(x, exponent)
    return torch.pow


def _gelu(node: Node) -> Function:
    how = node.attributes["approximate"]
    if how not in ("none", "tanh"):
        node.refuse(f"with approximate={how}")
    return partial(functional.gelu, approximate=how)


def _where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


def _thresholded(alpha: float) -> Function:
    return lambda x: torch.where(x > alpha, x, 0.0)


def _hard_sigmoid(alpha: float, beta: float) -> Function:
    return lambda x: torch.clamp(alpha * x + beta, 0.0, 1.0)


def _hard_swish(x: Tensor) -> Tensor:
    return x * torch.clamp(x / 6 + 0.5, 0.0, 1.0)


def _softplus(x: Tensor) -> Tensor:
    return functional.softplus(x, 1.0, 40.0)  # beyond 40 it is x to the last bit


def _shrink(lambd: float, bias: float) -> Function:
    return lambda x: torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, 0.0))


def _elu(alpha: float) -> Function:
    return partial(functional.elu, alpha=alpha)


def _selu(alpha: float, gamma: float) -> Function:
    return lambda x: gamma * functional.elu(x, alpha=alpha)


def _celu(alpha: float) -> Function:
    return partial(functional.celu, alpha=alpha)


def _leaky_relu(alpha: float) -> Function:
    return partial(functional.leaky_relu, negative_slope=alpha)


def _swish(alpha: float) -> Function:
    return lambda x: x * torch.sigmoid(alpha * x)


def _axes(node: Node) -> list[int]:
    """Axes of a reduction; none means all, unless `noop_with_empty_axes` says none."""
    axes = node.integers("axes", 1)
    if not axes:
        if node.attributes.get("noop_with_empty_axes"):
            return []
        return list(range(len(node.shape())))
    return [node.axis(a) for a in axes]


REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
}
BEFORE_REDUCTION: dict[str, Function] = {
    "ReduceL1": torch.abs, "ReduceL2": torch.abs, "ReduceSumSquare": torch.square,
    "ReduceLogSum": torch.log,
}  # fmt: skip


def _reduce(node: Node) -> Function:
    function, keep = REDUCTIONS[node.type], bool(node.attributes["keepdims"])
    axes = [a + node.whole for a in _axes(node)]
    if not axes:  # of single entries
        alone = BEFORE_REDUCTION.get(node.type)
        return lambda x, *rest: x if alone is None else alone(x)
    return lambda x, *rest: function(x, axes, keep)


def _softmax_axes(node: Node) -> list[int]:
    axis = node.axis(int(node.attributes["axis"]))
    return [axis] if node.version >= 13 else list(range(axis, len(node.shape())))


def _softmax(node: Node) -> Function:
    """Before version 13 all axes from `axis` on count as one."""
    function = torch.softmax if node.type == "Softmax" else torch.log_softmax
    axes = _softmax_axes(node)
    first, sizes = axes[0] + node.whole, [node.shape()[a] for a in axes]
    if len(axes) == 1:
        return lambda x: function(x, first)
    return lambda x: function(x.flatten(first), first).unflatten(first, sizes)


def _cumsum_axis(node: Node) -> list[int]:
    return [node.axis(int(node.number(1) or 0))]


def _cumsum(node: Node) -> Function:
    axis = _cumsum_axis(node)[0] + node.whole
    exclusive, back = bool(node.attributes["exclusive"]), bool(node.attributes["reverse"])

    def call(x: Tensor, *rest: Any) -> Tensor:
        x = x.flip(axis) if back else x
        total = x.cumsum(axis)
        total = total - x if exclusive else total
        return total.flip(axis) if back else total

    return call


def _layer_axes(node: Node) -> list[int]:
    return list(range(node.axis(int(node.attributes["axis"])), len(node.shape())))


def _layer_norm(node: Node) -> Function:
    eps, axes = float(node.attributes["epsilon"]), [a + node.whole for a in _layer_axes(node)]

    def call(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        centred = x - x.mean(axes, keepdim=True)
        y = centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps) * w
        return y if b is None else y + b

    return call


def _rms_norm(node: Node) -> Function:
    eps, axes = float(node.attributes["epsilon"]), [a + node.whole for a in _layer_axes(node)]
    return lambda x, w: x * torch.rsqrt(x.square().mean(axes, keepdim=True) + eps) * w


def _variance_axes(node: Node) -> list[int]:
    return [node.axis(int(a)) for a in node.attributes["axes"]]


def _mean_variance(node: Node) -> Function:
    axes = [a + node.whole for a in _variance_axes(node)]

    def call(x: Tensor) -> Tensor:
        centred = x - x.mean(axes, keepdim=True)
        return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)

    return call


def _top_axis(node: Node) -> list[int]:
    return [node.axis(int(node.attributes["axis"]))]


def _top(node: Node) -> Function:
    axis = _top_axis(node)[0]
    array = node.constant(1)
    count = int(node.attributes["k"] if array is None else array.reshape(-1)[0])
    if not 1 <= count <= node.shape()[axis]:
        node.refuse(f"with k={count} of {node.shape()[axis]}")
    place, largest = axis + node.whole, bool(node.attributes.get("largest", 1))
    # Indices jump, so that nothing may read them; the values' order is theirs only if sorted.
    if not node.attributes.get("sorted", 1) and count > 1:
        node.refuse("with sorted=0, which leaves the order open")
    return lambda x, *rest: torch.topk(x, count, place, largest, True)[0]


def _matmul(node: Node) -> Function:
    node.require(_product_size(node))
    if not node.whole:
        return torch.matmul
    ranks = [len(node.shape(0)), len(node.shape(1))]
    known = [value is not None and value.known for value in node.inputs]
    most = max(*ranks, 2)

    def side(x: Tensor, k: int) -> Tensor:
        if ranks[k] == 1:
            x = x.unsqueeze(-1 if k else -2)
        missing = most - max(ranks[k], 2)
        if missing and not known[k]:
            x = x.reshape(x.shape[0], *[1] * missing, *x.shape[1:])
        return x

    def call(a: Tensor, b: Tensor) -> Tensor:
        y = torch.matmul(side(a, 0), side(b, 1))
        y = y.squeeze(-2) if ranks[0] == 1 else y
        return y.squeeze(-1) if ranks[1] == 1 else y

    return call


def _product_size(node: Node) -> int:
    a, b = ((1, *s) if len(s) < 2 else s for s in (node.shape(0), node.shape(1)))
    lead = prod(max(p, q) for p, q in zip(_front(a, b), _front(b, a), strict=True))
    columns = b[-1] if len(node.shape(1)) > 1 else 1
    return lead * a[-2] * columns


def _front(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    rank = max(len(a), len(b))
    return ((1,) * (rank - len(a)) + tuple(a))[:-2]


def _gemm(node: Node) -> Function:
    a = node.attributes
    alpha, beta = float(a["alpha"]), float(a["beta"])
    shapes = [node.shape(0), node.shape(1)]
    if any(len(shape) != 2 for shape in shapes):
        node.refuse(f"of shapes {shapes}")
    rows = shapes[0][1 if a["transA"] else 0]
    columns = shapes[1][0 if a["transB"] else 1]
    node.require(rows * columns)
    if node.given(2) and np.broadcast_shapes(node.shape(2), (rows, columns)) != (rows, columns):
        node.refuse(f"with a third input of shape {node.shape(2)}")
    simple = not node.whole and not a["transA"]

    def call(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        x = x.transpose(-1, -2) if a["transA"] else x
        w = w if alpha == 1 else w * alpha
        b = b if b is None or beta == 1 else b * beta
        if simple:
            weight = w if a["transB"] else w.t()
            if b is None or (b.ndim == 1 and b.shape[0] == columns):
                return functional.linear(x, weight, b)
            return functional.linear(x, weight) + b
        y = torch.matmul(x, w.transpose(-1, -2) if a["transB"] else w)
        return y if b is None else y + b

    third = node.inputs[2] if node.given(2) else None
    if node.whole and third is not None and not third.known and len(third.shape) < 2:
        return lambda x, w, b: call(x, w, b.reshape(b.shape[0], 1, *b.shape[1:] or (1,)))
    return call


def _einsum(node: Node) -> Function:
    text = node.attributes["equation"].replace(" ", "")
    shapes = [node.shape(k) for k in range(len(node.inputs))]
    terms, right = _spelled_out(text, [len(shape) for shape in shapes])
    sizes: dict[str, int] = {}
    fits = len(terms) == len(shapes) and "." not in "".join([*terms, right])
    for term, shape in zip(terms, shapes, strict=False):
        fits &= len(term) == len(shape)
        fits &= all(sizes.setdefault(c, n) == n for c, n in zip(term, shape, strict=False))
    if not fits:
        node.refuse(f"with the equation '{text[:60]}' for the shapes {[list(s) for s in shapes]}")
    node.require(prod(sizes.values()), "products")
    if not node.whole:
        equation = f"{','.join(terms)}->{right}"
        return lambda *tensors: torch.einsum(equation, *tensors)
    free = next(c for c in ascii_letters if c not in f"{terms}{right}")
    known = [value is not None and value.known for value in node.inputs]
    wide = ",".join(term if k else free + term for term, k in zip(terms, known, strict=True))
    return lambda *tensors: torch.einsum(f"{wide}->{free}{right}", *tensors)


def _spelled_out(text: str, ranks: list[int]) -> tuple[list[str], str]:
    """Write an equation with letters in place of dots, and with its result."""
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    hidden = [
        max(rank - len(term.replace("...", "")), 0) if "..." in term else 0
        for term, rank in zip(terms, ranks, strict=False)
    ]
    letters = [c for c in ascii_letters if c not in text][: max(hidden, default=0)]
    if not arrow:
        once = [c for c in sorted(set(left) - set(",.")) if left.count(c) == 1]
        right = ("..." if "..." in left else "") + "".join(once)
    # the last axes of the dots meet
    spelled = [
        term.replace("...", "".join(letters[len(letters) - count :]))
        for term, count in zip(terms, hidden, strict=False)
    ]
    return spelled, right.replace("...", "".join(letters))


# fmt: off
OPERATIONS: dict[str, Operation] = {
    **SHAPES, **WINDOWS, **RESIZING,
    "Add": _entries(torch.add, 2), "Sub": _entries(torch.sub, 2),
    "Mul": _entries(torch.mul, 2), "Div": _entries(torch.div, 2),
    "Sum": _folded(torch.add), "Max": _folded(torch.maximum), "Min": _folded(torch.minimum),
    "Mean": Operation(_mean, "pointwise", tensors=-1),
    "Pow": Operation(_pow, "pointwise", tensors=2),
    "Where": _entries(_where, 3),
    **{name: _entries(function, 2, BOOL) for name, function in {
        "Equal": torch.eq, "Less": torch.lt, "Greater": torch.gt, "LessOrEqual": torch.le,
        "GreaterOrEqual": torch.ge, "And": torch.logical_and, "Or": torch.logical_or,
        "Xor": torch.logical_xor,
    }.items()},
    **{name: _entries(function) for name, function in {
        "Neg": torch.neg, "Abs": torch.abs, "Relu": torch.relu, "Tanh": torch.tanh,
        "Sigmoid": torch.sigmoid, "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt,
        "Reciprocal": torch.reciprocal, "Erf": torch.erf, "Sin": torch.sin, "Cos": torch.cos,
        "Tan": torch.tan, "Asin": torch.asin, "Acos": torch.acos, "Atan": torch.atan,
        "Sinh": torch.sinh, "Cosh": torch.cosh, "Asinh": torch.asinh, "Acosh": torch.acosh,
        "Atanh": torch.atanh, "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round,
        "Sign": torch.sign, "Softsign": functional.softsign, "Softplus": _softplus,
        "Mish": functional.mish, "HardSwish": _hard_swish, "Identity": lambda x: x,
        "Not": torch.logical_not,
    }.items()},
    "LeakyRelu": _shaped(_leaky_relu, "alpha"),
    "HardSigmoid": _shaped(_hard_sigmoid, "alpha", "beta"),
    "ThresholdedRelu": _shaped(_thresholded, "alpha"),
    "Shrink": _shaped(_shrink, "lambd", "bias"),
    "Elu": _shaped(_elu, "alpha"), "Selu": _shaped(_selu, "alpha", "gamma"),
    "Celu": _shaped(_celu, "alpha"), "Swish": _shaped(_swish, "alpha"),
    "Gelu": Operation(_gelu, "pointwise", ("approximate",)),
    "PRelu": Operation(_prelu, "pointwise", tensors=2),
    "Clip": Operation(_clip, "pointwise", ("max", "min"), (1, 2), 3),
    "Dropout": Operation(_dropout, "pointwise", ("ratio", "seed"), (1, 2), 3),
    "Cast": Operation(_cast, "pointwise", ("to", "saturate", "round_mode")),
    **{name: Operation(_reduce, "axes", ("axes", "keepdims", "noop_with_empty_axes"), (1,), 2,
                       axes=_axes) for name in REDUCTIONS},
    "Softmax": Operation(_softmax, "axes", ("axis",), axes=_softmax_axes),
    "LogSoftmax": Operation(_softmax, "axes", ("axis",), axes=_softmax_axes),
    "CumSum": Operation(_cumsum, "axes", ("exclusive", "reverse"), (1,), 2, axes=_cumsum_axis),
    "LayerNormalization": Operation(_layer_norm, "axes", ("axis", "epsilon"), tensors=3,
                                    axes=_layer_axes),
    "RMSNormalization": Operation(_rms_norm, "axes", ("axis", "epsilon"), tensors=2,
                                  axes=_layer_axes),
    "MeanVarianceNormalization": Operation(_mean_variance, "axes", ("axes",), axes=_variance_axes),
    "TopK": Operation(_top, "axes", ("axis", "k", "largest", "sorted"), (1,), 2, axes=_top_axis),
    "MatMul": Operation(_matmul, "products", tensors=2),
    "Gemm": Operation(_gemm, "products", ("alpha", "beta", "transA", "transB"), tensors=3),
    "Einsum": Operation(_einsum, "products", ("equation",), tensors=-1),
}
# fmt: on
