"""The ATen graph of an `nn.Module`, exported in float64; the module itself stays untouched."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

from cpwl.errors import CaptureError
from cpwl.network.capture import decompositions
from cpwl.network.capture.callables import name_of
from cpwl.network.capture.conditions import has_conditions, replace_conditions
from cpwl.network.capture.file_tracing import TracedCalls, trace_calls
from cpwl.network.capture.fx_nodes import EXAMPLE_BATCH, SKIPPED, packet_name, place_of
from cpwl.network.capture.lowering import Listing
from cpwl.network.capture.preparation import describe_result
from cpwl.network.files import FileModule

# torch.export changes global state of torch while it runs: one capture at a time.
CAPTURING = threading.RLock()
# Kept whole: core ATen would turn them into comparisons, gathers or transposed copies.
# fmt: off
KEPT = (
    "linear", "leaky_relu", "leaky_relu_", "prelu", "_prelu_kernel", "threshold", "threshold_",
    "hardsigmoid", "hardsigmoid_", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d",
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
    "replication_pad2d", "replication_pad3d", "pixel_shuffle", "pixel_unshuffle", "matmul",
    "stack", "im2col", "hardshrink", "silu", "gelu", "elu", "selu", "celu", "mish", "hardswish",
    "softplus", "logsigmoid", "log_sigmoid", "softmax", "log_softmax", "softsign", "tanhshrink",
    "glu", "group_norm", "layer_norm", "native_group_norm", "native_layer_norm",
    "rrelu_with_noise", "scaled_dot_product_attention", "col2im",
    "linspace", "logspace",  # whose decompositions round otherwise
)
# fmt: on
# What a dense network consists of, and decompositions leave as it is.
_FINAL = {
    torch.ops.aten.linear.default,
    torch.ops.aten.relu.default,
    torch.ops.aten.leaky_relu.default,
}  # fmt: skip


def export(module: nn.Module, input_shape: tuple[int, ...]) -> ExportedProgram | TracedCalls:
    """Export a float64 module with a free batch axis and decompose it to functional ATen.

    Raises
    ------
    CaptureError
        If the module does not run on the shape, has a fixed batch size, or torch cannot trace it.
    """
    example = random_points(EXAMPLE_BATCH, input_shape, seed=0)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            result = module(example)
    except CaptureError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise CaptureError(
            f"Expected a module that accepts a float64 batch of shape (N, "
            f"{', '.join(map(str, input_shape))}), got from {name_of(module)}: {reason}. "
            "Give the shape of one sample, without the batch axis, as input_shape; give further "
            "arguments (fixed=) values that it takes, tensors with a batch axis of length one."
        ) from error
    _check_result(result)
    # torch.export reports its own deprecations and installs no lasting filter of ours.
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            if isinstance(module, FileModule):
                return trace_calls(module, example, _table())
            return _exported(module, example)
        except (UserError, RuntimeError, ValueError, TypeError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            if first.startswith("Constraints violated"):  # and then advice for torch's developers
                first = "an operation in it fixes the size of the first axis, or works along it."
            raise CaptureError(
                "Expected a module that torch.export can trace with a free batch axis, got from "
                f"{name_of(module)}: {first} Avoid Python branches on tensor values, and "
                "shapes that fix the batch size, such as view(1, -1)."
            ) from error


def _exported(module: nn.Module, example: Tensor) -> ExportedProgram:
    exported = torch.export.export(
        module, (example,), dynamic_shapes=({0: Dim("batch")},), strict=False
    )
    called = {node.target for node in exported.graph.nodes if node.op == "call_function"}
    if called <= _FINAL:  # decomposing takes most of a capture's time
        return exported
    return exported.run_decompositions(_table())


def _check_result(result: Any) -> None:
    if isinstance(result, Tensor):
        if result.ndim == 0 or result.shape[0] != EXAMPLE_BATCH:
            raise CaptureError(
                f"Expected an output with the batch axis first, got shape {tuple(result.shape)} "
                "for a batch of 2. Keep the batch axis first and unreduced."
            )
        if not result.numel():
            raise CaptureError(
                f"Expected an output with entries, got shape {tuple(result.shape)} for a batch of "
                "2. Return the values wanted."
            )
        if not result.is_floating_point():
            raise CaptureError(
                f"Expected a floating-point output, got {result.dtype}. "
                "Return the values themselves, not indices or classes."
            )
        return
    raise CaptureError(
        f"Expected a module whose output is one tensor, got {describe_result(result)}"
    )


def _table() -> dict[Any, Any]:
    table = torch.export.default_decompositions()
    for name in KEPT:
        packet = getattr(torch.ops.aten, name, None)
        for overload in () if packet is None else packet.overloads():
            table.pop(getattr(packet, overload), None)
    table.update(decompositions.TABLE)
    return table  # type: ignore[return-value]


def list_graph(
    exported: ExportedProgram | TracedCalls,
    upto: str | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> Listing:
    """Fold everything that depends on parameters alone, and cut the graph at `upto`.

    `state`, where given, holds the values of the parameters, buffers and constants by name.
    """
    traced = exported if isinstance(exported, TracedCalls) else _traced(exported, state)
    constants: dict[Node, Any] = {
        node: value.detach()
        for node, value in traced.constants.items()
        if isinstance(value, Tensor)
    }
    for node in traced.graph.nodes:
        if node.op == "call_function" and _foldable(node, constants):
            args = torch.fx.map_arg(node.args, lambda n: constants[n])
            kwargs = torch.fx.map_arg(node.kwargs, lambda n: constants[n])
            assert callable(node.target)
            with torch.no_grad():
                constants[node] = node.target(*args, **kwargs)
    reasons: dict[Node, str] = {}
    if has_conditions(traced.graph, constants):
        reasons = replace_conditions(traced.graph, constants)
    # the end of the graph names the output, which conditions may have replaced
    end = next(node for node in traced.graph.nodes if node.op == "output")
    output = tree_leaves(end.args)[traced.position]
    if upto is not None:
        output = _cut(traced.graph, upto, constants)
    return Listing(traced.graph, traced.input, output, constants, reasons)


def _traced(exported: ExportedProgram, state: Mapping[str, Tensor] | None) -> TracedCalls:
    """Copy an exported program's graph, and find its input, output and parameters in it."""
    graph = Graph()
    graph.output(graph.graph_copy(exported.graph, {}))
    constants: dict[Node, Any] = {}
    data = None
    kinds = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    values: dict[str, Any] = {**exported.state_dict, **exported.constants, **(state or {})}
    for node in graph.nodes:
        if node.op == "placeholder":
            spec = kinds[node.name]
            if spec.kind == InputKind.USER_INPUT:
                data = node
            elif spec.target is None:
                raise CaptureError(
                    "Expected a module without side effects, got one whose operations check or "
                    "print while they run. Take them out, or use approx."
                )
            else:
                constants[node] = values[str(spec.target)]
    assert data is not None
    end = next(node for node in graph.nodes if node.op == "output")
    names = [arg.name for arg in end.args[0]]
    position = names.index(next(iter(exported.graph_signature.user_outputs)))
    return TracedCalls(graph, data, position, constants)


