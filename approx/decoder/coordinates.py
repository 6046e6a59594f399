"""Latents in the coordinates in which codes are white, and decoders that take these."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from approx.decoder.binding import Bound, bind
from approx.devices import widened

SINGULAR = 1e-12
"""Smallest ratio of a covariance's eigenvalues that whitens: deviations to a millionth."""


@dataclass(frozen=True, eq=False)
class Whitening:
    """Coordinates u of latents z = mean + root u, made by `whitening`.

    Attributes
    ----------
    mean : (E,) float64 Tensor
        Of the codes.
    root : (E, E) float64 Tensor
        The symmetric square root of their covariance, in units of the latents.
    latent_shape : tuple of int
        Of one latent, of E entries.

    Examples
    --------
    >>> import torch
    >>> from approx import whitening
    >>> white = whitening(torch.tensor([[-3.0], [0.0], [3.0]]))
    >>> white.root, white.coordinates(torch.tensor([[6.0]]))
    (tensor([[3.]], dtype=torch.float64), tensor([[2.]]))
    >>> round(white.log_volume, 4)  # log 3
    1.0986
    """

    mean: Tensor
    root: Tensor
    latent_shape: tuple[int, ...]

    @property
    def log_volume(self) -> float:
        """Half the log-determinant of the covariance, in nats: psi in u minus psi in z.

        It holds for psi of the whole Jacobian where that has rank E. nu, psi_k, psi_W and delta
        change otherwise: `decoder` serves all of them.
        """
        return float(torch.linalg.slogdet(self.root).logabsdet)

    def coordinates(self, latents: Tensor) -> Tensor:
        """Return u (B, *latent_shape) of latents z, in their dtype."""
        if not latents.is_floating_point():
            latents = latents.to(torch.get_default_dtype())
        centred = latents.detach().to(self.mean).flatten(1) - self.mean
        return torch.linalg.solve(self.root, centred.mT).mT.view(latents.shape).to(latents)

    def latents(self, coordinates: Tensor) -> Tensor:
        """Return z (B, *latent_shape) of coordinates u, in their dtype."""
        moved = self.mean + coordinates.detach().to(self.mean).flatten(1) @ self.root
        return moved.view(coordinates.shape).to(coordinates)

    def decoder(self, decoder: Callable[..., Any]) -> Bound:
        """Return the decoder of coordinates u, as `bind` returns it; of a bound one too."""
        arguments: dict[str, Any] = {}
        if isinstance(decoder, Bound):
            decoder, arguments = decoder.target, dict(decoder.arguments)
        mine = {"whitening_mean": self.mean[None], "whitening_root": self.root[None]}
        return bind(_Moved(decoder), **arguments, **mine)


@dataclass(frozen=True, eq=False)
class _Moved:
    """A decoder of z = mean + root u, whose mean and root have one row: they are for all u."""

    target: Callable[..., Any]

    def __call__(
        self, u: Tensor, *, whitening_mean: Tensor, whitening_root: Tensor, **arguments: Any
    ) -> Any:
        z = whitening_mean + u.flatten(1) @ whitening_root[0]
        return self.target(z.view(u.shape), **arguments)


def whitening(codes: Tensor, variances: Tensor | None = None) -> Whitening:
    r"""Return the coordinates in which the codes of a data set have unit covariance.

    psi of a decoder depends on the units of its latents: an encoder that shrinks all latents by c,
    with a decoder that undoes it, adds E log c to psi, and generates the same. Measured in white
    coordinates, psi, nu and delta of the two are equal, so that they can be compared between
    models, and between steps of a training.

    Parameters
    ----------
    codes : Tensor
        (N, \*latent_shape): samples of the aggregate posterior, or the means of the posteriors.
    variances : Tensor, optional
        Of the posteriors around these means, in the same shape; their mean is added to the
        covariance's diagonal.

    Returns
    -------
    Whitening
        Its `decoder` takes white coordinates, `coordinates` finds those of latents, and
        `log_volume` is what psi changes by.

    Raises
    ------
    ValueError
        Codes that are not finite, variances of another shape or below 0, or codes that do not vary
        in every direction.

    Notes
    -----
    With z = m + S u and S^2 the covariance C, the Jacobian in u is J S, and psi = 1/2 log det
    (S J^T J S) is that in z plus 1/2 log det C where J has rank E. A decoder rather than a shift
    of psi is what is returned, since nothing else follows from a shift. The symmetric root is the
    one that keeps u nearest to the axes of z; psi and nu are the same for every root.

    Cost: E^3 once, and E^2 for each latent decoded.

    Examples
    --------
    >>> import torch
    >>> from approx import describe, whitening
    >>> codes = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    >>> decoder = torch.nn.Linear(2, 3)
    >>> shrunk = lambda z: decoder(10 * z)
    >>> options = {"neighbourhood": None, "seed": 0, "progress": False}
    >>> white, other = whitening(codes), whitening(codes / 10)
    >>> psi = describe(white.decoder(decoder), white.coordinates(codes[:1]), **options).psi
    >>> same = describe(other.decoder(shrunk), other.coordinates(codes[:1] / 10), **options).psi
    >>> bool(abs(psi - same) < 1e-4)
    True
    """
    if codes.ndim < 2 or not torch.isfinite(codes).all():
        raise ValueError(
            f"Expected finite codes (N, *latent_shape), got shape {tuple(codes.shape)}"
            f"{' with NaN or infinite entries' if codes.ndim > 1 else ''}: encode a data set."
        )
    flat = widened(codes.detach()).flatten(1)
    count, size = flat.shape
    covariance = torch.atleast_2d(torch.cov(flat.mT)) if count > 1 else flat.new_zeros(size, size)
    if variances is not None:
        if variances.shape != codes.shape or not (variances >= 0).all():
            raise ValueError(
                f"Expected variances of 0 or more, of the codes' shape {tuple(codes.shape)}, got "
                f"shape {tuple(variances.shape)}{_below(variances)}: exp(log_variance) has them."
            )
        covariance = covariance + variances.detach().to(flat).flatten(1).mean(dim=0).diag()
    values, vectors = torch.linalg.eigh(covariance)
    if not values[0] > SINGULAR * values[-1]:
        varying = int((values > SINGULAR * values[-1]).sum())
        raise ValueError(
            f"Expected codes that vary in all {size} directions, got {count} that vary in "
            f"{varying}: give more codes, samples of the posteriors in place of their means, or "
            "variances=."
        )
    root = vectors * values.sqrt() @ vectors.mT
    return Whitening(flat.mean(dim=0), root, tuple(codes.shape[1:]))


def _below(variances: Tensor) -> str:
    least = float(variances.min()) if variances.numel() else math.nan
    return "" if least >= 0 else f" with {least:g}"
