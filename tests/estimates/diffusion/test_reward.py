"""Rewards: noisy samples, the classifier and what it is worth, gradients of psi and |J|^2."""

from __future__ import annotations

import copy
import math
import time
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import approx
from approx import DecoderError
from approx.diffusion import (
    ClassifierReward,
    ExactReward,
    Level,
    Schedule,
    SketchReward,
    diffusion_levels,
    reward,
)
from approx.diffusion.reward import Collected
from bridges.networks.diffusion import mnist_decoder

_SCHEDULE = Schedule(diffusion_levels([0.99, 0.8, 0.5, 0.1], [3, 2, 1, 0]), "epsilon")


def _gradient(of: object, z: Tensor) -> Tensor:
    z = z.clone().requires_grad_()
    return torch.autograd.grad(of(z).sum(), z)[0]  # type: ignore[operator]


def _smooth(seed: int = 0, *, d: int = 4, rows: int = 7) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(d, 9), nn.SiLU(), nn.Linear(9, rows), nn.Tanh()).double()


# exact gradients


def test_psi_of_exponentials_has_the_gradient_that_stands_in_the_exponent() -> None:
    a = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    exact = ExactReward(lambda z: torch.exp(a * z) / a)
    z = torch.tensor([[0.1, 0.2, 0.3], [1.0, -1.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(exact(z), z @ a, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(_gradient(exact, z), a.expand_as(z), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [7, 4, 3], ids=["tall", "square", "wide"])
def test_psi_and_its_gradient_are_those_of_half_a_log_determinant(rows: int) -> None:
    decoder = _smooth(rows=rows)

    def psi(z: Tensor) -> Tensor:
        J = torch.func.jacrev(decoder)(z)
        gram = J.T @ J if rows >= 4 else J @ J.T
        return torch.linalg.slogdet(gram)[1] / 2

    z = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    exact = ExactReward(decoder)
    torch.testing.assert_close(exact(z), torch.stack([psi(x) for x in z]), rtol=1e-9, atol=1e-9)
    oracle = torch.stack([torch.func.grad(psi)(x) for x in z])
    torch.testing.assert_close(_gradient(exact, z), oracle, rtol=1e-8, atol=1e-8)


def test_values_are_those_of_describe_and_leave_the_decoder_as_it_was() -> None:
    decoder = _smooth().float()
    decoder[0].weight.requires_grad_(False)
    before = copy.deepcopy(decoder.state_dict())
    z = torch.randn(3, 4)
    state = torch.get_rng_state()
    found = ExactReward(decoder)(z)
    _gradient(ExactReward(decoder), z)
    _gradient(SketchReward(decoder), z)
    assert torch.equal(state, torch.get_rng_state())
    table = approx.describe(decoder, z, neighbourhood=None, generator=0, progress=False)
    np.testing.assert_allclose(found, table.psi, rtol=1e-5, atol=1e-5)
    assert [p.requires_grad for p in decoder.parameters()] == [False, True, True, True]
    assert all(p.grad is None for p in decoder.parameters())
    assert all(
        torch.equal(a, b)
        for a, b in zip(before.values(), decoder.state_dict().values(), strict=True)
    )


def test_all_latents_and_tangents_take_one_pass_of_the_decoder() -> None:
    rows: list[int] = []

    class Counting(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            rows.append(len(z))
            return torch.exp(z)

    _gradient(ExactReward(Counting()), torch.randn(36, 36))
    # one latent for the shape of its output, and one on no device for its memory; then all 36,
    # with all of their 36 tangents
    assert rows == [1, 1, 36]


@pytest.mark.nightly
def test_what_a_batch_of_digits_costs_against_one_at_a_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    decoder = mnist_decoder()
    z = torch.randn(36, 1, 6, 6, generator=torch.Generator().manual_seed(0))

    def alone(derivative: Any) -> Any:
        def psi(x: Tensor) -> Tensor:
            J = derivative(lambda v: decoder(v.reshape(1, 1, 6, 6)).flatten())(x)
            return torch.logdet(J.T @ J) / 2

        # fused attention has no second derivative
        def gradients(some: Tensor) -> Tensor:
            with sdpa_kernel(SDPBackend.MATH):
                return torch.stack([torch.func.grad(psi)(x.flatten()) for x in some])

        return gradients

    def each(some: Tensor) -> Tensor:
        return torch.cat([_gradient(ExactReward(decoder), x[None]) for x in some])

    ways: dict[str, tuple[Any, int]] = {
        "batched": (lambda some: _gradient(ExactReward(decoder), some), 36),
        "ExactReward, one latent at a time": (each, 12),
        "torch.func.jacfwd, one latent at a time": (alone(torch.func.jacfwd), 12),
        "torch.func.jacrev, one latent at a time": (alone(torch.func.jacrev), 1),
    }
    _gradient(ExactReward(decoder), z[:1])
    seconds, found = {}, {}
    for name, (way, count) in ways.items():
        begun = time.perf_counter()
        found[name] = way(z[:count]).flatten(1)
        seconds[name] = (time.perf_counter() - begun) / count
    with capsys.disabled():
        for name, spent in seconds.items():
            print(f"\n{name}: {spent:.3f} s a latent, {spent / seconds['batched']:.1f} x", end="")
    for gradients in found.values():
        gap = gradients.detach() - found["batched"][: len(gradients)]
        assert float(gap.norm() / gradients.detach().norm()) < 1e-3


def test_the_chain_rule_goes_on_before_and_behind_a_reward() -> None:
    exact = ExactReward(torch.exp)
    z = torch.tensor([[0.5, 1.0], [2.0, 3.0]], requires_grad=True)
    value = 3 * exact(2 * z) * torch.tensor([1.0, -1.0])
    (found,) = torch.autograd.grad(value.sum(), z)
    torch.testing.assert_close(found, torch.tensor([[6.0, 6.0], [-6.0, -6.0]]))
    with torch.no_grad():
        assert not exact(z).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(exact(z), z.sum(1))


def test_a_decoder_in_half_precision_is_differentiated_in_float32() -> None:
    decoder = _smooth().float()
    half = copy.deepcopy(decoder).half()
    z = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).half()
    found = _gradient(ExactReward(half), z)
    assert found.dtype == torch.float16
    oracle = _gradient(ExactReward(copy.deepcopy(half).float()), z.float())
    torch.testing.assert_close(found, oracle.half(), rtol=0, atol=0)


class _Bend(nn.Module):
    """One piecewise linear function that is no module of torch's."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)  # type: ignore[operator]


_BENDS = {
    "relu": nn.ReLU(),
    "leaky": nn.LeakyReLU(0.1),
    "prelu": nn.PReLU(),
    "hardtanh": nn.Hardtanh(),
    "abs": _Bend(torch.abs),
    "maximum": _Bend(lambda x: torch.maximum(x, x.roll(1, -1))),
    "where": _Bend(lambda x: torch.where(x > 0, x, 0.1 * x)),
    "sort": _Bend(lambda x: x.sort(-1).values),
    "pool": _Bend(lambda x: nn.functional.max_pool1d(x[:, None], 3, 1, 1)[:, 0]),
    "none": nn.Identity(),
}


@pytest.mark.parametrize("make", [ExactReward, SketchReward])
@pytest.mark.parametrize("bend", _BENDS)
def test_piecewise_linear_decoders_are_refused_by_name(bend: str, make: type) -> None:
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(3, 8), _BENDS[bend], nn.Linear(8, 6))
    z = torch.randn(4, 3)
    with pytest.raises(DecoderError, match="second derivative, got gradients of exactly 0 here"):
        _gradient(make(decoder), z)
    # one smooth layer at the end, and there is something to differentiate
    curved = nn.Sequential(nn.Linear(3, 8), nn.LeakyReLU(0.1), nn.Linear(8, 6), nn.Tanh())
    assert _gradient(make(curved), z).flatten(1).norm(dim=1).min() > 0


def test_a_gradient_that_happens_to_be_zero_is_none_of_a_piecewise_linear_decoder() -> None:
    found = _gradient(SketchReward(lambda z: z + z**3), torch.zeros(2, 3))
    assert torch.equal(found, torch.zeros(2, 3))


def test_psi_alone_of_a_relu_decoder_is_a_number() -> None:
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(3, 20), nn.ReLU(), nn.Linear(20, 9)).double()
    z = torch.randn(2, 3, dtype=torch.float64)
    J = torch.stack([torch.func.jacrev(decoder)(x) for x in z])
    torch.testing.assert_close(ExactReward(decoder)(z), torch.linalg.svdvals(J).log().sum(1))


def test_jacobians_that_lack_rank_are_refused_by_name() -> None:
    def decoder(z: Tensor) -> Tensor:
        return torch.stack([z[:, 0].exp(), z[:, 0].sin(), z[:, 1] ** 2], dim=1)

    z = torch.tensor([[0.3, 1.0], [0.2, 0.0]])
    with pytest.raises(DecoderError, match=r"full rank, 2 here, got .* zero .* in latent 1"):
        _gradient(ExactReward(decoder), z)


def test_jacobians_too_large_for_dense_ones_are_refused() -> None:
    with pytest.raises(DecoderError, match=r"dense Jacobian of at most .* take SketchReward"):
        ExactReward(torch.exp)(torch.zeros(1, 40_000))


def test_latents_of_another_shape_are_refused_in_words() -> None:
    for make in (ExactReward, SketchReward):
        with pytest.raises(DecoderError, match=r"runs on latents of shape \(B, 5\)"):
            make(_smooth().float())(torch.zeros(2, 5))


def test_derivatives_that_are_not_finite_are_refused() -> None:
    def decoder(z: Tensor) -> Tensor:
        return z.abs().sqrt()

    for make in (ExactReward, SketchReward):
        with pytest.raises(DecoderError, match="finite derivatives, got NaN or infinity for lat"):
            _gradient(make(decoder), torch.tensor([[0.0, 1.0]]))


# products


def test_sketched_values_and_gradients_are_unbiased() -> None:
    decoder = _smooth()

    def size(z: Tensor) -> Tensor:
        return torch.func.jacrev(decoder)(z).square().sum()

    z = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    copies = z.expand(4000, 4)  # each with its own random vectors
    one = SketchReward(decoder, probes=1, seed=0)
    J = torch.func.jacrev(decoder)(z)
    values = one(copies).detach()
    gradients = _gradient(one, copies)
    for found, true in ((values[:, None], size(z)), (gradients, torch.func.grad(size)(z))):
        error = found.std(0) / math.sqrt(len(found))
        assert ((found.mean(0) - true).abs() < 3.5 * error).all()
    # as the docstring says
    variance = 2 * (J @ J.T).square().sum()
    assert float(values.var() / variance.detach()) == pytest.approx(1, abs=0.2)


def test_more_probes_come_closer_and_the_logarithm_is_that_of_the_same_estimate() -> None:
    decoder, z = _smooth(), torch.randn(3, 4, dtype=torch.float64)
    plain = SketchReward(decoder, probes=5, seed=1)
    logarithm = SketchReward(decoder, probes=5, seed=1, log=True)
    assert torch.equal(plain(z).log(), logarithm(z))
    plain, logarithm = (SketchReward(decoder, 5, 1, log) for log in (False, True))
    value = SketchReward(decoder, 5, 1)(z)
    torch.testing.assert_close(_gradient(logarithm, z), _gradient(plain, z) / value[:, None])


def test_a_seed_gives_the_same_calls_again_each_with_other_probes() -> None:
    decoder, z = _smooth(), torch.randn(2, 4, dtype=torch.float64)
    first, second = (SketchReward(decoder, seed=3) for _ in range(2))
    one, two = first(z), first(z)
    assert not torch.equal(one, two)
    assert torch.equal(one, second(z))
    assert torch.equal(two, second(z))
    with pytest.raises(ValueError, match="at least one probe, got 0"):
        SketchReward(decoder, probes=0)


# noisy samples


def _ring(count: int = 400, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return points of the plane, and the radius for each."""
    z = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    return z, z.norm(dim=1)


def test_samples_are_alpha_codes_and_sigma_noise_at_their_level() -> None:
    codes, radius = _ring(2000)
    found = reward.collect(codes, radius, _SCHEDULE, times=3, generator=0)
    assert len(found) == 6000
    assert [level.time for level in found.levels] == [3, 1, 0]  # as the schedule has them
    for number, level in enumerate(found.levels):
        at = found.level == number
        noise = (found.samples[at] - level.alpha * codes[found.code[at]]) / level.sigma
        assert float(noise.mean()) == pytest.approx(0, abs=0.05)
        assert float(noise.std()) == pytest.approx(1, abs=0.03)
    again = reward.collect(codes, radius, _SCHEDULE, times=3, generator=found.seed)
    assert torch.equal(again.samples, found.samples)


def test_copies_of_a_code_are_on_one_side_and_in_one_bin() -> None:
    codes, radius = _ring(50)
    found = reward.collect(codes, radius, _SCHEDULE, times=4, generator=0, held_out=0.3)
    for code in range(50):
        at = found.code == code
        assert len(found.held_out[at].unique()) == len(found.bin[at].unique()) == 1
    assert int(found.held_out.sum()) == 4 * 15


@pytest.mark.parametrize("binning", ["uniform", "quantile"])
def test_bins_hold_what_lies_between_their_edges(binning: str) -> None:
    codes, radius = _ring(1000)
    found = reward.collect(codes, radius, _SCHEDULE, times=1, generator=0, binning=binning)  # type: ignore[arg-type]
    edges = np.array(found.edges)
    for value, number in zip(radius[found.code].double().numpy(), found.bin, strict=True):
        assert edges[number] <= value <= edges[number + 1]
    assert found.counts.sum() == 1000
    if binning == "uniform":
        np.testing.assert_allclose(np.diff(edges), np.diff(edges)[0])
    else:
        assert (found.counts == 200).all()


def test_codes_without_a_number_are_refused_or_left_out_and_counted() -> None:
    codes, radius = _ring(40)
    radius[[3, 8]] = math.nan
    with pytest.raises(ValueError, match="finite psi, got NaN or infinity for 2 of 40 codes"):
        reward.collect(codes, radius, _SCHEDULE, times=1)
    found = reward.collect(codes, radius, _SCHEDULE, times=1, drop=True)
    assert found.dropped == 2
    assert not {3, 8} & set(found.code.tolist())


def test_what_cannot_be_collected_is_refused() -> None:
    codes, radius = _ring(40)
    with pytest.raises(ValueError, match=r"psi of shape \(40,\), a number for each code"):
        reward.collect(codes, radius[:5], _SCHEDULE)
    with pytest.raises(ValueError, match=r"latents of shape \(B, \*latent_shape\)"):
        reward.collect(codes[:, 0], radius, _SCHEDULE)
    with pytest.raises(ValueError, match=r"finite latents, got NaN .* in latent 7"):
        reward.collect(codes.index_fill(0, torch.tensor([7]), math.nan), radius, _SCHEDULE)
    with pytest.raises(ValueError, match="at most 4 times, as many as the schedule has steps"):
        reward.collect(codes, radius, _SCHEDULE, times=5)
    with pytest.raises(
        ValueError, match="at least 5 different finite psi, one for each bin, got 1"
    ):
        reward.collect(codes, torch.ones(40), _SCHEDULE, times=1)
    crowded = torch.cat([torch.zeros(30), torch.arange(10)])
    with pytest.raises(ValueError, match="5 quantiles of which some are equal"):
        reward.collect(codes, crowded, _SCHEDULE, times=1, binning="quantile")
    with pytest.raises(ValueError, match="at least two bins"):
        reward.collect(codes, radius, _SCHEDULE, bins=1)
    with pytest.raises(ValueError, match="scheduler of diffusers with at least 10 training times"):
        reward.collect(codes, radius, object())


def test_levels_of_a_scheduler_span_its_training_times() -> None:
    diffusers = pytest.importorskip("diffusers")
    codes, radius = _ring(10)
    ddpm = diffusers.DDPMScheduler(beta_schedule="scaled_linear")
    for scheduler in (ddpm, diffusers.EulerDiscreteScheduler.from_config(ddpm.config)):
        found = reward.collect(codes, radius, scheduler, bins=2, times=4, generator=0)
        assert [level.time for level in found.levels] == [999, 666, 333, 0]
        for level in found.levels:
            at = ddpm.alphas_cumprod[int(level.time)]
            assert level.alpha == pytest.approx(float(at) ** 0.5)
            assert level.norm == pytest.approx(1)
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    found = reward.collect(codes, radius, flow, bins=2, times=3, generator=0)
    assert [level.time for level in found.levels] == pytest.approx([1000, 500, 1])
    assert [level.sigma for level in found.levels] == pytest.approx([1, 0.5, 0.001])
    # whatever the number of steps, a sampler's times lie between
    flow.set_timesteps(50)
    assert float(flow.timesteps[-1]) >= 1
    ddpm.set_timesteps(50)
    assert int(ddpm.timesteps.min()) >= 0
    assert int(ddpm.timesteps.max()) <= 999


# the classifier


@pytest.fixture(scope="module")
def collected() -> Collected:
    codes, radius = _ring(1500)
    return reward.collect(codes, radius, _SCHEDULE, bins=3, times=4, binning="quantile",
                          generator=0)  # fmt: skip


@pytest.fixture(scope="module")
def fitted(collected: Collected) -> ClassifierReward:
    return reward.fit(collected, epochs=12, width=32, progress=False)


def test_a_classifier_tells_what_can_be_told_and_says_how_well(
    collected: Collected, fitted: ClassifierReward
) -> None:
    report = reward.report(fitted, collected)
    assert report.counts.tolist() == [300] * 4
    # levels fall from noise to data
    assert report.accuracy[-1] > 0.8
    assert report.accuracy[-1] > report.accuracy[0]
    assert (report.low < report.accuracy).all()
    assert (report.accuracy < report.high).all()
    assert report.low[-1] > report.baseline[-1] + 0.2
    assert report.calibration_error < 0.1
    # the parts say the same
    assert report.confusion.sum() == report.weights.sum() == 1200
    assert np.trace(report.confusion) == pytest.approx((report.accuracy * report.counts).sum())
    known = report.weights > 0
    assert (np.isnan(report.confidence) == ~known).all()
    gaps = np.abs(report.confidence - report.right)[known] * report.weights[known]
    assert report.calibration_error == pytest.approx(gaps.sum() / 1200)
    text = str(report)
    assert "95 % interval" in text
    assert f"{report.accuracy[-1]:.3f}" in text


def test_intervals_are_wilsons(collected: Collected, fitted: ClassifierReward) -> None:
    found = reward.report(fitted, collected)
    n, p, z = found.counts, found.accuracy, 1.959964
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    np.testing.assert_allclose(found.low, middle - half, atol=1e-6)
    np.testing.assert_allclose(found.high, middle + half, atol=1e-6)


def test_a_classifier_of_shuffled_numbers_is_worth_nothing() -> None:
    codes, radius = _ring(600)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(5))
    found = reward.collect(codes, radius[order], _SCHEDULE, bins=3, times=2, binning="quantile",
                           generator=0)  # fmt: skip
    report = reward.report(reward.fit(found, epochs=3, width=16, progress=False), found)
    assert (report.low < 1 / 3 + 0.05).all()
    assert (report.high > 1 / 3 - 0.05).all()


def test_the_reward_is_the_logarithm_of_the_highest_bin_and_its_gradient_leads_there(
    fitted: ClassifierReward, collected: Collected
) -> None:
    level = collected.levels[-1]
    x = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    probabilities = fitted.log_probabilities(x, level).exp()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))
    torch.testing.assert_close(fitted(x, level), probabilities[:, 2].log())
    slope = _gradient(lambda x: fitted(x, level), x)
    assert ((slope * x).sum(1) > 0).all()  # outwards: larger radius
    lowest = ClassifierReward(**{**vars(fitted), "target": 0})
    assert ((_gradient(lambda x: lowest(x, level), x) * x).sum(1) < 0).all()
    expected = ClassifierReward(**{**vars(fitted), "target": "expected"})
    centres = torch.tensor([(a + b) / 2 for a, b in pairwise(fitted.edges)])
    torch.testing.assert_close(expected(x, level), probabilities @ centres)
    with pytest.raises(ValueError, match="target as one of 3 bins or 'expected', got 3"):
        ClassifierReward(**{**vars(fitted), "target": 3})


def test_coordinates_of_other_schedulers_are_those_of_training(fitted: ClassifierReward) -> None:
    x = torch.tensor([[1.0, 0.5]])
    preserving = Level(1, 0.6, 0.8)
    exploding = Level(1, 1.0, 0.8 / 0.6)
    torch.testing.assert_close(fitted(x, preserving), fitted(x / 0.6, exploding))


def test_other_shapes_and_times_are_refused(fitted: ClassifierReward) -> None:
    with pytest.raises(ValueError, match=r"latents of shape \(B, 2\), got \(1, 3\)"):
        fitted(torch.zeros(1, 3), Level(1, 0.6, 0.8))
    fitted(torch.zeros(1, 2), Level(1.5, 0.6, 0.8))  # between two times
    with pytest.raises(ValueError, match=r"a time from 0 to 3, as in .* training, got 4"):
        fitted(torch.zeros(1, 2), Level(4, 0.6, 0.8))


def test_pictures_are_classified_by_convolutions() -> None:
    z = torch.randn(300, 2, 9, 8, generator=torch.Generator().manual_seed(0))
    z[::2] *= 0.3
    found = reward.collect(z, z.flatten(1).norm(dim=1), _SCHEDULE, bins=2, times=2, generator=0)
    fitted = reward.fit(found, epochs=4, width=16, progress=False)
    assert any(isinstance(m, nn.Conv2d) for m in fitted.network.modules())
    assert reward.report(fitted, found).accuracy[-1] > 0.9


def test_training_does_not_touch_torchs_generators_and_repeats_itself(collected: Collected) -> None:
    state = torch.get_rng_state()
    one, two = (reward.fit(collected, epochs=1, width=8, progress=False) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    x, level = collected.samples[:50], collected.levels[0]
    assert torch.equal(one(x, level), two(x, level))
    assert not torch.equal(one(x, level), reward.fit(
        collected, epochs=1, width=8, generator=1, progress=False)(x, level))  # fmt: skip


def test_a_checkpoint_continues_to_what_an_uninterrupted_training_gives(
    collected: Collected, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "psi.pt"
    whole = reward.fit(collected, epochs=3, width=8, progress=False)
    calls = 0
    step = torch.optim.AdamW.step

    def stopping(self: torch.optim.AdamW, *args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 50:  # 38 a pass
            raise KeyboardInterrupt
        return step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim.AdamW, "step", stopping)
    with pytest.warns(RuntimeWarning, match="Interrupted after 1 of 3 epochs"):
        part = reward.fit(collected, epochs=3, width=8, path=path, progress=False)
    monkeypatch.undo()
    assert (part.epochs, part.complete) == (1, False)
    assert not reward.load(path).complete
    done = reward.fit(collected, epochs=3, width=8, path=path, progress=False)
    x, level = collected.samples[:50], collected.levels[1]
    assert torch.equal(done(x, level), whole(x, level))
    assert not torch.equal(done(x, level), part(x, level))
    again = reward.load(path)
    assert torch.equal(again(x, level), whole(x, level))
    assert (again.edges, again.times, again.complete) == (whole.edges, whole.times, True)
    assert [p.name for p in tmp_path.iterdir()] == ["psi.pt"]


def test_checkpoints_of_something_else_are_refused(collected: Collected, tmp_path) -> None:
    path = tmp_path / "psi.pt"
    reward.fit(collected, epochs=1, width=8, path=path, progress=False)
    with pytest.raises(ValueError, match="with the same width, got 8 where 16 is asked for"):
        reward.fit(collected, epochs=1, width=16, path=path, progress=False)
    codes, radius = _ring(100, seed=9)
    other = reward.collect(codes, radius, _SCHEDULE, bins=3, times=4, generator=0)
    with pytest.raises(ValueError, match="with the same data"):
        reward.fit(other, epochs=1, width=8, path=path, progress=False)
    with pytest.raises(ValueError, match="the bins that the classifier was fitted to"):
        reward.report(reward.load(path), other)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"a checkpoint of approx\..*fit, got a file"):
        reward.load(path)
    with pytest.raises(FileNotFoundError):
        reward.load(tmp_path / "none.pt")


def test_an_interruption_before_the_first_epoch_is_passed_on_and_bad_losses_are_named(
    collected: Collected, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="epochs, width and batch of at least 1 and a rate above"):
        reward.fit(collected, epochs=0)
    with pytest.raises(ValueError, match="a finite loss, got nan in epoch 0"):
        reward.fit(collected, epochs=1, width=8, rate=1e30, progress=False)

    def stopping(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        reward.fit(collected, epochs=1, width=8, progress=False)
