"""psi of normalising flows, against the log-determinant that they compute themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zuko
from scipy import stats
from torch import nn

import approx

pytestmark = pytest.mark.usefixtures("one_thread")

QUIET = {"neighbourhood": None, "progress": False}


class Flow(nn.Module):
    """Noise to data, by a coupling flow: its log-determinant is a sum over its scales."""

    def __init__(self, size: int, *, kind: str = "MAF", gain: float = 1.0, depth: int = 3):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            build = getattr(zuko.flows, kind)
            flow = build(size, transforms=depth, hidden_features=(64, 64), passes=2)
        with torch.no_grad():
            for name, weight in flow.named_parameters():
                weight *= gain if name.endswith("weight") else 1
        self.flow = flow.double().eval()
        self.size = size

    def forward(self, z):
        return self.flow().transform.inv(z)

    def sample(self, n: int) -> tuple[torch.Tensor, np.ndarray]:
        """Return latents (n, d), and the log-determinant at each."""
        draw = torch.Generator().manual_seed(1)
        z = torch.randn(n, self.size, generator=draw, dtype=torch.float64)
        with torch.no_grad():
            _, log_determinant = self.flow().transform.inv.call_and_ladj(z)
        return z, log_determinant.numpy()


def jacobians(flow: Flow, z: torch.Tensor) -> np.ndarray:
    """Return the Jacobians (n, d, d), row by row."""
    z = z.clone().requires_grad_()
    rows = [torch.autograd.grad(y.sum(), z, retain_graph=True)[0] for y in flow(z).unbind(1)]
    return torch.stack(rows, dim=1).numpy()


def agrees(flow: Flow, n: int) -> None:
    z, expected = flow.sample(n)
    table = approx.describe(flow, z, method="exact", **QUIET)
    assert table.subscript == ""
    # the flow's own sum has rounding too
    assert (np.abs(table.psi - expected) <= table.psi_error + 1e-11).all()
    assert np.abs(expected).min() > 1000 * table.psi_error.max()


@pytest.mark.parametrize(("kind", "gain"), [("MAF", 1.0), ("MAF", 2.0), ("NSF", 2.0)])
def test_exact_psi_is_the_log_determinant_in_36_dimensions(kind, gain):
    """A gain of 2 makes Jacobians of effective rank 3, and condition numbers of 1e7."""
    agrees(Flow(36, kind=kind, gain=gain), 8)


def test_exact_psi_is_the_log_determinant_in_784_dimensions():
    agrees(Flow(784, depth=2), 1)


@pytest.mark.nightly
@pytest.mark.parametrize("gain", [1.0, 2.0])
def test_exact_psi_is_the_log_determinant_of_more_flows_in_784_dimensions(gain):
    agrees(Flow(784, gain=gain), 12)


def test_float32_gives_psi_of_a_flow_within_its_error():
    """It is taken again in float64 where a value is in doubt, with the weights as stored."""
    flow = Flow(36, gain=2.0)
    z, expected = flow.sample(8)
    table = approx.describe(flow.float(), z.float(), method="exact", dtype=torch.float32, **QUIET)
    known = ~np.isnan(table.psi)
    assert known.any()
    # latents and weights were rounded as well, by 6e-8 of themselves
    assert (np.abs(table.psi - expected)[known] <= table.psi_error[known] + 1e-3).all()


def test_intervals_of_predict_cover_psi_of_other_draws():
    """The 95 % interval is for the psi_W of another W; those of the test are drawn by QR."""
    flow, k, seeds = Flow(36), 12, 20
    z, _ = flow.sample(20)
    J, rng, inside = jacobians(flow, z), np.random.default_rng(0), []
    with approx.JacobianOperator(flow, z) as op:
        for seed in range(seeds):
            found = approx.spectrum(op, method="predict", k=k, products=8, generator=seed)
            assert not found.fell_back.all()
            W = np.linalg.qr(rng.standard_normal((36, k)))[0].T
            psi = np.linalg.slogdet(W @ J @ (W @ J).transpose(0, 2, 1))[1] / 2
            low, high = found.psi_interval.numpy().T
            inside.append((low <= psi) & (psi <= high))
    # draws are common to latents, so that seeds and not latents are independent
    assert np.mean(inside) >= 0.9


@pytest.mark.parametrize("gain", [1.0, 2.0])
def test_bounds_of_topk_hold_psi_of_the_largest_singular_values(gain):
    flow, k = Flow(36, gain=gain), 12
    z, _ = flow.sample(20)
    table = approx.describe(flow, z, method="topk", k=k, seed=0, **QUIET)
    psi = np.log(np.linalg.svd(jacobians(flow, z), compute_uv=False)[:, :k]).sum(axis=1)
    assert (table.psi_low - 1e-9 <= psi).all()
    assert (psi <= table.psi_high + 1e-9).all()


def test_psi_of_a_part_ranks_latents_but_is_no_log_determinant():
    """Why samples are weighed by whole psi alone (approx.sampling): ranks agree by half."""
    flow = Flow(36)
    z, expected = flow.sample(60)
    part = [
        approx.describe(flow, z, method=method, k=12, products=8, seed=0, **QUIET)
        for method in ("predict", "topk")
    ]
    for table in part:
        assert 0.4 < stats.spearmanr(table.psi, expected).statistic < 0.95
        # as weights they would be off by far more than the 0.1 that is allowed
        assert np.std(table.psi - expected) > 0.2
    whole = approx.describe(flow, z, method="exact", **QUIET)
    assert stats.spearmanr(whole.psi, expected).statistic > 0.9999
