"""The arrays of a lattice while it is cut: opened with some room, grown, and closed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cpwl.arrays import EPS, Floats, Ints, Ragged, pattern_kernels
from cpwl.engine.columns import Columns
from cpwl.engine.space import cutting_kernels as kernels
from cpwl.engine.space.lattice import Lattice, compact
from cpwl.engine.work import TooLargeError

BATCH = 64
# Arrays grow by this factor while there is room, and to this many entries at least.
_GROWTH = 2.0
_FEWEST = 1024


class Judge(Protocol):
    """The part of `cpwl.engine.rational.Arbiter` that cutting needs."""

    exact: bool

    def add(self, parents: NDArray, stage: int, unit: NDArray, value: Floats, /) -> int:
        """Define vertices on edges, and return the first one's number."""
        ...

    def signs(
        self, vertices: NDArray, stage: int, unit: NDArray, value: Floats, /
    ) -> NDArray[np.int8]:
        """Return the sign of each vertex on a column."""
        ...

    def points(self, vertices: NDArray, /) -> Floats:
        """Return the coordinates of vertices."""
        ...


@dataclass(eq=False)
class Level:
    """Faces of one dimension while they are cut; arrays have room for more than ``count``."""

    count: int
    end: int  # of the items in use
    start: Ints
    size: NDArray[np.int32]
    items: NDArray[np.int32]
    pos: NDArray[np.uint64]
    neg: NDArray[np.uint64]
    place: NDArray[np.int32]
    found: NDArray[np.int32]  # workspace
    flat: NDArray[np.int32]  # faces of one number lie in one flat, see `kernels.Faces`
    newest: NDArray[np.int32]  # workspace


@dataclass(eq=False)
class Vertices:
    """Vertices while edges are cut; ``values`` starts with column ``dropped``."""

    count: int
    dropped: int
    points: Floats
    error: Floats
    likely: Floats
    names: Ints
    rounds: NDArray[np.int32]  # how often values were interpolated from interpolated ones
    values: Floats
    pos: NDArray[np.uint64]
    neg: NDArray[np.uint64]
    unsure: NDArray[np.uint64]
    mark: NDArray[np.int32]  # workspace


@dataclass(eq=False)
class Sweep:
    """Everything that changes while a stage is cut, and what all columns need."""

    columns: Columns
    judge: Judge
    evaluate: Callable[[Floats], Floats]
    room: int
    extent: float  # of the domain
    rounding: Floats  # (K,) bound on the rounding of one interpolation
    most: Floats  # (K,) what errors are taken to be at most where nothing is proven
    first_bit: int  # of the stage
    vertices: Vertices
    levels: list[Level]  # entry k - 1: dimension k
    line: NDArray[np.int32]  # (edges, 2) ends of the straight line that the edge is a part of
    bit: NDArray[np.int32]  # (facets,)
    words: NDArray[np.uint64]  # (cells, batches) bits of the batches that are done
    touched: int = 0  # columns of the batch that are zero at some vertex
    undecided: int = 0
    broken: int = 0


def rows_of(level: Level) -> kernels.Faces:
    """Hand the faces of a level to the kernels."""
    return kernels.Faces(
        start=level.start,
        size=level.size,
        items=level.items,
        pos=level.pos,
        neg=level.neg,
        place=level.place,
        flat=level.flat,
        newest=level.newest,
    )


def signs_of(vertices: Vertices) -> kernels.Vertices:
    """Hand vertices, with their values and signs, to the kernels."""
    return kernels.Vertices(
        points=vertices.points,
        error=vertices.error,
        likely=vertices.likely,
        rounds=vertices.rounds,
        values=vertices.values,
        pos=vertices.pos,
        neg=vertices.neg,
        unsure=vertices.unsure,
    )


def errors_of(sweep: Sweep, batch: int) -> kernels.Errors:
    """Hand the error bounds of a batch of columns to the kernels."""
    mine = slice(BATCH * batch, BATCH * (batch + 1))
    columns = sweep.columns
    return kernels.Errors(
        columns.slack[mine], sweep.rounding[mine], columns.lipschitz[mine], sweep.most[mine]
    )


