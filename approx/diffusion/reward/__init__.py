"""Rewards that raise or lower a descriptor: collect noisy latents, fit a classifier, report on it.

Any number for each latent will do in place of psi.
"""

from approx.diffusion.reward.accuracy import Report, report
from approx.diffusion.reward.classifier import ClassifierReward
from approx.diffusion.reward.gradients import ExactReward, SketchReward
from approx.diffusion.reward.noising import Collected, collect
from approx.diffusion.reward.training import fit, load

__all__ = [
    "ClassifierReward",
    "Collected",
    "ExactReward",
    "Report",
    "SketchReward",
    "collect",
    "fit",
    "load",
    "report",
]
