"""Counts of the knots of each layer: by derivatives, or by signs at vertices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from approx.complexity.units import Window
from approx.complexity.watching import Entering, Sink
from approx.devices import of, widest

__all__ = ["TEN", "ByDerivatives", "BySigns", "NoBatch", "Sums", "batch_first"]

# knots a latent that a suggested radius is to meet, and latents of a batch that are asked for it
TEN, _SOME = 10, 2
# How far from linear h may be: r^2 times this and the steepest slope of its layer. Of 2,000 latents
# of a transformer with three times its initial weights, r = 1e-3, two are miscounted without, and
# none with 5.
_CURVED = 20.0


class NoBatch(Exception):  # noqa: N818 - a signal to the caller, not an error
    """No axis of an activation is the batch's: try one latent at a time."""


def batch_first(sink: Sink, one: Mapping[str, torch.Size], batch: int) -> Sink:
    """Return a sink that moves the axis of the batch to the front, whatever layout a layer has.

    It is the only axis in which a layer differs from its shape for one latent, which `one` tells.
    """

    def take(entering: Entering) -> None:
        shape = entering.values[0].shape
        alone = one.get(entering.layer)
        if alone is None:
            raise ValueError(other_layers(list(one), [entering.layer]))
        differing = [k for k, (m, n) in enumerate(zip(alone, shape, strict=False)) if m != n]
        axis = differing[0] if len(differing) == 1 and len(alone) == len(shape) else -1
        pooled = len(entering.units.windows)
        if axis < 0 or (alone[axis], shape[axis]) != (1, batch) or axis >= len(shape) - pooled:
            raise NoBatch
        tangents = entering.tangents
        sink(
            entering._replace(
                values=tuple(x.movedim(axis, 0) for x in entering.values),
                tangents=tangents and tuple(x.movedim(axis + 1, 1) for x in tangents),
            )
        )

    return take


def by_latent(tensor: Tensor, batch: int, leading: int = 0) -> Tensor:
    """Reshape (batch, ...) into (batch, units), after `leading` dimensions that stay."""
    return tensor.reshape(*tensor.shape[:leading], batch, -1)


def candidates(x: Tensor, windows: tuple[Window, ...], fill: float) -> Tensor:
    """Gather (..., outputs, candidates) from the last len(windows) dimensions of x.

    (..., H, W) -> (..., H', kh, W', kw) -> (..., H', W', kh * kw)
    """
    lead, count = x.ndim - len(windows), len(windows)
    for k, window in enumerate(windows):
        dim = lead + 2 * k
        if window.gaps:
            gap = x.new_full((*x.shape[:dim], 1, *x.shape[dim + 1 :]), fill)
            x = torch.cat([x, gap], dim)
        x = x.index_select(dim, window.places.flatten()).unflatten(dim, window.places.shape)
    order = [*range(lead), *range(lead, lead + 2 * count, 2), *range(lead + 1, lead + 2 * count, 2)]
    return x.permute(order).flatten(lead + count)


def on_levels(entries: Tensor, levels: tuple[float, ...], sign: int) -> Tensor:
    """Tell which pooled entries, times `sign`, are on a flat piece."""
    flat = torch.zeros_like(entries, dtype=torch.bool)
    for level in levels:
        flat |= entries == sign * level
    return flat


def steepest(tangents: Tensor) -> Tensor:
    """max_p |dh/db_p| over the first dimension, without a copy of all tangents."""
    slope = tangents[0].abs()
    for tangent in tangents[1:]:
        torch.maximum(slope, tangent.abs(), out=slope)
    return slope


