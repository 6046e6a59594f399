"""Latents from tensors or any iterable, in batches of any size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from approx.decoder import HALF, DecoderError, Output, as_latents, check_latents, prepare, session

_PIECE = 2**24  # bytes of an array that are read at a time


class Batches:
    """Latents in the order in which they come, cut into batches; it holds less than two of them."""

    def __init__(self, items: Iterable[Tensor]) -> None:
        self._items = iter(items)
        self._waiting: list[Tensor] = []
        self._count = 0
        self._failed: Exception | None = None

    def take(self, size: int) -> Tensor | None:
        """Return the next (at most size, *latent_shape), or None after the last.

        What came before an item that raises is returned first.
        """
        while self._count < size and self._failed is None:
            try:
                item = next(self._items, None)
            except Exception as error:
                self._failed = error
                break
            if item is None:
                break
            self._waiting.append(item)
            self._count += len(item)
        if not self._count:
            if self._failed is not None:
                raise self._failed
            return None
        held = self._waiting[0] if len(self._waiting) == 1 else torch.cat(self._waiting)
        self._waiting = [held[size:]] if len(held) > size else []
        self._count = sum(map(len, self._waiting))
        # new memory: what rounding does may depend on how latents lie in it
        return held[:size].clone()

    def put_back(self, z: Tensor) -> None:
        """Return a batch that could not be done as a whole."""
        self._waiting.insert(0, z)
        self._count += len(z)


def stream(
    decoder: Callable[[Tensor], Any],
    latents: Any,
    *,
    output: Output | None,
    dtype: torch.dtype | None,
    finite: bool,
) -> tuple[Batches, int | None]:
    """Return latents of any kind in batches, and how many there are if that is known.

    With `finite`, NaN and infinity are refused here, and otherwise left to the batch.
    """
    if not isinstance(latents, np.memmap):
        latents = as_latents(latents, decoder)
    if isinstance(latents, Tensor):
        check_latents(latents, finite=finite)
        return Batches(_slices(latents.detach(), decoder, finite)), len(latents)
    if is_array(latents):
        return Batches(_slices(latents, decoder, finite)), latents.shape[0]
    # a map-style dataset has items, and no __iter__
    listed = hasattr(latents, "__iter__") or hasattr(latents, "__getitem__")
    if not listed or isinstance(latents, str | bytes | Mapping | nn.Module):
        raise ValueError(
            f"Expected latents as a tensor, an array or an iterable of these, got "
            f"{type(latents).__name__}: give (N, *latent_shape)."
        )
    runs = batch_test(decoder, output, dtype)
    return Batches(stacked((_tensor(x, decoder) for x in latents), runs, finite=finite)), None


def is_array(latents: Any) -> bool:
    """Whether latents are an array of any library, of a known length.

    Raises
    ------
    ValueError
        One of Dask that does not know how many rows it has.
    """
    if not all(hasattr(latents, name) for name in ("shape", "dtype", "__getitem__")):
        return False
    if any(n != n for n in latents.shape):
        raise ValueError(
            f"Expected latents of a known shape (N, *latent_shape), got {tuple(latents.shape)}: "
            "call latents.compute_chunk_sizes() before."
        )
    return True


def _slices(latents: Any, decoder: Callable[[Tensor], Any], finite: bool) -> Iterator[Tensor]:
    """Read an array of any library piece by piece: Zarr's, xarray's, Dask's, a file in memory."""
    each = max(1, math.prod(latents.shape[1:]) * latents.dtype.itemsize)
    step = max(1, _PIECE // each)
    for start in range(0, latents.shape[0], step):
        part = latents[start : start + step]
        z = as_latents(part if isinstance(part, Tensor) else np.asarray(part), decoder)
        if not isinstance(latents, Tensor):  # which was looked at as a whole
            try:
                check_latents(z, finite=finite)
            except DecoderError as error:
                raise error.counted_from(start) from None
        yield z


def _tensor(item: Any, decoder: Callable[[Tensor], Any]) -> Any:
    """Return an item as a tensor: of a tuple its first entry."""
    if isinstance(item, tuple | list) and len(item):
        if isinstance(item[0], Tensor | np.ndarray):  # (latents, labels) of a DataLoader
            item = item[0]
        elif isinstance(item[0], int | float):
            item = np.asarray(item, dtype=np.float64)
    return as_latents(item, decoder)


def stacked(
    items: Iterable[Any], runs: Callable[[Tensor], bool], *, finite: bool = True
) -> Iterator[Tensor]:
    """Give each item of an iterable a batch axis where it has none.

    An item with one axis is a latent. Of others the first decides for all: it is a batch if the
    decoder runs on its first entry (`runs`), and otherwise one latent.
    """
    single, shape, count = None, None, 0
    for number, item in enumerate(items):
        if not isinstance(item, Tensor):
            raise ValueError(
                f"Expected an iterable of tensors or arrays, got {type(item).__name__} as item "
                f"{number}: give latents (*latent_shape) or batches of them."
            )
        if single is None:
            single = item.ndim < 2 or not runs(item[:1])
        z = item[None] if single else item
        try:
            check_latents(z, finite=finite)
        except DecoderError as error:
            raise error.counted_from(count) from None
        count += len(z)
        if shape is not None and z.shape[1:] != shape:
            raise ValueError(
                f"Expected latents of one shape {tuple(shape)}, got {tuple(z.shape[1:])} in item "
                f"{number}: describe each shape by a call of its own."
            )
        shape = z.shape[1:]
        yield z


def batch_test(
    decoder: Callable[[Tensor], Any], output: Output | None, dtype: torch.dtype | None
) -> Callable[[Tensor], bool]:
    """Return a test of whether the decoder takes a tensor for a batch of one latent."""

    def runs(z: Tensor) -> bool:
        if not z.is_floating_point():  # refused with a better message than the decoder's
            return True
        wanted = torch.float32 if dtype is None and z.dtype in HALF else dtype
        z = torch.where(z.isfinite(), z, 0)  # its shape is asked for, and not its values
        try:
            prepared = prepare(decoder, z, output=output, dtype=wanted).at(slice(0, 1))
            with session(prepared), torch.no_grad():
                return len(prepared(z)) == 1
        # whatever a decoder raises when it is given a latent without its batch axis
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
            return False

    return runs
