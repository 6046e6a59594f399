"""Noise levels and estimates of x_0, against the steps of diffusers' schedulers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from approx import DecoderError
from approx.diffusion import Level, Schedule, diffusion_levels, schedule_of

STEPS = 7
# name: scheduler, is each step of first order from a fresh start, draws noise
SCHEDULERS: dict[str, tuple[Callable[[], Any], bool, bool]] = {
    "ddim": (lambda: diffusers.DDIMScheduler(), True, False),
    "ddim v": (lambda: diffusers.DDIMScheduler(prediction_type="v_prediction"), True, False),
    "ddim x0": (lambda: diffusers.DDIMScheduler(prediction_type="sample"), True, False),
    "ddim not clipped": (
        lambda: diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False), True, False,
    ),
    "ddpm": (lambda: diffusers.DDPMScheduler(), True, True),
    "pndm": (lambda: diffusers.PNDMScheduler(skip_prk_steps=True), False, False),
    "euler": (lambda: diffusers.EulerDiscreteScheduler(), True, False),
    "euler karras": (lambda: diffusers.EulerDiscreteScheduler(use_karras_sigmas=True), True, False),
    "euler v": (
        lambda: diffusers.EulerDiscreteScheduler(prediction_type="v_prediction"), True, False,
    ),
    "euler ancestral": (lambda: diffusers.EulerAncestralDiscreteScheduler(), True, True),
    "heun": (lambda: diffusers.HeunDiscreteScheduler(), False, False),
    "lms": (lambda: diffusers.LMSDiscreteScheduler(), False, False),
    "dpm": (lambda: diffusers.DPMSolverMultistepScheduler(), True, False),
    "dpm karras": (
        lambda: diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True), True, False,
    ),
    "dpm flow": (
        lambda: diffusers.DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction"
        ),
        True, False,
    ),
    "dpm single": (lambda: diffusers.DPMSolverSinglestepScheduler(), True, False),
    "deis": (lambda: diffusers.DEISMultistepScheduler(), True, False),
    "sasolver": (lambda: diffusers.SASolverScheduler(tau_func=lambda t: 0), True, False),
    "unipc": (lambda: diffusers.UniPCMultistepScheduler(), True, False),
    "unipc v": (
        lambda: diffusers.UniPCMultistepScheduler(prediction_type="v_prediction"), True, False,
    ),
    "flow euler": (lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), True, False),
    "flow heun": (lambda: diffusers.FlowMatchHeunDiscreteScheduler(), False, False),
}  # fmt: skip


def drawn(seed: int) -> Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed))


def gap(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("name", SCHEDULERS)
def test_levels_are_those_of_the_scheduler(name: str) -> None:
    """A step from a fresh start is of first order: the scheduler's own, in float32, and ours."""
    make, every, noisy = SCHEDULERS[name]
    scheduler = make()
    scheduler.set_timesteps(STEPS)
    schedule = schedule_of(scheduler)
    assert len(schedule) == len(scheduler.timesteps)
    assert schedule.times == tuple(float(t) for t in scheduler.timesteps)
    for number in range(len(schedule) if every else 1):
        fresh = copy.deepcopy(scheduler)
        if hasattr(fresh, "set_begin_index"):
            fresh.set_begin_index(number)
        level, after = schedule.levels[number], schedule.levels[number + 1]
        x, predicted = level.norm * drawn(number), drawn(100 + number)
        t = scheduler.timesteps[number]
        if hasattr(fresh, "scale_model_input"):  # those of flow matching do not scale
            assert gap(level.scale * x, fresh.scale_model_input(x, t)) < 3e-7
        stepped = fresh.step(predicted, t, x)
        wide = (x.double(), predicted.double())
        if not noisy:
            assert gap(stepped.prev_sample, schedule.stepped(*wide, level, after)) < 3e-7
        if getattr(stepped, "pred_original_sample", None) is not None:
            assert gap(stepped.pred_original_sample, schedule.clean(*wide, level)) < 3e-7


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow_prediction"])
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_what_is_predicted_of_known_noise_gives_the_clean_latent(
    prediction: Any, alpha: float
) -> None:
    x0, noise = drawn(0).double(), drawn(1).double()
    level, after = Level(5, alpha, 0.7), Level(3, 0.5, 0.2)
    x = alpha * x0 + 0.7 * noise
    a, b = alpha / math.hypot(alpha, 0.7), 0.7 / math.hypot(alpha, 0.7)
    truth = {
        "epsilon": noise, "sample": x0, "v_prediction": a * noise - b * x0,
        "flow_prediction": noise - x0,
    }  # fmt: skip
    schedule = Schedule((level, after), prediction)
    assert gap(schedule.clean(x, truth[prediction], level), x0) < 1e-15
    expected = 0.5 * x0 + 0.2 * noise
    assert gap(schedule.stepped(x, truth[prediction], level, after), expected) < 1e-15
    # a learned variance beside it
    both = torch.cat([truth[prediction], noise], dim=1)
    assert gap(schedule.clean(x, both, level), x0) < 1e-15


