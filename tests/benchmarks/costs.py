"""What many latents cost on several GPUs, from stated seconds a latent: arithmetic, not measured.

    python tests/benchmarks/costs.py [--keeps 0.9]

Seconds a latent are of Stable Diffusion 1.4's decoder at 64 x 64, psi and nu: at an H100's dense
bfloat16 peak of 989 TFLOP/s from operations that `bench_descriptors` counts, which no program
reaches, and as published for a TPU. `keeps` is the share of the ideal throughput that 64 workers
keep (`bench_cluster`, a target where it was not measured); one and eight GPUs are taken as ideal.
"""

from __future__ import annotations

import argparse

SECONDS = {
    "`predict`, at an H100's peak (arithmetic)": 0.049,
    "120 products, at an H100's peak (arithmetic)": 0.312,
    "120 products, as published for a TPU": 3.6,
}
JOBS = {"20,000 images": 20_000, "512 x 512 field": 512**2, "10^8 latents": 10**8}


def shown(seconds: float) -> str:
    """Say a time in the unit in which it is read."""
    for unit, length in (("years", 365 * 86400.0), ("days", 86400.0), ("hours", 3600.0),
                         ("minutes", 60.0)):  # fmt: skip
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def main() -> None:
    """Print the table of the site."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--keeps", type=float, default=0.9)
    keeps = {1: 1.0, 8: 1.0, 64: parser.parse_args().keeps}
    print("| seconds a latent | job | 1 GPU | 8 GPUs | 64 GPUs | GPU hours on one |")
    print("|---" * 6 + "|")
    for name, each in SECONDS.items():
        for job, latents in JOBS.items():
            times = [shown(latents * each / (n * share)) for n, share in keeps.items()]
            print(f"| {each:.3f}: {name} | {job} | {' | '.join(times)} "
                  f"| {latents * each / 3600:,.3g} |")  # fmt: skip


if __name__ == "__main__":
    main()
