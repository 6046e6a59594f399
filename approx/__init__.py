"""Matrix-free estimates of the same descriptors, for networks too large to enumerate.

This package imports neither `cpwl` nor `bridges`: an estimate that agrees with the exact engine is
evidence only because the two share no code. `import-linter` enforces it.
"""

from typing import TYPE_CHECKING, Any

from approx.complexity import Knots, knots, neighbourhood
from approx.decoder import DecoderError, Whitening, bind, whitening
from approx.fields import along, field, latents_at
from approx.operator import JacobianOperator
from approx.sketches import Sketch
from approx.spectra import Spectrum, draw_seed, spectrum
from approx.tables import DescribeError, Descriptors, concatenate, describe

if TYPE_CHECKING:
    from approx import diffusion, plot  # noqa: F401 - for type checkers; see `__getattr__`

__all__ = [
    "DecoderError",
    "DescribeError",
    "Descriptors",
    "JacobianOperator",
    "Knots",
    "Sketch",
    "Spectrum",
    "Whitening",
    "along",
    "bind",
    "concatenate",
    "describe",
    "draw_seed",
    "field",
    "knots",
    "latents_at",
    "neighbourhood",
    "spectrum",
    "whitening",
]


def __getattr__(name: str) -> Any:
    """Import `approx.plot` and `approx.diffusion` when they are asked for.

    matplotlib takes longer than all the rest.
    """
    if name in ("diffusion", "plot"):
        import importlib

        return importlib.import_module(f"approx.{name}")
    raise AttributeError(f"module 'approx' has no attribute {name!r}")
