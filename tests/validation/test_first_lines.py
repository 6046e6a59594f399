"""The first lines of six users, as they write them: each gets a network, a partition, a number."""

from __future__ import annotations

import functools
import io
import warnings
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import approx
import bridges
import cpwl
from bridges.validation import around
from cpwl import CaptureError, Network, UnsupportedOperationError

SMALL = {
    "cells": 5, "latents": 3, "seeds": 6, "samples": 1000, "directions": (1,), "radii": (),
    "progress": False,
}  # fmt: skip


class VAE(nn.Module):
    """An MNIST VAE as on GitHub."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc21, self.fc22 = nn.Linear(784, 40), nn.Linear(40, 16), nn.Linear(40, 16)
        self.fc3, self.fc4 = nn.Linear(16, 40), nn.Linear(40, 784)
        self.drop = nn.Dropout(0.1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.drop(torch.relu(self.fc1(x)))
        return self.fc21(h), self.fc22(h)

    def reparameterize(self, mu: Tensor, logvar: Tensor) -> Tensor:
        return mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)

    def decode(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.fc4(torch.relu(self.fc3(z))))

    def logits(self, z: Tensor) -> Tensor:
        return self.fc4(torch.relu(self.fc3(z)))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        mu, logvar = self.encode(x.view(-1, 784))
        return {"recon": self.decode(mu), "mu": mu, "logvar": logvar}


class ConditionalGAN(nn.Module):
    """G(z, label): a label's embedding beside the latent."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(10, 4)
        self.body = nn.Sequential(nn.Linear(6, 12), nn.LeakyReLU(0.25), nn.Linear(12, 9))

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        return self.body(torch.cat([z, self.embedding(label)], 1))


class Tiny(nn.Module):
    """Decoder of the kind of TAESD: convolutions, ReLU, nearest upsampling, `.sample`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.decoder = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2),
            nn.Conv2d(4, 3, 3, padding=1),
        )  # fmt: skip

    def decode(self, z: Tensor, return_dict: bool = True) -> SimpleNamespace | tuple[Tensor]:
        image = self.decoder(z)
        return SimpleNamespace(sample=image, last=z) if return_dict else (image,)


@pytest.fixture(scope="module")
def vae() -> VAE:
    return VAE().eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The conditional generator as files: a batch that is open, and one of length one."""
    folder, module = tmp_path_factory.mktemp("files"), ConditionalGAN().eval()
    batch = {0: torch.export.Dim("batch")}
    example = (torch.zeros(2, 2), torch.tensor([3, 4]))
    exported = torch.export.export(module, example, dynamic_shapes=(batch, batch))
    torch.export.save(exported, folder / "gan.pt2")
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for name, axes in (("gan", {"z": {0: "n"}, "label": {0: "n"}}), ("one", None)):
            given = example if axes else tuple(x[:1] for x in example)
            torch.onnx.export(
                module, given, folder / f"{name}.onnx", dynamo=False, dynamic_axes=axes,
                input_names=["z", "label"], output_names=["image"],
            )  # fmt: skip
    np.save(folder / "label.npy", np.array([7]))
    return folder


def test_a_reader_with_a_vae_gives_its_method(vae):
    network = Network.from_torch(vae.decode, (16,), upto="sigmoid")
    assert [operation.name for operation in network.operations] == ["fc3", "relu", "fc4"]
    z = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Network.from_torch(vae.logits, (16,))(z), network(z))
    torch.testing.assert_close(network(z).float(), vae.logits(z).detach(), atol=1e-5, rtol=1e-5)
    digits = torch.rand(3, 784, generator=torch.Generator().manual_seed(1))
    plane = cpwl.Slice.through(*vae.encode(digits)[0].detach())
    partition = cpwl.subdivide(network, around(plane), progress=False)
    cpwl.check(partition, samples=50).require()
    assert "fc3.weight" in dict(vae.named_parameters())
    assert vae.fc3.weight.dtype == torch.float32
    assert vae.fc3.weight.requires_grad


@pytest.mark.parametrize(
    ("make", "upto", "first"),
    [
        (lambda vae: lambda z: vae.decode(z), "sigmoid", "fc3"),
        (lambda vae: functools.partial(vae.decode), "sigmoid", "fc3"),
        (lambda vae: functools.partial(torch.add, torch.ones(16)), None, "add"),
        (lambda vae: approx.bind(lambda z, t: vae.fc3(z) * t, t=torch.tensor(2.0)), None, "fc3"),
        (lambda vae: lambda z, of=(vae.fc3,): of[0](z).relu(), None, ""),
    ],
)
def test_functions_around_modules_are_modules(vae, make, upto, first):
    called = make(vae)
    network = Network.from_torch(called, (16,), upto=upto)
    z = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    expected = called(z).detach().double()
    got = network(z).sigmoid() if upto else network(z)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert network.operations[0].name.startswith(first)


