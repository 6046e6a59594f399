"""Samples of a generator by how much it stretches: uniform on its image, or tempered.

A generator and a prior of its latents go in; a pool of latents is described, weighed by psi and
resampled. Imports the tables and the decoder.
"""

from approx.sampling.manifold import Sample, magnet, polarity
from approx.sampling.pools import Pool, PoolError, measure

__all__ = ["Pool", "PoolError", "Sample", "magnet", "measure", "polarity"]
