"""Watch on a running decoder: the units that it executes, their modules, and what enters them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from approx.complexity.levels import Levels
from approx.complexity.pointwise import CONDITIONS, Condition, Knot, Made, Pointwise, alike, sides
from approx.complexity.tangents import Tangents, operation_name
from approx.complexity.units import AFFINE, TABLE, Units, find_units, written_out_silu
from approx.decoder import hooked

__all__ = ["Entering", "Sink", "Watch", "watched"]


class Entering(NamedTuple):
    """What enters the units of one call.

    With several knots a unit, `values` and `tangents` are shifted by each in turn (h - knot).
    """

    layer: str
    units: Units
    # one tensor for every knot of a unit, of the shape that the operation is given
    values: tuple[Tensor, ...]
    # (P, ...) for each of them; None where no derivatives are taken
    tangents: tuple[Tensor, ...] | None
    # of pooled entries: values at which they lie on a flat piece whose end was counted before
    levels: tuple[float, ...] = ()


Sink = Callable[[Entering], None]
"""Takes what enters each layer, in the order of execution."""


class Watch(TorchDispatchMode):
    """Carries tangents through every operation of ATen, and hands its units to `sink`."""

    def __init__(self, sink: Sink, names: _Names, directions: int | None) -> None:
        super().__init__()
        self.sink, self.names = sink, names
        self.tangents = Tangents(directions)
        self.pointwise = Pointwise(self.tangents)
        self.levels = Levels(self.tangents)
        self.conditions: list[Condition] = []
        # bends and jumps that are no units here, and operations that are not affine
        self._passed_over: dict[str, None] = {}
        self._smooth: dict[str, None] = {}

    @property
    def passed_over(self) -> tuple[str, ...]:
        """Bends and jumps that ran and are no units; everything not affine if there are none."""
        unsettled = [c.label for c in self.conditions if not c.settled]
        names = [*self._passed_over, *unsettled, *({} if self.names.used else self._smooth)]
        return tuple(dict.fromkeys(names))

    def start(self, z: Tensor, tangents: Tensor | None) -> Tensor:
        """Return latents that are followed through the decoder, with tangents (P, *z.shape)."""
        z = z.clone()
        self.tangents.keep(z, tangents)
        return z

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Read the units before an operation: one in place overwrites what enters it."""
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        moves = any(map(self.tangents.moves, given))
        if not moves and not any(map(self.pointwise, given)):
            return func(*args, **kwargs)
        name = operation_name(func)
        if name in CONDITIONS:
            return self._compare(name, func, args, kwargs)
        made = self.pointwise.combine(func, args, kwargs, moves)
        levels = self.levels.after(name, func, args, kwargs)
        if moves:
            levels += self._bend(name, func, args, kwargs, made)
            levels += self._observe(name, func, args, kwargs)
        result = self.tangents.run(func, args, kwargs)
        if made is not None and isinstance(result, Tensor):
            self.pointwise.remember(result, made)
        self.levels.remember(result, levels)
        return result

    def _compare(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Execute a comparison, and remember it as a condition."""
        made = self.pointwise.combine(func, args, kwargs, moves=False)
        label = self.names.at(name)
        result = func(*args, **kwargs)
        if made is None:
            self._passed_over[label] = None
            return result
        x, other = (args[0], args[1]) if len(args) > 1 else (args[0], 0.0)
        if not isinstance(x, Tensor) or not self.tangents.moves(x):
            x, other = other, x
        known = self.pointwise(x)
        if isinstance(x, Tensor) and self.tangents.moves(x) and known is not None:
            at = 0.0 if name in ("sign", "sgn", "signbit", "heaviside") else _constant(other)
            condition = Condition(label, x, self.tangents.writes(x), at, known.knot(at))
            self.conditions.append(condition)
            made = Made(made.root, made.compute, conditions=(condition,))
        self.pointwise.remember(result, made)
        return result

    def _bend(
        self, name: str, func: Any, args: Any, kwargs: Any, made: Made | None
    ) -> tuple[float, ...]:
        """Read the knots of conditions that meet what moves; levels of a flat piece."""
        found = self.pointwise.of_arguments(func, args, kwargs)
        conditions = dict.fromkeys(c for one in found for c in one.conditions)
        levels: tuple[float, ...] = ()
        for condition in conditions:
            seen = None
            if made is not None and condition.knot is not None:
                seen = sides(made, condition.knot)
            if (
                seen is None
                or seen[0].any()
                or self.tangents.writes(condition.x) != condition.version
            ):
                self._passed_over[self.names.at(name)] = None
                continue
            condition.settled = True
            _, bends, level = seen
            if bends.any():
                still = None if bends.all() else ~bends.to(condition.x.device)
                self._hand_over(name, Units(condition.x, (condition.at,), still=still))
                levels += () if level is None else (level,)
        return levels

    def _observe(self, name: str, operation: Any, args: Any, kwargs: Any) -> tuple[float, ...]:
        """Read the units of an operation; the levels at which what leaves them is flat."""
        units = self._written_out_silu(name, args) or find_units(name, args, kwargs)
        known = TABLE.get(name)
        if units is not None and units.entering.is_complex():  # no side of a knot
            self._passed_over[self.names.at(name)] = None
            return ()
        if units is None:
            moving = sum(map(self.tangents.moves, tree_leaves((args, kwargs))))
            view = operation.is_view or torch.Tag.inplace_view in operation.tags
            affine = view or name in AFFINE
            if known is None and (not affine or (moving > 1 and name in _PRODUCTS)):
                self._smooth[self.names.at(name)] = None
            if known is not None and (known.units is None or name in _REDUCTIONS):
                self._passed_over[self.names.at(name)] = None
            return ()
        if name == "prelu_kernel" and self._identical(args[1]):
            return ()
        if not self.tangents.moves(units.entering):
            if not self.tangents.moves(units.at[0]):
                return ()
            # of two, the one that moves comes first
            units = units._replace(entering=units.at[0], at=(units.entering,))
        at = tuple(knot if self.tangents.moves(knot) else _constant(knot) for knot in units.at)
        self._hand_over(name, units._replace(at=at))
        leaving = known.levels if known is not None else None
        return leaving(units._replace(at=at)) if leaving is not None else ()

    def _hand_over(self, name: str, units: Units) -> None:
        """Hand units to the sink, without those that coincide with units counted before."""
        entering, at = units.entering, []
        made = self.pointwise(entering)
        assert made is not None
        levels, still = self.levels(entering), units.still
        for knot in units.at:
            root_knot = made.knot(knot)
            gone = isinstance(knot, float) and (not math.isfinite(knot) or knot in levels)
            gone = gone or (root_knot is not None and not made.root.count(root_knot))
            if units.windows or not gone:
                at.append(knot)
        if not at:
            return
        units = units._replace(at=tuple(at))
        layer = self.names.layer(name)
        values = tuple((entering - knot if _shifts(knot) else entering) for knot in at)
        if units.windows:
            tangents = (self.tangents.of(entering),) if self.tangents.size else None
            self.sink(Entering(layer, units, values, tangents, levels))
            return
        for other in (knot for knot in at if isinstance(knot, Tensor)):
            flat = other.isinf()
            for x in (entering, other):
                for level in self.levels(x) if self.tangents.moves(other) else ():
                    flat = flat | (x == level)
            still = flat if still is None else still | flat
        tangents = None
        if self.tangents.size:
            along = self.tangents.of(entering)
            tangents = tuple(
                along - self.tangents.of(k) if self.tangents.moves(k) else along for k in at
            )
        if units.scale != 1:
            values = tuple(units.scale * value for value in values)
            tangents = tangents and tuple(units.scale * along for along in tangents)
        if still is not None:
            values = tuple(value.masked_fill(still, 1) for value in values)
            tangents = tangents and tuple(along.masked_fill(still, 0) for along in tangents)
        self.sink(Entering(layer, units, values, tangents))

    def _identical(self, weight: Tensor) -> bool:
        """Tell whether a PReLU has no knots: all its slopes are 1."""
        known = self.names.identities.get(weight.untyped_storage()._cdata)
        return bool((weight == 1).all()) if known is None else known

    def _written_out_silu(self, name: str, args: Any) -> Units | None:
        """Return the units of x sigmoid(c x)."""
        if name != "mul":
            return None
        for x, gate in (args[:2], args[1::-1]):
            of_x, of_gate = self.pointwise(x), self.pointwise(gate)
            if of_x is None or of_gate is None or of_x.root is not of_gate.root:
                continue
            if of_gate.sigmoid is None or of_x.affine is None:
                continue
            (a, b), (c, d) = of_x.affine, of_gate.sigmoid
            scale = 1.0 if alike(a, c) else c / a
            if isinstance(scale, float) and alike(scale * b, d):
                return written_out_silu(x, scale)
        return None


# without units where they are over everything
_REDUCTIONS = frozenset(["max", "min", "amax", "amin"])
# affine in each argument alone
_PRODUCTS = frozenset(["mul", "mm", "bmm", "addmm", "baddbmm", "dot", "mv", "convolution", "div"])


def _constant(knot: Any) -> Knot:
    """Return a number for a tensor of one value."""
    if not isinstance(knot, Tensor):
        return float(knot)
    first = knot.flatten()[0]
    return float(first) if bool((knot == first).all()) else knot


def _shifts(knot: Knot) -> bool:
    return isinstance(knot, Tensor) or knot != 0


class _Names:
    """Names of layers: the path of the module that runs, and the operation."""

    def __init__(self, roots: Sequence[nn.Module]) -> None:
        self.paths: dict[int, str] = {}
        self.activations: set[int] = set()
        self.running: list[nn.Module] = []
        self.used: dict[str, None] = {}
        self.identities = _identities(roots)
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


def _identities(roots: Sequence[nn.Module]) -> dict[int, bool]:
    """Tell of the weights of PReLU modules, by their storage, whether all are 1.

    The device is asked once, and not at each layer.
    """
    found = [m.weight for root in roots for m in root.modules() if isinstance(m, nn.PReLU)]
    known = torch.stack([(w == 1).all() for w in found]).tolist() if found else []
    return {w.untyped_storage()._cdata: all_one for w, all_one in zip(found, known, strict=True)}


@contextmanager
def watched(
    roots: Sequence[nn.Module], sink: Sink, directions: int | None = None
) -> Iterator[Watch]:
    """Watch what is executed inside the block; hooks that name modules are gone afterwards."""
    names = _Names(roots)
    modules = {id(module): module for root in roots for module in root.modules()}
    # what a scripted module executes is seen, and named after the module around it
    followed = [m for m in modules.values() if not isinstance(m, torch.jit.ScriptModule)]
    with (
        hooked(followed, names.enter, names.leave),
        Watch(sink, names, directions) as watch,
    ):
        yield watch
