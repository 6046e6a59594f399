"""A model file's graph as an `nn.Module`: named calls, one after the other.

Every call is a submodule of its own, so that `torch.export` reports where it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn


class Name(NamedTuple):
    """Stands for a value computed earlier."""

    key: str


class Call(NamedTuple):
    """One call; `outputs` name its result, or the parts of a tuple (None: not needed)."""

    place: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[str | None, ...]


class CallModule(nn.Module):
    """The submodule that makes one call; children only extend its path."""

    def __init__(self, function: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        assert self.function is not None
        return self.function(*args, **kwargs)


class FileModule(nn.Module):
    """Run calls in order on one input.

    Parameters
    ----------
    calls : sequence of Call
    constants : dict of str to Tensor
        Weights and other tensors of the file, by the name that calls use.
    source, result : str
        Names of the input and of the output.
    """

    def __init__(
        self, calls: Sequence[Call], constants: dict[str, Tensor], source: str, result: str
    ) -> None:
        super().__init__()
        self.keys = list(constants)
        for k, value in enumerate(constants.values()):
            self.register_buffer(f"constant_{k}", value)
        self.source, self.result = source, result
        self.calls = [(call._replace(function=len), self._place(call)) for call in calls]
        self.dropped = last_uses(calls, result)

    def _place(self, call: Call) -> CallModule:
        """Add a submodule at the call's path, or below it where the path is taken."""
        here: nn.Module = self
        for part in call.place.split("."):
            if part not in here._modules and hasattr(here, part):
                part += "_"  # torch's modules have methods such as `to`
            if part not in here._modules:
                here.add_module(part, CallModule())
            here = here._modules[part]  # type: ignore[assignment]
        assert isinstance(here, CallModule)
        if here.function is not None:
            child, k = CallModule(), len(here._modules)
            while str(k) in here._modules:
                k += 1
            here.add_module(str(k), child)
            here = child
        here.function = call.function
        return here

    def forward(self, x: Tensor) -> Any:
        """Run the calls."""
        values: dict[str, Any] = {self.source: x}
        for k, key in enumerate(self.keys):
            values[key] = getattr(self, f"constant_{k}")
        for (call, module), done in zip(self.calls, self.dropped, strict=True):
            args = [fill(value, values) for value in call.args]
            kwargs = {key: fill(value, values) for key, value in call.kwargs.items()}
            result = module(*args, **kwargs)
            if len(call.outputs) == 1:
                result = [result]
            for name, value in zip(call.outputs, result, strict=False):
                if name is not None:
                    values[name] = value
            for name in done:
                del values[name]
        return values[self.result]


def fill(value: Any, values: Mapping[str, Any]) -> Any:
    """Return an argument with the values that its names stand for."""
    if isinstance(value, Name):
        return values[value.key]
    if isinstance(value, (list, tuple)):
        return [fill(item, values) for item in value]
    return value


def last_uses(calls: Sequence[Call], result: str | None = None) -> list[list[str]]:
    """Return for every call the names that no later call reads, but for the result."""
    seen = set() if result is None else {result}
    dropped = []
    for call in reversed(calls):
        names = {*names_in((call.args, call.kwargs)), *filter(None, call.outputs)}
        dropped.append(sorted(names - seen))
        seen |= names
    return dropped[::-1]


def names_in(value: Any) -> list[str]:
    """Return the names in arguments, nested or not."""
    if isinstance(value, Name):
        return [value.key]
    if isinstance(value, dict):
        value = list(value.values())
    return [name for item in value for name in names_in(item)] if _nested(value) else []


def _nested(value: Any) -> bool:
    return isinstance(value, (list, tuple))
