"""psi and nu by every method, against dense float64 Jacobians of CPWL and smooth decoders."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from support.decoders import DECODERS, latents
from support.matrices import WIDE, Matrices, jacobians, wide, with_values
from torch import Tensor

from approx import JacobianOperator, Spectrum, draw_seed, spectrum
from approx.sketches.probes import Probes, haar
from approx.spectra import prediction

PER_LATENT = (
    "psi", "nu", "psi_stderr", "nu_stderr", "psi_interval", "nu_interval", "effective_rank", "rank",
)  # fmt: skip
TALL_WIDE_LARGE = (400, 120), (100, 150), (130, 121)


def by_definition(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return psi and nu of positive singular values (B, k)."""
    s = values.numpy()
    alpha = s / s.sum(axis=1, keepdims=True) + 1e-30
    psi, nu = np.log(s).sum(axis=1), np.exp(-(alpha * np.log(alpha)).sum(axis=1))
    return torch.from_numpy(psi), torch.from_numpy(nu)


def positive(J: Tensor) -> bool:
    s = torch.linalg.svdvals(J)
    return bool((s[:, -1] > 1e-10 * s[:, 0]).all())


@pytest.mark.parametrize("name", DECODERS)
def test_exact_is_exact(name: str):
    module, shape = DECODERS[name]()
    z = latents(shape)
    J = jacobians(module, z)
    with JacobianOperator(module, z, dtype=torch.float64) as op:
        found = spectrum(op, method="exact")
        assert op.products == found.products == min(op.rows, op.columns)
    values = torch.linalg.svdvals(J)
    if positive(J):
        psi, nu = by_definition(values)
        torch.testing.assert_close(found.psi, psi, rtol=0, atol=1e-10)
    else:  # dead units: psi is of the values that matrix_rank counts
        rank = np.linalg.matrix_rank(J.numpy())
        assert found.rank.tolist() == rank.tolist()
        psi = torch.stack([v[:r].log().sum() for v, r in zip(values, rank, strict=True)])
        torch.testing.assert_close(found.psi, psi, rtol=0, atol=1e-10)
        nu = by_definition(values.clamp_min(1e-300))[1]
    torch.testing.assert_close(found.nu, nu, rtol=0, atol=1e-10)
    assert (found.psi_stderr > 0).all()
    assert (found.psi_stderr < 1e-10).all()
    assert found.seed is None


