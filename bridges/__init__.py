"""Where the exact engine and the estimates meet: `validate`, toys, the demo, the `cpwl` command.

The only package that may import both `cpwl` and `approx`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridges import toys
    from bridges.report import AgreementError, Report
    from bridges.validation import validate

__all__ = ["AgreementError", "Report", "toys", "validate"]

_HOMES = {"AgreementError": "report", "Report": "report", "toys": "", "validate": "validation"}


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for: `cpwl --help` should not wait for torch."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'bridges' has no attribute {name!r}")
    home = _HOMES[name]
    return (
        getattr(import_module(f"bridges.{home}"), name) if home else import_module("bridges.toys")
    )


def __dir__() -> list[str]:
    """List what can be asked for, imported or not."""
    return sorted({*globals(), *__all__})
