"""A caller's decoder prepared, run and left exactly as it was."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from approx.decoder.attention import plain_attention
from approx.decoder.binding import Bound
from approx.decoder.checks import (
    HALF,
    Output,
    check_deterministic,
    check_latents,
    check_output,
    pick,
    random_numbers,
)
from approx.decoder.failures import inference_tensors, on_meta
from approx.decoder.memory import Held, held_bytes
from approx.decoder.parts import converted, dtypes_of, modules_of


class Prepared(NamedTuple):
    """A decoder with the dtypes that it runs in.

    Attributes
    ----------
    call : callable
        The caller's decoder, or a copy of it in another dtype.
    modules : tuple of nn.Module
        The modules that it is made of, as far as they can be seen from outside.
    output : callable, str, int or None
        Picks the tensor from what the decoder returns.
    dtype : torch.dtype
        Of latents, outputs and products outside of the decoder: float32 or float64.
    inner : torch.dtype
        Of the latents that the decoder itself is given.
    autocast : torch.dtype or None
        Reduced precision for the decoder's matrix products and convolutions.
    device : torch.device
        Of the latents, and of the decoder.
    """

    call: Callable[[Tensor], Any]
    modules: tuple[nn.Module, ...]
    output: Output | None
    dtype: torch.dtype
    inner: torch.dtype
    autocast: torch.dtype | None
    device: torch.device

    def __call__(self, z: Tensor) -> Tensor:
        """Decode z, within `session`: a tensor of `dtype`, its checks left to the caller."""
        with precision(self.device, self.autocast):
            returned = self.call(z.to(self.inner))
        return pick(returned, self.output).to(self.dtype)

    def at(self, rows: slice | Tensor) -> Prepared:
        """Return the decoder of some of the latents of its job: a slice, or numbers (n,) int64."""
        call = self.call.at(rows) if isinstance(self.call, Bound) else self.call
        return self._replace(call=call).placed()

    def placed(self) -> Prepared:
        """Return the decoder with bound arguments where the latents are, not to move at a pass."""
        call = self.call.to(self.device) if isinstance(self.call, Bound) else self.call
        return self._replace(call=call)

    def check_rows(self, count: int) -> None:
        """Refuse a decoder whose bound arguments have rows for another number of latents."""
        if isinstance(self.call, Bound):
            self.call.check(count)

    def in_dtype(self, dtype: torch.dtype) -> Prepared:
        """Return a copy of the decoder that runs in float32 or float64 throughout."""
        call = self.call
        if dtypes_of(call) - {dtype}:
            call = converted(call, dtype)
        return self._replace(
            call=call, modules=modules_of(call), dtype=dtype, inner=dtype, autocast=None
        )


def precision(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Return a region of autocast to dtype, or of none: not the one around the caller."""
    if not torch.amp.is_autocast_available(device.type):  # meta
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def prepare(
    decoder: Callable[[Tensor], Any],
    z: Tensor,
    *,
    output: Output | None = None,
    dtype: torch.dtype | None = None,
) -> Prepared:
    """Check latents and decoder, and settle the dtypes (see `JacobianOperator` for `dtype`).

    Raises
    ------
    ValueError
        Latents that are not a finite floating-point tensor (B, *latent_shape), on another device
        than the decoder, or another dtype than float16, bfloat16, float32 or float64 asked for.
    DecoderError
        Dropout or batch normalisation in training mode; a function around modules whose dtype
        cannot be changed.
    """
    check_latents(z)
    if not callable(decoder):
        raise ValueError(
            f"Expected a decoder that can be called on latents, got {type(decoder).__name__}: "
            "give a module, its decode method or a function."
        )
    if dtype not in (None, *HALF, torch.float32, torch.float64):
        raise ValueError(
            f"Expected dtype as float32, float64, bfloat16 or float16, got {dtype}: leave it out "
            "for the latents' own."
        )
    modules = modules_of(decoder)
    check_deterministic(modules)
    inference_tensors(modules)
    held = {p.dtype for m in modules for p in m.parameters() if p.is_floating_point()}
    places = {p.device for m in modules for p in m.parameters()}
    if {place.type for place in places} == {"meta"} != {z.device.type}:
        raise on_meta()
    if places and z.device not in places:
        raise ValueError(
            f"Expected latents on the decoder's device {listing(places)}, got {z.device}: move "
            "them with latents.to(device)."
        )
    inner, autocast = z.dtype, None
    if dtype in HALF and held != {dtype}:
        autocast, inner = dtype, torch.float32 if z.dtype in HALF else z.dtype
    elif dtype is not None:
        inner = dtype
        if dtypes_of(decoder) - {dtype}:
            decoder = converted(decoder, dtype)
            modules = modules_of(decoder)
    elif held and z.dtype not in held:
        raise ValueError(
            f"Expected latents in the decoder's dtype {listing(held)}, got {z.dtype}: convert "
            f"them, or pass dtype={z.dtype} to run a copy of the decoder in it."
        )
    outer = torch.float64 if inner == torch.float64 else torch.float32
    return Prepared(
        call=decoder,
        modules=modules,
        output=output,
        dtype=outer,
        inner=inner,
        autocast=autocast,
        device=z.device,
    )


