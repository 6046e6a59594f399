"""Latents by their numbers, read where they are needed: arrays of any library, images."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from approx.decoder import Factory, check_latents, modules_of
from approx.tables.batches import Batches

_PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


Encoder = Callable[[Tensor], Any]


@dataclass(frozen=True, eq=False)
class Images:
    """The images of a folder as latents of an encoder, in the order of their names.

    Attributes
    ----------
    folder : str or path
        Of .png, .jpg, .webp, .bmp, .gif, .tif or .ppm files, or a URL that fsspec opens. Workers of
        a cluster read it themselves.
    encode : callable or Factory
        Takes one image (1, 3, height, width), float32 in [0, 1], and returns its latent
        (1, *latent_shape). One at a time, so that no latent depends on its neighbours.

    Examples
    --------
    >>> import tempfile, torch
    >>> from PIL import Image
    >>> from approx import Images, describe
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, grey in (("a.png", 0), ("b.png", 255)):
    ...         Image.new("L", (2, 2), grey).save(f"{folder}/{name}")
    ...     images = Images(folder, lambda image: image.mean((2, 3)))
    ...     table = describe(torch.nn.Linear(3, 4), images, neighbourhood=None, progress=False)
    >>> len(table)
    2
    """

    folder: str | os.PathLike[str]
    encode: Encoder | Factory


class Source(Protocol):
    """Latents by their numbers."""

    @property
    def length(self) -> int:
        """How many there are."""
        ...

    def first(self, rows: int) -> Any:
        """Return the first of them, or a part that has them."""
        ...

    def part(self, start: int, stop: int) -> Any:
        """Return latents start to stop - 1, or what reads them where they are needed."""
        ...


class Part(Protocol):
    """Latents that are read where they are needed."""

    def read(self, encode: Encoder | None) -> Tensor | NDArray[Any]:
        """Return them, (n, *latent_shape)."""
        ...

    def digest(self, rows: int) -> str | None:
        """Return the digest of the first `rows`, None where it is that of what is read."""
        ...


def source_of(latents: Any, *, finite: bool) -> Source | None:
    """Return latents that have numbers, or None for a stream.

    With `finite`, a tensor with NaN or infinity is refused here, and others where they are read.

    Raises
    ------
    ValueError
        No latents; a folder without images.
    """
    if isinstance(latents, Images):
        return _Folder(_files(latents.folder))
    if isinstance(latents, Tensor):
        check_latents(latents, finite=finite)
    elif not all(hasattr(latents, name) for name in ("shape", "dtype", "__getitem__")):
        return None
    elif not latents.shape or not latents.shape[0]:
        raise ValueError(
            f"Expected latents (N, *latent_shape), got shape {tuple(latents.shape)}: give some."
        )
    data = getattr(latents, "data", None)
    return _Array(data if hasattr(data, "__dask_graph__") else latents)  # of xarray's


class _Array(NamedTuple):
    """An array of any library: one in memory is sent, one of Dask is left to it."""

    values: Any

    @property
    def length(self) -> int:
        return int(self.values.shape[0])

    def first(self, rows: int) -> Any:
        found = self.values[:rows]
        return found.detach().cpu().clone() if isinstance(found, Tensor) else np.array(found)

    def part(self, start: int, stop: int) -> Any:
        if isinstance(self.values, Tensor):  # a view would be sent with all that it is a view of
            return self.values[start:stop].detach().cpu().clone()
        if isinstance(self.values, np.ndarray):
            return np.array(self.values[start:stop])
        lazy = hasattr(self.values, "__dask_graph__")
        return self.values[start:stop] if lazy else _Slice(self.values, start, stop)


class _Slice(NamedTuple):
    """Rows of an array that is not in memory, such as Zarr's."""

    values: Any
    start: int
    stop: int

    def read(self, encode: Encoder | None) -> Tensor | NDArray[Any]:
        found = self.values[self.start : self.stop]
        return found if isinstance(found, Tensor) else np.asarray(found)

    def digest(self, rows: int) -> str | None:
        return None


class _Folder(NamedTuple):
    """Images by their names; a trial needs an encoder, and so looks at few."""

    files: tuple[str, ...]

    @property
    def length(self) -> int:
        return len(self.files)

    def first(self, rows: int) -> Any:
        return self.part(0, min(rows, 8))

    def part(self, start: int, stop: int) -> Any:
        return _Pictures(self.files[start:stop])


class _Pictures(NamedTuple):
    """Some images, by their files."""

    files: tuple[str, ...]

    def read(self, encode: Encoder | None) -> Tensor | NDArray[Any]:
        assert encode is not None
        return torch.cat([_encoded(encode, name) for name in self.files])

    def digest(self, rows: int) -> str | None:
        found = hashlib.sha256()
        for name in self.files[:rows]:
            found.update(hashlib.sha256(_bytes(name)).digest())
        return found.hexdigest()[:32]


def in_batches(source: Source, encode: Encoder) -> Batches:
    """Return parts of latents one after the other."""
    parts: Iterator[Part] = (source.part(n, n + 1) for n in range(source.length))
    return Batches(torch.as_tensor(part.read(encode)) for part in parts)


def _files(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    import fsspec

    fs, root = fsspec.core.url_to_fs(os.fspath(folder))
    try:
        names = fs.ls(root, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        names = []
    found = sorted(name for name in names if str(name).lower().endswith(_PICTURES))
    if not found:
        raise ValueError(
            f"Expected images ({', '.join(_PICTURES)}) in '{folder}', got none: check the folder."
        )
    return tuple(map(fs.unstrip_protocol, found))


def _bytes(name: str) -> bytes:
    import fsspec

    with fsspec.open(name, "rb") as file:
        return file.read()


def _encoded(encode: Encoder, name: str) -> Tensor:
    """Return the latent of an image, on the encoder's device."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(_bytes(name))) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"), dtype=np.float32) / 255)
    except OSError as error:
        raise ValueError(
            f"Expected an image in {name}, got {type(error).__name__}: {error}. Remove the file, "
            "or write it anew."
        ) from error
    image = pixels.permute(2, 0, 1)[None].contiguous()
    for module in modules_of(encode):
        for parameter in module.parameters():
            image = image.to(parameter.device)
            break
    with torch.no_grad():
        z = encode(image)
    if not isinstance(z, Tensor) or len(z) != 1:
        got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(
            f"Expected an encoder that returns one latent (1, *latent_shape) of one image, got "
            f"{got} for {name}: return a tensor with its batch axis."
        )
    return z
