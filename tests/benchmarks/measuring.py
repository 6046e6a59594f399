"""Measurements for the benchmarks: each a process of its own, see the worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PATIENCE = 900  # seconds


class NotFinishedError(RuntimeError):
    """An engine gave no result in the time that it had."""


def measure(
    engine: str, widths: str, *, patience: float = PATIENCE, **options: float
) -> dict[str, Any]:
    """Run the worker once; a failure is a RuntimeError with its last line.

    SplineCam runs in the interpreter that SPLINECAM_PYTHON names, if there is one: it needs
    graph-tool, which no package index has for this one.
    """
    python, tests = sys.executable, str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [tests, os.environ.get("PYTHONPATH")]))
    quiet = os.environ | {"PYTHONPATH": path, "TQDM_DISABLE": "1"}  # SplineCam's: a bar a cell
    if engine == "splinecam":
        if not os.environ.get("SPLINECAM"):
            raise RuntimeError(f"{engine} on {widths}: set SPLINECAM to the folder of a checkout")
        python = os.environ.get("SPLINECAM_PYTHON", python)
    command = [python, "-m", "benchmarks.worker", engine, widths]
    command += [f"--{name}={value}" for name, value in options.items()]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=patience, env=quiet
        )
    except subprocess.TimeoutExpired:
        raise NotFinishedError(f"{engine} on {widths}: not finished in {patience:g} s") from None
    if done.returncode:
        last = [f"exit status {done.returncode}", *done.stderr.strip().splitlines()][-1]
        raise RuntimeError(f"{engine} on {widths}: {last}")
    return json.loads(done.stdout.splitlines()[-1])  # a peer may have printed as well


def best(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The round with the least wall time."""
    return min(rounds, key=lambda r: r["wall"])
