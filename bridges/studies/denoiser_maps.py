"""Maps of denoisers from latents to latents: psi along sampling, and of all steps at once."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from approx import describe
from approx.diffusion import Schedule, maps, schedule_of
from bridges.studies.digits import Floats, Table, described

ANY = torch.tensor([-1])  # the label of no class


def estimates(pipe: Any, x: Tensor, step: int, labels: Tensor, guidance: float) -> Table:
    """Return psi, nu and soft delta (N,) of the map from x_t to the estimate of x_0.

    All singular values, dense and in float64: 784 products for a picture.
    """
    schedule = schedule_of(pipe.scheduler)
    time = schedule.levels[step].time
    denoiser = maps.guided(pipe.unet, guidance, class_labels=ANY)
    map_ = maps.clean(denoiser, schedule, time, class_labels=labels)
    return described(map_, x, method="exact")


def unrolled(
    pipe: Any, noise: Tensor, labels: Tensor, guidance: float, steps: int
) -> tuple[Floats, Floats]:
    """Return psi of the map of the first steps, and the sum of psi of each (N,).

    The pipeline has its time steps. psi of a product of square maps is the sum of theirs.
    """
    whole = schedule_of(pipe.scheduler)
    schedule = Schedule(whole.levels[: steps + 1], whole.prediction, whole.clip)
    unet = copy.deepcopy(pipe.unet).double()
    denoiser = maps.guided(unet, guidance, class_labels=ANY)
    options: dict[str, Any] = {"class_labels": labels}
    exact: dict[str, Any] = {"method": "exact", "neighbourhood": None, "progress": False}
    x = noise.double()
    at_once = describe(maps.sample(denoiser, schedule, **options), x, seed=0, **exact).psi
    parts = np.zeros(len(x))
    for time in schedule.times:
        step = maps.step(denoiser, schedule, time, **options)
        parts = parts + describe(step, x, seed=0, **exact).psi
        with torch.no_grad():
            x = step(x)
    return at_once, parts
