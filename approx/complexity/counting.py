"""Counts of the knots of each layer: by derivatives, or by signs at vertices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from approx.complexity.watching import Entering

__all__ = ["ByDerivatives", "BySigns", "NotBatchFirst"]


class NotBatchFirst(Exception):  # noqa: N818 - a signal to the caller, not an error
    """The first dimension of an activation is not the batch: try `fewer` latents at a time."""

    def __init__(self, layer: str, shape: torch.Size, fewer: int) -> None:
        super().__init__(layer, shape)
        self.fewer = fewer


def by_latent(tensor: Tensor, batch: int, layer: str, leading: int = 0) -> Tensor:
    """Reshape (batch, ...) into (batch, units), after `leading` dimensions that stay."""
    shape = tensor.shape[leading:]
    if batch > 1 and (not shape or shape[0] != batch):
        raise NotBatchFirst(layer, shape, 1)
    if batch > 1 and len(shape) > 2 and shape[1] == batch:
        # (batch, n, ...) or (n, batch, ...): one latent fewer tells them apart
        raise NotBatchFirst(layer, shape, batch - 1)
    return tensor.reshape(*tensor.shape[:leading], batch, -1)


def candidates(x: Tensor, windows: tuple[Tensor, ...], fill: float) -> Tensor:
    """Gather (..., outputs, candidates) from the last len(windows) dimensions of x.

    (..., H, W) -> (..., H', kh, W', kw) -> (..., H', W', kh * kw)
    """
    lead, count = x.ndim - len(windows), len(windows)
    for k, window in enumerate(windows):
        dim, index = lead + 2 * k, window.to(x.device)
        size = x.shape[dim]
        if bool((window == size).any()):
            gap = x.new_full((*x.shape[:dim], 1, *x.shape[dim + 1 :]), fill)
            x = torch.cat([x, gap], dim)
        x = x.index_select(dim, index.flatten()).unflatten(dim, tuple(index.shape))
    order = [*range(lead), *range(lead, lead + 2 * count, 2), *range(lead + 1, lead + 2 * count, 2)]
    return x.permute(order).flatten(lead + count)


def steepest(tangents: Tensor) -> Tensor:
    """max_p |dh/db_p| over the first dimension, without a copy of all tangents."""
    slope = tangents[0].abs()
    for tangent in tangents[1:]:
        torch.maximum(slope, tangent.abs(), out=slope)
    return slope


def _full(tensor: Tensor) -> Tensor:
    """At least float32: r times a slope underflows in half precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _wide(like: Tensor) -> torch.dtype:
    """float64 where the device has it."""
    return torch.float32 if like.device.type == "mps" else torch.float64


class _Counting:
    """Layers in the order of execution and the rounding error of h, which both ways share."""

    def __init__(self, batch: int, roundings: float) -> None:
        self.batch, self.roundings = batch, roundings
        self.layers: list[str] = []
        self.units: list[int] = []

    def noise(self, values: Tensor, layer: str, depth: int) -> Tensor:
        """Estimate of the rounding error of h, (B, 1): it grows as a random walk with depth."""
        rows = by_latent(values, self.batch, layer)
        size = torch.linalg.vector_norm(_full(rows), dim=1, keepdim=True)
        size = size / math.sqrt(max(rows.shape[1], 1))
        return self.roundings * torch.finfo(values.dtype).eps * math.sqrt(depth + 1) * size


