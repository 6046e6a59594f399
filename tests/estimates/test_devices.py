"""No step waits for a device in a loop, and each is taken where the device has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import decoders
from support.synchronising import Synchronising
from torch import Tensor, nn

from approx import JacobianOperator, devices, knots, spectrum, whitening
from approx.sketches import Probes, block_krylov, projected, singular_values

SHAPE = (4, 8, 8)


class Clamped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x.clamp(-2, 2), 0.1 * x).abs()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "prelu": nn.PReLU,
    "pooling": lambda: nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.AdaptiveMaxPool2d(8)),
    "written out": Clamped,
}


def network(depth: int, activation: str = "relu") -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), ACTIVATIONS[activation]()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(*layers, nn.Conv2d(4, 4, 1)).eval()


def asked(work: Callable[[nn.Module, Tensor], Any], depth: int, activation: str = "relu") -> Any:
    """Return what a piece of work asks a device, whose values cannot be had."""
    module = network(depth, activation).to("meta")
    with Synchronising() as mode:
        work(module, torch.empty(2, *SHAPE, device="meta"))
    return mode.where


def products(columns: int, chunk: Any = "auto", on: str = "meta") -> Any:
    def work(module: nn.Module, z: Tensor) -> None:
        with JacobianOperator(module, z, chunk=chunk) as op:
            op.rmatmat(torch.ones(op.rows, columns, device=on))
            op.matmat(torch.ones(op.columns, columns, device=on))

    return work


@pytest.mark.parametrize("method", ["jvp", "hull"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_counting_asks_a_device_as_often_at_any_depth(activation: str, method: Any) -> None:
    def work(module: nn.Module, z: Tensor) -> None:
        knots(module, z, directions=torch.eye(2, 256), method=method, batch=2)

    shallow = asked(work, 1, activation)
    assert asked(work, 4, activation) == shallow
    # the directions come in; two results and, where there are any, PReLU's weights go out
    passes = 4 if method == "hull" else 1
    assert shallow.total() <= 3 + (activation == "prelu") * (1 + passes), shallow


@pytest.mark.parametrize("method", ["jvp", "hull"])
def test_counting_in_float64_asks_no_more(method: Any) -> None:
    """In which latents in doubt are counted again."""

    def work(module: nn.Module, z: Tensor) -> None:
        knots(module.double(), z.double(), method=method, batch=2)

    assert asked(work, 4) == asked(work, 1)


def test_products_ask_a_device_nothing_by_layer_column_or_chunk() -> None:
    assert not asked(products(3), 4)
    assert not asked(products(6, chunk=1), 1)
    # a block that is elsewhere is moved once
    assert asked(products(6, chunk=1, on="cpu"), 2).total() == 2


def test_sketches_ask_a_device_as_often_at_any_number_of_columns() -> None:
    def sketched(k: int) -> Any:
        def work(module: nn.Module, z: Tensor) -> None:
            with JacobianOperator(module, z) as op:
                singular_values(projected(op, k, Probes(0))[0])

        return work

    assert asked(sketched(16), 4) == asked(sketched(4), 1)


def test_all_units_are_counted_as_those_that_are_near(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is not asked which units are near, with a CPU's numbers."""
    cases = [
        (network(3, name), decoders.latents(SHAPE, 4)) for name in ("relu", "silu", "written out")
    ]
    # units of many sizes, at radii where many are met
    for dtype in (torch.float32, torch.float64):
        for radius in (1e-4, 3e-2):
            found = [knots(m, z, radius=radius, dtype=dtype, batch=4) for m, z in cases]
            with monkeypatch.context() as patch:
                patch.setattr(devices, "DEVICES", {})
                again = [knots(m, z, radius=radius, dtype=dtype, batch=4) for m, z in cases]
            for a, b in zip(found, again, strict=True):
                assert torch.equal(a.per_layer, b.per_layer)
                assert torch.equal(a.undecided, b.undecided)
                assert torch.equal(a.soft, b.soft)
                torch.testing.assert_close(a.density, b.density, rtol=1e-12, atol=0)
                assert a.suggested_radius == b.suggested_radius
    assert found[0].count.min() > 0


class Narrow(Synchronising):
    """A device without float64 and without factorisations, that `meta` stands for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        made = result if isinstance(result, tuple | list) else (result,)
        if any(isinstance(x, Tensor) and x.is_meta for x in made):
            assert not any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in made), func
            assert "linalg_qr" not in str(func)
            assert "solve" not in str(func)
        return result


def test_steps_are_taken_where_a_device_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "DEVICES", {"meta": devices.DEVICES["mps"]})
    module, z = network(2).to("meta"), torch.empty(2, *SHAPE, device="meta")
    with Narrow():
        found = knots(module, z, directions=torch.eye(2, 256), batch=2)
        assert found.count.dtype == torch.float32
        knots(module, z, directions=torch.eye(2, 256), method="hull", batch=2)
        with JacobianOperator(module, z) as op:
            assert projected(op, 8, Probes(0))[0].device.type == "cpu"
            generator = torch.Generator().manual_seed(0)
            block_krylov(op, 2, block=2, depth=2, generator=generator)
            with pytest.raises(ValueError, match="Expected a device with float64, got meta: use"):
                op.refined(torch.tensor([0]))


def test_results_do_not_depend_on_what_the_cpu_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    module, shape = decoders.silu_conv()
    z = decoders.latents(shape)
    options = {"method": "topk", "k": 4, "generator": 0, "depth": 3}

    def found() -> Any:
        with JacobianOperator(module, z, check=False) as op:
            return spectrum(op, **options).singular_values  # type: ignore[arg-type]

    own = found()
    monkeypatch.setattr(devices, "DEVICES", {"cpu": devices.DEVICES["mps"]})
    torch.testing.assert_close(found(), own, rtol=1e-5, atol=0)
    assert whitening(decoders.latents((3,), 9)).root.dtype == torch.float64


@pytest.mark.parametrize(
    ("place", "dtype", "side", "normalised", "last"),
    [
        ("cpu", None, 8, True, True),
        ("cpu", torch.bfloat16, 8, True, True),
        ("cpu", None, 4, True, False),
        ("cuda", None, 64, False, False),
        ("cuda", torch.bfloat16, 64, False, True),
        ("cuda", torch.bfloat16, 32, False, False),
        ("cuda", torch.bfloat16, 64, True, False),
        ("mps", torch.bfloat16, 64, False, False),
    ],
)
def test_the_table_decides_on_channels_last(
    place: str,
    dtype: torch.dtype | None,
    side: int,
    normalised: bool,
    last: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "DEVICES", {"cpu": devices.DEVICES[place]})
    module: nn.Module = nn.Conv2d(4, 4, 3)
    if normalised:
        module = nn.Sequential(module, nn.GroupNorm(2, 4))
    z = decoders.latents((4, side, side), 1)
    with JacobianOperator(module, z, dtype=dtype, check=False) as op:
        assert op._leaf.is_contiguous(memory_format=torch.channels_last) is last
        if last:
            assert op._columns("vjp") == 1
            assert op.rmatmat(torch.ones(op.rows, 2)).shape == (1, op.columns, 2)
