"""The k largest singular values by block Krylov, and by its peers at equal Jacobian products.

    pytest tests/benchmarks/bench_topk.py -s

A row is a spectrum, a column a method: by how much psi of its k values is off. Products J x and
J^T y count one each, those for the bounds among them. "passes": as many forward passes as a block
of 1 takes for so many products; a product J x in forward mode is 1 + 1 / block passes, as the
tangents of one pass share the outputs, and J^T y one. The last column is the width of the interval.
matfree (and jax) is compared where it is installed. `scipy.sparse.linalg.svds` gives no values but
converged ones: its column says after how many products it had all k, to 1 %. The last line has the
columns' geometric means, errors below 1e-6 taken as that.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, svds
from support.matrices import Matrices, jacobians, with_values
from torch import Tensor

from approx import spectrum
from approx.sketches.krylov import STEPS
from bridges.networks import pretrained

D, d = 900, 600
i = torch.arange(1, d + 1, dtype=torch.float64)


def flat(top: Tensor, count: int) -> Tensor:
    return torch.cat([top, torch.linspace(1.2, 0.8, count, dtype=torch.float64)])


SPECTRA: dict[str, Tensor] = {
    "flat": flat(i[:0], d),
    "power 0.5": i**-0.5,
    "power 1": i**-1,
    "power 2": i**-2,
    "exponential": torch.exp(-i / 40),
    "one spike": flat(30 * i[:1], d - 1),
    "eight spikes": flat(10 + 2 * i[:8].flip(0), d - 8),
    "multiplicity 2": ((i + 1) // 2) ** -0.5,
    "multiplicity 12, a tail": torch.cat([torch.ones(12), 3 * i[12:] ** -0.5]),
    "clusters of 20": 2.0 ** -((i - 1) // 20),
    "rank 60": torch.where(i <= 60, i**-0.5, 0),
    "half zeros": torch.where(i <= d // 2, 2 - i / d, 0),
}
BLOCKS = 1, 2, 4, 8, 16


def taef2() -> Tensor:
    """Return the Jacobian 3072 x 512 of TAEF2 at a photograph of 32 x 32 pixels."""
    folder = Path(os.environ["CPWL_DATA"]) if "CPWL_DATA" in os.environ else None
    z = pretrained.photograph_latents(4, ("astronaut",), folder=folder)
    return jacobians(pretrained.taef2_decoder(folder), z)


def log_volume(values: Tensor) -> float:
    return float(values[values > 1e-12 * values[0]].log().sum())


def ours(
    op: Matrices, k: int, products: int, block: int, passes: bool = False
) -> tuple[float, float]:
    if passes:
        products = int(3 * products / (2 + 1 / block))
    depth = (products - 2 * STEPS - 8) // (2 * block)
    if block * depth < k:
        return math.nan, math.nan
    found = spectrum(op, method="topk", k=k, block=block, depth=depth, generator=0)
    assert found.products <= products
    return float(found.psi), float(found.psi_interval.diff())


def lowrank(op: Matrices, k: int, products: int) -> float:
    """Return psi at the best number of power iterations, which a user would not know."""
    torch.manual_seed(0)
    sizes = [(products // (2 * n + 2), n) for n in range(4) if products // (2 * n + 2) >= k]
    found = (torch.svd_lowrank(op.J[0], q=min(q, d), niter=n)[1][:k] for q, n in sizes)
    return max((log_volume(values) for values in found), default=math.nan)


def arpack(op: Matrices, k: int) -> int:
    """Return how many products svds takes at a tolerance of 1 %."""
    J, calls = op.J[0].numpy(), [0]

    def counted(A: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        def product(x: np.ndarray) -> np.ndarray:
            calls[0] += 1
            return A @ x

        return product

    A = LinearOperator(J.shape, counted(J), rmatvec=counted(J.T), dtype=J.dtype)
    svds(A, k=k, tol=1e-2, return_singular_vectors=False, random_state=np.random.default_rng(0))
    return calls[0]


def matfree(op: Matrices, k: int, products: int) -> float:
    try:
        import jax
        from matfree import decomp, eig
    except ImportError:
        return math.nan
    jax.config.update("jax_enable_x64", True)
    J = jax.numpy.asarray(op.J[0].numpy())
    start = jax.random.normal(jax.random.PRNGKey(0), (J.shape[1],), dtype=J.dtype)
    found = eig.svd_partial(decomp.bidiag(products // 2, materialize=True))
    values = np.sort(np.array(found(lambda v: J @ v, start)[1]))[::-1][:k]
    return log_volume(torch.from_numpy(values.copy())) if len(values) == k else math.nan


def test_against_peers() -> None:
    torch.set_num_threads(1)
    cases = {name: with_values(s, D, d)[None] for name, s in SPECTRA.items()} | {"TAEF2": taef2()}
    names = [f"block {b}" for b in BLOCKS]
    for k, products, unit in (
        (20, 120, "products"), (20, 240, "products"), (120, 300, "products"),
        (120, 440, "products"), (120, 440, "passes"), (120, 900, "products"),
    ):  # fmt: skip
        head = " | ".join([*names, "svd_lowrank", "matfree", "svds needs", "width at 4"])
        print(f"\nk = {k}, {products} {unit}\n| spectrum | {head} |\n" + "|---" * 10 + "|")
        errors = []
        for name, J in cases.items():
            op, truth = Matrices(J), log_volume(torch.linalg.svdvals(J[0])[:k])
            found = {b: ours(op, k, products, b, unit == "passes") for b in BLOCKS}
            psi = [*(p for p, _ in found.values()), lowrank(op, k, products)]
            psi.append(matfree(op, k, products))
            errors.append([abs(truth - p) for p in psi])
            row = " | ".join(f"{e:.2g}" for e in errors[-1])
            print(f"| {name} | {row} | {arpack(op, k)} | {found[4][1]:.2g} |", flush=True)
        means = np.exp(np.log(np.maximum(errors, 1e-6)).mean(axis=0))
        print("| geometric mean | " + " | ".join(f"{e:.2g}" for e in means) + " | | |")
