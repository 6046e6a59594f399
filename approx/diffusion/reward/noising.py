"""Noisy samples with the bin of the descriptor of the latent behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from approx.decoder import check_latents
from approx.diffusion.schedules import Level, Schedule, diffusion_levels, is_flow
from approx.spectra import draw_seed


@dataclass(frozen=True, eq=False, repr=False)
class Collected:
    r"""Noisy samples, n = N times len(levels), each code at each level.

    Attributes
    ----------
    samples : (n, \*latent_shape) Tensor
        alpha x_0 + sigma eps, in the dtype of the codes, on their device.
    level : (n,) int64 Tensor
        Number in `levels`.
    bin : (n,) int64 Tensor
        Of the descriptor.
    code : (n,) int64 Tensor
        Number of the code among those that were given.
    held_out : (n,) bool Tensor
        Samples of codes that `fit` does not see and `report` reports on.
    levels : tuple of Level
        From the noisiest on.
    edges : tuple of float
        Of the bins; the last one holds its upper end too.
    binning : {"uniform", "quantile"}
        Bins of equal width, as published, or of equal counts.
    dropped : int
        Codes left out, as their descriptor is not finite.
    seed : int
        `generator=seed` gives the same again.
    """

    samples: Tensor
    level: Tensor
    bin: Tensor
    code: Tensor
    held_out: Tensor
    levels: tuple[Level, ...]
    edges: tuple[float, ...]
    binning: str
    dropped: int
    seed: int

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)

    def __repr__(self) -> str:
        return (
            f"Collected({len(self):,} samples at {len(self.levels)} levels, counts "
            f"{self.counts.tolist()})"
        )

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of codes in each bin, (bins,) int64."""
        return np.bincount(self.bin.cpu(), minlength=len(self.edges) - 1) // len(self.levels)


def collect(
    codes: Tensor,
    psi: Any,
    scheduler: Any,
    bins: int = 5,
    times: int = 10,
    *,
    binning: Literal["uniform", "quantile"] = "uniform",
    held_out: float = 0.2,
    drop: bool = False,
    generator: torch.Generator | int | None = None,
) -> Collected:
    r"""Add noise to codes, and sort them into bins of a descriptor.

    Parameters
    ----------
    codes : Tensor
        (N, \*latent_shape), clean latents as the scheduler steps them: multiplied by the scaling
        factor of the autoencoder, where a pipeline does so.
    psi : array_like
        (N,), psi or any other number for each code.
    scheduler : scheduler or Schedule
        Levels are spread over the training times of a scheduler of diffusers, from the noisiest to
        the cleanest, or over those of a schedule.
    bins, times : int
        Number of bins and of levels.
    binning : {"uniform", "quantile"}
        Bins of equal width, as published, or of equal counts.
    held_out : float
        Share of the codes that are kept for `report`; all noisy copies of a code are on one side.
    drop : bool
        Leave out codes whose descriptor is not finite; otherwise they are refused.
    generator : torch.Generator, int or None
        CPU generator or seed of the noise and of the choice of codes that are held out.

    Returns
    -------
    Collected
        N times `times` samples, in memory.

    Raises
    ------
    ValueError
        Other shapes; codes or numbers that are not finite; too few different ones for the bins; an
        unknown scheduler.

    Examples
    --------
    >>> import torch
    >>> from approx.diffusion import Schedule, diffusion_levels, reward
    >>> schedule = Schedule(diffusion_levels([0.9, 0.5], [1, 0]), "epsilon")
    >>> codes = torch.arange(20.0)[:, None]
    >>> found = reward.collect(codes, codes[:, 0], schedule, bins=4, times=2, generator=0)
    >>> len(found), found.counts.tolist(), int(found.held_out.sum())
    (40, [5, 5, 5, 5], 8)
    """
    check_latents(codes)
    values = np.asarray(psi.cpu() if isinstance(psi, Tensor) else psi, dtype=np.float64)
    if values.shape != (len(codes),):
        raise ValueError(
            f"Expected psi of shape ({len(codes)},), a number for each code, got {values.shape}: "
            "describe the same codes."
        )
    if bins < 2 or times < 1 or binning not in ("uniform", "quantile") or not 0 < held_out < 1:
        raise ValueError(
            "Expected at least two bins, one time, binning as 'uniform' or 'quantile' and held_out "
            f"between 0 and 1, got {bins}, {times}, {binning!r} and {held_out}: change these."
        )
    finite = np.isfinite(values)
    if not finite.all() and not drop:
        raise ValueError(
            f"Expected finite psi, got NaN or infinity for {int((~finite).sum())} of {len(values)} "
            "codes: leave them out with drop=True, or see the note of their table."
        )
    kept = torch.as_tensor(np.flatnonzero(finite))
    edges, of_code = _binned(values[finite], bins, binning)
    levels = training_levels(scheduler, times)

    seed = draw_seed(generator)
    own = torch.Generator().manual_seed(seed)
    out = torch.zeros(len(kept), dtype=torch.bool)
    count = min(max(1, round(held_out * len(kept))), len(kept) - 1)
    out[torch.randperm(len(kept), generator=own)[:count]] = True
    clean = codes.detach()[kept.to(codes.device)]
    samples = []
    for level in levels:
        noise = torch.randn(clean.shape, generator=own).to(clean)
        samples.append(level.alpha * clean + level.sigma * noise)
    repeated = len(levels)
    return Collected(
        samples=torch.cat(samples),
        level=torch.arange(repeated).repeat_interleave(len(kept)),
        bin=torch.as_tensor(of_code).repeat(repeated),
        code=kept.repeat(repeated),
        held_out=out.repeat(repeated),
        levels=levels,
        edges=edges,
        binning=binning,
        dropped=int((~finite).sum()),
        seed=seed,
    )


