"""describe() interrupted, out of memory, or given what it cannot describe."""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support import decoders
from support.tables import Calls, assert_same, quiet
from torch import Tensor, nn

import approx
from approx import DecoderError, DescribeError


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


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


@pytest.mark.parametrize("cut", [list, lambda z: z.split(2)])
def test_a_stream_whose_first_latent_is_nan_is_of_the_same_latents(cut: Any) -> None:
    """And not of batches taken for latents with one axis more, which a linear layer runs on."""
    module, shape = decoders.relu_mlp()
    z = decoders.latents(shape, 6)
    z[0] = math.nan
    assert_same(quiet(module, z, on_error="nan"), quiet(module, cut(z), on_error="nan"))


def test_an_array_of_unknown_length_is_refused() -> None:
    dask = pytest.importorskip("dask.array")
    module, shape = decoders.relu_mlp()
    z = dask.from_array(decoders.latents(shape, 6).numpy(), chunks=2)
    with pytest.raises(ValueError, match=r"got \(nan, .*: call latents.compute_chunk_sizes"):
        quiet(module, z[z[:, 0] < 9])


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
    calls = Calls.after(z[:4], module, interrupt, batch=2)
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
    z = decoders.latents(shape, 4)
    calls = Calls.after(z[:2], module, interrupt, batch=1)
    with pytest.warns(RuntimeWarning, match="Interrupted after 2 latents"):
        quiet(calls, z, batch=1)
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


def test_one_bad_latent_of_many_gets_a_row_of_nan() -> None:
    module, shape = decoders.relu_mlp()

    class Pole(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return module(z) / (z[:, :1] - 7)

    z = decoders.latents(shape, 41)
    good = quiet(Pole(), z, batch=16)
    bad = z.clone()
    bad[[0, 20, 40], 0] = 7
    bad[21, 3] = math.nan
    table = quiet(Pole(), bad, batch=16, on_error="nan")
    assert [number for number, _ in table.failures] == [0, 20, 21, 40]
    assert [reason.split(",")[0] for _, reason in table.failures] == [
        *["Expected finite outputs"] * 2, "Expected finite latents", "Expected finite outputs",
    ]  # fmt: skip
    lost = np.isin(np.arange(41), [0, 20, 21, 40])
    for name, column in table.columns().items():
        if name in ("products", "fell_back"):
            assert not column[lost].any()
        else:
            assert np.isnan(column[lost]).all(), name
            np.testing.assert_allclose(column[~lost], good.columns()[name][~lost], 2e-5, 1e-4)
    assert "4 failed" in repr(table)
    assert "latent 20: Expected finite outputs" in str(table.attributes()["failures"])
    parts = [quiet(Pole(), part, on_error="nan") for part in (bad[:15], bad[15:])]
    assert [number for number, _ in approx.concatenate(parts).failures] == [0, 20, 21, 40]


def test_a_job_in_which_every_latent_fails_is_refused() -> None:
    with pytest.raises(DecoderError, match=r"finite outputs, got NaN .* for latents 1, 2: check"):
        quiet(lambda z: torch.relu(z) / 0.0, torch.ones(3, 4), on_error="nan")
    with pytest.raises(ValueError, match="at least one latent that can be described, got 1"):
        quiet(nn.Linear(4, 5), torch.full((1, 4), math.inf), on_error="nan")


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (torch.zeros(3, 12, dtype=torch.int64), "Expected floating-point .* torch.int64"),
        ([torch.zeros(2, 12, dtype=torch.int64)], "Expected floating-point latents"),
        (torch.full((3, 12), math.nan), "Expected finite latents, got NaN"),
        (torch.zeros(12), r"Expected latents of shape \(B, \*latent_shape\)"),
        ([], "Expected at least one latent, got an empty iterable"),
        (["abc"], "Expected an iterable of tensors or arrays, got str as item 0: give latents"),
        (7, "Expected latents as a tensor, an array or an iterable of these, got int: give"),
        (np.array([["a"]]), "Expected latents as numbers, got an array of <U1: convert it"),
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
        ({"neighbourhood": (0, 1e-5)}, "Expected between 1 and 12 directions .* got 0"),
        ({"neighbourhood": 3}, r"Expected neighbourhood as \(P, r\), directions and radius, got 3"),
        ({"on_error": "skip"}, "Expected on_error as 'raise' or 'nan', got 'skip'"),
        ({"seed": 1}, "Expected seed= or generator=, got seed=1 and generator=5: leave one"),
        ({"max_bytes": -1.0}, "Expected max_bytes as a positive number, got -1.0"),
        ({"neighbourhood": (4, 0.0)}, "Expected a positive radius, got 0.0"),
        ({"neighbourhood": (4, -1.0)}, "Expected a positive radius, got -1.0"),
        ({"neighbourhood": (4, math.nan)}, "Expected a positive radius, got nan"),
        ({"batch": 0}, "Expected batch as a positive integer or 'auto', got 0"),
        ({"batch": "all"}, "Expected batch as a positive integer or 'auto', got 'all'"),
        ({"method": "slq"}, "Expected method in auto, predict, paper, topk, exact, got 'slq'"),
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


def test_tables_of_different_settings_are_not_joined() -> None:
    module, shape = decoders.relu_mlp()
    z = decoders.latents(shape, 2)
    table = quiet(module, z)
    with pytest.raises(ValueError, match="made with the same method, got paper and topk"):
        approx.concatenate([quiet(module, z, method=name) for name in ("paper", "topk")])
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
