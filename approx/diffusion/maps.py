"""Maps of a diffusion model between latents, as decoders for `describe`, `field` and `knots`.

A denoiser is called as denoiser(x, t, **condition), t (B,) by the name `timestep` where it has an
argument of that name, as the models of diffusers do. It returns what it predicts, or an object with
it as `.sample`. Conditions are bound as `approx.bind` does: tensors have a row for each latent or
one for all. Each map is a decoder, x (B, *latent_shape) to a tensor, in the dtype of x.

Noise levels are a `Schedule`, whose steps are of first order, or a scheduler of diffusers after its
`set_timesteps`. A copy of that is stepped, a new one in each call, so that multistep solvers have
the history of the map's own steps alone. t is int64 where its `timesteps` are, otherwise in the
dtype of x, but at least float32.

Schedulers that draw noise (DDPM, Euler ancestral, SDE solvers, DDIM with eta) are maps at fixed
noise: that of a step comes from `seed` and the number of the step. It is the same for all latents
and in all calls, and torch's own generators are not touched.

The schedulers of Euler, of flow matching, and DPM-Solver cast samples to float32. In a map,
float64 stays float64. Their coefficients are float32 numbers, 1e-7 from those of
`schedule_of(scheduler)`, which are of float64.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from approx.decoder import Bound, bind
from approx.diffusion.schedules import Schedule
from approx.diffusion.unrolling import (
    Denoiser,
    Run,
    by_scheduler,
    combined,
    estimated,
    first_order,
    followed,
    last_copy,
    levels_of,
    whole_times,
)

__all__ = ["clean", "decoded", "guided", "sample", "step"]

# a later step of these, without those before, is none of first order
_COUNTING = frozenset({"PNDMScheduler", "LMSDiscreteScheduler"})


def clean(denoiser: Denoiser, schedule: Schedule | Any, t: float, **condition: Any) -> Bound:
    """Return the map from x_t to the estimate of x_0.

    Parameters
    ----------
    denoiser : callable
        Predicts the noise, x_0, v or the velocity, as the schedule says.
    schedule : Schedule or scheduler
        Noise levels; of a scheduler those of `schedule_of`.
    t : float
        One of its times.
    **condition
        Of the denoiser, see `approx.bind`.

    Returns
    -------
    Bound
        The map. One pass of the denoiser.

    Raises
    ------
    ValueError
        A time that is not in the schedule; a condition that the denoiser does not take.
    DecoderError
        When it runs: a prediction of another shape.

    Examples
    --------
    The ideal denoiser of one point at 0 finds it from everywhere; half of it, half of the way:

    >>> import torch
    >>> from approx.diffusion import diffusion_levels, maps, Schedule
    >>> schedule = Schedule(diffusion_levels([0.64], [0]), "epsilon")
    >>> halfway = maps.clean(lambda x, t: 0.5 * x / 0.6, schedule, t=0)
    >>> halfway(torch.tensor([[0.8, 1.6]]))
    tensor([[0.5000, 1.0000]])
    """
    levels = levels_of(schedule)
    number = levels.index(t)
    whole = whole_times(schedule)
    return _bound(
        denoiser, functools.partial(estimated, denoiser, levels, number, whole), condition
    )


def step(
    denoiser: Denoiser,
    schedule: Schedule | Any,
    t: float,
    *,
    seed: int = 0,
    eta: float = 0.0,
    **condition: Any,
) -> Bound:
    """Return the map from x_t to the sample at the next noise level, as the scheduler steps.

    Of a `Schedule`, such as that of `schedule_of`, the step is DDIM's, without noise. Where the
    scheduler clips its estimate of x_0 (`clip_sample`), so does the map: psi is then that of a
    singular matrix, and NaN.

    Parameters
    ----------
    denoiser : callable
        Predicts the noise, x_0, v or the velocity, as the schedule says.
    schedule : Schedule or scheduler
        Of a scheduler, its `step`: of a multistep solver the first-order start, of Heun's method
        both evaluations. PNDM and LMS take no step alone.
    t : float
        One of its times.
    seed : int
        Of the noise of schedulers that draw it.
    eta : float
        Share of noise, of DDIM's scheduler.
    **condition
        Of the denoiser, see `approx.bind`.

    Returns
    -------
    Bound
        The map. One pass of the denoiser; two with Heun's method.

    Raises
    ------
    ValueError
        A time that is not in the schedule; a scheduler that has stepped already or is unknown, or
        PNDM's or LMS's; a condition that the denoiser does not take.
    DecoderError
        When it runs: a prediction of another shape.

    Examples
    --------
    >>> import torch
    >>> from approx.diffusion import Level, Schedule, maps
    >>> schedule = Schedule((Level(1, 0, 1), Level(0.5, 0.5, 0.5), Level(0, 1, 0)), "sample")
    >>> maps.step(lambda x, t: 0 * x + 1, schedule, t=1)(torch.tensor([[3.0]]))
    tensor([[2.]])
    """
    levels = levels_of(schedule)
    first = last_copy(levels, levels.index(t))
    run = range(first, last_copy(levels, first + 1))
    return _unrolled(denoiser, schedule, levels, run, seed, eta, condition, alone=True)


def sample(
    denoiser: Denoiser,
    schedule: Schedule | Any,
    t: float | None = None,
    *,
    seed: int = 0,
    eta: float = 0.0,
    **condition: Any,
) -> Bound:
    """Return the map from noise to the sample: all steps after another.

    Parameters
    ----------
    denoiser : callable
        Predicts the noise, x_0, v or the velocity, as the schedule says.
    schedule : Schedule or scheduler
        Of a scheduler, its `step`, with its history.
    t : float, optional
        One of its times, to begin there; by default the first. PNDM and LMS take no other.
    seed : int
        Of the noise of schedulers that draw it.
    eta : float
        Share of noise, of DDIM's scheduler.
    **condition
        Of the denoiser, see `approx.bind`.

    Returns
    -------
    Bound
        The map. A pass of the denoiser for each step.

    Raises
    ------
    ValueError
        As for `step`.
    DecoderError
        When it runs: a prediction of another shape.

    Notes
    -----
    Where the solver takes each step from the last sample alone, the Jacobian is the product of
    those of the steps along the path, and psi of all singular values their sum of log|det|.

    Examples
    --------
    >>> import torch
    >>> from approx.diffusion import Level, Schedule, maps
    >>> schedule = Schedule((Level(1, 0, 1), Level(0.5, 0.5, 0.5), Level(0, 1, 0)), "sample")
    >>> maps.sample(lambda x, t: 0 * x + 1, schedule)(torch.tensor([[3.0]]))
    tensor([[1.]])
    """
    levels = levels_of(schedule)
    first = 0 if t is None else last_copy(levels, levels.index(t))
    run = range(first, len(levels))
    return _unrolled(denoiser, schedule, levels, run, seed, eta, condition, alone=first > 0)


def decoded(of: Bound, decoder: Callable[[Tensor], Any]) -> Bound:
    """Return a map followed by a decoder, with the map's conditions.

    Parameters
    ----------
    of : Bound
        What `clean`, `step` or `sample` returned.
    decoder : callable
        Takes what that returns: the pipeline's own latents, not divided by a scaling factor.

    Returns
    -------
    Bound
        The map.

    Examples
    --------
    >>> import torch
    >>> from approx.diffusion import Level, Schedule, maps
    >>> schedule = Schedule((Level(1, 0, 1), Level(0, 1, 0)), "sample")
    >>> estimate = maps.clean(lambda x, t: 2 * x, schedule, t=1)
    >>> maps.decoded(estimate, torch.nn.Upsample(scale_factor=2))(torch.ones(1, 1, 1))
    tensor([[[2., 2.]]])
    """
    return replace(of, target=functools.partial(followed, of.target, decoder))


def guided(denoiser: Denoiser, scale: float, **without: Any) -> Denoiser:
    """Return a denoiser with classifier-free guidance: without + scale (with - without).

    Parameters
    ----------
    denoiser : callable
        Predicts with a condition, and without one.
    scale : float
        1 is the condition alone, 0 none.
    **without
        What the denoiser takes in place of the condition, a single row for all latents.

    Returns
    -------
    callable
        A denoiser. Two passes. J. Ho, T. Salimans, "Classifier-free diffusion guidance", 2022.

    Examples
    --------
    >>> import torch
    >>> from approx.diffusion import Level, Schedule, maps
    >>> schedule = Schedule((Level(1, 0, 1), Level(0, 1, 0)), "sample")
    >>> denoiser = maps.guided(lambda x, t, y: x + y, 3.0, y=torch.zeros(1, 1))
    >>> maps.clean(denoiser, schedule, t=1, y=torch.ones(1, 1))(torch.ones(1, 1))
    tensor([[4.]])
    """
    bind(denoiser, **without)  # refuses what it does not take
    return functools.partial(combined, denoiser, scale, without)


def _unrolled(
    denoiser: Denoiser,
    schedule: Schedule | Any,
    levels: Schedule,
    run: range,
    seed: int,
    eta: float,
    condition: dict[str, Any],
    *,
    alone: bool,
) -> Bound:
    """Return the map of some steps; `alone` without those before."""
    if isinstance(schedule, Schedule):
        if eta:
            raise ValueError(
                f"Expected eta = 0 with a Schedule, whose steps draw no noise, got {eta:g}: give "
                "the DDIMScheduler itself."
            )
        target: Any = functools.partial(first_order, denoiser, levels, run)
        return _bound(denoiser, target, condition)
    if getattr(schedule, "step_index", None) is not None or getattr(schedule, "counter", 0):
        raise ValueError(
            f"Expected a {type(schedule).__name__} before its first step, got one that has "
            "stepped: call its set_timesteps again."
        )
    if alone and _COUNTING & {cls.__name__ for cls in type(schedule).__mro__}:
        raise ValueError(
            f"Expected all steps of a {type(schedule).__name__}, which takes its order from their "
            "number, got some: give schedule_of(scheduler) for first-order steps."
        )
    options = {"eta": eta} if eta else {}
    if not options.keys() <= inspect.signature(type(schedule).step).parameters.keys():
        raise ValueError(
            f"Expected eta = 0, got {eta:g}: the step of {type(schedule).__name__} has no such "
            "argument; DDIMScheduler's has."
        )
    held = Run(copy.deepcopy(schedule), levels, run, seed, options)
    return _bound(denoiser, functools.partial(by_scheduler, denoiser, held), condition)


def _bound(denoiser: Denoiser, target: Callable[..., Any], condition: dict[str, Any]) -> Bound:
    if hasattr(denoiser, "scheduler"):
        raise ValueError(
            f"Expected a denoiser, got {type(denoiser).__name__}: give its unet or transformer."
        )
    bind(denoiser, **condition)  # refuses what it does not take
    return bind(target, **condition)
