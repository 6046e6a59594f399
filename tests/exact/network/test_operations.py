"""Every supported operation, nested in a module, against torch; the interface; real networks."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bridges.networks import pretrained
from cpwl.network.network import Network, inspect

# torch.func.jvp itself uses torch.jit when it is first called.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


class Nested(nn.Module):
    """An operation on a branch between a linear layer and a linear layer, skipped and joined."""

    def __init__(self, middle, shape, after=None):
        super().__init__()
        size = int(np.prod(shape))
        self.shape = shape
        self.first = nn.Linear(3, size)
        self.middle = middle
        width = after if after is not None else size
        self.last = nn.Linear(width + size, 4)

    def forward(self, x):
        h = self.first(x)
        y = self.middle(h.reshape(-1, *self.shape)).flatten(1)
        return functional.relu(self.last(torch.cat([y, h], dim=1))) + x[:, :1]


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def batch_norm():
    layer = nn.BatchNorm2d(2)
    layer.weight.data.uniform_(-2, 2)
    layer.running_mean.data.normal_()
    layer.running_var.data.uniform_(0.5, 2)
    return layer


IMAGE = (2, 4, 4)
AFFINE = {
    "linear": (lambda: nn.Linear(6, 5), (6,), 5),
    "linear on rows": (lambda: nn.Linear(3, 5, bias=False), (2, 3), 10),
    "matmul": (lambda: Call(lambda x: x @ torch.arange(6.0, dtype=x.dtype).view(3, 2)), (2, 3), 4),
    "constant matmul": (lambda: Call(lambda x: torch.arange(4.0, dtype=x.dtype).view(2, 2) @ x),
                        (2, 3), 6),
    "einsum": (lambda: Call(lambda x: torch.einsum("bij,kj->bik", x, torch.ones(2, 3).to(x))),
               (2, 3), 4),
    "addmm": (lambda: Call(lambda x: torch.addmm(torch.ones(2).to(x), x, torch.ones(6, 2).to(x),
                                                 beta=2, alpha=3)), (6,), 2),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3, padding=1), (2, 5), 15),
    "conv2d": (lambda: nn.Conv2d(2, 2, 3, stride=2, padding=1, groups=2), IMAGE, 8),
    "conv2d same": (lambda: nn.Conv2d(2, 2, 2, padding="same", dilation=2), IMAGE, 32),
    "conv2d circular": (lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), IMAGE, 32),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2), (1, 2, 3, 3), 8),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(2, 3, 4, 2, 1), IMAGE, 192),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(2, 2, 3, 2, output_padding=1, groups=2),
                         (2, 4), 20),
    "batch_norm": (batch_norm, IMAGE, 32),
    "instance_norm tracked": (lambda: nn.InstanceNorm2d(2, track_running_stats=True), IMAGE, 32),
    "dropout": (lambda: nn.Dropout(0.5), (6,), 6),
    "avg_pool2d": (lambda: nn.AvgPool2d(3, 2, 1), IMAGE, 8),
    "avg_pool1d": (lambda: nn.AvgPool1d(2), (2, 4), 4),
    "adaptive_avg_pool2d": (lambda: nn.AdaptiveAvgPool2d(3), IMAGE, 18),
    "global average": (lambda: nn.AdaptiveAvgPool2d(1), IMAGE, 2),
    "mean": (lambda: Call(lambda x: x.mean(dim=(1, 3))), IMAGE, 4),
    "sum": (lambda: Call(lambda x: x.sum(-1, keepdim=True)), IMAGE, 8),
    "cumsum": (lambda: Call(lambda x: x.cumsum(-1)), (2, 3), 6),
    "nearest": (lambda: nn.Upsample(scale_factor=2), IMAGE, 128),
    "nearest to size": (lambda: nn.Upsample(size=(5, 7)), IMAGE, 70),
    "bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), IMAGE, 128),
    "bilinear corners": (lambda: nn.Upsample(size=(5, 5), mode="bilinear", align_corners=True),
                         IMAGE, 50),
    "linear upsampling": (lambda: nn.Upsample(scale_factor=2, mode="linear"), (2, 4), 16),
    "constant pad": (lambda: nn.ConstantPad2d(1, 0.5), IMAGE, 72),
    "reflection pad": (lambda: nn.ReflectionPad2d(1), IMAGE, 72),
    "replication pad": (lambda: nn.ReplicationPad2d(1), IMAGE, 72),
    "circular pad": (lambda: nn.CircularPad2d(1), IMAGE, 72),
    "pixel_shuffle": (lambda: nn.PixelShuffle(2), (4, 2, 2), 16),
    "pixel_unshuffle": (lambda: nn.PixelUnshuffle(2), (1, 4, 4), 16),
    "moves": (lambda: Call(lambda x: x.permute(0, 2, 3, 1).transpose(1, 2)[:, 1:, :, 0].squeeze(1)
                           .unsqueeze(1).flip(2).roll(1, 2).contiguous().clone()), IMAGE, 12),
    "split": (lambda: Call(lambda x: torch.stack(x.split([2, 4], 1)[1].chunk(2, 1), 2)), (6,), 4),
    "unbind": (lambda: Call(lambda x: x.unbind(1)[1] - x.unbind(1)[0]), (2, 3), 3),
    "expand": (lambda: Call(lambda x: x[:, None].expand(-1, 3, -1).reshape(-1, 18)), (6,), 18),
    "index": (lambda: Call(lambda x: x[:, [2, 0, 2]]), (6,), 3),
    "unfold": (lambda: nn.Unfold(2), IMAGE, 72),
    "fold": (lambda: nn.Fold((3, 3), 2), (4, 4), 9),
    "arithmetic": (lambda: Call(lambda x: -(3 - 2 * x) / 7 + torch.sub(x, x * 0.3, alpha=2)),
                   (6,), 6),
    "zeros": (lambda: Call(lambda x: torch.zeros(x.shape[0], 2, dtype=x.dtype) + x[:, :2]),
              (6,), 2),
    "constant where": (lambda: Call(lambda x: torch.where(torch.arange(6) > 2, x, 1 - x)), (6,), 6),
    "masked_fill": (lambda: Call(lambda x: x.masked_fill(torch.arange(6) > 2, 0.5)), (6,), 6),
    "to float32 and back": (lambda: Call(lambda x: (2 * x).to(torch.float64)), (6,), 6),
    "leaky slope 1": (lambda: nn.LeakyReLU(1.0), (6,), 6),
    "softshrink 0": (lambda: nn.Softshrink(0.0), (6,), 6),
    "pool of 1": (lambda: nn.MaxPool2d(1, 2), IMAGE, 8),
}  # fmt: skip

PWL = {
    "relu": (nn.ReLU, (6,), 6),
    "relu in place": (lambda: nn.ReLU(inplace=True), IMAGE, 32),
    "leaky_relu": (lambda: nn.LeakyReLU(0.2), (6,), 6),
    "leaky_relu negative": (lambda: nn.LeakyReLU(-0.5), (6,), 6),
    "prelu": (nn.PReLU, (6,), 6),
    "prelu per channel": (lambda: nn.PReLU(2, 0.3), IMAGE, 32),
    "relu6": (nn.ReLU6, (6,), 6),
    "hardtanh": (lambda: nn.Hardtanh(-0.3, 0.4), (6,), 6),
    "hardsigmoid": (nn.Hardsigmoid, (6,), 6),
    "softshrink": (lambda: nn.Softshrink(0.2), (6,), 6),
    "threshold": (lambda: nn.Threshold(0.2, 0.2), (6,), 6),
    "rrelu": (nn.RReLU, (6,), 6),
    "abs": (lambda: Call(torch.abs), (6,), 6),
    "clamp": (lambda: Call(lambda x: x.clamp(-0.1, 0.2)), (6,), 6),
    "clamp min": (lambda: Call(lambda x: x.clamp(min=0.1)), (6,), 6),
    "clamp max": (lambda: Call(lambda x: torch.clamp_max(x, 0.1)), (6,), 6),
    "clamp by tensors": (
        lambda: Call(lambda x: x.clamp(torch.linspace(-1, 0, 6, dtype=x.dtype),
                                       torch.linspace(-0.5, 1, 6, dtype=x.dtype))), (6,), 6),
    "clamp empty": (lambda: Call(lambda x: x.clamp(1.0, -1.0)), (6,), 6),
    "maximum": (lambda: Call(lambda x: torch.maximum(x[:, :3], 2 * x[:, 3:])), (6,), 3),
    "minimum": (lambda: Call(lambda x: torch.minimum(x, torch.full((6,), 0.1, dtype=x.dtype))),
                (6,), 6),
    "amax": (lambda: Call(lambda x: x.amax(2)), (2, 5), 2),
    "amin": (lambda: Call(lambda x: x.amin((1, 2), keepdim=True)), (2, 3), 1),
    "max.dim": (lambda: Call(lambda x: x.max(dim=1).values[..., None]), (2, 5), 5),
    "min.dim": (lambda: Call(lambda x: x.min(dim=1, keepdim=True)[0]), (5,), 1),
    "max_pool1d": (lambda: nn.MaxPool1d(3, 2, 1), (2, 5), 6),
    "max_pool2d": (lambda: nn.MaxPool2d(3, 2, 1), IMAGE, 8),
    "max_pool2d ceil dilated": (lambda: nn.MaxPool2d(2, 2, 1, dilation=2, ceil_mode=True),
                                (2, 4, 5), 18),
    "max_pool3d": (lambda: nn.MaxPool3d(2), (1, 2, 2, 4), 2),
    "adaptive_max_pool2d": (lambda: nn.AdaptiveMaxPool2d(2), (2, 3, 5), 8),
    "remainder": (lambda: Call(lambda x: torch.abs(torch.remainder(x + 0.3, 0.5) - 0.25)), (6,), 6),
    "remainder scaled": (lambda: Call(lambda x: 1 - 4 * torch.abs((2 * x) % 0.5 - 0.25)), (6,), 6),
    "floor": (lambda: Call(lambda x: torch.abs(x - 0.5 * torch.floor(x / 0.5 + 0.5))), (6,), 6),
    "round": (lambda: Call(lambda x: torch.abs(3 * x - torch.round(3 * x))), (6,), 6),
    "asin sin": (lambda: Call(lambda x: torch.asin(torch.sin(5 * x))), (6,), 6),
    "acos cos": (lambda: Call(lambda x: torch.acos(torch.cos(5 * x))), (6,), 6),
}  # fmt: skip


# of the module's scope: what is asked of one operation is asked in turn, and it is captured once
EVERY = pytest.mark.parametrize("name", [*PWL, *AFFINE], scope="module")


def nested(entry, seed=0):
    make, shape, after = entry
    torch.manual_seed(seed)
    return Nested(make(), shape, after).double().eval()


@cache
def captured(name):
    module = nested({**AFFINE, **PWL}[name])
    return module, Network.from_torch(module, (3,))


def points(count, shape=(3,), seed=1):
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(seed)).double()


def jacobians(function, z, *rest):
    def one(row, *others):
        return function(row[None], *(other[None] for other in others))[0]

    return torch.func.vmap(torch.func.jacrev(one))(z, *rest)


@EVERY
def test_operation_agrees_with_torch(name):
    module, network = captured(name)
    z = points(20)
    wave = name.startswith(("asin", "acos"))
    expected = module(z).detach()
    torch.testing.assert_close(network(z), expected, rtol=1e-11, atol=2e-7 if wave else 1e-12)
    pieces = network.pieces(z)
    held = network.apply_pieces(z, pieces)
    torch.testing.assert_close(held, network(z), rtol=1e-11, atol=1e-12)
    slope = jacobians(network.apply_pieces, z, pieces)
    # Row by row and without vmap, which torch's own prelu and rrelu do not survive.
    reference = [torch.autograd.functional.jacobian(module, row[None])[0, :, 0] for row in z]
    torch.testing.assert_close(
        slope, torch.stack(reference), rtol=1e-9, atol=1e-6 if wave else 1e-9
    )
    axes = torch.eye(3).double()[:, None].expand(3, 20, 3)
    columns = [
        torch.func.jvp(lambda s: network.apply_pieces(s, pieces), (z,), (a,))[1] for a in axes
    ]
    torch.testing.assert_close(torch.stack(columns, -1), slope, rtol=1e-12, atol=1e-12)


@EVERY
def test_kind_is_listed(name):
    _, network = captured(name)
    # Besides the operation's, the module has four units of its own at the end.
    assert (network.num_units > 4) == (name in PWL)
    kinds = {op.kind for op in network.operations if op.name.startswith("middle")}
    assert "cpwl" in kinds or name in AFFINE
    assert "cpwl" not in kinds or name in PWL


@pytest.mark.parametrize("name", ["max_pool2d", "instance_norm tracked", "remainder", "split"])
def test_inspect_lists_what_a_network_lists(name):
    module, network = captured(name)
    assert inspect(module, (3,)) == network.operations


@pytest.mark.parametrize("name", list(PWL), scope="module")
def test_pieces_count_knots_below(name):
    _, network = captured(name)
    z = points(30)
    pieces = network.pieces(z).numpy()
    for stage in range(network.num_stages):
        h = network.preactivations(z, stage).numpy()
        knots = network.knots(stage, h.min(0) - 1, h.max(0) + 1)
        first, last = network.stage_offsets[stage : stage + 2]
        assert h.shape[1] == last - first == len(knots.base)
        below = np.zeros_like(pieces[:, first:last])
        np.add.at(below, (slice(None), knots.unit), h[:, knots.unit] > knots.value)
        np.testing.assert_array_equal(knots.base + below, pieces[:, first:last])
        assert (np.diff(knots.unit) >= 0).all()
        assert (np.diff(knots.value)[np.diff(knots.unit) == 0] > 0).all()


def test_stages_follow_dependence_not_depth():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(2, 3), nn.Linear(2, 4), nn.Linear(3, 4)

        def forward(self, x):
            first = self.a(x).relu()
            second = self.b(x).abs()
            third = self.c(first).clamp(0, 1)
            return torch.maximum(second, third) + x.sum(1, keepdim=True)

    network = Network.from_torch(Branches().double(), (2,))
    assert [(g.kind, g.stage, g.first_unit, g.shape) for g in network.groups] == [
        ("relu", 0, 0, (3,)), ("abs", 0, 3, (4,)), ("clamp", 1, 7, (4,)), ("maximum", 2, 11, (4,)),
    ]  # fmt: skip
    assert network.num_stages == 3
    np.testing.assert_array_equal(network.stage_offsets, [0, 7, 11, 15])
    assert network.preactivations(points(5, (2,)), 0).shape == (5, 7)


def test_unused_units_are_not_counted():
    module = Call(lambda x: (x.relu(), x + 1)[1] + 0 * x)
    assert Network.from_torch(module, (2,)).num_units == 0


def test_contests_name_units_without_effect():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 49), nn.Unflatten(1, (1, 7, 7)), nn.MaxPool2d(3, 2, 1))
    network = Network.from_torch(module.double(), (3,))
    z, rows = points(10), network.contests
    pieces = network.pieces(z)
    for sample in range(len(z)):
        lost = rows[pieces[sample, rows[:, 0]].numpy() == rows[:, 1], 2]
        changed = pieces[sample : sample + 1].clone()
        changed[0, np.unique(lost)] ^= 1
        row, own = z[sample : sample + 1], pieces[sample : sample + 1]
        assert torch.equal(network.apply_pieces(row, changed), network.apply_pieces(row, own))
    # All other units matter: 16 windows, each decided by one unit per round that it plays.
    assert len(np.unique(rows[:, 2])) + 16 == network.num_units


def test_ties_and_knots_are_on_the_lower_piece():
    network = Network.from_torch(Call(lambda x: torch.maximum(x[:, 0], x[:, 1]).relu()), (2,))
    z = torch.tensor([[1.0, 1.0], [2.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    assert network.pieces(z).tolist() == [[0, 1], [1, 1], [1, 0]]


def test_module_is_left_alone():
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(2, 4), nn.ReLU(inplace=True), nn.Linear(4, 1)).half().train()
    calls = []
    module[0].register_forward_hook(lambda *args: calls.append(1))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    random_state = torch.random.get_rng_state()
    network = Network.from_torch(module, (2,))
    assert module.training
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert all(p.dtype == torch.float16 and p.requires_grad for p in module.parameters())
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    module[0]._forward_hooks.clear()
    torch.testing.assert_close(network(points(3, (2,))), module.double()(points(3, (2,))).detach())


def test_float32_is_the_float64_it_converts_to():
    module = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    network = Network.from_torch(module, (2,))
    z = points(7, (2,))
    assert torch.equal(network(z), module.double()(z).detach())


def test_upto_cuts_squashing_by_operation_or_path():
    body = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    z = points(4, (2,))
    for upto in ("tanh", "1"):
        network = Network.from_torch(nn.Sequential(body, nn.Tanh()), (2,), upto=upto)
        assert torch.equal(network(z), body(z).detach())
        assert network.output_shape == (3,)


def test_row_by_row_equals_batch_and_numpy_is_taken():
    network = captured("max_pool2d")[1]
    z = points(6)
    rows = torch.cat([network.preactivations(row[None].numpy(), 1) for row in z])
    torch.testing.assert_close(network.preactivations(z, 1), rows, rtol=1e-13, atol=1e-14)
    assert network(z[:0]).shape == (0, 4)
    assert not network.rounding_error(z[:0], 1).any()


def test_bytes_per_sample_counts_live_tensors():
    network = Network.from_torch(nn.Sequential(nn.Linear(2, 100), nn.ReLU(), nn.Linear(100, 5),
                                               nn.ReLU()), (2,))  # fmt: skip
    assert network.bytes_per_sample(0) >= 8 * 100
    assert 8 * 200 <= network.bytes_per_sample(1) <= 8 * 300


REAL = [
    (pretrained.mnist_gan, (64,), "tanh", 512),
    (pretrained.mnist_vae_decoder, (20,), "sigmoid", 400),
    (pretrained.mnist_vae_encoder, (784,), None, 400),
    (pretrained.sd_latent_decoder, (4, 4, 4), None, 47328),
    (pretrained.dcgan_faces, (100, 1, 1), "tanh", 122880),
]


@pytest.mark.parametrize(("build", "shape", "upto", "units"), REAL)
def test_real_generators(build, shape, upto, units, data):
    module = build(data)
    network = Network.from_torch(module, shape, upto=upto)
    assert network.num_units == units
    z = points(2, shape)
    expected: Tensor = module.double()(z).detach()
    squash = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, None: lambda y: y}[upto]
    torch.testing.assert_close(squash(network(z)), expected, rtol=1e-10, atol=1e-10)
    held = network.apply_pieces(z, network.pieces(z))
    torch.testing.assert_close(held, network(z), rtol=1e-10, atol=1e-10)
