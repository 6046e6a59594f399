"""describe(): its columns against what they are made of, streams, cost, dtypes, tables."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from support import decoders
from support.tables import Calls, assert_same, quiet, wide
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import approx
from approx import describe
from approx.sketches import probes
from approx.sketches.probes import gaussian
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
        assert abs(table.psi[b] - np.log(kept).sum()) < 1e-10 + table.psi_error[b]
        alpha = alpha[alpha > 0]
        assert table.nu[b] == pytest.approx(np.exp(-(alpha * np.log(alpha)).sum()), abs=1e-10)
    assert (table.psi_error > 0).all()
    assert (table.psi_error < 1e-11).all()
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


def test_arrays_and_what_a_data_loader_gives_are_latents() -> None:
    module, shape = decoders.relu_mlp()
    z = decoders.latents(shape, 5)
    whole = quiet(module, z, neighbourhood=(4, 0.1))
    labels = torch.arange(5)
    data = torch.utils.data.TensorDataset(z, labels)
    wide = z.double().numpy()
    wide.flags.writeable = False
    for latents in (
        z.numpy(),
        wide,
        list(z.numpy()),
        wide.tolist(),
        torch.utils.data.DataLoader(data, batch_size=2),
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(z), batch_size=3),
        data,
    ):
        assert_same(whole, quiet(module, latents, neighbourhood=(4, 0.1)))
    assert quiet(module, z, generator=None, seed=5).seed == whole.seed


def test_latents_of_one_two_and_three_coordinates_by_default() -> None:
    for size in (1, 2, 3):
        module = nn.Sequential(nn.Linear(size, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
        table = describe(module, torch.ones(2, size), progress=False)
        assert (table.directions, table.k) == (size, size)
        assert np.isfinite(table.psi).all()


def test_tables_figures_and_files_say_which_psi_they_hold(tmp_path: Any) -> None:
    from approx import plot

    module, shape = wide()
    z = decoders.latents(shape, 8)
    names = {"predict": "psi_W", "paper": "psi_W", "topk": "psi_k", "exact": "psi"}
    for method, name in names.items():
        table = quiet(module, z, method=method, k=None if method == "exact" else 20)
        assert table.definition.startswith(f"{name}, nu{name[3:]}: ")
        assert f"{name} and nu{name[3:]}" in repr(table)
        frame, data = table.to_pandas(), table.to_xarray()
        assert frame.attrs["definition"] == data.psi.definition == table.definition
        assert "definition" not in data.delta.attrs
        for source in (table, frame):
            axes = plot.distribution(source, np.zeros(8), ["psi", "nu"]).axes
            assert [ax.get_ylabel() for ax in axes] == [
                rf"local scaling $\psi{name[3:]}$", rf"local rank $\nu{name[3:]}$",
            ]  # fmt: skip
        frame.to_parquet(tmp_path / "table.parquet")
        assert pd.read_parquet(tmp_path / "table.parquet").attrs["subscript"] == name[4:]
    # frames of two definitions have lost them, and a figure says so
    mixed = pd.concat([quiet(module, z, method=m, k=20).to_pandas() for m in ("paper", "topk")])
    axes = plot.distribution(mixed, np.zeros(16), "psi").axes
    assert axes[0].get_ylabel() == r"local scaling $\psi$ (definition unknown)"
    plt.close("all")


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
    # after the shapes of one, and one for the error of float32, two batches with one latent that
    # tells their axis; products J^T y take no forward pass
    assert calls.sizes[2:] == [1, 3, 3] * 2
    assert (table.products == 16).all()
    assert table.passes == 5


def test_work_and_memory_per_latent_do_not_grow_with_their_number() -> None:
    module, shape = decoders.relu_mlp()
    calls = Calls(module).eval()
    work, alive = [], []
    for count in (500, 2_500):
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
        k=5, neighbourhood=None, method="paper", batch="auto", progress=False, seed=5,
        output=None, dtype=None, products=16, knots_method="jvp", knots_dtype=None, max_bytes=1e9,
        straight_through=False, on_error="raise",
    )  # fmt: skip
    sizes = {}
    for free in (3 * 10**5, 6 * 10**5, 10**9):
        calls.sizes.clear()
        source = Batches([z])
        plan = settle(calls, source, options)
        calls.sizes.clear()
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
    options: Any = {"k": 6, "method": "paper"}
    drawn = quiet(module, z, generator=torch.Generator().manual_seed(3), **options)
    assert_same(drawn, quiet(module, z, generator=drawn.seed, **options))
    fresh = quiet(module, z, generator=None, **options)
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


def test_a_table_says_where_predict_fell_back() -> None:
    module, shape = wide()
    table = quiet(module, decoders.latents(shape, 4), method="predict", k=20, neighbourhood=None)
    assert table.attributes()["used"] == "predict"
    some = replace(table, fell_back=np.array([True, False, False, False]))
    assert some.attributes()["used"] == "predict for 3, paper for 1 of 4 latents"
    assert "(predict for 3, paper for 1 of 4 latents)" in repr(some)
    both = approx.concatenate([table, some])
    assert both.to_pandas().attrs["used"] == "predict for 7, paper for 1 of 8 latents"
    small, shape = decoders.relu_mlp()
    table = quiet(small, decoders.latents(shape, 2), method="predict")
    assert (table.attributes()["method"], table.attributes()["used"]) == ("predict", "paper")


def test_a_table_says_what_predict_did_for_how_many_latents(tmp_path) -> None:
    """Three latents need a few products, two take more, and one all of them."""
    flat = torch.eye(400, 300)
    between, steep = (flat * torch.arange(1, 301.0) ** -power for power in (0.35, 1.0))

    def decode(z):
        place = z[:, :1].round()
        other = torch.where(place == 1, z @ between.T, z @ steep.T)
        return torch.where(place == 0, z @ flat.T, other)

    z = torch.zeros(6, 300)
    z[:, 0] = torch.tensor([2.0, 0, 0, 0, 1, 1])
    options: Any = {"k": 60, "neighbourhood": None, "generator": 7, "batch": 2}
    table = quiet(decode, z, **options)
    words = "predict for 3, predict from more products for 2, paper for 1 of 6 latents"
    assert (table.used, table.ran(), table.attributes()["used"]) == ("predict", words, words)
    assert (table.continued, table.fallen()) == (2, 1)
    assert f"psi_W and nu_W ({words})" in repr(table)
    assert "predict" not in table.definition
    parts = [quiet(decode, part, **options) for part in (z[:1], z[1:4], z[4:])]
    assert [part.ran() for part in parts] == ["paper", "predict", "predict from more products"]
    assert approx.concatenate(parts).ran() == words
    kept = quiet(decode, z, store=tmp_path / "run.zarr", **options)
    assert words in repr(kept)
    assert (kept[:].ran(), kept[:].continued) == (words, 2)
    assert kept[1:].continued is None  # of a part of a chunk
    assert kept[1:].ran() == kept[1:].attributes()["used"] == "predict"


def test_a_table_says_in_a_line_what_it_is() -> None:
    module, shape = decoders.DECODERS["relu_mlp"]()
    table = quiet(module, decoders.latents(shape, 2), k=4, neighbourhood=(3, 0.05))
    assert repr(table) == (
        "Descriptors(2 latents, psi_k and nu_k (exact), k=4, P=3, r=0.05, float32, seed=5, "
        "complete)"
    )


def test_a_notebook_shows_the_quantiles_of_what_is_known() -> None:
    table = describe(torch.nn.Linear(2, 3), torch.randn(5, 2), neighbourhood=None, progress=False)
    html = table._repr_html_()
    assert f"{np.median(table.psi):.5g}" in html
    assert "<th>nu</th>" in html
    assert "delta" not in html
    nothing = replace(table, psi=np.full(5, np.nan))._repr_html_()
    assert "<th>psi</th>" not in nothing


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


@pytest.mark.parametrize("method", ["predict", "paper"])
def test_probes_are_drawn_once_for_all_batches(method: Any, monkeypatch: Any) -> None:
    drawn = []

    def counted(rows: int, k: int, **options: Any) -> Tensor:
        drawn.append(k)
        return gaussian(rows, k, **options)

    monkeypatch.setattr(probes, "gaussian", counted)
    decoder = nn.Sequential(nn.Linear(130, 150), nn.Tanh())
    quiet(decoder, torch.randn(6, 130), method=method, k=20, batch=2, neighbourhood=None)
    assert sum(drawn) <= 24


def test_psi_is_there_where_knots_cannot_be_counted():
    module = torch.nn.LSTM(3, 4, batch_first=True).eval()

    def decoder(z: Tensor) -> Tensor:
        return module(z[:, None].expand(-1, 5, -1))[0]

    table = describe(decoder, torch.ones(2, 3), progress=False)
    assert np.isfinite(table.psi).all()
    assert table.delta is not None
    assert np.isnan(table.delta).all()
    assert table.note.startswith("Knots were not counted (Expected activations that torch executes")
