"""An exported ATen graph as a `Program`: folded, classified, stages and units numbered."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Graph, Node
from torch.utils._pytree import tree_map

from cpwl.arrays import Ints
from cpwl.errors import CaptureError, UnsupportedOperationError
from cpwl.network.capture.affine_operations import Affine, Call, NotPiecewiseLinear, affine_rule
from cpwl.network.capture.fx_nodes import (
    SKIPPED,
    batch_axis,
    example_shape,
    has_batch,
    is_data_sized,
    packet_name,
    place_of,
    result_of,
    single_shape,
)
from cpwl.network.capture.numbering import number_contests, number_units
from cpwl.network.capture.piecewise_operations import TABLE as BENDS
from cpwl.network.capture.piecewise_operations import Bend, Rewrite, nonlinear_rule
from cpwl.network.capture.triangle_waves import Wave, find_triangles
from cpwl.network.program import Program, Ref, Rounding, Step, Triangle, references

# Constants that take their shape, and nothing else, from their argument.
SHAPED = ("full_like", "zeros_like", "ones_like", "empty_like", "new_full", "new_zeros", "new_ones",
          "new_empty")  # fmt: skip
# These may have their batch axis elsewhere than in front.
ENTRYWISE = ("relu", "leaky_relu", "abs", "maximum", "minimum")
INSTEAD = "write it with relu, clamp, abs or maximum"
SQUASHINGS = ("tanh", "sigmoid", "softmax", "log_softmax")
REMEDY = "Use approx, which handles any differentiable module, or replace the operation."


@dataclass(frozen=True)
class Operation:
    """One operation of a network: where it is, what torch calls it, and what it counts as.

    `kind` is "affine", "cpwl" or (only from `inspect`) "refused"; `reason` says why refused.
    """

    name: str
    target: str
    kind: str
    reason: str = ""


class Listing(NamedTuple):
    """An exported graph with its parameters folded: what lowering works on."""

    graph: Graph
    input: Node
    output: Node
    constants: dict[Node, Any]
    conditions: dict[Node, str]  # comparisons that stay, and why


@dataclass(frozen=True, eq=False)
class Lowered:
    """A program, its operations, and its contests."""

    program: Program
    operations: tuple[Operation, ...]
    contests: NDArray[np.int32]


@dataclass(eq=False)
class _Builder:
    """Steps under construction; `value` maps graph nodes to references or constants."""

    listing: Listing
    refuse: bool
    steps: list[Step] = field(default_factory=list)
    last_stage: list[int] = field(default_factory=list)
    value: dict[Node, Any] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)
    contests: dict[int, tuple[Ints, ...]] = field(default_factory=dict)


def lower(listing: Listing, *, refuse: bool = True) -> Lowered:
    """Classify every live operation and lay the program out.

    Parameters
    ----------
    refuse : bool
        Raise at an operation that is not CPWL; False lists it as "refused" and goes on (the
        program of the result must then not be run).

    Raises
    ------
    UnsupportedOperationError
        Naming the first operation that is not CPWL.
    """
    builder = _Builder(listing, refuse)
    waves = find_triangles(listing.graph, listing.constants)
    live = _live(listing, waves)
    shape = example_shape(listing.input)
    _append(builder, _input_step(shape), 0)
    builder.value[listing.input] = Ref(0)
    for node in listing.graph.nodes:
        if node in live and node not in builder.value:
            _lower_node(builder, node, waves.get(node))
    output = builder.value.get(listing.output, listing.constants.get(listing.output))
    if not isinstance(output, Ref) or not _is_data(builder, output):
        raise CaptureError(
            "Expected a module whose output depends on its input, got a constant output. "
            "Check the module's forward."
        )
    program = number_units(tuple(builder.steps), builder.last_stage, output.index)
    contests = number_contests(program, builder.contests)
    return Lowered(program, tuple(builder.operations), contests)


def trailing_squashing(listing: Listing, node: Node) -> str | None:
    """Value of `upto` that would cut this node off, if it is the last of its kind and trailing."""
    name = packet_name(node.target)
    if name not in SQUASHINGS:
        return None
    after = {node, *listing.constants}
    for later in listing.graph.nodes:
        sources = [n for n in later.all_input_nodes if isinstance(result_of(n), Tensor)]
        if later.op != "call_function" or not any(
            n in after - {*listing.constants} for n in sources
        ):
            continue
        after.add(later)
        # Another squashing, or a branch around this one: there is no single place to cut. A knot
        # after it: what would be cut off is the network.
        kind = packet_name(later.target)
        if kind in SQUASHINGS or kind in BENDS or not all(n in after for n in sources):
            return None
    return name


def _live(listing: Listing, waves: dict[Node, Wave]) -> set[Node]:
    """Nodes that the output needs; a wave needs only its argument."""
    stack, live = [listing.output], set()
    while stack:
        node = stack.pop()
        if node in live or node in listing.constants:
            continue
        live.add(node)
        stack.extend([waves[node].x] if node in waves else node.all_input_nodes)
    return live


def _lower_node(builder: _Builder, node: Node, wave: Wave | None) -> None:
    target = node.target
    name = packet_name(target)
    if node.op != "call_function" or name in SKIPPED:
        return
    if target is operator.getitem:
        _lower_getitem(builder, node)
        return
    if name in ("split_with_sizes", "unbind", "split", "chunk"):
        return  # lowered where its parts are taken
    if wave is not None:
        _append_wave(builder, node, place_of(node), wave)
        return
    args = tuple(_value(builder, arg) for arg in node.args)
    kwargs = {key: _value(builder, arg) for key, arg in node.kwargs.items()}
    number = not isinstance(result_of(node), Tensor)
    if (
        number
        or name in SHAPED
        or not any(_is_data(builder, arg) for arg in (*args, *kwargs.values()))
    ):
        _append_batch_only(builder, node, args, kwargs)
        return
    place = place_of(node)
    if "bend" in node.meta:
        bend = Bend(node.meta["bend"], args)
        builder.operations.append(Operation(place, "where", "cpwl"))
        builder.value[node] = _append_bend(builder, node, place, "where", bend)
        return
    # Constants keep the module's own type up to here, where they meet the data.
    args, kwargs = tree_map(_wide, args), tree_map(_wide, kwargs)
    try:
        _append_call(builder, node, place, name, args, kwargs)
    except NotPiecewiseLinear as verdict:
        known = builder.listing.conditions.get(node)
        reason = str(verdict) if known is None else f"{known}; {INSTEAD}"
        _refuse(builder, node, place, name, reason, args)


def _lower_getitem(builder: _Builder, node: Node) -> None:
    source, index = node.args
    assert isinstance(source, Node)
    name = packet_name(source.target)
    place = place_of(source)
    if name in ("split_with_sizes", "unbind"):
        x = _value(builder, source.args[0])
        axis = source.args[-1] if len(source.args) > (2 if name != "unbind" else 1) else 0
        axis = source.kwargs.get("dim", axis)
        assert isinstance(axis, int)
        assert isinstance(index, int)
        aten = torch.ops.aten
        if name == "unbind":
            function, args = aten.select.int, (x, axis, index)
        else:
            sizes: list[int] = list(source.args[1])  # type: ignore[arg-type]
            start = sum(sizes[:index])
            function, args = aten.slice.Tensor, (x, axis, start, start + sizes[index])
        part = packet_name(function)
        try:
            _append_call(builder, node, place, part, args, {}, function)
        except NotPiecewiseLinear as verdict:
            _refuse(builder, node, place, part, str(verdict), args)
        return
    value = builder.value.get(source)
    if index != 0 or value is None:
        reason = "only its first result is continuous in the input"
        _refuse(builder, node, place, name, reason, (value,))
        return
    builder.value[node] = value


def _append_call(
    builder: _Builder,
    node: Node,
    place: str,
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    function: Callable[..., Any] | None = None,
) -> None:
    source = node.target if function is None else function
    assert callable(source)
    if is_data_sized(node):
        raise NotPiecewiseLinear("the shape of its result depends on the input")
    call = _describe(builder, node, name, source, args, kwargs)
    rule = nonlinear_rule(call)
    if rule is None:
        rule = affine_rule(call)
    if rule is None:
        raise NotPiecewiseLinear("it is not in the list of affine and CPWL operations")
    target = str(node.target) if function is None else f"aten.{name}"
    if isinstance(rule, Affine):
        builder.operations.append(Operation(place, target, "affine"))
        builder.value[node] = _append_affine(builder, node, place, target, rule)
    elif isinstance(rule, Bend):
        axis = batch_axis(node)
        if axis and name in ENTRYWISE:
            builder.value[node] = _append_inside(builder, node, place, target, call, axis)
        else:
            builder.value[node] = _append_bend(builder, node, place, target, rule)
        builder.operations.append(Operation(place, target, "cpwl"))
    else:
        _append_rewrite(builder, node, place, target, rule, args[0])


def _append_affine(builder: _Builder, node: Node, place: str, target: str, rule: Affine) -> Any:
    if rule.function is None:
        return rule.args[0]
    if "val" in node.meta and batch_axis(node) is None:
        raise NotPiecewiseLinear("its result has lost the batch axis, so samples are mixed")
    single, leading = single_shape(node)
    step = _step(builder, place, target, "affine", rule.function, rule.args, rule.kwargs,
                 single, leading, rounding=rule.rounding, scratch=rule.scratch)  # fmt: skip
    return _append(builder, step)


def _append_bend(builder: _Builder, node: Node, place: str, target: str, rule: Bend) -> Ref:
    single, leading = single_shape(node)
    sources = [node, *(arg for arg in node.args if isinstance(arg, Node) and arg in builder.value)]
    if not leading or any(not single_shape(n)[1] for n in sources if batch_axis(n) is not None):
        raise NotPiecewiseLinear(
            "its batch axis is not the first one; permute the tensor before this operation"
        )
    return _append_units(builder, place, target, rule, single)


def _append_units(
    builder: _Builder, place: str, target: str, rule: Bend, single: tuple[int, ...]
) -> Ref:
    step = _step(builder, place, target, "cpwl", rule.nonlinearity.forward, rule.operands, {},
                 single, True, nonlinearity=rule.nonlinearity)  # fmt: skip
    reference = _append(builder, step)
    if rule.contests:
        builder.contests[reference.index] = rule.contests
    return reference


def _append_inside(
    builder: _Builder, node: Node, place: str, target: str, call: Call, axis: int
) -> Any:
    """Append an entrywise operation whose batch axis is an inner one, with that axis in front."""
    shape = call.out_shape
    moved = [
        _append_moved(builder, place, value, axis, 0)
        if isinstance(value, Ref) and len(source or ()) == len(shape)
        else value
        for value, source in zip(call.args, call.shapes, strict=True)
    ]
    front = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    rule = nonlinear_rule(call._replace(args=tuple(moved), out_shape=front))
    if not isinstance(rule, Bend) or len(rule.operands) != sum(map(bool, call.data)):
        raise NotPiecewiseLinear(
            "its batch axis is not the first one; permute the tensor before this operation"
        )
    bent = _append_units(builder, place, target, rule, (1, *front[1:]))
    return _append_moved(builder, place, bent, 0, axis)


def _append_moved(builder: _Builder, place: str, value: Ref, old: int, new: int) -> Ref:
    single = list(builder.steps[value.index].single)
    single.insert(new, single.pop(old))
    step = _step(builder, place, "aten.movedim", "affine", torch.movedim, (value, old, new), {},
                 tuple(single), new == 0, rounding=Rounding(0))  # fmt: skip
    return _append(builder, step)


def _append_rewrite(
    builder: _Builder, node: Node, place: str, target: str, rule: Rewrite, x: Any
) -> None:
    single, leading = single_shape(node)
    bends = False
    for function, rest in rule.calls:
        args = (x, *rest)
        shape = example_shape(node)
        call = Call(
            name=packet_name(function),
            function=function,
            args=args,
            kwargs={},
            data=(True, *[False] * len(rest)),
            shapes=(shape,),
            batch_axes=(0,),
            out_shape=shape,
            list_data=(),
        )
        sub = nonlinear_rule(call) or affine_rule(call)
        if isinstance(sub, Bend):
            bends = True
            x = _append_bend(builder, node, place, target, sub)
        elif isinstance(sub, Affine):
            x = _append_affine(builder, node, place, target, sub)
        else:  # a plain gather
            step = _step(builder, place, target, "affine", function, args, {}, single, leading,
                         rounding=Rounding(0))  # fmt: skip
            x = _append(builder, step)
    builder.operations.append(Operation(place, target, "cpwl" if bends else "affine"))
    builder.value[node] = x


def _append_wave(builder: _Builder, node: Node, place: str, wave: Wave) -> None:
    x = _value(builder, wave.x)
    shape = single_shape(node)[0][1:]
    triangle = Triangle(
        kind="triangle",
        shapes=(shape,),
        period=wave.period,
        phase=wave.phase,
        scale=wave.scale,
        offset=wave.offset,
    )
    builder.operations.append(Operation(place, "triangle wave", "cpwl"))
    builder.value[node] = _append_bend(builder, node, place, "triangle wave", Bend(triangle, (x,)))


def _append_batch_only(
    builder: _Builder, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Append integers that follow from the batch size, and tensors made with them."""
    function = node.target
    assert callable(function)
    if packet_name(function) in ("empty", "new_empty", "empty_like"):
        function, kwargs = torch.zeros, {"dtype": torch.float64}
        args = args[:1] if packet_name(node.target) == "empty" else args[1:2]
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        if torch.Tag.nondeterministic_seeded in getattr(function, "tags", ()):
            _refuse(builder, node, place_of(node), packet_name(function), "it is random", args)
            return
        single, leading = single_shape(node)
        kind = "fixed"
    else:
        single, leading, kind = (), False, "size"
    step = _step(builder, place_of(node), str(node.target), kind, function, args, kwargs,
                 single, leading)  # fmt: skip
    builder.value[node] = _append(builder, step)


