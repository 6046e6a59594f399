"""psi, nu and delta of a stream of latents, as a table."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from approx.complexity import Knots, knots
from approx.decoder import SHARE, Output, check_latents, free_bytes, out_of_memory
from approx.operator import JacobianOperator
from approx.spectra import METHODS, Spectrum, spectrum
from approx.tables.batches import Batches, batch_test, stacked
from approx.tables.plan import Neighbourhood, Options, Plan, settle
from approx.tables.table import KNOTS, Descriptors

__all__ = ["DescribeError", "describe"]

_MOST_LATENTS = 256  # at a time: beyond, overhead is spread thin enough
# memory measured over memory added up: TAEF2 takes 107 to 126 MiB a latent where its tensors come
# to 54 (layouts that convolutions copy to, an allocator that does not give back)
_OVERHEAD = 2.5


class DescribeError(RuntimeError):
    """Something stopped `describe` after some latents were done.

    Attributes
    ----------
    partial : Descriptors
        The rows of the batches before it. The exception that stopped it is `__cause__`.

    Examples
    --------
    >>> import torch
    >>> from approx import DescribeError, describe
    >>> latents = [torch.ones(2), torch.tensor([1.0, torch.nan])]
    >>> try:
    ...     describe(torch.nn.Linear(2, 3), latents, neighbourhood=None, batch=1, progress=False)
    ... except DescribeError as error:
    ...     print(len(error.partial))
    1
    """

    partial: Descriptors

    def __init__(self, cause: BaseException, partial: Descriptors) -> None:
        n = len(partial)
        super().__init__(
            f"{cause} [stopped in the batch that begins with latent {n}; the {n} before it are in "
            "the exception's .partial]"
        )
        self.partial = partial


@dataclass(frozen=True, eq=False)
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
    method: str = "predict",
    batch: int | Literal["auto"] = "auto",
    progress: bool = True,
    generator: torch.Generator | int | None = None,
    output: Output | None = None,
    dtype: torch.dtype | None = None,
    products: int = 16,
    knots_method: Literal["jvp", "hull"] = "jvp",
    knots_dtype: torch.dtype | None = None,
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
        How psi and nu are estimated, see `spectrum`.
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
    knots_dtype : torch.dtype, optional
        What they are counted in; by default as `dtype`, but at least float32. `delta_error` says
        whether that decides enough of them: for large decoders and radii torch.float64 may be
        needed, at 1 + P forward passes in it.
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

    What bfloat16 changed, same probes, on four latents each. TAEF2 at 32 x 16 x 16 (k = 120 of
    8,192): psi by 0.1 to 0.7 of -180 to -300, nu by 0.07 or less of 112 to 118, both within their
    standard errors for "predict"; 2 to 5 times faster on a CPU with bfloat16 units. The SD 1.5
    approximation at 4 x 16 x 16 (k = 120 of 1,024): psi by 0.5, nu by 0.15. DCGAN faces (k = 100 of
    100, so that psi holds the smallest singular values): psi by 0.6 to 8.6, nu by 0.17 or less:
    there use float32. Knots are then counted in float32: in bfloat16 TAEF2's delta was 1,400
    instead of 1, with every unit undecided.

    psi, nu and delta after A. I. Humayun et al., "What secrets do your manifolds hold?", 2024;
    `spectrum` and `knots` say how they are estimated.

    Examples
    --------
    >>> import torch
    >>> from approx import describe
    >>> decoder = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    >>> table = describe(decoder, torch.rand(5, 2), neighbourhood=(2, 0.1), progress=False)
    >>> table.psi.shape, table.delta.dtype, table.k
    ((5,), dtype('int64'), 2)
    """
    if isinstance(latents, Tensor):
        check_latents(latents)
        source, total = Batches([latents.detach()]), len(latents)
    else:
        source = Batches(stacked(latents, batch_test(decoder, output, dtype)))
    options = Options(
        k=k,
        neighbourhood=neighbourhood,
        method=method,
        batch=batch,
        progress=progress,
        generator=generator,
        output=output,
        dtype=dtype,
        products=products,
        knots_method=knots_method,
        knots_dtype=knots_dtype,
        max_bytes=max_bytes,
    )
    return run(settle(decoder, source, options), source, total)


