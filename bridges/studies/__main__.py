"""The command `python -m bridges.studies`: run a study, print it, keep it."""

from __future__ import annotations

import importlib
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import click

from bridges.studies.claims import Study, provenance, save_study

NAMES = (
    "toy_diffusion",
    "trajectories",
    "memorisation",
    "reward_guidance",
    "populations",
    "training",
    "sampling",
    "faces",
    "geometry",
)
"""Modules of this package with a `study(size, seeds)`, and sizes `FULL` and `SMALL`."""


@click.command()
@click.argument("name", type=click.Choice(NAMES))
@click.option("--full", is_flag=True, help="At full size, as in notebooks/results.")
@click.option("--seeds", type=click.IntRange(min=1), help="How many; by default the study's own.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the JSON goes; without it nothing is kept.",
)
def main(name: str, full: bool, seeds: int | None, out: Path | None) -> None:
    """Run the study NAME, print each claim with its verdict, and write all of it as JSON.

    The exit status is 1 where an invariant of our own does not hold, whatever the verdicts are.
    """
    if out is not None:
        _check_writable(out)
    made_by = provenance(" ".join(["python -m bridges.studies", *sys.argv[1:]]))
    module = importlib.import_module(f"bridges.studies.{name}")
    size = module.FULL if full else module.SMALL
    study: Study = module.study(size, range(seeds or size.seeds))
    click.echo(study.text())
    for invariant in study.invariants:
        state = "holds" if invariant.holds else "FAILS"
        click.echo(f"{state}: {invariant.name}: {invariant.measured}")
    if out is not None:
        save_study(replace(study, made_by=made_by), out)
    if not full:
        click.echo("At small size: a try, no evidence. --full takes minutes.")
    sys.exit(1 if study.failed() else 0)


def _check_writable(out: Path) -> None:
    """Refuse before a long run what cannot be written after it."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise click.BadParameter(
            f"Expected a file that can be written, got '{out}': {error.strerror}. Give another.",
            param_hint="--out",
        ) from error


if __name__ == "__main__":
    main()
