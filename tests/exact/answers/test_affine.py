"""Affine maps against automatic differentiation of the module itself."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from support.samples import KINDS, generator, interior_points, mlp, partition_of, sample

import cpwl


def _maps(partition, cells=None, **options):
    parts = list(cpwl.affine_maps(partition, cells, **options))
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 2])
def test_maps_agree_with_jacrev_at_interior_points(kind, dim):
    module, partition = sample(kind, dim)
    s = interior_points(partition)
    z = torch.from_numpy(partition.domain.slice.embed(s))
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: module(x[None])[0].flatten()))(z)
    value = module(z).reshape(len(z), -1).detach().numpy()
    latent = jacobian.detach().numpy()
    basis = partition.domain.slice.basis
    A, b = _maps(partition)
    assert A.shape == (partition.num_cells, value.shape[1], dim)
    np.testing.assert_allclose(A, latent @ basis.T, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(np.einsum("cdp,cp->cd", A, s) + b, value, rtol=1e-12, atol=1e-12)
    A, b = _maps(partition, wrt="latent")
    np.testing.assert_allclose(A, latent, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(np.einsum("cde,ce->cd", A, z) + b, value, rtol=1e-12, atol=1e-12)


def test_columns_and_rows_of_the_jacobian_agree():
    # 2 outputs of 2 latents take columns, 1 output of 2 latents takes backward passes
    both = mlp(2, 9, 9, 2, seed=3)
    one = mlp(2, 9, 9, 1, seed=3)
    with torch.no_grad():
        for name, value in one.named_parameters():
            value.copy_(dict(both.named_parameters())[name][: len(value)])
    wide, narrow = partition_of(both), partition_of(one)
    assert wide.num_cells == narrow.num_cells
    for wrt in ("slice", "latent"):
        for x, y in zip(_maps(wide, wrt=wrt), _maps(narrow, wrt=wrt), strict=True):
            np.testing.assert_allclose(x[:, :1], y, rtol=1e-12, atol=1e-15)


def test_maps_of_dead_cells_are_exactly_zero():
    module = mlp(2, 4, 4, 3)
    with torch.no_grad():
        module[2].weight.fill_(-1.0)  # every unit of the second layer is off
        module[2].bias.fill_(-1.0)
    A, b = _maps(partition_of(module))
    assert not A.any()
    np.testing.assert_array_equal(b, np.tile(module[4].bias.detach().double(), (len(b), 1)))


@pytest.mark.parametrize("scale", [1e-60, 1e-150, 1e60])
def test_maps_of_tiny_and_huge_outputs_are_not_taken_for_zero(scale):
    module, usual = mlp(2, 9, 9, 3, seed=3).double(), _maps(partition_of(mlp(2, 9, 9, 3, seed=3)))
    with torch.no_grad():
        module[4].weight *= scale
        module[4].bias *= scale
    for found, expected in zip(_maps(partition_of(module)), usual, strict=True):
        np.testing.assert_allclose(found, scale * expected, rtol=1e-10, atol=1e-14 * scale)


def test_neighbours_agree_on_their_facet():
    _, partition = sample("skip")
    A, b = _maps(partition)
    inner = (partition.facet_cells >= 0).all(axis=1)
    left, right = partition.facet_cells[inner].T
    for end in partition.facet_points[inner].T:
        s = partition.points[end]
        values = [np.einsum("cdp,cp->cd", A[c], s) + b[c] for c in (left, right)]
        np.testing.assert_allclose(*values, rtol=0, atol=1e-12)


def test_chunks_and_cells_select_without_changing_anything():
    partition = generator()
    A, b = _maps(partition)
    chunks = list(cpwl.affine_maps(partition, chunk=7))
    assert {len(part) for part, _ in chunks[:-1]} == {7}
    # BLAS may round differently for another number of rows
    close = {"rtol": 1e-13, "atol": 1e-15}
    np.testing.assert_allclose(np.concatenate([part for part, _ in chunks]), A, **close)
    wanted = np.array([5, 3, 3, 0])
    mask = np.zeros(partition.num_cells, bool)
    mask[[1, 4]] = True
    for cells in (wanted, slice(2, 9, 2), mask):
        some, base = _maps(partition, cells)
        np.testing.assert_allclose(some, A[cells], **close)
        np.testing.assert_allclose(base, b[cells], **close)
    assert list(cpwl.affine_maps(partition, [])) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"wrt": "output"}, 'Expected wrt="slice" or wrt="latent", got \'output\'. The slice has'),
        ({"chunk": 0}, "Expected a chunk of at least one cell, got 0. Leave it out."),
        (
            {"cells": [3, 10**6]},
            r"Expected indices below \d+, .* from 3 to 1000000 in shape \(2,\)",
        ),
        ({"cells": [[0, 1]]}, r"Expected cells as a flat list .* got shape \(1, 2\)\. Flatten"),
        ({"cells": np.ones(7, bool)}, r"a mask of that length, got bool .* in shape \(7,\). Give"),
        ({"cells": [0.5]}, "Expected cells as indices, a mask or a slice, got dtype float64. Give"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        next(cpwl.affine_maps(generator(), **arguments))


def test_an_incomplete_partition_has_no_maps():
    whole = generator()
    short = replace(
        whole, status=whole.status._replace(complete=False, needed=12_345_678, stages=1)
    )
    message = (
        "Expected a complete partition, got the cells of the first stages only \\(1\\), because "
        "memory ran out. Give subdivide 12,345,678 bytes of `memory`, or a smaller domain; volumes"
    )
    for evaluate in (cpwl.spectrum, cpwl.regions, lambda p: next(cpwl.affine_maps(p))):
        with pytest.raises(cpwl.PartitionError, match=message):
            evaluate(short)
    np.testing.assert_array_equal(cpwl.volumes(short), cpwl.volumes(whole))
    broken = replace(whole, status=whole.status._replace(complete=False, broken=3))
    with pytest.raises(cpwl.PartitionError, match="got one with 3 cells left uncut, because their"):
        cpwl.local_scaling(broken)


class Lopsided(torch.nn.Module):
    """Layers with offsets of every kind, `far` times as large as the numbers that they move."""

    def __init__(self, far, rows):
        super().__init__()
        draw = np.random.default_rng(5)
        self.first = torch.nn.Linear(2, 4).double()
        self.second = torch.nn.Linear(6, 3).double()
        with torch.no_grad():
            scale = torch.tensor(rows, dtype=torch.float64)[:, None]
            self.first.weight.copy_(torch.from_numpy(draw.normal(size=(4, 2))) * scale)
            self.first.bias.copy_(torch.from_numpy(draw.normal(size=4)) * scale[:, 0] * far)
            self.second.weight.copy_(torch.from_numpy(draw.normal(size=(3, 6))))
            self.second.bias.copy_(torch.from_numpy(draw.normal(size=3)) * far)
        self.far = far
        self.low = torch.full((3,), -4 * far, dtype=torch.float64)

    def forward(self, x):
        h = torch.relu(self.first(x))
        h = torch.cat([h, h[:, :2] * 0 + self.far], dim=1)
        y = torch.nn.functional.hardtanh(self.second(h), -9 * self.far, 9 * self.far) - 3 * self.far
        return torch.maximum(y + self.far, self.low)


def _true_columns(module, s, basis):
    """Derivatives of `Lopsided` at a point, in rational arithmetic."""

    def layer(linear, values):
        weight = [[Fraction(float(x)) for x in row] for row in linear.weight.detach().numpy()]
        bias = [Fraction(float(x)) for x in linear.bias.detach().numpy()]
        sums = [
            [sum(w * v[i] for w, v in zip(row, values, strict=True)) for i in range(3)]
            for row in weight
        ]
        return [(v + b, *rest) for (v, *rest), b in zip(sums, bias, strict=True)]

    far = Fraction(module.far)
    x = [
        (
            sum(Fraction(a) * Fraction(c) for a, c in zip(s, basis[:, i], strict=True)),
            *map(Fraction, basis[:, i]),
        )
        for i in range(2)
    ]
    none = (Fraction(0), Fraction(0))
    h = [v if v[0] > 0 else (Fraction(0), *none) for v in layer(module.first, x)]
    y = layer(module.second, [*h, (far, *none), (far, *none)])
    y = [v if abs(v[0]) < 9 * far else (9 * far if v[0] > 0 else -9 * far, *none) for v in y]
    y = [(v - 2 * far, *rest) for v, *rest in y]
    y = [v if v[0] > -4 * far else (-4 * far, *none) for v in y]
    return np.array([[float(v[1]), float(v[2])] for v in y])


@pytest.mark.parametrize(
    ("far", "rows", "basis"),
    [
        (1.0, [1, 1, 1, 1], 1.0),
        (1e40, [1, 1, 1, 1], 1.0),
        (1e90, [1, 1e-40, 1, 1], 1.0),
        (1e40, [1e-40, 1, 1, 1], 1e-45),
        (1e-60, [1, 1, 1e-60, 1], 1e45),
        (1e30, [1, 1e40, 1e-40, 1], 1e-170),
    ],
)
def test_maps_keep_their_digits_beside_offsets_of_any_size(far, rows, basis):
    module = Lopsided(far, rows)
    network = cpwl.Network.from_torch(module, (2,))
    place = cpwl.Slice(np.zeros(2), basis * np.array([[1.0, 0.5], [-0.25, 1.0]]))
    reach = far / basis
    partition = cpwl.subdivide(network, place.box([-reach] * 2, [reach] * 2), progress=False)
    A, _ = _maps(partition)
    for s, got in zip(interior_points(partition), A, strict=True):
        want = _true_columns(module, s.tolist(), place.basis)
        size = np.abs(want).max(axis=0)
        np.testing.assert_allclose(got, want, rtol=1e-14, atol=1e-15 * size.max())
        np.testing.assert_array_equal(got[~want.any(axis=1)], 0.0)
