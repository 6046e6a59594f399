"""Attention as plain matrix products: fused kernels have neither a forward-mode rule nor vmap.

torch's `scaled_dot_product_attention` is told to take its math backend, `nn.MultiheadAttention`
and `nn.TransformerEncoderLayer` to leave their fused inference path, and diffusers' attention
modules get its plain processor in place of the ones that call fused or memory-efficient kernels.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# diffusers' processors that compute what its plain AttnProcessor computes
_EQUIVALENT = {"AttnProcessor2_0", "XFormersAttnProcessor"}


@contextmanager
def plain_attention(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Replace fused attention; the flags and processors are as before afterwards."""
    fast = torch.backends.mha.get_fastpath_enabled()
    replaced: list[tuple[nn.Module, Any]] = []
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for module, plain in _replaceable(modules):
            replaced.append((module, module.processor))
            _install(module, plain)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for module, processor in replaced:
            _install(module, processor)
        torch.backends.mha.set_fastpath_enabled(fast)


def _replaceable(modules: Iterable[nn.Module]) -> list[tuple[nn.Module, Any]]:
    """List diffusers' attention modules with fused processors, each with its plain one."""
    diffusers = sys.modules.get("diffusers.models.attention_processor")
    if diffusers is None:  # never imported, so nothing here is one of its modules
        return []
    found = {}
    for root in modules:
        for module in root.modules():
            processor = getattr(module, "processor", None)
            if isinstance(module, diffusers.Attention) and type(processor).__name__ in _EQUIVALENT:
                found[id(module)] = (module, diffusers.AttnProcessor())
    return list(found.values())


def _install(module: nn.Module, processor: Any) -> None:
    """Set the attribute wherever it lives: a processor may be a module or a plain object."""
    module._modules.pop("processor", None)
    module.__dict__.pop("processor", None)
    module.processor = processor
