"""Slice of latent space that a command works on, and the options that give it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import numpy as np

from bridges.cli.arguments import load_npy, read_numbers, shaped_latents

# `cpwl --help` should not wait for torch, which cpwl imports.
if TYPE_CHECKING:
    import cpwl


_OPTIONS = (
    click.option(
        "--through",
        type=click.Path(path_type=Path),
        help="A .npy file with two to seven latents (k, ...).",
    ),
    click.option("--origin", help="The slice's origin: a .npy file, or numbers: 0,0,0.5"),
    click.option("--basis", help="The slice's axes: a .npy file, or rows of numbers: 1,0,0;0,1,0"),
    click.option(
        "--box",
        type=(float, float),
        multiple=True,
        metavar="LO HI",
        help="Bounds in slice coordinates: once for all axes, or once for each.",
    ),
)


class Place(NamedTuple):
    """Values of the options that give a slice and its bounds."""

    through: Path | None
    origin: str | None
    basis: str | None
    box: tuple[tuple[float, float], ...]

    @property
    def sliced(self) -> bool:
        """Whether a slice is given, rather than only bounds."""
        return any(option is not None for option in self[:3])


def slice_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --through, --origin, --basis and --box."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def domain_of(latent_shape: tuple[int, ...], place: Place) -> cpwl.Domain:
    """Return the domain that the options describe.

    Raises
    ------
    ValueError
        Options that contradict each other, do not fit the latents, or leave the slice or its bounds
        open.
    """
    plane = _slice_of(latent_shape, place)
    if place.box:
        return boxed(plane, place.box)
    if plane.anchors is None:
        raise ValueError(
            "Expected --box LO HI for this slice, got none. "
            "Give it once for all axes, or once for each."
        )
    from bridges.validation import around

    return around(plane)


def boxed(plane: cpwl.Slice, box: tuple[tuple[float, float], ...]) -> cpwl.Domain:
    """Return the part of a slice within bounds for all axes, or for each."""
    if len(box) not in (1, plane.dim):
        raise ValueError(
            f"Expected --box once or for each of {plane.dim} axes, got it {len(box)} times. "
            "Give LO HI in slice coordinates."
        )
    bounds = np.array(box if len(box) == plane.dim else box * plane.dim)
    return plane.box(bounds[:, 0], bounds[:, 1])


def _slice_of(latent_shape: tuple[int, ...], place: Place) -> cpwl.Slice:
    import cpwl
    from cpwl.domain import MAX_DIM

    through, origin, basis, _ = place
    if through is not None and (origin is not None or basis is not None):
        raise ValueError(
            "Expected --through, or --origin and --basis, got both. "
            "Choose one way to give the slice."
        )
    if (origin is None) != (basis is None):
        raise ValueError(
            "Expected --origin and --basis together, got one of them. Give both, or --through."
        )
    size = int(np.prod(latent_shape))
    if through is not None:
        latents = shaped_latents(load_npy(through, "--through"), latent_shape, "--through")
        if len(latents) < 2:
            raise ValueError(
                f"Expected two to seven latents in {through}, got {len(latents)}. "
                "Stack them along a new first axis and save them with numpy.save."
            )
        return cpwl.Slice.through(*latents)
    if origin is not None and basis is not None:
        start = shaped_latents(read_numbers(origin, "--origin"), latent_shape, "--origin")
        axes = shaped_latents(read_numbers(basis, "--basis"), latent_shape, "--basis")
        return cpwl.Slice(start[0], axes)
    if size <= MAX_DIM:
        return cpwl.Slice(np.zeros(latent_shape), np.eye(size).reshape(size, *latent_shape))
    raise ValueError(
        f"Expected a slice through the model's {size} inputs, got none. "
        "Give --through latents.npy, or --origin and --basis."
    )
