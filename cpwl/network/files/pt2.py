"""Archives of `torch.export.save` (.pt2) as torch modules; nothing that they contain is run.

`torch.export.load` unpickles weights, constants and example inputs with `weights_only=False` and
evaluates expressions, so an archive can execute code. Here the archive is a zip file with a JSON
graph and raw tensors. Pickles are refused, and members that the graph does not need are not opened.
The graph may name the operations of `pure_operations` and arithmetic of whole numbers only, and it
is rehearsed on shapes before it takes memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf, nan, prod
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from cpwl.contents import Archive, open_archive, parse_json
from cpwl.errors import CaptureError
from cpwl.network.files.calls import Call, FileModule, Name
from cpwl.network.files.pure_operations import ASSERTIONS, find_fault, find_operation
from cpwl.network.files.rehearsal import (
    ARITHMETIC,
    MOST_CONSTANT,
    MOST_LIVE,
    limits,
    rehearse,
)
from cpwl.network.files.signature import Output, fixed_array, open_input, position_of

# ScalarType in torch's schema of exported programs.
DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64,
    6: torch.float16, 7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
ADVICE = "Save it anew with torch.export.save(torch.export.export(module, ...), path)."
# Names of numbers that JSON has no notation for.
_NUMBERS = {"Infinity": inf, "-Infinity": -inf, "NaN": nan}
_DEEPEST = 64  # modules in one another
_EXAMPLE_BATCH = 2  # where the file leaves the batch open; of one, squeeze would lose the axis


def read_pt2(
    path: Path,
    input_shape: tuple[int, ...] | None,
    *,
    fixed: Mapping[str, Any] | None = None,
    output: Output | None = None,
    most_live: int = MOST_LIVE,
) -> tuple[nn.Module, tuple[int, ...]]:
    """Build the module that an archive describes.

    Parameters
    ----------
    path : Path
    input_shape : tuple of int, optional
        Shape of one sample, instead of the archive's.
    fixed, output
        As for `read_onnx`; an output's name is its key where the module returned a dictionary.
    most_live : int
        Bytes for each sample that the values of the graph may take at one time.

    Returns
    -------
    module : nn.Module
    input_shape : tuple of int
        Shape of one sample: the archive's, or the argument.

    Raises
    ------
    CaptureError
        If the file is missing, not an archive of this kind, damaged, holds code, names an operation
        that does more than compute, or asks for more memory than its size explains.
    """
    if not path.is_file():
        raise CaptureError(f"Expected a .pt2 file, got no file at '{path}'. Check the path.")
    try:
        with open_archive(path) as archive:
            members = _without_root(archive)
            if "models/model.json" not in members.members:
                raise CaptureError(
                    f"Expected an archive of torch.export.save, got '{path.name}' without "
                    f"models/model.json. {ADVICE}"
                )
            program = parse_json(members.read("models/model.json"))
            tensors = _read_tensors(members, path)
        return _build(
            program["graph_module"], tensors, input_shape, fixed or {}, output, path, most_live
        )
    except CaptureError:
        raise
    except ValueError as error:
        raise CaptureError(
            f"Expected an archive of torch.export.save, got '{path.name}', which is damaged or "
            f"truncated: {error}. Copy it again, or save it anew."
        ) from error
    except (KeyError, IndexError, TypeError, AttributeError, StopIteration) as error:
        raise CaptureError(
            f"Expected the archive layout of torch.export.save in torch {torch.__version__}, got "
            f"'{path.name}', which lacks or changes {str(error)[:100]}. {ADVICE}"
        ) from error


def _without_root(archive: Archive) -> Archive:
    """Name members by their paths below the one folder that holds all of them."""
    if len({name.partition("/")[0] for name in archive.members}) > 1:
        raise ValueError("its members lie in several folders")
    return archive._replace(
        members={name.partition("/")[2]: info for name, info in archive.members.items()}
    )


def _read_tensors(archive: Archive, path: Path) -> dict[str, Tensor]:
    """Read weights and constants, whose sizes may not exceed what their bytes explain."""
    found: dict[str, Tensor] = {}
    data: dict[str, bytearray] = {}
    left = MOST_CONSTANT + 4 * path.stat().st_size
    for kind in ("weights", "constants"):
        config = f"data/{kind}/model_{kind}_config.json"
        if config not in archive.members:
            continue
        for key, entry in parse_json(archive.read(config))["config"].items():
            if entry["use_pickle"]:
                raise CaptureError(
                    f"Expected plain tensors in '{path.name}', got a pickle for {key[:60]!r} that "
                    "could run code when opened. Do not use this file; ask for one saved by "
                    "torch.export.save."
                )
            member = f"data/{kind}/{entry['path_name']}"
            if member not in data:
                data[member] = bytearray(archive.read(member))
            found[key] = _raw_tensor(data[member], entry["tensor_meta"], left)
            left -= found[key].nbytes
    return found


def _raw_tensor(data: bytearray, meta: dict[str, Any], most: int) -> Tensor:
    dtype = DTYPES[meta["dtype"]]
    sizes = [_whole(size["as_int"]) for size in meta["sizes"]]
    strides = [_whole(stride["as_int"]) for stride in meta["strides"]]
    offset = _whole(meta["storage_offset"]["as_int"])
    if 0 in sizes:
        return torch.empty(sizes, dtype=dtype)
    last = offset + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
    if (last + 1) * dtype.itemsize > len(data):
        raise ValueError(f"{last + 1} values of {dtype} in {len(data)} bytes")
    if prod(sizes) * dtype.itemsize > most:
        raise ValueError(f"a tensor of sizes {str(sizes)[:60]} made of {len(data)} bytes")
    flat = torch.frombuffer(data, dtype=dtype, count=last + 1)
    return flat.as_strided(sizes, strides, offset).clone()


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**48:
        raise ValueError(f"{str(value)[:40]!r} where a size is needed")
    return value


def _build(
    module: dict[str, Any],
    tensors: dict[str, Tensor],
    input_shape: tuple[int, ...] | None,
    fixed: Mapping[str, Any],
    output: Output | None,
    path: Path,
    most_live: int,
) -> tuple[nn.Module, tuple[int, ...]]:
    graph, signature = module["graph"], module["signature"]
    constants: dict[str, Tensor] = {}
    inputs = []
    for spec in signature["input_specs"]:
        kind, body = next(iter(spec.items()))
        if kind == "user_input":
            inputs.append(body["arg"]["as_tensor"]["name"])
        elif kind in ("parameter", "buffer", "tensor_constant"):
            constants[body["arg"]["name"]] = tensors[body[f"{kind}_name"]]
    outputs = [
        spec["user_output"]["arg"] for spec in signature["output_specs"] if "user_output" in spec
    ]
    source = open_input(inputs, fixed, path)
    names = _output_names(module, len(outputs))
    wanted = position_of(names, output, path)
    if "as_tensor" not in outputs[wanted]:
        raise CaptureError(
            f"Expected a tensor as output '{names[wanted]}' of '{path.name}', got another value. "
            "Choose another with output=."
        )
    example, shape = _example(graph["tensor_values"][source], input_shape, path)
    calls = [call for node in graph["nodes"] for call in _calls(node, path)]
    for name, value in fixed.items():
        array, spread = _fixed(name, value, graph["tensor_values"][name], source, path)
        constants[name if not spread else f"{name}:"] = array
        calls = [*spread, *calls]
    result = outputs[wanted]["as_tensor"]["name"]
    if result not in inputs and not any(result in call.outputs for call in calls):
        raise KeyError(result)
    most = limits(path.stat().st_size, len(example), most_live)
    if rehearse(calls, constants, source, example, most, path.name):
        # the caller's tensor stays as it is
        given = (Name(source),)
        copied = Call("input", torch.ops.aten.clone.default, given, {}, (source,))
        calls = [copied, *calls]
    return FileModule(calls, constants, source, result), shape


def _output_names(module: dict[str, Any], count: int) -> list[str]:
    """Keys of the dictionary that the module returned, or else the outputs' positions."""
    calls = [entry for entry in module.get("module_call_graph", []) if entry["fqn"] == ""]
    if calls and calls[0].get("signature"):
        spec = parse_json(calls[0]["signature"]["out_spec"].encode())[1]
        keys = parse_json(spec["context"].encode()) if spec["type"] == "builtins.dict" else ()
        if len(keys) == count and all(isinstance(k, str) and k.isprintable() for k in keys):
            return list(keys)
    return [str(k) for k in range(count)]


