"""Points uniform on the image: by rejection, which does without cells, and by `cpwl`."""

from __future__ import annotations

import numpy as np

import cpwl
from bridges.validation.densities.decoding import Stretches, decode
from bridges.validation.densities.result import Samples, TwoSamples
from bridges.validation.densities.two_samples import energy_test
from bridges.validation.subject import Latents, Subject
from cpwl.descriptors import Spectrum

# Fewer points tell no two distributions apart.
_FEWEST = 50
# Relabellings of the control, of which nothing is claimed.
_CONTROL = 500


def compare_samples(
    subject: Subject,
    source: Spectrum,
    proposed: Latents,
    taken: Stretches,
    uniform: Latents,
    most: int,
    permutations: int,
    rng: np.random.Generator,
) -> Samples:
    """Compare `cpwl.sample_image` with rejection sampling.

    Parameters
    ----------
    subject : Subject
        With a partition that has a cell of full rank.
    source : Spectrum
        `cpwl.spectrum(partition)`.
    proposed, taken : Latents, Stretches
        Uniform latents and what autograd's Jacobian does there. Their largest stretch stands for
        the largest of all, which nothing but the cells could tell.
    uniform : Latents
        Others, for the control.
    most, permutations : int
        Points of each sample at most, and relabellings.
    rng : numpy.random.Generator
    """
    assert subject.partition is not None
    weight = taken.volume
    kept = np.flatnonzero(rng.random(len(weight)) * weight.max() < weight)
    acceptance = len(kept) / len(weight)
    kept = kept[: min(most, len(uniform.s))]
    accepted = proposed.s[kept]
    drawn = cpwl.sample_image(subject.partition, len(kept), rng, source=source).points
    other = uniform.s[: len(kept)]
    tests: list[TwoSamples | None] = [None] * 3
    if len(kept) >= _FEWEST:
        # by the decoder, not by the exact side
        outputs = decode(subject, accepted)
        tests = [
            energy_test(decode(subject, drawn), outputs, permutations, rng),
            energy_test(drawn, accepted, permutations, rng),
            energy_test(decode(subject, other), outputs, min(permutations, _CONTROL), rng),
        ]
    return Samples(
        drawn=drawn,
        accepted=accepted,
        uniform=other,
        acceptance=acceptance,
        proposals=len(weight),
        outputs=tests[0],
        coordinates=tests[1],
        control=tests[2],
    )
