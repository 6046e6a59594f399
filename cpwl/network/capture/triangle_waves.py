"""Periodic triangle waves in an ATen graph.

A floor or a remainder jumps and a sine bends, but some of their compositions are continuous
piecewise linear. With t(x) = alpha x + beta + gamma floor(a x + b), the absolute value |t| is
periodic where alpha + gamma a = 0, and continuous where t jumps between -gamma/2 and gamma/2, that
is beta = gamma (1/2 - b). It is then |alpha| times the distance of x to the nearest point of
x0 + p Z, x0 = (1/2 - b)/a and p = 1/|a|. remainder(u, p) = u - p floor(u/p) and round(v), which is
floor(v + 1/2) up to ties (at which |t| is continuous), are instances; acos(cos x) is the distance
to 2 pi Z, and asin(sin x) is pi/2 minus the distance to pi/2 + 2 pi Z.

Coefficients are rational numbers here. Where period and phase are float64 numbers, the wave is one
of x. Otherwise it is one of the argument of the rounding operation, whose period is a number in the
module and whose phase is 0 or 1/2. So the breakpoints are never rounded; the height is, as any
coefficient. pi is the float64 number: the breakpoints of asin(sin x) are within 4e-17 |x| of those
with the true pi, less than x itself is rounded.
"""

from __future__ import annotations

from fractions import Fraction
from math import inf, isfinite, pi
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, Node

# Coefficients come from Python floats such as 1/3 or from float32 modules' own constants.
RELATIVE_TOLERANCE = 1e-12
_HALF = Fraction(1, 2)
_SHORTEST = 2.0**-900  # period, so that its half and its products do not underflow


class Wave(NamedTuple):
    """y = offset + scale |((x + phase) mod period) - period/2| of the node x."""

    x: Node
    period: float
    phase: float
    scale: float
    offset: float


class _Line(NamedTuple):
    """scale * node + shift."""

    node: Node
    scale: Fraction
    shift: Fraction


class _Jump(NamedTuple):
    """direct * x + constant + unit * floor(a x + b), its steps ``period`` apart in ``argument``.

    They lie where argument + phase is a multiple of the period.
    """

    x: Node
    a: Fraction
    b: Fraction
    direct: Fraction
    constant: Fraction
    unit: Fraction
    argument: Node
    period: float
    phase: float


def find_triangles(graph: Graph, constants: dict[Node, Any]) -> dict[Node, Wave]:
    """Map every node that completes a triangle wave to that wave."""
    found = {}
    for node in graph.nodes:
        if node.op != "call_function" or node in constants:
            continue
        name = _name(node)
        if name == "abs":
            wave = _distance(node.args[0], constants)
        elif name in ("asin", "acos"):
            wave = _inverse(node, name, constants)
        else:
            wave = None
        if wave is not None:
            found[node] = wave
    return found


def _name(node: Any) -> str:
    if not isinstance(node, Node) or node.op != "call_function":
        return ""
    packet = getattr(node.target, "overloadpacket", None)
    return "" if packet is None else packet.__name__


def _inverse(node: Node, name: str, constants: dict[Node, Any]) -> Wave | None:
    inner = node.args[0]
    if not isinstance(inner, Node) or inner in constants:
        return None
    x = inner.args[0] if inner.args else None
    if not isinstance(x, Node):
        return None
    if (name, _name(inner)) == ("asin", "sin"):
        return Wave(x, 2 * pi, pi / 2, -1.0, pi / 2)
    if (name, _name(inner)) == ("acos", "cos"):
        return Wave(x, 2 * pi, pi, 1.0, 0.0)
    return None


def _distance(node: Any, constants: dict[Node, Any]) -> Wave | None:
    """Match |t(x)|, t as in the module's docstring."""
    terms = _expand(node, constants)
    if terms is None:
        return None
    lines, shift = terms
    jumps = [line for line in lines if _name(line.node) in ("floor", "round", "remainder", "div")]
    jumps = [line for line in jumps if _jump(line.node, constants) is not None]
    if len(jumps) != 1:
        return None
    jump = _jump(jumps[0].node, constants)
    assert jump is not None
    x, a, b = jump[:3]
    gamma = jumps[0].scale * jump.unit
    alpha = jumps[0].scale * jump.direct
    beta = shift + jumps[0].scale * jump.constant
    for line in lines:
        if line is jumps[0]:
            continue
        # Both occurrences of x may be written as different lines through the same node.
        if line.node is not x:
            return None
        alpha += line.scale
    tolerance = Fraction(RELATIVE_TOLERANCE)
    periodic = abs(alpha + gamma * a) <= tolerance * abs(alpha)
    scale = abs(gamma) * (1 + abs(b)) + abs(beta)
    continuous = abs(beta - gamma * (_HALF - b)) <= tolerance * scale
    if alpha == 0 or not periodic or not continuous:
        return None
    period = 1 / abs(a)
    phase = period / 2 - (_HALF - b) / a
    rounded = Wave(x, _rounded(period), _rounded(phase), _rounded(abs(alpha)), 0.0)
    if rounded.period != period or rounded.phase != phase:
        height = _rounded(abs(gamma) / Fraction(jump.period))
        rounded = Wave(jump.argument, jump.period, jump.phase, height, 0.0)
    inside = _SHORTEST <= rounded.period <= 1 / _SHORTEST
    return rounded if inside and isfinite(rounded.phase) and isfinite(rounded.scale) else None


