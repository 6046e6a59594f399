"""What float64 leaves open in the plane: settled in bulk, against rational numbers alone.

    CPWL_DATA=... pytest tests/benchmarks/bench_doubts.py -s

CPU seconds of one process, the best of rounds that take turns.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from unittest.mock import patch

import pytest
from real.slices import acas

import cpwl
from cpwl.engine.plane import refinement

DATA = os.environ.get("CPWL_DATA")


@pytest.mark.skipif(DATA is None, reason="needs $CPWL_DATA")
def test_doubts() -> None:
    assert DATA is not None
    data = Path(DATA)
    lattice = cpwl.Network.load(data / "onnx" / "tll_16_1_0.onnx")
    cases = {f"ACAS Xu {name}": acas(data, name) for name in ("1_1", "2_7", "4_3")}
    for half in (0.3, 2.0):
        cases[f"TLL, ±{half:g}"] = lattice, cpwl.box([-half] * 2, [half] * 2)
    print("\n| slice | cells | signs that float64 leaves open | CPU s in rational numbers alone "
          "| in bulk |\n" + "|---" * 5 + "|")  # fmt: skip
    for name, (network, domain) in cases.items():
        best = [float("inf")] * 2
        for k in (0, 1) * (2 if name == "TLL, ±2" else 4):
            tools = refinement.tools_for if k else lambda work: None
            with patch.object(refinement, "tools_for", tools):
                clock = time.process_time()
                made = cpwl.subdivide(network, domain, progress=False)
                best[k] = min(best[k], time.process_time() - clock)
        print(f"| {name} | {made.num_cells:,} | {made.status.arbitrated:,} "
              f"| {best[0]:.2f} | {best[1]:.2f} |", flush=True)  # fmt: skip
