"""Forward passes of a decoder that count its knots; how many latents fit in one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from approx.complexity.counting import ByDerivatives, BySigns
from approx.complexity.watching import Watch, watched
from approx.decoder import LIVE, SHARE, Prepared, check_output, deterministic, free_bytes, sized

__all__ = [
    "Part",
    "Sizes",
    "by_derivatives",
    "by_signs",
    "fitting",
    "refuse_scripts",
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


def refuse_scripts(prepared: Prepared) -> None:
    """Refuse TorchScript: its functions do not pass through Python, and would not be seen."""
    for root in prepared.modules:
        for path, module in root.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                raise NotImplementedError(
                    f"Expected a decoder that runs in Python, got the TorchScript module "
                    f"{path or type(module).__name__!r}: give the module that was scripted."
                )


def fitting(part: Part, prepared: Prepared, copies: int) -> int:
    """Return how many latents fit at a time, by the widest layer that one executed."""
    free = free_bytes(prepared.device)
    each = LIVE * copies * max(part.units) * prepared.dtype.itemsize
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


def by_derivatives(prepared: Prepared, z: Tensor, basis: Tensor, sizes: Sizes) -> Part:
    """Count by one forward pass that carries all tangents."""
    counting = ByDerivatives(len(z), *sizes)
    tangents = basis.reshape(-1, 1, *z.shape[1:]).expand(-1, *z.shape)

    def along(tangent: Tensor) -> Tensor:
        # z has no axis of directions, so only tangents are computed P times
        return torch.func.jvp(lambda x: prepared(x.clone()), (z,), (tangent,))[0]

    with deterministic(prepared), watched(prepared.modules, counting, derivatives=True) as watch:
        # draws are refused below; "same" leaves it to us to say so
        decoded = torch.func.vmap(along, out_dims=None, randomness="same")(tangents)
    check_output(decoded, z)
    _require_units(counting.layers, watch)
    return Part(
        layers=tuple(counting.layers),
        units=tuple(counting.units),
        count=torch.stack(counting.counts, 1),
        undecided=torch.stack(counting.undecided, 1).sum(1),
        density=torch.stack(counting.density, 1).sum(1),
        soft=torch.stack(counting.soft, 1).sum(1),
        passed_over=tuple(watch.passed_over),
    )


def by_signs(prepared: Prepared, z: Tensor, basis: Tensor, sizes: Sizes) -> Part:
    """Count by a forward pass at each vertex."""
    counting = BySigns(len(z), sizes.roundings)
    passed_over: dict[str, None] = {}
    steps = sizes.radius * basis.reshape(-1, *z.shape[1:])
    for step in torch.stack([steps, -steps], 1).flatten(0, 1):
        counting.next_vertex()
        vertex = z + step
        with (
            deterministic(prepared),
            watched(prepared.modules, counting, derivatives=False) as watch,
        ):
            decoded = prepared(vertex)
        check_output(decoded, z)
        _require_units(counting.layers, watch)
        passed_over.update(watch.passed_over)
    unknown = torch.full((len(z),), math.nan, dtype=z.dtype, device=z.device)
    return Part(
        layers=tuple(counting.layers),
        units=tuple(counting.units),
        count=torch.stack(counting.counts, 1),
        undecided=torch.stack(counting.undecided, 1).sum(1),
        density=unknown,
        soft=unknown,
        passed_over=tuple(passed_over),
    )


def _require_units(layers: list[str], watch: Watch) -> None:
    if not layers:
        executed = ", ".join(watch.executed) or "no torch function that Python sees"
        raise ValueError(
            "Expected a decoder with units (ReLU and its like, SiLU, GELU, max-pooling), got one "
            f"that executes {executed}: its neighbourhoods have no knots to count"
        )
