"""What a callable is made of: modules and tensors, found and replaced without touching them."""

from __future__ import annotations

import copy
import dataclasses
import dis
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from approx.decoder.binding import Bound
from approx.decoder.checks import DecoderError

Leaf = Callable[[Any], Any]

# functions of these are taken as they are: what they use is no part of a decoder
_LIBRARIES = frozenset([*sys.stdlib_module_names, "torch", "numpy"])
# how deep attributes of objects are followed: a pipeline, its model, the model's wrapper
_DEPTH = 3


def modules_of(decoder: Any) -> tuple[nn.Module, ...]:
    """Return the modules behind a callable: itself, its owner, or what it closes over."""
    return tuple(
        {id(part): part for part in _leaves(decoder) if isinstance(part, nn.Module)}.values()
    )


def dtypes_of(decoder: Any) -> set[torch.dtype]:
    """Return the floating dtypes of parameters, buffers and the tensors that a callable uses."""
    tensors: list[Tensor] = []
    for part in _leaves(decoder):
        held = [*part.parameters(), *part.buffers()] if isinstance(part, nn.Module) else [part]
        tensors += held
    return {tensor.dtype for tensor in tensors if tensor.is_floating_point()}


def tensors_of(decoder: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters, buffers and tensors that a callable uses, with names, in a fixed order."""
    for part in _leaves(decoder):
        if isinstance(part, nn.Module):
            yield from part.named_parameters()
            yield from part.named_buffers()
        else:
            yield "", part


def converted(decoder: Any, dtype: torch.dtype) -> Callable[[Tensor], Any]:
    """Return a copy of the decoder in a dtype; the caller's objects are never touched.

    Raises
    ------
    DecoderError
        A part cannot be copied.
    """

    def leaf(part: Any) -> Any:
        if isinstance(part, nn.Module):
            return _copied(part, dtype)
        return part.detach().to(dtype) if part.is_floating_point() else part

    try:
        with torch.inference_mode(False):
            return rebuilt(decoder, leaf)
    except (TypeError, RuntimeError, AttributeError, copy.Error) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        lines = str(error).splitlines() or [""]
        raise DecoderError(
            f"Expected a decoder that can be copied to run it in {dtype}, got "
            f"{type(error).__name__}: {lines[0]}: convert it yourself, or pass the module with its "
            "arguments as approx.bind(module, ...)."
        ) from error


def rebuilt(value: Any, leaf: Leaf) -> Any:
    """Return a callable with its modules and tensors replaced by leaf(part).

    Followed are `bind`, `functools.partial`, methods, functions (closures, globals and defaults),
    lists, tuples and dictionaries, and the attributes of objects. What holds nothing that is
    replaced is returned itself, and what is replaced is new.
    """
    return _Rebuilding(leaf)(value, _DEPTH)


def _leaves(decoder: Any) -> list[Any]:
    found: list[Any] = []

    def leaf(part: Any) -> Any:
        found.append(part)
        return part

    rebuilt(decoder, leaf)
    return found


class _Rebuilding:
    """One walk through a callable; a part that is met again becomes the same part."""

    def __init__(self, leaf: Leaf) -> None:
        self.leaf = leaf
        # with the values, whose ids would be used again if they were freed
        self.done: dict[int, tuple[Any, Any]] = {}

    def __call__(self, value: Any, depth: int) -> Any:
        if id(value) in self.done:
            return self.done[id(value)][1]
        self.done[id(value)] = (value, value)  # functions that call themselves
        result = self._new(value, depth)
        self.done[id(value)] = (value, result)
        return result

    def _new(self, value: Any, depth: int) -> Any:
        if isinstance(value, nn.Module | Tensor):
            return self.leaf(value)
        if isinstance(value, Bound):
            target = self(value.target, depth)
            return value if target is value.target else dataclasses.replace(value, target=target)
        if isinstance(value, functools.partial):
            return self._partial(value, depth)
        if inspect.ismethod(value):
            owner = self(value.__self__, depth)
            return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
        if isinstance(value, types.FunctionType):
            return self._function(value, depth)
        if type(value) in (list, tuple):
            items = [self(item, depth) for item in value]
            return type(value)(items) if _differ(items, value) else value
        if type(value) is dict:
            items = [self(item, depth) for item in value.values()]
            return dict(zip(value, items, strict=True)) if _differ(items, value.values()) else value
        return self._object(value, depth)

    def _partial(self, value: functools.partial[Any], depth: int) -> Any:
        inner = self(value.func, depth)
        arguments, keywords = self(value.args, depth), self(value.keywords, depth)
        if inner is value.func and arguments is value.args and keywords is value.keywords:
            return value
        return functools.partial(inner, *arguments, **keywords)

    def _function(self, value: types.FunctionType, depth: int) -> Any:
        eager = getattr(value, "_torchdynamo_orig_callable", None)
        if eager is not None:  # torch.compile's wrapper
            inner = self(eager, depth)
            return value if inner is eager else inner
        if (value.__module__ or "").partition(".")[0] in _LIBRARIES:
            return value
        cells = [cell for cell in value.__closure__ or () if _filled(cell)]
        inside = {id(cell): self(cell.cell_contents, depth) for cell in cells}
        names = {name for name in _global_names(value.__code__) if name in value.__globals__}
        globals_ = {name: self(value.__globals__[name], depth) for name in names}
        defaults: Any = self(value.__defaults__, depth)
        keywords = self(value.__kwdefaults__, depth)
        same = (
            all(inside[id(cell)] is cell.cell_contents for cell in cells)
            and all(globals_[name] is value.__globals__[name] for name in names)
            and defaults is value.__defaults__
            and keywords is value.__kwdefaults__
        )
        if same:
            return value
        closure = value.__closure__ and tuple(
            types.CellType(inside[id(cell)]) if id(cell) in inside else cell
            for cell in value.__closure__
        )
        scope = value.__globals__ | globals_
        made = types.FunctionType(value.__code__, scope, value.__name__, defaults, closure)
        made.__kwdefaults__, made.__qualname__ = keywords, value.__qualname__
        made.__module__ = value.__module__  # of a decorator's wrapper: that of what it wraps
        made.__dict__.update(value.__dict__)
        return made

    def _object(self, value: Any, depth: int) -> Any:
        """Follow the attributes of an object, where it is no class, no library and not too deep."""
        attributes: Any = getattr(value, "__dict__", None)
        plain = isinstance(value, type | types.ModuleType) or type(attributes) is not dict
        if plain or depth == 0 or type(value).__module__.partition(".")[0] in _LIBRARIES:
            return value
        made = {name: self(item, depth - 1) for name, item in attributes.items()}
        if not _differ(made.values(), attributes.values()):
            return value
        result = copy.copy(value)
        vars(result).update(made)
        return result


def _differ(made: Any, given: Any) -> bool:
    return any(a is not b for a, b in zip(made, given, strict=True))


def _filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - it raises where the name has no value yet
    except ValueError:
        return False
    return True


def _global_names(code: types.CodeType) -> Iterator[str]:
    """Yield the names that a function, and the functions written in it, read as globals."""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_GLOBAL":
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _copied(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy in a dtype, of attributes that are plain tensors too."""
    # what torch.compile wrapped runs as it was written
    module = getattr(module, "_orig_mod", module)
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in list(vars(part).values()):
            inside = value.values() if type(value) is dict else value
            for tensor in inside if type(value) in (list, tuple, dict) else (value,):
                if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter):
                    # torch copies no tensor with a graph, as weight_norm's `weight` has after a
                    # pass; the layer's hook makes a new one before the next
                    plain = tensor.detach().clone()
                    memo[id(tensor)] = plain.to(dtype) if plain.is_floating_point() else plain
    # not the module's own .to(): diffusers' models warn in it
    return nn.Module.to(copy.deepcopy(module, memo), dtype)


def as_latents(z: Any, decoder: Any) -> Any:
    """Return a numpy array as a tensor of the decoder's dtype and device, anything else itself.

    Raises
    ------
    ValueError
        An array of something else than numbers.
    """
    if not isinstance(z, np.ndarray):
        return z
    if z.dtype.kind not in "fiub":
        raise ValueError(
            f"Expected latents as numbers, got an array of {z.dtype}: convert it to float32."
        )
    z = torch.as_tensor(np.array(z))  # a copy, as torch warns of arrays that cannot be written to
    for module in modules_of(decoder):
        for parameter in module.parameters():
            if parameter.is_floating_point() and z.is_floating_point():
                return z.to(parameter)
    return z
