"""Tensors that are functions of one tensor, entry by entry: conditions, scalings, repeated units.

`where(x > 0, x, 0.1 * x)` bends where x is zero, `where(x > 0, x, x)` does not, and `where(x > 0,
1, x)` jumps there. All three are compositions of pointwise operations of one tensor x, their
*root*: on both sides of the knot, the composition tells which one it is. Units whose knots lie at
the same value of the same root are one and the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from approx.complexity.tangents import Tangents, operation_name
from approx.devices import widened, widest

__all__ = ["CONDITIONS", "Condition", "Knot", "Made", "Pointwise", "alike", "scaling", "sides"]

# of all entries, or one that broadcasts
Knot = float | Tensor

# piecewise constant with one knot: their tangents are zero
CONDITIONS = frozenset(["gt", "ge", "lt", "le", "eq", "ne", "sign", "sgn", "heaviside", "signbit"])

# copies, which are pointwise and which torch does not tag as such
_COPIES = frozenset(["to_copy", "clone", "detach", "alias", "lift_fresh"])


class Root:
    """A tensor as the argument of pointwise functions: it may be gone when they are looked at."""

    def __init__(self) -> None:
        self._counted: list[Knot] = []

    def count(self, knot: Knot) -> bool:
        """Tell whether a knot is a new one, and remember it."""
        if any(alike(knot, other) for other in self._counted):
            return False
        self._counted.append(knot)
        return True


@dataclass(eq=False)
class Condition:
    """A comparison of x with a knot, until it is known to be part of a continuous function."""

    label: str
    x: Tensor
    version: int
    # where x has its knot, and the root has it
    at: Knot
    knot: Knot | None
    settled: bool = False


@dataclass(frozen=True, eq=False)
class Made:
    """What is known of a tensor that is a pointwise function of its root.

    Attributes
    ----------
    compute : callable
        The function, for values of the root of any shape that its constants broadcast with.
    affine : tuple of Knot or None
        (a, b) of a root + b.
    sigmoid : tuple of Knot or None
        (a, b) of sigmoid(a root + b).
    conditions : tuple of Condition
        Of a tensor that is constant but for these.
    """

    root: Root
    compute: Callable[[Tensor], Any]
    affine: tuple[Knot, Knot] | None = None
    sigmoid: tuple[Knot, Knot] | None = None
    conditions: tuple[Condition, ...] = ()

    def knot(self, at: Knot) -> Knot | None:
        """Return the root's value where this tensor's is `at`, or None if nobody knows."""
        if self.affine is None or _zero(self.affine[0]):
            return None
        scale, shift = self.affine
        if _zero(shift) and isinstance(scale, float) and scale == 1:
            return at
        return (at - shift) / scale


class Pointwise:
    """Records of the tensors alive that are pointwise functions of others."""

    def __init__(self, tangents: Tangents) -> None:
        self._tangents = tangents
        self._made = WeakTensorKeyDictionary()

    def __call__(self, x: Any) -> Made | None:
        """Return the record of a tensor that depends on the latents, its own root by default."""
        if not isinstance(x, Tensor):
            return None
        made, version = self._made.get(x) or (None, 0)
        if made is not None and version == self._tangents.writes(x):
            return made
        if not self._tangents.moves(x):
            return None
        return self.remember(x, Made(Root(), lambda value: value, (1.0, 0.0)))

    def remember(self, x: Tensor, made: Made) -> Made:
        """Keep a record until x is written into."""
        self._made[x] = (made, self._tangents.writes(x))
        return made

    def of_arguments(self, func: Any, args: Any, kwargs: Any) -> list[Made]:
        """Return the records of a pointwise operation's arguments."""
        if _pure(func, args) is None:
            return []
        found = map(self, tree_leaves((args, kwargs)))
        return [made for made in found if made is not None]

    def combine(self, func: Any, args: Any, kwargs: Any, moves: bool) -> Made | None:
        """Return the record of the result of a pointwise operation of one root, or None."""
        found = self.of_arguments(func, args, kwargs)
        if not found or len({made.root for made in found}) > 1:
            return None
        name, pure = operation_name(func), _pure(func, args)
        assert pure is not None
        given = tree_map_only(Tensor, lambda x: self(x) or x, (args, kwargs))
        conditions = () if moves else dict.fromkeys(c for made in found for c in made.conditions)

        def compute(value: Tensor) -> Any:
            at, named = tree_map_only(Made, lambda made: made.compute(value), given)
            return pure(*at, **named)

        return Made(
            found[0].root,
            compute,
            _affine(name, *given),
            _sigmoid(name, given[0]),
            tuple(conditions),
        )


