"""Points inside cells, and whether float64 can tell on which side of every knot they are."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

import cpwl
from bridges.validation.subject import Latents, Subject
from cpwl.arrays import Ints
from cpwl.density import uniform_in_cells

_ROWS = 256


def inner_points(subject: Subject, cells: Ints, rng: np.random.Generator) -> Latents:
    """Draw a point of every cell: a uniform one, moved half of the way to the mean of the corners.

    There a function that is affine and not negative on the cell has at least 1 / (2 corners) of
    its largest value, so that only a unit that is nearly zero on all of the cell is so at the
    point; in slivers a uniform point is often within rounding of a knot.
    """
    partition = subject.partition
    assert partition is not None
    corners, offsets = partition.points[partition.cell_corners], partition.cell_offsets
    middle = np.add.reduceat(corners, offsets[:-1]) / np.diff(offsets)[:, None]
    s = (uniform_in_cells(partition, cells, rng) + middle[cells]) / 2
    return Latents(s, torch.from_numpy(subject.domain.slice.embed(s)), cells)


def clear_of_knots(
    network: cpwl.Network, partition: cpwl.Partition, at: Latents, other: Latents
) -> NDArray[np.bool_]:
    """Whether rounding cannot move a point to another piece of a unit that matters, (n,).

    Every unit that switches somewhere in the domain must be further from its breakpoints than the
    rigorous bound on the rounding of its value, which holds for any order of summation. A unit that
    is exactly on a breakpoint at both of two points of the cell is so on all of it (two dead inputs
    of a maximum): either piece has the same map there.
    """
    switches = np.zeros(network.num_units, bool)
    switches[partition.bit_unit[partition.bit_unit >= 0]] = True
    clear = np.ones(len(at.s), bool)
    for start in range(0, len(at.s), _ROWS):
        rows = slice(start, start + _ROWS)
        for stage in range(network.num_stages):
            values, bound, _ = network.rounding_errors(at.z[rows], stage)
            h, elsewhere = values.numpy(), network.preactivations(other.z[rows], stage).numpy()
            wide = np.maximum(bound.numpy(), 0)
            knots = network.knots(stage, h.min(axis=0) - 1 - wide, h.max(axis=0) + 1 + wide)
            mine = switches[network.stage_offsets[stage] + knots.unit]
            unit, value = knots.unit[mine], knots.value[mine]
            on_it = (h[:, unit] == value) & (elsewhere[:, unit] == value)
            near = (np.abs(h[:, unit] - value) <= wide[unit]) & ~on_it
            clear[rows] &= ~near.any(axis=1)
    return clear