def _foldable(node: Node, constants: dict[Node, Any]) -> bool:
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    if random or packet_name(node.target) in SKIPPED:
        return False
    return all(source in constants for source in node.all_input_nodes)


def _cut(graph: Graph, upto: str, constants: dict[Node, Any]) -> Node:
    """Find the input of the operation or submodule named `upto` (the last one of that name)."""
    nodes = [n for n in graph.nodes if n.op == "call_function" and n not in constants]
    matches = [n for n in nodes if upto in (packet_name(n.target), n.name, place_of(n))]
    if matches:
        first = matches[-1]
    else:
        inside = [n for n in nodes if upto in _paths(n)]
        if not inside:
            names = ", ".join(dict.fromkeys(repr(place_of(n)) for n in nodes[-3:]))
            raise CaptureError(
                f"Expected upto= to name an operation or submodule, got '{upto}'. The module "
                f"ends with {names}; 'tanh', 'sigmoid' or 'softmax' cut a last squashing off."
            )
        first = inside[0]
    sources = [n for n in first.all_input_nodes if n not in constants and _is_tensor(n)]
    if len(sources) != 1:
        raise CaptureError(
            f"Expected upto='{upto}' to have one input-dependent input, got {len(sources)}. "
            "Name an operation with a single input, such as the squashing itself."
        )
    return sources[0]


def _paths(node: Node) -> set[str]:
    stack = node.meta.get("nn_module_stack") or {}
    return {entry[0] for entry in stack.values() if isinstance(entry, tuple)}


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def random_points(count: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Draw standard normal float64 points from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((count, *shape), generator=generator, dtype=torch.float64)


def write_exported(source: ExportedProgram | nn.Module, input_shape: tuple[int, ...]) -> bytes:
    """Serialise an exported program, or a file's module as one."""
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if isinstance(source, nn.Module):
            source = _exported(source, random_points(EXAMPLE_BATCH, input_shape, seed=0))
        torch.export.save(source, file)
    return file.getvalue()


def read_exported(data: bytes) -> ExportedProgram:
    """Read what `write_exported` wrote; like any pickle, it can run code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(io.BytesIO(data))
