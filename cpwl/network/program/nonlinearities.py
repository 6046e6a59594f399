"""Continuous piecewise-linear operations: switching functions, pieces, and each piece's map.

Every class has the same seven methods. `inputs` are the values of the operation's operands, batch
axis first; `round` counts the stages inside one operation (only a tournament has several).

forward(*inputs)           the operation, as fast as torch has it
switching(inputs, round)   the function whose value decides the piece of every unit; the pieces of
                           earlier rounds may be given
breaks(round)              breakpoints, one array per knot, +-inf where a unit has no such knot
select(inputs, pieces)     the affine map of the given pieces (one tensor of pieces per round)
linear(inputs, pieces)     its linear part, `inputs` being directions
error(errors, magnitudes)  bound on the rounding error of `forward`
switching_error(...)       the same for `switching`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import frexp, inf, ldexp
from typing import Any, Protocol

import torch
from torch import Tensor

from cpwl.arrays import UNIT_ROUNDOFF

# Further from the origin, float64 does not tell the knots of a triangle wave apart.
_KNOT_AT_MOST = 2.0**48
Coefficient = Tensor | float
MaybeError = Tensor | None


class Nonlinearity(Protocol):
    """What the engine needs to know about a CPWL operation."""

    @property
    def kind(self) -> str:
        """The name that `UnitGroup` shows."""
        ...

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of the units of one sample, one for each round."""
        ...

    def forward(self, *inputs: Any) -> Tensor:
        """Apply the operation."""
        ...

    def switching(self, inputs: Sequence[Any], round: int, held: Sequence[Tensor] = ()) -> Tensor:
        """Return the switching functions of a round; `held` are the pieces of those before."""
        ...

    def breaks(self, round: int) -> tuple[Tensor, ...]:
        """Breakpoints of a round, one tensor of its shape for each knot."""
        ...

    def select(self, inputs: Sequence[Any], pieces: Sequence[Tensor]) -> Tensor:
        """Apply the affine map of the given pieces."""
        ...

    def linear(self, inputs: Sequence[Any], pieces: Sequence[Tensor]) -> Tensor:
        """Apply its linear part."""
        ...

    def error(self, errors: Sequence[MaybeError], magnitudes: Sequence[Tensor]) -> MaybeError:
        """Bound the error of the result."""
        ...

    def switching_error(
        self, errors: Sequence[MaybeError], magnitudes: Sequence[Tensor], round: int
    ) -> MaybeError:
        """Bound the error of the switching functions of a round."""
        ...


