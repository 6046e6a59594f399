"""Modules as people have them: casts, constants, further arguments, wrappers, threads, pickles."""

from __future__ import annotations

import copy
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import cpwl
from cpwl.errors import CaptureError
from cpwl.network.network import Network, inspect

# torch.jit and torch.ao are what some of these modules are made with.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


class Timed(nn.Module):
    """A denoiser's usual head: a float32 embedding of the time, cast to the parameters' type."""

    def __init__(self, width=8):
        super().__init__()
        torch.manual_seed(0)
        self.time, self.data = nn.Linear(width, width), nn.Linear(2, width)
        self.label, self.out = nn.Embedding(5, width), nn.Linear(2 * width, 2)
        self.register_buffer("kept", torch.arange(width) % 2 == 0)

    def forward(self, x, t, label=None, *, scales=None):
        half = self.time.in_features // 2
        steps = torch.exp(-math.log(1e4) * torch.arange(half, dtype=torch.float32) / half)
        angle = t[:, None].float() * steps[None]
        embedded = torch.cat([angle.cos(), angle.sin()], -1).to(self.time.weight.dtype)
        h = self.data(x.to(self.data.weight.dtype)) + self.time(embedded)
        if label is not None:
            h = h + self.label(label)
        if scales is not None:
            h = h * scales["a"] + scales["b"][0]
        room = torch.zeros(h.shape[0], h.shape[1]).to(h.dtype)
        room[:, self.kept] = h[:, self.kept]
        return self.out(torch.cat([h.relu(), room.relu().float().to(h.dtype)], 1)).float()


