"""Images of many outputs in R^3: which three coordinates are shown, and how much they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cpwl.affine import evaluate, num_outputs
from cpwl.arrays import Floats
from cpwl.descriptors import volumes

if TYPE_CHECKING:
    from cpwl.partition import Partition


_SAMPLE_BYTES = 128 * 2**20  # of outputs that the principal axes are taken from
_SAMPLE = 2000  # vertices at most
_CHUNK = 1000


def project(partition: Partition, outputs: Sequence[int] | None) -> tuple[Floats, list[str]]:
    """Return three coordinates of the image of every vertex, and their names.

    Parameters
    ----------
    partition : Partition
    outputs : three int, optional
        Entries of the flattened output. By default all of three, or the first three principal axes
        of more.

    Returns
    -------
    points : (V, 3) ndarray
    names : list of 3 str
        Of more than three outputs with the share of the image's variance: that of the vertices,
        each weighted by the volume about it.

    Raises
    ------
    ValueError
        Other than three outputs, one that does not exist, or fewer than three to choose from.

    Notes
    -----
    The principal axes are those of up to 2,000 vertices; the shares are those of all. Cost: one
    float64 forward pass at every vertex.
    """
    size = num_outputs(partition)
    if size < 3 and outputs is None:
        raise ValueError(
            f"Expected a network with three outputs or more, got {size}. "
            "Draw the partition, or the outputs over it, with plot.partition."
        )
    if outputs is not None and (len(outputs) != 3 or any(not 0 <= k < size for k in outputs)):
        raise ValueError(
            f"Expected three outputs between 0 and {size - 1}, got {list(outputs)}. Name x, y and "
            "z, counting the entries of the flattened output from 0."
        )
    weight = np.zeros(len(partition.points))
    corners = np.diff(partition.cell_offsets)
    np.add.at(weight, partition.cell_corners, np.repeat(volumes(partition) / corners, corners))
    weight /= weight.sum()
    if outputs is None and size > 3:
        axes = _principal_axes(partition, weight)
        names = [f"principal axis {k}" for k in (1, 2, 3)]
    else:
        chosen = list(range(3) if outputs is None else outputs)
        axes = np.zeros((size, 3))
        axes[chosen, range(3)] = 1.0
        names = [f"output {k}" for k in chosen]
    points = np.empty((len(partition.points), 3))
    origin = evaluate(partition, partition.points[:1])[0]  # differences from it do not cancel
    first, second = np.zeros(size), np.zeros(size)
    for start in range(0, len(points), _CHUNK):
        part = slice(start, start + _CHUNK)
        values = evaluate(partition, partition.points[part])
        points[part] = values @ axes
        values -= origin
        first += weight[part] @ values
        second += weight[part] @ values**2
    total = float((second - first**2).sum())
    if size > 3 and total > 0:
        shown = weight @ (points - weight @ points) ** 2 / total
        names = [f"{name} ({share:.0%})" for name, share in zip(names, shown, strict=True)]
    return points, names


def _principal_axes(partition: Partition, weight: Floats) -> Floats:
    """Return three orthonormal directions (D, 3), each with its largest entry positive."""
    size = num_outputs(partition)
    count = min(len(weight), _SAMPLE, max(10, _SAMPLE_BYTES // (8 * size)))
    chosen = np.unique(np.linspace(0, len(weight) - 1, count).astype(np.int64))
    values, w = evaluate(partition, partition.points[chosen]), weight[chosen]
    values -= w @ values / w.sum()
    rows = np.vstack([values * np.sqrt(w)[:, None], np.zeros((3, size))])  # three axes of any rank
    axes = np.linalg.svd(rows, full_matrices=False)[2][:3]
    largest = axes[range(3), np.abs(axes).argmax(axis=1)]
    return (axes * np.where(largest < 0, -1.0, 1.0)[:, None]).T
