"""Recording: psi, nu and delta along the sampling of a pipeline."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from approx.decoder import HALF, bind, dtypes_of
from approx.diffusion.pipelines import Codes, Layout, decoder_of, denoiser_of, laid_out, loaded
from approx.diffusion.schedules import Schedule
from approx.diffusion.stepping import RECORDS, Step, check_scheduler, watched
from approx.diffusion.unrolling import Denoiser, estimated, whole_times
from approx.tables import DescribeError, Descriptors, concatenate, describe, imported, seed_of

if TYPE_CHECKING:
    import pandas as pd

PLACES = ("sample", "clean")


class Seen(NamedTuple):
    """Latents of one step at one place.

    Attributes
    ----------
    call : int
        Of the pipeline, from 0.
    step : int
        From 0; of the finished sample the number of steps.
    time, sigma : float
        What the denoiser was told, NaN for the finished sample; noise over signal.
    at : {"sample", "clean"}
    latents : (B, *latent_shape)
        As the decoder takes them, on the CPU.
    schedule : Schedule
        Of the run.
    """

    call: int
    step: int
    time: float
    sigma: float
    at: str
    latents: Tensor
    schedule: Schedule


@dataclass(eq=False)
class Run:
    """Latents along sampling and, once the `with` has ended, their descriptors.

    Attributes
    ----------
    seen : list of Seen
        In the order in which they came; kept after errors and interrupts.
    descriptors : Descriptors or None
        A row for each latent of `seen`, in its order; the first ones where describing was stopped.
    complete : bool
        Whether everything was sampled and described.
    of : str
        What the descriptors are of.
    seconds : dict of str to float
        Spent in all of the `with`, in the `recording` of latents and in `describing` them.
    """

    of: str
    seen: list[Seen] = field(default_factory=list)
    descriptors: Descriptors | None = None
    complete: bool = False
    seconds: dict[str, float] = field(
        default_factory=lambda: {"all": 0.0, "recording": 0.0, "describing": 0.0}
    )

    def __repr__(self) -> str:
        latents = sum(len(seen.latents) for seen in self.seen)
        return f"Run({latents} latents, {self.descriptors or 'not described yet'})"

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the columns by name, a row for each latent that was described.

        `call`, `step`, `timestep`, `sigma` (noise over signal, sigma / alpha, of the level at which
        the step begins), `sample` (number in the batch), `at`, `norm` (of the latent that the
        decoder takes), and those of `Descriptors`.
        """
        found = {} if self.descriptors is None else self.descriptors.columns()
        rows = 0 if self.descriptors is None else len(self.descriptors)
        sizes = [len(s.latents) for s in self.seen]
        norms = [s.latents.flatten(1).double().norm(dim=1).numpy() for s in self.seen]
        own: dict[str, Any] = {
            "call": np.repeat(np.array([s.call for s in self.seen], dtype=np.int64), sizes),
            "step": np.repeat(np.array([s.step for s in self.seen], dtype=np.int64), sizes),
            "timestep": np.repeat(np.array([s.time for s in self.seen], dtype=float), sizes),
            "sigma": np.repeat(np.array([s.sigma for s in self.seen], dtype=float), sizes),
            "sample": np.concatenate([np.arange(n) for n in sizes] or [np.arange(0)]),
            "at": np.repeat(np.array([s.at for s in self.seen], dtype=str), sizes),
            "norm": np.concatenate(norms or [np.empty(0)]),
        }
        return {**{name: column[:rows] for name, column in own.items()}, **found}

    def attributes(self) -> dict[str, Any]:
        """Return what holds for the whole table, in types that files can hold."""
        found = {} if self.descriptors is None else self.descriptors.attributes()
        times = {f"seconds_{name}": value for name, value in self.seconds.items()}
        whole = self.seconds["all"]
        share = self.seconds["describing"] / whole if whole else 0.0
        own = {"of": self.of, "complete": int(self.complete), "share_describing": share}
        return found | own | times

    @property
    def table(self) -> pd.DataFrame:
        """A DataFrame of `columns()` with `attributes()` in its `attrs`.

        ``run.table.to_parquet(path)`` keeps both, and ``pandas.read_parquet`` reads them.
        Raises ImportError without pandas (extra ``cpwl[table]``).
        """
        frame = imported("pandas").DataFrame(self.columns())
        frame.attrs = self.attributes()
        return frame


