"""ONNX models (extra ``cpwl[onnx]``) as torch modules: one torch call per node.

ONNX itself only parses and evaluates constants. Whatever is not in the table of operations, with
every attribute and input accounted for, is refused by name.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cpwl.errors import CaptureError, UnsupportedOperationError
from cpwl.network.files.calls import Call, FileModule, Name
from cpwl.network.files.onnx.folding import constant, dequantized, fold, positions
from cpwl.network.files.onnx.layout import Batch, move_entries, on_samples
from cpwl.network.files.onnx.nodes import Array, Node, Operation, Value, fitting
from cpwl.network.files.onnx.operations import BOOL, FLOATS, OPERATIONS
from cpwl.network.files.onnx.parsing import (
    LARGEST,
    read_initializers,
    read_model,
)
from cpwl.network.files.onnx.schemas import (
    check_node,
    check_schema,
    check_types,
    read_attributes,
    schema_of,
)
from cpwl.network.files.signature import Output, fixed_array, open_input, position_of

if TYPE_CHECKING:
    import onnx

# A batch for which sizes are worked out: a prime, so that no size of a file is mistaken for it.
PROBE = 7919
POINTS = 3


def read_onnx(
    path: Path,
    input_shape: tuple[int, ...] | None,
    *,
    fixed: Mapping[str, Any] | None = None,
    output: Output | None = None,
    largest: int = LARGEST,
) -> tuple[nn.Module, tuple[int, ...]]:
    """Build the module that an ONNX file describes.

    The first axis of the input is the batch. A batch axis that the file fixes (usually at 1) is
    freed; a model whose samples meet is refused. An input that has the sample's axes alone is
    given a batch axis.

    Parameters
    ----------
    fixed : mapping of str to numbers, arrays or tensors, optional
        Values of further inputs, by name, that hold for every sample.
    output : str or int, optional
        Name or position of the output wanted, where the file has several; what only others need is
        left out.
    largest : int
        Most values that one tensor may have, per sample.

    Returns
    -------
    module : nn.Module
    input_shape : tuple of int
        Shape of one sample: the file's, or the argument.

    Raises
    ------
    CaptureError
        If onnx is not installed, the file is missing or damaged, or the model has more than one
        input without a value, or more than one output and none is named.
    UnsupportedOperationError
        At a node that has no torch counterpart here, or with a setting that is not honoured.
    """
    model, opset = read_model(path)
    graph = model.graph
    constants = read_initializers(graph, path)
    inputs = {v.name: v for v in graph.input if v.name not in constants}
    source = inputs[open_input(list(inputs), fixed or {}, path)]
    result = graph.output[position_of([v.name for v in graph.output], output, path)]
    declared, counted, sample = _input(source, input_shape, path)
    for name, value in (fixed or {}).items():
        constants[name] = _given(inputs[name], value, declared, len(declared) > len(sample), path)
    subject = _Subject(graph, constants, source, result.name, path, opset, largest)
    batch = Batch(declared[0] if len(declared) > len(sample) else 1, free=not counted)
    module = _build(subject, declared, batch, batched=len(declared) > len(sample))
    if batch.touched and not counted:
        _check_apart(subject, module, sample, batch.touched)
    return module, sample


class _Subject(NamedTuple):
    """A parsed file: what stays the same for every batch size that it is built for."""

    graph: onnx.GraphProto
    constants: dict[str, Array]
    source: onnx.ValueInfoProto
    result: str
    path: Path
    opset: int
    largest: int


def _build(
    subject: _Subject, shape: tuple[int, ...], batch: Batch | None, *, batched: bool
) -> FileModule:
    """Build the module on batches, or, without `batch`, on tensors of this very shape."""
    build = _Build(subject, batch)
    source, result = subject.source.name, subject.result
    for name, array in subject.constants.items():
        build.values[name] = Value(array.shape, element_type(array), array)
    build.values[source] = Value(shape, subject.source.type.tensor_type.elem_type)
    if batch is not None and not batched and batch.rows(shape):
        # A single entry without a batch axis: its own axis of length one stands for the samples.
        build.calls.append(Call("input", _without_axis, (Name(source),), {}, ("input:",)))
        build.aliases[source] = "input:"
    needed = _needed(subject)
    for k, proto in enumerate(subject.graph.node):
        if k in needed:
            build.add(proto, k)
    value = build.values[result]
    if value.known:
        raise CaptureError(
            f"Expected a model whose output depends on its input in '{subject.path.name}', got "
            f"the constant '{result}'. Name another output."
        )
    result = build.aliases.get(result, result)
    rows = batch is not None and batch.rows(value.shape)
    if batch is not None and batched and not rows and (batch.free or batch.size != 1):
        raise CaptureError(
            f"Expected an output with the batch axis first in '{subject.path.name}', got shape "
            f"{list(value.shape)} for a batch of {batch.size}. Keep the batch axis first and "
            "unreduced."
        )
    if rows and not batched:
        build.calls.append(Call("output", _with_axis, (Name(result),), {}, ("output:",)))
        result = "output:"
    elif not build.calls:
        build.calls.append(Call("output", torch.clone, (Name(result),), {}, ("output:",)))
        result = "output:"
    for name, array in build.buffers.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CaptureError(
                f"Expected finite numbers in '{name}' of '{subject.path.name}', got NaN or "
                "infinity. Load weights that training has not destroyed."
            )
    buffers = {name: as_tensor(array) for name, array in build.buffers.items()}
    return FileModule(build.calls, buffers, source, result)


def _without_axis(x: Tensor) -> Tensor:
    return x.squeeze(1)


def _with_axis(x: Tensor) -> Tensor:
    return x.unsqueeze(1)


@dataclass
class _Build:
    """A module under construction; `counted` are the constants that tell the batch's size."""

    subject: _Subject
    batch: Batch | None
    values: dict[str, Value] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    buffers: dict[str, Array] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    counted: set[str] = field(default_factory=set)
    folded: int = 0

    def __post_init__(self) -> None:
        graph = self.subject.graph
        self.read = {name for node in graph.node for name in node.input if name}
        self.read.add(self.subject.result)

    def add(self, proto: onnx.NodeProto, k: int) -> None:
        """Add a node: fold it, or make it a call."""
        if proto.op_type == "CastLike" and len(proto.input) == 2 and proto.input[1]:
            proto = _plain_cast(proto, self.values[proto.input[1]].type)
        place = _place(proto.name) or f"{proto.op_type}_{k}"
        schema = schema_of(proto, self.subject.opset)
        if schema is None:
            raise UnsupportedOperationError(
                f"{proto.domain}.{proto.op_type}".strip("."), place,
                "the ONNX reader has no counterpart for it",
                "Use Network.from_torch with the original module.",
            )  # fmt: skip
        counted = any(name in self.counted for name in proto.input)
        node = Node(
            type=proto.op_type,
            place=place,
            version=schema.since_version,
            attributes=read_attributes(proto, schema, place, self.subject.path),
            inputs=tuple(self.values[name] if name else None for name in proto.input),
            outputs=tuple(name if name in self.read else None for name in proto.output),
            listed=sum(1 for name in proto.output if name),
            free=self.batch is not None and self.batch.free and not counted,
            largest=self.subject.largest,
        )
        check_schema(node, schema)
        found = self._fold(node, proto)
        if found is None:
            self._call(node, proto, schema)
        else:
            self._keep(node, found, counted)

    def _fold(self, node: Node, proto: onnx.NodeProto) -> list[Array] | None:
        if node.type in ("Shape", "Size"):
            return [self._shape_of(node)]
        if not all(value is None or value.known for value in node.inputs):
            return None
        if node.type == "Constant":
            return [constant(node, proto, self.subject.path)]
        if node.type == "DequantizeLinear":
            return [dequantized(node)]
        return fold(node, proto, self.subject.opset)

    def _shape_of(self, node: Node) -> Array:
        value = node.inputs[0]
        assert value is not None
        if self.batch is not None and not value.known and self.batch.rows(value.shape):
            self.counted |= {name for name in node.outputs if name is not None}
        if node.type == "Size":
            return np.array(prod(value.shape), np.int64)
        start, end = node.attributes.get("start", 0), node.attributes.get("end")
        return np.array(value.shape[slice(start, end)], np.int64)

    def _keep(self, node: Node, arrays: list[Array], counted: bool = False) -> None:
        """Note constants; all together they are bounded."""
        for name, array in zip(node.outputs, arrays, strict=False):
            if name is None:
                continue
            self.folded += array.nbytes
            node.require(self.folded // 16, "times 16 bytes of constants")
            if array.dtype.kind in "USOc":
                node.refuse(f"with values of type {array.dtype}")
            self.values[name] = Value(array.shape, element_type(array), array)
            if counted:
                self.counted.add(name)

    def _call(self, node: Node, proto: onnx.NodeProto, schema: Any) -> None:
        """Make a node a call, once everything about it is accounted for."""
        operation = OPERATIONS.get(node.type)
        if operation is None:
            raise UnsupportedOperationError(
                node.type, node.place, "the ONNX reader has no counterpart for it",
                "Use Network.from_torch with the original module.",
            )  # fmt: skip
        node = check_node(node, operation, schema)
        check_types(node, schema)
        named = [
            (name, value)
            for k, (name, value) in enumerate(zip(proto.input, node.inputs, strict=True))
            if value is not None and k not in operation.settings
        ]
        tensors = [value for _, value in named]
        data = [value for value in tensors if not value.known]
        if not {value.type for value in data} <= {*FLOATS, BOOL}:
            node.refuse("on whole numbers that depend on the model's input")
        plain, shapes = self._plain(node, proto, operation, tensors)
        if not data:
            self._keep(node, _evaluate(node, plain, tensors))
            return
        function, arrays = self._lifted(node, operation, tensors, plain, shapes)
        self._note_counts(node, proto, operation)
        kind = _result_type(node, operation)
        for name, shape in zip(node.outputs, shapes, strict=False):
            if name is not None:
                self.values[name] = Value(shape, kind)
        args = [Name(self.aliases.get(name, name)) for name, _ in named]
        for name, value in named:
            if value.array is not None:
                self.buffers[name] = value.array
        for j, array in enumerate(arrays):
            key = f"{len(self.calls)}:{j}"
            self.buffers[key] = array
            args.append(Name(key))
        outputs = (*node.outputs, None) if operation.outputs < 0 else (node.outputs[0],)
        self.calls.append(Call(node.place, function, tuple(args), {}, outputs))

    def _note_counts(self, node: Node, proto: onnx.NodeProto, operation: Operation) -> None:
        """Values that depend on the batch's size make samples depend on each other."""
        shaping = operation.kind in ("reshape", "moves")
        used = [
            name for k, name in enumerate(proto.input)
            if not (shaping and k in operation.settings)
        ]  # fmt: skip
        if self.batch is not None and any(name in self.counted for name in used):
            self.batch.touch(node)

    def _plain(
        self, node: Node, proto: onnx.NodeProto, operation: Operation, tensors: list[Value]
    ) -> tuple[tuple[Any, list[Array]], list[tuple[int, ...]]]:
        """Build the function on the file's own shapes, and see what shapes it returns."""
        if operation.kind == "moves":
            index = positions(node, proto, self.subject.opset)
            return move_entries(node, index, tensors, None), [index.shape]
        with fitting(node):
            built = operation.build(node)
            function, arrays = built if isinstance(built, tuple) else (built, [])
            if operation.kind == "pointwise":
                shape = np.broadcast_shapes(*(value.shape for value in tensors))
                node.require(prod(shape) // (1 if self.batch is None else self.batch.size))
                return (function, arrays), [shape]
            found = _parts(function(*map(_meta, tensors), *map(_meta_array, arrays)))
        shapes = [() if part is None else tuple(part.shape) for part in found]
        for shape in shapes:
            node.require(prod(shape) // (1 if self.batch is None else self.batch.size))
            if 0 in shape:
                node.refuse(f"with an empty result of shape {list(shape)}")
        return (function, arrays), shapes

    def _lifted(
        self,
        node: Node,
        operation: Operation,
        tensors: list[Value],
        plain: tuple[Any, list[Array]],
        shapes: list[tuple[int, ...]],
    ) -> tuple[Any, list[Array]]:
        """Make the function run on batches; each sample's shape must come out of it."""
        if self.batch is None:
            return plain
        if operation.kind == "moves":
            index = plain[1][0].reshape(shapes[0])
            function, arrays = move_entries(node, index, tensors, self.batch)
        else:
            built = on_samples(node, operation, self.batch, shapes[0], plain)
            function, arrays = built if isinstance(built, tuple) else (built, [])
            if built is plain and operation.kind == "pointwise":
                return plain  # entry by entry, and never along the samples' axis
        sample = self.batch.sample
        given = [
            _meta(v if v.known else v._replace(shape=(PROBE, *sample(v.shape)))) for v in tensors
        ]
        with fitting(node):
            found = _parts(function(*given, *map(_meta_array, arrays)))
        for part, shape in zip(found, shapes, strict=True):
            if part is not None and tuple(part.shape) != (PROBE, *sample(shape)):
                raise CaptureError(
                    f"Expected samples that do not meet, got ONNX {node.type} '{node.place}', "
                    "which works along the batch axis. Export the model with batch 1."
                )
        return function, arrays


def _place(name: str) -> str:
    """Path of a node: its name, of which no part may read as a submodule's."""
    return "".join(c if c.isprintable() else "_" for c in name.strip("/")).replace(".", "_")


def _plain_cast(proto: onnx.NodeProto, kind: int) -> onnx.NodeProto:
    """CastLike with its second input's type written out."""
    from onnx import helper

    cast = helper.make_node("Cast", proto.input[:1], proto.output, proto.name, to=kind)
    cast.attribute.extend(proto.attribute)
    return cast


def _parts(found: Any) -> list[Any]:
    return list(found) if isinstance(found, (tuple, list)) else [found]


def _evaluate(node: Node, plain: tuple[Any, list[Array]], tensors: list[Value]) -> list[Array]:
    """Compute a node of constants with torch, where the reference is not asked."""
    function, arrays = plain
    operands = [as_tensor(value.array) for value in tensors if value.array is not None]
    with fitting(node), torch.no_grad():
        found = _parts(function(*operands, *map(as_tensor, arrays)))
    return [np.zeros(0) if part is None else part.numpy() for part in found]


def _result_type(node: Node, operation: Operation) -> int:
    if node.type == "Cast":
        return int(node.attributes["to"])
    value = node.inputs[1 if node.type == "Where" else 0]
    assert value is not None
    return value.type if operation.result is None else operation.result


def element_type(array: Array) -> int:
    """ONNX's number of an array's type."""
    from onnx import helper

    return int(helper.np_dtype_to_tensor_dtype(array.dtype)) if array.dtype.kind not in "USO" else 8


def as_tensor(array: Array) -> Tensor:
    """Array as a tensor: floats that NumPy lacks become float32, which holds them exactly."""
    if array.dtype == bool or array.dtype in (np.float16, np.float32, np.float64):
        return torch.from_numpy(np.array(array))
    whole = np.issubdtype(array.dtype, np.integer) or array.dtype.name.startswith(("int", "uint"))
    return torch.from_numpy(array.astype(np.int64 if whole else np.float32))


def _meta(value: Value) -> Tensor:
    """Tensor without memory; every float is double, as in the network."""
    if value.array is not None:
        return _meta_array(value.array)
    dtype = torch.bool if value.type == BOOL else torch.float64
    return torch.empty(value.shape, dtype=dtype, device="meta")


def _meta_array(array: Array) -> Tensor:
    kind = array.dtype.name
    dtype = torch.bool if kind == "bool" else torch.float64
    dtype = torch.int64 if kind.startswith(("int", "uint")) else dtype
    return torch.empty(array.shape, dtype=dtype, device="meta")


def _check_apart(
    subject: _Subject, module: FileModule, sample: tuple[int, ...], touched: str
) -> None:
    """Compare with the file's own graph on a batch, where it works along the batch axis."""
    refusal = CaptureError(
        f"Expected samples that do not meet in '{subject.path.name}', got {touched}, which works "
        "along the batch axis. Keep the batch axis first, or export the model with batch 1."
    )
    try:
        graph = _build(subject, (POINTS, *sample), None, batched=True)
    except CaptureError as error:
        raise refusal from error
    generator = torch.Generator().manual_seed(0)
    z = torch.randn((POINTS, *sample), generator=generator, dtype=torch.float64)
    with torch.no_grad():
        expected, got = copy.deepcopy(graph).double()(z), copy.deepcopy(module).double()(z)
    if expected.shape != got.shape or not torch.allclose(got, expected, 1e-9, 1e-9, equal_nan=True):
        raise refusal


def _needed(subject: _Subject) -> set[int]:
    """Numbers of the nodes to build: all of them, or those behind the one output of several."""
    nodes = list(enumerate(subject.graph.node))
    if len(subject.graph.output) == 1:
        return {k for k, _ in nodes}
    names, found = {subject.result}, set()
    for k, node in reversed(nodes):  # in the order of computation, as was checked
        if names & set(node.output):
            names |= set(node.input)
            found.add(k)
    return found


def _given(
    entry: onnx.ValueInfoProto, value: Any, declared: tuple[int, ...], batched: bool, path: Path
) -> Array:
    """Value of a further input; its first axis is that of the samples if it is as long."""
    from onnx import helper

    kind = entry.type.tensor_type
    sizes: list[int | None] | None = None
    if kind.HasField("shape"):
        sizes = [size.dim_value or None for size in kind.shape.dim]
        if sizes and batched and sizes[0] == declared[0]:
            sizes[0] = None
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    return fixed_array(entry.name, value, sizes, dtype, path)


def _input(
    source: onnx.ValueInfoProto, input_shape: tuple[int, ...] | None, path: Path
) -> tuple[tuple[int, ...], bool, tuple[int, ...]]:
    """Shape in the file with its batch, whether the file fixes that, and shape of one sample."""
    kind = source.type.tensor_type
    if kind.elem_type not in FLOATS:
        raise CaptureError(
            f"Expected a floating-point input in '{path.name}', got '{source.name}' of ONNX type "
            f"{kind.elem_type}. Cut the model behind its first cast."
        )
    sizes = [size.dim_value for size in kind.shape.dim] if kind.HasField("shape") else None
    if input_shape is None:
        sample = sizes[1:] if sizes and len(sizes) > 1 else sizes
        if not sizes or not sample or min(sample) <= 0 or sizes[0] < 0:
            raise CaptureError(
                f"Expected fixed sizes besides the batch axis for input '{source.name}' in "
                f"'{path.name}', got {sizes or 'none'}. Pass input_shape, the shape of one sample."
            )
    else:
        sample = list(input_shape)
        if sizes is not None and len(sizes) not in (len(sample), len(sample) + 1):
            raise CaptureError(
                f"Expected input_shape with {len(sizes) - 1} sizes for input '{source.name}' in "
                f"'{path.name}', got {tuple(sample)}. Give the shape of one sample."
            )
    if sizes is not None and len(sizes) == len(sample):
        return tuple(sample), True, tuple(sample)
    fixed = sizes is not None and sizes[0] > 0
    return (sizes[0] if sizes and fixed else 1, *sample), fixed, tuple(sample)
