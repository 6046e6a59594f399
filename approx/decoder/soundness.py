"""What is asked of a decoder once a job: each latent alone, always the same, true derivatives."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor

from approx import devices
from approx.decoder.checks import HALF, DecoderError, check_output
from approx.decoder.derivatives import check_derivative
from approx.decoder.failures import first_line, in_words, on_meta, percent, refuse_whole
from approx.decoder.forward_rules import Widened
from approx.decoder.memory import SHARE, free_bytes, out_of_memory
from approx.decoder.running import Prepared, deterministic, held_by_one, precision, session
from approx.decoder.suspects import watch

# bytes of a parameter while a copy in float64 is made: the copy in its own dtype, and this one
_COPYING = 12
# of the error of float32
_PROBES = 3


def check_decoder(prepared: Prepared, z: Tensor, *, straight_through: bool = False) -> float:
    r"""Refuse a decoder whose Jacobians would not be those of what it computes, once a job.

    Its outputs must be the same for a latent alone and beside another, and each time; and its
    derivatives by autograd those of a difference quotient (see `check_derivative`). All of it runs
    on a copy in float64 where one can be made and fits, else in the decoder's own dtype.

    Parameters
    ----------
    prepared : Prepared
        The decoder of the whole job.
    z : Tensor
        (n, \*latent_shape), the first latents of the job; two of them are used.
    straight_through : bool
        Leave derivatives as autograd defines them.

    Returns
    -------
    float
        ||E||_F / (eps ||J||_F), E the error of float32's J at the first latent, held against the
        copy in float64 with three random vectors; 0 where there are not both.

    Raises
    ------
    DecoderError
        Outputs that depend on the other latents or change from pass to pass; derivatives of
        something else; a decoder that does not run.

    Notes
    -----
    Cost: 16 forward passes of one latent in float64, 7 with `straight_through`; 4 in float32; and
    one with shapes alone, to see whether it fits.
    """
    if z.device.type == "meta":
        raise on_meta()
    # as in a session, not as around the caller
    with torch.inference_mode(False), precision(z.device, None):
        return _check(prepared, z.detach(), straight_through)


def _check(prepared: Prepared, z: Tensor, straight_through: bool) -> float:
    pair, rows = _pair(z)
    # whose rows are now 0 and 1
    both = prepared.at(rows)
    used, beside = _in_float64(both, pair), None
    with in_words(prepared.call, z):
        if used is not None:
            beside = _tried(used, pair.to(used.dtype))
        if used is None or beside is None:
            used = both if both.autocast is None else both.in_dtype(torch.float32)
            beside = _first(used, pair.to(used.dtype))
    pair = pair.to(used.dtype)
    with Widened() if used.dtype == torch.float64 else nullcontext():
        _check_alone(used, pair, beside)
        if not straight_through:
            check_derivative(_one(used), pair[:1])
    return _roundings(both, used, pair[:1])


def _roundings(given: Prepared, wide: Prepared, z: Tensor) -> float:
    """Return the error of J in float32 as `check_decoder` does.

    Layers alone leave 0.5 to 17 eps; differences of large numbers leave any multiple.
    """
    if wide.dtype != torch.float64 or given.autocast is not None or given.inner in HALF:
        return 0.0
    try:
        narrow = _rows(_one(given.in_dtype(torch.float32)), z)
        with Widened():
            fine = _rows(_one(wide), z)
    except (RuntimeError, TypeError, DecoderError) as error:
        if out_of_memory(error):
            raise
        return 0.0  # it runs in one of the two alone
    size, gap = float(fine.norm()), float((fine - narrow).norm())
    ratio = gap / size if size > 0 else 0.0
    return ratio / torch.finfo(torch.float32).eps if math.isfinite(ratio) else 0.0


def _rows(prepared: Prepared, z: Tensor) -> Tensor:
    """Return J^T y of some random vectors y: (n, d) float64."""
    generator = torch.Generator().manual_seed(0)
    with session(prepared), torch.enable_grad():
        leaf = z.to(prepared.dtype).requires_grad_()
        output = prepared(leaf.clone())
        rows = []
        for _ in range(_PROBES):
            y = torch.randn(output.shape, generator=generator).to(output)
            rows += torch.autograd.grad(output, leaf, y, retain_graph=True)
    return torch.stack(rows).flatten(1).double()


def _tried(wide: Prepared, pair: Tensor) -> Tensor | None:
    """Run a copy in float64; None where dtypes that are written into the decoder forbid it."""
    try:
        with Widened():
            return _first(wide, pair)
    except DecoderError:
        raise
    except Exception:  # whatever the decoder raises: its own comes again in its own dtype
        return None


def _one(prepared: Prepared) -> Prepared:
    return prepared.at(torch.tensor([0]))


def _first(prepared: Prepared, z: Tensor) -> Tensor:
    """Return the first latent's output, flat."""
    with session(prepared), torch.no_grad(), deterministic(prepared):
        y = prepared(z.clone())
    check_output(y, z)
    return y[0].flatten()


