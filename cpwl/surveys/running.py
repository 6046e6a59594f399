"""Surveys tile by tile, in this process or on a cluster: `survey`."""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from tqdm import tqdm

from cpwl.arrays import require_at_least
from cpwl.descriptors import DESCRIPTORS
from cpwl.domain import Domain, in_shape
from cpwl.engine import HowProven, require_proof
from cpwl.errors import require_kind
from cpwl.export import imported
from cpwl.network import Network, require_captured
from cpwl.surveys import store as stores
from cpwl.surveys.measurement import Arrays, Task, cut_of, measure, status_of
from cpwl.surveys.tiles import Tile, even_cuts, halves, is_box
from cpwl.surveys.totals import Survey, joined

if TYPE_CHECKING:
    from distributed import Client

_COLUMNS = ("psi", "nu", "rank", "volume")
_PATIENCE = 10.0  # seconds for a first worker to be there


def survey(
    network: Network,
    domain: Domain,
    *,
    tiles: int | tuple[int, ...] | Literal["auto"] = "auto",
    maps: bool = True,
    store: str | os.PathLike[str] | None = None,
    cells: bool | Iterable[str] = False,
    client: Client | None = None,
    memory: int = 2 * 2**30,
    proof: HowProven = "auto",
    progress: bool = True,
) -> Survey:
    """Count and measure every cell on a domain that has too many of them for the memory.

    The domain is cut into tiles, each is enumerated by `subdivide`, what is additive is kept and
    the cells are dropped. A cell that several tiles have a piece of is counted once.

    Parameters
    ----------
    network : Network
        The captured network.
    domain : Domain
        A segment, a polygon, or a box in three dimensions and more.
    tiles : "auto", int or tuple of P int
        Tiles along each axis, or along every axis. "auto": halves of halves, until a tile has at
        most some 10^5 cells, by those of a few small boxes, and fits into the memory; those of a
        store that exists.
    maps : bool
        Without the cells' maps there are no psi, nu, regions and image volume, which take most of
        the time for networks of many outputs.
    store : path, optional
        A folder for what is done, on any mounted file system. Calling again with the same arguments
        does what is missing, and what did not fit into the memory; what a process that was killed
        had done is kept but for the tile in work. One process at a time.
    cells : bool or iterable of names
        Also write all cells to ``store/cells``, a GeoParquet file a tile, with these descriptors
        (True: psi, nu, rank, volume). A row is a cell or, where `piece` is set, what a tile has of
        one; pieces of one cell have the same `id`.
    client : distributed.Client, optional
        Of Dask: tiles are enumerated by its workers (of one thread each), and Dask calls again what
        a dead worker had in work. Results are written by this process; cells by the workers, which
        must see the store under the same path.
    memory : int, default 2 GiB
        As for `subdivide`, of one tile.
    proof : {"auto", "float64", "full"}
        As for `subdivide`, of one tile. A network too large for rational arithmetic is proven in
        about 106 bits, if a tile has at most 2^30 signs, which can take a hundred times as long as
        "float64", where the numbers are counted but not proven.
    progress : bool
        Show a progress bar over the tiles on standard error.

    Returns
    -------
    Survey
        Counts equal to those of one `subdivide`, sums equal up to rounding.

    Raises
    ------
    ValueError
        A polytope of three dimensions or more that is no box, tiles that do not fit the domain,
        cells without a store, an unknown `proof`, or a store of another survey, another format or
        with damaged files.
    RuntimeError
        A scheduler or workers that lack cpwl, or have another version of it.
    ConnectionError
        A client without workers or a scheduler, or one that loses it for longer than Dask waits.
    BlockingIOError
        Another process writes to the store.
    OSError
        The disk is full, or the store cannot be written to: what was done is kept.
    ImportError
        Cells need ``cpwl[geo]``, a client ``cpwl[cluster]``.

    Notes
    -----
    Borders are lines on which no vertex is expected. Two pieces are one cell if every unit is on
    the same piece, as cells are maximal convex sets of one pattern; patterns of cells on borders
    are compared by 128 bits of BLAKE2. Both sides of every border are compared: `unmatched` counts
    cells that one of them does not have.

    A tile whose boxes have few cells may have many all the same: it is left, and halved, as soon as
    it has twice as many as are wanted.

    Memory: that of one tile, some 300 bytes a cell and 64 MiB for maps, and 60 bytes for each cell
    on a border. Cost: that of `subdivide` and `summary` (tests/benchmarks/bench_survey.py).

    Examples
    --------
    >>> import cpwl, pathlib, tempfile, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> square = cpwl.box([-1, -1], [1, 1])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = pathlib.Path(folder, "square")
    ...     _ = cpwl.survey(network, square, tiles=3, store=store, progress=False)
    ...     found = cpwl.survey(network, square, store=store, progress=False)  # reads
    >>> found.cells, found.facets.tolist(), round(found.entropy_bound, 4)
    (4, [4], 0.6931)
    """
    require_captured(network)
    require_kind(domain, Domain, "Make one with cpwl.box(lo, hi) or cpwl.polygon(corners).")
    domain = in_shape(domain, network.input_shape)
    require_at_least(1, memory, "memory", "Give it in bytes, for example memory=2**30.")
    if domain.dim > 2 and not is_box(domain):
        raise ValueError(
            f"Expected a box in {domain.dim} dimensions, got a polytope of "
            f"{len(domain.corners)} corners. Survey the box around it, or a plane."
        )
    require_proof(proof)
    given = _checked(tiles, domain)
    columns = _columns(cells, maps, domain)
    if columns and store is None:
        raise ValueError(
            "Expected a store for the cells, got none. Give a folder, or leave cells out."
        )
    folder = None if store is None else stores.folder_of(store)
    with nullcontext() if folder is None else stores.owned(folder):
        stored = None if folder is None else stores.read_header(folder)
        shape = given
        if given is None and stored and stored["tiles"] != "auto":
            shape = tuple(stored["tiles"])
        if folder is not None:
            options = {"maps": bool(maps), "cells": list(columns), "proof": proof}
            header = stores.header_of(network, domain, shape or "auto", options)
            if stored is None:
                stores.write_header(folder, header)
            else:
                stores.require_same(folder, stored, header)
            if columns:
                (folder / "cells").mkdir(exist_ok=True)

        def task(tile: Tile) -> Task:
            file = stores.cells_path(folder, tile.number).absolute() if folder and columns else None
            return Task(tile, shape is not None, bool(maps), columns, file, int(memory), proof)

        cuts = {} if shape is None else even_cuts(domain, shape)
        found: dict[int, tuple[Tile, Arrays]] = {}
        counted = 0

        def known(number: int) -> Arrays | None:
            if number in cuts:
                return {"cut": np.array(cuts[number])}
            if folder is None or not stores.result_path(folder, number).exists():
                return None
            made = stores.read_result(folder, number, cells=bool(columns))
            # there may be more memory now
            return None if cut_of(made) is None and status_of(made).needed else made

        def kept(tile: Tile, made: Arrays | None = None) -> list[Tile]:
            """Keep what is known of a tile, and return the parts of it that are to be done."""
            made = made or known(tile.number)
            if made is None:
                return [tile]
            cut = cut_of(made)
            if cut is not None:
                return [left for half in halves(tile, cut) for left in kept(half)]
            found[tile.number] = tile, made
            nonlocal counted
            counted += int(made["counts"][0])
            bar.set_postfix(tiles=len(found), cells=f"{counted:,}", refresh=False)
            share = tile.domain.volume / domain.volume if 0 < domain.volume < math.inf else 0.0
            bar.update(min(100 * share, bar.total - bar.n))
            return []

        with tqdm(
            total=100, desc="survey", disable=not progress,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}",
        ) as bar:  # fmt: skip
            queue = kept(Tile(1, domain))
            work = (
                _here(network, queue, task)
                if client is None
                else _there(client, network, queue, task)
            )
            with closing(work):
                for tile, made in work:
                    if folder is not None:
                        stores.write_result(folder, tile.number, made)
                    queue += kept(tile, made)
        return joined(domain, found)


