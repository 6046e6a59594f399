"""Conditions in an ATen graph that choose between pieces of a continuous function.

where(x > 0, x, a x), x * (x > 0), masked_fill(x < 0, 0), sign(x) * x and their like are read as
trees of forms (`cpwl.network.capture.forms`). A node whose tree is continuous, proven in rational
arithmetic, is replaced by the same function without conditions: a piecewise-linear function of one
value, a maximum or minimum, or a sum of ReLUs. All others stay, to be refused.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph, Node

from cpwl.network.capture.forms import (
    Choice,
    Form,
    Layout,
    Tree,
    Unproven,
    add,
    combine,
    everywhere,
    exact,
    flatten,
    scale,
    transform,
)
from cpwl.network.capture.fx_nodes import (
    SKIPPED,
    example_shape,
    has_batch,
    packet_name,
    single_shape,
)
from cpwl.network.program import Pointwise

aten = torch.ops.aten
COMPARISONS = frozenset(["gt", "lt", "ge", "le", "eq", "ne", "sign", "sgn"])
BENDS = ("relu", "abs", "maximum", "minimum", "clamp", "clamp_min", "clamp_max")
FILLED = {"zeros_like": 0, "ones_like": 1, "full_like": None}
ONE, ZERO = Form({}, Fraction(1)), Form({}, Fraction(0))


def has_conditions(graph: Graph, constants: dict[Node, Any]) -> bool:
    """Whether anything that depends on the input is compared."""
    return any(
        node.op == "call_function"
        and node not in constants
        and packet_name(node.target) in COMPARISONS
        for node in graph.nodes
    )


def replace_conditions(graph: Graph, constants: dict[Node, Any]) -> dict[Node, str]:
    """Replace what is continuous; of the conditions that stay, say why they do.

    Parameters
    ----------
    graph : Graph
        Changed in place.
    constants : dict
        Folded nodes; those of new constants are added.
    """
    reader = _Reader(constants)
    reasons: dict[Node, str] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or node in constants:
            continue
        if packet_name(node.target) in SKIPPED:
            continue
        pending = [n for n in node.all_input_nodes if n in reader.pending]
        if packet_name(node.target) not in COMPARISONS and not pending:
            continue
        roots = [root for n in pending for root in reader.pending[n]]
        roots = roots or [node]
        try:
            new = _replaced(graph, node, reader)
        except Unproven as verdict:
            for root in roots if node not in roots else ():
                reasons.setdefault(root, str(verdict))
            if node in reader.trees:
                reader.pending[node] = roots
            continue
        node.replace_all_uses_with(new)
        reader.replaced(node, new)
    return reasons


def _replaced(graph: Graph, node: Node, reader: _Reader) -> Node:
    """Write a node without conditions, or raise Unproven."""
    tree = reader.trees[node] = reader.expand(node, deep=True)
    if isinstance(node.meta["val"], Tensor) and node.meta["val"].dtype == torch.bool:
        raise Unproven("it is a condition that chooses nothing")
    try:
        layout = flatten(tree)
    except Unproven as verdict:
        try:
            layout = flatten(reader.expand(node, deep=False))
        except Unproven:
            raise verdict from None
    return _Writer(graph, node, reader.constants).write(layout)


class _Reader:
    """Trees of nodes, entry by entry."""

    def __init__(self, constants: dict[Node, Any]) -> None:
        self.constants = constants
        # Nodes whose value jumps, with the comparisons that it comes from.
        self.pending: dict[Node, list[Node]] = {}
        self.trees: dict[Node, Tree] = {}
        self._first: dict[Any, Node] = {}
        self._same: dict[Node, Node] = {}

    def first(self, node: Node) -> Node:
        """Return the first node that computes the same as this one, such as a slice."""
        if node not in self._same:
            key = (node.target, _hashable(self, node.args), _hashable(self, node.kwargs))
            self._same[node] = (
                node if node.op != "call_function" else self._first.setdefault(key, node)
            )
        return self._same[node]

    def replaced(self, old: Node, new: Node) -> None:
        """Keep the tree of a node that was written anew."""
        self.trees[new] = self.trees.pop(old)

    def read(self, value: Any, *, deep: bool) -> Tree:
        """Tree of an argument; with `deep`, of continuous nodes too, which else are atoms."""
        if not isinstance(value, Node):
            if not isinstance(value, (int, float)):
                raise Unproven("it has an argument that is no number")
            return Form({}, exact(value), value)
        if value in self.constants:
            return Form({}, exact(self.constants[value]), value)
        if value in self.trees and (deep or value in self.pending):
            return self.trees[value]
        bent = packet_name(value.target) in BENDS and not any(
            n in self.pending for n in value.all_input_nodes
        )
        if value in self.trees or (bent and not deep):
            return self._atom(value)
        return self.expand(value, deep=deep)

    def expand(self, value: Node, *, deep: bool) -> Tree:
        """Tree of a node from those of its arguments."""
        rule = RULES.get(packet_name(value.target)) if value.op == "call_function" else None
        if rule is None:
            return self._atom(value)
        tree = rule(self, value, deep)
        if isinstance(tree, Form):
            return Form(tree.terms, tree.constant, value) if tree.terms else tree
        return tree

    def _atom(self, node: Node) -> Form:
        value = node.meta.get("val")
        if any(n in self.pending for n in node.all_input_nodes):
            raise Unproven(f"{packet_name(node.target)} reads a value that jumps")
        if not isinstance(value, Tensor) or not value.is_floating_point() or not has_batch(node):
            raise Unproven("it has an operand that is not understood")
        node = self.first(node)
        return Form({node: Fraction(1)}, Fraction(0), node)

    def arguments(self, node: Node, deep: bool, count: int = 2) -> list[Tree]:
        """Trees of the first arguments."""
        return [self.read(arg, deep=deep) for arg in node.args[:count]]


def _hashable(reader: _Reader, value: Any) -> Any:
    if isinstance(value, Node):
        return reader.first(value)
    if isinstance(value, (list, tuple)):
        return tuple(_hashable(reader, item) for item in value)
    if isinstance(value, dict):
        return tuple((key, _hashable(reader, item)) for key, item in value.items())
    return (type(value), value)


def _above(a: Tree, b: Tree, kind: str = "gt") -> Tree:
    """One where a > b (or a == b), else zero."""

    def compare(first: Form, second: Form) -> Tree:
        form = add(first, second, Fraction(-1))
        if form.terms:
            return Choice(form, (first, second), kind, ONE, ZERO)
        holds = form.constant > 0 if kind == "gt" else form.constant == 0
        return Form({}, exact(torch.as_tensor(np.asarray(holds, float))))

    return combine(compare, a, b)  # type: ignore[arg-type]


def _comparison(name: str) -> Callable[[_Reader, Node, bool], Tree]:
    def rule(reader: _Reader, node: Node, deep: bool) -> Tree:
        a, b = reader.arguments(node, deep)
        if name in ("lt", "ge"):
            a, b = b, a
        mask = _above(a, b, "eq" if name in ("eq", "ne") else "gt")
        return _opposite(mask) if name in ("ge", "le", "ne") else mask

    return rule


def _opposite(mask: Tree) -> Tree:
    return transform(lambda leaf: add(ONE, leaf, Fraction(-1)), mask)


def _sign(reader: _Reader, node: Node, deep: bool) -> Tree:
    (a,) = reader.arguments(node, deep, 1)
    minus = Form({}, Fraction(-1))

    def sign(leaf: Form) -> Tree:
        if not leaf.terms:
            return Form({}, np.sign(leaf.constant) + Fraction(0))
        inner = Choice(leaf, (leaf, ZERO), "gt", ONE, minus)
        return Choice(leaf, (leaf, ZERO), "eq", ZERO, inner)

    return transform(sign, a)


def _times(a: Form, b: Form) -> Form:
    if a.terms and b.terms:
        raise Unproven("it multiplies two values that depend on the input")
    return scale(b, a.constant) if not a.terms else scale(a, b.constant)


def _product(reader: _Reader, node: Node, deep: bool) -> Tree:
    a, b = reader.arguments(node, deep)
    return combine(_times, a, b)


def _quotient(reader: _Reader, node: Node, deep: bool) -> Tree:
    a, b = reader.arguments(node, deep)
    if node.kwargs.get("rounding_mode") is not None or not isinstance(b, Form) or b.terms:
        raise Unproven("it divides by what depends on the input")
    divisor = b.constant
    if everywhere(divisor == 0):
        raise Unproven("it divides by zero")
    # A matrix entry of this step is 1 / divisor in float64.
    inverse = 1 / np.asarray(divisor, float)
    return transform(lambda leaf: scale(leaf, exact(torch.as_tensor(inverse))), a)


def _sum(reader: _Reader, node: Node, deep: bool) -> Tree:
    a, b = reader.arguments(node, deep)
    alpha = exact(node.kwargs.get("alpha", 1))
    name = packet_name(node.target)
    if name == "rsub":
        a, b = b, a
    factor = alpha if name == "add" else -alpha
    if everywhere(factor == 1):
        return combine(lambda x, y: add(x, y) if x.terms or y.constant else add(y, x), a, b)
    return combine(lambda x, y: add(x, y, factor), a, b)


def _negative(reader: _Reader, node: Node, deep: bool) -> Tree:
    return transform(lambda leaf: scale(leaf, Fraction(-1)), reader.arguments(node, deep, 1)[0])


def _same(reader: _Reader, node: Node, deep: bool) -> Tree:
    dtype = node.kwargs.get("dtype")
    if isinstance(dtype, torch.dtype) and not dtype.is_floating_point and dtype != torch.bool:
        source = node.args[0]
        assert isinstance(source, Node)
        if source.meta["val"].is_floating_point():
            raise Unproven(f"it rounds to {dtype}")
    return reader.arguments(node, deep, 1)[0]


def _chosen(mask: Tree, yes: Tree, no: Tree) -> Tree:
    def pick(m: Form, branch: Form) -> Form:
        return branch if everywhere(m.constant == 1) else scale(branch, m.constant)

    def join(a: Form, b: Form) -> Form:
        return b if not a.terms and everywhere(a.constant == 0) else add(a, b)

    return combine(join, combine(pick, mask, yes), combine(pick, _opposite(mask), no))


def _where(reader: _Reader, node: Node, deep: bool) -> Tree:
    mask, yes, no = reader.arguments(node, deep, 3)
    return _chosen(mask, yes, no)


def _masked_fill(reader: _Reader, node: Node, deep: bool) -> Tree:
    x, mask, value = reader.arguments(node, deep, 3)
    return _chosen(mask, value, x)


def _index_put(reader: _Reader, node: Node, deep: bool) -> Tree:
    source, places, value = node.args[:3]
    assert isinstance(source, Node)
    assert isinstance(places, (list, tuple))
    mask = places[0]
    whole = (
        len(places) == 1
        and isinstance(mask, Node)
        and mask.meta["val"].dtype == torch.bool
        and mask.meta["val"].ndim == source.meta["val"].ndim
        and not (len(node.args) > 3 and node.args[3])
    )
    filled = reader.read(value, deep=deep) if whole else ZERO
    if not whole or not isinstance(filled, Form) or isinstance(filled.constant, np.ndarray):
        raise Unproven("where it writes depends on the input")
    return _chosen(reader.read(mask, deep=deep), filled, reader.read(source, deep=deep))


def _not(reader: _Reader, node: Node, deep: bool) -> Tree:
    return _opposite(reader.arguments(node, deep, 1)[0])


def _and(reader: _Reader, node: Node, deep: bool) -> Tree:
    return combine(_times, *reader.arguments(node, deep))


def _or(reader: _Reader, node: Node, deep: bool) -> Tree:
    a, b = reader.arguments(node, deep)
    return _opposite(combine(_times, _opposite(a), _opposite(b)))


def _filled(reader: _Reader, node: Node, deep: bool) -> Tree:
    value = FILLED[packet_name(node.target)]
    return reader.read(node.args[1] if value is None else value, deep=deep)


def _larger(a: Tree, b: Tree) -> Tree:
    return _chosen(_above(a, b), a, b)


def _clamp(reader: _Reader, node: Node, deep: bool) -> Tree:
    x = reader.arguments(node, deep, 1)[0]
    name = packet_name(node.target)
    if name == "relu":
        return _larger(x, ZERO)
    if name == "abs":
        return _larger(x, transform(lambda leaf: scale(leaf, Fraction(-1)), x))
    if name == "maximum":
        return _larger(*reader.arguments(node, deep))
    if name == "minimum":
        a, b = reader.arguments(node, deep)
        return _chosen(_above(a, b), b, a)
    low = node.args[1] if len(node.args) > 1 else node.kwargs.get("min")
    high = node.args[2] if len(node.args) > 2 else node.kwargs.get("max")
    if name == "clamp_max":
        low, high = None, low
    if low is not None:
        x = _larger(x, reader.read(low, deep=deep))
    if high is not None:
        top = reader.read(high, deep=deep)
        x = _chosen(_above(x, top), top, x)
    return x


RULES: dict[str, Callable[[_Reader, Node, bool], Tree]] = {
    **{name: _comparison(name) for name in ("gt", "lt", "ge", "le", "eq", "ne")},
    **dict.fromkeys(("sign", "sgn"), _sign),
    "mul": _product,
    **dict.fromkeys(("div", "true_divide"), _quotient),
    **dict.fromkeys(("add", "sub", "rsub"), _sum),
    "neg": _negative,
    **dict.fromkeys(("_to_copy", "clone", "alias", "detach", "lift_fresh_copy"), _same),
    "where": _where,
    "masked_fill": _masked_fill,
    "index_put": _index_put,
    **dict.fromkeys(("logical_not", "bitwise_not"), _not),
    **dict.fromkeys(("logical_and", "bitwise_and"), _and),
    **dict.fromkeys(("logical_or", "bitwise_or"), _or),
    **dict.fromkeys(FILLED, _filled),
    **dict.fromkeys(BENDS, _clamp),
}


class _Writer:
    """New nodes in front of the one that they replace."""

    def __init__(self, graph: Graph, node: Node, constants: dict[Node, Any]) -> None:
        self.graph, self.node, self.constants = graph, node, constants

    def write(self, layout: Layout) -> Node:
        """Write a continuous function of one switching value."""
        with self.graph.inserting_before(self.node):
            new = self._of_one_node(layout) or self._extremum(layout) or self._relus(layout)
        if example_shape(new) != example_shape(self.node):
            raise Unproven("its shape is not that of the value it switches on")
        return new

    def _of_one_node(self, layout: Layout) -> Node | None:
        """Write a piecewise-linear function of a single node, if its numbers are float64."""
        nodes = {n for form in (*layout.pieces, *layout.forms) for n in form.terms}
        if len(nodes) != 1 or not layout.knots:
            return None
        (h,) = nodes
        if example_shape(h) != example_shape(self.node) or not single_shape(h)[1]:
            return None
        slopes = [_float(form.terms.get(h, Fraction(0))) for form in layout.pieces]
        offsets = [_float(form.constant) for form in layout.pieces]
        if not everywhere([everywhere(form.terms[h] > 0) for form in layout.forms]):
            # falling switching values: the pieces the other way round
            slopes, offsets = slopes[::-1], offsets[::-1]
        points = [_float(-form.constant / form.terms[h]) for form in layout.forms]
        if not everywhere([everywhere(form.terms[h] > 0) for form in layout.forms]):
            points = points[::-1]
        if any(value is None for value in (*slopes, *offsets, *points)):
            return None
        shape = example_shape(h)[1:]
        if any(isinstance(v, Tensor) and v.ndim > len(shape) for v in (*slopes, *offsets, *points)):
            return None
        bend = Pointwise(
            kind="where",
            shapes=(shape,),
            points=tuple(points),
            slopes=tuple(slopes),
            offsets=tuple(offsets),
            function=_function(points, slopes, offsets),
        )
        new = self.graph.call_function(bend.forward, (h,))
        new.meta = {**self.node.meta, "val": self._fake(h), "bend": bend}
        return new

    def _extremum(self, layout: Layout) -> Node | None:
        """Write a maximum or minimum of two nodes."""
        if len(layout.knots) != 1 or any(not isinstance(p.node, Node) for p in layout.pieces):
            return None
        gain = layout.gains[0]
        if not (everywhere(gain == 1) or everywhere(gain == -1)):
            return None
        function = aten.maximum.default if everywhere(gain == 1) else aten.minimum.default
        return self._call(function, layout.pieces[1].node, layout.pieces[0].node)

    def _relus(self, layout: Layout) -> Node:
        """Write the lowest piece, and a multiple of a ReLU for every knot."""
        total = self._form(layout.pieces[0])
        for gain, sides in zip(layout.gains, layout.sides, strict=True):
            first, second = map(self._form, sides)
            bend = self._call(aten.relu.default, self._call(aten.sub.Tensor, first, second))
            total = self._call(aten.add.Tensor, self._scaled(bend, gain), total)
        if not isinstance(total, Node):
            raise Unproven("it is constant")
        return total

    def _form(self, form: Form) -> Any:
        if form.node is not None:
            return form.node
        total: Any = self._number(form.constant)
        for node, coefficient in form.terms.items():
            total = self._call(aten.add.Tensor, self._scaled(node, coefficient), total)
        return total

    def _scaled(self, node: Any, factor: Any) -> Any:
        if everywhere(factor == 1):
            return node
        return self._call(aten.mul.Tensor, node, self._number(factor))

    def _number(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return float(value)
        node = self.graph.call_function(_constant)
        self.constants[node] = torch.from_numpy(value.astype(np.float64))
        node.meta = {"val": self._mode().from_tensor(self.constants[node], static_shapes=True)}
        return node

    def _call(self, function: Any, *args: Any) -> Any:
        if function is aten.sub.Tensor and isinstance(args[1], (int, float)) and args[1] == 0:
            return args[0]
        if function is aten.add.Tensor and isinstance(args[1], (int, float)) and args[1] == 0:
            return args[0]
        if function is aten.sub.Tensor and not isinstance(args[0], Node):
            function, args = aten.rsub.Scalar, (args[1], args[0])
        new = self.graph.call_function(function, args)
        values = [self._fake(arg) for arg in args]
        new.meta = {**self.node.meta, "val": function(*values)}
        return new

    def _fake(self, value: Any) -> Any:
        """Stand-in in float64, as the graph has it, for what an argument will be."""
        if not isinstance(value, Node):
            return value
        fake = value.meta["val"]
        if not hasattr(fake, "fake_mode"):
            fake = self._mode().from_tensor(fake, static_shapes=True)
        return fake.to(torch.float64)

    def _mode(self) -> Any:
        return self.node.meta["val"].fake_mode


def _constant() -> None:
    """Stand in for a node whose value is in the table of constants."""


def _float(value: Any) -> Any:
    """Coefficient of a `Pointwise`, None unless it is exactly a float64."""
    if not isinstance(value, np.ndarray):
        return float(value) if Fraction(float(value)) == value else None
    rounded = value.astype(np.float64)
    same = all(Fraction(float(r)) == v for r, v in zip(rounded.flat, value.flat, strict=True))
    if not same:
        return None
    return torch.from_numpy(rounded[0] if rounded.ndim > 1 and len(rounded) == 1 else rounded)


def _function(points: list[Any], slopes: list[Any], offsets: list[Any]) -> Callable[..., Tensor]:
    def function(h: Tensor) -> Tensor:
        y = slopes[0] * h + offsets[0]
        for point, slope, offset in zip(points, slopes[1:], offsets[1:], strict=True):
            y = torch.where(h > point, slope * h + offset, y)
        return y

    return function