def open_sweep(
    lattice: Lattice,
    values: Floats,
    columns: Columns,
    evaluate: Callable[[Floats], Floats],
    judge: Judge,
    room: int,
) -> Sweep:
    """Open a lattice for cutting; arrays that only grow are borrowed until they do."""
    n = len(lattice.points)
    vertices = Vertices(
        count=n,
        dropped=0,
        points=lattice.points,
        error=lattice.error,
        likely=lattice.likely,
        names=lattice.names,
        rounds=np.zeros(n, np.int32),
        values=values,
        pos=np.zeros(n, np.uint64),
        neg=np.zeros(n, np.uint64),
        unsure=np.zeros(n, np.uint64),
        mark=np.full(n, -1, np.int32),
    )
    levels = [_open_level(faces) for faces in lattice.faces]
    batches = -(-values.shape[1] // BATCH)
    proven = np.full(len(columns.unit), np.inf)
    return Sweep(
        columns=columns,
        judge=judge,
        evaluate=evaluate,
        room=room,
        extent=float(np.ptp(lattice.points, axis=0).max()),
        rounding=4 * EPS * np.abs(values).max(axis=0),
        most=proven if judge.exact else columns.tolerance,
        first_bit=64 * lattice.patterns.shape[1],
        vertices=vertices,
        levels=levels,
        line=levels[0].items.reshape(-1, 2).copy(),
        bit=lattice.facet_bit,
        words=np.zeros((levels[-1].count, batches), np.uint64),
    )


def _open_level(faces: Ragged) -> Level:
    """Open the faces of one dimension for cutting."""
    count = len(faces.offsets) - 1
    return Level(
        count=count,
        end=len(faces.items),
        start=faces.offsets[:-1].copy(),
        size=np.diff(faces.offsets).astype(np.int32),
        items=faces.items.copy(),
        pos=np.zeros(count, np.uint64),
        neg=np.zeros(count, np.uint64),
        place=np.full(count, kernels.WHOLE, np.int32),
        found=np.empty(count, np.int32),
        flat=np.arange(count, dtype=np.int32),
        newest=np.full(count, -1, np.int32),
    )


# --- room --------------------------------------------------------------------------------------


class _Need(NamedTuple):
    """Arrays of a holder that must have room for as many entries."""

    holder: object
    names: tuple[str, ...]
    entries: int


_OF_FACE = ("start", "size", "pos", "neg", "place", "found", "flat", "newest")
_OF_VERTEX = (
    "points",
    "error",
    "likely",
    "names",
    "rounds",
    "values",
    "pos",
    "neg",
    "unsure",
    "mark",
)


def reserve(
    sweep: Sweep, column: int, found: list[NDArray[np.int32]], sizes: list[int], touching: bool
) -> None:
    """Make room for all that a column can add."""
    v, levels = sweep.vertices, sweep.levels
    needs = [_Need(v, _OF_VERTEX, v.count + len(found[0]))]
    faces = [level.count + len(rows) for level, rows in zip(levels, found, strict=True)]
    items = [
        level.end + 2 * (n + len(rows)) for level, n, rows in zip(levels, sizes, found, strict=True)
    ]
    for k in range(1, len(levels)):
        rows, level = found[k], levels[k]
        faces[k - 1] += len(rows)
        items[k - 1] += sizes[k]
        if touching:  # flat faces as well, each of them one of a face of the boundary
            items[k - 1] += kernels.count_second(
                rows, level.start, level.size, level.items, levels[k - 1].size
            )
    for level, n, m in zip(levels, faces, items, strict=True):
        needs += [_Need(level, _OF_FACE, n), _Need(level, ("items",), m)]
    facets = needs[0].entries if len(levels) == 1 else faces[-2]
    needs += [
        _Need(sweep, ("line",), faces[0]),
        _Need(sweep, ("bit",), facets),
        _Need(sweep, ("words",), faces[-1]),
    ]
    short = [need for need in needs if need.entries > len(getattr(need.holder, need.names[0]))]
    if not short:
        return
    kept = sum(_bytes(need) for need in needs if need not in short)
    grown = sum(_bytes(need, need.entries) for need in short)
    moving = max(getattr(need.holder, name).nbytes for need in short for name in need.names)
    if kept + grown + moving > sweep.room:
        raise TooLargeError(kept + grown + moving)
    factor = min(_GROWTH, (sweep.room - kept - moving) / grown)
    fewest = _FEWEST if factor == _GROWTH else 0
    for need in short:
        for name in need.names:
            _grow(need.holder, name, max(int(factor * need.entries), fewest), column)


def _bytes(need: _Need, entries: int | None = None) -> int:
    """Size of arrays as they are, or with a number of entries."""
    arrays = [getattr(need.holder, name) for name in need.names]
    n = len(arrays[0]) if entries is None else entries
    return n * sum(array.itemsize * prod(array.shape[1:]) for array in arrays)


def _grow(holder: object, name: str, length: int, column: int) -> None:
    """Move an array to a larger place; of the values only the columns that are still needed."""
    old = getattr(holder, name)
    if name == "values" and isinstance(holder, Vertices):
        old = old[:, column - holder.dropped :]
        holder.dropped = column
    new = np.empty((length, *old.shape[1:]), old.dtype)
    new[: len(old)] = old
    setattr(holder, name, new)


# --- the end -----------------------------------------------------------------------------------


def close_sweep(sweep: Sweep, patterns: NDArray[np.uint64], varies: NDArray[np.bool_]) -> Lattice:
    """Give all arrays the size that they have, and the columns that vary their bits."""
    v, levels = sweep.vertices, sweep.levels
    v.values = v.values[:0]
    n = levels[-1].count
    words = sweep.words[:n]
    new_bit = np.where(varies, np.cumsum(varies) - 1, -1)
    if not varies.all():
        target = np.full(BATCH * words.shape[1], -1)
        target[: len(varies)] = new_bit
        source, words = words, np.empty((n, -(-int(varies.sum()) // BATCH)), np.uint64)
        nothing = np.zeros(words.shape[1], np.uint64)
        pattern_kernels.spread_bits(source, target, nothing, 0, n, words)
    n_facets = v.count if len(levels) == 1 else levels[-2].count
    bit = sweep.bit[:n_facets].copy()
    mine = bit >= sweep.first_bit
    bit[mine] = sweep.first_bit + new_bit[bit[mine] - sweep.first_bit]
    patterns = np.hstack([patterns[levels[-1].flat[:n]], words])
    faces = []
    while levels:
        level = levels.pop(0)
        faces.append(compact(level.start[: level.count], level.size[: level.count], level.items))
    return Lattice(
        points=v.points[: v.count].copy(),
        error=v.error[: v.count].copy(),
        likely=v.likely[: v.count].copy(),
        names=v.names[: v.count].copy(),
        faces=tuple(faces),
        facet_bit=bit,
        patterns=patterns,
    )