def _in_float64(prepared: Prepared, pair: Tensor) -> Prepared | None:
    """Return a copy in float64, or None where the device has none or memory is short."""
    if not devices.of(prepared.device).float64:
        return None
    free = free_bytes(prepared.device)
    if free is not None and prepared.inner != torch.float64:
        weights = sum(p.numel() for m in prepared.modules for p in m.parameters())
        held = held_by_one(prepared, pair)
        graph = 0 if held is None else 2 * held.total
        if _COPYING * weights + graph > SHARE * free:
            return None
    try:
        return prepared.in_dtype(torch.float64)
    except DecoderError:
        return None
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return None


def _pair(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return two different latents and the numbers of their rows in the job."""
    if len(z) > 1 and not torch.equal(z[0], z[1]):
        return z[:2], torch.tensor([0, 1])
    shares = torch.rand(z.shape[1:], generator=torch.Generator().manual_seed(1)).to(z)
    # within the latents' range; of a latent of zeros there is none
    other = z[0] * shares if bool(z[0].any()) else shares
    return torch.stack([z[0], other]), torch.tensor([0, 0])


def _check_alone(prepared: Prepared, pair: Tensor, beside: Tensor) -> None:
    """Compare the first latent's output beside another, which is given, with the one alone."""
    tolerance = torch.finfo(prepared.autocast or prepared.inner).eps ** 0.5
    if beside.numel() == pair[0].numel():
        refuse_whole(prepared.call)
    try:
        alone = _first(_one(prepared), pair[:1])
    except DecoderError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise _mixing(f"{type(error).__name__} for a latent alone ({first_line(error)})") from error
    if beside.shape != alone.shape:
        raise _mixing("outputs of another size for a latent alone than beside another")
    gap = _gap(beside, alone)
    if gap <= tolerance:
        return
    # casts inside leave more rounding
    if gap <= torch.finfo(watch(_one(prepared), pair[:1]).narrowest).eps ** 0.5:
        return
    again = _gap(_first(prepared, pair), beside)
    if again > tolerance:
        raise DecoderError(
            f"Expected a deterministic decoder, got outputs that change by {percent(again)} from "
            "one pass to the next of the same latents: fix its noise or its counter (a generator "
            "of its own, numpy's or Python's random numbers, state that it keeps)."
        )
    raise _mixing(f"outputs that change by {percent(gap)} when another latent is beside it")


def _mixing(got: str) -> DecoderError:
    return DecoderError(
        f"Expected a decoder that treats each latent alone, got {got}: give normalisations running "
        "statistics (track_running_stats=True) and call .eval(), take out what mixes the batch, or "
        "give each latent its row of further arguments with approx.bind."
    )


def _gap(a: Tensor, b: Tensor) -> float:
    """Return the distance relative to the larger of two outputs."""
    size = max(float(a.norm()), float(b.norm()))
    return float((a - b).norm()) / size if size else 0.0
