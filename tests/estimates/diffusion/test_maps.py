"""Maps of diffusion models: precision, noise, models of diffusers, refusals."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from support.denoisers import SIZE, STEPS, Small, gap, jacobians, noise, small, timed
from support.pipelines import CASES
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import approx
from approx import DecoderError, JacobianOperator, describe, knots
from approx.decoder import Bound
from approx.diffusion import Level, Schedule, maps, schedule_of


def dense(of: Bound, z: Tensor, **options: Any) -> Tensor:
    with JacobianOperator(of, z, **options) as J:
        return J.dense()


class Holder:
    """A denoiser that is the method of an object around a module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def predict(self, x: Tensor, t: Tensor, **condition: Any) -> Any:
        return self.module(x, t, **condition)


UNCLIPPED: dict[str, Callable[[], Any]] = {
    "ddim": lambda: timed(diffusers.DDIMScheduler, clip_sample=False),
    "euler": lambda: timed(diffusers.EulerDiscreteScheduler),
}
WAYS: dict[str, Callable[[Small], Any]] = {
    "module": lambda module: module,
    "method": lambda module: Holder(module).predict,
    "closure": lambda module: lambda x, t, **condition: module(x, t, **condition),
    "guided": lambda module: maps.guided(module, 2.0, y=torch.zeros(1)),
    "guided method": lambda module: maps.guided(Holder(module).predict, 2.0, y=torch.zeros(1)),
}


@pytest.mark.parametrize(
    ("solver", "way"), [*(("ddim", way) for way in WAYS), ("euler", "guided method")]
)
def test_float64_is_float64_throughout(solver: str, way: str) -> None:
    scheduler, y = UNCLIPPED[solver](), torch.tensor([0.5, -1.0])
    t, schedule = scheduler.timesteps[1], schedule_of(scheduler)

    def made(module: Small, decoder: nn.Module) -> list[Bound]:
        denoiser = WAYS[way](module)
        return [
            maps.clean(denoiser, scheduler, t, y=y),
            maps.step(denoiser, scheduler, t, y=y),
            maps.sample(denoiser, scheduler, y=y),
            maps.decoded(maps.sample(denoiser, schedule, y=y), decoder),
        ]

    z = noise().float() * schedule.levels[0].norm
    module, decoder = small(torch.float32), nn.Linear(SIZE, 4)
    oracles = made(copy.deepcopy(module).double(), copy.deepcopy(decoder).double())
    for of, oracle in zip(made(module, decoder), oracles, strict=True):
        expected = torch.cat(
            [jacobians(oracle.at(slice(i, i + 1)), z[i : i + 1].double()) for i in range(len(z))]
        )
        Small.seen.clear()
        got = dense(of, z, dtype=torch.float64, check=False)
        assert Small.seen <= {torch.float64, torch.int64}
        assert gap(got, expected) < 1e-13
        assert 1e-10 < gap(dense(of, z), expected) < 1e-4
        assert {p.dtype for p in module.parameters()} == {torch.float32}


@pytest.mark.parametrize("way", ["linear", "of predictions"])
def test_guidance(way: str) -> None:
    module, schedule, z = small(), schedule_of(timed(diffusers.DDIMScheduler)), noise()
    t, y = schedule.times[2], torch.tensor([0.5, -1.0])
    level = schedule.levels[2]

    def by_hand(scale: float, x: Tensor) -> Tensor:
        time = torch.full((len(x),), t)
        free, told = (module(x, time, v) for v in (torch.zeros(2), y))
        said = free + scale * (told - free)
        return ((x - level.sigma * said) / level.alpha).clamp(-1, 1)

    for scale in (0.0, 1.0, 3.5):
        guided = maps.guided(module, scale, y=torch.zeros(1))
        assert gap(maps.clean(guided, schedule, t, y=y)(z), by_hand(scale, z)) < 1e-14
    none = maps.guided(module, 1.0)
    assert gap(maps.clean(none, schedule, t, y=y)(z), by_hand(1.0, z)) < 1e-14


