"""Affine maps against automatic differentiation of the module itself."""

from __future__ import annotations

from dataclasses import replace

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
        ({"cells": [10**6]}, r"Expected cells below \d+, the number of cells, got entries up to"),
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
