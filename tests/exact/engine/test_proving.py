"""Proofs in about 106 bits of networks that are treated as too large for rational arithmetic.

What is proven must be the oracle's partition, which shares no code with it; what is wrong must not
be proven, however little is wrong.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from flint import fmpq
from hypothesis import Phase, given, settings
from oracles import splitting
from oracles.bodies import domain_of, exact_of
from oracles.layers import LINEAR, RELU, Layer, Pool, layer, leaky, network
from support.agreement import assert_agrees, capture
from support.samples import mlp
from support.strategies import (
    BOX,
    cancelling_networks,
    degenerate_networks,
    generic_networks,
    nearly_degenerate_networks,
    nightly,
    ordinary,
    places,
    random_network,
    shapes,
)
from torch import nn

import cpwl
from cpwl.engine.columns import pieces_of
from cpwl.engine.plane import Refined, prove, proving, refine
from cpwl.engine.plane.corners import corners_of
from cpwl.engine.precise import Evaluator
from cpwl.engine.precise.expansions import Expansion, added, scaled
from cpwl.engine.rational import Arbiter
from cpwl.engine.work import Work
from cpwl.network.program import read_matrices

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORKS = {
    "generic": lambda dim: generic_networks(shapes(dim)),
    "degenerate": lambda dim: degenerate_networks(shapes(dim)),
    "nearly degenerate": lambda dim: nearly_degenerate_networks(shapes(dim)),
    "cancelling": cancelling_networks,
}


def too_large(network: cpwl.Network) -> cpwl.Network:
    """Keep rational arithmetic from a network."""
    return replace(network, matrices=read_matrices(network.program, most_entries=-1))


def sweep(kind: str, dim: int, profile: settings) -> Counter:
    """Draw networks: what is proven agrees with the oracle; count how often what came out."""
    count: Counter = Counter()

    @settings(profile, phases=[Phase.explicit, Phase.generate])
    @given(NETWORKS[kind](dim), places(dim))
    def agree(layers: tuple[Layer, ...], domain) -> None:
        one = too_large(capture(layers))
        found = cpwl.subdivide(one, domain_of(domain), progress=False)
        status = found.status
        if status.exact:
            assert status.undecided == status.broken == 0
            assert status.refined == one.num_units * len(found.points)
            assert_agrees(found, layers, splitting.subdivide(layers, exact_of(domain)))
        else:
            assert status.undecided > 0 or status.refined == 0
        name = "open" if status.refined else "not tried" if status.complete else "broken"
        count["exact" if status.exact else name] += 1

    agree()
    return count


@pytest.mark.parametrize(
    ("kind", "dim", "examples", "fewest"),
    [
        ("generic", 1, 15, 3), ("generic", 2, 15, 3), ("degenerate", 2, 8, 1),
        ("nearly degenerate", 2, 15, 3), ("cancelling", 1, 8, 5), ("cancelling", 2, 8, 5),
        *(pytest.param(kind, dim, 250, fewest, marks=pytest.mark.nightly)
          for kind, fewest in (("generic", 150), ("degenerate", 20), ("nearly degenerate", 50),
                               ("cancelling", 150))
          for dim in (1, 2)),
    ],
)  # fmt: skip
def test_what_is_proven_is_the_partition(kind: str, dim: int, examples: int, fewest: int) -> None:
    profile = ordinary(examples) if examples < 100 else nightly(examples)
    count = sweep(kind, dim, profile)
    assert count["exact"] >= fewest, count
    # every generic network without triangle waves, whose knots have no end, is proven
    assert kind != "generic" or count["open"] == 0


def deep(seed: int, kind: str) -> tuple[nn.Sequential, tuple[int, ...]]:
    """Draw 20 layers of width 4 to 8, or four convolutions of 6 x 6 pixels with a max-pooling."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    if kind == "images":
        layers: list[nn.Module] = []
        for k, (fan_in, fan_out) in enumerate(((1, 2), (2, 3), (3, 2), (2, 2))):
            layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.LeakyReLU(0.1 * (k % 2))]
        return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten()).double(), (1, 6, 6)
    fan_in, layers = 2, []
    for _ in range(20):
        fan_out = int(rng.integers(4, 9))
        affine = nn.Linear(fan_in, fan_out)
        nn.init.normal_(affine.weight, 0, (2 / fan_in) ** 0.5)
        nn.init.normal_(affine.bias, 0, 0.3)
        layers, fan_in = [*layers, affine, nn.ReLU()], fan_out
    return nn.Sequential(*layers).double(), (2,)


