"""Directives of the site: layers from the import contracts, the commands' help, studies."""

import ast
import html
import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]


def layers_of(container: str) -> list[list[str]]:
    """Return the layers of a container, top first; names in one layer may not import each other."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for contract in settings["tool"]["importlinter"]["contracts"]:
        if container in contract.get("containers", []):
            rows = [re.split(r"\s*\|\s*", row) for row in contract["layers"]]
            made = [[name.strip("()") for name in row if path_of(container, name)] for row in rows]
            return [row for row in made if row]
    raise ValueError(f"No contract of pyproject.toml lists the layers of {container}.")


def path_of(container: str, name: str) -> Path | None:
    """Return the file whose docstring says what a module is; None for one that is not there yet."""
    place = ROOT.joinpath(*container.split("."), name.strip("()"))
    return next((p for p in (place / "__init__.py", place.with_suffix(".py")) if p.exists()), None)


def subject_of(container: str, name: str) -> str:
    """Return the first sentence of a module's docstring."""
    path = path_of(container, name)
    assert path is not None
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split()).rstrip(".").replace("`", "")


class Layers(SphinxDirective):
    """Draw the layers of a container as boxes: each imports only from the rows below its own."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Make the boxes as HTML."""
        container = self.arguments[0]
        self.env.note_dependency(str(ROOT / "pyproject.toml"))
        rows = []
        for row in layers_of(container):
            boxes = [
                f"<div><b>{name}</b> <span>{html.escape(subject_of(container, name))}</span></div>"
                for name in row
            ]
            rows.append(f'<div class="layer">{"".join(boxes)}</div>')
        label = f"Layers of {container}"
        picture = f'<figure class="layers" aria-label="{label}">{"".join(rows)}</figure>'
        return [nodes.raw("", picture, format="html")]


class Commands(SphinxDirective):
    """Print the help of the command `cpwl` and of everything below it."""

    def run(self) -> list[nodes.Node]:
        """Make one section for each command."""
        import click

        from bridges.cli.group import app

        found = []
        for name, command in [("", app), *sorted(app.commands.items())]:
            title = f"cpwl {name}".strip()
            section = nodes.section(ids=[title.replace(" ", "-")])
            section += nodes.title(text=title)
            context = click.Context(command, info_name=title, terminal_width=90)
            section += nodes.literal_block(text=command.get_help(context), language="none")
            found.append(section)
        return found


class Studies(SphinxDirective):
    """Print the kept result of each study: claims by effect, verdicts, and how they were made."""

    def run(self) -> list[nodes.Node]:
        """Make one section for each file in notebooks/results."""
        from bridges.studies import load_study
        from bridges.studies.__main__ import NAMES

        found = []
        for name in NAMES:
            path = ROOT / "notebooks" / "results" / f"{name}.json"
            self.env.note_dependency(str(path))
            study = load_study(path)
            module = importlib.import_module(f"bridges.studies.{name}")
            title, _, _ = (module.__doc__ or "").partition("\n")
            section = nodes.section(ids=[name.replace("_", "-")])
            section += nodes.title(text=title.rstrip("."))
            made = f"{study.made_by['command']}, commit {study.made_by['commit'][:7]}"
            section += nodes.paragraph("", "", nodes.literal(text=made))
            for effect, rows in study.table().groupby("effect", sort=False):
                section += nodes.paragraph(text=f"{effect}:")
                table = rows.drop(columns="effect").to_html(index=False, border=0, classes="study")
                section += nodes.raw("", table, format="html")
            found.append(section)
        return found


def escape(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escape the stars and bars of shapes and formulas, which docstrings write as plain text."""
    example = False
    for i, line in enumerate(lines):
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        if not example:
            parts = re.split(r"(`[^`]*`)", line)  # what stands between backticks stays
            parts[::2] = [re.sub(r"(?<!\\)([*|])", r"\\\1", part) for part in parts[::2]]
            lines[i] = "".join(parts)


def close_examples(app: Sphinx, name: str, source: list[str]) -> None:
    """Take away the empty line that ends an example for doctest."""
    source[0] = source[0].replace("\n\n```\n", "\n```\n")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("layers", Layers)
    app.add_directive("commands", Commands)
    app.add_directive("studies", Studies)
    app.connect("autodoc-process-docstring", escape, priority=100)  # before numpydoc
    app.connect("source-read", close_examples)
    return {"parallel_read_safe": True}
