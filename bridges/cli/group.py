"""Group of the `cpwl` commands, and what becomes of their errors."""

from __future__ import annotations

import functools
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import click

from bridges.cli.errors import Stopped, in_options
from bridges.cli.estimate import describe, field
from bridges.cli.exact import demo, info, partition, survey, verify
from bridges.cli.validate import validate


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cpwl", message="%(prog)s %(version)s")
def app() -> None:
    """Measure the local geometry of a generator: exactly, by estimates, or one by the other."""


def _ended(command: Callable[..., Any]) -> Callable[..., Any]:
    """Have SIGTERM and Ctrl-C give back what a command holds, and say what is left of its work."""

    @functools.wraps(command)
    def called(**options: Any) -> Any:
        from cpwl.files import ending_as_error

        try:
            with ending_as_error():
                return command(**options)
        except KeyboardInterrupt as error:
            click.echo(err=True)  # the terminal's ^C has no line of its own
            raise Stopped(f"interrupted; {_left(options.get('store'))}", 130) from error
        except SystemExit as error:
            if not isinstance(error.code, int) or error.code <= 128:
                raise
            name = signal.Signals(error.code - 128).name
            raise Stopped(f"ended by {name}; {_left(options.get('store'))}", error.code) from error

    return called


def _left(store: object) -> str:
    if store is None:
        return "nothing was left half-written."
    return f"the same command goes on after what is in {store}."


for _command in (demo, describe, field, info, partition, survey, validate, verify):
    assert _command.callback is not None
    _command.callback = _ended(_command.callback)
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
        _fail(f"interrupted; {_left(None)}", 130)
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