@pytest.mark.parametrize(
    ("kind", "seeds"),
    [
        ("dense", range(8)), ("images", (*range(4), 20, 96)),  # the last two: dead filters
        pytest.param("dense", range(8, 520), marks=pytest.mark.nightly),
        pytest.param("images", range(4, 104), marks=pytest.mark.nightly),
    ],
)  # fmt: skip
def test_deep_networks_are_proven_to_be_what_rational_arithmetic_finds(kind, seeds) -> None:
    """20 layers, where float64's bound leaves thousands of signs open, and convolutions."""
    for seed in seeds:
        module, shape = deep(seed, kind)
        exact = cpwl.Network.from_torch(module, shape)
        rng = np.random.default_rng(seed)
        size = int(np.prod(shape))
        slice_ = cpwl.Slice(rng.normal(size=shape), rng.normal(size=(2, *shape)) / size**0.5)
        half = 0.3 if kind == "dense" else 0.05
        domain = slice_.box([-half, -half], [half, half])
        expected = cpwl.subdivide(exact, domain, progress=False)
        found = cpwl.subdivide(too_large(exact), domain, progress=False)
        assert expected.status.exact
        assert found.status.exact, (seed, found.status)
        assert found.num_cells == expected.num_cells
        ours, theirs = (np.unique(p.pieces(), axis=0) for p in (found, expected))
        np.testing.assert_array_equal(ours, theirs)
        ours, theirs = (np.sort(p.points, axis=0) for p in (found, expected))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def almost_in_one_point(exponent: int) -> tuple[Layer, ...]:
    """Three lines that miss one another by 2^-exponent, behind layers that pass them on."""
    rows = [[3.0, 1.0], [-1.0, 5.0], [2.0, 6.0]]
    kept = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    # all positive: they let pass
    passed = [layer(kept, [0, 0, 0], LINEAR) for _ in range(2)]
    bias = [-1.25, 0.75, -0.5]
    apart = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    return network(
        layer(rows, bias, LINEAR), *passed, layer(apart, [0, 0, 2.0**-exponent], leaky(0.25)),
        layer([[1, 1, 1]], [0], LINEAR),
    )  # fmt: skip


@pytest.mark.parametrize("exponent", [10, 40, 52, 60, 75, 90, 100, 140, 1000])
def test_a_near_miss_is_decided_down_to_the_bound_and_counted_below(exponent: int) -> None:
    layers = almost_in_one_point(exponent)
    found = cpwl.subdivide(too_large(capture(layers)), domain_of(BOX), progress=False)
    assert found.status.complete
    if found.status.exact:
        assert_agrees(found, layers, splitting.subdivide(layers, BOX))
    else:
        assert found.status.undecided > 0
    assert found.status.exact or exponent > 90
    assert not found.status.exact or exponent < 120


def proven(layers: tuple[Layer, ...]) -> tuple[Work, Refined]:
    """Return what a proof needs, of a network that is treated as too large."""
    return to_prove(too_large(capture(layers)), domain_of(BOX))


def to_prove(one: cpwl.Network, domain: cpwl.Domain) -> tuple[Work, Refined]:
    """Return what a proof needs."""
    arbiter = Arbiter(one, domain)
    work = Work(
        one, arbiter, domain.slice, 2**30, ThreadPoolExecutor(1), lambda share, cells: None,
        Evaluator(one, domain.slice),
    )  # fmt: skip
    return work, refine(work, arbiter.corners())


