"""Proofs of networks with convolutions, whose exact values are held by remainders.

The networks are small: what is proven about them by remainders has to be what integers prove, which
is another code, down to the number of ties.
"""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from support.damage import failure, flipped
from torch import nn

import cpwl
from cpwl import CertificateError
from cpwl.network.program import read_matrices
from cpwl.proof.exact_network import (
    Affine,
    Convolution,
    ExactNetwork,
    Part,
    find_fault,
    gathered,
)
from cpwl.proof.large_steps import read_large
from cpwl.proof.reading import read_exactly
from cpwl.proof.residues import Residues, lowest_shift

pytestmark = pytest.mark.usefixtures("one_thread")


class Residual(nn.Module):
    """Every kind of step: what moves, scales, skips, compares and convolves."""

    def __init__(self) -> None:
        super().__init__()
        self.grow = nn.ConvTranspose2d(1, 4, 4, 2, 1, groups=1)
        self.norm = nn.BatchNorm2d(4)
        self.wide = nn.Conv2d(4, 4, 3, 1, 2, dilation=2, groups=2)
        self.last = nn.Conv2d(4, 2, (3, 2), (2, 1), bias=False)
        self.end = nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.norm(self.grow(nn.functional.pad(x, (0, 0, 1, 0)))))
        h = nn.functional.hardtanh(h + self.wide(h))
        h = nn.functional.leaky_relu(self.last(nn.functional.interpolate(h, scale_factor=2)), 0.1)
        h = torch.maximum(nn.functional.max_pool2d(h, 3), torch.tensor(0.25)).flatten(1)
        return torch.relu(self.end(h[:, :10]))


def residual() -> nn.Module:
    torch.manual_seed(5)
    module = Residual().double()
    with torch.no_grad():
        for value in (module.norm.running_mean, module.norm.weight, module.norm.bias):
            assert value is not None
            value.add_(torch.randn(4, dtype=torch.float64) / 4)
    return module.eval()


