"""The toy generators and the demo."""

from __future__ import annotations

import re

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import nn

from bridges.demo import plane
from bridges.demo.plane import draw, run_demo
from bridges.networks.toys import RADIUS, bumps, random_mlp, toy_generator

CENTRES = torch.tensor([[-5.0, -4.5], [-4, 5], [0.5, 0], [5.5, 4.5], [4.5, -5.5]])


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Run the demo once, as shipped."""
    path = tmp_path_factory.mktemp("demo") / "demo.png"
    return run_demo(path, progress=False), path


def test_demo_finds_low_density_where_the_generator_stretches(demo):
    report, _ = demo
    assert report.correlation > 0.5
    assert report.inner_correlation > 0.5
    assert 500 < report.regions <= report.cells
    assert report.psi[0] < 0 < 1 < report.psi[1]  # flat land is not stretched, slopes are
    assert 1 <= report.nu[0] < report.nu[1] <= 2 + 1e-12


def test_demo_writes_the_figure_and_nothing_else(demo):
    _, path = demo
    height, width, _ = imread(path).shape
    assert min(height, width) > 600
    assert list(path.parent.iterdir()) == [path]


def test_demo_says_what_it_found(demo):
    report, _ = demo
    text = str(report)
    assert f"{report.cells:,} cells, {report.regions:,} linear regions" in text
    assert f"psi from {report.psi[0]:.3f} to {report.psi[1]:.3f}" in text
    assert f"nu from {report.nu[0]:.3f} to {report.nu[1]:.3f}" in text
    assert f"exp(-psi): {report.correlation:.2f} ({report.inner_correlation:.2f} away" in text
    assert text.endswith("s in all")


def test_the_figure_has_its_four_panels(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(plane, "toy_generator", lambda seed: toy_generator(seed, steps=30))
    monkeypatch.setattr(plane, "draw", lambda *parts: drawn.append(draw(*parts)) or drawn[-1])
    run_demo(tmp_path / "demo.png", progress=False)
    axes = [a for a in drawn[0].axes if a.get_label() != "<colorbar>"]
    titles = [a.get_title() for a in axes]
    assert re.fullmatch(r"partition: [\d,]+ cells, [\d,]+ linear regions", titles[0])
    assert titles[1:] == ["image of G", "5,000 uniform latents", "generated samples"]
    flat, uniform, generated = axes[0], axes[2], axes[3]
    assert len(flat.collections) > 1  # cells and knots
    np.testing.assert_array_equal(
        uniform.collections[0].get_array(), generated.collections[0].get_array()
    )
    assert np.abs(uniform.collections[0].get_offsets()).max() <= RADIUS


def test_interrupted_while_writing_leaves_no_figure(monkeypatch, tmp_path):
    def interrupted(self, path, **options):
        path.write_bytes(b"half a picture")
        raise KeyboardInterrupt

    monkeypatch.setattr(plane, "toy_generator", lambda seed: toy_generator(seed, steps=3))
    monkeypatch.setattr(Figure, "savefig", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path / "demo.png", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_training_finds_the_five_bumps():
    model = toy_generator(steps=2000)
    z = RADIUS * (2 * torch.rand(4000, 2, generator=torch.Generator().manual_seed(1)) - 1)
    out = model(z)
    assert float((out[:, :2] - z).square().mean()) < 0.02
    assert float((out[:, 2] - bumps(z)).square().mean()) < 0.15  # the bumps' variance is 2
    assert torch.all(model(CENTRES)[:, 2] > 0.8 * bumps(CENTRES))
    valleys = torch.tensor([[0.0, -9], [0, 8], [-9, 0], [9, 0], [9, -9]])
    assert torch.all(model(valleys)[:, 2] < 1)


def test_toys_leave_the_random_state_and_threads_alone():
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, again, other = (toy_generator(seed, steps=5) for seed in (0, 0, 1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[0].weight, again[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)
    assert not first.training
    assert not any(p.requires_grad for p in first.parameters())


def test_toy_trains_where_gradients_are_off():
    with torch.no_grad():
        trained = toy_generator(steps=5)
    assert not torch.equal(trained[0].weight, random_mlp((2, 20, 20, 20, 3))[0].weight)


def test_random_mlp_is_what_manual_seed_gives():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 4))
    model = random_mlp((2, 5, 4), seed=3)
    assert [type(layer) for layer in model] == [nn.Linear, nn.ReLU, nn.Linear]
    for mine, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_random_mlp_needs_two_widths():
    with pytest.raises(ValueError, match=r"input and an output width, got \[2\]\. Give all the w"):
        random_mlp([2])
