"""Outputs at the vertices of a partition, and how much of them is rounding."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from cpwl.affine import evaluate, num_outputs
from cpwl.arrays import EPS, Floats
from cpwl.network.program import rounding_noise
from cpwl.partition import require_complete, require_network

if TYPE_CHECKING:
    from cpwl.partition import Partition


_CHUNK_BYTES = 256 * 2**20
# Rounding is measured at the vertices nearest to the level; at others no sign depends on it.
_MEASURED_AT = 1024
# The rounding that is met at one vertex, in units of what three random draws show.
_NOISE_AT_MOST = 8


class Heights(NamedTuple):
    """A function at the vertices, less the level; rounding is at most `tolerance`."""

    values: Floats  # (V,)
    tolerance: float


def vertex_outputs(partition: Partition, outputs: Sequence[int] | None = None) -> Floats:
    """Return the network's flattened outputs at every vertex, (V, D), or only those listed.

    Raises
    ------
    ValueError
        A partition without its network, or an output that does not exist.

    Notes
    -----
    Cost: one float64 forward pass at every vertex.
    """
    size = num_outputs(partition)
    wanted = range(size) if outputs is None else outputs
    if any(not 0 <= k < size for k in wanted):
        raise ValueError(
            f"Expected outputs between 0 and {size - 1}, got {list(wanted)}. "
            "Count the entries of the flattened output from 0."
        )
    step = max(1, _CHUNK_BYTES // (8 * size))
    chunks = [
        evaluate(partition, partition.points[start : start + step])[:, wanted]
        for start in range(0, len(partition.points), step)
    ]
    return np.concatenate(chunks)


def heights(partition: Partition, output: Any, value: Any) -> Heights:
    """Return an output, or the difference of two, less a value, at every vertex."""
    require_complete(partition)
    wanted = _read_output(partition, output)
    if not (isinstance(value, Real) and isfinite(value)):
        raise ValueError(f"Expected value as a finite number, got {value!r}. Give the level.")
    found = vertex_outputs(partition, wanted)
    size = np.abs(found).max(axis=1)
    height = (found[:, 0] - found[:, 1] if len(wanted) == 2 else found[:, 0]) - float(value)
    near = np.argsort(np.abs(height))[:_MEASURED_AT]
    return Heights(height, rounding(partition, near) + EPS * float(size[near].max() + abs(value)))


def rounding(partition: Partition, vertices: Any) -> float:
    """Return how far rounding may move an output at these vertices."""
    z = partition.domain.slice.embed(partition.points[vertices])
    program = require_network(partition).program
    return _NOISE_AT_MOST * rounding_noise(program, torch.from_numpy(np.ascontiguousarray(z)))


def _read_output(partition: Partition, output: Any) -> list[int]:
    """Return one output, or the two of a difference."""
    size = num_outputs(partition)
    if output is None:
        if size == 2:
            return [0, 1]
        if size != 1:
            raise ValueError(
                f"Expected which of {size} outputs, got none. "
                "Give one's index, or a pair (i, j) for the difference of two."
            )
        return [0]
    wanted = list(output) if isinstance(output, Sequence) else [output]
    if len(wanted) > 2 or not wanted or not all(isinstance(k, Integral) for k in wanted):
        raise ValueError(
            f"Expected an output's index or a pair (i, j), got {output!r}. For another combination "
            "of outputs append a linear layer to the network."
        )
    if len(wanted) == 2 and wanted[0] == wanted[1]:
        raise ValueError(
            f"Expected two different outputs, got {wanted[0]} twice. Give the two to compare."
        )
    return [int(k) for k in wanted]
