"""The `step` of a scheduler, watched on the instance and restored."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from approx.diffusion.schedules import Level, Schedule, schedule_of

# where a watcher stands: guides change the prediction, records see what then goes into the step
GUIDES, RECORDS = 0, 1


class Step(NamedTuple):
    """What goes into one call of a scheduler's `step`.

    Attributes
    ----------
    number : int
        Of the step in its run, from 0.
    level : Level
        At which it begins.
    schedule : Schedule
        Of the run.
    sample, predicted : Tensor
        As they go into the step: packed, doubled and scaled where the pipeline does so.
    given : Tensor
        The prediction as the pipeline passed it, before any guide changed it.
    call : int
        Number of the run among those watched, from 0.
    """

    number: int
    level: Level
    schedule: Schedule
    sample: Tensor
    predicted: Tensor
    given: Tensor
    call: int

    @property
    def clean(self) -> Tensor:
        """The estimate of x_0 from the prediction, laid out as the sample."""
        return self.schedule.clean(self.sample, self.predicted, self.level)


Watcher = Callable[[Step], Tensor]
"""Returns the prediction that goes into the step: the one that it was shown, or another."""

Ended = Callable[[Step, Tensor], None]
"""Shown a step and the sample that it returned."""


def check_scheduler(scheduler: Any) -> None:
    """Refuse what does not step."""
    if not callable(getattr(scheduler, "step", None)):
        raise ValueError(
            f"Expected a scheduler with a step method, got {type(scheduler).__name__}: give a "
            "pipeline whose .scheduler steps from noise to data."
        )


@contextmanager
def watched(
    scheduler: Any,
    watcher: Watcher,
    place: int,
    schedule: Schedule | None = None,
    *,
    ended: Ended | None = None,
) -> Iterator[None]:
    """Show every step of a scheduler to a watcher; its `step` is the old one again afterwards.

    Several watchers share one wrapper, in the order of their places and not of their coming.

    Parameters
    ----------
    scheduler : scheduler
        Of a pipeline; anything with a `step(prediction, t, sample, ...)`.
    watcher : callable
        Shown each `Step`; what it raises ends the pipeline.
    place : {GUIDES, RECORDS}
        Whether it changes the prediction or sees what goes into the step.
    schedule : Schedule, optional
        The noise levels, where `schedule_of` does not know the scheduler.
    ended : callable, optional
        Shown what the step returned.

    Raises
    ------
    ValueError
        On entry, something that does not step; on exit, if no step was taken.
    """
    check_scheduler(scheduler)
    if not hasattr(scheduler.step, "watchers"):
        scheduler.step = _wrapper(scheduler, vars(scheduler).get("step"))
    wrapper: Any = scheduler.step
    chain: list[Any] = wrapper.watchers
    before = wrapper.run["steps"]
    entry = (place, watcher, schedule, ended)
    chain.append(entry)
    chain.sort(key=lambda e: e[0])
    try:
        yield
        if wrapper.run["steps"] == before:
            raise ValueError(
                f"Expected steps of the pipeline's {type(scheduler).__name__}, got none: call the "
                "pipeline within the `with`; one that steps a copy has to be given that as its "
                ".scheduler."
            )
    finally:
        chain.remove(entry)
        if not chain:
            if wrapper.before is None:
                del scheduler.step
            else:
                scheduler.step = wrapper.before


def _wrapper(scheduler: Any, before: Any) -> Callable[..., Any]:
    """Return a `step` that shows its arguments to a chain of watchers first.

    `before` is the one that the instance itself had, or None.
    """
    step, chain = scheduler.step, []
    run: dict[str, Any] = {"times": None, "number": -1, "schedule": None, "call": -1, "steps": 0}

    # of the same signature: pipelines look whether it takes eta or a generator
    @functools.wraps(step)
    def watched_step(
        model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        times = getattr(scheduler, "timesteps", None)
        if run["schedule"] is None or times is not run["times"]:  # set_timesteps: a new run
            given = next((s for _, _, s, _ in chain if s is not None), None)
            run.update(times=times, number=-1, schedule=given or schedule_of(scheduler))
            run["call"] += 1
        schedule: Any = run["schedule"]
        try:
            number = schedule.index(timestep, run["number"])
        except ValueError:  # the same times again, from their beginning
            number = schedule.index(timestep)
            run["call"] += 1
        run["number"] = number
        run["steps"] += 1
        level, call = schedule.levels[number], run["call"]
        shown = Step(number, level, schedule, sample, model_output, model_output, call)
        entries = list(chain)
        for _, watcher, _, _ in entries:
            shown = shown._replace(predicted=watcher(shown))
        found = step(shown.predicted, timestep, sample, *args, **kwargs)
        for _, _, _, ended in entries:
            if ended is not None:
                ended(shown, found[0] if isinstance(found, tuple) else _sample(found))
        return found

    vars(watched_step).update(watchers=chain, before=before, run=run)
    return watched_step


def _sample(found: Any) -> Tensor:
    return getattr(found, "prev_sample", found)
