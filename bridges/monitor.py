"""Measurements of a module in training, as a table over its steps."""

from __future__ import annotations

import io
import os
import random
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from approx.decoder import as_array, first_line, whole
from cpwl.contents import open_archive, read_array
from cpwl.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, NDArray[np.float64]]


class MonitorError(RuntimeError):
    """A module could not be measured at a step; what was measured before is kept.

    Examples
    --------
    >>> import torch
    >>> from bridges import Monitor, MonitorError
    >>> try:
    ...     Monitor(lambda module: "large")(torch.nn.Linear(2, 1), 0)
    ... except MonitorError as error:
    ...     print(error)
    Expected to measure the module at step 0, got TypeError: Expected numbers by name, got str: ...
    """


class Monitor:
    """Measure a module every so many steps of its training.

    Call it in a plain loop, give it to Lightning's Trainer among the callbacks, or append it to the
    trackers of accelerate: it has the methods that both call, and imports neither.

    Parameters
    ----------
    measure : callable
        From the module to numbers by name: a mapping to numbers or arrays, or an object with such
        `columns()`, as `approx.describe` returns. Names and shapes are the same at each step. It is
        called in evaluation mode.
    every : int or collection of int
        Steps between two measurements, or the steps to measure at. Where a loop leaves out steps,
        the next one is measured.
    file : path, optional
        Where the table is kept. It is written whole after each measurement, and continued where it
        is there already.
    module : nn.Module, optional
        What `log` measures; the other ways bring a module.
    name : str
        Distinguishes the monitors of one Trainer.

    Attributes
    ----------
    table : DataFrame
        One row a step, or one row for each step and entry of the arrays.

    Raises
    ------
    ValueError
        A file that is not a monitor's, or is damaged; an `every` of other kinds, or below 1.
    MonitorError
        When it measures: the measure fails or returns something else than numbers, under other
        names or in other shapes than before, or a training begins anew. The table stays as it was.

    Notes
    -----
    Measuring leaves the module as it was: the modes of its parts, its buffers, gradients and
    `requires_grad`, and torch's, numpy's and Python's random numbers. Values of the parameters are
    not copied: a measure that changes them changes the training. Ctrl-C inside of a measurement
    loses that one alone. A step that was measured last is not measured again. A training that goes
    back to a checkpoint measures again from there, with a warning.

    Cost: that of the measure, one copy of the buffers, and writing the table.

    Examples
    --------
    >>> import torch
    >>> from bridges import Monitor
    >>> model = torch.nn.Linear(2, 1)
    >>> optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> monitor = Monitor(lambda m: {"norm": m.weight.norm()}, every=2)
    >>> for step in range(5):
    ...     model(torch.ones(3, 2)).sum().backward()
    ...     optimiser.step()
    ...     monitor(model, step)
    >>> monitor
    Monitor(3 steps, norm, last at step 4)
    >>> monitor.columns()["step"]
    array([0, 2, 4])
    """

    main_process_only = True  # accelerate's trackers say so, and more of it below
    requires_logging_directory = False

    def __init__(
        self,
        measure: Callable[[Any], Any],
        *,
        every: int | Collection[int] = 100,
        file: str | os.PathLike[str] | None = None,
        module: nn.Module | None = None,
        name: str = "monitor",
    ) -> None:
        if not callable(measure):
            raise ValueError(
                f"Expected measure as a function of the module, got {type(measure).__name__}: give "
                "one that returns numbers by name."
            )
        self.measure, self.every, self.module, self.name = measure, _steps(every), module, name
        self.file = None if file is None else Path(file)
        self._steps: list[int] = []
        self._rows: list[Row] = []
        self._seen: int | None = None
        if self.file is not None and self.file.exists():
            self._set(*_read(self.file))

    def __call__(self, module: nn.Module, step: int) -> None:
        """Measure the module if this step is one to measure at."""
        step, seen = whole(step, "step", "count the steps that are done.", None), self._seen
        low = step - 1 if seen is None or step < seen else seen
        if isinstance(self.every, int):
            due = step // self.every > low // self.every
        else:
            due = bisect_right(self.every, step) > bisect_right(self.every, low)
        if not due:
            self._seen = step
            return
        kept = bisect_left(self._steps, step)
        if self._steps and not kept:
            raise MonitorError(
                f"Expected a step after {self._steps[0]}, got {step}: the table has "
                f"{len(self._steps)} steps of another training{self._where()}; give this one "
                "another monitor and file, or delete the file."
            )
        try:
            with _untouched(module):
                row = _numbers(self.measure(module))
            _check_alike(row, self._rows[0] if kept else row)
        except Exception as error:
            self._seen = step
            raise MonitorError(
                f"Expected to measure the module at step {step}, got {type(error).__name__}: "
                f"{first_line(error)}. Mend the measure or the module; "
                f"{len(self._steps)} measured steps are kept{self._where()}."
            ) from error
        if kept < len(self._steps):
            warnings.warn(
                f"The training went back to step {step}: {len(self._steps) - kept} steps that were "
                "measured from there on are replaced.",
                RuntimeWarning,
                stacklevel=2,
            )
        self._set([*self._steps[:kept], step], [*self._rows[:kept], row])
        if self.file is not None:
            with atomic_path(self.file) as part, open(part, "wb") as handle:
                columns = self.columns()
                # by place: a name may be one that the format itself has
                np.savez(handle, np.array([*columns]), *columns.values())

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return "step" (n,), and what was measured, (n, *shape) float64, by name."""
        return {"step": np.array(self._steps, np.int64), **self._stacked()}

    @property
    def table(self) -> pd.DataFrame:
        """A DataFrame with a row for each step; of arrays (N,) also one for each entry, "row".

        Raises
        ------
        ValueError
            Arrays of several axes or lengths: `columns` has them.
        """
        import pandas as pd

        columns = self._stacked()
        shapes = {column.shape[1:] for column in columns.values()} - {()}
        if len(shapes) > 1 or any(len(shape) > 1 for shape in shapes):
            raise ValueError(
                f"Expected numbers, or arrays (N,) of one length, got the shapes {sorted(shapes)}: "
                "a table cannot hold them, .columns() does."
            )
        if not shapes:
            return pd.DataFrame(self.columns())
        (count,), steps = shapes.pop(), len(self._steps)
        long = {
            name: np.broadcast_to(column.reshape(steps, -1), (steps, count)).ravel()
            for name, column in columns.items()
        }
        where = {
            "step": np.repeat(self._steps, count),
            "row": np.tile(np.arange(count), steps),
        }
        return pd.DataFrame(where | long)

    def state_dict(self) -> dict[str, Any]:
        """Return the table as tensors, for a checkpoint of the training."""
        values = {name: torch.from_numpy(column) for name, column in self._stacked().items()}
        return {"step": torch.tensor(self._steps, dtype=torch.int64), "values": values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the table of a checkpoint.

        Raises
        ------
        ValueError
            The state of something else.
        """
        try:
            columns = {
                k: as_array(v) for k, v in {**state["values"], "step": state["step"]}.items()
            }
            self._set(*_unstacked(columns))
        except (ValueError, TypeError, LookupError) as error:
            raise ValueError(
                f"Expected the state_dict of a Monitor, got {type(error).__name__}: "
                f"{first_line(error)}: give that of this monitor."
            ) from error

    def __len__(self) -> int:
        return len(self._steps)

    def __repr__(self) -> str:
        names = ", ".join(self._rows[0]) if self._rows else "nothing yet"
        last = f", last at step {self._steps[-1]}" if self._steps else ""
        return f"Monitor({len(self)} steps, {names}{last})"

    # Lightning: a Trainer calls every hook of its callbacks, and stores their state by `state_key`

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Measure before the first step."""
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, *_: Any) -> None:
        """Measure after a batch, at the trainer's own count of steps."""
        if getattr(trainer, "is_global_zero", True):
            self(pl_module, trainer.global_step)

    @property
    def state_key(self) -> str:
        """Name of the state in Lightning's checkpoints."""
        return f"bridges.Monitor: {self.name}"

    _legacy_state_key = state_key

    def __getattr__(self, name: str) -> Any:
        """Return a function that does nothing for the other hooks."""
        if name.startswith("on_") or name in ("setup", "teardown"):
            return _nothing
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    # accelerate: what it calls of its trackers

    @property
    def tracker(self) -> Monitor:
        """What `Accelerator.get_tracker` returns."""
        return self

    def log(self, values: Mapping[str, Any], step: int | None = None, **_: Any) -> None:
        """Measure `module` at a step of `Accelerator.log`; the values logged are not kept.

        Raises
        ------
        ValueError
            No step, or no module.
        """
        if step is None or self.module is None:
            raise ValueError(
                "Expected a module and a step to measure at, got no "
                f"{'module' if self.module is None else 'step'}: create Monitor(measure, "
                "module=module), and call accelerator.log(values, step=step)."
            )
        self(self.module, step)

    start = finish = store_init_configuration = lambda *_, **__: None

    def _set(self, steps: list[int], rows: list[Row]) -> None:
        self._steps, self._rows = steps, rows
        self._seen = steps[-1] if steps else None

    def _stacked(self) -> Row:
        names = self._rows[0] if self._rows else ()
        return {name: np.stack([row[name] for row in self._rows]) for name in names}

    def _where(self) -> str:
        return "" if self.file is None else f" in {self.file}"


