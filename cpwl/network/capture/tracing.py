"""The ATen graph of an `nn.Module`, exported in float64; the module itself stays untouched."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph, Node

from cpwl.errors import CaptureError
from cpwl.network.capture.file_tracing import TracedCalls, trace_calls
from cpwl.network.capture.fx_nodes import EXAMPLE_BATCH, SKIPPED, packet_name, place_of
from cpwl.network.capture.lowering import Listing
from cpwl.network.files import FileModule

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
)
# fmt: on


def float64_copy(module: nn.Module) -> nn.Module:
    """Copy a module to float64 on the CPU; the original is only read.

    Raises
    ------
    CaptureError
        For batch-norm or dropout in training mode, for complex parameters, for NaN or infinity.
    """
    _check_mode(module)
    memo: dict[int, Any] = {}
    for path, part in module.named_modules():
        tensors = {**part._parameters, **part._buffers}
        tensors |= {k: v for k, v in vars(part).items() if isinstance(v, Tensor)}
        for key, value in tensors.items():
            if value is None or id(value) in memo:
                continue
            name = f"{path}.{key}" if path else key
            memo[id(value)] = _convert(value, name)
    try:
        copied = copy.deepcopy(module, memo)
    except (RuntimeError, TypeError) as error:
        raise CaptureError(
            f"Expected a module that copy.deepcopy can copy, got {type(module).__name__}, which "
            f"fails with: {error} Remove the attribute that cannot be copied."
        ) from error
    return copied


def _check_mode(module: nn.Module) -> None:
    random = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
    for path, part in module.named_modules():
        if isinstance(part, random) and part.training:
            raise CaptureError(
                f"Expected a module in evaluation mode, got {type(part).__name__} at "
                f"'{path or type(module).__name__}' in training mode. Call module.eval() first."
            )


def _convert(value: Tensor, name: str) -> Tensor:
    if value.is_complex():
        raise CaptureError(
            f"Expected real parameters, got complex numbers in '{name}'. Use a real module."
        )
    data = value.detach()
    if value.is_floating_point():
        data = data.to(device="cpu", dtype=torch.float64, copy=True)
        if not bool(torch.isfinite(data).all()):
            raise CaptureError(
                f"Expected finite parameters, got NaN or infinity in '{name}'. "
                "Load weights that training has not destroyed."
            )
    else:
        data = data.to(device="cpu", copy=True)
    if isinstance(value, nn.Parameter):
        return nn.Parameter(data, requires_grad=False)
    return data


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
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        raise CaptureError(
            f"Expected a module that accepts a float64 batch of shape (N, "
            f"{', '.join(map(str, input_shape))}), got from {type(module).__name__}: {error} "
            "Give the shape of one sample, without the batch axis, as input_shape."
        ) from error
    _check_result(result)
    # torch.export reports its own deprecations and installs no lasting filter of ours.
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            if isinstance(module, FileModule):
                return trace_calls(module, example, _table())
            exported = torch.export.export(
                module, (example,), dynamic_shapes=({0: Dim("batch")},), strict=False
            )
            _rewrite_softshrink(exported)
            return exported.run_decompositions(_table())
        except (UserError, RuntimeError, ValueError, TypeError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise CaptureError(
                "Expected a module that torch.export can trace with a free batch axis, got from "
                f"{type(module).__name__}: {first} Avoid Python branches on tensor values, and "
                "shapes that fix the batch size, such as view(1, -1)."
            ) from error


def _check_result(result: Any) -> None:
    if isinstance(result, Tensor):
        if result.ndim == 0 or result.shape[0] != EXAMPLE_BATCH:
            raise CaptureError(
                f"Expected an output with the batch axis first, got shape {tuple(result.shape)} "
                "for a batch of 2. Keep the batch axis first and unreduced."
            )
        if not result.is_floating_point():
            raise CaptureError(
                f"Expected a floating-point output, got {result.dtype}. "
                "Return the values themselves, not indices or classes."
            )
        return
    kind = type(result).__name__
    size = f" of {len(result)}" if isinstance(result, (tuple, list, dict)) else ""
    raise CaptureError(
        f"Expected a module whose output is one tensor, got a {kind}{size}. "
        "Wrap it in a module that returns the tensor wanted."
    )


def _table() -> dict[Any, Any]:
    table = torch.export.default_decompositions()
    for name in KEPT:
        packet = getattr(torch.ops.aten, name, None)
        for overload in () if packet is None else packet.overloads():
            table.pop(getattr(packet, overload), None)
    return table  # type: ignore[return-value]


def _rewrite_softshrink(exported: ExportedProgram) -> None:
    """Write softshrink as x - clamp(x, -l, l), before torch writes it with comparisons."""
    aten = torch.ops.aten
    for node in list(exported.graph.nodes):
        if node.op != "call_function" or node.target is not aten.softshrink.default:
            continue
        x = node.args[0]
        width = node.args[1] if len(node.args) > 1 else node.kwargs.get("lambd", 0.5)
        if width == 0:
            node.target, node.args, node.kwargs = aten.clone.default, (x,), {}
            continue
        with exported.graph.inserting_before(node):
            held = exported.graph.call_function(aten.clamp.default, (x, -width, width))
        held.meta = dict(node.meta)
        node.target, node.args, node.kwargs = aten.sub.Tensor, (x, held), {}
    exported.graph_module.recompile()


def list_graph(exported: ExportedProgram | TracedCalls, upto: str | None = None) -> Listing:
    """Fold everything that depends on parameters alone, and cut the graph at `upto`."""
    traced = exported if isinstance(exported, TracedCalls) else _traced(exported)
    constants = {node: _floating(value) for node, value in traced.constants.items()}
    for node in traced.graph.nodes:
        if node.op == "call_function" and _foldable(node, constants):
            args = torch.fx.map_arg(node.args, lambda n: constants[n])
            kwargs = torch.fx.map_arg(node.kwargs, lambda n: constants[n])
            assert callable(node.target)
            with torch.no_grad():
                constants[node] = _floating(node.target(*args, **kwargs))
    output = traced.output if upto is None else _cut(traced.graph, upto, constants)
    return Listing(traced.graph, traced.input, output, constants)


def _traced(exported: ExportedProgram) -> TracedCalls:
    """Find an exported program's input, output and parameters in its graph."""
    constants: dict[Node, Any] = {}
    data = None
    kinds = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    state = {**exported.state_dict, **exported.constants}
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            spec = kinds[node.name]
            if spec.kind == InputKind.USER_INPUT:
                data = node
            else:
                constants[node] = state[str(spec.target)]
    assert data is not None
    name = next(iter(exported.graph_signature.user_outputs))
    output = next(node for node in exported.graph.nodes if node.name == name)
    return TracedCalls(exported.graph, data, output, constants)


def _foldable(node: Node, constants: dict[Node, Any]) -> bool:
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    if random or packet_name(node.target) in SKIPPED:
        return False
    return all(source in constants for source in node.all_input_nodes)


def _floating(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().to(torch.float64)
    if isinstance(value, (tuple, list)):
        return [_floating(item) for item in value]
    return value.detach() if isinstance(value, Tensor) else value


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
                f"ends with {names}; 'tanh' or 'sigmoid' cut a last squashing off."
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
