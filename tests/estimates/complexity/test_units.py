"""Units of every spelling: where their knots are, how they curve, which candidate wins."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as torch's own documentation has it
from support.between import Between
from support.decoders import latents
from torch import Tensor, nn

from approx import knots

# ------------------------------------------------------------------- units of every spelling

KNOTS_AT_ZERO: dict[str, Callable[[Tensor], Tensor]] = {
    "F.relu": F.relu,
    "torch.relu": torch.relu,
    "torch.relu_": lambda x: torch.relu_(x),
    "x.relu": lambda x: x.relu(),
    "x.relu_": lambda x: x.relu_(),
    "F.relu inplace": lambda x: F.relu(x, inplace=True),
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU inplace": nn.ReLU(inplace=True),
    "aten.relu": lambda x: torch.ops.aten.relu.default(x),
    "aten.relu packet": lambda x: torch.ops.aten.relu(x),
    "clamp": lambda x: x.clamp(min=0),
    "clamp_": lambda x: x.clamp_(min=0.0),
    "torch.clamp": lambda x: torch.clamp(x, 0),
    "clip": lambda x: x.clip(0, None),
    "clamp infinite": lambda x: x.clamp(0, math.inf),
    "clamp_min": lambda x: x.clamp_min(0),
    "clamp_max": lambda x: x.clamp_max(0),
    "clamp tensor": lambda x: x.clamp(max=torch.zeros(())),
    "maximum": lambda x: torch.maximum(x, torch.zeros(())),
    "minimum": lambda x: torch.zeros(()).minimum(x),
    "torch.max": lambda x: torch.max(x, torch.zeros_like(x)),
    "abs": abs,
    "torch.abs": torch.abs,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2, inplace=True),
    "nn.LeakyReLU": nn.LeakyReLU(0.3),
    "prelu": lambda x: F.prelu(x, x.new_tensor([0.1])),
    "rrelu": F.rrelu,
    "threshold": lambda x: F.threshold(x, 0.0, 0.0),
    "nn.ELU": nn.ELU(0.7),
    "elu_": lambda x: F.elu_(x),
    "aten.elu": lambda x: torch.ops.aten.elu.default(x, 1.3, 1.1, 0.9),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 2.0),
    "silu": F.silu,
    "nn.SiLU inplace": nn.SiLU(inplace=True),
    "x * sigmoid(x)": lambda x: x * torch.sigmoid(x),
    "sigmoid(1.7 x) * x": lambda x: (1.7 * x).sigmoid() * x,
    "gelu": F.gelu,
    "nn.GELU tanh": nn.GELU("tanh"),
    "gelu by erf": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "softplus": lambda x: F.softplus(x, beta=2.0),
    "logsigmoid": F.logsigmoid,
    "mish": F.mish,
}
KNOTS_ELSEWHERE: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, ...]]] = {
    "relu6": (F.relu6, (0.0, 6.0)),
    "nn.ReLU6": (nn.ReLU6(inplace=True), (0.0, 6.0)),
    "hardtanh": (F.hardtanh, (-1.0, 1.0)),
    "nn.Hardtanh": (nn.Hardtanh(-0.5, 0.25), (-0.5, 0.25)),
    "clamp": (lambda x: x.clamp(-0.3, 0.4), (-0.3, 0.4)),
    "clamp max": (lambda x: torch.clamp(x, max=0.7), (0.7,)),
    "threshold": (nn.Threshold(0.2, 0.1), (0.2,)),
    "hardswish": (F.hardswish, (-3.0, 3.0)),
    "hardsigmoid": (nn.Hardsigmoid(), (-3.0, 3.0)),
    "softshrink": (lambda x: F.softshrink(x, 0.3), (-0.3, 0.3)),
    "hardshrink": (nn.Hardshrink(0.4), (-0.4, 0.4)),
    "maximum": (lambda x: torch.maximum(x, torch.tensor(0.5)), (0.5,)),
}
SPELLINGS = {k: (f, (0.0,)) for k, f in KNOTS_AT_ZERO.items()} | {
    f"{k} elsewhere": pair for k, pair in KNOTS_ELSEWHERE.items()
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_units_of_every_spelling(name):
    act, at = SPELLINGS[name]
    if isinstance(act, nn.Module):
        act = act.eval()
    module, z, radius = Between(act).eval(), 2 * latents((6,), 100).double(), 0.05
    found = knots(module, z, radius=radius, window=0.1)
    h, slope = module.entering(z), (found.directions @ module.weight.T).abs().amax(0)
    met = sum(((h - knot).abs() < radius * slope).sum(1) for knot in at)
    density = sum(torch.where((h - knot).abs() < 0.1, slope, 0).sum(1) / 0.1 for knot in at)
    assert found.units.tolist() == [40]
    assert int(met.sum()) > 10
    assert torch.equal(found.count, met)
    torch.testing.assert_close(found.density, density)
    assert torch.equal(knots(module, z, radius=radius, method="hull").count, met)


SMOOTH = {
    "silu": F.silu,
    "x * sigmoid(1.7 x)": lambda x: x * torch.sigmoid(x * 1.7),
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu by erf": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "softplus": lambda x: F.softplus(x, beta=1.5),
    "logsigmoid": F.logsigmoid,
    "mish": F.mish,
    "elu": lambda x: F.elu(x, 0.6),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.8),
    "hardswish": F.hardswish,
    "relu": F.relu,
}


@pytest.mark.parametrize("name", SMOOTH)
def test_delta_soft_weighs_slopes_with_the_second_derivative(name):
    act = SMOOTH[name]
    module, z = Between(act), latents((6,), 9).double()
    second = torch.func.grad(torch.func.grad(act))
    h = module.entering(z).detach()
    curvature = torch.func.vmap(torch.func.vmap(second))(h)
    found = knots(module, z)
    slope = (found.directions @ module.weight.T).abs().amax(0)
    torch.testing.assert_close(found.soft, 2 * (slope * curvature.abs()).sum(1), check_dtype=False)


# ------------------------------------------------------------------- pooling

POOLS = {
    "2": lambda x: F.max_pool2d(x, 2, return_indices=True),
    "3 stride 1": lambda x: F.max_pool2d(x, 3, 1, return_indices=True),
    "3 stride 2 padding 1": lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True),
    "(2, 3) dilated": lambda x: F.max_pool2d(x, (2, 3), (1, 2), 1, (2, 1), return_indices=True),
    "ceil": lambda x: F.max_pool2d(x, 2, 3, 1, ceil_mode=True, return_indices=True),
    "1d": lambda x: F.max_pool1d(x.flatten(2), 3, return_indices=True),
    "3d": lambda x: F.max_pool3d(x.unflatten(2, (1, 6)), (1, 2, 3), return_indices=True),
    "adaptive": lambda x: F.adaptive_max_pool2d(x, (4, 3), return_indices=True),
    "adaptive none": lambda x: F.adaptive_max_pool2d(x, (None, 2), return_indices=True),
    "aten": lambda x: torch.ops.aten.max_pool2d_with_indices.default(x, [2, 2]),
    "max": lambda x: x.max(1),
    "min": lambda x: torch.min(x, dim=-1),
    "max keepdim": lambda x: torch.max(x, 2, keepdim=True),
}


@pytest.mark.parametrize("name", POOLS)
def test_a_window_meets_its_knot_where_another_candidate_wins(name):
    pool, radius = POOLS[name], 0.1
    module = Between(lambda y: pool(y.reshape(-1, 2, 6, 7))[0], units=84)
    z = latents((6,), 30).double()
    found = knots(module, z, radius=radius)

    def winner(z: Tensor) -> Tensor:
        return pool(module.entering(z).reshape(-1, 2, 6, 7))[1].flatten(1)

    vertices = [z + s * radius * b for b in found.directions for s in (1, -1)]
    winners = torch.stack([winner(v) for v in vertices])
    changed = (winners != winners[0]).any(0)
    assert found.units.tolist() == [changed.shape[1]]
    assert int(changed.sum()) > 10
    assert torch.equal(found.count, changed.sum(1))
    assert torch.equal(knots(module, z, radius=radius, method="hull").count, changed.sum(1))


def test_modules_and_values_without_indices_pool_alike():
    z = latents((6,), 30).double()
    counts = [
        knots(Between(lambda y, p=p: p(y.reshape(-1, 2, 6, 7)), 84), z, radius=0.05).count
        for p in (
            nn.MaxPool2d(2),
            lambda x: F.max_pool2d(x, 2),
            lambda x: torch.max_pool2d(x, 2),
            lambda x: x.reshape(-1, 2, 3, 2, 7)[..., :6].unflatten(-1, (3, 2)).amax((3, 5)),
        )
    ]
    assert int(counts[0].sum()) > 0
    assert all(torch.equal(c, counts[0]) for c in counts[1:])


def test_ties_of_dead_units_are_no_knots():
    # windows full of zeros behind a ReLU: nothing there moves
    module = Between(lambda y: F.max_pool1d(F.relu(y - 50)[:, None], 2))
    found = knots(module, latents((6,), 5).double(), radius=0.1)
    assert found.units.tolist() == [40, 20]
    assert not found.count.any()
    assert not found.undecided.any()


def test_the_larger_of_two_layers_meets_where_they_are_equal():
    module = Between(lambda y: torch.maximum(y[:, :20], y[:, 20:]))
    z = latents((6,), 40).double()
    found = knots(module, z, radius=0.05)
    difference = module.weight[:20] - module.weight[20:]
    slope = (found.directions @ difference.T).abs().amax(0)
    assert torch.equal(found.count, ((z @ difference.T).abs() < 0.05 * slope).sum(1))
    assert int(found.count.sum()) > 0
