"""Descriptors at pixels, against the network's own derivatives there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.grids import grid
from support.samples import generator, sample

import cpwl

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("dim", "dims"), [(1, ("u",)), (2, ("v", "u"))])
def test_pixels_have_the_descriptors_of_the_module_there(dim, dims) -> None:
    module, partition = sample("conv", dim)
    maps = cpwl.to_xarray(partition, 6, ["psi", "rank"])
    assert maps.psi.dims == dims
    place = partition.domain.slice
    basis = torch.from_numpy(place.basis.reshape(dim, -1).copy())
    s = maps.to_dataframe()[["psi", "rank"]].reset_index()
    for row in s.itertuples():
        z = place.embed([[getattr(row, axis) for axis in dims[::-1]]])
        jacobian = torch.func.jacrev(module)(torch.from_numpy(z)).detach()
        sigma = torch.linalg.svdvals(jacobian.reshape(-1, basis.shape[1]) @ basis.T)
        assert row.psi == pytest.approx(float(sigma.log().sum()), abs=1e-9)
        assert row.rank == dim
    latents = maps.origin.values + np.array([[1.0] * dim]) @ maps.basis.values
    np.testing.assert_allclose(latents, place.embed([[1.0] * dim]).reshape(1, -1))


def test_pixels_are_square_in_any_dimension_and_empty_outside() -> None:
    maps = cpwl.to_xarray(grid((0.1,), (), (0.7,)), (2, 3, 4), {"mine": [1.0, 2.0, 3.0, 4.0]})
    assert dict(maps.mine.sizes) == {"w": 4, "v": 3, "u": 2}
    network = generator().network
    assert network is not None
    triangle = cpwl.subdivide(network, cpwl.polygon([[0, 0], [2, 0], [0, 1]]), progress=False)
    maps = cpwl.to_xarray(triangle, 8)
    assert dict(maps.psi.sizes) == {"v": 4, "u": 8}
    outside = maps.u + 2 * maps.v > 2
    np.testing.assert_array_equal(maps.psi.isnull(), outside.transpose("v", "u"))
    np.testing.assert_array_equal(maps.cell < 0, outside.transpose("v", "u"))


def test_pixels_of_another_dataset_are_found_on_a_slice_of_other_axes() -> None:
    _, partition = sample("conv")
    place, network = partition.domain.slice, partition.network
    assert network is not None
    maps = cpwl.to_xarray(partition, 5, ["psi"], wrt="latent")
    (a, b), (c, d) = place.embed([[1, 0], [0, 1]]), place.embed([[0, 0], [1, 1]])
    other = cpwl.Slice.through(c, a, b)
    corners = other.project(place.embed([[-2, -2], [2, -2], [2, 2], [-2, 2]]))
    turned = cpwl.subdivide(network, other.polygon(corners), progress=False)
    again = cpwl.to_xarray(turned, maps, ["psi"], wrt="latent")
    np.testing.assert_array_equal(again.u, maps.u)
    assert float(abs(again - maps).psi.max()) < 1e-12
    assert not np.allclose(d, c)


def test_refusals() -> None:
    _, partition = sample("conv")
    for wrong in (0, 2.5, (4,), (4, 0), "64", True, [[4, 4]], float("nan")):
        with pytest.raises(ValueError, match="Expected a number of pixels of at least 1, or 2 of"):
            cpwl.to_xarray(partition, wrong)
    assert cpwl.to_xarray(partition, np.array([3, 2])).psi.shape == (2, 3)
    maps = cpwl.to_xarray(partition, 3)
    with pytest.raises(ValueError, match="got one without origin"):
        cpwl.to_xarray(partition, maps.drop_vars("origin"))
    with pytest.raises(ValueError, match="got one on a plane"):
        cpwl.to_xarray(partition, maps.assign(origin=maps.origin + 1))
    with pytest.raises(ValueError, match=r"basis of shape \(2, 12\), got \(2, 2\)"):
        cpwl.to_xarray(partition, cpwl.to_xarray(generator(), 3))
    with pytest.raises(ValueError, match='Expected wrt="slice" or wrt="latent"'):
        cpwl.to_xarray(partition, 3, wrt="pixels")
