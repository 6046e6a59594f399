"""Decoders, torch and memory: as they were, and no more than was asked for."""

from __future__ import annotations

import random
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import decoders
from support.decoders import blocks, gap
from torch import Tensor, nn

from approx import JacobianOperator
from approx.decoder.memory import chunked, held_bytes, out_of_memory, sized


class StoppedError(Exception):
    """Raised by a test's decoder."""


class Stops(nn.Module):
    """A residual decoder that can be told to raise after it began, and changes its own mode."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = decoders.attention()[0]
        self.stop = False

    def forward(self, z: Tensor) -> Tensor:
        y = self.inner(z)
        self.inner.train(not self.inner.training)
        if self.stop:
            torch.rand(3)
            raise StoppedError
        return y


def snapshot(module: nn.Module) -> dict[str, Any]:
    """Return everything about a module and torch that must not change."""
    return {
        "training": [m.training for m in module.modules()],
        "requires_grad": [p.requires_grad for p in module.parameters()],
        "grad": [
            None if p.grad is None else (id(p.grad), p.grad.sum()) for p in module.parameters()
        ],
        "ids": [id(p) for p in module.parameters()],
        "values": [p.detach().double().sum() for p in module.parameters()],
        "dtypes": [(p.dtype, p.device) for p in module.parameters()],
        "hooks": [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in module.modules()],
        "random": (torch.get_rng_state().tolist(), random.getstate()),
        "attention": [
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
            torch.backends.mha.get_fastpath_enabled(),
        ],
        "modes": [torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")],
    }


def test_everything_is_as_before_also_after_exceptions() -> None:
    module = Stops()
    shape = (4, 3, 3)
    for i, parameter in enumerate(module.parameters()):
        parameter.requires_grad_(i % 3 != 0)
        if i % 2:
            parameter.grad = torch.full_like(parameter, 2.0)
    module.inner[0].register_forward_hook(lambda *_: None)
    module.inner[1].eval()
    module.inner[2].train()
    before = snapshot(module)
    z = decoders.latents(shape)
    kept = z.clone()
    op = JacobianOperator(module, z)
    assert snapshot(module) == before
    op.rmatmat(torch.randn(108, 2, generator=torch.Generator()))
    op.matmat(torch.randn(36, 2, generator=torch.Generator()))
    assert snapshot(module) == before
    module.stop = True
    with pytest.raises(StoppedError):
        op.matmat(torch.randn(36, 2, generator=torch.Generator()))
    assert snapshot(module) == before
    with pytest.raises(StoppedError):
        JacobianOperator(module, z)
    assert snapshot(module) == before
    assert torch.equal(z, kept)
    assert z.grad is None


def test_latents_are_not_changed_by_decoders_that_change_their_input() -> None:
    z = decoders.latents((5,))
    kept = z.clone()
    op = JacobianOperator(lambda z: z.mul_(3).add_(1), z)
    torch.testing.assert_close(op.dense(), 3 * torch.eye(5).expand(3, 5, 5))
    assert torch.equal(z, kept)


def test_latents_with_a_history() -> None:
    z = decoders.latents((5,)).requires_grad_()
    op = JacobianOperator(nn.Identity(), z * 2)
    op.rmatmat(torch.eye(5))
    assert z.grad is None


def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a small stand-in for diffusers' attention module in its place."""
    package = types.ModuleType("diffusers.models.attention_processor")

    class AttnProcessor:
        calls = 0

        def __call__(self, z: Tensor) -> Tensor:
            AttnProcessor.calls += 1
            return z.sin()

    class AttnProcessor2_0(nn.Module):  # noqa: N801 - diffusers' name
        def forward(self, z: Tensor) -> Tensor:
            raise AssertionError("the fused one ran")

    class Attention(nn.Module):
        def __init__(self, processor: Any) -> None:
            super().__init__()
            self.processor = processor

        def forward(self, z: Tensor) -> Tensor:
            return self.processor(z)

    for made in (AttnProcessor, AttnProcessor2_0, Attention):
        setattr(package, made.__name__, made)
    monkeypatch.setitem(sys.modules, package.__name__, package)
    return package