Work = Generator[tuple[Tile, Arrays], None, None]


def _here(network: Network, queue: list[Tile], task: Callable[[Tile], Task]) -> Work:
    """Enumerate tiles one after another, with those that are added to the queue meanwhile."""
    while queue:
        tile = queue.pop()
        yield tile, measure(network, task(tile))


def _there(
    client: Client, network: Network, queue: list[Tile], task: Callable[[Tile], Task]
) -> Work:
    """Enumerate tiles on a cluster, as they come.

    The network is a task of its own, so that it is unpickled once a worker and again on one that
    takes the place of a dead one.
    """
    if not queue:
        return
    distributed = imported("distributed", "cluster")
    dask = imported("dask", "cluster")
    _check_client(client)
    data = pickle.dumps(network)
    # a network of many megabytes is sent once, which the warning is not about
    quiet = {"distributed.admin.large-graph-warning-threshold": len(data) + 2**24}
    with dask.config.set(quiet):
        there: Any = client.submit(_received, data, stores.code_version(), pure=False)
    tiles: dict[Any, Tile] = {}  # in work
    try:
        error = there.exception()
        _require_scheduler(client)  # which may have cancelled it
        # an older cpwl has no surveys; where the scheduler lacks cpwl, it says so in a sentence
        if isinstance(error, ImportError | AttributeError) or "deserialization" in str(error):
            raise RuntimeError(
                f"Expected a scheduler and workers that have cpwl {stores.code_version()}, got one "
                f"without it ({error}). Install the same version there."
            ) from error
        if error is not None:
            raise error
        completed = distributed.as_completed(loop=client.loop)
        while True:
            for tile in queue:
                future = client.submit(measure, there, task(tile), pure=False)
                tiles[future] = tile
                completed.add(future)
            queue.clear()
            if not tiles:
                return
            future = next(completed)
            try:
                made = future.result()
            except CancelledError:
                _require_scheduler(client)
                raise
            yield tiles.pop(future), made
    finally:
        if client.status == "running":
            client.cancel([*tiles, there])


