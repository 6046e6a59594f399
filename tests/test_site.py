"""The site's pages: paths that they name, public names that they list, layers that they draw."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest

import cpwl

ROOT = Path(__file__).parents[1]
SITE = ROOT / "notebooks" / "site"
PATH = re.compile(r"(?<![\w/.-])(?:cpwl|approx|bridges|tests|notebooks|\.ci)/[\w./-]*\w")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "notebooks/site/architecture.md"])
def test_every_path_that_a_page_names_exists(page):
    named = set(PATH.findall((ROOT / page).read_text()))
    assert len(named) > 5
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    ("page", "module"),
    [("cpwl", "cpwl"), ("cpwl", "cpwl.plot"), ("approx", "approx"), ("approx", "approx.plot")],
)
def test_the_reference_lists_every_public_name(page, module):
    listed = set(re.findall(r"^   ([\w.]+)$", (SITE / f"reference/{page}.md").read_text(), re.M))
    prefix = "plot." if module.endswith("plot") else ""
    public = {prefix + name for name in importlib.import_module(module).__all__}
    assert public - listed <= {"plot"}
    assert prefix or {name for name in listed if not name.startswith("plot.")} <= public


def test_layers_are_read_from_the_contracts(monkeypatch):
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(SITE)
    directives = importlib.import_module("directives")
    sys.modules.pop("directives")
    rows = directives.layers_of("cpwl")
    assert rows[0] == ["plot"]
    assert set(rows[-1]) == {"arrays", "contents", "errors", "files"}
    folders = {path.stem for path in (ROOT / "cpwl").iterdir() if not path.name.startswith("_")}
    assert {name for row in rows for name in row} == folders - {"py"}
    assert all(directives.subject_of("cpwl", name) for row in rows for name in row)
    with pytest.raises(ValueError, match="lists the layers of elsewhere"):
        directives.layers_of("elsewhere")


def test_the_version_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cpwl.__version__ == project["version"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {project['version']}\n" in citation
