"""Tangents beside the tensors of a running decoder, operation by operation of ATen.

A dispatch mode sees what forward mode does not reach: scripted functions, custom autograd functions
and detached blocks run the same operations as any other code. It sees values alone, so that their
tangents are kept here, by storage: a view of a tensor is the same view of its tangents, and what is
written in place is written into both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vmap
from torch.nn.functional import leaky_relu, softplus
from torch.overrides import enable_reentrant_dispatch
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from approx.decoder import transpose

__all__ = ["Tangents", "operation_name"]


def operation_name(function: Callable[..., Any]) -> str:
    """Name of an ATen operation, without the underscores of private and in-place ones."""
    namespace, name = str(function).split(".")[:2]
    return name.strip("_") if namespace == "aten" else f"{namespace}::{name}"


class Tangents:
    """P tangents of every tensor that depends on the latents; with P None, only which ones do."""

    def __init__(self, size: int | None) -> None:
        self.size = size
        # storage -> (P, entries of the storage)
        self._kept = WeakIdKeyDictionary()
        self._writes = WeakIdKeyDictionary()

    def moves(self, x: object) -> bool:
        """Tell whether a tensor depends on the latents."""
        # a sparse tensor, of weights, has no storage of its own
        if not isinstance(x, Tensor) or x.layout != torch.strided:
            return False
        return x.untyped_storage() in self._kept

    def of(self, x: Tensor) -> Tensor:
        """Tangents of a tensor, (P, *shape): a view, and zeros for one that does not move."""
        if not self.moves(x):
            self.keep(x, x.new_zeros(()).expand(self.size or 0, *x.shape))
        flat = self._kept[x.untyped_storage()]
        if flat.dtype != x.dtype:
            flat = flat.view(x.dtype)
        return flat.as_strided(
            (len(flat), *x.shape), (flat.stride(0), *x.stride()), x.storage_offset()
        )

    def writes(self, x: Tensor) -> int:
        """Return how often the memory of a tensor was written into."""
        return self._writes.get(x.untyped_storage()) or 0

    def keep(self, x: Tensor, tangents: Tensor | None) -> None:
        """Take the tangents of a new tensor, without a copy where they lie as it does."""
        storage = x.untyped_storage()
        if self.size is None or tangents is None:
            self._kept[storage] = None
            return
        length = storage.nbytes() // x.element_size()
        dense = x.numel() == length and tangents.dtype == x.dtype
        alike = tangents.stride()[1:] == x.stride() and tangents.stride(0) == length
        if dense and alike:
            self._kept[storage] = tangents.as_strided((len(tangents), length), (length, 1))
            return
        self._kept[storage] = x.new_zeros((len(tangents), length))
        self.of(x).copy_(tangents)

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Execute an operation on values and on tangents."""
        moving = [x for x in tree_leaves((args, kwargs)) if self.moves(x)]
        views = func.is_view or torch.Tag.inplace_view in func.tags
        name = operation_name(func)
        constant = (
            name.startswith("new_")
            or name.endswith("_like")
            or not any("Tensor" in str(result.type) for result in func._schema.returns)
        )
        if not moving or views or constant:
            return func(*args, **kwargs)
        if func.overloadpacket.__name__.endswith("_") or func._overloadname.endswith("out"):
            return self._write(func, args, kwargs)
        if self.size is None:
            result = func(*args, **kwargs)
            tangents = tree_map_only(Tensor, lambda _: None, result)
        else:
            result, tangents = self._along(func, args, kwargs)
        self._keep_all(result, tangents)
        return result

    def _keep_all(self, result: Any, tangents: Any) -> None:
        outputs = [result] if isinstance(result, Tensor) else list(result)
        along = [tangents] if isinstance(result, Tensor) else list(tangents)
        for x, tangent in zip(outputs, along, strict=True):
            # one that is a view after all has its tangents already
            real = isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())
            if real and not self.moves(x):
                self.keep(x, tangent)

    def _write(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Execute an operation that writes into its first argument."""
        pure, target = _without_effects(func), args[0]
        self._writes[target.untyped_storage()] = self.writes(target) + 1
        if self.size is None:
            if not self.moves(target):
                self.keep(target, None)
            return func(*args, **kwargs)
        along = self.of(target)
        if operation_name(func) == "copy":
            along.copy_(self.of(args[1]) if self.moves(args[1]) else torch.zeros_like(args[1]))
            return func(*args, **kwargs)
        value, tangents = self._along(pure, args, kwargs)
        along.copy_(tangents)
        return target.copy_(value)

    def _along(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Return the result of an operation, and its tangents."""
        name = operation_name(func)
        rule, first = _RULES.get(name), _FIRST.get(name, 0)
        if (
            rule is not None
            and (name in _COPIES or not kwargs)
            and not any(self.moves(x) for k, x in enumerate(args) if k != first)
        ):
            value = func(*args, **kwargs)
            return value, rule(func, value, self.of(args[first]), args)
        if name == "native_group_norm":  # its forward mode takes views that not every layout has
            x = args[0].contiguous()
            if not self.moves(x):  # a copy, which moves as what it is copied from
                self.keep(x, self.of(args[0]))
            args = (x, *args[1:])
        moving = [i for i in tree_leaves((args, kwargs)) if self.moves(i)]
        function = _WRITTEN_OUT.get(name, func)

        def call(*moved: Tensor) -> Any:
            at = {id(x): y for x, y in zip(moving, moved, strict=True)}
            swap = tree_map_only(Tensor, lambda x: at.get(id(x), x), (args, kwargs))
            return function(*swap[0], **swap[1])

        def along(*tangents: Tensor) -> Any:
            return jvp(call, tuple(moving), tangents)

        # values have no axis of directions, so only tangents are computed P times
        tangents = [self.of(x) for x in moving]
        with above_dispatch():
            try:
                return vmap(along, out_dims=(None, 0))(*tangents)  # pyright: ignore
            except NotImplementedError as error:  # no rule of forward mode
                try:
                    return _transposed(call, moving, tangents)
                except RuntimeError:
                    raise NotImplementedError(
                        f"Expected operations with a forward-mode derivative, got {func}, which "
                        "has none in torch: count by signs, with method='hull' "
                        "(knots_method='hull' of describe)."
                    ) from error


@contextmanager
def above_dispatch() -> Iterator[None]:
    """Region inside a dispatch mode where torch differentiates as it does outside of it."""
    with ExitStack() as stack:
        stack.enter_context(enable_reentrant_dispatch())
        if not torch._C._len_torch_dispatch_stack():  # the mode itself is off, and none is around
            python = torch._C.DispatchKeySet(torch._C.DispatchKey.Python)
            python = python | torch._C.DispatchKeySet(torch._C.DispatchKey.PythonTLSSnapshot)
            stack.enter_context(torch._C._ExcludeDispatchKeyGuard(python))
        yield


def _transposed(
    call: Callable[..., Any], moving: list[Tensor], tangents: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return a result and its tangents as derivatives of u -> J^T u, which is linear."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in moving]
        value = call(*leaves)
        if not isinstance(value, Tensor):
            raise NotImplementedError(f"{len(value)} results")
        u, given = transpose(value, leaves)
        along = [
            torch.autograd.grad(given, u, t, retain_graph=True)[0]
            for t in zip(*tangents, strict=True)
        ]
    return value.detach(), torch.stack(along)


def _without_effects(func: Any) -> Callable[..., Tensor]:
    """Return the operation that computes what another one writes in place."""
    name = func.overloadpacket.__name__
    if name.endswith("_"):
        packet = getattr(torch.ops.aten, name[:-1], None)
        pure = getattr(packet, func._overloadname, None)
        if pure is not None:
            return pure
    raise NotImplementedError(
        f"Expected operations whose derivative is known, got {func}, which writes into a tensor "
        "that is given: use its form that returns a new one."
    )


def _convolve(func: Any, value: Tensor, along: Tensor, args: Any) -> Tensor:
    # torch's own rule convolves with the tangents of the weights too, which are zero
    return func(along.flatten(0, 1), args[1], None, *args[3:]).unflatten(0, along.shape[:2])


# tangents of what moves in one argument, by a plain operation: common ones, for speed
_RULES: Mapping[str, Callable[[Any, Tensor, Tensor, Any], Tensor]] = MappingProxyType(
    {
        "convolution": _convolve,
        "relu": lambda func, value, along, args: along * (value > 0),
        "mm": lambda func, value, along, args: along @ args[1],
        "addmm": lambda func, value, along, args: along @ args[2],
        # vmap has no rule for the layouts that they are asked for
        "clone": lambda func, value, along, args: along.clone(),
        "to_copy": lambda func, value, along, args: along.to(value, copy=True),
    }
)
_COPIES = frozenset(["clone", "to_copy"])
# which argument, if not the first
_FIRST: Mapping[str, int] = MappingProxyType({"addmm": 1})


def _rrelu(x: Tensor, _: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, *__: Any) -> Tensor:
    return leaky_relu(x, (lower + upper) / 2)


def _mish(x: Tensor) -> Tensor:
    return x * torch.tanh(softplus(x))


# operations that vmap does not know under forward mode, by those that it knows
_WRITTEN_OUT: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {"rrelu_with_noise": _rrelu, "mish": _mish}
)