def _require_scheduler(client: Client) -> None:
    if client.status != "running":
        raise ConnectionError(
            f"Expected a client with a scheduler, got one that is {client.status}. Call again with "
            "distributed.Client(address): in a store, what was done is kept."
        )


def _check_client(client: Any) -> None:
    """Refuse what is no client, and one that nothing would ever answer."""
    if not hasattr(client, "submit"):
        raise ValueError(
            f"Expected client as a distributed.Client, got {client!r}. Give "
            "distributed.Client('tcp://host:8786')."
        )
    _require_scheduler(client)
    try:
        client.wait_for_workers(1, timeout=_PATIENCE)
    except TimeoutError as error:
        raise ConnectionError(
            f"Expected workers on {client.scheduler.address}, got none within {_PATIENCE:g} s. "
            "Start some, and call again."
        ) from error


def _received(data: bytes, version: str) -> Network:
    """Restore a network on a worker of the same version."""
    mine = stores.code_version()
    if mine != version:
        raise RuntimeError(
            f"Expected workers of cpwl {version}, as the client has, got one of {mine}. Install "
            "the same version there."
        )
    return pickle.loads(data)


def _checked(tiles: Any, domain: Domain) -> tuple[int, ...] | None:
    """Return the tiles along each axis, or None for "auto"."""
    if isinstance(tiles, str) and tiles == "auto":
        return None
    one = isinstance(tiles, int | np.integer) and not isinstance(tiles, bool)
    try:
        given = (tiles,) * domain.dim if one else tuple(cast(Iterable[Any], tiles))
        shape = tuple(map(int, given))
        fits = len(shape) == domain.dim and min(shape) > 0 and shape == given
    except (TypeError, ValueError):
        fits, shape = False, ()
    if not fits:
        raise ValueError(
            f'Expected tiles="auto", a whole number above 0 or {domain.dim} of them, one an axis, '
            f"got {tiles!r}. tiles={(4,) * domain.dim} cuts every axis into four."
        )
    return shape


def _columns(cells: bool | Iterable[str], maps: bool, domain: Domain) -> tuple[str, ...]:
    """Return the descriptors of every cell that are written, none where no cells are."""
    if isinstance(cells, bool):
        names = _COLUMNS if cells else ()
        names = tuple(n for n in names if maps or DESCRIPTORS[n].needs == "cells")
    else:
        names = (cells,) if isinstance(cells, str) else tuple(cells)
    if unknown := [name for name in names if name not in DESCRIPTORS]:
        raise ValueError(
            f"Expected descriptors among {', '.join(DESCRIPTORS)} for the cells, got "
            f"{', '.join(map(str, unknown))}. cells=True writes {', '.join(_COLUMNS)}."
        )
    if not maps and any(DESCRIPTORS[name].needs == "maps" for name in names):
        raise ValueError(
            f"Expected descriptors that need no maps with maps=False, got {', '.join(names)}. "
            "Leave maps=False out, or write the volume alone."
        )
    if names and domain.dim > 2:
        raise ValueError(
            f"Expected a segment or a plane for files of cells, got {domain.dim} dimensions. "
            "Leave cells out."
        )
    if names:
        imported("geopandas", "geo")
        imported("pyarrow", "geo")
    return names
