"""Pieces of work on two workers. Functions of workers are nested: they are then sent by value."""

from __future__ import annotations

import errno
import os
import pickle
from types import SimpleNamespace

import pytest
from dask import config
from distributed import Client, LocalCluster

from approx.cluster import check_client, connected, crew, each, one
from approx.cluster.site import worker_side


def squares(*, address, threads, memory, rank):
    import os

    return lambda number, payload: (os.getpid(), payload**2)


def nested(function):
    """Return a `make` of a piece's function, sent by value."""
    return lambda **place: lambda number, payload: function(place, number, payload)


def test_every_piece_is_written_once_and_setup_is_done_once_a_worker(client: Client) -> None:
    def make(**place):
        import os

        made = [0]

        def piece(number, payload):
            made[0] += 1
            return os.getpid(), place, made[0], payload**2

        return piece

    def modules(dask_worker):
        import sys

        plugins = [n for n in dask_worker.plugins if n.startswith("piece-")]
        return sorted({"torch", "approx"} & sys.modules.keys()), plugins

    found, before = {}, client.run(modules)
    with crew(client, make, packages=()) as team:
        each(team, ((n, n) for n in range(40)), lambda n, r: found.setdefault(n, r))
    assert {n: r[3] for n, r in found.items()} == {n: n**2 for n in range(40)}
    by_worker = {r[0]: r[1] for r in found.values()}
    assert len(by_worker) == 2
    assert sorted(place["rank"] for place in by_worker.values()) == [0, 1]
    assert {place["threads"] for place in by_worker.values()} == {1}
    # as many calls of one function as pieces: none was set up again
    assert sum(max(r[2] for r in found.values() if r[0] == pid) for pid in by_worker) == 40
    # the workers import neither this package nor torch for it, and forget what they had
    assert client.run(modules) == before


def told_rank(*, address, threads, memory, rank):
    return rank


def test_a_host_without_locks_does_not_count_its_workers(monkeypatch) -> None:
    fcntl = pytest.importorskip("fcntl", reason="Windows has none")
    asked = []

    def locked(*arguments):
        asked.append(arguments)
        assert len(asked) < 3
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", locked)
    site = worker_side()[0](pickle.dumps(told_rank), {})
    limits = {
        "state": SimpleNamespace(nthreads=1),
        "memory_manager": SimpleNamespace(memory_limit=None),
    }
    site.setup(SimpleNamespace(address="here", plugins={}, **limits))
    assert site.ready() == 0


def test_pieces_are_read_as_workers_are_free_and_forgotten_when_written(client: Client) -> None:
    read, behind, held = [], [], []

    def pieces():
        for number in range(60):
            read.append(number)
            yield number, bytes(1000)

    def write(number, result):
        behind.append(len(read) - len(behind))
        held.append(len(client.futures))

    with crew(client, nested(lambda place, number, payload: payload), packages=()) as team:
        each(team, pieces(), write)
    assert len(behind) == 60
    assert max(behind) <= 4
    assert max(held) <= 20  # they are let go in another thread


def test_a_worker_that_dies_costs_its_piece(client: Client, tmp_path) -> None:
    once = str(tmp_path / "died")

    def piece(place, number, payload):
        import os

        if number == 3 and not os.path.exists(once):
            open(once, "w").close()
            os._exit(1)
        return number

    found = []
    with crew(client, nested(piece), packages=()) as team:
        each(team, ((n, None) for n in range(8)), lambda n, r: found.append(r))
    assert os.path.exists(once)
    assert sorted(found) == list(range(8))


def test_a_piece_that_kills_every_worker_ends_the_run_and_keeps_the_rest(client: Client) -> None:
    def piece(place, number, payload):
        import os

        if number == 3:
            os._exit(1)
        return number

    found = []
    # whichever of the two that a worker has is done again with the other is named
    with (
        crew(client, nested(piece), packages=()) as team,
        pytest.raises(RuntimeError, match="workers that live, got several that died at piece"),
    ):
        each(team, ((n, None) for n in range(4)), lambda n, r: found.append(r))
    assert set(found) <= {0, 1, 2}
    assert len(found) == len(set(found))


def test_a_function_that_fails_on_one_worker_only(client: Client) -> None:
    bad = min(client.nthreads())

    def piece(place, number, payload):
        if place["address"] == bad:
            raise ArithmeticError("no GPU memory")
        return number

    found = []
    with (
        crew(client, nested(piece), packages=()) as team,
        pytest.warns(RuntimeWarning, match=f"an error on {bad}.*did it: ArithmeticError: no GPU"),
    ):
        each(team, ((n, None) for n in range(12)), lambda n, r: found.append(r))
    assert sorted(found) == list(range(12))
    assert team.left_out == {bad}


