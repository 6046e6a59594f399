"""Where the exact engine and the estimates meet: `validate`, toys, the demo, the `cpwl` command.

The only package that may import both `cpwl` and `approx`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridges import networks
    from bridges.validation import AgreementError, Report, validate

__all__ = ["AgreementError", "Report", "networks", "validate"]


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for: `cpwl --help` should not wait for torch."""
    from importlib import import_module

    if name == "networks":
        return import_module("bridges.networks")
    if name in __all__:
        return getattr(import_module("bridges.validation"), name)
    raise AttributeError(f"module 'bridges' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List what can be asked for, imported or not."""
    return sorted({*globals(), *__all__})
