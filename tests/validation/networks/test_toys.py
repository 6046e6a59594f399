"""The toys: each is what its name says, on a part of its latent space that can be enumerated."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import approx
import cpwl
from bridges.networks import pretrained
from bridges.networks.toys import TOYS, Toy, toy
from cpwl.network.network import inspect

RANDOM = ("conv", "residual", "max-pooling", "smooth")
# units and kinds of pieces, counted by hand from the layers' sizes
UNITS = {
    "generator": (60, {"relu"}),
    "mnist-vae": (400, {"relu"}),
    "conv": (16 * 8 * 8 * 2, {"relu"}),
    # 2 x 2 windows in two rounds of pairs
    "max-pooling": (4 * 4 * 4 * (2 + 1) + 8 * 8 * 8, {"max_pool", "relu"}),
    "residual": (12 * 9 * 2 + 12 * 36 * 2, {"relu", "leaky_relu"}),
}


@pytest.fixture(scope="module")
def made():
    """Return a function that makes each toy once."""
    kept: dict[str, Toy] = {}

    def get(name, request):
        if name == "mnist-vae":
            request.getfixturevalue("data")
        if name not in kept:
            kept[name] = toy(name)
        return kept[name]

    return get


def latents(found, n=8):
    """Return float64 latents over the whole domain."""
    low, high = found.domain.corners.min(0), found.domain.corners.max(0)
    s = np.random.default_rng(0).uniform(low, high, (n, 2))
    return torch.from_numpy(found.domain.slice.embed(s))


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_is_ready_for_use(name, made, request):
    found = made(name, request)
    assert found.name == name
    assert found.domain.dim == 2
    assert not found.module.training
    parameters = list(found.module.parameters())
    assert {p.dtype for p in parameters} == {torch.float32}
    z = latents(found).float()
    values = found.module(z)
    assert len(values) == len(z)
    assert values[0].numel() > z[0].numel()
    assert values.isfinite().all()
    assert "\n" not in found.note


@pytest.mark.parametrize("name", [n for n in TOYS if n != "smooth"])
def test_its_cells_are_few_enough_and_all_there(name, made, request):
    found = made(name, request)
    network = cpwl.Network.from_torch(found.module, found.domain.slice.latent_shape)
    partition = cpwl.subdivide(network, found.domain, progress=False)
    assert partition.status.complete
    assert partition.status.exact
    assert 300 <= partition.num_cells <= 3_000
    cpwl.check(partition, samples=64).require()
    assert (network.num_units, {group.kind for group in network.groups}) == UNITS[name]


def test_the_smooth_one_is_refused_by_the_exact_side(made, request):
    found = made("smooth", request)
    with pytest.raises(cpwl.UnsupportedOperationError, match="group_norm"):
        cpwl.Network.from_torch(found.module, found.domain.slice.latent_shape)
    refused = {
        op.target for op in inspect(found.module, found.domain.slice.latent_shape) if op.reason
    }
    for kind in ("group_norm", "silu", "attention"):
        assert any(kind in target for target in refused)
    # and on the domain they bend: a line through it is nowhere affine
    z = latents(found, 2)
    t = torch.linspace(0, 1, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)
    along = copy.deepcopy(found.module).double()((1 - t) * z[0] + t * z[1])
    assert (along.diff(dim=0).diff(dim=0).flatten(1).norm(dim=1) > 1e-6).all()


@pytest.mark.parametrize("name", RANDOM)
def test_random_ones_are_always_the_same(name):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = toy(name)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    again = toy(name)
    for a, b in zip(first.module.parameters(), again.module.parameters(), strict=True):
        assert torch.equal(a, b)
    np.testing.assert_array_equal(first.domain.slice.basis, again.domain.slice.basis)
    np.testing.assert_array_equal(first.domain.corners, again.domain.corners)


def test_psi_of_the_convolutional_one_is_really_predicted(made, request):
    found = made("conv", request)
    op = approx.JacobianOperator(found.module, latents(found), dtype=torch.float64)
    values = torch.linalg.svdvals(op.dense()).square()
    effective = values.sum(1).square() / values.square().sum(1)
    assert ((effective > 65) & (effective < 80)).all()  # "near 70"
    for products in (8, 12, 16):
        for seed in range(8):
            result = approx.spectrum(op, k=24, products=products, generator=seed)
            assert not result.fell_back.any()
            assert result.products == products


def test_the_vae_is_the_decoder_before_its_sigmoid(made, request, data):
    found = made("mnist-vae", request)
    whole = pretrained.mnist_vae_decoder(data)
    z = latents(found).float()
    assert torch.equal(torch.sigmoid(found.module(z)), whole(z))
    images = pretrained.read_images("mnist", 100, data)
    codes = pretrained.codes(images, data)[[3, 2, 0]]  # the first 0, 1 and 7
    anchors = found.domain.slice.embed(found.domain.slice.anchors)
    np.testing.assert_allclose(anchors, codes.double().numpy(), atol=1e-6)


def test_unknown_toys_are_refused():
    with pytest.raises(
        ValueError, match="Expected one of the toys generator, mnist-vae, conv, resi"
    ):
        toy("dcgan")