DRAWING: dict[str, tuple[Callable[[], Any], float]] = {
    "ddpm": (lambda: timed(diffusers.DDPMScheduler, clip_sample=False), 0.0),
    "ddim eta": (lambda: timed(diffusers.DDIMScheduler, clip_sample=False), 0.7),
    "euler ancestral": (lambda: timed(diffusers.EulerAncestralDiscreteScheduler), 0.0),
    "sde": (
        lambda: timed(
            diffusers.DPMSolverMultistepScheduler,
            algorithm_type="sde-dpmsolver++",
            solver_order=1,
        ),
        0.0,
    ),
    "sasolver": (lambda: timed(diffusers.SASolverScheduler), 0.0),
    "flow": (
        lambda: timed(diffusers.FlowMatchEulerDiscreteScheduler, stochastic_sampling=True),
        0.0,
    ),
}


@pytest.mark.parametrize("name", DRAWING)
def test_noise_is_held(name: str) -> None:
    make, eta = DRAWING[name]
    denoiser, scheduler = small(), make()
    times = schedule_of(scheduler).times
    of = maps.sample(denoiser, scheduler, eta=eta)
    z = noise() * schedule_of(scheduler).levels[0].norm
    before = torch.get_rng_state()
    once = of(z)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(5)
    # in each call, in any batch, in any dtype
    assert torch.equal(once, of(z))
    assert gap(of(z[1:2]), once[1:2]) < 1e-14
    assert gap(maps.sample(small(torch.float32), scheduler, eta=eta)(z.float()), once) < 1e-5
    other = maps.sample(denoiser, scheduler, eta=eta, seed=1)
    assert gap(other(z), once) > 1e-3
    # it passes the checks
    assert gap(dense(of, z), jacobians(of, z)) < 1e-12
    if name != "sasolver":  # of single steps the same noise
        x = z
        for t in times:
            x = maps.step(denoiser, scheduler, t, eta=eta)(x)
        assert gap(x, once) < 1e-13


def test_held_noise_is_normal_and_another_at_each_step() -> None:
    scheduler = timed(diffusers.DDIMScheduler, clip_sample=False)
    times, count = scheduler.timesteps[:3], 40_000
    zero = torch.zeros(2, count, dtype=torch.float64)
    drawn = []
    for t in times:
        after = maps.step(lambda x, t: 0 * x, scheduler, t, eta=1.0)(zero)
        # the spread that the scheduler gives to noise of its own
        own = copy.deepcopy(scheduler).step(zero, t, zero, eta=1.0, variance_noise=zero + 1)
        assert torch.equal(after[0], after[1])
        drawn.append(after[0] / own.prev_sample[0])
    values = torch.stack(drawn)
    assert values.mean(1).abs().max() < 4 / math.sqrt(count)
    assert (values.var(1) - 1).abs().max() < 4 * math.sqrt(2 / count)
    assert (torch.corrcoef(values) - torch.eye(3)).abs().max() < 4 / math.sqrt(count)


def test_the_callers_scheduler_is_left_alone() -> None:
    """A scheduler whose `step` another wraps is stepped by its class's."""
    scheduler = timed(diffusers.UniPCMultistepScheduler)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError

    scheduler.step = refuse
    before = {k: copy.deepcopy(v) for k, v in vars(scheduler).items()}
    of = maps.sample(small(), scheduler)
    once = of(noise())
    scheduler.set_timesteps(3)  # nor does the map follow it
    assert torch.equal(of(noise()), once)
    scheduler.set_timesteps(STEPS)
    for key, value in vars(scheduler).items():
        same = (
            torch.equal(value, before[key]) if isinstance(value, Tensor) else value == before[key]
        )
        assert same, key


CONDITIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "sd": lambda n: {"encoder_hidden_states": noise(n, 48).reshape(n, 3, 16)},
    "pixart": lambda n: {
        "encoder_hidden_states": noise(n, 48).reshape(n, 3, 16),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    },
    "dit": lambda n: {"class_labels": torch.tensor([3, 900, 5])[:n]},
    "sd3": lambda n: {
        "encoder_hidden_states": noise(n, 48).reshape(n, 3, 16),
        "pooled_projections": noise(n, 8),
    },
    "ddpm": lambda n: {},
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_models_of_diffusers(name: str) -> None:
    """Against jacrev of the model itself in float64, a latent at a time with its condition."""
    case = next(c for c in CASES if c.name.startswith(f"{name}-"))
    pipe, wide = case.build(), case.build(torch.float64)
    for p in (pipe, wide):
        p.scheduler.set_timesteps(STEPS)
    number, count = 3, 2
    t, given = pipe.scheduler.timesteps[number], CONDITIONS[name](count)
    level = schedule_of(pipe.scheduler).levels[number]
    clip = getattr(pipe.scheduler.config, "clip_sample", False)
    z = noise(count, math.prod(case.shape)).reshape(count, *case.shape).float()

    def by_hand(x: Tensor, i: int) -> Tensor:
        own = {k: v[i : i + 1] if isinstance(v, Tensor) else v for k, v in given.items()}
        said = getattr(wide, case.denoiser)(x[None], timestep=t[None], **own).sample[0]
        said = said[: len(x)]
        if name == "sd3":
            return x - level.sigma * said
        x0 = (x - level.sigma * said) / level.alpha
        return x0.clamp(-1, 1) if clip else x0

    with sdpa_kernel(SDPBackend.MATH):  # others have no rule for vmap
        rows = [
            torch.func.jacrev(lambda x, i=i: by_hand(x, i))(z[i].double()) for i in range(count)
        ]
    J = torch.stack(rows).reshape(count, z[0].numel(), z[0].numel())
    of = maps.clean(getattr(pipe, case.denoiser), pipe.scheduler, t, **given)
    k = 8 if clip else z[0].numel()  # where it is clipped J has no full rank
    table = describe(of, z, k=k, method="exact", neighbourhood=(2, 1e-3), progress=False)
    psi = torch.linalg.svdvals(J)[:, :k].log().sum(1).numpy()
    # the embedding of the time is of float32 in all of them
    assert np.abs(table.psi - psi).max() < 1e-5
    assert np.isfinite(table.delta).all()
    if hasattr(pipe, "vae"):
        factor = pipe.vae.config.scaling_factor
        picture = maps.decoded(of, lambda x: pipe.vae.decode(x / factor))
        expected = pipe.vae.decode(of(z) / factor).sample
        assert gap(picture(z).sample, expected) == 0


def test_knots_and_fields_of_maps() -> None:
    """Of one layer of ReLU: its hyperplanes that meet a neighbourhood, by their distances."""
    denoiser = small(torch.float32, act=torch.relu)
    schedule = schedule_of(timed(diffusers.DDIMScheduler, clip_sample=False))
    of, z = maps.clean(denoiser, schedule, schedule.times[3]), noise(3).float()
    found = knots(of, z, radius=0.3, directions=torch.eye(SIZE))
    told = torch.tensor([schedule.times[3] / 1000, 0.0]).expand(len(z), 2)
    entering = denoiser.first(torch.cat([z, told], dim=1))
    reach = 0.3 * denoiser.first.weight[:, :SIZE].abs().amax(1)
    met = (entering.abs() < reach).sum(1)
    assert found.count.tolist() == met.tolist()
    assert 0 < int(met.sum()) < met.numel() * len(reach)
    field = approx.field(of, z, 4, method="exact", neighbourhood=None, progress=False)
    assert field.psi.shape[0] > 1
    one = field.origin.values + [field.u.values[1], field.v.values[1]] @ field.basis.values
    at = torch.as_tensor(one, dtype=torch.float32)[None]
    psi = torch.linalg.slogdet(jacobians(of, at).double()).logabsdet
    assert gap(field.psi.values[1, 1], psi[0]) < 1e-5