@pytest.mark.parametrize("name", DECODERS)
def test_paper_is_psi_and_nu_of_w_j(name: str):
    module, shape = DECODERS[name]()
    z = latents(shape)
    J = jacobians(module, z)
    k = 5
    with JacobianOperator(module, z, dtype=torch.float64) as op:
        found = spectrum(op, method="paper", k=k, generator=11)
        assert op.products == found.products == min(16, op.rows)
        W = haar(op.rows, k, generator=torch.Generator().manual_seed(11), dtype=torch.float64).T
    psi, nu = by_definition(torch.linalg.svdvals(W @ J))
    torch.testing.assert_close(found.psi, psi, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.nu, nu, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", WIDE)
def test_topk_is_near_the_true_values_at_440_products(name: str):
    module, z = wide(name)
    J = jacobians(module, z)
    psi, nu = by_definition(torch.linalg.svdvals(J)[:, :120])
    with JacobianOperator(module, z, dtype=torch.float64) as op:
        found = spectrum(op, method="topk", k=120, generator=0)
        assert found.products <= 440
        assert op.products == found.products
    assert (psi - 2 <= found.psi).all()
    assert (found.psi <= psi + 1e-9).all()
    assert (found.nu - nu).abs().max() < 0.5
    assert found.psi_interval[0, 0] - 1e-9 <= psi <= found.psi_interval[0, 1] + 1e-9
    assert found.psi_stderr.isnan().all()


@pytest.mark.parametrize(("rows", "columns"), [(1500, 1000), (1000, 1500)])
@pytest.mark.parametrize("decay", [0.3, 0.5, 1.0])
def test_topk_where_440_products_do_not_reach_the_whole_space(
    rows: int, columns: int, decay: float
):
    values = torch.arange(1, 1001, dtype=torch.float64) ** -decay
    op = Matrices(with_values(values, rows, columns)[None])
    found = spectrum(op, method="topk", generator=0)
    psi, nu = by_definition(values[None, :120])
    assert op.products == found.products == 440
    # slower decay than any decoder's leaves more to find: the bounds are what must hold there
    if decay >= 0.5:
        assert abs(found.psi - psi) < 2
        assert abs(found.nu - nu) < 0.5
    assert found.psi_interval[0, 0] <= psi <= found.psi_interval[0, 1]
    true = (values**2).sum() ** 2 / (values**4).sum()
    assert abs(found.effective_rank / true - 1) < 0.1


def test_predict_takes_16_products_and_says_what_it_is():
    module, z = wide("silu_conv", batch=2)
    with JacobianOperator(module, z) as op:
        found = spectrum(op, method="predict", k=20, generator=5)
        assert op.products == found.products == 16
    assert (found.method, found.used, found.k, found.seed) == ("predict", "predict", 20, 5)
    assert "W (20, D) Haar" in found.definition
    assert found.singular_values is None
    assert not found.fell_back.any()
    assert (found.psi_interval[:, 0] < found.psi).all()
    assert (found.psi < found.psi_interval[:, 1]).all()


def test_predict_falls_back_to_the_paper_latent_by_latent():
    flat = with_values(torch.ones(300), 400, 300)
    steep = with_values(torch.arange(1, 301.0) ** -1, 400, 300)
    between = with_values(torch.arange(1, 301.0) ** -0.35, 400, 300)  # k / r_eff = 0.7
    all_ = Matrices(torch.stack([flat, steep, between]))
    found = spectrum(all_, method="predict", k=60, generator=7)
    assert found.fell_back.tolist() == [False, True, False]
    assert found.used == (
        "predict for 1, predict from more products for 1, paper for 1 of 3 latents"
    )
    assert found.continued.tolist() == [False, False, True]
    # 64 rows for 60, 6 products of the prediction from 16 and 4 of the one from 30
    assert all_.products == found.products == 74
    paper = spectrum(Matrices(steep[None]), method="paper", k=60, generator=7)
    assert found.singular_values is not None
    assert found.singular_values.isnan().all(dim=1).tolist() == [True, False, True]
    for name in ("psi", "nu", "psi_stderr", "psi_interval", "singular_values"):
        torch.testing.assert_close(getattr(found, name)[1:2], getattr(paper, name))
    for at, J, products, used in (
        (0, flat, 16, "predict"),
        (1, steep, 70, "paper"),
        (2, between, 30, "predict from more products"),
    ):
        op = Matrices(J[None])
        alone = spectrum(op, method="predict", k=60, generator=7)
        assert (op.products, alone.products, alone.used) == (products, products, used)
        for name in PER_LATENT:
            torch.testing.assert_close(getattr(alone, name)[0], getattr(found, name)[at])


def test_predict_does_not_go_on_where_one_direction_decides():
    """k / r_eff may be 0.6 or anything: two probes tell little of one outlier."""
    values = torch.ones(300)
    values[0] = 5
    fell_back = []
    for seed in range(20):
        op = Matrices(with_values(values, 400, 300)[None])
        found = spectrum(op, method="predict", k=68, generator=seed)
        assert found.products == (78 if found.fell_back else 16)
        fell_back.append(bool(found.fell_back))
    assert sum(fell_back) > 10


def test_predict_falls_back_where_its_measure_has_no_room_for_k():
    """A rank of k and a bit, and products that say so after they have said r_eff = 1.25 k."""
    nodes, masses = torch.tensor([[[2.0, 1.0]], [[80.0, 60.0]]])
    m = prediction.Measure(nodes, masses, 10, 2, 400)
    assert prediction.resolved(m, 89).tolist() == [True]  # 100 directions
    assert prediction.resolved(m, 90).tolist() == [False]


@pytest.mark.parametrize("k", [10, 16, 81])
def test_predict_is_the_paper_where_that_is_known_beforehand(k: int):
    op = Matrices(with_values(torch.ones(100), 120, 100)[None])
    found = spectrum(op, method="predict", k=k, generator=7)
    assert op.products == max(16, k + 4)
    assert found.used == "paper"
    assert found.fell_back.all()
    assert torch.equal(found.psi, spectrum(op, method="paper", k=k, generator=7).psi)


def test_predict_of_a_projection_is_nearly_without_error():
    """All singular values equal and d = D: every sketch has the same values."""
    found = spectrum(Matrices(3 * with_values(torch.ones(200), 200, 200)[None]), k=40, generator=1)
    torch.testing.assert_close(found.psi[0].item(), 40 * math.log(3), rtol=0, atol=1e-3)
    torch.testing.assert_close(found.nu[0].item(), 40.0, rtol=0, atol=1e-6)
    assert found.psi_stderr < 1e-3
    torch.testing.assert_close(found.effective_rank[0].item(), 200.0, rtol=1e-9, atol=0)


# of k = 50, "predict" takes latents of gelu_mlp from 27 products, and some of relu_conv
@pytest.mark.parametrize(
    ("name", "method", "k"),
    [
        ("relu_conv", "predict", 24), ("relu_conv", "predict", 50), ("relu_conv", "paper", 24),
        ("gelu_mlp", "predict", 24), ("gelu_mlp", "predict", 50), ("gelu_mlp", "paper", 24),
        ("gelu_mlp", "topk", 24), pytest.param("relu_conv", "topk", 24, marks=pytest.mark.nightly),
    ],
)  # fmt: skip
def test_the_same_seed_gives_the_same_on_every_chunking_and_batching(name: str, method, k: int):
    module, z = wide(name, batch=3)
    results = []
    for batches, chunk in ([z], 16), ([z], 1), (z.split([2, 1]), 3), (z.split(1), "auto"):
        parts = []
        for part in batches:
            with JacobianOperator(module, part, chunk=chunk, dtype=torch.float64) as op:
                parts.append(spectrum(op, method=method, k=k, generator=3))
        results.append(parts)
    assert any(part.continued.any() for part in results[0]) == (k == 50)
    for field in ("psi", "nu", "psi_stderr", "nu_interval", "effective_rank", "rank"):
        first, *others = (torch.cat([getattr(r, field) for r in parts]) for parts in results)
        for other in others:
            torch.testing.assert_close(other, first, rtol=1e-8, atol=1e-8, equal_nan=True)


@pytest.mark.parametrize("method", ["predict", "paper", "topk"])
def test_single_precision_is_near_double(method):
    module, z = wide("relu_conv", batch=2)
    with JacobianOperator(module, z, dtype=torch.float64) as op:
        double = spectrum(op, method=method, k=24, generator=3)
    with JacobianOperator(module, z.float(), dtype=torch.float32) as op:
        single = spectrum(op, method=method, k=24, generator=3)
    torch.testing.assert_close(single.psi, double.psi, rtol=0, atol=1e-3)
    torch.testing.assert_close(single.nu, double.nu, rtol=0, atol=1e-3)
    assert single.psi.dtype == torch.float64


@pytest.mark.parametrize("method", ["predict", "paper"])
def test_bfloat16_products_move_psi_little(method):
    module, z = wide("relu_conv")
    J = jacobians(module, z)
    double = spectrum(Matrices(J), method=method, k=24, generator=3)
    half = spectrum(Matrices(J.bfloat16()), method=method, k=24, generator=3)
    assert abs(double.psi - half.psi) < 0.05
    assert abs(double.nu - half.nu) < 0.01


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        ("exact", torch.float64),
        *((m, d) for m in ("predict", "paper", "topk") for d in (torch.float64, torch.float32)),
    ],
)
def test_no_nan_on_zero_and_rank_deficient_jacobians(method, dtype: torch.dtype):
    J = torch.zeros(3, 150, 130, dtype=torch.float64)
    J[1] = with_values(torch.tensor([4.0, 2, 1]), 150, 130)
    J[2] = with_values(torch.linspace(2, 1, 130), 150, 130)
    found = spectrum(Matrices(J.to(dtype)), method=method, k=30, generator=0)
    assert found.rank.tolist() == [0, 3, 30]
    # the zeros of a matrix in float32 cannot be told from its rounding
    doubt = dtype == torch.float32
    assert found.doubtful.tolist() == [0, 27 if doubt else 0, 0]
    assert found.note.startswith("1 of 3 latents have singular values" if doubt else "")
    for field in dataclasses.fields(Spectrum):
        value = getattr(found, field.name)
        if doubt and field.name.startswith("psi"):
            assert value[1].isnan().all()
            value = value[[0, 2]]
        if isinstance(value, Tensor) and not (
            (method == "topk" and field.name.endswith("stderr"))
            or (method == "predict" and field.name == "singular_values")
        ):
            assert value.isfinite().all(), field.name
    assert found.psi[0] == found.nu[0] == found.effective_rank[0] == 0
    assert found.fell_back.tolist() == [method == "predict"] * 2 + [False]
    if method in ("topk", "exact") and not doubt:
        torch.testing.assert_close(found.psi[1].item(), math.log(8), rtol=0, atol=1e-4)


