"""The cells nearest to a latent, found from cell to cell across facets."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Any

import numpy as np
from scipy.optimize import nnls
from tqdm import tqdm

from cpwl.arrays import Floats, Ints, require_at_least
from cpwl.cells.boundary import across
from cpwl.cells.cell import Cell, cell_at
from cpwl.cells.room import room_of
from cpwl.cells.settling import Settling
from cpwl.network import Network

# Broken by less than this share of the distance, a half-space holds.
_TOLERANCE = 1e-9
# A face 1e5 times as far away as its hyperplane is taken for none.
_EMPTY = 1e-10
# Two hyperplanes nearer than this, in units of the cell, are one.
_SAME = 1e-9


@dataclass(frozen=True, eq=False)
class NearCells:
    """Cells in the order of their distance from a latent.

    Parameters
    ----------
    cells : tuple of Cell
        First the one that holds the latent. `z` of each other is a point just beyond the facet
        through which it was found.
    distances : (n,) float64
        Euclidean distance of each cell from the latent.
    nearest : (n, E) float64
        The point of each cell that is nearest to the latent.
    units : (n,) int64
        The unit whose facet was crossed to it, -1 for the first.
    uncrossed : int
        Facets nearer than the last cell that could not be crossed because rounding hides what lies
        beyond.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.ReLU(), (2,))
    >>> near = cpwl.cells_near(network, [1.0, 0.5], 2, -4, 4)
    >>> near
    NearCells(2 cells within 0.5, 0 facets uncrossed)
    >>> near.units.tolist(), (near.nearest[1] + 0.0).round(9).tolist()
    ([-1, 1], [1.0, 0.0])
    """

    cells: tuple[Cell, ...]
    distances: Floats
    nearest: Floats
    units: Ints
    uncrossed: int

    def __repr__(self) -> str:
        """Summarise: the arrays themselves are long."""
        return (
            f"NearCells({len(self.cells)} cells within {self.distances[-1]:.3g}, "
            f"{self.uncrossed} facets uncrossed)"
        )


def cells_near(
    network: Network, z: Any, n: int, lo: Any, hi: Any, *, progress: bool = False
) -> NearCells:
    """Return the n cells nearest to a latent within a box.

    Parameters
    ----------
    network : Network
    z : array_like or torch.Tensor, (*input_shape,) or (E,)
    n : int
        How many, that of the latent included; fewer are returned if the box holds fewer.
    lo, hi : float or (E,) array_like
        The box, which holds the latent.
    progress : bool
        Show how many are found.

    Raises
    ------
    ValueError
        As `cell_at` and `facets` do, or n below 1.
    ImportError
        Without highspy (extra ``cpwl[lp]``).

    Notes
    -----
    Best-first: of all facets of the cells found so far, the one nearest to the latent is crossed
    next. The straight line to the nearest point of any cell enters it through facets no farther
    away than that point, so that cells are found in the order of their distance.

    What is proven: each cell is one of the network, and shares the facet's point with the cell it
    was found from. The word of numerical programs is taken for distances (least-distance
    programming by non-negative least squares; Lawson and Hanson, Solving Least Squares Problems,
    chapter 23), for which half-spaces are no facets (HiGHS), and so for the order.

    Cost: one least-distance program for each half-space whose hyperplane is nearer than the last
    cell, one linear program and one `cell_at` for each facet. Every cell is kept, with its
    half-spaces.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> near = cpwl.cells_near(network, [-1.0, 3.0], 3, -4, 4)
    >>> near.distances.round(9).tolist(), [cell.pieces.tolist() for cell in near.cells]
    ([0.0, 1.0, 3.0], [[0, 1], [1, 1], [0, 0]])
    """
    require_at_least(1, n, "n", "The cell of the latent is the first.", whole=True)
    start = cell_at(network, z)
    found = [_Known(start, start.z, lo, hi, 0.0)]
    found[0].settling.inscribe()
    seen = {start.pieces.tobytes()}
    nearest, units = [start.z], [-1]
    uncrossed = 0
    ticket = count()
    heap: list[_Candidate] = []
    found[0].propose(heap, ticket)
    with tqdm(total=n, initial=1, disable=not progress, desc="cells") as bar:
        try:
            while heap and len(found) < n:
                distance, _, known, i, y = heappop(heap)
                if y is None:  # so far only the hyperplane's distance is known
                    known.propose(heap, ticket)
                    y = known.face(i)
                    if y is not None:
                        far = max(float(np.linalg.norm(y)), distance)
                        heappush(heap, (far, next(ticket), known, i, y))
                    continue
                there = known.facet(i)
                if there is None:
                    continue
                beyond = across(known.cell, i, *there)
                if beyond is None:
                    uncrossed += 1
                    continue
                name = beyond.pieces.tobytes()
                if name in seen:
                    continue
                seen.add(name)
                found.append(_Known(beyond, start.z, lo, hi, distance))
                nearest.append(start.z + y)
                units.append(int(known.cell.halfspaces.unit[i]))
                found[-1].entered(known, i)
                found[-1].propose(heap, ticket)
                bar.update()
        except KeyboardInterrupt:
            warnings.warn(
                f"Interrupted after {len(found)} of {n} cells: these are returned.",
                RuntimeWarning,
                stacklevel=2,
            )
    return NearCells(
        cells=tuple(known.cell for known in found),
        distances=np.array([known.distance for known in found]),
        nearest=np.stack(nearest[: len(found)]),
        units=np.array(units[: len(found)]),
        uncrossed=uncrossed,
    )


class _Known:
    """A cell that was found, and which of its half-spaces are still to be looked at."""

    def __init__(self, cell: Cell, origin: Floats, lo: Any, hi: Any, distance: float) -> None:
        self.cell, self.distance = cell, distance
        self.room = room_of(cell, lo, hi)
        self.settling = Settling(self.room)
        # as seen from the latent
        moved = cell.z - origin
        self._A = np.concatenate([self.room.A, np.eye(len(moved)), -np.eye(len(moved))])
        limits = np.concatenate([self.room.b, self.room.high, -self.room.low])
        self._b = self.room.scale * limits + self._A @ moved
        firsts = np.flatnonzero(self.settling.open)
        self._order = firsts[np.argsort(np.abs(self._b[firsts]), kind="stable")].tolist()[::-1]

    def propose(self, heap: list[_Candidate], ticket: Iterator[int]) -> None:
        """Enter the next nearest hyperplane, which is no farther away than its facet."""
        if self._order:
            i = self._order.pop()
            distance = max(self.distance, abs(float(self._b[i])))
            heappush(heap, (distance, next(ticket), self, i, None))

    def entered(self, other: _Known, i: int) -> None:
        """Leave out the half-space through which the cell was found."""
        back = np.linalg.norm(self.room.A + other.room.A[i], axis=1) <= _SAME
        back &= np.abs(self._b[: len(back)] + other._b[i]) <= _SAME * self.room.scale
        self._order = [j for j in self._order if not back[j]]

    def facet(self, i: int) -> tuple[Floats, float] | None:
        """Return a point inside a facet and its margin; None if the hyperplane only touches."""
        there = self.settling.facet(i)
        if there is None:
            return None
        return self.cell.z + self.room.scale * there[0], self.room.scale * there[1]

    def face(self, i: int) -> Floats | None:
        """Return the point of the cell's face in a hyperplane that is nearest to the latent.

        Rows enter the least-distance program when its optimum breaks them.
        """
        scale = max(abs(float(self._b[i])), self.distance, float(np.finfo(float).tiny))
        b = self._b / scale
        rows = np.zeros(0, np.int64)
        while True:
            y = _least_distance(self._A[i], b[i], self._A[rows], b[rows])
            if y is None:
                return None
            excess = self._A @ y - b
            excess[i] = excess[rows] = 0
            broken = np.flatnonzero(excess > _TOLERANCE * (1 + np.linalg.norm(y)))
            if len(broken) == 0:
                return scale * y
            worst = np.argsort(-excess[broken], kind="stable")[: len(y)]
            rows = np.concatenate([rows, broken[worst]])


_Candidate = tuple[float, int, _Known, int, Floats | None]


def _least_distance(normal: Floats, limit: float, A: Floats, b: Floats) -> Floats | None:
    """Return the shortest y with normal . y = limit and A y <= b; None if there is none."""
    sides = np.concatenate([normal[None], -normal[None], A])
    limits = np.concatenate([[limit, -limit], b])
    system = np.concatenate([-sides.T, -limits[None]])
    target = np.zeros(len(system))
    target[-1] = 1.0
    multipliers, _ = nnls(system, target)
    residual = system @ multipliers - target
    # the residual's last entry is -1 / (1 + |y|^2)
    return None if -residual[-1] <= _EMPTY else -residual[:-1] / residual[-1]
