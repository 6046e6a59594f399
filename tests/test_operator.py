"""Products with Jacobians against dense ones, and decoders left as they were."""

from __future__ import annotations

import doctest
import functools
import random
import re
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

import approx.operator
from approx import DecoderError, JacobianOperator
from approx._memory import chunked, held_bytes, out_of_memory, sized
from tests import decoders

CHUNKS = (1, 3, "auto")


def blocks(op: JacobianOperator, k: int = 7) -> tuple[Tensor, Tensor]:
    """Return one block for each latent of its own, X, and one shared by all, Y."""
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(op.batch, op.columns, k, generator=generator, dtype=op.dtype)
    return X, torch.randn(op.rows, k, generator=generator, dtype=op.dtype)


def gap(got: Tensor, expected: Tensor) -> float:
    """Return the relative error in the Frobenius norm."""
    return float(((got.double() - expected).norm() / expected.norm()).detach())


# ---------------------------------------------------------------- products


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("name", decoders.DECODERS)
def test_products_are_those_of_the_dense_jacobian(name: str, chunk: Any) -> None:
    module, shape = decoders.DECODERS[name]()
    z = decoders.latents(shape)
    J = decoders.dense(module, z)
    for dtype, tolerance in ((torch.float64, 1e-13), (None, 2e-6)):
        with JacobianOperator(module, z, chunk=chunk, dtype=dtype) as op:
            X, Y = blocks(op)
            assert gap(op.matmat(X), J @ X.double()) < tolerance
            assert gap(op.matmat(X[1]), J @ X[1].double()) < tolerance
            assert gap(op.rmatmat(Y), J.mT @ Y.double()) < tolerance
            own = J @ X.double()
            assert gap(op.rmatmat(own), J.mT @ own) < tolerance
            assert gap(op.dense(), J) < tolerance
            # in blocks and by forward mode, not by what stands in for them
            assert op._vmap == {"jvp": True, "vjp": True}
            assert op._forward_mode
            assert gap(op.output.flatten(1), decoders.double(module)(z.double()).flatten(1)) < 1e-6


@pytest.mark.parametrize("name", decoders.DECODERS)
def test_results_do_not_depend_on_chunks_and_batches(name: str) -> None:
    module, shape = decoders.DECODERS[name]()
    z = decoders.latents(shape)
    whole = JacobianOperator(module, z, dtype=torch.float64)
    X, Y = blocks(whole)
    forward, backward = whole.matmat(X), whole.rmatmat(Y)
    for chunk in (1, 2, 5, 100):
        op = JacobianOperator(module, z, dtype=torch.float64, chunk=chunk)
        assert gap(op.matmat(X), forward) < 1e-14
        assert gap(op.rmatmat(Y), backward) < 1e-14
    for b in range(3):
        op = JacobianOperator(module, z[b : b + 1], dtype=torch.float64)
        assert gap(op.matmat(X[b]), forward[b : b + 1]) < 1e-14
        assert gap(op.rmatmat(Y), backward[b : b + 1]) < 1e-14


def test_prescribed_singular_values() -> None:
    values = [10.0, 3.0, 1.0, 0.1, 1e-6]
    module, shape = decoders.linear(values)
    op = JacobianOperator(module, decoders.latents(shape).double())
    torch.testing.assert_close(
        torch.linalg.svdvals(op.dense()),
        torch.tensor([values] * 3, dtype=torch.float64),
        rtol=1e-9,
        atol=1e-14,
    )


def test_attributes_and_work() -> None:
    module, shape = decoders.relu_conv()
    ran = []
    module.register_forward_hook(lambda *_: ran.append(1))
    op = JacobianOperator(module, decoders.latents(shape), chunk=4)
    assert (op.batch, op.rows, op.columns) == (3, 128, 24)
    assert (op.latent_shape, op.output_shape) == ((6, 2, 2), (2, 8, 8))
    assert op.dtype == torch.float32
    assert op.device == torch.device("cpu")
    assert not op.output.requires_grad
    assert op.products == 0
    op.rmatmat(torch.randn(128, 10))
    assert op.products == 10
    assert len(ran) == 1  # one forward pass for all products with the transpose
    op.matmat(torch.randn(24, 9))
    assert op.products == 19
    assert len(ran) == 1 + 3  # and one for each chunk of 4 forward ones


