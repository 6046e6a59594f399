"""Descriptors against numpy's SVD, high precision and closed forms."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from support.grids import grid
from support.samples import KINDS, generator, linear, mlp, partition_of, sample

import cpwl
from cpwl.descriptors.small_matrices import orthonormal_columns
from cpwl.descriptors.spectra import rank, singular_values, spectrum


def _matrices(partition, wrt="slice"):
    return np.concatenate([A for A, _ in cpwl.affine_maps(partition, wrt=wrt)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("wrt", ["slice", "latent"])
def test_psi_nu_and_condition_agree_with_numpy(kind, dim, wrt):
    _, partition = sample(kind, dim)
    found = spectrum(partition, wrt=wrt)
    sigma = np.linalg.svd(_matrices(partition, wrt), compute_uv=False)
    error = np.abs(found.singular_values - sigma).max(axis=1) / sigma[:, 0]
    assert error.max() < 1e-14
    keep = np.arange(sigma.shape[1]) < found.rank[:, None]
    psi = np.log(np.where(keep, sigma, 1.0)).sum(axis=1)
    np.testing.assert_allclose(cpwl.local_scaling(found), psi, rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(cpwl.local_scaling(partition, wrt=wrt), cpwl.local_scaling(found))
    alpha = sigma / sigma.sum(axis=1, keepdims=True) + 1e-30
    nu = np.exp(-(alpha * np.log(alpha)).sum(axis=1))
    np.testing.assert_allclose(cpwl.local_rank(found), nu, rtol=1e-12)
    full = found.rank == sigma.shape[1]
    condition = cpwl.condition_number(found)
    np.testing.assert_allclose(condition[full], (sigma[:, 0] / sigma[:, -1])[full], rtol=1e-9)
    assert np.isinf(condition[~full]).all()
    np.testing.assert_array_equal(found.dropped, sigma.shape[1] - found.rank)


@pytest.mark.parametrize(("first", "second"), [(3.0, 2.0), (1e5, 1e-5), (1.0, 1.0), (2.0, 0.0)])
def test_prescribed_singular_values_of_a_linear_network(first, second):
    rng = np.random.default_rng(3)
    left = np.linalg.qr(rng.standard_normal((5, 2)))[0]
    right = np.linalg.qr(rng.standard_normal((2, 2)))[0]
    partition = partition_of(linear(left * [first, second] @ right))
    assert partition.num_cells == 2
    psi = math.log(first) + (math.log(second) if second else 0.0)
    np.testing.assert_allclose(cpwl.local_scaling(partition), psi, atol=1e-5 if second else 1e-12)
    share = np.array([first, second]) / (first + second) + 1e-30
    nu = math.exp(-(share * np.log(share)).sum())
    np.testing.assert_allclose(cpwl.local_rank(partition), nu, rtol=1e-12)
    assert set(rank(partition)) == {2 if second else 1}
    expected = 4 * first * second
    assert cpwl.image_volumes(partition).sum() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_two_columns_are_right_to_rounding_at_every_condition(seed):
    rng = np.random.default_rng(seed)
    columns = rng.standard_normal((2, 60, 4)) * 10.0 ** rng.integers(-150, 150, (1, 60, 1))
    # from independent to parallel to within the last bit, and exactly parallel
    share = 10.0 ** -rng.integers(0, 18, 60)
    share[:5] = 0.0
    columns[1] = columns[0] * rng.integers(-3, 4, (60, 1)) + columns[1] * share[:, None]
    frame, triangle = orthonormal_columns(columns)
    found = singular_values(columns[0], columns)
    with mpmath.workdps(60):
        for i in range(60):
            a, b = ([mpmath.mpf(float(x)) for x in column[i]] for column in columns)
            aa, ab, bb = (mpmath.fdot(x, y) for x, y in ((a, a), (a, b), (b, b)))
            middle, half = (aa + bb) / 2, mpmath.sqrt(((aa - bb) / 2) ** 2 + ab**2)
            sigma = mpmath.sqrt(middle + half), mpmath.sqrt(max(middle - half, 0))
            for value, exact in zip(found[i], sigma, strict=True):
                assert abs(mpmath.mpf(float(value)) - exact) <= 8 * 2**-52 * sigma[0]
    live = triangle[:, 1, 1] > 1e-10 * triangle[:, 0, 0]
    assert np.abs((frame[0] * frame[1]).sum(axis=1)[live]).max() < 1e-15 * 8


@pytest.mark.parametrize("width", [16, 256])
def test_maps_through_one_live_unit_have_rank_one(width):
    # every unit of the middle layer but one is off on the whole domain
    module = mlp(2, width, width, width, 3)
    with torch.no_grad():
        module[2].bias.fill_(-100.0)
        module[2].bias[3] = 100.0
    partition = partition_of(module, -0.05, 0.05)
    found = spectrum(partition)
    assert found.tolerance == max(width, 3) * np.finfo(float).eps
    assert set(found.rank) == {1}
    assert set(found.dropped) == {1}
    A = _matrices(partition)
    np.testing.assert_allclose(cpwl.local_scaling(found), np.log(np.linalg.norm(A, axis=(1, 2))))
    np.testing.assert_allclose(cpwl.local_rank(found), 1.0)
    assert np.isinf(cpwl.condition_number(found)).all()
    assert not cpwl.image_volumes(partition, found).any()


def test_the_tolerance_is_an_argument_and_recorded():
    partition = partition_of(linear(np.array([[1.0, 0.0], [0.0, 1e-6], [0.0, 0.0]])))
    assert set(spectrum(partition).rank) == {2}
    found = spectrum(partition, tolerance=1e-4)
    assert found.tolerance == 1e-4
    assert set(found.rank) == {1}
    np.testing.assert_allclose(cpwl.local_scaling(partition, tolerance=1e-4), 0.0, atol=1e-9)


def test_a_constant_map_has_psi_zero_nu_zero_and_no_image_volume():
    module = mlp(2, 3, 3)
    with torch.no_grad():
        module[2].weight.zero_()
    partition = partition_of(module)
    found = spectrum(partition)
    assert set(found.rank) == {0}
    assert not cpwl.local_scaling(found).any()
    assert not cpwl.local_rank(found).any()
    assert np.isinf(cpwl.condition_number(found)).all()


def test_volumes_of_tiny_cells_far_from_the_origin():
    module = mlp(2, 4, 1)
    with torch.no_grad():  # four knots 1e-6 apart around (1e6, 1e6)
        module[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]))
        module[0].bias.zero_()
    module = module.double()
    with torch.no_grad():
        far = [1e6, 1e6, 1e6 + 2**-20, 1e6 + 2**-20]
        module[0].bias.copy_(-torch.tensor(far, dtype=torch.float64))
    network = cpwl.Network.from_torch(module, (2,))
    partition = cpwl.subdivide(network, cpwl.box([1e6 - 1] * 2, [1e6 + 1] * 2), progress=False)
    assert partition.num_cells == 9
    assert cpwl.volumes(partition).min() == 2.0**-40
    assert cpwl.volumes(partition).sum() == pytest.approx(4.0, rel=1e-14)


@pytest.mark.parametrize("dim", [1, 2])
def test_volumes_sum_to_the_domain(dim):
    _, partition = sample("skip", dim)
    volume = cpwl.volumes(partition)
    assert (volume > 0).all()
    assert volume.sum() == pytest.approx(partition.domain.volume, rel=1e-13)


def test_image_volumes_are_areas_of_the_images():
    partition = generator()
    offsets, corners = partition.cell_offsets, partition.cell_corners
    image = partition.network(partition.points).numpy()
    found = cpwl.image_volumes(partition)
    for cell in range(partition.num_cells):
        loop = image[corners[offsets[cell] : offsets[cell + 1]]]
        area = sum(np.cross(a - loop[0], b - loop[0]) for a, b in pairwise(loop[1:]))
        assert found[cell] == pytest.approx(np.linalg.norm(area) / 2, rel=1e-9, abs=1e-18)


def test_local_complexity_counts_cells_of_the_cross_polytope():
    module = mlp(2, 4, 2)
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]]))
        module[0].bias.copy_(torch.tensor([0.0, 0.0, 0.0, -0.05]))
    network = cpwl.Network.from_torch(module, (2,))
    # three knots through the origin cut it in 6; x = 0.05 is met from radius 0.05 on and cuts
    # the two cells on the right into four
    assert cpwl.local_complexity(network, [0.0, 0.0], 0.049, np.eye(2)) == 6
    assert cpwl.local_complexity(network, [0.0, 0.0], 0.051, np.eye(2)) == 8
    assert cpwl.local_complexity(network, [0.0, 0.0], 0.01, [[1.0, 0.0]]) == 2
    assert cpwl.local_complexity(network, [3.0, 1.0], 0.01, np.eye(2)) == 1


def test_volumes_refuse_a_spectrum_of_other_maps():
    partition = generator()
    message = r'Expected spectrum\(partition\), one row for each of its \d+ cells with wrt="slice"'
    with pytest.raises(ValueError, match=message):
        cpwl.image_volumes(partition, spectrum(partition, wrt="latent"))
    with pytest.raises(ValueError, match=message):
        cpwl.image_volumes(partition, spectrum(partition, [0, 1]))


@pytest.mark.parametrize("dim", [3, 4, 6])
@pytest.mark.parametrize("outputs", [2, 7])
def test_descriptors_in_space_agree_with_numpy(dim, outputs):
    partition = grid(*((0.1, 0.5), (-0.3,), (0.2,), (), (), ())[:dim], outputs=outputs)
    sigma = np.linalg.svd(_matrices(partition), compute_uv=False)
    np.testing.assert_allclose(cpwl.local_scaling(partition), np.log(sigma).sum(axis=1), rtol=1e-12)
    share = sigma / sigma.sum(axis=1, keepdims=True)
    nu = np.exp(-(share * np.log(share)).sum(axis=1))
    np.testing.assert_allclose(cpwl.local_rank(partition), nu, rtol=1e-12)
    condition = sigma[:, 0] / sigma[:, -1]
    np.testing.assert_allclose(cpwl.condition_number(partition), condition, rtol=1e-12)
    size = cpwl.volumes(partition) * sigma.prod(axis=1) if outputs > dim else 0
    np.testing.assert_allclose(cpwl.image_volumes(partition), size, rtol=1e-12)


def test_local_complexity_needs_all_cells(monkeypatch):
    partition = grid((0.1,), (0.2,), ())
    status = partition.status._replace(complete=False, needed=10**9, stages=0)
    monkeypatch.setattr(
        "cpwl.descriptors.complexity.subdivide",
        lambda *_, **__: dataclasses.replace(partition, status=status),
    )
    with pytest.raises(cpwl.PartitionError, match="Give subdivide 1,000,000,000 bytes of `memory`"):
        cpwl.local_complexity(partition.network, np.zeros(3), 0.1, np.eye(3))
