"""Modules as they are handed in: unwrapped, checked, copied to float64, run on one input."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map

from cpwl.errors import CaptureError
from cpwl.network.capture.callables import (
    CallableModule,
    name_of,
    named_parts,
    signature_of,
)
from cpwl.network.capture.real_numbers import RealNumbers
from cpwl.network.files import Output

OUTPUTS = "Write output='recon', output=0, output='.sample' or output=lambda y: y[0], for example."
QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")


def unwrap(module: Any) -> nn.Module:
    """Return the module behind torch.compile and the data-parallel wrappers, or of a callable.

    Raises
    ------
    CaptureError
        For what is neither module nor callable, and for what hides the one to pass.
    """
    if isinstance(module, torch.export.ExportedProgram):
        raise CaptureError(
            "Expected a torch.nn.Module, got an ExportedProgram. Pass the module that was "
            "exported, or save it with torch.export.save and use Network.load."
        )
    if isinstance(module, (torch.jit.ScriptFunction, torch._C.ScriptMethod)):
        raise CaptureError(
            f"Expected a method or function in Python, got {type(module).__name__}, which "
            "torch.jit compiled. Pass what was scripted or traced."
        )
    if not isinstance(module, nn.Module):
        if callable(module) and not isinstance(module, type):
            return CallableModule(module)
        got = f"the class {module.__name__}" if isinstance(module, type) else type(module).__name__
        raise CaptureError(
            f"Expected a torch.nn.Module, or a method or function around one, got {got}. Make an "
            "instance of a class; load files with Network.load."
        )
    inner = _inner(module)
    return module if inner is None else unwrap(inner)


def _inner(module: nn.Module) -> nn.Module | None:
    """Return what a wrapper without a computation of its own wraps."""
    kind = type(module)
    if kind.__name__ == "OptimizedModule":
        return module._modules.get("_orig_mod")
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return module.module
    return None


def check_module(module: nn.Module) -> None:
    """Refuse what cannot be copied and run in float64.

    Raises
    ------
    CaptureError
        For scripted, quantised, sharded and lazy modules, modules without memory (device "meta"),
        and batch-norm or dropout in training mode.
    """
    random = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
    for path, part in named_parts(module):
        place = f"{type(part).__name__} at '{path}'" if path else type(part).__name__
        if isinstance(part, torch.jit.ScriptModule):
            raise CaptureError(
                f"Expected a module in Python, got {place}, which torch.jit compiled. Pass the "
                "module that was scripted or traced."
            )
        if type(part).__module__.startswith(QUANTIZED) or any(
            isinstance(t, Tensor) and t.is_quantized for t in vars(part).values()
        ):
            raise CaptureError(
                f"Expected a module of floating-point numbers, got {place}, which is quantised and "
                "so rounds. Pass the float module, as it was before torch.ao's convert."
            )
        if type(part).__name__ == "FullyShardedDataParallel":
            raise CaptureError(
                f"Expected a whole module, got {place}, whose parameters are shared out. Load its "
                "full state dict into the module below it (.module), and pass that."
            )
        for name, value in (*part._parameters.items(), *part._buffers.items()):
            if value is None or not (is_lazy(value) or value.is_meta):
                continue
            what = "not initialised yet" if is_lazy(value) else "on the device 'meta'"
            remedy = (
                "Run the module once on a batch"
                if is_lazy(value)
                else "Call module.to_empty(device='cpu') and load its weights"
            )
            raise CaptureError(
                f"Expected parameters with values, got '{f'{path}.{name}'.lstrip('.')}', which is "
                f"{what}. {remedy}."
            )
        if isinstance(part, random) and part.training:
            raise CaptureError(
                f"Expected a module in evaluation mode, got {type(part).__name__} at "
                f"'{path or name_of(module)}' in training mode. Call module.eval() first."
            )


def float64_copy(
    module: nn.Module,
    fixed: Mapping[str, Any] | None = None,
    output: Output | None = None,
    read: list[Any] | None = None,
) -> nn.Module:
    """Copy a module to float64 on the CPU, to be run on one input; the original is only read.

    Its forward runs under `RealNumbers`, with further arguments bound to `fixed`, and returns what
    `output` picks. The first pass appends to `read` what it reads of constants.

    Raises
    ------
    CaptureError
        As `check_module`; for complex parameters, NaN and infinity, and for arguments that do not
        fit.
    """
    check_module(module)
    if fixed is not None and not isinstance(fixed, Mapping):
        raise CaptureError(
            f"Expected fixed= as a mapping of argument names to values, got "
            f'{type(fixed).__name__}. Write fixed={{"t": 10}}, for example.'
        )
    if not (output is None or isinstance(output, (str, int)) or callable(output)):
        raise CaptureError(
            f"Expected output= as a key, a position, an attribute such as '.sample' or a function "
            f"of what the module returns, got {output!r}. {OUTPUTS}"
        )
    bound: dict[str, Any] = tree_map(_bound_value, dict(fixed or {}))
    _check_arguments(module, bound)
    memo: dict[int, Any] = {}
    if isinstance(module, CallableModule):
        memo |= {id(tensor): _bound_value(tensor) for tensor in module.tensors_}
    for path, part in named_parts(module):
        tensors = {**part._parameters, **part._buffers}
        tensors |= {k: v for k, v in vars(part).items() if isinstance(v, Tensor)}
        for key, value in tensors.items():
            if value is None or id(value) in memo:
                continue
            name = f"{path}.{key}" if path else key
            memo[id(value)] = _convert(value, name)
    for _, part in reversed(list(named_parts(module))):  # inner ones first
        if _inner(part) is not None:
            memo[id(part)] = _deepcopy(unwrap(part), memo)
    copied = _deepcopy(module, memo)
    for part in copied.modules():
        if part.__dict__.get("_compiled_call_impl") is not None:
            part._compiled_call_impl = None
    _bind(copied, bound, output, [] if read is None else read)
    return copied


def _deepcopy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        return copy.deepcopy(module, memo)
    except (RuntimeError, TypeError) as error:
        raise CaptureError(
            f"Expected a module that copy.deepcopy can copy, got {type(module).__name__}, which "
            f"fails with: {error} Remove the attribute that cannot be copied."
        ) from error


def _convert(value: Tensor, name: str) -> Tensor:
    if value.is_complex():
        raise CaptureError(
            f"Expected real parameters, got complex numbers in '{name}'. Use a real module."
        )
    if value.layout != torch.strided:
        raise CaptureError(
            f"Expected dense parameters, got one of layout {value.layout} in '{name}'. Make it "
            "dense, or take it out if the module does not use it."
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


def _bound_value(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf":
        return torch.as_tensor(value)
    return value.detach().to("cpu") if isinstance(value, Tensor) else value


def _check_arguments(module: nn.Module, fixed: dict[str, Any]) -> None:
    signature = signature_of(module)
    if signature is None:
        return
    called = name_of(module)
    if not isinstance(module, CallableModule):
        called += ".forward"
    Kind = inspect.Parameter
    parameters = list(signature.parameters.values())
    named = [p for p in parameters if p.kind in (Kind.POSITIONAL_OR_KEYWORD, Kind.KEYWORD_ONLY)]
    positional = [p for p in parameters if p.kind in (Kind.POSITIONAL_ONLY,
                                                      Kind.POSITIONAL_OR_KEYWORD)]  # fmt: skip
    free = positional[0].name if positional else None
    names = [p.name for p in named if p.name != free]
    if not any(p.kind == Kind.VAR_KEYWORD for p in parameters):
        for key in fixed:
            if key not in names:
                known = ", ".join(map(repr, names)) or "none"
                role = "its input" if key == free else "no argument of it"
                raise CaptureError(
                    f"Expected fixed= to name further arguments of {called} ({known}), got "
                    f"'{key}', which is {role}. Correct the name."
                )
    missing = [p.name for p in named if p.name in names and p.default is Kind.empty]
    missing = [name for name in missing if name not in fixed]
    if missing:
        example = ", ".join(f'"{name}": ...' for name in missing)
        raise CaptureError(
            f"Expected a function of one input, got {called}, which also needs "
            f"{', '.join(map(repr, missing))}. Give values: fixed={{{example}}}."
        )
    allowed = (Tensor, int, float, bool, str, type(None))
    for key, value in fixed.items():
        for leaf in tree_leaves(value):
            if isinstance(leaf, (float, Tensor)) and torch.as_tensor(leaf).isnan().any():
                raise CaptureError(
                    f"Expected numbers in fixed=, got NaN for '{key}'. Give the value that it has."
                )
            if not isinstance(leaf, allowed):
                raise CaptureError(
                    f"Expected tensors, numbers, strings, None, or tuples and dicts of them in "
                    f"fixed=, got {type(leaf).__name__} for '{key}'. Convert it."
                )


def _bind(
    module: nn.Module, fixed: dict[str, Any], output: Output | None, known: list[Any]
) -> None:
    """Make the forward of a copy one of its input alone, that returns one tensor."""
    forward_of_all: Callable[..., Any] = module.forward

    def original(x: Tensor, **arguments: Any) -> Any:
        return pick(forward_of_all(x, **arguments), output)

    state = {"passes": 0, "spread": False}

    def forward(x: Tensor) -> Any:
        replay = known if torch.compiler.is_exporting() else None
        mode = RealNumbers([] if state["passes"] else known, replay)
        mode.mark(x)
        with mode:
            if not state["passes"]:
                result = _first_pass(original, x, fixed, state, known)
                state["passes"] = 1
                return result
            return original(x, **(_spread(fixed, x) if state["spread"] else fixed))

    module.forward = forward


def _first_pass(
    original: Callable[..., Any],
    x: Tensor,
    fixed: dict[str, Any],
    state: dict[str, Any],
    known: list[Any],
) -> Any:
    """Run forward with the fixed arguments as they are, or spread over the batch if it must."""
    try:
        return original(x, **fixed)
    except (RuntimeError, ValueError, TypeError, IndexError):
        if not any(map(_spreads, tree_leaves(fixed))):
            raise
        known.clear()
        result = original(x, **_spread(fixed, x))
        state["spread"] = True
        return result


def _spreads(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == 1


def _spread(fixed: dict[str, Any], x: Tensor) -> dict[str, Any]:
    """Repeat tensors whose batch axis is one for every sample."""

    def spread(value: Any) -> Any:
        return value.expand(x.shape[0], *value.shape[1:]) if _spreads(value) else value

    return tree_map(spread, fixed)


def call_fixed(
    module: nn.Module, x: Tensor, fixed: Mapping[str, Any], output: Output | None
) -> Any:
    """Run a module as it is, with the further arguments."""
    bound = tree_map(_bound_value, dict(fixed))
    moved = tree_map(lambda v: v.to(x.device) if isinstance(v, Tensor) else v, bound)
    return pick(module(x, **moved), output)


def pick(result: Any, output: Output | None) -> Any:
    """Return what `output` picks of a forward's result; by default itself, or its `.sample`."""
    if output is None:
        sample = None if isinstance(result, Tensor) else getattr(result, "sample", None)
        return sample if isinstance(sample, Tensor) else result
    if callable(output):
        return output(result)
    try:
        if isinstance(output, int) or (isinstance(result, Mapping) and output in result):
            return result[output]
        return attrgetter(output.removeprefix("."))(result)
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise CaptureError(
            f"Expected output={output!r} to pick a tensor, got {describe_result(result)}"
        ) from error


def describe_result(result: Any) -> str:
    """Say what a forward returned in place of one tensor, and how to choose one."""
    kind = type(result).__name__
    if isinstance(result, Mapping):
        keys = [repr(key) for key in result]
        got, choice = f"a {kind} with {', '.join(keys)}", keys[0] if keys else "..."
    elif isinstance(result, (tuple, list)):
        fields = getattr(result, "_fields", None)
        got = f"a {kind} of {len(result)}" + (f" ({', '.join(fields)})" if fields else "")
        choice = "0"
    elif result is None or isinstance(result, Tensor):
        return "None. Return the tensor wanted." if result is None else "a tensor. Leave it out."
    else:
        names = [k for k, v in getattr(result, "__dict__", {}).items() if isinstance(v, Tensor)]
        got = f"a {kind}" + (f" with the tensors {', '.join(names)}" if names else "")
        choice = repr(f".{names[0]}") if names else "lambda y: ..."
    return f"{got}. Choose one: output={choice}, say."
