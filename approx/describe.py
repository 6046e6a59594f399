"""psi, nu and delta of a stream of latents, as a table."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from approx._checks import Output, check_latents
from approx._memory import SHARE, free_bytes, out_of_memory
from approx._state import prepare
from approx._stream import HALF, Batches, batch_test, stacked
from approx.knots import Knots, knots, neighbourhood
from approx.operator import JacobianOperator
from approx.spectrum import Method, Spectrum, draw_seed, spectrum
from approx.table import KNOTS, Descriptors

__all__ = ["DescribeError", "describe"]

Neighbourhood = tuple[int | Tensor, float]

_MOST = 256  # latents at a time: beyond, overhead is spread thin enough
_SECONDS = 5.0  # that a batch should take: what an interruption may lose


class DescribeError(RuntimeError):
    """Something stopped `describe` after some latents were done.

    Attributes
    ----------
    partial : Descriptors
        The rows before it. The exception that stopped it is `__cause__`.
    """

    partial: Descriptors

    def __init__(self, cause: BaseException, partial: Descriptors) -> None:
        n = len(partial)
        super().__init__(
            f"{cause} [stopped in the batch that begins with latent {n}; the {n} before it are in "
            "the exception's .partial]"
        )
        self.partial = partial


@dataclass(frozen=True)
class _Plan:
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
    max_bytes: float
    ran_in: torch.dtype


@dataclass(frozen=True)
class _Done:
    """One batch: its results, and what they took."""

    spectrum: Spectrum
    knots: Knots | None
    products: int
    output_shape: tuple[int, ...]
    bytes_each: float
    most: int


def describe(
    decoder: Callable[[Tensor], Any],
    latents: Tensor | Iterable[Tensor],
    *,
    k: int | None = None,
    neighbourhood: Neighbourhood | None = (4, 1e-5),
    method: Method = "predict",
    batch: int | Literal["auto"] = "auto",
    progress: bool = True,
    generator: torch.Generator | int | None = None,
    output: Output | None = None,
    dtype: torch.dtype | None = None,
    products: int = 16,
    knots_method: Literal["jvp", "hull"] = "jvp",
    max_bytes: float = 1e9,
    total: int | None = None,
) -> Descriptors:
    """Return psi, nu and delta of every latent: a table with one row a latent.

    Parameters
    ----------
    decoder : callable
        Takes (B, *latent_shape); a torch module, a bound method of one, or a function.
    latents : Tensor or iterable of Tensor
        (N, *latent_shape), or any iterable, which is read as it is needed: of latents
        (*latent_shape) or of batches (B, *latent_shape). An item with one axis is a latent; for
        others the first item decides, by whether the decoder runs on its first entry. On the
        decoder's device, which is where everything is computed: CPU, CUDA or MPS.
    k : int, optional
        Singular values behind psi and nu; by default min(120, d, D), and all for "exact".
    neighbourhood : (int or Tensor, float) or None
        P, or the directions themselves (P, d), and r of the cross-polytope in which knots are
        counted, the same directions for all latents. None leaves delta out.
    method : {"predict", "paper", "topk", "exact"}
        How psi and nu are had, see `spectrum`.
    batch : int or "auto"
        Latents at a time. "auto" runs the first one alone, and then as many as fit half of the free
        memory, up to 256, and take 5 s. Batches are halved when memory runs out.
    progress : bool
        Whether to show a bar.
    generator : torch.Generator or int, optional
        A seed, or a CPU generator from which one is drawn; by default one from the operating
        system. Recorded in the result.
    output : callable, optional
        Picks the tensor from what the decoder returns; by default itself or its `.sample`.
    dtype : torch.dtype, optional
        By default float32 (float64 for float64 latents, and for "exact"). torch.float64 runs a copy
        of the decoder; torch.bfloat16 and torch.float16 run it under autocast. See Notes.
    products : int
        Jacobian products of "predict".
    knots_method : {"jvp", "hull"}
        How knots are counted, see `knots`.
    max_bytes : float
        The largest dense Jacobian for "exact".
    total : int, optional
        How many latents an iterable has, for the bar.

    Returns
    -------
    Descriptors
        Complete, or after Ctrl-C the latents before it, with `complete` False and a warning.

    Raises
    ------
    ValueError
        Latents, k, the neighbourhood or an option are not as said above; no latents.
    DecoderError
        The decoder is not deterministic, or returns no finite tensor with a gradient.
    DescribeError
        Any exception after the first batch: `.partial` holds the rows before.
    KeyboardInterrupt
        Ctrl-C before any latent was done.

    Notes
    -----
    The same seed gives the same table whatever the batches are, to rounding: probes and directions
    are common to all latents (so the errors of different latents are correlated).

    Cost per latent: psi and nu take one forward pass and the products of `method`; delta takes one
    more that carries P tangents, worth 1 + P forward passes ("hull": 2 P). Memory does not grow
    with the number of latents but for their rows.
    """
    if isinstance(latents, Tensor):
        check_latents(latents)
        source, total = Batches([latents.detach()]), len(latents)
    else:
        source = Batches(stacked(latents, batch_test(decoder, output, dtype)))
    plan = _prepare(
        decoder, source, k, neighbourhood, method, generator, output, dtype, products,
        knots_method, max_bytes,
    )  # fmt: skip
    return _run(plan, source, total, batch, progress)


def _prepare(
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
    max_bytes: float,
) -> _Plan:
    """Look at the first latent and settle everything that all batches share."""
    first = source.take(1)
    if first is None:
        raise ValueError("Expected at least one latent, got an empty iterable: give some.")
    source.put_back(first)
    dtype = _working_dtype(dtype, first, method)
    # a copy in another dtype is made here, once
    prepared = prepare(decoder, first, output=output, dtype=dtype)
    seed = draw_seed(generator)
    basis, radius = _directions(around, first, seed)
    return _Plan(
        prepared.call, output, dtype, method, k, products, seed, basis, radius, knots_method,
        max_bytes, prepared.autocast or prepared.inner,
    )  # fmt: skip


def _run(
    plan: _Plan, source: Batches, total: int | None, batch: int | Literal["auto"], progress: bool
) -> Descriptors:
    """Describe batch after batch until the source is empty, or something stops it."""
    if batch != "auto" and (not isinstance(batch, int) or batch < 1):
        raise ValueError(
            f"Expected batch as a positive integer or 'auto', got {batch!r}: give 1 or more."
        )
    parts: list[_Done] = []
    shape: tuple[int, ...] = ()
    size = 1 if batch == "auto" else batch
    most = _MOST
    with tqdm(total=total, disable=not progress, unit="latent", dynamic_ncols=True) as bar:
        try:
            while (z := source.take(size)) is not None:
                begun = time.perf_counter()
                try:
                    done = _one(plan, z)
                except (RuntimeError, MemoryError) as error:
                    if not out_of_memory(error) or len(z) == 1:
                        raise
                    source.put_back(z)
                    size = most = batch = (len(z) + 1) // 2
                    continue
                parts.append(done)
                shape = tuple(z.shape[1:])
                bar.update(len(z))
                if batch == "auto":
                    spent = (time.perf_counter() - begun) / len(z)
                    size = max(1, min(_fitting(done, z.device), most, int(_SECONDS / spent)))
        except KeyboardInterrupt:
            if not parts:
                raise
            partial = _table(plan, parts, shape, complete=False)
            warnings.warn(
                f"Interrupted after {len(partial)} latents: the table holds these and its "
                "`complete` is False; describe the others with generator=table.seed and join both "
                "with approx.concatenate.",
                RuntimeWarning,
                stacklevel=3,
            )
            return partial
        except Exception as error:
            if not parts:
                raise
            raise DescribeError(error, _table(plan, parts, shape, complete=False)) from error
    return _table(plan, parts, shape, complete=True)


def _one(plan: _Plan, z: Tensor) -> _Done:
    """Describe one batch."""
    counted = None
    if plan.basis is not None:
        # first, while no graph takes up memory
        counted = knots(
            plan.decoder, z, radius=plan.radius, directions=plan.basis, method=plan.knots_method,
            output=plan.output, dtype=plan.dtype, batch=len(z),
        )  # fmt: skip
    with JacobianOperator(plan.decoder, z, output=plan.output, dtype=plan.dtype) as op:
        found = spectrum(
            op, method=plan.method, k=plan.k, generator=plan.seed, products=plan.products,
            max_bytes=plan.max_bytes,
        )  # fmt: skip
        return _Done(
            found, counted, op.products, op.output_shape,
            _bytes_each(op, found, plan), _most(op, plan),
        )  # fmt: skip


def _bytes_each(op: JacobianOperator, found: Spectrum, plan: _Plan) -> float:
    """About what one latent of a batch takes at the most."""
    layer = op.product_bytes / op.batch
    graph = op.graph_bytes / op.batch + layer
    tangents = 0 if plan.basis is None else (1 + len(plan.basis)) * layer
    wide = 8  # bytes: what singular values are taken of is float64
    if found.method == "exact":
        kept = 3 * wide * op.rows * op.columns
    elif found.method == "topk":
        kept = 3 * op.dtype.itemsize * found.products * (op.rows + op.columns) / 2
    else:
        kept = 3 * wide * found.products * op.columns
    return max(graph + kept, tangents)


def _most(op: JacobianOperator, plan: _Plan) -> int:
    """Return how many latents an option allows at a time."""
    if plan.method != "exact":
        return _MOST
    return min(_MOST, max(1, int(plan.max_bytes / (8 * op.rows * op.columns))))


def _fitting(done: _Done, device: torch.device) -> int:
    free = free_bytes(device)
    return done.most if free is None else min(done.most, int(SHARE * free / done.bytes_each))


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


def _table(plan: _Plan, parts: list[_Done], shape: tuple[int, ...], complete: bool) -> Descriptors:
    """Join the batches' results."""
    first = parts[0]
    spectra = [part.spectrum for part in parts]
    counted = [part.knots for part in parts if part.knots is not None]
    values = {
        "psi": _joined(s.psi for s in spectra),
        "psi_error": _joined(s.psi_stderr for s in spectra),
        "psi_low": _joined(s.psi_interval[:, 0] for s in spectra),
        "psi_high": _joined(s.psi_interval[:, 1] for s in spectra),
        "nu": _joined(s.nu for s in spectra),
        "nu_error": _joined(s.nu_stderr for s in spectra),
        "nu_low": _joined(s.nu_interval[:, 0] for s in spectra),
        "nu_high": _joined(s.nu_interval[:, 1] for s in spectra),
        "effective_rank": _joined(s.effective_rank for s in spectra),
        "rank": _joined(s.rank for s in spectra),
        "fell_back": _joined(s.fell_back for s in spectra),
        "products": np.concatenate([np.full(len(p.spectrum.psi), p.products) for p in parts]),
    }
    knotted: dict[str, Any] = dict.fromkeys(KNOTS)
    if counted:
        knotted = {
            "delta": _joined(c.count for c in counted),
            "delta_error": _joined(c.undecided for c in counted),
            "density": _joined(c.density.double() for c in counted),
            "soft": _joined(c.soft.double() for c in counted),
            "zaslavsky": _joined(c.zaslavsky for c in counted),
        }
    for column in (*values.values(), *knotted.values()):
        if column is not None:
            column.flags.writeable = False
    return Descriptors(
        **values,
        **knotted,
        method=first.spectrum.method,
        definition=first.spectrum.definition,
        k=first.spectrum.k,
        seed=plan.seed,
        directions=0 if plan.basis is None else len(plan.basis),
        radius=plan.radius,
        knots_method=counted[0].method if counted else "",
        passes=counted[0].passes if counted else 0,
        units=int(counted[0].units.sum()) if counted else 0,
        passed_over=counted[0].passed_over if counted else (),
        dtype=str(plan.ran_in).removeprefix("torch."),
        latent_shape=shape,
        output_shape=first.output_shape,
        complete=complete,
    )


def _joined(columns: Iterable[Tensor]) -> Any:
    return torch.cat([column.cpu() for column in columns]).numpy()