def test_blocks_of_no_columns_and_of_other_dtypes() -> None:
    module, shape = decoders.relu_mlp()
    op = JacobianOperator(module, decoders.latents(shape))
    assert op.matmat(torch.empty(12, 0)).shape == (3, 60, 0)
    made = op.rmatmat(torch.ones(60, 2, dtype=torch.float64))
    assert made.dtype == torch.float32


class Views(nn.Module):
    """A decoder of images that calls .view(), which channels_last tensors do not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        return F.silu(self.conv(z)).view(len(z), -1)[:, :50]


def test_larger_images_run_in_channels_last_where_the_decoder_can() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        convolution, views = decoders.SiluBlock(4), Views()
    for module, channels, last in ((convolution, 4, True), (views, 3, False)):
        z = decoders.latents((channels, 8, 8), batch=2)
        J = decoders.dense(module, z)
        op = JacobianOperator(module, z)
        assert op._leaf.is_contiguous(memory_format=torch.channels_last) is last
        X, Y = blocks(op)
        assert gap(op.matmat(X), J @ X.double()) < 2e-6
        assert gap(op.rmatmat(Y), J.mT @ Y.double()) < 2e-6
        assert gap(JacobianOperator(module, z, chunk=4).rmatmat(Y), J.mT @ Y.double()) < 2e-6


def test_transformer_layers_leave_their_fused_path() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    z = decoders.latents((3, 8))
    before = torch.backends.mha.get_fastpath_enabled()
    J = decoders.dense(module, z)
    op = JacobianOperator(module, z, dtype=torch.float64)
    X, Y = blocks(op)
    assert gap(op.matmat(X), J @ X) < 1e-13
    assert gap(op.rmatmat(Y), J.mT @ Y) < 1e-13
    assert op._forward_mode
    assert torch.backends.mha.get_fastpath_enabled() == before


class Cube(torch.autograd.Function):
    """A function without rules for vmap and forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = decoders.gelu_mlp()[0]

    def forward(self, z: Tensor) -> Tensor:
        return Cube.apply(self.inner(z))  # type: ignore[no-any-return]


@pytest.mark.parametrize("chunk", CHUNKS)
def test_operations_without_rules_for_forward_mode(chunk: Any) -> None:
    module = Custom().eval()
    z = decoders.latents((12,))
    J = decoders.dense(module, z)
    op = JacobianOperator(module, z, dtype=torch.float64, chunk=chunk)
    X, Y = blocks(op)
    assert gap(op.rmatmat(Y), J.mT @ Y) < 1e-13
    assert gap(op.matmat(X), J @ X) < 1e-13
    assert gap(op.matmat(X), J @ X) < 1e-13
    assert not op._forward_mode


# ---------------------------------------------------------------- what a decoder may be


@pytest.mark.parametrize("make", ["module", "method", "function", "partial", "output", "object"])
def test_decoders_that_return_structures(make: str) -> None:
    module, shape = decoders.structured()
    z = decoders.latents(shape)
    expected = decoders.dense(module.inner, z)

    class Holder:
        def __init__(self) -> None:
            self.module = module

        def __call__(self, z: Tensor) -> Any:
            return self.module(z)

    decoder: Callable[[Tensor], Any] = {
        "module": module,
        "method": module.decode,
        "function": lambda z: module.decode(z).sample,
        "partial": functools.partial(module.decode),
        "output": module,
        "object": Holder(),
    }[make]
    output = (lambda y: y[0]) if make == "output" else None
    op = JacobianOperator(decoder, z, output=output)
    assert gap(op.dense(), expected) < 2e-6
    # parameters were found: none of them is in the graph
    assert op._prepared.modules
    assert all(p.requires_grad for p in module.parameters())


