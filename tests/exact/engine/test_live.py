"""Tensors that are kept between stages: each step once at each vertex, and the same partition."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.agreement import pattern_set
from torch import Tensor, nn

import cpwl
from cpwl.engine.plane import live
from cpwl.network.program import Program, Step, passes, program, read_matrices, segments

pytestmark = pytest.mark.usefixtures("one_thread")

EVER, NEVER = 0, 2**62  # multiplications a byte


class Skip(nn.Module):
    """A layer and what goes past it, joined at its end or all along."""

    def __init__(self, inner: nn.Module, joined: str) -> None:
        super().__init__()
        self.inner, self.joined = inner, joined

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        if self.joined == "sum":
            return y + x
        if self.joined == "largest":
            return torch.maximum(y, x)
        return torch.cat([y[:, ::2], x[:, 1::2]], 1).view(x.size(0), *x.shape[1:])


class Moved(nn.Module):
    """Rectify with the batch on the second axis."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x.transpose(0, 1)).transpose(0, 1) - 0.1


def drawn(seed: int, depth: int = 6) -> nn.Sequential:
    """Draw a network of two inputs: dense or convolutional, with skips and poolings."""
    choose = random.Random(seed)
    torch.manual_seed(seed)
    images = choose.random() < 0.5
    channels = choose.choice([2, 3] if images else [4, 6])

    def affine() -> nn.Module:
        if images:
            return nn.Conv2d(channels, channels, 3, padding=1)
        return nn.Linear(channels, channels)

    layers: list[nn.Module] = [nn.Linear(2, 9 * channels if images else channels)]
    layers += [nn.Unflatten(1, (channels, 3, 3))] * images
    for _ in range(choose.randrange(2, depth)):
        kind = choose.random()
        bend = choose.choice([nn.ReLU(), nn.LeakyReLU(0.2), nn.Hardtanh(), nn.ReLU()])
        if kind < 0.15 and images:
            layers.append(nn.MaxPool2d(2, 1, 1))
            layers.append(nn.AvgPool2d(2, 1))
        elif kind < 0.25:
            layers.append(Moved())
        elif kind < 0.7:
            inner = nn.Sequential(affine(), bend, affine())
            layers.append(Skip(inner, choose.choice(["sum", "largest", "both"])))
        else:
            layers += [affine(), bend]
    layers += [nn.Flatten()] * images
    module = nn.Sequential(*layers).double()
    for weights in module.parameters():
        nn.init.normal_(weights, 0, 1 / max(1, weights[0].numel()) ** 0.5)
    return module


def box_of(seed: int) -> cpwl.Domain:
    """A box, or for every fourth seed a segment."""
    return cpwl.segment([-2, 1], [1.5, -1]) if seed % 4 == 3 else cpwl.box([-2, -1.5], [1.5, 2])


def subdivided(
    monkeypatch: pytest.MonkeyPatch,
    network: cpwl.Network,
    domain: cpwl.Domain,
    at: int,
    **kwargs: Any,
) -> cpwl.Partition:
    monkeypatch.setattr(live, "_MULTIPLICATIONS_A_BYTE", at)
    return cpwl.subdivide(network, domain, progress=False, **kwargs)


def assert_same(a: cpwl.Partition, b: cpwl.Partition) -> None:
    """Compare everything but the last bits of the coordinates."""
    for name in (
        *("cell_offsets", "cell_corners", "cell_facets", "facet_corners"),
        *("facet_cells", "facet_unit", "patterns", "bit_unit", "unit_base"),
    ):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    np.testing.assert_allclose(a.points, b.points, atol=1e-9)


def compare(monkeypatch: pytest.MonkeyPatch, seed: int) -> int:
    """Compare both ways to evaluate, also where rational arithmetic is taken to be out of reach."""
    network, domain = cpwl.Network.from_torch(drawn(seed), (2,)), box_of(seed)
    plain = subdivided(monkeypatch, network, domain, NEVER)
    kept = subdivided(monkeypatch, network, domain, EVER)
    assert kept.status.exact
    assert kept.status.arbitrated == plain.status.arbitrated
    assert_same(kept, plain)
    large = replace(network, matrices=read_matrices(network.program, most_entries=10))
    assert_same(subdivided(monkeypatch, large, domain, EVER), plain)
    return kept.num_cells


@pytest.mark.parametrize("seed", range(4))
def test_the_partition_is_the_same(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    assert compare(monkeypatch, seed) > 1


@pytest.mark.nightly
def test_many_partitions_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(compare(monkeypatch, seed) for seed in range(100, 400)) > 10_000


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Count how many rows each step is run on from now on, by the step's number."""
    rows: Counter[int] = Counter()
    run = program.run

    def counting(made: Program, plan: program.Plan, z: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.update(dict.fromkeys(plan.order, len(z)))
        return run(made, plan, z, *args, **kwargs)

    monkeypatch.setattr(passes, "run", counting)
    return rows


def chain(depth: int = 10, width: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(2, width)]
    for _ in range(depth):
        layers += [nn.ReLU(), Skip(nn.Linear(width, width), "sum")]
    return nn.Sequential(*layers, nn.ReLU()).double()


def test_every_step_runs_once_at_every_vertex(monkeypatch: pytest.MonkeyPatch) -> None:
    network = cpwl.Network.from_torch(chain(), (2,))
    large = replace(network, matrices=read_matrices(network.program, most_entries=10))
    rows = counted(monkeypatch)
    made = subdivided(monkeypatch, large, cpwl.box([-3, -3], [3, 3]), EVER)
    assert len(set(rows.values())) == 1  # no vertex is ever merged away here
    assert 4 < rows[1] < len(made.points)  # those of the last cut are not evaluated any more
    rows.clear()
    subdivided(monkeypatch, large, cpwl.box([-3, -3], [3, 3]), NEVER)
    assert rows[1] > 3 * rows[max(rows)]


def test_tensors_that_do_not_fit_are_kept_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    network = cpwl.Network.from_torch(chain(), (2,))
    domain = cpwl.box([-3, -3], [3, 3])
    whole = subdivided(monkeypatch, network, domain, EVER)
    monkeypatch.setattr(live, "_PART_OF_MEMORY", 48 * len(whole.points) / 3 / 2**31)
    rows = counted(monkeypatch)
    in_strips = subdivided(monkeypatch, network, domain, EVER)
    assert rows[1] < 4 * len(whole.points)
    assert pattern_set(in_strips) == pattern_set(whole)
    assert (in_strips.num_cells, len(in_strips.points)) == (whole.num_cells, len(whole.points))
    cpwl.check(in_strips).require()


def test_what_goes_on_behind_a_stage_is_found() -> None:
    """Skips over two stages each: the sum is alive up to the next one, and the operand is."""
    inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU())
    module = nn.Sequential(*(Skip(inner, "sum") for _ in range(3)))
    made = cpwl.Network.from_torch(module, (2,))
    steps = made.program.steps
    found = segments(made.program)
    assert [len(one.behind) for one in found] == [1, 1, 2, 2, 1, 0]
    assert [one.start for one in found[1:]] == [one.behind for one in found[:-1]]
    ran: list[Step] = [steps[i] for one in found for i in one.rest.order]
    assert len(ran) == len({id(step) for step in ran})
