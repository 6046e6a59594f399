"""Latents that are read where they are needed: Zarr's, xarray's and Dask's arrays, images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from approx.decoder import Factory, as_latents, moved, opened

_PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, eq=False)
class Images:
    """The images of a folder, as latents of an encoder; in the order of their names.

    Attributes
    ----------
    folder : str or path
        Of .png, .jpg, .webp, .bmp, .gif, .tif, .ppm files, or a URL of one that fsspec opens.
        Workers of a cluster read it themselves.
    encode : callable or Factory
        Takes one image (1, 3, height, width), float32 in [0, 1], and returns its latent
        (1, *latent_shape). One at a time, so that an image's latent depends on no other image.

    Examples
    --------
    >>> import tempfile, torch
    >>> from PIL import Image
    >>> from approx import Images, describe
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, grey in (("a.png", 0), ("b.png", 255)):
    ...         Image.new("L", (2, 2), grey).save(f"{folder}/{name}")
    ...     images = Images(folder, lambda x: x.mean((2, 3)))
    ...     table = describe(torch.nn.Linear(3, 4), images, neighbourhood=None, progress=False)
    >>> len(table)
    2
    """

    folder: str | os.PathLike[str]
    encode: Callable[[Tensor], Any] | Factory

    def part(self, names: Sequence[str], start: int, stop: int) -> _Pictures:
        return _Pictures(tuple(names[start:stop]), self.encode)


class _Pictures(NamedTuple):
    """Some images, by their files."""

    names: tuple[str, ...]
    encode: Any

    def read(self) -> Tensor:
        # on the encoder's device
        return torch.cat([self.encode(_picture(name)) for name in self.names])