def test_a_dead_relu_gives_zero():
    module = torch.nn.Sequential(
        torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 40)
    ).double()
    with torch.no_grad():
        module[0].bias.fill_(-1e6)
    for method in "predict", "paper", "topk", "exact":
        with JacobianOperator(module, torch.randn(2, 20, dtype=torch.float64)) as op:
            found = spectrum(op, method=method, generator=0)  # type: ignore[arg-type]
        assert found.psi.tolist() == found.nu.tolist() == found.rank.tolist() == [0, 0]


def test_scale_is_carried_without_overflow():
    J = with_values(torch.linspace(2, 1, 200), 220, 200)[None]
    for method in "predict", "paper", "topk", "exact":
        one = spectrum(Matrices(J), method=method, k=40, generator=2)  # type: ignore[arg-type]
        for scale in 1e60, 1e-60:
            far = spectrum(Matrices(J * scale), method=method, k=40, generator=2)  # type: ignore[arg-type]
            shift = torch.tensor([40 * math.log(scale)], dtype=torch.float64)
            torch.testing.assert_close(far.psi - shift, one.psi, rtol=0, atol=1e-8)
            torch.testing.assert_close(far.nu, one.nu, rtol=0, atol=1e-8)
            torch.testing.assert_close(far.effective_rank, one.effective_rank, rtol=1e-8, atol=0)
            torch.testing.assert_close(
                far.psi_stderr, one.psi_stderr, rtol=1e-6, atol=0, equal_nan=True
            )