@contextmanager
def session(prepared: Prepared) -> Iterator[None]:
    """Let the decoder be run: plain attention, parameters without gradients, own autograd mode.

    Compiled parts run as they were written, and float32 in float32. Buffers are copies, so that
    whatever a pass writes to them is gone with the session (and a graph may keep them); 1e7 numbers
    take 30 ms.

    Afterwards, also after an exception, training flags, `requires_grad` and `grad` of parameters,
    buffers, attention processors and random-number generators are as before.
    """
    modules = list({id(m): m for root in prepared.modules for m in root.modules()}.values())
    # a frozen scripted module has no such flag
    training = [(m, m.training) for m in modules if hasattr(m, "training")]
    parameters = {id(p): p for root in prepared.modules for p in root.parameters()}.values()
    wanted = [(p, p.requires_grad, p.grad) for p in parameters]
    generators = generator_states(prepared.device)
    buffers = _buffer_copies(modules)
    try:
        for module, name, _, copied in buffers:
            module._buffers[name] = copied
        # a graph that is only asked for latents' gradients need not keep what weights' would take
        for parameter, _, _ in wanted:
            parameter.requires_grad_(False)
        plain = plain_attention(prepared.modules)
        with torch.inference_mode(False), plain, eager(), whole_float32():
            yield
    finally:
        for parameter, requires_grad, grad in wanted:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        for module, flag in training:
            module.training = flag
        for module, name, buffer, _ in buffers:
            module._buffers[name] = buffer
        set_generator_states(prepared.device, generators)


def eager() -> AbstractContextManager[object]:
    """Return a region without compiled code: it gives its buffers away after one backward pass."""
    # dynamo is asked only where it is loaded already: loading it is slow
    loaded = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if loaded else nullcontext()


@contextmanager
def whole_float32() -> Iterator[None]:
    """Region where float32 is float32: not TF32, nor bfloat16, which leave 1e-3 in a product.

    Convolutions on CUDA run in TF32 by default.
    """
    backends = torch.backends
    parts: list[tuple[Any, str, Any]] = [
        (part, "fp32_precision", "ieee")
        for part in (
            backends.cuda.matmul,
            *(getattr(backends.cudnn, name, None) for name in ("conv", "rnn")),
            *(getattr(backends.mkldnn, name, None) for name in ("matmul", "conv", "rnn")),
        )
        if hasattr(part, "fp32_precision")
    ]
    if not parts:  # torch before 2.9
        parts = [(backends.cuda.matmul, "allow_tf32", False), (backends.cudnn, "allow_tf32", False)]
    before = [getattr(part, name) for part, name, _ in parts]
    try:
        for part, name, value in parts:
            setattr(part, name, value)
        yield
    finally:
        for (part, name, _), value in zip(parts, before, strict=True):
            setattr(part, name, value)


def _buffer_copies(modules: Iterable[nn.Module]) -> list[tuple[nn.Module, str, Tensor, Tensor]]:
    """Copy buffers: (module, name, buffer, copy), one copy of a buffer that modules share."""
    kept = [
        (module, name, buffer)
        for module in modules
        # a scripted module keeps its buffers to itself
        if not isinstance(module, torch.jit.ScriptModule)
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    with torch.inference_mode(False):
        copies = {id(buffer): buffer.detach().clone() for _, _, buffer in kept}
    return [(module, name, buffer, copies[id(buffer)]) for module, name, buffer in kept]


def forward(prepared: Prepared, z: Tensor) -> Tensor:
    """Decode z within `session` and check: deterministic, one finite output for each latent."""
    with deterministic(prepared):
        y = prepared(z)
    check_output(y, z)
    return y


@contextmanager
def deterministic(prepared: Prepared) -> Iterator[None]:
    """Refuse a decoder that draws random numbers in the block."""
    before = generator_states(prepared.device)
    yield
    if not all(map(torch.equal, before, generator_states(prepared.device))):
        raise random_numbers(prepared.device)


def held_by_one(prepared: Prepared, z: Tensor) -> Held | None:
    """Return what the graph of one latent would keep, without memory; None where it cannot be told.

    The module is called with shapes alone (torch's `meta` device), which a function around modules,
    or a module that looks at values, does not allow.
    """
    first = prepared.at(slice(0, 1)).call
    module = first.target if isinstance(first, Bound) else first
    if not isinstance(module, nn.Module):
        return None
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    one = torch.empty_like(z[:1], device="meta", requires_grad=True)

    def call(latents: Tensor, **arguments: Any) -> Any:
        return torch.func.functional_call(module, shapes, (latents,), arguments)

    try:
        with session(prepared), torch.enable_grad():
            alone = replace(first, target=call) if isinstance(first, Bound) else call
            shaped = prepared._replace(call=alone, device=one.device)
            return held_bytes(shaped(one), shapes.values())
    except Exception:  # whatever a caller's module does when it meets tensors without values
        return None


def generator_states(device: torch.device) -> list[Tensor]:
    """Return the states of torch's generators: of the CPU, and of the device."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    elif device.type == "mps":
        states.append(torch.mps.get_rng_state())
    return states


def set_generator_states(device: torch.device, states: list[Tensor]) -> None:
    """Put the generators back."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states[1])


def listing(values: set[Any]) -> str:
    """Return 'a or b' in a fixed order."""
    return " or ".join(sorted(map(str, values)))
