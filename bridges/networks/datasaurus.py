"""Toy diffusion of points in the plane: the Datasaurus Dozen, a ReLU denoiser, the ideal one."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from bridges.networks import data
from bridges.networks.toys import one_thread

STEPS = 50
"""Steps of the toy diffusion; its times are 1, ..., STEPS, and 0 is clean."""

_WAVES = 8  # pairs of time features


def read_datasaurus(name: str = "dino", folder: Path | None = None) -> Tensor:
    """Return the 142 points of one shape of the Datasaurus Dozen.

    Centred on their mean, and divided by one number for both axes: the root mean square of all
    coordinates, so that the shape keeps its proportions and has unit variance, as diffusion
    models expect.

    Parameters
    ----------
    name : str
        "away", "bullseye", "circle", "dino", "dots", "h_lines", "high_lines", "slant_down",
        "slant_up", "star", "v_lines", "wide_lines" or "x_shape".
    folder : Path, optional
        That holds the file; as for `bridges.networks.data.path`.

    Returns
    -------
    (142, 2) float64 Tensor

    Raises
    ------
    ValueError
        Another name.

    Notes
    -----
    J. Matejka, G. Fitzmaurice, "Same stats, different graphs", 2017.
    """
    text = data.path("datasaurus_dozen.tsv", folder).read_text()
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    names = sorted({row[0] for row in rows})
    if name not in names:
        raise ValueError(f"Expected one of {', '.join(names)}, got '{name}'. Choose one of them.")
    points = torch.tensor(
        [[float(x), float(y)] for shape, x, y in rows if shape == name], dtype=torch.float64
    )
    points = points - points.mean(dim=0)
    return points / points.square().mean().sqrt()


def signal_shares(steps: int = STEPS) -> Tensor:
    """Return abar_t for t = 0, ..., steps: a sample is sqrt(abar) x_0 + sqrt(1 - abar) noise.

    beta_t is linear from 0.1 / steps to 20 / steps. These are the noise levels of J. Ho et al.,
    "Denoising diffusion probabilistic models", 2020, with 1,000 / steps of their steps in one.

    Returns
    -------
    (steps + 1,) float64 Tensor

    Examples
    --------
    >>> from bridges.networks.datasaurus import signal_shares
    >>> signal_shares()[[0, 6, 50]].round(decimals=4).tolist()
    [1.0, 0.8729, 0.0]
    """
    kept = 1 - torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)
    return torch.cat([torch.ones(1, dtype=torch.float64), kept.cumprod(dim=0)])


class ToyDenoiser(nn.Module):
    """Noise in a noisy point of the plane; continuous and piecewise affine in x at fixed t.

    Three hidden ReLU layers. The time enters each as a bias: a linear function of sines and cosines
    of t.

    Parameters
    ----------
    width : int
        Units of each hidden layer.
    """

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        widths = (2, width, width, width)
        self.hidden = nn.ModuleList(nn.Linear(m, n) for m, n in pairwise(widths))
        self.times = nn.ModuleList(nn.Linear(2 * _WAVES, n, bias=False) for n in widths[1:])
        self.last = nn.Linear(width, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the predicted noise (B, 2).

        Parameters
        ----------
        x : Tensor
            (B, 2).
        t : Tensor
            (B,) or (1,), from 1 to `STEPS`.
        """
        rates = torch.arange(1, _WAVES + 1, dtype=x.dtype, device=x.device)
        angles = t.to(x)[:, None] * (math.pi / 2 / STEPS) * rates
        features = torch.cat([angles.sin(), angles.cos()], dim=1)
        for layer, time in zip(self.hidden, self.times, strict=True):
            x = torch.relu(layer(x) + time(features))
        return self.last(x)


