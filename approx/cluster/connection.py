"""Clients of a scheduler or of processes on this machine, and clients that cannot be used."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Client

_PATIENCE = 10.0  # seconds for a scheduler to answer, and for a first worker to be there


@contextmanager
def connected(
    scheduler: str | None = None, workers: int | None = None, *, patience: float = _PATIENCE
) -> Iterator[Client]:
    """Connect to a scheduler, or start `workers` processes of one thread on this machine.

    Raises
    ------
    ImportError
        distributed is missing (extra ``cpwl[cluster]``).
    ValueError
        An address that is none.
    OSError
        Nothing answers there.
    """
    distributed = imported()
    if scheduler is None:
        with (
            # a worker's share of the memory is not watched: batches are sized by what is free
            distributed.LocalCluster(
                n_workers=workers, threads_per_worker=1, dashboard_address=":0"
            ) as cluster,
            distributed.Client(cluster, set_as_default=False) as client,
        ):
            yield client
        return
    try:
        client = distributed.Client(scheduler, timeout=patience, set_as_default=False)
    except ValueError as error:
        raise ValueError(
            f"Expected the address of a Dask scheduler such as tcp://host:8786, got '{scheduler}': "
            f"{error}."
        ) from error
    except (OSError, TimeoutError) as error:
        raise ConnectionError(
            f"Expected a Dask scheduler at {scheduler}, got no answer within {patience:g} s: check "
            "the address and that it runs (dask scheduler)."
        ) from error
    with client:
        yield client


def check_client(client: Any, *, patience: float = _PATIENCE) -> None:
    """Refuse what is no client, one that is closed, and one that has no worker.

    Raises
    ------
    ImportError, ValueError, ConnectionError
    """
    distributed = imported()
    if not isinstance(client, distributed.Client) or client.asynchronous:
        kind = "an asynchronous one" if isinstance(client, distributed.Client) else repr(client)
        raise ValueError(
            f"Expected client= as a distributed.Client, got {kind}: give "
            "distributed.Client('tcp://host:8786')."
        )
    if client.status != "running":
        raise ConnectionError(
            f"Expected a client with a scheduler, got one that is {client.status}: connect anew "
            "with distributed.Client(address)."
        )
    deadline = time.monotonic() + patience
    while not client.nthreads():
        if time.monotonic() > deadline:
            raise ConnectionError(
                f"Expected workers on {client.scheduler.address}, got none within {patience:g} s: "
                "start some, or wait for them with client.wait_for_workers(1)."
            )
        time.sleep(0.1)


def imported() -> Any:
    """Import dask.distributed, or say which extra has it."""
    try:
        import distributed
    except ImportError as error:
        raise ImportError(
            f"Expected dask.distributed for a cluster, got {error}: pip install 'cpwl[cluster]'."
        ) from error
    return distributed
