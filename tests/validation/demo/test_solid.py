"""The demo in three dimensions and its toy generator."""

from __future__ import annotations

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from PIL import Image

import cpwl
from bridges.demo import solid
from bridges.demo.solid import run_solid_demo
from bridges.networks.toys import toy_solid, wells

CENTRES = torch.tensor([[0.0, 0, 0], [0.75, 0.7, 0.6], [-0.7, -0.75, -0.6]], dtype=torch.float64)


def test_wells_pull_towards_three_points():
    jacobians = torch.func.vmap(torch.func.jacrev(lambda z: wells(z[None])[0]))(CENTRES)
    shares = torch.tensor([0.95, 0.8, 0.8], dtype=torch.float64)
    expected = (1 - shares)[:, None, None] * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(jacobians, expected, atol=0.05, rtol=0)  # the others reach there too


def test_training_makes_the_solid_shrink_at_the_wells():
    model = toy_solid(steps=800)
    z = 2 * torch.rand(4000, 3, generator=torch.Generator().manual_seed(1)) - 1
    assert float((model(z) - wells(z)).square().mean()) < 2e-3
    network = cpwl.Network.from_torch(model, (3,))
    partition = cpwl.subdivide(network, cpwl.box([-1] * 3, [1] * 3), progress=False)
    psi = cpwl.local_scaling(partition)
    at_wells = psi[cpwl.locate(partition, CENTRES.numpy())]
    assert at_wells.max() < np.quantile(psi, 0.25)


@pytest.fixture
def _briefly_trained(monkeypatch):
    monkeypatch.setattr(solid, "toy_solid", lambda seed: toy_solid(seed, steps=20))


@pytest.mark.usefixtures("_briefly_trained")
def test_demo_writes_a_picture_and_says_what_it_found(tmp_path):
    report = run_solid_demo(tmp_path / "a.png", progress=False)
    height, width, _ = imread(tmp_path / "a.png").shape
    assert height > 400
    assert width > 900
    assert report.exact
    text = str(report)
    assert (
        f"{report.cells:,} cells, {report.regions:,} linear regions and {report.facets:,}" in text
    )
    assert "all signs proven" in text
    assert f"psi from {report.psi[0]:.3f} to {report.psi[1]:.3f}" in text


@pytest.mark.usefixtures("_briefly_trained")
def test_demo_writes_an_animation(tmp_path):
    run_solid_demo(tmp_path / "a.gif", frames=3, progress=False)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 3
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]
