"""Report of a validation, as a table, a data frame, figures and a page."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from bridges.validation.findings import AgreementError, Findings, Row, Section
from bridges.validation.text import limits, number, table
from cpwl.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Report(Findings):
    """Findings of `validate` as text, data frame, figures and page.

    ``print(report)`` shows the table. The attributes are those of `Findings`.

    Examples
    --------
    >>> from bridges import Report
    >>> from bridges.validation.findings import Absent
    >>> absent = Absent("density", "Output density", "It needs cells.")
    >>> report = Report("Validation of nothing", facts={}, sections=(), absent=(absent,))
    >>> print(report)
    Validation of nothing
    <BLANKLINE>
    density: not measured. It needs cells.
    <BLANKLINE>
    None of 0 numbers has a limit: nothing was compared. 0.0 s.
    >>> report.require()
    Traceback (most recent call last):
    bridges.validation.findings.AgreementError: Expected numbers with limits to compare, got none...
    """

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

    def _repr_html_(self) -> str:
        from bridges.validation.page import fragment

        return fragment(self)

    def section(self, name: str) -> Section:
        """Return a section by its name.

        Parameters
        ----------
        name : str
            Such as "spectrum".

        Returns
        -------
        Section
            With its rows and arrays in ``section.result``.

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
        """Return a data frame with a row for each `Row`.

        Returns
        -------
        pandas.DataFrame
            The fields of the rows as columns, and their `verdict`.

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

        Parameters
        ----------
        path : str or path
            Usually ends in .html.

        Raises
        ------
        FileNotFoundError
            The folder of `path` does not exist.
        """
        from bridges.validation.page import page

        text = page(self)
        with atomic_path(path) as part:
            Path(part).write_text(text, encoding="utf-8")
