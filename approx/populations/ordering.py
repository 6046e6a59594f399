"""Images in the order of a descriptor at their latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from approx.populations.columns import Floats, Integers
from approx.populations.scorers import encoded
from approx.tables import KNOTS, LONG_NAMES, Descriptors, describe

_AT_A_TIME = 64  # images that are encoded at a time


class Ordered(NamedTuple):
    """Images in the order of a descriptor; made by `order`.

    Attributes
    ----------
    by : str
        The column.
    order : (M,) int64
        Numbers of the images, the highest value first; without those of no value.
    values : (N,) float64
        The column, in the order in which the images came.
    table : Descriptors
        Of all images; `table.complete` is False after Ctrl-C, and these are then the first images.
    latents : (N, *latent_shape) Tensor
        What the encoder made of them.

    Examples
    --------
    >>> import torch
    >>> from approx import order
    >>> halves = torch.nn.Linear(4, 2)
    >>> found = order(torch.rand(5, 4), halves, torch.nn.Linear(2, 4), progress=False)
    >>> found.by, found.latents.shape, len(found.order)
    ('psi', torch.Size([5, 2]), 5)
    """

    by: str
    order: Integers
    values: Floats
    table: Descriptors
    latents: Tensor


def order(
    images: Tensor,
    encoder: Callable[[Tensor], Any],
    decoder: Callable[[Tensor], Any],
    by: str = "psi",
    **options: Any,
) -> Ordered:
    """Order images by a descriptor of a decoder at their latents.

    Parameters
    ----------
    images : (N, ...) Tensor
        As the encoder takes them, on its device.
    encoder : callable
        From images (B, ...) to latents (B, *latent_shape), in evaluation mode: a tensor, or what a
        VAE of diffusers returns, of which the mode is taken.
    decoder : callable
        As for `describe`.
    by : str
        A column of `Descriptors`.
    **options
        As for `describe`: method, neighbourhood, seed, ...

    Returns
    -------
    Ordered

    Raises
    ------
    ValueError
        An unknown column, no images, an encoder in training mode, or one that returns no latent
        for each image.

    Other exceptions are those of `describe` and of the encoder.

    Notes
    -----
    After A. I. Humayun et al., "What secrets do your manifolds hold?", 2024, figures 6, 14 and 15.
    Cost: one pass of the encoder, and `describe`.

    Examples
    --------
    >>> import torch
    >>> from approx import level_sets, order
    >>> decoder = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
    >>> images = decoder(torch.randn(40, 2)).detach()
    >>> found = order(images, torch.nn.Linear(4, 2), decoder, neighbourhood=None, progress=False)
    >>> highest, lowest = images[found.order[:3]], images[found.order[-3:]]
    >>> len(level_sets(found.table, bins=4))
    4
    """
    if by not in LONG_NAMES:
        raise ValueError(f"Expected a column, got {by!r}: there are {', '.join(LONG_NAMES)}.")
    if by in KNOTS and options.get("neighbourhood", ()) is None:
        raise ValueError(f"Expected a neighbourhood for {by}, got None: leave neighbourhood= out.")
    if not isinstance(images, Tensor) or not images.ndim or not len(images):
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"Expected at least one image in a tensor (N, ...), got {got}: give some.")
    made: list[Tensor] = []

    def latents() -> Iterator[Tensor]:
        for part in images.split(_AT_A_TIME):
            made.append(encoded(encoder, part))
            yield made[-1]

    table = describe(decoder, latents(), total=len(images), **options)
    values = np.asarray(table.columns()[by], dtype=np.float64)
    known = np.flatnonzero(np.isfinite(values))
    falling = known[np.argsort(-values[known], kind="stable")]
    return Ordered(by, falling, values, table, torch.cat(made)[: len(table)])