@contextmanager
def record(
    pipe: Any,
    *,
    every: int = 1,
    at: str | Sequence[str] | None = None,
    decoder: Callable[[Tensor], Any] | None = None,
    denoiser: Denoiser | None = None,
    codes: Codes | None = None,
    schedule: Schedule | None = None,
    **describe_options: Any,
) -> Iterator[Run]:
    r"""Record psi, nu and delta along the sampling of a pipeline.

    Parameters
    ----------
    pipe : pipeline
        Of diffusers, or anything whose `scheduler` has a `step`. It is as before afterwards, and
        its samples are bitwise those that it draws without.
    every : int
        Record each `every`-th step from 0. The first and the last step and the finished sample are
        always recorded, where the pipeline comes to them.
    at : {"sample", "clean"} or several of them, optional
        At the sample x_t, at the estimate of x_0, or by default at both. Without an autoencoder, at
        the sample alone.
    decoder : callable, optional
        Whose descriptors; by default the pipeline's `vae.decode` (of a VQModel without its
        quantiser). Without an autoencoder, it is the map from x_t to the estimate of x_0, before it
        is clipped, at each step's time, and the finished sample has none.
    denoiser : callable, optional
        (samples, times) -> prediction, by default the pipeline's `unet` or `transformer`. Needed
        under another name, and without an autoencoder for one that takes conditions: bind them.
    codes : callable, optional
        Latents as the pipeline steps them -> as the decoder takes them. By default doubled batches
        are halved, packed latents unpacked where the transformer is told `img_ids`, and scaling and
        shift undone as the autoencoder's configuration says. Where the pipeline decodes something
        else, this is refused on exit.
    schedule : Schedule, optional
        The noise levels, where `schedule_of` does not know the scheduler.
    **describe_options
        Of `describe`: `k`, `method`, `neighbourhood`, `seed`, ... The probes are the same at all
        steps. Beyond 120 numbers a latent, psi and nu are by default psi_W and nu_W; delta is 0
        everywhere where the radius is small: `run.descriptors` says at which it counts some knots.

    Yields
    ------
    Run
        Its `table` is there after the `with`.

    Raises
    ------
    ValueError
        On entry: a pipeline without a scheduler, unknown options. In the pipeline: an
        unknown scheduler, latents of another shape than in the first call. On exit: no step was
        taken, weights that are offloaded; with the table there, latents that are not those which
        the pipeline decodes.
    DecoderError, DescribeError
        On exit, as `describe` does; the rows before are in the table. After an error in the
        pipeline that one is raised, with this as a note.

    Notes
    -----
    Steps only copy latents to the CPU. All of them are described on exit in one job of `describe`
    (without an autoencoder in one for each time), also after an error or Ctrl-C in the pipeline:
    decoders are checked once, sampling is not slowed down, and `torch.no_grad` or inference mode
    there is no matter. Ctrl-C while they are described ends that.

    Latents are taken in at least float32, and half-precision decoders are run as `describe` does:
    as copies in float32. What is described is what the pipeline runs, with tiling where that is
    switched on and the latents are larger than a tile; psi is then that of the blended tiles.

    Schedulers that draw noise draw the same as without: samples have it, estimates of x_0 do not.
    A finished sample that a callback or a blend changes behind the last step is known only where
    the pipeline decodes it. One thread at a time: describing takes a model's weights out for a
    moment.
    """
    if isinstance(every, bool) or not isinstance(every, int | np.integer) or every < 1:
        raise ValueError(
            f"Expected every as an integer of at least 1, got {every!r}: 1 records all steps."
        )
    scheduler = getattr(pipe, "scheduler", None)
    check_scheduler(scheduler)
    if not isinstance(schedule, Schedule | None):
        raise ValueError(
            f"Expected schedule as an approx.diffusion.Schedule, got {type(schedule).__name__}: "
            "leave it out for a scheduler of diffusers."
        )
    inner = decoder_of(pipe) if decoder is None else decoder
    if inner is not None and not callable(inner):
        raise ValueError(
            f"Expected decoder as a function of latents, got {inner!r}: such as pipe.vae.decode."
        )
    chosen = _places(at, inner is not None, pipe)
    if inner is not None:
        of = "decoder"
    else:
        denoiser = denoiser or denoiser_of(pipe)
        of = "estimate of x_0 by x_t before it is clipped, at each step's time"
    options = _options(describe_options)
    run = Run(of)

    def keep(step: Step, number: int, level: Any, at: str, x: Tensor, of: Layout) -> None:
        with torch.inference_mode(False), torch.no_grad():
            # an inference tensor has a usual one only as its copy
            z = of(x.detach().clone()).to("cpu", copy=True)
        if run.seen and run.seen[0].latents.shape[1:] != z.shape[1:]:
            raise ValueError(
                f"Expected latents of shape {tuple(run.seen[0].latents.shape[1:])} in every call, "
                f"got {tuple(z.shape[1:])}: record each size by itself."
            )
        sigma = level.sigma / level.alpha if level.alpha else math.inf
        time_ = level.time if number < len(step.schedule) else math.nan
        run.seen.append(Seen(layout.call, number, time_, sigma, at, z, step.schedule))

    def watcher(step: Step) -> Tensor:
        begun = time.perf_counter()
        home[:] = [step.sample.device]
        if layout.begins(step) or step.number % every == 0 or step.number == len(step.schedule) - 1:
            wide = torch.promote_types(step.sample.dtype, torch.float32)
            for place in chosen:
                x = step.sample.to(wide)
                if place == "clean":
                    x = step._replace(sample=x, predicted=step.predicted.to(wide)).clean
                keep(step, step.number, step.level, place, x, layout)
        run.seconds["recording"] += time.perf_counter() - begun
        return step.predicted

    def ended(step: Step, sample: Tensor) -> None:
        layout.ended(step, sample)
        if step.number == len(step.schedule) - 1 and inner is not None and "sample" in chosen:
            keep(step, step.number + 1, step.schedule.levels[-1], "sample", sample, layout)

    home: list[torch.device] = []
    begun = time.perf_counter()
    try:
        with (
            laid_out(pipe, codes, denoiser) as layout,
            watched(scheduler, watcher, RECORDS, schedule, ended=ended),
        ):
            yield run
            through = layout.finished is not None
    except BaseException as error:
        try:
            _describe(run, inner, denoiser, home, options, whole_times(scheduler))
        except Exception as second:
            error.add_note(f"What was recorded could not be described: {second}")
        raise
    else:
        _describe(run, inner, denoiser, home, options, whole_times(scheduler))
        layout.check()
        described = run.descriptors is not None and run.descriptors.complete
        run.complete = described and through
    finally:
        run.seconds["all"] = time.perf_counter() - begun


