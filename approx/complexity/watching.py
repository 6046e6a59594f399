"""Watch on a running decoder: the units that it executes, their modules, and what enters them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from approx.complexity.units import TABLE, Units, find_units, operation_name, written_out_silu
from approx.decoder import by_rule

__all__ = ["Entering", "Sink", "Watch", "watched"]


class Entering(NamedTuple):
    """What enters the units of one call, as plain tensors: no dual numbers, no batching wrappers.

    With several knots a unit, `values` and `tangents` are shifted by each in turn (h - knot).
    """

    layer: str
    units: Units
    # one (B, ...) tensor for every knot of a unit
    values: tuple[Tensor, ...]
    # (P, B, ...) for each of them; None where no derivatives are taken
    tangents: tuple[Tensor, ...] | None


Sink = Callable[[Entering], None]
"""Takes what enters each layer, in the order of execution."""


class _Unwrap(torch.autograd.Function):
    """Hands the tensors below vmap to a function: its vmap rule is given all P tangents at once."""

    @staticmethod
    def forward(take: Callable[..., None], *tensors: Tensor) -> Tensor:
        take(*tensors)
        return tensors[0].new_zeros(())

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is differentiated through it."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, None]:
        take, *tensors = args
        count = len(tensors) // 2
        for dim, value in zip(in_dims[1 : 1 + count], tensors, strict=False):
            if dim is not None:
                raise AssertionError(f"a value differs between directions: {value.shape}")
        tangents = [
            tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for dim, tensor in zip(in_dims[1 + count :], tensors[count:], strict=True)
        ]
        take(*tensors[:count], *tangents)
        return tensors[0].new_zeros(()), None


class Watch(TorchFunctionMode):
    """Looks up every torch function that Python calls, and hands its units to `sink`."""

    def __init__(self, sink: Sink, names: _Names, *, derivatives: bool) -> None:
        super().__init__()
        self.sink, self.names, self.derivatives = sink, names, derivatives
        self.executed: dict[str, None] = {}
        self.passed_over: dict[str, None] = {}
        # x c -> (x, c) and sigmoid(x c) -> (x, c), to know x sigmoid(c x) when it is written out
        self._scaled = WeakIdKeyDictionary()
        self._gates = WeakIdKeyDictionary()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Read the units before the call: an in-place activation overwrites what enters it."""
        kwargs = kwargs or {}
        name = operation_name(func)
        if name in ("get", "set", ""):
            return func(*args, **kwargs)
        if name not in _HOUSEKEEPING:
            self.executed[name] = None
        units = self._written_out_silu(name, args) or find_units(name, args, kwargs)
        known = TABLE.get(name)
        if units is not None:
            self._observe(name, units)
        elif known is not None and known.units is None:
            self.passed_over[self.names.at(name)] = None
        result = None
        if self.derivatives and known is not None and known.written_out is not None:
            result = _write_out(known.written_out, args, kwargs)
        elif self.derivatives:
            result = by_rule(name, func, args, kwargs)
        if result is None:
            result = func(*args, **kwargs)
        self._remember(name, args, result)
        return result

    def _observe(self, name: str, units: Units) -> None:
        entering = units.entering
        if not entering.is_floating_point():
            return
        shifted = [entering - at if isinstance(at, Tensor) or at else entering for at in units.at]
        if not self.derivatives:
            layer = self.names.layer(name)
            self.sink(Entering(layer, units, tuple(h.detach() for h in shifted), None))
            return
        duals = [forward_ad.unpack_dual(h) for h in shifted]
        if any(dual.tangent is None for dual in duals):
            return  # does not depend on the latent
        layer, count = self.names.layer(name), len(duals)

        def take(*tensors: Tensor) -> None:
            self.sink(Entering(layer, units, tensors[:count], tensors[count:]))

        _Unwrap.apply(take, *(d.primal for d in duals), *(d.tangent for d in duals))

    def _remember(self, name: str, args: Any, result: Any) -> None:
        if not (args and isinstance(args[0], Tensor) and isinstance(result, Tensor)):
            return
        if name in ("mul", "div") and len(args) > 1 and isinstance(args[1], (int, float)):
            if args[1]:
                self._scaled[result] = (args[0], args[1] if name == "mul" else 1 / args[1])
        elif name in ("sigmoid", "special_expit") and result is not args[0]:
            self._gates[result] = self._scaled.get(args[0], (args[0], 1.0))

    def _written_out_silu(self, name: str, args: Any) -> Units | None:
        if name != "mul" or len(args) < 2 or not len(self._gates):
            return None
        for gate, factor in (args[:2], args[1::-1]):
            if not (isinstance(gate, Tensor) and gate in self._gates):
                continue
            x, scale = self._gates[gate]
            if x is factor:
                return written_out_silu(x, scale)
        return None


_HOUSEKEEPING = frozenset(
    ["clone", "detach", "dim", "is_floating_point", "make_dual", "size", "to", "unpack_dual"]
)


def _write_out(function: Callable[..., Tensor], args: Any, kwargs: Any) -> Tensor | None:
    """Execute an activation by functions that vmap knows, or None where that would be another."""
    if kwargs.get("training") or not args:
        return None  # in training rrelu draws its slopes
    inplace = kwargs.get("inplace")
    rest = {k: v for k, v in kwargs.items() if k not in ("inplace", "training")}
    result = function(*args, **rest)
    return args[0].copy_(result) if inplace else result


class _Names:
    """Names of layers: the path of the module that runs, and the operation."""

    def __init__(self, roots: Sequence[nn.Module]) -> None:
        self.paths: dict[int, str] = {}
        self.activations: set[int] = set()
        self.running: list[nn.Module] = []
        self.used: dict[str, None] = {}
        for root in roots:
            self._learn(root, "" if len(roots) == 1 else type(root).__name__.lower())

    def _learn(self, root: nn.Module, prefix: str) -> None:
        for path, module in root.named_modules(prefix=prefix):
            # torch.compile's wrapper is no part of the user's module
            path = ".".join(part for part in path.split(".") if part != "_orig_mod")
            self.paths.setdefault(id(module), path)
            if type(module).__module__.startswith("torch.nn.") and module is not root:
                self.activations.add(id(module))

    def enter(self, module: nn.Module, args: Any) -> None:
        self.running.append(module)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.running.pop()

    def at(self, name: str) -> str:
        path = self.paths[id(self.running[-1])] if self.running else ""
        return f"{path}.{name}" if path else name

    def layer(self, name: str) -> str:
        """Name a layer after its module if that is an activation, else with the operation."""
        label = self.at(name)
        if self.running and id(self.running[-1]) in self.activations:
            label = self.paths[id(self.running[-1])]
        first, again = label, 1
        while label in self.used:
            label, again = f"{first}_{again}", again + 1
        self.used[label] = None
        return label


@contextmanager
def watched(roots: Sequence[nn.Module], sink: Sink, *, derivatives: bool) -> Iterator[Watch]:
    """Watch what is executed inside the block; hooks that name modules are gone afterwards."""
    names = _Names(roots)
    modules = {id(module): module for root in roots for module in root.modules()}
    hooks = []
    try:
        for module in modules.values():
            hooks.append(module.register_forward_pre_hook(names.enter))
            hooks.append(module.register_forward_hook(names.leave, always_call=True))
        with Watch(sink, names, derivatives=derivatives) as watch:
            yield watch
    finally:
        for hook in hooks:
            hook.remove()
