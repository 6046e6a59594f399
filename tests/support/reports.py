"""Made-up reports: every kind of row and note, without a network behind them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bridges.validation.findings import Absent, Row, Section
from bridges.validation.report import Report


@dataclass(frozen=True)
class Made:
    rows: tuple[Row, ...]


def draw(result, figure):
    axes = figure.subplots(1, 2)
    x = np.linspace(0, 10, 200)
    for ax, rows in zip(axes, (result.rows[::2], result.rows[1::2]), strict=True):
        for i, row in enumerate(rows):
            ax.plot(x, np.sin(x + i), label=row.statistic)
        ax.set_xlabel("radius")
        ax.legend()


JACOBIAN = (
    Row("jacobian", "A_w", "autograd, float64", "worst relative error", 3.14e-15, high=1e-9,
        note="cell 1,204 at s = (0.3172, -0.9981)"),
    Row("jacobian", "A_w", "autograd, float64", "median relative error", 4.1e-16),
    Row("jacobian", "G(z)", "A_w z + b_w", "worst relative error", 2.2e-15, high=1e-9,
        note="cell 1,204 at s = (0.3172, -0.9981)"),
    Row("jacobian", "pattern", "float32", "latents with another", 3.0,
        note="of 1,311: within float32's rounding of a knot"),
)  # fmt: skip
SPECTRUM = (
    Row("spectrum", "psi", "predict, k = 20", "bias", -0.0123, -0.05, 0.05,
        note="4 standard errors over 40 seeds"),
    Row("spectrum", "psi", "predict, k = 20", "coverage of 95 %", 0.9531, low=0.8466),
    Row("spectrum", "psi", "predict, k = 20", "Spearman over latents", 0.987),
    Row("spectrum", "nu", "exact", "worst relative error", math.inf, high=1e-12,
        note="<script>alert('a note is text')</script> & \"quoted\""),
    Row("spectrum", "nu", "paper", "missing", math.nan, note="k = 2 is too small"),
)  # fmt: skip
ALL = (*JACOBIAN, *SPECTRUM)


def section(name, rows, **changes):
    made = Section(
        name, name.title(), f"What the rows of {name} claim.", Made(tuple(rows)), draw,
        (8.0, 3.0), f"Curves of {name}.", 1.25,
    )  # fmt: skip
    return made._replace(**changes)


def report(*, failing=False, **changes):
    """Return a report of two sections, the second with a row that fails if wanted."""
    spectrum = SPECTRUM if failing else tuple(row for row in SPECTRUM if row.agrees)
    fields = {
        "title": "Toy, seed 0",
        "facts": {"latents": "(2,)", "cells": "1,311 in 2-D"},
        "sections": (section("jacobian", JACOBIAN), section("spectrum", spectrum)),
        "absent": (Absent("density", "Output density", "'silu' at '1' has no pieces."),),
        "settings": {"seed": 0, "radius": 1e-5},
        "seconds": 2.5,
    }
    return Report(**{**fields, **changes})