def sides(made: Made, knot: Knot) -> tuple[Tensor, Tensor, float | None] | None:
    """Look at a function on both sides of a knot: (jumps, bends, level).

    Two tensors of truth values, one for each entry that differs (a channel, say), and the value
    there of a function that is flat on one side. None where it cannot be told.
    """
    try:
        at = widened(torch.as_tensor(knot).detach())
        step = 1e-4 * (1 + at.abs())
        values = [made.compute(at + k * step) for k in (-2, -1, 1, 2)]
        far_left, left, right, far_right = (widened(torch.as_tensor(v)) for v in values)
    except (RuntimeError, TypeError):  # an operation that no number, or no float64, will do for
        return None
    before, after = (left - far_left) / step, (far_right - right) / step
    steepness = torch.maximum(before.abs(), after.abs())
    here = 2 * left - far_left
    # curved pieces are extrapolated to the knot: an error of the second order in the step
    jumps = (2 * right - far_right - here).abs() > 1e-2 * step * steepness + 1e-12
    bends = (after - before).abs() > 1e-3 * steepness
    flat = bool(((before == 0) | (after == 0)).all()) and bool((here == here.flatten()[0]).all())
    return jumps, bends, float(here.flatten()[0]) if flat else None


def scaling(func: Any, args: Any, kwargs: Any, x: Tensor) -> tuple[float, float] | None:
    """Return (a, b) of an operation that computes a x + b with two numbers, or None."""
    alone = Made(Root(), lambda value: value, (1.0, 0.0))
    swapped = tree_map_only(Tensor, lambda y: alone if y is x else y, (args, kwargs))
    scale, shift = _affine(operation_name(func), *swapped) or (None, None)
    return (scale, shift) if isinstance(scale, float) and isinstance(shift, float) else None


def alike(knot: Knot, other: Knot) -> bool:
    """Tell whether two knots are the same, entry by entry."""
    if isinstance(knot, Tensor) and isinstance(other, Tensor):
        if knot is other:
            return True
        same = knot.shape == other.shape and knot.device == other.device
        return same and knot.dtype == other.dtype and bool((knot == other).all())
    return isinstance(knot, float) and isinstance(other, float) and knot == other


def _pure(func: Any, args: Any) -> Callable[..., Any] | None:
    """Return a pointwise operation without effects, or None if it is not pointwise."""
    name = operation_name(func)
    if name in _COPIES:
        return _copied
    if name == "prelu_kernel":
        return lambda x, weight: torch.where(x > 0, x, weight * x)
    if name == "index_put" and _masks(args):
        return lambda x, mask, value, *_: torch.where(mask[0], value, x)
    if torch.Tag.pointwise in func.tags and not func._schema.is_mutable:
        return func
    if func._schema.is_mutable and func.overloadpacket.__name__ == f"{name}_":
        pure = getattr(getattr(torch.ops.aten, name, None), func._overloadname, None)
        return pure if pure is not None and torch.Tag.pointwise in pure.tags else None
    return None


def _masks(args: Any) -> bool:
    """Tell whether x[mask] = value writes one value."""
    x, indices, value = args[:3]
    one = len(indices) == 1 and indices[0] is not None and indices[0].dtype == torch.bool
    return one and indices[0].shape == x.shape and value.numel() == 1


def _copied(x: Any, *_: Any, dtype: torch.dtype | None = None, **__: Any) -> Any:
    # truth values become numbers; numbers stay in float64
    return x.to(widest(x.device)) if dtype is not None and not x.is_floating_point() else x


def _number(x: Any) -> Knot | None:
    if isinstance(x, Tensor):
        if x.is_complex() or x.dtype == torch.bool:
            return None
        return float(x) if x.ndim == 0 and x.device.type == "cpu" else x
    return float(x) if isinstance(x, int | float) else None


def _zero(x: Knot) -> bool:
    return isinstance(x, float) and x == 0


def _affine(name: str, args: Any, kwargs: Any) -> tuple[Knot, Knot] | None:
    """Return (a, b) of a root + b, given what is known of the arguments."""
    if not args:
        return None
    terms = [_term(x) for x in args[:2]]
    if terms[0] is None:
        return None
    (a, b), other = terms[0], terms[1] if len(terms) > 1 else None
    if name in _COPIES:
        return (a, b)
    if name == "neg":
        return (-a, -b)
    if other is None:
        return None
    c, d = other
    alpha = float(kwargs.get("alpha", 1))
    if name in ("add", "sub"):
        alpha = alpha if name == "add" else -alpha
        return (a + alpha * c, b + alpha * d)
    if name == "rsub":
        return (c - alpha * a, d - alpha * b)
    if name == "mul" and (_zero(a) or _zero(c)):
        return (a * d if _zero(c) else c * b, b * d)
    if name == "div" and _zero(c) and not _zero(d) and "rounding_mode" not in kwargs:
        return (a / d, b / d)
    return None


class _Term(NamedTuple):
    scale: Knot
    shift: Knot


def _term(x: Any) -> _Term | None:
    if isinstance(x, Made):
        return None if x.affine is None else _Term(*x.affine)
    number = _number(x)
    return None if number is None else _Term(0.0, number)


def _sigmoid(name: str, args: Any) -> tuple[Knot, Knot] | None:
    """Return (a, b) of sigmoid(a root + b)."""
    if name not in ("sigmoid", "special_expit") or not isinstance(args[0], Made):
        return None
    return args[0].affine