def _fixed(
    name: str, value: Any, meta: dict[str, Any], source: str, path: Path
) -> tuple[Tensor, list[Call]]:
    """Value of a further input, and the calls that repeat its one row for every sample."""
    sizes = [_whole(size["as_int"]) if "as_int" in size else None for size in meta["sizes"]]
    dtype = DTYPES[meta["dtype"]]
    kind = torch.empty(0, dtype=torch.float32 if dtype == torch.bfloat16 else dtype).numpy().dtype
    tensor = torch.from_numpy(fixed_array(name, value, sizes, kind, path)).to(dtype)
    if not sizes or sizes[0] is not None:
        return tensor, []
    aten, rows = torch.ops.aten, f"{name}:rows"
    size = [Name(rows), *tensor.shape[1:]]
    return tensor, [
        Call(name, aten.sym_size.int, (Name(source), 0), {}, (rows,)),
        Call(name, aten.expand.default, (Name(f"{name}:"), size), {}, (name,)),
    ]


def _example(
    meta: dict[str, Any], input_shape: tuple[int, ...] | None, path: Path
) -> tuple[Tensor, tuple[int, ...]]:
    """Return a batch without memory, as the file or the argument has it, and a sample's shape."""
    first, *sizes = meta["sizes"]
    if input_shape is None:
        if not all("as_int" in size for size in sizes):
            raise CaptureError(
                f"Expected fixed sizes besides the batch axis in '{path.name}', got symbolic ones. "
                "Pass input_shape."
            )
        input_shape = tuple(_whole(size["as_int"]) for size in sizes)
    batch = _whole(first["as_int"]) if "as_int" in first else _EXAMPLE_BATCH
    dtype = DTYPES[meta["dtype"]]
    most = limits(path.stat().st_size, max(batch, 1), MOST_LIVE).live
    if prod(input_shape) * max(batch, 1) * dtype.itemsize > most:
        raise ValueError(f"an input of shape {str(input_shape)[:60]}")
    return torch.empty((batch, *input_shape), dtype=dtype, device="meta"), tuple(input_shape)


