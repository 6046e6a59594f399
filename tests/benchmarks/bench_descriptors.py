"""Speed and memory of psi, nu and delta against the loop that a user writes today.

    CPWL_DATA=... pytest tests/benchmarks/bench_descriptors.py -s

Ratios within one process whose engines take turns (see `descriptors`), in float32 unless it says
bf16, on one thread and two. The Stable Diffusion decoder needs `pip install ".[diffusers]"`; its
loop and its `paper` are measured at 12 columns, in which both are linear beside one forward pass.
Its k is 80: with random weights and 4 x 16 x 16 latents r_eff is about 200, so that 120 values are
more than 16 products predict (k / r_eff > 0.5), and `predict` would take 50, as it says. Targets
of `predict` are scaled to k, as the cost of the loop is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

PATIENCE = 1500  # seconds
H100 = 989e12  # dense bfloat16 floating-point operations a second, from its data sheet
COLUMNS = {"taef2": 120, "sd": 12}
VALUES = {"taef2": 120, "sd": 80}


def measure(*arguments: Any) -> dict[str, Any]:
    """Run `descriptors` once, in a process of its own."""
    worker = Path(__file__).with_name("descriptors.py")
    command = [sys.executable, str(worker), *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        raise RuntimeError(f"{arguments}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(params=["taef2", "sd"])
def decoder(request: pytest.FixtureRequest, data: Path) -> str:
    if request.param == "sd":
        pytest.importorskip("diffusers", reason='pip install ".[diffusers]"')
    return request.param


def test_times(decoder: str) -> None:
    columns, k = COLUMNS[decoder], VALUES[decoder]
    print(f"\n| {decoder}, threads | 8 passes s | loop s, {columns} columns | paper s | times "
          f"faster | predict s | times faster than the loop's {k} | predict bf16 s | times faster "
          "| psi and its bf16 | knots s | all three s | psi alone + 10 passes s "
          "| checks, once a job s |\n" + "|---" * 14 + "|")  # fmt: skip
    short = []
    for threads in (1, 2):
        rounds = 3 if decoder == "taef2" else 1
        t = measure("times", decoder, "--threads", threads, "--k", k, "--columns", columns,
                    "--rounds", rounds)  # fmt: skip
        one = t["passes"] / 8
        loop = one + (t["loop"] - one) * k / columns
        paper, predict, half = t["loop"] / t["paper"], loop / t["predict"], loop / t["predict bf16"]
        allowed = t["predict"] + 10 * one
        print(f"| {threads} | {t['passes']:.2f} | {t['loop']:.2f} | {t['paper']:.2f} | {paper:.2f} "
              f"| {t['predict']:.2f} | {predict:.1f} | {t['predict bf16']:.2f} | {half:.1f} "
              f"| {t['psi']:.2f}, {t['psi_bf16']:.2f} | {t['knots']:.2f} | {t['describe']:.2f} "
              f"| {allowed:.2f} | {t['check']:.2f} |", flush=True)  # fmt: skip
        if t["fell_back"]:
            print(f"r_eff = {t['r_eff']:.0f}: predict fell back to all {k} products", flush=True)
        for name, ratio, target in (("paper", paper, 1.0), ("predict", predict, k / 20)):
            if ratio < target:
                short.append(f"{name}, {threads} threads: {ratio:.2f} instead of {target}")
        if torch.backends.cpu.get_cpu_capability() != "DEFAULT" and half < k / 10 and has_bf16():
            short.append(f"predict bf16, {threads} threads: {half:.1f} instead of {k / 10}")
        if t["describe"] > allowed:
            short.append(f"all three, {threads} threads: {t['describe']:.2f} s, not {allowed:.2f}")
    assert not short, f"Expected the targets to be met, got {'; '.join(short)}"


def has_bf16() -> bool:
    """Tell whether this CPU has bfloat16 units."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def test_peak_memory(decoder: str) -> None:
    """At most 1.3 forward-backward passes, and the chunk that was asked for."""
    print(f"\n| {decoder}, chunk | forward-backward MB | operator MB | of that, the chunk MB |\n"
          + "|---" * 4 + "|")  # fmt: skip
    base = measure("memory", decoder, "--engine", "loop")["peak"]
    for chunk in (1, 4):
        found = measure("memory", decoder, "--chunk", chunk)
        print(f"| {chunk} | {base / 1e6:.0f} | {found['peak'] / 1e6:.0f} "
              f"| {found['chunk_bytes'] / 1e6:.0f} |", flush=True)  # fmt: skip
        assert found["peak"] <= 1.3 * base + found["chunk_bytes"]


def test_operations(decoder: str) -> None:
    print(f"\n| {decoder}, latent | forward TFLOP | product TFLOP | predict, 16 products TFLOP "
          "| paper, 120 TFLOP | graph GiB in float32 | arithmetic, not measured: predict and paper "
          "at an H100's bf16 peak s |\n" + "|---" * 7 + "|")  # fmt: skip
    for side in (16, 64):
        found = measure("flops", decoder, "--side", side)
        f, p = found["forward"], found["product"]
        total = [f + n * p for n in (16, 120)]
        print(f"| {side} x {side} | {f / 1e12:.3f} | {p / 1e12:.3f} | {total[0] / 1e12:.2f} "
              f"| {total[1] / 1e12:.2f} | {found['graph_bytes'] / 2**30:.2f} "
              f"| {total[0] / H100:.4f}, {total[1] / H100:.4f} |", flush=True)  # fmt: skip
        assert p <= 1.05 * f


def test_cost_per_latent_is_flat() -> None:
    """From 10 to 10,000 latents of a small decoder."""
    print("\n| latents | milliseconds a latent | peak MB |\n" + "|---" * 3 + "|")
    found = {}
    for latents in (10, 100, 1000, 10_000):
        found[latents] = measure("stream", "silu", "--latents", latents)
        print(f"| {latents:,} | {1e3 * found[latents]['each']:.2f} "
              f"| {found[latents]['peak'] / 1e6:.0f} |", flush=True)  # fmt: skip
    assert found[10_000]["each"] <= 1.3 * min(found[n]["each"] for n in (100, 1000))
    assert found[10_000]["peak"] <= 1.3 * found[10]["peak"]
