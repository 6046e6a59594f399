"""The loop of every training: steps of Adam, checkpoints, progress, and a watcher."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from approx.decoder import whole
from bridges.networks.toys import one_thread
from cpwl.contents import open_archive
from cpwl.files import atomic_path

Module = TypeVar("Module", bound=nn.Module)

Watch = Callable[[Any, int], object]
"""Called with the module and the number of steps done: a `bridges.Monitor`, for example."""


_PARTS = {"module": dict, "optimiser": dict, "generator": Tensor, "options": dict, "losses": Tensor}


class Trained(NamedTuple, Generic[Module]):
    """A module and how it came about.

    Attributes
    ----------
    module : nn.Module
        In evaluation mode.
    losses : (steps,) float64 Tensor
        The loss of each batch, before its step.
    complete : bool
        False where Ctrl-C ended it; the module is then that of the steps that `losses` has.
    """

    module: Module
    losses: Tensor
    complete: bool


def descend(
    module: Module,
    loss_of: Callable[[torch.Generator, int], Tensor],
    *,
    options: Mapping[str, Any],
    steps: int,
    rate: float,
    seed: int,
    decay: bool,
    checkpoint: str | os.PathLike[str] | None,
    every: int,
    progress: bool,
    watch: Watch | None,
) -> Trained[Module]:
    """Descend along a loss, on one thread, so that the result does not depend on their number.

    Parameters
    ----------
    module : nn.Module
        Whose parameters with `requires_grad` are trained.
    loss_of : callable
        From a generator, whose state is kept in checkpoints, and the steps done, to a batch's loss.
    options : mapping
        What tells one training from another: numbers, strings, tuples and None.
    steps : int
        Of Adam.
    rate : float
        At the first step.
    seed : int
        Of the generator.
    decay : bool
        Whether the rate falls to 0 by half a cosine, or stays.
    checkpoint : path or None
        Written every `every` steps and at the end. Where it is there already, training goes on from
        it, to what a run without a stop gives, bit for bit.
    every : int
        Steps between two checkpoints.
    progress : bool
        Whether to show a bar.
    watch : callable or None
        See `Watch`: before the first step, and after each.

    Returns
    -------
    Trained
        After Ctrl-C what is done so far, with a warning.

    Raises
    ------
    ValueError
        A checkpoint of other options, or none; a watcher that cannot be called; a loss that is not
        finite.
    """
    (every,) = counts(1, every=every)
    if watch is not None and not callable(watch):
        raise ValueError(
            f"Expected watch= as a function of module and steps, got {type(watch).__name__}: give "
            "a Monitor, for example."
        )
    generator = torch.Generator().manual_seed(seed)
    device = next(module.parameters()).device
    trained = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=rate, fused=True)  # a quarter of a small step's time
    losses: list[float] = []
    checkpoint = None if checkpoint is None else Path(checkpoint)
    if checkpoint is not None and checkpoint.exists():
        state = read_checkpoint(checkpoint, device)
        _check_options(state["options"], options, checkpoint)
        with restoring(checkpoint):
            module.load_state_dict(state["module"])
            optimiser.load_state_dict(state["optimiser"])
            generator.set_state(state["generator"].cpu())
            losses = state["losses"].tolist()
            if len(losses) > steps:
                raise ValueError(f"{len(losses)} of {steps} steps")
    complete = True

    def save() -> None:
        if checkpoint is None:
            return
        state = {
            "module": module.state_dict(), "optimiser": optimiser.state_dict(),
            "generator": generator.get_state(), "options": dict(options),
            "losses": torch.tensor(losses, dtype=torch.float64),
        }  # fmt: skip
        with atomic_path(checkpoint) as part:
            torch.save(state, part)

    def look() -> None:
        if watch is None:
            return
        try:
            watch(module, len(losses))
        except Exception:
            save()  # the steps since the last checkpoint are not lost with it
            raise

    with (
        one_thread(),
        tqdm(total=steps, initial=len(losses), disable=not progress, desc="training") as bar,
    ):
        try:
            look()
            while len(losses) < steps:
                fell = (1 + math.cos(math.pi * len(losses) / steps)) / 2 if decay else 1
                optimiser.param_groups[0]["lr"] = rate * fell
                loss = loss_of(generator, len(losses))
                if not math.isfinite(value := float(loss.detach())):
                    raise ValueError(
                        f"Expected a finite loss at step {len(losses)}, got {value}: give a "
                        "smaller rate, or look for NaN in what is trained on."
                    )
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                losses.append(value)
                bar.update()
                if len(losses) % every == 0 or len(losses) == steps:
                    save()
                look()
        except KeyboardInterrupt:
            complete = False
            warnings.warn(
                f"Training was stopped after {len(losses)} of {steps} steps; what is done is "
                "returned.",
                RuntimeWarning,
                stacklevel=3,
            )
    return Trained(module.eval(), torch.tensor(losses, dtype=torch.float64), complete)


def read_checkpoint(
    checkpoint: str | os.PathLike[str], device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Read a checkpoint of `descend`; nothing in it is executed.

    Raises
    ------
    ValueError
        A file of something else, or a damaged one.
    """
    try:
        with open_archive(Path(checkpoint)) as held:
            for name in held.members:  # torch compares no checksums
                held.read(name)
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if all(isinstance(state[name], kind) for name, kind in _PARTS.items()):
            return state
    except FileNotFoundError:
        raise
    except Exception:  # torch has a dozen ways to say that it is no file of its own
        pass
    raise ValueError(
        f"Expected a checkpoint of bridges.networks.training in '{checkpoint}', got something "
        "else: give another file, or delete this one."
    )


