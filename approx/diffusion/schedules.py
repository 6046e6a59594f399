"""Noise levels of a diffusion model, and what its prediction says of the clean latent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor

from approx.decoder import DecoderError

Prediction = Literal["epsilon", "sample", "v_prediction", "flow_prediction"]

# how a scheduler of diffusers writes its samples; what is not listed is refused
_DISCRETE = frozenset({"DDPMScheduler", "DDIMScheduler", "PNDMScheduler"})
_PRESERVING = frozenset(
    {
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "DEISMultistepScheduler",
        "SASolverScheduler",
        "UniPCMultistepScheduler",
    }
)
_EXPLODING = frozenset(
    {
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "LMSDiscreteScheduler",
    }
)
_FLOW = frozenset({"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"})


class Level(NamedTuple):
    """One noise level: a sample is alpha x_0 + sigma eps, with eps of unit variance.

    Attributes
    ----------
    time : float
        What the denoiser is told.
    alpha, sigma : float
        Not both 0.
    scale : float
        Times a sample is what the denoiser is given.
    """

    time: float
    alpha: float
    sigma: float
    scale: float = 1.0

    @property
    def norm(self) -> float:
        """Standard deviation of a sample of data with unit variance."""
        return math.hypot(self.alpha, self.sigma)


@dataclass(frozen=True)
class Schedule:
    """Noise levels from noise to data, and what the denoiser predicts at them.

    Attributes
    ----------
    levels : tuple of Level
        From the noisiest on, one for each step, and the level at which the last step ends. Its time
        is told to nobody and may be NaN.
    prediction : {"epsilon", "sample", "v_prediction", "flow_prediction"}
        Of the noise eps; of the clean latent x_0; of v = a eps - b x_0, where a and b are alpha and
        sigma over their norm; or of the velocity eps - x_0.
    clip : float or None
        Bound on the entries of the estimate of x_0, where there is one.
    """

    levels: tuple[Level, ...]
    prediction: Prediction
    clip: float | None = None

    def __post_init__(self) -> None:
        """Refuse too few levels and unknown predictions."""
        if self.prediction not in get_args(Prediction):
            raise ValueError(
                f"Expected prediction as one of {', '.join(get_args(Prediction))}, got "
                f"{self.prediction!r}: say what the denoiser returns."
            )
        if len(self.levels) < 2:
            raise ValueError(
                f"Expected at least two levels, where a step begins and ends, got "
                f"{len(self.levels)}: give one for each step and one more."
            )
        for level in self.levels:
            numbers = (level.alpha, level.sigma, level.scale)
            if not all(map(math.isfinite, numbers)) or min(numbers) < 0 or level.norm == 0:
                raise ValueError(
                    f"Expected finite alpha, sigma and scale of at least 0, got {level}: a sample "
                    "is alpha times the clean latent plus sigma times noise."
                )

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.levels) - 1

    @property
    def times(self) -> tuple[float, ...]:
        """What the denoiser is told at each step."""
        return tuple(level.time for level in self.levels[:-1])

    def index(self, time: float, after: int = -1) -> int:
        """Return the step that begins at a time, the first one behind step `after`.

        Raises
        ------
        ValueError
            No step begins there.
        """
        for number in range(after + 1, len(self)):
            if math.isclose(self.levels[number].time, float(time), rel_tol=1e-6, abs_tol=1e-9):
                return number
        shown = ", ".join(f"{t:g}" for t in self.times[:6])
        raise ValueError(
            f"Expected t as one of the {len(self)} times of the schedule ({shown}, ...), got "
            f"{float(time):g}: take one of schedule.times."
        )

    def clean(self, x: Tensor, predicted: Tensor, level: Level) -> Tensor:
        """Return the estimate of x_0 behind samples x (B, ...), from what the denoiser predicted.

        Where the prediction has twice the channels of x, the second half is a variance and is left
        out. Raises DecoderError for other shapes, and for the noise as prediction at alpha = 0,
        where it says nothing of x_0.
        """
        estimate = self._implied(x, predicted, level)
        return estimate if self.clip is None else estimate.clamp(-self.clip, self.clip)

    def stepped(self, x: Tensor, predicted: Tensor, level: Level, after: Level) -> Tensor:
        """Return the samples one step on, without noise: DDIM, and Euler's method in sigma / alpha.

        The noise that the prediction implies is kept, and mixed with the estimate of x_0 as the
        next level asks. J. Song, C. Meng, S. Ermon, "Denoising diffusion implicit models", 2021,
        equation 12 with eta = 0; for velocities it is Euler's step.
        """
        if level.sigma == 0:
            raise DecoderError(
                f"Expected noise at time {level.time:g}, where a step begins, got sigma = 0: the "
                "samples are clean there."
            )
        # not of the clipped estimate: schedulers keep the noise as it was predicted
        noise = (x - level.alpha * self._implied(x, predicted, level)) / level.sigma
        return after.alpha * self.clean(x, predicted, level) + after.sigma * noise

    def _implied(self, x: Tensor, predicted: Tensor, level: Level) -> Tensor:
        """Return the estimate of x_0 before it is clipped."""
        predicted = mean_of(predicted, x)
        a, b = level.alpha / level.norm, level.sigma / level.norm
        if self.prediction == "sample":
            return predicted
        if self.prediction == "v_prediction":
            return (a / level.norm) * x - b * predicted
        if self.prediction == "flow_prediction":
            return (x - level.sigma * predicted) / (level.alpha + level.sigma)
        if level.alpha == 0:
            raise DecoderError(
                f"Expected some signal at time {level.time:g} to tell x_0 from predicted noise, "
                "got alpha = 0: begin at a later step."
            )
        return (x - level.sigma * predicted) / level.alpha


def mean_of(predicted: Tensor, x: Tensor) -> Tensor:
    """Return what is predicted of the mean: without the channels of a learned variance."""
    if predicted.shape == x.shape:
        return predicted
    halved = predicted.ndim == x.ndim and predicted.ndim > 1
    if halved and predicted.shape[1] == 2 * x.shape[1]:
        predicted = predicted[:, : x.shape[1]]
        if predicted.shape == x.shape:
            return predicted
    raise DecoderError(
        f"Expected a prediction of shape {tuple(x.shape)}, or with twice the channels, got "
        f"{tuple(predicted.shape)}: the denoiser returns what the scheduler's step takes."
    )


def diffusion_levels(
    cumulative: Sequence[float], times: Sequence[int], *, last: float = 1.0
) -> tuple[Level, ...]:
    """Return the levels of a variance-preserving model at some of its training times.

    Parameters
    ----------
    cumulative : sequence of float
        abar_t of the training times: the product of 1 - beta up to t.
    times : sequence of int
        In the order of sampling, falling.
    last : float
        abar at which the last step ends; 1 is clean.

    Returns
    -------
    tuple of Level
        alpha = sqrt(abar), sigma = sqrt(1 - abar).

    Raises
    ------
    ValueError
        A time outside of the training range.
    """
    wrong = [t for t in times if not 0 <= t < len(cumulative) or t != int(t)]
    if wrong:
        raise ValueError(
            f"Expected times from 0 to {len(cumulative) - 1}, as in training, got {wrong[0]}: the "
            "denoiser has seen no other."
        )
    inside = [_preserving(t, cumulative[int(t)]) for t in times]
    return (*inside, _preserving(math.nan, last))


def schedule_of(scheduler: Any) -> Schedule:
    """Return the levels that a scheduler of diffusers goes through, after its `set_timesteps`.

    Parameters
    ----------
    scheduler : scheduler
        A DDPM, DDIM, PNDM, DPM-Solver, DEIS, SA-Solver, UniPC, Euler, Heun, LMS or flow-matching
        (Euler, Heun) scheduler, or a subclass of one.

    Returns
    -------
    Schedule
        In the scheduler's own coordinates: Euler's and those like it have alpha = 1 and samples as
        large as sigma. Its steps are first-order and draw no noise, whatever the scheduler's are.

    Raises
    ------
    ValueError
        An unknown scheduler, one without time steps or with `thresholding`, or a prediction of
        another kind.

    Notes
    -----
    Levels are those of which the denoiser is told. DDIM's and PNDM's schedulers step by the whole
    quotient of training times and steps whatever their `timestep_spacing` is. Each step may then
    end beside the next level: by 1 of 1,000 times with "trailing" where steps do not divide them,
    and by 34 with "linspace" and 6 steps.
    """
    names = {cls.__name__ for cls in type(scheduler).__mro__}
    if not names & (_DISCRETE | _PRESERVING | _EXPLODING | _FLOW):
        known = sorted(_DISCRETE | _PRESERVING | _EXPLODING | _FLOW)
        raise ValueError(
            f"Expected one of the schedulers {', '.join(known)}, got {type(scheduler).__name__}: "
            "give pipe.scheduler, or the noise levels as an approx.diffusion.Schedule."
        )
    times = getattr(scheduler, "timesteps", None)
    if times is None or getattr(scheduler, "num_inference_steps", None) is None:
        raise ValueError(
            f"Expected a {type(scheduler).__name__} with time steps, got none: call its "
            "set_timesteps(number of steps) first."
        )
    config = scheduler.config
    if getattr(config, "thresholding", False):
        raise ValueError(
            f"Expected a {type(scheduler).__name__} without thresholding, got thresholding=True: "
            "quantiles of each estimate of x_0 bound it. Set thresholding=False, or give the noise "
            "levels as an approx.diffusion.Schedule, whose estimates are those before that."
        )
    times = [float(t) for t in times]
    prediction: Any = getattr(config, "prediction_type", "epsilon")
    if is_flow(scheduler):
        sigmas = [float(s) for s in scheduler.sigmas]
        if getattr(config, "invert_sigmas", False):
            raise ValueError(
                "Expected sigmas that fall from noise to data, got invert_sigmas=True: give the "
                "noise levels as an approx.diffusion.Schedule."
            )
        levels = [Level(t, 1 - s, s) for t, s in _paired(times, sigmas)]
        prediction = "flow_prediction" if names & _FLOW else prediction
    elif names & _DISCRETE:
        final = getattr(scheduler, "final_alpha_cumprod", getattr(scheduler, "one", 1.0))
        cumulative = [float(a) for a in scheduler.alphas_cumprod]
        levels = diffusion_levels(cumulative, [int(t) for t in times], last=float(final))
    elif names & _EXPLODING:
        pairs = _paired(times, [float(s) for s in scheduler.sigmas])
        levels = [Level(t, 1.0, s, 1 / math.hypot(1, s)) for t, s in pairs]
    else:
        pairs = _paired(times, [float(s) for s in scheduler.sigmas])
        levels = [Level(t, 1 / math.hypot(1, s), s / math.hypot(1, s)) for t, s in pairs]
    clip = None
    if getattr(config, "clip_sample", False):
        clip = float(getattr(config, "clip_sample_range", 1.0))
    return Schedule(tuple(levels), prediction, clip)


def is_flow(scheduler: Any) -> bool:
    """Return whether a scheduler mixes (1 - sigma) x_0 with sigma eps."""
    names = {cls.__name__ for cls in type(scheduler).__mro__}
    return bool(names & _FLOW) or bool(getattr(scheduler.config, "use_flow_sigmas", False))


def _paired(times: list[float], sigmas: list[float]) -> list[tuple[float, float]]:
    """Return the times with their sigmas, and the sigma at which the last step ends."""
    if len(sigmas) != len(times) + 1:
        raise ValueError(
            f"Expected one sigma more than the {len(times)} time steps, got {len(sigmas)}: call "
            "set_timesteps before."
        )
    return list(zip([*times, math.nan], sigmas, strict=True))


def _preserving(time: float, cumulative: float) -> Level:
    return Level(float(time), math.sqrt(cumulative), math.sqrt(max(0.0, 1 - cumulative)))
