"""Conditions whose function is continuous become units; all others say where they jump."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.fx import Graph
from torch.nn import functional

from cpwl.errors import UnsupportedOperationError
from cpwl.network.capture import export, float64_copy, forms, list_graph
from cpwl.network.network import Network

SLOPES = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64)


class Joined(nn.Module):
    """Several functions of a linear layer's five outputs, side by side."""

    def __init__(self, functions):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(2, 5).double()
        self.functions = functions

    def forward(self, z):
        x = self.linear(z)
        return torch.cat([function(x).flatten(1) for function in self.functions], 1)


def put(x, low, value):
    y = x.clone()
    y[y < low] = value
    return y


def left(x):
    return x[:, :2]


def right(x):
    return x[:, 2:4]


def mixed(x):
    mask = (x > 0).to(x.dtype)
    return mask * x + (1 - mask) * 0.1 * x


# Each is one piecewise-linear function; the units that it costs.
CONTINUOUS = {
    "leaky": (lambda x: torch.where(x > 0, x, 0.1 * x), 5),
    "lt": (lambda x: torch.where(x < 0, x / 3, x), 5),
    "number first": (lambda x: torch.where(torch.zeros(()) <= x, x, x / 3), 5),
    "falling": (lambda x: torch.where(-2 * x > 0.5, 0.3 * x + 0.25 * 0.3 - 0.25, x), 5),
    "slopes": (lambda x: torch.where(x >= 0, x, SLOPES * x), 5),
    "maximum": (lambda x: torch.where(left(x) > right(x), left(x), right(x)), 2),
    "minimum": (lambda x: torch.where(left(x) > right(x), right(x), left(x)), 2),
    "distance": (lambda x: torch.where(left(x) > right(x), left(x) - right(x),
                                       right(x) - left(x)), 2),
    "leaning": (lambda x: torch.where(left(x) > right(x), 1.5 * left(x) - 0.5 * right(x),
                                      right(x)), 2),
    "with a rest": (lambda x: torch.where(left(x) > 0, left(x) + right(x), right(x)), 2),
    "mask": (lambda x: x * (x > 0), 5),
    "mask as float": (lambda x: (x > 0).float() * x, 5),
    "masks": (mixed, 10),
    "both sides": (lambda x: (x > 1) * x + (x <= 1) * (2 * x - 1), 5),
    "masked_fill": (lambda x: x.masked_fill(x < 0.5, 0.5), 5),
    "put": (lambda x: put(x, 0.25, 0.25), 5),
    "sign": (lambda x: x.sign() * x, 5),
    "identity": (lambda x: x.abs() * x.sign(), 0),
    "heaviside": (lambda x: torch.heaviside(x.detach(), torch.tensor(0.5).to(x)) * x, 5),
    "soft threshold": (lambda x: torch.where(x.abs() > 0.3, x - 0.3 * x.sign(), 0.0), 5),
    "threshold": (lambda x: torch.where(x > 0.1, x - 0.1, 0.0), 5),
    "third": (lambda x: torch.where(3 * x > 1, 3 * x, 1.0), 5),
    "nested": (lambda x: torch.where(x < -1, -1.0, torch.where(x > 1, 1.0, x)), 5),
    "four": (lambda x: torch.where(x > 1, 2 * x - 1, torch.where(x > 0, x, torch.where(
        x > -1, 0.5 * x, 0.25 * x - 0.25))), 5),
    "and": (lambda x: torch.where((x > 0) & (x < 1), x, torch.where(x >= 1, 1.0, 0.0)), 5),
    "within relu": (lambda x: torch.where(x > 0, x.relu(), 0.1 * x), 5),
    "at one point": (lambda x: torch.where(x == 0, torch.zeros_like(x), x), 0),
    "unrelated": (lambda x: torch.where(left(x) > right(x), x[:, 4:].relu() + left(x) - right(x),
                                        x[:, 4:].relu()), 3),
    "broadcast": (lambda x: torch.where(x[:, :1] > 0, x[:, :1] * SLOPES, 0.0), 1),
    "inner batch axis": (lambda x: torch.where(x.T > 0, x.T, 0.1 * x.T).T, 5),
    "not read": (lambda x: (x > 0, x)[1], 0),
}  # fmt: skip


def test_continuous_conditions_are_units():
    module = Joined([function for function, _ in CONTINUOUS.values()])
    network = Network.from_torch(module, (2,))
    assert network.num_units == sum(units for _, units in CONTINUOUS.values())
    z = 2 * torch.randn(300, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(network(z), module(z).detach(), rtol=1e-12, atol=1e-12)
    pieces = network.pieces(z)
    ours = torch.func.vmap(torch.func.jacrev(
        lambda row, held: network.apply_pieces(row[None], held[None])[0]))(z, pieces)  # fmt: skip
    step = 2.0**-20  # far from every knot, as the points are random
    theirs = torch.stack(
        [(module(z + step * e) - module(z - step * e)) / (2 * step) for e in torch.eye(2).double()],
        -1,
    )
    torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-8)


