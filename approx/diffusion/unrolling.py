"""Passes of a denoiser and steps of a scheduler, as functions of the samples.

Each is called with its settings by position, the samples x (B, ...) after them, and any condition
by name.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from approx.decoder import Widened, bind, pick
from approx.diffusion.schedules import Level, Schedule, mean_of, schedule_of

Denoiser = Callable[..., Any]
"""(x, t, **condition) -> what it predicts."""


class Run(NamedTuple):
    """Steps of a scheduler; a copy of a map in another dtype keeps it, coefficients and all."""

    scheduler: Any
    schedule: Schedule
    numbers: range
    seed: int
    options: dict[str, Any]


def levels_of(schedule: Schedule | Any) -> Schedule:
    """Return a schedule itself, or that of a scheduler."""
    return schedule if isinstance(schedule, Schedule) else schedule_of(schedule)


def whole_times(schedule: Schedule | Any) -> bool:
    """Tell whether the denoiser is given whole numbers as times."""
    times = getattr(schedule, "timesteps", None)
    return isinstance(times, Tensor) and not times.is_floating_point()


def last_copy(schedule: Schedule, number: int) -> int:
    """Return the last of levels that follow one another and are the same.

    Heun's scheduler has each twice, for two evaluations.
    """
    levels = schedule.levels
    while number + 1 < len(levels) and same_noise(levels[number], levels[number + 1]):
        number += 1
    return number


def same_noise(level: Level, other: Level) -> bool:
    """Tell whether two levels are one: times may differ."""
    return (level.alpha, level.sigma) == (other.alpha, other.sigma)


def estimated(
    denoiser: Denoiser, schedule: Schedule, number: int, whole: bool, x: Tensor, /, **condition: Any
) -> Tensor:
    """Return the estimate of x_0 at step `number`."""
    level = schedule.levels[number]
    predicted = predict(denoiser, level.scale * x, level.time, whole, condition)
    return schedule.clean(x, predicted, level)


def first_order(
    denoiser: Denoiser, schedule: Schedule, run: range, x: Tensor, /, **condition: Any
) -> Tensor:
    """Return the samples after the steps of `run`, those of the schedule."""
    for number in run:
        level, after = schedule.levels[number : number + 2]
        if not same_noise(level, after):
            predicted = predict(denoiser, level.scale * x, level.time, False, condition)
            x = schedule.stepped(x, predicted, level, after)
    return x


def by_scheduler(denoiser: Denoiser, run: Run, x: Tensor, /, **condition: Any) -> Tensor:
    """Return the samples after the steps of `run`, those of a fresh copy of its scheduler."""
    scheduler = copy.deepcopy(run.scheduler)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(run.numbers.start)
    # their variance is used, and so is the second half of the channels
    variance = str(getattr(scheduler.config, "variance_type", "")).startswith("learned")
    whole = whole_times(scheduler)
    for number in run.numbers:
        t, time = scheduler.timesteps[number], run.schedule.levels[number].time
        # those of flow matching do not scale
        scaled = getattr(scheduler, "scale_model_input", _unscaled)(x, t)
        predicted = predict(denoiser, scaled, time, whole, condition)
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


def followed(of: Callable[..., Any], decoder: Any, x: Tensor, /, **condition: Any) -> Any:
    """Return what the decoder makes of what a map returns."""
    return decoder(of(x, **condition))


def combined(
    denoiser: Denoiser, scale: float, without: Any, x: Tensor, t: Tensor, /, **condition: Any
) -> Tensor:
    """Return the prediction without the condition, and `scale` times what the condition changes."""

    def free(x: Tensor, /, **replaced: Any) -> Tensor:
        return tell(denoiser, x, t, condition | replaced)

    unconditional = free(x) if not without else bind(free, **without)(x)
    return unconditional + scale * (tell(denoiser, x, t, condition) - unconditional)


def predict(
    denoiser: Denoiser, x: Tensor, time: float, whole: bool, condition: dict[str, Any]
) -> Tensor:
    """Return what a denoiser predicts at one time for all, an integer where `whole`."""
    dtype = torch.int64 if whole else torch.promote_types(x.dtype, torch.float32)
    t = torch.full((len(x),), time, dtype=dtype, device=x.device)
    return tell(denoiser, x, t, condition)


def tell(denoiser: Denoiser, x: Tensor, t: Tensor, condition: dict[str, Any]) -> Tensor:
    """Return what a denoiser predicts, told times (B,) by the name that it has for them."""
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
