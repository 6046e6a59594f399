"""Cost of a store: time beside the work, memory as a run grows, and time to find it finished.

    pytest tests/benchmarks/bench_stores.py -s

Needs CPWL_DATA for TAEF2. Targets: under 3 % of the time on TAEF2 at 32 x 16 x 16; memory flat from
1e3 to 1e6 latents of a decoder 2-8-4; a finished store of 1e6 rows found finished in under 2 s.
CPU seconds of one process with one thread, so that other work on the machine counts little; the
whole process of the last row is in seconds of a clock.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from approx import describe
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
mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
now, cpu = time.perf_counter(), time.process_time()
table = approx.describe(decoder, latents(int(sys.argv[2])), **options)
seconds, cpu = time.perf_counter() - now, time.process_time() - cpu
assert table.complete and len(table) == int(sys.argv[2])
print(json.dumps({"mib": mib, "again": seconds, "again_cpu": cpu, "chunk": table.store.chunk}))
"""


@pytest.mark.usefixtures("one_thread")
def test_time_beside_the_work(tmp_path: Path) -> None:
    folder = Path(os.environ["CPWL_DATA"])
    decoder = pretrained.taef2_decoder(folder)
    one = pretrained.photograph_latents(16, ("astronaut",), folder=folder)
    z = one + 0.1 * torch.randn(8, *one.shape[1:], generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"seed": 0, "progress": False, "batch": 2}
    seconds: dict[str, list[float]] = {"memory": [], "store": []}
    describe(decoder, z[:2], **options)
    for turn in range(3):
        for name, found in seconds.items():
            there = {"store": tmp_path / str(turn), "chunk": 4} if name == "store" else {}
            begun = time.process_time()
            describe(decoder, z, **options, **there)
            found.append(time.process_time() - begun)
    best = {name: min(found) for name, found in seconds.items()}
    share = best["store"] / best["memory"] - 1
    print(f"\nTAEF2, 8 latents 32 x 16 x 16, 2 chunks: {best['memory']:.1f} s in memory, "
          f"{best['store']:.1f} s in a store: {share:+.1%} ({_rounds(seconds)})")  # fmt: skip
    assert share < 0.03


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
        subprocess.run(command, check=True, capture_output=True, env=environment)
        row["process"] = time.perf_counter() - begun
        print(f"| {count:,} | {row['mib']:.0f} | {row['again']:.2f} | {row['again_cpu']:.2f} | "
              f"{row['process']:.1f} |")  # fmt: skip
        yield row


def _rounds(seconds: dict[str, list[float]]) -> str:
    return "; ".join(f"{name} {', '.join(f'{s:.1f}' for s in t)}" for name, t in seconds.items())
