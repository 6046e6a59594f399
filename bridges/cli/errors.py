"""Error of a command that ends early, with its exit status."""

from __future__ import annotations

import click


class Stopped(click.ClickException):
    """End of a command before its time: one line on stderr, and an exit status of its own."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.exit_code = status  # pyright: ignore[reportAttributeAccessIssue]