def test_attention_processors_are_replaced_for_the_duration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = stand_in(monkeypatch)
    module = nn.Sequential(nn.Linear(3, 3), package.Attention(package.AttnProcessor2_0()))
    fused = module[1].processor
    z = decoders.latents((3,))
    op = JacobianOperator(module, z, check=False)
    assert module[1].processor is fused
    assert list(module[1]._modules) == ["processor"]
    op.matmat(torch.eye(3))
    assert module[1].processor is fused
    assert package.AttnProcessor.calls == 2
    with pytest.raises(AssertionError):
        module(z)
    # one of another kind computes something else, and stays
    other = package.Attention(nn.Tanh())
    assert gap(JacobianOperator(other, z).output, z.double().tanh()) < 1e-6


def test_diffusers_attention() -> None:
    try:
        from diffusers import AutoencoderKL
    except (ImportError, RuntimeError) as error:  # RuntimeError: its lazy imports failed
        pytest.skip(f"diffusers is not installed, or not whole: {error}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = AutoencoderKL(
            block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=8
        ).eval()
    attention = module.decoder.mid_block.attentions[0]
    fused = attention.processor
    assert type(fused).__name__ == "AttnProcessor2_0"
    z = decoders.latents((4, 3, 3), batch=2)

    class Decodes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vae = module

        def forward(self, z: Tensor) -> Tensor:
            return self.vae.decode(z).sample

    J = decoders.dense(Decodes(), z)
    op = JacobianOperator(module.decode, z, chunk=4)
    X, Y = blocks(op)
    assert gap(op.matmat(X), J @ X.double()) < 2e-6
    assert gap(op.rmatmat(Y), J.mT @ Y.double()) < 2e-6
    assert op._forward_mode
    assert attention.processor is fused


def test_the_graph_keeps_activations_and_nothing_for_parameters() -> None:
    module, shape = decoders.silu_conv()
    z = decoders.latents(shape)
    op = JacobianOperator(module, z)
    saved: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        saved[x.untyped_storage()._cdata] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        full = module(z)
    own = {p.untyped_storage()._cdata for p in module.parameters()}
    everything = sum(x.untyped_storage().nbytes() for x in saved.values())
    assert held_bytes(full).total == everything
    assert op.graph_bytes <= everything
    assert set(saved) & own  # weights are kept by reference, no copies
    assert op.product_bytes > 0


