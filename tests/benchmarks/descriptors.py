"""Time descriptors of one decoder in a process of its own; print one line of JSON.

    python -m benchmarks.descriptors times taef2 [--threads 2] [--columns 120] [--rounds 3]
    python -m benchmarks.descriptors memory sd --engine loop
    python -m benchmarks.descriptors flops sd
    python -m benchmarks.descriptors stream silu --latents 1000

``loop`` is what a user writes today: one forward pass and a loop of k `torch.autograd.grad` calls
with `retain_graph=True` on orthonormal cotangents, their singular values; and ``passes``, 8 forward
passes for delta.
``times`` has every engine take its turn in each round, and reports each one's best. Decoders:
``taef2`` (weights in CPWL_DATA) on 32 x 16 x 16 latents, ``sd`` (diffusers' AutoencoderKL in the
configuration of Stable Diffusion 1.4, random weights) on 4 x 16 x 16.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest does

from support import decoders

from approx import JacobianOperator, describe, knots, spectrum

Decoder = Callable[[Tensor], Any]


def make(name: str, side: int = 16, device: str = "cpu") -> tuple[Decoder, Tensor]:
    """Make a decoder and one latent."""
    torch.manual_seed(0)
    if name == "taef2":
        from bridges.networks.pretrained import taef2_decoder

        return taef2_decoder().to(device), torch.randn(1, 32, side, side, device=device)
    with torch.device(device):
        return stable_diffusion().decode, torch.randn(1, 4, side, side)


def stable_diffusion(width: int = 128) -> Any:
    """Make diffusers' AutoencoderKL in Stable Diffusion 1.4's configuration, whose width is 128."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=512,
    ).eval()


def decoded(decoder: Decoder, z: Tensor) -> Tensor:
    """Return the tensor that a decoder makes."""
    y = decoder(z)
    return y if isinstance(y, Tensor) else y.sample


def loop(decoder: Decoder, z: Tensor, k: int) -> Tensor:
    """Return the singular values of W J as a user computes them today."""
    leaf = z.clone().requires_grad_()
    y = decoded(decoder, leaf)
    W, _ = torch.linalg.qr(torch.randn(y.numel(), k))
    rows = []
    for j in range(k):
        cotangent = W[:, j].reshape(y.shape)
        (row,) = torch.autograd.grad(y, leaf, cotangent, retain_graph=True)
        rows.append(row.flatten())
    return torch.linalg.svdvals(torch.stack(rows))


@torch.no_grad()
def passes(decoder: Decoder, z: Tensor, n: int) -> None:
    """Run n forward passes."""
    for _ in range(n):
        decoder(z)


def ours(decoder: Decoder, z: Tensor, method: Any, k: int, dtype: Any = None) -> Any:
    """Return psi and nu by one of our methods."""
    # once a job, and so not in the time of a latent
    with JacobianOperator(decoder, z, dtype=dtype, check=False) as op:
        return spectrum(op, method=method, k=k, generator=0)


def described(decoder: Decoder, z: Tensor, k: int) -> Any:
    """Describe latents one by one."""
    return describe(decoder, z, k=k, method="predict", batch=1, progress=False, seed=0)


def times(args: argparse.Namespace) -> dict[str, Any]:
    """Time every engine in turns; seconds a latent."""
    decoder, z = make(args.decoder)
    columns, k, half = args.columns, args.k, torch.bfloat16
    engines: dict[str, Callable[[], Any]] = {
        "passes": lambda: passes(decoder, z, 8),
        # these two are linear in their columns, beside a forward pass
        "loop": lambda: loop(decoder, z, columns),
        "paper": lambda: ours(decoder, z, "paper", columns),
        "predict": lambda: ours(decoder, z, "predict", k),
        "predict bf16": lambda: ours(decoder, z, "predict", k, half),
        "knots": lambda: knots(decoder, z),
        "job of 1": lambda: described(decoder, z, k),
        "job of 3": lambda: described(decoder, torch.cat([z, 0.9 * z, 1.1 * z]), k),
    }
    passes(decoder, z, 1)
    best = dict.fromkeys(engines, float("inf"))
    made: dict[str, Any] = {}
    for _ in range(args.rounds):
        for name, run in engines.items():
            start = time.perf_counter()
            made[name] = run()
            best[name] = min(best[name], time.perf_counter() - start)
    # what is checked once a job is not a latent's
    best["describe"] = (best["job of 3"] - best["job of 1"]) / 2
    best["check"] = best["job of 1"] - best["describe"]
    found, in_half = made["predict"], made["predict bf16"]
    return best | {
        "products": found.products,
        "fell_back": bool(found.fell_back.any()),
        "fell_back_bf16": bool(in_half.fell_back.any()),
        "r_eff": float(found.effective_rank[0]),
        "psi": float(found.psi[0]),
        "psi_bf16": float(in_half.psi[0]),
        "nu": float(found.nu[0]),
        "nu_bf16": float(in_half.nu[0]),
    }


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the peak of the process above what it held with the decoder loaded."""
    decoder, z = make(args.decoder, args.side)
    # libraries load their kernels on first use
    small = torch.nn.Conv2d(4, 4, 3)
    small(torch.randn(1, 4, 8, 8)).sum().backward()
    with JacobianOperator(small, torch.randn(1, 4, 9, 9)) as op:
        op.rmatmat(torch.randn(op.rows, 2))
    before = resident()
    extra = 0
    if args.engine == "loop":
        leaf = z.clone().requires_grad_()
        torch.autograd.grad(decoded(decoder, leaf).sum(), leaf)
    else:
        with JacobianOperator(decoder, z, chunk=args.chunk or "auto", check=False) as op:
            op.rmatmat(torch.randn(op.rows, 4))
            extra = op.product_bytes * max(1, args.chunk)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"peak": peak, "chunk_bytes": extra}


def resident() -> int:
    """Return the bytes that the process holds, having reset nothing."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def flops(args: argparse.Namespace) -> dict[str, Any]:
    """Count the floating-point operations of a forward pass and of one product, on shapes alone."""
    decoder, z = make(args.decoder, args.side, "meta")
    with FlopCounterMode(display=False) as forward:
        op = JacobianOperator(decoder, z, check=False)
    with FlopCounterMode(display=False) as product:
        op.rmatmat(torch.empty(op.rows, 1, device="meta"))
    return {
        "forward": forward.get_total_flops(),
        "product": product.get_total_flops(),
        "graph_bytes": op.graph_bytes,
    }


def stream(args: argparse.Namespace) -> dict[str, Any]:
    """Time describe() on a small decoder; seconds a latent."""
    module, shape = decoders.silu_conv()
    z = decoders.latents(shape, args.latents)
    assert isinstance(module, nn.Module)
    describe(module, z[:10], k=16, progress=False, generator=0)
    start = time.perf_counter()
    describe(module, z, k=16, progress=False, generator=0)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"each": (time.perf_counter() - start) / args.latents, "peak": peak}


def main() -> None:
    """Run one measurement."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["times", "memory", "flops", "stream"])
    parser.add_argument("decoder")
    parser.add_argument("--engine", default="operator")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--k", type=int, default=120)
    parser.add_argument("--columns", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--chunk", type=int, default=0)
    parser.add_argument("--latents", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(json.dumps(globals()[args.what](args)))


if __name__ == "__main__":
    main()
