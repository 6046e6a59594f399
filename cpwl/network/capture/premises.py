"""What a captured graph takes for granted of its module, and another module's values for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from cpwl.errors import CaptureError
from cpwl.network.capture.callables import CallableModule
from cpwl.network.files import Output

ANEW = "Capture this module anew with Network.from_torch."


class Premises(NamedTuple):
    """What was not traced as a tensor, and so holds only for modules that agree in it.

    Attributes
    ----------
    architecture : mapping of str to str
        Every part of the module by its path: its class, torch.nn's own settings, and the names and
        shapes of its parameters and buffers.
    read : list
        The constants that forward read while it was traced: numbers of `item`, truth values, the
        places of masks.
    fixed : mapping of str to objects
        Values of forward's further arguments.
    output : key, position, attribute, function or None
        Picks the tensor from what forward returns.
    """

    architecture: Mapping[str, str]
    read: list[Any]
    fixed: Mapping[str, Any]
    output: Output | None


def architecture(module: nn.Module) -> dict[str, str]:
    """Describe every part of a module, for `Premises`."""
    found = {}
    for path, part in module.named_modules(remove_duplicate=False):
        kind = type(part)
        # what others write into their representation may be of the moment
        known = kind.__module__.startswith("torch.nn.")
        name = "a method or function" if kind is CallableModule else kind.__qualname__
        found[path] = f"{name}({part.extra_repr()})" if known else name
        tensors = {**part._parameters, **part._buffers}
        shapes = [f"{k} {tuple(v.shape)}" for k, v in tensors.items() if v is not None]
        if shapes:
            found[path] += f" with {', '.join(shapes)}"
    return found


def state_of(module: nn.Module, exported: ExportedProgram, premises: Premises) -> dict[str, Tensor]:
    """Values of the parameters, buffers and attributes that an exported graph names.

    Raises
    ------
    CaptureError
        A module of another architecture, naming the first part that differs.
    """
    ours, theirs = premises.architecture, architecture(module)
    if ours != theirs:
        path = next(p for p in (*ours, *theirs) if ours.get(p) != theirs.get(p))
        place = f"'{path}'" if path else "the top"
        raise CaptureError(
            f"Expected the architecture that was captured, {ours.get(path, 'nothing')} at {place}, "
            f"got {theirs.get(path, 'nothing')}. {ANEW}"
        )
    named = dict(module.named_parameters(remove_duplicate=False))
    named |= dict(module.named_buffers(remove_duplicate=False))
    state = {}
    for spec in exported.graph_signature.input_specs:
        name = str(spec.target)
        value = named.get(name, _attribute(module, name))
        if isinstance(value, Tensor):  # the others are numbers that forward writes down
            state[name] = value.detach()
    for name, value in state.items():
        old: Any = exported.constants.get(name, value)
        if old.shape != value.shape:
            raise CaptureError(
                f"Expected the architecture that was captured, with '{name}' of shape "
                f"{tuple(old.shape)}, got {tuple(value.shape)}. {ANEW}"
            )
    return state


def check_read(read: list[Any], premises: Premises) -> None:
    """Refuse a module whose forward reads other constants than when it was captured.

    Raises
    ------
    CaptureError
        With the first one that differs.
    """
    ours, theirs = tree_leaves(premises.read), tree_leaves(read)
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=False) if not _same(a, b)]
    if pairs or len(ours) != len(theirs):
        a, b = map(_said, pairs[0]) if pairs else (f"{len(ours)} of them", f"{len(theirs)}")
        raise CaptureError(
            "Expected a module whose forward reads the same numbers and masks (item(), bool(), "
            f"boolean indices) as when it was captured, {a}, got {b}: they decide what is "
            f"computed. {ANEW}"
        )


def run(module: nn.Module, z: Tensor) -> Tensor:
    """Run a float64 copy whose forward may differ from what its architecture tells.

    Raises
    ------
    CaptureError
        Where it fails.
    """
    try:
        return module(z)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise CaptureError(
            f"Expected a module that runs as the captured one did, got from "
            f"{type(module).__name__}: {error} {ANEW}"
        ) from error


def _attribute(module: nn.Module, path: str) -> Any:
    """Find a tensor that is a plain attribute of a part of the module, or None."""
    *parts, name = path.split(".")
    for part in parts:
        module = module._modules.get(part)  # type: ignore[assignment]
        if module is None:
            return None
    return vars(module).get(name)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)


def _said(value: Any) -> str:
    if isinstance(value, Tensor):
        shown = value.tolist() if value.numel() <= 8 else f"shape {tuple(value.shape)}"
        return f"a tensor of {shown}"
    return repr(value)
