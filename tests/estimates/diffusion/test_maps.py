"""Maps of diffusion models, against loops written by hand, closed forms and explicit Jacobians."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import diffusers
import numpy as np
import pytest
import torch
from support.pipelines import CASES, PipelineCase
from torch import Tensor, nn

import approx
from approx import DecoderError, JacobianOperator, bind, describe, knots
from approx.decoder import Bound
from approx.diffusion import Level, Schedule, diffusion_levels, maps, schedule_of

STEPS = 6
SIZE = 5


class Small(nn.Module):
    """A smooth denoiser of vectors, told a time and a row of a condition."""

    seen: ClassVar[set[torch.dtype]] = set()  # of copies too

    def __init__(self, act: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(SIZE + 2, 24), nn.Linear(24, SIZE)
        self.act = act

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.seen.update([x.dtype, t.dtype])
        assert t.shape == (len(x),)
        told = torch.stack([t.to(x) / 1000, x.new_zeros(len(x)) if y is None else y], dim=1)
        inner = self.act(self.first(torch.cat([x, told], dim=1)))
        # near what a trained one says, so that steps stay invertible
        return 0.3 * x + 0.3 * self.last(inner)


def small(dtype: torch.dtype = torch.float64, **options: Any) -> Small:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Small(**options).to(dtype).eval().requires_grad_(False)


def noise(count: int = 3, size: int = SIZE, seed: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator, dtype=torch.float64)


def gap(got: Any, expected: Any) -> float:
    got, expected = (torch.as_tensor(v).detach().double() for v in (got, expected))
    return float((got - expected).norm() / expected.norm())


def jacobians(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Return (B, D, d) by autograd, one output of one latent at a time."""
    rows = [
        torch.autograd.functional.jacobian(lambda x: function(x[None])[0].flatten(), one)
        for one in z
    ]
    return torch.stack(rows).flatten(2)


def dense(of: Bound, z: Tensor, **options: Any) -> Tensor:
    with JacobianOperator(of, z, **options) as J:
        return J.dense()


def timed(make: Callable[..., Any], **options: Any) -> Any:
    scheduler = make(**options)
    scheduler.set_timesteps(STEPS)
    return scheduler


# What follows knows nothing of approx: the formulas of the papers, in float64.


def ddim(denoiser: Any, scheduler: Any, kind: str, first: int, last: int, x: Tensor) -> Tensor:
    abar = [*(float(scheduler.alphas_cumprod[t]) for t in scheduler.timesteps), 1.0]
    for i in range(first, last):
        said = denoiser(x, torch.full((len(x),), float(scheduler.timesteps[i])))
        a, s = math.sqrt(abar[i]), math.sqrt(1 - abar[i])
        if kind == "epsilon":
            x0, eps = (x - s * said) / a, said
        elif kind == "sample":
            x0, eps = said, (x - a * said) / s
        else:
            x0, eps = a * x - s * said, a * said + s * x
        x = math.sqrt(abar[i + 1]) * x0 + math.sqrt(1 - abar[i + 1]) * eps
    return x


def euler(denoiser: Any, scheduler: Any, kind: str, first: int, last: int, x: Tensor) -> Tensor:
    sigmas = [float(s) for s in scheduler.sigmas]
    for i in range(first, last):
        s = sigmas[i]
        t = torch.full((len(x),), float(scheduler.timesteps[i]))
        said = denoiser(x / math.sqrt(1 + s * s), t)
        if kind == "epsilon":
            slope = said
        elif kind == "sample":
            slope = (x - said) / s
        else:
            slope = (x - (x / (1 + s * s) - s / math.sqrt(1 + s * s) * said)) / s
        x = x + (sigmas[i + 1] - s) * slope
    return x


def flow(denoiser: Any, scheduler: Any, kind: str, first: int, last: int, x: Tensor) -> Tensor:
    sigmas = [float(s) for s in scheduler.sigmas]
    for i in range(first, last):
        t = torch.full((len(x),), float(scheduler.timesteps[i]))
        x = x + (sigmas[i + 1] - sigmas[i]) * denoiser(x, t)
    return x


