"""Table of the descriptors: the one list that plots, exports and the command line read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from numpy.typing import NDArray

from cpwl.descriptors.sizes import image_volumes, volumes
from cpwl.descriptors.spectra import (
    Spectrum,
    condition_number,
    local_rank,
    local_scaling,
    rank,
    spectrum,
)

if TYPE_CHECKING:
    from cpwl.partition import Partition


class Descriptor(NamedTuple):
    """One number per cell, and what tables and pictures call it.

    Attributes
    ----------
    name : str
        Its key in `DESCRIPTORS`, and its column in a table.
    function : callable
        From a partition, and its `Spectrum` where that is at hand, to an array (C,).
    label : str
        What the axis or colour bar of a picture says.
    unit : str
        Of the numbers; empty for pure numbers.
    definition : str
        One sentence.
    needs : {"cells", "maps"}
        Whether the cells alone tell it, or their affine maps, hence a partition with its network.
        Every descriptor is defined in any number P of dimensions.
    """

    name: str
    function: Callable[[Partition, Spectrum | None], NDArray[Any]]
    label: str
    unit: str
    definition: str
    needs: Literal["cells", "maps"]


_TABLE = (
    Descriptor(
        name="psi",
        function=lambda partition, source: local_scaling(source or partition),
        label=r"local scaling $\psi$ in the slice",
        unit="nats",
        definition="Sum of the logarithms of the non-zero singular values of the cell's map from "
        "slice coordinates.",
        needs="maps",
    ),
    Descriptor(
        name="nu",
        function=lambda partition, source: local_rank(source or partition),
        label=r"local rank $\nu$ in the slice",
        unit="",
        definition="Exponential of the entropy of these singular values, divided by their sum.",
        needs="maps",
    ),
    Descriptor(
        name="condition",
        function=lambda partition, source: condition_number(source or partition),
        label="condition number",
        unit="",
        definition="Largest over smallest singular value of the map, infinite where that is 0.",
        needs="maps",
    ),
    Descriptor(
        name="rank",
        function=lambda partition, source: rank(source or partition),
        label="rank of the map",
        unit="",
        definition="Number of the non-zero singular values of the cell's map.",
        needs="maps",
    ),
    Descriptor(
        name="volume",
        function=lambda partition, _: volumes(partition),
        label="volume in the slice",
        unit="slice coordinates^P",
        definition="Length, area or volume of the cell in slice coordinates.",
        needs="cells",
    ),
    Descriptor(
        name="image_volume",
        function=image_volumes,
        label="volume of the image",
        unit="output coordinates^P",
        definition="P-dimensional volume of the cell's image: volume times exp(psi), or 0 where "
        "the map has a rank below P.",
        needs="maps",
    ),
)

DESCRIPTORS: Mapping[str, Descriptor] = MappingProxyType({entry.name: entry for entry in _TABLE})
"""Every descriptor by its name; a new one is a new entry of the table and its function."""


def describe(
    partition: Partition,
    names: Iterable[str] = tuple(DESCRIPTORS),
    *,
    source: Spectrum | None = None,
) -> dict[str, NDArray[Any]]:
    """Return descriptors by name, one array entry per cell, from one pass over the maps.

    Parameters
    ----------
    partition : Partition
        With its network, unless only "volume" is asked for.
    names : str or iterable of str
        Of "psi", "nu", "condition", "rank", "volume", "image_volume".
    source : Spectrum, optional
        `spectrum(partition)`, where it is at hand.

    Returns
    -------
    dict of str to (C,) ndarray
        In the order of `names`.

    Raises
    ------
    ValueError
        Another name.

    Examples
    --------
    >>> import torch
    >>> import cpwl
    >>> fold = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU())
    >>> _ = torch.nn.init.constant_(fold[0].weight, 2.0), torch.nn.init.zeros_(fold[0].bias)
    >>> network = cpwl.Network.from_torch(fold, (1,))
    >>> partition = cpwl.subdivide(network, cpwl.segment([-1.0], [3.0]), progress=False)
    >>> cpwl.describe(partition, ["rank", "volume", "image_volume"])
    {'rank': array([0, 1]), 'volume': array([1., 3.]), 'image_volume': array([0., 6.])}
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    if unknown := [name for name in names if name not in DESCRIPTORS]:
        raise ValueError(
            f"Expected descriptors among {', '.join(DESCRIPTORS)}, got {', '.join(unknown)}. "
            "Give other columns as arrays."
        )
    chosen = [DESCRIPTORS[name] for name in names]
    if source is None and any(entry.needs == "maps" for entry in chosen):
        source = spectrum(partition)
    return {entry.name: entry.function(partition, source) for entry in chosen}
