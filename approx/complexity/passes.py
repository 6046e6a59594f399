"""Forward passes of a decoder that count its knots; how many latents fit in one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from approx.complexity.counting import (
    ByDerivatives,
    BySigns,
    Sums,
    batch_first,
    other_layers,
)
from approx.complexity.watching import Entering, watched
from approx.decoder import (
    LIVE,
    SHARE,
    Prepared,
    check_output,
    check_shape,
    deterministic,
    finite_rows,
    free_bytes,
    refuse_infinite,
    sized,
)
from approx.devices import widest

__all__ = [
    "Part",
    "Sizes",
    "by_derivatives",
    "by_signs",
    "fitting",
    "shapes_of_one",
    "too_large",
]


class Sizes(NamedTuple):
    """Lengths of the criterion, as `knots` documents them."""

    radius: float
    window: float
    roundings: float


@dataclass(frozen=True, eq=False)
class Part:
    """Counts of some latents: the fields of `Knots` by these names, `count` by layer."""

    layers: tuple[str, ...]
    units: tuple[int, ...]
    count: Tensor
    undecided: Tensor
    density: Tensor
    soft: Tensor
    passed_over: tuple[str, ...]
    # (B,) whether signs at the vertices may tell otherwise
    doubtful: Tensor
    # (n,) radii at which some latents meet ten knots, NaN where there are none
    radii: Tensor
    # entries of the largest layer
    widest: int


def fitting(part: Part, prepared: Prepared, copies: int) -> int:
    """Return how many latents fit at a time, by the widest layer that one executed."""
    free = free_bytes(prepared.device)
    each = LIVE * copies * part.widest * prepared.dtype.itemsize
    return 16 if free is None else max(1, min(64, int(SHARE * free / each)))


def too_large(error: BaseException, prepared: Prepared, method: str, size: int) -> Exception:
    """Return the error for a decoder that has no room for one latent."""
    free = free_bytes(prepared.device)
    room = "" if free is None else f" ({sized(free)} free)"
    remedy = (
        "ask for fewer directions, or method='hull', which needs the memory of a forward pass"
        if method == "jvp"
        else "run on a device with more memory, or in a narrower dtype"
    )
    return MemoryError(
        f"Expected memory for one latent and {size} directions, got {error}{room}: {remedy}."
    )


def shapes_of_one(prepared: Prepared, z: Tensor) -> dict[str, torch.Size]:
    """Return the shapes of the layers of one latent: where those of many differ, the batch is."""
    shapes: dict[str, torch.Size] = {}

    def take(entering: Entering) -> None:
        shapes[entering.layer] = entering.values[0].shape

    with deterministic(prepared), watched(prepared.modules, take) as watch:
        decoded = prepared(watch.start(z[:1], None))
    check_output(decoded, z[:1])
    return shapes


def by_derivatives(
    prepared: Prepared, z: Tensor, basis: Tensor, sizes: Sizes, one: Mapping[str, torch.Size]
) -> Part:
    """Count by one forward pass that carries all tangents.

    In float64, latents near whose thresholds h may bend are counted by their signs as well.
    """
    counting = ByDerivatives(len(z), *sizes)
    tangents = basis.reshape(-1, 1, *z.shape[1:]).expand(-1, *z.shape)
    sink = counting if len(z) == 1 else batch_first(counting, one, len(z))
    with deterministic(prepared), watched(prepared.modules, sink, len(basis)) as watch:
        decoded = prepared(watch.start(z, tangents))
    check_output(decoded, z)
    none = torch.zeros(len(z), 0, len(Sums._fields), dtype=widest(z.device), device=z.device)
    sums = Sums(*torch.stack(counting.sums, 1).unbind(2) if counting.sums else none.unbind(2))
    undecided = sums.undecided.sum(1)
    part = Part(
        layers=tuple(counting.layers),
        units=tuple(counting.units),
        count=sums.met,
        undecided=undecided,
        density=sums.density.sum(1),
        soft=sum(counting.soft, z.new_zeros(len(z))),
        passed_over=watch.passed_over,
        doubtful=(undecided > 0) | (sums.close.sum(1) > 1),
        radii=_suggested(counting.nearest, z),
        widest=max(*counting.units, decoded[0].numel(), z[0].numel()),
    )
    if prepared.inner != torch.float64 or not bool(part.doubtful.any()):
        return part
    doubtful = part.doubtful.nonzero()[:, 0]
    signs = by_signs(prepared.at(doubtful), z[doubtful], basis, sizes, one)
    if signs.layers != part.layers:
        raise ValueError(other_layers(part.layers, signs.layers))
    part.count[part.doubtful], part.undecided[part.doubtful] = signs.count, signs.undecided
    return part


def _suggested(nearest: Tensor | None, z: Tensor) -> Tensor:
    """Radii at which TEN units are met, or all that there are; NaN without any."""
    if nearest is None:
        return z.new_zeros(0)
    radii = nearest.masked_fill(nearest.isinf(), -1).amax(1)
    return radii.masked_fill(radii < 0, math.nan)


def by_signs(
    prepared: Prepared, z: Tensor, basis: Tensor, sizes: Sizes, one: Mapping[str, torch.Size]
) -> Part:
    """Count by a forward pass at each vertex."""
    counting = BySigns(len(z), sizes.roundings)
    sink = counting if len(z) == 1 else batch_first(counting, one, len(z))
    passed_over: dict[str, None] = {}
    steps = sizes.radius * basis.reshape(-1, *z.shape[1:])
    largest = z[0].numel()
    finite = torch.ones(len(z), dtype=torch.bool, device=z.device)
    for step in torch.stack([steps, -steps], 1).flatten(0, 1):
        counting.next_vertex()
        with deterministic(prepared), watched(prepared.modules, sink) as watch:
            decoded = prepared(watch.start(z + step, None))
        check_shape(decoded, z)
        finite &= finite_rows(decoded)
        largest = max(*counting.units, decoded[0].numel(), largest)
        passed_over.update(dict.fromkeys(watch.passed_over))
    refuse_infinite(finite, z.dtype)
    unknown = torch.full((len(z),), math.nan, dtype=z.dtype, device=z.device)
    none = torch.zeros(len(z), 0, device=z.device)
    count = torch.stack(counting.counts, 1) if counting.layers else none
    undecided = torch.stack(counting.undecided, 1) if counting.layers else none
    return Part(
        layers=tuple(counting.layers),
        units=tuple(counting.units),
        count=count.to(widest(z.device)),
        undecided=undecided.sum(1).to(widest(z.device)),
        density=unknown,
        soft=unknown,
        passed_over=tuple(passed_over),
        doubtful=torch.zeros(len(z), dtype=torch.bool, device=z.device),
        radii=z.new_zeros(0),
        widest=largest,
    )
