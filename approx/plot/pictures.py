"""Contents of a gallery: the latents with extreme values, and their outputs as pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from approx.decoder import modules_of, prepare, session
from approx.fields import latents_at
from approx.tables import Descriptors

if TYPE_CHECKING:
    import xarray as xr

_CANDIDATES = 4096  # latents compared at a time when images must be apart


def extremes(
    source: xr.Dataset | Descriptors,
    values: NDArray[np.float64],
    k: int,
    apart: float,
    latents: Tensor | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], Tensor]:
    """Return the numbers of the k highest and k lowest values, and their 2 k latents."""
    found = np.flatnonzero(np.isfinite(values))
    if not 1 <= k <= len(found) // 2:
        raise ValueError(
            f"Expected k between 1 and half of the {len(found)} latents with a value, got {k}: "
            "ask for fewer images."
        )
    if isinstance(source, Descriptors) and (latents is None or len(latents) != len(source)):
        got = "none" if latents is None else str(len(latents))
        raise ValueError(
            f"Expected latents= with the {len(source)} latents of the table, got {got}: pass what "
            "was described."
        )

    def at(indices: NDArray[np.int64]) -> Tensor:
        if isinstance(source, Descriptors):
            assert latents is not None
            return latents[torch.from_numpy(indices).to(latents.device)]
        return latents_at(source, indices)

    # stable: equal values, as counts often are, in the order of the latents
    rising = found[np.argsort(values[found], kind="stable")]
    falling = found[np.argsort(-values[found], kind="stable")]
    high, low = (_apart(order, k, apart, at) for order in (falling, rising))
    return high, low, at(np.concatenate([high, low]))


def _apart(
    order: NDArray[np.int64],
    k: int,
    apart: float,
    at: Callable[[NDArray[np.int64]], Tensor],
) -> NDArray[np.int64]:
    """Return the first k of an order that are this far from each other."""
    if apart <= 0:
        return order[:k]
    kept: list[int] = []
    places: list[Tensor] = []
    for start in range(0, len(order), _CANDIDATES):
        part = order[start : start + _CANDIDATES]
        for index, z in zip(part, at(part).flatten(1).double().cpu(), strict=True):
            if all(torch.linalg.vector_norm(z - other) >= apart for other in places):
                kept.append(int(index))
                places.append(z)
                if len(kept) == k:
                    return np.array(kept)
    raise ValueError(
        f"Expected {k} latents at least {apart} apart, got {len(kept)}: lower apart= or k."
    )


def pictures(
    decoder: Callable[[Tensor], Any],
    z: Tensor,
    numbers: NDArray[np.int64],
    of: int,
    image: Callable[[Tensor], ArrayLike] | None,
    output: Callable[[Any], Tensor] | None,
) -> list[NDArray[np.float64]]:
    """Decode latents one by one into arrays for imshow, in [0, 1] unless `image` is given.

    They are number so and so `of` those that were described: `bind` may have a row for each.
    """
    devices = [p.device for m in modules_of(decoder) for p in m.parameters()]
    z = z.to(devices[0]) if devices else z
    prepared = prepare(decoder, z, output=output)
    prepared.check_rows(of)
    with session(prepared), torch.no_grad():
        outputs = [
            prepared.at(torch.tensor([number]))(one[None])[0].cpu()
            for number, one in zip(numbers.tolist(), z, strict=True)
        ]
    return shown(outputs, image)


def shown(
    outputs: Sequence[Tensor], image: Callable[[Tensor], ArrayLike] | None
) -> list[NDArray[np.float64]]:
    """Return outputs as arrays for imshow, on one scale in [0, 1] unless `image` is given."""
    if image is not None:
        return [np.asarray(image(y)) for y in outputs]
    low = min(float(y.min()) for y in outputs)
    high = max(float(y.max()) for y in outputs)
    if low >= -0.1 and 0.5 < high <= 1.1:  # pictures in [0, 1] keep their black and white
        low, high = 0.0, 1.0
    scale = (high - low) or 1.0
    return [((_upright(y).double() - low) / scale).clamp(0, 1).numpy() for y in outputs]


def _upright(y: Tensor) -> Tensor:
    """Return (H, W) or (H, W, 3)."""
    if y.ndim == 3 and y.shape[0] in (1, 3):
        return y[0] if y.shape[0] == 1 else y.permute(1, 2, 0)
    side = math.isqrt(y.numel())
    if y.ndim == 1 and side * side == y.numel():
        return y.reshape(side, side)
    if y.ndim == 2:
        return y
    raise ValueError(
        f"Expected outputs (H, W), (1, H, W) or (3, H, W), got {tuple(y.shape)}: pass image= to "
        "turn one output into a picture."
    )