def test_a_piece_that_fails_everywhere_is_its_own_error_and_the_rest_is_kept(client) -> None:
    def piece(place, number, payload):
        if number == 5:
            raise LookupError("latent 5")
        return number

    found = []
    with crew(client, nested(piece), packages=()) as team, pytest.raises(LookupError) as raised:
        each(team, ((n, None) for n in range(8)), lambda n, r: found.append(r))
    assert str(raised.value) == "latent 5"
    assert "On the worker tcp://" in raised.value.__notes__[0]
    assert "in piece\nLookupError: latent 5" in raised.value.__notes__[0]
    assert set(found) >= {0, 1, 2, 3}
    assert not team.left_out


def test_an_error_that_cannot_be_sent_is_told(client: Client) -> None:
    def piece(place, number, payload):
        class OwnError(Exception):
            def __init__(self, a, b):
                super().__init__(f"{a} {b}")

        raise OwnError(1, 2)

    with crew(client, nested(piece), packages=()) as team, pytest.raises(
        RuntimeError, match="OwnError: 1 2"
    ):  # fmt: skip
        one(team, None)


@pytest.mark.parametrize("package", ["cpwl", "no-such-package"])
def test_workers_with_another_version(client: Client, package: str, monkeypatch) -> None:
    monkeypatch.setattr("approx.cluster.pieces._version", lambda name: "7.0")
    with (
        crew(client, squares, packages=[package]) as team,
        pytest.warns(RuntimeWarning, match="It gets no more of this run"),
        pytest.raises(ImportError, match=f"Expected {package} 7.0 as where the run was started, "
                      "got (0|none).*install the same versions"),
    ):  # fmt: skip
        one(team, 2)


def test_workers_without_a_module(client: Client) -> None:
    def make(**place):
        import a_module_that_is_not_there  # noqa: F401

    with (
        crew(client, make, packages=()) as team,
        pytest.warns(RuntimeWarning, match="It gets no more"),
        pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"),
    ):
        one(team, 2)


def test_what_cannot_be_sent(client: Client) -> None:
    lock = __import__("threading").Lock()
    with (
        pytest.raises(
            ValueError, match="Expected a decoder that can be sent to workers, got TypeE"
        ),
        crew(client, lambda **place: lock, packages=()),
    ):
        pass


def test_an_interrupted_writer_leaves_nothing_running(client: Client) -> None:
    def write(number, result):
        raise KeyboardInterrupt

    with crew(client, squares, packages=()) as team, pytest.raises(KeyboardInterrupt):
        each(team, ((n, n) for n in range(9)), write)
    assert not client.futures


def test_payloads_that_are_collections_are_computed_on_the_cluster(client: Client) -> None:
    da = pytest.importorskip("dask.array")
    values = da.arange(12, chunks=5) * 2
    found = []
    with crew(client, nested(lambda place, n, payload: payload.tolist()), packages=()) as team:
        each(team, [(0, values[:7]), (1, values[7:])], lambda n, r: found.append((n, r)))
    assert sorted(found) == [(0, list(range(0, 14, 2))), (1, list(range(14, 24, 2)))]


def test_clients_that_cannot_be_used(client: Client) -> None:
    with pytest.raises(ValueError, match=r"Expected client= as a distributed\.Client, got 'tcp"):
        check_client("tcp://127.0.0.1:1")
    with Client(client.scheduler.address, set_as_default=False) as closed:
        pass
    with pytest.raises(ConnectionError, match="got one that is closed: connect anew"):
        check_client(closed)
    with (
        pytest.raises(ConnectionError, match=r"Expected a Dask scheduler at tcp://127.0.0.1:9, got "
                      r"no answer within 0.2 s: check"),
        connected("tcp://127.0.0.1:9", patience=0.2),
    ):  # fmt: skip
        pass
    with pytest.raises(ValueError, match="Expected the address of a Dask sch"), connected("://:"):
        pass


def test_a_cluster_without_workers() -> None:
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as empty,
        Client(empty, set_as_default=False) as client,
        pytest.raises(ConnectionError, match=r"Expected workers on .*, got none within 0\.1 s"),
    ):
        check_client(client, patience=0.1)


def test_a_scheduler_that_goes_away() -> None:
    def slow(place, number, payload):
        import time

        time.sleep(60 if number else 0)

    with (
        config.set({"distributed.comm.timeouts.connect": "1s"}),
        LocalCluster(n_workers=1, dashboard_address=":0") as local,
    ):
        client = Client(local, set_as_default=False)
        found = []

        def write(number, result):
            found.append(number)
            local.sync(local.scheduler.close)

        with crew(client, nested(slow), packages=()) as team, pytest.raises(
            ConnectionError, match="connect anew and call again, what is done is kept"
        ):  # fmt: skip
            each(team, ((n, None) for n in range(4)), write)
        client.close()
    assert found == [0]
