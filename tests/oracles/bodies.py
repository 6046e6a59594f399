"""Domains of any dimension, told to the engine and to the rational oracle in the same words.

Corners of polygons and intervals are plain tuples, as before; a `Body` is everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from oracles import polytopes
from oracles.polytopes import Polytope

import cpwl

Numbers = tuple[float, ...]
Corners = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Body:
    """A box (lo, hi), a simplex (its corners), half-spaces (rows (*a, b): a x <= b) or a cross.

    A cross is {x : |x|_1 <= radius}, with rows ((radius, radius, ...),): as many as dimensions.
    """

    kind: Literal["box", "simplex", "half-spaces", "cross"]
    rows: tuple[Numbers, ...]

    @property
    def dim(self) -> int:
        """The dimension."""
        return len(self.rows[0]) - (self.kind == "half-spaces")

    def exact(self) -> Polytope:
        """Return what the oracle cuts."""
        if self.kind == "box":
            return polytopes.box(*self.rows)
        if self.kind == "simplex":
            return polytopes.simplex(self.rows)
        if self.kind == "half-spaces":
            return polytopes.half_spaces([x[:-1] for x in self.rows], [x[-1] for x in self.rows])
        return polytopes.cross_polytope(self.rows[0][0], self.dim)

    def domain(self) -> cpwl.Domain:
        """Return what the engine cuts."""
        if self.kind == "box":
            return cpwl.box(*self.rows)
        if self.kind == "simplex":
            return cpwl.simplex(self.rows)
        if self.kind == "half-spaces":
            return cpwl.polytope([x[:-1] for x in self.rows], [x[-1] for x in self.rows])
        return cpwl.cross_polytope(np.zeros(self.dim), self.rows[0][0], np.eye(self.dim))


def domain_of(domain: Corners | Body) -> cpwl.Domain:
    """Return the engine's domain."""
    if isinstance(domain, Body):
        return domain.domain()
    if len(domain[0]) == 1:
        return cpwl.box([domain[0][0]], [domain[1][0]])
    return cpwl.polygon(domain)


def exact_of(domain: Corners | Body) -> Corners | Polytope:
    """Return the oracle's domain."""
    return domain.exact() if isinstance(domain, Body) else domain


def cube(dim: int, half: float = 2.0) -> Body:
    """Return [-half, half]^dim."""
    return Body("box", ((-half,) * dim, (half,) * dim))


def cross(dim: int, radius: float = 2.0) -> Body:
    """Return {x : |x|_1 <= radius}."""
    return Body("cross", ((radius,) * dim,))


def corner_simplex(dim: int, side: float = 2.0) -> Body:
    """Return {x >= 0 : sum x <= side}."""
    points = [[0.0] * dim, *(side * np.eye(dim)).tolist()]
    return Body("simplex", tuple(map(tuple, points)))


def pyramid(dim: int) -> Body:
    """Return the cone from (0, ..., 0, 2) over the cube [-2, 2]^(dim - 1) at height -2.

    The apex lies on 2 (dim - 1) sides.
    """
    rows = [(*(0.0,) * (dim - 1), -1.0, 2.0)]
    for axis in range(dim - 1):
        for side in (-2.0, 2.0):
            rows.append((*(side * (axis == i) for i in range(dim - 1)), 1.0, 2.0))
    return Body("half-spaces", tuple(rows))


def trimmed_cube(dim: int) -> Body:
    """Return [-2, 2]^dim where 3 x_0 + x_1 + ... <= 1: corners that float64 cannot hold."""
    rows = [
        (*(side * (axis == i) for i in range(dim)), 2.0)
        for axis in range(dim)
        for side in (-1.0, 1.0)
    ]
    rows.append((3.0, *(1.0,) * (dim - 1), 1.0))
    return Body("half-spaces", tuple(rows))


def bodies(dim: int) -> tuple[Body, ...]:
    """Return bodies whose sides and corners knots of small integers like to hit."""
    return (cube(dim), corner_simplex(dim), cross(dim), pyramid(dim), trimmed_cube(dim))
