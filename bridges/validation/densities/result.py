"""Result of the section on the output density, and the records that it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bridges.validation.findings import Row
from cpwl.arrays import Floats, Ints
from cpwl.density import Entropy


class Balls(NamedTuple):
    """Disjoint balls of the image in which samples were counted.

    Attributes
    ----------
    cells : (Q,) int64 ndarray
        The cell of each; all are different.
    centres : (Q, P) float64 ndarray
        Slice coordinates of the middle.
    radii : (Q,) float64 ndarray
        In output space.
    log_density : (Q,) float64 ndarray
        The exact one.
    expected, counted : (Q,) float64 and int64 ndarray
        Samples in each: N times density times volume of the P-ball, and what was found.
    samples : int
        N, drawn uniformly from the domain.
    """

    cells: Ints
    centres: Floats
    radii: Floats
    log_density: Floats
    expected: Floats
    counted: Ints
    samples: int

    @property
    def deviations(self) -> Floats:
        """Deviations in standard deviations of a binomial count, (Q,)."""
        share = self.expected / self.samples
        return (self.counted - self.expected) / np.sqrt(self.expected * (1 - share))


class Moments(NamedTuple):
    """Means of exp(psi) and psi over the domain, by autograd at random latents, against exact ones.

    Attributes
    ----------
    latents : int
        How many.
    volume : float
        The exact volume of the image, once per preimage.
    volume_change, volume_error : float
        Relative difference of the estimate, and its standard error.
    lost : float
        Share of the latents at which the decoder squeezes the domain.
    entropy_change, entropy_error : float
        Difference of the entropies in nats, and its standard error; NaN where every latent is lost.
        The standard errors are exact: those of the cells' values under the latent.
    """

    latents: int
    volume: float
    volume_change: float
    volume_error: float
    lost: float
    entropy_change: float
    entropy_error: float


class Nearest(NamedTuple):
    """Kozachenko and Leonenko's estimate from samples of growing size.

    Attributes
    ----------
    sizes : (L,) int64 ndarray
        Points in one sample: n / 4^l, of which there are 4^l disjoint ones; the largest first.
    entropy : (L,) float64 ndarray
        Estimate in nats, the mean over the samples of that size.
    error : float
        Standard error of the estimate from all points: that of the mean over the smallest samples,
        which are independent and together as many.
    bias : float
        Size of the bias of the estimate from all points: the largest that the changes between the
        three largest sizes allow within two standard errors; infinite where there is one size only.
    """

    sizes: Ints
    entropy: Floats
    error: float
    bias: float


class TwoSamples(NamedTuple):
    """A test of two samples.

    Attributes
    ----------
    p_value : float
        Share of relabelled samples, the given one included, that are at least as far apart. At
        most q with probability q if the two distributions are one, whatever they are.
    distance : float
        The energy distance of the two samples.
    null : (n,) float64 ndarray
        That of the relabelled ones, as many as were needed.
    """

    p_value: float
    distance: float
    null: Floats


class Samples(NamedTuple):
    """Samples of one size, and the tests that compare them.

    Attributes
    ----------
    drawn, accepted, uniform : (m, P) float64 ndarray
        Slice coordinates of `cpwl.sample_image`'s points, of uniform latents accepted with
        probability proportional to sqrt det J^T J, and of uniform latents.
    acceptance : float
        Share of the proposals that was accepted.
    proposals : int
        How many there were.
    outputs, coordinates : TwoSamples or None
        `drawn` against `accepted` in output space and in slice coordinates; None where fewer than
        50 were accepted.
    control : TwoSamples or None
        Outputs of `uniform` against those of `accepted`.
    """

    drawn: Floats
    accepted: Floats
    uniform: Floats
    acceptance: float
    proposals: int
    outputs: TwoSamples | None
    coordinates: TwoSamples | None
    control: TwoSamples | None


@dataclass(frozen=True, eq=False)
class Densities:
    """Agreement of densities, entropies and samples on a slice.

    Attributes
    ----------
    entropy : Entropy
        The exact one.
    corners : (M, P) float64 ndarray
        Of the domain.
    neighbours : int
        The k of the k-th nearest neighbour.
    balls : Balls or None
        Samples counted in balls of the image, and the exact density there.
    moments : Moments or None
        Means over the domain.
    nearest : Nearest or None
        The entropy estimated from nearest neighbours; None for P > 3.
    samples : Samples or None
        Points uniform on the image.
    rows : tuple of Row
        What `rows_of` makes of the rest.

    Where every cell is squeezed there is no density, and nothing but the exact entropy.
    """

    entropy: Entropy
    corners: Floats
    neighbours: int
    balls: Balls | None = None
    moments: Moments | None = None
    nearest: Nearest | None = None
    samples: Samples | None = None
    rows: tuple[Row, ...] = ()