@pytest.mark.parametrize("units", [(RELU,), (leaky(0.1),), (Pool(2), RELU)], ids=str)
def test_whatever_is_changed_is_no_longer_proven(units) -> None:
    work, made = proven(random_network(3, (4, 4), units))
    assert prove(work, made).undecided == 0
    complex_ = made.complex
    rng = np.random.default_rng(0)
    varying = np.flatnonzero(made.bit_unit >= 0)
    for _ in range(20):  # a bit of a cell
        patterns = complex_.patterns.copy()
        cell, bit = rng.integers(len(patterns)), int(rng.choice(varying))
        patterns[cell, bit >> 6] ^= np.uint64(1) << np.uint64(bit & 63)
        wrong = replace(made, complex=replace(complex_, patterns=patterns))
        assert prove(work, wrong).undecided > 0, (cell, bit)
    for _ in range(10):  # two corners of a cell, exchanged
        corners = complex_.cell_corners.copy()
        cell = int(rng.integers(len(complex_.patterns)))
        k = int(complex_.cell_offsets[cell])
        corners[[k, k + 1]] = corners[[k + 1, k]]
        wrong = replace(made, complex=replace(complex_, cell_corners=corners))
        assert prove(work, wrong).undecided > 0


class Branches(nn.Module):
    """Two convolutions of one image, whose max-poolings take two and four stages side by side."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = (nn.Conv2d(1, 1, 3, padding=1) for _ in range(2))
        self.read = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two = torch.relu(self.first(x)), nn.functional.leaky_relu(self.second(x), 0.1)
        pooled = nn.functional.max_pool2d(one, 2), nn.functional.max_pool2d(two, 4)
        return self.read(torch.cat([part.flatten(1) for part in pooled], dim=1))


def test_max_poolings_side_by_side_are_proven_and_nothing_else() -> None:
    exact = cpwl.Network.from_torch(Branches().double(), (1, 4, 4))
    rng = np.random.default_rng(0)
    slice_ = cpwl.Slice(rng.normal(size=(1, 4, 4)), rng.normal(size=(2, 1, 4, 4)))
    domain = slice_.box([-0.5, -0.5], [0.5, 0.5])
    work, made = to_prove(too_large(exact), domain)
    proof, complex_ = prove(work, made), made.complex
    assert proof.undecided == 0
    assert proof.cells <= len(complex_.patterns)  # no vertex took a cell of its own
    expected = cpwl.subdivide(exact, domain, progress=False).pieces()
    found = pieces_of(complex_.patterns, made.bit_unit, made.base)
    np.testing.assert_array_equal(*(np.unique(x, axis=0) for x in (found, expected)))
    matches = np.concatenate([field.unit for field in work.evaluator.fields.values()])
    latents = torch.from_numpy(slice_.embed(rng.uniform(-0.5, 0.5, (3, 2))))
    lost = 0
    for _ in range(60):
        patterns = complex_.patterns.copy()
        cell, bit = rng.integers(len(patterns)), int(rng.choice(np.flatnonzero(made.bit_unit >= 0)))
        patterns[cell, bit >> 6] ^= np.uint64(1) << np.uint64(bit & 63)
        held = pieces_of(patterns[[cell] * 3], made.bit_unit, made.base)
        before, after = (
            exact.apply_pieces(latents, torch.from_numpy(p)) for p in (found[[cell] * 3], held)
        )
        if made.bit_unit[bit] in matches and torch.equal(before, after):
            lost += 1  # a match of candidates that do not win
            continue
        wrong = replace(made, complex=replace(complex_, patterns=patterns))
        assert prove(work, wrong).undecided > 0, (cell, bit)
    assert lost < 50


def test_constants_behind_dead_filters_are_known_to_be_equal() -> None:
    """The first layer sees nothing: all that follows is constant, and rounded."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 3, 3, padding=1), nn.LeakyReLU(0.1),
        nn.Conv2d(3, 2, 3, padding=1), nn.LeakyReLU(0.1), nn.MaxPool2d(2), nn.Flatten(),
    ).double()  # fmt: skip
    with torch.no_grad():
        module[0].bias[:] = torch.tensor([-4.0, -1.5])
    exact = cpwl.Network.from_torch(module, (1, 6, 6))
    rng = np.random.default_rng(0)
    slice_ = cpwl.Slice(rng.normal(size=(1, 6, 6)), rng.normal(size=(2, 1, 6, 6)))
    domain = slice_.box([-0.2, -0.2], [0.2, 0.2])
    expected, found = (
        cpwl.subdivide(one, domain, progress=False) for one in (exact, too_large(exact))
    )
    assert found.status.exact
    np.testing.assert_array_equal(*(np.unique(part.pieces(), axis=0) for part in (found, expected)))


