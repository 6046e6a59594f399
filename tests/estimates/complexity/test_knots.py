"""Knots against brute force at the vertices, against closed forms, and against what torch says."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as torch's own documentation has it
from support.between import Between
from support.decoders import DECODERS, double, latents, seeded
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from approx import knots, neighbourhood
from approx.complexity.watching import watched

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


# ------------------------------------------------------------------- names


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)])
        self.act = nn.SiLU()

    def forward(self, z: Tensor) -> Tensor:
        x = self.act(self.up[0](z))
        x = self.act(self.up[1](x))
        return torch.tanh((F.relu(self.up[2](x)) - 0.1).relu())


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
    assert any("softmax" in name for name in found.passed_over)


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


class PixelsLast(nn.Module):
    """Normalises groups of channels that do not lie as torch's normalisation has them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(2, 8), nn.GroupNorm(2, 8)

    def forward(self, z: Tensor) -> Tensor:
        pixels = self.linear(z.unflatten(1, (3, 3, 2)))
        return F.relu(self.norm(pixels.permute(0, 3, 1, 2)))


@pytest.mark.parametrize("batch", [1, 3])
def test_normalised_channels_lie_anyhow(batch):
    module, z = seeded(PixelsLast, (18,), 0)[0].double(), latents((18,), 60).double()
    directions = neighbourhood((18,), 4, torch.Generator().manual_seed(0))
    found = knots(module, z, directions=directions, radius=1e-3, batch=batch)
    expected = at_vertices(module, z, directions.double(), 1e-3)
    assert found.count.tolist() == expected.sum(1).tolist()
    assert int(found.count.sum()) > 0


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
    # a half is the one latent that tells where the batch is
    ("name", "passes"),
    [("relu_conv", 5.5), ("silu_conv", 5.5), ("attention", 10)],
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
            watched([copied], lambda e, to=entering: to.append(e.values[0].clone())) as watch,
        ):
            copied(watch.start(z.to(dtype), None))
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
