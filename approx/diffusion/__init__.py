"""Descriptors of diffusion models: along sampling, and as a reward that steers it.

Denoisers, schedulers and pipelines go in; maps that `describe` takes, tables by step and steered
samples come out. Imports the tables, the spectra and the decoder.
"""

from approx.diffusion import maps
from approx.diffusion.schedules import Level, Schedule, diffusion_levels, schedule_of

__all__ = ["Level", "Schedule", "diffusion_levels", "maps", "schedule_of"]
