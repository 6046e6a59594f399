"""Result of the section on the output density."""

from __future__ import annotations

from dataclasses import dataclass

from bridges.validation.densities.balls import Balls
from bridges.validation.densities.nearest import Nearest
from bridges.validation.densities.rejection import Samples
from bridges.validation.findings import Row
from cpwl.arrays import Floats
from cpwl.density import Entropy


@dataclass(frozen=True, eq=False)
class Densities:
    """Agreement of densities, entropies and samples on a slice.

    Attributes
    ----------
    rows : tuple of Row
    entropy : Entropy
        The exact one.
    balls : Balls or None
        Samples counted in balls of the image, and the exact density there.
    nearest : Nearest or None
        The entropy estimated from nearest neighbours; None for P > 3.
    samples : Samples or None
        Points uniform on the image.
    corners : (M, P) float64 ndarray
        Of the domain.

    Where every cell is squeezed there is no density, and nothing but the exact entropy.
    """

    rows: tuple[Row, ...]
    entropy: Entropy
    balls: Balls | None
    nearest: Nearest | None
    samples: Samples | None
    corners: Floats
