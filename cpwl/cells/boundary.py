"""What bounds a cell within a box: the half-spaces that are facets, its inscribed ball, neighbours.

Linear programs find; what they find is then proven without them, where rounding allows. A facet is
proven by a point on it that lies inside all other half-spaces. A redundant half-space is proven by
multipliers that bound it by others, rigorous whatever they are (Neumaier and Shcherbina, Safe
bounds in linear and mixed-integer linear programming, Math. Program. 2004).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from cpwl.arrays import Floats, Ints
from cpwl.cells.cell import Cell, cell_at
from cpwl.cells.room import room_of
from cpwl.cells.settling import Settling
from cpwl.errors import require_kind

# A step across a facet is a share of its point's margin, and shrinks while it leads too far.
_FIRST_STEP, _SHORTER, _STEPS = 0.5, 1 / 16, 8


class Ball(NamedTuple):
    """The largest ball inside a cell and a box.

    Parameters
    ----------
    center : (E,) float64
    radius : float
        The ball around the centre with this radius is proven to hold no knot and to lie in the box.
    radius_at_most : float
        A ball in the cell and the box is proven not to be larger.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.ReLU(), (1,))
    >>> ball = cpwl.chebyshev_ball(cpwl.cell_at(network, [1.0]), -4, 4)
    >>> ball.center.round(9).tolist(), ball.radius <= 2 <= ball.radius_at_most
    ([2.0], True)
    """

    center: Floats
    radius: float
    radius_at_most: float

    def __repr__(self) -> str:
        """Summarise: the centre may have hundreds of coordinates."""
        size = len(self.center)
        return f"Ball(radius {self.radius:.6g} to {self.radius_at_most:.6g}, in {size}-D)"


@dataclass(frozen=True, eq=False)
class Facets:
    """The facets of a cell within a box.

    Parameters
    ----------
    cell : Cell
    halfspaces : (F,) int64
        Which half-spaces of the cell are facets, ascending; of several with one hyperplane the
        first, whose unit is the lowest (a `Partition` may name losers of a max-pooling that tie
        otherwise). Each is proven by its point.
    points : (F, E) float64
        A point inside each facet.
    margins : (F,) float64
        Distance of this point from all other half-spaces and from the box, errors subtracted.
    same_as : (m,) int64
        For each half-space the first one with the same hyperplane up to rounding, itself if there
        is none.
    unproven : (k,) int64
        Half-spaces that are left out on the word of a linear program alone, mostly because they
        touch the cell in a corner, an edge or within rounding. All others are proven redundant.
    programs : int
        Linear programs that were solved.

    Examples
    --------
    >>> import cpwl, torch
    >>> layers = torch.nn.Linear(1, 2), torch.nn.ReLU()
    >>> with torch.no_grad():
    ...     _ = layers[0].weight.fill_(1), layers[0].bias.copy_(torch.tensor([0, 2]))
    >>> network = cpwl.Network.from_torch(torch.nn.Sequential(*layers), (1,))
    >>> facets = cpwl.facets(cpwl.cell_at(network, [1.0]), -4, 4)
    >>> facets
    Facets(1 of 2 half-spaces, 0 of the others left out unproven)
    >>> facets.units.tolist(), facets.points.round(9).tolist()
    ([0], [[0.0]])
    """

    cell: Cell
    halfspaces: Ints
    points: Floats
    margins: Floats
    same_as: Ints
    unproven: Ints
    programs: int

    @property
    def units(self) -> Ints:
        """The unit of each facet, (F,) int64."""
        return self.cell.halfspaces.unit[self.halfspaces]

    def __repr__(self) -> str:
        """Summarise: the arrays themselves are long."""
        return (
            f"Facets({len(self.halfspaces):,} of {len(self.same_as):,} half-spaces, "
            f"{len(self.unproven):,} of the others left out unproven)"
        )


def chebyshev_ball(cell: Cell, lo: Any, hi: Any) -> Ball:
    """Return the largest ball inside a cell and a box.

    Parameters
    ----------
    cell : Cell
    lo, hi : float or (E,) array_like
        The box, which holds `cell.z`.

    Raises
    ------
    ValueError
        A box that does not hold the latent, NaN or inf, or a cell without interior.
    ImportError
        Without highspy (extra ``cpwl[lp]``).

    Notes
    -----
    One linear program in E + 1 variables (Boyd and Vandenberghe, Convex Optimization, section
    8.5.1). Its optimum is not trusted: the radius is the centre's distance from the nearest
    half-space with all rounding errors subtracted, and the upper bound that of its multipliers.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> ball = cpwl.chebyshev_ball(cpwl.cell_at(network, [-1.0, 3.0]), -4, 4)
    >>> ball.center.round(9).tolist(), round(ball.radius, 9), round(ball.radius_at_most, 9)
    ([-2.0, 2.0], 2.0, 2.0)
    """
    room = room_of(cell, lo, hi)
    center, radius, at_most = Settling(room).inscribe()
    return Ball(cell.z + room.scale * center, room.scale * radius, room.scale * at_most)


def facets(cell: Cell, lo: Any, hi: Any, *, progress: bool = False) -> Facets:
    """Return which half-spaces of a cell are facets of it within a box.

    Parameters
    ----------
    cell : Cell
    lo, hi : float or (E,) array_like
        The box, which holds `cell.z`. Its own sides are not listed.
    progress : bool
        Show how many half-spaces are settled.

    Raises
    ------
    ValueError
        A box that does not hold the latent, NaN or inf, or a cell without interior.
    ImportError
        Without highspy (extra ``cpwl[lp]``).

    Notes
    -----
    Half-spaces that do not reach the box go first. Rays from the centre of the inscribed ball along
    all normals find facets without a linear program. Then each half-space that is still open is
    maximised over the cell: it is redundant, or the optimum is a vertex, and each hyperplane
    through a vertex of exactly E of them is a facet. So one linear program settles up to E
    half-spaces.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> cell = cpwl.cell_at(network, [-1.0, 3.0])
    >>> cpwl.facets(cell, -4, 4).units.tolist()
    [0, 1]
    >>> cpwl.facets(cell, [-4, 1], [4, 4]).units.tolist()
    [0]
    """
    room = room_of(cell, lo, hi)
    state = Settling(room)
    center, *_ = state.inscribe()
    with tqdm(total=len(room.A), disable=not progress, desc="half-spaces") as bar:
        try:
            state.beyond_the_box()
            state.rays(center)
            for i in np.argsort(room.b, kind="stable"):
                bar.update(len(room.A) - int(state.open.sum()) - bar.n)
                if state.open[i]:
                    state.settle(int(i))
        except KeyboardInterrupt:
            warnings.warn(
                f"Interrupted with {int(state.open.sum())} half-spaces open: `unproven` holds "
                "them too.",
                RuntimeWarning,
                stacklevel=2,
            )
    which = np.array(sorted(state.point), np.int64)
    points = np.array([state.point[i] for i in which.tolist()]).reshape(-1, len(cell.z))
    return Facets(
        cell=cell,
        halfspaces=which,
        points=cell.z + room.scale * points,
        margins=room.scale * state.margin[which],
        same_as=state.same_as,
        unproven=np.flatnonzero(state.unproven | state.open),
        programs=state.programs,
    )


def neighbours(facets: Facets) -> Iterator[Cell | None]:
    """Yield the cell across each facet, in their order.

    Yields
    ------
    Cell or None
        The cell at a point just beyond the facet; its `z` is this point. It is proven to share the
        facet's point, and to have there no other knot than the facet: a unit that switches
        together with the facet's own, be it deeper or on the same hyperplane, is on its new piece.
        None if rounding hides the cell, at every length of the step.

    Notes
    -----
    One `cell_at` for each facet, mostly. No cell lies between the two: a step that led too far is
    seen by half-spaces of the cell it led to which exclude the facet's point, and is shortened.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> facets = cpwl.facets(cpwl.cell_at(network, [-1.0, 3.0]), -4, 4)
    >>> [cell.pieces.tolist() for cell in cpwl.neighbours(facets)]
    [[1, 1], [0, 0]]
    """
    require_kind(facets, Facets, "Find them first: cpwl.facets(cell, lo, hi).")
    found = zip(facets.halfspaces, facets.points, facets.margins, strict=True)
    return (across(facets.cell, int(i), point, float(margin)) for i, point, margin in found)


def across(cell: Cell, halfspace: int, point: Floats, margin: float) -> Cell | None:
    """Return the cell beyond a facet, from a point inside the facet and its margin."""
    normal = cell.halfspaces.A[halfspace]
    from_z = point - cell.z
    step = _FIRST_STEP * margin
    for _ in range(_STEPS):
        beyond = cell_at(cell.network, (point + step * normal).reshape(cell.network.input_shape))
        moved = point - beyond.z
        slack = beyond.distances - beyond.halfspaces.A @ moved
        doubt = beyond.doubt.error + beyond.doubt.tilt * np.linalg.norm(moved)
        doubt += cell.doubt.error[halfspace] + cell.doubt.tilt[halfspace] * np.linalg.norm(from_z)
        touching = np.flatnonzero(slack <= doubt)
        # through the point passes the facet's hyperplane, once or more often, and nothing else
        turned = np.linalg.norm(beyond.halfspaces.A[touching] + normal, axis=1)
        same = turned <= 2 * (beyond.doubt.tilt[touching] + cell.doubt.tilt[halfspace])
        reached = (slack[touching] >= -doubt[touching]) & same
        if len(beyond.undecided) == 0 and len(touching) and reached.all():
            return beyond
        step *= _SHORTER
    return None
