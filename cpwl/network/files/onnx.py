"""ONNX models (extra ``cpwl[onnx]``) as torch modules: one torch call per node.

onnx2torch would do, but it imports torchvision for operations that no CPWL network has, and
torchvision's wheels do not load beside a CPU build of torch. ONNX itself only parses here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cpwl.errors import CaptureError, UnsupportedOperationError
from cpwl.network.files.calls import Call, FileModule, Name
from cpwl.network.files.onnx_operations import CONVERTERS, Node

if TYPE_CHECKING:
    import onnx

# Broadcasting and batch-norm as we read them begin with this version of the operator set.
OLDEST_OPSET = 7
NEWEST_NEEDED = 13


def read_onnx(path: Path, input_shape: tuple[int, ...] | None) -> tuple[nn.Module, tuple[int, ...]]:
    """Build the module that an ONNX file describes.

    A batch axis that the file fixes (usually at 1) is freed.

    Returns
    -------
    module : nn.Module
    input_shape : tuple of int
        Shape of one sample: the file's, or the argument.

    Raises
    ------
    CaptureError
        If onnx is not installed, the file is missing or damaged, or the model has more than one
        input or output.
    UnsupportedOperationError
        At a node that has no torch counterpart here.
    """
    graph, version = _parse(path)
    constants = _initializers(graph)
    source = _single([v for v in graph.input if v.name not in constants], "input", path)
    result = _single(list(graph.output), "output", path)
    shape = _sample_shape(source, input_shape, path)
    calls = []
    for k, proto in enumerate(graph.node):
        node = _node(proto, constants, version)
        place = (proto.name or f"{proto.op_type}_{k}").replace(".", "_").strip("/")
        converter = CONVERTERS.get(proto.op_type)
        if converter is None or proto.domain not in ("", "ai.onnx"):
            raise UnsupportedOperationError(
                proto.op_type, place, "the ONNX reader has no counterpart for it",
                "Use Network.from_torch with the original module, or approx.",
            )  # fmt: skip
        function = converter(node)
        if isinstance(function, Tensor):
            constants[proto.output[0]] = function
            continue
        args = tuple(Name(key) if key else None for key in proto.input)
        outputs = tuple(key or None for key in proto.output)
        calls.append(Call(place, function, args, {}, outputs))
    return FileModule(calls, constants, source.name, result.name), shape


def _parse(path: Path) -> tuple[onnx.GraphProto, int]:
    try:
        import onnx
        from google.protobuf.message import DecodeError
        from onnx import version_converter
    except ImportError as error:
        raise CaptureError(
            "Expected the package onnx for reading .onnx files, got none. Install it with "
            'pip install "cpwl[onnx]".'
        ) from error
    if not path.is_file():
        raise CaptureError(f"Expected an .onnx file, got no file at '{path}'. Check the path.")
    damaged = (
        f"Expected an ONNX model, got '{path.name}', which is damaged or truncated. "
        "Copy it again, or export it anew."
    )
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        raise CaptureError(damaged) from error
    if not model.graph.node:
        raise CaptureError(damaged)
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    version = versions[0] if versions else 1
    if version < OLDEST_OPSET:
        model = version_converter.convert_version(model, NEWEST_NEEDED)
        version = NEWEST_NEEDED
    return model.graph, version


def _initializers(graph: onnx.GraphProto) -> dict[str, Tensor]:
    from onnx import numpy_helper

    return {
        entry.name: torch.from_numpy(numpy_helper.to_array(entry).copy())
        for entry in graph.initializer
    }


def _node(proto: onnx.NodeProto, constants: dict[str, Tensor], version: int) -> Node:
    from onnx import helper, numpy_helper

    attributes: dict[str, Any] = {}
    for attribute in proto.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode()
        elif attribute.type == attribute.TENSOR:
            value = torch.from_numpy(numpy_helper.to_array(value).copy())
        attributes[attribute.name] = value
    known = tuple(constants.get(key) for key in proto.input)
    return Node(proto.op_type, attributes, known, len(proto.output), version)


def _single(entries: list[Any], kind: str, path: Path) -> Any:
    if len(entries) != 1:
        names = ", ".join(entry.name for entry in entries)
        raise CaptureError(
            f"Expected a model with one {kind} in '{path.name}', got {len(entries)} ({names}). "
            f"Cut the model to one {kind}, e.g. with onnx.utils.extract_model."
        )
    return entries[0]


def _sample_shape(
    source: onnx.ValueInfoProto, input_shape: tuple[int, ...] | None, path: Path
) -> tuple[int, ...]:
    if input_shape is not None:
        return tuple(input_shape)
    sizes = [size.dim_value for size in source.type.tensor_type.shape.dim]
    sample = sizes[1:] if len(sizes) > 1 else sizes
    if not sample or min(sample) <= 0:
        raise CaptureError(
            f"Expected fixed sizes besides the batch axis for input '{source.name}' in "
            f"'{path.name}', got {sizes}. Pass input_shape, the shape of one sample."
        )
    return tuple(sample)
