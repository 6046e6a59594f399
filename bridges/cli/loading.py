"""Decoders for the commands that estimate, from files that run no code when they are opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from approx.decoder import load_diffusers
from cpwl.errors import CaptureError, UnsupportedOperationError
from cpwl.network.files import FileModule, read_onnx, read_pt2

_FILES = (".pt2", ".onnx")
# Values of one tensor per sample: a Stable Diffusion decoder has 2**26.
LARGEST = 2**28
_PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin")


class Loaded(NamedTuple):
    """A decoder and what its file says of its latents.

    Attributes
    ----------
    decode : callable
        Takes latents (B, *latent_shape).
    latent_shape : tuple of int, or None
        Where the file tells; None for convolutional models that take any size.
    channels : int or None
        Number of latent channels of those.
    axes : tuple of str
        Names of the axes behind the channels.
    """

    decode: Callable[[Tensor], Any]
    latent_shape: tuple[int, ...] | None
    channels: int | None = None
    axes: tuple[str, ...] = ()


def load_decoder(
    source: str,
    dtype: torch.dtype,
    device: str,
    *,
    input_shape: tuple[int, ...] | None = None,
    fixed: Mapping[str, Any] | None = None,
    output: str | None = None,
) -> Loaded:
    """Load a .pt2 or .onnx file, or a diffusers folder or hub name, in a dtype on a device.

    Raises
    ------
    ValueError
        Another kind of file, a pickle, a damaged file, or an operation that no reader knows.
    ImportError
        A reader's package is missing.
    OSError
        No such file, folder or name.
    """
    path = Path(source)
    suffix = path.suffix.lower()
    if suffix in _FILES:
        module, shape = load_module(path, input_shape=input_shape, fixed=fixed, output=output)
        return Loaded(module.to(device=device, dtype=dtype), shape)
    if suffix in _PICKLES:
        raise CaptureError(
            f"Expected a .onnx or .pt2 file or a diffusers folder, got '{path.name}', a pickle, "
            "which could run any code when opened. Load its state dict into the module with "
            "module.load_state_dict(torch.load(path, weights_only=True)), then use "
            "approx.describe, or save the module with torch.export.save as .pt2."
        )
    if path.is_dir() or _hub_name(source):
        if fixed or output is not None:
            raise ValueError(
                f"Expected --fix and --output-name for a .onnx or .pt2 file, got '{source}', whose "
                "decode takes latents alone and returns images. Leave them out."
            )
        found = load_diffusers(source, dtype=dtype, device=device)
        return Loaded(found.decode, None, found.channels, found.axes)
    raise CaptureError(
        f"Expected a .onnx or .pt2 file, a diffusers folder or a name on the hub, got '{source}'. "
        "Check the path, or export the model with torch.export.save."
    )


def load_decode(source: str, dtype: torch.dtype, **reading: Any) -> Callable[[Tensor], Any]:
    """Load a decoder alone, as each worker of a cluster does.

    Raises
    ------
    ValueError, ImportError, OSError
        As for `load_decoder`.
    """
    return load_decoder(source, dtype, "cpu", **reading).decode


def load_module(
    path: Path,
    *,
    input_shape: tuple[int, ...] | None = None,
    fixed: Mapping[str, Any] | None = None,
    output: str | None = None,
) -> tuple[nn.Module, tuple[int, ...]]:
    """Load a .pt2 or .onnx file in its own dtype, in evaluation mode, with one latent's shape.

    Its weights are parameters, by which `approx` sees in which dtype a module runs.

    Raises
    ------
    ValueError, ImportError, OSError
        As for `load_decoder`.
    """
    suffix = path.suffix.lower()
    if suffix not in _FILES:
        raise CaptureError(
            f"Expected a .onnx or .pt2 file, got '{path.name}'. Export the model with "
            "torch.onnx.export or torch.export.save."
        )
    read = _read_onnx if suffix == ".onnx" else read_pt2
    module, shape = read(path, input_shape, fixed=fixed, output=output)
    if isinstance(module, FileModule):
        for name, value in list(module.named_buffers(recurse=False)):
            if value.is_floating_point():
                delattr(module, name)
                module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return module.eval(), tuple(shape)


def read_decoder(path: str) -> nn.Module:
    """Load a .pt2 or .onnx file for `approx`, which finds this by an entry point.

    Raises
    ------
    ValueError, ImportError, OSError
        As for `load_decoder`.
    """
    return load_module(Path(path))[0]


def check_device(name: str) -> None:
    """Refuse a device that cannot hold a tensor."""
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"Expected --device as one that torch has here, got '{name}': {reason} Try cpu."
        ) from None


def _read_onnx(
    path: Path, input_shape: tuple[int, ...] | None, **reading: Any
) -> tuple[nn.Module, tuple[int, ...]]:
    """Read with the checked tables of the exact side, which hold smooth operations too."""
    try:
        return read_onnx(path, input_shape, largest=LARGEST, **reading)
    except UnsupportedOperationError as error:
        raise CaptureError(
            f"Expected operations that the ONNX reader knows in '{path.name}', got "
            f"'{error.operation}' at '{error.place}'. Export the module with torch.export.save as "
            ".pt2, or load it in Python and call approx.describe."
        ) from error


def _hub_name(source: str) -> bool:
    """Whether a string could be owner/name: one slash, and no folder of that owner here."""
    owner, slash, name = source.partition("/")
    return (
        bool(slash and owner.strip(".") and name) and "/" not in name and not Path(owner).is_dir()
    )
