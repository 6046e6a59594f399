"""Rows of a comparison as text that is aligned, and as a file with commas."""

from __future__ import annotations

import csv
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from bridges.validation.findings import Row
from cpwl.files import atomic_path

WIDTH = 100  # of a line of notes
_HEADER = ("quantity", "case", "statistic", "value", "agrees if", "")
_RIGHT = (3,)  # columns that end where their numbers do


def number(value: float) -> str:
    """Write a number with four digits, whole ones up to a billion in full."""
    if math.isfinite(value) and value == round(value) and abs(value) < 1e9:
        return f"{value + 0.0:,.0f}"  # minus zero is zero
    return f"{value:.4g}"


def limits(row: Row) -> str:
    """Write what agreement asks of a row's value, or nothing."""
    if not row.claimed:
        return ""
    if math.isnan(row.low):
        return f"<= {number(row.high)}"
    if math.isnan(row.high):
        return f">= {number(row.low)}"
    if row.low == row.high:
        return f"= {number(row.low)}"
    return f"{number(row.low)} to {number(row.high)}"


def numbered(rows: Sequence[Row]) -> dict[str, int]:
    """Give each text of the notes a number, from 1 in the order that they come in."""
    return {note: i for i, note in enumerate(dict.fromkeys(r.note for r in rows if r.note), 1)}


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a table: a header, the rows, and their notes by number."""
    notes = numbered(rows)
    lines = [_HEADER, *(_cells(row, notes) for row in rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(_HEADER))]
    shown = [_aligned(line, widths) for line in lines]
    previous = ""
    for i, row in enumerate(rows, 1):
        if row.quantity == previous:  # said once for all the rows below it
            shown[i] = " " * len(previous) + shown[i][len(previous) :]
        previous = row.quantity
    for note, i in notes.items():
        mark = f"[{i}] "
        shown += textwrap.wrap(
            note, WIDTH, initial_indent=mark, subsequent_indent=" " * len(mark),
            break_on_hyphens=False,
        )  # fmt: skip
    return [f"  {line}" for line in shown]


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write rows with commas between their fields, whole or not at all; no limit is no entry."""
    with atomic_path(path) as part, open(part, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow((*Row._fields[:-1], "verdict", "note"))
        for row in rows:
            edges = ("" if math.isnan(limit) else repr(limit) for limit in (row.low, row.high))
            writer.writerow((*row[:4], repr(float(row.value)), *edges, row.verdict, row.note))


def _cells(row: Row, notes: dict[str, int]) -> tuple[str, ...]:
    mark = f"[{notes[row.note]}]" if row.note else ""
    verdict = " ".join(filter(None, (row.verdict, mark)))
    return (row.quantity, row.case, row.statistic, number(row.value), limits(row), verdict)


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    parts = (
        text.rjust(width) if k in _RIGHT else text.ljust(width)
        for k, (text, width) in enumerate(zip(line, widths, strict=True))
    )
    return "  ".join(parts).rstrip()
