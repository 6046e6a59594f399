"""Measurements for the benchmarks: each a process of its own, see the worker."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

PATIENCE = 900  # seconds; nothing here takes a sixth of it on a quiet machine


def measure(engine: str, widths: str, **options: float) -> dict[str, Any]:
    """Run the worker once; a failure is a RuntimeError with its last line."""
    command = [sys.executable, "-m", "tests.benchmarks.worker", engine, widths]
    command += [f"--{name}={value}" for name, value in options.items()]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{engine} on {widths}: no result in {PATIENCE} s") from None
    if done.returncode:
        raise RuntimeError(f"{engine} on {widths}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])  # a peer may have printed as well


def best(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The round with the least wall time."""
    return min(rounds, key=lambda r: r["wall"])
