"""Decoders that are made where they run: by a function, or from a file."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from approx.decoder.loading import load_diffusers
from approx.decoder.parts import rebuilt

READERS = "approx.decoders"
"""Group of entry points: suffixes of files, and functions of a path that return their decoder."""

Decoder = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Factory:
    """A function without arguments that returns a decoder, called where the decoder runs.

    Attributes
    ----------
    make : callable
        On a cluster it is called once on each worker, so it must be picklable: a function of an
        installed module or of the script, or a `functools.partial` of one.

    Examples
    --------
    >>> import torch
    >>> from approx import Factory, describe
    >>> table = describe(
    ...     Factory(lambda: torch.nn.Linear(2, 3)), torch.ones(4, 2), neighbourhood=None,
    ...     progress=False,
    ... )
    >>> len(table)
    4
    """

    make: Callable[[], Decoder]


def opened(
    decoder: Decoder | Factory | str | os.PathLike[str], device: torch.device | str | None = None
) -> Decoder:
    """Return the decoder of a factory or a file, on a device; anything else as it is.

    Without a device it stays where it is made. A decoder that is made here may be moved in place.

    Raises
    ------
    ValueError
        A file that nothing reads, or a factory that makes no callable.
    ImportError, OSError
        As the file's reader.
    """
    if isinstance(decoder, Factory):
        made = decoder.make()
        if not callable(made):
            raise ValueError(
                f"Expected a factory that returns a decoder, got {type(made).__name__} from "
                f"{decoder.make!r}: return a module or a function of latents."
            )
    elif isinstance(decoder, str | os.PathLike):
        made = _read(os.fspath(decoder))
    else:
        return decoder
    return made if device is None else moved(made, device)


def moved(decoder: Decoder, device: torch.device | str) -> Decoder:
    """Return a decoder with its modules moved to a device, in place, and its tensors copied."""
    return rebuilt(decoder, lambda part: part.to(device))


def _read(source: str) -> Decoder:
    path = Path(source)
    suffix = path.suffix.lower().removeprefix(".")
    readers = entry_points(group=READERS)
    if suffix in readers.names:
        return readers[suffix].load()(source)
    owner, slash, name = source.partition("/")
    # owner/name on a hub: one slash, and no folder of that owner here
    hub = bool(slash and owner.strip(".") and name) and "/" not in name and not Path(owner).is_dir()
    if path.is_dir() or (hub and not suffix):
        return load_diffusers(source).decode
    known = ", ".join(f".{name}" for name in sorted(readers.names)) or "none"
    raise ValueError(
        f"Expected a decoder, a folder of diffusers or a file that is read here ({known}), got "
        f"'{source}': check the path, or give approx.Factory(function) that loads it."
    )
