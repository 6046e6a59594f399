"""A job in chunks: what defines it, begun once by a trial, and done chunk by chunk anywhere.

`begin` gives the header of a new store, `planned` prepares a decoder for a header's job, and `work`
does a chunk. What they take and give, but for decoder and plan, can be pickled.
"""

from __future__ import annotations

import importlib.metadata
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from approx.decoder import (
    HALF,
    Bound,
    DecoderError,
    as_array,
    free_bytes,
    modules_of,
    prepare,
    session,
    tensors_of,
)
from approx.stores import StoreError, digest
from approx.tables.batches import Batches
from approx.tables.loop import batch_by_batch, trial
from approx.tables.plan import Options, Plan, settle, working_dtype
from approx.tables.rows import Done, Failed, columns, details, named_dtype

__all__ = [
    "ROWS",
    "TRIED",
    "asked",
    "begin",
    "check_chunk",
    "compared",
    "latents_digest",
    "planned",
    "verify",
    "work",
]

TRIED = 4096
"""Latents that `begin` may look at, where they are small."""

ROWS = 16_384
"""Rows of a chunk of "auto" at the most, so that one of small latents is soon done."""

_SECONDS = 45.0  # of a chunk: what an interruption may lose
_BYTES = 2**28  # of a chunk's latents at the most
# how far numbers of an output may be from those of another machine, over their size
_NEAR = {torch.float64: 1e-6, torch.float32: 1e-3}
_SAME = {
    "cpwl": "this version of cpwl",
    "modules": "a decoder of these modules",
    "weights": "a decoder with these weights",
}


def asked(options: Options, first: Tensor | NDArray[Any], key: str | None = None) -> dict[str, Any]:
    """Return the fields of a header that a caller decides, but for batch and chunk.

    `first` are the first latents, as the decoder is given them: (n, *latent_shape); `key` is the
    digest of the first one where that is not of its values.
    """
    around = options.neighbourhood
    if around is not None:
        directions, radius = around
        tensor = isinstance(directions, Tensor)
        around = [digest(as_array(directions)) if tensor else int(directions), float(radius)]
    output = options.output
    z = torch.as_tensor(first)
    return {
        "k": None if options.k is None else int(options.k),
        "neighbourhood": around,
        "method": options.method,
        "seed": options.seed,
        "output": getattr(output, "__qualname__", type(output).__name__)
        if callable(output)
        else output,
        "dtype": None if options.dtype is None else named_dtype(options.dtype),
        "products": int(options.products),
        "knots_method": options.knots_method,
        "knots_dtype": None if options.knots_dtype is None else named_dtype(options.knots_dtype),
        "straight_through": options.straight_through,
        "on_error": options.on_error,
        "latent_shape": list(z.shape[1:]),
        "latent_dtype": named_dtype(z.dtype),
        "first_latent": key or latents_digest(z[:1]),
    }