JUMPING = {
    "a little": (lambda x: torch.where(x > 0, x, x + 1e-12), "it jumps by 1e-12 where the two"),
    "threshold": (lambda x: torch.where(x > 0.1, x, 0.0), "it jumps by 0.1 where"),
    "rounded": (lambda x: torch.where(x > 0.1, 3 * x, 0.3), r"it jumps by 2\.78e-17 where"),
    "another": (lambda x: torch.where(left(x) > 0, right(x), left(x)), "branches differ there by"),
    "mask of another": (lambda x: left(x) * (right(x) > 0), "branches differ there by"),
    "sign of another": (lambda x: left(x).sign() * right(x), "branches differ there by"),
    "filled": (lambda x: x.masked_fill(x < 0, 1), "it jumps by 1 where"),
    "step": (lambda x: (x > 0).to(x.dtype), "it jumps by 1 where"),
    "one entry": (lambda x: torch.where(x > torch.tensor([0, 0, 0, 0, 1e-9]).to(x), x, SLOPES * x),
                  "it jumps by 5e-10 where"),
    "one point": (lambda x: torch.where(x == 0, torch.ones_like(x), x), "it jumps by 1 where"),
    "nested": (lambda x: torch.where(x < -1, -1.0, torch.where(x > 1, 2.0, x)), "it jumps by 1 wh"),
    "put": (lambda x: put(x, 0.25, 0.0), "it jumps by 0.25 where"),
    "square": (lambda x: torch.where(x > 0, x * x, 0.0), "multiplies two values that depend"),
    "index": (lambda x: x.gather(1, (x > 0).long()), "it jumps by 1 where"),
    "sum of jumps": (lambda x: (x >= 0) * x + (x >= 1) * 0.5, r"it jumps by 0\.5 where"),
    "hardshrink": (lambda x: functional.hardshrink(x, 0.3), r"it jumps by 0\.3 where"),
}  # fmt: skip


def test_conditions_that_jump_say_where():
    module = Joined([function for function, _ in JUMPING.values()])
    reasons = list(list_graph(export(float64_copy(module), (2,))).conditions.values())
    for text, count in Counter(text for _, text in JUMPING.values()).items():
        assert sum(bool(re.search(text, reason)) for reason in reasons) >= count, (text, reasons)


def test_refusal_says_what_to_write_instead():
    module = Joined([lambda x: torch.where(x > 0.1, x, 0.0)])
    with pytest.raises(
        UnsupportedOperationError,
        match=r"got 'gt' at 'gt': it jumps by 0\.1 where the two sides of its condition are equal; "
        "write it with relu, clamp, abs or maximum",
    ):
        Network.from_torch(module, (2,))


small = st.fractions(min_value=-2, max_value=2, max_denominator=3)


@given(
    st.lists(small, min_size=1, max_size=3, unique=True),
    st.lists(small, min_size=4, max_size=4),
    st.sampled_from([Fraction(0), Fraction(1, 7)]),
    small.filter(bool),
)
@settings(max_examples=60, deadline=None)
def test_layout_of_a_tree_is_its_function(knots, slopes, height, sign):
    """Nested choices along one value, in any order, with or without a jump of one seventh."""
    u = Graph().placeholder("u")

    def line(slope, offset):
        return forms.Form({u: slope}, offset)

    ordered = sorted(knots)
    pieces, offset = [line(slopes[0], Fraction(0))], Fraction(0)
    for knot, before, after in zip(ordered, slopes, slopes[1:], strict=False):
        offset += (before - after) * knot + height
        pieces.append(line(after, offset))

    def tree(first, last):
        if first == last:
            return pieces[first]
        k = (first + last) // 2
        form = forms.scale(forms.Form({u: Fraction(1)}, -ordered[k]), sign)
        low, high = tree(first, k), tree(k + 1, last)
        yes, no = (high, low) if sign > 0 else (low, high)
        return forms.Choice(form, (form, forms.Form({})), "gt", yes, no)

    made = tree(0, len(ordered))
    if height:
        with pytest.raises(forms.Unproven, match=r"it jumps by 0\.143"):
            forms.flatten(made)
        return
    layout = forms.flatten(made)
    for value in (Fraction(k, 5) for k in range(-12, 13)):
        expected = pieces[sum(knot < value for knot in ordered)]
        got = layout.pieces[0]
        total = got.terms.get(u, 0) * value + got.constant
        for gain, form in zip(layout.gains, layout.forms, strict=True):
            total += gain * max(form.terms[u] * value + form.constant, 0)
        assert total == expected.terms.get(u, 0) * value + expected.constant
