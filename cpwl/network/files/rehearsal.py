"""A rehearsal of a file's calls: on shapes alone, before any memory is taken.

torch's fake tensors have shapes and no numbers. Running the calls on them finds those that do not
fit together, results that are too large, and writes into weights.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode

from cpwl.errors import CaptureError
from cpwl.network.files.calls import Call, Name, fill, last_uses, names_in
from cpwl.network.files.pure_operations import writes

MOST_LIVE = 2**30
"""Bytes for each sample that the values of a model may take at one time, plus 8 for each byte of
its file."""
MOST_CONSTANT = 2**26
"""Bytes that a graph may make without its input, and tensors of a file spread out, plus 4 for each
byte of the file."""
_SMALL = 2**20  # entries of indices and masks that are computed, since shapes follow from them
_LONGEST = 2**62
_OPERATORS = ("add", "sub", "mul", "floordiv", "mod", "neg", "getitem", "eq", "ge", "le", "gt",
              "lt")  # fmt: skip
ARITHMETIC: dict[str, Callable[..., Any]] = {
    f"_operator.{name}": getattr(operator, name) for name in _OPERATORS
}


class Limits(NamedTuple):
    """Bytes that values with and without the input may take."""

    live: int
    constant: int


def limits(file_size: int, batch: int, most_live: int) -> Limits:
    """Return what a file of this size may take with a batch."""
    return Limits(batch * most_live + 8 * file_size, MOST_CONSTANT + 4 * file_size)


class _Refusal(Exception):  # noqa: N818 - a verdict, caught where the place is known
    """Carries why a call is refused."""


class _Bounded(TorchDispatchMode):
    """Refuses results of more than `most` bytes, those inside composed operations included."""

    most = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in _tensors(result):
            _require(_bytes(value), self.most)
        return result


def rehearse(
    calls: Sequence[Call], constants: Mapping[str, Tensor], source: str, example: Tensor,
    most: Limits, file: str,
) -> bool:  # fmt: skip
    """Run the calls on shapes; say whether one of them writes into the input.

    Parameters
    ----------
    example : Tensor
        The input on the meta device.

    Raises
    ------
    CaptureError
        Naming the call that does not fit, takes too much memory, or writes into a weight.
    """
    play = _Rehearsal(constants, source, example, most)
    for call, done in zip(calls, last_uses(calls), strict=True):
        try:
            play.make(call)
        except _Refusal as verdict:
            raise _refused(call, file, str(verdict)) from None
        except DynamicOutputShapeException as error:
            raise _refused(call, file, "its shape depends on values") from error
        except (
            RuntimeError, TypeError, ValueError, IndexError, NotImplementedError, OverflowError,
            ZeroDivisionError, AssertionError,
        ) as error:  # fmt: skip
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise _refused(call, file, first[:200]) from error
        play.forget(done)
    return play.changed


class _Rehearsal:
    """Values so far.

    Attributes
    ----------
    values : dict
        Fakes and numbers, by name.
    known : dict
        Those of them whose entries are known, since shapes may follow from them.
    free : set
        Names of values that do not depend on the input.
    weights, places : set
        Memory of the weights, and of all values that are free.
    changed : bool
        Whether a call has written into the input.
    """

    def __init__(
        self, constants: Mapping[str, Tensor], source: str, example: Tensor, most: Limits
    ) -> None:
        # without symbols: shapes that follow from values are errors
        self.mode, self.bounded, self.most = FakeTensorMode(shape_env=None), _Bounded(), most
        self.values: dict[str, Any] = {
            name: self.mode.from_tensor(value) for name, value in constants.items()
        }
        self.weights = {_storage(value) for value in self.values.values()}
        self.places, self.known, self.free = set(self.weights), dict(constants), set(constants)
        with self.mode:
            self.input = self.values[source] = torch.empty(example.shape, dtype=example.dtype)
        self.live, self.made, self.changed = _Live(), 0, False

    def make(self, call: Call) -> None:
        """Make a call."""
        names = names_in((call.args, call.kwargs))
        alone = all(name in self.free for name in names)
        if writes(call.function):
            self._write(call, alone)
        self.bounded.most = self.most.constant - self.made if alone else self.most.live
        with torch.no_grad(), self.mode, self.bounded:
            result = _run(call, self.values, self.known)
        parts = [result] if len(call.outputs) == 1 else list(result)
        for name, value in zip(call.outputs, parts, strict=False):
            if name is not None:
                self.values[name] = value
                self.live.add(name, value)
        if alone:
            self.made += sum(_bytes(value) for value in _tensors(result))
            self.free.update(name for name in call.outputs if name is not None)
            self.places.update(_storage(value) for value in _tensors(result))
            _compute(call, parts, self.known)
        _require(self.made, self.most.constant)
        _require(self.live.bytes, self.most.live)

    def _write(self, call: Call, alone: bool) -> None:
        """Refuse a write into a weight; what it changes is no longer known."""
        place = _storage(fill(call.args[0], self.values))
        if place in self.weights:
            raise _Refusal("it writes into a weight")
        self.changed = self.changed or place == _storage(self.input)
        if place in self.places:
            shared = [name for name in self.free if _storage(self.values.get(name)) == place]
            for name in shared:
                self.known.pop(name, None)
            if not alone:
                self.free.difference_update(shared)

    def forget(self, names: Sequence[str]) -> None:
        """Drop values that no later call reads."""
        for name in names:
            self.live.drop(name)
            if name not in self.free:
                self.values.pop(name, None)


def _run(call: Call, values: dict[str, Any], known: dict[str, Any]) -> Any:
    """Make one call on fakes, or on plain numbers."""
    args = fill(call.args, values)
    kwargs = {key: fill(value, values) for key, value in call.kwargs.items()}
    if not isinstance(call.function, torch._ops.OpOverload):
        return _arithmetic(call.function, args)
    name = call.function._schema.name.removeprefix("aten::")
    if name == "_native_batch_norm_legit_no_training":
        channels = args[0].shape[1]
        if any(value is not None and tuple(value.shape) != (channels,) for value in args[1:5]):
            raise _Refusal(f"its weights are not of {channels} channels")
    if name.startswith(("upsample_", "_upsample_")) and call.function._overloadname != "vec":
        _check_scales(call, args, kwargs)
    rounded = name.startswith("div") and kwargs.get("rounding_mode") == "trunc"
    if rounded and not any(value.is_floating_point() for value in _tensors(args)):
        # the smallest whole number by -1 ends the process
        raise _Refusal("it divides whole numbers with rounding_mode='trunc'")
    if name == "index":
        args[1] = _places(call.args[1], args[1], known)
    if name == "repeat_interleave" and isinstance(args[1], Tensor):
        return _repeated(call, args, kwargs, known)
    return call.function(*args, **kwargs)


def _arithmetic(function: Callable[..., Any], args: list[Any]) -> Any:
    """Compute with sizes, or take a part of a result."""
    numbers = args
    if function is operator.getitem:
        numbers = args[1:]
        if not isinstance(args[0], (list, tuple)):
            raise _Refusal("it takes a part of what has none")
    if not all(isinstance(value, (int, float)) for value in numbers):
        raise _Refusal("it computes with something else than numbers")
    result = function(*args)
    if isinstance(result, (int, float)) and not abs(result) < _LONGEST:
        raise _Refusal("its result is longer than 62 bits")
    return result


def _check_scales(call: Call, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Require scales that agree with sizes: kernels read where the scales say."""
    assert isinstance(call.function, torch._ops.OpOverload)
    names = (parameter.name for parameter in call.function._schema.arguments)
    given = dict(zip(names, args, strict=False)) | kwargs
    scales = [value for name, value in given.items() if name.startswith("scales")]
    sizes = given["output_size"]
    inner = args[0].shape[-len(sizes) :]
    for scale, size, out in zip(scales, inner, sizes, strict=False):
        if scale is not None and not abs(size * scale - out) <= 1:
            raise _Refusal(f"its scale {scale} does not take {size} to {out}")


