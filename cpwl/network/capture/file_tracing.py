"""The ATen graph of a model file's calls, traced one after the other.

`torch.export` takes time that grows with the square of a file's length, for checks of Python code
that a file does not have.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import sympy
import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses import FakeTensorMode
from torch.export.exported_program import (
    _override_composite_implicit_decomp,
    _split_decomp_table_to_cia_and_python_decomp,
)
from torch.func import functional_call, functionalize
from torch.fx import Graph, Node, traceback
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)

from cpwl.network.files import FileModule

KIND = "cpwl.network.files.calls.CallModule"
# Batches for which nothing that the trace relied on may fail.
BATCHES = (1, 2, 3, 5, 64, 7919)


class TracedCalls(NamedTuple):
    """A graph, its input, which of its outputs counts, and values of nodes that are constants."""

    graph: Graph
    input: Node
    position: int
    constants: dict[Node, Any]


def trace_calls(module: FileModule, example: Tensor, table: dict[Any, Any]) -> TracedCalls:
    """Trace a file's calls with a free batch axis.

    Raises
    ------
    ValueError
        If the calls fix the batch size.
    """
    shapes = ShapeEnv()
    mode = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)
    fixed = [DimDynamic.STATIC] * (example.ndim - 1)
    free = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC, *fixed])
    x = mode.from_tensor(example, symbolic_context=free)
    buffers = dict(module.named_buffers(recurse=False)) | dict(
        module.named_parameters(recurse=False)
    )
    held = {name: mode.from_tensor(value, static_shapes=True) for name, value in buffers.items()}

    def run(x: Tensor, held: dict[str, Tensor]) -> Tensor:
        return functional_call(module, held, (x,))

    rest: dict[Any, Any]
    composite, rest = _split_decomp_table_to_cia_and_python_decomp(dict(table))
    functions = [part.function for _, part in module.calls]
    try:
        for call, part in module.calls:
            part.function = _marked(call.place, part.function)
        with warnings.catch_warnings(), torch.no_grad(), traceback.preserve_node_meta(), mode:
            warnings.simplefilter("ignore")
            with enable_python_dispatcher(), _override_composite_implicit_decomp(composite):
                traced = make_fx(
                    functionalize(run), decomposition_table=rest, tracing_mode="real",
                    _allow_non_fake_inputs=True,
                )(x, held)  # fmt: skip
    finally:
        for (_, part), function in zip(module.calls, functions, strict=True):
            part.function = function
    _check_free(shapes, x.shape[0])
    graph = traced.graph
    graph.eliminate_dead_code()
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    constants = dict(zip(inputs[1:], buffers.values(), strict=True))
    for node in graph.nodes:
        if node.op == "get_attr":
            constants[node] = getattr(traced, str(node.target))
    return TracedCalls(graph, inputs[0], 0, constants)


def _marked(place: str, function: Callable[..., Any] | None) -> Callable[..., Any]:
    """Let the nodes of a call know the path that the file gives it."""
    assert function is not None
    parts = place.split(".")
    paths = [".".join(parts[: k + 1]) for k in range(len(parts))]

    def call(*args: Any, **kwargs: Any) -> Any:
        traceback.current_meta["nn_module_stack"] = {path: (path, KIND) for path in paths}
        return function(*args, **kwargs)

    return call


def _check_free(shapes: ShapeEnv, batch: Any) -> None:
    symbol = batch.node.expr
    for guard in shapes.guards:
        for size in BATCHES:
            if guard.expr.subs({symbol: sympy.Integer(size)}) != sympy.true:
                raise ValueError(f"the file fixes its batch by {guard.expr}.")
    if symbol in shapes.replacements:
        raise ValueError(f"the file fixes its batch at {shapes.replacements[symbol]}.")
