"""Surveys by tiles against one partition of the whole domain, counted without their code."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles.bodies import domain_of
from support import strategies
from support.agreement import capture

import cpwl


def assert_same_cells(found, network, domain) -> cpwl.Partition:
    """Compare the counts of a survey, and return the partition of the whole domain."""
    whole = cpwl.subdivide(network, domain, progress=False)
    assert found.status.exact == whole.status.exact
    assert found.unmatched == 0
    assert found.cells == whole.num_cells
    inner = whole.facet_cells.min(axis=1) >= 0
    units, sides = whole.facet_unit[inner], np.sort(whole.facet_cells[inner], axis=1)
    stage = [sum(unit >= first for first in network.stage_offsets[1:]) for unit in units.tolist()]
    pairs = {(*side, k) for side, k in zip(sides.tolist(), stage, strict=True)}
    expected = [sum(k == own for *_, own in pairs) for k in range(network.num_stages)]
    assert found.facets.tolist() == expected
    assert found.volume == pytest.approx(domain.volume, rel=1e-9)
    return whole


def assert_same(network, domain, tiles) -> None:
    """Compare a survey with one partition: counts exactly, sums to rounding."""
    found = cpwl.survey(network, domain, tiles=tiles, progress=False)
    whole = assert_same_cells(found, network, domain)
    numbers = cpwl.summary(whole)
    assert found.regions == numbers["regions"]
    close = {"rel": 1e-9, "abs": 1e-9}
    assert found.psi.mean == pytest.approx(numbers["psi_mean"], **close)
    assert found.nu.mean == pytest.approx(numbers["nu_mean"], **close)
    assert found.squeezed == pytest.approx(numbers["squeezed"], **close)
    assert found.total_image_volume == pytest.approx(numbers["total_image_volume"], **close)
    if not math.isnan(numbers["entropy"]):
        assert found.entropy_bound == pytest.approx(numbers["entropy"], **close)
    volume = cpwl.volumes(whole)
    psi, nu = cpwl.local_scaling(whole), cpwl.local_rank(whole)
    for histogram, values in ((found.psi, psi), (found.nu, nu)):
        off = np.abs(values[:, None] - histogram.centres)
        share = (off <= histogram.width / 2 * (1 + 1e-6)).T @ volume
        np.testing.assert_allclose(histogram.volumes, share, atol=1e-9, rtol=1e-9)


grids = st.tuples(st.integers(1, 5), st.integers(1, 4))


def well_conditioned(shapes):
    """Networks whose sums rounding leaves alone."""
    return st.one_of(strategies.degenerate_networks(shapes), strategies.generic_networks(shapes))


@given(
    well_conditioned(strategies.some_architectures(6, 2, strategies.ALL, width=5)),
    strategies.places(2),
    grids,
)
@strategies.ordinary(12)
def test_planes_by_tiles(layers, place, tiles):
    assert_same(capture(layers), domain_of(place), tiles)


@pytest.mark.nightly
@given(well_conditioned(strategies.shapes(2)), strategies.places(2), grids)
@strategies.nightly(1500)
def test_many_planes_by_tiles(layers, place, tiles):
    assert_same(capture(layers), domain_of(place), tiles)


@pytest.mark.nightly
@given(strategies.nearly_degenerate_networks(strategies.shapes(2)), strategies.places(2), grids)
@strategies.nightly(700)
def test_nearly_degenerate_planes_by_tiles(layers, place, tiles):
    network, domain = capture(layers), domain_of(place)
    found = cpwl.survey(network, domain, tiles=tiles, maps=False, progress=False)
    assert_same_cells(found, network, domain)
    assert math.isnan(found.psi.mean)
    assert math.isnan(found.regions)


@given(
    strategies.degenerate_networks(strategies.some_architectures(3, 1, strategies.ALL)),
    strategies.places(1),
    st.integers(1, 7),
)
@strategies.ordinary(10)
def test_segments_by_tiles(layers, place, tiles):
    assert_same(capture(layers), domain_of(place), tiles)


@given(
    strategies.degenerate_networks(strategies.some_architectures(3, 3, strategies.SIMPLE)),
    st.integers(1, 3),
)
@strategies.ordinary(5)
def test_boxes_by_tiles(layers, tiles):
    assert_same(capture(layers), cpwl.box([-2.0] * 3, [2.0, 1.0, 2.0]), (tiles, 1, 2))
