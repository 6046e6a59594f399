"""Measurements for the benchmarks: each a process of its own, see the worker."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def measure(engine: str, widths: str, **options: float) -> dict[str, Any]:
    """Run the worker once."""
    command = [sys.executable, "-m", "tests.benchmarks.worker", engine, widths]
    command += [f"--{name}={value}" for name, value in options.items()]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{engine} on {widths}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])  # a peer may have printed as well


def best(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The round with the least wall time."""
    return min(rounds, key=lambda r: r["wall"])