def test_of_several_modules_each_has_the_name_that_the_function_knows(vae):
    after = nn.Linear(784, 2)
    network = Network.from_torch(lambda z: after(vae.logits(z)), (16,))
    names = [operation.name for operation in network.operations]
    assert names == ["vae.fc3", names[1], "vae.fc4", "after"]


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("mu", None),
        (".mu", r"got a dict with 'recon', 'mu', 'logvar'\. Choose one: output='recon'"),
        (lambda y: y["mu"], None),
        (lambda y: None, r"output is one tensor, got None\. Return the tensor wanted"),
        (0, r"Expected output=0 to pick a tensor, got a dict"),
        ([1], r"Expected output= as a key, a position, an attribute .* got \[1\]"),
        (None, r"output is one tensor, got a dict with .* Choose one: output='recon'"),
    ],
)
def test_what_a_module_returns_is_picked(vae, output, text):
    if text:
        with pytest.raises(CaptureError, match=text):
            Network.from_torch(vae, (784,), output=output)
        return
    network = Network.from_torch(vae, (784,), output=output)
    x = torch.rand(2, 784, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(x).float(), vae(x)["mu"].detach(), atol=1e-5, rtol=1e-5)
    table = approx.describe(vae, x, output=output, neighbourhood=None, progress=False)
    assert np.isfinite(table.psi).all()


def test_a_splinecam_user_gives_a_sequential():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 1)
    )
    partition = cpwl.subdivide(
        Network.from_torch(model, 2), cpwl.box([-1, -1], [1, 1]), progress=False
    )
    cpwl.check(partition, samples=50).require()


@pytest.mark.parametrize(
    ("make", "output"),
    [
        (lambda tiny: tiny.decode, None),
        (lambda tiny: tiny.decode, ".sample"),
        (lambda tiny: functools.partial(tiny.decode, return_dict=False), 0),
        (lambda tiny: lambda z: tiny.decode(z).sample, None),
    ],
)
def test_a_diffusers_user_gives_decode(make, output):
    tiny = Tiny().eval()
    network = Network.from_torch(make(tiny), (2, 2, 2), output=output)
    assert network.operations[0].name == "decoder.0"
    # flat latents, and a domain of eight coordinates
    z = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    expected = tiny.decoder(z.view(3, 2, 2, 2)).double().detach()
    torch.testing.assert_close(network(z), expected, atol=1e-5, rtol=1e-5)
    table = approx.describe(
        make(tiny), z.view(3, 2, 2, 2), output=output, neighbourhood=None, progress=False
    )
    matrix = torch.autograd.functional.jacobian(network_like(tiny), z[:1].view(1, 2, 2, 2))
    psi = torch.linalg.svdvals(matrix.reshape(48, 8).double()).log().sum().item()
    assert table.psi[0] == pytest.approx(psi, abs=1e-3)


def network_like(tiny: Tiny):
    """Return the decoder as a function of one tensor."""
    return lambda z: tiny.decoder(z)


def test_a_smooth_decoder_is_sent_to_the_estimates():
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.SiLU())
    with pytest.raises(UnsupportedOperationError, match="Use approx, which handles any"):
        Network.from_torch(module.forward, (2, 4, 4))


@pytest.mark.parametrize("name", ["gan.pt2", "gan.onnx", "one.onnx"])
def test_a_verification_person_gives_further_inputs_values(folder, name):
    module = ConditionalGAN().eval()
    network = Network.load(folder / name, fixed={"label": 7})
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    expected = module(z, torch.full((4,), 7)).double().detach()
    torch.testing.assert_close(network(z), expected, atol=1e-5, rtol=1e-5)
    same = Network.load(folder / name, fixed={"label": np.array([7.0])}, output=0)
    assert torch.equal(same(z), network(z))
    captured = Network.from_torch(module, (2,), fixed={"label": torch.tensor([7])})
    torch.testing.assert_close(captured(z), network(z), atol=1e-12, rtol=1e-12)


