"""Options of `describe`, and what is settled once for all batches: dtypes, probes, directions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from approx.complexity import neighbourhood
from approx.decoder import (
    HALF,
    DecoderError,
    Output,
    Prepared,
    check_decoder,
    out_of_memory,
    prepare,
)
from approx.sketches import Probes
from approx.spectra import check_method
from approx.tables.batches import Batches

# latents looked at before the first batch: two, or more where some may be bad
_LOOKED_AT = {"raise": 2, "nan": 8}

Neighbourhood = tuple[int | Tensor, float]


@dataclass(frozen=True, eq=False)
class Options:
    """What `describe` is asked for, under its own names."""

    k: int | None
    neighbourhood: Neighbourhood | None
    method: str
    batch: int | Literal["auto"]
    progress: bool
    seed: int
    output: Output | None
    dtype: torch.dtype | None
    products: int
    knots_method: Literal["jvp", "hull"]
    knots_dtype: torch.dtype | None
    max_bytes: float
    straight_through: bool
    on_error: Literal["raise", "nan"]


@dataclass(frozen=True, eq=False)
class Plan:
    """What is done with every batch: `options` with the dtypes settled, and what follows."""

    options: Options
    decoder: Prepared
    # in a dtype of their own, at least float32
    knots_decoder: Prepared
    basis: Tensor | None
    radius: float
    ran_in: torch.dtype
    # drawn with the first batch, and kept for all
    probes: Probes
    # of J in float32, see `JacobianOperator`
    roundings: float
    # what could not be checked
    note: str


def check_options(options: Options) -> None:
    """Refuse what can be refused before a latent is looked at."""
    check_method(options.method)
    batch, around = options.batch, options.neighbourhood
    if batch != "auto" and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise ValueError(
            f"Expected batch as a positive integer or 'auto', got {batch!r}: give 1 or more."
        )
    if around is not None and not (isinstance(around, tuple | list) and len(around) == 2):
        raise ValueError(
            f"Expected neighbourhood as (P, r), directions and radius, got {around!r}: for example "
            "neighbourhood=(4, 1e-3), or None to leave delta out."
        )
    if options.on_error not in ("raise", "nan"):
        raise ValueError(
            f"Expected on_error as 'raise' or 'nan', got {options.on_error!r}: give one of them."
        )
    if not 0 < options.max_bytes < math.inf:
        raise ValueError(
            f"Expected max_bytes as a positive number, got {options.max_bytes}: 1e9 is the default."
        )


def settle(decoder: Callable[[Tensor], Any], source: Batches, options: Options) -> Plan:
    """Look at the first latents, settle what all batches share, and check the decoder once."""
    first = source.take(_LOOKED_AT[options.on_error])
    if first is None:
        raise ValueError("Expected at least one latent, got an empty iterable: give some.")
    source.put_back(first)
    if options.on_error == "nan":
        first = torch.where(first.isfinite(), first, 0)
    dtype = working_dtype(options, first)
    knots_dtype = options.knots_dtype
    if knots_dtype is None:
        knots_dtype = torch.float32 if dtype in HALF else dtype
    # a copy in another dtype is made here, once
    prepared = prepare(decoder, first, output=options.output, dtype=dtype)
    watched = prepared
    if options.neighbourhood is not None and knots_dtype != dtype:
        watched = prepare(decoder, first, output=options.output, dtype=knots_dtype)
    basis, radius = _directions(options.neighbourhood, first, options.seed)
    note, roundings = "", 0.0
    try:
        roundings = _check(prepared, first, options)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        note = "Memory was short to check that J is the derivative of what runs."
    return Plan(
        options=replace(options, dtype=dtype, knots_dtype=knots_dtype),
        decoder=prepared,
        knots_decoder=watched,
        basis=basis,
        radius=radius,
        ran_in=prepared.autocast or prepared.inner,
        probes=Probes(options.seed),
        roundings=roundings,
        note=note,
    )


def _check(prepared: Prepared, first: Tensor, options: Options) -> float:
    """Check the decoder at the first latents; with on_error="nan" at the first that it decodes."""
    for start in range(len(first)):
        some = slice(start, min(start + 2, len(first)))
        try:
            return check_decoder(
                prepared.at(some), first[some], straight_through=options.straight_through
            )
        except DecoderError as error:
            if options.on_error == "raise" or not error.latents or some.stop == len(first):
                raise error.counted_from(start) from error.__cause__
    return 0.0


def working_dtype(options: Options, first: Tensor) -> torch.dtype | None:
    """Return the dtype to ask for: half precision is run in float32 unless asked otherwise."""
    dtype = options.dtype
    if dtype is None and check_method(options.method).dense and first.device.type != "mps":
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
