"""Latents, decoders and arguments that are refused, and how."""

from __future__ import annotations

import doctest
import re
from typing import Any

import pytest
import torch
from support import decoders
from torch import nn

import approx.operator
from approx import DecoderError, JacobianOperator


@pytest.mark.parametrize(
    ("z", "message"),
    [
        ([[1.0, 2.0]], "Expected latents as a torch tensor, got list: convert with"),
        (torch.ones(2, 12, dtype=torch.int64), "Expected floating-point latents, got dtype torch.in"
         "t64: convert with latents.float()"),
        (torch.ones(2, 12, dtype=torch.complex64), "got dtype torch.complex64"),
        (torch.ones(12), "Expected latents of shape (B, *latent_shape) with at least one latent, go"
         "t shape (12,): add the batch axis"),
        (torch.ones(0, 12), "with at least one latent, got shape (0, 12)"),
        (torch.tensor([[0.0] * 12, [float("nan")] * 12, [float("inf")] * 12]), "Expected finite lat"
         "ents, got NaN or infinite coordinates in latents 1, 2: remove"),
        (torch.full((9, 12), -float("inf")), "in latents 0, 1, 2, 3, 4, ... (9 in all)"),
        (torch.ones(2, 12, dtype=torch.float64), "Expected latents in the decoder's dtype torch.flo"
         "at32, got torch.float64: convert them, or pass dtype=torch.float64"),
        (torch.ones(2, 12, device="meta"), "Expected latents on the decoder's device cpu, got meta:"
         " move them"),
    ],
)  # fmt: skip
def test_latents_that_are_refused(z: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        JacobianOperator(decoders.relu_mlp()[0], z)


def test_large_latents_are_finite() -> None:
    z = torch.full((2, 4), 3e38)  # their sum is not
    assert JacobianOperator(nn.Identity(), z).batch == 2


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (lambda z: (z, z), "Expected a tensor from the decoder (or a structure with a tensor `.samp"
         "le`), got tuple: pass output="),
        (lambda z: None, "got NoneType: pass output="),
        (lambda z: z.long(), "Expected a floating-point tensor from the decoder, got dtype torch.in"
         "t64"),
        (lambda z: z.sum(), "Expected one output for each of 2 latents along the first axis, got sh"
         "ape ()"),
        (lambda z: z[:1], "got shape (1, 12): give a decoder of batches"),
        (lambda z: z[:, :0], "got shape (2, 0)"),
        (lambda z: z / (z - z[:1]), "Expected finite outputs, got NaN or infinite values for latent"
         " 0: check those latents"),
        (lambda z: z + torch.rand(()), "Expected a deterministic decoder, got one that draws random"
         " numbers (torch's generator on cpu moved): call .eval()"),
        (lambda z: z.detach() * 2, "Expected outputs that depend on the latents through differentia"
         "ble operations, got a tensor without a graph: remove torch.no_grad()"),
        (torch.no_grad()(lambda z: z * 2), "got a tensor without a graph"),
        (nn.Sequential(nn.Linear(12, 3), nn.Dropout(0.1)), "Expected a deterministic decoder that t"
         "reats each latent alone, got '1' (Dropout) in training mode: call .eval()"),
        (nn.BatchNorm1d(12), "got BatchNorm1d in training mode"),
    ],
)  # fmt: skip
def test_decoders_that_are_refused(decoder: Any, message: str) -> None:
    state = torch.get_rng_state()
    with pytest.raises(DecoderError, match=re.escape(message)):
        JacobianOperator(decoder, decoders.latents((12,), batch=2))
    assert torch.equal(torch.get_rng_state(), state)


def test_training_mode_without_noise_is_as_good_as_any() -> None:
    module = nn.Sequential(nn.Linear(12, 3), nn.Dropout(0.0), nn.ReLU()).train()
    assert JacobianOperator(module, decoders.latents((12,))).rows == 3
    assert module.training


def test_output_that_picks_no_tensor() -> None:
    with pytest.raises(
        DecoderError, match="Expected output= to pick a tensor, got int from Tensor"
    ):
        JacobianOperator(nn.Identity(), torch.ones(2, 3), output=len)  # type: ignore[arg-type]


