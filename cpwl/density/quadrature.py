"""Integrals of the standard normal density over many intervals or triangles at once."""

from __future__ import annotations

import math

import numpy as np

from cpwl.arrays import Floats

_CHUNK = 1 << 14
_DEEPEST = 24
# far out in the tail relative accuracy would cost millions of triangles for no probability
_FLOOR = 1e-25


def integrate_gaussian(simplices: Floats, tolerance: float) -> Floats:
    """Integrate phi and phi log phi of the standard normal over simplices, adaptively.

    Parameters
    ----------
    simplices : (T, P + 1, P) float64 ndarray
        Intervals (P = 1) or triangles (P = 2), either way round.
    tolerance : float
        Relative difference of two Gauss rules (7 and 6 nodes per axis) at which a simplex is
        halved or quartered no further, unless it is below 1e-25.

    Returns
    -------
    (T, 3) float64 ndarray
        The integral of phi, that of phi log phi, and the sum of the two rules' differences: a
        generous bound, as the better rule is what is returned.
    """
    result = np.zeros((len(simplices), 3))
    fine, coarse = _rule(7, simplices.shape[2]), _rule(6, simplices.shape[2])
    for start in range(0, len(simplices), _CHUNK):
        todo = simplices[start : start + _CHUNK]
        owner = np.arange(start, start + len(todo))
        for depth in range(_DEEPEST + 1):
            better, worse = _apply(fine, todo), _apply(coarse, todo)
            distance = np.abs(better - worse)
            done = (distance <= tolerance * np.abs(better) + _FLOOR).all(axis=1)
            done |= depth == _DEEPEST
            np.add.at(result[:, :2], owner[done], better[done])
            np.add.at(result[:, 2], owner[done], distance[done].sum(axis=1))
            todo, owner = _split(todo[~done]), np.repeat(owner[~done], 2 ** simplices.shape[2])
            if not len(todo):
                break
    return result


def simplex_volumes(simplices: Floats) -> Floats:
    """Return the lengths, areas or volumes (T,) of simplices (T, P + 1, P)."""
    edges = simplices[:, 1:] - simplices[:, :1]
    if edges.shape[2] == 1:
        return np.abs(edges[:, 0, 0])
    if edges.shape[2] > 2:
        return np.abs(np.linalg.det(edges)) / math.factorial(edges.shape[2])
    return np.abs(edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0]) / 2


def _rule(n: int, dim: int) -> tuple[Floats, Floats]:
    """Return barycentric nodes (Q, dim + 1) and weights (Q,) that sum to 1."""
    x, w = np.polynomial.legendre.leggauss(n)
    x, w = (x + 1) / 2, w / 2
    if dim == 1:
        return np.stack([1 - x, x], axis=1), w
    # Duffy: the unit square collapsed onto a triangle, (u, v) -> (1 - u, u (1 - v), u v)
    u, v = (axis.ravel() for axis in np.meshgrid(x, x, indexing="ij"))
    nodes = np.stack([1 - u, u * (1 - v), u * v], axis=1)
    return nodes, 2 * np.outer(w * x, w).ravel()


def _apply(rule: tuple[Floats, Floats], simplices: Floats) -> Floats:
    """Return the rule's integrals (T, 2) of phi and phi log phi."""
    nodes, weights = rule
    dim = simplices.shape[2]
    points = np.einsum("qk,tkp->tqp", nodes, simplices)
    log_phi = -np.square(points).sum(axis=2) / 2 - dim * math.log(2 * math.pi) / 2
    phi = np.exp(log_phi)
    size = simplex_volumes(simplices)
    return size[:, None] * np.stack([phi @ weights, (phi * log_phi) @ weights], axis=1)


def _split(simplices: Floats) -> Floats:
    """Halve intervals at their middle, quarter triangles at the middles of their sides."""
    a, b = simplices[:, 0], simplices[:, 1]
    if simplices.shape[2] == 1:
        m = (a + b) / 2
        parts = [(a, m), (m, b)]
    else:
        c = simplices[:, 2]
        ab, bc, ca = (a + b) / 2, (b + c) / 2, (c + a) / 2
        parts = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    stacked = np.stack([np.stack(part, axis=1) for part in parts], axis=1)
    return stacked.reshape(-1, *simplices.shape[1:])
