"""Rules of forward mode that torch lacks, or whose own cost too much.

Its rule of group normalisation takes views that not every layout has (diffusers' attention leaves
one without). Under autocast, its rules of group and batch normalisation promote the tangent to the
parameters' float32 while the output stays in half precision, which the next convolution refuses.
And its rule of convolutions convolves with the weights' tangent, which is zero, but computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from approx.decoder.checks import HALF

_NORMALISATIONS = frozenset(["group_norm", "batch_norm", "instance_norm"])
_CONVOLUTIONS = frozenset(f"conv{way}{n}d" for way in ("", "_transpose") for n in (1, 2, 3))


class ForwardRules(TorchFunctionMode):
    """Region in which normalisations and convolutions follow the rules of this file."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run a function that Python calls, in another way where that is needed."""
        kwargs = kwargs or {}
        # an exported program calls overloads of operations: "conv2d.default"
        name = getattr(func, "__name__", "").partition(".")[0]
        result = by_rule(name, func, args, kwargs)
        return func(*args, **kwargs) if result is None else result


def by_rule(name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Tensor | None:
    """Call a function by its rule here, if it has one that applies; else None."""
    if name in _CONVOLUTIONS:
        return _convolve(func, args, kwargs)
    if name in _NORMALISATIONS:
        return _normalise(func, args, kwargs)
    return None


def _normalise(func: Callable[..., Any], args: Any, kwargs: Any) -> Tensor | None:
    """Normalise a contiguous input, in float32 if autocast would mix it with half precision."""
    if not args or not torch.is_tensor(args[0]):
        return None
    x = args[0].contiguous()
    if x.dtype in HALF and torch.is_autocast_enabled(x.device.type):
        return func(x.float(), *args[1:], **kwargs).to(x.dtype)
    return func(x, *args[1:], **kwargs)


def _convolve(func: Callable[..., Any], args: Any, kwargs: Any) -> Tensor | None:
    """Convolve value and tangents of a dual number, or None where weights have tangents too."""
    if len(args) < 2 or "input" in kwargs or not torch.is_tensor(args[0]):
        return None
    primal, tangent = forward_ad.unpack_dual(args[0])
    bias = args[2] if len(args) > 2 else kwargs.get("bias")
    for parameter in (args[1], bias):
        if parameter is not None and forward_ad.unpack_dual(parameter).tangent is not None:
            return None
    if tangent is None:
        return None
    without = (*args[1:2], None, *args[3:])
    rest = {key: value for key, value in kwargs.items() if key != "bias"}
    along = func(tangent, *without, **rest)
    return forward_ad.make_dual(func(primal, *args[1:], **kwargs), along)


class Widened(TorchFunctionMode):
    """Region in which float64 stays float64 where a decoder casts to less, as for a norm."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run a function that Python calls, without its cast."""
        kwargs = kwargs or {}
        x = args[0] if args else None
        if not (isinstance(x, Tensor) and x.dtype == torch.float64):
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _CASTS:
            made = func(*args, **kwargs)
            narrow = isinstance(made, Tensor) and made.dtype in _NARROWER
            return x.to(made.device) if narrow else made
        if kwargs.get("dtype") in _NARROWER:
            kwargs = {**kwargs, "dtype": torch.float64}
        return func(*args, **kwargs)


_CASTS = frozenset(["to", "type", "type_as", "float", "half", "bfloat16"])
_NARROWER = (torch.float32, *HALF)
