"""Arguments of the commands, read from text and files, or refused with a message."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

if TYPE_CHECKING:
    from distributed import Client

AT_A_TIME = 64  # latents that are read from a file at once

_MODEL_OPTIONS = (
    click.option(
        "--input-shape",
        metavar="SHAPE",
        help="Shape of one input without its batch axis, for example 2 or 4,8,8.",
    ),
    click.option(
        "--fix",
        multiple=True,
        metavar="NAME=VALUE",
        help="Value of a further input: a number, numbers with commas, or a .npy file. "
        "May be repeated.",
    ),
    click.option(
        "--output-name",
        metavar="NAME",
        help="Output that is meant, where the file has several: its name or position.",
    ),
)


def model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add options of how a file is read; the command gets `reading`, as `Network.load` takes it."""

    @functools.wraps(command)
    def called(input_shape: str | None, fix: tuple[str, ...], output_name: str | None, **rest: Any):
        reading = {
            "input_shape": read_shape(input_shape),
            "fixed": dict(map(_read_fixed, fix)),
            "output": output_name,
        }
        command(reading=reading, **rest)

    for option in reversed(_MODEL_OPTIONS):
        called = option(called)
    return called


_CLUSTER_OPTIONS = (
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="Do it on the workers of a Dask scheduler, such as tcp://host:8786.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        help="Do it in as many processes of one thread on this machine.",
    ),
)


def cluster_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `client_of`."""
    for option in reversed(_CLUSTER_OPTIONS):
        command = option(command)
    return command


def client_of(scheduler: str | None, workers: int | None) -> Client | None:
    """Connect to the cluster that is asked for, until the command ends."""
    if scheduler is None and workers is None:
        return None
    if scheduler is not None and workers is not None:
        raise click.UsageError(
            "Expected --scheduler or --workers, got both. Leave one of them out."
        )
    from approx.cluster import connected

    return click.get_current_context().with_resource(connected(scheduler, workers))


def _read_fixed(text: str) -> tuple[str, Any]:
    """Read NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ValueError(
            f"Expected --fix as NAME=VALUE, got '{text}'. Give the input's name and a number, "
            "numbers with commas or a .npy file: --fix t=10."
        )
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, read_numbers(value, f"--fix {name}=")


def read_shape(text: str | None) -> tuple[int, ...] | None:
    """Read a shape such as 4,8,8, if there is one."""
    if text is None:
        return None
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ValueError(
            f"Expected --input-shape as positive whole numbers, got '{text}'. "
            "Give the shape of one input without its batch axis, for example 2 or 4,8,8."
        )
    return shape


def shaped_latents(values: np.ndarray, shape: tuple[int, ...], option: str) -> np.ndarray:
    """Return values as (k, *shape), whether they came flat or with their shape."""
    if values.shape[-len(shape) :] == shape:
        return values.reshape(-1, *shape)
    size = int(np.prod(shape))
    if values.ndim and values.shape[-1] == size:
        return values.reshape(-1, *shape)
    if len(shape) == 1 and values.ndim > 1 and np.prod(values.shape[1:]) == size:
        return values.reshape(-1, size)
    raise ValueError(
        f"Expected latents of shape {shape} in {option}, got shape {values.shape}. "
        "Give them in the model's input shape, without a batch axis, or flattened."
    )


def read_numbers(text: str, option: str) -> np.ndarray:
    """Read a .npy file, or numbers with commas between entries and semicolons between rows."""
    if text.endswith(".npy"):
        return load_npy(Path(text), option)
    try:
        return np.array([[float(part) for part in row.split(",")] for row in text.split(";")])
    except ValueError:
        raise ValueError(
            f"Expected {option} as a .npy file or numbers such as 1,0,0;0,1,0, got '{text}'. "
            "Give rows of one length."
        ) from None


def load_npy(path: Path, option: str, *, mapped: bool = False) -> np.ndarray:
    """Load an array, or map a file that may be larger than memory; a pickle inside is refused."""
    from cpwl.contents import map_array, read_array

    try:
        if mapped:
            return map_array(path)
        with open(path, "rb") as stream:
            return read_array(stream, path.stat().st_size)
    except FileNotFoundError:
        raise ValueError(f"Expected a file for {option}, got no file at {path}.") from None
    except ValueError as error:
        raise ValueError(
            f"Expected a .npy array of numbers for {option}, got {path} ({error}). "
            "Write it with numpy.save(path, array)."
        ) from None


def check_output(
    path: Path, suffixes: tuple[str, ...], option: str = "-o", result: str = ""
) -> None:
    """Refuse an output that could not be written, before the work and not after it.

    `result` says of what the suffixes are, where there are others for others.
    """
    if path.suffix not in suffixes:
        raise ValueError(
            f"Expected {option} ending in {', '.join(suffixes)}{result}, got '{path}'. "
            "The suffix chooses the format."
        )
    if not path.parent.is_dir():
        raise ValueError(
            f"Expected an existing folder for {option} '{path}', got none. Create it first."
        )
    if path.is_dir() and path.suffix != ".zarr":
        raise ValueError(
            f"Expected {option} as a file, got the folder '{path}'. Give another name."
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(
            f"Expected leave to write to the folder of {option} '{path}', got none. "
            "Give another folder."
        )


def check_latents(values: np.ndarray, path: Path, *, finite: bool = True) -> np.ndarray:
    """Refuse whole numbers and, with `finite`, values that are not finite, read in parts."""
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(
            f"Expected floating-point latents in {path}, got {values.dtype}. "
            "Convert them with array.astype(numpy.float32)."
        )
    if values.ndim == 0 or values.size == 0:
        raise ValueError(f"Expected latents (N, ...) in {path}, got shape {values.shape}.")
    for start in range(0, len(values) if finite else 0, AT_A_TIME):
        bad = ~np.isfinite(values[start : start + AT_A_TIME]).reshape(-1, *values.shape[1:])
        if bad.any():
            first = start + int(np.argwhere(bad)[0, 0])
            raise ValueError(
                f"Expected finite latents in {path}, got NaN or infinity, first in entry {first}. "
                "Remove or replace them."
            )
    return values


def read_pixels(text: str) -> int | tuple[int, int]:
    """Read --resolution."""
    try:
        numbers = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        numbers = ()
    if len(numbers) == 1 and numbers[0] > 1:
        return numbers[0]
    if len(numbers) == 2 and min(numbers) > 0 and max(numbers) > 1:
        return numbers
    raise ValueError(
        f"Expected --resolution as one or two whole numbers above 1, got '{text}'. "
        "Give 64, or 64,48."
    )
