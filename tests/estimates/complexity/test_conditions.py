"""Units written out, units met twice, slopes of one, layouts, and decoders without units."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as torch's own documentation has it
from support.between import Between
from support.decoders import latents
from torch import Tensor, nn

from approx import describe, knots


def _assigned(x: Tensor) -> Tensor:
    y = x.clone()
    y[y < 0] = 0.0
    return y


def _in_place(x: Tensor) -> Tensor:
    y = 1.0 * x
    return y.mul_(y > 0)


CHANNELS = torch.linspace(0.1, 0.5, 40, dtype=torch.float64)
# how a knot is written out, and where it is
WRITTEN_OUT: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "where": (lambda x: torch.where(x > 0, x, 0.1 * x), 0.0),
    "where a number": (lambda x: torch.where(x > 0.2, x, 0.2), 0.2),
    "where a constant": (lambda x: torch.where(x < torch.tensor(0.3), 0.3, x), 0.3),
    "where scaled": (lambda x: torch.where(2 * x - 1 >= 0, 2 * x - 1, 0.0), 0.5),
    "where a curve": (lambda x: torch.where(x > 0, x, 0.6 * (torch.exp(x) - 1)), 0.0),
    "times a condition": (lambda x: x * (x > 0), 0.0),
    "times its number": (lambda x: (x > 0).to(x.dtype) * x, 0.0),
    "times slopes": (lambda x: x * (0.1 + 0.9 * (x > 0)), 0.0),
    "either": (lambda x: (x > 0) * x + (~(x > 0)) * 0.2 * x, 0.0),
    "masked_fill": (lambda x: x.masked_fill(x <= 0, 0), 0.0),
    "assigned": (_assigned, 0.0),
    "in place": (_in_place, 0.0),
    "sign": (lambda x: torch.sign(x) * x, 0.0),
    "heaviside": (lambda x: x * torch.heaviside(x, x.new_zeros(())), 0.0),
    "two relus": (lambda x: F.relu(x) - 0.1 * F.relu(-x), 0.0),
    "half": (lambda x: (x + x.abs()) / 2, 0.0),
}


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_units_that_are_written_out(name):
    act, at = WRITTEN_OUT[name]
    module, z = Between(act).eval(), 2 * latents((6,), 100).double()
    found = knots(module, z, radius=0.05)
    slope = (found.directions @ module.weight.T).abs().amax(0)
    met = ((module.entering(z) - at).abs() < 0.05 * slope).sum(1)
    assert int(met.sum()) > 10
    assert found.units.tolist() == [40]
    assert torch.equal(found.count, met.to(found.count))
    assert torch.equal(knots(module, z, radius=0.05, method="hull").count, found.count)


@pytest.mark.parametrize("name", [*WRITTEN_OUT, "silu", "scaled silu", "crelu"])
def test_units_behind_a_bias_of_their_own(name):
    # h = x @ W + b is a function of x @ W too, whose knots are at -b
    more = {
        "silu": lambda x: x * torch.sigmoid(x),
        "scaled silu": lambda x: x * torch.sigmoid(1.5 * x),
        "crelu": lambda x: x.clamp(min=0) + 0.2 * x.clamp(max=0),
    }
    act, at = WRITTEN_OUT[name] if name in WRITTEN_OUT else (more[name], 0.0)
    bias = torch.linspace(-1, 1, 40, dtype=torch.float64)
    between, z = Between(lambda x: act(x + bias)).eval(), 2 * latents((6,), 100).double()
    found = knots(between, z, radius=0.05)
    slope = (found.directions @ between.weight.T).abs().amax(0)
    met = ((between.entering(z) + bias - at).abs() < 0.05 * slope).sum(1)
    assert int(met.sum()) > 10
    assert found.units.tolist() == [40]
    assert torch.equal(found.count, met.to(found.count))


class Shuffled(nn.Module):
    """Entries that are moved and repeated between two units with the same knots."""

    def __init__(self, move: Callable[[Tensor], Tensor], again: bool) -> None:
        super().__init__()
        self.inside = nn.Linear(6, 64)
        self.move, self.again = move, again

    def forward(self, z: Tensor) -> Tensor:
        x = self.move(self.inside(z).view(-1, 4, 4, 4).relu())
        return F.elu(x) if self.again else x


@pytest.mark.parametrize(
    "move",
    [
        lambda x: F.pixel_shuffle(x, 2),
        lambda x: F.pixel_unshuffle(x, 2),
        lambda x: F.channel_shuffle(x, 2),
        lambda x: F.pad(x, (1, 1, 2, 1), "reflect"),
        lambda x: F.pad(x, (1, 1, 2, 1), "replicate"),
    ],
)
@pytest.mark.parametrize("method", ["jvp", "hull"])
def test_units_that_are_moved_and_met_again(move, method):
    torch.manual_seed(0)
    module = Shuffled(move, again=False).double()
    z = latents((6,), 40).double()
    once = knots(module, z, radius=0.05, method=method)
    module.again = True
    assert int(once.count.sum()) > 10
    assert torch.equal(knots(module, z, radius=0.05, method=method).count, once.count)


def test_layouts_that_vmap_does_not_know():
    last, z = torch.channels_last, latents((64,), 20).double()

    def decoder(z: Tensor) -> Tensor:
        x = z.view(-1, 4, 4, 4).contiguous(memory_format=last)
        copied = x.clone(memory_format=last).relu_()  # must leave x as it is
        return (copied + x.abs()).permute(0, 2, 3, 1).view(len(z), -1)

    found = knots(decoder, z, radius=0.1)
    near = z.abs() < 0.1 * found.directions.abs().amax(0)
    assert found.units.tolist() == [64]
    assert torch.equal(found.count, near.sum(1).double())
    assert int(near.sum()) > 5


def test_operations_without_a_forward_mode_are_transposed():
    grid = torch.rand(1, 3, 3, 2, dtype=torch.float64) - 0.5
    z = latents((16,), 3).double()

    def decoder(z: Tensor) -> Tensor:
        return F.grid_sample(
            z.view(-1, 1, 4, 4), grid.expand(len(z), -1, -1, -1), align_corners=True
        ).relu()

    found = knots(decoder, z, radius=0.3)
    assert found.count.tolist() == knots(decoder, z, radius=0.3, method="hull").count.tolist()
    assert found.count.sum() > 0
    with pytest.raises(NotImplementedError, match=r"got aten._cdist_forward.* method='hull'"):
        knots(lambda z: torch.cdist(z, torch.ones(3, 16).double()).relu(), z)


def test_a_complex_number_is_on_no_side_of_a_knot():
    z = latents((6,), 3).double()
    found = knots(lambda z: torch.complex(z, 2 * z).abs(), z, radius=0.05)
    assert "abs" in found.passed_over
    assert found.count.isnan().all()


def test_hardtanh_between_equal_bounds_is_a_constant():
    found = knots(lambda z: F.hardtanh(z, 0.3, 0.3) + z, latents((6,), 3), radius=0.05)
    assert found.count.tolist() == [0, 0, 0]


def test_knots_of_a_condition_for_every_channel():
    module = Between(lambda x: torch.where(x > CHANNELS, x, CHANNELS))
    z = 2 * latents((6,), 100).double()
    found = knots(module, z, radius=0.05)
    slope = (found.directions @ module.weight.T).abs().amax(0)
    met = ((module.entering(z) - CHANNELS).abs() < 0.05 * slope).sum(1)
    assert torch.equal(found.count, met.to(found.count))


@pytest.mark.parametrize(
    ("act", "names"),
    [
        (lambda x: torch.where(x > 0, 1.0, x), ("where", "gt")),
        (lambda x: torch.where(x[:, :1] > 0, x, 2 * x), ("where", "gt")),
        (lambda x: (x > 0).to(x.dtype) + x, ("add", "gt")),
        (lambda x: x + x.round(), ("round",)),
    ],
)
def test_jumps_are_passed_over_by_name(act, names):
    found = knots(Between(lambda x: F.relu(act(x) - 0.1)), latents((6,), 4).double(), radius=0.1)
    assert found.passed_over == names


def test_jumps_alone_are_not_known():
    found = knots(Between(lambda x: torch.where(x > 0, 1.0, x)), latents((6,), 4).double())
    assert found.count.isnan().all()
    assert found.passed_over == ("where", "gt")


ONE = torch.ones(1, dtype=torch.float64)


@pytest.mark.parametrize(
    "act",
    [
        lambda x: F.leaky_relu(x, 1.0),
        lambda x: F.prelu(x, ONE),
        lambda x: x.clamp(-math.inf, math.inf),
        lambda x: torch.clamp(x, max=torch.tensor(math.inf)),
        lambda x: F.hardtanh(x, -math.inf, math.inf),
        lambda x: F.softshrink(x, 0.0),
        lambda x: F.rrelu(x, 1.0, 1.0),
        lambda x: torch.where(x > 0, x, x),
        lambda x: torch.maximum(x, x),
    ],
)
@pytest.mark.parametrize("method", ["jvp", "hull"])
def test_a_slope_of_one_is_no_knot(act, method):
    found = knots(Between(act), latents((6,), 20).double(), radius=0.5, method=method)
    assert found.layers == ()
    assert found.passed_over == ()
    assert found.count.tolist() == [0.0] * 20


def test_channels_with_a_slope_of_one_are_no_knots():
    slopes = torch.tensor([1.0, 0.5]).double().repeat(20)
    module, z = Between(lambda x: F.prelu(x, slopes)), latents((6,), 50).double()
    half = Between(lambda x: F.prelu(x[:, 1::2], slopes[1::2]))
    for method in ("jvp", "hull"):
        found = knots(module, z, radius=0.1, method=method)
        assert int(found.count.sum()) > 10
        assert torch.equal(found.count, knots(half, z, radius=0.1, method=method).count)


# ------------------------------------------------------------------- met twice

RELU = torch.relu
AGAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: RELU(RELU(x)),
    "relu in place": lambda x: RELU(RELU(1 * x).relu_()),
    "maximum with 0": lambda x: torch.maximum(RELU(x), torch.zeros(())),
    "negative": lambda x: -RELU(-RELU(x)),
    "leaky": lambda x: F.leaky_relu(F.leaky_relu(x, 0.1), 0.1),
    "scaled": lambda x: RELU(3 * RELU(x).view(-1, 4, 10)).flatten(1),
    "in two branches": lambda x: RELU(x) + 0.5 * RELU(2 * x),
    "concatenated": lambda x: torch.cat([RELU(x), RELU(-x)], 1),
    "where": lambda x: RELU(torch.where(x > 0, x, 0)),
    "pooled with padding": lambda x: F.max_pool1d(F.pad(RELU(x)[:, :, None], (0, 1)), 2),
    "pooled and again": lambda x: RELU(F.max_pool1d(F.pad(RELU(x)[:, :, None], (0, 1)), 2)),
}


@pytest.mark.parametrize("method", ["jvp", "hull"])
@pytest.mark.parametrize("name", AGAIN)
def test_a_knot_is_counted_once(name, method):
    z = latents((6,), 60).double()
    once = knots(Between(RELU), z, radius=0.05, method=method).count
    found = knots(Between(lambda x: AGAIN[name](x).flatten(1)), z, radius=0.05, method=method)
    assert int(once.sum()) > 10
    assert torch.equal(found.count, once)


def test_other_knots_behind_a_relu_are_counted():
    z = latents((6,), 60).double()
    at = knots(Between(lambda x: F.hardtanh(x, 0.0, 1.0)), z, radius=0.05)
    behind = knots(Between(lambda x: F.hardtanh(F.relu(x), 0.0, 1.0)), z, radius=0.05)
    assert behind.units.tolist() == [40, 40]
    assert torch.equal(at.count, behind.count)
    # max(x, 0) with a zero that no ReLU made
    padded = knots(Between(lambda x: F.max_pool1d(F.pad(x[:, :, None], (0, 1)), 2)), z, radius=0.05)
    assert torch.equal(padded.count, knots(Between(F.relu), z, radius=0.05).count)


def test_pooling_of_a_relu_has_one_knot_from_either_side():
    def decode(z: Tensor) -> Tensor:
        return F.max_pool1d(F.relu(torch.cat([z, z * 0 - 1], 1))[:, None], 2)[:, 0]

    z = torch.tensor([[1e-6], [-1e-6]])
    assert knots(decode, z, radius=1e-5, directions=torch.ones(1, 1)).count.tolist() == [1, 1]


# ------------------------------------------------------------------- units that hide


class Clipped(torch.autograd.Function):
    """A ReLU in the old style of custom functions, without a forward-mode rule."""

    @staticmethod
    def forward(ctx, x):
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, *grad):
        return grad[0]


class Held:
    """A callable with a module behind an attribute."""

    def __init__(self) -> None:
        self.parts = {"act": nn.ReLU()}

    def __call__(self, x: Tensor) -> Tensor:
        return self.parts["act"](x)


def _without_graph(x: Tensor) -> Tensor:
    with torch.no_grad():
        return F.relu(x.detach())


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("hidden", ["script", "scripted module", "custom", "held", "no graph"])
def test_units_are_found_wherever_they_run(hidden):
    def relu(x: Tensor) -> Tensor:
        return torch.relu(x)

    act = {
        "script": lambda: torch.jit.script(relu),
        "scripted module": lambda: torch.jit.script(nn.Sequential(nn.ReLU(), nn.Identity())),
        "custom": lambda: Clipped.apply,
        "held": Held,
        "no graph": lambda: _without_graph,
    }[hidden]()
    z = latents((6,), 60).double()
    plain = knots(Between(F.relu), z, radius=0.05)
    for _ in range(3):  # scripted functions are optimised as they are run
        found = knots(Between(act), z, radius=0.05)
        assert found.units.tolist() == [40]
        assert torch.equal(found.count, plain.count)


def test_recurrent_cells_are_read_step_by_step():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cell = nn.RNN(3, 8, nonlinearity="relu", batch_first=True).double()
    z = latents((6,), 50).double()
    found = knots(lambda z: cell(z.unflatten(1, (2, 3)))[0], z, radius=0.05)

    def by_hand(z: Tensor) -> Tensor:
        h = z.new_zeros(len(z), 8)
        for x in z.unflatten(1, (2, 3)).unbind(1):
            h = F.relu(
                x @ cell.weight_ih_l0.T + cell.bias_ih_l0 + h @ cell.weight_hh_l0.T
                + cell.bias_hh_l0
            )  # fmt: skip
        return h

    assert found.units.tolist() == [8, 8]
    assert torch.equal(found.per_layer, knots(by_hand, z, radius=0.05).per_layer)


# ------------------------------------------------------------------- layouts


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "(units, batch)": lambda y: F.relu(F.leaky_relu(y.T).T - 0.1),
    "(1, units, batch)": lambda y: F.relu(y.T[None] - 0.1)[0].T,
    "(batch, units, 1)": lambda y: F.relu(y[:, :, None] - 0.1),
}


@pytest.mark.parametrize("units", [24, 25])
@pytest.mark.parametrize("method", ["jvp", "hull"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_do_not_mix_latents(layout, method, units):
    module = Between(LAYOUTS[layout], units)
    z = latents((6,), 25).double()
    found = knots(module, z, radius=0.1, batch=25, method=method)
    alone = knots(module, z, radius=0.1, batch=1, method=method)
    assert torch.equal(found.per_layer, alone.per_layer)
    assert int(found.count.sum()) > 10


# ------------------------------------------------------------------- without units


@pytest.mark.parametrize("method", ["jvp", "hull"])
def test_a_linear_decoder_has_no_knots(method):
    found = knots(nn.Linear(6, 8), latents((6,), 3), method=method)
    assert found.count.tolist() == found.undecided.tolist() == [0, 0, 0]
    assert found.zaslavsky.tolist() == [1, 1, 1]
    assert found.per_layer.shape == (3, 0)
    assert (found.layers, found.passed_over) == ((), ())
    assert math.isnan(found.suggested_radius)


@pytest.mark.parametrize("method", ["jvp", "hull"])
@pytest.mark.parametrize(
    ("act", "name"), [(torch.tanh, "tanh"), (lambda x: x * x, "mul"), (lambda x: x**2, "pow")]
)
def test_a_decoder_without_units_that_is_not_linear_has_no_count(method, act, name):
    found = knots(lambda z: act(z), latents((6,), 3), method=method)
    for column in (found.count, found.undecided, found.density, found.soft, found.zaslavsky):
        assert column.isnan().all()
    assert found.passed_over == (name,)


def test_describe_takes_a_linear_decoder_with_defaults():
    table = describe(nn.Linear(8, 100), latents((8,), 3), progress=False)
    assert table.delta.tolist() == [0, 0, 0]
    assert (table.psi > -100).all()


def test_directions_are_clipped_to_the_latent():
    found = knots(nn.ReLU(), torch.tensor([[0.05, 3.0]]), radius=0.2)
    assert found.directions.shape == (2, 2)
    table = describe(nn.Linear(2, 3), latents((2,), 3), progress=False)
    assert table.directions == 2


# ------------------------------------------------------------------- radius


def test_about_ten_knots_are_met_at_the_suggested_radius():
    module = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()).double()
    z = latents((6,), 200, seed=3).double()
    found = knots(module, z, batch=20)
    assert not found.count.any()
    met = knots(module, z, radius=found.suggested_radius).count
    assert 5 <= met.median() <= 20
    # all that there are, where these are fewer
    few = knots(nn.ReLU(), torch.tensor([[1.0, 3.0]]), directions=torch.eye(2))
    assert few.suggested_radius == 3.0
