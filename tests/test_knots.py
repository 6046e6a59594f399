"""Knots against brute force at the vertices, against closed forms, and against what torch says."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as torch's own documentation has it
from decoders import DECODERS, double, latents, seeded
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from approx import DecoderError, knots, neighbourhood
from approx._watch import watched

aten = torch.ops.aten


class Pieces(TorchDispatchMode):
    """The piece that every unit is on, from the kernels that run (below autograd and Python)."""

    SIGNS = frozenset([aten.relu, aten.relu_, aten.leaky_relu, aten.silu, aten.gelu])

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in self.SIGNS:
            self.pieces.append((args[0] > 0).flatten(1).long())
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket is aten.max_pool2d_with_indices:
            self.pieces.append(result[1].flatten(1))
        return result


def at_vertices(module: nn.Module, z: Tensor, directions: Tensor, radius: float) -> Tensor:
    """Oracle: (B, units) whether a unit's piece differs between the vertices z +- r b_p."""
    first, changed = None, None
    for b in directions.reshape(-1, *z.shape[1:]):
        for sign in (1, -1):
            with torch.no_grad(), Pieces() as seen:
                module(z + sign * radius * b)
            pieces = torch.cat(seen.pieces, 1)
            if first is None:
                first, changed = pieces, torch.zeros_like(pieces, dtype=torch.bool)
            changed |= pieces != first
    return changed


# ------------------------------------------------------------------- against brute force


@pytest.mark.parametrize("name", DECODERS)
def test_criterion_equals_signs_at_the_vertices(name):
    module, shape = DECODERS[name]()
    module, z = double(module), latents(shape, 1000, seed=1).double()
    met = 0
    for radius in (1e-5, 1e-4):
        found = knots(module, z, radius=radius, batch=250)
        changed = at_vertices(module, z, found.directions, radius)
        assert torch.equal(found.count, changed.sum(1))
        assert torch.equal(
            found.per_layer,
            torch.stack([c.sum(1) for c in changed.split(found.units.tolist(), 1)], 1),
        )
        met += int(found.count.sum())
    # a tenth of that at 1e-4 is still linear; at 1e-2 there are enough to speak of one per cent
    found = knots(module, z, radius=1e-2, batch=250)
    expected = int(at_vertices(module, z, found.directions, 1e-2).sum())
    assert expected > 200
    assert abs(int(found.count.sum()) - expected) <= 0.01 * expected


@pytest.mark.parametrize("name", DECODERS)
def test_hull_is_signs_at_the_vertices_at_any_radius(name):
    module, shape = DECODERS[name]()
    module, z = double(module), latents(shape, 20).double()
    for radius in (1e-2, 0.5):
        found = knots(module, z, radius=radius, method="hull")
        assert torch.equal(found.count, at_vertices(module, z, found.directions, radius).sum(1))
    assert int(found.count.sum()) > 0
    assert found.density.isnan().all()
    assert found.passes == 8


def test_knots_are_met_at_small_radii_too():
    # planted: at these latents one pre-activation is a known multiple of its reach
    module = double(DECODERS["relu_mlp"]()[0])
    directions = neighbourhood((12,), 4)
    weight = module[0].weight.detach()
    for radius in (1e-8, 1e-6, 1e-4):
        reach = radius * (directions @ weight[0]).abs().max()
        base = latents((12,), 5).double()
        for multiple, met in ((0.999, 1), (-0.999, 1), (1.001, 0), (-1.001, 0)):
            h = base @ weight[0] + module[0].bias.detach()[0]
            z = base + ((multiple * reach - h) / (weight[0] @ weight[0]))[:, None] * weight[0]
            found = knots(module, z, radius=radius, directions=directions)
            other = at_vertices(module, z, directions, radius)
            assert torch.equal(found.count, other.sum(1))
            assert (other[:, 0] == bool(met)).all()


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


class Between(nn.Module):
    """A linear map to units, what they do, and a sum, in float64."""

    def __init__(self, act: Callable[[Tensor], Tensor], units: int = 40, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(units, 6, generator=generator, dtype=torch.float64))
        self.act = act

    def entering(self, z: Tensor) -> Tensor:
        return z @ self.weight.T

    def forward(self, z: Tensor) -> Tensor:
        y = self.act(self.entering(z))
        return y.flatten(1) @ torch.ones(math.prod(y.shape[1:]), 3, dtype=z.dtype)


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


