"""The toy diffusion: maps against their definitions, the study at a tiny size, the kept results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.studies import first_alone

from approx.diffusion import maps
from bridges.networks.datasaurus import ToyDenoiser, read_datasaurus, signal_shares
from bridges.studies import load_study, toy_diffusion, toy_maps

RESULTS = Path(__file__).parents[3] / "notebooks" / "results" / "toy_diffusion.json"
TINY = toy_diffusion.SMALL._replace(marks=(0, 1, 2, 3), width=8, batch=16, pixels=8, samples=10)


def denoiser(width=8):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ToyDenoiser(width).double().eval().requires_grad_(False)


@pytest.mark.parametrize("t", [1, 28, 50])
def test_maps_of_the_two_sides_are_the_same(t):
    x = toy_maps.plane(4)
    times = torch.tensor([t])
    for name, make in toy_maps.MAPS.items():
        estimated = make(denoiser(), toy_maps.toy_schedule(), t)(x)
        found = toy_maps.ExactMap(denoiser(), name, t)(x, times)
        torch.testing.assert_close(found, estimated)


def test_the_last_step_ends_at_the_estimate_of_x_0():
    x, schedule = toy_maps.plane(4), toy_maps.toy_schedule()
    ends = [make(denoiser(), schedule, 1)(x) for make in (maps.step, maps.clean)]
    torch.testing.assert_close(*ends)


def test_cells_nearby_are_counted_by_sampling():
    """As many patterns as a fine grid finds in a neighbourhood, and what is too small for it."""
    module = denoiser(12)
    partition = toy_maps.exact_partition(module, "step", 6)
    points = toy_maps.plane(5).numpy()
    found = toy_maps.cells_nearby(partition, points)
    line = np.linspace(-1, 1, 81)
    a, b = np.meshgrid(line, line)
    diamond = toy_maps.RADIUS * np.stack([a, b], -1)[np.abs(a) + np.abs(b) < 1]
    for count, point in zip(found, points, strict=True):
        signs, h, t = [], torch.from_numpy(point + diamond), torch.tensor([6])
        features = torch.arange(1, 9, dtype=torch.float64) * (np.pi / 100) * t
        features = torch.cat([features.sin(), features.cos()])
        for layer, time in zip(module.hidden, module.times, strict=True):
            h = layer(h) + time.weight @ features
            signs.append(h > 0)
            h = h.relu()
        sampled = len(torch.cat(signs, dim=1).unique(dim=0))
        assert sampled <= count <= sampled + 3
    assert found.max() > 2


def test_distances_are_to_the_data_as_they_lie_at_a_time(data):
    points = read_datasaurus(folder=data)
    x = signal_shares()[17].sqrt() * points[:3] + torch.tensor([1e-6, 0])
    np.testing.assert_allclose(toy_maps.distances(points, 17, x), 1e-6, rtol=1e-6)
    samples = toy_maps.noisy(points, 50, 4_000, seed=0)
    assert float(samples.std()) == pytest.approx(1, abs=0.05)


def test_the_study_at_a_tiny_size(data, monkeypatch):
    monkeypatch.setenv("CPWL_DATA", str(data))
    monkeypatch.setattr(toy_diffusion, "TIMES", (6,))
    tiny = first_alone(toy_diffusion, TINY)
    assert not tiny.failed()
    assert len({claim.claim for claim in tiny.claims}) == len(tiny.claims)
    assert all(len(claim.values) == 1 for claim in tiny.claims)
    for rows in tiny.data["correlations"]["plane"].values():
        for values in rows.values():
            assert values.shape == (1, 1)
            assert (np.abs(values) <= 1).all()


def test_the_kept_results_are_whole():
    study = load_study(RESULTS)
    assert study.full
    assert study.seeds == tuple(range(toy_diffusion.FULL.seeds))
    assert not study.failed()
    assert all(len(claim.values) == len(study.seeds) for claim in study.claims)
    late = str(toy_diffusion.FULL.marks[-1])
    assert len(study.data["apart"]["step psi"][late]) == len(study.seeds)
    # trained long enough: at t = 6 within half of what an early one is off by
    early = str(toy_diffusion.FULL.marks[1])
    first = {mark: np.array(study.data["apart"]["step psi"][mark])[:, 0] for mark in (early, late)}
    assert (first[late] < first[early] / 2).all()


@pytest.mark.nightly
def test_a_row_at_full_size_is_the_kept_one(data, monkeypatch):
    """One seed again at full size gives its values again, but for rounding in training."""
    monkeypatch.setenv("CPWL_DATA", str(data))
    kept = load_study(RESULTS)
    again = toy_diffusion.study(toy_diffusion.FULL, kept.seeds[:1])
    for name in toy_diffusion.QUANTITIES:
        for mark, tolerance in zip(toy_diffusion.FULL.marks, (1e-4, 0.02, 0.1, 0.1), strict=True):
            before = kept.data["correlations"]["plane"][name][str(mark)][0]
            found = again.data["correlations"]["plane"][name][str(mark)][0]
            np.testing.assert_allclose(found, before, atol=tolerance, err_msg=f"{name} {mark}")