SOLVERS: dict[str, tuple[Callable[..., Tensor], Callable[[], Any], str]] = {
    **{
        f"ddim {kind}": (
            ddim,
            lambda kind=kind: timed(
                diffusers.DDIMScheduler, clip_sample=False, prediction_type=kind
            ),
            kind,
        )
        for kind in ("epsilon", "sample", "v_prediction")
    },
    **{
        f"euler {kind}": (
            euler,
            lambda kind=kind: timed(diffusers.EulerDiscreteScheduler, prediction_type=kind),
            kind,
        )
        for kind in ("epsilon", "sample", "v_prediction")
    },
    "flow": (
        flow,
        lambda: timed(diffusers.FlowMatchEulerDiscreteScheduler, shift=3.0),
        "flow_prediction",
    ),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_single_step_solvers_against_formulas(name: str) -> None:
    """By a Schedule in float64 to its rounding, by the scheduler to its float32 coefficients."""
    by_hand, make, kind = SOLVERS[name]
    denoiser, scheduler = small(), make()
    schedule = schedule_of(scheduler)
    z = noise() * schedule.levels[0].norm
    for given, tolerance in ((schedule, 1e-12), (scheduler, 1e-6)):
        for first, last, of in (
            (0, STEPS, maps.sample(denoiser, given)),
            (2, STEPS, maps.sample(denoiser, given, schedule.times[2])),
            (2, 3, maps.step(denoiser, given, schedule.times[2])),
        ):

            def loop(x: Tensor, first: int = first, last: int = last) -> Tensor:
                return by_hand(denoiser, scheduler, kind, first, last, x)

            assert gap(of(z), loop(z)) < tolerance
            assert gap(dense(of, z), jacobians(loop, z)) < tolerance


@pytest.mark.parametrize("name", SOLVERS)
def test_psi_of_the_unrolled_map_is_the_sum_over_steps(name: str) -> None:
    _, make, _ = SOLVERS[name]
    denoiser, scheduler = small(), make()
    schedule = schedule_of(scheduler)
    z = noise() * schedule.levels[0].norm
    for given in (schedule, scheduler):
        whole = maps.sample(denoiser, given)
        table = describe(whole, z, method="exact", neighbourhood=None, progress=False)
        total, x = torch.zeros(len(z), dtype=torch.float64), z
        for t in schedule.times:
            one = maps.step(denoiser, given, t)
            total += torch.linalg.slogdet(jacobians(one, x)).logabsdet
            x = one(x)
        assert gap(whole(z), x) < 1e-14
        assert np.abs(table.psi - total.numpy()).max() < 1e-9
        assert float(total.abs().min()) > 0.1


MULTISTEP = {
    "dpm": diffusers.DPMSolverMultistepScheduler,
    "dpm single": diffusers.DPMSolverSinglestepScheduler,
    "deis": diffusers.DEISMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "flow heun": diffusers.FlowMatchHeunDiscreteScheduler,
    "lms": diffusers.LMSDiscreteScheduler,
    "pndm": lambda: diffusers.PNDMScheduler(skip_prk_steps=True),
    "runge": diffusers.PNDMScheduler,
}


@pytest.mark.parametrize("name", MULTISTEP)
def test_multistep_solvers_have_the_history_of_a_run(name: str) -> None:
    """Against a pipeline's loop over the scheduler itself, all steps and from the second on."""
    denoiser, scheduler = small(), timed(MULTISTEP[name])
    times = scheduler.timesteps
    # where those start that evaluate twice at a time
    starts = [i for i in range(len(times)) if i + 1 == len(times) or times[i] != times[i + 1]]

    def loop(x: Tensor, first: int = 0, last: int = len(times)) -> Tensor:
        own = copy.deepcopy(scheduler)
        if first:
            own.set_begin_index(first)
        for t in times[first:last]:
            scaled = own.scale_model_input(x, t) if hasattr(own, "scale_model_input") else x
            x = own.step(denoiser(scaled, t.expand(len(x))), t, x).prev_sample
        return x

    z = noise() * float(getattr(scheduler, "init_noise_sigma", 1.0))
    # these cast to float32 in the step itself
    tolerance = 1e-6 if name in ("dpm", "flow heun") else 1e-12
    cases: list[tuple[Bound, tuple[int, int]]] = [
        (maps.sample(denoiser, scheduler), (0, len(times)))
    ]
    if name not in ("lms", "pndm", "runge"):
        t = float(times[starts[1]])
        cases.append((maps.sample(denoiser, scheduler, t), (starts[1], len(times))))
        cases.append((maps.step(denoiser, scheduler, t), (starts[1], starts[2])))
        first_order = maps.step(denoiser, schedule_of(scheduler), t)
        assert ("heun" in name) == (gap(cases[-1][0](z), first_order(z)) > 1e-6)
    for of, (first, last) in cases:
        assert gap(of(z), loop(z, first, last)) < tolerance
        assert torch.equal(of(z), of(z))
        oracle = jacobians(lambda x, first=first, last=last: loop(x, first, last), z)
        assert gap(dense(of, z), oracle) < tolerance


@pytest.mark.parametrize("spread", [0.5, 2.0])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "flow_prediction"])
def test_gaussian_data_have_closed_forms(spread: float, kind: Any) -> None:
    """E[x_0 | x_t] = alpha s^2 / (alpha^2 s^2 + sigma^2) x of data N(0, s^2 I)."""
    levels = diffusion_levels([math.exp(-4 * (i / 50) ** 2) for i in range(51)], range(50, 0, -5))
    if kind == "flow_prediction":
        levels = tuple(Level(float(t), 1 - t / 50, t / 50) for t in range(50, -1, -5))
    schedule = Schedule(levels, kind)

    def share(level: Level) -> float:
        a, s = level.alpha, level.sigma
        return a * spread**2 / (a * a * spread**2 + s * s)

    def ideal(x: Tensor, t: Tensor) -> Tensor:
        level = levels[schedule.index(float(t[0]))]
        a, s = level.alpha, level.sigma
        x0 = share(level) * x
        eps = (x - a * x0) / s
        said = {
            "epsilon": eps, "sample": x0, "v_prediction": a * eps - s * x0,
            "flow_prediction": eps - x0,
        }  # fmt: skip
        return said[kind]

    z = noise()
    options: dict[str, Any] = {"method": "exact", "neighbourhood": None, "progress": False}
    for level in levels[1:-1:3]:
        psi = describe(maps.clean(ideal, schedule, level.time), z, **options).psi
        assert np.abs(psi - SIZE * math.log(share(level))).max() < 1e-12
    total = sum(
        math.log(after.alpha * share(now) + after.sigma * (1 - now.alpha * share(now)) / now.sigma)
        for now, after in zip(levels[:-1], levels[1:], strict=True)
    )
    table = describe(maps.sample(ideal, schedule), z, **options)
    assert np.abs(table.psi - SIZE * total).max() < 1e-11
    assert np.abs(table.nu - table.nu[0]).max() < 1e-11


