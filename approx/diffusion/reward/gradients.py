"""Rewards with gradients of their own: psi of a decoder, and the size of its Jacobian."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from approx.decoder import (
    HALF,
    SHARE,
    DecoderError,
    ForwardRules,
    Output,
    Prepared,
    check_output,
    deterministic,
    first_line,
    forward,
    free_bytes,
    held_by_one,
    in_words,
    no_graph,
    not_finite,
    out_of_memory,
    precision,
    prepare,
    session,
    sized,
)

# bytes of the dense Jacobian of a latent
_MOST_BYTES = 2**28
# latents at which a decoder is asked again whether it is piecewise linear
_ASKED = 4


@dataclass(frozen=True, eq=False)
class ExactReward:
    r"""psi of a decoder, with its gradient by the latent.

    psi(z) is the sum of log sigma_i over all singular values of the Jacobian J, and its gradient
    that of <J(z), P> with P, the pseudoinverse of J transposed, held fixed.

    Parameters
    ----------
    decoder : callable
        Takes latents (B, \*latent_shape). Smooth somewhere: of a piecewise linear one psi is
        constant within a cell. In half precision a copy in float32 runs.
    output : callable, str or int, optional
        Picks the tensor from what the decoder returns.

    Raises
    ------
    DecoderError
        When it is called: a piecewise linear decoder, a Jacobian that lacks rank, one that is too
        large (take `SketchReward`), or an operation that cannot be differentiated twice.

    Notes
    -----
    Its gradients are long: guide with a rho of about 0.04 and clip=0.3, see `guide`.

    A call returns psi (B,); autograd gives the gradient, once. Cost for a latent: d tangents
    forward and, where the latents require a gradient, back through them, about 3 d forward passes.
    All latents that fit are differentiated at once, each with all of its tangents. The rank is
    decided as `numpy.linalg.matrix_rank` does, in the decoder's dtype. psi alone, without a
    gradient, can be had of a piecewise linear decoder too.

    Examples
    --------
    >>> import torch
    >>> from approx.diffusion import ExactReward
    >>> reward = ExactReward(lambda z: torch.exp(z * torch.tensor([1.0, 2.0])))
    >>> z = torch.tensor([[0.5, 0.0]], requires_grad=True)
    >>> psi = reward(z)  # a . z + log 2
    >>> torch.autograd.grad(psi.sum(), z)[0]
    tensor([[1., 2.]])
    """

    decoder: Callable[..., Any]
    output: Output | None = None

    def __call__(self, z: Tensor) -> Tensor:
        """Return psi (B,) of latents z, differentiable once by them."""
        return _known(z, self._each, self.decoder, self.output)

    def _each(self, prepared: Prepared, z: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
        columns = z[0].numel()
        rows = _rows(prepared, z[:1])
        each = rows * columns * z.dtype.itemsize
        if each > _MOST_BYTES:
            raise DecoderError(
                f"Expected a dense Jacobian of at most {sized(_MOST_BYTES)}, got {rows} x "
                f"{columns}, {sized(each)}: take SketchReward."
            )
        held = held_by_one(prepared, z)
        # of the tangents too, and of the way back through them
        graph = 4 * max(each, columns * held.total if held is not None else 0)
        free = free_bytes(z.device)
        size = max(1, int((4 * _MOST_BYTES if free is None else SHARE * free) // graph))
        parts = []
        for start in range(0, len(z), size):
            at = slice(start, start + size)
            parts.append(self._some(prepared.at(at), z[at], start, wanted))
        psi, gradients = zip(*parts, strict=True)
        return torch.cat(psi), torch.cat(gradients) if wanted else None

    def _some(self, prepared: Prepared, z: Tensor, start: int, wanted: bool) -> tuple[Any, Any]:
        """Return psi (b,) and its gradients of the latents from number `start` on."""
        with session(prepared), torch.set_grad_enabled(wanted), ForwardRules():
            leaf = z.clone().requires_grad_(wanted)
            eye = torch.eye(z[0].numel(), dtype=z.dtype, device=z.device)

            def along(direction: Tensor) -> Tensor:
                tangent = direction.reshape(z.shape[1:]).expand_as(z)
                return torch.func.jvp(lambda x: prepared(x.clone()), (leaf,), (tangent,))[1]

            with _twice():
                columns = torch.func.vmap(along)(eye)  # (d, b, *output)
            J = columns.detach().flatten(2).permute(1, 2, 0)
            _check_finite(J, start)
            psi, P, lacking = _factored(J)
            if bool(lacking.any()):
                _check_bends(prepared, z)
                latents = [start + int(number) for number in lacking.nonzero()]
                raise _lacking_rank(latents, min(J.shape[1:]))
            if not wanted:
                return psi, None
            weights = P.permute(2, 0, 1).reshape(columns.shape).to(columns)
            with _twice():
                return psi, _gradient(columns, leaf, weights)


@dataclass(frozen=True, eq=False)
class SketchReward:
    r"""\|\|J\|\|_F^2 of a decoder, by random products, with its gradient by the latent.

    The mean of \|\|J^T u\|\|^2 over standard normal u: unbiased, and so is its gradient.

    Parameters
    ----------
    decoder : callable
        As for `ExactReward`.
    probes : int
        Number of u. The variance of the value is 2 \|\|J J^T\|\|_F^2 over it.
    seed : int
        Of the u. Every call draws others, so that errors of successive steps are independent; make
        another reward for the same run again.
    log : bool
        Return log \|\|J\|\|_F^2 instead, whose size does not depend on the decoder's. The logarithm
        of an estimate and its gradient are biased, by about 1 / (r probes) for an effective rank r.
    output : callable, str or int, optional
        Picks the tensor from what the decoder returns.

    Raises
    ------
    DecoderError
        When it is called: a piecewise linear decoder, or an operation that cannot be differentiated
        twice.

    Notes
    -----
    Cost for a latent: a forward pass, and about 4 more for each probe; memory that of one of them.

    Examples
    --------
    >>> import torch
    >>> from approx.diffusion import SketchReward
    >>> reward = SketchReward(torch.sin, probes=1000, seed=0)
    >>> z = torch.zeros(1, 3)
    >>> bool((reward(z) - 3).abs() < 0.3)  # the squared cosines of 0
    True
    """

    decoder: Callable[..., Any]
    probes: int = 8
    seed: int = 0
    log: bool = False
    output: Output | None = None
    _generator: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse no probes, and begin to draw."""
        if self.probes < 1:
            raise ValueError(
                f"Expected at least one probe, got {self.probes}: each is one random product."
            )
        object.__setattr__(self, "_generator", torch.Generator().manual_seed(self.seed))

    def __call__(self, z: Tensor) -> Tensor:
        """Return the estimate (B,) at latents z, differentiable once by them."""
        return _known(z, self._each, self.decoder, self.output)

    def _each(self, prepared: Prepared, z: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
        mean, slope = _products(prepared, z, self.probes, self._generator, wanted)
        if self.log:
            return mean.log(), slope / mean.reshape(-1, *[1] * (z.ndim - 1))
        return mean, slope


def _products(
    prepared: Prepared, z: Tensor, probes: int, generator: torch.Generator, wanted: bool
) -> tuple[Tensor, Tensor]:
    """Return the mean of ||J^T u||^2 (B,) over random u, and where wanted its gradients."""
    total = torch.zeros(len(z), dtype=z.dtype, device=z.device)
    slope = torch.zeros_like(z)
    with session(prepared), torch.enable_grad():
        leaf = z.clone().requires_grad_()
        with in_words(prepared.call, z):
            y = forward(prepared, leaf.clone())
        if not y.requires_grad:
            raise no_graph()
        for _ in range(probes):
            u = torch.randn(y.shape, generator=generator).to(y)
            with _twice():
                (row,) = torch.autograd.grad(y, leaf, u, create_graph=wanted, retain_graph=True)
                square = row.square().flatten(1).sum(1)
                total += square.detach()
                if wanted:
                    slope += _gradient(square, leaf, torch.ones_like(square))
    _check_finite(total[:, None], 0)
    return total / probes, slope / probes


class _Known(torch.autograd.Function):
    """A value (B,) whose gradient by z was computed with it."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *wanted: Tensor) -> Any:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return wanted[0].reshape(-1, *[1] * (gradient.ndim - 1)) * gradient, None, None


_Each = Callable[[Prepared, Tensor, bool], tuple[Tensor, Tensor | None]]


def _known(z: Tensor, each: _Each, decoder: Callable[..., Any], output: Output | None) -> Tensor:
    """Return a reward's values at z, with gradients where they are wanted."""
    wanted = z.requires_grad and torch.is_grad_enabled()
    # outside of the caller's modes: derivatives of the estimate are taken within
    with torch.inference_mode(False), precision(z.device, None):
        at = z.detach().to(torch.float32 if z.dtype in HALF else z.dtype).clone()
        prepared = _prepared(decoder, at, output)
        at = at.to(prepared.dtype)
        value, gradient = each(prepared, at, wanted)
        if wanted:
            assert gradient is not None
            _check_finite(gradient, 0)
            if not bool(gradient.any()):
                _check_bends(prepared, at)
    if not wanted:
        return value
    assert gradient is not None
    return _Known.apply(z, value, gradient.to(z))  # type: ignore[return-value]


def _prepared(decoder: Callable[..., Any], z: Tensor, output: Output | None) -> Prepared:
    """Prepare the decoder in its own dtype, or a copy of it in the latents' where it is narrow."""
    try:
        return prepare(decoder, z, output=output)
    except ValueError:  # of another dtype, or something that comes again
        return prepare(decoder, z, output=output, dtype=z.dtype)


def _rows(prepared: Prepared, z: Tensor) -> int:
    with session(prepared), torch.no_grad(), in_words(prepared.call, z):
        one = prepared.at(slice(0, 1))
        with deterministic(one):
            y = one(z.clone())
    check_output(y, z)
    return math.prod(y.shape[1:])


def _factored(J: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return psi (b,), the pseudoinverses transposed (b, D, d), and which lack rank (b,)."""
    wide = J if J.device.type == "mps" else J.double()
    U, sigma, Vh = torch.linalg.svd(wide, full_matrices=False)
    eps = torch.finfo(J.dtype).eps
    lacking = sigma[:, -1] <= sigma[:, 0] * max(J.shape[1:]) * eps
    return sigma.log().sum(1).to(J), (U / sigma[:, None]) @ Vh, lacking


def _lacking_rank(latents: list[int], count: int) -> DecoderError:
    return DecoderError.at(
        latents,
        f"Expected Jacobians of full rank, {count} here, got singular values that are zero within "
        "rounding in {}: psi has no gradient where the rank changes; take SketchReward, or a "
        "decoder of fewer latent coordinates.",
    )


def _gradient(y: Tensor, leaf: Tensor, weights: Tensor) -> Tensor:
    """Return the gradient of <y, weights>: zeros where y does not depend on the latents."""
    if not y.requires_grad:
        return torch.zeros_like(leaf)
    (found,) = torch.autograd.grad(y, leaf, weights, retain_graph=True, allow_unused=True)
    return torch.zeros_like(leaf) if found is None else found


def _check_bends(prepared: Prepared, z: Tensor) -> None:
    """Refuse a decoder whose second derivatives are exactly zero here and at other latents too."""
    generator = torch.Generator().manual_seed(0)
    size = z.square().mean().sqrt().clamp_min(1)
    for number in range(_ASKED + 1):
        noise = torch.randn(z.shape, generator=generator).to(z)
        if bool(_products(prepared, z + (number > 0) * size * noise, 1, generator, True)[1].any()):
            return
    raise DecoderError(
        "Expected a decoder with a second derivative, got gradients of exactly 0 here and at "
        f"{_ASKED} other places: it is piecewise linear (ReLU, LeakyReLU, max-pooling, ...), and "
        "its Jacobian constant between knots; fit a classifier of psi with "
        "approx.diffusion.reward.fit."
    )


def _check_finite(values: Tensor, start: int) -> None:
    bad = not_finite(values)
    if bad:
        raise DecoderError.at(
            [start + number for number in bad],
            "Expected finite derivatives, got NaN or infinity for {}: give square roots, norms and "
            "quotients an argument above zero, or leave those latents out.",
        )


@contextmanager
def _twice() -> Iterator[None]:
    """Say in words that an operation cannot be differentiated twice."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        if out_of_memory(error):
            raise
        raise DecoderError(
            "Expected a decoder that torch differentiates twice, got "
            f"{first_line(error)}: write that operation out, or fit a classifier of psi."
        ) from error
