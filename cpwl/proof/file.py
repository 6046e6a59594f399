"""A proof as one JSON file: network, domain, patterns, sides, and what they are said to prove.

Nothing in the file is trusted: its parts are read with their sizes and ranges checked, and `prove`
decides whether they hold. Numbers with a point are hexadecimal text, so nothing is rounded.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
import json
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpwl.contents import parse_json
from cpwl.files import atomic_path
from cpwl.proof import plain
from cpwl.proof.arrays import shortest
from cpwl.proof.cells import ExactDomain
from cpwl.proof.exact_network import ExactNetwork, find_fault, has_convolutions
from cpwl.proof.place import independent

FORMAT = "cpwl proof 1"

_LARGEST = 2**30  # bytes of a file that is read
# bytes of patterns that a file may stand for, and more for each of its own
_MOST_PIECES = (2**28, 64)
_LONGEST = 4096  # hexadecimal digits of a numerator or denominator


class Proof(NamedTuple):
    """All that a proof needs.

    Attributes
    ----------
    network : ExactNetwork
    domain : ExactDomain
    pieces : (C, units) int8 or int32
    sides : tuple of tuple of int
        For each cell the numbers of the conditions that its sides lie on, in order.
    """

    network: ExactNetwork
    domain: ExactDomain
    pieces: NDArray[np.integer]
    sides: tuple[tuple[int, ...], ...]


def digest(network: ExactNetwork, domain: ExactDomain) -> str:
    """SHA-256 of network and domain, without names."""
    described = {"network": _network(network), "domain": _domain(domain)}
    del described["network"]["names"]
    text = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write(proof: Proof, claims: dict[str, Any], path: Any) -> None:
    """Write a proof, whole or not at all."""
    low = proof.pieces.min(axis=0)
    bits = [int(x).bit_length() for x in proof.pieces.max(axis=0) - low]
    content = {
        "format": FORMAT,
        "claims": claims,
        "network": _network(proof.network),
        "domain": _domain(proof.domain),
        "patterns": {
            "lowest": low.tolist(),
            "bits": bits,
            "packed": base64.b64encode(_pack(proof.pieces - low, bits)).decode(),
        },
        "sides": {
            "counts": [len(sides) for sides in proof.sides],
            "conditions": [side for sides in proof.sides for side in sides],
        },
    }
    with atomic_path(path) as part:
        part.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="ascii")


def read(path: Any) -> tuple[Proof, dict[str, Any]]:
    """Read what `write` wrote.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        Not such a file, or a damaged one.
    """
    place = Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"Expected a proof, got no file at {place}. Check the path.")
    try:
        if place.stat().st_size > _LARGEST:
            raise ValueError(f"more than {_LARGEST:,} bytes")
        content = parse_json(place.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"format {str(content['format'])[:40]!r}")
        # units and inputs are listed one by one elsewhere: the file has as many bytes as that
        stated = content["network"]
        _require_length(stated, "units", content["patterns"]["lowest"])
        _require_length(stated, "inputs", content["domain"]["origin"])
        network = _read_network(stated)
        domain = _read_domain(content["domain"], network.inputs)
        sides = _read_sides(content["sides"])
        most = min(2**32, _MOST_PIECES[0] + _MOST_PIECES[1] * place.stat().st_size)
        pieces = _read_pieces(content["patterns"], len(sides), network.units, most)
        claims = _read_claims(content["claims"])
    except (
        KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError, binascii.Error
    ) as error:  # fmt: skip
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)[:200]
        raise ValueError(
            f"Expected a proof ({FORMAT}) in {place}, got a file that does not fit: {reason}. "
            "Write it with Certificate.save of this version."
        ) from error
    return Proof(network, domain, pieces, sides), claims


def _require_length(stated: dict[str, Any], name: str, listed: Any) -> None:
    if not isinstance(listed, list) or plain.integer(stated[name]) != len(listed):
        raise ValueError(f"{str(stated[name])[:40]} {name} in a file that does not list as many")


def _network(network: ExactNetwork) -> dict[str, Any]:
    large = has_convolutions(network)
    return {
        "inputs": network.inputs,
        "units": network.units,
        "steps": [plain.as_plain(step, large=large) for step in network.steps],
        "names": list(network.names),
        "tail": network.tail,
    }


def _read_network(stored: dict[str, Any]) -> ExactNetwork:
    names, tail = stored["names"], stored["tail"]
    if not all(isinstance(text, str) and text.isprintable() for text in (*names, tail)):
        raise TypeError("names that are no text that can be printed")
    network = ExactNetwork(
        plain.integer(stored["inputs"]),
        plain.integer(stored["units"]),
        tuple(plain.from_plain(step) for step in stored["steps"]),
        tuple(names),
        tail,
    )
    fault = find_fault(network)
    if fault:
        raise ValueError(fault)
    return network


def _domain(domain: ExactDomain) -> dict[str, Any]:
    return {
        "corners": [[_ratio(x) for x in corner] for corner in domain.corners],
        "origin": plain.hexadecimal(domain.origin),
        "basis": [plain.hexadecimal(row) for row in domain.basis],
    }


def _read_domain(stored: dict[str, Any], inputs: int) -> ExactDomain:
    corners = tuple(tuple(_fraction(x) for x in corner) for corner in stored["corners"])
    origin = plain.floats(stored["origin"])
    basis = np.array([plain.floats(row) for row in stored["basis"]])
    dim = len(basis)
    if dim not in (1, 2) or basis.shape != (dim, inputs) or len(origin) != inputs:
        raise ValueError(f"a slice of shape {basis.shape} for {inputs} inputs")
    if not (np.isfinite(basis).all() and np.isfinite(origin).all()):
        raise ValueError("a slice that is not finite")
    if not independent(basis):
        raise ValueError("a slice whose axes are not independent")
    if any(len(corner) != dim for corner in corners) or not _is_convex(corners):
        raise ValueError("corners of no convex domain")
    return ExactDomain(corners, origin, basis)


def _is_convex(corners: tuple[tuple[Fraction, ...], ...]) -> bool:
    """Whether the corners are those of an interval or of a convex polygon, anticlockwise."""
    if not corners:
        return False
    if len(corners[0]) == 1:
        return len(corners) == 2 and corners[0][0] < corners[1][0]
    if len(corners) < 3:
        return False
    turns = [
        (b[0] - a[0]) * (c[1] - b[1]) - (b[1] - a[1]) * (c[0] - b[0])
        for a, b, c in zip(
            corners, corners[1:] + corners[:1], corners[2:] + corners[:2], strict=True
        )
    ]
    a = corners[0]
    fan = [
        (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        for b, c in itertools.pairwise(corners[1:])
    ]
    return min(turns) > 0 and min(fan) > 0


def _ratio(value: Fraction) -> str:
    return f"{value.numerator:x}/{value.denominator:x}"


def _fraction(text: str) -> Fraction:
    """Read a ratio of hexadecimal integers."""
    top, slash, bottom = text.partition("/")
    if not slash or max(len(top), len(bottom)) > _LONGEST:
        raise ValueError(f"{text[:40]!r} where a ratio is needed")
    denominator = int(bottom, 16)
    if denominator <= 0:
        raise ValueError(f"{text[:40]!r} where a ratio is needed")
    return Fraction(int(top, 16), denominator)


def _read_sides(stored: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
    counts, conditions = plain.integers(stored["counts"]), stored["conditions"]
    flat = plain.integers(conditions).tolist()
    if sum(counts.tolist()) != len(flat):
        raise ValueError("sides of cells that do not fit their counts")
    ends = np.cumsum(counts).tolist()
    return tuple(tuple(flat[b - n : b]) for b, n in zip(ends, counts.tolist(), strict=True))


def _pack(offsets: NDArray[np.integer], bits: list[int]) -> bytes:
    """Write the rows of `offsets` one after the other, column j in bits[j] bits, lowest first."""
    columns = [
        ((offsets[:, j, None] >> np.arange(width)) & 1).astype(np.uint8)
        for j, width in enumerate(bits)
    ]
    if not columns:
        return b""
    return np.packbits(np.concatenate(columns, axis=1).ravel(), bitorder="little").tobytes()


def _read_pieces(stored: dict[str, Any], cells: int, units: int, most: int) -> NDArray[np.integer]:
    lowest, bits = [_signed(value) for value in stored["lowest"]], stored["bits"]
    bits = plain.integers(bits).tolist()
    fits = len(lowest) == len(bits) == units
    if not fits or any(n > 31 or low + 2**n > 2**31 for low, n in zip(lowest, bits, strict=True)):
        raise ValueError(f"patterns that are not of {units} units")
    highest = max((low + 2**n - 1 for low, n in zip(lowest, bits, strict=True)), default=0)
    kind = shortest(min(lowest, default=0), highest)
    if cells * units * np.dtype(kind).itemsize > most:
        raise ValueError(f"{cells:,} patterns of {units:,} units")
    packed = np.frombuffer(base64.b64decode(stored["packed"], validate=True), np.uint8)
    total = cells * sum(bits)
    if len(packed) != -(-total // 8):
        raise ValueError(f"{len(packed)} bytes of patterns for {total} bits")
    table = np.unpackbits(packed, count=total, bitorder="little").reshape(cells, sum(bits))
    pieces = np.repeat(np.array(lowest, kind)[None], cells, axis=0)
    start = 0
    for unit, width in enumerate(bits):
        for k in range(width):
            pieces[:, unit] += table[:, start + k].astype(kind) << k
        start += width
    return pieces


def _signed(value: Any) -> int:
    if type(value) is not int or abs(value) >= 2**31:
        raise ValueError(f"{str(value)[:40]!r} where a piece is needed")
    return value


def _read_claims(stored: dict[str, Any]) -> dict[str, Any]:
    """Read the counts, the area and the digest that the file claims, and how far it goes."""
    found, partial = stored["digest"], stored.get("partial", False)
    if not isinstance(partial, bool):
        raise TypeError("a proof that is neither whole nor partial")
    if not isinstance(found, str) or len(found) != 64 or not set(found) <= set("0123456789abcdef"):
        raise ValueError("a digest that is none")
    return {
        "cells": plain.integer(stored["cells"]),
        "points": plain.integer(stored["points"]),
        "area": _fraction(stored["area"]),
        "digest": found,
        "partial": partial,
    }