def test_psi_of_many_steps_tends_to_that_of_the_flow() -> None:
    """Whose map takes N(0, a^2 s^2 + b^2) to N(0, s^2): first order in the steps."""
    spread, errors = 0.5, []
    for count in (20, 40, 80):
        steps = [1 - i / count for i in range(count + 1)]
        levels = tuple(Level(s, 1 - s, s) for s in steps)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            a, s = 1 - t[:, None], t[:, None]
            return (s - a * spread**2) / (a * a * spread**2 + s * s) * x

        of = maps.sample(velocity, Schedule(levels, "flow_prediction"))
        table = describe(of, noise(1), method="exact", neighbourhood=None, progress=False)
        errors.append(abs(table.psi[0] / SIZE - math.log(spread)))
    assert errors[2] < 0.02
    assert [a / b for a, b in zip(errors, errors[1:], strict=False)] == pytest.approx([2, 2], 0.1)


class Holder:
    """A denoiser that is the method of an object around a module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def predict(self, x: Tensor, t: Tensor, **condition: Any) -> Any:
        return self.module(x, t, **condition)


WAYS: dict[str, Callable[[Small], Any]] = {
    "module": lambda module: module,
    "method": lambda module: Holder(module).predict,
    "closure": lambda module: lambda x, t, **condition: module(x, t, **condition),
    "guided": lambda module: maps.guided(module, 2.0, y=torch.zeros(1)),
    "guided method": lambda module: maps.guided(Holder(module).predict, 2.0, y=torch.zeros(1)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("solver", ["euler epsilon", "ddim epsilon"])
def test_float64_is_float64_throughout(solver: str, way: str) -> None:
    scheduler, y = SOLVERS[solver][1](), torch.tensor([0.5, -1.0, 2.0])
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
    t, y = schedule.times[2], torch.tensor([0.5, -1.0, 2.0])
    level = schedule.levels[2]

    def by_hand(scale: float, x: Tensor) -> Tensor:
        time = torch.full((len(x),), t)
        free, told = (module(x, time, v) for v in (torch.zeros(3), y))
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
    # it passes the checks, and J is that of the loop at that noise
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

    J = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda x, i=i: by_hand(x, i), z[i].double())
            for i in range(count)
        ]
    ).reshape(count, z[0].numel(), z[0].numel())
    of = maps.clean(getattr(pipe, case.denoiser), pipe.scheduler, t, **given)
    table = describe(of, z, method="exact", neighbourhood=(2, 1e-3), progress=False)
    values = torch.linalg.svdvals(J)
    # the embedding of the time is of float32 in all of them
    assert np.abs(table.psi / values.log().sum(1).numpy() - 1).max() < 1e-5
    assert np.isfinite(table.delta).all()
    if hasattr(pipe, "vae"):
        factor = pipe.vae.config.scaling_factor
        picture = maps.decoded(of, lambda x: pipe.vae.decode(x / factor))
        expected = pipe.vae.decode(of(z) / factor).sample
        assert gap(picture(z).sample, expected) == 0
        table = describe(picture, z, k=4, method="exact", neighbourhood=None, progress=False)
        assert np.isfinite(table.psi).all()


def test_knots_and_fields_of_maps() -> None:
    """Of one layer of ReLU, whose kinks along a line are counted by the signs of its units."""
    denoiser = small(torch.float32, act=torch.relu)
    schedule = schedule_of(timed(diffusers.DDIMScheduler, clip_sample=False))
    of, z = maps.clean(denoiser, schedule, schedule.times[3]), noise().float()
    found = knots(of, z, (SIZE, 0.5), generator=0)
    directions = found.directions.to(z)
    entering = []

    def signs(x: Tensor) -> Tensor:
        told = torch.tensor([schedule.times[3] / 1000, 0.0]).expand(len(x), 2)
        return denoiser.first(torch.cat([x, told], dim=1)) > 0
