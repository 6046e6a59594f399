"""Group of the `cpwl` commands, and what becomes of their errors."""

from __future__ import annotations

import sys
import warnings
from typing import NoReturn

import click

from bridges.cli.errors import in_options
from bridges.cli.estimate import describe, field
from bridges.cli.exact import demo, info, partition, survey, verify
from bridges.cli.validate import validate


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cpwl", message="%(prog)s %(version)s")
def app() -> None:
    """Measure the local geometry of a generator: exactly, by estimates, or one by the other."""


for _command in (demo, describe, field, info, partition, survey, validate, verify):
    app.add_command(_command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's error is one line on stderr and exit status 2.

    A warning is one line as well, without the line of source that gave it.
    """
    before, warnings.formatwarning = warnings.formatwarning, _warning
    try:
        status = app.main(arguments, prog_name="cpwl", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted; nothing was left half-written.", 130)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        _fail(str(error) or type(error).__name__, 2)
    else:
        sys.exit(status)
    finally:
        warnings.formatwarning = before


def _warning(message: Warning | str, *_: object, **__: object) -> str:
    return f"cpwl: warning: {in_options(' '.join(str(message).split()))}\n"


def _fail(message: str, status: int) -> NoReturn:
    """Print one line on stderr and leave."""
    print("cpwl:", in_options(" ".join(message.split())), file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
