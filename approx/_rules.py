"""Normalisations in forward mode: torch's rules for them want contiguous and equal-typed tensors.

The rule of group normalisation takes views that other layouts do not have (diffusers' attention
leaves one). Under autocast, the rules of group and batch normalisation promote the tangent to the
parameters' float32 while the output stays in half precision, which the next convolution refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_NORMALISATIONS = frozenset(
    [
        torch.nn.functional.group_norm,
        torch.group_norm,
        torch.ops.aten.group_norm.default,
        torch.nn.functional.batch_norm,
        torch.batch_norm,
        torch.ops.aten.batch_norm.default,
        torch.nn.functional.instance_norm,
        torch.instance_norm,
        torch.ops.aten.instance_norm.default,
    ]
)


class ForwardRules(TorchFunctionMode):
    """Give normalisations contiguous inputs, and those in half precision in float32."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run func; a normalisation on a copy of its input where that is needed."""
        kwargs = kwargs or {}
        if func not in _NORMALISATIONS or not args or not isinstance(args[0], Tensor):
            return func(*args, **kwargs)
        x = args[0].contiguous()
        if x.dtype not in (torch.bfloat16, torch.float16) or not torch.is_autocast_enabled(
            x.device.type
        ):
            return func(x, *args[1:], **kwargs)
        return func(x.float(), *args[1:], **kwargs).to(x.dtype)
