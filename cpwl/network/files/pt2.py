""".pt2 archives (`torch.export.save`) as torch modules; nothing that they contain is run.

`torch.export.load` unpickles weights, constants and example inputs with `weights_only=False` and
evaluates expressions, so an archive can execute code. Here the archive is a zip file with a JSON
graph and raw tensors: the graph may name ATen operations and integer arithmetic only, pickled
tensors are loaded with `weights_only=True`, everything else in the archive is not opened.
"""

from __future__ import annotations

import io
import json
import operator
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cpwl.errors import CaptureError
from cpwl.network.files.calls import Call, FileModule, Name

# ScalarType in torch's schema of exported programs.
DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64,
    6: torch.float16, 7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
OPERATORS = ("add", "sub", "mul", "floordiv", "mod", "neg", "getitem", "eq", "ge", "le", "gt", "lt")
ARITHMETIC: dict[str, Callable[..., Any]] = {
    f"_operator.{name}": getattr(operator, name) for name in OPERATORS
}
ADVICE = "Save it anew with torch.export.save(torch.export.export(module, ...), path)."


def read_pt2(path: Path, input_shape: tuple[int, ...] | None) -> tuple[nn.Module, tuple[int, ...]]:
    """Build the module that an archive describes.

    Returns
    -------
    module : nn.Module
    input_shape : tuple of int
        Shape of one sample: the archive's, or the argument.

    Raises
    ------
    CaptureError
        If the file is missing, not an archive of this kind, damaged, or holds code.
    """
    if not path.is_file():
        raise CaptureError(f"Expected a .pt2 file, got no file at '{path}'. Check the path.")
    try:
        with zipfile.ZipFile(path) as archive:
            files = {name.split("/", 1)[-1]: name for name in archive.namelist()}
            missing = [name for name in ("models/model.json",) if name not in files]
            if missing:
                raise CaptureError(
                    f"Expected an archive of torch.export.save, got '{path.name}' without "
                    f"{missing[0]}. {ADVICE}"
                )
            program = json.loads(archive.read(files["models/model.json"]))
            tensors = {
                **_tensors(archive, files, "weights", path),
                **_tensors(archive, files, "constants", path),
            }
        return _build(program["graph_module"], tensors, input_shape, path)
    except (zipfile.BadZipFile, EOFError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CaptureError(
            f"Expected an archive of torch.export.save, got '{path.name}', which is damaged or "
            f"truncated: {error}. Copy it again, or save it anew."
        ) from error
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise CaptureError(
            f"Expected the archive layout of torch.export.save in torch {torch.__version__}, got "
            f"'{path.name}', which lacks or changes {error}. {ADVICE}"
        ) from error


def _tensors(
    archive: zipfile.ZipFile, files: dict[str, str], kind: str, path: Path
) -> dict[str, Tensor]:
    config = files.get(f"data/{kind}/model_{kind}_config.json")
    if config is None:
        return {}
    found = {}
    for key, entry in json.loads(archive.read(config))["config"].items():
        data = archive.read(files[f"data/{kind}/{entry['path_name']}"])
        if not entry["use_pickle"]:
            found[key] = _raw_tensor(data, entry["tensor_meta"], path)
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about protocols; what cannot be read raises
                value = torch.load(io.BytesIO(data), weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
            raise CaptureError(
                f"Expected plain tensors in '{path.name}', got a pickle for '{key}' that would run "
                "code when opened. Do not use this file; ask for one saved by torch.export.save."
            ) from error
        if not isinstance(value, Tensor):
            raise CaptureError(
                f"Expected plain tensors in '{path.name}', got {type(value).__name__} for '{key}'. "
                f"{ADVICE}"
            )
        found[key] = value
    return found


def _raw_tensor(data: bytes, meta: dict[str, Any], path: Path) -> Tensor:
    dtype = DTYPES[meta["dtype"]]
    sizes = [size["as_int"] for size in meta["sizes"]]
    strides = [stride["as_int"] for stride in meta["strides"]]
    offset = meta["storage_offset"]["as_int"]
    if 0 in sizes:
        return torch.empty(sizes, dtype=dtype)
    last = offset + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
    if min([offset, *strides, *sizes]) < 0 or (last + 1) * dtype.itemsize > len(data):
        raise CaptureError(
            f"Expected {last + 1} values of {dtype} in '{path.name}', got {len(data)} bytes: the "
            "file is damaged. Copy it again, or save it anew."
        )
    flat = torch.frombuffer(bytearray(data), dtype=dtype)
    return flat.as_strided(sizes, strides, offset).clone()


def _build(
    module: dict[str, Any],
    tensors: dict[str, Tensor],
    input_shape: tuple[int, ...] | None,
    path: Path,
) -> tuple[nn.Module, tuple[int, ...]]:
    graph, signature = module["graph"], module["signature"]
    constants: dict[str, Tensor] = {}
    inputs = []
    for spec in signature["input_specs"]:
        kind, body = next(iter(spec.items()))
        if kind == "user_input":
            inputs.append(next(iter(body["arg"].values())).get("name"))
        elif kind in ("parameter", "buffer", "tensor_constant"):
            constants[body["arg"]["name"]] = tensors[body[f"{kind}_name"]]
    outputs = [
        spec["user_output"]["arg"] for spec in signature["output_specs"] if "user_output" in spec
    ]
    if len(inputs) != 1 or len(outputs) != 1 or "as_tensor" not in outputs[0]:
        raise CaptureError(
            f"Expected a model of one input tensor and one output tensor in '{path.name}', got "
            f"{len(inputs)} and {len(outputs)}. Export a module that has one of each."
        )
    sizes = graph["tensor_values"][inputs[0]]["sizes"][1:]
    if input_shape is None:
        if not all("as_int" in size for size in sizes):
            raise CaptureError(
                f"Expected fixed sizes besides the batch axis in '{path.name}', got symbolic ones. "
                "Pass input_shape."
            )
        input_shape = tuple(size["as_int"] for size in sizes)
    calls = [_call(node, path) for node in graph["nodes"]]
    result = outputs[0]["as_tensor"]["name"]
    return FileModule(calls, constants, inputs[0], result), tuple(input_shape)


def _call(node: dict[str, Any], path: Path) -> Call:
    function = _function(node["target"], path)
    values = [(entry["name"], _argument(entry["arg"])) for entry in node["inputs"]]
    args, kwargs = [], {}
    if isinstance(function, torch._ops.OpOverload):
        given = dict(values)
        for parameter in function._schema.arguments:
            if parameter.name in given and not parameter.kwarg_only and len(kwargs) == 0:
                args.append(given[parameter.name])
            elif parameter.name in given:
                kwargs[parameter.name] = given[parameter.name]
            elif not parameter.kwarg_only and parameter.has_default_value() and not kwargs:
                args.append(parameter.default_value)
    else:
        args = [value for _, value in values]
    # The device that a model was exported on says nothing about where it is read.
    if "device" in kwargs:
        kwargs["device"] = torch.device("cpu")
    return Call(_place(node), function, tuple(args), kwargs, _outputs(node["outputs"]))


def _function(target: str, path: Path) -> Callable[..., Any]:
    if target in ARITHMETIC:
        return ARITHMETIC[target]
    parts = target.split(".")
    if len(parts) == 5 and parts[:3] == ["torch", "ops", "aten"]:
        packet = getattr(torch.ops.aten, parts[3], None)
        if isinstance(packet, torch._ops.OpOverloadPacket) and parts[4] in packet.overloads():
            return getattr(packet, parts[4])
    raise CaptureError(
        f"Expected only ATen operations in '{path.name}', got '{target}'. Export the module "
        "with torch.export.export, without custom operations."
    )


def _argument(arg: dict[str, Any]) -> Any:
    kind, value = next(iter(arg.items()))
    if kind == "as_none":
        return None
    if kind in ("as_tensor", "as_sym_int", "as_sym_bool", "as_sym_float"):
        name = value.get("name", value.get("as_name"))
        return Name(name) if name is not None else next(iter(value.values()))
    if kind in ("as_tensors", "as_sym_ints"):
        return [_argument({"as_tensor": item}) for item in value]
    if kind == "as_optional_tensors":
        return [_argument(item) for item in value]
    if kind == "as_scalar_type":
        return DTYPES[value]
    if kind == "as_device":
        return torch.device("cpu")
    if kind == "as_layout":
        return torch.strided
    if kind == "as_memory_format":
        return torch.contiguous_format
    if kind in ("as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools", "as_string"):
        return value
    raise KeyError(kind)


def _outputs(outputs: list[dict[str, Any]]) -> tuple[str | None, ...]:
    names: list[str | None] = []
    for output in outputs:
        kind, value = next(iter(output.items()))
        if kind == "as_tensors":
            # A list of one still has to be unpacked, hence the place for a second part.
            names += [item["name"] for item in value] + [None] * (len(value) == 1)
        elif kind == "as_none":
            names.append(None)
        else:
            names.append(value.get("name", value.get("as_name")))
    return tuple(names)


def _place(node: dict[str, Any]) -> str:
    """Path of the module that the node came from, as the exporter noted it."""
    stack = node.get("metadata", {}).get("nn_module_stack", "")
    entry = stack.rsplit(";", 1)[-1].split(",")
    name = node.get("name") or node["target"].split(".")[-2]
    path = entry[1] if len(entry) == 3 else ""
    inside = len(entry) == 3 and entry[2].startswith("torch.nn.")
    parts = [*path.split("."), *([] if inside and path else [name])]
    return ".".join(part for part in parts if part)