class ByDerivatives(_Counting):
    """Units with |h| < r max_p |dh/db_p|, and the sums that go with them."""

    def __init__(self, batch: int, radius: float, window: float, roundings: float) -> None:
        super().__init__(batch, roundings)
        self.radius, self.window = radius, window
        self.counts: list[Tensor] = []
        self.undecided: list[Tensor] = []
        self.density: list[Tensor] = []
        self.soft: list[Tensor] = []

    def __call__(self, entering: Entering) -> None:
        """Count one layer."""
        assert entering.tangents is not None
        layer, curvature = entering.layer, entering.units.curvature
        noise = self.noise(entering.values[0], layer, len(self.layers))
        # met, undecided, density; float64 counts without rounding
        sums = torch.zeros(self.batch, 3, dtype=_wide(noise), device=noise.device)
        soft = noise.new_zeros(self.batch)
        size = 0
        for value, tangents in zip(entering.values, entering.tangents, strict=True):
            if entering.units.windows:
                size = self._pooled(value, tangents, entering, noise, sums)
                continue
            distance = _full(by_latent(value, self.batch, layer))
            rows = by_latent(tangents, self.batch, layer, leading=1)
            size = distance.shape[1]
            self._near(distance.abs(), rows, noise, sums)
            if curvature is not None and value is entering.values[0]:
                soft += 2 * (_full(steepest(rows)) * curvature(distance).abs()).sum(1)
        self.layers.append(layer)
        self.units.append(size)
        self.counts.append(sums[:, 0].to(torch.int64))
        self.undecided.append(sums[:, 1].to(torch.int64))
        self.density.append(sums[:, 2])
        self.soft.append(soft)

    def _near(self, distance: Tensor, tangents: Tensor, noise: Tensor, sums: Tensor) -> None:
        """Add the units whose knot may be within reach: few, so that only these are looked at."""
        least, most = tangents.aminmax()
        farthest = self.radius * _full(torch.maximum(most, -least))
        bound = (farthest + noise.amax()).clamp(min=self.window)
        latent, unit = (distance <= bound).nonzero(as_tuple=True)
        near, slope = distance[latent, unit], _full(steepest(tangents[:, latent, unit]))
        reach = self.radius * slope
        open_ = ((near - reach).abs() <= noise[latent, 0]) & (slope > 0)
        density = torch.where(near < self.window, slope / self.window, 0)
        found = torch.stack([near < reach, open_, density], 1)
        sums.index_add_(0, latent, found.to(sums.dtype))

    def _pooled(
        self, value: Tensor, tangents: Tensor, entering: Entering, noise: Tensor, sums: Tensor
    ) -> int:
        """Add windows whose winner may change; how many windows there are."""
        units = entering.units
        sign = -1 if units.smallest else 1
        by_latent(value, self.batch, entering.layer)
        entries = candidates(sign * _full(value), units.windows, -math.inf)
        moving = candidates(sign * _full(tangents), units.windows, 0.0)
        shape = (self.batch, -1, entries.shape[-1])
        entries, moving = entries.reshape(shape), moving.reshape(len(moving), *shape)
        best, winner = entries.max(-1, keepdim=True)
        # how far each candidate is behind the winner, and how fast that changes
        gap = best - entries
        slope = steepest(moving - moving.gather(-1, winner.expand(*moving.shape[:-1], 1)))
        reach = self.radius * slope
        sums[:, 0] += (gap < reach).any(-1).sum(1)
        open_ = ((gap - reach).abs() <= noise[..., None]) & (slope > 0)
        sums[:, 1] += open_.any(-1).sum(1)
        nearest = gap.scatter(-1, winner, math.inf).argmin(-1, keepdim=True)
        gap, slope = gap.gather(-1, nearest), slope.gather(-1, nearest)
        sums[:, 2] += torch.where(gap < self.window, slope, 0).sum((1, 2)) / self.window
        return entries.shape[1]


class BySigns(_Counting):
    """Units whose sign (or winner) at some vertex differs from that at the first."""

    def __init__(self, batch: int, roundings: float) -> None:
        super().__init__(batch, roundings)
        self.first: list[list[Tensor]] = []
        self.changed: list[list[Tensor]] = []
        self.open: list[Tensor] = []
        self.vertex = -1
        self.layer = 0

    def next_vertex(self) -> None:
        """Begin the forward pass at the next vertex."""
        self.vertex += 1
        self.layer = 0

    def __call__(self, entering: Entering) -> None:
        """Compare one layer with the first vertex."""
        layer, units = entering.layer, entering.units
        noise = self.noise(entering.values[0], layer, self.layer)
        pieces, close = [], torch.zeros((), dtype=torch.bool, device=noise.device)
        for value in entering.values:
            if units.windows:
                by_latent(value, self.batch, layer)
                sign = -1 if units.smallest else 1
                entries = candidates(sign * value, units.windows, -math.inf)
                entries = entries.reshape(self.batch, -1, entries.shape[-1])
                pieces.append(entries.argmax(-1).to(torch.int32))
                gap = _full(-entries.topk(min(2, entries.shape[-1])).values.diff(dim=-1))
                close = close | ((gap <= noise[..., None]) & (gap > 0)).any(-1)
            else:
                rows = by_latent(value, self.batch, layer)
                pieces.append(rows > 0)
                close = close | ((_full(rows).abs() <= noise) & (rows != 0))
        if self.vertex == 0:
            self.layers.append(layer)
            self.units.append(pieces[0].shape[1])
            self.first.append(pieces)
            self.changed.append([torch.zeros_like(piece, dtype=torch.bool) for piece in pieces])
            self.open.append(close)
        else:
            if self.layer >= len(self.layers) or self.layers[self.layer] != layer:
                raise ValueError(other_layers(self.layers, [layer]))
            for before, now, changed in zip(
                self.first[self.layer], pieces, self.changed[self.layer], strict=True
            ):
                changed |= now != before
            self.open[self.layer] |= close
        self.layer += 1

    @property
    def counts(self) -> list[Tensor]:
        """Knots met, (B,) for each layer."""
        return [sum((c.sum(1) for c in pieces[1:]), pieces[0].sum(1)) for pieces in self.changed]

    @property
    def undecided(self) -> list[Tensor]:
        """Units within rounding of a sign change at some vertex, (B,) for each layer."""
        return [close.sum(1) for close in self.open]


def other_layers(expected: Sequence[str], got: Sequence[str]) -> str:
    """Message for decoders whose Python branches on values."""
    return (
        f"Expected the same layers for every latent, got {list(got)} after {list(expected)}: "
        "a decoder that branches on its values has no fixed set of units to count"
    )