def test_a_tie_of_units_that_are_held_for_a_vertex_is_none_of_the_cell() -> None:
    """Max-pooling over two ReLU: where both are held at zero, their match is level everywhere."""
    passed = [[1.0, 0.0], [0.0, 1.0]]
    work, made = proven(
        network(
            layer(passed, [0, 0], RELU), layer(passed, [0, 0], Pool(2)), layer([[1]], [0], LINEAR)
        )
    )
    at, complex_ = corners_of(made.complex), made.complex
    prover = proving.Prover(work, made, at)
    n = len(complex_.points)
    origin = int(np.flatnonzero((complex_.points == 0).all(axis=1))[0])
    units = work.network.num_units
    opened = []
    for row in np.flatnonzero(at.vertex == origin):
        if sorted(at.unit[row].tolist()) != [0, 1]:
            continue  # where the match is one of the two edges, the other ReLU is open
        best = proving._Found(
            np.full(n, units), complex_.points.copy(), np.zeros((n, 2)), np.full(n, np.inf)
        )
        prover.settle(np.array([row]), np.zeros(1, np.int64), best, meet=True)
        opened.append(int(best.open[origin]))
    assert len(opened) >= 3
    assert not any(opened)


def test_evaluation_is_within_its_bound_of_rational_arithmetic() -> None:
    """Affine functions of deep cells, against sums of fractions: the bound holds, and is small."""
    for seed in range(3):
        module, shape = deep(seed, "dense")
        one = cpwl.Network.from_torch(module, shape)
        slice_ = cpwl.box([-1, -1], [1, 1]).slice
        points = np.random.default_rng(seed).uniform(-1, 1, (4, 2))
        pieces = (one.preactivations(torch.from_numpy(points), 0) > 0).numpy()
        every = [
            (one.preactivations(torch.from_numpy(points), k) > 0).numpy()
            for k in range(one.num_stages)
        ]
        pieces = np.concatenate(every, axis=1).astype(np.int32)
        held = Evaluator(one, slice_).held(points, pieces, one.num_stages)
        for b, point in enumerate(points):
            x = [[_exact(v), fmpq(1), fmpq(0)] for v in point]  # value and both derivatives
            x[1][1:] = fmpq(0), fmpq(1)
            unit = 0
            for affine in list(module)[::2]:
                weight, bias = (p.detach().numpy() for p in (affine.weight, affine.bias))
                out = []
                for row, offset in zip(weight, bias, strict=True):
                    sums = [sum((_exact(w) * v[k] for w, v in zip(row, x, strict=True)), fmpq(0))
                            for k in range(3)]  # fmt: skip
                    sums[0] += _exact(offset)
                    for k in range(3):
                        hi, lo, error = (part[b, k, unit] for part in held[:3])
                        assert abs(_exact(hi) + _exact(lo) - sums[k]) <= _exact(error)
                        assert error <= 1e-12 * max(1.0, abs(hi))
                    out.append(sums if pieces[b, unit] else [fmpq(0)] * 3)
                    unit += 1
                x = out


