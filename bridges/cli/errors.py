"""Errors of commands: their exit status, and what options call the packages' arguments."""

from __future__ import annotations

import re

import click

# arguments of the packages, and the options that give them
_OPTIONS = {
    "decoder": "--decoder",
    "dtype": "--dtype",
    "fixed": "--fix",
    "input_shape": "--input-shape",
    "max_bytes": "--memory",
    "output": "--output-name",
    "store": "--store",
    "straight_through": "--straight-through",
    "upto": "--upto",
}
# what to do in Python, and on the command line
_REMEDIES = {
    "straight_through=True": "--straight-through",
    "or use approx for the whole module": "or cpwl describe for the whole model",
    "Use approx, which": "Use cpwl describe, which",
    "cpwl.Slice.through(z0, z1, z2).box(lo, hi)": "--through latents.npy --box LO HI",
    "cpwl.Slice.through(z0, z1, z2)": "--through latents.npy",
    "Use cpwl.check, which works in float64": "Leave out --certify, and files ending in .json",
    "Use Network.from_torch with the original module": "Export the module with torch.export.save "
    "as .pt2",
    "count by signs, with method='hull' (knots_method='hull' of describe)": "leave delta out with "
    "--no-delta",
}
_NAMES = "|".join(_OPTIONS)


class Stopped(click.ClickException):
    """End of a command before its time: one line on stderr, and an exit status of its own."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.exit_code = status  # pyright: ignore[reportAttributeAccessIssue]


def in_options(message: str) -> str:
    """Return a message of the packages with options in place of their arguments.

    Examples
    --------
    >>> from bridges.cli.errors import in_options
    >>> in_options("Pass input_shape, or upto='tanh' to stop at its input.")
    'Pass --input-shape, or --upto tanh to stop at its input.'
    """
    for given, said in _REMEDIES.items():
        message = message.replace(given, said)
    message = re.sub(
        r"\bfixed=\{([^{}]*)\}",
        lambda found: re.sub(r"(?:, )?\"(.*?)\": ", r" --fix \1=", found[1]).strip(),
        message,
    )
    message = re.sub(
        rf"\b({_NAMES})=('[^']*'|\d+)",
        lambda found: f"{_OPTIONS[found[1]]} {found[2].strip(chr(39))}",
        message,
    )
    message = re.sub(rf"\b({_NAMES})=", lambda found: _OPTIONS[found[1]], message)
    # not in the names of files
    words = r"(?<![\w'/-])(input_shape|max_bytes)(?![\w.']*')"
    return re.sub(words, lambda found: _OPTIONS[found[1]], message)
