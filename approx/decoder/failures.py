"""What goes wrong inside a decoder when it first runs, in the words of its caller."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from approx.decoder.checks import DecoderError
from approx.decoder.memory import out_of_memory
from approx.decoder.parts import modules_of

_CONVOLUTIONS = (nn.modules.conv._ConvNd,)


@contextmanager
def in_words(decoder: Any, z: Tensor) -> Iterator[None]:
    """Turn an error of torch's or Python's own inside the decoder into one that says what to pass.

    The cause is chained. Exceptions of the caller's own classes, and those for a lack of memory,
    stay what they are.
    """
    try:
        yield
    except DecoderError:
        refuse_whole(decoder)
        raise
    except Exception as error:
        if out_of_memory(error) or type(error).__module__.partition(".")[0] not in _OURS:
            raise
        # of any number: what it is tried on are two of them
        shape = ", ".join(map(str, z.shape[1:]))
        raise DecoderError(
            f"Expected a decoder that runs on latents of shape (B, {shape}), got "
            f"{type(error).__name__}: {first_line(error)}{_place(error, decoder)}: "
            f"{_remedy(error, decoder, z)}"
        ) from error


_OURS = ("builtins", "torch")


def refuse_whole(decoder: Any) -> None:
    """Refuse a module that encodes and decodes, once its outputs are not those of a decoder."""
    part = _decoding(decoder)
    if part:
        raise DecoderError(
            f"Expected a decoder of latents, got the whole autoencoder {type(decoder).__name__}: "
            f"pass its {part}."
        )


def _decoding(decoder: Any) -> str:
    """Return the name of the part that decodes, of a module that encodes as well."""
    if isinstance(decoder, nn.Module):
        for encode, decode in (("encode", "decode"), ("encoder", "decoder")):
            if callable(getattr(decoder, encode, None)) and callable(
                getattr(decoder, decode, None)
            ):
                return f".{decode}"
    return ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, without its full stop."""
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")


def percent(share: float) -> str:
    """Return a share for people."""
    return f"{100 * share:.3g} %" if share < 0.995 else f"{100 * share:.0f} %"


def _remedy(error: BaseException, decoder: Any, z: Tensor) -> str:
    """Say what to pass, as far as the decoder tells."""
    text = str(error)
    missing = _further_arguments(decoder)
    if isinstance(error, TypeError) and missing:
        given = ", ".join(f"{name}=..." for name in missing)
        return f"bind what it takes beside the latents, approx.bind(decoder, {given})."
    part = _decoding(decoder)
    if part:
        return f"pass its {part}, not the whole autoencoder."
    if "nference tensor" in text:
        return "build it outside of torch.inference_mode()."
    if "meta" in text:
        return "load its weights (to_empty and load_state_dict) on a device."
    if "dtype" in text or "scalar type" in text:
        return (
            "pass the module itself, or approx.bind(module, ...) with its arguments, so that all "
            "of it is run in one dtype."
        )
    module, entered = _innermost(error)
    if module is not None and entered is not None and entered.shape[1:] == z.shape[1:]:
        if isinstance(module, nn.Linear):
            return f"give latents with {module.in_features} coordinates in the last axis."
        if isinstance(module, _CONVOLUTIONS):
            axes = len(module.kernel_size)
            return (
                f"give latents of shape (B, {module.in_channels}"
                + ", size" * axes
                + "), which its first layer takes."
            )
    return (
        "check their shape, and that it runs on any number of them (approx.bind gives each its row "
        "of further arguments)."
    )


def _further_arguments(decoder: Any) -> list[str]:
    """Return the names of what a decoder requires beside the latents."""
    called = decoder.forward if isinstance(decoder, nn.Module) else decoder
    try:
        parameters = list(inspect.signature(called).parameters.values())
    except (TypeError, ValueError):
        return []
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters[1:] if p.default is p.empty and p.kind in kinds]


def _innermost(error: BaseException) -> tuple[nn.Module | None, Tensor | None]:
    """Return the module whose forward raised, and what entered it, from the traceback."""
    module, entered, trace = None, None, error.__traceback__
    while trace is not None:
        names = trace.tb_frame.f_locals
        if isinstance(names.get("self"), nn.Module) and trace.tb_frame.f_code.co_name == "forward":
            module = names["self"]
            tensors = [value for value in names.values() if isinstance(value, Tensor)]
            entered = tensors[0] if tensors else None
        trace = trace.tb_next
    return module, entered


def _place(error: BaseException, decoder: Any) -> str:
    """Return " in 'path' (Class)" of the module whose forward raised."""
    module, _ = _innermost(error)
    if module is None:
        return ""
    for root in modules_of(decoder):
        for path, part in root.named_modules():
            if part is module and path:
                return f" in '{path}' ({type(module).__name__})"
    return f" in {type(module).__name__}"


def no_graph() -> DecoderError:
    """Return the error for outputs that do not depend on the latents, as far as autograd knows."""
    return DecoderError(
        "Expected outputs that depend on the latents through differentiable operations, "
        "got a tensor without a graph: remove torch.no_grad(), .detach() and conversions "
        "to numpy from the decoder."
    )


def on_meta() -> DecoderError:
    """Return the error for a decoder of shapes alone."""
    return DecoderError(
        "Expected a decoder with values, got one on the device meta, which has shapes alone: load "
        "its weights (to_empty and load_state_dict) on a device."
    )


def inference_tensors(modules: Iterable[nn.Module]) -> None:
    """Refuse modules whose parameters autograd may not use."""
    for root in modules:
        for name, tensor in (*root.named_parameters(), *root.named_buffers()):
            if tensor.is_inference():
                raise DecoderError(
                    f"Expected parameters that autograd may keep, got the inference tensor "
                    f"'{name}': build the module outside of torch.inference_mode()."
                )
