"""Linear programs over one polytope, warm-started: HiGHS gets a row when an optimum breaks it.

All of them maximise cost . (y, s) over the y of a box with A y + s <= b. With s held at 0 this is
the polytope itself; the largest s is the radius of its inscribed ball, rows having length one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cpwl.arrays import Floats, Ints

# HiGHS's tolerances, in units of the polytope's own size: see `scale` in `boundary`.
TOLERANCE = 1e-9
# Iterations for each row and column, of which at most one was seen to be needed: where the simplex
# method cycles, it starts again without a basis, then gives up.
_ITERATIONS = 10


class Optimum(NamedTuple):
    """Where a linear program is largest, and the multipliers of the rows that HiGHS knew."""

    y: Floats
    s: float
    rows: Ints
    multipliers: Floats


class Polytope:
    """The polytope A y <= b inside a box, as HiGHS knows it."""

    def __init__(
        self, A: Floats, b: Floats, low: Floats, high: Floats, *, ball: bool = False
    ) -> None:
        self.A, self.b = A, b
        self._highs = _highs()
        size = A.shape[1]
        infinite = self._highs.inf
        for k in range(size):
            self._highs.addVar(low[k], high[k])
        self._highs.addVar(0.0, infinite if ball else 0.0)
        self._columns = np.arange(size + 1, dtype=np.int32)
        self._known = np.zeros(len(A), bool)
        self._rows = np.zeros(0, np.int64)
        self._block = 2 * size
        self._add(np.argsort(b, kind="stable")[: self._block])

    def maximise(self, cost: Floats, s: float = 0.0, *, on: Ints | None = None) -> Optimum | None:
        """Maximise cost . y + s * (the ball's radius); None if HiGHS finds nothing feasible.

        Parameters
        ----------
        on : (k,) int64, optional
            Rows of one hyperplane to stay on: the ball is one of this facet.
        """
        on = np.zeros(0, np.int64) if on is None else on
        self._add(on[~self._known[on]])
        places = [int(np.flatnonzero(self._rows == i)[0]) for i in on]
        self._stay_on(places, on, True)
        try:
            return self._optimum(np.append(cost, s), on)
        finally:
            self._stay_on(places, on, False)

    def _stay_on(self, places: list[int], on: Ints, stay: bool) -> None:
        """Turn rows into an equation, which the ball need not keep away from, or back."""
        for place in places:
            self._highs.changeCoeff(place, len(self._columns) - 1, 0.0 if stay else 1.0)
        if places:
            limit = self.b[on[0]]
            self._highs.changeRowBounds(places[0], limit if stay else -self._highs.inf, limit)

    def _optimum(self, cost: Floats, on: Ints) -> Optimum | None:
        """Maximise, telling HiGHS of what is broken until nothing is."""
        highs = self._highs
        highs.changeColsCost(len(self._columns), self._columns, -cost)
        while True:
            most = _ITERATIONS * (len(cost) + len(self._rows))
            highs.setOptionValue("simplex_iteration_limit", most)
            highs.run()
            if highs.modelStatusToString(highs.getModelStatus()) != "Optimal":
                highs.clearSolver()  # a second opinion, from no basis
                highs.run()
                if highs.modelStatusToString(highs.getModelStatus()) != "Optimal":
                    return None
            solution = highs.getSolution()
            values = np.array(solution.col_value)
            y, radius = values[:-1], float(values[-1])
            excess = self.A @ y - self.b + radius
            excess[on] = excess[self._known] = -np.inf
            broken = np.flatnonzero(excess > TOLERANCE)
            if len(broken) == 0:
                multipliers = np.maximum(-np.array(solution.row_dual), 0.0)
                return Optimum(y, radius, self._rows, multipliers)
            worst = np.argsort(-excess[broken], kind="stable")[: self._block]
            self._add(broken[worst])

    def _add(self, rows: Ints) -> None:
        """Tell HiGHS of more rows."""
        if len(rows) == 0:
            return
        width = len(self._columns)
        matrix = np.column_stack([self.A[rows], np.ones(len(rows))])
        self._highs.addRows(
            len(rows),
            np.full(len(rows), -self._highs.inf),
            self.b[rows],
            matrix.size,
            np.arange(0, matrix.size, width, dtype=np.int32),
            np.tile(self._columns, len(rows)),
            matrix.ravel(),
        )
        self._known[rows] = True
        self._rows = np.concatenate([self._rows, rows])


def _highs() -> Any:
    """Return a silent solver."""
    try:
        import highspy
    except ImportError as error:
        raise ImportError(
            'Expected highspy, which solves the linear programs, got none. pip install "cpwl[lp]".'
        ) from error
    highs = highspy.Highs()
    highs.silent()
    for option, value in {
        "threads": 1,
        "presolve": "off",
        "solver": "simplex",
        # the primal method is a sixth faster after a new cost, but was seen to cycle for ever
        "simplex_strategy": 1,
        "primal_feasibility_tolerance": TOLERANCE,
        "dual_feasibility_tolerance": TOLERANCE,
    }.items():
        highs.setOptionValue(option, value)
    return highs
