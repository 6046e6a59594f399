"""What is handed in instead of a network, a domain, a partition or a cell is refused by name."""

from __future__ import annotations

import pytest
from torch import nn

import cpwl

MODULE = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
NETWORK = cpwl.Network.from_torch(MODULE, (2,))
BOX = cpwl.box([-1, -1], [1, 1])
CELL = cpwl.cell_at(NETWORK, [0.1, 0.2])

FROM_PARTITIONS = [
    cpwl.adjacency, cpwl.centroids, cpwl.certify, cpwl.check, cpwl.contour, cpwl.decision_regions,
    cpwl.entropy, cpwl.halfspaces, cpwl.local_scaling, cpwl.regions, cpwl.spectrum, cpwl.summary,
    cpwl.to_pandas, cpwl.to_xarray, cpwl.vertices, cpwl.volumes, cpwl.plot.partition,
    lambda p: cpwl.locate(p, [[0, 0]]), lambda p: cpwl.save_partition(p, "cells.npz"),
]  # fmt: skip


@pytest.mark.parametrize("call", FROM_PARTITIONS)
def test_a_network_is_no_partition(call) -> None:
    with pytest.raises(TypeError, match=r"cpwl\.Partition, got Network\. Make one with cpwl\.subd"):
        call(NETWORK)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: cpwl.subdivide(m, BOX),
        lambda m: cpwl.cell_at(m, [0, 0]),
        lambda m: cpwl.cells_near(m, [0, 0], 3, -1, 1),
    ],
)
def test_a_module_is_no_network(call) -> None:
    with pytest.raises(TypeError, match=r"cpwl\.Network, got Sequential\. Capture a module first"):
        call(MODULE)


@pytest.mark.parametrize("domain", [BOX.slice, [[-1, -1], [1, -1], [0, 1]]])
def test_a_slice_or_a_list_is_no_domain(domain) -> None:
    with pytest.raises(TypeError, match=r"cpwl\.Domain, got (Slice|list)\. Make one"):
        cpwl.subdivide(NETWORK, domain)


def test_a_cell_is_not_its_facets() -> None:
    with pytest.raises(TypeError, match=r"cpwl\.Facets, got Cell\. Find them first: cpwl\.facets"):
        cpwl.neighbours(CELL)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"cpwl\.Cell, got Network\. Make one with cpwl\.cell_at"):
        cpwl.facets(NETWORK, -1, 1)  # type: ignore[arg-type]


def test_a_squashing_before_knots_is_no_trailing_one() -> None:
    clamped = nn.Sequential(nn.Tanh(), nn.Linear(2, 3), nn.ReLU())
    with pytest.raises(cpwl.UnsupportedOperationError, match="Use approx"):
        cpwl.Network.from_torch(clamped, (2,))
    for last, name in ((nn.Softmax(1), "softmax"), (nn.LogSoftmax(1), "log_softmax")):
        classifier = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), last)
        with pytest.raises(cpwl.UnsupportedOperationError, match=f"Pass upto='{name}'"):
            cpwl.Network.from_torch(classifier, (2,))
        assert cpwl.Network.from_torch(classifier, (2,), upto=name).num_units == 3
