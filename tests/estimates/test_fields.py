"""field() and along(): geometry of the plane and the path, the rows behind them, bad input."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import decoders
from support.tables import Calls
from torch import Tensor, nn

import approx
from approx import along, describe, field, latents_at

xr = pytest.importorskip("xarray")

OPTIONS: dict[str, Any] = {"generator": 2, "progress": False, "neighbourhood": (2, 0.05), "k": 6}


def three(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return decoders.latents(shape, 3, seed)


@pytest.mark.parametrize("name", ["relu_mlp", "relu_conv", "silu_conv"])
def test_every_pixel_is_the_row_of_its_latent(name: str) -> None:
    module, shape = decoders.DECODERS[name]()
    dataset = field(module, three(shape), (6, 5), **OPTIONS)
    assert dataset.psi.dims == ("v", "u")
    assert dataset.psi.shape == (5, 6)
    z = latents_at(dataset, np.arange(30))
    assert z.shape == (30, *shape)
    table = describe(module, z, **OPTIONS)
    for name_, column in table.columns().items():
        if name_ != "products":
            found = dataset[name_].values.ravel()
            np.testing.assert_allclose(found, column, rtol=1e-4, atol=2e-4, err_msg=name_)
    assert (dataset.attrs["method"], dataset.attrs["used"]) == ("auto", "exact")
    assert dataset.attrs["complete"] == 1


def test_coordinates_are_lengths_and_anchors_lie_where_they_say() -> None:
    module, shape = decoders.relu_conv()
    anchors = three(shape)
    dataset = field(module, anchors, 12, margin=0.5, **OPTIONS)
    basis, origin = dataset.basis.values, dataset.origin.values
    np.testing.assert_allclose(basis @ basis.T, np.eye(2), atol=1e-12)
    at = np.stack([dataset.anchor_u, dataset.anchor_v], axis=1)
    np.testing.assert_allclose(origin + at @ basis, anchors.flatten(1), atol=1e-6)
    assert at[0] == pytest.approx([0, 0])
    assert at[1, 0] > 0
    assert at[1, 1] == pytest.approx(0, abs=1e-12)
    assert at[2, 1] > 0
    # the grid covers the anchors with the margin, in square pixels, and no more
    extent = np.ptp(at, axis=0)
    room = 0.5 * extent.max()
    for axis, x in enumerate((dataset.u.values, dataset.v.values)):
        step = x[1] - x[0]
        assert x[0] - step / 2 == pytest.approx(at[:, axis].min() - room)
        assert x[-1] + step / 2 == pytest.approx(at[:, axis].max() + room)
    assert max(dataset.sizes["u"], dataset.sizes["v"]) == 12
    steps = [float(x[1] - x[0]) for x in (dataset.u.values, dataset.v.values)]
    assert steps[0] == pytest.approx(steps[1], rel=0.1)
    # distances in the plane are distances of latents
    one, other = latents_at(dataset, [0, 12 * 3 + 5]).double()
    there = np.hypot(dataset.u[5] - dataset.u[0], dataset.v[3] - dataset.v[0])
    if dataset.sizes["u"] == 12:
        assert torch.linalg.vector_norm(one - other).item() == pytest.approx(float(there), rel=1e-5)


def test_a_map_of_known_values() -> None:
    """psi of z -> (z, |z|^2 / 2) is log sqrt(1 + |z|^2), whatever the plane."""

    class Bowl(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.cat([z, z.square().sum(1, keepdim=True) / 2], 1)

    anchors = torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 1]], dtype=torch.float64)
    dataset = field(
        Bowl(), anchors, 8, method="exact", neighbourhood=None, generator=0, progress=False
    )
    z = latents_at(dataset, np.arange(dataset.psi.size))
    assert z.dtype == torch.float64
    expected = (1 + z.square().sum(1)).log() / 2
    np.testing.assert_allclose(dataset.psi.values.ravel(), expected, atol=1e-12)
    assert "delta" not in dataset


def test_a_path() -> None:
    module, shape = decoders.silu_conv()
    ends = decoders.latents(shape, 2)
    path = torch.stack([ends[0] + (ends[1] - ends[0]) * t for t in (0.0, 0.1, 0.4, 1.0)])
    dataset = along(module, path, times=[999, 600, 300, 0], **OPTIONS)
    assert dataset.psi.dims == ("step",)
    np.testing.assert_array_equal(dataset.step, [999, 600, 300, 0])
    length = torch.linalg.vector_norm(ends[1] - ends[0]).item()
    np.testing.assert_allclose(dataset.distance, np.array([0, 0.1, 0.4, 1]) * length, rtol=1e-5)
    assert torch.equal(latents_at(dataset, [1, 3]), path[[1, 3]])
    table = describe(module, path, **OPTIONS)
    np.testing.assert_allclose(dataset.psi, table.psi, atol=1e-4)
    np.testing.assert_array_equal(dataset.delta, table.delta)
    assert along(module, list(path), **OPTIONS).step.values.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("make", [field, along])
def test_files(make: Callable[..., Any], tmp_path: Path) -> None:
    module, shape = decoders.relu_mlp()
    dataset = make(module, three(shape).half().float(), **OPTIONS | {"batch": 64} | small(make))
    dataset.to_netcdf(tmp_path / "saved.nc", engine="scipy")
    with xr.open_dataset(tmp_path / "saved.nc", engine="scipy") as read:
        assert torch.equal(latents_at(read, [0, 2]), latents_at(dataset, [0, 2]))
        np.testing.assert_array_equal(read.psi, dataset.psi)


def small(make: Callable[..., Any]) -> dict[str, Any]:
    return {"resolution": 4} if make is field else {}


@pytest.mark.parametrize("make", [field, along])
def test_half_precision_latents(make: Callable[..., Any]) -> None:
    module, shape = decoders.relu_mlp()
    dataset = make(module.half(), three(shape).half(), **OPTIONS | small(make))
    assert dataset.attrs["dtype"] == "float32"
    assert latents_at(dataset, [0]).dtype == torch.float16


@pytest.mark.parametrize("make", [field, along])
def test_ctrl_c_leaves_the_rest_open(make: Callable[..., Any]) -> None:
    module, shape = decoders.relu_mlp()
    z = three(shape) if make is field else decoders.latents(shape, 5)
    options = OPTIONS | {"batch": 1} | small(make)
    whole = make(module, z, **options)
    done = decoders.latents(shape, 2)
    calls = Calls.after(
        [done] if make is field else done,  # of an iterable's items, one pass tells the kind
        module,
        lambda: signal.raise_signal(signal.SIGINT),
        **OPTIONS | {"batch": 1},
    )
    with pytest.warns(RuntimeWarning, match="Interrupted after 2 latents"):
        partial = make(calls, z, **options)
    assert partial.attrs["complete"] == 0
    assert partial.psi.shape == whole.psi.shape
    for name in ("psi", "delta", "fell_back"):
        values = partial[name].values.ravel()
        np.testing.assert_allclose(values[:2], whole[name].values.ravel()[:2], atol=1e-4)
        assert np.isnan(values[2:]).all()


@pytest.mark.parametrize(
    ("anchors", "options", "message"),
    [
        (torch.eye(12)[:2], {}, r"Expected three anchors \(3, \*latent_shape\), got 2"),
        (torch.ones(3, 12), {}, "span a plane, got three on one line"),
        (torch.arange(36.0).reshape(3, 12), {}, "span a plane, got three on one line"),
        (torch.full((3, 12), math.nan), {}, "Expected finite latents"),
        (torch.eye(12, dtype=torch.int64)[:3], {}, "Expected floating-point latents"),
        (torch.eye(12)[:3], {"resolution": 1}, "Expected a resolution of at least 2"),
        (torch.eye(12)[:3], {"resolution": (4, 0)}, "Expected a resolution of at least 2"),
        (torch.eye(12)[:3], {"margin": -0.1}, "Expected a margin of 0 or more, got -0.1"),
        (torch.eye(12)[:3], {"neighbourhood": (4, 0)}, "Expected a positive radius, got 0"),
    ],
)
def test_bad_planes(anchors: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        field(decoders.relu_mlp()[0], anchors, **OPTIONS | options)


def test_bad_paths_and_datasets() -> None:
    module, shape = decoders.relu_mlp()
    with pytest.raises(ValueError, match=r"one time for each of 3 latents, got shape \(2,\)"):
        along(module, three(shape), times=[0, 1])
    with pytest.raises(ValueError, match="Expected finite latents"):
        along(module, three(shape) * math.inf)
    table = approx.describe(module, three(shape), **OPTIONS)
    with pytest.raises(ValueError, match="Expected a dataset from field or along, got one with"):
        latents_at(table.to_xarray(), [0])