FILES = [
    ({}, r"with one input in 'gan\.\w+', got 2 \(z, label\)\. Give .* fixed=\{\"label\": \.\.\.\}"),
    ({"fixed": {"lable": 7}}, r"name inputs of 'gan\.\w+' \(z, label\), got 'lable'"),
    ({"fixed": {"label": 7, "z": 0}}, r"got values for all of them \(z, label\)\. Leave out"),
    ({"fixed": {"label": 7.5}}, r"values of type int64 for input 'label' .* got others: \[7\.5\]"),
    ({"fixed": {"label": [1, 2]}}, r"a value of shape \(1\) for input 'label' .* got shape \(2,\)"),
    ({"fixed": {"label": "cat"}}, r"finite numbers for input 'label' .* got 'cat'"),
    ({"fixed": [7]}, r"Expected fixed= as a mapping of argument names to values, got list"),
    (
        {"fixed": {"label": 7}, "output": "text"},
        r"position of an output of 'gan\.\w+' \(\w+\), got",
    ),
    ({"fixed": {"label": 7}, "output": 3}, r"position of an output of 'gan\.\w+' \(\w+\), got 3"),
    ({"fixed": {"label": 7}, "output": len}, r"\), got builtin_function_or_method\. Correct it"),
]


@pytest.mark.parametrize("name", ["gan.pt2", "gan.onnx"])
@pytest.mark.parametrize(("options", "text"), FILES)
def test_inputs_and_outputs_of_files_that_do_not_fit(folder, name, options, text):
    with pytest.raises(CaptureError, match=text):
        Network.load(folder / name, **options)


def test_validation_takes_what_the_network_takes():
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))

        def decode(self, z: Tensor, scale: Tensor) -> dict[str, Tensor]:
            return {"image": self.layers(z.flatten(1)) * scale, "z": z}

    module, domain = Decoder().eval(), cpwl.box([-1, -1], [1, 1])
    report = bridges.validate(
        module.decode, domain, input_shape=(2, 1, 1), fixed={"scale": torch.tensor(2.0)},
        output="image", **SMALL,
    )  # fmt: skip
    assert report.ok, str(report)
    assert report.title.endswith("Decoder.decode")


@pytest.mark.parametrize("name", ["gan.pt2", "gan.onnx"])
def test_someone_on_the_command_line_gives_them_as_options(run, name):
    line = f"partition @{name} --fix label=@label.npy --box -2 2 -o out.npz"
    status, out, err = run(line)
    assert (status, err) == (0, "")
    expected = Network.from_torch(ConditionalGAN().eval(), (2,), fixed={"label": torch.tensor([7])})
    whole = cpwl.subdivide(expected, cpwl.box([-2, -2], [2, 2]), progress=False)
    assert f"Partition({whole.num_cells} cells" in out
    np.save("z.npy", np.zeros((2, 2), np.float32))
    status, out, err = run(f"describe @{name} z.npy --fix label=7 --no-delta -o out.csv")
    assert (status, err) == (0, "")
    A = torch.autograd.functional.jacobian(
        lambda z: ConditionalGAN().eval()(z, torch.tensor([7])), torch.zeros(1, 2)
    )
    psi = torch.linalg.svdvals(A.reshape(9, 2).double()).log().sum().item()
    assert float(out.partition("\npsi ")[2].split()[0]) == pytest.approx(psi, abs=1e-4)
    status, out, err = run(f"info @{name} --fix label=7 --output-name 0")
    assert (status, err) == (0, "")
    assert "input (2,), output (9,)" in out


COMMANDS = [
    ("info @gan.onnx", "Give all but one of them values: --fix label=..."),
    ("info @gan.pt2 --fix label", "Expected --fix as NAME=VALUE, got 'label'."),
    ("info @gan.pt2 --fix label=cat", "Expected --fix label= as a .npy file or numbers"),
    ("info @gan.pt2 --fix lable=7", "Expected --fix to name inputs of 'gan.pt2' (z, label)"),
    ("info @gan.pt2 --fix label=7 --output-name x", "Expected --output-name as the name or"),
    ("info @gan.onnx --fix label=7 --input-shape 3", "Check --input-shape and --fix"),
    ("info @gan.onnx --fix label=7 --upto tanh", "Expected --upto to name an operation"),
    ("info @gan.pt2 --fix label=70", "further arguments (--fix) values that it takes"),
    ("partition @gan.pt2 --fix label=1,2 --box -1 1 -o a.png", "input 'label' of 'gan.pt2' in --f"),
]


@pytest.mark.parametrize(("line", "text"), COMMANDS)
def test_errors_name_options_on_the_command_line(run, line, text):
    status, _, err = run(line)
    assert status == 2
    assert text in err
    assert not any(word in err for word in ("fixed=", "output=", "upto=", "input_shape"))


def test_acas_xu_takes_a_box_of_its_five_inputs(data):
    network = Network.load(data / "onnx" / "acasxu_1_1.onnx")
    assert network.input_shape != (5,)
    middle = np.array([0.6, 0, 0, 0.45, -0.495])
    box = cpwl.box(middle - 0.005, middle + 0.005)
    partition = cpwl.subdivide(network, box, progress=False)
    assert partition.domain.slice.latent_shape == network.input_shape
    assert partition.status.exact
    assert partition.num_cells == 12
    cpwl.check(partition, samples=20).require()
