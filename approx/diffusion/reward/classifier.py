"""A classifier of noisy samples by the descriptor of the clean latent behind them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from approx.diffusion.schedules import Level

# of the time over its range; higher ones would bend between the times of training
_FREQUENCIES = 4


@dataclass(frozen=True, eq=False)
class ClassifierReward:
    r"""p(bin | x_t, t) of a descriptor, as a reward of noisy samples; made by `fit`.

    Attributes
    ----------
    network : Classifier
        In evaluation mode.
    edges : tuple of float
        Of the bins, one more than there are.
    times : (float, float)
        The range of training; between its times the classifier interpolates.
    latent_shape : tuple of int
        Of one sample.
    epochs : int
        Of training.
    complete : bool
        False if training was interrupted.
    target : int or "expected"
        log p of which bin the reward is, -1 for the highest: adding rho times its gradient to the
        score samples from p(x) p(bin | x)^rho. "expected" is the mean of the bins' centres, in
        units of the descriptor; it is no logarithm of a probability, but has a gradient where the
        highest bin is out of reach.
    """

    network: Classifier
    edges: tuple[float, ...]
    times: tuple[float, float]
    latent_shape: tuple[int, ...]
    epochs: int
    complete: bool = True
    target: int | Literal["expected"] = -1

    def __post_init__(self) -> None:
        """Refuse a bin that there is not."""
        bins = len(self.edges) - 1
        if self.target != "expected" and not -bins <= self.target < bins:
            raise ValueError(
                f"Expected target as one of {bins} bins or 'expected', got {self.target!r}: -1 is "
                "the highest bin."
            )

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        """Return the reward (B,) of samples x (B, ...) at a noise level, differentiable by x."""
        logs = self.log_probabilities(x, level)
        if self.target != "expected":
            return logs[:, self.target]
        edges = torch.tensor(self.edges, dtype=logs.dtype, device=logs.device)
        return logs.exp() @ ((edges[1:] + edges[:-1]) / 2)

    def log_probabilities(self, x: Tensor, level: Level) -> Tensor:
        """Return log p (B, bins) of samples x (B, ...) at a noise level, in float32.

        Raises
        ------
        ValueError
            Samples of another shape, or a time outside of the range of training.
        """
        if tuple(x.shape[1:]) != self.latent_shape:
            raise ValueError(
                f"Expected latents of shape (B, {', '.join(map(str, self.latent_shape))}), got "
                f"{tuple(x.shape)}: the classifier was fitted to those."
            )
        low, high = self.times
        slack = 1e-6 * max(abs(low), abs(high))
        if not low - slack <= level.time <= high + slack:
            raise ValueError(
                f"Expected a time from {low:g} to {high:g}, as in the classifier's training, got "
                f"{level.time:g}: collect noisy latents at the times of this sampler."
            )
        place = next(self.network.parameters())
        share = torch.full((len(x),), share_of(level.time, self.times)).to(place)
        return self.network((x / level.norm).to(place), share).log_softmax(1)


def share_of(time: float, times: tuple[float, float]) -> float:
    """Return where a time lies in the range of training, from 0 to 1."""
    low, high = times
    return (time - low) / (high - low) if high > low else 0.0


class Classifier(nn.Module):
    """Logits of the bins, for samples of unit-variance levels; smooth.

    Convolutions where a sample has the shape (channels, height, width), linear layers otherwise.

    Parameters
    ----------
    latent_shape : tuple of int
        Of one sample.
    bins : int
        Of the descriptor.
    width : int
        Channels, or units of a layer.
    """

    def __init__(self, latent_shape: tuple[int, ...], bins: int, width: int) -> None:
        super().__init__()
        images = len(latent_shape) == 3
        self.size: Tensor
        self.register_buffer("size", torch.ones(()))  # root mean square of what is put in
        self.time = nn.Sequential(
            nn.Linear(2 * _FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )
        if images:
            self.stem: nn.Module = nn.Conv2d(latent_shape[0], width, 3, padding=1)
        else:
            self.stem = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(latent_shape), width))
        self.blocks = nn.ModuleList(_Block(width, images) for _ in range(3))
        self.head = nn.Linear(width, bins)
        self.images = images

    def forward(self, x: Tensor, share: Tensor) -> Tensor:
        """Return logits (B, bins) of samples (B, ...) at times (B,) from 0 to 1."""
        rates = math.pi * torch.arange(1, _FREQUENCIES + 1).to(x)
        angles = share[:, None] * rates
        time = self.time(torch.cat([angles.sin(), angles.cos()], dim=1))
        h = self.stem(x / self.size)
        for number, block in enumerate(self.blocks):
            h = block(h, time)
            if self.images and number < 2 and min(h.shape[2:]) >= 8:
                h = functional.avg_pool2d(h, 2)
        return self.head(h.mean((2, 3)) if self.images else h)


class _Block(nn.Module):
    """Add two normalised layers, the second one told the time."""

    def __init__(self, width: int, images: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(math.gcd(8, width), width) for _ in range(2))
        self.layers = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1) if images else nn.Linear(width, width)
            for _ in range(2)
        )
        self.told = nn.Linear(width, width)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        told = self.told(time).reshape(*time.shape, *[1] * (h.ndim - 2))
        inside = self.layers[0](functional.silu(self.norms[0](h))) + told
        return h + self.layers[1](functional.silu(self.norms[1](inside)))