def test_effective_rank_is_unbiased_enough_by_every_method():
    values = torch.arange(1, 301, dtype=torch.float64) ** -0.3
    op = Matrices(with_values(values, 330, 300)[None])
    true = (values**2).sum() ** 2 / (values**4).sum()
    for method, within in ("exact", 1e-9), ("paper", 0.02), ("predict", 0.05):
        runs = 1 if method == "exact" else 60
        found = torch.cat(
            [spectrum(op, method=method, k=40, generator=s).effective_rank for s in range(runs)]  # type: ignore[arg-type]
        )
        assert abs(found.mean() / true - 1) < within


def test_auto_takes_the_whole_jacobian_where_it_is_small():
    tall, wide_, large = (Matrices(torch.eye(r, c)[None] * 2) for r, c in TALL_WIDE_LARGE)
    for op, n in (tall, 120), (wide_, 100):
        found = spectrum(op, max_bytes=1)
        assert (found.method, found.used, found.k, found.seed) == ("auto", "exact", n, None)
        assert (found.subscript, found.rank.tolist()) == ("", [n])
        assert found.definition == f"psi, nu: singular values of J, all {n}, dense"
        torch.testing.assert_close(found.psi.item(), n * math.log(2), rtol=0, atol=1e-9)
    found = spectrum(tall, k=7)
    assert (found.subscript, found.k) == ("k", 7)
    assert found.definition == "psi_k, nu_k: singular values of J, the 7 largest, dense"
    torch.testing.assert_close(found.psi.item(), 7 * math.log(2), rtol=0, atol=1e-9)
    found = spectrum(large, k=20, generator=4)
    assert (found.method, found.used, found.subscript, found.seed) == ("auto", "predict", "W", 4)
    assert torch.equal(found.psi, spectrum(large, method="predict", k=20, generator=4).psi)


