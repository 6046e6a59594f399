"""Slices of the real networks: every one complete, checked, and small enough for every commit."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import pytest
import shapely
import torch
from oracles.bisection import changes, pattern_of
from real.slices import (
    ACAS_ADVISORIES,
    acas,
    cifar_resnet,
    dcgan_faces,
    mnist_convnet,
    mnist_gan,
    mnist_vae,
    sd_latents,
)

import cpwl
from bridges.networks import pretrained

# (network and slice, fewest cells that make the test worth its name)
SLICES = {
    "mnist_gan": (partial(mnist_gan, zoom=0.5), 5_000),
    "mnist_vae": (partial(mnist_vae, zoom=1.2), 5_000),
    "dcgan_faces": (partial(dcgan_faces, zoom=0.00001), 8),
    "dcgan_faces, wider": (partial(dcgan_faces, zoom=0.00005), 10),
    "sd_latents": (partial(sd_latents, zoom=0.0002), 20),
    "cifar_resnet": (partial(cifar_resnet, zoom=0.01), 200),
    "mnist_convnet": (partial(mnist_convnet, zoom=0.02), 200),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.nightly] if "wider" in name else []) for name in SLICES],
)
def test_slice_is_complete_and_checks(name, data):
    make, fewest = SLICES[name]
    network, domain = make(data)
    partition = cpwl.subdivide(network, domain, proof="float64", progress=False)
    assert partition.status.complete
    assert partition.num_cells >= fewest
    cpwl.check(partition, samples=16).require()


@pytest.mark.nightly
@pytest.mark.parametrize("name", SLICES)
def test_slice_is_proven(name, data, one_thread):
    """In rational arithmetic, or in about 106 bits where the network is too large for that."""
    network, domain = SLICES[name][0](data)
    status = cpwl.subdivide(network, domain, progress=False).status
    assert (status.exact, status.undecided, status.broken) == (True, 0, 0)
    assert (status.refined > 0) == (not network.matrices.complete)


def test_knots_of_a_deep_denoiser_are_all_found_and_proven(data, one_thread):
    """Behind its tenth stage float64's bound exceeds the values; bisection and 106 bits agree."""
    module = pretrained.bias_free_dncnn(data).double()
    noisy = np.load(data / "denoiser" / "noisy_im_30.npy")
    z = torch.from_numpy(noisy[None, 7:13, 11:17].copy())
    way = torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(5))
    way /= way.norm()
    radius = 2e-3
    switches = changes(
        lambda t: pattern_of(module, z + t[:, None, None, None] * way), -radius, radius,
        1e-9 * radius,
    )  # fmt: skip
    segment = cpwl.cross_polytope(z.numpy(), radius, way.numpy()[None])
    network = cpwl.Network.from_torch(module, z.shape)
    left = cpwl.subdivide(network, segment, proof="float64", progress=False).status
    assert (left.complete, left.exact, left.refined) == (True, False, 0)
    assert left.undecided > 100_000
    partition = cpwl.subdivide(network, segment, progress=False)
    assert (partition.status.exact, partition.status.undecided) == (True, 0)
    assert partition.status.refined == 25 * network.num_units
    assert partition.num_cells == len(switches) + 1 == 24
    points = np.sort(partition.points.ravel())[1:-1]
    np.testing.assert_allclose(points, switches, rtol=0, atol=1e-8 * radius)
    middle = torch.from_numpy((partition.points[1:] + partition.points[:-1]) / 2)
    pieces = pattern_of(module, z + middle[:, :, None, None] * way)
    np.testing.assert_array_equal(partition.pieces(), pieces.numpy())


@pytest.mark.parametrize("name", ["1_1", "4_3", pytest.param("2_7", marks=pytest.mark.nightly)])
def test_advisories_of_a_collision_avoidance_controller(name, data):
    network, domain = acas(data, name)
    partition = cpwl.subdivide(network, domain, progress=False)
    cpwl.check(partition, samples=256).require()
    regions = cpwl.decision_regions(partition, "argmin")
    assert shapely.coverage_is_valid(regions.polygons)
    shares = np.bincount(regions.labels, regions.areas, len(ACAS_ADVISORIES))
    assert shares.sum() == pytest.approx(domain.volume, rel=1e-9)
    # the advisory of random points, from the network itself
    points = np.random.default_rng(0).uniform(*domain.corners[[0, 2]], size=(4000, 2))
    scores = network(domain.slice.embed(points)).numpy()
    counts = np.bincount(scores.argmin(axis=1), minlength=len(ACAS_ADVISORIES))
    expected = shares / domain.volume
    spread = np.sqrt(expected * (1 - expected) * len(points)) + 1
    assert (np.abs(counts - expected * len(points)) < 5 * spread).all()
    assert (expected > 0.001).sum() >= 2


def test_anchors_lie_in_cells_whose_maps_decode_them(data):
    network, domain = mnist_vae(data)
    partition = cpwl.subdivide(network, domain, progress=False)
    anchors = domain.slice.anchors
    cells = cpwl.locate(partition, anchors)
    maps, offsets = next(cpwl.affine_maps(partition, cells))
    decoded = np.einsum("ndp,np->nd", maps, anchors) + offsets
    expected = network(domain.slice.embed(anchors)).numpy()
    assert np.abs(decoded - expected).max() < 1e-11


@pytest.mark.nightly
@pytest.mark.parametrize("make", [partial(mnist_vae, zoom=20.0), partial(mnist_gan, zoom=60.0)])
def test_a_check_costs_at_most_five_times_the_partition(make, data):
    network, domain = make(data)
    cpwl.check(cpwl.subdivide(network, make.func(data, zoom=0.5)[1], progress=False))
    began = time.process_time()
    partition = cpwl.subdivide(network, domain, progress=False)
    halfway = time.process_time()
    cpwl.check(partition).require()
    assert time.process_time() - halfway < 5 * (halfway - began)


@pytest.mark.parametrize(
    ("half", "cells"), [(0.3, 239), pytest.param(2.0, 3_984, marks=pytest.mark.nightly)]
)
def test_lattice_network_of_equal_minima(half, cells, data):
    """Minima of two copies of one function: units that vanish identically, decided exactly."""
    network = cpwl.Network.load(data / "onnx" / "tll_16_1_0.onnx")
    began = time.monotonic()
    partition = cpwl.subdivide(network, cpwl.box([-half] * 2, [half] * 2), progress=False)
    assert time.monotonic() - began < 60
    assert (partition.num_cells, partition.status.exact) == (cells, True)
    cpwl.check(partition).require()
