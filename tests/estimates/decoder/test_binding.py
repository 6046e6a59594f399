"""Conditional decoders, and copies of what closes over modules."""

from __future__ import annotations

import copy
import functools
import re
from typing import Any

import numpy as np
import pytest
import torch
from support import decoders
from support.decoders import gap
from torch import Tensor, nn

from approx import DecoderError, DescribeError, JacobianOperator, bind, describe, knots
from approx.decoder import held_by_one, prepare


class Conditional(nn.Module):
    """A decoder of latents, a time, labels and an embedding for each latent."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = decoders.relu_mlp()[0]
        self.labels = nn.Embedding(5, 60)

    def forward(
        self, z: Tensor, t: Any, labels: Tensor, *, added: Any = None, kind: str = "plain"
    ) -> Tensor:
        assert kind == "plain"
        y = self.inner(z) * torch.as_tensor(t).reshape(-1, 1) + self.labels(labels)
        return y if added is None else y * added["embedding"]

    def decode(self, z: Tensor, t: Any, labels: Tensor) -> Tensor:
        return self(z, t, labels)


Z = decoders.latents((12,))
LABELS = torch.tensor([3, 0, 4])
ADDED = decoders.latents((60,), seed=5)


def made() -> Conditional:
    return decoders.seeded(Conditional, (12,), 3)[0]  # type: ignore[return-value]


def oracle(module: Conditional) -> Tensor:
    """Jacobians in float64, each latent with its own arguments."""
    module = copy.deepcopy(module).double()
    rows = [
        torch.autograd.functional.jacobian(
            lambda x, i=i: module(
                x[None], 2.5, LABELS[i : i + 1], added={"embedding": ADDED[i : i + 1].double()}
            )[0],
            Z[i].double(),
        )
        for i in range(3)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("rows", ["tensors", "arrays", "number"])
def test_rows_and_one_for_all(rows: str) -> None:
    module = made()
    t: Any = {"tensors": torch.tensor(2.5), "arrays": np.array([2.5], np.float32), "number": 2.5}
    labels: Any = LABELS.numpy() if rows == "arrays" else LABELS
    decoder = bind(module, t=t[rows], labels=labels, added={"embedding": ADDED}, kind="plain")
    expected = oracle(module)
    for dtype, tolerance in ((None, 2e-6), (torch.float64, 1e-13)):
        op = JacobianOperator(decoder, Z, dtype=dtype)
        assert gap(op.dense(), expected) < tolerance
        assert gap(op.rmatmat(torch.eye(60)).mT, expected) < tolerance
    refined = JacobianOperator(decoder, Z).refined(torch.tensor([2, 0]))
    assert gap(refined.dense(), expected[[2, 0]]) < 1e-13
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert decoder.rows == 3
    if rows != "number":  # which the module makes a tensor of, on the CPU
        assert held_by_one(prepare(decoder, Z), Z)


def test_methods_and_knots() -> None:
    module = made()
    one = bind(module.decode, t=1.0, labels=LABELS[:1])
    assert one.rows is None
    op = JacobianOperator(one, Z, dtype=torch.float64)
    assert gap(op.dense(), decoders.dense(one_at(module), Z)) < 1e-13
    # a row for each of the latents, which knots takes in batches
    scaled = bind(
        lambda z, scale: (z * scale - 1).relu(), scale=torch.tensor([[1.0], [2.0], [4.0]])
    )
    z = torch.tensor([[1.05], [1.05], [0.26]])
    for batch in (1, 2, 3):
        found = knots(scaled, z, radius=0.1, directions=1, batch=batch)
        assert found.count.tolist() == [1, 0, 1]


def one_at(module: Conditional) -> Any:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, z: Tensor) -> Tensor:
            return self.module(z, 1.0, LABELS[:1].expand(len(z)))

    return One()


def test_rows_that_do_not_fit_are_refused() -> None:
    decoder = bind(made(), t=1.0, labels=LABELS)
    message = (
        "Expected a row of labels= for each of 4 latents, got 3: bind one row for each latent, or "
        "a single row for all."
    )
    with pytest.raises(DecoderError, match=message):
        JacobianOperator(decoder, decoders.latents((12,), batch=4))
    with pytest.raises(DecoderError, match=message):
        knots(decoder, decoders.latents((12,), batch=4), batch=2)
    # too many, as where the rest of a job is described with the rows of all of it
    few = "Expected a row of labels= for each of 2 latents, got 3: bind one row for each latent"
    with pytest.raises(DecoderError, match=few):
        knots(decoder, Z[:2])
    with pytest.raises(DecoderError, match=few):
        describe(decoder, Z[:2], neighbourhood=None, progress=False)
    with pytest.raises(DescribeError, match=few) as stopped:
        describe(decoder, iter(Z[:2]), neighbourhood=None, progress=False)
    assert len(stopped.value.partial) == 2
    few = "Expected a row of labels= for each latent, got 3 rows and a latent 5: bind one row"
    with pytest.raises(DescribeError, match=few):
        describe(decoder, iter(torch.cat([Z, Z])), neighbourhood=None, batch=3, progress=False)


def test_arguments_that_are_refused() -> None:
    message = (
        "Expected arguments that the decoder takes beside the latents, got step: got an unexpected "
        "keyword argument 'step'; it is called as (z: "
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        bind(made(), step=1)
    with pytest.raises(ValueError, match="Expected a decoder that can be called on latents, got i"):
        bind(3, t=1)  # type: ignore[arg-type]


class Pipeline:
    """An object that is no module and has one."""

    def __init__(self, module: nn.Module) -> None:
        self.vae = module
        self.scale = torch.tensor(2.0)

    def decode(self, z: Tensor) -> Tensor:
        return self.vae(z / self.scale)

    def __call__(self, z: Tensor) -> Tensor:
        return self.decode(z)


GLOBAL = decoders.relu_mlp()[0]


def by_global(z: Tensor) -> Tensor:
    return helper(z)


def helper(z: Tensor, weights: Tensor = torch.full((60, 2), 0.5)) -> Tensor:  # noqa: B008
    return torch.cat([part for part in [GLOBAL(z) @ weights]])


def around(weights: Tensor) -> dict[str, Any]:
    module = decoders.relu_mlp()[0]
    pipeline = Pipeline(module)

    def with_weights(weights: Tensor, z: Tensor) -> Tensor:
        return module(z) @ weights

    return {
        "closure": lambda z: module(z) @ weights,
        "global": by_global,
        "default": lambda z, m=module: m(z),
        "partial": functools.partial(with_weights, weights),
        "partial of keywords": functools.partial(lambda z, *, w: module(z) @ w, w=weights),
        "object": pipeline,
        "method of an object": pipeline.decode,
        "object in a closure": lambda z: pipeline.decode(z),
        "no_grad elsewhere": torch.enable_grad()(lambda z: module(z)),
        "list": lambda z, parts=[module, torch.sin]: parts[1](parts[0](z)),
        "bound": bind(lambda z, w: (module(z)[:, None] @ w)[:, 0], w=weights[None]),
    }


@pytest.mark.parametrize("kind", around(torch.ones(60, 2)))
def test_functions_around_modules_run_in_float64(kind: str) -> None:
    weights = decoders.latents((2,), batch=60)
    decoder = around(weights)[kind]
    single = JacobianOperator(decoder, Z).dense()
    op = JacobianOperator(decoder, Z, dtype=torch.float64)
    assert op.output.dtype == torch.float64
    assert 0 < gap(single, op.dense()) < 2e-6
    # in float64 throughout: what is left is its rounding
    assert gap(op.rmatmat(torch.eye(op.rows)).mT, op.dense()) < 1e-13
    assert weights.dtype == torch.float32
    assert GLOBAL[0].weight.dtype == torch.float32  # type: ignore[index]
    assert torch.equal(JacobianOperator(decoder, Z).dense(), single)


def test_what_cannot_be_copied_names_bind() -> None:
    class Stuck(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("cannot pickle 'Lock' object")

    module = Stuck(12, 3)
    assert JacobianOperator(module, Z).rows == 3
    message = (
        "Expected a decoder that can be copied to run it in torch.float64, got TypeError: cannot "
        "pickle 'Lock' object: convert it yourself, or pass the module with its arguments as "
        "approx.bind(module, ...)."
    )
    with pytest.raises(DecoderError, match=re.escape(message)):
        JacobianOperator(lambda z: module(z), Z, dtype=torch.float64)


def test_old_weight_norm_is_copied_after_a_pass() -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        layer = nn.utils.weight_norm(nn.Linear(12, 20))
    module = nn.Sequential(layer, nn.SiLU(), nn.Linear(20, 30)).eval()
    module(Z)  # leaves a weight with a graph, which torch does not copy
    kept = layer.weight
    op = JacobianOperator(module, Z, dtype=torch.float64)
    w = nn.functional.normalize(layer.weight_v.double()) * layer.weight_g.double()
    h = Z.double() @ w.T + layer.bias.double()
    slope = torch.sigmoid(h) * (1 + h * (1 - torch.sigmoid(h)))
    expected = module[2].weight.double() @ (slope[:, :, None] * w)  # type: ignore[operator]
    assert gap(op.dense(), expected.detach()) < 1e-13
    assert layer.weight is kept


@pytest.mark.parametrize("compiled", ["whole", "part", "function", "in place"])
def test_compiled_decoders_run_as_they_were_written(compiled: str) -> None:
    module = decoders.gelu_mlp()[0]
    expected = JacobianOperator(module, Z)
    Y = torch.eye(50)
    decoder: Any = {
        "whole": lambda: torch.compile(module, backend="aot_eager"),
        "part": lambda: nn.Sequential(torch.compile(module[0], backend="aot_eager"), *module[1:]),  # type: ignore[index]
        "function": lambda: torch.compile(lambda z: module(z), backend="aot_eager"),
        "in place": lambda: in_place(copy.deepcopy(module)),
    }[compiled]()
    op = JacobianOperator(decoder, Z)
    for _ in range(2):  # donated buffers would be gone at the second
        torch.testing.assert_close(op.rmatmat(Y), expected.rmatmat(Y))
    torch.testing.assert_close(op.dense(), expected.dense())
    wide = JacobianOperator(decoder, Z, dtype=torch.float64)
    assert gap(wide.dense(), decoders.dense(module, Z)) < 1e-13


def in_place(module: nn.Module) -> nn.Module:
    module.compile(backend="aot_eager")
    return module
