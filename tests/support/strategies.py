"""hypothesis strategies for small networks that prefer degeneracy, and generic random ones.

Small integers make knots meet in corners, coincide, run along the domain's sides and through its
corners; rows are often zero, repeated, negated, parallel to an earlier one or the sum of two; often
there are no biases at all. The nearly degenerate ones relate their rows in the same ways, but with
numbers such as 0.1 and 1/3, of which float64 rounds every product and sum: what would coincide then
differs in the last bit, and only exact arithmetic tells.

Numbers come from a seed that hypothesis draws: drawn one by one, most of them would be zero.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from oracles.bodies import Body, bodies, pyramid, trimmed_cube
from oracles.layers import (
    ABS,
    LINEAR,
    RELU,
    RELU6,
    WAVE,
    Layer,
    Pool,
    Units,
    hardtanh,
    layer,
    leaky,
    network,
)

SEEDS = st.integers(0, 2**32 - 1)


def ordinary(examples: int) -> settings:
    """Return the settings of tests that every commit runs: the same examples each time."""
    return settings(max_examples=examples, deadline=None, derandomize=True)


def nightly(examples: int) -> settings:
    """Return the settings of long sweeps: the same examples each time as well."""
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None)


Corners = tuple[tuple[float, ...], ...]

BOX: Corners = ((-2.0, -2.0), (2.0, -2.0), (2.0, 2.0), (-2.0, 2.0))
# sides of slope 0, 1, -1 and infinity, and corners that small integer knots run through
POLYGONS: tuple[Corners, ...] = (
    BOX,
    ((0.0, 0.0), (2.0, 0.0), (0.0, 2.0)),
    ((-2.0, 0.0), (0.0, -2.0), (2.0, 0.0), (0.0, 2.0)),
    ((-1.0, -2.0), (2.0, -1.0), (2.0, 1.0), (0.0, 2.0), (-2.0, 1.0)),
)
INTERVALS: tuple[Corners, ...] = (((-2.0,), (2.0,)), ((0.0,), (1.0,)), ((-3.0,), (0.5,)))

SCALARS: tuple[Units, ...] = (
    RELU,
    ABS,
    RELU6,
    hardtanh(),
    hardtanh(0, 2),
    leaky(Fraction(1, 4)),
    leaky(-1),
    leaky(1),
)
POOLS: tuple[Units, ...] = (Pool(2), Pool(3), Pool(5))
ALL: tuple[Units, ...] = (*SCALARS, WAVE, *POOLS)
# for dimensions above 2, where pieces multiply
SIMPLE: tuple[Units, ...] = (
    RELU,
    ABS,
    hardtanh(),
    leaky(Fraction(1, 4)),
    leaky(1),
    Pool(2),
    Pool(3),
)


def domains(dim: int) -> st.SearchStrategy[Corners]:
    """Corners of domains whose sides and corners small integer knots like to hit."""
    return st.sampled_from(POLYGONS if dim == 2 else INTERVALS)


def places(dim: int) -> st.SearchStrategy[Corners | Body]:
    """Such domains of any dimension, in the plane also two that are given by half-spaces."""
    plane = (*POLYGONS, pyramid(2), trimmed_cube(2))
    return st.sampled_from(INTERVALS if dim == 1 else plane if dim == 2 else bodies(dim))


def shapes(dim: int) -> st.SearchStrategy[Architecture]:
    """A few architectures, larger in the plane than above, where cells and faces multiply."""
    if dim <= 2:
        return some_architectures(24, dim, ALL, width=5)
    return some_architectures(16, dim, SIMPLE, width=(6, 5, 5, 4)[dim - 3])


@dataclass(frozen=True)
class Numbers:
    """What weights and biases are drawn from, and by what a row may differ from an earlier one."""

    fresh: Callable[[random.Random], float]
    factors: tuple[float, ...]
    nudged: bool = False

    def row(self, rng: random.Random, earlier: list[list[float]], width: int) -> list[float]:
        """Return weights and bias, related to earlier rows more often than not."""
        kinds = ["fresh"] * 8 + ["touch", "touch", "pair", "pair", "zero", "constant"]
        kinds += ["multiple", "multiple", "parallel", "sum"] * bool(earlier)
        kind = rng.choice(kinds)
        new = [self.fresh(rng) for _ in range(width + 1)]
        if kind == "zero":
            return [0.0] * (width + 1)
        if kind == "constant":
            return [*[0.0] * width, new[-1]]
        if kind == "touch":  # through a place where corners of domains and of cells are
            place = [rng.choice((-2.0, 0.0, 2.0)) for _ in range(width)]
            return [*new[:-1], -sum(a * x for a, x in zip(new[:-1], place, strict=True))]
        if kind == "pair":  # two inputs that may cancel
            row = [0.0] * (width + 1)
            row[rng.randrange(width)] = rng.choice(self.factors)
            row[rng.randrange(width)] -= 1.0
            return row
        if kind == "fresh":
            return new
        base, factor = rng.choice(earlier), rng.choice(self.factors)
        row = [factor * x for x in base]
        if kind == "sum":
            row = [x + y for x, y in zip(row, rng.choice(earlier), strict=True)]
        if kind == "parallel":
            row[-1] = new[-1]
        if self.nudged and rng.random() < 0.5:
            place = rng.randrange(width + 1)
            if rng.random() < 0.5:
                row[place] = math.nextafter(row[place], rng.choice((-math.inf, math.inf)))
            else:
                row[place] += rng.gauss(0, 1) * 10.0 ** rng.uniform(-17, -3)
        return row

    def table(
        self, rng: random.Random, rows: int, columns: int, biased: bool
    ) -> tuple[list[list[float]], list[float]]:
        """Return the weights and biases of a layer."""
        table: list[list[float]] = []
        for _ in range(rows):
            row = self.row(rng, table, columns)
            table.append(row if biased else [*row[:-1], 0.0])
        return [row[:-1] for row in table], [row[-1] for row in table]


INTEGERS = Numbers(lambda rng: float(rng.randint(-2, 2)), (1.0, 1.0, -1.0, -1.0, 2.0, -2.0))
_DECIMALS = (0.1, 0.2, 0.3, 1 / 3, 2 / 3, 0.7, 1.1, 1.0, 3.0, -0.1, -0.3, -1 / 3, -0.6, -1.0, 0.0)
NEARLY = Numbers(
    lambda rng: rng.choice(_DECIMALS) if rng.random() < 0.7 else rng.gauss(0, 1),
    (3.0, -3.0, 0.1, -0.1, 1 / 3, -0.7, 7.0),
    nudged=True,
)


@dataclass(frozen=True)
class Architecture:
    """Everything of a network but its numbers: rows and units of each layer, and what it reads."""

    dim: int
    rows: tuple[int, ...]
    units: tuple[Units, ...]
    inputs: tuple[tuple[int, ...], ...]

    def columns(self) -> list[int]:
        """Entries that each layer reads."""
        widths = [self.dim]
        for rows, kind in zip(self.rows, self.units, strict=True):
            widths.append(rows // kind.size if isinstance(kind, Pool) else rows)
        return [sum(widths[i] for i in inputs) for inputs in self.inputs]

    def build(self, numbers: list[tuple[list, list]]) -> tuple[Layer, ...]:
        """Return the network with these weights and biases."""
        parts = zip(numbers, self.units, self.inputs, strict=True)
        return network(*(layer(w, b, kind, inputs) for (w, b), kind, inputs in parts))


@st.composite
def architectures(
    draw: st.DrawFn,
    dim: int = 2,
    units: tuple[Units, ...] = SCALARS,
    depth: int = 3,
    width: int = 4,
    skips: bool = True,
) -> Architecture:
    """Draw one to `depth` CPWL layers, some of which read the latent too, and a linear one."""
    hidden = draw(st.integers(1, depth))
    kinds = tuple(draw(st.sampled_from(units)) for _ in range(hidden))
    counts = [draw(st.integers(1, 2 if isinstance(kind, Pool) else width)) for kind in kinds]
    rows = [
        count * kind.size if isinstance(kind, Pool) else count
        for count, kind in zip(counts, kinds, strict=True)
    ]
    inputs = [
        (0, place) if skips and 0 < place < hidden and draw(st.booleans()) else (place,)
        for place in range(hidden + 1)
    ]
    rows.append(draw(st.integers(1, 2)))
    return Architecture(dim, tuple(rows), (*kinds, LINEAR), tuple(inputs))


def some_architectures(
    count: int,
    dim: int = 2,
    units: tuple[Units, ...] = SCALARS,
    width: int = 4,
    skips: bool = True,
) -> st.SearchStrategy[Architecture]:
    """Choose from a fixed few: torch.export takes 0.4 s an architecture."""
    choose = random.Random(count)
    found = []
    for place in range(count):
        hidden = 1 + place % 3
        kinds = [units[(place + 3 * i) % len(units)] for i in range(hidden)]
        rows = [
            kind.size * choose.randint(1, 2)
            if isinstance(kind, Pool)
            else choose.randint(max(2, width // 2), width)
            for kind in kinds
        ]
        inputs = [
            (0, i) if skips and 0 < i < hidden and choose.random() < 0.5 else (i,)
            for i in range(hidden + 1)
        ]
        found.append(Architecture(dim, (*rows, 2), (*kinds, LINEAR), tuple(inputs)))
    return st.sampled_from(found)


def degenerate_networks(
    shapes: st.SearchStrategy[Architecture],
) -> st.SearchStrategy[tuple[Layer, ...]]:
    """Networks of small integer weights, often without biases."""
    return st.builds(related_network, SEEDS, shapes, st.just(INTEGERS))


def nearly_degenerate_networks(
    shapes: st.SearchStrategy[Architecture],
) -> st.SearchStrategy[tuple[Layer, ...]]:
    """Networks that would be degenerate if float64 did not round what their rows are made of."""
    return st.builds(related_network, SEEDS, shapes, st.just(NEARLY))


def related_network(seed: int, shape: Architecture, numbers: Numbers) -> tuple[Layer, ...]:
    rng = random.Random(seed)
    biased = rng.random() < 0.6
    return shape.build(
        [
            numbers.table(rng, rows, columns, biased)
            for rows, columns in zip(shape.rows, shape.columns(), strict=True)
        ]
    )


def cancelling_networks(dim: int) -> st.SearchStrategy[tuple[Layer, ...]]:
    """Layers that read the small differences between pairs of nearly equal rows.

    Knots meet at tiny angles, and what decides about them is far below what is added up.
    """
    return st.builds(cancelling_network, SEEDS, st.just(dim))


def cancelling_network(seed: int, dim: int) -> tuple[Layer, ...]:
    """Return such layers."""
    rng = np.random.default_rng(seed)
    small = 10.0 ** -rng.uniform(3, 16)
    width, behind = (4, 4) if dim < 4 else (3, 2)
    rows = rng.normal(size=(width, dim + 1))
    first = np.concatenate([rows, rows + small * rng.normal(size=rows.shape)])
    weights = rng.normal(size=(behind, width))
    opposite = -weights * (1 + small * rng.normal(size=weights.shape))
    second = np.concatenate([weights, opposite], axis=1)
    third = rng.normal(size=(3, behind))
    return network(
        layer(first[:, :-1].tolist(), first[:, -1].tolist()),
        layer(second.tolist(), (small * rng.normal(size=behind)).tolist()),
        layer(third.tolist(), (small * rng.normal(size=3)).tolist()),
        layer(rng.normal(size=(2, 3)).tolist(), [0, 0], LINEAR),
    )


def generic_networks(
    shapes: st.SearchStrategy[Architecture],
) -> st.SearchStrategy[tuple[Layer, ...]]:
    """Networks of normal float64 weights."""
    return st.builds(_generic, SEEDS, shapes)


def _generic(seed: int, shape: Architecture) -> tuple[Layer, ...]:
    rng = np.random.default_rng(seed)
    numbers = [
        (
            (rng.normal(size=(rows, columns)) * np.sqrt(2 / columns)).tolist(),
            rng.normal(size=rows).tolist(),
        )
        for rows, columns in zip(shape.rows, shape.columns(), strict=True)
    ]
    return shape.build(numbers)


def random_network(
    seed: int,
    widths: tuple[int, ...],
    units: tuple[Units, ...] = (RELU,),
    dim: int = 2,
    outputs: int = 3,
) -> tuple[Layer, ...]:
    """Return a generic network of normal float64 weights; its layers take the units in turn.

    A width counts what a layer puts out, so that a pool reads `size` times as many rows.
    """
    kinds = [units[place % len(units)] for place in range(len(widths))]
    rows = [
        width * kind.size if isinstance(kind, Pool) else width
        for width, kind in zip(widths, kinds, strict=True)
    ]
    chain = tuple((place,) for place in range(len(widths) + 1))
    return _generic(seed, Architecture(dim, (*rows, outputs), (*kinds, LINEAR), chain))
