"""`JacobianOperator`: the Jacobians of a decoder, known by products with blocks of vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor

from approx import devices
from approx.decoder import (
    DecoderError,
    ForwardRules,
    Output,
    as_latents,
    check_decoder,
    chunked,
    columns_at_once,
    first_line,
    fitting,
    free_bytes,
    held_bytes,
    narrowest,
    no_graph,
    no_room,
    not_finite,
    out_of_memory,
    precision,
    prepare,
    product_bytes,
    recorded,
    session,
    sized,
    transpose,
)

# Tangents that share a forward-mode pass at the least, even where a CPU's caches hold fewer: the
# pass computes the outputs as well, so that one tangent costs two passes and c tangents 1 + c.
_TANGENTS = 8


class NoProductError(DecoderError):
    """An operation of the decoder lets torch make no products J X."""


class JacobianOperator:
    r"""The Jacobians J_b = d decoder(z)_b / d z_b of a batch of latents, as an operator.

    One forward pass at construction serves all products J^T Y: its graph is kept until `close`.
    Products J X are forward-mode passes, one for each chunk of columns; a decoder with operations
    that forward mode does not know gets them by transposing J^T on the graph (reverse over
    reverse), which takes a second graph as large as the first.

    The decoder is run as it is: its mode, dtype, device, hooks, attention processors and random
    numbers are as before afterwards, also after an exception, and its parameters get no gradient.
    While it runs, fused attention is replaced by plain products, and a region of `torch.autocast`,
    `torch.no_grad` or `torch.inference_mode` around the call changes nothing.

    Parameters
    ----------
    decoder : callable
        Maps (B, \*latent_shape) to (B, \*output_shape), each latent alone: a module, a module's
        method such as ``vae.decode``, or a function. In eval mode if it has dropout or batch
        normalisation.
    z : Tensor
        (B, \*latent_shape) floating point, on the decoder's device. Copied, not changed. A numpy
        array goes to the decoder's device and dtype.
    output : callable, str or int, optional
        Picks the tensor from what the decoder returns: a function of it, a key, a position or an
        attribute (".sample"). By default a tensor is taken as it is, a structure by its
        ``.sample`` (diffusers).
    chunk : int or "auto"
        At most so many columns in one pass, batched by `torch.vmap`. "auto" goes by the free memory
        and, on a CPU, by its caches: larger images go one column at a time in channels_last, which
        is faster than batching there (`approx.devices.DEVICES` says where else). Halved when memory
        runs out; results do not depend on it beyond rounding.
    dtype : torch.dtype, optional
        None runs in the latents' own dtype. bfloat16 and float16 run the decoder under
        `torch.autocast` and cost about 1/4 on a CPU that has bfloat16 units; float32 and float64
        run a copy of a decoder that is not in that dtype. bfloat16 leaves a relative error of 0.5
        to 5 % in a product (the tests' small decoders); psi of 120 values moves by 0.3 on TAEF2.
    straight_through : bool
        Whether J is what reverse mode defines, whatever the decoder computes: straight-through
        estimators, `detach` and custom autograd functions are then no errors. Products J X are then
        made by transposing J^T.
    check : bool
        Whether to run the decoder a few times beforehand, to see that it treats each latent alone
        and the same way each time, and that J is the derivative of what it computes: False where
        that was done for other latents of the same decoder.

    Attributes
    ----------
    batch, rows, columns : int
        B, D (coordinates of an output) and d (coordinates of a latent).
    latent_shape, output_shape : tuple of int
        Without the batch axis.
    output : Tensor
        (B, \*output_shape), the decoded latents, detached.
    device : torch.device
        Of the latents.
    dtype : torch.dtype
        Of the output, of blocks and of products: float32, or float64 if the decoder runs in it.
    precision : torch.dtype
        The narrowest in which the decoder computes: `dtype`, or what its layers convert to.
    roundings : float
        ||E||_F / (eps ||J||_F), E the error that rounding leaves in J, as measured in float32 at
        the first latent; 0 where it was not: without `check`, or without a copy in float64.
    products : int
        Columns multiplied so far, by J or by J^T, for each latent.
    graph_bytes : int
        Of the tensors that the graph keeps for the products J^T Y, for the whole batch.
    product_bytes : int
        About what one column takes beside them while it is multiplied, for the whole batch.

    Raises
    ------
    ValueError
        Latents that are not a finite floating-point batch in the decoder's dtype and on its device.
    DecoderError
        A decoder that returns no finite floating-point tensor with one entry a latent, mixes the
        latents of a batch, draws random numbers, cannot be differentiated, or whose derivatives by
        autograd are not those of what it computes.
    MemoryError
        Not even one column fits; the message says how many latents would.

    Notes
    -----
    Cost: one forward pass at construction; a column of `rmatmat` is about one forward pass, one of
    `matmat` 1 + 1/chunk to 2 forward passes. Memory: the activations (those that layers of
    parameters alone would need are not kept), and a few of the largest layer a column.

    The check takes 20 forward passes of one latent, most of them on a copy of the decoder in
    float64 where one can be made and fits.

    Examples
    --------
    >>> import torch
    >>> from approx import JacobianOperator
    >>> decoder = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.ReLU())
    >>> with JacobianOperator(decoder, torch.ones(3, 2)) as J:
    ...     J.rmatmat(torch.eye(5)).shape
    torch.Size([3, 2, 5])
    """

    def __init__(
        self,
        decoder: Callable[[Tensor], Any],
        z: Tensor,
        *,
        output: Output | None = None,
        chunk: int | Literal["auto"] = "auto",
        dtype: torch.dtype | None = None,
        straight_through: bool = False,
        check: bool = True,
    ) -> None:
        if chunk != "auto" and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
            raise ValueError(
                f"Expected chunk as a positive integer or 'auto', got {chunk!r}: give the number "
                "of columns to multiply at once."
            )
        z = as_latents(z, decoder)
        self._prepared = prepare(decoder, z, output=output, dtype=dtype).placed()
        self._chunk: int | Literal["auto"] = chunk
        self._latents = (
            z.detach().to(self._prepared.dtype).clone(memory_format=torch.contiguous_format)
        )
        self._straight_through = straight_through
        self.roundings = 0.0
        if check and z.device.type != "meta":
            try:
                self.roundings = check_decoder(
                    self._prepared, self._latents, straight_through=straight_through
                )
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                raise no_room(self._prepared, self._latents, error) from error
        batched = chunk not in ("auto", 1)
        self._leaf, y = recorded(self._prepared, self._latents, batched=batched)
        if not y.requires_grad:
            raise no_graph()
        self._graph: Tensor | None = y
        self._transpose: tuple[Tensor, Tensor] | None = None
        self._vmap = {"jvp": True, "vjp": True}
        # of a derivative that only one of the two knows, the one of reverse mode is taken
        self._forward_mode = not straight_through
        self.output = y.detach()
        self.batch = len(z)
        self.latent_shape = tuple(z.shape[1:])
        self.output_shape = tuple(y.shape[1:])
        self.columns = math.prod(self.latent_shape)
        self.rows = math.prod(self.output_shape)
        self.device = z.device
        self.dtype = self._prepared.dtype
        self.precision = narrowest(y, self._prepared.inner)
        self.products = 0
        parameters = [p for m in self._prepared.modules for p in (*m.parameters(), *m.buffers())]
        with session(self._prepared):  # for checkpoints, which run it again
            self._held = held_bytes(y, parameters)
        self.graph_bytes = self._held.total
        self.product_bytes = product_bytes(
            self._held, self.batch * (self.rows + self.columns) * self.dtype.itemsize
        )

    def matmat(self, X: Tensor) -> Tensor:
        """Return J X, at 1 + 1/chunk to 2 forward passes a column.

        Parameters
        ----------
        X : Tensor
            (d, k), shared by all latents, or (B, d, k).

        Returns
        -------
        Tensor
            (B, D, k).

        Raises
        ------
        ValueError
            X of another shape.
        RuntimeError
            The operator was closed.
        MemoryError
            Not even one column fits.
        """
        return self._multiply(X, "jvp")

    def rmatmat(self, Y: Tensor) -> Tensor:
        """Return J^T Y, at about one forward pass a column.

        Parameters
        ----------
        Y : Tensor
            (D, k), shared by all latents, or (B, D, k).

        Returns
        -------
        Tensor
            (B, d, k).

        Raises
        ------
        ValueError
            Y of another shape.
        RuntimeError
            The operator was closed.
        MemoryError
            Not even one column fits.
        """
        return self._multiply(Y, "vjp")

    def dense(self, max_bytes: float = 2**30) -> Tensor:
        """Return the matrices (B, D, d), from min(d, D) products; D where there is no J X.

        Parameters
        ----------
        max_bytes : float
            The most bytes that they may take.

        Returns
        -------
        Tensor
            (B, D, d).

        Raises
        ------
        ValueError
            If they take more than `max_bytes`.
        """
        size = self.batch * self.rows * self.columns * self.dtype.itemsize
        if size > max_bytes:
            raise ValueError(
                f"Expected dense Jacobians of at most {sized(max_bytes)}, got {self.batch} of "
                f"{self.rows} x {self.columns}, {sized(size)}: use matmat and rmatmat, fewer "
                "latents, or raise max_bytes."
            )
        if self.columns <= self.rows:
            try:
                return self.matmat(torch.eye(self.columns, dtype=self.dtype, device=self.device))
            except NoProductError:
                pass
        return self.rmatmat(torch.eye(self.rows, dtype=self.dtype, device=self.device)).mT

    def refined(self, latents: Tensor, dtype: torch.dtype = torch.float64) -> JacobianOperator:
        """Return the operator of some of the latents in a wider dtype, on a copy of the decoder.

        Parameters
        ----------
        latents : Tensor
            (n,) int64, their numbers in this batch.
        dtype : torch.dtype
            float64 or float32.

        Returns
        -------
        JacobianOperator
            To be closed by the caller. Its decoder has the weights as they are stored.

        Raises
        ------
        DecoderError
            The decoder cannot be copied or run in it, or its device has no float64.
        """
        if dtype == torch.float64 and not devices.of(self.device).float64:
            raise DecoderError(f"Expected a device with float64, got {self.device}: use the CPU.")
        z = self._latents[latents.to(self.device)].to(dtype)
        prepared = self._prepared.at(latents)
        try:
            made = JacobianOperator(
                prepared.call,
                z,
                output=prepared.output,
                chunk=self._chunk,
                dtype=dtype,
                straight_through=self._straight_through,
                check=False,
            )
        except (RuntimeError, TypeError) as error:
            if out_of_memory(error):
                raise
            raise DecoderError(
                f"Expected a decoder of which a copy runs in {dtype}, got {error}: give a module "
                "whose weights and constants are parameters and buffers."
            ) from error
        made.roundings = self.roundings
        return made

    def close(self) -> None:
        """Free the graph with its activations; `output` stays."""
        self._graph = self._transpose = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _multiply(self, X: Tensor, mode: Literal["jvp", "vjp"]) -> Tensor:
        """Multiply the block's columns in chunks: (B, rows, k)."""
        given, made, name = self.columns, self.rows, "X"
        if mode == "vjp":
            given, made, name = self.rows, self.columns, "Y"
        if self._graph is None:
            raise RuntimeError(
                "Expected an open operator, got one that was closed: make a new JacobianOperator."
            )
        if X.ndim not in (2, 3) or X.shape[-2] != given or (X.ndim == 3 and len(X) != self.batch):
            raise ValueError(
                f"Expected {name} of shape ({given}, k) or ({self.batch}, {given}, k), got "
                f"{tuple(X.shape)}: give one column for each product."
            )
        # once, and not chunk by chunk, which would wait for each
        X = X.to(device=self.device, dtype=self.dtype)
        k = X.shape[-1]
        result = torch.empty(self.batch, k, made, dtype=self.dtype, device=self.device)

        def work(start: int, stop: int) -> None:
            part = X[..., start:stop]
            part = part.T[:, None] if part.ndim == 2 else part.movedim(-1, 0)
            part = part.expand(-1, self.batch, -1)  # (c, B, given)
            result[:, start:stop] = self._apply(part, mode).flatten(2).transpose(0, 1)

        try:
            chunked(k, self._columns(mode), work)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            free = free_bytes(self.device) or 0
            each = (self.graph_bytes + self.product_bytes) / self.batch
            raise MemoryError(
                f"Expected memory for one product of {self.batch} latents, about "
                f"{sized(self.product_bytes)} beside a graph of {sized(self.graph_bytes)}, got "
                f"{sized(free)} free: {fitting(int((free + self.graph_bytes) // each))}."
            ) from error
        self.products += k
        bad = not_finite(result)
        if bad:
            raise DecoderError.at(
                bad,
                "Expected finite derivatives, got NaN or infinity for {}, whose outputs are "
                "finite: give square roots, norms and quotients an argument above zero (also in "
                "the branch of a torch.where that is not taken), or leave those latents out.",
            )
        return result.mT

    def _columns(self, mode: Literal["jvp", "vjp"]) -> int:
        """Return how many columns are multiplied at once."""
        if not self._vmap[mode]:
            return 1
        if isinstance(self._chunk, int):
            return self._chunk
        if mode == "vjp" and not self._leaf.is_contiguous():
            return 1
        cached, most = columns_at_once(self.device, self._held, self.product_bytes)
        return min(most, max(cached, _TANGENTS)) if mode == "jvp" else cached

    def _apply(self, part: Tensor, mode: Literal["jvp", "vjp"]) -> Tensor:
        """Multiply (c, B, .) by J or J^T in one pass, or one by one where vmap cannot."""
        one = self._jvp if mode == "jvp" else self._vjp
        # the caller's inference mode would leave tensors that autograd refuses, and its autocast
        # would reach the operations of the backward pass
        with torch.inference_mode(False), precision(self.device, None):
            part = part.clone() if part.is_inference() else part
            if len(part) > 1 and self._vmap[mode]:
                try:
                    return one(part, True)
                except RuntimeError as error:
                    if out_of_memory(error):
                        raise
                    self._vmap[mode] = False  # an operation without a rule; its error comes again
            return torch.stack([one(column, False) for column in part])

    def _vjp(self, part: Tensor, batched: bool) -> Tensor:
        """Return J^T on (B, D), or on (c, B, D) if batched."""
        assert self._graph is not None
        y = part.reshape(*part.shape[:-1], *self.output_shape)
        with session(self._prepared):  # for checkpoints, which run it again
            return torch.autograd.grad(
                self._graph, self._leaf, y, retain_graph=True, is_grads_batched=batched
            )[0]

    def _jvp(self, part: Tensor, batched: bool) -> Tensor:
        """Return J on (B, d), or on (c, B, d) if batched."""
        x = part.reshape(*part.shape[:-1], *self.latent_shape)
        if self._forward_mode:
            # the latents are not batched, so that the outputs are computed once for all columns
            def one(tangent: Tensor) -> Tensor:
                return torch.func.jvp(self._run, (self._latents,), (tangent,))[1]

            with session(self._prepared), torch.no_grad(), ForwardRules():
                try:
                    return torch.func.vmap(one)(x) if batched else one(x)
                except RuntimeError as error:
                    if batched or out_of_memory(error):
                        raise
                    reason = error
            self._forward_mode, self._vmap["jvp"] = False, True
            try:
                return self._transposed(x)
            except RuntimeError as error:
                if out_of_memory(error):
                    raise
                self._forward_mode = True  # so that the next product says the same
                raise NoProductError(
                    "Expected operations that torch differentiates in forward mode, or twice in "
                    f"reverse mode, got {first_line(reason)}: write the operation out, or take a "
                    "method of products J^T y alone, 'predict' or 'paper'."
                ) from error
        return self._transposed(x, batched)

    def _run(self, z: Tensor) -> Tensor:
        return self._prepared(z.clone())

    def _transposed(self, x: Tensor, batched: bool = False) -> Tensor:
        """Return J x as the derivative of u -> J^T u, which is linear, times x."""
        with session(self._prepared):
            if self._transpose is None:
                assert self._graph is not None
                u, (g,) = transpose(self._graph, [self._leaf])
                self._transpose = (g, u)
            g, u = self._transpose
            return torch.autograd.grad(g, u, x, retain_graph=True, is_grads_batched=batched)[0]
