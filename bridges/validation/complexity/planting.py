"""Latents near knots: almost every neighbourhood of a small radius has no knot in it otherwise."""

from __future__ import annotations

import numpy as np
import torch

from bridges.validation.subject import Subject
from cpwl.arrays import Floats, Ragged, take_rows

_TRIES = 8


def near_knots(
    subject: Subject, basis: Floats, radius: float, n: int, rng: np.random.Generator
) -> Floats:
    """Draw latents (n, *latent), of float32 values, whose V_z has a point of a knot in it.

    Units are drawn first, then one of their facets in the domain and a point x of it; z is then
    uniform among those whose V_z of 0.9 times the radius holds x. Where radii are as small as the
    distance between float32's numbers, rounding may move V_z away from x; then another z is drawn,
    up to eight times. The last one stays, also without a knot.
    """
    network = subject.network
    assert network is not None
    x = _points_of_facets(subject, n, rng)
    z = np.empty_like(x)
    left = np.arange(n)
    steps = radius * np.concatenate([basis, -basis])
    for _ in range(_TRIES):
        offset = _in_cross_polytope(len(left), len(basis), rng)
        z[left] = float32_values(x[left] + 0.9 * radius * np.tensordot(offset, basis, axes=1))
        vertices = (z[left][:, None] + steps).reshape(-1, *z.shape[1:])
        pieces = network.pieces(torch.from_numpy(vertices)).unflatten(0, (len(left), len(steps)))
        left = left[(pieces == pieces[:, :1]).all(dim=2).all(dim=1).numpy()]
        if len(left) == 0:
            break
    return z


def float32_values(z: Floats) -> Floats:
    """Round to what float32 has, in float64: the same point for both."""
    return z.astype(np.float32).astype(np.float64)


def _points_of_facets(subject: Subject, n: int, rng: np.random.Generator) -> Floats:
    """Draw points (n, *latent) on the knots, all units being equally likely."""
    partition = subject.partition
    assert partition is not None
    units = np.unique(partition.facet_unit[partition.facet_unit >= 0])
    facets = [
        rng.choice(np.flatnonzero(partition.facet_unit == unit)) for unit in rng.choice(units, n)
    ]
    sizes, corners = take_rows(
        Ragged(partition.facet_offsets, partition.facet_corners), np.array(facets)
    )
    weights = rng.exponential(size=len(corners))
    owner = np.repeat(np.arange(n), sizes)
    weights /= np.bincount(owner, weights)[owner]
    s = np.zeros((n, partition.dim))
    np.add.at(s, owner, weights[:, None] * partition.points[corners])
    return subject.domain.slice.embed(s)


def _in_cross_polytope(n: int, dim: int, rng: np.random.Generator) -> Floats:
    """Draw points (n, dim) uniformly in {c : |c|_1 < 1}."""
    share = rng.dirichlet(np.ones(dim + 1), n)[:, :dim]  # uniform on {c >= 0 : sum c <= 1}
    return share * rng.choice([-1.0, 1.0], (n, dim))
