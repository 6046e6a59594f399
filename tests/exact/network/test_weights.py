"""A captured graph read again with other parameters is the network of a fresh capture, or none."""

from __future__ import annotations

import copy
import pickle
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from support.samples import mlp
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import cpwl
from cpwl.errors import CaptureError, UnsupportedOperationError
from cpwl.network.network import Network

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # weight_norm by hooks


class Forward(nn.Module):
    """Parts and tensors by name, and what to compute of them."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def buffers(module, **tensors):
    for name, (value, persistent) in tensors.items():
        module.register_buffer(name, value, persistent=persistent)
    return module


def residual():
    return Forward(
        lambda m, x: m.end(m.start(x) + m.inner(m.start(x)).relu()),
        start=nn.Linear(2, 6), inner=nn.Linear(6, 6), end=nn.Linear(6, 3),
    )  # fmt: skip


def shared():
    layer = nn.Linear(2, 2)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), layer)


def conditioned():
    """Thresholds that are buffers: the proof that each branch is continuous rests on them."""
    return buffers(
        Forward(
            lambda m, x: torch.where(m.inner(x) > m.at, m.inner(x) * 2 - m.at, m.inner(x)).relu(),
            inner=nn.Linear(2, 4),
        ),
        at=(torch.tensor([0.25, -0.5, 0.125, 1.0]), True),
    )


def waving():
    return buffers(
        Forward(lambda m, x: (torch.remainder(m.inner(x) + m.phase, 1.0) - 0.5).abs(),
                inner=nn.Linear(2, 3)),
        phase=(torch.tensor(0.25), False),
    )  # fmt: skip


def folded():
    """Constants that are computed from weights, buffers, attributes and numbers before they act."""
    module = Forward(
        lambda m, x: torch.relu(x @ (m.w / m.w.norm()).T * m.scale + m.shift + torch.tensor(0.1))
        + m.parts[0].bias.cumsum(0),
        w=nn.Parameter(torch.randn(3, 2)), shift=torch.randn(3), parts=nn.ModuleList([
            nn.Linear(3, 3)]),
    )  # fmt: skip
    return buffers(module, scale=(torch.rand(3), False))


def convolved(*pool):
    return nn.Sequential(
        nn.Linear(2, 16), nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3), nn.LeakyReLU(0.1), *pool, nn.Flatten(), nn.Linear(3 * (
            4 if pool else 16), 2),
    )  # fmt: skip


KINDS = {
    "dense": lambda: mlp(2, 7, 6, 3, seed=torch.initial_seed()),
    "convolutional, batch norm": convolved,
    "max-pooling": lambda: convolved(nn.MaxPool2d(2)),
    "residual": residual,
    "shared weights": shared,
    "slopes per channel": lambda: nn.Sequential(nn.Linear(2, 5), nn.PReLU(5), nn.Linear(5, 2)),
    "weight norm": lambda: nn.Sequential(
        parametrizations.weight_norm(nn.Linear(2, 6)), nn.ReLU(),
        parametrizations.spectral_norm(nn.Linear(6, 3))),
    "weight norm by hooks": lambda: nn.Sequential(
        torch.nn.utils.weight_norm(nn.Linear(2, 6)), nn.ReLU()),
    "derived constants": folded,
    "conditions": conditioned,
    "waves": waving,
}  # fmt: skip


@pytest.fixture(scope="module")
def small():
    return Network.from_torch(mlp(2, 5, 3), (2,))


def made(kind, seed):
    """Make a module whose parameters and buffers are drawn anew."""
    torch.manual_seed(seed)
    module = KINDS[kind]().eval()
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                for tensor in (part.running_mean, part.weight, part.bias):
                    tensor.normal_()
                part.running_var.uniform_(0.5, 2)
            if isinstance(part, nn.PReLU):
                part.weight.uniform_(0, 1)
    if kind == "waves":
        module.phase.fill_(seed / 4)
    return module


def same(a, b):
    """Whether two values hold the same arrays; functions are told apart by what they return."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, csr_array):
        return all(same(getattr(a, k), getattr(b, k)) for k in ("data", "indices", "indptr"))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if is_dataclass(a):
        return type(a) is type(b) and all(
            same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a) if f.name != "origin"
        )
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) or hasattr(a, "keys"):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return (callable(a) and callable(b)) or a == b