# ------------------------------------------------------------------- names


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)])
        self.act = nn.SiLU()

    def forward(self, z: Tensor) -> Tensor:
        x = self.act(self.up[0](z))
        x = self.act(self.up[1](x))
        return torch.tanh(F.relu(self.up[2](x)).relu())


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = Named()

    def forward(self, z: Tensor) -> Tensor:
        return self.decode(z)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z).clamp(max=2)


def test_layers_are_named_by_the_module_that_ran():
    module, z = Outer().eval(), latents((6,))
    names = ("decoder.act", "decoder.act_1", "decoder.relu", "decoder.relu_1", "clamp")
    for decoder in (module, module.decode, lambda z: module.decode(z)):
        found = knots(decoder, z)
        assert found.layers == names
        assert found.units.tolist() == [8] * 5
        assert found.passed_over == ("decoder.tanh",)
    assert knots(module, z, method="hull").layers == names


def test_exported_and_compiled_decoders():
    module, z = Named().eval(), latents((6,), 4)
    expected = knots(module, z, radius=0.1)
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(module, (z,), dynamic_shapes=({0: batch},)).module()
    found = knots(exported, z, radius=0.1)
    assert found.layers == ("silu", "silu_1", "relu", "relu_1")
    assert torch.equal(found.per_layer, expected.per_layer)
    compiled = torch.compile(module, backend="eager")
    compiled(z)
    assert torch.equal(knots(compiled, z, radius=0.1).per_layer, expected.per_layer)


def test_attention_runs_and_softmax_has_no_knots():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu").eval()
    module = nn.Sequential(nn.Unflatten(1, (3, 8)), layer).eval()
    found = knots(module, latents((24,), 4), radius=0.01)
    assert len(found.layers) == 1
    assert found.units.tolist() == [48]
    assert any("attention" in name for name in found.passed_over)


# ------------------------------------------------------------------- batching, state, cost


@pytest.mark.parametrize("name", ["relu_conv", "max_pooling", "attention"])
def test_same_seed_same_result_on_every_batching(name):
    module, shape = DECODERS[name]()
    module, z = double(module), latents(shape, 7).double()
    whole = knots(module, z, radius=0.01, batch=7)
    for batch in ("auto", 1, 3):
        other = knots(module, z, radius=0.01, batch=batch)
        assert torch.equal(whole.per_layer, other.per_layer)
        assert torch.equal(whole.directions, other.directions)
        torch.testing.assert_close(whole.density, other.density)
        torch.testing.assert_close(whole.soft, other.soft)
    again = knots(module, z, radius=0.01, generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole.per_layer, again.per_layer)
    given = knots(module, z, radius=0.01, directions=whole.directions.reshape(4, *shape))
    assert torch.equal(whole.per_layer, given.per_layer)
    assert not torch.equal(
        whole.directions, neighbourhood(shape, 4, torch.Generator().manual_seed(1))
    )


