"""The Jacobian of a decoder as an operator: products with blocks of vectors, never a matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor

from approx import _memory
from approx._checks import DecoderError, Output
from approx._memory import chunked, free_bytes, held_bytes, sized
from approx._state import forward, prepare, session

Mode = Literal["jvp", "vjp"]


class JacobianOperator:
    """J_b = d decoder(z)_b / d z_b for each latent b of a batch."""

    def __init__(
        self,
        decoder: Callable[[Tensor], Any],
        z: Tensor,
        *,
        output: Output | None = None,
        chunk: int | Literal["auto"] = "auto",
        dtype: torch.dtype | None = None,
    ) -> None:
        if chunk != "auto" and (not isinstance(chunk, int) or chunk < 1):
            raise ValueError(
                f"Expected chunk as a positive integer or 'auto', got {chunk!r}: give 1 or more."
            )
        self._prepared = prepare(decoder, z, output=output, dtype=dtype)
        self._latents = z.detach().to(self._prepared.dtype).clone()
        with session(self._prepared), torch.enable_grad():
            self._leaf = self._latents.clone().requires_grad_()
            # a decoder may change its input in place, which a leaf does not allow
            y = forward(self._prepared, self._leaf.clone())
        if not y.requires_grad:
            raise DecoderError(
                "Expected outputs that depend on the latents through differentiable operations, "
                "got a tensor without a graph: remove torch.no_grad(), .detach() and conversions "
                "to numpy from the decoder."
            )
        self._graph: Tensor | None = y
        self.output = y.detach()
        self.batch = len(z)
        self.latent_shape = tuple(z.shape[1:])
        self.output_shape = tuple(y.shape[1:])
        self.columns = math.prod(self.latent_shape)
        self.rows = math.prod(self.output_shape)
        self.device = z.device
        self.dtype = self._prepared.dtype
        self.products = 0
        self._held = held_bytes(y)
        self._chunk = chunk

    def matmat(self, X: Tensor) -> Tensor:
        """Return J X, (B, D, k), for X of shape (d, k) or (B, d, k)."""
        X = self._block(X, self.columns, "X")
        return self._products(X, self.rows, self._jvp)

    def rmatmat(self, Y: Tensor) -> Tensor:
        """Return J^T Y, (B, d, k), for Y of shape (D, k) or (B, D, k)."""
        Y = self._block(Y, self.rows, "Y")
        return self._products(Y, self.columns, self._vjp)

    def dense(self, max_bytes: float = 1e9) -> Tensor:
        """Return the matrices, (B, D, d)."""
        size = self.batch * self.rows * self.columns * self.dtype.itemsize
        if size > max_bytes:
            raise ValueError(
                f"Expected a dense Jacobian of at most {sized(max_bytes)}, got {self.batch} x "
                f"{self.rows} x {self.columns} entries in {sized(size)}: use matmat and rmatmat, "
                "or raise max_bytes."
            )
        if self.columns <= self.rows:
            return self.matmat(torch.eye(self.columns, dtype=self.dtype, device=self.device))
        return self.rmatmat(torch.eye(self.rows, dtype=self.dtype, device=self.device)).mT

    def close(self) -> None:
        """Free the graph and the activations that it keeps."""
        self._graph = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _block(self, X: Tensor, rows: int, name: str) -> Tensor:
        """Check a block and return it as (k, B or 1, rows)."""
        if self._graph is None:
            raise RuntimeError(
                "Expected an open operator, got one that was closed: make a new one."
            )
        if X.ndim not in (2, 3) or X.shape[-2] != rows or (X.ndim == 3 and len(X) != self.batch):
            raise ValueError(
                f"Expected {name} of shape ({rows}, k) or ({self.batch}, {rows}, k), got "
                f"{tuple(X.shape)}: one column for each product."
            )
        X = X.to(device=self.device, dtype=self.dtype)
        return X.permute(1, 0)[:, None] if X.ndim == 2 else X.permute(2, 0, 1)

    def _products(self, X: Tensor, rows: int, apply: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply to the block's columns in chunks; (B, rows, k)."""
        k = len(X)
        result = torch.empty(self.batch, k, rows, dtype=self.dtype, device=self.device)

        def work(start: int, stop: int) -> None:
            part = X[start:stop].expand(-1, self.batch, -1)
            result[:, start:stop] = apply(part).flatten(2).transpose(0, 1)

        chunked(k, self._room(), work)
        self.products += k
        return result.mT

    def _room(self) -> int:
        """Return how many columns are done at once."""
        if isinstance(self._chunk, int):
            return self._chunk
        free = free_bytes(self.device)
        each = _memory.LIVE * self._held.largest + 4 * self.batch * (self.rows + self.columns)
        return 16 if free is None else max(1, min(16, int(_memory.SHARE * free / each)))

    def _vjp(self, cotangents: Tensor) -> Tensor:
        """Return J^T on (c, B, D): (c, B, *latent_shape)."""
        assert self._graph is not None
        cotangents = cotangents.reshape(*cotangents.shape[:2], *self.output_shape)
        single = len(cotangents) == 1
        with torch.inference_mode(False):
            (gradient,) = torch.autograd.grad(
                self._graph,
                self._leaf,
                cotangents[0] if single else cotangents,
                retain_graph=True,
                is_grads_batched=not single,
            )
        return gradient[None] if single else gradient

    def _jvp(self, tangents: Tensor) -> Tensor:
        """Return J on (c, B, d): (c, B, *output_shape)."""
        tangents = tangents.reshape(*tangents.shape[:2], *self.latent_shape)

        def one(tangent: Tensor) -> Tensor:
            # the latents do not carry vmap's axis, so that the outputs are computed once a chunk
            return torch.func.jvp(self._run, (self._latents,), (tangent,))[1]

        with session(self._prepared), torch.no_grad():
            if len(tangents) == 1:
                return one(tangents[0])[None]
            return torch.func.vmap(one)(tangents)

    def _run(self, z: Tensor) -> Tensor:
        return self._prepared(z.clone())
