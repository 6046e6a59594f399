"""Local complexity delta: knots that meet a small neighbourhood of each latent.

A decoder and latents go in; `Knots` come out: counts, densities and how many units are undecided.
Imports `approx.decoder` and `approx.devices`.
"""

from approx.complexity.knot_counts import Knots, knots, neighbourhood

__all__ = ["Knots", "knots", "neighbourhood"]
