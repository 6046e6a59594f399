"""An .onnx file as a checked model, and its tensors as arrays, their bytes counted first.

Tensors beside the file are read from plain files in its own folder alone.
"""

from __future__ import annotations

import re
import stat
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cpwl.errors import CaptureError

if TYPE_CHECKING:
    import onnx

# Broadcasting and batch-norm as we read them begin with this version of the operator set.
OLDEST_OPSET = 7
NEWEST_NEEDED = 13
# Values that one tensor of a file, or one tensor made from its constants, may have.
LARGEST = 2**24
AGAIN = "Copy it again, or export it anew."


def read_model(path: Path) -> tuple[onnx.ModelProto, int]:
    """Parse and check a file.

    Returns
    -------
    model : onnx.ModelProto
        Nodes are in order, names are unique, data beside the file is not loaded yet.
    opset : int
        Version of the operator set.

    Raises
    ------
    CaptureError
        If onnx is not installed, or the file is missing, damaged, or too old or new for it.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise CaptureError(
            "Expected the package onnx for reading .onnx files, got none. Install it with "
            'pip install "cpwl[onnx]".'
        ) from error
    if not path.is_file():
        raise CaptureError(f"Expected an .onnx file, got no file at '{path}'. Check the path.")
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise _damaged(path) from error
    if not model.graph.node:
        raise _damaged(path)
    if model.functions:
        raise CaptureError(
            f"Expected a model without functions of its own in '{path.name}', got "
            f"'{model.functions[0].name}'. Inline them with onnx.inliner.inline_local_functions."
        )
    model, opset = _supported(model, path)
    _check_names(model.graph, path)
    return model, opset


def _damaged(path: Path, what: str = "") -> CaptureError:
    detail = f" ({what})" if what else ""
    return CaptureError(
        f"Expected an ONNX model, got '{path.name}', which is damaged or truncated{detail}. {AGAIN}"
    )


def _supported(model: onnx.ModelProto, path: Path) -> tuple[onnx.ModelProto, int]:
    """Bring a model that is too old to a version that we read; refuse one that is too new."""
    import onnx
    from onnx import version_converter

    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    opset = versions[0] if versions else 1
    newest = onnx.defs.onnx_opset_version()
    if not 1 <= opset <= newest or len(versions) > 1:
        raise CaptureError(
            f"Expected one ONNX operator set of version 1 to {newest} in '{path.name}', got "
            f"{versions}. Update the package onnx, or export the model with opset_version=17."
        )
    if opset >= OLDEST_OPSET:
        return model, opset
    try:
        onnx.checker.check_model(model)
        return version_converter.convert_version(model, NEWEST_NEEDED), NEWEST_NEEDED
    except (
        RuntimeError,
        ValueError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        raise CaptureError(
            f"Expected ONNX operator set {OLDEST_OPSET} or later in '{path.name}', got {opset}, "
            "which onnx cannot convert. Export it with opset_version=17."
        ) from error


def _check_names(graph: onnx.GraphProto, path: Path) -> None:
    """Check that every name has one origin, before its first use: no circle, no second meaning."""
    for node in graph.node:
        texts = (node.op_type, node.domain, *node.input, *node.output)
        named = (*texts, *(attribute.name for attribute in node.attribute))
        # What is no UTF-8 comes out as bytes.
        if not isinstance(node.name, str) or not all(map(_is_name, named)):
            raise _damaged(path, "a name is no printable text")
    values = (*graph.input, *graph.output, *graph.initializer)
    if not all(_is_name(value.name) for value in values):
        raise _damaged(path, "a name is no printable text")
    known = {""}
    constants = [t.name for t in graph.initializer] + [
        t.values.name for t in graph.sparse_initializer
    ]
    inputs = [v.name for v in graph.input if v.name not in set(constants)]
    for name in (*constants, *inputs):
        if name in known:
            raise _damaged(path, f"'{name}' is defined twice")
        known.add(name)
    for node in graph.node:
        for name in node.input:
            if name not in known:
                raise _damaged(path, f"{node.op_type} reads '{name}' before anything computes it")
        for name in node.output:
            if name and name in known:
                raise _damaged(path, f"'{name}' is computed twice")
            known.add(name)
    for value in graph.output:
        if value.name not in known or not value.name:
            raise _damaged(path, f"nothing computes the output '{value.name}'")


def _is_name(text: object) -> bool:
    return isinstance(text, str) and text.isprintable()


def read_initializers(graph: onnx.GraphProto, path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Load the tensors of a graph.

    Raises
    ------
    CaptureError
        If a tensor's sizes and bytes differ, it is text or complex, or it lies outside the folder.
    """
    if graph.sparse_initializer:
        raise CaptureError(
            f"Expected dense tensors in '{path.name}', got the sparse tensor "
            f"'{graph.sparse_initializer[0].values.name}'. Export the model with dense weights."
        )
    return {tensor.name: read_tensor(tensor, path) for tensor in graph.initializer}