def test_a_clipped_estimate_keeps_the_predicted_noise() -> None:
    schedule = Schedule((Level(5, 0.6, 0.8), Level(3, 0.8, 0.6)), "epsilon", clip=1.0)
    x, noise = torch.tensor([[6.0, 0.3]]), torch.tensor([[0.5, 0.0]])
    assert schedule.clean(x, noise, schedule.levels[0]).tolist() == [[1.0, pytest.approx(0.5)]]
    stepped = schedule.stepped(x, noise, *schedule.levels)
    assert stepped.tolist() == [[pytest.approx(0.8 + 0.3), pytest.approx(0.4)]]


def test_times_that_come_twice_are_told_apart() -> None:
    levels = (Level(9, 0, 1), Level(5, 0.6, 0.8), Level(5, 0.6, 0.8), Level(math.nan, 1, 0))
    schedule = Schedule(levels, "sample")
    assert (schedule.index(9), schedule.index(5), schedule.index(5, after=1)) == (0, 1, 2)


def refused(make: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value)


def test_bad_input_gets_one_clear_error() -> None:
    level, end = Level(5, 0.6, 0.8), Level(math.nan, 1, 0)
    schedule = Schedule((level, end), "epsilon")
    x = torch.ones(2, 3)
    odd = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction"
    )
    inverted = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    inverted.set_timesteps(3)
    thresholded = diffusers.DDIMScheduler(thresholding=True)
    thresholded.set_timesteps(3)
    # rounding: their last time is -1
    trailing = diffusers.DDIMScheduler(timestep_spacing="trailing")
    trailing.set_timesteps(61)
    for make, words in (
        (lambda: Schedule((level, end), "noise"),  # type: ignore[arg-type]
         "Expected prediction as one of epsilon, sample, v_prediction, flow_prediction, got "
         "'noise': say what the denoiser returns."),
        (lambda: Schedule((level,), "epsilon"),
         "Expected at least two levels, where a step begins and ends, got 1: give one for each "
         "step and one more."),
        (lambda: Schedule((Level(5, -1, 1), end), "epsilon"),
         "Expected finite alpha, sigma and scale of at least 0, got Level(time=5, alpha=-1, "
         "sigma=1, scale=1.0): a sample is alpha times the clean latent plus sigma times noise."),
        (lambda: schedule.index(4),
         "Expected t as one of the 1 times of the schedule (5, ...), got 4: take one of "
         "schedule.times."),
        (lambda: diffusion_levels([0.9, 0.5], [1, 2]),
         "Expected times from 0 to 1, as in training, got 2: the denoiser has seen no other."),
        (lambda: diffusion_levels([0.9, 0.5], [0.5]),  # type: ignore[list-item]
         "Expected times from 0 to 1, as in training, got 0.5"),
        (lambda: schedule_of(diffusers.LCMScheduler()), 
         "got LCMScheduler: give pipe.scheduler, or the noise levels as "
         "an approx.diffusion.Schedule."),
        (lambda: schedule_of(odd), "Expected a DPMSolverMultistepScheduler with time steps, got "
         "none: call its set_timesteps(number of steps) first."),
        (lambda: schedule_of(inverted), "Expected sigmas that fall from noise to data, got "
         "invert_sigmas=True: give the noise levels as an approx.diffusion.Schedule."),
        (lambda: schedule_of(thresholded), "Expected a DDIMScheduler without thresholding, got "
         "thresholding=True: quantiles of each estimate of x_0 bound it. Set thresholding=False"),
        (lambda: schedule_of(trailing), "Expected times from 0 to 999, as in training, got -1"),
    ):  # fmt: skip
        refused(make, ValueError, words)
    pure = Level(9, 0, 1)
    for make, words in (
        (lambda: schedule.clean(x, x[:, :2], level),
         "Expected a prediction of shape (2, 3), or with twice the channels, got (2, 2): the "
         "denoiser returns what the scheduler's step takes."),
        (lambda: schedule.clean(x, x, pure),
         "Expected some signal at time 9 to tell x_0 from predicted noise, got alpha = 0: begin "
         "at a later step."),
        (lambda: schedule.stepped(x, x, Level(0, 1, 0), end),
         "Expected noise at time 0, where a step begins, got sigma = 0: the samples are clean "
         "there."),
    ):  # fmt: skip
        refused(make, DecoderError, words)
