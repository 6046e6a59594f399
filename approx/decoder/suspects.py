"""Operations that cut or change derivatives, found by watching one pass."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from approx.decoder.graph import hooked, nodes_behind
from approx.decoder.running import Prepared, session

# what leaves torch, or changes gradients, whatever it returns
_ALWAYS = frozenset(["numpy", "__array__", "tolist", "item", "register_hook"])
# as many names in a message
_MOST = 4


class Watched(NamedTuple):
    """What one pass showed.

    Attributes
    ----------
    suspects : tuple of str
        Operations that lose the graph of the latents and custom autograd functions, with the module
        in which they ran, in the order of execution.
    narrowest : torch.dtype
        The narrowest floating dtype of what depends on the latents.
    """

    suspects: tuple[str, ...]
    narrowest: torch.dtype


def watch(prepared: Prepared, z: Tensor) -> Watched:
    """Run one pass that records a graph, and look at its operations."""
    with session(prepared), torch.enable_grad():
        leaf = z.clone().requires_grad_()
        looking = _Looking(prepared.modules, z.dtype)
        modules = [module for _, module in looking.held.values()]
        with hooked(modules, looking.enter, looking.leave), looking:
            y = prepared(leaf.clone())
        looking.functions(y, "")
    return Watched(tuple(looking.found), looking.narrowest)


class _Looking(TorchFunctionMode):
    """Looks at what every torch function is given and returns."""

    def __init__(self, roots: tuple[nn.Module, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.found: dict[str, None] = {}
        self.narrowest = dtype
        self.running: list[str] = []
        self.seen: set[Any] = set()
        # (path, module) by id
        self.held = {id(m): (path, m) for root in roots for path, m in root.named_modules()}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not any(x.requires_grad for x in _tensors((*args, *kwargs.values()))):
            return result
        name = getattr(func, "__name__", "")
        full = resolve_name(func) or ""
        made = [x for x in _tensors((result,)) if x.is_floating_point()]
        for x in made:
            if torch.finfo(x.dtype).eps > torch.finfo(self.narrowest).eps:
                self.narrowest = x.dtype
        if name in _ALWAYS or any(not x.requires_grad for x in made):
            label = full.split(".")[-2] if name == "__get__" else name
            if name not in ("requires_grad_", "") and label != "grad":
                off = "" if torch.is_grad_enabled() else " under torch.no_grad()"
                if not (off and _in_function()):
                    self._note(f"{label}{off}", self.running[-1] if self.running else "")
        return result

    def _note(self, what: str, path: str) -> None:
        place = f" in '{path}'" if path else ""
        if len(self.found) < _MOST:
            self.found[f"{what}{place}"] = None

    def functions(self, output: Any, path: str) -> None:
        """Look for custom autograd functions in the graph behind a tensor."""
        for node in nodes_behind(_tensors((output,)), self.seen):
            if isinstance(node, torch.autograd.function.BackwardCFunction):
                name = type(node).__name__.removesuffix("Backward")
                self._note(f"the autograd function {name}", path)

    def enter(self, module: nn.Module, args: Any) -> None:
        """Follow which module runs."""
        self.running.append(self.held[id(module)][0])

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Look at what a module returns."""
        self.functions(output, self.running.pop())


def _in_function() -> bool:
    """Tell whether a custom autograd function runs, whose forward records nothing."""
    frame = sys._getframe()
    while frame is not None:
        names = frame.f_locals.values() if frame.f_code.co_name == "forward" else ()
        if any(isinstance(value, torch.autograd.function.BackwardCFunction) for value in names):
            return True
        frame = frame.f_back
    return False


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())
        elif isinstance(getattr(value, "sample", None), Tensor):
            yield value.sample
