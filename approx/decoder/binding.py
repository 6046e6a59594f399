"""Conditional decoders: arguments beside the latents, bound to follow them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from approx.decoder.checks import DecoderError


@dataclass(frozen=True, eq=False)
class Bound:
    """A decoder with the arguments that it takes beside the latents (see `bind`).

    Attributes
    ----------
    target : callable
        Called with latents (B, *latent_shape) and the arguments.
    arguments : mapping
        By name. Tensors are detached, and rows of the job's latents.
    """

    target: Callable[..., Any]
    arguments: MappingProxyType[str, Any]

    def __call__(self, z: Tensor) -> Any:
        """Decode z with the arguments in its dtype, on its device, a row for each latent."""
        given = {
            name: _mapped(value, lambda x, name=name: _fitted(name, x, z))
            for name, value in self.arguments.items()
        }
        return self.target(z, **given)

    @property
    def rows(self) -> int | None:
        """The number of latents that arguments have rows for; None where they fit any number."""
        lengths: list[int] = []
        for value in self.arguments.values():
            _mapped(value, lambda x: lengths.append(len(x)) if _by_row(x) else None)
        return lengths[0] if lengths else None

    def tensors(self, *, by_row: bool) -> list[Tensor]:
        """Return the arguments' tensors: those with a row for each latent, or those for all."""
        found: list[Tensor] = []
        for value in self.arguments.values():
            _mapped(value, lambda x: found.append(x) if _by_row(x) == by_row else None)
        return found

    def check(self, count: int) -> None:
        """Refuse arguments that have rows for another number of latents than a job's."""
        for name, value in self.arguments.items():
            _mapped(value, lambda x, name=name: _check_rows(name, x, count))

    def at(self, rows: slice | Tensor) -> Bound:
        """Return the decoder of some of the latents: of a slice, or of their numbers (n,) int64."""

        def picked(name: str, x: Tensor) -> Tensor:
            if not _by_row(x):
                return x
            asked = rows if isinstance(rows, Tensor) else range(*rows.indices(2**62))
            last = int(max(asked)) if len(asked) else -1  # type: ignore[type-var]
            if last >= len(x):
                raise DecoderError(
                    f"Expected a row of {name}= for each latent, got {len(x)} rows and a latent "
                    f"{last}: bind one row for each latent, or a single row for all."
                )
            index = rows.to(x.device) if isinstance(rows, Tensor) else rows
            return x[index]

        return replace(
            self,
            arguments=MappingProxyType(
                {
                    name: _mapped(value, lambda x, name=name: picked(name, x))
                    for name, value in self.arguments.items()
                }
            ),
        )


def bind(decoder: Callable[..., Any], **arguments: Any) -> Bound:
    r"""Bind what a conditional decoder takes beside the latents.

    Parameters
    ----------
    decoder : callable
        A module, a module's method or a function; called as ``decoder(z, **arguments)``.
    **arguments
        Tensors and numpy arrays follow the latents: to their device, and real ones to their dtype,
        so that a run in float64 is one throughout. A tensor of n > 1 rows has a row for each latent
        of the job, in their order; one without axes, or of one row, is for all of them. Tensors in
        lists, tuples and dictionaries are taken likewise. Anything else is passed as it is.

    Returns
    -------
    Bound
        A decoder of latents alone. It is not changed by anything that runs it.

    Raises
    ------
    ValueError
        A decoder that cannot be called, or that does not take one of the arguments.
    DecoderError
        When it runs: another number of rows than of latents.

    Examples
    --------
    >>> import torch
    >>> from approx import JacobianOperator, bind
    >>> decoder = bind(torch.mul, other=torch.tensor([[1.0], [2.0]]))
    >>> with JacobianOperator(decoder, torch.ones(2, 3)) as J:
    ...     J.dense().diagonal(dim1=1, dim2=2)
    tensor([[1., 1., 1.],
            [2., 2., 2.]])
    """
    if not callable(decoder):
        raise ValueError(
            f"Expected a decoder that can be called on latents, got {type(decoder).__name__}: "
            "give a module, its decode method or a function."
        )
    called = decoder.forward if isinstance(decoder, nn.Module) else decoder
    try:
        inspect.signature(called).bind_partial(None, **arguments)
    except TypeError as error:
        raise ValueError(
            f"Expected arguments that the decoder takes beside the latents, got "
            f"{', '.join(arguments)}: {error}; it is called as {inspect.signature(called)}."
        ) from error
    except ValueError:  # no signature: written in C
        pass
    held = {name: _mapped(value, torch.Tensor.detach) for name, value in arguments.items()}
    return Bound(decoder, MappingProxyType(held))


def _mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Apply `change` to the tensors and arrays in lists, tuples and dictionaries."""
    if isinstance(value, np.ndarray):
        value = torch.as_tensor(value)
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (list, tuple):
        return type(value)(_mapped(item, change) for item in value)
    if type(value) is dict:
        return {key: _mapped(item, change) for key, item in value.items()}
    return value


def _by_row(x: Tensor) -> bool:
    return x.ndim > 0 and len(x) != 1


def _check_rows(name: str, x: Tensor, count: int) -> None:
    if _by_row(x) and len(x) != count:
        raise DecoderError(
            f"Expected a row of {name}= for each of {count} latents, got {len(x)}: bind one row "
            "for each latent, or a single row for all."
        )


def _fitted(name: str, x: Tensor, z: Tensor) -> Tensor:
    """Move an argument to the latents, with as many rows."""
    x = x.to(device=z.device, dtype=z.dtype if x.is_floating_point() else x.dtype)
    if x.ndim == 0:
        return x
    _check_rows(name, x, z.shape[0])
    return x.expand(z.shape[0], *x.shape[1:])
