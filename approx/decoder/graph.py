"""The autograd graph behind a tensor, and the modules that run while it is recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def nodes_behind(outputs: Iterable[Tensor], seen: set[Any] | None = None) -> Iterator[Any]:
    """Yield the nodes of the graph behind tensors, each once; those in `seen` not again."""
    seen = set() if seen is None else seen
    stack: list[Any] = [y.grad_fn for y in outputs]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        stack.extend(parent for parent, _ in node.next_functions)
        yield node


def narrowest(y: Tensor, given: torch.dtype) -> torch.dtype:
    """Return the floating-point dtype of the largest eps on the graph behind y, and of z."""
    found = {given}
    for node in nodes_behind([y]):
        found |= {of.dtype for of in node._input_metadata}
    return max((d for d in found if d.is_floating_point), key=lambda d: torch.finfo(d).eps)


def transpose(y: Tensor, leaves: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return u, like y, and J^T u of each leaf: linear in u, so that its derivative is J."""
    u = torch.zeros_like(y, requires_grad=True)
    return u, torch.autograd.grad(y, leaves, u, create_graph=True)


@contextmanager
def hooked(
    modules: Iterable[nn.Module],
    enter: Callable[[nn.Module, Any], None],
    leave: Callable[[nn.Module, Any, Any], None],
) -> Iterator[None]:
    """Call `enter` and `leave` around each module that runs; the hooks are gone afterwards."""
    handles = []
    try:
        for module in modules:
            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(leave, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
