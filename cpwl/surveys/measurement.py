"""What is kept of a tile: sums over its cells, and the cells on its inner borders by name.

A cell is a maximal convex set of one pattern, so pieces of one cell in several tiles have the same
pattern. It is written in a way that does not depend on the tile, and hashed to 128 bits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpwl.affine import over_maps
from cpwl.arrays import Floats, Ints, Ragged, take_rows
from cpwl.descriptors import (
    Spectrum,
    describe,
    local_rank,
    local_scaling,
    singular_values,
    spectrum_of,
    volumes,
)
from cpwl.dual import projected, regions_of
from cpwl.engine import HowProven, attempt, subdivide
from cpwl.export import to_geodataframe
from cpwl.files import atomic_path
from cpwl.network import Network
from cpwl.partition import Partition, Status
from cpwl.surveys.tiles import Border, Cut, Tile, fitting, middle

# Bins are centred at the multiples of these, where integer weights put psi and nu.
PSI_BIN, NU_BIN = 0.01, 0.001
_PIECES_AT_ONCE = 2**24
# A tile of so many cells takes some 100 MB; its border has a few per cent of them. One that has
# twice as many is halved. Patterns of many units take more than everything else.
_CELLS, _PATTERN_BYTES = 200_000, 256 * 2**20
# So often along every axis, and in all: where more cells meet in one point, all halves have them.
_HALVED, _HALVED_IN_ALL = 10, 30

Arrays = dict[str, NDArray[Any]]


class Task(NamedTuple):
    """What is done with one tile."""

    tile: Tile
    fixed: bool  # not to be halved, however many cells it has
    maps: bool
    columns: tuple[str, ...]  # descriptors of every cell, written to a file
    file: Path | None
    memory: int
    proof: HowProven


def measure(network: Network, task: Task) -> Arrays:
    """Enumerate a tile, write its cells where a file is given, and return what is kept of it.

    Returns
    -------
    dict of str to ndarray
        "cut": axis and line, of a tile to be halved, and nothing else. Otherwise

        - "counts": cells, and regions or -1; "status": that of the partition;
        - "facets" (stages,): neighbouring cells by the stage of the unit between them;
        - "sums": the volume of the cells and the integrals of psi, of nu, of 1 where squeezed and
          of exp(psi); NaN where maps are unknown;
        - "psi_bins", "psi_volumes", "nu_bins", "nu_volumes": histograms, without empty bins;
        - "keys" (B, 2): hashes of the cells on inner borders; "regions" (B,): their regions;
        - "pairs" (Q, 2): neighbours among these B; "pair_stages" (Q,);
        - "along", "along_offsets": which of the B lie on each border.
    """
    partition = _enumerated(network, task)
    if partition is None:
        return {"cut": np.array(middle(task.tile.domain))}
    with np.errstate(over="ignore", invalid="ignore"):  # of volumes that float64 does not hold
        return _measured(network, partition, task)


def _measured(network: Network, partition: Partition, task: Task) -> Arrays:
    """Return what is kept of a tile that was enumerated."""
    volume = volumes(partition)
    cells, along = _on_borders(partition, task.tile.borders)
    pairs, stages = _neighbours(partition)
    place = np.full(partition.num_cells, -1, np.int32)
    place[cells] = np.arange(len(cells))
    both = (place[pairs] >= 0).all(axis=1)
    made: Arrays = {
        "counts": np.array([partition.num_cells, -1]),
        "status": np.array(partition.status, np.int64),
        "facets": np.bincount(stages, minlength=network.num_stages),
        "sums": np.array([volume.sum(), *[np.nan] * 4]),
        "keys": keys_of(partition, cells),
        "regions": np.empty(0, np.int64),
        "pairs": place[pairs[both]],
        "pair_stages": stages[both].astype(np.int32),
        "along": np.concatenate([place[own] for own in along] or [np.empty(0, np.int32)]),
        "along_offsets": np.cumsum([0, *map(len, along)]),
    }
    psi = nu = np.empty(0)
    spectrum = None
    if task.maps and partition.status.complete:
        values, maps = over_maps(partition, singular_values, projected)
        found = regions_of(partition, maps)
        made["counts"][1], made["regions"] = found.count, found.index[cells]
        spectrum = spectrum_of(partition, values)
        psi, nu = local_scaling(spectrum), local_rank(spectrum)
        full = spectrum.rank == partition.dim
        image = np.where(full, np.exp(psi), 0.0)
        made["sums"] = np.array([volume @ x for x in (np.ones(len(psi)), psi, nu, ~full, image)])
    made["psi_bins"], made["psi_volumes"] = _binned(psi, volume, PSI_BIN)
    made["nu_bins"], made["nu_volumes"] = _binned(nu, volume, NU_BIN)
    if task.file is not None:
        _write_cells(partition, task, spectrum, cells, made["keys"])
    return made


def cut_of(made: Arrays) -> Cut | None:
    """Return where a tile is to be halved, None where it was enumerated."""
    return Cut(int(made["cut"][0]), float(made["cut"][1])) if "cut" in made else None


def status_of(made: Arrays) -> Status:
    """Return the status of the partition of a tile that was enumerated."""
    return Status(*made["status"].tolist())


def _enumerated(network: Network, task: Task) -> Partition | None:
    """Enumerate a tile, or return None where it is to be halved."""
    number, domain, _ = task.tile
    halved = number.bit_length() - 1
    # without units a tile is one cell
    few = network.num_units == 0 or halved >= min(_HALVED * domain.dim, _HALVED_IN_ALL)
    if task.fixed or few:
        return subdivide(network, domain, memory=task.memory, proof=task.proof, progress=False)
    wanted = max(1, min(_CELLS, 8 * _PATTERN_BYTES // max(1, network.num_units)))
    most = fitting(network, domain, wanted, task.memory)
    if most is None:
        return None
    found = attempt(network, domain, most, memory=task.memory, proof=task.proof)
    if found is not None and found.status.needed and math.isfinite(most[-1]):
        return None
    return found


def keys_of(partition: Partition, cells: Ints) -> NDArray[np.uint64]:
    """Return 128-bit hashes (n, 2) of cells' patterns, which are the same in every domain."""
    network = partition.network
    assert network is not None
    parent, piece, child = network.contests.T.astype(np.int64)
    found = []
    step = max(1, _PIECES_AT_ONCE // max(1, network.num_units))
    for start in range(0, len(cells), step):
        pieces = partition.pieces(cells[start : start + step])
        # a unit without effect is on piece 0, as where it varies: the losers of max-pooling
        row, lost = np.nonzero(pieces[:, parent] == piece)
        pieces[row, child[lost]] = 0
        rows = pieces.astype("<i4", copy=False)
        found += [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
    return np.frombuffer(b"".join(found), "<u8").astype(np.uint64).reshape(-1, 2)


def _on_borders(partition: Partition, borders: Iterable[Border]) -> tuple[Ints, list[Ints]]:
    """Return the cells with a facet on any of the borders, and on each of them."""
    outer = np.flatnonzero((partition.facet_cells < 0).any(axis=1))
    cell = partition.facet_cells[outer].max(axis=1).astype(np.int64)
    sizes, corners = take_rows(Ragged(partition.facet_offsets, partition.facet_corners), outer)
    starts = np.cumsum(sizes) - sizes
    along = []
    for _, axis, line, _ in borders:
        # computed between corners of the tile that lie on it, hence without rounding
        on = np.logical_and.reduceat(partition.points[corners, axis] == line, starts)
        along.append(np.unique(cell[on]))
    return np.unique(np.concatenate(along or [np.empty(0, np.int64)])), along


def _neighbours(partition: Partition) -> tuple[NDArray[np.int32], Ints]:
    """Return the pairs of cells (n, 2) that share a facet, and the stage of the unit between."""
    assert partition.network is not None
    inner = (partition.facet_cells >= 0).all(axis=1)
    pairs, unit = partition.facet_cells[inner], partition.facet_unit[inner]
    if partition.dim > 2 and len(partition.network.contests):  # they may share several
        _, first = np.unique(np.sort(pairs, axis=1), axis=0, return_index=True)
        pairs, unit = pairs[first], unit[first]
    return pairs, np.searchsorted(partition.network.stage_offsets, unit, side="right") - 1


def _binned(values: Floats, weights: Floats, width: float) -> tuple[Ints, Floats]:
    """Return the numbers of the bins in use, ascending, and the weight in each."""
    bins, index = np.unique(np.rint(values / width).astype(np.int64), return_inverse=True)
    added = np.bincount(index, weights[: len(values)], minlength=len(bins))
    return bins, added.astype(np.float64)


def _write_cells(
    partition: Partition,
    task: Task,
    spectrum: Spectrum | None,
    pieces: Ints,
    keys: NDArray[np.uint64],
) -> None:
    """Write all cells of a tile as GeoParquet; pieces of one cell have one negative id."""
    number = task.tile.number
    name = (number << 32) + np.arange(partition.num_cells)
    name[pieces] = -1 - (keys[:, 0] >> np.uint64(1)).astype(np.int64)
    piece = np.zeros(partition.num_cells, np.bool_)
    piece[pieces] = True
    columns: Arrays = {
        "tile": np.full(partition.num_cells, number),
        "id": name,
        "piece": piece,
    }
    columns |= describe(partition, task.columns, source=spectrum)
    frame = to_geodataframe(partition, columns)
    assert task.file is not None
    with atomic_path(task.file) as part:
        frame.to_parquet(part)
