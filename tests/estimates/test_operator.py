"""Products with Jacobians against dense ones, for whatever a decoder may be."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from support import decoders
from support.decoders import blocks, gap
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from approx import DecoderError, JacobianOperator, knots

CHUNKS = (1, 3, "auto")


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
    op = JacobianOperator(module, decoders.latents(shape), chunk=4, check=False)
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


def test_work_of_a_column() -> None:
    """In floating-point operations: a forward pass, and for J one more for each chunk."""
    module, shape = decoders.relu_conv()
    z = decoders.latents(shape)

    def flops(work: Callable[[], Any]) -> int:
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()

    once = flops(lambda: module(z))
    for chunk in (1, 2, 4):
        op = JacobianOperator(module, z, chunk=chunk)
        assert flops(lambda: op.rmatmat(torch.ones(op.rows, 4))) == 4 * once  # noqa: B023
        passes = 4 + 4 // chunk
        assert flops(lambda: op.matmat(torch.ones(op.columns, 4))) == passes * once  # noqa: B023


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


def test_float64_copies_modules_methods_and_functions() -> None:
    module, shape = decoders.structured()
    z = decoders.latents(shape)
    expected = decoders.dense(module.inner, z)
    for decoder in (
        module,
        module.decode,
        functools.partial(module.decode),
        lambda z: module(z).sample,
    ):
        op = JacobianOperator(decoder, z, dtype=torch.float64)
        assert op.dtype == torch.float64
        assert gap(op.dense(), expected) < 1e-13
    assert {p.dtype for p in module.parameters()} == {torch.float32}
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


def checkpointed(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    return lambda z: checkpoint(nn.Sequential(layer, nn.Tanh()), z, use_reentrant=False)


def distances(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    return lambda z: torch.cdist(layer(z), torch.eye(8, 6, dtype=z.dtype))


def sparse(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight = torch.eye(8, 6).to_sparse()
    return lambda z: torch.sparse.mm(weight.to(z.dtype), layer(z).T).T


def frozen(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        return torch.jit.freeze(torch.jit.script(nn.Sequential(layer, nn.Tanh()).eval()))


@pytest.mark.parametrize("make", [checkpointed, distances, sparse, frozen])
def test_dense_jacobians_of_what_runs_again_or_lacks_a_rule(make: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = make(nn.Linear(4, 6))
    z = decoders.latents((4,), batch=2)
    J = torch.stack(
        [torch.autograd.functional.jacobian(lambda x: decoder(x[None])[0], x) for x in z]
    )
    with JacobianOperator(decoder, z) as op:
        assert gap(op.dense(), J.double()) < 1e-6
        if make is distances:
            with pytest.raises(DecoderError, match=r"differentiates in forward mode, or twice"):
                op.matmat(torch.ones(4, 1))


def test_latents_with_infinite_derivatives_are_named() -> None:
    z = torch.tensor([[1.0, 2.0], [4.0, 0.0], [1.0, 1.0]])
    with JacobianOperator(torch.sqrt, z) as op, pytest.raises(DecoderError) as raised:
        op.matmat(torch.eye(2))
    assert str(raised.value).startswith(
        "Expected finite derivatives, got NaN or infinity for latent 1, whose outputs are finite: "
    )
    assert raised.value.latents == (1,)


def test_sparse_weights_are_multiplied() -> None:
    weight = decoders.latents((6,), 9).double()
    sparse = (weight * (weight > 0)).to_sparse()
    z = decoders.latents((6,), 2).double()
    with JacobianOperator(lambda z: torch.sparse.mm(sparse, z.T).T, z) as op:
        assert gap(op.dense(), sparse.to_dense().expand(2, 9, 6)) < 1e-13
    assert knots(lambda z: torch.sparse.mm(sparse, z.T).T.relu(), z, method="hull").units == 9