def _places(given: Sequence[Any], fakes: list[Any], known: dict[str, Any]) -> list[Any]:
    """Write masks whose entries are known as indices, whose number is then known."""
    places: list[Any] = []
    for name, fake in zip(given, fakes, strict=True):
        mask = known.get(name.key) if isinstance(name, Name) else None
        if isinstance(mask, Tensor) and mask.dtype in (torch.bool, torch.uint8):
            with unset_fake_temporarily():
                count = int(mask.count_nonzero())
            places += [torch.empty(count, dtype=torch.int64)] * mask.ndim
        else:
            places.append(fake)
    return places


def _repeated(call: Call, args: list[Any], kwargs: dict[str, Any], known: dict[str, Any]) -> Tensor:
    """Repeat entries as often as known numbers say."""
    repeats = known.get(call.args[1].key)
    if repeats is None:
        raise _Refusal("its shape depends on values")
    with unset_fake_temporarily():
        total = int(repeats.double().clamp(min=0).sum())
    axis = args[2] if len(args) > 2 else kwargs.get("dim")
    x = args[0].flatten() if axis is None else args[0]
    rows = total * (1 if repeats.numel() > 1 else x.shape[axis or 0])
    return x.index_select(axis or 0, torch.empty(rows, dtype=torch.int64))


