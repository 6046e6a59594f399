"""Cells in the H- and V-formats of Avis and Fukuda, which cddlib, lrs, polymake and Sage read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cpwl.cells.polyhedra import halfspaces, vertices
from cpwl.files import atomic_path

if TYPE_CHECKING:
    from cpwl.partition import Partition


def write_polyhedron(
    partition: Partition, path: str | os.PathLike[str], cell: int, *, exact: bool = False
) -> None:
    """Write a cell as half-spaces (.ine) or as vertices (.ext), whole or not at all.

    Parameters
    ----------
    partition : Partition
        With its network, unless vertices are written in float64.
    path : str or path
        Ends in .ine: rows (b, -A) of `halfspaces`, in their order. In .ext: rows (1, s) of
        `vertices`.
    cell : int
        Its number.
    exact : bool
        Fractions ("rational"), which lrs and the exact programs of cddlib need, instead of float64
        with all digits ("real").

    Raises
    ------
    FileNotFoundError
        The folder of `path` does not exist.
    ValueError, PartitionError
        Another suffix; else as for `halfspaces` and `vertices`.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [0.5, 1]))
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "cell.ine")
    ...     cpwl.write_polyhedron(partition, path, 1, exact=True)
    ...     print(path.read_text(), end="")
    * cell 1 of a partition, in slice coordinates
    H-representation
    begin
    4 3 rational
    0 0 -1
    0 1 0
    1 -2 0
    1 0 1
    end
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".ine", ".ext"):
        raise ValueError(
            f"Expected a path that ends in .ine or .ext, got {Path(path).name}. "
            ".ine holds half-spaces, .ext vertices."
        )
    if suffix == ".ine":
        (bounds,) = halfspaces(partition, [cell], exact=exact, progress=False)
        rows = np.column_stack([bounds.b, -bounds.A])
    else:
        (corners,) = vertices(partition, [cell], exact=exact, progress=False)
        rows = np.column_stack([np.ones(len(corners), np.int64), corners])
    lines = [
        f"* cell {cell} of a partition, in slice coordinates",
        "H-representation" if suffix == ".ine" else "V-representation",
        "begin",
        f"{len(rows)} {rows.shape[1]} {'rational' if exact else 'real'}",
        *(" ".join(map(str, row)) for row in (rows if exact else rows + 0.0).tolist()),
        "end",
    ]
    with atomic_path(path) as part:
        part.write_text("\n".join(lines) + "\n", encoding="ascii")
