"""hypothesis strategies for small networks that prefer degeneracy, and generic random ones.

Small integers make knots meet in corners, coincide, run along the domain's sides and through its
corners; rows are often zero, repeated, negated or parallel to an earlier one; often there are no
biases at all.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import strategies as st
from layers import ABS, LINEAR, RELU, RELU6, Layer, Pool, Units, hardtanh, layer, leaky, network

SMALL = st.integers(-2, 2)
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


@st.composite
def degenerate_networks(
    draw: st.DrawFn,
    dim: int = 2,
    units: tuple[Units, ...] = SCALARS,
    depth: int = 3,
    width: int = 4,
    skips: bool = True,
) -> tuple[Layer, ...]:
    """Networks of small integer weights with one to `depth` CPWL layers and a linear one behind."""
    layers: list[Layer] = []
    widths = [dim]
    biased = draw(st.booleans())
    for place in range(draw(st.integers(1, depth))):
        kind = draw(st.sampled_from(units))
        count = draw(st.integers(1, width))
        if isinstance(kind, Pool):
            count = kind.size * draw(st.integers(1, 2))
        inputs = (0, place) if skips and place and draw(st.booleans()) else (place,)
        weights, biases = draw(_rows(count, sum(widths[i] for i in inputs), biased))
        layers.append(layer(weights, biases, kind, inputs))
        widths.append(layers[-1].width)
    weights, biases = draw(_rows(draw(st.integers(1, 2)), widths[-1], biased))
    return network(*layers, layer(weights, biases, LINEAR))


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
    random = np.random.default_rng(seed)
    layers, before = [], dim
    for place, width in enumerate((*widths, outputs)):
        kind = units[place % len(units)] if place < len(widths) else LINEAR
        count = width * kind.size if isinstance(kind, Pool) else width
        weights = random.normal(size=(count, before)) * np.sqrt(2 / before)
        layers.append(layer(weights.tolist(), random.normal(size=count).tolist(), kind))
        before = width
    return network(*layers)


def generic_networks(
    dim: int = 2,
    units: tuple[Units, ...] = SCALARS,
    depth: int = 3,
    width: int = 5,
) -> st.SearchStrategy[tuple[Layer, ...]]:
    """Networks of normal float64 weights: one to `depth` layers of mixed units."""
    return st.builds(
        random_network,
        seed=st.integers(0, 2**32 - 1),
        widths=st.lists(st.integers(1, width), min_size=1, max_size=depth).map(tuple),
        units=st.lists(st.sampled_from(units), min_size=1, max_size=depth).map(tuple),
        dim=st.just(dim),
    )
