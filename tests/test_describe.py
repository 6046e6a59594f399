"""describe(): its columns against what they are made of, streams, interruptions, bad input."""

from __future__ import annotations

import math
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import decoders
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import approx
from approx import DecoderError, DescribeError, Descriptors, describe

ERRORS = ("psi_error", "nu_error", "psi_low", "psi_high", "nu_low", "nu_high")


def quiet(decoder: Callable[[Tensor], Any], latents: Any, **options: Any) -> Descriptors:
    return describe(decoder, latents, progress=False, **{"generator": 5} | options)


def wide(seed: int = 0) -> decoders.Made:
    """An MLP with a flat enough spectrum for "predict" to predict."""

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(300, 400), nn.LeakyReLU(0.5), nn.Linear(400, 400))

    return decoders.seeded(make, (300,), seed)


def assert_same(one: Descriptors, other: Descriptors, rtol: float = 2e-5) -> None:
    """Equal to float32's rounding, and counts exactly."""
    assert len(one) == len(other)
    for name, column in one.columns().items():
        if column.dtype == np.float64:
            atol = 1e-4 if name in ERRORS or name in ("psi", "nu") else 1e-6
            np.testing.assert_allclose(other.columns()[name], column, rtol, atol, err_msg=name)
        elif name != "products":
            np.testing.assert_array_equal(other.columns()[name], column, err_msg=name)


class Calls(nn.Module):
    """Counts the latents of each call, and may do something on the n-th."""

    def __init__(
        self, inner: nn.Module, on: int = -1, act: Callable[[], None] | None = None
    ) -> None:
        super().__init__()
        self.inner, self.on, self.act = inner, on, act
        self.sizes: list[int] = []

    def forward(self, z: Tensor) -> Tensor:
        self.sizes.append(len(z))
        if len(self.sizes) == self.on and self.act is not None:
            self.act()
        return self.inner(z)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


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
        assert everything == alone + (1 + size) * forward


def test_a_batch_runs_the_decoder_once_for_its_graph_and_once_for_its_knots() -> None:
    module, shape = decoders.relu_conv()
    calls = Calls(module).eval()
    table = quiet(calls, decoders.latents(shape, 6), batch=3, method="paper", k=5)
    assert calls.sizes == [3] * 4  # two batches; products J^T y take no forward pass
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


def test_batches_by_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    module, shape = decoders.relu_conv()
    calls = Calls(module).eval()
    z = decoders.latents(shape, 40)
    sizes = {}
    for free in (3 * 10**5, 6 * 10**5, 10**9):
        calls.sizes.clear()
        monkeypatch.setattr(
            sys.modules["approx.describe"], "free_bytes", lambda device, free=free: free
        )
        quiet(calls, z, method="paper", k=5, neighbourhood=None)
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


@pytest.mark.parametrize("batch", ["auto", 8])
def test_a_batch_that_does_not_fit_is_halved(batch: Any) -> None:
    module, shape = decoders.relu_mlp()

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, z: Tensor) -> Tensor:
            if len(z) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.inner(z)

    z = decoders.latents(shape, 11)
    assert_same(quiet(module, z), quiet(Small().eval(), z, batch=batch))


def test_out_of_memory_at_one_latent_says_so() -> None:
    def full(z: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MemoryError, match="Expected memory for one latent and 4 directions"):
        quiet(full, torch.zeros(2, 5))
    with pytest.raises(MemoryError, match="Expected memory for a forward pass of 1 latents"):
        quiet(full, torch.zeros(2, 5), neighbourhood=None)


def test_ctrl_c_keeps_what_is_done_and_the_rest_can_follow() -> None:
    module, shape = decoders.silu_conv()
    z = decoders.latents(shape, 9)
    whole = quiet(module, z, batch=2)
    calls = Calls(module, on=6, act=interrupt).eval()
    with pytest.warns(RuntimeWarning, match="Interrupted after 4 latents"):
        partial = quiet(calls, z, batch=2)
    assert not partial.complete
    assert partial.attributes()["complete"] == 0
    assert len(partial) == 4
    rest = quiet(module, z[len(partial) :], batch=2, generator=partial.seed)
    joined = approx.concatenate([partial, rest])
    assert joined.complete
    assert_same(whole, joined)


def test_ctrl_c_while_the_next_latent_is_made() -> None:
    module, shape = decoders.relu_mlp()
    z = decoders.latents(shape, 9)

    def stream() -> Iterator[Tensor]:
        for i, one in enumerate(z):
            if i == 5:
                interrupt()
            yield one

    with pytest.warns(RuntimeWarning, match="Interrupted after 4 latents"):
        partial = quiet(module, stream(), batch=2)
    assert_same(quiet(module, z[:4]), partial)


def test_ctrl_c_before_anything_is_done() -> None:
    module, shape = decoders.relu_mlp()
    with pytest.raises(KeyboardInterrupt):
        quiet(Calls(module, on=2, act=interrupt).eval(), decoders.latents(shape, 4))


