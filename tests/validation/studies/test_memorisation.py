"""Parts of the study, and all of it at a tiny size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from support.studies import first_alone

from bridges.networks import diffusion
from bridges.studies import load_study, memorisation, save_study
from bridges.studies.memorisation import FULL, SMALL

RESULTS = Path(__file__).parents[3] / "notebooks" / "results" / "memorisation.json"
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
    return first_alone(memorisation, TINY)


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
        before = tiny.data["samples"][0][name][:3]
        # decompositions in float64 round by where their matrices lie in memory
        np.testing.assert_allclose(
            values, before, rtol=1e-12 if "psi" in name or "nu" in name else 0
        )


def test_the_kept_results_are_whole():
    study = load_study(RESULTS)
    assert study.full
    assert study.seeds == tuple(range(FULL.seeds))
    assert not study.failed()
    assert all(len(claim.values) == len(study.seeds) for claim in study.claims)
    for number, table in enumerate(study.data["samples"]):
        assert {len(v) for v in table.values()} == {len(FULL.trainings) * FULL.samples}
        # shares by hand, from the distances alone
        share = [float(np.mean(r)) for r in (np.array(table["ratio"]) < 1 / 3).reshape(5, -1)]
        assert share[0] > share[2]
        assert share == [study.data["share"][t][number] for t in FULL.trainings]


@pytest.mark.nightly
def test_a_row_at_full_size_is_the_kept_one(data, one_thread):
    """A training again, of a kept seed, is as other seeds are: trainings differ by machine."""
    kept = load_study(RESULTS)
    again = memorisation.study(FULL._replace(trainings=("10",)), [0])
    for name in ("ratio", "decoder psi", "decoder nu"):
        means = [np.mean(t[name][: FULL.samples]) for t in kept.data["samples"]]
        half = stats.t.ppf(0.9995, len(means) - 1) * np.std(means, ddof=1) * (1 + 1 / 5) ** 0.5
        found = np.mean(again.data["samples"][0][name])
        assert abs(found - np.mean(means)) < half, name
