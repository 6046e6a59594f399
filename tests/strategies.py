"""hypothesis strategies for small networks that prefer degeneracy, and generic random ones.

Small integers make knots meet in corners, coincide, run along the domain's sides and through its
corners; rows are often zero, repeated, negated or parallel to an earlier one; often there are no
biases at all.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from layers import (
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

SMALL = st.integers(-2, 2)


def ordinary(examples: int) -> settings:
    """Return the settings of tests that every commit runs: the same examples each time."""
    return settings(max_examples=examples, deadline=None, derandomize=True)


def nightly(examples: int) -> settings:
    """Return the settings of tests that look for something new each time."""
    return settings(max_examples=examples, deadline=None)


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


def domains(dim: int) -> st.SearchStrategy[Corners]:
    """Corners of domains whose sides and corners small integer knots like to hit."""
    return st.sampled_from(POLYGONS if dim == 2 else INTERVALS)


@st.composite
def _rows(draw: st.DrawFn, count: int, width: int, biased: bool) -> tuple[list, list]:
    """Weights and biases in -2..2 (or twice that), often related to an earlier row's."""
    weights: list[list[int]] = []
    biases: list[int] = []
    for _ in range(count):
        kind = draw(st.sampled_from(["fresh", "fresh", "zero", "equal", "opposite", "parallel"]))
        row = draw(st.lists(SMALL, min_size=width, max_size=width))
        bias = draw(SMALL) if biased else 0
        if weights and kind in ("equal", "opposite", "parallel"):
            earlier = draw(st.integers(0, len(weights) - 1))
            sign = -1 if kind == "opposite" else 1
            row = [sign * x for x in weights[earlier]]
            if kind != "parallel":
                bias = sign * biases[earlier]
        elif kind == "zero":
            row = [0] * width
        weights.append(row)
        biases.append(bias)
    return weights, biases


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
            kind.size * choose.randint(1, 2) if isinstance(kind, Pool) else choose.randint(2, width)
            for kind in kinds
        ]
        inputs = [
            (0, i) if skips and 0 < i < hidden and choose.random() < 0.5 else (i,)
            for i in range(hidden + 1)
        ]
        found.append(Architecture(dim, (*rows, 2), (*kinds, LINEAR), tuple(inputs)))
    return st.sampled_from(found)


@st.composite
def degenerate_networks(
    draw: st.DrawFn, shapes: st.SearchStrategy[Architecture]
) -> tuple[Layer, ...]:
    """Networks of small integer weights, often without biases."""
    shape = draw(shapes)
    biased = draw(st.booleans())
    numbers = [
        draw(_rows(rows, columns, biased))
        for rows, columns in zip(shape.rows, shape.columns(), strict=True)
    ]
    return shape.build(numbers)


def generic_networks(
    shapes: st.SearchStrategy[Architecture],
) -> st.SearchStrategy[tuple[Layer, ...]]:
    """Networks of normal float64 weights."""
    return st.builds(_generic, st.integers(0, 2**32 - 1), shapes)


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