@contextmanager
def _untouched(module: nn.Module) -> Iterator[None]:
    """Set evaluation mode, and put all of a module but its parameters' values back at the end."""
    # a frozen scripted module has no such flag
    parts = [
        (part, getattr(part, "training", None), dict(part._buffers.items()))
        for part in module.modules()
    ]
    lazy = torch.nn.parameter.UninitializedParameter
    parameters = [
        (p, p.grad, p.requires_grad) for p in module.parameters() if not isinstance(p, lazy)
    ]
    on_cuda = {p.device.index for p in module.parameters() if p.device.type == "cuda"}
    legacy = np.random.get_state()  # noqa: NPY002 - what a caller's own code may draw from
    plain = random.getstate()
    try:
        with torch.random.fork_rng(devices=sorted(on_cuda)):
            module.eval()
            for part, _, held in parts:  # copies: a graph that waits for its walk has the originals
                for name, buffer in held.items():
                    part._buffers[name] = buffer if buffer is None else buffer.clone()
            for parameter in module.parameters():
                parameter.grad = None
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(legacy)  # noqa: NPY002
        for part, training, held in parts:
            if training is not None:
                part.training = training
            for name in set(part._buffers.keys()) - held.keys():  # what a measure registered
                del part._buffers[name]
            for name, buffer in held.items():
                part._buffers[name] = buffer
        for parameter, grad, required in parameters:
            parameter.requires_grad_(required)
            parameter.grad = grad