def _calls(node: dict[str, Any], path: Path) -> list[Call]:
    """Return a node's call; none for an assertion of the exporter."""
    function = _function(node["target"], path)
    values = [(entry["name"], _argument(entry["arg"])) for entry in node["inputs"]]
    args, kwargs = [], {}
    if isinstance(function, torch._ops.OpOverload):
        if function._schema.name.removeprefix("aten::") in ASSERTIONS:
            return []
        given = dict(values)
        fault = find_fault(function, given)
        if fault:
            _refuse(f"{node['target']} with {fault}", path, "Call module.eval() before the export.")
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
    return [Call(_place(node), function, tuple(args), kwargs, _outputs(node["outputs"]))]


def _function(target: str, path: Path) -> Callable[..., Any]:
    if target in ARITHMETIC:
        return ARITHMETIC[target]
    parts = target.split(".")
    if len(parts) == 5 and parts[:3] == ["torch", "ops", "aten"]:
        found = find_operation(parts[3], parts[4])
        if found is not None:
            return found
    _refuse(target, path, "Export the module with torch.export.export, without others.")


def _refuse(target: str, path: Path, remedy: str) -> NoReturn:
    raise CaptureError(
        f"Expected only ATen operations that compute tensors from tensors in '{path.name}', got "
        f"{target[:100]!r}. {remedy}"
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
    if kind == "as_float":
        return _NUMBERS.get(value, value) if isinstance(value, str) else value
    if kind in ("as_int", "as_ints", "as_floats", "as_bool", "as_bools", "as_string"):
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
    stack = str(node.get("metadata", {}).get("nn_module_stack", ""))
    entry = stack.rsplit(";", 1)[-1].split(",")
    name = node.get("name") or node["target"].split(".")[-2]
    path = entry[1] if len(entry) == 3 else ""
    inside = len(entry) == 3 and entry[2].startswith("torch.nn.")
    parts = [*path.split("."), *([] if inside and path else [name])]
    place = ".".join(part for part in parts if part)
    if len(parts) > _DEEPEST or not place.isprintable():
        raise ValueError(f"a module path {place[:60]!r}")
    return place