def test_defaults():
    module, shape = DECODERS["relu_mlp"]()
    with JacobianOperator(module, latents(shape), dtype=torch.float64) as op:
        assert spectrum(op).k == 12
        assert spectrum(op, method="exact", k=3).k == 3
    assert spectrum(Matrices(torch.eye(150)[None]), method="paper").k == 120


def test_seeds():
    assert draw_seed(5) == 5
    generator = torch.Generator().manual_seed(1)
    first, second = draw_seed(generator), draw_seed(generator)
    assert first != second
    assert draw_seed(torch.Generator().manual_seed(1)) == first
    assert draw_seed(None) != draw_seed(None)
    op = Matrices(torch.eye(50)[None])
    state = torch.get_rng_state()
    drawn = spectrum(op, method="paper", k=20)
    assert torch.equal(state, torch.get_rng_state())
    assert drawn.seed is not None
    again = spectrum(op, method="paper", k=20, generator=drawn.seed)
    assert torch.equal(again.psi, drawn.psi)


def test_what_is_refused():
    op = Matrices(torch.ones(1, 6, 4))
    with pytest.raises(
        ValueError, match=r"Expected k between 1 and min\(outputs, latent size\) = 4, got 5"
    ):
        spectrum(op, k=5)
    with pytest.raises(
        ValueError, match="Expected method in auto, predict, paper, topk, exact, got 'x'"
    ):
        spectrum(op, method="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Expected products >= 8 for method='predict', got 7"):
        spectrum(op, method="predict", products=7)
    with pytest.raises(ValueError, match=r"Expected a relative tolerance in \[0, 1\), got -1"):
        spectrum(op, tolerance=-1)
    module, z = wide("relu_mlp")
    with (
        JacobianOperator(module, z) as large,
        pytest.raises(ValueError, match=r"Expected .*dense Jacobian.* of at most"),
    ):
        spectrum(large, method="exact", max_bytes=1000)


def test_tolerance_decides_what_is_zero():
    op = Matrices(with_values(torch.tensor([1, 2.0**-10, 1e-6]), 10, 8)[None])
    assert spectrum(op, method="exact").rank == 3
    found = spectrum(op, method="exact", tolerance=1e-4)
    assert found.rank == 2
    assert found.tolerance == 1e-4
    torch.testing.assert_close(found.psi[0].item(), -10 * math.log(2), rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ["predict", "paper", "topk"])
def test_probes_kept_for_several_calls_give_the_same(method):
    op = Matrices(with_values(torch.arange(1, 301.0) ** -0.3, 400, 300)[None])
    kept = Probes(3)
    for k in 60, 40, 60:
        found = spectrum(op, method=method, k=k, generator=kept)
        alone = spectrum(op, method=method, k=k, generator=3)
        assert found.seed == 3
        assert torch.equal(found.psi, alone.psi)
        assert torch.equal(found.psi_interval, alone.psi_interval)