def run(
    plan: Plan,
    source: Batches,
    total: int | None,
    *,
    free: Callable[[torch.device], int | None] = free_bytes,
    seconds: float = 5.0,
) -> Descriptors:
    """Describe batch after batch until the source is empty, or something stops it.

    `free` tells how much memory a device has left. A batch of "auto" should take `seconds`: an
    interruption loses at most these.
    """
    batch = plan.options.batch
    if batch != "auto" and (not isinstance(batch, int) or batch < 1):
        raise ValueError(
            f"Expected batch as a positive integer or 'auto', got {batch!r}: give 1 or more."
        )
    parts: list[_Done] = []
    shape: tuple[int, ...] = ()
    size = 1 if batch == "auto" else batch
    most = _MOST_LATENTS
    hidden = not plan.options.progress
    with tqdm(total=total, disable=hidden, unit="latent", dynamic_ncols=True) as bar:
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
                    fits = _fitting(done, free(z.device))
                    size = max(1, min(fits, most, int(seconds / spent)))
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


def _one(plan: Plan, z: Tensor) -> _Done:
    """Describe one batch."""
    counted, options = None, plan.options
    if plan.basis is not None:
        # A pass of its own, and before there is a graph: one that recorded a graph for the products
        # as well would save one of the 1 + P, and keep the tangents in it, 1 + P times the memory.
        counted = knots(
            plan.knots_decoder,
            z,
            radius=plan.radius,
            directions=plan.basis,
            method=options.knots_method,
            output=options.output,
            dtype=options.knots_dtype,
            batch=len(z),
        )
    with JacobianOperator(
        plan.decoder, z, output=options.output, dtype=options.dtype, check=False
    ) as op:
        found = spectrum(
            op,
            method=options.method,
            k=options.k,
            generator=plan.seed,
            products=options.products,
            max_bytes=options.max_bytes,
        )
        return _Done(
            spectrum=found,
            knots=counted,
            products=op.products,
            output_shape=op.output_shape,
            bytes_each=_bytes_each(op, found, plan),
            most=_most(op, options),
        )


def _bytes_each(op: JacobianOperator, found: Spectrum, plan: Plan) -> float:
    """About what one latent of a batch takes at the most."""
    layer = op.product_bytes / op.batch
    graph = op.graph_bytes / op.batch + layer
    tangents = 0 if plan.basis is None else (1 + len(plan.basis)) * layer
    held = METHODS[found.method].held(op, found.products)
    return _OVERHEAD * max(graph + held, tangents)


def _most(op: JacobianOperator, options: Options) -> int:
    """Return how many latents an option allows at a time."""
    if not METHODS[options.method].dense:
        return _MOST_LATENTS
    return min(_MOST_LATENTS, max(1, int(options.max_bytes / (8 * op.rows * op.columns))))


def _fitting(done: _Done, free: int | None) -> int:
    """Return how many latents fit in the memory that is free, None where that is unknown."""
    return done.most if free is None else min(done.most, int(SHARE * free / done.bytes_each))


def _table(plan: Plan, parts: list[_Done], shape: tuple[int, ...], complete: bool) -> Descriptors:
    """Join the batches' results."""
    first = parts[0]
    return Descriptors(
        **_of_spectra([part.spectrum for part in parts]),
        **_of_knots([part.knots for part in parts if part.knots is not None]),
        products=np.concatenate([np.full(len(p.spectrum.psi), p.products) for p in parts]),
        method=first.spectrum.method,
        definition=first.spectrum.definition,
        k=first.spectrum.k,
        seed=plan.seed,
        directions=0 if plan.basis is None else len(plan.basis),
        radius=plan.radius,
        dtype=_named(plan.ran_in),
        latent_shape=shape,
        output_shape=first.output_shape,
        complete=complete,
    )


def _of_spectra(spectra: list[Spectrum]) -> dict[str, Any]:
    """Return the columns of psi and nu."""
    return {
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
    }


def _of_knots(counted: list[Knots]) -> dict[str, Any]:
    """Return the columns of delta and how it was counted; empty values without a neighbourhood."""
    if not counted:
        empty = {"knots_method": "", "knots_dtype": "", "passes": 0, "units": 0, "passed_over": ()}
        return dict.fromkeys(KNOTS) | empty
    first = counted[0]
    return {
        "delta": _joined(c.count for c in counted),
        "delta_error": _joined(c.undecided for c in counted),
        "density": _joined(c.density for c in counted),
        "soft": _joined(c.soft for c in counted),
        "zaslavsky": _joined(c.zaslavsky for c in counted),
        "knots_method": first.method,
        "knots_dtype": _named(first.dtype),
        "passes": first.passes,
        "units": int(first.units.sum()),
        "passed_over": first.passed_over,
    }


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _joined(columns: Iterable[Tensor]) -> Any:
    """Join columns on the CPU: real ones in float64, which not every device has."""
    joined = torch.cat([column.cpu() for column in columns])
    return (joined.double() if joined.is_floating_point() else joined).numpy()
