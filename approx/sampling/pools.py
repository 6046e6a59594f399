"""Pools: latents of a prior with the psi that weighs them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from approx.decoder import Bound, Output, modules_of, whole
from approx.sampling.priors import Source, source
from approx.sampling.resampling import Floats
from approx.spectra import draw_seed, named
from approx.tables import DescribeError, Descriptors, describe

MOST_ERROR = 0.1
"""Largest error of psi, in nats, that may weigh a sample: 10 % of its weight."""


@dataclass(frozen=True, eq=False, repr=False)
class Pool:
    """Latents of a prior, described: made by `measure`, and enough for any number of samples.

    It holds numbers by latent, and not the latents, which are drawn or read again where a sample
    needs them.

    Attributes
    ----------
    table : Descriptors
        psi of N latents, with its error and its definition.
    log_density : (N,) float64
        The prior's, at each latent; NaN where it was not given.
    marks : (N,) float64
        A sum of each latent's coordinates, by which one that is read again is recognised.
    source : Source
        Where the latents are from.
    output : callable, str, int or None
        Picks the tensor from what the generator returns.
    seed : int
        Of the draws.

    Examples
    --------
    >>> import torch
    >>> from approx import sampling
    >>> square = torch.distributions.Uniform(-torch.ones(2), torch.ones(2))
    >>> sampling.measure(torch.nn.Linear(2, 3), square, 100, seed=0, progress=False)
    Pool(100 latents of Uniform(...), psi (exact), complete)
    """

    table: Descriptors
    log_density: Floats
    marks: Floats
    source: Source
    output: Output | None
    seed: int

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        state = "complete" if self.complete else "interrupted"
        psi = f"{named('psi', self.table.subscript)} ({self.table.ran()})"
        return f"Pool({len(self):,} latents of {self.source.name}, {psi}, {state})"

    @property
    def complete(self) -> bool:
        """False if measuring was interrupted: the pool is then of the first latents."""
        return self.table.complete

    def latents(self, indices: ArrayLike) -> Tensor:
        """Return latents by number, one or more (n,): drawn or read again.

        Raises
        ------
        ValueError
            The prior gives other latents than when they were described.
        """
        wanted = np.asarray(indices)
        inside = wanted.ndim == 1 and wanted.size and wanted.dtype.kind in "iu"
        if not inside or wanted.min() < 0 or wanted.max() >= len(self):
            raise ValueError(
                f"Expected numbers (n,) of latents from 0 to {len(self) - 1}, got {indices}: take "
                "some of them."
            )
        order = np.argsort(wanted, kind="stable")
        parts, start = [], 0
        for z, _ in self.source.read():
            ends = np.searchsorted(wanted[order], (start, start + len(z)))
            rows = wanted[order[ends[0] : ends[1]]]
            parts.append(z[torch.as_tensor(rows - start, device=z.device)])
            if not np.array_equal(_marks(z)[rows - start], self.marks[rows]):
                raise ValueError(
                    f"Expected the same latents as were described, got others between {start} and "
                    f"{start + len(z)}: give a prior that is read in the same order each time (a "
                    "DataLoader without shuffle), or a list."
                )
            start += len(z)
            if start >= len(self):
                break
        back = torch.as_tensor(np.argsort(order, kind="stable"))
        return torch.cat(parts)[back.to(parts[0].device)]


class PoolError(RuntimeError):
    """A pool that cannot be sampled from, or was not measured to its end.

    Attributes
    ----------
    pool : Pool
        What was measured: `polarity` and `magnet` take it as their prior.

    Examples
    --------
    >>> import torch
    >>> from approx import sampling
    >>> square = torch.distributions.Uniform(-torch.ones(2), torch.ones(2))
    >>> try:
    ...     sampling.magnet(torch.nn.Linear(2, 3), square, 10, size=40, progress=False)
    ... except sampling.PoolError as error:
    ...     print(len(error.pool))
    40
    """

    pool: Pool

    def __init__(self, message: str, pool: Pool) -> None:
        super().__init__(f"{message} [what was measured is in this exception's .pool]")
        self.pool = pool


def measure(
    generator: Callable[[Tensor], Any],
    prior: Any,
    size: int | None = None,
    *,
    seed: int | None = None,
    bounded: bool | None = None,
    progress: bool = True,
    **describe_options: Any,
) -> Pool:
    """Describe latents of a prior, so that samples can be drawn from them by their psi.

    Parameters
    ----------
    generator : callable
        As `approx.describe` takes it.
    prior : torch.distributions.Distribution, Tensor, (Tensor, Tensor), or iterable
        A distribution of latents; its batch axes are taken as independent coordinates. Or latents
        (N, *latent_shape) that were drawn from one, alone or with its log-densities (N,); or an
        iterable of batches of these, which is read twice in the same order (an iterator is held in
        memory instead).
    size : int, optional
        Latents to describe. By default 4,096 of a distribution, and all of an iterable.
    seed : int, optional
        Of the draws. By default from the operating system; recorded. A larger pool of the same seed
        begins with the smaller one.
    bounded : bool, optional
        Whether the prior fills a bounded domain, where its `support` does not tell: a box is known.
    progress : bool
        Whether to show a bar.
    **describe_options
        Of `approx.describe`, also `store`. By default ``method="exact"`` and no neighbourhood.

    Returns
    -------
    Pool
        After Ctrl-C of the latents before it, with `complete` False and a warning.

    Raises
    ------
    ValueError
        psi would not be of the whole Jacobian (found after two latents); the prior, the size, the
        seed or an option are not as said above.
    DecoderError
        As `approx.describe`.
    PoolError
        An exception after the first batch: the rows before are in it.

    Notes
    -----
    Memory: one batch, and about 20 numbers for each latent. Cost: that of `approx.describe`, and
    drawing or reading the latents twice. Distributions draw from torch's global generators, which
    are seeded for the draw and put back (CPU and CUDA).

    Examples
    --------
    >>> import torch
    >>> from approx import sampling
    >>> square = torch.distributions.Uniform(-torch.ones(2), torch.ones(2))
    >>> pool = sampling.measure(torch.nn.Tanh(), square, 1_000, seed=0, progress=False)
    >>> [len(sampling.polarity(None, pool, 100, rho, seed=0).latents) for rho in (-1, 0, 1)]
    [100, 100, 100]
    """
    if size is not None:
        size = whole(size, "a size", "say how many latents.")
    seed = whole(draw_seed(seed), "a seed", "choose another.", 0)
    options = _options(describe_options)
    given = source(prior, size, seed, bounded)
    log_densities: list[Floats] = []
    marks: list[Floats] = []

    def latents() -> Iterator[Tensor]:
        for z, log_density in given.read():
            log_densities.append(log_density.double().cpu().numpy())
            marks.append(_marks(z))
            yield placed(z, generator)

    first = next(given.read(), None)
    if first is None:
        raise ValueError("Expected a prior with latents, got none: give at least one batch.")
    z = placed(first[0][:2], generator)
    two = generator.at(slice(0, len(z))) if isinstance(generator, Bound) else generator
    looked = {name: value for name, value in options.items() if name not in ("store", "chunk")}
    check_whole(describe(two, z, progress=False, **looked))

    def pooled(table: Descriptors) -> Pool:
        density, mark = (np.concatenate(parts)[: len(table)] for parts in (log_densities, marks))
        return Pool(table, density, mark, given, options.get("output"), seed)

    try:
        with warnings.catch_warnings():  # the one below says what to do with a pool
            warnings.filterwarnings("ignore", "Interrupted after", RuntimeWarning)
            table = describe(generator, latents(), progress=progress, total=given.count, **options)
    except DescribeError as error:
        raise PoolError(str(error.__cause__), pooled(error.partial)) from error
    if not table.complete:
        warnings.warn(
            f"Interrupted after {len(table)} latents: the pool holds these.",
            RuntimeWarning,
            stacklevel=2,
        )
    return pooled(table)


def check_whole(table: Descriptors) -> None:
    """Refuse psi of anything but the whole Jacobian."""
    if table.subscript:
        raise ValueError(
            f"Expected psi of the whole Jacobian to weigh samples, got "
            f"{named('psi', table.subscript)} ({table.definition}): measure with method='exact' "
            "and without k."
        )


def flat(pool: Pool) -> NDArray[np.bool_]:
    """Return where the Jacobian has lost rank (N,); refuse psi that is unknown or too uncertain."""
    table = pool.table
    check_whole(table)
    unknown = np.flatnonzero(np.isnan(table.psi))
    if len(unknown):
        why = dict(table.failures).get(int(unknown[0]), table.note)
        raise PoolError(
            f"Expected psi of every latent, got NaN at {len(unknown):,} of {len(pool):,}, the "
            f"first latent {unknown[0]}: {why or 'unknown'} Measure in torch.float64, or take a "
            "prior without such latents: leaving them out would change it.",
            pool,
        )
    lost = table.rank < table.k
    # "topk" has bounds and no standard error
    reach = np.maximum(table.psi - table.psi_low, table.psi_high - table.psi)
    error = np.where(np.isnan(table.psi_error), reach, table.psi_error)
    worst = float(np.max(np.where(lost, 0.0, error), initial=0.0))
    if not worst <= MOST_ERROR:
        raise PoolError(
            f"Expected psi with an error of at most {MOST_ERROR} nats to weigh samples, got "
            f"{worst:.2g} ({table.ran()}, {table.dtype}): measure with method='exact' in "
            "torch.float64.",
            pool,
        )
    return lost


def placed(z: Tensor, generator: Callable[[Tensor], Any]) -> Tensor:
    """Return latents in the dtype and on the device of the generator's parameters."""
    for module in modules_of(generator):
        for parameter in module.parameters():
            if parameter.is_floating_point() and z.is_floating_point():
                return z.to(parameter)
    return z


def _marks(z: Tensor) -> Floats:
    return z.double().flatten(1).sum(dim=1).cpu().numpy()


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """Return options of `describe`, without those that a pool decides."""
    decided = {"decoder", "latents", "generator", "seed", "progress", "total"}
    taken = inspect.signature(describe).parameters.keys() - decided
    unknown = sorted(given.keys() - taken)
    if unknown:
        raise ValueError(
            f"Expected options of describe ({', '.join(sorted(taken))}), got {unknown[0]}: see "
            "approx.describe."
        )
    return {"method": "exact", "neighbourhood": None, "seed": 0} | given
