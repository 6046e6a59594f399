"""What the kinds of devices have, as a table, and where steps are taken that one lacks.

A device or a tensor goes in; its row, or the tensor where a step can be taken, comes out. Imports
nothing of approx.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["DEVICES", "Device", "factorisable", "of", "widened", "widest"]

_HALF = (torch.bfloat16, torch.float16)


class Device(NamedTuple):
    """One kind of device.

    Attributes
    ----------
    host : bool
        Whether values are at hand: elsewhere each question waits for all that was begun, so that
        loops over layers and columns ask none.
    float64 : bool
        Whether it computes in float64; steps that need it are taken on the CPU otherwise.
    factorises : bool
        Whether QR and triangular solves of tall matrices run on it; on the CPU otherwise.
    pixels : mapping
        Pixels of a latent from which an image runs in channels_last, by the decoder's dtype. Its
        products J^T y are then made one column at a time, as vmap cannot follow that layout.
        Dtypes that are not named run in NCHW, their columns batched.
    relaid : tuple of type
        Modules that take NCHW on it, so that a decoder with any of them runs in NCHW throughout.
    """

    host: bool = False
    float64: bool = True
    factorises: bool = True
    pixels: Mapping[torch.dtype, int] = MappingProxyType({})
    relaid: tuple[type[nn.Module], ...] = ()


DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        # 1.2 to 1.35 times faster in float32 and twice in bfloat16 (TAEF2 at 16 x 16), 1.05 and
        # 1.35 (the SD 1.4 decoder)
        "cpu": Device(
            host=True,
            pixels=dict.fromkeys((torch.float32, torch.float64, *_HALF), 64),
        ),
        # Not measured. Tensor cores take half precision in NHWC, and cuDNN converts NCHW at each
        # convolution; that is worth it where columns are batched, as small images do not fill the
        # device alone. torch's group normalisation converts back to NCHW on CUDA. float32 is not
        # TF32 here (see `session`), and its kernels are made for NCHW.
        "cuda": Device(
            pixels=dict.fromkeys(_HALF, 64**2),
            relaid=(nn.GroupNorm,),
        ),
        # torch's QR needs rows x rows of memory there, pytorch issue 187567
        "mps": Device(float64=False, factorises=False),
    }
)
"""By the device's type; others, as `meta`, are as a `Device()`."""


def of(device: torch.device) -> Device:
    """Return a device's row."""
    return DEVICES.get(device.type, Device())


def widest(device: torch.device) -> torch.dtype:
    """Return float64, or float32 where the device has no float64."""
    return torch.float64 if of(device).float64 else torch.float32


def widened(Y: Tensor) -> Tensor:
    """Y in float64, on the CPU where the device has none."""
    return Y.double() if of(Y.device).float64 else Y.to("cpu", torch.float64)


def factorisable(Y: Tensor) -> Tensor:
    """Y itself, or on the CPU where the device does not factorise."""
    return Y if of(Y.device).factorises else Y.cpu()
