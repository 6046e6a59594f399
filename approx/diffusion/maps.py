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
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from approx.decoder import Bound, Widened, bind, pick
from approx.diffusion.schedules import Level, Schedule, mean_of, schedule_of

__all__ = ["clean", "decoded", "guided", "sample", "step"]

Denoiser = Callable[..., Any]

# a later step of these, without those before, is none of first order
_COUNTING = frozenset({"PNDMScheduler", "LMSDiscreteScheduler"})


class _Run(NamedTuple):
    """Steps of a scheduler; a copy of a map in another dtype keeps it, coefficients and all."""

    scheduler: Any
    schedule: Schedule
    numbers: range
    seed: int
    options: dict[str, Any]


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
    levels = _levels(schedule)
    number = levels.index(t)
    whole = _whole(schedule)
    return _bound(denoiser, functools.partial(_clean, denoiser, levels, number, whole), condition)


def step(
    denoiser: Denoiser,
    schedule: Schedule | Any,
    t: float,
    *,
    seed: int = 0,
    eta: float = 0.0,
    **condition: Any,
) -> Bound:
    """Return the map from x_t to the sample at the next noise level.

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
    levels = _levels(schedule)
    first = _last_copy(levels, levels.index(t))
    run = range(first, _last_copy(levels, first + 1))
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
    levels = _levels(schedule)
    first = 0 if t is None else _last_copy(levels, levels.index(t))
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
    return replace(of, target=functools.partial(_decoded, of.target, decoder))


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
    return functools.partial(_guided, denoiser, scale, without)


def _levels(schedule: Schedule | Any) -> Schedule:
    return schedule if isinstance(schedule, Schedule) else schedule_of(schedule)


def _whole(schedule: Schedule | Any) -> bool:
    """Tell whether the denoiser is given whole numbers as times."""
    times = getattr(schedule, "timesteps", None)
    return isinstance(times, Tensor) and not times.is_floating_point()


def _last_copy(schedule: Schedule, number: int) -> int:
    """Return the last of levels that follow one another and are the same.

    Heun's scheduler has each twice, for two evaluations.
    """
    levels = schedule.levels
    while number + 1 < len(levels) and _same(levels[number], levels[number + 1]):
        number += 1
    return number


def _same(level: Level, other: Level) -> bool:
    return (level.alpha, level.sigma) == (other.alpha, other.sigma)


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
        target: Any = functools.partial(_first_order, denoiser, levels, run)
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
    held = _Run(copy.deepcopy(schedule), levels, run, seed, options)
    return _bound(denoiser, functools.partial(_stepped, denoiser, held), condition)


def _bound(denoiser: Denoiser, target: Callable[..., Any], condition: dict[str, Any]) -> Bound:
    bind(denoiser, **condition)  # refuses what it does not take
    return bind(target, **condition)


# What follows is called with latents last and by position: any name is free for a condition.


def _clean(
    denoiser: Denoiser, schedule: Schedule, number: int, whole: bool, x: Tensor, /, **condition: Any
) -> Tensor:
    level = schedule.levels[number]
    predicted = _predicted(denoiser, level.scale * x, level.time, whole, condition)
    return schedule.clean(x, predicted, level)


def _first_order(
    denoiser: Denoiser, schedule: Schedule, run: range, x: Tensor, /, **condition: Any
) -> Tensor:
    for number in run:
        level, after = schedule.levels[number : number + 2]
        if not _same(level, after):
            predicted = _predicted(denoiser, level.scale * x, level.time, False, condition)
            x = schedule.stepped(x, predicted, level, after)
    return x


def _stepped(denoiser: Denoiser, run: _Run, x: Tensor, /, **condition: Any) -> Tensor:
    scheduler = copy.deepcopy(run.scheduler)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(run.numbers.start)
    # their variance is used, and so is the second half of the channels
    variance = str(getattr(scheduler.config, "variance_type", "")).startswith("learned")
    whole = _whole(scheduler)
    for number in run.numbers:
        t, time = scheduler.timesteps[number], run.schedule.levels[number].time
        # those of flow matching do not scale
        scaled = getattr(scheduler, "scale_model_input", _unscaled)(x, t)
        predicted = _predicted(denoiser, scaled, time, whole, condition)
        mean = mean_of(predicted, x)
        wide = Widened() if x.dtype == torch.float64 else nullcontext()
        with wide, _HeldNoise(run.seed, number):
            # the class's: the instance's may be another's wrapper
            x = type(scheduler).step(
                scheduler, predicted if variance else mean, t, x, return_dict=False, **run.options
            )[0]
    return x


def _unscaled(x: Tensor, t: Any) -> Tensor:
    return x


def _decoded(of: Callable[..., Any], decoder: Any, x: Tensor, /, **condition: Any) -> Any:
    return decoder(of(x, **condition))


def _guided(
    denoiser: Denoiser, scale: float, without: Any, x: Tensor, t: Tensor, /, **condition: Any
) -> Tensor:
    def free(x: Tensor, /, **replaced: Any) -> Tensor:
        return _told(denoiser, x, t, condition | replaced)

    unconditional = free(x) if not without else bind(free, **without)(x)
    return unconditional + scale * (_told(denoiser, x, t, condition) - unconditional)


def _predicted(
    denoiser: Denoiser, x: Tensor, time: float, whole: bool, condition: dict[str, Any]
) -> Tensor:
    dtype = torch.int64 if whole else torch.promote_types(x.dtype, torch.float32)
    t = torch.full((len(x),), time, dtype=dtype, device=x.device)
    return _told(denoiser, x, t, condition)


def _told(denoiser: Denoiser, x: Tensor, t: Tensor, condition: dict[str, Any]) -> Tensor:
    """Return what a denoiser predicts."""
    called = denoiser.forward if isinstance(denoiser, nn.Module) else denoiser
    try:
        named = "timestep" in inspect.signature(called).parameters
    except ValueError:  # no signature: written in C
        named = False
    if named:
        return pick(denoiser(x, timestep=t, **condition), None)
    return pick(denoiser(x, t, **condition), None)


class _HeldNoise(TorchFunctionMode):
    """Region in which normal numbers are the same for all latents, and for each pass."""

    def __init__(self, seed: int, number: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed((seed << 20) + number)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in (torch.randn, torch.randn_like):
            return func(*args, **kwargs)
        if func is torch.randn_like:
            like = args[0] if args else kwargs["input"]
            shape, device, dtype = like.shape, like.device, like.dtype
        else:
            sizes = kwargs.get("size", args)
            shape = sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
            device, dtype = None, torch.get_default_dtype()
        # in float32 whatever the latents are: a copy in float64 has the same
        row = torch.randn(1, *shape[1:], generator=self.generator, dtype=torch.float32)
        row = row.to(device=kwargs.get("device") or device, dtype=kwargs.get("dtype") or dtype)
        return row.expand(*shape)
