"""Pieces of work handed to workers, and their results to one writer."""

from __future__ import annotations

import pickle
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from approx.cluster.connection import check_client, imported
from approx.cluster.site import worker_side

if TYPE_CHECKING:
    from distributed import Client

# pieces a worker has: the one that it does, and the next
_AT_A_WORKER = 2
# workers on which a piece fails, or is in doubt, before that is taken for its own
_SEVERAL = {"work": 3, "done": 2}
_LOOK = 1.0  # seconds after which the workers are counted again


class Place(NamedTuple):
    """Where a worker is, as its `make` is told by these names.

    Attributes
    ----------
    address : str
        Of the worker.
    threads : int
        That the worker was given.
    memory : int or None
        Bytes that it may have, None without a limit.
    rank : int
        Its number among the workers of its host, from 0; 0 where dask-cuda has chosen its GPU.
    """

    address: str
    threads: int
    memory: int | None
    rank: int


class Make(Protocol):
    """Sets a worker up; can be pickled."""

    def __call__(
        self, *, address: str, threads: int, memory: int | None, rank: int
    ) -> Callable[[int, Any], Any]:
        """Return the function of a piece: its number and its payload go in, its result out."""
        ...


@dataclass(frozen=True, eq=False)
class Crew:
    """Workers of a client that were told how to set themselves up.

    Attributes
    ----------
    client : distributed.Client
    name : str
        Of the plugin, and of the tasks.
    left_out : set of str
        Addresses of workers on which something failed that did not fail elsewhere.
    """

    client: Client
    name: str
    piece: Callable[[str, int, Any], Any]
    left_out: set[str] = field(default_factory=set)


class _Task(NamedTuple):
    """A piece that is on its way, and what went wrong with it so far, by worker."""

    number: int
    payload: Any
    failed: dict[str, Exception]


@contextmanager
def crew(
    client: Client, make: Make, *, label: str = "piece", packages: Sequence[str] = ("cpwl", "torch")
) -> Iterator[Crew]:
    """Tell the workers of a client, and those that come later, how to set themselves up.

    Parameters
    ----------
    client : distributed.Client
        With at least one worker.
    make : callable
        Called once a worker, when its first piece comes. It is pickled once.
    label : str
        What the dashboard calls a piece.
    packages : sequence of str
        Distributions of which a worker must have the version that is installed here.

    Yields
    ------
    Crew
        For `one` and `each`; the workers forget what they set up at the end.

    Raises
    ------
    ValueError
        No client, or a `make` that cannot be pickled.
    ConnectionError
        A client that is closed, or without workers.
    """
    check_client(client)
    imported()
    import cloudpickle

    try:
        sent = cloudpickle.dumps(make)
    except Exception as error:
        raise ValueError(
            f"Expected a decoder that can be sent to workers, got {type(error).__name__}: {error}. "
            "Give its path, or a factory of it."
        ) from error
    site, piece = worker_side()
    name = f"{label}-{uuid.uuid4().hex[:8]}"
    client.register_plugin(site(sent, {package: _version(package) for package in packages}), name)
    try:
        yield Crew(client, name, piece)
    finally:
        if client.status == "running":
            client.unregister_worker_plugin(name)


def one(crew: Crew, payload: Any) -> Any:
    """Return the result of a single piece, done on any worker that can."""
    found: list[Any] = []
    each(crew, [(0, payload)], lambda number, result: found.append(result))
    return found[0]


