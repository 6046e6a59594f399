"""What a cluster costs: against independent processes, and with 64 workers that only sleep.

    CPWL_DATA=... pytest tests/benchmarks/bench_cluster.py -s
    CPWL_DATA=... CPWL_FIELD=128 pytest tests/benchmarks/bench_cluster.py -s -k field
    DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD=forkserver pytest ... -k sleep

The last starts 64 workers in seconds instead of minutes.

Ratios of runs that take turns. The field of 128 x 128 pixels takes hours on two cores even with
k = 16, and is a smaller one unless CPWL_FIELD says otherwise.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROUNDS = int(os.environ.get("CPWL_ROUNDS", "3"))
TAEF2, SMALL = ("taef2", 8, 2, 2), ("small", 20_000, 250, 2500)  # latents, batch, chunk
QUIET = {"neighbourhood": (4, 1e-5), "seed": 0, "progress": False}


def make(name: str, latents: int, side: int = 16) -> tuple[Any, Any]:
    """Make a decoder and latents."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    if name == "taef2":
        from bridges.networks.pretrained import taef2_decoder

        return taef2_decoder(), torch.randn(latents, 32, side, side)
    layers = [nn.Linear(32, 512), nn.SiLU(), nn.Linear(512, 512), nn.SiLU(), nn.Linear(512, 784)]
    return nn.Sequential(*layers).eval(), torch.randn(latents, 32)


def independent(name: str, latents: int, batch: int, folder: Path) -> list[float]:
    """Run two processes of one thread, each with half of the latents; when each began and ended."""
    folder.mkdir()
    command = [sys.executable, __file__, name, str(latents), str(batch), str(folder)]
    path = os.pathsep.join(filter(None, sys.path))
    alone = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    both = [
        subprocess.Popen([*command, str(n)], env=alone, stdout=subprocess.PIPE, text=True)
        for n in (0, 1)
    ]
    while len(list(folder.glob("ready*"))) < 2:
        assert all(process.poll() is None for process in both)
        time.sleep(0.05)
    (folder / "go").touch()
    return [time for process in both for time in json.loads(process.communicate()[0])]