def points(count, size=2):
    return torch.randn((count, size), generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_casts_in_forward_and_fixed_arguments(dtype):
    module = Timed().to(dtype)
    fixed = {"t": torch.tensor([10]), "label": torch.tensor([3]),
             "scales": {"a": torch.tensor([0.5]), "b": (2, None)}}  # fmt: skip
    network = Network.from_torch(module, (2,), fixed=fixed)
    assert network.num_units == 16
    z = points(20)
    fixed["scales"]["a"] = fixed["scales"]["a"].to(dtype)
    expected = module(z.to(dtype), **fixed).double().detach()
    error = (network(z) - expected).abs().max()
    assert error <= 64 * torch.finfo(torch.float32 if dtype != torch.bfloat16 else dtype).eps
    kinds = [op.kind for op in inspect(module, (2,), fixed=fixed)]
    assert kinds == [op.kind for op in network.operations]


def test_casts_to_half_of_what_depends_on_the_input_are_identities():
    module = Two(lambda x: x.half().to(torch.bfloat16).type_as(x).relu() + x.to(torch.float32))
    z = points(5)
    assert torch.equal(Network.from_torch(module, (2,))(z), z.relu() + z)


def test_tensors_with_a_batch_axis_of_one_hold_for_every_sample():
    class Joined(nn.Module):
        def forward(self, x, t):
            return torch.cat([x.relu(), t], 1)

    network = Network.from_torch(Joined(), (2,), fixed={"t": torch.tensor([[0.1, 0.2]])})
    expected = torch.tensor([0.1, 0.2]).double()
    assert torch.equal(network(points(3))[:, 2:], expected.expand(3, 2))


FIXED = [
    ({}, r"also needs 't'\. Give values: fixed=\{\"t\": \.\.\.\}"),
    ({"t": torch.ones(1), "time": 3}, r"further arguments of Timed\.forward \('t', 'label', 'sca"),
    ({"t": torch.ones(1), "x": 3}, r"got 'x', which is its input"),
    ([10], r"Expected fixed= as a mapping of argument names to values, got list"),
    ({"t": float("nan")}, r"Expected numbers in fixed=, got NaN for 't'\. Give the value"),
    ({"t": object()}, r"tuples and dicts of them in fixed=, got object for 't'"),
    ({"t": torch.ones(5)}, r"arguments \(fixed=\) values that it takes, tensors with a b"),
]


@pytest.mark.parametrize(("fixed", "text"), FIXED)
def test_fixed_arguments_that_do_not_fit(fixed, text):
    with pytest.raises(CaptureError, match=f"(?s){text}"):
        Network.from_torch(Timed(), (2,), fixed=fixed)


class Constants(nn.Module):
    """Constants that forward makes, reads and masks with."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(2, 4)
        self.register_buffer("on", torch.tensor([True, False, True, True]))
        self.register_buffer("count", torch.tensor(3))
        self.hidden = torch.tensor([False, True, True, False])

    def forward(self, z):
        x = self.linear(z)
        y = x * self.count.item() if self.on[0] else x
        z = x.clone()
        z[:, ~self.hidden] = 0.5
        return torch.cat([
            x[:, self.on], x[:, torch.tensor([True, False, False, True])], y, z,
            x * torch.tensor([True, False, True, False]), torch.zeros_like(x),
            x.repeat_interleave(torch.tensor([1, 0, 2, 1]), 1), torch.full_like(x, 0.3) - x,
            x.new_ones(x.shape[0], 1), x @ torch.ones(4, 1), x * torch.linspace(0, 1, 4),
            x + torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.arange(4) * 0.1 * x,
        ], 1).relu()  # fmt: skip


def test_constants_are_what_the_module_makes_of_them():
    module = Constants()
    network = Network.from_torch(module, (2,))
    z = points(20)
    torch.testing.assert_close(network(z), module(z.float()).double().detach(), atol=1e-5, rtol=0)
    # In its own type: 0.1 is the float32 number.
    x = module.linear.double()(z)
    tenth = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float32).double()
    torch.testing.assert_close(network(z)[:, -8:-4], (x + tenth).relu().detach(), rtol=1e-14,
                               atol=1e-14)  # fmt: skip


@pytest.mark.parametrize(
    "made",
    [lambda: torch.linspace(0, 1, 50), lambda: torch.logspace(0, -1, 30),
     lambda: torch.arange(7) / 7,
     lambda: torch.arange(0, 1, 0.1), lambda: torch.hann_window(9)],
)  # fmt: skip
def test_single_precision_numbers_made_in_a_double_module_are_its_own(made):
    number = made()

    class Module(nn.Module):
        def forward(self, x):
            return torch.relu(x[:, :1] * made().to(x))

    network, z = Network.from_torch(Module(), (2,)), points(5)
    assert network(z).equal(torch.relu(z[:, :1] * number.double()))


def body():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 2))


class Half(nn.Module):
    """Wrapped parts inside a module."""

    def __init__(self):
        super().__init__()
        # "eager": the module runs as it is when the capture is compared with it
        self.first = torch.compile(body(), backend="eager")
        self.second = nn.DataParallel(nn.Linear(2, 2))

    def forward(self, x):
        return self.second(self.first(x))


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel,
                                  lambda m: torch.compile(nn.DataParallel(m))])  # fmt: skip
def test_wrappers_are_taken_off(wrap):
    network = Network.from_torch(wrap(body()), (2,))
    assert torch.equal(network(points(5)), Network.from_torch(body(), (2,))(points(5)))
    assert [group.name for group in network.groups] == ["1"]


def test_wrapped_parts_are_unwrapped():
    assert Network.from_torch(Half(), (2,)).num_units == 6


class Two(nn.Module):
    def __init__(self, result):
        super().__init__()
        self.result = result

    def forward(self, x):
        return self.result(x)


REFUSED = [
    (lambda: torch.jit.trace(body(), torch.zeros(1, 2)), "Pass the module that was scripted or tr"),
    (lambda: nn.Sequential(torch.jit.script(nn.ReLU())), "got RecursiveScriptModule at '0'"),
    (lambda: nn.Linear(2, 2, device="meta"), r"got 'weight', which is on the device 'meta'"),
    (lambda: nn.Sequential(nn.LazyLinear(2)), r"got '0\.weight', which is not initialised yet"),
    (lambda: torch.ao.nn.quantized.Linear(2, 2), "Pass the float module, as it was before"),
    (lambda: nn.ReLU, "got the class ReLU"),
    (
        lambda: "decoder.onnx",
        r"got str\. Make an instance of a class; load files with Network\.load",
    ),
    (lambda: torch.jit.script(nn.ReLU()).forward, "Pass what was scripted or traced"),
    (lambda: torch.export.export(nn.ReLU(), (torch.zeros(1, 2),)), "got an ExportedProgram"),
    (
        lambda: Two(lambda x: {"mean": x, "scale": x}),
        r"with 'mean', 'scale'\. Choose one: output='mean'",
    ),
    (lambda: Two(lambda x: torch.max(x, 1)), r"a max of 2 \(values, indices\)|a max of 2\."),
]


@pytest.mark.parametrize(("make", "text"), REFUSED)
def test_what_cannot_be_captured_names_what_to_pass(make, text):
    with pytest.raises(CaptureError, match=text):
        Network.from_torch(make(), (2,))


def test_threads_capture_one_after_the_other():
    def capture(width):
        return Network.from_torch(nn.Sequential(nn.Linear(2, width), nn.ReLU()), (2,)).num_units

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(capture, [3, 4, 5, 6])) == [3, 4, 5, 6]


@pytest.mark.parametrize("upto", [None, "tanh"])
def test_network_pickles_and_copies(upto):
    module = nn.Sequential(nn.Linear(2, 4), nn.LeakyReLU(0.1), nn.Linear(4, 3), nn.Hardtanh())
    if upto:
        module.append(nn.Tanh())
    network = Network.from_torch(module, (2,), upto=upto)
    z = points(9)
    for again in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        assert torch.equal(again(z), network(z))
        assert torch.equal(again.pieces(z), network.pieces(z))
        assert (again.groups, again.operations) == (network.groups, network.operations)
    assert pickle.loads(pickle.dumps(copy.copy(network))).num_units == network.num_units


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_default_dtype_decides_nothing(dtype):
    torch.manual_seed(0)
    image = nn.Sequential(
        nn.Linear(2, 32), nn.Unflatten(1, (2, 4, 4)), nn.Conv2d(2, 3, 3, padding=1),
        nn.BatchNorm2d(3), nn.PReLU(3, 0.3), nn.MaxPool2d(2), nn.Upsample(scale_factor=2,
        mode="bilinear"), nn.Hardtanh(-0.3, 0.7), nn.Flatten(), nn.Linear(48, 2),
    ).eval()  # fmt: skip
    bends = Two(
        lambda x: torch.where(x > 0.1, x - 0.1, 0.0) + 0.3 * x.abs().clamp(max=0.9)
        + functional.softshrink(x, 0.3) + x.sort(1).values
    )  # fmt: skip
    mixed = nn.Sequential(nn.Linear(2, 2), bends)
    domain = cpwl.box([-1.0, -1.0], [1.0, 1.0])

    def partitions():
        found = [
            cpwl.subdivide(Network.from_torch(m, (2,)), domain, progress=False)
            for m in (image, mixed)
        ]
        return found, [cpwl.check(p).ok for p in found]

    expected, _ = partitions()
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        got, ok = partitions()
    finally:
        torch.set_default_dtype(before)
    assert all(ok)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one.points, other.points)
        np.testing.assert_array_equal(one.cell_corners, other.cell_corners)
        for maps, others in zip(cpwl.affine_maps(one), cpwl.affine_maps(other), strict=True):
            np.testing.assert_array_equal(maps[0], others[0])
            np.testing.assert_array_equal(maps[1], others[1])