class IdealDenoiser(nn.Module):
    """Noise that is expected in a noisy point, where x_0 is one of some points, all as likely.

    The estimate of x_0 is their mean, weighted by the softmax of
    -|x_t - sqrt(abar) x_0|^2 / (2 (1 - abar)). No network predicts with a smaller error on average.

    Parameters
    ----------
    points : (N, d) Tensor
    shares : (T + 1,) Tensor
        abar of the times; `signal_shares()`.

    Examples
    --------
    Of a single point the noise is known:

    >>> import torch
    >>> from bridges.networks.datasaurus import IdealDenoiser
    >>> ideal = IdealDenoiser(torch.zeros(1, 2), torch.tensor([1.0, 0.36]))
    >>> ideal(torch.tensor([[0.8, 1.6]]), torch.tensor([1]))
    tensor([[1., 2.]])
    """

    points: Tensor
    shares: Tensor

    def __init__(self, points: Tensor, shares: Tensor) -> None:
        super().__init__()
        self.register_buffer("points", points)
        self.register_buffer("shares", shares)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the expected noise (B, d) at x (B, d) and times t (B,), integers."""
        signal, noise, weights = self._weights(x, t)
        return (x - signal * (weights @ self.points.to(x))) / noise

    def jacobian(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the Jacobian of the estimate of x_0, (B, d, d).

        sqrt(abar) / (1 - abar) Cov[x_0 | x_t], in closed form; arguments as for a call.
        """
        signal, noise, weights = self._weights(x, t)
        points = self.points.to(x)
        away = points - (weights @ points)[:, None]
        covariance = torch.einsum("bn,bni,bnj->bij", weights, away, away)
        return (signal / noise.square())[..., None] * covariance

    def _weights(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return sqrt(abar) and sqrt(1 - abar), (B, 1), and the weights of the points (B, N)."""
        share = self.shares.to(x)[t.long()][:, None]
        signal, noise = share.sqrt(), (1 - share).sqrt()
        away = x[:, None] - signal[..., None] * self.points.to(x)
        return signal, noise, torch.softmax(-away.square().sum(dim=2) / (2 * noise**2), dim=1)


class Checkpoints(NamedTuple):
    """A denoiser along its training.

    Attributes
    ----------
    denoisers : dict of int to ToyDenoiser
        In evaluation mode, float32, without gradients, by the training steps that they have seen.
    losses : (steps,) float64 Tensor
        Mean squared error of the noise in each batch, before its step.
    """

    denoisers: dict[int, ToyDenoiser]
    losses: Tensor


def toy_ddpm(
    points: Tensor,
    *,
    steps: int = 8_000,
    marks: Sequence[int] = (0, 100),
    width: int = 128,
    batch: int = 512,
    rate: float = 2e-3,
    seed: int = 0,
    progress: bool = False,
) -> Checkpoints:
    """Train a denoiser of points in the plane, and keep it at some steps.

    Parameters
    ----------
    points : (N, 2) Tensor
        The data, such as `read_datasaurus()`.
    steps : int
        Of Adam, with a rate that falls to 0 by half a cosine.
    marks : sequence of int
        Steps after which the denoiser is kept, beside the last; 0 is untrained.
    width : int
        Of the denoiser.
    batch : int
        Points a step, each at a time that is uniform from 1 to `STEPS`.
    rate : float
        At the first step.
    seed : int
        Of weights, batches, times and noise. torch's own generator and thread count stay as they
        are.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    Checkpoints

    Raises
    ------
    ValueError
        Points of another shape; a mark that is no step.

    Notes
    -----
    J. Ho et al., "Denoising diffusion probabilistic models", 2020, equation 14. A step takes about
    2 ms on one thread, which is all that is used: the default is some 16 s.

    Examples
    --------
    >>> import torch
    >>> from bridges.networks.datasaurus import toy_ddpm
    >>> list(toy_ddpm(torch.eye(2), steps=5, marks=(0, 2)).denoisers)
    [0, 2, 5]
    """
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(
            f"Expected points of shape (N, 2), got {tuple(points.shape)}: give one row a point."
        )
    wrong = [mark for mark in marks if not 0 <= mark <= steps]
    if wrong:
        raise ValueError(f"Expected marks from 0 to {steps} steps, got {wrong[0]}: leave it out.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser = ToyDenoiser(width)
    generator = torch.Generator().manual_seed(seed)
    points, shares = points.float(), signal_shares().float()
    kept: dict[int, ToyDenoiser] = {}
    losses: list[float] = []
    with one_thread(), torch.enable_grad():
        optimiser = torch.optim.Adam(denoiser.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
        for step in tqdm(range(steps + 1), disable=not progress, desc="training"):
            if step in (*marks, steps):
                kept[step] = copy.deepcopy(denoiser).eval().requires_grad_(False)
            if step == steps:
                break
            t = torch.randint(1, STEPS + 1, (batch,), generator=generator)
            clean = points[torch.randint(len(points), (batch,), generator=generator)]
            noise = torch.randn(batch, 2, generator=generator)
            share = shares[t, None]
            noisy = share.sqrt() * clean + (1 - share).sqrt() * noise
            loss = (denoiser(noisy, t) - noise).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
    return Checkpoints(kept, torch.tensor(losses, dtype=torch.float64))