def _jump(node: Node, constants: dict[Node, Any]) -> _Jump | None:
    """Read a jumping node."""
    name = _name(node)
    if not node.args:
        return None
    argument = node.args[0]
    line = _line(argument, constants)
    if line is None or not isinstance(argument, Node):
        return None
    x, s, t = line
    none, one = Fraction(0), Fraction(1)
    if name == "floor":
        return _Jump(x, s, t, none, none, one, argument, 1.0, 0.0)
    if name == "round" and len(node.args) == 1 and not node.kwargs:
        return _Jump(x, s, t + _HALF, none, none, one, argument, 1.0, 0.5)
    divisor = _number(node.args[1], constants) if len(node.args) > 1 else None
    if divisor is None or divisor == 0:
        return None
    a, b, period = s / divisor, t / divisor, abs(float(divisor))
    if name == "remainder":
        return _Jump(x, a, b, s, t, -divisor, argument, period, 0.0)
    if name == "div" and node.kwargs.get("rounding_mode") == "floor":
        return _Jump(x, a, b, none, none, one, argument, period, 0.0)
    return None


def _expand(node: Any, constants: dict[Node, Any]) -> tuple[list[_Line], Fraction] | None:
    """Write a node as a sum of multiples of others and a number."""
    line = _line(node, constants)
    if line is None:
        return None
    inner, scale, shift = line
    if _name(inner) not in ("add", "sub"):
        return [line._replace(shift=Fraction(0))], shift
    alpha = _alpha(inner) * (1 if _name(inner) == "add" else -1)
    lines, total = [], shift
    for term, factor in zip(inner.args, (Fraction(1), alpha), strict=True):
        part = _expand(term, constants)
        if part is None:
            return None
        lines += [line._replace(scale=line.scale * factor * scale) for line in part[0]]
        total += part[1] * factor * scale
    return lines, total


def _line(node: Any, constants: dict[Node, Any]) -> _Line | None:
    """Peel multiplications by numbers and additions of numbers off a node."""
    if not isinstance(node, Node) or node in constants:
        return None
    name = _name(node)
    if name in ("clone", "alias", "detach", "_to_copy"):
        return _line(node.args[0], constants)
    if name == "neg":
        inner = _line(node.args[0], constants)
        return None if inner is None else _Line(inner.node, -inner.scale, -inner.shift)
    if name not in ("add", "sub", "mul", "div") or len(node.args) < 2:
        return _Line(node, Fraction(1), Fraction(0))
    left, right = (_number(value, constants) for value in node.args[:2])
    alpha = _alpha(node)
    plain = node.kwargs.get("rounding_mode") is None
    if right is not None:
        inner = _line(node.args[0], constants)
        if inner is None:
            return None
        x, s, t = inner
        if name == "add":
            return _Line(x, s, t + alpha * right)
        if name == "sub":
            return _Line(x, s, t - alpha * right)
        if name == "mul":
            return _Line(x, s * right, t * right)
        if plain and right != 0:
            return _Line(x, s / right, t / right)
    elif left is not None:
        inner = _line(node.args[1], constants)
        if inner is None:
            return None
        x, s, t = inner
        if name == "add":
            return _Line(x, alpha * s, left + alpha * t)
        if name == "sub":
            return _Line(x, -alpha * s, left - alpha * t)
        if name == "mul":
            return _Line(x, s * left, t * left)
    return _Line(node, Fraction(1), Fraction(0))


def _alpha(node: Node) -> Fraction:
    alpha = node.kwargs.get("alpha", 1)
    assert isinstance(alpha, (int, float))
    return Fraction(alpha)


def _number(value: Any, constants: dict[Node, Any]) -> Fraction | None:
    if isinstance(value, Node):
        value = constants.get(value)
    if isinstance(value, Tensor) and value.numel() == 1 and value.dtype != torch.bool:
        value = float(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value):
        return Fraction(float(value))
    return None


def _rounded(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return inf
