"""Watching a scheduler: what is shown of each step, in which order, and what is restored."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from approx.diffusion import Level, Schedule
from approx.diffusion.stepping import GUIDES, RECORDS, Step, watched

_LEVELS = Schedule((Level(2, 0.6, 0.8), Level(1, 0.8, 0.6), Level(0, 1, 0)), "epsilon")


class _Stepping:
    """A scheduler of two steps that returns what it is told to step with."""

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, eta: float = 0.0) -> Any:
        return (model_output + eta,)


def _ignored(step: Step) -> Tensor:
    return step.predicted


def test_guides_come_before_records_and_the_prediction_as_given_is_kept() -> None:
    scheduler, seen, after = _Stepping(), [], []

    def record(step: Step) -> Tensor:
        seen.append(step)
        return step.predicted

    def ended(step: Step, sample: Tensor) -> None:
        after.append((step.number, sample))

    x, p = torch.zeros(1, 3), torch.ones(1, 3)
    with (
        watched(scheduler, record, RECORDS, _LEVELS, ended=ended),
        watched(scheduler, lambda step: 2 * step.predicted, GUIDES),
    ):
        assert "eta" in inspect.signature(scheduler.step).parameters  # pipelines look for it
        assert scheduler.step(p, 2, x, eta=0.5)[0].tolist() == [[2.5] * 3]
    (shown,) = seen
    assert (shown.number, shown.level, shown.call) == (0, _LEVELS.levels[0], 0)
    assert shown.sample is x
    assert shown.given is p
    assert torch.equal(shown.predicted, 2 * p)
    assert [(n, z.tolist()) for n, z in after] == [(0, [[2.5] * 3])]
    assert "step" not in vars(scheduler)


def test_the_same_times_again_are_another_call() -> None:
    scheduler, calls, x = _Stepping(), [], torch.zeros(1, 3)

    def record(step: Step) -> Tensor:
        calls.append((step.call, step.number))
        return step.predicted

    with watched(scheduler, record, RECORDS, _LEVELS):
        for t in (2, 1, 2, 1, 1):
            scheduler.step(x, t, x)
    assert calls == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, None])
def test_the_step_of_the_instance_is_restored(error: Any) -> None:
    scheduler, x = _Stepping(), torch.zeros(1, 3)

    def own(model_output: Tensor, timestep: Any, sample: Tensor) -> Any:
        if error is not None:
            raise error
        return (sample,)

    scheduler.step = own  # type: ignore[method-assign]
    try:
        with watched(scheduler, _ignored, RECORDS, _LEVELS):
            scheduler.step(x, 2, x)
    except (KeyboardInterrupt, RuntimeError) as raised:
        assert isinstance(raised, error)  # noqa: PT017
    assert scheduler.step is own


def test_a_scheduler_that_never_steps_is_refused_after_what_went_wrong_before() -> None:
    scheduler, x = _Stepping(), torch.zeros(1, 3)
    text = r"Expected steps of the pipeline's _Stepping, got none: call the pipeline within"
    with pytest.raises(ValueError, match=text), watched(scheduler, _ignored, GUIDES, _LEVELS):
        pass
    with pytest.raises(RuntimeError, match="before"), watched(scheduler, _ignored, GUIDES, _LEVELS):
        raise RuntimeError("before")
    with watched(scheduler, _ignored, RECORDS, _LEVELS):
        scheduler.step(x, 2, x)
        with pytest.raises(ValueError, match=text), watched(scheduler, _ignored, GUIDES):
            pass  # the other's step is none of this one
        scheduler.step(x, 1, x)
    assert "step" not in vars(scheduler)


# steps of diffusers' schedulers that are not one after another


def _sampled(scheduler: Any, steps: int, predict: Any) -> list[Step]:
    """Return the steps of a run from noise drawn with a seed."""
    seen: list[Step] = []

    def record(step: Step) -> Tensor:
        seen.append(step)
        return step.predicted

    scheduler.set_timesteps(steps)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with watched(scheduler, record, RECORDS):
        for t in scheduler.timesteps:
            x = scheduler.step(predict(x, t), t, x).prev_sample
    return seen


@pytest.mark.parametrize(
    ("kind", "steps", "options"),
    [
        ("DDIMScheduler", 7, {"clip_sample": False}),
        ("DDIMScheduler", 10, {"clip_sample": False, "timestep_spacing": "trailing"}),
        ("PNDMScheduler", 7, {"skip_prk_steps": True}),
        ("PNDMScheduler", 7, {}),  # begins with Runge-Kutta steps
        ("PNDMScheduler", 10, {}),
    ],
)
def test_samples_are_at_the_level_of_their_step(
    kind: str, steps: int, options: dict[str, Any]
) -> None:
    scheduler = getattr(diffusers, kind)(**options)
    abar = scheduler.alphas_cumprod.double()
    point, noise = torch.tensor([0.5, -1.0, 2.0]).double(), None

    def predict(x: Tensor, t: Tensor) -> Tensor:  # of one point, all solvers are exact
        nonlocal noise
        if noise is None:
            noise = (x - abar[t].sqrt() * point) / (1 - abar[t]).sqrt()
        return noise

    seen = _sampled(scheduler, steps, predict)
    assert [s.number for s in seen] == list(range(len(scheduler.timesteps)))
    assert [s.level.time for s in seen] == scheduler.timesteps.tolist()
    assert noise is not None
    for step, t in zip(seen, scheduler.timesteps, strict=True):
        at = abar[t].sqrt() * point + (1 - abar[t]).sqrt() * noise
        torch.testing.assert_close(step.sample, at, rtol=0, atol=1e-4)
        torch.testing.assert_close(step.clean, point.expand(2, 3), rtol=0, atol=1e-4)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [6, 7])
def test_estimates_are_those_of_the_scheduler_whatever_its_times_are(
    spacing: str, steps: int
) -> None:
    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing)
    found, own = [], []

    def record(step: Step) -> Tensor:
        found.append(step.clean)
        return step.predicted

    scheduler.set_timesteps(steps)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    with watched(scheduler, record, RECORDS):
        for t in scheduler.timesteps:
            step = scheduler.step(torch.tanh(x + t / 500), t, x)
            own.append(step.pred_original_sample)
            x = step.prev_sample
    torch.testing.assert_close(torch.stack(found), torch.stack(own))
    assert len(found) == steps


@pytest.mark.parametrize("kind", ["DDPMScheduler", "EulerAncestralDiscreteScheduler"])
def test_noise_that_a_scheduler_draws_is_the_same_under_guides(kind: str) -> None:
    clipping = {"clip_sample": False} if kind == "DDPMScheduler" else {}
    scheduler = getattr(diffusers, kind)(**clipping)
    x, p = torch.randn(2, 3), torch.randn(2, 3)

    def stepped(seed: int, strength: float) -> Tensor:
        scheduler.set_timesteps(5)
        t = scheduler.timesteps[3]
        scheduler.scale_model_input(x, t)
        generator = torch.Generator().manual_seed(seed)
        with watched(scheduler, lambda step: step.predicted + strength, GUIDES):
            return scheduler.step(p, t, x, generator=generator).prev_sample

    assert not torch.allclose(stepped(1, 0), stepped(2, 0), atol=1e-3)
    moved = stepped(1, 0.1) - stepped(1, 0)
    assert float(moved.abs().min()) > 1e-3
    torch.testing.assert_close(moved, stepped(2, 0.1) - stepped(2, 0), rtol=0, atol=1e-5)
