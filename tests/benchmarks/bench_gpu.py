"""Stable Diffusion 1.4's decoder on a GPU: seconds a latent, share of the peak, and memory.

    python tests/benchmarks/bench_gpu.py --write notebooks/results/gpu.md
    python tests/benchmarks/bench_gpu.py --device cpu --size 8 --width 32 --k 20 --batches 1

The architecture with random weights, in one process whose engines take turns. ``loop`` is what a
user writes today: one forward pass of the batch and k calls of `torch.autograd.grad` with
`retain_graph=True`, under autocast for bf16 and with torch's own TF32 for float32, which ours
leaves out. Operations are those that `torch.utils.flop_counter` counts on shapes alone in a forward
pass and in a product J^T y, times the products (for delta, times the passes). The peak is dense,
from the data sheet, or where the device is not known what a product of two matrices reaches here.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest does

from benchmarks.descriptors import decoded, stable_diffusion

from approx import JacobianOperator, knots, spectrum
from approx.decoder import out_of_memory

NAMES = {torch.float32: "float32", torch.bfloat16: "bf16"}
# operations a second, from data sheets
PEAKS = {
    "H200": {torch.bfloat16: 989e12, torch.float32: 67e12},
    "H100 PCIe": {torch.bfloat16: 756e12, torch.float32: 51e12},
    "H100": {torch.bfloat16: 989e12, torch.float32: 67e12},
    "A100": {torch.bfloat16: 312e12, torch.float32: 19.5e12},
}
HEAD = (
    "| engine | dtype | batch | products | s a latent | times faster than the loop "
    "| TFLOP a latent | share of peak | peak GiB |\n" + "|---" * 9 + "|"
)
BESIDE = (
    "Beside it: 3.6 s a latent are published, on a TPU; at an H100's bf16 peak 16 and 120 products "
    "would take 0.049 and 0.312 s (64 x 64, by arithmetic)."
)


class Measured(NamedTuple):
    """One engine on one batch: seconds are of a latent."""

    seconds: float
    products: int
    peak: float | None


def loop(decoder: Any, z: Tensor, k: int, dtype: torch.dtype) -> int:
    """Run what a user writes today."""
    half = torch.autocast(z.device.type, dtype) if dtype != torch.float32 else nullcontext()
    with half:
        leaf = z.clone().requires_grad_()
        y = decoded(decoder, leaf)
        W = torch.linalg.qr(torch.randn(y[0].numel(), k, device=z.device)).Q
        rows = []
        for column in W.T:
            cotangent = column.to(y.dtype).reshape(1, *y.shape[1:]).expand_as(y)
            (row,) = torch.autograd.grad(y, leaf, cotangent, retain_graph=True)
            rows.append(row.flatten(1))
    torch.linalg.svdvals(torch.stack(rows, 1).float())
    return k


def ours(method: Any) -> Callable[[Any, Tensor, int, torch.dtype], int]:
    def run(decoder: Any, z: Tensor, k: int, dtype: torch.dtype) -> int:
        with JacobianOperator(decoder, z, dtype=dtype, check=False) as op:
            return spectrum(op, method=method, k=k, generator=0).products

    return run


def delta(decoder: Any, z: Tensor, k: int, dtype: torch.dtype) -> int:
    """Count knots along 4 directions, in float32 as `describe` does."""
    return knots(decoder, z, directions=4, batch=len(z)).products


ENGINES: dict[str, Callable[[Any, Tensor, int, torch.dtype], int]] = {
    "loop": loop,
    "paper": ours("paper"),
    "predict": ours("predict"),
    "delta": delta,
}


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def measure(work: Callable[[], int], z: Tensor, rounds: int) -> Measured | None:
    """Time an engine; None where it does not fit."""
    device, peak = z.device, None
    try:
        products = work()  # and what is set up once
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = float("inf")
        for _ in range(rounds):
            wait(device)
            start = time.perf_counter()
            work()
            wait(device)
            seconds = min(seconds, time.perf_counter() - start)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return None
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**30
    return Measured(seconds / len(z), products, peak)


def counted(width: int, size: int) -> tuple[int, int]:
    """Count the operations of a forward pass and of one product J^T y, on shapes alone."""
    with torch.device("meta"):
        decoder, z = stable_diffusion(width).decode, torch.empty(1, 4, size, size)
    with FlopCounterMode(display=False) as forward:
        op = JacobianOperator(decoder, z, check=False)
    with FlopCounterMode(display=False) as product:
        op.rmatmat(torch.empty(op.rows, 1, device="meta"))
    return forward.get_total_flops(), product.get_total_flops()


def peaks(device: torch.device) -> tuple[dict[torch.dtype, float], str]:
    """Return operations a second by dtype, and where they are from."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, found in PEAKS.items():
            if all(word in name for word in known.split()):
                return found, f"{known}'s data sheet"
    side = 1024 if device.type == "cpu" else 8192
    found = {}
    for dtype in NAMES:
        a = torch.randn(side, side, device=device).to(dtype)
        best = float("inf")
        for _ in range(5):
            wait(device)
            start = time.perf_counter()
            a @ a
            wait(device)
            best = min(best, time.perf_counter() - start)
        found[dtype] = 2 * side**3 / best
    return found, f"a product of {side} x {side} matrices here"


def row(name: str, dtype: torch.dtype, batch: int, found: Measured | None, base: Measured | None,
        flops: float, peak: float) -> str:  # fmt: skip
    begin = f"| `{name}` | {NAMES[dtype]} | {batch} "
    if found is None:
        return begin + "| does not fit" + " | " * 6
    faster = f"{base.seconds / found.seconds:.2f}" if base and name not in ("loop", "delta") else ""
    share = f"{flops / found.seconds / peak:.0%}"
    held = "" if found.peak is None else f"{found.peak:.1f}"
    return begin + (
        f"| {found.products} | {found.seconds:.4f} | {faster} | {flops / 1e12:.3f} "
        f"| {share} | {held} |"
    )


def main() -> None:
    """Measure, print the table as it grows, and write it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--width", type=int, default=128, help="channels of the last block")
    parser.add_argument("--k", type=int, default=120)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("Expected a GPU, got none: --device cpu --size 8 --width 32 runs here.")
    torch.manual_seed(0)
    decoder = stable_diffusion(args.width).to(device).decode
    forward, product = counted(args.width, args.size)
    speeds, source = peaks(device)
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    lines = [
        f"SD 1.4's decoder ({args.width} channels) on {args.size} x {args.size} latents, k = "
        f"{args.k}, P = 4, torch {torch.__version__} on {place}; peak: {source}.\n",
        HEAD,
    ]
    print("\n".join(lines), flush=True)
    for batch in args.batches:
        z = torch.randn(batch, 4, args.size, args.size, generator=torch.Generator().manual_seed(0))
        z = z.to(device)
        for dtype in NAMES:
            base = None
            for name, engine in ENGINES.items():
                if name == "delta" and dtype != torch.float32:
                    continue
                found = measure(lambda: engine(decoder, z, args.k, dtype), z, args.rounds)  # noqa: B023
                base = found if name == "loop" else base
                flops = forward * (5 if name == "delta" else 1)
                if found is not None and name != "delta":
                    flops += found.products * product
                lines.append(row(name, dtype, batch, found, base, flops, speeds[dtype]))
                print(lines[-1], flush=True)
    lines.append(f"\n{BESIDE}")
    if args.write:
        args.write.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
