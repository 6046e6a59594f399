"""Options of `describe`, and what is settled once for all batches: dtypes, probes, directions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from approx.complexity import neighbourhood
from approx.decoder import HALF, Output, prepare
from approx.spectra import check_method, draw_seed
from approx.tables.batches import Batches

Neighbourhood = tuple[int | Tensor, float]


@dataclass(frozen=True, eq=False)
class Options:
    """What `describe` is asked for, under its own names."""

    k: int | None
    neighbourhood: Neighbourhood | None
    method: str
    batch: int | Literal["auto"]
    progress: bool
    generator: torch.Generator | int | None
    output: Output | None
    dtype: torch.dtype | None
    products: int
    knots_method: Literal["jvp", "hull"]
    knots_dtype: torch.dtype | None
    max_bytes: float


@dataclass(frozen=True, eq=False)
class Plan:
    """What is done with every batch: `options` with the dtypes settled, and what follows."""

    options: Options
    decoder: Callable[[Tensor], Any]
    # in a dtype of their own, at least float32
    knots_decoder: Callable[[Tensor], Any]
    seed: int
    basis: Tensor | None
    radius: float
    ran_in: torch.dtype


def settle(decoder: Callable[[Tensor], Any], source: Batches, options: Options) -> Plan:
    """Look at the first latent and settle everything that all batches share."""
    first = source.take(1)
    if first is None:
        raise ValueError("Expected at least one latent, got an empty iterable: give some.")
    source.put_back(first)
    dtype = _working_dtype(options, first)
    knots_dtype = options.knots_dtype
    if knots_dtype is None:
        knots_dtype = torch.float32 if dtype in HALF else dtype
    # a copy in another dtype is made here, once
    prepared = prepare(decoder, first, output=options.output, dtype=dtype)
    watched = prepared
    if options.neighbourhood is not None and knots_dtype != dtype:
        watched = prepare(decoder, first, output=options.output, dtype=knots_dtype)
    seed = draw_seed(options.generator)
    basis, radius = _directions(options.neighbourhood, first, seed)
    return Plan(
        options=replace(options, dtype=dtype, knots_dtype=knots_dtype),
        decoder=prepared.call,
        knots_decoder=watched.call,
        seed=seed,
        basis=basis,
        radius=radius,
        ran_in=prepared.autocast or prepared.inner,
    )


def _working_dtype(options: Options, first: Tensor) -> torch.dtype | None:
    """Return the dtype to ask for: half precision is run in float32 unless asked otherwise."""
    dtype = options.dtype
    if check_method(options.method).dense:
        if dtype not in (None, torch.float64):
            raise ValueError(
                f"Expected dtype=torch.float64 for method='{options.method}', got {dtype}: leave "
                "it out."
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
        shape = tuple(first.shape[1:])
        directions = neighbourhood(shape, min(directions, math.prod(shape)), generator)
    return directions, float(radius)
