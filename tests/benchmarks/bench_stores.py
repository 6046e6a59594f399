"""Cost of a store: time beside the work, memory as a run grows, and time to find it finished.

    pytest tests/benchmarks/bench_stores.py -s

Needs CPWL_DATA for TAEF2. Targets: under 3 % of the time on TAEF2 at 32 x 16 x 16; memory flat from
1e3 to 1e6 latents of a decoder 2-8-4; a finished store of 1e6 rows found finished in under 2 s.
CPU seconds of one process with one thread, so that other work on the machine counts little, but for
the columns in seconds of a clock. Chunks of two latents: those of "auto" hold 45 s of work, and the
store's share is less.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from approx import describe
from approx.tables import jobs
from bridges.networks import pretrained

_SMALL = """
import json, resource, sys, time, torch
begun = time.perf_counter()
import approx
torch.set_num_threads(1)
torch.manual_seed(0)
decoder = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
def latents(count):
    generator = torch.Generator().manual_seed(0)
    for _ in range(0, count, 1000):
        yield torch.randn(1000, 2, generator=generator)
options = {"neighbourhood": (2, 0.1), "seed": 0, "progress": False, "store": sys.argv[1]}
approx.describe(decoder, latents(int(sys.argv[2])), **options)
if len(sys.argv) > 3:
    sys.exit()
mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
now, cpu = time.perf_counter(), time.process_time()
table = approx.describe(decoder, latents(int(sys.argv[2])), **options)
seconds, cpu = time.perf_counter() - now, time.process_time() - cpu
assert table.complete and len(table) == int(sys.argv[2])
print(json.dumps({"mib": mib, "again": seconds, "again_cpu": cpu, "chunk": table.store.chunk}))
"""


@pytest.mark.usefixtures("one_thread")
def test_time_beside_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(os.environ["CPWL_DATA"])
    decoder = pretrained.taef2_decoder(folder)
    one = pretrained.photograph_latents(16, ("astronaut",), folder=folder)
    z = one + 0.1 * torch.randn(4, *one.shape[1:], generator=torch.Generator().manual_seed(0))
    spent = dict.fromkeys(("begin", "work"), 0.0)
    for name in spent:
        monkeypatch.setattr(jobs, name, _timed(getattr(jobs, name), name, spent))
    begun = time.process_time()
    describe(decoder, z, store=tmp_path / "a", seed=0, progress=False, batch=2, chunk=2)
    rest = time.process_time() - begun - sum(spent.values())
    share = rest / spent["work"]
    print(f"\nTAEF2, 4 latents 32 x 16 x 16 in 2 chunks: {spent['work']:.1f} s of work, {rest:.2f} "
          f"s of the store: {share:.1%}; once, to begin: {spent['begin']:.1f} s")  # fmt: skip
    assert share < 0.03


def _timed(call: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    def timed(*arguments: Any, **options: Any) -> Any:
        begun = time.process_time()
        found = call(*arguments, **options)
        spent[name] += time.process_time() - begun
        return found

    return timed


def test_memory_and_resuming(tmp_path: Path) -> None:
    print("\n| latents | peak MiB | s to find it finished | CPU s | whole process s |\n"
          + "|---" * 5 + "|")  # fmt: skip
    rows = list(_rows(tmp_path))
    assert rows[-1]["mib"] < 1.1 * rows[0]["mib"]
    assert rows[-1]["again_cpu"] < 2


def _rows(folder: Path) -> Iterator[dict[str, float]]:
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    for count in (1_000, 10_000, 100_000, 1_000_000):
        command = [sys.executable, "-W", "ignore", "-c", _SMALL, str(folder / str(count))]
        command.append(str(count))
        done = subprocess.run(command, check=True, capture_output=True, env=environment)
        row = json.loads(done.stdout)
        begun = time.perf_counter()
        subprocess.run([*command, "once"], check=True, capture_output=True, env=environment)
        row["process"] = time.perf_counter() - begun
        print(f"| {count:,} | {row['mib']:.0f} | {row['again']:.2f} | {row['again_cpu']:.2f} | "
              f"{row['process']:.1f} |")  # fmt: skip
        yield row
