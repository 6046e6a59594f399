"""Descriptors of diffusion models: along sampling, and as a reward that steers it.

Denoisers, schedulers and pipelines go in; maps that `describe` takes, tables by step and steered
samples come out. Imports the tables, the spectra and the decoder.
"""

from approx.diffusion import maps as maps
from approx.diffusion import reward as reward
from approx.diffusion.guidance import Guided, GuidedStep, guide
from approx.diffusion.recording import Run, record
from approx.diffusion.reward import ClassifierReward, ExactReward, SketchReward
from approx.diffusion.schedules import Level, Schedule, diffusion_levels, schedule_of

__all__ = [
    "ClassifierReward",
    "ExactReward",
    "Guided",
    "GuidedStep",
    "Level",
    "Run",
    "Schedule",
    "SketchReward",
    "diffusion_levels",
    "guide",
    "record",
    "schedule_of",
]
