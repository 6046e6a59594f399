"""Recording: the latents and descriptors of a run, and a pipeline that notices nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from support.pipelines import CASES, PROMPTS, STEPS, PipelineCase
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from approx import DecoderError, DescribeError, describe
from approx.diffusion import Level, Run, Schedule, guide, record

diffusers = pytest.importorskip("diffusers")

PLAIN: dict[str, Any] = {"seed": 1, "progress": False, "neighbourhood": None}
QUICK = PLAIN | {"method": "paper", "k": 2}


def _case(name: str) -> PipelineCase:
    return next(case for case in CASES if case.name == name)


def _pictures(case: PipelineCase, pipe: Any, dtype: Any = torch.float32, **options: Any) -> Any:
    arguments = case.arguments(dtype) | options
    made = pipe(generator=torch.Generator().manual_seed(0), **arguments).images
    return made.float().numpy() if isinstance(made, Tensor) else np.asarray(made)


# by hand, without the pipelines


def _predicting(case: PipelineCase, pipe: Any) -> Any:
    """Return (x, scaled x, t) -> guided prediction, as each paper writes it."""
    given = case.arguments()
    kind = case.name.partition("-")[0]
    net = getattr(pipe, case.denoiser)
    scale = given.get("true_cfg_scale", given.get("guidance_scale", 1.0))
    positive, negative = given.get("prompt_embeds"), given.get("negative_prompt_embeds")
    pooled = {
        "with": given.get("pooled_prompt_embeds"),
        "without": given.get("negative_pooled_prompt_embeds"),
    }

    def one(x: Tensor, t: Tensor, which: str) -> Tensor:
        text = positive if which == "with" else negative
        times = t.expand(len(x))
        if kind == "sd":
            return net(x, t, encoder_hidden_states=text).sample
        if kind == "sdxl":
            size = torch.tensor([[8.0, 16, 0, 0, 8, 16]] * len(x))
            added = {"text_embeds": pooled[which], "time_ids": size}
            return net(x, t, encoder_hidden_states=text, added_cond_kwargs=added).sample
        if kind == "sd3":
            return net(
                x, timestep=times, encoder_hidden_states=text, pooled_projections=pooled[which]
            ).sample
        if kind == "flux":
            rows, columns = (n.flatten() for n in torch.meshgrid(
                torch.arange(2.0), torch.arange(4.0), indexing="ij"))  # fmt: skip
            tokens = x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(2, 8, 16)
            out = net(
                tokens,
                timestep=times / 1000,
                encoder_hidden_states=text,
                pooled_projections=pooled[which],
                img_ids=torch.stack([0 * rows, rows, columns], 1),
                txt_ids=torch.zeros(3, 3),
            ).sample
            out = out.reshape(2, 2, 4, 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
            return out.reshape(x.shape)
        if kind == "dit":
            labels = torch.tensor([3, 7] if which == "with" else [1000, 1000])
            return net(x, timestep=times, class_labels=labels).sample[:, :4]
        if kind == "pixart":
            return net(
                x,
                timestep=times,
                encoder_hidden_states=text,
                encoder_attention_mask=torch.ones(2, 3),
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            ).sample[:, :4]
        return net(x, t).sample

    def predict(x: Tensor, t: Tensor) -> Tensor:
        if kind in ("ddpm", "ddim"):
            return one(x, t, "with")
        without = one(x, t, "without")
        return without + scale * (one(x, t, "with") - without)

    return predict


def _estimate(scheduler: Any, x: Tensor, predicted: Tensor, t: Tensor, number: int) -> Tensor:
    name = type(scheduler).__name__
    if name.startswith("Flow"):
        return x - float(scheduler.sigmas[number]) * predicted
    abar = float(scheduler.alphas_cumprod[int(t)])
    if name.startswith("Euler"):
        return x - math.sqrt((1 - abar) / abar) * predicted
    found = (x - math.sqrt(1 - abar) * predicted) / math.sqrt(abar)
    return found.clamp(-1, 1) if getattr(scheduler.config, "clip_sample", False) else found


@torch.no_grad()
def _loop(case: PipelineCase, pipe: Any) -> Iterator[tuple[int, str, float, Tensor]]:
    """Yield step, place, time and latents as the pipeline steps them."""
    scheduler, predict = pipe.scheduler, _predicting(case, pipe)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(PROMPTS, *case.shape, generator=generator)
    if case.name.startswith("flux"):  # the times of 8 tokens
        sigmas, slope = np.linspace(1, 1 / STEPS, STEPS), (1.15 - 0.5) / (4096 - 256)
        scheduler.set_timesteps(sigmas=sigmas, mu=8 * slope + 0.5 - 256 * slope)
    else:
        scheduler.set_timesteps(STEPS)
    if not case.name.startswith("dit"):
        x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    for number, t in enumerate(scheduler.timesteps):
        scaled = getattr(scheduler, "scale_model_input", lambda x, t: x)(x, t)
        if case.name.startswith("dit"):  # it steps what it has scaled
            x = scaled
        predicted = predict(scaled, t)
        yield number, "sample", float(t), x
        yield number, "clean", float(t), _estimate(scheduler, x, predicted, t, number)
        drawn = {"generator": generator} if case.name.startswith("ddpm") else {}
        x = scheduler.step(predicted, t, x, return_dict=False, **drawn)[0]
    yield STEPS, "sample", math.nan, x


def _unscaled(case: PipelineCase, z: Tensor) -> Tensor:
    scaling, shift = {
        "sd": (0.18215, 0),
        "sdxl": (0.13025, 0),
        "sd3": (1.5305, 0.0609),
        "flux": (0.3611, 0.1159),
        "dit": (0.18215, 0),
        "pixart": (0.13025, 0),
    }[case.name.partition("-")[0]]
    return z / scaling + shift


def _psi(function: Any, z: Tensor) -> tuple[float, float]:
    """Return sums of logarithms and rank from the whole Jacobian."""
    jacobian = torch.autograd.functional.jacobian(function, z[None])
    assert isinstance(jacobian, Tensor)
    values = torch.linalg.svdvals(jacobian.reshape(-1, z.numel()).double())
    shares = values / values.sum()
    return float(values.log().sum()), float((-(shares * shares.log()).sum()).exp())


def _some(z: Tensor) -> Tensor:
    return z.flatten(1)[:, :4].tanh()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_run_is_that_of_a_loop_written_by_hand(case: PipelineCase) -> None:
    pipe = case.build()
    plain = _pictures(case, pipe)
    state = torch.get_rng_state()
    # decoders have tests of their own, and take most of the time
    given = {"decoder": _some} if hasattr(pipe, "vae") else {}
    with record(pipe, every=3, **QUICK | given) as run:
        found = _pictures(case, pipe)
    assert np.array_equal(found, plain)
    assert torch.equal(torch.get_rng_state(), state)
    assert "step" not in vars(pipe.scheduler)
    assert "decode" not in vars(getattr(pipe, "vae", pipe.scheduler))
    assert not getattr(pipe, case.denoiser)._forward_pre_hooks
    decodes = hasattr(pipe, "vae")
    hand = {(n, at): (t, x) for n, at, t, x in _loop(case, pipe)}
    places = ("sample", "clean") if decodes else ("sample",)
    expected = [(n, at) for n in (0, 3) for at in places] + [(STEPS, "sample")] * decodes
    assert [(s.step, s.at) for s in run.seen] == expected
    assert run.complete
    for seen in run.seen:
        t, x = hand[seen.step, seen.at]
        z = _unscaled(case, x) if decodes else x
        np.testing.assert_equal(seen.time, t)
        torch.testing.assert_close(seen.latents, z, rtol=2e-3, atol=2e-3 * float(z.std()))
    columns = run.columns()
    assert columns["sample"].tolist() == [0, 1] * len(expected)
    norms = torch.cat([seen.latents for seen in run.seen]).flatten(1).norm(dim=1)
    np.testing.assert_allclose(columns["norm"], norms, rtol=1e-5)


_ALL = [pytest.param(case, marks=pytest.mark.nightly) for case in CASES]


@pytest.mark.parametrize("case", [_case("dit-dpm"), _case("ddim-ddim-clipped"), *_ALL], ids=str)
def test_psi_and_nu_are_those_of_the_whole_jacobian(case: PipelineCase) -> None:
    pipe = case.build()
    with record(pipe, every=9, at="sample", method="exact", **PLAIN) as run:
        _pictures(case, pipe)
    last, columns = run.seen[-1], run.columns()
    if hasattr(pipe, "vae"):
        psi, nu = _psi(lambda z: pipe.vae.double().decode(z).sample, last.latents[1].double())
    else:
        abar = float(pipe.scheduler.alphas_cumprod[int(last.time)])
        psi, nu = _psi(
            lambda x: (
                (x - math.sqrt(1 - abar) * pipe.unet.double()(x, last.time).sample)
                / math.sqrt(abar)
            ),
            last.latents[1].double(),
        )
    assert columns["psi"][-1] == pytest.approx(psi, rel=1e-4, abs=1e-3)
    assert columns["nu"][-1] == pytest.approx(nu, rel=1e-4)


# what pipelines are switched to


def test_slices_and_tiles_are_described_as_they_run() -> None:
    case = _case("sd-ddim")
    runs = []
    for switch in ("", "enable_slicing", "enable_tiling"):
        pipe = case.build()
        if switch:
            getattr(pipe.vae, switch)()
        pipe.vae.tile_latent_min_size, pipe.vae.tile_sample_min_size = 4, 8
        with record(pipe, at="sample", **QUICK) as run:
            _pictures(case, pipe, num_inference_steps=1)
        runs.append(run.columns()["psi"])
    np.testing.assert_allclose(runs[1], runs[0], rtol=1e-5)
    assert (np.abs(runs[2] - runs[0]) > 1e-3).all()  # blended tiles are another map
    tiled = describe(lambda z: pipe.vae.tiled_decode(z).sample, run.seen[-1].latents, **QUICK)
    np.testing.assert_allclose(runs[2][-2:], tiled.psi, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_described_in_float32(dtype: torch.dtype) -> None:
    case = _case("sd-ddim")
    pipe = case.build(dtype)
    plain = _pictures(case, pipe, dtype)
    with record(pipe, every=9, at="sample", **QUICK) as run:
        assert np.array_equal(_pictures(case, pipe, dtype), plain)
    assert {s.latents.dtype for s in run.seen} == {torch.float32}
    assert run.attributes()["dtype"] == "float32"
    assert {p.dtype for p in pipe.vae.parameters()} == {dtype}
    assert run.complete


def test_means_and_deviations_of_channels_are_undone() -> None:
    case = _case("sdxl-euler")
    pipe = case.build()
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    pipe.vae.register_to_config(latents_mean=mean, latents_std=std)
    given = []
    decode = pipe.vae.decode
    pipe.vae.decode = lambda z, **options: given.append(z) or decode(z, **options)
    mine = pipe.vae.decode
    with record(pipe, decoder=decode, at="sample", every=9, **QUICK) as run:
        _pictures(case, pipe)
    assert pipe.vae.decode is mine
    torch.testing.assert_close(run.seen[-1].latents, given[0])


def test_models_that_are_moved_as_a_whole_are_described_and_layers_refused() -> None:
    accelerate = pytest.importorskip("accelerate")
    case = _case("sd-ddim")
    options: dict[str, Any] = QUICK | {"every": 9, "at": "sample"}
    with record(plain := case.build(), **options) as expected:
        _pictures(case, plain)
    pipe, cpu = case.build(), torch.device("cpu")
    _, hook = accelerate.cpu_offload_with_hook(pipe.unet, cpu)
    accelerate.cpu_offload_with_hook(pipe.vae, cpu, prev_module_hook=hook)
    before = pipe.vae._hf_hook
    with record(pipe, **options) as run:
        _pictures(case, pipe)
    np.testing.assert_array_equal(run.columns()["psi"], expected.columns()["psi"])
    assert pipe.vae._hf_hook is before
    pipe = case.build()
    for module in (pipe.vae, pipe.unet):
        accelerate.cpu_offload(module, cpu)
    text = "weights of AutoencoderKL in memory, got them offloaded layer by layer: use"
    with pytest.raises(ValueError, match=text), record(pipe, **options) as run:
        _pictures(case, pipe)
    assert len(run.seen) == 3  # the first and the last step, and the finished sample
    assert len(run.table) == 0
    assert not run.complete


# doubled batches


def test_equal_latents_of_two_prompts_are_two_samples() -> None:
    noise = torch.randn(1, 4, 4, 8, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    case = _case("sd-ddim")
    for given in ({}, {"guidance_scale": 1.0}):
        pipe = case.build()
        with record(pipe, at="sample", **QUICK) as run:
            _pictures(case, pipe, latents=noise.clone(), num_inference_steps=1, **given)
        assert {len(s.latents) for s in run.seen} == {2}
    # the same prompt twice
    one = {name: value[:1].repeat(2, 1, 1) for name, value in case.arguments().items()
           if isinstance(value, Tensor)}  # fmt: skip
    one["num_inference_steps"] = 1
    with record(pipe, at="sample", **QUICK) as run:
        _pictures(case, pipe, latents=noise.clone(), guidance_scale=1.0, **one)
    assert {len(s.latents) for s in run.seen} == {2}


@pytest.mark.parametrize(("guidance", "labels"), [(4.0, [3, 3]), (4.0, [3]), (1.0, [3, 7])])
def test_doubled_batches_are_halved_only_where_there_is_guidance(
    guidance: float, labels: list[int]
) -> None:
    case = _case("dit-ddim")
    pipe = case.build()
    with record(pipe, decoder=_some, every=9, **QUICK) as run:
        _pictures(case, pipe, class_labels=labels, guidance_scale=guidance)
    assert {len(s.latents) for s in run.seen} == {len(labels)}


# errors and interrupts


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("stop", [0, STEPS - 1])
def test_what_was_seen_before_an_interrupt_is_described(error: Any, stop: int) -> None:
    case = _case("sd-dpm")
    pipe = case.build()
    plain = _pictures(case, pipe)

    def stopping(pipe: Any, number: int, t: Any, tensors: Any) -> Any:
        if number == stop:
            raise error("stop")
        return tensors

    with pytest.raises(error, match="stop"), record(pipe, at="sample", **QUICK) as run:
        _pictures(case, pipe, callback_on_step_end=stopping)
    table = run.table
    finished = stop == STEPS - 1
    assert table["step"].tolist() == [n for n in range(stop + 1 + finished) for _ in range(2)]
    assert np.isfinite(table["psi"]).all()
    assert not run.complete
    assert table.attrs["complete"] == 0
    assert "step" not in vars(pipe.scheduler)
    assert "decode" not in vars(pipe.vae)
    assert np.array_equal(_pictures(case, pipe), plain)


def test_an_interrupt_in_the_denoiser_keeps_what_was_seen() -> None:
    case = _case("sd-dpm")
    pipe = case.build()
    plain = _pictures(case, pipe)
    for stop in range(STEPS):
        calls = 0

        def stopping(*_: Any, last: int = stop) -> None:
            nonlocal calls
            calls += 1
            if calls > last:
                raise KeyboardInterrupt

        handle = pipe.unet.register_forward_pre_hook(stopping)
        with (
            pytest.raises(KeyboardInterrupt),
            guide(pipe, _some_reward, 0.1) as guided,
            record(pipe, decoder=_some, at="sample", **QUICK) as run,
        ):
            _pictures(case, pipe)
        handle.remove()
        assert [step.number for step in guided.steps] == list(range(stop))
        assert run.columns()["step"].tolist() == [n for n in range(stop) for _ in range(PROMPTS)]
        assert len(run.table) == stop * PROMPTS
        assert "step" not in vars(pipe.scheduler)
        assert "decode" not in vars(pipe.vae)
    assert np.array_equal(_pictures(case, pipe), plain)


def _some_reward(z: Tensor) -> Tensor:
    return _some(z).sum(1)


class _Stepping:
    """A scheduler of four steps to 0, without timesteps."""

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
        return sample - 0.25 * model_output


_LEVELS = Schedule(tuple(Level(t, 1 - t / 4, t / 4) for t in (4, 3, 2, 1, 0)), "flow_prediction")


class _Pipe:
    """The least that can be recorded."""

    def __init__(self, decode: Any = None) -> None:
        self.scheduler = _Stepping()
        if decode is not None:
            self.vae = SimpleNamespace(decode=decode)

    def __call__(self, x: Tensor) -> Tensor:
        for t in (4, 3, 2, 1):
            x = self.scheduler.step(torch.tanh(x), t, x)
        return x


def _recorded(pipe: Any, *calls: Tensor, **options: Any) -> Run:
    with record(pipe, schedule=_LEVELS, **QUICK | options) as run:
        for x in calls:
            pipe(x)
    return run


def _linear() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(3, 5)


def test_columns_count_calls_steps_and_samples() -> None:
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    run = _recorded(_Pipe(_linear()), x, 2 * x[:1], every=2)
    columns = run.columns()
    assert columns["call"].tolist() == [0] * 14 + [1] * 7
    assert columns["step"].tolist() == [0] * 4 + [2] * 4 + [3] * 4 + [4] * 2 + [0, 0, 2, 2, 3, 3, 4]
    assert columns["at"][:4].tolist() == ["sample", "sample", "clean", "clean"]
    assert columns["sigma"][[0, 4, 8, 12]].tolist() == [math.inf, 1, pytest.approx(1 / 3), 0]
    assert columns["timestep"][[0, 4, 8]].tolist() == [4, 2, 1]
    assert math.isnan(columns["timestep"][12])
    torch.testing.assert_close(run.seen[1].latents, x - x.tanh())
    np.testing.assert_allclose(columns["norm"][:2], x.norm(dim=1), rtol=1e-6)
    assert run.attributes()["seed"] == "1"


def test_all_rows_have_the_same_probes_and_are_those_of_describe() -> None:
    decoder = nn.Sequential(nn.Linear(3, 200), nn.Tanh(), nn.Linear(200, 150))
    options = {"neighbourhood": (2, 0.1)}
    run = _recorded(_Pipe(decoder), torch.randn(4, 3), at=("clean",), **options)
    z = torch.cat([s.latents for s in run.seen])
    expected = describe(decoder, z, **QUICK | options)
    for name, column in expected.columns().items():
        np.testing.assert_allclose(run.columns()[name], column, rtol=1e-6)
    assert [s.at for s in run.seen] == ["clean"] * 4


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_pipeline_may_run_without_gradients(mode: Any) -> None:
    decoder, x = _linear(), torch.randn(2, 3)
    expected = _recorded(_Pipe(decoder), x).columns()
    with mode():
        found = _recorded(_Pipe(decoder), x.clone()).columns()
    # the same operations on the same numbers, which may lie elsewhere in memory
    for name, column in expected.items():
        if column.dtype.kind == "f":
            np.testing.assert_allclose(found[name], column, rtol=1e-5)
        else:
            np.testing.assert_array_equal(found[name], column)


def test_recording_takes_the_products_of_describe_and_no_more() -> None:
    decoder = nn.Sequential(nn.Linear(128, 512), nn.Tanh(), nn.Linear(512, 256))
    passes = {}
    for products in (8, 16):
        options: dict[str, Any] = PLAIN | {
            "method": "predict",
            "k": 17,
            "products": products,
            "batch": 5,
        }
        with FlopCounterMode(display=False) as recorded:  # the pipeline itself multiplies nothing
            run = _recorded(_Pipe(decoder), torch.randn(1, 128), at="sample", **options)
        latents = torch.cat([s.latents for s in run.seen])
        with FlopCounterMode(display=False) as alone:
            assert describe(decoder, latents, **options).ran() == "predict"
        assert recorded.get_total_flops() == alone.get_total_flops()
        pass_ = 2 * 512 * (128 + 256)
        passes[products] = alone.get_total_flops() / pass_ / len(latents)
    assert (passes[16] - passes[8]) / 8 == pytest.approx(1, abs=0.05)


def test_tables_are_kept_in_files(tmp_path: Path) -> None:
    run = _recorded(_Pipe(_linear()), torch.randn(2, 3))
    path = tmp_path / "run.parquet"
    run.table.to_parquet(path)
    again = pd.read_parquet(path)
    pd.testing.assert_frame_equal(again, run.table)
    assert again.attrs == run.table.attrs
    assert again.attrs["of"] == "decoder"
    seconds = [again.attrs[f"seconds_{name}"] for name in ("describing", "recording", "all")]
    assert 0 < again.attrs["share_describing"] == seconds[0] / seconds[2] < 1
    assert 0 < sum(seconds[:2]) < seconds[2]
    assert list(again.columns)[:7] == [
        "call", "step", "timestep", "sigma", "sample", "at", "norm"]  # fmt: skip


@pytest.mark.parametrize("outer", ["guide", "record"])
def test_what_is_recorded_is_what_guidance_made_of_it(outer: str) -> None:
    pipe, x = _Pipe(_linear()), torch.randn(2, 3)
    slope = torch.tensor([1.0, -2.0, 0.5])

    def guided() -> Any:
        return guide(pipe, lambda z: z @ slope, 0.5, schedule=_LEVELS)

    def recorded() -> Any:
        return record(pipe, schedule=_LEVELS, **QUICK)

    if outer == "guide":
        with guided(), recorded() as run:
            pipe(x)
    else:
        with recorded() as run, guided():
            pipe(x)
    # at pure noise a velocity is changed by -rho times the gradient
    torch.testing.assert_close(run.seen[1].latents, x - (x.tanh() - 0.5 * slope))
    assert "step" not in vars(pipe.scheduler)


def test_what_listens_to_a_decoder_is_not_described() -> None:
    class Decoding(_Pipe):
        def __call__(self, x: Tensor) -> Tensor:
            self.vae.decode(x)  # a preview, which is not the finished sample
            return self.vae.decode(super().__call__(x))

    pipe, x = Decoding(_linear()), torch.randn(2, 3)
    options = {"schedule": _LEVELS, **QUICK}
    with record(pipe, **options) as outer, record(pipe, **options) as inner:
        pipe(x)
        pipe(2 * x)
    assert outer.complete
    assert inner.complete
    np.testing.assert_array_equal(outer.columns()["psi"], inner.columns()["psi"])


def test_a_denoiser_may_be_named() -> None:
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    told = []

    def denoiser(x: Tensor, t: Tensor) -> Tensor:  # that of the pipeline, with what it needs
        told.append(t)
        return torch.tanh(x)

    run = _recorded(_Pipe(), x, denoiser=denoiser, method="exact", k=3)
    for seen, psi in zip(run.seen, run.columns()["psi"].reshape(-1, 2), strict=True):
        slopes = 1 - seen.time / 4 * (1 - seen.latents.double().tanh() ** 2)
        np.testing.assert_allclose(psi, slopes.abs().log().sum(1), rtol=1e-4)
    assert told

    class Net(nn.Module):
        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            return torch.tanh(x) + labels[:, None]

    class Doubled(_Pipe):
        net = Net()

        def __call__(self, x: Tensor) -> Tensor:
            labels = torch.arange(2).repeat_interleave(len(x))
            for t in (4, 3, 2, 1):
                both = torch.cat([x, x])
                free, with_label = self.net(both, labels).chunk(2)
                guided = 2 * with_label - free
                x = self.scheduler.step(torch.cat([guided, guided]), t, both)[: len(x)]
            return x

    pipe = Doubled(_linear())
    for named, rows in ((None, 4), (pipe.net, 2)):
        run = _recorded(pipe, x, denoiser=named)
        assert {len(s.latents) for s in run.seen} == {rows}


def test_rows_before_one_that_fails_are_kept() -> None:
    class Bad(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return (z + 1).sqrt()

    pipe = _Pipe(Bad())
    # a velocity of tanh moves samples towards 0; the last one is where the root is not defined
    calls = torch.tensor([[3.0, 2.0, 1.0], [2.0, 2.0, 1.0], [1.0, -3.0, 1.0]])

    def called() -> None:
        for x in calls:
            pipe(x[None])

    with (
        pytest.raises(DescribeError, match="stopped in the batch that begins with latent 10"),
        record(pipe, schedule=_LEVELS, at="sample", batch=1, **QUICK) as run,
    ):
        called()
    assert run.table["call"].tolist() == [0] * 5 + [1] * 5
    assert len(run.seen) == 15
    assert not run.complete


def test_options_that_do_not_fit_are_refused_before_anything_runs() -> None:
    pipe = _Pipe(_linear())
    for options, text in (
        ({"every": 0}, "every as an integer of at least 1, got 0"),
        ({"every": True}, "every as an integer of at least 1, got True"),
        ({"at": "noise"}, "at as 'sample', 'clean' or both, got 'noise'"),
        ({"at": ()}, r"at as 'sample', 'clean' or both, got \(\)"),
        ({"at": ("clean", "clean")}, "'clean' or both, got"),
        ({"colour": 1}, "options of describe .* got colour"),
        ({"generator": 3, "seed": 1}, "seed= or generator=, got seed=1 and generator=3"),
    ):
        with pytest.raises(ValueError, match=text):
            _recorded(pipe, **options)
    with pytest.raises(ValueError, match=r"whose \.scheduler steps"):
        _recorded(SimpleNamespace(vae=pipe.vae))
    with pytest.raises(ValueError, match=r"a pipeline with a vae, .* with neither: give denoiser="):
        _recorded(_Pipe())
    pixels = _case("ddpm-ddpm").build()
    with pytest.raises(ValueError, match="at='sample' for a DDPMPipeline, which has no autoenc"):
        _recorded(pixels, at="clean")
    told = SimpleNamespace(scheduler=_Stepping(), unet=_case("sd-ddim").build().unet)
    with pytest.raises(ValueError, match="UNet2DConditionModel that needs encoder_hidden_states"):
        _recorded(told)
    with (
        pytest.raises(ValueError, match=r"one of the schedulers .* got _Stepping"),
        record(pipe, **QUICK),
    ):
        pipe(torch.ones(1, 3))
    assert "step" not in vars(pipe.scheduler)


def test_latents_that_do_not_fit_are_refused_by_what_is_wrong() -> None:
    pipe = _Pipe(_linear())
    with pytest.raises(ValueError, match=r"shape \(3,\) in every call, got \(4,\): record each"):
        _recorded(pipe, torch.ones(1, 3), torch.ones(1, 4))
    with pytest.raises(DecoderError, match=r"decoder that runs on latents of shape \(B, 4\)"):
        _recorded(pipe, torch.ones(1, 4))

    class Scaling(_Pipe):
        @torch.no_grad()
        def __call__(self, x: Tensor) -> Tensor:
            return self.vae.decode(3 * super().__call__(x))

    pipe = Scaling(_linear())
    with pytest.raises(ValueError, match="to decode the sample behind its last step, got other"):
        _recorded(pipe, torch.ones(1, 3))
    run = _recorded(pipe, torch.ones(1, 3), codes=lambda z: 3 * z)
    torch.testing.assert_close(run.seen[0].latents, torch.full((1, 3), 3.0))
    assert run.complete


def test_denoisers_without_an_autoencoder_are_told_times_as_the_pipeline_tells_them() -> None:
    """Tables of times are looked up by whole numbers alone."""
    unet = diffusers.UNet2DModel(
        sample_size=4, in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), layers_per_block=1,
        time_embedding_type="learned", num_train_timesteps=1000, add_attention=False,
    )  # fmt: skip
    pipe = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    with record(pipe, **PLAIN) as run:
        pipe(num_inference_steps=2, output_type="np")
    assert np.isfinite(run.columns()["psi"]).all()


def test_what_the_caller_decodes_is_not_what_the_pipeline_decodes() -> None:
    decoder = _linear()
    pipe = _Pipe(decoder)
    with record(pipe, schedule=_LEVELS, **QUICK) as run:
        z = pipe(torch.ones(2, 3))
        with torch.no_grad():
            pipe.vae.decode(z[:1] / 2)  # a preview
        pipe.vae.decode(5 * z)  # with gradients: a reward's
    assert run.complete


def test_what_was_recorded_is_described_though_the_pipeline_decodes_something_else() -> None:
    pipe = _Pipe(_linear())
    with (
        pytest.raises(ValueError, match="to decode the sample behind its last step, got other"),
        record(pipe, schedule=_LEVELS, **QUICK) as run,
        torch.no_grad(),
    ):
        pipe.vae.decode(1.001 * pipe(torch.ones(2, 3)))
    assert len(run.table) == 18
    assert not run.complete
    assert repr(run) == f"Run(18 latents, {run.descriptors})"


def test_a_call_that_ends_early_is_not_complete() -> None:
    pipe = _Pipe(_linear())
    with record(pipe, schedule=_LEVELS, **QUICK) as run:
        pipe.scheduler.step(torch.ones(1, 3), 4, torch.ones(1, 3))
    assert len(run.table) == 2
    assert not run.complete
