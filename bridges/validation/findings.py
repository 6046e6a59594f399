"""Findings of a validation as data: rows, sections, and what does not apply."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure


class Row(NamedTuple):
    """One number of a comparison, with the limits that agreement puts on it.

    Attributes
    ----------
    section : str
        "jacobian", "spectrum", "complexity" or "density".
    quantity : str
        What is compared: "A_w", "psi", "knots", "entropy".
    case : str
        How: the method, and what was varied ("predict, k = 20"; "jvp float64, P = 2, r = 1e-5").
    statistic : str
        Which number `value` is: "worst relative error", "bias", "coverage", "p-value".
    value : float
        What was measured.
    low, high : float
        Agreement is ``low <= value <= high``; NaN on a side without a limit. Where both are NaN
        the number is only reported.
    note : str
        Where the worst case is, what the limit comes from, or why a number is missing.
    """

    section: str
    quantity: str
    case: str
    statistic: str
    value: float
    low: float = math.nan
    high: float = math.nan
    note: str = ""

    @property
    def claimed(self) -> bool:
        """Whether there is a limit, so that the row can fail."""
        return not (math.isnan(self.low) and math.isnan(self.high))

    @property
    def agrees(self) -> bool:
        """Whether the value is within its limits; NaN is not, wherever there is one."""
        if not self.claimed:
            return True
        return not (
            math.isnan(self.value) or self.value < self.low or self.value > self.high
        )  # a comparison with a limit of NaN is False

    @property
    def verdict(self) -> str:
        """Return "agrees" or "DISAGREES", or nothing where no limit is claimed."""
        if not self.claimed:
            return ""
        return "agrees" if self.agrees else "DISAGREES"

    @property
    def name(self) -> str:
        """What an error message calls the row."""
        return f"{self.section}: {self.quantity}, {self.case}: {self.statistic}"


class AgreementError(AssertionError):
    """Numbers of a validation that are beyond their limits.

    Not a ValueError: no argument is wrong, and an ``except ValueError`` around the loading of a
    model must not swallow the news that its estimates are.

    Examples
    --------
    >>> import bridges
    >>> try:
    ...     raise bridges.AgreementError("psi is off")
    ... except ValueError:
    ...     print("taken for a bad argument")
    ... except AssertionError as error:
    ...     print(error)
    psi is off
    """


class Result(Protocol):
    """Result of a section, as its ``measure`` returns it."""

    @property
    def rows(self) -> tuple[Row, ...]:
        """The section's numbers."""
        ...


class Section(NamedTuple):
    """One part of a report.

    Attributes
    ----------
    name : str
        The `section` of its rows.
    heading : str
        Its title on a page.
    claim : str
        What its rows together claim, in a sentence.
    result : Result
        The rows, and the arrays that its figure shows.
    draw : callable
        Draws `result` into a figure.
    size : (float, float)
        Width and height of that figure in inches.
    alt : str
        What the figure shows, for who cannot see it.
    seconds : float
        How long it took to measure.
    """

    name: str
    heading: str
    claim: str
    result: Result
    draw: Callable[[Any, Figure | SubFigure], None]
    size: tuple[float, float]
    alt: str
    seconds: float

    def figure(self) -> Figure:
        """Draw the section into a new figure, which pyplot does not know of."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=self.size, layout="constrained")
        self.draw(self.result, figure)
        return figure


class Absent(NamedTuple):
    """A section that does not apply, and why."""

    name: str
    heading: str
    reason: str


@dataclass(frozen=True, eq=False)
class Findings:
    """Findings of a validation, as data.

    Each number that the theory or an estimator's own stated error puts limits on agrees or not; the
    others are only reported.

    Attributes
    ----------
    title : str
        What was validated.
    facts : mapping of str to str
        Its size: input, output, units, cells.
    sections : tuple of Section
        What was measured, each with its rows and arrays.
    absent : tuple of Absent
        What does not apply to this module, and why.
    settings : mapping of str to object
        The arguments by which the report can be repeated.
    seconds : float
        How long everything took.
    """

    title: str
    facts: Mapping[str, str]
    sections: tuple[Section, ...]
    absent: tuple[Absent, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def rows(self) -> tuple[Row, ...]:
        """Every compared number, section after section."""
        return tuple(row for section in self.sections for row in section.result.rows)

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows beyond their limits."""
        return tuple(row for row in self.rows if not row.agrees)

    @property
    def ok(self) -> bool:
        """Whether every row that has limits is within them, and there is such a row."""
        return not self.failures and any(row.claimed for row in self.rows)

    @property
    def verdict(self) -> str:
        """Say in a line how many rows agree."""
        claimed, wrong = sum(row.claimed for row in self.rows), len(self.failures)
        if not claimed:
            return f"None of {len(self.rows)} numbers has a limit: nothing was compared."
        rest = len(self.rows) - claimed
        reported = f"; {rest} more are only reported" if rest else ""
        if wrong:
            return f"{wrong} of {claimed} compared numbers DISAGREE{reported}."
        return f"All {claimed} compared numbers agree{reported}."
