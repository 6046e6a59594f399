"""Once a job: derivatives of what runs, each latent alone, always the same."""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support import architectures, decoders
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import approx.decoder.soundness
from approx import DecoderError, JacobianOperator
from approx.decoder import check_decoder, prepare


class Calls(nn.Module):
    """A module that calls a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        return self.function(z)


def after(function: Callable[[Tensor], Tensor]) -> nn.Sequential:
    """Put the function behind a linear layer."""
    module = nn.Sequential(nn.Linear(4, 4, bias=False), Calls(function))
    nn.init.eye_(module[0].weight)  # type: ignore[arg-type]
    return module


def unrecorded(x: Tensor) -> Tensor:
    with torch.no_grad():
        c = 2 * x
    return x + c


class Step(torch.autograd.Function):
    """A step with the gradient of the identity, as spiking networks have it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Square(torch.autograd.Function):
    """x^2 with a derivative that lost its factor of 2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return ctx.saved_tensors[0] * gradient


def rounded(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


def nearest(x: Tensor) -> Tensor:
    """The nearest of codes, with the gradient passed straight through."""
    codes = torch.linspace(-2, 2, 9, dtype=x.dtype)
    found = codes[(x[..., None] - codes).abs().argmin(-1)]
    return x + (found - x).detach()


def reversed_(x: Tensor) -> Tensor:
    y = 2 * x
    if y.requires_grad:
        y.register_hook(torch.neg)
    return y


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (unrecorded, " % in reverse mode (found: mul under torch.no_grad() in '1'): remove what"),
        (lambda x: x + (2 * x).detach(), " % in reverse mode (found: detach in '1')"),
        (lambda x: x + (2 * x).data, "(found: data in '1')"),
        (lambda x: x + torch.as_tensor(x.detach().numpy()), " % in reverse mode (found: detach in '"
         "1')"),
        (rounded, "got outputs that do not change between jumps, as after quantisation, while their"
         " derivative by autograd is not zero (found: detach in '1')"),
        (nearest, "as after quantisation, while their derivative by autograd is not zero (found: "),
        (Step.apply, "(found: the autograd function Step in '1'): remove what cuts the graph, or pa"
         "ss straight_through=True to accept J as autograd defines it."),
        (Square.apply, " % in reverse mode (found: the autograd function Square in '1')"),
        (reversed_, "in reverse mode (found: register_hook in '1')"),
        (lambda x: torch.where(x > 0, x.sqrt(), x), "Expected finite derivatives, got NaN"),
    ],
)  # fmt: skip
def test_derivatives_of_something_else_are_refused(function: Any, message: str) -> None:
    for dtype in (None, torch.float64):
        with pytest.raises(DecoderError, match=re.escape(message)):
            JacobianOperator(after(function), decoders.latents((4,)), dtype=dtype)


def test_straight_through_takes_what_reverse_mode_says() -> None:
    z = decoders.latents((4,))
    eye = torch.eye(4).expand(3, 4, 4)
    for function in (unrecorded, lambda x: x + (2 * x).detach(), rounded, Step.apply):
        op = JacobianOperator(after(function), z, straight_through=True)
        torch.testing.assert_close(op.matmat(torch.eye(4)), eye)
        torch.testing.assert_close(op.rmatmat(torch.eye(4)), eye)
        refined = op.refined(torch.tensor([2]))
        torch.testing.assert_close(refined.matmat(torch.eye(4)), eye[:1].double())


def test_a_check_that_was_made_is_not_made_again() -> None:
    assert JacobianOperator(after(unrecorded), decoders.latents((4,)), check=False).rows == 4


def test_images_of_eight_bits_are_told_from_smooth_ones() -> None:
    def quantised(x: Tensor) -> Tensor:
        y = nn.functional.interpolate(x, scale_factor=8).sigmoid()
        return y + ((255 * y).round() / 255 - y).detach()

    with pytest.raises(DecoderError, match="do not change between jumps"):
        JacobianOperator(Calls(quantised), decoders.latents((3, 16, 16)))


def test_latents_on_knots_and_flat_outputs_are_no_wrong_derivatives() -> None:
    for function in (torch.relu, torch.abs, torch.round, lambda x: x.clamp(0, 1), torch.sign):
        JacobianOperator(lambda z, f=function: f(z) + z.relu(), torch.zeros(2, 4))
    JacobianOperator(lambda z: 1e6 + z, torch.ones(2, 4))
    JacobianOperator(lambda z: (50 + z).sigmoid(), torch.ones(2, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_wrong_derivative(dtype: torch.dtype) -> None:
    module, shape = decoders.gelu_mlp()
    z = decoders.latents(shape)
    if dtype == torch.bfloat16:
        JacobianOperator(module, z, dtype=dtype)
        JacobianOperator(decoders.double(module).to(dtype), z.to(dtype))
    inner = module.to(dtype)
    # a cast that is written into the decoder, and a function whose modules cannot be seen
    JacobianOperator(Calls(lambda z: inner(z.to(dtype)).to(z.dtype)), z)
    hidden = [lambda z: inner(z.to(dtype)).to(z.dtype)]
    JacobianOperator(type("Hides", (), {"__call__": lambda self, z: hidden[0](z)})(), z)


def check(seeds: range, fault: Any) -> int:
    """Return how many of the random architectures are refused for their derivatives."""
    refused = 0
    for seed in seeds:
        module, z = architectures.made(seed, fault)
        with contextlib.suppress(DecoderError):
            check_decoder(prepare(module, z), z)
            continue
        refused += 1
    return refused


def share(cut: Callable[[Tensor], Tensor], size: float) -> Any:
    return lambda layer: architectures.Share(layer, size, cut)


def test_random_architectures(one_thread: None) -> None:
    assert check(range(24), None) == 0
    assert check(range(24), share(torch.detach, 0.01)) == 24


@pytest.mark.nightly
def test_many_random_architectures(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No false alarm; shares of 1 % are seen in float64, and most of 10 % in float32."""
    seeds = range(1000, 1300)
    assert check(seeds, None) == 0
    for cut in (torch.detach, lambda x: torch.no_grad()(torch.clone)(x), Square.apply):
        assert check(seeds, share(cut, 0.01)) > 290
    monkeypatch.setattr(approx.decoder.soundness, "_in_float64", lambda *_: None)
    assert check(seeds, None) == 0
    assert check(seeds, share(torch.detach, 0.1)) > 240


