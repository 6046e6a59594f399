"""Latents from tensors or any iterable, in batches of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from approx.decoder import HALF, Output, check_latents, prepare, session


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
        return held[:size]

    def put_back(self, z: Tensor) -> None:
        """Return a batch that could not be done as a whole."""
        self._waiting.insert(0, z)
        self._count += len(z)


def stacked(items: Iterable[Any], runs: Callable[[Tensor], bool]) -> Iterator[Tensor]:
    """Give each item of an iterable a batch axis where it has none.

    An item with one axis is a latent. Of others the first decides for all: it is a batch if the
    decoder runs on its first entry (`runs`), and otherwise one latent.
    """
    single, shape = None, None
    for number, item in enumerate(items):
        if not isinstance(item, Tensor):
            raise ValueError(
                f"Expected an iterable of tensors, got {type(item).__name__} as item {number}: "
                "for example (z for z, label in loader)."
            )
        if single is None:
            single = item.ndim < 2 or not runs(item[:1])
        z = item[None] if single else item
        check_latents(z)
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
        try:
            prepared = prepare(decoder, z, output=output, dtype=wanted)
            with session(prepared), torch.no_grad():
                return len(prepared(z)) == 1
        # whatever a decoder raises when it is given a latent without its batch axis
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
            return False

    return runs
