"""Command `cpwl validate`: the exact engine and the estimates held against each other."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bridges.cli.arguments import check_output, model_options
from bridges.cli.slicing import Place, boxed, domain_of, slice_options

# `cpwl --help` should not wait for torch: the command imports what it needs.
if TYPE_CHECKING:
    from torch import nn

    import cpwl
    from bridges.validation import Report

_TABLES = (".csv", ".parquet")
_PAGES = (".html",)
_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("model")
@slice_options
@model_options
@click.option(
    "--upto", metavar="NAME", help="Leave out this operation and all after it, for example tanh."
)
@click.option(
    "--decoder",
    type=_PATH,
    help="Another version of the model, whose estimates are compared instead of its own.",
)
@click.option(
    "--radius",
    default=1e-5,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Radius of the neighbourhood of delta.",
)
@click.option(
    "--latents",
    type=click.IntRange(min=2),
    help="Latents at which psi, nu and delta are compared.  [default: 48 and 24]",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1000),
    help="Latents decoded for the densities, at most.  [default: 400,000]",
)
@click.option("--seed", default=0, show_default=True, help="Seed of latents, probes and samples.")
@click.option("--html", type=_PATH, help="Page with the tables and figures.")
@click.option(
    "-o",
    "--output",
    type=_PATH,
    multiple=True,
    help=f"Table of the rows, its format by its suffix: {', '.join(_TABLES)}. May be repeated.",
)
def validate(
    model: str,
    reading: dict[str, Any],
    upto: str | None,
    decoder: Path | None,
    radius: float,
    latents: int | None,
    samples: int | None,
    seed: int,
    html: Path | None,
    output: tuple[Path, ...],
    **place: Any,
) -> None:
    """Compare the estimates with the exact engine, on a model small enough for both.

    MODEL is an .onnx file, a .pt2 file from torch.export, or a toy: generator, mnist-vae, conv,
    residual, max-pooling, smooth. A file needs a slice, as `cpwl partition` does; a toy has its
    own, of which --box takes another part.

    Exit status 1 tells that something disagrees.
    """
    for path in output:
        check_output(path, _TABLES)
    if html is not None:
        check_output(html, _PAGES, "--html")
    from bridges.cli.writing import check_packages, write_all

    check_packages(output)
    from bridges.validation import validate

    module, domain = _read(model, reading, Place(**place))
    other = None
    if decoder is not None:
        from bridges.cli.loading import load_module

        shape = domain.slice.latent_shape
        other = load_module(decoder, **{**reading, "input_shape": shape})[0]
    report = validate(
        module, domain, upto=upto, decoder=other, name=Path(model).name, radius=radius,
        latents=latents, samples=samples, seed=seed, progress=sys.stderr.isatty(),
    )  # fmt: skip
    text = str(report)
    # colours are for terminals only: echo leaves them out elsewhere
    click.echo(
        re.sub(r"DISAGREES?\b", lambda word: click.style(word[0], fg="red", bold=True), text)
    )
    paths = (*output, *([] if html is None else [html]))
    for path, failure in write_all(paths, lambda path: _write(report, path)):
        if failure is None:
            click.echo(f"wrote {path}")
    if not report.ok:
        sys.exit(1)


def _read(model: str, reading: dict[str, Any], place: Place) -> tuple[nn.Module, cpwl.Domain]:
    """Return a toy or a file's module, and the domain that the options describe."""
    from bridges.networks.toys import TOYS, toy

    if model in TOYS:
        if any(value is not None and value != {} for value in reading.values()):
            raise ValueError(
                "Expected --input-shape, --fix and --output-name for a file only, got one of them "
                f"for the toy '{model}', which has its own. Leave it out."
            )
        made = toy(model)
        if place.sliced:
            return made.module, domain_of(made.domain.slice.latent_shape, place)
        if place.box:
            return made.module, boxed(made.domain.slice, place.box)
        return made.module, made.domain
    if Path(model).suffix.lower() not in (".onnx", ".pt2") and not Path(model).exists():
        raise ValueError(
            f"Expected a .onnx or .pt2 file, or one of the toys {', '.join(TOYS)}, got '{model}'. "
            "Check the name."
        )
    from bridges.cli.loading import load_module

    module, shape = load_module(Path(model), **reading)
    return module, domain_of(shape, place)


def _write(report: Report, path: Path) -> None:
    """Write the page or a table, whole or not at all."""
    from bridges.validation import write_csv
    from cpwl.files import atomic_path

    if path.suffix in _PAGES:
        report.save_html(path)
    elif path.suffix == ".csv":
        write_csv(report.rows, path)
    else:
        with atomic_path(path) as part:
            report.to_pandas().to_parquet(part)
