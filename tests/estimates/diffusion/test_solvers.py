"""Steps and whole runs of solvers, against loops written by hand and closed forms."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from support.denoisers import SIZE, STEPS, gap, jacobians, noise, small, timed
from torch import Tensor

from approx import JacobianOperator, describe
from approx.decoder import Bound
from approx.diffusion import Level, Schedule, diffusion_levels, maps, schedule_of


def dense(of: Bound, z: Tensor) -> Tensor:
    with JacobianOperator(of, z, check=False) as J:  # `describe` checks below
        return J.dense()


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
        for now, after in pairwise(levels)
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
    assert [a / b for a, b in pairwise(errors)] == pytest.approx([2, 2], 0.1)
