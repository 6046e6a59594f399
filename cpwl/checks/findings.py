"""Tolerances, limits and findings of a check, and the log that collects them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpwl.partition import Partition

EPS = float(np.finfo(np.float64).eps)
SMALLEST = 1e-290  # numbers below have no relative error to speak of


class Tolerances(NamedTuple):
    """How far floating-point figures may be off before a check fails."""

    geometry: float = 64.0
    """Positions, in units of eps times the largest coordinate; areas, that times the perimeter."""
    values: float = 1e-9
    """Outputs, relative to |A| e + |b| with e the extent of the domain."""
    knots: float = 16.0
    """Pre-activations, in units of the network's bound on their rounding error."""


class Limits(NamedTuple):
    """How much is worked on at a time, so that memory stays bounded, and what is not begun."""

    cells: int = 1 << 16
    """Cells at a time."""
    facets: int = 1 << 16
    """Facets at a time."""
    items: int = 1 << 20
    """Facets of cells at a time."""
    bytes: int = 1 << 27
    """Bytes of the values that a network gives at a time."""
    intersections: int = 1 << 27
    """Sets of P planes times planes: to compare more takes longer than all other checks."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check: how many things were tested, how many failed, and where first."""

    name: str
    tested: int
    failures: int
    where: str


class Log:
    """Findings as they come in; a failing index becomes words."""

    def __init__(self, partition: Partition, limits: Limits) -> None:
        self.partition = partition
        self.limits = limits
        self.findings: list[Finding] = []

    def add(self, name: str, kind: str, tested: int, failed: NDArray) -> None:
        """Record which cells, facets, points or patterns (`kind`) failed, by index."""
        where = self._place(kind, int(failed.min())) if len(failed) else ""
        self.findings.append(Finding(name, int(tested), len(failed), where))

    def _place(self, kind: str, index: int) -> str:
        """Name an item and, if its corners can be looked up, a point of it."""
        p = self.partition
        vertices = np.empty(0, np.int64)
        if kind == "cell":
            vertices = p.cell_corners[p.cell_offsets[index] : p.cell_offsets[index + 1]]
        elif kind == "facet":
            vertices = p.facet_corners[p.facet_offsets[index] : p.facet_offsets[index + 1]]
        elif kind == "point":
            vertices = np.array([index])
        if not len(vertices) or vertices.min() < 0 or vertices.max() >= len(p.points):
            return f"{kind} {index}"
        around = ", ".join(f"{x:.6g}" for x in p.points[vertices].mean(axis=0))
        return f"{kind} {index} around ({around})"
