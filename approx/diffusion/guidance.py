"""Guidance by a reward: what it changes about the prediction that goes into a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from approx.decoder import precision
from approx.diffusion.pipelines import Codes, Layout, laid_out
from approx.diffusion.reward import ClassifierReward
from approx.diffusion.schedules import Level, Prediction, Schedule, mean_of
from approx.diffusion.stepping import GUIDES, Step, watched

Reward = Callable[[Tensor], Tensor]
"""Takes clean latents (B, ...), returns (B,), differentiable by them."""

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""Takes samples (B, ...) times their level's scale, and times (B,); returns the prediction."""


class GuidedStep(NamedTuple):
    """What guidance did in one step, a number for each latent: doubled samples count once.

    Attributes
    ----------
    number : int
        Of the step, from 0.
    time : float
        What the denoiser was told.
    through : {"sample", "clean", "denoiser"}
        How the gradient was taken: of a classifier of noisy samples; at the estimate of x_0 with
        the prediction held fixed; or through the denoiser.
    reward : (B,) float64
        Before the step.
    gradient : (B,) float64
        Norms of the gradient by the sample.
    change : (B,) float64
        Norms of the change of the prediction over those of the prediction, after clipping.
    clipped : (B,) bool
        Whether it was shortened.
    cosine : (B,) float64
        Between change and prediction.
    """

    number: int
    time: float
    through: str
    reward: NDArray[np.float64]
    gradient: NDArray[np.float64]
    change: NDArray[np.float64]
    clipped: NDArray[np.bool_]
    cosine: NDArray[np.float64]


