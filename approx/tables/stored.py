"""Tables in stores: written chunk by chunk, and read column by column."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from approx.spectra import named
from approx.stores import Store, StoreError, Writer, imported, open_group, writing
from approx.tables import jobs
from approx.tables.chunks import Job, Work
from approx.tables.loop import DescribeError
from approx.tables.plan import Options
from approx.tables.rows import summary
from approx.tables.table import KNOTS, LONG_NAMES, SUBSCRIPTED, Descriptors

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["StoredDescriptors", "describe_to", "open_store"]


class StoredDescriptors(Descriptors):
    """A table in a store: `Descriptors` whose columns are read where they are asked for.

    Made by ``describe(..., store=...)`` and `open_store`. It is the store at one moment: rows that
    a run adds later are not in it. Chunks are compared with their checksums as they are read.
    Rows of chunks that are not done, between others that are, are NaN (0, False).

    Attributes
    ----------
    store : Store
        Header, chunks and columns.

    All others are those of `Descriptors`.

    Examples
    --------
    >>> import tempfile, torch
    >>> from approx import describe, open_store
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = f"{folder}/run.zarr"
    ...     table = describe(
    ...         torch.nn.Linear(2, 3), torch.rand(50, 2), neighbourhood=None, progress=False,
    ...         store=run, batch=10, chunk=20,
    ...     )
    ...     table[20:25].psi.shape, open_store(run).complete, table.to_pandas(["psi"]).shape
    ((5,), True, (50, 1))
    """

    store: Store

    def __init__(self, store: Store) -> None:
        object.__setattr__(self, "store", store)
        found = [marker.details for marker in store.markers.values()]
        object.__setattr__(self, "_summary", summary(found, complete=store.complete))

    def __getattr__(self, name: str) -> Any:
        """Read a column, or tell what belongs to the whole table."""
        if name.startswith("_") or name == "store":  # not there yet: being copied
            raise AttributeError(name)
        if name in self._summary:
            return self._summary[name]
        if name in KNOTS and name not in self.store.names():
            return None
        if name in LONG_NAMES:
            return _frozen(self.store.read(name))
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __len__(self) -> int:
        return self.store.rows

    def __getitem__(self, rows: slice) -> Descriptors:
        """Return some rows as a table in memory; of its failures those in them."""
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(f"Expected a slice of rows in their order, got step {step}: take 1.")
        stop = max(start, stop)
        chunk, markers = self.store.chunk, self.store.markers
        inside = [
            marker.details
            for number, marker in markers.items()
            if start < (number + 1) * chunk and number * chunk < stop
        ]
        try:
            found = summary(inside, complete=self.complete)
        except (ValueError, IndexError):  # no row of them could be described
            found = self._summary | {"note": "", "suggested_radius": np.nan}
        cut = any(row % chunk for row in (start, stop) if row < len(self))
        if cut and found["continued"]:
            found["continued"] = None
        found["failures"] = tuple(
            (number - start, why) for number, why in self.failures if start <= number < stop
        )
        columns = {name: self.store.read(name, start, stop) for name in self.store.names()}
        return Descriptors(**(dict.fromkeys(KNOTS) | columns), **found)

    def __repr__(self) -> str:
        psi, nu = (named(name, self.subscript) for name in SUBSCRIPTED)
        of = "" if self.store.latents is None else f" of {self.store.latents:,}"
        state = "complete" if self.complete else "unfinished"
        return (
            f"StoredDescriptors({self.store.done:,}{of} latents in {self.store.at.url}, {psi} and "
            f"{nu} ({self.ran()}), k={self.k}, {self.dtype}, seed={self.seed}, {state})"
        )

    def fallen(self) -> int:
        """Return for how many latents "predict" made all k products."""
        return sum(marker.details["fell_back"] for marker in self.store.markers.values())

    def load(self) -> Descriptors:
        """Return the whole table in memory."""
        return self[:]

    def columns(self) -> Mapping[str, NDArray[Any]]:
        """Return the columns (N,) by name, each read where it is asked for."""
        return _Columns(self)

    def to_pandas(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return a DataFrame of some columns, by default all, as `Descriptors.to_pandas`."""
        pd = imported("pandas")
        data = {name: getattr(self, name) for name in columns or self.columns()}
        frame = pd.DataFrame(data, index=pd.RangeIndex(len(self), name="latent"))
        frame.attrs = self.attributes()
        return frame

    def to_xarray(self) -> xr.Dataset:
        """Return a Dataset whose columns are read where they are asked for, by xarray itself.

        It does not compare checksums.
        """
        xr = imported("xarray")
        opened = xr.open_zarr(self.store.at.place, consolidated=False, chunks=None)
        found = opened[self.store.names()].isel(latent=slice(0, len(self)))
        found = found.assign_coords(latent=np.arange(len(self)))
        for name in found.data_vars:
            found[name].attrs = self.described(str(name))
        found.attrs = self.attributes()
        return found


