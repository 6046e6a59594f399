"""Cells, seconds, peak memory and check() of a slice of every real network: the README's table.

    CPWL_DATA=... python -m tests.benchmarks.real_networks

Every slice is worked off in a process of its own, with the kernels' cache warm.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from tests.slices import all_slices

import cpwl


def report(name: str) -> None:
    """Print one row of the table."""
    make = dict(all_slices(Path(os.environ["CPWL_DATA"])))[name]
    network, domain = make()
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clock = time.perf_counter()
    partition = cpwl.subdivide(network, domain, progress=False)
    seconds = time.perf_counter() - clock
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1000
    findings = cpwl.check(partition)
    width = float((domain.corners.max(axis=0) - domain.corners.min(axis=0)).max())
    print(
        f"| {name} | {network.num_units:,} | {width:.3g} | {partition.num_cells:,} "
        f"| {seconds:.2f} | {peak:.0f} | {'ok' if findings.ok else 'FAILED'} |",
        flush=True,
    )


def main() -> None:
    """Print the whole table, or the row that is named."""
    if len(sys.argv) > 1:
        report(sys.argv[1])
        return
    print("| network | units | slice width | cells | seconds | peak MB above start | check() |")
    print("|---" * 7 + "|", flush=True)
    for name, _ in all_slices(Path(os.environ["CPWL_DATA"])):
        subprocess.run([sys.executable, "-m", "tests.benchmarks.real_networks", name], check=True)


if __name__ == "__main__":
    main()