def test_an_interrupted_decoder_is_as_before() -> None:
    module, shape = decoders.attention()
    before = torch.get_rng_state()
    calls = Calls(module, on=4, act=interrupt).eval()
    with pytest.warns(RuntimeWarning, match="Interrupted"):
        quiet(calls, decoders.latents(shape, 4), batch=1)
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_bad_item_keeps_the_rows_before_it() -> None:
    module, shape = decoders.relu_mlp()
    z = decoders.latents(shape, 9)
    bad = z.clone()
    bad[5] = math.nan
    message = "Expected finite latents, got NaN .* begins with latent 5; the 5 before it are in"
    with pytest.raises(DescribeError, match=message) as raised:
        quiet(module, iter(bad), batch=2)
    assert isinstance(raised.value.__cause__, ValueError)
    assert not raised.value.partial.complete
    assert_same(quiet(module, z[:5]), raised.value.partial)


def test_a_source_or_a_decoder_that_fails_keeps_the_rows_before() -> None:
    module, shape = decoders.relu_mlp()
    z = decoders.latents(shape, 4)

    def stream() -> Iterator[Tensor]:
        yield z
        raise OSError("no more files")

    with pytest.raises(DescribeError, match="no more files") as raised:
        quiet(module, stream())
    assert len(raised.value.partial) == 4

    class Pole(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.relu(z) / (z - 3)

    z[3] = 3
    with pytest.raises(DescribeError, match="Expected finite outputs") as raised:
        quiet(Pole(), z, batch=2)
    assert isinstance(raised.value.__cause__, DecoderError)
    assert len(raised.value.partial) == 2


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (torch.zeros(3, 12, dtype=torch.int64), "Expected floating-point .* torch.int64"),
        ([torch.zeros(2, 12, dtype=torch.int64)], "Expected floating-point latents"),
        (torch.full((3, 12), math.nan), "Expected finite latents, got NaN"),
        (torch.zeros(12), r"Expected latents of shape \(B, \*latent_shape\)"),
        ([], "Expected at least one latent, got an empty iterable"),
        ([np.zeros(12)], "Expected an iterable of tensors, got ndarray as item 0"),
        ([(torch.zeros(12), 3)], r"got tuple as item 0: for example \(z for z, label in loader\)"),
    ],
)  # fmt: skip
def test_bad_latents(latents: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quiet(decoders.relu_mlp()[0], latents)


def test_latents_of_two_shapes() -> None:
    def total(z: Tensor) -> Tensor:
        return torch.relu(z.cumsum(1)).sum(1, keepdim=True).expand(-1, 3)

    with pytest.raises(DescribeError, match=r"latents of one shape \(12,\), got \(11,\) in item 1"):
        quiet(total, [torch.ones(12), torch.ones(11)], batch=1, k=1, neighbourhood=(1, 1e-5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 13}, "Expected k between 1 and .* = 12, got 13"),
        ({"k": 0}, "Expected k between 1"),
        ({"neighbourhood": (13, 1e-5)}, "Expected between 1 and 12 directions .* got 13"),
        ({"neighbourhood": (4, 0.0)}, "Expected a positive radius, got 0.0"),
        ({"neighbourhood": (4, -1.0)}, "Expected a positive radius, got -1.0"),
        ({"neighbourhood": (4, math.nan)}, "Expected a positive radius, got nan"),
        ({"batch": 0}, "Expected batch as a positive integer or 'auto', got 0"),
        ({"batch": "all"}, "Expected batch as a positive integer or 'auto', got 'all'"),
        ({"method": "slq"}, "Expected method in predict, paper, topk, exact, got 'slq'"),
        ({"method": "exact", "dtype": torch.float32}, "Expected dtype=torch.float64 for method"),
        ({"dtype": torch.int8}, "Expected dtype as float32, float64, bfloat16 or float16"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    module, shape = decoders.relu_mlp()
    with pytest.raises(ValueError, match=message):
        quiet(module, decoders.latents(shape, 2), **options)


def test_decoders_without_a_jacobian() -> None:
    z = torch.ones(2, 5)
    with pytest.raises(DecoderError, match="deterministic decoder"):
        quiet(nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Dropout()), z)
    with pytest.raises(DecoderError, match="draws random numbers"):
        quiet(lambda z: torch.relu(z) + torch.randn_like(z), z)
    with pytest.raises(DecoderError, match="Expected a tensor from the decoder"):
        quiet(lambda z: [torch.relu(z)], z, neighbourhood=None)


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


def test_tables_of_different_settings_are_not_joined() -> None:
    module, shape = decoders.relu_mlp()
    z = decoders.latents(shape, 2)
    table = quiet(module, z)
    other = quiet(module, z, generator=6)
    with pytest.raises(ValueError, match=r"made with the same seed, got 5 and 6: describe them"):
        approx.concatenate([table, other])
    with pytest.raises(ValueError, match="Expected at least one table"):
        approx.concatenate([])
    assert not approx.concatenate([table, replace(table, complete=False)]).complete


def test_tables_say_which_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    module, shape = decoders.relu_mlp()
    table = quiet(module, decoders.latents(shape, 2))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"Expected pandas to be installed.*cpwl\[table\]"):
        table.to_pandas()