def _refuse(
    builder: _Builder, node: Node, place: str, name: str, reason: str, args: tuple[Any, ...]
) -> None:
    if builder.refuse:
        upto = trailing_squashing(builder.listing, node)
        remedy = REMEDY
        if upto is not None:
            remedy = f"Pass upto='{upto}' to stop at its input, or use approx for the whole module."
        raise UnsupportedOperationError(name, place, reason, remedy)
    builder.operations.append(Operation(place, str(node.target), "refused", reason))
    single, leading = single_shape(node)
    step = _step(builder, place, name, "refused", torch.clone, args, {}, single, leading)
    builder.value[node] = _append(builder, step)


def _describe(
    builder: _Builder,
    node: Node,
    name: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Call:
    sources = node.args if len(node.args) == len(args) else (node.args[0].args[0], *args[1:])  # type: ignore[union-attr]
    first = args[0] if args and isinstance(args[0], (list, tuple)) else ()
    shapes, axes = [], []
    for arg, source in zip(args, sources, strict=True):
        if isinstance(source, (list, tuple)) and source and isinstance(source[0], Node):
            source = next((s for s in source if isinstance(s, Node) and has_batch(s)), source[0])
        if isinstance(source, Node) and isinstance(source.meta.get("val"), Tensor):
            shapes.append(example_shape(source))
            axes.append(batch_axis(source))
        elif isinstance(arg, Tensor):
            shapes.append(tuple(arg.shape))
            axes.append(None)
        else:
            shapes.append(None)
            axes.append(None)
    return Call(
        name=name,
        function=function,
        args=args,
        kwargs=kwargs,
        data=tuple(_is_data(builder, arg) for arg in args),
        shapes=tuple(shapes),
        batch_axes=tuple(axes),
        out_shape=example_shape(node),
        list_data=tuple(_is_data(builder, item) for item in first),
    )


def _value(builder: _Builder, arg: Any) -> Any:
    if isinstance(arg, Node):
        if arg in builder.value:
            return builder.value[arg]
        return builder.listing.constants.get(arg)
    if isinstance(arg, (list, tuple)):
        return [_value(builder, item) for item in arg]
    return arg


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(torch.float64)
    return value


def _is_data(builder: _Builder, value: Any) -> bool:
    return any(
        builder.steps[index].kind in ("input", "affine", "cpwl", "refused")
        for index in references(value)
    )


def _step(
    builder: _Builder, place: str, target: str, kind: str, function: Callable[..., Any],
    args: tuple[Any, ...], kwargs: dict[str, Any], single: tuple[int, ...], leading: bool,
    **rest: Any,
) -> Step:  # fmt: skip
    used = tuple(dict.fromkeys(references([*args, *kwargs.values()])))
    data = tuple(index for index in used if _is_data(builder, Ref(index)))
    return Step(
        name=place, target=target, kind=kind, function=function, args=args, kwargs=kwargs,
        inputs=used, data=data, single=single, leading=leading, **rest,
    )  # fmt: skip


def _input_step(shape: tuple[int, ...]) -> Step:
    return Step(
        name="input", target="input", kind="input", function=lambda: None, args=(), kwargs={},
        inputs=(), data=(), single=(1, *shape[1:]), leading=True,
    )  # fmt: skip


def _append(builder: _Builder, step: Step, stage: int | None = None) -> Ref:
    """Append a step; its last stage is that of its inputs, plus its own rounds."""
    deepest = max((builder.last_stage[index] for index in step.inputs), default=-1)
    rounds = 0 if step.nonlinearity is None else len(step.nonlinearity.shapes)
    builder.steps.append(step)
    builder.last_stage.append(-1 if stage == 0 else deepest + rounds)
    return Ref(len(builder.steps) - 1)