@dataclass(eq=False)
class Guided:
    """What guidance did, step by step; grows as the pipeline runs.

    Attributes
    ----------
    rho : float
        Strength.
    steps : list of GuidedStep
        None of a run with rho = 0.
    """

    rho: float
    steps: list[GuidedStep] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Guided(rho={self.rho:g}, {len(self.steps)} steps)"

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return means over the samples, a row for each step; of `clipped` it is their share."""
        first = {
            name: np.array([getattr(step, name) for step in self.steps])
            for name in ("number", "time", "through")
        }
        means = {
            name: np.array([float(getattr(step, name).mean()) for step in self.steps])
            for name in ("reward", "gradient", "change", "clipped", "cosine")
        }
        return first | means


@contextmanager
def guide(
    pipe: Any,
    reward: Reward | ClassifierReward,
    rho: float = 1.0,
    *,
    clip: float | None = None,
    through: Literal["clean", "denoiser"] = "clean",
    denoiser: Denoiser | None = None,
    codes: Codes | None = None,
    schedule: Schedule | None = None,
) -> Iterator[Guided]:
    r"""Steer a pipeline by a reward: rho > 0 raises it, rho < 0 lowers it.

    Parameters
    ----------
    pipe : pipeline
        Of diffusers, or anything whose `scheduler` has a `step`. It is as before afterwards.
    reward : callable
        An `ExactReward`, `SketchReward` or other function of the latents that the decoder takes,
        (B, ...) -> (B,), differentiable; or a `ClassifierReward`, of noisy samples.
    rho : float
        Strength. At 0 nothing is computed and the samples are bitwise those without. Gradients of
        psi are long, 30 to 50 on a small decoder of digits where those of a classifier's log p are
        1 to 2: `ExactReward` and `SketchReward` ask for a rho some 25 times smaller.
    clip : float, optional
        Bound on the norm of the change over that of the prediction, for each sample; None for none.
        Above 1 little of the prediction is left: 0.3 is a good bound for rewards without training.
    through : {"clean", "denoiser"}
        Take the gradient at the estimate of x_0 with the prediction held fixed, or through the
        denoiser. A prediction of x_0 held fixed would leave no gradient: the estimate is then taken
        to move with the sample as that of a velocity v does, by alpha / (alpha^2 + sigma^2).
    denoiser : callable, optional
        (samples (B, ...) times the level's scale, times (B,)) -> what goes into the step; for
        "denoiser" alone.
    codes : callable, optional
        Latents as the pipeline steps them -> as the reward takes them, differentiable. By default
        as in `record`: doubled batches are halved, packed latents unpacked, and for rewards of
        clean latents scaling and shift undone.
    schedule : Schedule, optional
        The noise levels, where `schedule_of` does not know the scheduler.

    Yields
    ------
    Guided
        Norms by step.

    Raises
    ------
    ValueError
        On entry: options that do not fit. In the pipeline, with the step: a reward of another shape
        of latents or without a gradient, gradients that are not finite, and for a classifier times
        outside of its training. On exit: no step was taken, or, for rewards of clean latents, the
        pipeline decodes others than those that were rewarded.

    Notes
    -----
    A sample is x = alpha x_0 + sigma eps, and g the gradient of the reward by x. The score of
    the samples is -eps / sigma, so adding rho g to it is eps <- eps - rho sigma g, where sigma =
    sqrt(1 - abar) (P. Dhariwal, A. Nichol, "Diffusion models beat GANs", 2021, algorithm 2). At
    the same x this moves x_0 by rho sigma^2 / alpha g, and hence v by - rho (sigma / alpha) s g
    with s^2 = alpha^2 + sigma^2, and a velocity eps - x_0 by - rho (sigma / alpha) (alpha + sigma)
    g.

    For predictions other than eps, sigma / alpha is replaced by min(sigma / alpha, 1): near pure
    noise, the change of a velocity is bounded by rho \|\|g\|\|, instead of growing with
    1 / (1 - sigma). In the less noisy half all kinds of prediction are guided alike.

    The prediction is changed before the scheduler sees it: solvers of several steps keep guided
    predictions in their history, and what they cost is the gradient alone. It is computed in
    float32 (float64 for samples in float64), also where the pipeline runs in half precision.
    Schedulers that draw noise draw the same at any rho, so that runs of one seed are pairs.
    """
    noisy = isinstance(reward, ClassifierReward)
    if not callable(reward):
        raise ValueError(
            f"Expected a reward as a function of latents, got {reward!r}: give an ExactReward, a "
            "SketchReward, or what reward.fit returned."
        )
    if not isinstance(rho, (int, float)) or not math.isfinite(rho):
        raise ValueError(f"Expected a finite rho, got {rho!r}: it multiplies the gradient.")
    if clip is not None and not (isinstance(clip, int | float) and clip > 0):
        raise ValueError(
            f"Expected clip above 0, got {clip!r}: it bounds the change as a share of the "
            "prediction; None for no bound."
        )
    if through not in ("clean", "denoiser"):
        raise ValueError(
            f"Expected through as 'clean' or 'denoiser', got {through!r}: say where the gradient "
            "is taken."
        )
    if (through == "denoiser") != (denoiser is not None):
        raise ValueError(
            f"Expected denoiser= with through='denoiser' and there alone, got through={through!r} "
            f"and denoiser={denoiser!r}: give a function of (samples, time) that predicts."
        )
    if noisy and denoiser is not None:
        raise ValueError(
            "Expected a reward of clean latents with through='denoiser', got a ClassifierReward, "
            "which takes noisy samples: leave through= out."
        )
    guided = Guided(rho)
    told = "sample" if noisy else through

    def watcher(step: Step) -> Tensor:
        layout.begins(step)
        if rho == 0:
            return step.predicted
        with torch.inference_mode(False), torch.enable_grad(), precision(step.sample.device, None):
            wide = torch.promote_types(step.sample.dtype, torch.float32)
            # out of inference mode only a copy of its tensors can be differentiated
            x, predicted = (t.detach().clone().to(wide) for t in (step.sample, step.predicted))
            x.requires_grad_()
            values = _rewarded(reward, step, x, predicted, denoiser, layout)
            gradient = _gradient_of(values, x, step)
        return _changed(step, predicted, gradient, values, guided, clip, told)

    scheduler = getattr(pipe, "scheduler", None)
    with (
        laid_out(pipe, codes) as layout,
        watched(scheduler, watcher, GUIDES, schedule, ended=layout.ended),
    ):
        yield guided
    if rho != 0 and not noisy:
        layout.check()


def _rewarded(
    reward: Any,
    step: Step,
    x: Tensor,
    predicted: Tensor,
    denoiser: Denoiser | None,
    layout: Layout,
) -> Tensor:
    """Return the rewards (b,) as a function of the samples x."""
    level = step.level
    noisy = isinstance(reward, ClassifierReward)
    z = layout(x if noisy else _estimate(step, x, predicted, denoiser), scaled=noisy)
    try:
        values = reward(z, level) if noisy else reward(z)
    except Exception as error:
        error.add_note(f"This was the reward in step {step.number}, at time {level.time:g}.")
        raise
    rows = len(z)
    if not isinstance(values, Tensor) or values.shape != (rows,):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"Expected a reward of shape ({rows},), a number for each latent, got {got} in step "
            f"{step.number}: sum over all other axes."
        )
    return values


def _estimate(step: Step, x: Tensor, predicted: Tensor, denoiser: Denoiser | None) -> Tensor:
    """Return the estimate of x_0 as a function of the samples x."""
    level = step.level
    if denoiser is not None:
        times = torch.full((len(x),), level.time, dtype=x.dtype, device=x.device)
        return step.schedule.clean(x, denoiser(x * level.scale, times), level)
    estimate = step.schedule.clean(x, predicted, level)
    if step.schedule.prediction == "sample":
        estimate = estimate + (level.alpha / level.norm**2) * (x - x.detach())
    return estimate


def _gradient_of(values: Tensor, x: Tensor, step: Step) -> Tensor:
    """Return the gradient by the samples; refuse one that is missing or not finite."""
    found = None
    if values.requires_grad:
        (found,) = torch.autograd.grad(values.sum(), x, allow_unused=True)
    if found is None:
        raise ValueError(
            "Expected a reward that depends on its latents, got no gradient in step "
            f"{step.number}: compute it with torch, without detach or no_grad."
        )
    if not bool(torch.isfinite(found).all()):
        raise ValueError(
            f"Expected finite gradients of the reward, got NaN or infinity in step {step.number} "
            f"(time {step.level.time:g}): begin to guide at a later step, or lower rho or the "
            "guidance of the prompt if the samples have left the data."
        )
    return found


def _changed(
    step: Step,
    predicted: Tensor,
    gradient: Tensor,
    values: Tensor,
    guided: Guided,
    clip: float | None,
    through: str,
) -> Tensor:
    """Return the prediction with the reward's part, and keep the norms of both."""
    mean = mean_of(predicted, gradient)
    change = guided.rho * leverage(step.level, step.schedule.prediction) * gradient
    sizes, size = (x.flatten(1).double().norm(dim=1) for x in (mean, change))
    share = size / sizes
    shorter = torch.ones_like(share)
    if clip is not None:
        shorter = (clip * sizes / size.clamp_min(torch.finfo(size.dtype).tiny)).clamp_max(1)
        change = change * shorter.to(change).reshape(-1, *[1] * (change.ndim - 1))
    inner = (mean * change).flatten(1).double().sum(1)
    cosine = inner / (sizes * size * shorter)
    result = torch.cat([mean + change, predicted[:, mean.shape[1] :]], dim=1)
    result = result.to(step.predicted.dtype)
    if not bool(torch.isfinite(result).all()):
        raise ValueError(
            f"Expected a guided prediction that {result.dtype} can hold, got infinity in step "
            f"{step.number}: give clip=, or a smaller rho."
        )
    columns = (values, gradient.flatten(1).norm(dim=1), share * shorter, cosine, shorter < 1)
    # of doubled samples the second ones have no part in the reward
    kept = (c.detach()[: len(values)].cpu() for c in columns)
    reward, norms, share, cosine, clipped = (c.double().numpy() for c in kept)
    guided.steps.append(
        GuidedStep(step.number, step.level.time, through, reward, norms, share, clipped > 0, cosine)
    )
    return result


def leverage(level: Level, prediction: Prediction) -> float:
    """Return the change of a prediction for a gradient of 1 by the sample (see `guide`)."""
    if prediction == "epsilon":
        return -level.sigma
    bounded = 1.0 if level.sigma >= level.alpha else level.sigma / level.alpha
    if prediction == "sample":
        return level.sigma * bounded
    if prediction == "v_prediction":
        return -bounded * level.norm
    return -bounded * (level.alpha + level.sigma)
