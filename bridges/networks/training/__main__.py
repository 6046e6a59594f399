"""The command `python -m bridges.networks.training`: train a network and keep it in a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from bridges.networks.training.autoencoder import cached_vae, load_vae

FILE = click.Path(dir_okay=False, path_type=Path)
LEVEL = click.FloatRange(min=0)


@click.group()
def main() -> None:
    """Train a network; the same command goes on after a stop."""


@main.command()
@click.option("--out", "file", type=FILE, required=True, help="Where the network is kept.")
@click.option("--data", "kind", type=click.Choice(["mnist", "fashion-mnist", "notmnist"]),
              default="mnist", show_default=True)  # fmt: skip
@click.option("--part", type=click.Choice(["train", "t10k"]), default="train", show_default=True)
@click.option("--count", type=click.IntRange(min=1), default=60_000, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=10_000, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--rate", type=LEVEL, default=1e-3, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--beta", type=LEVEL, default=1.0, show_default=True, help="Weight of the KL term.")
@click.option("--warmup", type=click.IntRange(min=0), default=1000, show_default=True,
              help="Steps in which that weight rises from 0.")  # fmt: skip
@click.option("--latents", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--width", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--depth", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--noise", type=LEVEL, default=0.0, help="Standard deviation on the images.")
@click.option("--weight-noise", type=LEVEL, default=0.0, help="Standard deviation on the weights.")
@click.option("--start", type=FILE, help="A network to train further.")
@click.option("--decoder-only", is_flag=True, help="Leave the encoder as it is.")
@click.option("--quiet", is_flag=True, help="Show no bar.")
def vae(file: Path, start: Path | None, quiet: bool, **options: Any) -> None:
    """Train a variational autoencoder. The exit status is 1 where Ctrl-C stopped it."""
    try:
        first = None if start is None else load_vae(start).module
        trained = cached_vae(file, start=first, progress=not quiet, **options)
    except (ValueError, OSError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    last = trained.losses[-100:].mean()
    click.echo(f"{len(trained.losses):,} steps, loss {last:.2f} nats over the last 100: {file}")
    sys.exit(0 if trained.complete else 1)


if __name__ == "__main__":
    main()
