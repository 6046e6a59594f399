"""What `describe` does with every batch, settled once: dtypes, probes, directions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from approx.complexity import neighbourhood
from approx.decoder import HALF, Output, prepare
from approx.spectra import Method, draw_seed
from approx.tables.batches import Batches

Neighbourhood = tuple[int | Tensor, float]


@dataclass(frozen=True)
class Plan:
    """What is done with every batch."""

    decoder: Callable[[Tensor], Any]
    output: Output | None
    dtype: torch.dtype | None
    method: Method
    k: int | None
    products: int
    seed: int
    basis: Tensor | None
    radius: float
    knots_method: Literal["jvp", "hull"]
    # in a dtype of their own, at least float32
    knots_decoder: Callable[[Tensor], Any]
    knots_dtype: torch.dtype | None
    max_bytes: float
    ran_in: torch.dtype


def settle(
    decoder: Callable[[Tensor], Any],
    source: Batches,
    k: int | None,
    around: Neighbourhood | None,
    method: Method,
    generator: torch.Generator | int | None,
    output: Output | None,
    dtype: torch.dtype | None,
    products: int,
    knots_method: Literal["jvp", "hull"],
    knots_dtype: torch.dtype | None,
    max_bytes: float,
) -> Plan:
    """Look at the first latent and settle everything that all batches share."""
    first = source.take(1)
    if first is None:
        raise ValueError("Expected at least one latent, got an empty iterable: give some.")
    source.put_back(first)
    dtype = _working_dtype(dtype, first, method)
    # a copy in another dtype is made here, once
    prepared = prepare(decoder, first, output=output, dtype=dtype)
    if knots_dtype is None:
        knots_dtype = torch.float32 if dtype in HALF else dtype
    if around is None or knots_dtype == dtype:
        watched = prepared.call
    else:
        watched = prepare(decoder, first, output=output, dtype=knots_dtype).call
    seed = draw_seed(generator)
    basis, radius = _directions(around, first, seed)
    return Plan(
        prepared.call, output, dtype, method, k, products, seed, basis, radius, knots_method,
        watched, knots_dtype, max_bytes, prepared.autocast or prepared.inner,
    )  # fmt: skip


def _working_dtype(dtype: torch.dtype | None, first: Tensor, method: Method) -> torch.dtype | None:
    """Return the dtype to ask for: half precision is run in float32 unless asked otherwise."""
    if method == "exact":
        if dtype not in (None, torch.float64):
            raise ValueError(
                f"Expected dtype=torch.float64 for method='exact', got {dtype}: leave it out."
            )
        return torch.float64
    if dtype is None and first.dtype in HALF:
        return torch.float32
    return dtype


def _directions(
    around: Neighbourhood | None, first: Tensor, seed: int
) -> tuple[Tensor | None, float]:
    """Return the directions b_p, common to all latents, and the radius."""
    if around is None:
        return None, math.nan
    directions, radius = around
    if not (radius > 0 and math.isfinite(radius)):
        raise ValueError(f"Expected a positive radius, got {radius}: give a length.")
    if not isinstance(directions, Tensor):
        generator = torch.Generator().manual_seed(seed)
        directions = neighbourhood(tuple(first.shape[1:]), directions, generator)
    return directions, float(radius)
