"""A small language for exact layered networks: every parameter a rational, every unit CPWL.

A network is a tuple of `Layer`s. Layer i reads the concatenation of earlier outputs (0 is the
latent, j the output of layer j - 1), so that skip connections and branches need nothing further (an
addition is a layer with weights [I, I]). One description feeds the rational oracle, the brute force
and, through `to_torch`, the engine: weights that are float64 are rationals, so all of them work on
the same mathematical object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import nn

Rational = int | float | Fraction


@dataclass(frozen=True)
class Scalar:
    """A scalar CPWL function: slopes[p] * h + intercepts[p] on piece p, between knots p - 1 and p.

    With a period there is a knot at 0, `knots` are the others of one period, and piece numbers go
    on for ever, piece 0 beginning at h = 0; `slopes` and `intercepts` describe one period, h
    counted from its beginning.
    """

    name: str
    knots: tuple[Fraction, ...]
    slopes: tuple[Fraction, ...]
    intercepts: tuple[Fraction, ...]
    period: Fraction | None = None


@dataclass(frozen=True)
class Pool:
    """The maximum over every `size` neighbouring rows; its pieces are the winners 0 .. size - 1."""

    size: int
    name: str = "pool"


Units = Scalar | Pool


@dataclass(frozen=True)
class Layer:
    """units(weight @ concat(outputs[i] for i in inputs) + bias)."""

    weight: tuple[tuple[Fraction, ...], ...]
    bias: tuple[Fraction, ...]
    units: Units
    inputs: tuple[int, ...]

    @property
    def width(self) -> int:
        """Entries of this layer's output."""
        rows = len(self.bias)
        return rows // self.units.size if isinstance(self.units, Pool) else rows


def _scalar(name: str, knots: Sequence[Rational], *pieces: tuple[Rational, Rational]) -> Scalar:
    slopes, intercepts = zip(*pieces, strict=True)
    return Scalar(name, rationals(knots), rationals(slopes), rationals(intercepts))


def rationals(values: Sequence[Rational]) -> tuple[Fraction, ...]:
    """Floats, integers and fractions as the fractions that they are."""
    return tuple(Fraction(value) for value in values)


LINEAR = _scalar("linear", (), (1, 0))
RELU = _scalar("relu", (0,), (0, 0), (1, 0))
ABS = _scalar("abs", (0,), (-1, 0), (1, 0))
# |(h mod 2) - 1|
WAVE = Scalar("wave", rationals((1,)), rationals((-1, 1)), rationals((1, -1)), period=Fraction(2))
RELU6 = _scalar("relu6", (0, 6), (0, 0), (1, 0), (0, 6))


def leaky(slope: Rational) -> Scalar:
    """Multiply what is not above 0 by the slope."""
    if slope == 1:  # no bend, hence no knot
        return _scalar("leaky", (), (1, 0))
    return _scalar("leaky", (0,), (slope, 0), (1, 0))


def hardtanh(low: Rational = -1, high: Rational = 1) -> Scalar:
    """Clamp to [low, high]."""
    return _scalar("hardtanh", (low, high), (0, low), (1, 0), (0, high))


def layer(
    weight: Sequence[Sequence[Rational]],
    bias: Sequence[Rational],
    units: Units = RELU,
    inputs: tuple[int, ...] = (-1,),
) -> Layer:
    """Return a layer of any rational-like numbers; input -1 is the output of the layer before."""
    return Layer(tuple(rationals(row) for row in weight), rationals(bias), units, inputs)


def network(*layers: Layer) -> tuple[Layer, ...]:
    """Return the layers with relative inputs made absolute."""
    return tuple(
        Layer(
            one.weight,
            one.bias,
            one.units,
            tuple(i if i >= 0 else place + 1 + i for i in one.inputs),
        )
        for place, one in enumerate(layers)
    )


def from_sequential(module: nn.Sequential) -> tuple[Layer, ...]:
    """Return the exact description of Linear, ReLU, ..., Linear."""
    linear = [m for m in module if isinstance(m, nn.Linear)]
    return network(
        *(
            layer(m.weight.tolist(), m.bias.tolist(), RELU if m is not linear[-1] else LINEAR)
            for m in linear
        )
    )


class _Layered(nn.Module):
    """The torch module of a description."""

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        super().__init__()
        self.inputs = [one.inputs for one in layers]
        self.linear = nn.ModuleList(_linear(one) for one in layers)
        self.units = nn.ModuleList(_activation(one.units) for one in layers)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        outputs = [z]
        for inputs, linear, units in zip(self.inputs, self.linear, self.units, strict=True):
            read = [outputs[i] for i in inputs]
            outputs.append(units(linear(torch.cat(read, -1) if len(read) > 1 else read[0])))
        return outputs[-1]


class _Pool(nn.Module):
    """Max-pooling over neighbouring entries of a row."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d((1, size))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.pool(h[:, None, None, :]).flatten(1)


def _linear(one: Layer) -> nn.Linear:
    linear = nn.Linear(len(one.weight[0]), len(one.bias), dtype=torch.float64)
    with torch.no_grad():
        weight = [[float(value) for value in row] for row in one.weight]
        linear.weight.copy_(torch.tensor(weight, dtype=torch.float64))
        linear.bias.copy_(torch.tensor([float(value) for value in one.bias], dtype=torch.float64))
    return linear


def _activation(units: Units) -> nn.Module:
    if isinstance(units, Pool):
        return _Pool(units.size)
    by_name: dict[str, Any] = {
        "linear": nn.Identity,
        "relu": nn.ReLU,
        "relu6": nn.ReLU6,
        "abs": _Abs,
        "wave": _Wave,
        "leaky": lambda: nn.LeakyReLU(float(units.slopes[0])),
        "hardtanh": lambda: nn.Hardtanh(float(units.knots[0]), float(units.knots[1])),
    }
    return by_name[units.name]()


class _Abs(nn.Module):
    """|h|."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h.abs()


class _Wave(nn.Module):
    """The periodic triangle |(h mod 2) - 1|."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return (torch.remainder(h, 2) - 1).abs()


def to_torch(layers: tuple[Layer, ...]) -> nn.Module:
    """Return the float64 torch module; its parameters equal the rationals exactly.

    Raises
    ------
    ValueError
        A parameter is not a float64: module and description would be different networks.
    """
    for one in layers:
        values = [value for row in (*one.weight, one.bias) for value in row]
        if isinstance(one.units, Scalar):
            values += one.units.knots + one.units.slopes
        if any(Fraction(float(value)) != value for value in values):
            raise ValueError("expected parameters that float64 represents exactly, got others")
    return _Layered(layers).eval()