def test_products_and_sums_are_within_their_bounds_and_exact_products_have_none() -> None:
    rng = np.random.default_rng(0)
    spread = np.ldexp(1.0, rng.choice([-1070, -960, -520, -480, -60, -1, 0, 1, 450], (3, 2, 3000)))
    hi, factor, offset = (torch.from_numpy(x) for x in rng.uniform(-1, 1, (3, 2, 3000)) * spread)
    hi[:, :99], factor[:, 64:160], offset[:, 128:1000] = 0.0, 0.0, 0.0
    zero = torch.zeros_like(hi)
    small = rng.uniform(-1, 1, hi.shape) * np.ldexp(1.0, rng.choice([-53, -450], hi.shape))
    for lo in (zero, hi * torch.from_numpy(small)):
        x = Expansion(hi, lo, zero)
        moved = scaled(x, factor, offset, 1)  # offsets for the first row alone
        left = added(moved, x, -1.0)
        for at in np.ndindex(*hi.shape):
            number = _exact(hi[at]) + _exact(lo[at])
            wanted = number * _exact(factor[at]) + (_exact(offset[at]) if at[0] == 0 else 0)
            for found, exact in ((moved, wanted), (left, wanted - number)):
                off = abs(_exact(found.hi[at]) + _exact(found.lo[at]) - exact)
                assert off <= _exact(found.error[at])
    product = scaled(Expansion(hi, zero, zero), factor, zero, 2)
    ordinary = (product.hi.abs() > 1e-250) | (hi == 0) | (factor == 0)
    assert 1000 < ordinary.sum() < ordinary.numel()
    assert not product.error[ordinary].any()
    assert not added(product, product, -1.0).error[ordinary].any()
    assert product.error[~ordinary].all()


def _exact(number: float | torch.Tensor) -> fmpq:
    p, q = float(number).as_integer_ratio()
    return fmpq(p, q)


def test_proofs_are_asked_for_and_refused() -> None:
    one = too_large(capture(random_network(0, (4,), (RELU,))))
    domain = domain_of(BOX)
    left = cpwl.subdivide(one, domain, proof="float64", progress=False).status
    assert (left.exact, left.refined) == (False, 0)
    full = cpwl.subdivide(one, domain, proof="full", progress=False).status
    assert (full.exact, full.undecided) == (True, 0)
    with pytest.raises(ValueError, match=r"Expected proof to be one of 'auto'.*got 'none'"):
        cpwl.subdivide(one, domain, proof="none", progress=False)  # type: ignore[arg-type]
    cube = cpwl.box([-1] * 3, [1] * 3)
    in_space = too_large(capture(network(layer([[1, 2, 3]], [0]), layer([[1]], [0], LINEAR))))
    with pytest.raises(ValueError, match=r"3 dimensions, more than 2: use proof='auto'"):
        cpwl.subdivide(in_space, cube, proof="full", progress=False)


def test_infinite_bounds_prove_nothing() -> None:
    work, made = proven(random_network(1, (4,), (RELU,)))
    evaluator = work.evaluator
    assert evaluator is not None

    class Lost(Evaluator):
        def __init__(self) -> None:
            vars(self).update(vars(evaluator))

        def held(self, points, pieces, stages):
            found = super().held(points, pieces, stages)
            return found._replace(error=found.error * np.inf)

    lost = prove(replace(work, evaluator=Lost()), made)
    assert lost.undecided >= len(made.complex.points) * work.network.num_units
    assert lost.decided == 0


@pytest.mark.parametrize("memory", [2**30, 2**16])
def test_strips_of_a_hexagon_are_proven(memory: int) -> None:
    angle = np.arange(6) * np.pi / 3 + 0.1
    hexagon = cpwl.polygon(2 * np.stack([np.cos(angle), np.sin(angle)], axis=1))
    one = too_large(cpwl.Network.from_torch(mlp(2, 24, 24, 24, 3), (2,)))
    found = cpwl.subdivide(one, hexagon, memory=memory, progress=False)
    assert found.status.exact