def _numbers(found: Any) -> Row:
    """Return what a measure returned as float64 arrays by name."""
    columns = getattr(found, "columns", None)
    if not isinstance(found, Mapping) and callable(columns):
        found = columns()
    if not isinstance(found, Mapping) or not found:
        raise TypeError(
            f"Expected numbers by name, got {type(found).__name__}: return a dictionary"
        )
    result: Row = {}
    for name, value in found.items():
        array = as_array(value)
        if not isinstance(name, str) or name in ("step", "row") or array.dtype.kind not in "fiub":
            raise TypeError(
                f"Expected real numbers under a name other than 'step' and 'row', got {name!r} "
                f"with {type(value).__name__} of {array.dtype}: convert or leave it out"
            )
        result[name] = array.astype(np.float64)
    return result


def _check_alike(row: Row, first: Row) -> None:
    shapes, before = ({k: v.shape for k, v in each.items()} for each in (row, first))
    if shapes != before:
        differ = sorted(k for k in shapes | before if shapes.get(k) != before.get(k))
        name = differ[0]
        raise ValueError(
            f"Expected the names and shapes of the step measured first, got '{name}' of shape "
            f"{shapes.get(name, 'nothing')} after {before.get(name, 'nothing')}: measure the same "
            "latents at each step"
        )


def _steps(every: Any) -> int | list[int]:
    """Return what `every` says, steps in their order."""
    plain = every.tolist() if hasattr(every, "tolist") else every  # of numpy and torch
    many = isinstance(plain, Collection)
    steps = [*plain] if many else [plain]
    whole = all(isinstance(step, Integral) and not isinstance(step, bool) for step in steps)
    if not steps or not whole or min(steps) < (0 if many else 1):
        raise ValueError(
            "Expected every= as an integer of at least 1, or as some steps from 0 on, got "
            f"{every!r}: 1 is each step."
        )
    return sorted(map(int, steps)) if many else int(plain)


def _unstacked(columns: dict[str, NDArray[Any]]) -> tuple[list[int], list[Row]]:
    """Return steps, and a row for each, of columns that have "step" among them."""
    steps = columns.pop("step")
    lengths = {name: column.shape[:1] for name, column in columns.items()}
    if steps.dtype != np.int64 or steps.ndim != 1 or not (np.diff(steps) > 0).all():
        raise ValueError("steps that do not rise")
    if any(length != steps.shape for length in lengths.values()):
        raise ValueError(f"{len(steps)} steps and columns of {lengths}")
    rows = [{k: np.array(v[i], np.float64) for k, v in columns.items()} for i in range(len(steps))]
    return steps.tolist(), rows


def _read(file: Path) -> tuple[list[int], list[Row]]:
    """Return the steps and rows of a file; its list of names tells that no column is missing."""
    try:
        with open_archive(file) as held:
            parts = [held.read(f"arr_{i}.npy") for i in range(len(held.members))]
        names, *columns = (read_array(io.BytesIO(part), len(part)) for part in parts)
        return _unstacked(dict(zip(names.tolist(), columns, strict=True)))
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise ValueError(
            f"Expected a table of bridges.Monitor in {file}, got something else "
            f"({first_line(error)}): give another file, or delete this one."
        ) from error


def _nothing(*_: Any, **__: Any) -> None:
    """Do nothing at a hook that a monitor does not need."""