def pooled(seed: int = 0) -> nn.Module:
    """Convolutions in float32 without biases, so that many units are zero at once; a pooling."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for k, (fan_in, fan_out) in enumerate(((1, 3), (3, 3), (3, 2))):
        layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=k == 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten())


def parted(
    module: nn.Module, shape: tuple[int, ...], half: float, dim: int = 2
) -> tuple[cpwl.Partition, cpwl.Partition]:
    """Return a partition with a network that is held whole, and with one that is too large."""
    network = cpwl.Network.from_torch(module, shape)
    assert network.matrices.complete
    rng = np.random.default_rng(0)
    slice_ = cpwl.Slice(rng.normal(size=shape), rng.normal(size=(dim, *shape)))
    partition = cpwl.subdivide(network, slice_.box([-half] * dim, [half] * dim), progress=False)
    assert partition.status.exact
    large = replace(network, matrices=read_matrices(network.program, most_entries=-1))
    return partition, replace(partition, network=large)


CASES = {
    "residual": (residual, (1, 3, 4), 0.1, 2),
    "pooled": (pooled, (1, 6, 6), 0.1, 2),
    "interval": (pooled, (1, 6, 6), 1.0, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_remainders_prove_what_integers_prove(name, tmp_path) -> None:
    make, shape, half, dim = CASES[name]
    exact, large = parted(make(), shape, half, dim)
    assert exact.num_cells > 20
    expected = cpwl.certify(exact, progress=False)
    found = cpwl.certify(large, progress=False)
    for field in ("cells", "points", "units", "signs", "ties", "area", "rounding", "share"):
        assert getattr(found, field) == getattr(expected, field), field
    assert found.ties > 2 * found.points
    found.save(tmp_path / "proof.json")
    again = cpwl.verify(tmp_path / "proof.json", large.network, progress=False)
    assert again == replace(found, rounding=None, seconds=again.seconds)
    assert b"weights" in (tmp_path / "proof.json").read_bytes()


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(20))
def test_remainders_prove_twenty_layers(seed) -> None:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()]
    for _ in range(19):
        convolution = nn.Conv2d(2, 2, 3, padding=1)
        nn.init.normal_(convolution.weight, 0, (2 / 18) ** 0.5)
        layers += [convolution, nn.ReLU()]
    exact, large = parted(nn.Sequential(*layers), (1, 6, 6), 0.03)
    expected, found = (cpwl.certify(p, progress=False) for p in (exact, large))
    assert (found.cells, found.ties, found.area) == (
        expected.cells, expected.ties, expected.area,
    )  # fmt: skip


def test_every_flipped_bit_fails_in_its_cell() -> None:
    _, large = parted(pooled(), (1, 6, 6), 0.07)
    rng = np.random.default_rng(1)
    bits = np.flatnonzero(large.bit_unit >= 0)
    bits = bits[large.bit_unit[bits] < 36 * 8]  # a match without effect may be on either piece
    for cell, bit in zip(rng.integers(large.num_cells, size=6), rng.choice(bits, 6), strict=True):
        assert failure(flipped(large, int(cell), int(bit))).cell == cell


def test_a_moved_vertex_and_a_dead_unit_on_the_upper_piece_fail() -> None:
    _, large = parted(pooled(), (1, 6, 6), 0.07)
    points = large.points.copy()
    points[7, 0] += 1e-9
    assert "vertex 7 within" in str(failure(replace(large, points=points)))
    # a network of 0 x: every unit of its second layer is 0 on all of its cell
    still = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1, bias=False), nn.ReLU())
    with torch.no_grad():
        still[2].weight.zero_()  # type: ignore[operator]
    _, zero = parted(still, (1, 2, 2), 1.0)
    cpwl.certify(zero, progress=False)
    base = zero.unit_base.copy()
    base[5] += 1
    assert "below a breakpoint that it equals on all of the cell" in str(
        failure(replace(zero, unit_base=base))
    )


def test_a_proof_may_stop_and_says_how_far_it_went(tmp_path) -> None:
    _, large = parted(pooled(), (1, 6, 6), 0.07)
    path = tmp_path / "proof.json"
    part = cpwl.certify(large, seconds=0.0, progress=False)
    assert part.cells == 1
    assert 0 < part.share < 1
    sizes = cpwl.volumes(large) / float(part.area)
    assert np.abs(sizes - part.share).min() < 1e-12
    assert " % of the domain of area " in str(part)
    assert "nothing is proven of the rest; " in str(part)
    part.save(path)
    again = cpwl.verify(path, large.network, progress=False)
    assert again == replace(part, rounding=None, seconds=again.seconds)
    content = json.loads(path.read_text())
    del content["claims"]["partial"]  # it would be a proof of the whole domain
    path.write_text(json.dumps(content))
    with pytest.raises(CertificateError, match="expected cells that cover the domain"):
        cpwl.verify(path, large.network, progress=False)
    assert cpwl.certify(large, seconds=600, progress=False).share == 1.0


def test_changed_weights_and_sizes_in_a_file_are_refused(tmp_path) -> None:
    _, large = parted(pooled(), (1, 6, 6), 0.07)
    path = tmp_path / "proof.json"
    cpwl.certify(large, progress=False).save(path)
    written = path.read_text()

    def changed(**values) -> None:
        content = json.loads(written)
        content["network"]["steps"][0]["parts"][0].update(values)
        path.write_text(json.dumps(content))

    first = json.loads(written)["network"]["steps"][0]["parts"][0]
    assert list(first["weights"]) == ["<f4"]
    for values, text in (
        ({"weights": {"<f4": first["weights"]["<f4"][:-16]}}, "weights of a convolution"),
        ({"weights": {"<f2": ""}}, "numbers of kind '<f2'"),
        ({"stride": [1, 0]}, "a convolution whose axes do not fit"),
        ({"padding": [1]}, "a convolution whose axes do not fit"),
        ({"out": [3, 6, 7]}, "a convolution of 126 x 36"),
        ({"groups": 0}, "a convolution without channels"),
    ):
        changed(**values)
        with pytest.raises(ValueError, match=text):
            cpwl.verify(path, progress=False)
    changed(weights={"<f4": "AAAAAAAA" + first["weights"]["<f4"][8:]})
    with pytest.raises(CertificateError):
        cpwl.verify(path, progress=False)
    with pytest.raises(CertificateError, match="a proof about this network"):
        cpwl.verify(path, large.network, progress=False)


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 3), groups=2),
        nn.ConvTranspose2d(4, 6, (4, 3), (3, 2), (1, 2), (1, 0), groups=2, dilation=(2, 1)),
        nn.Conv1d(4, 2, 3, padding=1),
        nn.Conv3d(4, 2, 2, 2),
    ],
    ids=["groups", "transposed", "one axis", "three axes"],
)
def test_convolutions_are_read_as_torch_runs_them(module) -> None:
    torch.manual_seed(0)
    axes = module.weight.ndim - 2
    shape = (4, *(7, 8, 6)[:axes])
    with torch.no_grad():
        module.weight.copy_(torch.randint(-9, 10, module.weight.shape))
    program = cpwl.Network.from_torch(nn.Sequential(module, nn.ReLU()), shape).program
    step = next(step for step in program.steps if "convolution" in step.target)
    found = read_large(program, step)
    assert not isinstance(found, str)
    ((_, made),), offset = found
    x = torch.randint(-9, 10, shape).double()
    padded = np.append(x.numpy().ravel(), 0.0)
    blocks = made.weights.reshape(made.groups, made.out[0] // made.groups, -1)  # type: ignore[union-attr]
    ours = (blocks @ padded[gathered(made)]).ravel()  # type: ignore[arg-type]
    with torch.no_grad():
        theirs = module.double()(x[None]).numpy().ravel()
    np.testing.assert_allclose(ours + offset, theirs, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(ours, np.rint(theirs - offset))


@pytest.mark.parametrize("small", [1e-300, 1e-17, 4e-10])
def test_entries_that_are_small_beside_others_are_read(small: float) -> None:
    dense, norm = nn.Linear(8, 8).double(), nn.BatchNorm1d(8).double()
    with torch.no_grad():
        dense.weight.copy_(torch.eye(8))
        dense.weight[2, 0], dense.weight[6, 0] = small, -small
        dense.bias.fill_(1e17)
        norm.weight.copy_(torch.tensor([small, -small] * 4))
        norm.bias.fill_(1e17)
    for module in (dense, norm):
        network = cpwl.Network.from_torch(nn.Sequential(module, nn.ReLU()).eval(), (8,))
        step = next(step for step in network.program.steps if step.kind == "affine")
        found = read_large(network.program, step)
        assert not isinstance(found, str)
        ((_, matrix),) = found[0]
        assert not isinstance(matrix, Convolution)
        whole = np.zeros(matrix.shape)
        whole[np.repeat(np.arange(8), matrix.counts), matrix.columns] = matrix.values
        scale = torch.rsqrt(torch.tensor(1 + norm.eps, dtype=torch.float64))
        expected = dense.weight if module is dense else torch.diag(norm.weight * scale)
        np.testing.assert_allclose(whole, expected.detach().numpy(), rtol=1e-15, atol=0)


@pytest.mark.parametrize("far", ["dilation", "stride", "padding"])
def test_convolutions_that_reach_too_far_are_refused(far: str) -> None:
    sizes = {"stride": (1,), "padding": (0,), "dilation": (1,)} | {far: (2**61,)}
    made = Convolution(
        size=(1, 9), out=(1, 1), groups=1, transposed=False, weights=np.ones((1, 1, 9)), **sizes
    )
    part = Part(0, made)
    network = ExactNetwork(9, 0, (Affine((part,), np.zeros(1)),), ("conv",), "")
    assert "reaches too far" in find_fault(network)


def test_times_that_are_none_are_refused() -> None:
    partition = parted(pooled(), (1, 4, 4), 1.0)[1]
    for seconds in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="Expected seconds of 0 or more, got"):
            cpwl.certify(partition, seconds=seconds, progress=False)


def test_remainders_stand_for_their_integers() -> None:
    rng = np.random.default_rng(0)
    residues = Residues(600, 900)
    numbers = [int(rng.integers(-(2**62), 2**62)) << int(rng.integers(830)) for _ in range(50)]
    numbers += [0, 1, -1, 2**900, -(2**900), 2**900 - 2**800, 3 - 2**52]
    rows = np.array([[x % p for x in numbers] for p in residues.primes], np.float64)
    residues.reduced(rows)
    assert residues.integers(rows) == numbers
    assert max(residues.primes) ** 2 / 4 * 600 < 2**52
    about, off = residues.approximate(rows, 880)
    for x, y, e in zip(numbers, about.tolist(), off.tolist(), strict=True):
        assert abs(Fraction(x, 2**880) - Fraction(y)) <= Fraction(e)
        assert (e == 0) == (x == 0)
        assert e <= 1e-13 * abs(y) + 2.0**-40
    values = np.array([0.1, -3e-300, 2.0**70, 0.0, 5e-324])
    shift = lowest_shift(values)
    assert shift == 1074
    wide = Residues(1, 1200)
    back = wide.integers(wide.of(values, shift))
    assert [Fraction(int(x), 2**shift) for x in back] == [Fraction(v) for v in values.tolist()]


def test_what_needs_all_rows_at_hand_still_refuses_large_networks() -> None:
    _, large = parted(pooled(), (1, 6, 6), 0.07)
    assert large.network is not None
    with pytest.raises(ValueError, match="at most 1,048,576 coefficients"):
        read_exactly(large.network)
