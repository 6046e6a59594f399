"""Part of a module before one of its operations, as a module of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate

from cpwl.network.capture import (
    SKIPPED,
    Listing,
    export,
    float64_copy,
    list_graph,
    packet_name,
    unwrap,
)
from cpwl.network.files import Output


def cut(
    module: nn.Module | Callable[..., Any],
    input_shape: tuple[int, ...],
    upto: str,
    fixed: Mapping[str, Any] | None = None,
    output: Output | None = None,
) -> nn.Module:
    """Return what a module computes before `upto`.

    The graph that torch exports is cut and run as it is: `cpwl.Network` finds the same place in it,
    but runs operations of its own.

    Parameters
    ----------
    module : nn.Module or callable
        Only read.
    input_shape : tuple of int
        Shape of one sample.
    upto : str
        Operation or submodule, as for `cpwl.Network.from_torch`.
    fixed, output
        As for `cpwl.Network.from_torch`.

    Returns
    -------
    nn.Module
        Takes (B, *input_shape). With float64 parameters, so that nothing of constants that torch
        has folded is lost; ``.to(torch.float32)`` gives one in float32.

    Raises
    ------
    CaptureError
        The module cannot be exported, or nothing in it has that name.
    """
    module = unwrap(module)
    exported = export(float64_copy(module, fixed, output), input_shape)
    listing = list_graph(exported, upto)
    needed = _needed(listing)
    root, graph = nn.Module(), Graph()
    made: dict[Node, Any] = {}
    latents = graph.placeholder("z")
    dtype = graph.call_function(getattr, (latents, "dtype"))
    made[listing.input] = latents
    for node in listing.graph.nodes:
        if node not in needed or node is listing.input:
            continue
        if node in listing.constants:
            made[node] = _constant(graph, root, listing, node)
        elif packet_name(node.target) not in SKIPPED:
            made[node] = graph.node_copy(node, lambda source: made[source])
            made[node].args = _in_dtype(made[node].args, dtype)
            made[node].kwargs = _in_dtype(made[node].kwargs, dtype)
    graph.output(made[listing.output])
    graph.lint()
    return GraphModule(root, graph, f"{type(module).__name__}UpTo").eval()


def _needed(listing: Listing) -> set[Node]:
    """Every node that the output depends on, but not what a folded constant was folded from."""
    found, todo = {listing.output}, [listing.output]
    while todo:
        node = todo.pop()
        if node not in listing.constants:
            new = set(node.all_input_nodes) - found
            found |= new
            todo.extend(new)
    return found


def _constant(graph: Graph, root: nn.Module, listing: Listing, node: Node) -> Any:
    """Store a tensor as a parameter, by which `approx` sees the dtype; sizes stand for themselves.

    A list of tensors is only ever read by the nodes that pick one of them, constants themselves.
    """
    value = listing.constants[node]
    if not isinstance(value, Tensor):
        return value
    name = f"constant_{node.name}"
    if value.is_floating_point():
        setattr(root, name, nn.Parameter(value, requires_grad=False))
    else:
        root.register_buffer(name, value)
    return graph.get_attr(name)


def _in_dtype(arguments: Any, dtype: Node) -> Any:
    """Let what was traced in float64 be in the latents' dtype."""
    return map_aggregate(arguments, lambda value: dtype if value is torch.float64 else value)
