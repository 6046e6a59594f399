"""`HalfSpaces`: the inequalities of one cell, and the unit that each comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from cpwl.arrays import Ints


@dataclass(frozen=True, eq=False)
class HalfSpaces:
    """The half-spaces A z <= b whose intersection is a cell.

    Parameters
    ----------
    A : (m, P) ndarray
        Normals that point out of the cell: float64 of length one, or `fractions.Fraction` (dtype
        object) as they are.
    b : (m,) ndarray
        Of the dtype of `A`. In float64 the slack ``b - A @ z`` is the distance of a point z of the
        cell to each knot.
    unit : (m,) int64 ndarray
        The unit whose knot bounds the half-space, in the numbering of `Network`; -1 for a side of
        the domain.
    stage : (m,) int64 ndarray
        The stage of this unit; -1 for a side of the domain.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> (cell,) = cpwl.halfspaces(partition, [2])
    >>> cell, (cell.b - cell.A @ [0.25, 0.5]).tolist()
    (HalfSpaces(4 of dimension 2, float64), [0.25, 0.5, 0.75, 0.5])
    """

    A: NDArray[Any]
    b: NDArray[Any]
    unit: Ints
    stage: Ints

    def __repr__(self) -> str:
        """Summarise: the arrays themselves are long."""
        rows, dim = self.A.shape
        kind = "float64" if self.A.dtype.kind == "f" else "fractions"
        return f"HalfSpaces({rows} of dimension {dim}, {kind})"
