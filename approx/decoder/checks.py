"""Requirements on latents, decoders and outputs, and the errors for those that fail them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Output = Callable[[Any], Tensor] | str | int
HALF = (torch.bfloat16, torch.float16)

# layers whose result in training mode is random, or depends on the other latents of the batch
_NOISY = (
    nn.modules.dropout._DropoutNd,
    nn.modules.batchnorm._BatchNorm,
    nn.RReLU,
    nn.FractionalMaxPool2d,
    nn.FractionalMaxPool3d,
)


class DecoderError(ValueError):
    """A decoder whose Jacobian at the given latents is not defined or cannot be computed.

    The message says what was expected, what was got and what to do.

    Examples
    --------
    >>> import torch
    >>> from approx import DecoderError, JacobianOperator
    >>> try:
    ...     JacobianOperator(torch.nn.Dropout(), torch.ones(1, 2))
    ... except DecoderError as error:
    ...     print(error)
    Expected a deterministic decoder ... got Dropout in training mode: call .eval() on the decoder.
    """

    template: str = ""
    latents: tuple[int, ...] = ()

    @classmethod
    def at(cls, latents: Sequence[int], template: str) -> DecoderError:
        """Return the error of some latents, by their numbers, which stand for {} in the text."""
        error = cls(template.format(listed(latents)))
        error.template, error.latents = template, tuple(latents)
        return error

    def counted_from(self, first: int) -> DecoderError:
        """Return the error with the numbers of a job whose batch begins with latent `first`."""
        if not self.latents or not first:
            return self
        return DecoderError.at([first + i for i in self.latents], self.template)


def check_latents(z: Any, *, finite: bool = True) -> None:
    """Refuse anything but a finite floating-point batch (B, *latent_shape) with B >= 1.

    Without `finite`, values are not looked at.
    """
    if not isinstance(z, Tensor):
        raise ValueError(
            f"Expected latents as a torch tensor, got {type(z).__name__}: "
            "convert with torch.as_tensor(latents)."
        )
    if not z.is_floating_point():
        raise ValueError(
            f"Expected floating-point latents, got dtype {z.dtype}: convert with latents.float()."
        )
    if z.ndim < 2 or z.numel() == 0:
        raise ValueError(
            f"Expected latents of shape (B, *latent_shape) with at least one latent, got shape "
            f"{tuple(z.shape)}: add the batch axis with latents[None] if this is one latent."
        )
    bad = not_finite(z) if finite else []
    if bad:
        raise DecoderError.at(
            bad,
            "Expected finite latents, got NaN or infinite coordinates in {}: remove or replace "
            "them.",
        )


def check_output(output: Tensor, z: Tensor) -> None:
    """Refuse outputs that are not a finite batch of as many as there are latents."""
    check_shape(output, z)
    bad = not_finite(output)
    if bad:
        raise _infinite(bad, output.dtype)


def check_shape(output: Tensor, z: Tensor) -> None:
    """Refuse outputs that are not a batch of as many as there are latents."""
    if output.ndim < 1 or len(output) != len(z) or output.numel() == 0:
        raise DecoderError(
            f"Expected one output for each of {len(z)} latents along the first axis, got shape "
            f"{tuple(output.shape)}: give a decoder of batches."
        )


def refuse_infinite(finite: Tensor, dtype: torch.dtype) -> None:
    """Refuse latents whose outputs, of a dtype, are not `finite` (B,), see `finite_rows`."""
    bad = (~finite).nonzero().flatten().tolist() if finite.device.type != "meta" else []
    if bad:
        raise _infinite(bad, dtype)


def _infinite(bad: Sequence[int], dtype: torch.dtype) -> DecoderError:
    return DecoderError.at(
        bad,
        "Expected finite outputs, got NaN or infinite values for {}: check those latents, or "
        f"run in a wider dtype (output is {dtype}).",
    )


def pick(returned: Any, output: Output | None) -> Tensor:
    """Return the tensor in what a decoder returned: by `output`, itself, or its `.sample`."""
    tensor = _picked(returned, output)
    if not tensor.is_floating_point():
        raise DecoderError(
            f"Expected a floating-point tensor from the decoder, got dtype {tensor.dtype}: pass "
            "output= to pick what comes before rounding."
        )
    return tensor


def _picked(returned: Any, output: Output | None) -> Tensor:
    """Return the tensor, of whatever dtype."""
    if output is not None:
        picked = _part(returned, output)
        if not isinstance(picked, Tensor):
            raise DecoderError(
                f"Expected output= to pick a tensor, got {type(picked).__name__} from "
                f"{type(returned).__name__}: return the decoded tensor."
            )
        return picked
    if isinstance(returned, Tensor):
        return returned
    sample = getattr(returned, "sample", None)
    if isinstance(sample, Tensor):
        return sample
    raise DecoderError(
        f"Expected a tensor from the decoder (or a structure with a tensor `.sample`), got "
        f"{type(returned).__name__}: pass output=, for example output=0, output='images' or "
        "output=lambda y: y[0]."
    )


def _part(returned: Any, output: Output) -> Any:
    """Return what a function, a key, a position or the name of an attribute picks."""
    if callable(output):
        return output(returned)
    try:
        if isinstance(output, int) or (isinstance(returned, Mapping) and output in returned):
            return returned[output]
        return operator.attrgetter(output.removeprefix("."))(returned)
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        keys = list(returned) if isinstance(returned, Mapping) else None
        of = f" of {keys}" if keys else f" of {len(returned)}" if type(returned) is tuple else ""
        raise DecoderError(
            f"Expected output={output!r} to pick a tensor, got {type(returned).__name__}{of}: give "
            "a key, a position, an attribute such as '.sample' or a function."
        ) from error


def whole(value: Any, name: str, remedy: str, least: int | None = 1) -> int:
    """Return an integer of any library, or refuse it; True and False are none."""
    try:
        found = None if isinstance(value, bool) else operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # the last two of tensors
        found = None
    if found is None or (least is not None and found < least):
        bound = "" if least is None else f" of at least {least}"
        raise ValueError(f"Expected {name} as an integer{bound}, got {value!r}: {remedy}")
    return found


def as_array(values: Any) -> NDArray[Any]:
    """Return a tensor of any device, a list of such, or anything else, as an array."""
    if isinstance(values, list | tuple) and any(isinstance(value, Tensor) for value in values):
        values = [as_array(value) for value in values]
    if not isinstance(values, Tensor):
        return np.asarray(values)
    held = values.detach().cpu()
    return (held.float() if held.dtype in HALF else held).numpy()


def check_deterministic(
    modules: Iterable[nn.Module], what: str = "decoder", each: str = "latent"
) -> None:
    """Refuse layers in training mode that draw random numbers or mix the latents of a batch.

    `what` is the modules' part, and `each` what it takes a batch of.
    """
    for root in modules:
        for name, module in root.named_modules():
            if isinstance(module, _NOISY) and module.training and getattr(module, "p", 1) != 0:
                place = f"'{name}' ({type(module).__name__})" if name else type(module).__name__
                raise DecoderError(
                    f"Expected a deterministic {what} that treats each {each} alone, got {place} "
                    f"in training mode: call .eval() on the {what}."
                )


def random_numbers(device: torch.device) -> DecoderError:
    """Return the error for a decoder that moved a random-number generator."""
    return DecoderError(
        f"Expected a deterministic decoder, got one that draws random numbers (torch's generator "
        f"on {device} moved): call .eval() on it, or fix its noise."
    )


def not_finite(x: Tensor) -> list[int]:
    """Return the indices of the batch entries with a NaN or an infinity (none on `meta`)."""
    if x.device.type == "meta":
        return []
    # the sum is finite unless an entry is not, or it overflows: no mask as large as x
    if torch.isfinite(x.detach().sum(dtype=torch.float32 if x.dtype.itemsize < 4 else x.dtype)):
        return []
    return (~finite_rows(x)).nonzero().flatten().tolist()


def finite_rows(x: Tensor) -> Tensor:
    """Return which entries of a batch (B, ...) are finite, (B,): without asking the device."""
    return torch.isfinite(x.detach()).flatten(1).all(dim=1)


def listed(indices: Sequence[int]) -> str:
    """Return 'latent 3' or 'latents 0, 1, 2, ... (7 in all)'."""
    if len(indices) == 1:
        return f"latent {indices[0]}"
    text = "latents " + ", ".join(map(str, indices[:5]))
    return text if len(indices) <= 5 else f"{text}, ... ({len(indices)} in all)"
