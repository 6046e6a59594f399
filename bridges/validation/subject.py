"""Two sides of one network, and the latents at which they are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import cpwl
from cpwl.arrays import Floats, Ints
from cpwl.density import uniform_in_cells

_MARGIN = 0.25  # around the latents of a slice, as a share of their longer side


@dataclass(frozen=True, eq=False)
class Subject:
    """Subject of a validation: the two sides of one network.

    Attributes
    ----------
    decoder : callable
        The estimated side: takes (B, *latent), in float32 or float64 under a copy of `approx`'s.
    domain : Domain
        Where latents come from.
    network : Network or None
        The exact side; None for a network that is not piecewise linear.
    partition : Partition or None
        Its cells on the domain.
    outputs : int
        D, the size of an output.
    """

    decoder: Callable[[Tensor], Tensor]
    domain: cpwl.Domain
    network: cpwl.Network | None
    partition: cpwl.Partition | None
    outputs: int

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent."""
        return self.domain.slice.latent_shape

    @property
    def latent_size(self) -> int:
        """E, the number of its coordinates."""
        return int(np.prod(self.latent_shape, dtype=np.int64))


class Latents(NamedTuple):
    """Points of the domain.

    Attributes
    ----------
    s : (n, P) float64 ndarray
        Slice coordinates.
    z : (n, *latent) float64 tensor
        The latents there.
    cells : (n,) int64 ndarray
        Cell of each s; -1 without a partition.
    """

    s: Floats
    z: Tensor
    cells: Ints


def uniform(subject: Subject, n: int, rng: np.random.Generator) -> Latents:
    """Draw latents uniformly over the domain."""
    s = uniform_in(subject.domain, n, rng)
    z = torch.from_numpy(subject.domain.slice.embed(s))
    if subject.partition is None:
        return Latents(s, z, np.full(n, -1))
    return Latents(s, z, cpwl.locate(subject.partition, s))


def one_in_each(subject: Subject, most: int, rng: np.random.Generator) -> Latents:
    """Draw a uniform point in every cell, or in `most` of the cells."""
    partition = subject.partition
    assert partition is not None
    cells = np.arange(partition.num_cells)
    if len(cells) > most:
        cells = np.sort(rng.choice(cells, most, replace=False))
    s = uniform_in_cells(partition, cells, rng)
    return Latents(s, torch.from_numpy(subject.domain.slice.embed(s)), cells)


def uniform_in(domain: cpwl.Domain, n: int, rng: np.random.Generator) -> Floats:
    """Draw n points (n, P) uniformly in a domain, by its simplices and their volumes."""
    if domain.dim == 1:
        return rng.uniform(domain.corners.min(), domain.corners.max(), (n, 1))
    from scipy.spatial import Delaunay

    simplices = domain.corners[Delaunay(domain.corners).simplices]
    share = np.abs(np.linalg.det(simplices[:, 1:] - simplices[:, :1]))
    chosen = rng.choice(len(simplices), n, p=share / share.sum())
    return np.einsum("nk,nkp->np", rng.dirichlet(np.ones(domain.dim + 1), n), simplices[chosen])


def around(plane: cpwl.Slice) -> cpwl.Domain:
    """Return a box around the latents that a slice goes through.

    Raises
    ------
    ValueError
        It was not made through latents.
    """
    if plane.anchors is None:
        raise ValueError(
            "Expected a domain, or a slice through latents, got a slice that has no bounds. "
            "Give slice.box(low, high)."
        )
    low, high = plane.anchors.min(0), plane.anchors.max(0)
    margin = _MARGIN * (high - low).max()
    return plane.box(low - margin, high + margin)
