"""`Report`: what a validation found, as a table, a data frame, figures and a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from bridges.validation.findings import Row
from bridges.validation.text import limits, number, table
from cpwl.storage import atomic_path

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure, SubFigure


class AgreementError(AssertionError):
    """Numbers of a validation that are beyond their limits.

    Not a ValueError: no argument is wrong, and an ``except ValueError`` around the loading of a
    model must not swallow the news that its estimates are.
    """


class Result(Protocol):
    """What the ``measure`` of a section's module returns."""

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
class Report:
    """What `validate` found.

    ``print(report)`` shows the table. Each number that the theory or an estimator's own stated
    error puts limits on agrees or not; the others are only reported.

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

    def __str__(self) -> str:
        """Return the table."""
        lines = [self.title, *(f"  {name}: {fact}" for name, fact in self.facts.items())]
        for section in self.sections:
            lines += ["", f"{section.name}: {section.claim}", *table(section.result.rows)]
        for absent in self.absent:
            lines += ["", f"{absent.name}: not measured. {absent.reason}"]
        lines += ["", f"{self.verdict} {self.seconds:.1f} s."]
        return "\n".join(lines)

    def __repr__(self) -> str:
        """Say what it is about and whether all agrees."""
        return f"Report({self.title!r}: {self.verdict})"

    def section(self, name: str) -> Section:
        """Return a section by its name.

        Raises
        ------
        ValueError
            There is none of that name; the message says why, where it does not apply.
        """
        for section in self.sections:
            if section.name == name:
                return section
        for absent in self.absent:
            if absent.name == name:
                raise ValueError(
                    f"Expected a section that was measured, got '{name}', which was not: "
                    f"{absent.reason}"
                )
        names = ", ".join(section.name for section in self.sections)
        raise ValueError(f"Expected a section of this report, got '{name}'. It has {names}.")

    def require(self) -> None:
        """Raise unless everything agrees.

        Raises
        ------
        AgreementError
            Naming every row that disagrees, its value, its limits and its note.
        """
        if self.ok:
            return
        lines = [
            f"  {row.name}: {number(row.value)}, expected {limits(row)}"
            + (f" ({row.note})" if row.note else "")
            for row in self.failures
        ]
        if not lines:
            raise AgreementError(f"Expected numbers with limits to compare, got none: {self!r}.")
        raise AgreementError(
            f"Expected every number of {self.title} within its limits, got {len(lines)} beyond:\n"
            + "\n".join(lines)
            + "\nLook at report.plot(section) or report.save_html(path) for where: the decoder is "
            "not the module's, an estimator is wrong, or an option is outside its valid range."
        )

    def to_pandas(self) -> pd.DataFrame:
        """Return a data frame with a row for each `Row`: its fields, and its `verdict`.

        Raises
        ------
        ImportError
            pandas is not installed (extra ``cpwl[table]``).
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(
                f"Expected pandas for to_pandas(), got {error}: pip install 'cpwl[table]'."
            ) from error
        frame = pd.DataFrame([row._asdict() for row in self.rows], columns=list(Row._fields))
        frame.insert(len(Row._fields) - 1, "verdict", [row.verdict for row in self.rows])
        return frame

    def plot(self, section: str | None = None) -> Figure:
        """Draw one section, or all of them below each other.

        Parameters
        ----------
        section : str, optional
            Such as "spectrum".

        Returns
        -------
        matplotlib Figure
            Not known to pyplot: save it with its ``savefig``, or let a notebook show it.

        Raises
        ------
        ValueError
            There is no such section.
        """
        if section is not None:
            return self.section(section).figure()
        from matplotlib.figure import Figure

        widths, heights = zip(*(section.size for section in self.sections), strict=True)
        whole = Figure(figsize=(max(widths), sum(heights)), layout="constrained")
        parts = whole.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)
        for part, shown in zip(parts[:, 0], self.sections, strict=True):
            shown.draw(shown.result, part)
        return whole

    def save_html(self, path: str | PathLike[str]) -> None:
        """Write a page with the tables and figures, whole or not at all.

        The page is one file that needs nothing else: no script, no style sheet, no network.

        Raises
        ------
        FileNotFoundError
            The folder of `path` does not exist.
        """
        from bridges.validation.html import page

        text = page(self)
        with atomic_path(path) as part:
            Path(part).write_text(text, encoding="utf-8")
