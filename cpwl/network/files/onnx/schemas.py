"""Checks of ONNX nodes against the operator set, and against what the reader honours."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cpwl.errors import CaptureError
from cpwl.network.files.onnx.nodes import Node, Operation
from cpwl.network.files.onnx.parsing import AGAIN, read_tensor

if TYPE_CHECKING:
    import onnx


def schema_of(proto: onnx.NodeProto, opset: int) -> Any | None:
    """Return the definition of a node's operation; None where the operator set has none."""
    return _schema(proto.op_type, opset) if proto.domain in ("", "ai.onnx") else None


@cache
def _schema(name: str, opset: int) -> Any | None:
    from onnx import defs

    try:
        schema = defs.get_schema(name, opset, "")
    except defs.SchemaError:
        return None
    return None if schema.deprecated else schema


def read_attributes(proto: onnx.NodeProto, schema: Any, place: str, path: Path) -> dict[str, Any]:
    """Read attributes as Python values; tensors are checked and stay as they are.

    Raises
    ------
    CaptureError
        At an attribute that the operator set does not have, of another type, or missing.
    """
    from onnx import TensorProto, helper

    found: dict[str, Any] = {}
    for attribute in proto.attribute:
        known = schema.attributes.get(attribute.name)
        wrong = known is None or int(known.type.value) != attribute.type
        if wrong or attribute.name in found or attribute.ref_attr_name:
            raise CaptureError(
                f"Expected attributes of ONNX {proto.op_type} at '{place}' in '{path.name}', got "
                f"'{attribute.name[:60]}', which is unknown, of another type, or repeated. {AGAIN}"
            )
        value = helper.get_attribute_value(attribute)
        if isinstance(value, TensorProto):
            if value.data_location == TensorProto.EXTERNAL:
                raise CaptureError(
                    f"Expected the tensor of ONNX {proto.op_type} at '{place}' inside "
                    f"'{path.name}', got data beside the file. Save the model as one file."
                )
            read_tensor(value, path)
        found[attribute.name] = _text(value)
    for name, known in schema.attributes.items():
        if known.required and name not in found:
            raise CaptureError(
                f"Expected the attribute '{name}' on ONNX {proto.op_type} at '{place}' in "
                f"'{path.name}', got none. {AGAIN}"
            )
    return found


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _defaults(schema: Any) -> dict[str, Any]:
    from onnx import helper

    return {
        name: _text(helper.get_attribute_value(known.default_value))
        for name, known in schema.attributes.items()
        if known.default_value.name
    }


def check_schema(node: Node, schema: Any) -> None:
    """Refuse a node with too few or too many inputs or outputs."""
    count = len(node.inputs)
    while count and node.inputs[count - 1] is None:
        count -= 1
    optional = type(schema.inputs[0]).option if schema.inputs else None
    single = [
        k for k, formal in enumerate(schema.inputs) if optional and formal.option.name == "Single"
    ]
    missing = any(k >= len(node.inputs) or node.inputs[k] is None for k in single)
    if missing or not schema.min_input <= count <= schema.max_input:
        node.refuse(f"with {count} inputs")
    if not max(1, schema.min_output) <= len(node.outputs) <= schema.max_output:
        node.refuse(f"with {len(node.outputs)} outputs")


def check_node(node: Node, operation: Operation, schema: Any) -> Node:
    """Refuse whatever of a node the record does not honour; fill in the defaults of the rest."""
    defaults = _defaults(schema)
    for name, value in node.attributes.items():
        if name not in operation.attributes and not _same(value, defaults.get(name)):
            node.refuse(f"with {name}={str(value)[:60]}")
    for k, value in enumerate(node.inputs):
        if value is None:
            continue
        if 0 <= operation.tensors <= k:
            node.refuse(f"with an input {k}")
        if k in operation.settings and not value.known:
            node.refuse(f"where its input {k} depends on the model's input")
    for k, name in enumerate(node.outputs):
        if name is not None and 0 <= operation.outputs <= k:
            node.refuse(f"where its output {k}, '{name}', is read")
    return replace(node, attributes={**defaults, **node.attributes})


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, float) and isinstance(default, float):
        return bool(np.float32(value) == np.float32(default))
    return bool(value == default)


def check_types(node: Node, schema: Any) -> None:
    """Check that inputs of one type variable have one type, as the operator set demands."""
    from onnx import TensorProto

    variables = {entry.type_param_str for entry in schema.type_constraints}
    seen: dict[str, int] = {}
    for k, value in enumerate(node.inputs):
        formal = schema.inputs[min(k, len(schema.inputs) - 1)]
        if value is None or formal.type_str not in variables or not formal.is_homogeneous:
            continue
        if seen.setdefault(formal.type_str, value.type) != value.type:
            kinds = [TensorProto.DataType.Name(n) for n in (seen[formal.type_str], value.type)]
            raise CaptureError(
                f"Expected inputs of one type at ONNX {node.type} '{node.place}', got "
                f"{kinds[0]} and {kinds[1]}. {AGAIN}"
            )