def test_bad_input_gets_one_clear_error() -> None:
    module, ddim = small(), timed(diffusers.DDIMScheduler)
    schedule, z = schedule_of(ddim), noise()
    euler, lms = timed(diffusers.EulerDiscreteScheduler), timed(diffusers.LMSDiscreteScheduler)
    pndm = timed(diffusers.PNDMScheduler, skip_prk_steps=True)
    stepped = timed(diffusers.UniPCMultistepScheduler)
    stepped.step(z, stepped.timesteps[0], z)
    counted = timed(diffusers.PNDMScheduler, skip_prk_steps=True)
    counted.step(z, counted.timesteps[0], z)
    stated = "Expected a {} before its first step, got one that has stepped: call its "
    ordered = "Expected all steps of a {}, which takes its order from their number, got some: "
    calls: dict[str, Callable[[], Any]] = {
        "Expected t as one of the 5 times of the schedule (800, 600, 400, 200, 0, ...), got "
        "1000: take one of schedule.times.": lambda: maps.clean(module, ddim, 1000),
        "got 7: take one of schedule.times.": lambda: maps.sample(module, schedule, 7),
        "got 3: take one of schedule.times.": lambda: maps.step(module, euler, 3),
        "Expected arguments that the decoder takes beside the latents, got z: got an unexpected "
        "keyword argument 'z'": lambda: maps.clean(module, ddim, 0, z=z),
        "beside the latents, got w": lambda: maps.guided(module, 2.0, w=z),
        stated.format("UniPCMultistepScheduler"): lambda: maps.sample(module, stepped),
        stated.format("PNDMScheduler"): lambda: maps.sample(module, counted),
        ordered.format("LMSDiscreteScheduler"): lambda: maps.step(module, lms, lms.timesteps[0]),
        ordered.format("PNDMScheduler"): lambda: maps.sample(module, pndm, pndm.timesteps[4]),
        "Expected eta = 0 with a Schedule, whose steps draw no noise, got 1: give the "
        "DDIMScheduler itself.": lambda: maps.sample(module, schedule, eta=1.0),
        "Expected eta = 0, got 1: the step of EulerDiscreteScheduler has no such argument; "
        "DDIMScheduler's has.": lambda: maps.sample(module, euler, eta=1.0),
        "Expected one of the schedulers": lambda: maps.sample(module, diffusers.LCMScheduler()),
        "with time steps, got none": lambda: maps.sample(module, diffusers.DDIMScheduler()),
    }
    for words, call in calls.items():
        with pytest.raises(ValueError, match=re.escape(words)):
            call()
    y = torch.zeros(3, dtype=torch.float64)
    pure = Schedule((Level(9, 0, 1), Level(0, 1, 0)), "epsilon")
    runs: dict[str, Bound] = {
        "Expected a prediction of shape (2, 5), or with twice the channels, got (2, 4): the "
        "denoiser returns what the scheduler's step takes.": maps.clean(
            lambda x, t: x[:, :4], ddim, 0
        ),
        "Expected a prediction of shape (2, 5), or with twice the channels, got (2, 6": maps.sample(
            lambda x, t: torch.cat([x, x[:, :1]], 1), ddim
        ),
        "Expected a tensor from the decoder": maps.step(lambda x, t: (x, x), schedule, 0),
        "Expected a row of y= for each of 2 latents, got 3: bind one row for each latent, or a "
        "single row for all.": maps.clean(module, ddim, 0, y=y),
        "Expected a row of y= for each of 2 latents, got 3": maps.clean(
            maps.guided(module, 2.0, y=y), ddim, 0
        ),
        "Expected some signal at time 9": maps.sample(module, pure),
    }
    for words, of in runs.items():
        for run in (of, lambda z, of=of: JacobianOperator(of, z)):
            with pytest.raises(DecoderError) as caught:
                run(z)
            assert str(caught.value).startswith(words)
