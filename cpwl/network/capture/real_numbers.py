"""A module's forward read as a function of real numbers: casts, and constants of the moment.

`RealNumbers` watches every torch call of a forward pass and knows which tensors depend on the
input. Of those, a cast between floating types is the identity: a `.float()` or `.to(dtype)` in
forward says in which arithmetic the module runs, not what it computes. Constants are computed as
the module computes them, in their own types (torch.tensor(0.1) in float32 is the float32 number),
and are widened where they meet float64.

torch.export knows no values. What has to be known of a constant while tracing (a boolean mask's
places, a number that `item` reads) is recorded when the module is first run, and replayed. Every
other run reads the values themselves, so that a module whose calls differ from run to run is found
out when the capture is compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

FLOATS = frozenset([torch.float16, torch.bfloat16, torch.float32])
# Methods whose whole purpose is the cast.
CASTS = frozenset(["to", "type", "type_as", "float", "half", "bfloat16", "double"])
NARROW = frozenset(["float", "half", "bfloat16"])
NARROW_TYPES = ("FloatTensor", "HalfTensor", "BFloat16Tensor")
# Buffers that forward fills with input-dependent numbers start as these.
FILLABLE = frozenset([
    "zeros", "ones", "full", "empty", "zeros_like", "ones_like", "full_like", "empty_like",
    "new_zeros", "new_ones", "new_full", "new_empty",
])  # fmt: skip
INDEXING = frozenset(["__getitem__", "__setitem__", "index", "index_put", "index_put_"])
READING = frozenset([
    "item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero", "argwhere",
    "equal", "allclose", "is_nonzero",
])  # fmt: skip


class RealNumbers(TorchFunctionMode):
    """Mode under which the forward of a float64 copy runs.

    Parameters
    ----------
    record : list
        Filled in the first pass; given to the mode of a later pass as `replay`.
    replay : list, optional
    """

    def __init__(self, record: list[Any], replay: list[Any] | None = None) -> None:
        super().__init__()
        self.record = record
        self.replay: Iterator[Any] | None = None if replay is None else iter(replay)
        self.data = WeakIdKeyDictionary()

    def mark(self, value: Any) -> None:
        """Note that tensors depend on the input."""
        for leaf in tree_leaves(value):
            if isinstance(leaf, Tensor):
                self.data[leaf] = True

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one call of the forward pass."""
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "").split(".")[0]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        data = any(tensor in self.data for tensor in tensors)
        if name in READING and not data:
            return self._known(lambda: func(*args, **kwargs))
        if name in INDEXING:
            args = (args[0], *(self._places(arg) for arg in args[1:]))
        elif name == "masked_select" and len(args) == 2 and args[1] not in self.data:
            return self.__torch_function__(torch.Tensor.__getitem__, types, args)
        elif name in REWRITTEN and data:
            func = REWRITTEN[name]
        elif name == "repeat_interleave" and data:
            func, args, kwargs = self._repeated(func, args, kwargs)
        if data:
            func, args, kwargs = _widen_data(func, name, args, kwargs)
        elif name not in CASTS and len({t.dtype for t in tensors if t.is_floating_point()}) > 1:
            args, kwargs = tree_map(_widened, (args, kwargs))
        result = func(*args, **kwargs)
        if name in FILLABLE:
            result = _widened(result)
        if data:
            self.mark(result)
            if _in_place(name):
                self.mark(args[:1])
        return result

    def _known(self, compute: Callable[[], Any]) -> Any:
        if self.replay is None:
            value = compute()
            self.record.append(value)
            return value
        value = next(self.replay, None)
        if value is None:
            raise RuntimeError("forward reads other constants than when it was run before")
        return value

    def _places(self, index: Any) -> Any:
        """Integer indices in place of constant boolean masks."""
        parts = index if isinstance(index, (tuple, list)) else (index,)
        if not any(self._is_mask(part) for part in parts):
            return index
        places: list[Any] = []
        for part in parts:
            if self._is_mask(part):
                found = self._known(lambda part=part: part.nonzero(as_tuple=True))
                places.extend(place.clone() for place in found)
            else:
                places.append(part)
        return tuple(places)

    def _is_mask(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.dtype == torch.bool and value not in self.data

    def _repeated(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Repetition by a constant tensor, as a selection."""
        repeats = args[1] if len(args) > 1 else kwargs.get("repeats")
        axis = args[2] if len(args) > 2 else kwargs.get("dim")
        if not isinstance(repeats, Tensor) or repeats in self.data or axis is None:
            return func, args, kwargs
        x: Tensor = args[0]  # type: ignore[misc]

        def places() -> Tensor:
            return torch.repeat_interleave(repeats.expand(x.shape[axis]))

        return torch.index_select, (x, axis, self._known(places).clone()), {}


def _kron(a: Tensor, b: Tensor) -> Tensor:
    rank = max(a.ndim, b.ndim)
    a, b = (t.reshape(*[1] * (rank - t.ndim), *t.shape) for t in (a, b))
    sizes = [n * m for n, m in zip(a.shape, b.shape, strict=True)]
    for k in range(rank):
        a, b = a.unsqueeze(2 * k + 1), b.unsqueeze(2 * k)
    return (a * b).reshape(sizes)


def _take_along_dim(x: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    if dim is None or x.ndim != indices.ndim:
        return torch.take_along_dim(x, indices, dim)
    sizes = list(x.shape)
    sizes[dim] = indices.shape[dim]
    return x.gather(dim, indices.expand(sizes))


# Written otherwise, because torch traces them only with a fixed batch size.
REWRITTEN: dict[str, Callable[..., Tensor]] = {"kron": _kron, "take_along_dim": _take_along_dim}


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in FLOATS:
        return value.to(torch.float64)
    return value


def _in_place(name: str) -> bool:
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name != "__invert__")
    return name.endswith("_")


def _widen_data(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Make a call with input-dependent arguments one in float64."""
    if name in NARROW:
        return torch.Tensor.double, args[:1], {}

    def widened(value: Any) -> Any:
        if isinstance(value, torch.dtype):
            return torch.float64 if value in FLOATS else value
        if name == "type" and str(value).rstrip("'>").endswith(NARROW_TYPES):
            return torch.float64
        return _widened(value)

    first = args[:1] if _in_place(name) else tree_map(widened, args[:1])
    return func, (*first, *tree_map(widened, args[1:])), tree_map(widened, kwargs)
