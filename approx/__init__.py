"""Matrix-free estimates of the same descriptors, for networks too large to enumerate.

This package imports neither `cpwl` nor `bridges`: an estimate that agrees with the exact engine is
evidence only because the two share no code. `import-linter` enforces it.
"""

from typing import TYPE_CHECKING, Any

from approx.complexity import Knots, knots, neighbourhood
from approx.decoder import DecoderError, Factory, Whitening, bind, whitening
from approx.fields import along, field, latents_at
from approx.operator import JacobianOperator
from approx.sketches import Sketch
from approx.spectra import Spectrum, draw_seed, spectrum
from approx.stores import StoreError
from approx.tables import (
    DescribeError,
    Descriptors,
    Images,
    StoredDescriptors,
    concatenate,
    describe,
    open_store,
)

if TYPE_CHECKING:
    from approx import diffusion, plot, populations, sampling  # noqa: F401 - see `__getattr__`
    from approx.populations import level_sets, order, score_sets

__all__ = [
    "DecoderError",
    "DescribeError",
    "Descriptors",
    "Factory",
    "Images",
    "JacobianOperator",
    "Knots",
    "Sketch",
    "Spectrum",
    "StoreError",
    "StoredDescriptors",
    "Whitening",
    "along",
    "bind",
    "concatenate",
    "describe",
    "draw_seed",
    "field",
    "knots",
    "latents_at",
    "level_sets",
    "neighbourhood",
    "open_store",
    "order",
    "score_sets",
    "spectrum",
    "whitening",
]


def __getattr__(name: str) -> Any:
    """Import a package that takes longer than all the rest, or what is of it, when asked for.

    These are `plot`, `diffusion`, `populations` and `sampling`, with matplotlib and scipy.
    """
    import importlib

    if name in ("diffusion", "plot", "populations", "sampling"):
        return importlib.import_module(f"approx.{name}")
    if name in ("level_sets", "order", "score_sets"):
        return getattr(importlib.import_module("approx.populations"), name)
    raise AttributeError(f"module 'approx' has no attribute {name!r}")