def _full(tensor: Tensor) -> Tensor:
    """At least float32: r times a slope underflows in half precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


class _Counting:
    """Layers in the order of execution and the rounding error of h, which both ways share."""

    def __init__(self, batch: int, roundings: float) -> None:
        self.batch, self.roundings = batch, roundings
        self.layers: list[str] = []
        self.units: list[int] = []

    def noise(self, values: Tensor, depth: int) -> Tensor:
        """Estimate of the rounding error of h, (B, 1): it grows as a random walk with depth."""
        rows = by_latent(values, self.batch)
        size = torch.linalg.vector_norm(_full(rows), dim=1, keepdim=True)
        size = size / math.sqrt(max(rows.shape[1], 1))
        return self.roundings * torch.finfo(values.dtype).eps * math.sqrt(depth + 1) * size


class Sums(NamedTuple):
    """Columns of the sums of a layer, one row a latent."""

    met: Tensor
    undecided: Tensor
    density: Tensor
    # units that may be met if others that are change their slopes; twice those that may not be
    # what the derivative says, as h is curved: signs are looked at where it is above one
    close: Tensor


class ByDerivatives(_Counting):
    """Units with |h| < r max_p |dh/db_p|, and the sums that go with them."""

    def __init__(self, batch: int, radius: float, window: float, roundings: float) -> None:
        super().__init__(batch, roundings)
        self.radius, self.window = radius, window
        self.sums: list[Tensor] = []
        self.soft: list[Tensor] = []
        # radii at which the nearest knots of some latents are met
        self.nearest: Tensor | None = None

    def __call__(self, entering: Entering) -> None:
        """Count one layer."""
        assert entering.tangents is not None
        curvature = entering.units.curvature
        noise = self.noise(entering.values[0], len(self.layers))
        # float64 counts without rounding
        sums = torch.zeros(
            self.batch, len(Sums._fields), dtype=widest(noise.device), device=noise.device
        )
        soft = noise.new_zeros(self.batch)
        size = 0
        for value, tangents in zip(entering.values, entering.tangents, strict=True):
            if entering.units.windows:
                size = self._pooled(value, tangents, entering, noise, sums)
                continue
            h = _full(by_latent(value, self.batch))
            rows = by_latent(tangents, self.batch, leading=1)
            size = h.shape[1]
            self._near(h.abs(), rows, noise, sums)
            some = slice(_SOME)
            self._suggest(h[some].abs(), _full(steepest(rows[:, some])))
            if curvature is not None and value is entering.values[0]:
                soft += 2 * (_full(steepest(rows)) * curvature(h).abs()).sum(1)
        self.layers.append(entering.layer)
        self.units.append(size)
        self.sums.append(sums)
        self.soft.append(soft)

    def _near(self, distance: Tensor, tangents: Tensor, noise: Tensor, sums: Tensor) -> None:
        """Add the units whose knot is within reach."""
        if not of(distance.device).host:  # which are near would have to be asked for
            slope = _full(steepest(tangents))
            curved = _CURVED * self.radius * (self.radius * slope.amax())
            found = self._found(distance, slope, noise, curved)
            sums += torch.stack([column.sum(1, dtype=sums.dtype) for column in found], 1)
            return
        # few may be: only these are looked at
        least, most = tangents.aminmax()
        farthest = self.radius * _full(torch.maximum(most, -least))
        curved = _CURVED * self.radius * farthest
        bound = (2 * farthest + curved + noise.amax()).clamp(min=self.window)
        latent, unit = (distance <= bound).nonzero(as_tuple=True)
        near, slope = distance[latent, unit], _full(steepest(tangents[:, latent, unit]))
        found = self._found(near, slope, noise[latent, 0], curved)
        sums.index_add_(0, latent, torch.stack(found, 1).to(sums.dtype))

    def _found(self, near: Tensor, slope: Tensor, noise: Tensor, curved: Tensor) -> Sums:
        """Judge units by how far their knots are, and how fast they come nearer."""
        reach, moves = self.radius * slope, slope > 0
        margin = (near - reach).abs()
        return Sums(
            met=near < reach,
            undecided=(margin <= noise) & moves,
            density=torch.where(near < self.window, slope / self.window, 0),
            close=((near < 2 * reach + curved) & moves).int() + ((margin <= curved) & moves).int(),
        )

    def _pooled(
        self, value: Tensor, tangents: Tensor, entering: Entering, noise: Tensor, sums: Tensor
    ) -> int:
        """Add windows whose winner may change; how many windows there are."""
        units = entering.units
        sign = -1 if units.smallest else 1
        entries = candidates(sign * _full(value), units.windows, -math.inf)
        moving = candidates(sign * _full(tangents), units.windows, 0.0)
        shape = (self.batch, -1, entries.shape[-1])
        entries, moving = entries.reshape(shape), moving.reshape(len(moving), *shape)
        best, winner = entries.max(-1, keepdim=True)
        # how far each candidate is behind the winner, and how fast that changes
        gap = best - entries
        slope = steepest(moving - moving.gather(-1, winner.expand(*moving.shape[:-1], 1)))
        # where one of two is on a flat piece, they meet at the knot that ends it
        flat = on_levels(entries, entering.levels, sign)
        slope = slope.masked_fill(flat | flat.gather(-1, winner), 0)
        curved = _CURVED * self.radius**2 * slope.amax()
        met, undecided, _, close = self._found(gap, slope, noise[..., None], curved)
        nearest = gap.scatter(-1, winner, math.inf).argmin(-1, keepdim=True)
        gap, slope = gap.gather(-1, nearest)[..., 0], slope.gather(-1, nearest)[..., 0]
        density = torch.where(gap < self.window, slope, 0) / self.window
        found = Sums(met.any(-1), undecided.any(-1), density, close.amax(-1))
        sums += torch.stack([column.sum(1) for column in found], 1)
        self._suggest(gap[:_SOME], slope[:_SOME])
        return entries.shape[1]

    def _suggest(self, distance: Tensor, slope: Tensor) -> None:
        """Keep the smallest radii at which knots are met."""
        radii = torch.where(slope > 0, distance / slope, math.inf)
        known = radii if self.nearest is None else torch.cat([self.nearest, radii], 1)
        self.nearest = known.topk(min(TEN, known.shape[1]), 1, largest=False, sorted=False).values


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
        noise = self.noise(entering.values[0], self.layer)
        pieces, close = [], torch.zeros((), dtype=torch.bool, device=noise.device)
        for value in entering.values:
            if units.windows:
                sign = -1 if units.smallest else 1
                entries = candidates(sign * value, units.windows, -math.inf)
                entries = entries.reshape(self.batch, -1, entries.shape[-1])
                best, winner = entries.max(-1)
                # a winner on a flat piece leaves it where a knot was counted before
                flat = on_levels(best, entering.levels, sign)
                pieces.append(winner.to(torch.int32).masked_fill(flat, -1))
                gap = _full(-entries.topk(min(2, entries.shape[-1])).values.diff(dim=-1))
                close = close | ((gap <= noise[..., None]) & (gap > 0)).any(-1)
            else:
                rows = by_latent(value, self.batch)
                pieces.append((rows > 0).to(torch.int32))
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
            first = self.first[self.layer]
            for before, now, changed in zip(first, pieces, self.changed[self.layer], strict=True):
                changed |= (now != before) & (now >= 0) & (before >= 0)
                before.copy_(torch.where(before < 0, now, before))
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