def each(
    crew: Crew,
    pieces: Iterable[tuple[int, Any]],
    write: Callable[[int, Any], object],
    *,
    doubt: Callable[[Any], str] = lambda result: "",
) -> None:
    """Have every piece done by some worker, and each result written here.

    Parameters
    ----------
    crew : Crew
        From `crew`.
    pieces : iterable of (int, object)
        Numbers and payloads, read as workers are free. A payload that is a Dask collection, or an
        entry of a tuple that is one, is computed on the cluster, and goes from there to the piece's
        worker.
    write : callable
        Called with a piece's number and result, in this thread and in the order in which they come.
    doubt : callable
        Says of a result why it may be the worker's fault, or nothing. What one worker leaves in
        doubt is done by another, and written as it is where that one's is in doubt as well.

    Raises
    ------
    Exception
        A piece's own, once it failed on three workers, or on all where there are fewer; with a note
        of the workers' traceback. Whatever `write` raises. Results before it have been written.
    RuntimeError
        A piece whose workers died, more often than Dask's ``allowed-failures``.
    ConnectionError
        The scheduler is gone.

    Notes
    -----
    At most two pieces a worker are on their way, so that memory does not grow with their number. A
    piece whose worker dies is given to another by Dask. One that fails on a worker is tried on
    others; where it does not fail there, a warning names the worker, which gets no more of them.
    """
    distributed = imported()
    client, waiting = crew.client, iter(pieces)
    finished = distributed.as_completed(loop=client.loop, with_results=True, raise_errors=False)
    tasks: dict[Any, _Task] = {}
    workers, counted = _addresses(client), time.monotonic()
    try:
        while True:
            if time.monotonic() > counted + _LOOK:
                workers, counted = _addresses(client), time.monotonic()
            able = max(1, len(set(workers) - crew.left_out))
            while len(tasks) < _AT_A_WORKER * able and (following := next(waiting, None)):
                number, payload = following
                _submit(crew, _Task(number, _computed(client, payload), {}), tasks, finished)
            if not tasks:
                return
            future, result = next(finished)
            task = tasks.pop(future)
            # and not the future's status: it may be lost by now, with its worker
            if isinstance(result, BaseException) or isinstance(result[0], type):
                raise _given_up(client, task.number, result) from None
            stage, address, value = result
            del future, result  # the worker may forget it
            reason = doubt(value) if stage == "done" else ""
            if stage == "done" and not reason:
                _blame(crew, task, address)
                write(task.number, value)
                continue
            error = RuntimeError(reason) if stage == "done" else _error(value, address)
            task.failed[address] = error
            if stage == "setup":
                _leave_out(crew, address, error)
            workers, counted = _addresses(client), time.monotonic()
            rest = set(workers) - crew.left_out - task.failed.keys()
            if rest and (stage == "setup" or len(task.failed) < _SEVERAL[stage]):
                _submit(crew, task, tasks, finished, sorted(rest))
            elif stage == "done":
                write(task.number, value)
            else:
                raise error
    finally:
        if client.status == "running":
            client.cancel(list(tasks))


def _submit(
    crew: Crew, task: _Task, tasks: dict[Any, _Task], finished: Any, on: list[str] | None = None
) -> None:
    if on is None and crew.left_out:
        on = sorted(set(_addresses(crew.client)) - crew.left_out)
    with warnings.catch_warnings():
        # Dask would have large payloads scattered; what is scattered is lost with its worker
        warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
        future = crew.client.submit(
            crew.piece,
            crew.name,
            task.number,
            task.payload,
            key=f"{crew.name}-{uuid.uuid4().hex}",
            workers=on,
            # these may all have gone by then
            allow_other_workers=on is not None,
        )
    tasks[future] = task
    finished.add(future)


def _addresses(client: Any) -> list[str]:
    return list(client.nthreads())


def _computed(client: Client, payload: Any) -> Any:
    """Return a payload with futures in place of Dask collections."""
    from dask.base import is_dask_collection

    if type(payload) is tuple:
        return tuple(_computed(client, part) for part in payload)
    return client.compute(payload) if is_dask_collection(payload) else payload


def _blame(crew: Crew, task: _Task, done_on: str) -> None:
    """Leave workers out on which a piece failed that is done now."""
    for address, error in task.failed.items():
        if address not in crew.left_out:
            _leave_out(crew, address, error, f", and {done_on} did it")


def _leave_out(crew: Crew, address: str, error: Exception, instead: str = "") -> None:
    if address in crew.left_out:
        return
    crew.left_out.add(address)
    warnings.warn(
        f"Expected the same of every worker, got an error on {address}{instead}: "
        f"{type(error).__name__}: {' '.join(str(error).split())} It gets no more of this run: look "
        "at its log.",
        RuntimeWarning,
        stacklevel=4,
    )


def _error(value: tuple[bytes, str], address: str) -> Exception:
    kept, text = value
    try:
        error = pickle.loads(kept)
    except Exception:  # of a package that only the worker has
        error = RuntimeError(text.strip().splitlines()[-1])
    error.add_note(f"On the worker {address}:\n{text}")
    return error


def _given_up(client: Client, number: int, result: Any) -> Exception:
    """Return the error of a piece that Dask gave up, or that its scheduler left."""
    if isinstance(result, BaseException):
        return ConnectionError(
            f"Expected the scheduler to stay, got {type(result).__name__} for piece {number} "
            f"({client.status}): connect anew and call again, what is done is kept."
        )
    error = result[1]
    if type(error).__name__ != "KilledWorker":
        return error
    return RuntimeError(
        f"Expected workers that live, got several that died at piece {number}, which may take more "
        "memory than they have: give them more, or a smaller batch, and call again. Dask says: "
        f"{error}"
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