class SequenceFirst(nn.Module):
    """Works on (positions, batch, channels), as torch's own recurrent layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 5)

    def forward(self, z: Tensor) -> Tensor:
        return F.relu(self.linear(z.unflatten(1, (4, 3)).transpose(0, 1))).transpose(0, 1)


@pytest.mark.parametrize("batch", [2, 4, 8])
@pytest.mark.parametrize("method", ["jvp", "hull"])
def test_activations_whose_first_dimension_is_not_the_batch(batch, method):
    module, z = seeded(SequenceFirst, (12,), 0)[0].double(), latents((12,), 8).double()
    one = knots(module, z, radius=0.05, batch=1, method=method)
    found = knots(module, z, radius=0.05, batch=batch, method=method)
    assert torch.equal(one.per_layer, found.per_layer)
    assert found.units.tolist() == [20]
    assert int(one.count.sum()) > 0


def test_a_channel_count_equal_to_the_batch_is_no_obstacle():
    module, shape = DECODERS["leaky_residual"]()
    module, z = double(module), latents(shape, 8).double()
    found = knots(module, z, radius=0.05, batch=8)
    assert torch.equal(found.count, knots(module, z, radius=0.05, batch=1).count)


def test_the_decoder_is_as_before():
    module, shape = DECODERS["relu_conv"]()
    z = latents(shape).requires_grad_()
    hooks = [(m._forward_hooks.copy(), m._forward_pre_hooks.copy()) for m in module.modules()]
    state = torch.get_rng_state()
    with torch.inference_mode():
        found = knots(module, z, radius=0.1)
    assert torch.equal(found.count, knots(module, z, radius=0.1).count)
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert hooks == [(m._forward_hooks, m._forward_pre_hooks) for m in module.modules()]
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks
    assert z.grad is None


@pytest.mark.parametrize(
    ("name", "passes"), [("relu_conv", 5), ("silu_conv", 5), ("attention", 10)]
)
def test_cost_in_forward_passes(name, passes):
    module, shape = DECODERS[name]()
    z = latents(shape, 2)
    with torch.no_grad(), FlopCounterMode(display=False) as once:
        module(z)
    with FlopCounterMode(display=False) as whole:
        found = knots(module, z, batch=2)
    assert (found.passes, found.products) == (5, 4)
    assert whole.get_total_flops() <= passes * once.get_total_flops()


# ------------------------------------------------------------------- figures


def test_density_is_the_mean_count_per_radius():
    module, shape = DECODERS["leaky_residual"]()
    found = knots(module, latents(shape, 2000, seed=2), radius=1e-3, batch=500)
    count, predicted = found.count.double().sum(), 1e-3 * found.density.double().sum()
    assert abs(count - predicted) < 3 * math.sqrt(count)


def test_zaslavsky_bounds_the_cells():
    module = Between(F.relu)
    found = knots(module, latents((6,), 30).double(), radius=0.2, directions=2)
    n = found.count.double()
    assert int(found.count.max()) > 5
    torch.testing.assert_close(found.zaslavsky, 1 + n + n * (n - 1) / 2)
    # more directions than knots: every subset of knots may meet
    wide = knots(module, latents((6,), 3).double(), radius=1e-9, directions=6)
    torch.testing.assert_close(wide.zaslavsky, 2.0 ** wide.count.double())


@pytest.mark.parametrize("name", ["relu_conv", "leaky_residual", "silu_conv"])
def test_float32_says_what_rounding_leaves_open(name):
    module, shape = DECODERS[name]()
    z = latents(shape, 3000, seed=3)
    rough = knots(module, z, radius=1e-4, batch=500)
    exact = knots(module, z, radius=1e-4, batch=500, dtype=torch.float64)
    assert (rough.dtype, exact.dtype) == (torch.float32, torch.float64)
    assert ((rough.per_layer - exact.per_layer).abs().sum(1) <= rough.undecided).all()
    assert int(rough.undecided.sum()) > 0
    assert not exact.undecided.any()
    narrow = knots(module, z[:500], radius=1e-4, batch=500, roundings=1)
    assert (narrow.undecided <= rough.undecided[:500]).all()
    hull = knots(module, z[:500], radius=1e-4, batch=500, method="hull")
    right = knots(module, z[:500], radius=1e-4, method="hull", dtype=torch.float64)
    assert ((hull.per_layer - right.per_layer).abs().sum(1) <= hull.undecided).all()


@pytest.mark.parametrize("name", DECODERS)
def test_rounding_errors_are_within_what_undecided_assumes(name):
    module, shape = DECODERS[name]()
    z, found = latents(shape, 200), {}
    for dtype in (torch.float32, torch.float64):
        entering: list[Tensor] = []
        copied = copy.deepcopy(module).to(dtype)
        with (
            torch.no_grad(),
            watched(
                [copied], lambda e, to=entering: to.append(e.values[0].clone()), derivatives=False
            ),
        ):
            copied(z.to(dtype))
        found[dtype] = entering
    for depth, (rough, exact) in enumerate(zip(*found.values(), strict=True)):
        error = (rough.double() - exact).abs().flatten(1)
        size = exact.flatten(1).square().mean(1, keepdim=True).sqrt()
        unit = torch.finfo(torch.float32).eps * math.sqrt(depth + 1) * size
        assert (error > 8 * unit).double().mean() < 0.01


def test_directions_are_orthonormal_and_uniform():
    basis = neighbourhood((3, 4), 5)
    torch.testing.assert_close(basis @ basis.T, torch.eye(5, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    mean = torch.stack([neighbourhood((4,), 4, generator) for _ in range(2000)]).mean(0)
    # without fixing QR's signs, the diagonal would be of one sign
    assert mean.abs().max() < 4 * 0.5 / math.sqrt(2000)


# ------------------------------------------------------------------- bad input

NET = nn.Sequential(nn.Linear(6, 8), nn.ReLU()).eval()
Z = latents((6,), 2)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("Expected a positive radius, got 0", lambda: knots(NET, Z, radius=0)),
        ("Expected a positive radius, got nan", lambda: knots(NET, Z, radius=math.nan)),
        ("Expected a positive window, got -1", lambda: knots(NET, Z, window=-1)),
        ("Expected method as 'jvp' or 'hull', got 'svd'", lambda: knots(NET, Z, method="svd")),
        ("Expected batch as a positive integer", lambda: knots(NET, Z, batch=0)),
        ("between 1 and 6 directions .* got 7", lambda: knots(NET, Z, directions=7)),
        ("between 1 and 6 directions .* got 0", lambda: knots(NET, Z, directions=0)),
        (
            r"directions of shape \(P, 6\) .* got \(2, 5\)",
            lambda: knots(NET, Z, directions=torch.ones(2, 5)),
        ),
        (
            "finite floating-point directions, got NaN",
            lambda: knots(NET, Z, directions=torch.full((2, 6), math.nan)),
        ),
        (
            "finite floating-point directions, got torch.int64",
            lambda: knots(NET, Z, directions=torch.ones(2, 6, dtype=torch.long)),
        ),
        ("Expected floating-point latents, got dtype torch.int64", lambda: knots(NET, Z.long())),
        ("Expected finite latents", lambda: knots(NET, Z * math.nan)),
        (
            "Expected a decoder with units .* executes linear, tanh",
            lambda: knots(nn.Sequential(nn.Linear(6, 8), nn.Tanh()), Z),
        ),
        (
            "Expected a decoder with units .* executes linear",
            lambda: knots(nn.Linear(6, 8), Z, method="hull"),
        ),
        ("Expected the same layers for every latent", lambda: knots(Branching(), BRANCHING)),
    ],
)
def test_what_knots_refuses(message, call):
    with pytest.raises(ValueError, match=message):
        call()


class Branching(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return F.relu(z) if float(z.detach().sum()) > 0 else F.silu(z).abs()


BRANCHING = torch.tensor([[1.0, 2.0, 3.0, 4.0], [-1.0, -2.0, -3.0, -4.0]])


@pytest.mark.parametrize("method", ["jvp", "hull"])
def test_decoders_that_knots_refuses(method):
    dropout = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout())
    with pytest.raises(DecoderError, match="in training mode"):
        knots(dropout.train(), Z, method=method)
    with pytest.raises(DecoderError, match="draws random numbers"):
        knots(lambda z: F.relu(NET(z)) + torch.rand(1), Z, method=method)
    with pytest.raises(DecoderError, match="Expected finite outputs"):
        knots(lambda z: F.relu(NET(z)) / 0, Z, method=method)
    with pytest.raises(DecoderError, match="Expected a tensor from the decoder"):
        knots(lambda z: {"image": NET(z)}, Z, method=method)
    found = knots(lambda z: {"image": NET(z)}, Z, method=method, output=lambda y: y["image"])
    assert found.layers == ("1",)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_units_that_cannot_be_seen_are_refused():
    recurrent = nn.RNN(6, 4, nonlinearity="relu", batch_first=True)
    with pytest.raises(NotImplementedError, match="got rnn_relu, whose units lie inside"):
        knots(lambda z: recurrent(z[:, None])[0], Z)
    scripted = nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(6, 8), nn.ReLU())))
    with pytest.raises(NotImplementedError, match="got the TorchScript module '0'"):
        knots(scripted.eval(), Z)


def test_out_of_memory_halves_the_batch_and_says_what_would_fit():
    class Tight(nn.Module):
        def __init__(self, most: int) -> None:
            super().__init__()
            self.inner, self.most, self.seen = NET, most, []

        def forward(self, z: Tensor) -> Tensor:
            self.seen.append(len(z))
            if len(z) > self.most:
                raise torch.OutOfMemoryError("out of memory: tried to allocate 1 TiB")
            return self.inner(z)

    z = latents((6,), 8)
    tight = Tight(2)
    found = knots(tight, z, radius=0.1, batch=8)
    assert tight.seen == [8, 4, 2, 2, 2, 2]
    assert torch.equal(found.count, knots(NET, z, radius=0.1).count)
    with pytest.raises(MemoryError, match=r"one latent and 4 directions, .* fewer directions"):
        knots(Tight(0), z)
    with pytest.raises(MemoryError, match="more memory, or in a narrower dtype"):
        knots(Tight(0), z, method="hull")
