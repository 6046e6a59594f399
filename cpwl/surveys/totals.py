"""Numbers of a whole domain from those of its tiles, with what lies on borders counted once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cpwl.arrays import Floats, Ints
from cpwl.domain import Domain
from cpwl.partition import Status
from cpwl.surveys.measurement import NU_BIN, PSI_BIN, Arrays, status_of
from cpwl.surveys.tiles import Tile


@dataclass(frozen=True, eq=False)
class Histogram:
    """Volume of the domain by the value of a descriptor, without empty bins.

    Parameters
    ----------
    centres : (n,) float64 ndarray
        Middles of the bins, ascending: multiples of the width.
    volumes : (n,) float64 ndarray
        Volume of the cells whose value is in each bin.
    width : float
        Of every bin.
    mean : float
        Weighted by volume, of the values themselves and not of the bins'. NaN where unknown.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> found = cpwl.survey(network, cpwl.box([-1, -1], [1, 1]), tiles=2, progress=False)
    >>> found.nu.centres.round(3).tolist(), found.nu.volumes.round(12).tolist()
    ([1.89, 2.0], [2.0, 2.0])
    """

    centres: Floats
    volumes: Floats
    width: float
    mean: float

    def quantile(self, level: float) -> float:
        """Return the lowest bin's centre that a share `level` of the volume does not exceed.

        Within half a width of `cpwl.summary`'s quantile; NaN where the values are unknown.
        """
        if not len(self.centres):
            return math.nan
        total = np.cumsum(self.volumes)
        at = np.searchsorted(total, level * total[-1])
        return float(self.centres[min(int(at), len(total) - 1)])

    def __repr__(self) -> str:
        """Summarise: there may be thousands of bins."""
        return f"Histogram({len(self.centres)} bins of {self.width:g}, mean {self.mean:.6g})"


@dataclass(frozen=True, eq=False)
class Survey:
    """Numbers of all cells of a network on a domain, each cell counted once.

    Parameters
    ----------
    domain : Domain
        The domain.
    tiles : mapping of int to Domain
        Its tiles by number, as in the column `tile` of a file of cells.
    status : Status
        As of a partition, the tiles' put together: complete and exact if every tile is, the signs
        and the uncut cells are sums. Also not exact where `unmatched` is not 0.
    unmatched : int
        Cells on the border of one tile that the tile beyond does not have. Above 0 only where signs
        are undecided, or a knot runs along the border; cells are then counted twice rather than
        not at all.
    cells : int
        The number of cells.
    facets : (stages,) int64 ndarray
        Pairs of cells that share a facet, by the stage of the unit between them, which
        `Partition.facet_unit` says. Two cells that share several facets are one pair.
    regions : float
        Connected sets of cells of one map (`cpwl.regions`); NaN without maps.
    volume : float
        Sum of the cells' volumes; that of the domain up to rounding.
    psi, nu : Histogram
        Of local scaling and local rank in the slice; without bins, and with a mean of NaN, where
        maps are unknown or float64 does not hold the volume.
    squeezed : float
        Share of the volume that the map takes to a rank below P; NaN without maps.
    total_image_volume : float
        Counted once per preimage; NaN without maps.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> found = cpwl.survey(network, cpwl.box([-1, -1], [1, 1]), tiles=(3, 2), progress=False)
    >>> found
    Survey(4 cells, 4 facets, 4 regions on 6 tiles, exact)
    """

    domain: Domain
    tiles: Mapping[int, Domain]
    status: Status
    unmatched: int
    cells: int
    facets: Ints
    regions: float
    volume: float
    psi: Histogram
    nu: Histogram
    squeezed: float
    total_image_volume: float

    @property
    def entropy_bound(self) -> float:
        """Upper bound on the entropy of the output for a uniform latent, in nats.

        The log volume plus the mean of psi, as `cpwl.summary` has it. It equals the "entropy" there
        wherever that is a number, up to rounding: where no two cells' images share volume. Where it
        is NaN there, because images overlap or may, this is a bound, which no survey makes sharp:
        cells of different tiles are not compared. -inf where a share of the volume is squeezed,
        NaN without maps.
        """
        if self.squeezed > 0:
            return -math.inf
        known = not math.isnan(self.psi.mean)
        return math.log(self.volume) + self.psi.mean if known else math.nan

    def __repr__(self) -> str:
        """Summarise."""
        state = (
            "exact" if self.status.exact else "complete" if self.status.complete else "INCOMPLETE"
        )
        counted = f"{self.cells:,} cells, {self.facets.sum():,} facets"
        if not math.isnan(self.regions):
            counted += f", {self.regions:,.0f} regions"
        tiles = "1 tile" if len(self.tiles) == 1 else f"{len(self.tiles):,} tiles"
        return f"Survey({counted} on {tiles}, {state})"


def joined(domain: Domain, found: Mapping[int, tuple[Tile, Arrays]]) -> Survey:
    """Put the results of all tiles together; the order of the sums is that of the tiles."""
    tiles, parts = map(list, zip(*(found[number] for number in sorted(found)), strict=True))
    keys, owner = _named(parts)
    sums = np.sum([part["sums"] for part in parts], axis=0)
    counts = np.sum([part["counts"] for part in parts], axis=0)
    volume = float(sums[0])
    # nothing is weighted by volumes that float64 does not hold
    known = 0 < volume < math.inf and not np.isnan(sums).any()
    if not known:
        sums = np.full_like(sums, np.nan)
    mean_psi, mean_nu, squeezed = (sums[1:4] / (volume or 1.0)).tolist()
    unmatched = _unmatched(tiles, parts)
    facets = np.sum([part["facets"] for part in parts], axis=0) - _cut_facets(parts, owner)
    regions = math.nan
    if known:
        regions = float(counts[1] - _joins(parts, owner, keys))
    return Survey(
        domain=domain,
        tiles={tile.number: tile.domain for tile in tiles},
        status=_status(parts, unmatched),
        unmatched=unmatched,
        cells=int(counts[0]) - len(owner) + keys,
        facets=facets,
        regions=regions,
        volume=volume,
        psi=_histogram(parts, "psi", PSI_BIN, mean_psi),
        nu=_histogram(parts, "nu", NU_BIN, mean_nu),
        squeezed=squeezed,
        total_image_volume=float(sums[4]),
    )


def _named(parts: list[Arrays]) -> tuple[int, Ints]:
    """Return how many cells lie on borders, and the number of each of their pieces."""
    every = np.concatenate([part["keys"] for part in parts])
    order = np.lexsort(every.T)
    new = np.ones(len(every), np.bool_)
    new[1:] = (every[order[1:]] != every[order[:-1]]).any(axis=1)
    number = np.empty(len(every), np.int64)
    number[order] = np.cumsum(new) - 1
    return int(new.sum()), number


def _starts(parts: list[Arrays]) -> Ints:
    """Return where each tile's border cells begin among all of them."""
    sizes = np.array([len(part["keys"]) for part in parts])
    return np.cumsum(sizes) - sizes


