"""Descriptors by name: the one list that plots, exports and the command line read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from cpwl.descriptors.sizes import image_volumes, volumes
from cpwl.descriptors.spectra import Spectrum, condition_number, local_rank, local_scaling, spectrum

if TYPE_CHECKING:
    from cpwl.partition import Partition


DESCRIPTORS = ("psi", "nu", "condition", "rank", "volume", "image_volume")


def describe(
    partition: Partition,
    names: Iterable[str] = DESCRIPTORS,
    *,
    source: Spectrum | None = None,
) -> dict[str, NDArray[Any]]:
    """Return descriptors by name, one array entry per cell, from one pass over the maps.

    Parameters
    ----------
    partition : Partition
        With its network, unless only "volume" is asked for.
    names : iterable of str
        Of "psi", "nu", "condition", "rank", "volume", "image_volume".
    source : Spectrum, optional
        `spectrum(partition)`, where it is at hand.

    Raises
    ------
    ValueError
        Another name.
    """
    names = tuple(names)
    if unknown := [name for name in names if name not in DESCRIPTORS]:
        raise ValueError(
            f"Expected descriptors among {', '.join(DESCRIPTORS)}, got {', '.join(unknown)}. "
            "Give other columns as arrays."
        )
    if source is None and set(names) - {"volume"}:
        source = spectrum(partition)

    def column(name: str) -> NDArray[Any]:
        if name == "volume" or source is None:
            return volumes(partition)
        if name == "psi":
            return local_scaling(source)
        if name == "nu":
            return local_rank(source)
        if name == "condition":
            return condition_number(source)
        return source.rank if name == "rank" else image_volumes(partition, source)

    return {name: column(name) for name in names}