def test_float64_copies_modules_and_methods_but_no_functions() -> None:
    module, shape = decoders.structured()
    z = decoders.latents(shape)
    expected = decoders.dense(module.inner, z)
    for decoder in (module, module.decode, functools.partial(module.decode)):
        op = JacobianOperator(decoder, z, dtype=torch.float64)
        assert op.dtype == torch.float64
        assert gap(op.dense(), expected) < 1e-13
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    with pytest.raises(DecoderError, match=r"Expected a module, or a module's method, to run a co"):
        JacobianOperator(lambda z: module(z).sample, z, dtype=torch.float64)
    # a function of no modules has no dtype to change
    op = JacobianOperator(lambda z: z.sin(), z, dtype=torch.float64)
    assert gap(op.output, z.double().sin()) < 1e-15


@pytest.mark.parametrize("name", decoders.DECODERS)
def test_bfloat16_on_a_decoder_in_float32(name: str) -> None:
    module, shape = decoders.DECODERS[name]()
    z = decoders.latents(shape)
    J = decoders.dense(module, z)
    op = JacobianOperator(module, z, dtype=torch.bfloat16, chunk=3)
    X, Y = blocks(op)
    assert op.dtype == torch.float32
    forward, backward = op.matmat(X), op.rmatmat(Y)
    assert op._vmap == {"jvp": True, "vjp": True}
    assert op._forward_mode
    assert 1e-4 < gap(forward, J @ X.double()) < 0.06
    assert 1e-4 < gap(backward, J.mT @ Y.double()) < 0.06
    # J and J^T belong to one map: <Y, J X> = <J^T Y, X> up to rounding of the products themselves
    assert gap(Y.T @ forward, (backward.mT @ X).double()) < 0.02
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_decoders_in_half_precision() -> None:
    module, shape = decoders.gelu_mlp()
    z = decoders.latents(shape)
    J = decoders.dense(module, z)
    half = decoders.double(module).to(torch.bfloat16)
    for options in ({}, {"dtype": torch.bfloat16}):
        op = JacobianOperator(half, z.to(torch.bfloat16), **options)
        assert op.dtype == torch.float32
        assert gap(op.dense(), J) < 0.03
        assert gap(op.rmatmat(torch.eye(50)), J.mT) < 0.03
    single = JacobianOperator(half, z, dtype=torch.float32)
    assert gap(single.dense(), decoders.dense(half, z)) < 2e-6
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["leaky_residual", "attention"])
def test_callers_modes_change_nothing(name: str) -> None:
    module, shape = decoders.DECODERS[name]()
    z = decoders.latents(shape)
    expected = JacobianOperator(module, z).dense()
    for mode in (
        torch.no_grad(),
        torch.inference_mode(),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        with mode:
            op = JacobianOperator(module, z * 1)
            assert torch.equal(op.dense(), expected)
            assert gap(op.rmatmat(torch.eye(op.rows)).mT, expected.double()) < 2e-6


def test_shapes_alone_on_the_meta_device() -> None:
    module, shape = decoders.attention()
    z = decoders.latents(shape)
    real = JacobianOperator(module, z)
    op = JacobianOperator(module.to("meta"), z.to("meta"))
    assert op.matmat(torch.empty(36, 5, device="meta")).shape == (3, 108, 5)
    assert op.rmatmat(torch.empty(108, 5, device="meta")).shape == (3, 36, 5)
    assert op.graph_bytes == real.graph_bytes > 0


# ---------------------------------------------------------------- state


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
    op = JacobianOperator(module, z)
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


# ---------------------------------------------------------------- memory


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
        op = JacobianOperator(module, z, chunk=chunk)
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


# ---------------------------------------------------------------- bad input


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
         "ents, got NaN or infinite coordinates in latents 1, 2 of 3: remove"),
        (torch.full((9, 12), -float("inf")), "in latents 0, 1, 2, 3, 4, ... (9 in all) of 9"),
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
         " 0 of 2: check those latents"),
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
