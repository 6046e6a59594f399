"""An exact field minus an estimated one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.samples import mlp

import approx
import cpwl


@pytest.mark.usefixtures("one_thread")
def test_an_exact_field_and_an_estimated_one_have_one_shape_and_differ_by_rounding() -> None:
    module = mlp(5, 12, 12, 7, seed=3).double()
    anchors = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    estimated = approx.field(
        module, anchors, 24, method="exact", neighbourhood=None, progress=False
    )
    place = cpwl.Slice.through(*anchors)
    assert place.anchors is not None
    low, high = place.anchors.min(axis=0) - 3, place.anchors.max(axis=0) + 3
    network = cpwl.Network.from_torch(module, (5,))
    partition = cpwl.subdivide(network, place.box(low, high), progress=False)
    exact = cpwl.to_xarray(partition, estimated, wrt="latent")
    assert exact.psi.dims == estimated.psi.dims
    assert exact.sizes["u"] == 24
    difference = exact - estimated
    assert dict(difference.psi.sizes) == dict(estimated.psi.sizes)
    assert float(abs(difference.psi).max()) < 1e-11
    assert float(abs(difference.nu).max()) < 1e-11
    assert float(abs(difference["rank"]).max()) == 0
    assert len(np.unique(exact.cell)) > 10
    latents = approx.latents_at(exact, [0, 100])
    torch.testing.assert_close(latents, approx.latents_at(estimated, [0, 100]))