def test_other_arguments_that_are_refused() -> None:
    z = torch.ones(2, 3)
    for chunk in (0, -1, 2.5, True, "all"):
        with pytest.raises(ValueError, match="Expected chunk as a positive integer or 'auto', got"):
            JacobianOperator(nn.Identity(), z, chunk=chunk)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Expected dtype as float32, float64, bfloat16 or float16"):
        JacobianOperator(nn.Identity(), z, dtype=torch.int8)
    with pytest.raises(ValueError, match="Expected a decoder that can be called on latents, got d"):
        JacobianOperator({}, z)  # type: ignore[arg-type]
    op = JacobianOperator(nn.Identity(), z)
    for block in (torch.ones(4, 2), torch.ones(3), torch.ones(5, 3, 2)):
        with pytest.raises(ValueError, match=r"Expected X of shape \(3, k\) or \(2, 3, k\), got"):
            op.matmat(block)
        with pytest.raises(ValueError, match=r"Expected Y of shape \(3, k\) or \(2, 3, k\), got"):
            op.rmatmat(block)
    with pytest.raises(ValueError, match=r"Expected dense Jacobians of at most 10 B, got 2 of 3 x 3"
                       r", 72 B: use matmat"):  # fmt: skip
        op.dense(max_bytes=10)
    op.close()
    with pytest.raises(RuntimeError, match="Expected an open operator, got one that was closed"):
        op.rmatmat(torch.eye(3))


def test_the_example() -> None:
    with torch.random.fork_rng():
        assert doctest.testmod(approx.operator).failed == 0


class Autoencoder(nn.Module):
    """Encodes and decodes; called, it does both."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(20, 4), nn.Linear(4, 20)

    def encode(self, x: Any) -> Any:
        return self.inner(x)

    def decode(self, z: Any) -> Any:
        return self.outer(z)

    def forward(self, x: Any) -> Any:
        return self.decode(self.encode(x))


class Variational(Autoencoder):
    def forward(self, x: Any) -> Any:
        return self.decode(self.encode(x)), self.encode(x)


class InInferenceMode(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.inference_mode():
            self.inner = nn.Linear(4, 3)

    def forward(self, z: Any) -> Any:
        return self.inner(z)


MLP = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 20))


@pytest.mark.parametrize(
    ("decoder", "shape", "message"),
    [
        (MLP, (17,), "Expected a decoder that runs on latents of shape (B, 17), got RuntimeError: m"
         "at1 and mat2 shapes cannot be multiplied (2x17 and 16x8) in '0' (Linear): give latents wi"
         "th 16 coordinates in the last axis."),
        (nn.Conv2d(4, 3, 3), (3, 8, 8), " in Conv2d: give latents of shape (B, 4, size, size), whic"
         "h its first layer takes."),
        (nn.Sequential(nn.Flatten(), MLP), (2, 4), "in '1.0' (Linear): check their shape, and that "
         "it runs on any number of them"),
        (nn.Bilinear(4, 3, 2), (4,), "got TypeError: Bilinear.forward() missing 1 required position"
         "al argument: 'input2': bind what it takes beside the latents, approx.bind(decoder, input2"
         "=...)."),
        (lambda a, b, *, c: a, (4,), "approx.bind(decoder, b=..., c=...)."),
        (Autoencoder(), (4,), "(2x4 and 20x4) in 'inner' (Linear): pass its .decode, not the whole "
         "autoencoder."),
        (Autoencoder(), (20,), "Expected a decoder of latents, got the whole autoencoder Autoencode"
         "r: pass its .decode."),
        (Variational(), (20,), "got the whole autoencoder Variational: pass its .decode."),
        (nn.Linear(4, 3, device="meta"), (4,), "Expected a decoder with values, got one on the devi"
         "ce meta, which has shapes alone: load its weights"),
        (InInferenceMode(), (4,), "Expected parameters that autograd may keep, got the inference te"
         "nsor 'inner.weight': build the module outside of torch.inference_mode()."),
        (lambda z: z * torch.ones(5, 4), (4,), "(2) must match the size of tensor b (5) at non"
         "-singleton dimension 0: check their shape, and that it runs on any number of them (approx"
         ".bind gives each its row of further arguments)."),
        (lambda z: {}["missing"], (4,), "got KeyError: 'missing': check their shape"),
    ],
)  # fmt: skip
def test_errors_of_torch_and_python_say_what_to_pass(
    decoder: Any, shape: tuple[int, ...], message: str
) -> None:
    for check in (True, False) if "whole autoencoder" not in message else (True,):
        with pytest.raises(DecoderError, match=re.escape(message)) as caught:
            JacobianOperator(decoder, decoders.latents(shape, batch=2), check=check)
        assert ("got RuntimeError" not in message) or caught.value.__cause__ is not None


class Overwrites(nn.Module):
    """Changes in place what autograd keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(4))

    def forward(self, z: Any) -> Any:
        y = z * self.scale
        self.scale.add_(1)
        return y


def test_decoders_that_autograd_cannot_differentiate() -> None:
    message = "Expected a decoder that autograd can differentiate, got RuntimeError: one of the var"
    with pytest.raises(DecoderError, match=message):
        JacobianOperator(Overwrites(), decoders.latents((4,)))


def test_numpy_latents_go_to_the_decoders_dtype() -> None:
    z = decoders.latents((16,))
    for module in (MLP, decoders.double(MLP)):
        op = JacobianOperator(module, z.double().numpy())
        assert op.dtype == next(module.parameters()).dtype
        torch.testing.assert_close(op.output, module(z.to(op.dtype)).detach())
