"""`Report`: its table, data frame, figures, errors and page, on made-up rows."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image
from support import browser, reports

import bridges
from bridges.validation.findings import AgreementError, Row
from bridges.validation.report import Report
from bridges.validation.text import limits, number, table, write_csv


def test_the_table_is_aligned_and_ends_with_the_verdict():
    text = str(reports.report(failing=True))
    expected = """\
Toy, seed 0
  latents: (2,)
  cells: 1,311 in 2-D

jacobian: What the rows of jacobian claim.
  quantity  case               statistic                 value  agrees if
  A_w       autograd, float64  worst relative error   3.14e-15  <= 1e-09   agrees [1]
            autograd, float64  median relative error   4.1e-16
  G(z)      A_w z + b_w        worst relative error    2.2e-15  <= 1e-09   agrees [1]
  pattern   float32            latents with another          3             [2]
  [1] cell 1,204 at s = (0.3172, -0.9981)
  [2] of 1,311: within float32's rounding of a knot

spectrum: What the rows of spectrum claim.
  quantity  case             statistic                value  agrees if
  psi       predict, k = 20  bias                   -0.0123  -0.05 to 0.05  agrees [1]
            predict, k = 20  coverage of 95 %        0.9531  >= 0.8466      agrees
            predict, k = 20  Spearman over latents    0.987
  nu        exact            worst relative error       inf  <= 1e-12       DISAGREES [2]
            paper            missing                    nan                 [3]
  [1] 4 standard errors over 40 seeds
  [2] <script>alert('a note is text')</script> & "quoted"
  [3] k = 2 is too small

density: not measured. 'silu' at '1' has no pieces.

