"""MaGNET and polarity sampling: a pool of latents, weighed by psi and resampled."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from approx.decoder import in_words, prepare, session, whole
from approx.sampling.pools import Pool, PoolError, flat, measure, placed
from approx.sampling.priors import Source, fills, name_of
from approx.sampling.resampling import (
    Floats,
    effective_size,
    largest_share,
    scaled,
    systematic,
    tail,
)
from approx.spectra import draw_seed

LEAST = 50
"""Smallest effective sample size of a pool that is sampled from."""
HEAVY = 0.7
"""Shape of a generalised Pareto distribution above which sums of weights are unreliable."""
_IMAGES = 64  # decoded at a time


@dataclass(frozen=True, eq=False, repr=False)
class Sample:
    """n latents drawn from a pool by their psi; made by `magnet` and `polarity`.

    Attributes
    ----------
    latents : Tensor
        (n, *latent_shape), in random order. Those of large weight come more than once.
    images : Tensor or None
        (n, *output_shape), where asked for.
    indices : (n,) int64
        Of the latents in the pool.
    psi : (n,) float64
        Local scaling at these.
    weights : (N,) float64
        Of the pool's latents; they sum to 1.
    ess : float
        Effective sample size of the weights: (sum w)^2 / sum w^2.
    distinct : int
        How many different latents there are.
    rho : float
        Exponent of exp(psi).
    excluded : float
        Share of the pool where the Jacobian loses rank: its weight is 0 for rho other than 0.
    seed : int
        Of the resampling.
    pool : Pool
        For more samples, with other rho.

    Examples
    --------
    >>> import torch
    >>> from approx import sampling
    >>> square = torch.distributions.Uniform(-torch.ones(2), torch.ones(2))
    >>> sampling.magnet(torch.nn.Linear(2, 3), square, 10, size=100, seed=0, progress=False)
    Sample(10 latents, 10 distinct, rho=1, effective size 100 of 100, seed=0)
    """

    latents: Tensor
    images: Tensor | None
    indices: NDArray[np.int64]
    psi: Floats
    weights: Floats
    ess: float
    distinct: int
    rho: float
    excluded: float
    seed: int
    pool: Pool

    def __post_init__(self) -> None:
        """Freeze the columns."""
        for column in (self.indices, self.psi, self.weights):
            column.flags.writeable = False

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        lost = f", {self.excluded:.1%} of the pool excluded" if self.excluded else ""
        return (
            f"Sample({len(self):,} latents, {self.distinct:,} distinct, rho={self.rho:g}, "
            f"effective size {self.ess:,.0f} of {len(self.pool):,}{lost}, seed={self.seed})"
        )


def magnet(
    generator: Callable[[Tensor], Any] | None,
    prior: Any,
    n: int,
    *,
    size: int | None = None,
    images: bool = False,
    seed: int | None = None,
    bounded: bool | None = None,
    progress: bool = True,
    **describe_options: Any,
) -> Sample:
    """Draw samples that are uniform on the image of a bounded domain, whatever the prior.

    Parameters
    ----------
    generator : callable or None
        As `approx.describe` takes it; None with a `Pool`, where no images are asked for.
    prior : torch.distributions.Distribution, Tensor pair, iterable or Pool
        What `measure` takes, with log-densities, or what it returned. It has to fill the domain.
    n : int
        How many.
    size, bounded, progress, **describe_options
        Of `measure`; not with a `Pool`.
    images : bool
        Whether to decode the samples.
    seed : int, optional
        Of the draws and the resampling. By default from the operating system; recorded.

    Returns
    -------
    Sample
        With weights proportional to exp(psi) / p(z), p the prior's density. After Ctrl-C, from the
        part of the pool that was measured.

    Raises
    ------
    ValueError
        A prior whose domain is not bounded: the image then has no uniform distribution, or no known
        one. Arguments that are not as said above.
    PoolError
        An effective sample size below 50, with the size of pool that would do; log-densities that
        are not finite; psi that is NaN, not of the whole Jacobian, or has an error above 0.1; fewer
        outputs than latent coordinates. The pool is in it.

    Notes
    -----
    By the area formula, latents of density exp(psi) on the domain are uniform on the image, where
    each point counts once for each of its preimages (Humayun et al., "MaGNET: uniform sampling from
    deep generative network manifolds without retraining", 2022). Resampling is systematic; the
    sample is about as good as `ess` independent draws, whatever n is. Where the prior's density
    vanishes towards an edge of its domain the weights have heavy tails: `ess` is then too large,
    and the images of that edge are missing. A warning says so where generalised Pareto
    distributions of the largest 1 / p(z) and of the largest weights both have a shape above 0.7
    (A. Vehtari et al., "Pareto smoothed importance sampling", 2024; that of the weights alone means
    nothing where psi has but a few values). Of a density m z^(m - 1) it is 1 - 1 / m. Take a prior
    that is flat there.

    Cost: `size` rows of `approx.describe`.

    Examples
    --------
    >>> import torch
    >>> from approx import sampling
    >>> interval = torch.distributions.Uniform(torch.zeros(1), torch.ones(1))
    >>> found = sampling.magnet(torch.square, interval, 200, size=2_000, images=True, seed=0,
    ...                         progress=False)
    >>> round(found.images.mean().item(), 1)  # uniform on [0, 1]; of uniform latents, 1/3
    0.5
    """
    given = prior.source if isinstance(prior, Pool) else prior
    if not (given.fills if isinstance(given, Source) else fills(given, bounded)):
        name = given.name if isinstance(given, Source) else name_of(given)
        raise ValueError(
            f"Expected a prior that fills a bounded domain, got {name}, whose support is not "
            "known to be bounded: the image of an unbounded domain has no uniform distribution. "
            "Take Uniform on a box, or bounded=True where the domain is."
        )
    n = whole(n, "n", "say how many.")
    pool, drawn = _pool(generator, prior, size, seed, bounded, images, progress, describe_options)
    lost = flat(pool)
    d, outputs = (math.prod(s) for s in (pool.table.latent_shape, pool.table.output_shape))
    if outputs < d:
        raise PoolError(
            f"Expected at least as many outputs as latent coordinates, got {outputs} and {d}: "
            "fibres of latents have one image, and psi does not measure them.",
            pool,
        )
    if not np.isfinite(pool.log_density).all():
        raise PoolError(
            "Expected the prior's log-density at each latent, got NaN or infinity: give latents "
            "as (latents, log-densities), or a distribution.",
            pool,
        )
    log_weights = np.where(lost, -np.inf, pool.table.psi - pool.log_density)
    found = _resampled(pool, n, log_weights, 1.0, lost, drawn, tempered=False)
    if (shape := min(tail(found.weights), tail(scaled(-pool.log_density)))) > HEAVY:
        warnings.warn(
            f"The prior vanishes towards an edge of its domain (its weights have the tail of a "
            f"Pareto distribution of shape {shape:.2f}): the effective size of {found.ess:,.0f} "
            "is too large, and images of that edge are missing. Take a prior that is flat there.",
            RuntimeWarning,
            stacklevel=2,
        )
    return _with_images(generator, found, progress) if images else found


def polarity(
    generator: Callable[[Tensor], Any] | None,
    prior: Any,
    n: int,
    rho: float,
    *,
    size: int | None = None,
    images: bool = False,
    seed: int | None = None,
    bounded: bool | None = None,
    progress: bool = True,
    **describe_options: Any,
) -> Sample:
    """Draw samples of the prior, tilted by exp(rho psi).

    Parameters
    ----------
    generator : callable or None
        As `approx.describe` takes it; None with a `Pool`, where no images are asked for.
    prior : torch.distributions.Distribution, Tensor, iterable or Pool
        What `measure` takes, or what it returned. Log-densities are not needed.
    n : int
        How many.
    rho : float
        0: the prior. Below 0: the modes, where the generator contracts and samples are dense.
        Above 0: the thin parts, where it stretches.
    size, bounded, progress, **describe_options
        Of `measure`; not with a `Pool`.
    images : bool
        Whether to decode the samples.
    seed : int, optional
        Of the draws and the resampling. By default from the operating system; recorded.

    Returns
    -------
    Sample
        Of latents with density proportional to p(z) exp(rho psi(z)). After Ctrl-C, from the part of
        the pool that was measured.

    Raises
    ------
    ValueError
        Arguments that are not as said above; psi that would not be of the whole Jacobian.
    PoolError
        An effective sample size below 50, with the rho and the size of pool that would do; psi that
        is NaN, or has an error above 0.1. The pool is in it.

    Notes
    -----
    After Humayun, Balestriero and Baraniuk, "Polarity sampling: quality and diversity control of
    pre-trained generative networks via singular values", 2022. Theirs takes the largest singular
    values alone, which weighs by something else than volume; here psi is of all.

    Cost: `size` rows of `approx.describe`; nothing but resampling for another rho from the same
    `Pool`.

    Examples
    --------
    >>> import torch
    >>> from approx import sampling
    >>> normal = torch.distributions.Normal(torch.zeros(2), 1.0)
    >>> pool = sampling.measure(torch.nn.Tanh(), normal, 2_000, seed=0, progress=False)
    >>> spread = [sampling.polarity(None, pool, 500, rho, seed=0).latents.std() for rho in (0, 1)]
    >>> bool(spread[1] < spread[0])  # tanh stretches most at 0
    True
    """
    n, rho = whole(n, "n", "say how many."), _finite(rho)
    pool, drawn = _pool(generator, prior, size, seed, bounded, images, progress, describe_options)
    lost = flat(pool) & (rho != 0)
    with np.errstate(over="ignore"):
        log_weights = np.where(lost, -np.inf, rho * pool.table.psi)
    if not np.isfinite(log_weights[~lost]).all():
        raise ValueError(
            f"Expected rho times psi that float64 can hold, got rho={rho:g}: give a smaller one."
        )
    found = _resampled(pool, n, log_weights, rho, lost, drawn, tempered=True)
    return _with_images(generator, found, progress) if images else found


def _finite(rho: Any) -> float:
    """Return a rho of any library as a float, or refuse it."""
    try:
        found = math.nan if isinstance(rho, str) else float(getattr(rho, "item", lambda: rho)())
    except (TypeError, ValueError, RuntimeError):  # the last two of arrays and tensors
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"Expected a finite rho, got {rho!r}: 0 is the prior itself.")
    return found


def _pool(
    generator: Callable[[Tensor], Any] | None,
    prior: Any,
    size: int | None,
    seed: int | None,
    bounded: bool | None,
    images: bool,
    progress: bool,
    options: dict[str, Any],
) -> tuple[Pool, int]:
    """Return the pool, measured where it is not given, and the seed."""
    drawn = whole(draw_seed(seed), "a seed", "choose another.", 0)
    if generator is None and (images or not isinstance(prior, Pool)):
        raise ValueError("Expected a generator, got None: only a Pool without images needs none.")
    if not isinstance(prior, Pool):
        assert generator is not None
        given = {"size": size, "bounded": bounded, "progress": progress} | options
        return measure(generator, prior, seed=drawn, **given), drawn
    if size is not None or bounded is not None or options:
        raise ValueError(
            "Expected no options of measuring with a pool, which is measured, got "
            f"{', '.join(options) or 'size or bounded'}: give them to measure."
        )
    return prior, drawn


def _resampled(
    pool: Pool,
    n: int,
    log_weights: Floats,
    rho: float,
    lost: NDArray[np.bool_],
    seed: int,
    *,
    tempered: bool,
) -> Sample:
    """Draw n latents by their weights, or refuse weights that are worth too little."""
    if lost.all():
        raise PoolError(
            f"Expected latents where psi is of full rank, got none among {len(pool):,}: the image "
            "has no volume. polarity with rho=0 is the prior.",
            pool,
        )
    weights = scaled(log_weights)
    ess = effective_size(weights)
    if ess < LEAST:
        advice = f"take a pool of about {math.ceil(len(pool) * LEAST / ess):,} latents or more"
        if tempered and (works := rho * largest_share(log_weights[~lost], LEAST)):
            digits = 1 - math.floor(math.log10(abs(works)))
            # towards 0, or it would be too much again
            advice += f", or rho={math.trunc(works * 10**digits) / 10**digits:g}"
        raise PoolError(
            f"Expected weights worth at least {LEAST} samples, got {ess:.1f} of {len(pool):,} "
            f"latents at rho={rho:g}: {advice}.",
            pool,
        )
    # another stream than the draws', which have the same seed
    indices = systematic(weights, n, np.random.default_rng([seed, 0, 1]))
    try:
        latents = pool.latents(indices)
    except (Exception, KeyboardInterrupt) as error:
        raise PoolError(str(error) or "Interrupted while latents were read again.", pool) from error
    return Sample(
        latents=latents,
        images=None,
        indices=indices,
        psi=pool.table.psi[indices],
        weights=weights,
        ess=ess,
        distinct=len(np.unique(indices)),
        rho=float(rho),
        excluded=float(lost.mean()),
        seed=seed,
        pool=pool,
    )


def _with_images(
    generator: Callable[[Tensor], Any] | None, sample: Sample, progress: bool
) -> Sample:
    """Return a sample with its images; a conditional generator takes its latents' rows."""
    assert generator is not None
    z, rows = placed(sample.latents, generator), torch.as_tensor(sample.indices.copy())
    parts: list[Tensor] = []
    try:
        prepared = prepare(generator, z, output=sample.pool.output)
        hidden = not progress
        with session(prepared), torch.no_grad(), tqdm(total=len(z), disable=hidden) as bar:
            for some, part in zip(rows.split(_IMAGES), z.split(_IMAGES), strict=True):
                with in_words(generator, part):
                    parts.append(prepared.at(some)(part))
                bar.update(len(part))
    except KeyboardInterrupt:
        warnings.warn(
            "Interrupted while images were made: the sample has its latents alone.",
            RuntimeWarning,
            stacklevel=3,
        )
        return sample
    except Exception as error:
        raise PoolError(str(error), sample.pool) from error
    return replace(sample, images=torch.cat(parts))
