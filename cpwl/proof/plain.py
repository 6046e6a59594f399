"""Steps of a network as JSON holds them, and numbers in it."""

from __future__ import annotations

import base64
from math import prod
from typing import Any

import numpy as np

from cpwl.proof.exact_network import (
    Affine,
    Contest,
    Convolution,
    Floats,
    Integers,
    Matrix,
    Part,
    Pieces,
    Step,
    Wave,
)


def as_plain(step: Step, *, large: bool = False) -> dict[str, Any]:
    """Write a step as JSON holds it: float64 numbers as hexadecimal text, or `packed`."""
    write = packed if large else hexadecimal
    if isinstance(step, Affine):
        parts = [
            {"source": part.source, **_matrix_as_plain(part.matrix, large=large)}
            for part in step.parts
        ]
        return {"kind": "affine", "parts": parts, "offset": write(step.offset)}
    if isinstance(step, Pieces):
        tables = {name: getattr(step, name) for name in ("points", "slopes", "offsets")}
        plain = {name: [write(row) for row in table] for name, table in tables.items()}
        return {"kind": "pieces", "source": step.source, "first_unit": step.first_unit, **plain}
    if isinstance(step, Wave):
        numbers = {name: hexadecimal([getattr(step, name)])[0] for name in _WAVE}
        size_ = {"first_unit": step.first_unit, "size": step.size}
        return {"kind": "wave", "source": step.source, **size_, **numbers}
    lists = {name: getattr(step, name).tolist() for name in ("units", "left", "right", "outputs")}
    return {"kind": "contest", "source": step.source, **lists, "largest": step.largest}


def _matrix_as_plain(matrix: Matrix | Convolution, *, large: bool) -> dict[str, Any]:
    if isinstance(matrix, Matrix):
        return {
            "shape": list(matrix.shape),
            "counts": matrix.counts.tolist(),
            "columns": matrix.columns.tolist(),
            "values": (packed if large else hexadecimal)(matrix.values),
        }
    lists = {name: list(getattr(matrix, name)) for name in _CONVOLUTION}
    return {
        **lists,
        "groups": matrix.groups,
        "transposed": matrix.transposed,
        "taps": list(matrix.weights.shape[2:]),
        "weights": packed(matrix.weights),
    }


_CONVOLUTION = ("size", "out", "stride", "padding", "dilation")
_WAVE = ("period", "phase", "scale", "offset")


def from_plain(plain: dict[str, Any]) -> Step:
    """Read what `as_plain` wrote; raises KeyError, TypeError, ValueError where it does not fit."""
    kind = plain["kind"]
    if kind == "affine":
        parts = tuple(_part(part) for part in plain["parts"])
        return Affine(parts, floats(plain["offset"]))
    if kind not in ("pieces", "wave", "contest"):
        raise ValueError(f"a step of kind {str(kind)[:40]!r}")
    source = integer(plain["source"])
    if kind == "pieces":
        tables = [
            np.array([floats(row) for row in plain[name]], np.float64)
            for name in ("points", "slopes", "offsets")
        ]
        if any(table.ndim != 2 for table in tables):
            raise ValueError("pieces without units")
        return Pieces(source, integer(plain["first_unit"]), *tables)
    if kind == "wave":
        numbers = floats([plain[name] for name in _WAVE]).tolist()
        return Wave(source, integer(plain["first_unit"]), integer(plain["size"]), *numbers)
    lists = [integers(plain[name]) for name in ("units", "left", "right", "outputs")]
    return Contest(source, *lists, largest=bool(plain["largest"]))


def _part(plain: dict[str, Any]) -> Part:
    source = integer(plain["source"])
    if "weights" not in plain:
        rows, columns = plain["shape"]
        shape = integer(rows), integer(columns)
        counts, places = integers(plain["counts"]), integers(plain["columns"])
        return Part(source, Matrix(shape, counts, places, floats(plain["values"])))
    axes = {name: tuple(integers(plain[name]).tolist()) for name in _CONVOLUTION}
    groups, transposed = integer(plain["groups"]), plain["transposed"]
    if not isinstance(transposed, bool):
        raise TypeError(f"transposed that is {type(transposed).__name__}")
    taps = integers(plain["taps"]).tolist()
    weights = unpacked(plain["weights"])
    if groups < 1 or not axes["size"] or not axes["out"]:
        raise ValueError("a convolution without channels")
    shape = (axes["out"][0], axes["size"][0] // groups, *taps)
    if weights.size != prod(shape):
        raise ValueError(f"{weights.size} weights of a convolution of {shape}")
    made = Convolution(**axes, groups=groups, transposed=transposed, weights=weights.reshape(shape))
    return Part(source, made)


def packed(values: Floats) -> dict[str, str]:
    """Write many float64 numbers exactly: as the bytes of the shortest kind that holds them all."""
    with np.errstate(over="ignore", invalid="ignore"):
        kind = next(k for k in _KINDS if np.array_equal(values.astype(k), values))
    return {kind: base64.b64encode(values.astype(kind).tobytes()).decode()}


_KINDS = ("|i1", "<f4", "<f8")


def unpacked(stored: Any) -> Floats:
    """Read what `packed` wrote, as one row."""
    ((kind, text),) = stored.items()
    if kind not in _KINDS:
        raise ValueError(f"numbers of kind {str(kind)[:40]!r}")
    return np.frombuffer(base64.b64decode(text, validate=True), kind).astype(np.float64)


def hexadecimal(values: Any) -> list[str]:
    """Write float64 numbers exactly, without the zeros at the end of their fractions."""
    texts = (float(value).hex() for value in values)
    return [
        f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}{mark}{power}"
        for mantissa, mark, power in (text.partition("p") for text in texts)
    ]


def floats(texts: Any) -> Floats:
    """Read a list of hexadecimal numbers, or what `packed` wrote."""
    if isinstance(texts, dict):
        return unpacked(texts)
    if not isinstance(texts, list):
        raise TypeError(f"a list of numbers that is {type(texts).__name__}")
    return np.array([float.fromhex(text) for text in texts], np.float64)


def integer(value: Any) -> int:
    """Read a whole number that fits 64 bits and is not negative."""
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError(f"{str(value)[:40]!r} where a whole number is needed")
    return value


def integers(values: Any) -> Integers:
    """Read a list of whole numbers that are not negative."""
    if not isinstance(values, list):
        raise TypeError(f"a list of whole numbers that is {type(values).__name__}")
    return np.array([integer(value) for value in values], np.int64)
