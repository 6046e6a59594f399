"""What certificates prove, on generic networks and on those whose knots coincide."""

from __future__ import annotations

import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.layers import LINEAR, RELU, Pool, layer, network
from support import damage
from support.agreement import capture, domain_of, subdivide_and_compare
from support.damage import BOX, bit_of, failure, flipped
from support.strategies import (
    ALL,
    SCALARS,
    WAVE,
    architectures,
    degenerate_networks,
    domains,
    generic_networks,
    nightly,
    ordinary,
    some_architectures,
)
from torch import nn

import cpwl
from bridges.networks.toys import random_mlp
from cpwl.proof.cells import Patterns, side_rows
from cpwl.proof.reading import read_exactly

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(name="small")
def _small() -> cpwl.Partition:
    return damage.small()


def test_2000_cells_are_proven_in_seconds() -> None:
    captured = cpwl.Network.from_torch(random_mlp((2, 20, 20, 20, 3)), (2,))
    partition = cpwl.subdivide(captured, BOX, progress=False)
    start = time.perf_counter()
    certificate = cpwl.certify(partition, progress=False)
    assert time.perf_counter() - start < 30
    assert (certificate.cells, certificate.points) == (1839, len(partition.points))
    assert (certificate.units, certificate.dim) == (60, 2)
    assert certificate.area == Fraction(400)
    assert certificate.rounding is not None
    assert certificate.rounding <= 1e-11
    # 60 units and 4 sides of the box are decided at every corner; two of them meet there
    assert certificate.signs == 64 * len(partition.cell_corners)
    assert certificate.ties >= 2 * len(partition.cell_corners)
    assert str(certificate).startswith("proven: 1,839 cells with ")


def test_the_bar_is_on_stderr_and_can_be_left_out(small, capsys) -> None:
    cpwl.certify(small)
    out, err = capsys.readouterr()
    assert "certify" in err
    assert out == ""
    cpwl.certify(small, progress=False)
    assert capsys.readouterr() == ("", "")


def test_the_area_of_a_slanted_domain_is_exact() -> None:
    captured = cpwl.Network.from_torch(random_mlp((5, 8, 3)), (5,))
    latents = np.random.default_rng(0).normal(size=(3, 5))
    domain = cpwl.Slice.through(*latents).polygon([[0.1, 0.2], [0.7, 0.3], [0.3, 1.1]])
    certificate = cpwl.certify(cpwl.subdivide(captured, domain, progress=False), progress=False)
    (a, b), (c, d), (e, f) = [[Fraction(x) for x in corner] for corner in domain.corners.tolist()]
    assert certificate.area == ((c - a) * (f - b) - (e - a) * (d - b)) / 2


def test_an_affine_network_has_one_cell() -> None:
    captured = cpwl.Network.from_torch(nn.Linear(2, 3), (2,))
    certificate = cpwl.certify(cpwl.subdivide(captured, BOX, progress=False), progress=False)
    assert (certificate.cells, certificate.units, certificate.points) == (1, 0, 4)


def test_intervals_are_proven_as_well() -> None:
    captured = cpwl.Network.from_torch(random_mlp((1, 12, 12, 2)), (1,))
    partition = cpwl.subdivide(captured, cpwl.box([-10], [10]), progress=False)
    certificate = cpwl.certify(partition, progress=False)
    assert certificate.area == 20
    assert certificate.points == partition.num_cells + 1
    assert "tile the domain of length 20" in str(certificate)
    moved = partition.points.copy()
    moved[2] += 1e-9
    assert failure(replace(partition, points=moved)).cell is not None