def peak_bytes(work: Callable[[], Any]) -> int:
    """Return the peak of the CPU memory that torch allocates in `work`."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        kept = work()
    del kept
    held = peak = 0
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    events = profile.profiler.kineto_results.events()
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.mark.parametrize("chunk", [1, 4])
def test_peak_memory(chunk: int) -> None:
    """At most 1.3 forward-backward passes (parameters' gradients left out), and the chunk."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks_ = [decoders.SiluBlock(16) for _ in range(4)]
        module = nn.Sequential(nn.Conv2d(4, 16, 1), *blocks_, nn.Conv2d(16, 3, 1)).eval()
    z = decoders.latents((4, 48, 48), batch=2)
    for parameter in module.parameters():
        parameter.requires_grad_(False)

    def once() -> Tensor:
        leaf = z.clone().requires_grad_()
        return torch.autograd.grad(module(leaf).sum(), leaf)[0]

    def ours() -> Any:
        op = JacobianOperator(module, z, chunk=chunk, check=False)
        return op, op.rmatmat(Y)

    probe = JacobianOperator(module, z)
    Y = torch.ones(probe.rows, 4)
    once()
    ours()
    base = peak_bytes(once)
    extra = chunk * probe.product_bytes
    assert peak_bytes(ours) <= 1.3 * base + extra


def test_columns_that_do_not_fit_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    module, shape = decoders.relu_mlp()
    z = decoders.latents(shape)
    grad, sizes = torch.autograd.grad, []

    def limited(y: Any, z: Any, cotangents: Tensor, **options: Any) -> Any:
        sizes.append(len(cotangents))
        if options.get("is_grads_batched") and len(cotangents) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return grad(y, z, cotangents, **options)

    op = JacobianOperator(module, z, chunk=16)
    Y = torch.randn(60, 20)
    expected = op.rmatmat(Y)
    monkeypatch.setattr(torch.autograd, "grad", limited)
    made = op.rmatmat(Y)
    torch.testing.assert_close(made, expected)
    assert sizes[:4] == [16, 8, 4, 2]
    assert op.products == 40

    def refused(*_: Any, **__: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1")

    monkeypatch.setattr(torch.autograd, "grad", refused)
    with pytest.raises(MemoryError, match=r"(?s)Expected memory for one product of 3 latents, ab"
                       r"out [\d.]+ KiB beside a graph of [\d.]+ KiB, got [\d.]+ GiB free: \d+ at"
                       r" a time would fit\.") as caught:  # fmt: skip
        op.rmatmat(Y)
    assert "DefaultCPUAllocator" in str(caught.value.__cause__)


class Huge(nn.Module):
    """A decoder whose activations take `width` numbers a latent."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, z: Tensor) -> Tensor:
        return z[:, :1].expand(len(z), self.width).exp().exp().sum(1, keepdim=True)


def test_forward_passes_that_do_not_fit_say_what_would() -> None:
    z = torch.zeros(2**20, 2)
    message = r"Expected memory for a forward pass of 1048576 latents that keeps \d+\.\d GiB, got "
    with pytest.raises(MemoryError, match=message + r".* free: \d+ at a time would fit\."):
        JacobianOperator(Huge(2**22), z)
    with pytest.raises(MemoryError, match=r"free: not even one fits; use dtype=torch.bfloat16, "):
        JacobianOperator(Huge(2**46), z[:1])
    with pytest.raises(MemoryError, match=r"got .*can't allocate memory.*: give fewer latents at "):
        JacobianOperator(lambda z: Huge(2**46)(z), z[:1])


def test_what_counts_as_out_of_memory() -> None:
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))
    assert not out_of_memory(RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        chunked(4, 2, lambda *_: (_ for _ in ()).throw(RuntimeError("shapes")))
    assert [sized(n) for n in (5, 2048, 5 * 2**20, 2**31, 2**45)] == [
        "5 B", "2.0 KiB", "5.0 MiB", "2.0 GiB", "32768.0 GiB"]  # fmt: skip


class Averages(nn.Module):
    """Writes to one buffer in place and puts another tensor in the place of a second."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((5,), 2.0))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        y = z * self.mean.clone()  # as spectral norm does: autograd keeps what it multiplied by
        self.mean.mul_(0.5)
        self.count = self.count + 1
        return y


def test_buffers_are_as_before() -> None:
    module, z = Averages(), decoders.latents((5,))
    kept = dict(module.named_buffers())
    for dtype in (None, torch.float64):
        op = JacobianOperator(module, z, dtype=dtype)
        two = 2 * torch.eye(5, dtype=op.dtype).expand(3, 5, 5)
        torch.testing.assert_close(op.dense(), two)  # the first pass's buffers, in each pass
        torch.testing.assert_close(op.rmatmat(torch.eye(5)), two)
        assert all(buffer is kept[name] for name, buffer in module.named_buffers())
        assert module.mean.tolist() == [2.0] * 5
        assert module.count == 0


def test_spectral_norm_in_training_mode() -> None:
    module = nn.utils.parametrizations.spectral_norm(decoders.relu_mlp()[0][0]).train()  # type: ignore[index]
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    op = JacobianOperator(module, decoders.latents((12,)))
    torch.testing.assert_close(op.rmatmat(torch.eye(48)).mT, op.dense())
    assert before
    for name, buffer in module.named_buffers():
        assert torch.equal(buffer, before[name])


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_float32_is_float32_in_the_decoder_alone(precision: str) -> None:
    """Products in TF32 or bfloat16 are off by 1e-3."""
    backends = torch.backends
    flags = lambda: (  # noqa: E731
        torch.get_float32_matmul_precision(),
        backends.cuda.matmul.allow_tf32,
        backends.cudnn.allow_tf32,
    )
    inside = []

    class Seeing(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            if hasattr(backends.cuda.matmul, "fp32_precision"):
                parts = backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul
                inside.append({part.fp32_precision for part in parts} == {"ieee"})
            else:
                inside.append(flags()[1:] == (False, False))
            return super().forward(input)

    own = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        before = flags()
        with JacobianOperator(Seeing(3, 4), torch.ones(2, 3)) as op:
            op.dense()
        assert flags() == before
    finally:
        torch.set_float32_matmul_precision(own)
    assert inside
    assert all(inside)
