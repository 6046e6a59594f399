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
    assert len(named) >= 5
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    ("page", "module"),
    [
        ("cpwl", "cpwl"),
        ("cpwl", "cpwl.plot"),
        ("approx", "approx"),
        ("approx", "approx.plot"),
        ("approx", "approx.diffusion"),
        ("approx", "approx.diffusion.maps"),
        ("approx", "approx.diffusion.reward"),
        ("approx", "approx.sampling"),
    ],
)
def test_the_reference_lists_every_public_name(page, module):
    text = (SITE / f"reference/{page}.md").read_text()
    listed, inside = set(), ""
    for line in text.splitlines():
        if line.startswith(".. currentmodule:: "):
            inside = line.split()[-1]
        elif name := re.fullmatch(r"   ([\w.]+)", line):
            listed.add(f"{inside}.{name[1]}")
    public = {f"{module}.{name}" for name in importlib.import_module(module).__all__}
    above = module.rpartition(".")[0]  # what a package above exports too is listed there
    missing = {name for name in public - listed if name.replace(module, above) not in listed}
    assert missing <= {"approx.plot", "cpwl.plot"}
    here = {name for name in listed if name.rpartition(".")[0] == module}
    assert here <= public


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
