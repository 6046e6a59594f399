"""Settling which half-spaces of a cell are facets, with a proof where rounding allows one."""

from __future__ import annotations

import numpy as np

from cpwl.arrays import EPS, Floats, Ints
from cpwl.cells.linear_programs import Optimum, Polytope
from cpwl.cells.room import Room, coincident, safe_bound

# Products at once in a test of many points against all half-spaces.
_ENTRIES = 2**24
# What HiGHS leaves of the slack of a row that holds a vertex, and more.
_ON_A_VERTEX = 1e-7
# Rays are shot at this many times E half-spaces: a facet is rarely hit first if it is far away.
_RAYS = 8


class Settling:
    """The half-spaces of a cell: open, redundant, a facet, or left out on a program's word.

    Attributes
    ----------
    same_as : (m,) int64
        The first half-space with the same hyperplane; only these are settled.
    open, unproven : (m,) bool
    margin : (m,) float64
        Of a facet the distance of its point from all else, NaN for what is no facet.
    point : dict
        The point (E,) of each facet.
    programs : int
        Linear programs so far.
    """

    def __init__(self, room: Room) -> None:
        count, size = room.A.shape
        self.room = room
        self.same_as = coincident(room)
        self.open = self.same_as == np.arange(count)
        self.unproven = np.zeros(count, bool)
        self.margin = np.full(count, np.nan)
        self.point: dict[int, Floats] = {}
        self.programs = 0
        # the box is among the rows that the ball keeps away from
        A = np.concatenate([room.A, np.eye(size), -np.eye(size)])
        b = np.concatenate([room.b, room.high, -room.low])
        self._deep = Polytope(A, b, room.low, room.high, ball=True)
        self._flat: Polytope | None = None

    def inscribe(self) -> tuple[Floats, float, float]:
        """Return the centre y of the largest ball, its radius, and what no radius is above.

        Raises
        ------
        ValueError
            The cell has no interior.
        """
        room, deep = self.room, self._deep
        size = len(room.low)
        best = deep.maximise(np.zeros(size), 1.0)
        self.programs += 1
        y = np.zeros(size) if best is None else best.y
        length = np.linalg.norm(y)
        slack = deep.b - deep.A @ y
        slack[: len(room.A)] -= room.doubt(length)
        slack -= (size + 4) * EPS * (np.abs(deep.b) + length)
        radius = float(slack.min())
        if best is None or not radius > 0:
            raise ValueError(
                "Expected a cell with an interior, got one whose largest ball has radius 0 up to "
                f"rounding. Its latent lies on the knots of {len(room.cell.undecided)} units: move "
                "it off them by a small random step."
            )
        doubt = np.append(room.doubt(room.reach), np.zeros(2 * size))
        at_most = safe_bound(room, np.zeros(size), deep.A, deep.b + doubt, best)
        at_most /= float(best.multipliers.sum()) * (1 - len(deep.A) * EPS)
        return best.y, radius, at_most

    def beyond_the_box(self) -> None:
        """Leave out the half-spaces that hold in the whole box."""
        room = self.room
        most = np.maximum(room.A, 0) @ room.high + np.minimum(room.A, 0) @ room.low
        rounding = 2 * room.A.shape[1] * EPS * room.reach
        self.open &= most + rounding + room.doubt(room.reach) >= room.b

    def rays(self, center: Floats) -> None:
        """Shoot from a point inside along the normals; what is hit first and alone is a facet."""
        room = self.room
        slack = room.b - room.A @ center
        chosen = np.flatnonzero(self.open)
        chosen = chosen[np.argsort(slack[chosen], kind="stable")][: _RAYS * room.A.shape[1]]
        rows = max(1, _ENTRIES // max(1, len(room.A)))
        for start in range(0, len(chosen), rows):
            directions = room.A[chosen[start : start + rows]]
            speed = directions @ room.A.T
            time = np.where(speed > EPS, slack / np.maximum(speed, EPS), np.inf)
            first = time.argmin(axis=1)
            reached = np.take_along_axis(time, first[:, None], axis=1)
            hit, which = np.unique(self.same_as[first], return_index=True)
            self._try(hit, center + reached[which] * directions[which])

    def settle(self, i: int) -> None:
        """Settle an open half-space, and others that the same linear program decides."""
        room = self.room
        if self._flat is None:
            self._flat = Polytope(room.A, room.b, room.low, room.high)
        best = self._flat.maximise(room.A[i])
        self.programs += 1
        if best is not None:
            if self._redundant(i, best):
                self.open[i] = False
                return
            self._vertex(best.y)
        if self.open[i]:
            self.facet(i)

    def facet(self, i: int) -> tuple[Floats, float] | None:
        """Settle a half-space by the deepest point of its facet: (point y, margin) if it has one.

        The word of a linear program is taken for that it has none.
        """
        i = int(self.same_as[i])
        if self.open[i]:
            self.programs += 1
            group = np.flatnonzero(self.same_as == i)
            best = self._deep.maximise(np.zeros(len(self.room.low)), 1.0, on=group)
            if best is not None:
                self._try(np.array([i]), best.y[None])
        if self.open[i]:
            self.open[i], self.unproven[i] = False, True
        return (self.point[i], float(self.margin[i])) if i in self.point else None

    def _redundant(self, i: int, best: Optimum) -> bool:
        """Say whether the optimum's multipliers prove that a half-space holds by the others."""
        room = self.room
        doubt = room.doubt(room.reach)
        others = best.multipliers * (self.same_as[best.rows] != i)
        best = best._replace(multipliers=others)
        return safe_bound(room, room.A[i], room.A, room.b + doubt, best) < room.b[i] - doubt[i]

    def _vertex(self, y: Floats) -> None:
        """Settle the half-spaces through a vertex at which exactly E hyperplanes meet."""
        room, size = self.room, len(y)
        slack = room.b - room.A @ y
        first = self.same_as == np.arange(len(slack))
        near = np.flatnonzero((np.abs(slack) <= _ON_A_VERTEX) & first)
        upper = np.flatnonzero(room.high - y <= _ON_A_VERTEX)
        lower = np.flatnonzero(y - room.low <= _ON_A_VERTEX)
        if len(near) + len(upper) + len(lower) != size or not self.open[near].any():
            return
        sides = np.concatenate([room.A[near], np.eye(size)[upper], -np.eye(size)[lower]])
        try:
            inverse = np.linalg.inv(sides)
        except np.linalg.LinAlgError:
            return
        wanted = np.flatnonzero(self.open[near])
        # in direction k the slack of side k stays, that of all others of the vertex grows alike
        away = (inverse[:, wanted] - inverse.sum(axis=1)[:, None]).T
        away /= np.linalg.norm(away, axis=1)[:, None]
        speed = away @ room.A.T
        speed[:, np.isin(self.same_as, near)] = 0
        time = np.where(speed > EPS, slack / np.maximum(speed, EPS), np.inf).min(axis=1)
        room_left = np.where(away > 0, room.high - y, y - room.low)
        ends = room_left / np.maximum(np.abs(away), EPS)
        time = np.minimum(time, np.where(room_left > _ON_A_VERTEX, ends, np.inf).min(axis=1))
        self._try(near[wanted], y + 0.5 * time[:, None] * away)

    def _try(self, rows: Ints, points: Floats) -> None:
        """Settle half-spaces by points near them that are inside all others."""
        room = self.room
        rows, points = rows[self.open[rows]], points[self.open[rows]]
        off = room.b[rows] - np.einsum("ne,ne->n", points, room.A[rows])
        points = points + off[:, None] * room.A[rows]
        block = max(1, _ENTRIES // max(1, len(room.A)))
        for start in range(0, len(rows), block):
            part, y = rows[start : start + block], points[start : start + block]
            length = np.linalg.norm(y, axis=1)
            slack = room.b - y @ room.A.T
            slack -= room.cell.doubt.error / room.scale + np.outer(length, room.cell.doubt.tilt)
            own = np.abs(np.take_along_axis(slack, part[:, None], axis=1)[:, 0])
            slack[self.same_as[None, :] == part[:, None]] = np.inf
            side = np.minimum(room.high - y, y - room.low).min(axis=1)
            # the facet itself passes within `own` of the point
            margin = np.minimum(slack.min(axis=1, initial=np.inf), side) - own
            margin -= (len(room.low) + 4) * EPS * (length + np.abs(room.b[part]))
            for k in np.flatnonzero(margin > 0):
                self.margin[part[k]], self.point[int(part[k])] = margin[k], y[k]
                self.open[part[k]] = False