1 of 5 compared numbers DISAGREE; 4 more are only reported. 2.5 s."""
    assert text == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (-0.0, "0"), (3.0, "3"), (1234567.0, "1,234,567"), (2e9, "2e+09"),
        (math.pi, "3.142"), (-1.5e-7, "-1.5e-07"), (math.inf, "inf"), (math.nan, "nan"),
    ],
)  # fmt: skip
def test_numbers_have_four_digits_and_whole_ones_all(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (math.nan, math.nan, ""), (math.nan, 1e-9, "<= 1e-09"), (0.5, math.nan, ">= 0.5"),
        (1, 1, "= 1"), (-2, 2.5, "-2 to 2.5"),
    ],
)  # fmt: skip
def test_limits_say_what_agreement_asks(low, high, text):
    assert limits(Row("a", "b", "c", "d", 0.0, low, high)) == text


def test_long_notes_are_wrapped_and_said_once():
    note = "word " * 60
    rows = [Row("a", "b", case, "d", 1.0, note=note.strip()) for case in "xyz"]
    lines = table(rows)
    assert sum("word" in line for line in lines) == 4
    assert max(map(len, lines)) <= 102
    assert [line.strip()[-3:] for line in lines[1:4]] == ["[1]"] * 3


def test_ok_needs_a_row_that_could_fail():
    good = reports.report()
    assert good.ok
    assert good.failures == ()
    assert good.verdict == "All 4 compared numbers agree; 4 more are only reported."
    bad = reports.report(failing=True)
    assert not bad.ok
    assert [row.quantity for row in bad.failures] == ["nu"]
    claims = tuple(row for row in reports.JACOBIAN if not row.claimed)
    silent = reports.report(sections=(reports.section("jacobian", claims),))
    assert not silent.ok
    assert silent.verdict == "None of 2 numbers has a limit: nothing was compared."
    with pytest.raises(AgreementError, match="Expected numbers with limits to compare, got none"):
        silent.require()


def test_require_names_every_row_that_disagrees_with_value_limit_and_note():
    reports.report().require()
    with pytest.raises(AgreementError) as caught:
        reports.report(failing=True).require()
    text = str(caught.value)
    assert text.startswith("Expected every number of Toy, seed 0 within its limits, got 1 beyond:")
    assert "  spectrum: nu, exact: worst relative error: inf, expected <= 1e-12 (<script>" in text
    assert "report.save_html(path)" in text
    assert "jacobian" not in text
    # not the error of a wrong argument
    assert not isinstance(caught.value, ValueError)


@pytest.mark.parametrize("failing", [False, True])
def test_a_notebook_shows_the_tables_and_unfolds_what_disagrees(failing):
    html = reports.report(failing=failing)._repr_html_()
    assert html.count("<tr") == html.count("</tr>") > 3
    assert ("<details open>" in html) == failing
    assert "1 of" in html if failing else "disagree" not in html
    assert "<img" not in html


def test_to_pandas_has_every_row_and_its_verdict():
    report = reports.report(failing=True)
    frame = report.to_pandas()
    assert list(frame.columns) == [*Row._fields[:-1], "verdict", "note"]
    assert len(frame) == len(report.rows) == 9
    np.testing.assert_array_equal(frame.value, [row.value for row in report.rows])
    assert frame.verdict.tolist() == [
        "agrees", "", "agrees", "", "agrees", "agrees", "", "DISAGREES", "",
    ]  # fmt: skip


def test_to_pandas_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match=r"Expected pandas for to_pandas\(\), got .*cpwl\[table"):
        reports.report().to_pandas()


def test_csv_is_read_back_as_it_was(tmp_path):
    rows = reports.report(failing=True).rows
    write_csv(rows, tmp_path / "rows.csv")
    with open(tmp_path / "rows.csv", newline="", encoding="utf-8") as handle:
        read = list(csv.DictReader(handle))
    assert [line["note"] for line in read] == [row.note for row in rows]
    assert [float(line["value"]) for line in read[:-1]] == [row.value for row in rows[:-1]]
    assert (read[0]["low"], float(read[0]["high"])) == ("", 1e-9)
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "rows.csv").fillna({"verdict": "", "note": ""}),
        reports.report(failing=True).to_pandas(),
    )


def test_a_section_is_found_by_name_and_an_absent_one_says_why():
    report = reports.report()
    assert report.section("spectrum").name == "spectrum"
    with pytest.raises(ValueError, match=r"measured, got 'density', which was not: 'silu' at '1'"):
        report.section("density")
    with pytest.raises(ValueError, match=r"got 'delta'. It has jacobian, spectrum\."):
        report.section("delta")


def test_plot_draws_one_section_or_all_and_leaves_pyplot_alone():
    report = reports.report()
    one = report.plot("spectrum")
    assert isinstance(one, Figure)
    assert len(one.axes) == 2
    np.testing.assert_allclose(one.get_size_inches(), (8, 3))
    whole = report.plot()
    assert len(whole.axes) == 4
    np.testing.assert_allclose(whole.get_size_inches(), (8, 6))
    assert plt.get_fignums() == []
    buffer = io.BytesIO()
    whole.savefig(buffer)
    with pytest.raises(ValueError, match="got 'delta'"):
        report.plot("delta")


def test_a_report_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        reports.report().seconds = 1.0
    assert repr(reports.report()) == (
        "Report('Toy, seed 0': All 4 compared numbers agree; 4 more are only reported.)"
    )


def test_the_package_offers_the_report_without_importing_torch():
    assert bridges.Report is Report
    assert bridges.AgreementError is AgreementError
    assert {"AgreementError", "Report", "networks", "validate"} <= set(dir(bridges))
    with pytest.raises(AttributeError, match="module 'bridges' has no attribute 'valdate'"):
        bridges.valdate  # noqa: B018


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Return the page of a report with a failing row."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    reports.report(failing=True).save_html(path)
    return path


def test_the_page_is_whole_in_one_file(page, tmp_path):
    text = page.read_text(encoding="utf-8")
    assert text.count("<img ") == 2
    assert "<script" not in text
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert "url(" not in text
    assert "@import" not in text
    assert "&lt;script&gt;alert(&#x27;a note is text&#x27;)&lt;/script&gt; &amp; &quot;q" in text
    assert [path.name for path in page.parent.iterdir()] == ["report.html"]
    with pytest.raises(FileNotFoundError, match="Create the folder first"):
        reports.report().save_html(tmp_path / "missing" / "report.html")


def test_a_figure_that_fails_leaves_the_page_of_before(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("before")

    def broken(result, figure):
        raise RuntimeError("no figure")

    section = reports.section("jacobian", reports.JACOBIAN, draw=broken)
    with pytest.raises(RuntimeError, match="no figure"):
        reports.report(sections=(section,)).save_html(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@browser.needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_a_browser_shows_every_figure_and_complains_of_nothing(page, tmp_path, width, dark):
    with browser.Page(page, width=width, dark=dark) as shown:
        assert shown.errors == []
        # nothing but the file itself, and what is inside it
        assert {url.split(":")[0] for url in shown.requests} <= {"file", "data", "about"}
        sizes = shown.value("[...document.images].map(i => [i.complete, i.naturalWidth, i.alt])")
        assert sizes == [[True, 1536, "Curves of jacobian."], [True, 1536, "Curves of spectrum."]]
        # nothing sticks out sideways
        assert shown.value("document.documentElement.scrollWidth") == width
        assert shown.value("document.querySelectorAll('tr.bad').length") == 1
        text = shown.value("document.body.innerText")
        assert "1 of 5 compared numbers DISAGREE" in text
        assert "<script>alert('a note is text')</script>" in text
        assert "density" in text
        shown.screenshot(tmp_path / "page.png")
        shown.pdf(tmp_path / "page.pdf")
    with Image.open(tmp_path / "page.png") as image:
        corner = image.convert("L").getpixel((2, 2))
    assert corner < 64 if dark else corner > 192
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


@browser.needs_chromium
def test_the_browser_of_these_tests_would_notice(tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<!doctype html><title>bad</title><img src="missing.png">'
        "<script>console.error('complaint'); nothing.there</script>"
    )
    with browser.Page(bad) as shown:
        assert shown.value("document.images[0].naturalWidth") == 0
        errors = " ".join(shown.errors)
    assert "complaint" in errors
    assert "Uncaught" in errors
    assert "ERR_FILE_NOT_FOUND" in errors