@dataclass(frozen=True, eq=False)
class Pointwise:
    """y = slope_k h + offset_k, k the number of breakpoints below h, for every entry of h.

    Coefficients are numbers or tensors that broadcast against a sample. A breakpoint of +inf (-inf)
    is never (always) below h: the unit then lacks that knot.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    points: tuple[Coefficient, ...]
    slopes: tuple[Coefficient, ...]
    offsets: tuple[Coefficient, ...]
    function: Callable[[Tensor], Tensor]

    @cached_property
    def steepest(self) -> Tensor:
        """Largest absolute slopes, one or one an entry."""
        return _largest(self.slopes)

    def forward(self, *inputs: Any) -> Tensor:
        """Apply the operation."""
        return self.function(inputs[0])

    def switching(self, inputs: Sequence[Any], round: int, held: Sequence[Tensor] = ()) -> Tensor:
        """Return h itself."""
        return inputs[0]

    def breaks(self, round: int) -> tuple[Tensor, ...]:
        """Breakpoints, one tensor of the sample's shape per knot."""
        return tuple(_spread(point, self.shapes[0]) for point in self.points)

    def select(self, inputs: Sequence[Any], pieces: Sequence[Tensor]) -> Tensor:
        """Apply the affine map of the given pieces."""
        y = self.linear(inputs, pieces)
        if _all_in(self.offsets, (0.0,)):
            return y
        return y + _choose(self.offsets, pieces[0], y)

    def linear(self, inputs: Sequence[Any], pieces: Sequence[Tensor]) -> Tensor:
        """Multiply by the slopes of the given pieces."""
        h, piece = inputs[0], pieces[0]
        if _all_in(self.slopes, (0.0, 1.0)) and len(self.slopes) == 2 and self.slopes[0] == 0.0:
            return h * piece  # a ReLU's slope is its piece
        return _choose(self.slopes, piece, h) * h

    def error(self, errors: Sequence[MaybeError], magnitudes: Sequence[Tensor]) -> MaybeError:
        """Lipschitz constant times the input's error, and one product and one sum rounded."""
        slope, rounding = self.steepest, None
        if not _all_in(self.slopes, (-1.0, 0.0, 1.0)):
            rounding = slope * magnitudes[0] * (2 * UNIT_ROUNDOFF)
        if any(_moves(s, o) for s, o in zip(self.slopes, self.offsets, strict=True)):
            finite = _largest(tuple(_finite(offset) for offset in self.offsets))
            shifted = (slope * magnitudes[0] + finite) * (2 * UNIT_ROUNDOFF)
            rounding = shifted if rounding is None else rounding + shifted
        passed = None if errors[0] is None else errors[0] * slope
        return add_errors(passed, rounding)

    def switching_error(
        self, errors: Sequence[MaybeError], magnitudes: Sequence[Tensor], round: int
    ) -> MaybeError:
        """Error of h."""
        return errors[0]


@dataclass(frozen=True, eq=False)
class Extremum:
    """Maximum (or minimum) of two tensors; piece 1 where a > b."""

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    largest: bool

    def forward(self, *inputs: Any) -> Tensor:
        """Apply the operation."""
        a, b = inputs
        return torch.maximum(a, b) if self.largest else torch.minimum(a, b)

    def switching(self, inputs: Sequence[Any], round: int, held: Sequence[Tensor] = ()) -> Tensor:
        """Return a - b."""
        return inputs[0] - inputs[1]

    def breaks(self, round: int) -> tuple[Tensor, ...]:
        """One knot, where both are equal."""
        return (torch.zeros(self.shapes[0], dtype=torch.float64),)

    def select(self, inputs: Sequence[Any], pieces: Sequence[Tensor]) -> Tensor:
        """Take a where piece 1 means that a wins, b elsewhere."""
        return torch.where((pieces[0] > 0) == self.largest, inputs[0], inputs[1])

    linear = select

    def error(self, errors: Sequence[MaybeError], magnitudes: Sequence[Tensor]) -> MaybeError:
        """Never more than the larger of both errors; choosing does not round."""
        if errors[0] is None and errors[1] is None:
            return None
        first = torch.zeros_like(magnitudes[0]) if errors[0] is None else errors[0]
        second = torch.zeros_like(magnitudes[1]) if errors[1] is None else errors[1]
        return torch.maximum(first, second)

    def switching_error(
        self, errors: Sequence[MaybeError], magnitudes: Sequence[Tensor], round: int
    ) -> MaybeError:
        """Both errors and the rounding of one subtraction."""
        rounding = (magnitudes[0] + magnitudes[1]) * UNIT_ROUNDOFF
        return add_errors(add_errors(errors[0], errors[1]), rounding)


