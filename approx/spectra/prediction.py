"""Expectation of psi and nu of the paper's sketch W J over W, from few products.

For Haar W (k, D) the singular values of W J concentrate: they are a functional of the spectrum of
M = J J^T, which depends on little but the first few moments. So a quadrature rule with a few nodes
replaces the spectral measure sum_j lambda_j delta(lambda_j) of M. Block Lanczos gives the rule from
few products, and the functional is evaluated on it.

Why not the first order, psi_W ~ k log(||J||_F / sqrt D) - k^2 / (4 r_eff), from the traces of M
and M^2 alone: on the spectrum of a pretrained decoder with 32 x 16 x 16 latents (TAEF2,
k / r_eff = 0.19) it is 1.4 off, with a standard error of 1.0 from 16 rows, because tr(M^3) there is
4.6 times what a flat spectrum has. U-statistics of tr(M^3) on triples of rows leave 0.9 of that and
cost 30 % in noise; tr(M^4) would be needed, and rows alone do not give it. The rule below leaves
less than 0.1 on every spectrum tried, flat or not, up to k / r_eff = 0.5, at the noise of the first
order.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from approx.sketches import Begun, Operator, Probes, orthonormal, projected, widened

_STEP = 0.25  # trapezoidal rule in log u, for analytic integrands that decay both ways: to 1e-13
_RESOLVED = 0.9  # of the directions that a measure's nodes hold: k is too near to all beyond
_WIDER = 1.4  # times the variance of `controlled`, by simulation: few nodes understate it
_GRID = torch.arange(-70.0, 70.0, _STEP, dtype=torch.float64)


class Measure(NamedTuple):
    """Quadrature rule for sum_j lambda_j delta(lambda_j), lambda the eigenvalues of J J^T.

    nodes, masses : (B, n); rows, continued : numbers of probes behind the total mass (the trace)
    and behind the distribution of it; outputs : D.
    """

    nodes: Tensor
    masses: Tensor
    rows: int
    continued: int
    outputs: int


class Prediction(NamedTuple):
    """An expectation over W and the two variances about it, each (B,)."""

    value: Tensor
    variance: Tensor  # of the estimate of the expectation
    spread: Tensor  # variance of one draw of W about the expectation
    slope: Tensor  # (B, n), derivative of the value by the mass at each node


class Steps(NamedTuple):
    """Block Lanczos on J^T J so far: orthonormal q (B, d, n), their images J q (B, D, n)."""

    q: Tensor
    images: Tensor
    continued: int  # columns of a block


class Seen(NamedTuple):
    """The spectral measure of each latent, and what its products can go on from.

    Twice: as it is seen, and with what the rows' products with each other say is missing in it.
    """

    found: Measure
    other: Measure
    rows: Tensor  # (B, d, rows) float64, J^T w
    begun: Begun
    steps: Steps


def split(products: int) -> tuple[int, int]:
    """Return how many rows, and how many of them are continued by three products each.

    The trace needs rows (it is most of psi's error), the shape of the spectrum few: 10 and 2 of 16.
    """
    continued = max(2, round(products / 8))
    return products - 3 * continued, continued


def measure(op: Operator, products: int, probes: Probes) -> Seen:
    """Return the spectral measure of each latent from `products` products.

    Two block steps of Lanczos (Golub and Meurant 2010, chapter 4) on J^T J from J^T w for the
    continued rows w: exact for the moments tr M to tr M^4 of these probes.
    """
    rows, continued = split(products)
    y, begun = projected(op, rows, probes)  # J^T w with |w| = 1
    dtype = torch.float64 if op.dtype == torch.float64 else torch.float32
    q = orthonormal(y[:, :, :continued].to(device=op.device, dtype=dtype))
    return _seen(op, y, begun, _step(op, Steps(q, op.matmat(q).to(dtype), continued)))


def further(op: Operator, y: Tensor, begun: Begun, steps: Steps) -> Seen:
    """Return the measure by more rows y and one more step of Lanczos: moments to tr M^6."""
    return _seen(op, y, begun, _step(op, steps))


def _step(op: Operator, steps: Steps) -> Steps:
    """Take one more block step of Lanczos."""
    q, images, continued = steps
    p = op.rmatmat(orthonormal(images[:, :, -continued:])).to(q.dtype)
    new = orthonormal(p, q)
    images = torch.cat([images, op.matmat(new).to(q.dtype)], dim=2)
    return Steps(torch.cat([q, new], dim=2), images, continued)


def _seen(op: Operator, y: Tensor, begun: Begun, steps: Steps) -> Seen:
    """Return the quadrature rule of the steps, with the trace of the rows y."""
    rows, continued = y.shape[2], steps.continued
    first = y[:, :, :continued]
    basis = widened(steps.q).to(y.device)
    z = widened(steps.images)
    _, s, vh = torch.linalg.svd(torch.linalg.qr(z, mode="r").R)
    caught = (vh @ (basis.mT @ first)).square().sum(dim=2)  # (B, nodes): mass seen by each node
    trace = y.square().sum(dim=(1, 2)) * (op.rows / rows)
    caught, trace, nodes = caught.cpu(), trace.cpu(), s.square().cpu()
    seen = caught.sum(dim=1)
    # the mass comes from all rows, its distribution from the continued: their own total fluctuates
    # along with their higher moments, and the ratio is steadier
    masses = caught * (trace / torch.where(seen > 0, seen, 1))[:, None]
    found = Measure(nodes, masses, rows, continued, op.rows)
    return Seen(found, _unseen(found, (y.mT @ y).cpu()), y, begun, steps)


def _unseen(m: Measure, gram: Tensor) -> Measure:
    """Add one direction that the continued rows have missed.

    tr M^2 is also the mean square of the products of two rows. What that is above the measure's is
    taken for one more eigenvalue, at most half of the trace; nothing changes otherwise.
    """
    n, D = m.rows, m.outputs
    second = (m.masses * m.nodes).sum(dim=1)
    squares = gram.square().sum(dim=(1, 2)) - gram.diagonal(dim1=1, dim2=2).square().sum(dim=1)
    trace = m.masses.sum(dim=1)
    # in expectation D^2 E a_ij^2 is tr M^2, but for (tr M)^2 / D of rows that are orthogonal
    by_rows = squares * (D**2 / (n * (n - 1))) + trace.square() / D
    more = (by_rows - second).clamp_min(0).sqrt().minimum(trace / 2)
    rest = m.masses * (1 - ratio(more, trace))[:, None]
    return m._replace(
        nodes=torch.cat([m.nodes, more[:, None]], dim=1),
        masses=torch.cat([rest, more[:, None]], dim=1),
    )


def effective_rank(m: Measure) -> Tensor:
    """Return (tr M)^2 / tr M^2, (B,); 0 for a zero Jacobian.

    Corrected for what the reciprocal of a second moment from few probes is high by.
    """
    m = _unscaled(m)
    trace = m.masses.sum(dim=1)
    square = (m.masses * m.nodes).sum(dim=1)
    mixed = _probes_covariance(m, m.nodes, torch.ones_like(m.masses)) / m.continued
    return ratio(trace.square(), square) * (1 - uncertainty(m) + ratio(mixed, square * trace))


def uncertainty(m: Measure) -> Tensor:
    """Return the relative variance of the estimate of tr M^2, (B,)."""
    m = _unscaled(m)
    square = (m.masses * m.nodes).sum(dim=1)
    return ratio(_probes_variance(m, m.nodes, m.continued), square.square())


def _unscaled(m: Measure) -> Measure:
    """Divide by the largest eigenvalue, whose fourth power may overflow."""
    top = m.nodes.amax(dim=1, keepdim=True)
    return m._replace(nodes=ratio(m.nodes, top), masses=ratio(m.masses, top))


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """Return a / b, and 0 where b is 0."""
    return torch.where(b > 0, a / torch.where(b > 0, b, 1), 0)


def scaling(m: Measure, k: int) -> Prediction:
    """Return E psi_W, psi_W = sum log sigma_i(W J), for Haar W (k, D); needs k < r_eff.

    psi_W = (log det G M G^T - log det G G^T) / 2 for Gaussian G (k, D). The second term has a
    closed expectation (Wishart). For the first, the deterministic equivalent (Silverstein and Bai
    1995; Hachem, Loubaton and Najim 2007): sum_j log(1 + lambda_j q) - k log(q / k) - k with
    sum_j lambda_j q / (1 + lambda_j q) = k, plus the correction of order 1 for real entries,
    log(1 - v) / 2 with v = sum_j (lambda_j q / (1 + lambda_j q))^2 / k. For a flat spectrum that is
    Wishart's digamma sum to O(1 / k^2).

    The value is stationary in q, so the derivative by the mass at lambda is log(1 + lambda q) /
    (2 lambda): that gives the variance. The spread over W is -log(1 - v) / 2 for the first term and
    the same with v = k / D less for the second.
    """
    s, w = m.nodes, m.masses
    q = _root(m, k)[:, None]
    x = s * q
    log_over = torch.where(x > 0, torch.log1p(x) / torch.where(x > 0, s, 1), q)
    v = (w * s * (q / (1 + x)).square()).sum(dim=1) / k
    q = q[:, 0]
    gaussian = (w * log_over).sum(dim=1) - k * (q / k).log() - k
    value = gaussian / 2 + torch.log1p(-v) / 4 - _wishart(m.outputs, k) / 2
    # a minimum over q is a concave functional of the measure: low by half the variance of its
    # derivative by log q over its curvature there
    low = _variance(m, q[:, None] / (1 + x)) / (k * (1 - v))
    spread = (math.log1p(-k / m.outputs) if k < m.outputs else -math.inf) - torch.log1p(-v)
    spread = (spread / 2).clamp_min(0)
    return Prediction(value + low / 4, _variance(m, log_over / 2), spread, log_over / 2)


def rank(m: Measure, k: int) -> Prediction:
    """Return nu_W = exp(-sum alpha_i log alpha_i) for Haar W (k, D) in expectation; k < r_eff.

    From the spectral law of W M W^T, the free compression of M (Nica and Speicher 2006, lecture
    14): with S(u) = sum_j lambda_j / (lambda_j + u), the mean of a / (a + s) over its eigenvalues a
    is S(u) / k at s = u (k - S(u)) / (D - S(u)). Integrals over s give the mean of sqrt(a) and of
    sqrt(a) log a. The entropy's distance from log k is then scaled by the finite-k factor
    (k - 1)(k + 2) / k^2 of its leading term, the variance of the eigenvalues about their own mean.
    """
    value, excess = _rank(m, k)
    batch, n = m.masses.shape
    step = 1e-4 * m.masses.sum(dim=1)[:, None, None]
    steps = step * torch.eye(n, dtype=step.dtype)  # one node's mass at a time
    moved = torch.cat([m.masses[:, None] + steps, m.masses[:, None] - steps], dim=1)
    nodes = m.nodes.repeat_interleave(2 * n, dim=0)
    at = _rank(m._replace(nodes=nodes, masses=moved.flatten(0, 1)), k)[0].view(batch, 2, n)
    gradient = (at[:, 0] - at[:, 1]) / (2 * step[:, 0])
    # rows of W are k probes of the measure, and their mutual products add the (degenerate) rest
    spread = _probes_variance(m, gradient, k) + (2 * excess * value / k).square()
    return Prediction(value, _variance(m, gradient), spread, gradient)


def resolved(m: Measure, k: int) -> Tensor:
    """Return whether the measure has directions enough for k dimensions, (B,) bool."""
    return ratio(m.masses, m.nodes).sum(dim=1) * _RESOLVED > k


def controlled(m: Measure, at_k: Prediction, at_rows: Prediction, value: Tensor) -> Prediction:
    """Return the prediction for k rows, corrected by what the rows at hand have as their value.

    Parameters
    ----------
    m : Measure
        Whose trace is from the rows at hand, `m.rows` of them.
    at_k, at_rows : Prediction
        By `m`, for k rows of W and for those at hand.
    value : Tensor
        (B,), what `at_rows` predicts, of the rows at hand.

    Notes
    -----
    A control variate: at_k + c (value - at_rows), with the c of least variance. To first order the
    value is a mean over its rows, of g(M) by the derivative g, and a degenerate rest. The trace is
    from the same rows, so that the difference to the prediction is of the shape alone: the mean
    over all rows, less the mean over the continued. The error of c is about that of tr M^2.
    """
    of_k, of_rows = (_flat_and_shape(m, p.slope)[1] for p in (at_k, at_rows))
    fewer = 1 / m.continued - 1 / m.rows
    rest = at_rows.spread - _probes_variance(m, at_rows.slope, m.rows)
    common = _probes_covariance(m, of_k, of_rows) * fewer
    own = _probes_covariance(m, of_rows, of_rows).clamp_min(0) * fewer + rest.clamp_min(0)
    factor = ratio(common, own)
    change = factor * (value - at_rows.value)
    left = _WIDER * (at_k.variance - factor * common).clamp_min(0)
    return at_k._replace(
        value=at_k.value + change, variance=left + change.square() * uncertainty(m)
    )


def _rank(m: Measure, k: int) -> tuple[Tensor, Tensor]:
    """Return nu and log(k / nu), each (B,)."""
    u0 = 1 / _root(m, k)[:, None]  # where S = k and s = 0
    above = u0 * _GRID.exp()
    u = u0 + above
    shifted = m.nodes[:, :, None] + u[:, None]
    masses = m.masses[:, :, None]
    S = (masses / shifted).sum(dim=1)
    slope = (masses / shifted.square()).sum(dim=1)  # -dS/du
    # (k - S(u)) / above, without the cancellation near u0
    rise = (masses / (shifted * (m.nodes + u0)[:, :, None])).sum(dim=1)
    rest = m.outputs - S
    log_s = u.log() + above.log() + rise.log() - rest.log()
    step = above * (1 / u - slope / rest) + slope / rise  # d log s / d log above
    weight = S / k * (log_s / 2).exp() * step * (_STEP / math.pi)
    mean = weight.sum(dim=1)
    entropy = (weight * log_s).sum(dim=1) / mean
    excess = (entropy / 2 - mean.log()) * ((k - 1) * (k + 2) / k**2)
    return k * (-excess).exp(), excess


def _root(m: Measure, k: int) -> Tensor:
    """Return q (B,) with sum_j lambda_j q / (1 + lambda_j q) = k, by Newton in log q.

    The left side is concave and increasing in q, so from the left of the root on every step of
    Newton stays left of it in q.
    """
    q = k / m.masses.sum(dim=1)
    for _ in range(60):
        x = 1 + m.nodes * q[:, None]
        miss = k - (m.masses * q[:, None] / x).sum(dim=1)
        q = q + miss / (m.masses / x.square()).sum(dim=1)
    return q


def _variance(m: Measure, g: Tensor) -> Tensor:
    """Variance of a functional of the measure with derivative g by the mass at each node.

    The total mass is from `rows` probes, its distribution from `continued` of these.
    """
    flat, shape = _flat_and_shape(m, g)
    return (
        _probes_variance(m, flat, m.rows)
        + _probes_variance(m, shape, m.continued)
        + 2 * _probes_covariance(m, flat, shape) / m.rows
    ).clamp_min(0)


def _flat_and_shape(m: Measure, g: Tensor) -> tuple[Tensor, Tensor]:
    """Split a derivative into those by the total mass and by the distribution of it."""
    total = m.masses.sum(dim=1, keepdim=True)
    mean = (g * m.masses).sum(dim=1, keepdim=True) / total
    return mean.expand_as(g), g - mean


def _probes_variance(m: Measure, g: Tensor, probes: int) -> Tensor:
    return _probes_covariance(m, g, g).clamp_min(0) / probes


def _probes_covariance(m: Measure, g: Tensor, h: Tensor) -> Tensor:
    """Covariance of D w^T f w and D w^T f' w, w a Haar row, f = M g(M) and f' = M h(M).

    2 (tr f f' - tr f tr f' / D) D / (D + 2).
    """
    D = m.outputs
    together = (m.masses * m.nodes * g * h).sum(dim=1)
    apart = (m.masses * g).sum(dim=1) * (m.masses * h).sum(dim=1)
    return 2 * (together - apart / D) * (D / (D + 2))


def _wishart(D: int, k: int) -> float:
    """E log det G G^T for Gaussian G (k, D)."""
    i = torch.arange(k, dtype=torch.float64)
    return float((torch.special.digamma((D - i) / 2) + math.log(2)).sum())
