"""Planes through encoded images and the radius of delta: a run at tiny size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.studies import first_alone

from bridges.studies import geometry, load_study

RESULTS = Path(__file__).parents[3] / "notebooks" / "results" / "geometry.json"

TINY = geometry.Size(1, 1, 3, (1e-6, 1.0), 50)


@pytest.fixture(scope="module")
def tiny(data, one_thread):
    pytest.importorskip("skimage", reason="needs scikit-image, for its photographs")
    return first_alone(geometry, TINY)


def test_the_invariants_hold(tiny):
    assert not tiny.failed(), tiny.failed()


def test_a_small_enough_neighbourhood_lies_in_one_cell(tiny):
    """Latents in general position are further from every knot than 1e-6."""
    for model, most in (("toy", 2), ("gan", 3)):
        counts = tiny.data["cells"][model]
        assert set(counts) == {str(p) for p in range(1, most + 1)}
        for count in counts.values():
            assert count.shape == (2, 2, TINY.latents, 1)
            assert (count[:, 0] == 1).all()
            assert (count >= 1).all()


def test_every_claim_has_a_value_for_each_seed(tiny):
    assert all(len(claim.values) == 1 for claim in tiny.claims)
    assert len({claim.claim for claim in tiny.claims}) == len(tiny.claims)
    assert np.isfinite([claim.values for claim in tiny.claims]).all()
    # each decoder and descriptor: as encoded, permuted, and the one less the other
    hulls = [claim for claim in tiny.claims if "hull" in claim.claim]
    assert len(hulls) == 18
    for both, control, rest in zip(hulls[::3], hulls[1::3], hulls[2::3], strict=True):
        assert rest.values[0] == pytest.approx(both.values[0] - control.values[0])


def test_the_kept_results_are_whole():
    study = load_study(RESULTS)
    assert study.full
    assert study.seeds == tuple(range(geometry.FULL.seeds))
    assert not study.failed()
    assert all(len(claim.values) == len(study.seeds) for claim in study.claims)


@pytest.mark.nightly
def test_a_row_at_full_size_is_the_kept_one(data, one_thread):
    """One seed again at full size gives its cells around the GAN's latents again, and its nu."""
    pytest.importorskip("skimage", reason="needs scikit-image, for its photographs")
    kept = load_study(RESULTS).data
    again = geometry.study(geometry.FULL, [0]).data
    for p, counts in again["cells"]["gan"].items():
        np.testing.assert_array_equal(counts[..., 0], np.array(kept["cells"]["gan"][p])[..., 0])
    nu = again["planes"]["digits"]["encoded"]["nu"]["inside"][0]
    assert nu == pytest.approx(kept["planes"]["digits"]["encoded"]["nu"]["inside"][0], rel=1e-3)
