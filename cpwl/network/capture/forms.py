"""Expressions with conditions, entry by entry, in rational arithmetic.

A `Form` is affine in the entries of some graph nodes: constant + sum of coefficient * node, where
coefficients are exact rationals, one or one an entry. A tree chooses between forms by the sign of
other forms. `flatten` lays a tree out along one switching value and proves that it is continuous:
next to a breakpoint u = t both forms differ by a multiple of u - t.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

# Constant tensors with more entries are not put into rational numbers.
MOST_ENTRIES = 2**14
MOST_LEAVES = 64


class Unproven(Exception):  # noqa: N818 - a verdict, not an error
    """Carries why an expression with conditions cannot be shown to be continuous."""


@dataclass(frozen=True, eq=False)
class Form:
    """constant + sum of coefficient * node; `node`, where known, is a graph node of this value."""

    terms: Mapping[Node, Any]
    constant: Any = Fraction(0)
    node: Any = field(default=None, repr=False)


class Choice(NamedTuple):
    """`yes` where the form is positive (kind "gt") or zero (kind "eq"), `no` elsewhere.

    `sides` are the two forms whose difference the form is.
    """

    form: Form
    sides: tuple[Form, Form]
    kind: str
    yes: Tree
    no: Tree


Tree = Form | Choice


class Layout(NamedTuple):
    """Forms in ascending order of a switching value; form k + 1 begins at knot k.

    `gains[k]` times the k-th switching form, which grows with the value and is zero at the knot, is
    what form k + 1 has over form k; `sides[k]` are that form's sides.
    """

    pieces: tuple[Form, ...]
    knots: tuple[Any, ...]
    gains: tuple[Any, ...]
    forms: tuple[Form, ...]
    sides: tuple[tuple[Form, Form], ...]


def exact(value: Any) -> Any:
    """Return a number or constant tensor as rationals."""
    whole = torch.as_tensor(value)
    if not 0 < whole.numel() <= MOST_ENTRIES or not bool(torch.isfinite(whole).all()):
        raise Unproven("a constant in it is empty, infinite or too large")
    if not isinstance(value, Tensor):
        return Fraction(value)
    listed = [Fraction(v) for v in value.flatten().tolist()]
    if value.ndim == 0 or (len(set(listed)) == 1 and value.ndim <= 1):
        return listed[0]
    array = np.empty(len(listed), object)
    array[:] = listed
    return array.reshape(tuple(value.shape))


def everywhere(condition: Any) -> bool:
    """Whether a condition holds at every entry."""
    return bool(np.all(condition))


def add(a: Form, b: Form, factor: Any = Fraction(1)) -> Form:
    """Return a + factor * b."""
    terms = dict(a.terms)
    for node, coefficient in b.terms.items():
        terms[node] = terms.get(node, Fraction(0)) + factor * coefficient
    terms = {node: c for node, c in terms.items() if not everywhere(c == 0)}
    if not b.terms and everywhere(b.constant == 0):
        return a
    return Form(terms, a.constant + factor * b.constant)


def scale(a: Form, factor: Any) -> Form:
    """Return factor * a."""
    if everywhere(factor == 1):
        return a
    return add(Form({}), Form(a.terms, a.constant), factor)


def multiple(a: Form, b: Form) -> Any:
    """Return the k of a = k * b, None if there is none."""
    if not a.terms and everywhere(a.constant == 0):
        return Fraction(0)
    if not b.terms:
        return None
    node, coefficient = next(iter(b.terms.items()))
    if not everywhere(coefficient != 0):
        return None
    k = a.terms.get(node, Fraction(0)) / coefficient
    rest = add(a, b, -k)
    return k if not rest.terms and everywhere(rest.constant == 0) else None


def relation(a: Form, b: Form) -> tuple[Any, Any] | None:
    """(k, c) with a = k * b + c, k of one sign everywhere, or None."""
    k = multiple(Form(a.terms), Form(b.terms))
    if k is None or not (everywhere(k > 0) or everywhere(k < 0)):
        return None
    return k, a.constant - k * b.constant


def combine(operation: Callable[[Form, Form], Form], a: Tree, b: Tree) -> Tree:
    """Apply an operation of two forms to every pair of leaves that can meet."""
    if isinstance(a, Form) and isinstance(b, Form):
        return operation(a, b)
    first, second = (a, b) if isinstance(a, Choice) else (b, a)
    assert isinstance(first, Choice)

    def both(branch: Tree, taken: bool) -> Tree:
        other = assume(second, first, taken)
        pair = (branch, other) if isinstance(a, Choice) else (other, branch)
        return combine(operation, *pair)

    made = first._replace(yes=both(first.yes, True), no=both(first.no, False))
    if _leaves(made) > MOST_LEAVES:
        raise Unproven("it has too many conditions")
    return made


def transform(operation: Callable[[Form], Tree], a: Tree) -> Tree:
    """Apply an operation of one form to every leaf."""
    if isinstance(a, Form):
        return operation(a)
    return a._replace(yes=transform(operation, a.yes), no=transform(operation, a.no))


def assume(tree: Tree, known: Choice, taken: bool) -> Tree:
    """Prune a tree where the branch of a condition is known."""
    if isinstance(tree, Form):
        return tree
    k = multiple(tree.form, known.form)
    if k is not None and everywhere(k != 0):
        if tree.kind == known.kind and (tree.kind == "eq" or everywhere(k > 0)):
            return assume(tree.yes if taken else tree.no, known, taken)
        if tree.kind != known.kind and taken:  # zero is not positive
            return assume(tree.no, known, taken)
    return tree._replace(yes=assume(tree.yes, known, taken), no=assume(tree.no, known, taken))


def _leaves(tree: Tree) -> int:
    return 1 if isinstance(tree, Form) else _leaves(tree.yes) + _leaves(tree.no)


def flatten(tree: Tree) -> Layout:
    """Lay a tree out along one switching value, and prove that it is continuous.

    Raises
    ------
    Unproven
        Saying where it jumps, or why that is not known.
    """
    if isinstance(tree, Form):
        return Layout((tree,), (), (), (), ())
    u = tree.form
    found = _intervals(tree, u, None, None)
    pieces: list[Form] = [found[0].leaf]
    knots: list[Any] = []
    gains: list[Any] = []
    forms: list[Form] = []
    sides: list[tuple[Form, Form]] = []
    for interval in found[1:]:
        step = add(interval.leaf, pieces[-1], Fraction(-1))
        if not step.terms and everywhere(step.constant == 0):
            continue
        assert interval.start is not None
        assert interval.switch is not None
        gain = multiple(step, interval.switch)
        if gain is None:
            raise Unproven(_jump(step, interval.switch))
        pieces.append(interval.leaf)
        knots.append(interval.start)
        gains.append(gain)
        forms.append(interval.switch)
        sides.append(interval.sides)
    return Layout(tuple(pieces), tuple(knots), tuple(gains), tuple(forms), tuple(sides))


class _Interval(NamedTuple):
    """A leaf from `start` on; `switch`, growing with the value, is zero there."""

    leaf: Form
    start: Any
    switch: Form | None
    sides: Any


def _intervals(tree: Tree, u: Form, low: Any, high: Any) -> list[_Interval]:
    if isinstance(tree, Form):
        return [_Interval(tree, low, None, None)]
    related = relation(tree.form, u)
    if related is None:
        raise Unproven("its conditions compare unrelated values")
    k, c = related
    t = -c / k
    if tree.kind == "eq":
        found = _intervals(tree.no, u, low, high)
        if (low is None or not everywhere(t < low)) and (high is None or not everywhere(t > high)):
            _check_point(tree, u, t, found)
        return found
    rising = everywhere(k > 0)
    above, below = (tree.yes, tree.no) if rising else (tree.no, tree.yes)
    if low is not None and everywhere(t <= low):
        return _intervals(above, u, low, high)
    if high is not None and everywhere(t >= high):
        return _intervals(below, u, low, high)
    if not (low is None or everywhere(t > low)) or not (high is None or everywhere(t < high)):
        raise Unproven("the order of its breakpoints differs from entry to entry")
    form = tree.form if rising else scale(tree.form, Fraction(-1))
    sides = tree.sides if rising else tree.sides[::-1]
    upper = _intervals(above, u, t, high)
    upper[0] = upper[0]._replace(switch=form, sides=sides)
    return _intervals(below, u, low, t) + upper


def _check_point(tree: Choice, u: Form, t: Any, found: list[_Interval]) -> None:
    """Check that what is taken at a single point is what both sides tend to."""
    if not isinstance(tree.yes, Form):
        raise Unproven("it has conditions within an equality")
    starts = [interval.start for interval in found[1:]]
    for k, interval in enumerate(found):
        after = k == 0 or everywhere(starts[k - 1] <= t)
        before = k == len(starts) or everywhere(starts[k] >= t)
        if after and before:
            step = add(tree.yes, interval.leaf, Fraction(-1))
            at = Form(u.terms, u.constant - (u.constant * 0 + t))
            if multiple(step, at) is None:
                raise Unproven(_jump(step, at))


def _jump(step: Form, switch: Form) -> str:
    """Where it jumps, and by how much, as far as that is one number."""
    where = "where the two sides of its condition are equal"
    k = multiple(Form(step.terms), Form(switch.terms))
    if k is None:
        return f"it jumps {where}, since the branches differ there by what depends on the input"
    height = np.max(np.abs(step.constant - k * switch.constant))
    return f"it jumps by {float(height):.3g} {where}"
