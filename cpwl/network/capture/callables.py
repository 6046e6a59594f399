"""Methods and functions as modules: of the modules that they are bound to, close over or name."""

from __future__ import annotations

import copy
import dis
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from cpwl.network.files import FileModule

Leaf = Callable[[Any, str], Any]

# What functions of these use is no part of a network.
LIBRARIES = frozenset([*sys.stdlib_module_names, "torch", "numpy"])
# How deep attributes of objects are followed: a pipeline, its model, the model's wrapper.
DEPTH = 3


class CallableModule(nn.Module):
    """A callable around modules as a module of its own.

    Its parts stand at the paths that they have in the one module behind it; of several modules,
    each has the name under which the callable knows it.

    Attributes
    ----------
    called_ : callable
    owner_ : nn.Module or None
        The one module behind it. It shares its parts, so that to torch it is no part itself.
    tensors_ : list of Tensor
        Those that the callable uses beside its modules.
    """

    called_: Callable[..., Any]
    owner_: nn.Module | None
    tensors_: list[Tensor]

    def __init__(self, called: Callable[..., Any]) -> None:
        super().__init__()
        modules: dict[int, tuple[str, nn.Module]] = {}
        tensors: list[Tensor] = []

        def note(part: Any, name: str) -> Any:
            if isinstance(part, nn.Module):
                modules.setdefault(id(part), (name, part))
            else:
                tensors.append(part)
            return part

        rebuilt(called, note)
        inside = {id(m) for _, part in modules.values() for m in part.modules() if m is not part}
        outer = [entry for key, entry in modules.items() if key not in inside]
        state = self.__dict__
        state |= {"called_": called, "tensors_": tensors, "owner_": None}
        if len(outer) == 1:
            state["owner_"] = outer[0][1]
            for name in ("_parameters", "_buffers", "_modules"):
                # the same dictionaries: torch.export exchanges parameters in them for its own
                state[name] = outer[0][1].__dict__[name]
            return
        for name, part in outer:
            while hasattr(self, name):
                name += "_"
            self.add_module(name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        return self.called_(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> CallableModule:
        """Copy the modules, and the tensors that `memo` has copies of."""

        def copied(part: Any, name: str) -> Any:
            if isinstance(part, nn.Module):
                return copy.deepcopy(part, memo)
            return memo.get(id(part), part)

        return CallableModule(rebuilt(self.called_, copied))


def named_parts(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield a module and its parts with their paths; of a callable, the modules behind it."""
    owner = module.owner_ if isinstance(module, CallableModule) else None
    return (owner or module).named_modules()


def name_of(module: nn.Module) -> str:
    """Name a module by its class, and a callable as Python does."""
    if isinstance(module, CallableModule):
        return _named(module.called_)
    return "the file" if isinstance(module, FileModule) else _kind(module)


def signature_of(module: nn.Module) -> inspect.Signature | None:
    """Return the signature of a module's forward or of a callable; None of one written in C."""
    called = module.called_ if isinstance(module, CallableModule) else module.forward
    try:
        return inspect.signature(called)
    except (TypeError, ValueError):
        return None


def _named(value: Any) -> str:
    if isinstance(value, functools.partial):
        return _named(value.func)
    if inspect.ismethod(value):
        return f"{_kind(value.__self__)}.{value.__name__}"
    return getattr(value, "__qualname__", _kind(value)).rpartition("<locals>.")[2]


def _kind(value: Any) -> str:
    return type(value).__name__


def rebuilt(value: Any, leaf: Leaf) -> Any:
    """Return a callable with its modules and tensors replaced by leaf(part, name).

    Followed are partials, methods, functions (closures, globals and defaults), lists, tuples and
    dictionaries, and the attributes of objects. What holds nothing that is replaced is returned
    itself, and what is replaced is new.
    """
    return _Rebuilding(leaf)(value, "module", DEPTH)


class _Rebuilding:
    """One walk through a callable; a part that is met again becomes the same part."""

    def __init__(self, leaf: Leaf) -> None:
        self.leaf = leaf
        # with the values, whose ids would be used again if they were freed
        self.done: dict[int, tuple[Any, Any]] = {}

    def __call__(self, value: Any, name: str, depth: int) -> Any:
        if id(value) in self.done:
            return self.done[id(value)][1]
        self.done[id(value)] = (value, value)  # functions that call themselves
        result = self._new(value, name, depth)
        self.done[id(value)] = (value, result)
        return result

    def _new(self, value: Any, name: str, depth: int) -> Any:
        if isinstance(value, nn.Module | Tensor):
            return self.leaf(value, name)
        if isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
            new = self._each(parts, [name] * 3, depth)
            return value if new is None else functools.partial(new[0], *new[1], **new[2])
        if inspect.ismethod(value):
            owner = self(value.__self__, name, depth)
            return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
        if isinstance(value, types.FunctionType):
            return self._function(value, name, depth)
        if type(value) in (list, tuple):
            new = self._each(value, [f"{name}_{k}" for k in range(len(value))], depth)
            return value if new is None else type(value)(new)
        if type(value) in (dict, types.MappingProxyType):
            new = self._each(value.values(), [str(key) for key in value], depth)
            return value if new is None else type(value)(dict(zip(value, new, strict=True)))
        return self._object(value, depth)

    def _each(self, values: Any, names: list[str], depth: int) -> list[Any] | None:
        """Return the values rebuilt, or None where all of them stay as they are."""
        new = [self(v, n.replace(".", "_"), depth) for v, n in zip(values, names, strict=True)]
        return new if any(a is not b for a, b in zip(new, values, strict=True)) else None

    def _function(self, value: types.FunctionType, name: str, depth: int) -> Any:
        eager = getattr(value, "_torchdynamo_orig_callable", None)
        if eager is not None:  # torch.compile's wrapper
            return self(eager, name, depth)
        if (value.__module__ or "").partition(".")[0] in LIBRARIES:
            return value
        closure = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
        cells = {key: cell.cell_contents for key, cell in closure.items() if _filled(cell)}
        names = {key for key in _global_names(value.__code__) if key in value.__globals__}
        scope = {key: value.__globals__[key] for key in sorted(names)}
        defaults = {"defaults": value.__defaults__, "keywords": value.__kwdefaults__}
        parts = [*cells.values(), *scope.values(), *defaults.values()]
        new = self._each(parts, [*cells, *scope, *defaults], depth)
        if new is None:
            return value
        inside = dict(zip(cells, new, strict=False))
        made = types.FunctionType(
            value.__code__,
            value.__globals__ | dict(zip(scope, new[len(cells) :], strict=False)),
            value.__name__,
            new[-2],
            tuple(types.CellType(inside[k]) if k in inside else c for k, c in closure.items()),
        )
        made.__kwdefaults__, made.__qualname__ = new[-1], value.__qualname__
        made.__module__ = value.__module__  # of a decorator's wrapper: that of what it wraps
        made.__dict__.update(value.__dict__)
        return made

    def _object(self, value: Any, depth: int) -> Any:
        """Follow the attributes of an object, where it is no class, no library and not too deep."""
        attributes: Any = getattr(value, "__dict__", None)
        plain = isinstance(value, type | types.ModuleType) or type(attributes) is not dict
        if plain or depth == 0 or type(value).__module__.partition(".")[0] in LIBRARIES:
            return value
        new = self._each(attributes.values(), list(attributes), depth - 1)
        if new is None:
            return value
        result = copy.copy(value)
        vars(result).update(zip(attributes, new, strict=True))
        return result


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
