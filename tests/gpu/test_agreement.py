"""What a GPU computes is what the CPU computes, and nothing waits for it in a loop.

pytest tests/gpu
CPWL_DEVICES=cpu pytest tests/gpu
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from support import decoders
from support.decoders import blocks, gap
from torch import Tensor, nn

from approx import JacobianOperator, describe, devices, knots, spectrum
from approx.complexity.counting import ByDerivatives, batch_first
from approx.complexity.passes import shapes_of_one
from approx.complexity.watching import watched
from approx.decoder import prepare, session
from approx.sketches import Probes

pytestmark = pytest.mark.gpu

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
# of a product; bfloat16 changes which side of their knots units are on
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float64: 1e-12}
NAMES = ("relu_conv", "silu_conv", "attention", "max_pooling", "leaky_residual")


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest, device: torch.device) -> torch.dtype:
    if request.param == torch.float64 and not devices.of(device).float64:
        pytest.skip(f"{device} has no float64")
    return request.param


def made(name: str, device: torch.device) -> tuple[nn.Module, Tensor, nn.Module, Tensor]:
    """Make a decoder and latents on the CPU, and both on a device."""
    module, shape = decoders.DECODERS[name]()
    z = decoders.latents(shape)
    return module, z, copy.deepcopy(module).to(device), z.to(device)


@contextmanager
def unasked(device: torch.device) -> Iterator[None]:
    """Region in which a question to the device is an error."""
    if device.type != "cuda":
        yield
        return
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.parametrize("chunk", [1, 3, "auto"])
@pytest.mark.parametrize("name", NAMES)
def test_products(name: str, chunk: Any, device: torch.device, dtype: torch.dtype) -> None:
    module, z, there, moved = made(name, device)
    with (
        JacobianOperator(module, z, dtype=torch.float64, check=False) as own,
        JacobianOperator(there, moved, dtype=dtype, chunk=chunk) as op,
    ):
        X, Y = blocks(own)
        assert gap(op.matmat(X.to(op.dtype)).cpu(), own.matmat(X)) < ROUNDING[dtype]
        assert gap(op.rmatmat(Y.to(op.dtype)).cpu(), own.rmatmat(Y)) < ROUNDING[dtype]
        assert op.output.device.type == device.type
        # one by one, by vmap and by forward mode alike: by nothing that stands in for them
        assert op._forward_mode
        assert op._vmap == {"jvp": True, "vjp": True}


@pytest.mark.parametrize("method", ["exact", "predict", "paper", "topk"])
def test_spectra_of_one_seed(method: str, device: torch.device, dtype: torch.dtype) -> None:
    module, z, there, moved = made("silu_conv", device)
    options: dict[str, Any] = {"method": method, "k": 4, "generator": 0, "products": 8, "depth": 4}
    with (
        JacobianOperator(module, z, dtype=dtype, check=False) as own,
        JacobianOperator(there, moved, dtype=dtype, check=False) as op,
    ):
        expected, found = spectrum(own, **options), spectrum(op, **options)
    rounding = ROUNDING[dtype] * 10
    assert found.psi.device.type == "cpu"
    torch.testing.assert_close(found.psi, expected.psi, rtol=0, atol=4 * rounding)
    torch.testing.assert_close(found.nu, expected.nu, rtol=rounding, atol=0)
    assert found.definition == expected.definition
    assert found.products == expected.products


@pytest.mark.parametrize("method", ["jvp", "hull"])
@pytest.mark.parametrize("name", NAMES)
def test_knots_of_one_seed(
    name: str, method: Any, device: torch.device, dtype: torch.dtype
) -> None:
    module, z, there, moved = made(name, device)
    options: dict[str, Any] = {"radius": 3e-2, "directions": 3, "method": method}
    found = knots(there, moved, dtype=dtype, **options)
    if dtype == torch.bfloat16:
        return  # in which counts are rounding; that it runs is asked
    expected = knots(module, z, dtype=dtype, **options)
    assert found.layers == expected.layers
    assert found.count.device.type == device.type
    off = (found.count.cpu() - expected.count).abs()
    assert (off <= found.undecided.cpu() + expected.undecided).all()
    torch.testing.assert_close(
        found.density.cpu(), expected.density, rtol=1e-2, atol=0, check_dtype=False, equal_nan=True
    )
    torch.testing.assert_close(found.directions.cpu(), expected.directions, check_dtype=False)
    assert expected.count.sum() > 0


def test_tables_of_one_seed(device: torch.device, dtype: torch.dtype) -> None:
    module, z, there, moved = made("silu_conv", device)
    options: dict[str, Any] = {
        "method": "paper", "k": 6, "neighbourhood": (3, 3e-2), "seed": 0, "progress": False,
        "batch": 2,
    }  # fmt: skip
    expected = describe(module, z, dtype=dtype, **options)
    found = describe(there, moved, dtype=dtype, **options)
    rounding = ROUNDING[dtype] * 10
    np.testing.assert_allclose(found.psi, expected.psi, rtol=0, atol=6 * rounding)
    np.testing.assert_allclose(found.nu, expected.nu, rtol=rounding, atol=0)
    assert found.delta is not None
    assert expected.delta is not None
    assert found.delta_error is not None
    assert (abs(found.delta - expected.delta) <= found.delta_error + 1e-9).all()


def test_probes_and_directions_are_the_same_on_all_devices(device: torch.device) -> None:
    """To the last bit: a seed means the same everywhere."""
    module, z, there, moved = made("relu_conv", device)
    with JacobianOperator(module, z, check=False) as own:
        expected, factor = Probes(3).block(own, 5)
    with JacobianOperator(there, moved, check=False) as op:
        columns, other = Probes(3).block(op, 5)
        assert columns.device.type == device.type
    assert torch.equal(columns.cpu(), expected)
    torch.testing.assert_close(other.cpu(), factor, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_loops_ask_a_device_nothing(name: str, device: torch.device) -> None:
    """Products of many chunks, and a pass that carries tangents through every layer."""
    _, _, there, moved = made(name, device)
    with JacobianOperator(there, moved, chunk=1, check=False) as op:
        X = torch.ones(1, op.batch, op.columns, device=device)
        Y = torch.ones(1, op.batch, op.rows, device=device)
        op._apply(X, "jvp"), op._apply(Y, "vjp")  # what is set up once
        with unasked(device):
            for _ in range(3):
                op._apply(X, "jvp")
                op._apply(Y, "vjp")
    prepared = prepare(there, moved)
    basis = torch.eye(2, moved[0].numel(), device=device)
    tangents = basis.reshape(-1, 1, *moved.shape[1:]).expand(-1, *moved.shape)
    with session(prepared), torch.no_grad():
        one = shapes_of_one(prepared, moved)
        for around in (nullcontext(), unasked(device)):  # what is set up once, and then none of it
            counting = ByDerivatives(len(moved), 1e-2, 1e-2, 8.0)
            first = batch_first(counting, one, len(moved))
            with around, watched(prepared.modules, first, 2) as watch:
                prepared(watch.start(moved, tangents))
    assert set(counting.layers) == set(one)


def test_memory_is_given_back(device: torch.device) -> None:
    """After a table, an error and an operator that was closed."""
    _, _, there, moved = made("silu_conv", device)

    def work() -> None:
        describe(there, moved, k=4, seed=0, progress=False)
        with JacobianOperator(there, moved) as op:
            op.rmatmat(torch.ones(op.rows, 3, device=device))
        with pytest.raises(ValueError, match="Expected"):
            describe(lambda z: there(z).mean() * torch.nan, moved, progress=False)

    work()
    before = held(device)
    for _ in range(2):
        work()
    assert held(device) == before


def held(device: torch.device) -> int:
    """Return the bytes of tensors on a device; on the CPU their number."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    return sum(issubclass(type(x), Tensor) for x in gc.get_objects())
