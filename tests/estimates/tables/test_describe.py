"""describe(): its columns against what they are made of, streams, cost, dtypes, tables."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from support import decoders
from support.tables import Calls, assert_same, quiet, wide
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import approx
from approx import describe
from approx.tables.batches import Batches
from approx.tables.description import run
from approx.tables.plan import Options, settle


@pytest.mark.parametrize("method", ["predict", "paper", "topk", "exact"])
@pytest.mark.parametrize("name", decoders.DECODERS)
def test_rows_are_what_spectrum_and_knots_say(name: str, method: Any) -> None:
    module, shape = decoders.DECODERS[name]()
    z = decoders.latents(shape, 3)
    table = quiet(module, z, method=method, k=8, neighbourhood=(3, 0.05))
    dtype = torch.float64 if method == "exact" else None
    with approx.JacobianOperator(module, z, dtype=dtype) as op:
        found = approx.spectrum(op, method=method, k=8, generator=5)
    directions = approx.neighbourhood(shape, 3, torch.Generator().manual_seed(5))
    counted = approx.knots(module, z, radius=0.05, directions=directions, dtype=dtype)
    for column, expected in (
        (table.psi, found.psi),
        (table.psi_low, found.psi_interval[:, 0]),
        (table.nu, found.nu),
        (table.nu_high, found.nu_interval[:, 1]),
        (table.psi_error, found.psi_stderr),
        (table.nu_error, found.nu_stderr),
        (table.effective_rank, found.effective_rank),
        (table.density, counted.density),
        (table.soft, counted.soft),
    ):
        np.testing.assert_allclose(column, expected.double(), rtol=1e-4, atol=2e-4)
    for column, expected in (
        (table.delta, counted.count),
        (table.delta_error, counted.undecided),
        (table.zaslavsky, counted.zaslavsky),
        (table.rank, found.rank),
        (table.fell_back, found.fell_back),
    ):
        np.testing.assert_array_equal(column, expected)
    assert (table.method, table.k, table.seed) == (method, 8, 5)
    assert (table.directions, table.radius, table.definition) == (3, 0.05, found.definition)
    assert table.dtype == ("float64" if method == "exact" else "float32")
    assert (table.latent_shape, len(table), table.complete) == (shape, 3, True)


@pytest.mark.parametrize("name", decoders.DECODERS)
def test_exact_agrees_with_the_dense_jacobian(name: str) -> None:
    module, shape = decoders.DECODERS[name]()
    z = decoders.latents(shape, 2)
    table = quiet(module, z, method="exact", neighbourhood=None)
    for b, matrix in enumerate(decoders.dense(module, z).numpy()):
        sigma = np.linalg.svd(matrix, compute_uv=False)
        alpha = sigma / sigma.sum()
        kept = sigma[sigma > sigma[0] * max(matrix.shape) * np.finfo(float).eps]
        assert table.psi[b] == pytest.approx(np.log(kept).sum(), abs=1e-10)
        alpha = alpha[alpha > 0]
        assert table.nu[b] == pytest.approx(np.exp(-(alpha * np.log(alpha)).sum()), abs=1e-10)
    assert (table.psi_error == 0).all()
    assert table.delta is None
    assert "delta" not in table.columns()


@pytest.mark.parametrize("method", ["predict", "paper"])
def test_every_batch_size_and_every_stream_gives_the_same(method: Any) -> None:
    module, shape = wide()
    z = decoders.latents(shape, 7)

    def uneven() -> Iterator[Tensor]:
        yield from (z[:2], z[2:3], z[3:])

    whole = quiet(module, z, method=method, k=18, batch=7, neighbourhood=(4, 0.2))
    assert not whole.fell_back.any()
    assert whole.delta is not None
    assert whole.delta.min() > 0
    for latents, batch in ((z, "auto"), (z, 1), (z, 3), (list(z), 4), (uneven(), 2), (iter(z), 5)):
        other = quiet(module, latents, method=method, k=18, batch=batch, neighbourhood=(4, 0.2))
        assert_same(whole, other)


def test_a_stream_of_images_without_batch_axis() -> None:
    module, shape = decoders.relu_conv()
    z = decoders.latents(shape, 3)
    whole = quiet(module, z)
    assert_same(whole, quiet(module, list(z)))
    assert_same(whole, quiet(module, [z[:1], z[1:]]))
    assert_same(whole, quiet(module, (one for one in z)))


@pytest.mark.parametrize("name", ["relu_conv", "silu_conv", "attention"])
def test_all_three_cost_psi_and_2_p_plus_2_forward_passes_at_most(name: str) -> None:
    module, shape = decoders.DECODERS[name]()
    z = decoders.latents(shape, 4)
    size = 4

    def flops(run: Callable[[], Any]) -> int:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    with torch.no_grad():
        forward = flops(lambda: module(z))
    alone = flops(lambda: quiet(module, z, batch=4, neighbourhood=None))
    everything = flops(lambda: quiet(module, z, batch=4, neighbourhood=(size, 1e-5)))
    assert forward > 0
    assert everything <= alone + 2 * (size + 1) * forward
    if name != "attention":  # products of two things that move take two for a tangent
        # a quarter: the one latent that tells where the batch is
        assert everything == alone + (1 + size) * forward + forward // 4


def test_a_batch_runs_the_decoder_once_for_its_graph_and_once_for_its_knots() -> None:
    module, shape = decoders.relu_conv()
    calls = Calls(module).eval()
    table = quiet(calls, decoders.latents(shape, 6), batch=3, method="paper", k=5)
    # two batches, and one latent that tells their axis; products J^T y take no forward pass
    assert calls.sizes == [1, 3, 3] * 2
    assert (table.products == 5).all()
    assert table.passes == 5


def test_work_and_memory_per_latent_do_not_grow_with_their_number() -> None:
    module, shape = decoders.relu_mlp()
    calls = Calls(module).eval()
    work, alive = [], []
    for count in (10, 10_000):
        seen: weakref.WeakSet[Tensor] = weakref.WeakSet()
        most = 0

        def stream(count: int = count, seen: Any = seen) -> Iterator[Tensor]:
            nonlocal most
            generator = torch.Generator().manual_seed(0)
            for _ in range(count // 10):
                z = torch.randn(10, *shape, generator=generator)
                seen.add(z)
                most = max(most, len(seen))
                yield z

        with FlopCounterMode(display=False) as counter:
            table = quiet(calls, stream(), method="paper", k=5, batch=250)
        assert len(table) == count
        work.append(counter.get_total_flops() / count)
        alive.append(most)
    # the decoder on one latent is all that is not proportional: it tells batches from latents
    assert work[1] == pytest.approx(work[0], rel=0.02)
    assert alive[1] <= 2 * 250 // 10


def test_batches_by_free_memory() -> None:
    module, shape = decoders.relu_conv()
    calls = Calls(module).eval()
    z = decoders.latents(shape, 40)
    options = Options(
        k=5, neighbourhood=None, method="paper", batch="auto", progress=False, generator=5,
        output=None, dtype=None, products=16, knots_method="jvp", knots_dtype=None, max_bytes=1e9,
    )  # fmt: skip
    sizes = {}
    for free in (3 * 10**5, 6 * 10**5, 10**9):
        calls.sizes.clear()
        source = Batches([z])
        plan = settle(calls, source, options)
        run(plan, source, len(z), free=lambda device, free=free: free, seconds=1e6)
        assert calls.sizes[0] == 1
        sizes[free] = calls.sizes[1]
    assert 1 <= sizes[3 * 10**5] < sizes[6 * 10**5] < 39
    assert sizes[10**9] == 39


def test_dense_jacobians_of_a_batch_stay_within_max_bytes() -> None:
    module, shape = decoders.relu_mlp()
    z = decoders.latents(shape, 7)
    whole = quiet(module, z, method="exact")
    assert_same(whole, quiet(module, z, method="exact", max_bytes=2 * 8 * 60 * 12))
    with pytest.raises(ValueError, match="Expected dense Jacobians of at most"):
        quiet(module, z, method="exact", max_bytes=100)


def test_structures_by_output() -> None:
    module, shape = decoders.structured()
    z = decoders.latents(shape, 2)
    plain = quiet(module.inner, z)
    assert_same(plain, quiet(module, z))
    assert_same(plain, quiet(module.decode, z, output=lambda y: y.sample))


def test_half_precision_decoders_run_in_float32_unless_asked() -> None:
    module, shape = decoders.relu_conv()
    z = decoders.latents(shape, 2).half()
    half = decoders.relu_conv()[0].half()
    table = quiet(half, z)
    assert table.dtype == "float32"
    assert next(half.parameters()).dtype == torch.float16
    assert_same(quiet(module.half().float(), z.float()), table)
    assert_same(table, quiet(half, list(z)))
    # and those in float64 as they are
    double = quiet(decoders.double(module), z.double())
    assert (double.dtype, double.knots_dtype) == ("float64", "float64")
    np.testing.assert_allclose(double.psi, table.psi, atol=1e-3)


def test_bfloat16_is_near_and_knots_are_counted_in_float32() -> None:
    module, shape = wide()
    z = decoders.latents(shape, 3)
    options = {"k": 18, "neighbourhood": (4, 0.02)}
    full, half = quiet(module, z, **options), quiet(module, z, dtype=torch.bfloat16, **options)
    assert (half.dtype, half.knots_dtype) == ("bfloat16", "float32")
    assert np.abs(half.psi - full.psi).max() < 0.1
    assert 0 < np.abs(half.nu - full.nu).max() < 0.02
    np.testing.assert_array_equal(half.delta, full.delta)
    wider = quiet(module, z, dtype=torch.bfloat16, knots_dtype=torch.float64, **options)
    assert wider.knots_dtype == "float64"
    assert next(module.parameters()).dtype == torch.float32


def test_seeds() -> None:
    module, shape = decoders.relu_conv()
    z = decoders.latents(shape, 2)
    drawn = quiet(module, z, generator=torch.Generator().manual_seed(3), k=6)
    assert_same(drawn, quiet(module, z, generator=drawn.seed, k=6))
    fresh = quiet(module, z, generator=None, k=6)
    assert fresh.seed != drawn.seed
    assert np.abs(fresh.psi - drawn.psi).max() > 1e-3
    with pytest.raises((AttributeError, TypeError)):
        drawn.psi = drawn.nu  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        drawn.psi[0] = 1


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    module, shape = decoders.relu_mlp()
    z = decoders.latents(shape, 4)
    quiet(module, z)
    assert capsys.readouterr() == ("", "")
    describe(module, z, generator=0)
    assert "4/4" in capsys.readouterr().err
    describe(module, iter(z), generator=0, total=4)
    assert "4/4" in capsys.readouterr().err


def test_a_table_says_in_a_line_what_it_is() -> None:
    module, shape = decoders.DECODERS["relu_mlp"]()
    table = quiet(module, decoders.latents(shape, 2), k=4, neighbourhood=(3, 0.05))
    assert repr(table) == (
        "Descriptors(2 latents, predict, k=4, P=3, r=0.05, float32, seed=5, complete)"
    )


def test_tables(tmp_path: Any) -> None:
    pd, xr = pytest.importorskip("pandas"), pytest.importorskip("xarray")
    module, shape = decoders.silu_conv()
    table = quiet(module, decoders.latents(shape, 5))
    frame = table.to_pandas()
    assert isinstance(frame, pd.DataFrame)
    assert frame.index.name == "latent"
    assert frame.attrs["seed"] == "5"
    for name, column in table.columns().items():
        np.testing.assert_array_equal(frame[name], column)
        assert frame[name].dtype == column.dtype
    dataset = table.to_xarray()
    dataset.to_netcdf(tmp_path / "table.nc", engine="scipy")
    with xr.open_dataset(tmp_path / "table.nc", engine="scipy") as read:
        for name in dataset:
            np.testing.assert_array_equal(read[name], dataset[name])
        assert read.attrs["definition"] == table.definition
        assert read.attrs["complete"] == 1
        assert read.psi.attrs["long_name"].startswith("local scaling")
