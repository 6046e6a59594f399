"""The forward pass that records the graph of all products J^T Y, in the layout that is fastest."""

from __future__ import annotations

import torch
from torch import Tensor

from approx import devices
from approx.decoder.checks import DecoderError
from approx.decoder.failures import in_words
from approx.decoder.memory import free_bytes, out_of_memory, product_bytes, sized
from approx.decoder.running import Prepared, forward, held_by_one, session


def recorded(prepared: Prepared, z: Tensor, *, batched: bool) -> tuple[Tensor, Tensor]:
    """Return latents that need a gradient, and their outputs.

    Parameters
    ----------
    prepared : Prepared
    z : Tensor
        Contiguous.
    batched : bool
        Whether the caller wants columns to be multiplied together, which keeps images in NCHW.

    Raises
    ------
    DecoderError
        The decoder does not run, or its outputs are no finite batch.
    MemoryError
        It does not fit; the message says how many latents would.
    """
    if not batched and in_channels_last(prepared, z):
        try:
            return _record(prepared, z.contiguous(memory_format=torch.channels_last))
        except DecoderError:
            raise
        except RuntimeError as error:  # the decoder calls .view(), for example
            if out_of_memory(error):
                raise no_room(prepared, z, error) from error
    try:
        with in_words(prepared.call, z):
            return _record(prepared, z)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise no_room(prepared, z, error) from error


def in_channels_last(prepared: Prepared, z: Tensor) -> bool:
    """Tell whether a device's row of the table asks for images in channels_last."""
    row = devices.of(z.device)
    least = row.pixels.get(prepared.autocast or prepared.inner)
    if least is None or z.ndim != 4 or z.shape[2] * z.shape[3] < least:
        return False
    return not any(isinstance(m, row.relaid) for root in prepared.modules for m in root.modules())


def _record(prepared: Prepared, z: Tensor) -> tuple[Tensor, Tensor]:
    with session(prepared), torch.enable_grad():
        leaf = z.clone().requires_grad_()
        # a clone, as a decoder may change its input in place, which a leaf does not allow
        return leaf, forward(prepared, leaf.clone())


def no_room(prepared: Prepared, z: Tensor, error: BaseException) -> MemoryError:
    """Return the error for a forward pass that does not fit, with what would."""
    free, one = free_bytes(z.device), held_by_one(prepared, z)
    if free is None or one is None or one.total == 0:
        return MemoryError(
            f"Expected memory for a forward pass of {len(z)} latents, got {error}: give fewer "
            "latents at a time, or dtype=torch.bfloat16."
        )
    fits = free // (one.total + product_bytes(one, z[0].nbytes))
    return MemoryError(
        f"Expected memory for a forward pass of {len(z)} latents that keeps "
        f"{sized(len(z) * one.total)}, got {sized(free)} free: {fitting(fits)}."
    )


def fitting(latents: int) -> str:
    """Return what to do, given how many latents fit."""
    if latents > 0:
        return f"{latents} at a time would fit"
    return "not even one fits; use dtype=torch.bfloat16, smaller latents, or another device"