def training_levels(scheduler: Any, count: int) -> tuple[Level, ...]:
    """Return `count` levels from the noisiest to the cleanest, of a scheduler's training.

    Raises
    ------
    ValueError
        Fewer levels than asked for, or a scheduler without abar and velocities.
    """
    if isinstance(scheduler, Schedule):
        if count > len(scheduler):
            raise ValueError(
                f"Expected at most {len(scheduler)} times, as many as the schedule has steps, got "
                f"{count}: give a longer schedule."
            )
        return tuple(scheduler.levels[i] for i in _spread(len(scheduler), count))
    config = getattr(scheduler, "config", None)
    trained = getattr(config, "num_train_timesteps", None)
    if trained is not None and count <= trained:
        if is_flow(scheduler):
            shares = [(trained - i) / trained for i in _spread(trained, count)]
            return tuple(Level(trained * s, 1 - s, s) for s in shares)
        cumulative = getattr(scheduler, "alphas_cumprod", None)
        if cumulative is not None:
            falling = [trained - 1 - i for i in _spread(trained, count)]
            return diffusion_levels([float(a) for a in cumulative], falling)[:-1]
    raise ValueError(
        f"Expected a scheduler of diffusers with at least {count} training times, or a Schedule, "
        f"got {type(scheduler).__name__}: give the noise levels as an approx.diffusion.Schedule."
    )


def _spread(total: int, count: int) -> list[int]:
    """Return `count` numbers from 0 to total - 1, both ends among them, evenly spread."""
    return [round(i * (total - 1) / max(1, count - 1)) for i in range(count)]


def _binned(
    values: NDArray[np.float64], bins: int, binning: str
) -> tuple[tuple[float, ...], NDArray[np.int64]]:
    """Return the edges of bins and the bin of each value."""
    if len(values) < 2 or len(np.unique(values)) < bins:
        raise ValueError(
            f"Expected at least {bins} different finite psi, one for each bin, got "
            f"{len(np.unique(values))} of {len(values)} codes: give more codes or fewer bins."
        )
    if binning == "uniform":
        edges = np.linspace(values.min(), values.max(), bins + 1)
    else:
        edges = np.quantile(values, np.linspace(0, 1, bins + 1))
    if not (np.diff(edges) > 0).all():
        raise ValueError(
            f"Expected bins of different edges, got {bins} quantiles of which some are equal: give "
            "fewer bins, or binning='uniform'."
        )
    found = np.searchsorted(edges, values, side="right") - 1
    return tuple(edges.tolist()), found.clip(0, bins - 1).astype(np.int64)
