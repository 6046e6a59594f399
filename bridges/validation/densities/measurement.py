"""Measurement of densities, entropies and samples of the output, against sampling the decoder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

import cpwl
from bridges.validation.densities.balls import count_in_balls
from bridges.validation.densities.decoding import cost, decode, stretches
from bridges.validation.densities.moments import compare_moments
from bridges.validation.densities.nearest import neighbour_entropy
from bridges.validation.densities.rejection import compare_samples
from bridges.validation.densities.result import Densities, Nearest
from bridges.validation.densities.rows import rows_of
from bridges.validation.subject import Latents, Subject, uniform
from cpwl.descriptors import Spectrum


def measure(
    subject: Subject,
    *,
    samples: int = 400_000,
    balls: int = 300,
    nearest: int = 100_000,
    neighbours: int = 3,
    proposals: int = 100_000,
    pairs: int = 2000,
    permutations: int = 1999,
    budget: int = 2**29,
    stored: int = 2**24,
    seed: int = 0,
) -> Densities:
    """Compare the exact density, entropy and samples of the output with sampling the decoder.

    The latent is uniform on the domain. The decoder runs in float64.

    Parameters
    ----------
    subject : Subject
        With its network and partition.
    samples : int
        At most so many latents are drawn to be counted; fewer for a large network.
    balls : int
        At most so many balls of the image in which they are counted.
    nearest : int
        At most so many outputs among which nearest neighbours are searched; fewer where an output
        is large.
    neighbours : int
        The k of the k-th nearest neighbour.
    proposals : int
        At most so many latents at which autograd's Jacobian is taken, from which rejection
        sampling accepts.
    pairs, permutations : int
        At most so many points of each of the two samples, and relabellings of them.
    budget : int
        Numbers that the network makes in all the passes that count samples: by default a second for
        the toys, half a minute for a convolutional generator, which gets fewer samples.
    stored : int
        Coordinates of all the outputs among which neighbours are searched, by default 128 MB.
    seed : int
        Of everything random.

    Returns
    -------
    Densities

    Raises
    ------
    ValueError
        A subject without a partition.

    Notes
    -----
    *Density.* In a ball of the image inside one cell's image, of radius eps, the number of N
    samples is binomial with mean N p omega_P eps^P. The sum over the balls tells a common factor of
    1 or 2 %, the worst of them a single wrong cell, the chi-square what lies between.

    *Entropy and volume.* They are the means of psi and exp(psi) over the domain, which autograd's
    Jacobian at random latents estimates, with standard errors known exactly; a common factor of
    the density of 1 % is noticed. Nearest neighbours in output space know of no Jacobian; see
    `neighbour_entropy` for their bias. Where images of cells overlap, the exact entropy is an upper
    bound, and only that is claimed.

    *Samples.* Uniform latents accepted with probability proportional to sqrt det J^T J are uniform
    on the image. They and `cpwl.sample_image`'s are compared by a permutation test, in output space
    and in slice coordinates.

    Cost: one forward pass for each sample and one Jacobian of P columns for each proposal.
    """
    partition = subject.partition
    if partition is None:
        raise ValueError(
            "Expected a subject with a partition, got None: densities are exact on the cells of a "
            "piecewise-linear network only. Leave this section out."
        )
    source = cpwl.spectrum(partition)
    entropy = cpwl.entropy(partition, source=source)
    result = Densities(entropy=entropy, corners=partition.domain.corners, neighbours=neighbours)
    if not (source.rank == partition.dim).any():
        return replace(result, rows=rows_of(result))

    streams = np.random.default_rng(seed).spawn(3)
    passes = max(1, budget // cost(subject))
    latents = uniform(subject, min(samples, passes), streams[0])
    proposed = uniform(subject, min(proposals, max(1, passes // 16)), streams[1])
    taken = stretches(subject, proposed.s)
    near = None
    if partition.dim <= 3:
        most = min(nearest, stored // subject.outputs)
        near = _from_neighbours(subject, source, latents, most, neighbours)
    result = replace(
        result,
        balls=count_in_balls(subject, source, latents, balls),
        moments=compare_moments(partition, source, entropy, taken),
        nearest=near,
        samples=compare_samples(
            subject, source, proposed, taken, latents, pairs, permutations, streams[2]
        ),
    )
    return replace(result, rows=rows_of(result))


def _from_neighbours(
    subject: Subject, source: Spectrum, latents: Latents, most: int, neighbours: int
) -> Nearest:
    """Estimate the entropy from the outputs of latents in cells of full rank."""
    dim = subject.domain.dim
    some = slice(0, most)
    regular = source.rank[latents.cells[some]] == dim
    return neighbour_entropy(decode(subject, latents.s[some][regular]), dim, neighbours)