def read_tensor(tensor: onnx.TensorProto, path: Path) -> np.ndarray[Any, Any]:
    """Return a tensor as an array, its bytes counted first."""
    from onnx import TensorProto, helper, numpy_helper

    known = TensorProto.DataType.values()
    kind = tensor.data_type
    if kind in known:
        kind = TensorProto.DataType.Name(kind)
    if not isinstance(kind, str) or kind.startswith(("STRING", "COMPLEX", "FLOAT6", "UNDEFINED")):
        raise CaptureError(
            f"Expected real numbers in tensor '{tensor.name}' of '{path.name}', got data type "
            f"{kind}. Export the model with float weights."
        )
    sizes = list(tensor.dims)
    if min(sizes, default=0) < 0:
        raise _damaged(path, f"tensor '{tensor.name}' has sizes {sizes}")
    width = _bits(kind)
    needed = -(-prod(sizes) * width // 8)
    if tensor.data_location == TensorProto.EXTERNAL:
        tensor = _with_external(tensor, needed, path)
    field = helper.tensor_dtype_to_field(tensor.data_type)
    raw = tensor.HasField("raw_data")
    held = len(tensor.raw_data) if raw else len(getattr(tensor, field))
    packed = width < 8 and not raw
    expected = needed if raw or packed else prod(sizes)
    if held != expected:
        raise _damaged(
            path,
            f"tensor '{tensor.name}' of sizes {sizes} needs {expected} "
            f"{'bytes' if raw else 'values'}, it has {held}",
        )
    try:
        return np.array(numpy_helper.to_array(tensor))
    except (TypeError, ValueError, KeyError) as error:
        raise CaptureError(
            f"Expected a tensor that the package onnx can read, got '{tensor.name}' in "
            f"'{path.name}': {first_line(error)}. Update onnx, or export float weights."
        ) from error


def _bits(kind: str) -> int:
    """Bits of one element, from the type's name: INT4, FLOAT8E4M3FN, DOUBLE."""
    named = {"BOOL": 8, "FLOAT": 32, "DOUBLE": 64, "BFLOAT16": 16}
    found = re.match(r"[A-Z]+(\d+)", kind)
    return named[kind] if kind in named or found is None else int(found[1])


def _with_external(tensor: onnx.TensorProto, needed: int, path: Path) -> onnx.TensorProto:
    """Read a tensor's bytes from a plain file in the model's own folder."""
    from onnx import TensorProto

    entries = {entry.key: entry.value for entry in tensor.external_data}
    if not all(_is_name(text) for item in entries.items() for text in item):
        raise _damaged(path, f"tensor '{tensor.name}' lies in a place that is no text")
    location = entries.get("location", "")

    def refuse(got: str) -> CaptureError:
        return CaptureError(
            f"Expected the data of tensor '{tensor.name}' in a plain file in the folder of "
            f"'{path.name}', got {got}. Copy the model with its data file, or save it as one file."
        )

    parts = Path(location).parts
    if not parts or Path(location).is_absolute() or ".." in parts or "\0" in location:
        raise refuse(f"'{location}'")
    file = path.parent
    for part in parts:
        file = file / part
        if file.is_symlink():
            raise refuse(f"the link '{location}'")
    if not file.exists() or not stat.S_ISREG(file.stat().st_mode):
        raise refuse(f"no plain file '{location}'")
    numbers = [entries.get("offset", "0"), entries.get("length", str(needed))]
    if not all(text.isascii() and text.isdigit() and len(text) < 20 for text in numbers):
        raise refuse(f"offset {numbers[0][:40]!r} and length {numbers[1][:40]!r}")
    offset, length = map(int, numbers)
    if length != needed or offset + length > file.stat().st_size:
        raise refuse(
            f"bytes {offset} to {offset + length} of {file.stat().st_size} for {needed} bytes"
        )
    with file.open("rb") as stream:
        stream.seek(offset)
        data = stream.read(length)
    loaded = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    loaded.raw_data = data
    return loaded


def first_line(error: object) -> str:
    """First line of another package's message, without its full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".")[:300] if lines else type(error).__name__