class Mixed(nn.Module):
    """Convolutions, batch-norm, pooling, a skip connection and every kind of unit."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 16)
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.prelu = nn.PReLU(2, 0.3)
        self.pool = nn.MaxPool2d(2)
        self.last = nn.Linear(8 + 2, 4)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        h = nn.functional.leaky_relu(self.first(z), 0.1).reshape(-1, 1, 4, 4)
        h = self.pool(self.prelu(self.norm(self.conv(h)))).flatten(1)
        h = torch.cat([nn.functional.hardtanh(h), z.abs()], 1)
        h = torch.maximum(h, torch.minimum(h * 0.5, 1 - h))
        h = self.last(h)
        return nn.functional.relu6(h) + nn.functional.hardsigmoid(h)


def mixed() -> nn.Module:
    torch.manual_seed(3)
    module = Mixed().double()
    with torch.no_grad():
        for value in (module.norm.running_mean, module.norm.weight, module.norm.bias):
            assert value is not None
            value.add_(torch.randn(2, dtype=torch.float64) / 4)
        module.norm.running_var.mul_(1.7)  # type: ignore[union-attr]
    return module.eval()


def test_convolutions_pooling_and_skips_are_proven() -> None:
    captured = cpwl.Network.from_torch(mixed(), (2,))
    partition = cpwl.subdivide(captured, cpwl.box([-4, -4], [4, 4]), progress=False)
    assert partition.num_cells > 100
    certificate = cpwl.certify(partition, progress=False)
    assert (certificate.cells, certificate.area) == (partition.num_cells, 64)


@pytest.mark.parametrize(
    "module",
    [mixed(), nn.Sequential(nn.Linear(2, 9), nn.Unflatten(1, (1, 3, 3)), nn.MaxPool2d(3))],
    ids=["mixed", "one pool"],
)
def test_the_exact_reading_agrees_with_torch(module) -> None:
    # a random point lies strictly inside the conditions of the pieces that torch finds for it
    captured = cpwl.Network.from_torch(module, (2,))
    points = np.random.default_rng(1).uniform(-4, 4, (40, 2))
    pieces = captured.pieces(torch.from_numpy(points)).numpy()
    corners = tuple(tuple(map(Fraction, c)) for c in ((-4, -4), (4, -4), (4, 4), (-4, 4)))
    patterns = Patterns(read_exactly(captured), np.zeros(2), np.eye(2), side_rows(corners))
    for number, (point, row) in enumerate(zip(points.tolist(), pieces, strict=True)):
        bounds = patterns.cell(number, row, 0).bounds
        assert len({bound.unit for bound in bounds}) > 1
        x, y = map(Fraction, point)
        for (a, b, c), _, _ in bounds:
            assert int(a) * x + int(b) * y + int(c) > 0


# --- what coincides


@ordinary(16)
@given(degenerate_networks(some_architectures(12, units=(*SCALARS, WAVE))), domains(2))
def test_degenerate_networks_are_proven(layers, corners) -> None:
    partition = subdivide_and_compare(layers, corners)
    assert cpwl.certify(partition, progress=False).cells == partition.num_cells


@ordinary(12)
@given(degenerate_networks(some_architectures(6, units=(Pool(2), RELU, Pool(5)))), domains(2))
def test_degenerate_networks_with_pools_are_proven(layers, corners) -> None:
    cpwl.certify(subdivide_and_compare(layers, corners), progress=False)


@ordinary(12)
@given(degenerate_networks(some_architectures(10, 1, ALL)), domains(1))
def test_degenerate_networks_on_an_interval_are_proven(layers, corners) -> None:
    cpwl.certify(subdivide_and_compare(layers, corners), progress=False)


@ordinary(8)
@given(generic_networks(some_architectures(12, units=ALL)), domains(2))
def test_generic_networks_are_proven(layers, corners) -> None:
    cpwl.certify(subdivide_and_compare(layers, corners), progress=False)


@pytest.mark.nightly
@nightly(500)
@given(degenerate_networks(architectures(units=ALL, width=6)), domains(2))
def test_many_degenerate_networks_are_proven(layers, corners) -> None:
    partition = cpwl.subdivide(capture(layers), domain_of(corners), progress=False)
    cpwl.certify(partition, progress=False)


@pytest.mark.nightly
@nightly(200)
@given(
    st.one_of(
        st.tuples(degenerate_networks(architectures(1, ALL, width=6)), domains(1)),
        st.tuples(generic_networks(architectures(units=ALL, width=6)), domains(2)),
    )
)
def test_many_others_are_proven(drawn) -> None:
    layers, corners = drawn
    partition = cpwl.subdivide(capture(layers), domain_of(corners), progress=False)
    cpwl.certify(partition, progress=False)


def test_a_unit_that_vanishes_on_a_cell_has_to_be_on_the_lower_piece() -> None:
    # the second unit is relu(relu(x)) - 0: zero on all of x < 0
    layers = network(layer([[1, 0]], [0]), layer([[1]], [0]), layer([[1]], [0], LINEAR))
    partition = subdivide_and_compare(layers, BOX.corners.tolist())
    assert partition.pieces().sum(axis=1).tolist() in ([0, 2], [2, 0])
    cell = int(np.argmin(partition.pieces().sum(axis=1)))
    error = failure(flipped(partition, cell, bit_of(partition, 1)))
    assert error.cell == cell
    assert "on the piece below a breakpoint that it equals on all of the cell" in str(error)


def test_a_unit_without_effect_may_be_on_either_piece() -> None:
    layers = network(
        layer([[1, 0], [0, 1], [1, 1], [-1, 0]], [0, 0, 1, 0], Pool(4)), layer([[1]], [0], LINEAR)
    )
    partition = subdivide_and_compare(layers, BOX.corners.tolist())
    # while the third match is won on one side, the match on the other has no effect
    left = partition.pieces()[:, 2] == 1
    without_effect = {0: ~left, 1: left, 2: np.zeros_like(left)}
    assert all(lost.any() for lost in (left, ~left))
    for unit, lost in without_effect.items():
        for cell in range(partition.num_cells):
            damaged = flipped(partition, cell, bit_of(partition, unit))
            if lost[cell]:
                cpwl.certify(damaged, progress=False)
            else:
                assert failure(damaged).cell == cell


# --- what is refused


def test_a_partition_of_some_stages_is_refused(small) -> None:
    part = replace(small, status=small.status._replace(complete=False, stages=1))
    assert "Expected a partition by all 2 stages of its network, got one by the first 1" in str(
        failure(part)
    )


def test_a_partition_without_its_network_is_refused(small, tmp_path) -> None:
    cpwl.save_partition(small, tmp_path / "p.npz")
    with pytest.raises(ValueError, match="Expected a partition with its network"):
        cpwl.certify(cpwl.load_partition(tmp_path / "p.npz"), progress=False)
    again = cpwl.load_partition(tmp_path / "p.npz", network=small.network)
    assert cpwl.certify(again, progress=False).cells == small.num_cells


def test_three_dimensions_are_refused() -> None:
    captured = cpwl.Network.from_torch(random_mlp((3, 4, 2)), (3,))
    solid = cpwl.subdivide(captured, cpwl.box([-1] * 3, [1] * 3), progress=False)
    with pytest.raises(ValueError, match=r"to certify, got 3\. Use cpwl\.check, which works"):
        cpwl.certify(solid, progress=False)


def test_a_large_network_is_refused() -> None:
    wide = nn.Sequential(nn.Linear(2, 2100), nn.ReLU(), nn.Linear(2100, 2100), nn.ReLU())
    captured = cpwl.Network.from_torch(wide, (2,))
    tiny = cpwl.subdivide(captured, cpwl.box([0, 0], [1e-6, 1e-6]), progress=False)
    with pytest.raises(ValueError, match=r"at most 4,194,304 coefficients.*got one where its aff"):
        cpwl.certify(tiny, progress=False)