class Noisy(nn.Module):
    """Noise from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()

    def forward(self, z: Tensor) -> Tensor:
        return z * (1 + 1e-4 * torch.rand(4, generator=self.generator))


NUMBERS = np.random.default_rng(0)


class Counts(nn.Module):
    calls = 0

    def forward(self, z: Tensor) -> Tensor:
        self.calls += 1
        return z * self.calls


@pytest.mark.parametrize(
    "decoder", [Noisy(), Counts(), lambda z: z * NUMBERS.random(), lambda z: z * random.random()]
)
def test_noise_is_refused(decoder: Any) -> None:
    state = random.getstate()
    message = r"a deterministic decoder, got outputs that change by [\d.e-]+ % from one pass to the"
    for batch in (1, 3):
        with pytest.raises(DecoderError, match=message):
            JacobianOperator(decoder, decoders.latents((4,), batch=batch))
    random.setstate(state)


@pytest.mark.parametrize(
    ("decoder", "shape"),
    [
        (nn.BatchNorm2d(4, track_running_stats=False).eval(), (4, 3, 3)),
        (lambda z: z - 1e-3 * z.mean(0), (4,)),
        (lambda z: z + 1e-2 * z.flip(0), (4,)),
    ],
)  # fmt: skip
def test_mixing_is_refused(decoder: Any, shape: tuple[int, ...]) -> None:
    message = (
        r"each latent alone, got outputs that change by [\d.e-]+ % when another latent is besi"
    )
    for batch in (1, 3):
        with pytest.raises(DecoderError, match=message):
            JacobianOperator(decoder, decoders.latents(shape, batch=batch))


def test_decoders_that_do_not_run_on_one_latent() -> None:
    module = nn.BatchNorm1d(4, track_running_stats=False).eval()
    message = r"each latent alone, got ValueError for a latent alone \(Expected more than 1 value"
    with pytest.raises(DecoderError, match=message):
        JacobianOperator(module, decoders.latents((4,)))
    with pytest.raises(DecoderError, match="each latent alone, got outputs of another size for a "):
        JacobianOperator(lambda z: z.repeat(1, len(z)), decoders.latents((4,)))


def test_rounding_of_batched_products_is_no_mixing() -> None:
    for name in decoders.DECODERS:
        module, shape = decoders.DECODERS[name]()
        for dtype in (None, torch.float64, torch.bfloat16):
            z = decoders.latents(shape)
            check_decoder(prepare(module, z, dtype=dtype), z)


def test_shapes_alone_are_refused() -> None:
    module, z = nn.Linear(2, 3, device="meta"), torch.ones(2, 2, device="meta")
    with pytest.raises(
        DecoderError, match="Expected a decoder with values, got one on the device "
    ):
        check_decoder(prepare(module, z), z)


@pytest.mark.parametrize(("straight_through", "passes"), [(False, 21), (True, 12)])
def test_cost_in_forward_passes(straight_through: bool, passes: int) -> None:
    """One of them has shapes alone, and takes no time; 8 measure the error of float32."""
    module, z = nn.Linear(300, 300), decoders.latents((300,), batch=2)
    with FlopCounterMode(display=False) as counter:
        check_decoder(prepare(module, z), z, straight_through=straight_through)
    assert counter.get_total_flops() == passes * 2 * 300 * 300


def test_large_copies_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory is short the check runs in the decoder's own dtype, and sees what it can."""
    dtypes = []

    def seen(x: Tensor) -> Tensor:
        dtypes.append(x.dtype)
        return x + (2 * x).detach()

    monkeypatch.setattr(approx.decoder.soundness, "free_bytes", lambda _: 64)
    with pytest.raises(DecoderError, match="found: detach"):
        JacobianOperator(after(seen), decoders.latents((4,)))
    assert set(dtypes) == {torch.float32}


@pytest.mark.parametrize("name", ["dcgan_faces", "taef2_decoder", "sd_latent_decoder"])
def test_real_decoders_pass(name: str, data: Any, one_thread: None) -> None:
    from bridges.networks import pretrained

    module = getattr(pretrained, name)(data).eval()
    shape = {"dcgan_faces": (100, 1, 1), "taef2_decoder": (32, 4, 4)}.get(name, (4, 8, 8))
    z = decoders.latents(shape, batch=2)
    check_decoder(prepare(module, z), z)