def _compute(call: Call, parts: list[Any], known: dict[str, Any]) -> None:
    """Compute small results whose operands are known, if indices or sizes may follow from them."""
    names = names_in((call.args, call.kwargs))
    small = all(isinstance(part, Tensor) and part.numel() <= _SMALL for part in parts)
    whole = all(isinstance(part, Tensor) and not part.is_floating_point() for part in parts)
    if not (small and whole and all(name in known for name in names)) or writes(call.function):
        return
    kwargs = {key: fill(value, known) for key, value in call.kwargs.items()}
    with torch.no_grad():
        result = call.function(*fill(call.args, known), **kwargs)
    found = [result] if len(call.outputs) == 1 else list(result)
    known.update(
        (name, value) for name, value in zip(call.outputs, found, strict=False) if name is not None
    )


class _Live:
    """Bytes of the values that are still needed, shared memory counted once."""

    def __init__(self) -> None:
        self.bytes = 0
        self.held: dict[str, list[tuple[int, int]]] = {}
        self.users: Counter[int] = Counter()

    def add(self, name: str, value: Any) -> None:
        """Hold a value under a name."""
        self.drop(name)
        self.held[name] = [(_storage(tensor), _bytes(tensor)) for tensor in _tensors(value)]
        for place, size in self.held[name]:
            self.bytes += size if not self.users[place] else 0
            self.users[place] += 1

    def drop(self, name: str) -> None:
        """Forget a name's value."""
        for place, size in self.held.pop(name, ()):
            self.users[place] -= 1
            self.bytes -= size if not self.users[place] else 0


def _require(size: int, most: int) -> None:
    if size > most:
        raise _Refusal(f"its result takes {size:,} bytes where {max(most, 0):,} are left")


def _refused(call: Call, file: str, reason: str) -> CaptureError:
    return CaptureError(
        f"Expected operations that fit each other and this machine's memory in '{file}', got "
        f"'{call.function}' at '{call.place}': {reason.rstrip('.')}. Check "
        "input_shape, if it is given, and the file, or export the module anew."
    )


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    listed = value if isinstance(value, (list, tuple)) else ()
    return [item for item in listed if isinstance(item, Tensor)]


def _storage(value: Any) -> int:
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else 0


def _bytes(value: Tensor) -> int:
    return int(value.untyped_storage().nbytes())