@dataclass(frozen=True, eq=False)
class Triangle:
    """y = offset + scale * |((h + phase) mod period) - period / 2|.

    Knots lie at h = k period / 2 - phase for every integer k; piece k lies above knot k. This
    rational number is the knot: `knot` rounds it, rational arithmetic and proofs do not.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    period: float
    phase: float
    scale: float
    offset: float

    def forward(self, *inputs: Any) -> Tensor:
        """Apply the operation."""
        wave = (torch.remainder(inputs[0] + self.phase, self.period) - self.period / 2).abs()
        return wave * self.scale + self.offset

    def switching(self, inputs: Sequence[Any], round: int, held: Sequence[Tensor] = ()) -> Tensor:
        """Return h itself."""
        return inputs[0]

    def breaks(self, round: int) -> tuple[Tensor, ...]:
        """Infinitely many; see `interval` and `knot`."""
        return ()

    def interval(self, h: Tensor) -> Tensor:
        """Index of the interval that h lies in; on a knot, of the one below it."""
        k = torch.ceil((h + self.phase) / (self.period / 2)) - 1
        if bool((k.abs() > _KNOT_AT_MOST).any()):
            raise FloatingPointError(
                f"Expected arguments of a triangle wave within 2^48 half periods of its phase, got "
                f"{h.abs().max().item():.3g} with a period of {self.period:.3g}: float64 does not "
                "tell its breakpoints apart there. Choose a smaller domain or a longer period."
            )
        # The quotient is rounded: compare with the knots themselves, which is what counts.
        k = torch.where(self.knot(k + 1) < h, k + 1, k)
        return torch.where(self.knot(k) >= h, k - 1, k).to(torch.int64)

    def knot(self, k: Tensor) -> Tensor:
        """Position of knot k, |k| < 2^52, within one unit in the last place.

        Product and difference with their rounding errors, after Dekker and Knuth (Ogita, Rump and
        Oishi, Accurate sum and dot product, SIAM J. Sci. Comput. 2005).
        """
        k, half = k.to(torch.float64), self.period / 2
        mantissa, exponent = frexp(half)
        half_high = ldexp(round(mantissa * 2.0**26), exponent - 26)
        half_low = half - half_high
        k_high = torch.round(k / 2.0**26) * 2.0**26
        k_low = k - k_high
        product = k * half
        lost = (k_high * half_high - product) + k_high * half_low + k_low * half_high
        lost = lost + k_low * half_low
        knot = product - self.phase
        moved = knot - product
        lost = lost + ((product - (knot - moved)) - (self.phase + moved))
        return knot + lost

    def select(self, inputs: Sequence[Any], pieces: Sequence[Tensor]) -> Tensor:
        """Apply the affine map of the given intervals."""
        h, k = inputs[0], pieces[0]
        even = (k % 2 == 0).to(k.dtype)
        end = self.knot(k + even).to(h.dtype)
        return self.linear([h - end], pieces) + self.offset

    def linear(self, inputs: Sequence[Any], pieces: Sequence[Tensor]) -> Tensor:
        """Multiply by the slopes of the given intervals."""
        h, k = inputs[0], pieces[0]
        odd = (k % 2 != 0).to(h.dtype)
        return (odd * (2 * self.scale) - self.scale) * h

    def error(self, errors: Sequence[MaybeError], magnitudes: Sequence[Tensor]) -> MaybeError:
        """Slope times the input's error; shift, remainder, difference, scale, offset rounded.

        A remainder on the wrong side of a jump is off by a period, but only within the shift's
        error of the jump, where the wave is continuous; so the shift's error is all it costs.
        """
        scale = abs(self.scale)
        total = scale * (magnitudes[0] + abs(self.phase) + 2 * self.period) + abs(self.offset)
        passed = None if errors[0] is None else errors[0] * scale
        return add_errors(passed, total * (8 * UNIT_ROUNDOFF))

    def switching_error(
        self, errors: Sequence[MaybeError], magnitudes: Sequence[Tensor], round: int
    ) -> MaybeError:
        """Error of h."""
        return errors[0]


def add_errors(a: MaybeError, b: MaybeError) -> MaybeError:
    """Add two bounds, None being exact."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def largest_slope(bend: Pointwise | Triangle) -> Tensor:
    """Lipschitz constants of a function of one operand, one or one an entry."""
    return bend.steepest if isinstance(bend, Pointwise) else _largest((bend.scale,))


