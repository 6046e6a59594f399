"""Count what waits for a device: values that are asked for, and copies between devices.

`meta` stands for a device: its values cannot be had, so that what asks for them is answered here
(all are true and one, a matrix has full rank), and every question is counted by its place.
"""

from __future__ import annotations

import traceback
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# operations whose result, or its shape, depends on values
ASKING = frozenset(
    [
        *("_local_scalar_dense", "is_nonzero", "nonzero", "nonzero_static", "argwhere", "equal"),
        *("masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount"),
        *("repeat_interleave", "histc"),
    ]
)


class Synchronising(TorchDispatchMode):
    """Region in which questions to a device are counted: `count`, and `where` they are asked."""

    def __init__(self) -> None:
        super().__init__()
        self.where: Counter[str] = Counter()

    @property
    def count(self) -> int:
        return self.where.total()

    def _note(self, name: str) -> None:
        ours = [f for f in traceback.extract_stack() if "/approx/" in f.filename]
        place = f"{ours[-1].filename.rpartition('/')[2]}:{ours[-1].lineno}" if ours else "?"
        self.where[f"{name} {place}"] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if name in ASKING and any(x.is_meta for x in given):
            self._note(name)
            return _answer(name, args[0])
        if name.rstrip("_") in ("index", "index_put") and any(
            i is not None and i.is_meta and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        ):
            self._note(f"{name} by a mask")
            return func(args[0], [_mask_free(i, args[0]) for i in args[1]], *args[2:], **kwargs)
        source = args[1] if name == "copy_" else args[0] if name == "_to_copy" else None
        if isinstance(source, Tensor) and source.is_meta:
            target = args[0].device if name == "copy_" else kwargs.get("device") or source.device
            if torch.device(target).type != "meta":
                self._note("copy from the device")
                dtype = kwargs.get("dtype") or source.dtype
                return _values(source.shape).to(dtype)
        result = func(*args, **kwargs)
        # a number is an argument of a kernel, and no copy
        if isinstance(source, Tensor) and source.ndim and result.is_meta and not source.is_meta:
            self._note("copy to the device")
        return result


def _answer(name: str, x: Tensor) -> Any:
    if name == "_local_scalar_dense":
        return x.dtype == torch.bool or (1.0 if x.is_floating_point() else 1)
    if name in ("is_nonzero", "equal"):
        return True
    if name == "nonzero":
        return torch.zeros(1, x.ndim, dtype=torch.int64, device=x.device)
    raise AssertionError(f"no answer for {name}")


def _values(shape: torch.Size) -> Tensor:
    """Return values of full rank: a square matrix is symmetric and positive."""
    if len(shape) < 2:
        return torch.ones(shape)
    if shape[-1] == shape[-2]:
        return torch.eye(shape[-1]).expand(shape)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _mask_free(index: Tensor | None, x: Tensor) -> Tensor | None:
    if index is None or index.dtype not in (torch.bool, torch.uint8):
        return index
    return torch.zeros(1, dtype=torch.int64, device=x.device)
