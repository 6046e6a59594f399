"""Page of a report: tables, figures and style in a single file that needs nothing else."""

from __future__ import annotations

import base64
import io
import math
import platform
from collections.abc import Iterator
from html import escape
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from bridges.validation.findings import Row
from bridges.validation.page_style import STYLE
from bridges.validation.text import limits, number

if TYPE_CHECKING:
    from bridges.validation.findings import Findings, Section

_DOTS = 96  # CSS pixels in an inch; pictures have twice as many, for dense screens
# Nothing is loaded and nothing runs, whatever a note or a title contains.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_LONG = 16  # letters of a setting that takes a line of its own
_PACKAGES = ("cpwl", "torch", "numpy", "scipy", "numba")


def page(report: Findings) -> str:
    """Return the page of a report."""
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<link rel="icon" href="data:,">',
        f"<title>{escape(report.title)}</title>",
        f"<style>{STYLE}</style>",
        "</head>",
        "<body>",
        *_head(report),
        "<main>",
        *(line for section in report.sections for line in _section(section)),
    ]
    for absent in report.absent:
        parts += [
            f'<section id="{escape(absent.name)}" class="absent">',
            f"<h2>{escape(absent.heading)}</h2>",
            f"<p><strong>Not measured.</strong> {escape(absent.reason)}</p>",
            "</section>",
        ]
    return "\n".join([*parts, "</main>", *_foot(report), "</body>", "</html>", ""])


def fragment(report: Findings) -> str:
    """Return the verdict and the sections' tables, folded, for a page that holds other things."""
    mark = "✓" if report.ok else "✗"
    parts = [f"<div><p><b>{escape(report.title)}</b><br>{mark} {escape(report.verdict)}</p>"]
    for section in report.sections:
        unfolded = " open" if any(not row.agrees for row in section.result.rows) else ""
        heading = f"{escape(section.heading)}: {_score(section)[1]}"
        parts += [
            f"<details{unfolded}><summary>{heading}</summary>",
            *_table(section),
            "</details>",
        ]
    parts += [
        f"<p>{escape(absent.heading)}: not measured. {escape(absent.reason)}</p>"
        for absent in report.absent
    ]
    return "\n".join([*parts, "</div>"])


def _head(report: Findings) -> Iterator[str]:
    """Title, facts, verdict, what disagrees, and a link to each section."""
    yield "<header>"
    yield '<p class="eyebrow">Exact engine and estimates held against each other</p>'
    yield f"<h1>{escape(report.title)}</h1>"
    yield '<dl class="facts">'
    for name, fact in report.facts.items():
        yield f"<div><dt>{escape(name)}</dt><dd>{escape(fact)}</dd></div>"
    yield "</dl>"
    state, mark = ("good", "✓") if report.ok else ("bad", "✗")
    yield f'<div class="verdict {state}"><p><span aria-hidden="true">{mark}</span> '
    yield f"{escape(report.verdict)}</p>"
    if report.failures:
        yield "<ul>"
        for row in report.failures:
            yield (
                f'<li><a href="#{escape(row.section)}">{escape(row.name)}</a>: '
                f"<b>{_number(row.value)}</b>, expected {_limits(row)}</li>"
            )
        yield "</ul>"
    yield "</div>"
    yield '<nav aria-label="Sections">'
    for section in report.sections:
        state, score = _score(section)
        yield (
            f'<a class="{state}" href="#{escape(section.name)}"><b>{escape(section.heading)}</b>'
            f"<span>{score}</span></a>"
        )
    for absent in report.absent:
        yield (
            f'<a href="#{escape(absent.name)}"><b>{escape(absent.heading)}</b>'
            "<span>not measured</span></a>"
        )
    yield "</nav>"
    yield "</header>"


def _score(section: Section) -> tuple[str, str]:
    """Return whether a section is good or bad, and how many of its numbers agree."""
    rows = [row for row in section.result.rows if row.claimed]
    wrong = sum(not row.agrees for row in rows)
    return ("bad", f"{wrong} of {len(rows)} disagree") if wrong else ("good", f"{len(rows)} agree")


def _section(section: Section) -> Iterator[str]:
    yield f'<section id="{escape(section.name)}">'
    yield f"<h2>{escape(section.heading)}</h2>"
    yield f'<p class="claim">{escape(section.claim)}</p>'
    yield _figure(section)
    yield from _table(section)
    yield f'<p class="seconds">{section.seconds:.1f} s</p>'
    yield "</section>"


def _table(section: Section) -> Iterator[str]:
    yield "<table>"
    yield (
        '<thead><tr><th scope="col">Quantity</th><th scope="col">How</th>'
        '<th scope="col">Statistic</th><th scope="col" class="value">Value</th>'
        '<th scope="col" class="limits">Agrees if</th><th scope="col">Verdict</th></tr></thead>'
    )
    yield "<tbody>"
    previous = ""
    for row in section.result.rows:
        yield _row(row, first=row.quantity != previous)
        previous = row.quantity
    yield "</tbody></table>"


def _row(row: Row, first: bool) -> str:
    """One row; its note stands below its case, a repeated quantity is only read aloud."""
    kind = " ".join(
        (["first"] if first else [])
        + ([] if not row.claimed else ["good"] if row.agrees else ["bad"])
    )
    note = f"<small>{escape(row.note)}</small>" if row.note else ""
    verdict = f'<span class="badge">{escape(row.verdict)}</span>' if row.claimed else ""
    return (
        f'<tr class="{kind}"><th scope="row">{escape(row.quantity)}</th>'
        f'<td class="case">{escape(row.case)}{note}</td><td>{escape(row.statistic)}</td>'
        f'<td class="value">{_number(row.value)}</td><td class="limits">{_limits(row)}</td>'
        f'<td class="verdict-cell">{verdict}</td></tr>'
    )


def _figure(section: Section) -> str:
    """Return the section's figure as a picture inside the page."""
    figure = section.figure()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=2 * _DOTS, facecolor="white")
    width, height = figure.get_size_inches() * _DOTS
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" width="{width:.0f}" '
        f'height="{height:.0f}" alt="{escape(section.alt)}"></figure>'
    )


def _foot(report: Findings) -> Iterator[str]:
    """Everything that is needed to repeat the report."""
    yield "<footer><h2>To repeat it</h2>"
    yield '<dl class="settings">'
    for name, value in {**report.settings, **_versions()}.items():
        long = ' class="long"' if len(str(value)) > _LONG else ""
        yield f"<div{long}><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
    yield "</dl>"
    yield f"<p>{report.seconds:.1f} s in all.</p></footer>"


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from its sources
            continue
    return found


def _number(value: float) -> str:
    """Write 1.2e-15 as people do."""
    text = number(value).replace("-", "\N{MINUS SIGN}")
    if not math.isfinite(value):
        return text.replace("inf", "∞").replace("nan", "\N{EN DASH}")
    digits, e, power = text.partition("e")
    if not e:
        return text
    power = f"10<sup>{power[0].replace('+', '')}{power[1:].lstrip('0')}</sup>"
    return power if digits == "1" else f"{digits}&nbsp;·&nbsp;{power}"


def _limits(row: Row) -> str:
    text = limits(row)
    if not text:
        return ""
    if math.isnan(row.low):
        return f"≤&nbsp;{_number(row.high)}"
    if math.isnan(row.high):
        return f"≥&nbsp;{_number(row.low)}"
    if row.low == row.high:
        return f"=&nbsp;{_number(row.low)}"
    return f"{_number(row.low)} to {_number(row.high)}"
