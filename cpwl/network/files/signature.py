"""Inputs and outputs of a model file: which one is open, what the others are, which is wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cpwl.errors import CaptureError

Output = Callable[[Any], Tensor] | str | int


def open_input(names: Sequence[str], fixed: Mapping[str, Any], path: Path) -> str:
    """Return the one input of a file that is given no value.

    Raises
    ------
    CaptureError
        If none or more than one is, or a value is for no input.
    """
    if not isinstance(fixed, Mapping):
        raise CaptureError(
            f"Expected fixed= as a mapping of argument names to values, got "
            f'{type(fixed).__name__}. Write fixed={{"t": 10}}, for example.'
        )
    listed = ", ".join(names[:20])
    for name in fixed:
        if name not in names:
            raise CaptureError(
                f"Expected fixed= to name inputs of '{path.name}' ({listed}), got '{name}'. "
                "Correct the name."
            )
    left = [name for name in names if name not in fixed]
    if not left:
        what = f"values for all of them ({listed})" if fixed else "none"
        remedy = "Leave out the one that is to vary." if fixed else "Export it with its input."
        raise CaptureError(
            f"Expected an input without a value in '{path.name}', got {what}. {remedy}"
        )
    if len(left) > 1:
        example = ", ".join(f'"{name}": ...' for name in left[1:20])
        raise CaptureError(
            f"Expected a model with one input in '{path.name}', got {len(left)} "
            f"({', '.join(left[:20])}). Give all but one of them values: fixed={{{example}}}."
        )
    return left[0]


def position_of(names: Sequence[str], output: Output | None, path: Path) -> int:
    """Return the position of the output that is wanted, by its name or position.

    Raises
    ------
    CaptureError
        If there is no such output, or there are several and none is named.
    """
    listed = ", ".join(names[:20])
    if output is None:
        if len(names) == 1:
            return 0
        remedy = f"Choose one: output={names[0]!r}." if names else "Export it with an output."
        raise CaptureError(
            f"Expected a model with one output in '{path.name}', got {len(names)} ({listed}). "
            f"{remedy}"
        )
    if isinstance(output, str):
        name = output if output in names else output.removeprefix(".")
        if name in names:
            return list(names).index(name)
        output = int(output) if output.isdecimal() else output
    if isinstance(output, int) and 0 <= output < len(names):
        return output
    got = repr(output) if isinstance(output, (str, int)) else type(output).__name__
    raise CaptureError(
        f"Expected output= as the name or position of an output of '{path.name}' ({listed}), got "
        f"{got}. Correct it."
    )


def fixed_array(
    name: str, value: Any, sizes: Sequence[int | None] | None, dtype: Any, path: Path
) -> np.ndarray[Any, Any]:
    """Return an input's value in its shape and type.

    Parameters
    ----------
    sizes : sequence of int or None, optional
        Of the input as the file has them, None where they are open; an open first axis is that of
        the samples, and of length one in the result.
    dtype : numpy dtype

    Raises
    ------
    CaptureError
        If it does not fit.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise CaptureError(
            f"Expected finite numbers for input '{name}' of '{path.name}' in fixed=, got "
            f"{value!r:.60}. Give a number, an array or a tensor."
        )
    cast = array.astype(dtype)
    if np.dtype(dtype).kind in "biu" and not np.array_equal(cast, array):
        raise CaptureError(
            f"Expected values of type {np.dtype(dtype)} for input '{name}' of '{path.name}' in "
            f"fixed=, got others: {array.reshape(-1)[:4].tolist()}. Round them."
        )
    if sizes is None:
        return cast
    if cast.size == 1:
        cast = cast.reshape((1,) * len(sizes))
    elif cast.ndim == len(sizes) - 1:
        cast = cast[None]
    wanted = [(1 if k == 0 else None) if n is None else n for k, n in enumerate(sizes)]
    if cast.ndim != len(sizes) or any(
        n is not None and n != m for n, m in zip(wanted, cast.shape, strict=True)
    ):
        shape = ", ".join("any" if n is None else str(n) for n in wanted)
        raise CaptureError(
            f"Expected a value of shape ({shape}) for input '{name}' of '{path.name}' in fixed=, "
            f"got shape {array.shape}. Give one that holds for every sample."
        )
    return cast