def assert_same(network, fresh):
    for field in fields(Network):
        if field.name != "origin":
            assert same(getattr(network, field.name), getattr(fresh, field.name)), field.name
    z = torch.randn(9, 2, dtype=torch.float64)
    assert torch.equal(network(z), fresh(z))
    square = cpwl.box([-1, -1], [1, 1])
    first, second = (cpwl.subdivide(n, square, progress=False) for n in (network, fresh))
    for field in fields(cpwl.Partition):
        if field.name not in ("network", "domain"):
            assert same(getattr(first, field.name), getattr(second, field.name)), field.name
    maps = [list(cpwl.affine_maps(partition)) for partition in (first, second)]
    assert same(*maps)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_network_of_a_fresh_capture_bit_for_bit(kind):
    first, second = made(kind, 0), made(kind, 1)
    state = copy.deepcopy(second.state_dict())
    network = Network.from_torch(first, (2,))
    again, fresh = network.with_weights(second), Network.from_torch(second, (2,))
    assert_same(again, fresh)
    assert not same(network.program, again.program)  # the test sees a difference where there is one
    assert same(dict(state), dict(second.state_dict()))


def test_what_depends_on_weights_is_decided_anew():
    """Slopes of one are no knots; a threshold off the kink jumps."""
    module = made("slopes per channel", 0)
    network = Network.from_torch(module, (2,))
    nn.init.ones_(module[1].weight)
    assert (network.num_units, network.with_weights(module).num_units) == (5, 0)
    module = made("conditions", 0)
    network = Network.from_torch(module, (2,))
    module.function = lambda m, x: torch.where(m.inner(x) > m.at, m.inner(x) * 2 - m.at, 0 * x)
    with pytest.raises(CaptureError, match=r"runs as the captured one did, got .* anew with"):
        network.with_weights(module)
    jumping = buffers(
        Forward(lambda m, x: torch.where(x > m.at, x, 0)), at=(torch.tensor(0.0), True)
    )
    network = Network.from_torch(jumping, (2,))
    jumping.at.fill_(0.5)
    with pytest.raises(UnsupportedOperationError, match="jumps"):
        network.with_weights(jumping)