def _places(at: str | Sequence[str] | None, decodes: bool, pipe: Any) -> tuple[str, ...]:
    if at is None:
        return PLACES if decodes else PLACES[:1]
    chosen: tuple[Any, ...] = tuple(at) if isinstance(at, list | tuple) else (at,)
    wrong = [place for place in chosen if place not in PLACES]
    if wrong or not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(
            f"Expected at as 'sample', 'clean' or both, got {at!r}: say where the decoder is "
            "described."
        )
    if not decodes and "clean" in chosen:
        raise ValueError(
            f"Expected at='sample' for a {type(pipe).__name__}, which has no autoencoder, got "
            f"{at!r}: its map to the estimate of x_0 begins at the sample. Give decoder= for a map "
            "of the estimate."
        )
    return chosen


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """Return options of `describe` with a seed, drawn once for all jobs."""
    taken = inspect.signature(describe).parameters.keys() - {"decoder", "latents", "total"}
    unknown = sorted(given.keys() - taken)
    if unknown:
        raise ValueError(
            f"Expected options of describe ({', '.join(sorted(taken))}), got {unknown[0]}: see "
            "approx.describe."
        )
    return given | {
        "generator": None, "seed": seed_of(given.get("generator"), given.get("seed"))
    }  # fmt: skip


def _describe(
    run: Run,
    decoder: Any,
    denoiser: Any,
    home: list[torch.device],
    options: dict[str, Any],
    whole: bool,
) -> None:
    """Describe what was seen, as far as it goes; `whole` is whether times are whole numbers."""
    if not run.seen:
        return
    begun, done = time.perf_counter(), []
    try:
        if decoder is not None:
            with loaded(decoder, home[0]) as device:
                done.append(_described(done, decoder, run.seen, device, options))
            return
        with loaded(denoiser, home[0]) as device:
            # a job for each time: several calls of a pipeline come to the same ones
            groups: dict[float, list[Seen]] = {}
            for seen in run.seen:
                groups.setdefault(seen.time, []).append(seen)
            run.seen = [seen for group in groups.values() for seen in group]
            for t, group in groups.items():
                # where entries are clipped, psi would be of a singular matrix
                levels = replace(group[0].schedule, clip=None)
                step = bind(partial(estimated, denoiser, levels, levels.index(t), whole))
                found = _described(done, step, group, device, options)
                done.append(found)
                if not found.complete:
                    break
    finally:
        if done:
            run.descriptors = concatenate(done)
        run.seconds["describing"] = time.perf_counter() - begun


def _described(
    done: list[Descriptors],
    decoder: Any,
    seen: Sequence[Seen],
    device: torch.device,
    options: dict[str, Any],
) -> Descriptors:
    """Describe latents; what is done when something stops it is added to `done`."""
    latents = torch.cat([s.latents for s in seen]).to(device)
    try:
        return describe(decoder, latents, **_fitting(decoder, options))
    except DescribeError as error:
        done.append(error.partial)
        raise


def _fitting(decoder: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return options under which a decoder in half precision is run as a copy in float32."""
    asked = options.get("dtype") is not None or options.get("method") == "exact"
    if asked or not dtypes_of(decoder) & set(HALF):  # "exact" takes float64 by itself
        return options
    return options | {"dtype": torch.float32}
