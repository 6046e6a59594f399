"""Derivatives of a decoder, held against a difference quotient of what runs."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from approx.decoder.checks import DecoderError
from approx.decoder.failures import first_line, no_graph, percent
from approx.decoder.forward_rules import ForwardRules
from approx.decoder.graph import transpose
from approx.decoder.memory import out_of_memory
from approx.decoder.running import Prepared, session
from approx.decoder.suspects import watch
from approx.devices import widened


class _Steps(NamedTuple):
    """Half widths of quotients, in units of the latents, and the gap that rounding leaves."""

    widths: tuple[float, ...]
    tolerance: float


# Square roots of the roundings, about: a knot inside of a step is one unit's share, and the wider
# a step is the more of them there are; the narrower, the more of the quotient is rounding.
_STEPS = {
    torch.float64: _Steps((1e-7, 1e-8, 1e-9), 1e-4),
    torch.float32: _Steps((1e-2, 3e-3, 1e-3), 2e-3),
    torch.float16: _Steps((0.3, 0.1, 0.03), 0.05),
    torch.bfloat16: _Steps((0.3, 0.1, 0.03), 0.1),
}
# A gap below so many times what two steps differ by may be curvature, knots or rounding.
_SPREADS = 8.0
# Latents and directions that are tried, and how many have to differ while none agrees: one may lie
# on a knot, or at a jump.
_TRIALS, _DIFFERING = 5, 3
# Random vectors y for which x^T J^T y is compared, besides y = J x.
_COTANGENTS = 2


class _Finding(NamedTuple):
    """What autograd gives against a quotient, as shares of the larger of the two."""

    forward: float
    reverse: float
    # whether the gaps are beyond what different steps differ by
    differs: bool
    # size of the quotient
    quotient: float


def check_derivative(prepared: Prepared, z: Tensor) -> None:
    r"""Refuse a decoder whose derivatives by autograd are not those of what it computes.

    J x by forward mode and y^T (J x) by reverse mode are compared with one central difference
    along a random direction x, at a latent a little beside the given one (which may lie on a knot).
    Where they differ, narrower steps, and up to four more directions and latents, tell a wrong
    derivative from curvature, knots and rounding: at three of them it differs by more than 8 times
    what the steps do. Or most outputs stand still that should move, as after quantisation.

    Parameters
    ----------
    prepared : Prepared
        In float64 if it can be: in float32 only gaps of more than a few per cent are seen.
    z : Tensor
        (1, \*latent_shape).

    Raises
    ------
    DecoderError
        The derivatives differ; the message names the operations that cut the graph.

    Notes
    -----
    Cost: 9 forward passes of one latent: 1 that records, 3 cotangents, 3 for a tangent, 2 ends of
    the step; at most 5 times as many and two narrower steps, where the first does not settle it.
    """
    generator = torch.Generator().manual_seed(0)
    steps = _STEPS[prepared.autocast or prepared.inner]
    finding = _compare(prepared, z, steps, generator)
    if finding is None:
        return
    watched = watch(prepared, z)
    if torch.finfo(watched.narrowest).eps > torch.finfo(prepared.inner).eps:
        # casts inside: the steps of the narrower dtype
        steps = _STEPS.get(watched.narrowest, _STEPS[torch.float16])
        finding = _compare(prepared, z, steps, generator)
    differing: list[_Finding] = []
    for _ in range(_TRIALS):
        if finding is None:
            return
        if finding.differs:
            differing.append(finding)
        if len(differing) == _DIFFERING:
            raise _refusal(finding, watched.suspects)
        finding = _compare(prepared, z, steps, generator)


def _compare(
    prepared: Prepared, z: Tensor, steps: _Steps, generator: torch.Generator
) -> _Finding | None:
    """Compare at one latent along one direction; None if all agrees."""
    scale = float(widened(z.detach()).square().mean().sqrt()) or 1.0
    noise, x = (torch.randn(z.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    z = z + (1e-3 * scale * noise).to(z)
    x = x.to(z)
    # a session each, whose buffers are as at first: spectral norms in training mode change theirs
    forward = _forward(prepared, z, x)
    with session(prepared), torch.enable_grad():
        leaf = z.clone().requires_grad_()
        y = prepared(leaf.clone())
        if not y.requires_grad:
            raise no_graph()
        if forward is None:
            forward = _transposed(y, leaf, x)
        shape = (_COTANGENTS, y.numel())
        cotangents = torch.randn(shape, generator=generator, dtype=torch.float64).to(y)
        if forward is not None:
            own = forward / (forward.norm() or 1.0)
            cotangents = torch.cat([own[None], cotangents])
        reverse = torch.stack([_reverse(y, leaf, c) @ x.flatten() for c in cotangents])
    size = max(float(reverse.abs().max()), 0.0 if forward is None else float(forward.norm()))
    # columns: the vector by forward mode, and its products by both modes
    quotients: list[Tensor] = []
    gaps: list[Tensor] = []
    for width in steps.widths:
        quotients.append(_quotient(prepared, z, x, width * scale))
        known = [abs(cotangents @ quotients[-1] - reverse)]
        if forward is not None:
            off = quotients[-1] - forward
            known += [off.norm()[None], abs(cotangents @ off)]
        gaps.append(torch.cat(known))
        size = max(size, float(quotients[-1].norm()))
        if bool((gaps[-1] <= steps.tolerance * size).all()):
            return None
    still = forward is not None and _still(quotients[0], forward, y, steps.widths[0] * scale)
    size = size or 1.0
    changes = torch.stack([b - a for a, b in itertools.pairwise(quotients)])
    # the two steps that agree best say most; of single products, which may agree by chance, all do
    lengths = changes.norm(dim=1)
    best = int(lengths.argmin())
    products = (changes @ cotangents.T).abs().amax(0)
    spreads = [products]
    table = torch.stack(gaps)
    nearest = table.amin(0)
    if forward is not None:
        spreads += [lengths[best : best + 1], products]
        nearest[len(products)] = table[best : best + 2, len(products)].amin()
    beyond = ~(nearest <= torch.cat(spreads) * _SPREADS) & ~(nearest <= steps.tolerance * size)
    found = nearest / size
    return _Finding(
        forward=0.0 if forward is None else float(found[len(products) :].max()),
        reverse=float(found[: len(products)].max()),
        differs=still or bool(beyond.any()),
        quotient=0.0 if still else float(quotients[-1].norm()),
    )


def _still(quotient: Tensor, forward: Tensor, y: Tensor, width: float) -> bool:
    """Tell whether most outputs that should have moved beyond rounding did not move at all."""
    moves = 2 * width * forward.abs() > 16 * torch.finfo(y.dtype).eps * y.detach().flatten().abs()
    stays = moves & (quotient == 0)
    return bool(2 * stays.sum() > moves.sum())


def _quotient(prepared: Prepared, z: Tensor, x: Tensor, width: float) -> Tensor:
    ends = []
    for sign in (1, -1):
        with session(prepared), torch.no_grad():
            ends.append(prepared(z + sign * width * x).flatten())
    return (ends[0] - ends[1]) / (2 * width)


def _reverse(y: Tensor, leaf: Tensor, cotangent: Tensor) -> Tensor:
    """J^T y, flat."""
    try:
        (g,) = torch.autograd.grad(y, leaf, cotangent.reshape(y.shape), retain_graph=True)
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise DecoderError(
            f"Expected a decoder that autograd can differentiate, got {type(error).__name__}: "
            f"{first_line(error)}: take out what autograd cannot follow."
        ) from error
    return g.flatten()


def _forward(prepared: Prepared, z: Tensor, x: Tensor) -> Tensor | None:
    """J x by forward mode, flat, or None where an operation has no rule for it."""
    with session(prepared), torch.no_grad(), ForwardRules():
        try:
            return torch.func.jvp(lambda z: prepared(z.clone()), (z,), (x,))[1].flatten()
        except (RuntimeError, NotImplementedError) as error:
            if out_of_memory(error):
                raise
            return None


def _transposed(y: Tensor, leaf: Tensor, x: Tensor) -> Tensor | None:
    """J x as the derivative of u -> J^T u, or None where that has none."""
    try:
        u, (g,) = transpose(y, [leaf])
        return torch.autograd.grad(g, u, x)[0].flatten()
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        return None


def _refusal(found: _Finding, suspects: tuple[str, ...]) -> DecoderError:
    names = ", ".join(suspects) or "no operation that is known to cut the graph"
    if math.isnan(found.forward + found.reverse):
        return DecoderError(
            "Expected finite derivatives, got NaN from a decoder whose outputs are finite: give "
            "square roots, norms and quotients an argument above zero (also in the branch of a "
            "torch.where that is not taken)."
        )
    if found.quotient == 0:
        what = (
            "that do not change between jumps, as after quantisation, while their derivative by "
            "autograd is not zero"
        )
    else:
        modes = {"forward": found.forward, "reverse": found.reverse}
        off = [f"{percent(gap)} in {mode} mode" for mode, gap in modes.items() if gap > 1e-4]
        what = f"whose difference quotient is off it by {' and '.join(off)}"
    return DecoderError(
        f"Expected outputs whose derivative is the one of autograd, got outputs {what} (found: "
        f"{names}): remove what cuts the graph, or pass straight_through=True to accept J as "
        "autograd defines it."
    )
