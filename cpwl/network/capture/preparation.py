"""Modules as they are handed in: unwrapped, checked, copied to float64, further arguments bound."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map

from cpwl.errors import CaptureError
from cpwl.network.capture.real_numbers import RealNumbers

QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")


def unwrap(module: Any) -> nn.Module:
    """Return the module behind torch.compile and the data-parallel wrappers.

    Raises
    ------
    CaptureError
        For what is no module, and for modules that hide the one to pass.
    """
    if isinstance(module, torch.export.ExportedProgram):
        raise CaptureError(
            "Expected a torch.nn.Module, got an ExportedProgram. Pass the module that was "
            "exported, or save it with torch.export.save and use Network.load."
        )
    if not isinstance(module, nn.Module):
        kind = module.__name__ if isinstance(module, type) else type(module).__name__
        got = f"the class {kind}" if isinstance(module, type) else kind
        raise CaptureError(
            f"Expected a torch.nn.Module, got {got}. Wrap a function in a module, make an instance "
            "of a class; load files with Network.load."
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
    for path, part in module.named_modules():
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
                f"'{path or type(module).__name__}' in training mode. Call module.eval() first."
            )


def float64_copy(
    module: nn.Module, fixed: Mapping[str, Any] | None = None, read: list[Any] | None = None
) -> nn.Module:
    """Copy a module to float64 on the CPU, to be run on one input; the original is only read.

    Its forward runs under `RealNumbers`. Further arguments of forward are bound to `fixed`; the
    first pass appends to `read` what it reads of constants (see `RealNumbers`).

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
    fixed = dict(fixed or {})
    _check_arguments(module, fixed)
    memo: dict[int, Any] = {}
    for path, part in module.named_modules():
        tensors = {**part._parameters, **part._buffers}
        tensors |= {k: v for k, v in vars(part).items() if isinstance(v, Tensor)}
        for key, value in tensors.items():
            if value is None or id(value) in memo:
                continue
            name = f"{path}.{key}" if path else key
            memo[id(value)] = _convert(value, name)
    for part in reversed(list(module.modules())):  # inner ones first
        if _inner(part) is not None:
            memo[id(part)] = _deepcopy(unwrap(part), memo)
    copied = _deepcopy(module, memo)
    for part in copied.modules():
        if part.__dict__.get("_compiled_call_impl") is not None:
            part._compiled_call_impl = None
    bound = {key: tree_map(_bound_value, value) for key, value in fixed.items()}
    _bind(copied, bound, [] if read is None else read)
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
    return value.detach().to("cpu") if isinstance(value, Tensor) else value


def _check_arguments(module: nn.Module, fixed: dict[str, Any]) -> None:
    try:
        signature = inspect.signature(module.forward)
    except (TypeError, ValueError):  # forward is not written in Python
        return
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
                role = "its input" if key == free else "no further argument of its forward"
                raise CaptureError(
                    f"Expected fixed= to name further arguments of {type(module).__name__}.forward "
                    f"({known}), got '{key}', which is {role}. Correct the name."
                )
    missing = [p.name for p in named if p.name in names and p.default is Kind.empty]
    missing = [name for name in missing if name not in fixed]
    if missing:
        example = ", ".join(f'"{name}": ...' for name in missing)
        raise CaptureError(
            f"Expected a forward of one input, got {type(module).__name__}.forward, which also "
            f"needs {', '.join(map(repr, missing))}. Give values: fixed={{{example}}}."
        )
    allowed = (Tensor, int, float, bool, str, type(None))
    for key, value in fixed.items():
        for leaf in tree_leaves(value):
            if not isinstance(leaf, allowed):
                raise CaptureError(
                    f"Expected tensors, numbers, strings, None, or tuples and dicts of them in "
                    f"fixed=, got {type(leaf).__name__} for '{key}'. Convert it."
                )


def _bind(module: nn.Module, fixed: dict[str, Any], known: list[Any]) -> None:
    """Make the forward of a copy one of its input alone."""
    original: Callable[..., Any] = module.forward
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


def call_fixed(module: nn.Module, x: Tensor, fixed: Mapping[str, Any]) -> Any:
    """Run a module as it is, with the further arguments."""
    moved = tree_map(lambda v: v.to(x.device) if isinstance(v, Tensor) else v, dict(fixed))
    return module(x, **moved)


def describe_result(result: Any) -> str:
    """Say what a forward returned in place of one tensor, and how to choose one."""
    kind = type(result).__name__
    if isinstance(result, Mapping):
        keys = ", ".join(repr(key) for key in result)
        return f"a {kind} with {keys}. Wrap it in a module whose forward returns module(x)[key]."
    if isinstance(result, (tuple, list)):
        fields = getattr(result, "_fields", None)
        got = f"a {kind} of {len(result)}" + (f" ({', '.join(fields)})" if fields else "")
        return f"{got}. Wrap it in a module whose forward returns module(x)[0], say."
    names = [k for k, v in getattr(result, "__dict__", {}).items() if isinstance(v, Tensor)]
    got = f"a {kind}" + (f" with the tensors {', '.join(names)}" if names else "")
    name = names[0] if names else "..."
    return (
        f"{got}. Wrap it in a module whose forward returns the tensor wanted, as module(x).{name}."
    )
