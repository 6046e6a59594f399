"""Priors: latents with log-densities that can be read twice, without being held."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

Batch = tuple[Tensor, Tensor]
"""Latents (B, *latent_shape) and log-densities (B,), NaN where nobody gave them."""

DRAWS = 4096
"""Latents of a distribution that are described where nobody says how many."""
_AT_ONCE = 2**22  # numbers drawn at a time, of up to 4,096 latents


@dataclass(frozen=True, eq=False)
class Source:
    """Latents of a pool: `read` starts again from the first.

    `fills` tells whether they fill a bounded domain, `name` what they are from, and `count` how
    many there are, None where only reading tells.
    """

    read: Callable[[], Iterator[Batch]]
    count: int | None
    fills: bool
    name: str


def source(prior: Any, size: int | None, seed: int, bounded: bool | None) -> Source:
    """Return what a pool is read from: a distribution, latents, or an iterable of batches."""
    if isinstance(prior, Distribution):
        drawn = size or DRAWS
        return Source(
            lambda: _draws(prior, drawn, seed), drawn, fills(prior, bounded), name_of(prior)
        )
    if _is_batch(prior):
        prior = [prior]
    if not isinstance(prior, Iterable):
        raise ValueError(
            f"Expected a prior as a torch.distributions.Distribution, latents, or an iterable of "
            f"(latents, log-densities), got {type(prior).__name__}: give one of these."
        )
    # an iterator is read once: its latents have to be held
    batches = list(prior) if isinstance(prior, Iterator) else prior
    return Source(lambda: _cut(batches, size), size, fills(prior, bounded), name_of(prior))


def name_of(prior: Any) -> str:
    """Return what a prior is, in a few words."""
    return repr(prior) if isinstance(prior, Distribution) else type(prior).__name__


def fills(prior: Any, bounded: bool | None) -> bool:
    """Tell whether a prior fills a bounded domain: as the caller says, or if its support does."""
    if bounded is not None:
        return bounded
    try:
        support: Any = prior.support
    except (AttributeError, NotImplementedError):
        return False
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if not isinstance(support, constraints.interval | constraints.half_open_interval):
        return False
    ends = (support.lower_bound, support.upper_bound)
    return all(bool(torch.as_tensor(end).isfinite().all()) for end in ends)


def _is_batch(x: Any) -> bool:
    if isinstance(x, tuple):
        return len(x) == 2 and isinstance(x[0], Tensor) and isinstance(x[1], Tensor)
    return isinstance(x, Tensor)


def _cut(batches: Iterable[Any], size: int | None) -> Iterator[Batch]:
    """Yield the first `size` latents of batches, with their log-densities."""
    left = math.inf if size is None else size
    for number, item in enumerate(batches):
        pair = tuple(item) if isinstance(item, list) else item
        if not _is_batch(pair):
            raise ValueError(
                f"Expected batches of latents, or (latents, log-densities), got "
                f"{type(item).__name__} as batch {number}: give tensors."
            )
        if isinstance(pair, Tensor):
            pair = (pair, torch.full((len(pair),), torch.nan))
        z, log_density = pair
        if log_density.shape != z.shape[:1] or not log_density.is_floating_point():
            raise ValueError(
                f"Expected a log-density in floating point for each of {len(z)} latents, got "
                f"{tuple(log_density.shape)} {log_density.dtype} in batch {number}: labels are "
                "none, leave them out."
            )
        z, log_density = (x[: int(min(left, len(z)))].detach() for x in pair)
        left -= len(z)
        if len(z):
            yield z, log_density
        if left <= 0:
            return


def _draws(prior: Distribution, count: int, seed: int) -> Iterator[Batch]:
    """Yield `count` draws: a seed for each batch, and a larger pool begins with a smaller one.

    Batch axes are independent coordinates: Uniform(-ones(2), ones(2)) is of the square.
    """
    each = math.prod((*prior.batch_shape, *prior.event_shape))
    at_once = min(4096, max(1, _AT_ONCE // max(1, each)))
    for number, start in enumerate(range(0, count, at_once)):
        own = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]
        with torch.no_grad(), _seeded(int(own)):
            # a batch is drawn whole, or a larger pool would begin otherwise
            z = prior.sample(torch.Size((at_once,)))[: count - start]
            log_density = prior.log_prob(z).reshape(len(z), -1).sum(dim=1)
        yield z, log_density


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's generators, which distributions draw from, and put them back."""
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed_all(seed)
        yield
