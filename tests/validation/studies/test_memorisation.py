"""Parts of the study, and all of it at a tiny size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bridges.networks import diffusion
from bridges.studies import load_study, memorisation, save_study
from bridges.studies.memorisation import FULL, SMALL

TINY = SMALL._replace(trainings=("2", "planted"), digits=20, training=10, samples=3, steps=3,
                      times=(1 / 3,))  # fmt: skip


def test_scores_are_compared_within_strata_of_compressed_size():
    """Sizes of two strata, a score that knows the size alone: no pair within a stratum differs."""
    size = np.repeat([100.0, 200.0], 20)
    memorised = np.arange(40) % np.where(size > 150, 2, 5) == 0
    table = {"ratio": np.where(memorised, 0.1, 0.9), "bytes": size, "x": size}
    assert memorisation._effect(table, "x", "all", 0) > 0.1
    assert memorisation._effect(table, "x", "matched", 0) == 0


def test_planted_digits_are_half_of_the_training():
    rows, counts = memorisation._rows(FULL, "planted", 0).unique(return_counts=True)
    assert sorted(counts.tolist(), reverse=True)[:11] == [500] * 10 + [1]
    assert len(rows) == 10 + 5_000
    few = memorisation._rows(FULL, "10", 0)
    assert set(few.tolist()) == set(rows[counts == 500].tolist())  # the same digits of a seed


def test_the_dimension_is_the_trace_of_a_jacobian_by_columns(data):
    denoiser = diffusion.mnist_denoiser(data).requires_grad_(False)
    x = torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    y = torch.eye(10)[3:4]

    def estimate(flat):
        z = flat.view(1, 1, 6, 6)
        return (z + 0.2 * denoiser(z, torch.tensor([0.8]), y)).flatten()

    whole = torch.autograd.functional.jacobian(estimate, x.flatten())
    expected = 0.8 * float(torch.linalg.eigvals(whole).real.sum())
    assert memorisation._dimension(denoiser, x, y, 0.8) == pytest.approx(expected, rel=1e-4)


@pytest.fixture(scope="module")
def tiny(data):
    """Return the study at a tiny size."""
    return memorisation.study(TINY, [3])


def test_the_study_at_a_tiny_size(tiny, tmp_path):
    table = tiny.data["samples"][0]
    for values in table.values():
        assert values.shape == (6,)
        assert np.isfinite(values).all()
    assert ((table["ratio"] > 0) & (table["ratio"] <= 1)).all()
    assert (table["settled"] <= 3).all()
    controls = [c for c in tiny.claims if c.claim.startswith("control")]
    assert {c.paper for c in controls} == {"none"}
    assert len(controls) == 6
    save_study(tiny, tmp_path / "study.json")
    assert load_study(tmp_path / "study.json").data["trainings"] == ["2", "planted"]


def test_a_seed_gives_the_same_samples(tiny):
    again = memorisation.study(TINY._replace(trainings=("2",)), [3]).data["samples"][0]
    for name, values in again.items():
        np.testing.assert_array_equal(values, tiny.data["samples"][0][name][:3])


def test_an_interrupt_keeps_whole_seeds(tiny, monkeypatch):
    table = {name: values[:3] for name, values in tiny.data["samples"][0].items()}
    del table["training"]

    def trained(size, training, seed, *rest):
        if seed == 1 and training == "planted":
            raise KeyboardInterrupt
        return table, {}, 0.5

    monkeypatch.setattr(memorisation, "_trained", trained)
    assert memorisation.study(TINY, [0, 1]).seeds == (0,)
    with pytest.raises(KeyboardInterrupt):
        memorisation.study(TINY, [1])
