"""Guidance: what it adds to predictions of every kind, and what it leaves alone."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.pipelines import CASES, PROMPTS, STEPS, PipelineCase
from torch import Tensor, nn

from approx.diffusion import (
    ClassifierReward,
    ExactReward,
    Level,
    Schedule,
    diffusion_levels,
    guide,
    record,
    reward,
    schedule_of,
)
from approx.diffusion.guidance import leverage
from approx.diffusion.schedules import Prediction
from bridges.networks.diffusion import mnist_decoder, mnist_denoiser

diffusers = pytest.importorskip("diffusers")

_SLOPE = torch.tensor([1.0, -2.0, 0.5])


def _linear(z: Tensor) -> Tensor:
    return z @ _SLOPE.to(z)


class _Stepping:
    """A scheduler that keeps what it is told to step with."""

    def __init__(self) -> None:
        self.timesteps = torch.tensor([2, 1])
        self.given: list[Tensor] = []

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
        self.given.append(model_output)
        return sample


_NEAR, _FAR = Level(2, 0.8, 0.6), Level(1, 0.3, 1.2)


def _stepped(
    level: Level, prediction: Prediction, x: Tensor, predicted: Tensor, score: Any, **options: Any
) -> tuple[Tensor, Any]:
    """Return the prediction that a scheduler of one level steps with, and what was recorded."""
    scheduler = _Stepping()
    schedule = Schedule((level._replace(time=2), level._replace(time=1)), prediction)
    with guide(SimpleNamespace(scheduler=scheduler), score, schedule=schedule, **options) as run:
        scheduler.step(predicted, 2, x)
    assert "step" not in vars(scheduler)
    return scheduler.given[0], run


def _written_as(prediction: Prediction, noise: Tensor, clean: Tensor, level: Level) -> Tensor:
    a, b = level.alpha / level.norm, level.sigma / level.norm
    return {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": a * noise - b * clean,
        "flow_prediction": noise - clean,
    }[prediction]


_KINDS: tuple[Prediction, ...] = ("epsilon", "sample", "v_prediction", "flow_prediction")


@pytest.mark.parametrize("level", [_NEAR, _FAR, Level(2, 1.0, 0.7), Level(2, 0.9, 0.1)])
@pytest.mark.parametrize("kind", _KINDS)
def test_a_gradient_of_samples_moves_all_predictions_as_that_of_the_noise(
    kind: Prediction, level: Level
) -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise, g = (torch.randn(3, generator=generator).double() for _ in range(3))
    rho = 0.7
    x = level.alpha * clean + level.sigma * noise
    pushed = noise - rho * level.sigma * g
    # the same sample with this noise has another clean latent
    there = _written_as(kind, pushed, (x - level.sigma * pushed) / level.alpha, level)
    here = _written_as(kind, noise, clean, level)
    bound = 1.0 if kind == "epsilon" else min(1.0, level.alpha / level.sigma)
    found = rho * leverage(level, kind) * g
    torch.testing.assert_close(found, bound * (there - here))


@pytest.mark.parametrize("kind", _KINDS)
def test_the_change_is_bounded_at_pure_noise(kind: Prediction) -> None:
    levels = [Level(0, 1 - s, s) for s in (0.9, 0.999, 1 - 1e-9, 1.0)]
    assert all(abs(leverage(level, kind)) <= 1 + 1e-12 for level in levels)


@pytest.mark.parametrize(
    ("kind", "slope"),
    [
        ("epsilon", 1 / 0.8),
        ("flow_prediction", 1 / 1.4),
        ("v_prediction", 0.8),
        ("sample", 0.8),
    ],
)
def test_gradients_are_taken_at_the_estimate_with_the_prediction_held_fixed(
    kind: Prediction, slope: float
) -> None:
    x, predicted = torch.randn(2, 3), torch.randn(2, 3)
    found, run = _stepped(_NEAR, kind, x, predicted, _linear, rho=0.5)
    expected = predicted + 0.5 * leverage(_NEAR, kind) * slope * _SLOPE
    torch.testing.assert_close(found, expected)
    (step,) = run.steps
    assert (step.number, step.time, step.through) == (0, 2, "clean")
    size = float(slope * _SLOPE.norm())
    np.testing.assert_allclose(step.gradient, size, rtol=1e-6)
    change = (expected - predicted).norm(dim=1) / predicted.norm(dim=1)
    np.testing.assert_allclose(step.change, change, rtol=1e-5)
    cosine = torch.cosine_similarity(expected - predicted, predicted)
    np.testing.assert_allclose(step.cosine, cosine, rtol=1e-4)
    schedule = Schedule((_NEAR, _NEAR), kind)
    np.testing.assert_allclose(step.reward, _linear(schedule.clean(x, predicted, _NEAR)), rtol=1e-5)
    assert not step.clipped.any()


def test_through_the_denoiser_the_gradient_is_that_of_the_estimate() -> None:
    matrix = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    told = []

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        told.append(t)
        return x @ matrix.T

    level = Level(2, 1.0, 0.75, 1 / 1.25)  # Euler's coordinates
    x = torch.randn(2, 3)
    options = {"rho": 0.5, "through": "denoiser", "denoiser": denoiser}
    predicted = denoiser(level.scale * x, torch.zeros(2))
    found, run = _stepped(level, "epsilon", x, predicted, _linear, **options)
    g = (torch.eye(3) - 0.75 * matrix / 1.25).T @ _SLOPE
    torch.testing.assert_close(found, predicted - 0.5 * 0.75 * g)
    assert told[1].tolist() == [2, 2]
    assert run.steps[0].through == "denoiser"


def test_clip_bounds_the_change_of_each_sample_by_its_prediction() -> None:
    x, predicted = torch.randn(2, 3), torch.tensor([[100.0, 0, 0], [0, 0.1, 0]])
    free, _ = _stepped(_NEAR, "epsilon", x, predicted, _linear)
    found, run = _stepped(_NEAR, "epsilon", x, predicted, _linear, clip=0.3)
    assert torch.equal(found[0], free[0])
    change = found[1] - predicted[1]
    assert float(change.norm()) == pytest.approx(0.03, rel=1e-4)
    whole = free[1] - predicted[1]
    torch.testing.assert_close(change / change.norm(), whole / whole.norm(), rtol=0, atol=1e-5)
    assert run.steps[0].clipped.tolist() == [False, True]
    assert run.steps[0].change[1] == pytest.approx(0.3)
    columns = run.columns()
    assert columns["clipped"].tolist() == [0.5]
    assert columns["through"].tolist() == ["clean"]
    assert set(columns) == {
        "number", "time", "through", "reward", "gradient", "change", "clipped", "cosine",
    }  # fmt: skip


def test_nothing_is_computed_at_rho_zero() -> None:
    def never(z: Tensor) -> Tensor:
        raise AssertionError

    predicted = torch.randn(2, 3)
    found, run = _stepped(_NEAR, "epsilon", torch.randn(2, 3), predicted, never, rho=0)
    assert found is predicted
    assert run.steps == []


def test_a_learned_variance_is_left_alone() -> None:
    x, predicted = torch.randn(2, 3, 4), torch.randn(2, 6, 4)

    def total(z: Tensor) -> Tensor:
        return z.sum((1, 2))

    found, _ = _stepped(_NEAR, "epsilon", x, predicted, total)
    assert torch.equal(found[:, 3:], predicted[:, 3:])
    torch.testing.assert_close(found[:, :3], predicted[:, :3] - 0.6 / 0.8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_are_float32_where_the_pipeline_is_not(dtype: torch.dtype) -> None:
    seen = []

    def watching(z: Tensor) -> Tensor:
        seen.append(z.dtype)
        return 1e6 * _linear(z) * 1e-6

    x, predicted = torch.randn(2, 3).to(dtype), torch.randn(2, 3).to(dtype)
    found, _ = _stepped(_NEAR, "epsilon", x, predicted, watching)
    assert seen == [torch.float32]
    assert found.dtype == dtype
    wide, _ = _stepped(_NEAR, "epsilon", x.float(), predicted.float(), _linear)
    torch.testing.assert_close(found, wide.to(dtype))
    with pytest.raises(ValueError, match=r"prediction that torch.float16 can hold, .* step 0"):
        _stepped(_NEAR, "epsilon", x.half(), predicted.half(), _linear, rho=1e6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_pipeline_may_run_without_gradients(mode: Any) -> None:
    with mode():
        x, predicted = torch.zeros(2, 3), torch.zeros(2, 3)
        found, _ = _stepped(_NEAR, "epsilon", x, predicted, _linear)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(found.clone(), (-0.6 / 0.8 * _SLOPE).expand(2, 3))


def test_rewards_that_do_not_fit_are_refused_with_their_step() -> None:
    x = torch.randn(2, 3)
    for score, text in (
        (lambda z: z.sum(), r"a reward of shape \(2,\), .* got \(\) in step 0"),
        (lambda z: 1.0, r"a reward of shape \(2,\), .* got float in step 0"),
        (lambda z: z.detach().sum(1), "depends on its latents, got no gradient in step 0"),
        (lambda z: (0 * z).sqrt().sum(1), r"got NaN or infinity in step 0 \(time 2\)"),
        (ExactReward(nn.Linear(5, 6)), r"runs on latents of shape \(B, 3\), [^$]* in step 0"),
    ):
        with pytest.raises(ValueError, match=text):
            _stepped(_NEAR, "epsilon", x, x, score)


def test_options_that_do_not_fit_are_refused_before_anything_runs() -> None:
    scheduler = _Stepping()
    pipe = SimpleNamespace(scheduler=scheduler)
    classifier = _classifier()
    for options, text in (
        ({"rho": math.nan}, "a finite rho, got nan"),
        ({"clip": 0}, "clip above 0, got 0"),
        ({"through": "noise"}, "through as 'clean' or 'denoiser', got 'noise'"),
        ({"through": "denoiser"}, "denoiser= with through='denoiser' and there alone"),
        ({"denoiser": _linear}, "denoiser= with through='denoiser' and there alone"),
        ({"reward": classifier, "through": "denoiser", "denoiser": _linear},
         "a reward of clean latents with through='denoiser', got a ClassifierReward"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text), guide(pipe, **{"reward": _linear} | options):
            pass
    with pytest.raises(ValueError, match=r"whose \.scheduler steps"), guide(nn.ReLU(), _linear):
        pass
    assert "step" not in vars(scheduler)


def _classifier() -> ClassifierReward:
    schedule = Schedule(diffusion_levels([0.9, 0.5, 0.1], [2, 1, 0]), "epsilon")
    z = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    found = reward.collect(z, z @ _SLOPE, schedule, bins=2, times=3, generator=0)
    return reward.fit(found, epochs=1, width=8, progress=False)


def test_a_classifier_sees_the_sample_and_its_level() -> None:
    classifier = _classifier()
    x, predicted = torch.randn(2, 3), torch.randn(2, 3)
    found, run = _stepped(_NEAR, "epsilon", x, predicted, classifier, rho=2)
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(classifier(leaf, _NEAR).sum(), leaf)
    torch.testing.assert_close(found, predicted - 2 * 0.6 * g)
    assert run.steps[0].through == "sample"
    assert all(p.grad is None for p in classifier.network.parameters())
    with pytest.raises(ValueError, match=r"latents of shape \(B, 3\), got \(2, 4\)"):
        _stepped(_NEAR, "epsilon", torch.ones(2, 4), torch.ones(2, 4), classifier)
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    pipe = SimpleNamespace(scheduler=scheduler)
    with (
        pytest.raises(ValueError, match=r"a time from 0 to 2, as in .* training, got 900"),
        guide(pipe, classifier),
    ):
        scheduler.step(x, scheduler.timesteps[0], x)
    assert "step" not in vars(scheduler)


# schedulers


def _schedulers() -> dict[str, Any]:
    options = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return {
        "ddim": diffusers.DDIMScheduler(**options, clip_sample=False),
        "ddim-v": diffusers.DDIMScheduler(
            **options, clip_sample=False, prediction_type="v_prediction"
        ),
        "euler": diffusers.EulerDiscreteScheduler(**options),
        "heun": diffusers.HeunDiscreteScheduler(**options),
        "dpm": diffusers.DPMSolverMultistepScheduler(**options),
        "dpm-3": diffusers.DPMSolverMultistepScheduler(**options, solver_order=3),
        "unipc": diffusers.UniPCMultistepScheduler(**options),
        "unipc-flow": diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        "flow": diffusers.FlowMatchEulerDiscreteScheduler(),
    }


def _predict(scheduler: Any, x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(scheduler.scale_model_input(x, t) + t / 500)


def _loop(scheduler: Any, change: Any = None) -> Tensor:
    if hasattr(scheduler, "scale_model_input"):

        def given(x: Tensor, t: Tensor) -> Tensor:
            return scheduler.scale_model_input(x, t)
    else:

        def given(x: Tensor, t: Tensor) -> Tensor:
            return x

    scheduler.set_timesteps(6)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    for number, t in enumerate(scheduler.timesteps):
        predicted = torch.tanh(given(x, t) + t / 500)
        if change is not None:
            predicted = change(number, predicted, x)
        x = scheduler.step(predicted, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("name", _schedulers())
def test_guided_sampling_is_a_loop_written_by_hand(name: str) -> None:
    scheduler = _schedulers()[name]
    rho = 0.3
    plain = _loop(_schedulers()[name])
    with guide(SimpleNamespace(scheduler=scheduler), _curved, rho=rho) as run:
        found = _loop(scheduler)
    assert len(run.steps) == len(scheduler.timesteps)

    def by_hand(number: int, predicted: Tensor, x: Tensor) -> Tensor:
        level = schedule_of(scheduler).levels[number]
        kind = schedule_of(scheduler).prediction
        a, s = level.alpha, level.sigma
        n = math.hypot(a, s)
        near = min(1.0, s / a) if a else 1.0
        # estimate, its derivative by x, and the factor of the gradient
        clean, slope, factor = {
            "epsilon": lambda: ((x - s * predicted) / a, 1 / a, -s),
            "v_prediction": lambda: (a * x / n**2 - s * predicted / n, a / n**2, -near * n),
            "flow_prediction": lambda: (x - s * predicted, 1.0, -near),
        }[kind]()
        return predicted + rho * factor * slope * (2 * clean.tanh() * (1 - clean.tanh() ** 2))

    hand = _loop(_schedulers()[name], by_hand)
    torch.testing.assert_close(found, hand, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, plain, rtol=1e-2)
    with guide(SimpleNamespace(scheduler=scheduler), _curved, rho=0):
        assert torch.equal(_loop(scheduler), plain)
    assert torch.equal(_loop(scheduler), plain)  # it is the old one again


def _curved(z: Tensor) -> Tensor:
    return z.tanh().square().sum(1)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_in_any_step_restores_the_scheduler_and_keeps_the_record(error: Any) -> None:
    scheduler = _schedulers()["dpm"]
    calls = 0

    def stopping(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise error
        return _curved(z)

    with pytest.raises(error), guide(SimpleNamespace(scheduler=scheduler), stopping) as run:
        _loop(scheduler)
    assert "step" not in vars(scheduler)
    assert [step.number for step in run.steps] == [0, 1]


def test_gaussians_are_shifted_as_the_tilted_density_asks() -> None:
    # data N(0, 1), tilted by exp(rho 2 x_0): N(2 rho, 1). The ideal denoiser is known, and through
    # it the gradient is that of the logarithm of the tilt's mean
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(250)
    schedule = schedule_of(scheduler)

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        return schedule.levels[schedule.index(float(t[0]))].sigma * x

    start = torch.randn(64, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def sampled(rho: float) -> Tensor:
        x = start
        options: dict[str, Any] = {"through": "denoiser", "denoiser": denoiser}
        with guide(SimpleNamespace(scheduler=scheduler), lambda z: 2 * z[:, 0], rho, **options):
            for t in scheduler.timesteps:
                x = scheduler.step(denoiser(x, t[None]), t, x, return_dict=False)[0]
        return x

    for rho in (0.5, -1.0):
        shift = sampled(rho) - sampled(0)
        torch.testing.assert_close(shift, torch.full_like(shift, 2 * rho), rtol=0.01, atol=0)


# pipelines


def _pictures(case: PipelineCase, dtype: torch.dtype, pipe: Any) -> np.ndarray:
    arguments = case.arguments(dtype)
    made = pipe(generator=torch.Generator().manual_seed(0), **arguments).images
    return made.float().numpy() if isinstance(made, Tensor) else np.asarray(made)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_pipeline_is_guided_and_is_the_old_one_afterwards(case: PipelineCase) -> None:
    pipe = case.build()
    plain = _pictures(case, torch.float32, pipe)

    rewarded = []

    def bright(z: Tensor) -> Tensor:
        assert z.shape == (PROMPTS, *case.shape)
        rewarded.append(z.detach())
        return z.flatten(1).sum(1)

    with guide(pipe, bright, rho=0):
        assert np.array_equal(_pictures(case, torch.float32, pipe), plain)
    assert not rewarded
    # what is recorded is compared with loops by hand in test_recording
    recording = record(
        pipe, at="clean", decoder=torch.tanh, k=2, method="paper", neighbourhood=None,
        progress=False,
    )  # fmt: skip
    with guide(pipe, bright, 1e-30), recording as seen:
        _pictures(case, torch.float32, pipe)
    torch.testing.assert_close(torch.stack(rewarded), torch.stack([s.latents for s in seen.seen]))
    raised = []
    for rho in (-0.5, 0.5):
        with guide(pipe, bright, rho, clip=0.5) as run:
            found = _pictures(case, torch.float32, pipe)
        assert [step.number for step in run.steps] == list(range(STEPS))
        assert not np.array_equal(found, plain)
        assert all(step.cosine.shape == (PROMPTS,) for step in run.steps)
        assert np.isfinite(run.columns()["cosine"]).all()
        raised.append(run.steps[-1].reward)
    assert (raised[0] < raised[1]).all()
    assert "step" not in vars(pipe.scheduler)
    assert np.array_equal(_pictures(case, torch.float32, pipe), plain)


def test_the_gradient_of_a_decoder_passes_its_scaling_and_a_pipeline_in_half_precision() -> None:
    case = next(c for c in CASES if c.name == "sd-dpm")
    pipe = case.build(torch.bfloat16)
    scaling = pipe.vae.config.scaling_factor

    seen = []

    def watching(z: Tensor) -> Tensor:
        seen.append(z.dtype)
        return z.flatten(1).sum(1) * scaling

    found = []
    plain = {"codes": lambda z: z}
    for score, options in ((watching, {}), (lambda z: z.flatten(1).sum(1), plain)):
        with guide(pipe, score, 0.1, **options):
            found.append(_pictures(case, torch.bfloat16, pipe))
    assert set(seen) == {torch.float32}
    np.testing.assert_allclose(found[0], found[1], atol=0.02)


def test_rewards_of_latents_that_are_not_decoded_are_refused() -> None:
    scheduler, decoded = _Stepping(), []
    pipe = SimpleNamespace(scheduler=scheduler, vae=SimpleNamespace(decode=decoded.append))
    schedule = Schedule((_NEAR, _NEAR._replace(time=1)), "epsilon")
    x = torch.ones(1, 3)

    @torch.no_grad()  # as pipelines run
    def sampled(**options: Any) -> None:
        with guide(pipe, _linear, schedule=schedule, **options):
            pipe.vae.decode(5 * x)  # a preview
            scheduler.step(x, 2, x)
            pipe.vae.decode(3 * x)

    with pytest.raises(ValueError, match="to decode the sample behind its last step, got other"):
        sampled()
    sampled(rho=0)
    sampled(codes=lambda z: 3 * z)
    pipe.vae.config = SimpleNamespace(scaling_factor=1 / 3)
    sampled()
    assert len(decoded) == 8


# the pretrained pair


def test_psi_of_digits_rises_and_falls_with_the_sign_of_rho() -> None:
    torch.set_num_threads(1)
    decoder, denoiser = mnist_decoder(), mnist_denoiser()
    exact = ExactReward(decoder)
    classes = torch.eye(10)[torch.arange(16) % 10]
    start = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()

    def psi(rho: float) -> Tensor:
        scheduler.set_timesteps(6)
        z = start
        with torch.no_grad():
            for part, strength in ((slice(0, 4), 0.0), (slice(4, 6), rho)):
                pipe = SimpleNamespace(scheduler=scheduler)
                with guide(pipe, exact, strength, clip=0.2):
                    for t in scheduler.timesteps[part]:
                        # theirs runs from noise at 0 to data at 1
                        share = torch.full((16,), 1 - float(t) / 1000)
                        free = denoiser(z, share, torch.zeros_like(classes))
                        velocity = free + 2 * (denoiser(z, share, classes) - free)
                        z = scheduler.step(-velocity, t, z, return_dict=False)[0]
            return exact(z)

    low, plain, high = psi(-1), psi(0), psi(1)
    for gap in (high - plain, plain - low):  # paired by seed, in standard errors
        assert float(gap.mean()) > 2 * float(gap.std()) / 4
