"""A caller's decoder prepared, run and left exactly as it was."""

from __future__ import annotations

import copy
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from approx.decoder.attention import plain_attention
from approx.decoder.checks import (
    HALF,
    DecoderError,
    Output,
    check_deterministic,
    check_latents,
    check_output,
    pick,
    random_numbers,
)
from approx.decoder.memory import Held, held_bytes


class Prepared(NamedTuple):
    """A decoder with the dtypes that it runs in.

    Attributes
    ----------
    call : callable
        The caller's decoder, or a copy of it in another dtype.
    modules : tuple of nn.Module
        The modules that it is made of, as far as they can be seen from outside.
    output : callable or None
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
    held = {p.dtype for m in modules for p in m.parameters() if p.is_floating_point()}
    places = {p.device for m in modules for p in m.parameters()}
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
        if held - {dtype}:
            decoder = _converted(decoder, dtype)
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

    Afterwards, also after an exception, training flags, `requires_grad` and `grad` of parameters,
    attention processors and random-number generators are as before.
    """
    modules = {id(m): m for root in prepared.modules for m in root.modules()}.values()
    training = [(m, m.training) for m in modules]
    parameters = {id(p): p for root in prepared.modules for p in root.parameters()}.values()
    wanted = [(p, p.requires_grad, p.grad) for p in parameters]
    generators = generator_states(prepared.device)
    try:
        # a graph that is only asked for latents' gradients need not keep what weights' would take
        for parameter, _, _ in wanted:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), plain_attention(prepared.modules):
            yield
    finally:
        for parameter, requires_grad, grad in wanted:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        for module, flag in training:
            module.training = flag
        set_generator_states(prepared.device, generators)


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
    module = prepared.call
    if not isinstance(module, nn.Module):
        return None
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    one = torch.empty_like(z[:1], device="meta", requires_grad=True)

    def call(latents: Tensor) -> Any:
        return torch.func.functional_call(module, shapes, (latents,))

    try:
        with session(prepared), torch.enable_grad():
            shaped = prepared._replace(call=call, device=one.device)
            return held_bytes(shaped(one), shapes.values())
    except Exception:  # whatever a caller's module does when it meets tensors without values
        return None


def modules_of(decoder: Any) -> tuple[nn.Module, ...]:
    """Return the modules behind a callable: itself, its owner, or what it closes over."""
    if isinstance(decoder, nn.Module):
        return (decoder,)
    if isinstance(decoder, functools.partial):
        inside = [decoder.func, *decoder.args, *decoder.keywords.values()]
        inside = [x for x in inside if isinstance(x, nn.Module) or callable(x)]
    elif inspect.ismethod(decoder):
        inside = [decoder.__self__]
    elif inspect.isfunction(decoder):
        found = inspect.getclosurevars(inspect.unwrap(decoder))
        inside = [*found.nonlocals.values(), *found.globals.values()]
        inside = [x for x in inside if isinstance(x, nn.Module) or inspect.ismethod(x)]
    else:
        inside = [x for x in getattr(decoder, "__dict__", {}).values() if isinstance(x, nn.Module)]
    unique = {id(m): m for x in inside for m in modules_of(x)}
    return tuple(unique.values())


def _converted(decoder: Any, dtype: torch.dtype) -> Callable[[Tensor], Any]:
    """Return a copy of the decoder in a dtype; the caller's is never touched."""
    if isinstance(decoder, nn.Module):
        # not the module's own .to(): diffusers' models warn in it
        return nn.Module.to(copy.deepcopy(decoder), dtype)
    if isinstance(decoder, functools.partial):
        inner = _converted(decoder.func, dtype)
        return functools.partial(inner, *decoder.args, **decoder.keywords)
    if inspect.ismethod(decoder) and isinstance(decoder.__self__, nn.Module):
        return types.MethodType(decoder.__func__, _converted(decoder.__self__, dtype))
    raise DecoderError(
        f"Expected a module, or a module's method, to run a copy of it in {dtype}, got "
        f"{type(decoder).__name__}: pass the module with output= to pick the tensor, or convert "
        "the module that the function calls."
    )


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