def piece_of(nonlinearity: Nonlinearity, h: Tensor, round: int) -> Tensor:
    """Piece (int64) of every unit of a round: the number of breakpoints below h."""
    if isinstance(nonlinearity, Triangle):
        return nonlinearity.interval(h)
    count = torch.zeros(h.shape, dtype=torch.int64)
    for point in nonlinearity.breaks(round):
        count += h > point
    return count


def clamp_pieces(
    kind: str, shape: tuple[int, ...], low: Coefficient | None, high: Coefficient | None
) -> Pointwise:
    """Clamp to [low, high], either end optional; low >= high is the constant high, as in torch."""
    below = -inf if low is None else low
    above = inf if high is None else high

    def function(x: Tensor) -> Tensor:
        low_end = low if low is None or isinstance(low, Tensor) else float(low)
        high_end = high if high is None or isinstance(high, Tensor) else float(high)
        if isinstance(low_end, Tensor) or isinstance(high_end, Tensor):
            low_end = None if low_end is None else torch.as_tensor(low_end, dtype=x.dtype)
            high_end = None if high_end is None else torch.as_tensor(high_end, dtype=x.dtype)
        return torch.clamp(x, low_end, high_end)  # type: ignore[arg-type]

    made = partial(Pointwise, kind=kind, shapes=(shape,), function=function)
    if isinstance(below, Tensor) or isinstance(above, Tensor):
        lower = torch.as_tensor(below, dtype=torch.float64)
        upper = torch.as_tensor(above, dtype=torch.float64)
        constant = lower >= upper
        lower, upper = torch.broadcast_tensors(lower, upper)
        floor_ = torch.where(constant, upper, lower)
        never = torch.full_like(upper, inf)
        points = (torch.where(constant, never, lower), torch.where(constant, never, upper))
        return made(points=points, slopes=(0.0, 1.0, 0.0), offsets=(floor_, 0.0, upper))
    if below >= above:
        return made(points=(inf,), slopes=(0.0, 1.0), offsets=(float(above), 0.0))
    if low is None:
        return made(points=(above,), slopes=(1.0, 0.0), offsets=(0.0, above))
    if high is None:
        return made(points=(below,), slopes=(0.0, 1.0), offsets=(below, 0.0))
    return made(points=(below, above), slopes=(0.0, 1.0, 0.0), offsets=(below, 0.0, above))


def _spread(value: Coefficient, shape: tuple[int, ...]) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).broadcast_to(shape)


def _choose(values: tuple[Coefficient, ...], piece: Tensor, like: Tensor) -> Tensor:
    """Pick values[piece], entry by entry (a chain of `where`: at most three pieces exist)."""
    chosen = torch.as_tensor(values[-1], dtype=like.dtype)
    for k in range(len(values) - 2, -1, -1):
        value = torch.as_tensor(values[k], dtype=like.dtype)
        chosen = torch.where(piece <= k, value, chosen)
    return chosen


def _largest(values: tuple[Coefficient, ...]) -> Tensor:
    """Entrywise largest absolute value."""
    absolute = [torch.as_tensor(value, dtype=torch.float64).abs() for value in values]
    largest = absolute[0]
    for value in absolute[1:]:
        largest = torch.maximum(largest, value)
    return largest


def _finite(value: Coefficient) -> Tensor:
    return torch.nan_to_num(torch.as_tensor(value, dtype=torch.float64), posinf=0.0, neginf=0.0)


def _all_in(values: tuple[Coefficient, ...], allowed: tuple[float, ...]) -> bool:
    return all(not isinstance(value, Tensor) and value in allowed for value in values)


def _moves(slope: Coefficient, offset: Coefficient) -> bool:
    """Whether slope * h + offset needs an addition that can round."""
    still = not isinstance(slope, Tensor) and slope == 0.0
    level = not isinstance(offset, Tensor) and offset == 0.0
    return not still and not level