class _Columns(Mapping[str, Any]):
    """Columns of a store by name; none is kept."""

    def __init__(self, table: StoredDescriptors) -> None:
        self._table = table

    def __getitem__(self, name: str) -> NDArray[Any]:
        return _frozen(self._table.store.read(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.store.names())

    def __len__(self) -> int:
        return len(self._table.store.names())

    def __contains__(self, name: object) -> bool:
        return name in self._table.store.names()


def open_store(store: str | os.PathLike[str]) -> StoredDescriptors:
    """Open the table that a run has written, or is still writing.

    Parameters
    ----------
    store : str or path
        Where it is: a folder, or a URL that fsspec opens (``s3://...``).

    Returns
    -------
    StoredDescriptors
        The rows that are done. Nothing but headers is read yet.

    Raises
    ------
    StoreError
        No store is there; nothing is done in it yet; a newer format; a damaged header.
    ImportError
        If zarr is not installed.

    Examples
    --------
    >>> import tempfile, torch
    >>> from approx import describe, open_store
    >>> options = {"neighbourhood": None, "seed": 0, "progress": False}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = f"{folder}/run.zarr"
    ...     z = torch.zeros(3, 2)
    ...     table = describe(torch.nn.Linear(2, 3), z, store=run, **options)
    ...     open_store(run).psi.shape, open_store(run).store.complete
    ((3,), True)
    """
    imported("zarr")
    found = open_group(store)
    if not found.markers:
        raise StoreError(
            f"Expected a store with rows at {found.at.url}, got one without: wait for its first "
            "chunk, or describe again to it."
        )
    return StoredDescriptors(found)


def describe_to(
    store: str | os.PathLike[str],
    opening: Callable[[Options], AbstractContextManager[Job]],
    count: int | None,
    options: Options,
    *,
    chunk: int | Literal["auto"],
    own_seed: bool,
    total: int | None,
) -> StoredDescriptors:
    """Describe what a store lacks. `own_seed` tells that the seed was drawn, and not given."""
    jobs.check_chunk(chunk)
    with writing(store) as writer:
        if writer.header is not None and own_seed:
            options = replace(options, seed=writer.header["seed"])
        with opening(options) as job:
            if writer.header is None:
                writer.start(job.begin(chunk))
            else:
                fixed = {"batch": options.batch, "chunk": chunk}
                fixed = {name: value for name, value in fixed.items() if value != "auto"}
                asked = job.asked(writer.header) | fixed
                first = asked.pop("first_latent")
                writer.compare(asked)
                if first != writer.header.get("first_latent"):
                    raise _other_latents(writer, "from the first on")
                if count is not None:
                    _check_count(writer, count)
            return _filled(writer, job, count, total if count is None else count, options.progress)


def _filled(
    writer: Writer, job: Job, count: int | None, total: int | None, progress: bool
) -> StoredDescriptors:
    """Do what is missing, and say what is there when that ends before its time."""
    try:
        with tqdm(total=total, disable=not progress, unit="latent", dynamic_ncols=True) as bar:
            _fill(writer, job, count, bar.update)
    except KeyboardInterrupt:
        if (partial := _partial(writer)) is None:
            raise
        warnings.warn(
            f"Interrupted after {partial.store.done} latents: these are in {writer.at.url}, "
            "and the same call goes on after them.",
            RuntimeWarning,
            stacklevel=4,
        )
        return partial
    except StoreError:
        raise
    except Exception as error:
        if (partial := _partial(writer)) is None:
            raise
        raise DescribeError(error, partial, writer.at.url) from error
    return StoredDescriptors(writer.store())


def _partial(writer: Writer) -> StoredDescriptors | None:
    """Return what is there, None without a row that could be described."""
    if all(marker.details["table"] is None for marker in writer.markers.values()):
        return None
    return StoredDescriptors(writer.store())


def _fill(writer: Writer, job: Job, expected: int | None, told: Callable[[int], object]) -> None:
    """Go through all latents, and do the chunks that are missing."""
    assert writer.header is not None
    size, wrote = int(writer.header["chunk"]), False

    def write(number: int, found: Work) -> None:
        nonlocal wrote
        done, start = writer.markers.get(number), number * size
        if done is not None and done.rows > found.rows:
            _check_count(writer, start + found.rows)
        if done is not None and found.before != done.digest:
            raise _other_latents(writer, f"in rows {start:,} to {start + done.rows - 1:,}")
        if found.columns is None or found.details is None:
            return
        if expected is not None:
            writer.expect(expected)
        writer.commit(
            number, found.digest, found.columns, found.details, described=described(found.details)
        )
        wrote = True

    known = {number: marker.rows for number, marker in writer.markers.items()}
    count = job.work(writer.header, known, write, told)
    _check_count(writer, count)
    if wrote or writer.latents != count:
        writer.expect(count)
        writer.finish(StoredDescriptors(writer.store()).attributes())


def _other_latents(writer: Writer, where: str) -> StoreError:
    return StoreError(
        f"Expected the latents that {writer.at.url} was made of, got others {where}: give those "
        "(of a field the same anchors, resolution and margin), or choose another place for another "
        "run."
    )


def _check_count(writer: Writer, count: int) -> None:
    rows = writer.store().rows
    if rows > count:
        raise StoreError(
            f"Expected the {rows:,} latents that {writer.at.url} has rows for, or these and more, "
            f"got {count:,}: give them, or choose another place for another run."
        )


def described(details: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return the columns' attributes, from the details of a chunk."""
    definition = (details["table"] or {}).get("definition")
    return {
        name: {"long_name": long}
        | ({"definition": definition} if definition and name in SUBSCRIPTED else {})
        for name, long in LONG_NAMES.items()
    }


def _frozen(values: NDArray[Any]) -> NDArray[Any]:
    values.flags.writeable = False
    return values
