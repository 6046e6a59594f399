"""Periodic triangle waves in an ATen graph.

A floor or a remainder jumps and a sine bends, but some of their compositions are continuous
piecewise linear. With t(x) = alpha x + beta + gamma floor(a x + b), the absolute value |t| is
periodic where alpha + gamma a = 0, and continuous where t jumps between -gamma/2 and gamma/2, that
is beta = gamma (1/2 - b). It is then |alpha| times the distance of x to the nearest point of
x0 + p Z, x0 = (1/2 - b)/a and p = 1/|a|. remainder(u, p) = u - p floor(u/p) and round(v), which is
floor(v + 1/2) up to ties (at which |t| is continuous), are instances; acos(cos x) is the distance
to 2 pi Z, and asin(sin x) is pi/2 minus the distance to pi/2 + 2 pi Z.
"""

from __future__ import annotations

from math import isclose, pi
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, Node

# Coefficients come from Python floats such as 1/3 or from float32 modules' own constants.
RELATIVE_TOLERANCE = 1e-12


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
    scale: float
    shift: float


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
    x, a, b, direct, constant, unit = jump
    gamma = jumps[0].scale * unit
    alpha = jumps[0].scale * direct
    beta = shift + jumps[0].scale * constant
    for line in lines:
        if line is jumps[0]:
            continue
        # Both occurrences of x may be written as different lines through the same node.
        if line.node is not x:
            return None
        alpha += line.scale
    tolerance = RELATIVE_TOLERANCE
    periodic = isclose(alpha, -gamma * a, rel_tol=tolerance)
    scale = abs(gamma) * (1 + abs(b)) + abs(beta)
    continuous = abs(beta - gamma * (0.5 - b)) <= tolerance * scale
    if alpha == 0 or not periodic or not continuous:
        return None
    period = 1 / abs(a)
    return Wave(x, period, period / 2 - (0.5 - b) / a, abs(alpha), 0.0)


def _jump(
    node: Node, constants: dict[Node, Any]
) -> tuple[Node, float, float, float, float, float] | None:
    """Write a jumping node as (x, a, b, direct, constant, unit).

    Its value is direct * x + constant + unit * floor(a x + b).
    """
    name = _name(node)
    if not node.args:
        return None
    line = _line(node.args[0], constants)
    if line is None:
        return None
    x, s, t = line
    if name == "floor":
        return x, s, t, 0.0, 0.0, 1.0
    if name == "round" and len(node.args) == 1 and not node.kwargs:
        return x, s, t + 0.5, 0.0, 0.0, 1.0
    divisor = _number(node.args[1], constants) if len(node.args) > 1 else None
    if divisor is None or divisor == 0:
        return None
    if name == "remainder":
        return x, s / divisor, t / divisor, s, t, -divisor
    if name == "div" and node.kwargs.get("rounding_mode") == "floor":
        return x, s / divisor, t / divisor, 0.0, 0.0, 1.0
    return None


def _expand(node: Any, constants: dict[Node, Any]) -> tuple[list[_Line], float] | None:
    """Write a node as a sum of multiples of others and a number."""
    line = _line(node, constants)
    if line is None:
        return None
    inner, scale, shift = line
    if _name(inner) not in ("add", "sub"):
        return [line._replace(shift=0.0)], shift
    alpha = _alpha(inner) * (1 if _name(inner) == "add" else -1)
    lines, total = [], shift
    for term, factor in zip(inner.args, (1.0, alpha), strict=True):
        part = _expand(term, constants)
        if part is None:
            return None
        lines += [_Line(sub.node, sub.scale * factor * scale, 0.0) for sub in part[0]]
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
        return _Line(node, 1.0, 0.0)
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
    return _Line(node, 1.0, 0.0)


def _alpha(node: Node) -> float:
    alpha = node.kwargs.get("alpha", 1)
    assert isinstance(alpha, (int, float))
    return float(alpha)


def _number(value: Any, constants: dict[Node, Any]) -> float | None:
    if isinstance(value, Node):
        value = constants.get(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, Tensor) and value.numel() == 1 and value.dtype != torch.bool:
        return float(value)
    return None
