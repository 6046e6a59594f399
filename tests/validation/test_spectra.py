"""The comparison of spectra: right where they are known, failing where an estimator is wrong."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.special import digamma, polygamma
from scipy.stats import ks_2samp
from support import decoders
from support.samples import mlp
from support.subjects import Sawtooth, exact, perturbed, picked, smooth
from torch import nn

import cpwl
from approx import JacobianOperator, Spectrum
from bridges.validation import spectra
from bridges.validation.findings import Row
from bridges.validation.spectra.haar import law, psi_nu, truth
from bridges.validation.spectra.rows import rows_of
from bridges.validation.subject import Subject

SQUARE = cpwl.box([-2.0, -2.0], [2.0, 2.0])
METHODS = spectra.default_methods()


def plane(*shape: int) -> cpwl.Domain:
    """Return a square of a random plane through latents of a shape."""
    through = np.random.default_rng(5).standard_normal((3, *shape))
    return cpwl.Slice.through(*through).box([-2.0, -2.0], [2.0, 2.0])


@cache
def small() -> Subject:
    """Two coordinates in, three out: as small as generators are."""
    return exact(mlp(2, 12, 12, 3), SQUARE)


@cache
def wide() -> Subject:
    """A linear map of a latent large enough for predictions; its singular values fall slowly."""
    values = np.linspace(2.0, 0.8, 130)
    module, shape = decoders.linear(list(values), rows=200)
    return exact(module, plane(*shape))


@cache
def of_wide() -> spectra.Spectra:
    return spectra.measure(wide(), latents=3)


def disagreeing(result: spectra.Spectra) -> list[tuple[str, str, str]]:
    return [(r.quantity, r.case, r.statistic) for r in result.rows if not r.agrees]


def only(result: spectra.Spectra, **wanted: str) -> Row:
    (row,) = (r for r in result.rows if all(getattr(r, k) == v for k, v in wanted.items()))
    return row


# the law of W A


def test_the_law_of_a_square_product_is_wishart():
    """At k = E, psi_W = psi + log |det W U|, and |det W U|^2 is a product of betas."""
    D, k, values = 7, 3, np.array([[3.0, 1.0, 0.2], [0.5, 0.4, 0.3]])
    found = law(values, D, k, k, 4000, np.random.default_rng(0))
    i = np.arange(k)
    mean = (digamma((k - i) / 2) - digamma((D - i) / 2)).sum() / 2
    variance = (polygamma(1, (k - i) / 2) - polygamma(1, (D - i) / 2)).sum() / 4
    shift = found.psi - np.log(values).sum(axis=1)
    np.testing.assert_allclose(shift.mean(axis=0), mean, atol=4 * math.sqrt(variance / 4000))
    np.testing.assert_allclose(shift.var(axis=0), variance, rtol=0.2)
    np.testing.assert_allclose(shift[:, 0], shift[:, 1], rtol=1e-12)  # one W for both


def test_the_law_is_that_of_an_explicit_projection():
    rng = np.random.default_rng(1)
    A = rng.standard_normal((9, 5)) * [5.0, 2.0, 1.0, 0.5, 0.1]
    values = np.linalg.svd(A, compute_uv=False)
    found = law(values[None], 9, 5, 3, 1500, rng)
    psi, nu = np.empty((2, 1500))
    for i in range(1500):
        q, r = np.linalg.qr(rng.standard_normal((9, 3)))
        W = (q * np.sign(np.diag(r))).T
        sigma = np.linalg.svd(W @ A, compute_uv=False)
        alpha = sigma / sigma.sum()
        psi[i], nu[i] = np.log(sigma).sum(), np.exp(-(alpha * np.log(alpha)).sum())
    assert ks_2samp(found.psi[:, 0], psi).pvalue > 1e-3
    assert ks_2samp(found.nu[:, 0], nu).pvalue > 1e-3


def test_psi_and_nu_are_those_of_the_values_that_are_not_zero():
    psi, nu = psi_nu(np.array([[4.0, 4.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]), 1e-12)
    np.testing.assert_allclose(psi, [2 * math.log(4), 0, 0], atol=1e-15)
    np.testing.assert_allclose(nu, [2, 0, 3], rtol=1e-12)


def test_values_are_zero_as_numpy_has_it_and_unclear_between():
    J = np.zeros((3, 4, 3))
    J[:, [0, 1, 2], [0, 1, 2]] = [[1.0, 0.5, 0.0], [1.0, 0.5, 2e-15], [1.0, 0.5, 1e-3]]
    found = truth(J)
    assert found.clear.tolist() == [True, False, True]
    ranks = np.linalg.matrix_rank(J)
    np.testing.assert_array_equal((found.values > 0).sum(axis=1), ranks)


# agreement where the answer is known


def test_a_linear_map_has_the_singular_values_that_it_was_made_of():
    values = np.geomspace(4.0, 0.01, 12)
    module, shape = decoders.linear(list(values))
    result = spectra.measure(exact(module, plane(*shape)), latents=4)
    np.testing.assert_allclose(result.singular_values, np.tile(values, (4, 1)), rtol=1e-12)
    assert result.k == 6
    np.testing.assert_allclose(result.runs["exact"].psi, np.log(values).sum(), rtol=1e-12)
    np.testing.assert_allclose(result.runs["topk"].psi, np.log(values[:6]).sum(), rtol=1e-12)
    rest = only(result, case="topk, k = 6, all of J", quantity="psi", statistic="bias").value
    assert rest == pytest.approx(-np.log(values[6:]).sum(), rel=1e-12)
    assert not disagreeing(result)


def test_every_method_of_a_large_latent_agrees_and_is_claimed():
    result = of_wide()
    assert result.k == int(0.35 * truth_rank(result))
    assert not result.runs["predict"].fell_back.any()
    assert not disagreeing(result)
    claimed = {(r.case.split(",")[0], r.quantity, r.statistic) for r in result.rows if r.claimed}
    statistics = "bias", "stated error over actual", "coverage of the 95 % interval"
    for descriptor in ("psi", "nu"):
        for statistic in statistics:
            assert ("paper", descriptor, statistic) in claimed
            assert ("predict", descriptor, statistic) in claimed
        assert ("topk", descriptor, "coverage of the bound") in claimed


def truth_rank(result: spectra.Spectra) -> float:
    squares = result.singular_values**2
    return float((squares.sum(axis=1) ** 2 / (squares**2).sum(axis=1)).min())


def test_the_sketch_measures_a_norm_and_an_effective_rank():
    """To first order in k / r_eff, with what the orthonormal rows of W add; far from all of J."""
    result = of_wide()
    psi, nu = picked(result.rows, case="W J")
    assert psi.statistic == "mean less k log(|J|_F / sqrt D) - k^2 / (4 r_eff)"
    added = result.k**2 / (4 * 200)
    assert f"add about k^2 / (4 D) = {added:.2g}" in psi.note
    assert abs(psi.value - added) < 0.02 * result.k
    assert abs(nu.value) < 0.02 * result.k
    away = only(result, case=f"paper, k = {result.k}, all of J", quantity="psi", statistic="bias")
    assert abs(away.value) > 10 * abs(psi.value)


def test_errors_fall_as_products_grow():
    curves = of_wide().convergence
    assert np.all(np.diff(curves["predict"].psi) < 0)
    assert list(curves["predict"].products) == [8, 16, 32]
    assert np.all(np.diff(curves["topk"].psi) < 0)
    assert -0.8 < curves["paper"].slope("psi") < -0.2
    slopes = picked(of_wide().rows, statistic="slope")
    assert {row.case.split(",")[0] for row in slopes} == {"predict", "paper"}
    assert curves["exact"].psi[0] < 1e-10


def test_two_coordinates_are_enough_and_a_prediction_falls_back():
    result = spectra.measure(small())
    assert result.k == 2
    assert not disagreeing(result)
    row = only(result, case="predict, k = 2")
    assert (row.statistic, row.value) == ("share that fell back", 1.0)
    assert row.note.startswith("its numbers are those of paper: k = 2 is too near")
    assert not result.convergence["predict"].products.size
    order = picked(result.rows, case="topk, k = 2, all of J", statistic="rank")
    assert [r.value for r in order] == [pytest.approx(1.0, abs=1e-3)] * 2
    spectra.draw(result, Figure())


def test_one_coordinate_and_one_output():
    """W is then 1 or -1: nothing is spread, and the values are the slopes."""
    result = spectra.measure(exact(Sawtooth(4), cpwl.box([0.0], [1.0])), latents=9)
    assert not disagreeing(result)
    np.testing.assert_allclose(result.runs["paper"].psi, math.log(16), rtol=1e-12)
    assert not picked(result.rows, statistic="stated")
    spectra.draw(result, Figure())


def test_a_bottleneck_leaves_zeros_that_all_methods_leave_out():
    module = mlp(10, 4, 20)
    result = spectra.measure(exact(module, plane(10)), k=6, latents=20)
    assert (result.singular_values[:, 4:] == 0).all()
    bounded = picked(result.rows, case="exact") + picked(result.rows, case="topk, k = 6")
    assert all(row.agrees for row in bounded)


def test_a_constant_decoder_has_no_scaling_and_no_rank():
    module = mlp(2, 4, 3)
    with torch.no_grad():
        module[2].weight.zero_()
    result = spectra.measure(exact(module, SQUARE), seeds=9)
    assert not disagreeing(result)
    for one in result.runs.values():
        assert not one.psi.any()
        assert not one.nu.any()
    assert not picked(result.rows, case="W J")
    spectra.draw(result, Figure())


def test_a_smooth_decoder_is_compared_with_autograd():
    module, shape = decoders.attention()
    result = spectra.measure(smooth(module, plane(*shape)), latents=5, seeds=20)
    assert not disagreeing(result)
    assert result.k == 18


# negative controls


def factor(sign: int, name: str) -> dict[str, spectra.Estimator]:
    """Return a method with the scale k log sqrt(D / k) of the rows of W added or taken away."""

    def estimator(op, k: int, seed: int) -> Spectrum:
        s = METHODS[name](op, k, seed)
        shift = sign * k * math.log(math.sqrt(op.rows / k))
        return replace(s, psi=s.psi + shift, psi_interval=s.psi_interval + shift)

    return {name: estimator}


@pytest.mark.parametrize("sign", [-1, 1], ids=["lacks", "extra"])
@pytest.mark.parametrize("name", ["paper", "predict"])
def test_a_dropped_or_extra_scale_factor_is_a_bias(name: str, sign: int):
    result = spectra.measure(wide(), methods=factor(sign, name), latents=3, seeds=20)
    row = only(result, quantity="psi", case=f"{name}, k = {result.k}", statistic="bias")
    assert row.verdict == "DISAGREES"
    assert row.value * sign > 0


@pytest.mark.parametrize("sign", [-1, 1], ids=["lacks", "extra"])
def test_the_factor_is_seen_with_two_coordinates_too(sign: int):
    result = spectra.measure(small(), methods=factor(sign, "paper"))
    assert ("psi", "paper, k = 2", "bias") in disagreeing(result)


@pytest.mark.parametrize("name", ["paper", "predict"])
def test_a_halved_interval_does_not_cover(name: str):
    def estimator(op, k: int, seed: int) -> Spectrum:
        s = METHODS[name](op, k, seed)
        return replace(s, psi_interval=(s.psi_interval + s.psi[:, None]) / 2)

    result = spectra.measure(wide(), methods={name: estimator}, latents=3)
    case = f"{name}, k = {result.k}"
    assert disagreeing(result) == [("psi", case, "coverage of the 95 % interval")]


@pytest.mark.parametrize("share", [0.4, 2.0])  # of one that may be 1.6 times the actual
def test_a_stated_error_of_another_size_is_noticed(share: float):
    def estimator(op, k: int, seed: int) -> Spectrum:
        s = METHODS["predict"](op, k, seed)
        return replace(s, nu_stderr=share * s.nu_stderr)

    result = spectra.measure(wide(), methods={"mine": estimator}, latents=3)
    assert disagreeing(result) == [("nu", f"mine, k = {result.k}", "stated error over actual")]


def test_a_bound_that_is_too_low_is_noticed():
    """A Krylov space of one block that calls its values exact."""

    def estimator(op, k: int, seed: int) -> Spectrum:
        s = METHODS["topk"](op, k, seed)
        return replace(s, psi=s.psi - 0.1, psi_interval=s.psi_interval - 0.1)

    result = spectra.measure(wide(), methods={"topk": estimator}, k=10, latents=3)
    assert disagreeing(result) == [("psi", "topk, k = 10", "coverage of the bound")]


def test_one_perturbed_weight_is_seen_by_the_exact_method():
    module = mlp(2, 12, 12, 3)
    result = spectra.measure(exact(module, SQUARE, perturbed(module)))
    failed = disagreeing(result)
    assert ("psi", "exact, k = 2", "worst error over condition") in failed
    assert ("nu", "exact, k = 2", "worst relative error") in failed


def test_an_error_that_float32_does_not_keep_is_noticed():
    """psi of a float32 decoder, off by ten of its stated errors."""
    subject = replace(small(), decoder=copy.deepcopy(small().decoder).float())
    result = spectra.measure(subject, latents=6, seeds=2)
    assert only(result, case="all of J, in float32").agrees
    single = result.single
    assert single is not None
    off = single._replace(psi=single.exact + 10 * single.error)
    row = only(
        replace(result, rows=rows_of(replace(result, single=off))), case="all of J, in float32"
    )
    assert row.value == pytest.approx(10)
    assert not row.agrees


def test_an_operator_unlike_its_matrix_is_noticed():
    def estimator(op, k: int, seed: int) -> Spectrum:
        s = METHODS["paper"](op, k, seed)
        return replace(s, psi=s.psi + 1e-6) if isinstance(op, JacobianOperator) else s

    result = spectra.measure(small(), methods={"paper": estimator})
    assert disagreeing(result) == [("psi", "paper, matrix-free", "worst difference from dense J")]


# what else


def test_results_follow_the_seed():
    one, same, other = (spectra.measure(small(), seeds=5, latents=4, seed=s) for s in (1, 1, 2))
    assert one.rows == same.rows
    assert one.rows != other.rows


def test_a_figure_has_three_panels_for_each_descriptor_whatever_the_methods():
    every = of_wide()
    result = spectra.measure(
        wide(), methods={"mine": METHODS["predict"], "exact": METHODS["exact"]}, latents=3, seeds=9
    )
    for shown in (every, result):
        figure = Figure()
        spectra.draw(shown, figure)
        assert len(figure.axes) == 6
    assert "mine" in result.convergence
    figure = Figure()
    spectra.draw(spectra.measure(small(), methods={"exact": METHODS["exact"]}), figure)
    assert len(figure.axes) == 6


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"latents": 0}, "Expected latents >= 1, got 0: errors are from as many."),
        ({"seeds": 1}, "Expected seeds >= 2, got 1: errors are from as many."),
        ({"draws": 1}, "Expected draws >= 2, got 1: errors are from as many."),
        ({"k": 3}, r"Expected k between 1 and min\(D, E\) = 2, got 3"),
        ({"methods": {}}, "Expected methods, got none: leave them out"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, text: str):
    with pytest.raises(ValueError, match=text):
        spectra.measure(small(), **arguments)


def test_an_estimate_of_something_unknown_is_refused():
    def estimator(op, k: int, seed: int) -> Spectrum:
        return replace(METHODS["paper"](op, k, seed), method="slq")

    with pytest.raises(ValueError, match=r"Expected 'mine' to return a Spectrum .* got 'slq'"):
        spectra.measure(small(), methods={"mine": estimator}, seeds=2)


def test_methods_and_random_state_of_the_caller_stay_as_they_were():
    before = torch.get_rng_state()
    module = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)).train()
    state = torch.get_rng_state()
    spectra.measure(exact(module, SQUARE), seeds=2, latents=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training
    torch.set_rng_state(before)