def test_arguments_cuts_wrappers_and_pickles_are_those_of_the_capture():
    class Timed(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.inner = mlp(2, 5, 3, seed=seed)

        def forward(self, x, t):
            return torch.tanh(self.inner(x) * t)

    options = {"upto": "tanh", "fixed": {"t": torch.tensor([2.0])}}
    network = Network.from_torch(Timed(0), (2,), **options)
    module = Timed(1)
    again = network.with_weights(nn.DataParallel(module))
    assert_same(again, Network.from_torch(module, (2,), **options))
    assert_same(again, pickle.loads(pickle.dumps(again)))
    assert_same(again, copy.deepcopy(network).with_weights(module))
    assert_same(again, network.with_weights(Timed(2)).with_weights(module))


def test_the_next_step_of_training_does_not_reach_back(small):
    module = mlp(2, 5, 3).double()
    again = small.with_weights(module)
    z = torch.randn(4, 2, dtype=torch.float64)
    before = again(z)
    with torch.no_grad():
        module[0].weight.mul_(2)
    assert torch.equal(again(z), before)


REFUSED = {
    "another width": (
        lambda m: mlp(2, 6, 3),
        r"Linear\(in_features=2, out_features=5, bias=True\) with weight \(5, 2\), bias \(5,\) "
        r"at '0', got Linear\(in_features=2, out_features=6.*Capture this module anew",
    ),
    "more layers": (lambda m: mlp(2, 5, 3, 3), r"nothing at '3', got ReLU"),
    "another activation": (
        lambda m: nn.Sequential(m[0], nn.LeakyReLU(0.0), m[2]), r"ReLU\(\) at '1', got LeakyReLU",
    ),
    "no bias": (
        lambda m: nn.Sequential(nn.Linear(2, 5, bias=False), *m[1:]), "bias=False",
    ),
    "a parameter more": (
        lambda m: m.register_parameter("extra", nn.Parameter(torch.ones(2))) or m,
        r"Sequential\(\) at the top, got Sequential\(\) with extra \(2,\)",
    ),
    "no module": (lambda m: m.state_dict(), "Expected a torch.nn.Module, .* got OrderedDict"),
    "NaN": (lambda m: nn.init.constant_(m[0].bias, torch.nan) is None or m, "in '0.bias'"),
    "training": (
        lambda m: nn.Sequential(m[0], nn.Dropout(), m[2]), r"in evaluation mode, got Dropout",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_another_architecture_is_refused_in_words(small, kind):
    change, message = REFUSED[kind]
    with pytest.raises(CaptureError, match=message):
        small.with_weights(change(mlp(2, 5, 3)))


def test_decisions_of_forward_that_were_not_traced_are_refused():
    class Deciding(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.factor = nn.Parameter(torch.tensor([1.0, -1.0])), 1.0
            self.attribute, self.hidden = torch.ones(2), [torch.ones(2)]

        def forward(self, x):
            y = x[:, self.gate > 0] if self.gate[0] > 0 else -x
            return torch.relu(y * self.factor + self.attribute[:1] + self.hidden[0][:1])

    module = Deciding()
    network = Network.from_torch(module, (2,))
    nn.init.constant_(module.gate, 0.5)
    with pytest.raises(CaptureError, match=r"reads the same numbers and masks.*got .* anew with"):
        network.with_weights(module)
    nn.init.constant_(module.gate, -0.5)
    with pytest.raises(CaptureError, match=r"was captured, True, got False"):
        network.with_weights(module)
    module = Deciding()
    assert network.with_weights(module).num_units == 1
    module.attribute = torch.full((2,), 0.25)
    assert network.with_weights(module)(torch.zeros(1, 2)).item() == 1.25
    module.hidden = [torch.full((2,), 0.25)]
    with pytest.raises(CaptureError, match=r"equal the module in float64.* anew with Network"):
        network.with_weights(module)
    module = Deciding()
    module.factor = 0.5
    with pytest.raises(CaptureError, match=r"equal the module in float64.* anew with Network"):
        network.with_weights(module)
    module = Deciding()
    module.attribute = torch.ones(3)
    with pytest.raises(CaptureError, match=r"'attribute' of shape \(2,\), got \(3,\)"):
        network.with_weights(module)


def test_a_network_of_a_file_says_what_to_do(tmp_path):
    module = mlp(2, 5, 3)
    program = torch.export.export(module, (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "m.pt2")
    network = Network.load(tmp_path / "m.pt2")
    with pytest.raises(CaptureError, match=r"one read from a file.*Network.from_torch"):
        network.with_weights(module)


def test_methods_and_what_they_return_are_taken_with_new_parameters() -> None:
    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 3))

        def decode(self, z: Tensor) -> dict[str, Tensor]:
            return {"images": self.inner(z), "z": z}

    torch.manual_seed(0)
    first, second = Autoencoder(), Autoencoder()
    network = cpwl.Network.from_torch(first.decode, (2,), output="images")
    again = network.with_weights(second.decode)
    fresh = cpwl.Network.from_torch(second.decode, (2,), output="images")
    z = torch.randn(5, 2)
    assert torch.equal(again(z), fresh(z))
    assert not torch.equal(again(z), network(z))


def test_another_method_is_refused_in_words() -> None:
    class Coder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp(2, 4, 3)

        def decode(self, z: torch.Tensor) -> torch.Tensor:
            return self.inner(z)

        def twice(self, z: torch.Tensor) -> torch.Tensor:
            return 2 * self.inner(z)

        def named(self, z: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"x": self.inner(z)}

    module = Coder()
    network = cpwl.Network.from_torch(module.decode, (2,))
    with pytest.raises(CaptureError, match=r"equal the module in float64.* anew with Network"):
        network.with_weights(module.twice)
    with pytest.raises(CaptureError, match=r"one tensor from the module, got dict\. .* anew with"):
        network.with_weights(module.named)
    with pytest.raises(CaptureError, match=r"captured, a method or function at the top, got "):
        network.with_weights(module)


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (torch.ones(2, dtype=torch.complex64), "complex numbers in 'odd'"),
        (torch.eye(2).to_sparse(), "one of layout torch.sparse_coo in 'odd'"),
    ],
)
def test_buffers_that_are_no_dense_numbers_are_refused_in_words(tensor, told) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    module.register_buffer("odd", tensor)
    with pytest.raises(CaptureError, match=told):
        cpwl.Network.from_torch(module, (2,))