def begin(
    decoder: Callable[[Tensor], Any],
    first: Tensor,
    options: Options,
    *,
    key: str | None = None,
    chunk: int | Literal["auto"] = "auto",
    seconds: float = _SECONDS,
    rows: int = ROWS,
    free: Callable[[torch.device], int | None] = free_bytes,
) -> tuple[dict[str, Any], Plan]:
    """Look at the first latents, fix batch and chunk by a trial, and return header and plan.

    Parameters
    ----------
    decoder : callable
        As `describe` takes it.
    first : Tensor
        (n, *latent_shape), the first latents of the job, on the decoder's device. More of them, up
        to `TRIED`, find a better batch.
    options : Options
        Of the job, with its seed; a batch of "auto" is tried for.
    key : str, optional
        As for `asked`.
    chunk : int or "auto"
        Rows of a chunk: a multiple of a batch that is given; one of "auto" divides it as evenly as
        it goes. "auto" takes `seconds`, and `rows` at the most.
    seconds, rows : float, int
        Of a chunk of "auto".
    free : callable
        Tells how much memory a device has left for a batch of "auto".

    Returns
    -------
    dict
        The header, of JSON: the fields of `asked`, batch and chunk, digests of the decoder, and
        where it ran.
    Plan
        What `planned` would return for it here; it holds the decoder.

    Raises
    ------
    ValueError, DecoderError
        As `describe`, before its first batch; a chunk that is no multiple of the batch.
    """
    plan = settle(decoder, Batches([first]), options)
    batch, each = options.batch, 0.0
    if batch == "auto" or chunk == "auto":
        batch, each = trial(plan, first, free=free)
    if chunk == "auto":
        size = max(1, first[0].numel() * first.dtype.itemsize)
        most = min(seconds / each, rows, _BYTES / size)
        chunk = batch * max(1, int(most / batch))
    elif options.batch == "auto":  # batches end where chunks do
        batch = math.ceil(chunk / math.ceil(chunk / batch))
    else:
        _check_multiple(chunk, batch)
    header = {
        **asked(options, first, key),
        "batch": batch,
        "chunk": chunk,
        "roundings": plan.roundings,
        **_identity(decoder),
        "output_at_first": _numbers(decoder, first, options),
        "environment": {
            "torch": torch.__version__,
            "device": first.device.type,
            "threads": torch.get_num_threads(),
        },
        "made": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    return header, replace(plan, options=replace(plan.options, batch=batch))


def verify(
    decoder: Callable[[Tensor], Any], first: Tensor, options: Options, header: Mapping[str, Any]
) -> None:
    """Refuse a decoder or a program other than the header's; it takes one forward pass.

    Raises
    ------
    StoreError
        Other weights, another version of cpwl, or another output at the first latent.
    """
    for name, value in _identity(decoder).items():
        if header.get(name) != value:
            raise StoreError(
                f"Expected {_SAME[name]}, by which the store was made: {name} {header.get(name)}, "
                f"got {value}: give the same, or choose another place for another run."
            )
    before = header["output_at_first"]
    # where it had an output, its own error says more than that it has none
    strict = options if before is None else replace(options, on_error="raise")
    now = _numbers(decoder, first, strict)
    a, b = np.array(now or []), np.array(before or [])
    near = _NEAR.get(_told_in(options, first), 1e-3) * np.abs(b).max(initial=1e-30)
    if a.shape != b.shape or not np.all(np.abs(a - b) <= near):
        raise StoreError(
            f"Expected the decoder's output at the first latent by which the store was made, "
            f"{_short(before)}, got {_short(now)}: the weights are the same and the code around "
            "them is not. Go back to that, or choose another place for another run."
        )


def compared(
    decoder: Callable[[Tensor], Any],
    first: Tensor,
    options: Options,
    header: Mapping[str, Any],
    key: str | None = None,
) -> dict[str, Any]:
    """Return what a header must have, see `asked`; where it has all of it, `verify` the decoder."""
    found = asked(options, first, key)
    if all(header.get(name) == value for name, value in found.items()):
        verify(decoder, first, options, header)
    return found


def planned(
    decoder: Callable[[Tensor], Any], first: Tensor, options: Options, header: Mapping[str, Any]
) -> Plan:
    """Return the plan of a header's job, for `work`, with a decoder that was compared or verified.

    `first` are the first latents of the job, 8 or more where there are as many.

    Raises
    ------
    DecoderError
        As `describe`, before its first batch.
    """
    fixed = replace(options, batch=header["batch"])
    plan = settle(decoder, Batches([first]), fixed)
    # measured once, as rows depend on it
    return replace(plan, roundings=header["roundings"])


def work(
    plan: Plan,
    z: Tensor,
    start: int,
    told: Callable[[int], object] = lambda rows: None,
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Describe the latents of one chunk, of which the first is number `start` of the job.

    Parameters
    ----------
    plan : Plan
        From `planned`.
    z : Tensor
        (n, *latent_shape), on the decoder's device.
    start : int
        Number of the first.
    told : callable
        Called with the number of latents after each batch.

    Returns
    -------
    dict, dict
        Columns (n,) by name, and what else belongs to them, of JSON: see `approx.tables.rows`.
    """
    parts: list[Done | Failed] = []
    for found, rows in batch_by_batch(plan, Batches([z]), start):
        parts += found
        told(rows)
    return columns(plan, parts), details(plan, parts)


def latents_digest(
    z: Tensor, decoder: Callable[[Tensor], Any] | None = None, start: int = 0
) -> str:
    """Return the digest of latents, and of the rows that a bound decoder has for them."""
    rows = decoder.tensors(by_row=True) if isinstance(decoder, Bound) else []
    return digest(as_array(z), *(as_array(x[start : start + len(z)]) for x in rows))


def check_chunk(chunk: int | Literal["auto"]) -> None:
    """Refuse what is no number of rows."""
    if chunk != "auto" and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise ValueError(
            f"Expected chunk as a positive integer or 'auto', got {chunk!r}: give 1 or more."
        )


def _check_multiple(chunk: int, batch: int) -> None:
    if chunk % batch:
        raise ValueError(
            f"Expected chunk as a multiple of the batch of {batch}, got {chunk}: give "
            f"{math.ceil(chunk / batch) * batch}, or chunk='auto'."
        )


def _identity(decoder: Callable[[Tensor], Any]) -> dict[str, str]:
    """Return what must be equal wherever a job is done."""
    try:
        version = importlib.metadata.version("cpwl")
    except importlib.metadata.PackageNotFoundError:  # a checkout on the path
        version = "unknown"
    found: list[Any] = []
    for name, tensor in tensors_of(decoder):
        # bytes, as NumPy does not have every dtype
        held = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found += [np.array(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()), held.numpy()]
    if isinstance(decoder, Bound):  # rows of latents are told with these
        found += [as_array(x) for x in decoder.tensors(by_row=False)]
    # with their settings, such as GELU's approximation, which no weight and hardly an output tells
    parts = [
        f"{name} {type(part).__qualname__}({part.extra_repr()})"
        for module in modules_of(decoder)
        for name, part in module.named_modules()
    ]
    told = np.array("\n".join(parts).encode())
    return {"cpwl": version, "modules": digest(told), "weights": digest(*found)}


def _told_in(options: Options, first: Tensor) -> torch.dtype:
    """Return the dtype in which decoders are told apart: half precision hides too much."""
    dtype = working_dtype(options, first) or first.dtype
    return torch.float32 if dtype in HALF else dtype


def _numbers(
    decoder: Callable[[Tensor], Any], first: Tensor, options: Options
) -> list[float] | None:
    """Return a few numbers of the output at the first latent, None where it has none."""
    z = torch.where(first[:1].isfinite(), first[:1], 0)
    prepared = prepare(decoder, z, output=options.output, dtype=_told_in(options, z))
    prepared = prepared.at(slice(0, 1))
    try:
        with session(prepared), torch.no_grad():
            y = prepared(z).cpu().double().flatten()
    except (DecoderError, RuntimeError):
        if options.on_error == "raise":
            raise
        return None
    picked = y[:: max(1, len(y) // 8)][:8]
    found = [float(y.square().mean().sqrt()), *picked.tolist()]
    return found if all(map(math.isfinite, found)) else None


def _short(numbers: list[float] | None) -> str:
    if numbers is None:
        return "none that is finite"
    return "(" + ", ".join(f"{number:.6g}" for number in numbers[:4]) + ", ...)"
