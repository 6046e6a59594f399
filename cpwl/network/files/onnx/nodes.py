"""ONNX nodes as data, the record of what an operation honours, and the checks between the two.

A value of a graph has the shape that the file gives it. As a torch tensor the samples of a batch
come first. Where the file's first axis is the batch, that axis is theirs ("rows"); any other
value has the samples' axis in front of its own axes ("whole").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np

from cpwl.errors import CaptureError
from cpwl.network.files.onnx.parsing import LARGEST, first_line

Function = Callable[..., Any]
Array = np.ndarray[Any, Any]
REMEDY = "Export the model without it, or use Network.from_torch with the original module."


class Value(NamedTuple):
    """A value of the graph: its shape and element type in the file, and itself where constant."""

    shape: tuple[int, ...]
    type: int
    array: Array | None = None

    @property
    def known(self) -> bool:
        """Whether it is a constant."""
        return self.array is not None


@dataclass(frozen=True)
class Node:
    """An ONNX node: attributes with their defaults, and what is known of its inputs.

    Attributes
    ----------
    version : int
        Operator set in which the operation got its present meaning.
    outputs : tuple of (str or None)
        Names of the outputs that something reads.
    listed : int
        Number of outputs that the file names.
    free : bool
        Whether the file leaves the size of the batch open, and no constant input counts it.
    whole : int
        1 where the tensors have the samples' axis in front of the file's axes, else 0.
    largest : int
        Most values that a tensor may have.
    """

    type: str
    place: str
    version: int
    attributes: dict[str, Any]
    inputs: tuple[Value | None, ...]
    outputs: tuple[str | None, ...]
    listed: int = 1
    free: bool = False
    whole: int = 0
    largest: int = LARGEST

    def given(self, position: int) -> bool:
        """Whether an input is there."""
        return position < len(self.inputs) and self.inputs[position] is not None

    def shape(self, position: int = 0) -> tuple[int, ...]:
        """Shape of an input in the file."""
        value = self.inputs[position] if position < len(self.inputs) else None
        if value is None:
            self.refuse(f"without its input {position}")
        return value.shape

    def constant(self, position: int) -> Array | None:
        """Value of a constant input, None where it is absent."""
        value = self.inputs[position] if position < len(self.inputs) else None
        return None if value is None else value.array

    def integers(self, name: str, position: int) -> list[int] | None:
        """Integers given as an attribute (older operator sets) or as a constant input."""
        listed = self.attributes.get(name)
        if listed is not None:
            return [int(n) for n in listed]
        array = self.constant(position)
        return None if array is None else [int(n) for n in array.reshape(-1)]

    def number(self, position: int, name: str = "") -> float | None:
        """One number, as an attribute or a constant input."""
        if name and self.attributes.get(name) is not None:
            return float(self.attributes[name])
        array = self.constant(position)
        if array is None:
            return None
        if array.size != 1:
            self.refuse(f"with {array.size} numbers as input {position} instead of one")
        return float(array.reshape(-1)[0])

    def axis(self, axis: int, rank: int | None = None) -> int:
        """Count an axis of the file from the front."""
        rank = len(self.shape()) if rank is None else rank
        if not -rank <= axis < rank:
            self.refuse(f"with axis {axis} on {rank} axes")
        return axis % rank

    def refuse(self, what: str) -> NoReturn:
        """Refuse the node."""
        raise CaptureError(
            f"Expected ONNX {self.type} at '{self.place}' as the reader takes it, got it {what}. "
            f"{REMEDY}"
        )

    def require(self, size: int, what: str = "values") -> None:
        """Refuse what would need too much memory, before it is taken."""
        if size > self.largest:
            raise CaptureError(
                f"Expected at most {self.largest} {what} at ONNX {self.type} '{self.place}', got "
                f"{size}. Use a smaller model, or cut it with onnx.utils.extract_model."
            )


class Operation(NamedTuple):
    """What the reader honours of an operation; anything else with another value is refused.

    Attributes
    ----------
    build : callable
        Node to torch function of the tensor inputs in order. A pair (function, arrays) adds the
        arrays to the function's arguments.
    kind : str
        How the samples of a batch are kept apart, see `layout`.
    attributes : tuple of str
        Attributes that `build` honours.
    settings : tuple of int
        Inputs that must be constant; they are not among the tensors.
    tensors : int
        Number of inputs that are tensors or settings; -1 for any.
    outputs : int
        Number of outputs that may be read; -1 for any.
    axes : callable, optional
        Node to the axes of the file along which entries meet ("axes" alone).
    result : int, optional
        Element type of the result, if it is not that of the first tensor.
    """

    build: Callable[[Node], Any]
    kind: str
    attributes: tuple[str, ...] = ()
    settings: tuple[int, ...] = ()
    tensors: int = 1
    outputs: int = 1
    axes: Callable[[Node], list[int]] | None = None
    result: int | None = None


@contextmanager
def fitting(node: Node) -> Iterator[None]:
    """Refuse inputs that do not fit an operation, on which libraries fail in many ways."""
    wrong = (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError, AssertionError)
    try:
        yield
    except CaptureError:
        raise
    except wrong as error:
        raise CaptureError(
            f"Expected inputs that fit ONNX {node.type} '{node.place}', got others ("
            f"{first_line(error)}). Check input_shape and fixed=, if "
            "they are given, or export it anew."
        ) from error