def half(name: str, latents: int, batch: int, folder: Path, number: int) -> None:
    """Describe half of the latents without store or scheduler, once both processes are ready."""
    import torch

    from approx import describe

    torch.set_num_threads(1)
    decoder, z = make(name, latents)
    mine = z[: latents // 2] if number == 0 else z[latents // 2 :]
    describe(decoder, mine[:batch], batch=batch, **QUIET)
    (folder / f"ready{number}").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    begun = time.time()
    describe(decoder, mine, batch=batch, **QUIET)
    print(json.dumps([begun, time.time()]))


@pytest.fixture
def client():
    """Two workers of one thread."""
    from approx.cluster import connected

    with connected(workers=2) as found:
        found.wait_for_workers(2)
        yield found


@pytest.mark.parametrize("case", [TAEF2, SMALL], ids=["taef2", "small"])
def test_two_workers_against_two_processes(case: tuple, client: Any, tmp_path: Path) -> None:
    from approx import describe

    name, latents, batch, chunk = case
    decoder, z = make(name, latents)
    ours, theirs, one = [], [], tmp_path / "first"
    describe(decoder, z[: 4 * chunk], client=client, store=one, batch=batch, chunk=chunk, **QUIET)
    for n in range(ROUNDS):
        found = independent(name, latents, batch, tmp_path / f"alone{n}")
        theirs.append(max(found) - min(found))
        begun = time.time()
        describe(decoder, z, client=client, store=tmp_path / f"run{n}", batch=batch, chunk=chunk,
                 **QUIET)  # fmt: skip
        ours.append(time.time() - begun)
    share = min(theirs) / min(ours)
    print("\n| decoder | latents | chunk | two processes s | two workers s | throughput |\n"
          + "|---" * 6 + f"|\n| {name} | {latents:,} | {chunk:,} | {min(theirs):.2f} "
          f"| {min(ours):.2f} | {share:.3f} |", flush=True)  # fmt: skip
    assert share >= 0.95


def test_64_workers_that_sleep(tmp_path: Path) -> None:
    """A chunk sleeps as long as a GPU would work on it; its rows go to one store."""
    import dask
    from distributed import Client, LocalCluster

    from approx.cluster import crew, each
    from approx.stores import writing

    workers, rows, columns = int(os.environ.get("CPWL_WORKERS", "64")), 256, 18

    def sleeper(**place: Any) -> Any:
        def work(number: int, payload: Any) -> Any:
            import sys
            import time

            import numpy as np

            seconds, rows, columns = payload
            for _ in range(8):  # batches
                time.sleep(seconds / 8)
            assert "torch" not in sys.modules
            return {f"c{n}": np.full(rows, float(number)) for n in range(columns)}

        return work

    # watching itself costs a worker more than sleeping does
    quiet = {"distributed.worker.profile.enabled": False,
             "distributed.admin.tick.interval": "2s", "distributed.admin.tick.limit": "1m",
             "distributed.admin.system-monitor.interval": "10s"}  # fmt: skip
    print("\n| seconds a chunk | chunks | ideal s | took s | of the ideal |\n" + "|---" * 5 + "|")
    shares = {}
    with (
        dask.config.set(quiet),
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
        crew(client, sleeper, packages=()) as team,
    ):
        client.wait_for_workers(workers)
        each(team, ((n, (0.1, 1, 1)) for n in range(4 * workers)), lambda n, r: None)  # set up
        for seconds in (16.0, 4.0, 1.0):
            chunks = workers * max(3, min(12, int(16 / seconds)))
            with writing(tmp_path / f"{seconds}.zarr") as writer:
                writer.start({"chunk": rows})
                writer.expect(chunks * rows)
                begun = time.perf_counter()
                each(
                    team,
                    ((n, (seconds, rows, columns)) for n in range(chunks)),
                    lambda n, found, writer=writer: writer.commit(n, "", found, {}),
                )
                took = time.perf_counter() - begun
                values = writer.store().read("c0")
            assert np.array_equal(values, np.repeat(np.arange(chunks), rows))
            ideal = chunks * seconds / workers
            shares[seconds] = ideal / took
            print(f"| {seconds} | {chunks} | {ideal:.1f} | {took:.1f} | {ideal / took:.3f} |",
                  flush=True)  # fmt: skip
    assert shares[16.0] >= 0.9


def test_a_field_with_a_worker_killed_twice(client: Any, tmp_path: Path) -> None:
    from approx import field

    pixels = int(os.environ.get("CPWL_FIELD", "8"))
    decoder, z = make("taef2", 3, side=8)
    settings = {"resolution": (pixels, pixels), "batch": 4, "chunk": 8, "method": "paper", "k": 16,
                **QUIET}  # fmt: skip
    begun = time.time()
    one = field(decoder, z, store=tmp_path / "one.zarr", **settings)
    alone = time.time() - begun
    stop, killed = threading.Event(), []

    def kill() -> None:
        for _ in range(2):
            if stop.wait(alone / 6):
                return
            pid = next(iter(client.run(os.getpid).values()))
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    begun = time.time()
    two = field(decoder, z, store=tmp_path / "two.zarr", client=client, **settings)
    took = time.time() - begun
    stop.set()
    killer.join()
    print(f"\n{pixels} x {pixels} pixels of TAEF2 at 32 x 8 x 8: one process {alone:.0f} s "
          f"({alone / pixels**2:.3f} s a latent), two workers of which {len(killed)} were killed "
          f"{took:.0f} s", flush=True)  # fmt: skip
    assert len(killed) == 2
    for name in one.data_vars:
        np.testing.assert_array_equal(two[name], one[name])
    assert math.isfinite(float(two.psi.sum()))


if __name__ == "__main__":
    half(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))