def _cut_facets(parts: list[Arrays], owner: Ints) -> Ints:
    """Return by how much facets that borders cut were counted too often, by stage."""
    starts = _starts(parts)
    pairs = [owner[part["pairs"] + start] for part, start in zip(parts, starts, strict=True)]
    stage = np.concatenate([part["pair_stages"] for part in parts])
    low, high = np.sort(np.concatenate(pairs), axis=1).T
    order = np.lexsort((stage, high, low))
    again = (np.diff(low[order]) == 0) & (np.diff(high[order]) == 0)
    return np.bincount(stage[order][1:][again], minlength=len(parts[0]["facets"]))


def _joins(parts: list[Arrays], owner: Ints, keys: int) -> int:
    """Return how many regions of tiles are lost where pieces of a cell are joined."""
    spread = max((int(part["regions"].max(initial=-1)) for part in parts), default=0) + 1
    sides = [part["regions"] + k * spread for k, part in enumerate(parts)]
    touched, region = np.unique(np.concatenate(sides), return_inverse=True)
    n = len(touched)
    links = coo_array((np.ones(len(owner), np.int8), (region, n + owner)), (n + keys, n + keys))
    return n - int(connected_components(links, directed=False)[0])


def _unmatched(tiles: list[Tile], parts: list[Arrays]) -> int:
    """Count the cells on cuts that are on one of their sides only."""
    sides: dict[int, dict[bool, set[bytes]]] = {}
    for tile, part in zip(tiles, parts, strict=True):
        keys = np.ascontiguousarray(part["keys"]).view("V16").ravel()
        bounds = pairwise(part["along_offsets"].tolist())
        for border, (start, stop) in zip(tile.borders, bounds, strict=True):
            here = sides.setdefault(border.cut, {}).setdefault(border.above, set())
            here.update(keys[part["along"][start:stop]].tolist())
    return sum(len(s[False] ^ s[True]) for s in sides.values() if len(s) == 2)


def _histogram(parts: list[Arrays], name: str, width: float, mean: float) -> Histogram:
    """Add the tiles' histograms."""
    bins = np.concatenate([part[f"{name}_bins"] for part in parts])
    weights = np.concatenate([part[f"{name}_volumes"] for part in parts])
    if math.isnan(mean):  # of some tiles only
        bins, weights = bins[:0], weights[:0]
    used, index = np.unique(bins, return_inverse=True)
    volumes = np.bincount(index, weights, minlength=len(used)).astype(np.float64)
    return Histogram(used * width, volumes, width, float(mean))


def _status(parts: list[Arrays], unmatched: int) -> Status:
    """Put the tiles' statuses together."""
    every = list(map(status_of, parts))
    complete = all(one.complete for one in every)
    return Status(
        complete=complete,
        exact=all(one.exact for one in every) and not unmatched,
        arbitrated=sum(one.arbitrated for one in every),
        undecided=sum(one.undecided for one in every),
        broken=sum(one.broken for one in every),
        needed=max(one.needed for one in every),
        stages=min(one.stages for one in every),
        refined=sum(one.refined for one in every),
    )
