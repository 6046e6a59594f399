"""Meeting place of the exact engine and the estimates: `validate`, `Monitor`, and networks.

A module and a domain go into `validate`; a `Report` of how well both sides agree comes out. A
module in training goes into `Monitor`; a table over its steps comes out. The only package that may
import both `cpwl` and `approx`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridges import networks
    from bridges.monitor import Monitor, MonitorError
    from bridges.validation import AgreementError, Report, validate

__all__ = ["AgreementError", "Monitor", "MonitorError", "Report", "networks", "validate"]


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for: `cpwl --help` should not wait for torch."""
    if name == "networks":
        return import_module("bridges.networks")
    if name in ("Monitor", "MonitorError"):
        return getattr(import_module("bridges.monitor"), name)
    if name in __all__:
        return getattr(import_module("bridges.validation"), name)
    raise AttributeError(f"module 'bridges' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List what can be asked for, imported or not."""
    return sorted({*globals(), *__all__})
