"""The command `python -m bridges.studies`: run a study, print it, keep it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import click

from bridges.studies.claims import Study, save_study

NAMES = ("trajectories", "memorisation", "reward_guidance", "toy_diffusion")
"""Modules of this package with a `run(*, full, seeds)` that returns a `Study`."""


@click.command()
@click.argument("name", type=click.Choice(NAMES))
@click.option("--full", is_flag=True, help="At full size, as in notebooks/results.")
@click.option("--seeds", type=click.IntRange(min=1), help="How many; by default the study's own.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Where the JSON goes.")
def main(name: str, full: bool, seeds: int | None, out: Path | None) -> None:
    """Run the study NAME, print each claim with its verdict, and write all of it as JSON.

    The exit status is 1 where an invariant of our own does not hold, whatever the verdicts are.
    """
    module = importlib.import_module(f"bridges.studies.{name}")
    study: Study = module.run(full=full, seeds=None if seeds is None else range(seeds))
    click.echo(study.table().to_string(index=False))
    for invariant in study.invariants:
        state = "holds" if invariant.holds else "FAILS"
        click.echo(f"{state}: {invariant.name}: {invariant.measured}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_study(study, out, " ".join(["python -m bridges.studies", *sys.argv[1:]]))
    sys.exit(1 if study.failed() else 0)


if __name__ == "__main__":
    main()