@contextmanager
def restoring(checkpoint: str | os.PathLike[str]) -> Iterator[None]:
    """Say of a checkpoint that its parts do not fit together, in place of what torch says."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]  # of load_state_dict several lines
        raise ValueError(
            f"Expected a whole checkpoint of bridges.networks.training in '{checkpoint}', got "
            f"{type(error).__name__}: {reason}: give another file, or delete this one."
        ) from error


def counts(least: int, **given: Any) -> Iterator[int]:
    """Yield options as integers, or refuse what is none of at least `least`."""
    for name, value in given.items():
        yield whole(value, f"{name}=", "give another.", least)


def levels(**given: Any) -> Iterator[float]:
    """Yield options as floats, or refuse what is no number of 0 or more."""
    for name, value in given.items():
        if not isinstance(value, Real) or not 0 <= float(value) < math.inf:
            raise ValueError(
                f"Expected {name}= as a finite number of 0 or more, got {value!r}: 0 is none."
            )
        yield float(value)


def begin_from(module: nn.Module, start: Any) -> None:
    """Copy the weights of a start, or refuse one of another kind or other sizes."""
    kind = type(module).__name__
    if not isinstance(start, type(module)):
        raise ValueError(
            f"Expected start= as a {kind}, got {type(start).__name__}: give the module of a "
            "training."
        )
    given, asked = ([tuple(p.shape) for p in each.parameters()] for each in (start, module))
    if given != asked:
        raise ValueError(
            f"Expected start= with weights of the shapes {asked}, got {given}: give the sizes that "
            "it was trained with, and data of its size."
        )
    module.load_state_dict(start.state_dict())


def fingerprint(tensors: Iterator[Tensor]) -> str:
    """Return what tells one set of tensors from another: SHA-256 of types, shapes and entries."""
    digest = hashlib.sha256()
    for tensor in tensors:
        held = tensor.detach().cpu().contiguous()
        digest.update(f"{held.dtype} {tuple(held.shape)}".encode())
        digest.update(held.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_options(found: Mapping[str, Any], asked: Mapping[str, Any], checkpoint: Path) -> None:
    other = [name for name in asked if found.get(name) != asked[name]]
    if other:
        raise ValueError(
            f"Expected a checkpoint of the same training in '{checkpoint}', got another "
            f"{', '.join(other)}: give another file, or delete this one."
        )
