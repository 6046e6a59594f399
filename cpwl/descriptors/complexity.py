"""Local complexity delta: the cells that meet a small neighbourhood."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cpwl.domain import cross_polytope
from cpwl.engine import subdivide
from cpwl.partition import require_complete

if TYPE_CHECKING:
    from cpwl.network import Network


def local_complexity(
    network: Network, z: Any, radius: float, basis: Any, *, memory: int = 2 * 2**30
) -> int:
    """Return delta: the exact number of cells that meet V_z = {x : ||B (x - z)||_1 < radius}.

    Parameters
    ----------
    network : Network
        Captured network.
    z : array_like, (*latent,)
        The latent in the middle.
    radius : float
        In units of the latent space; of any size.
    basis : array_like, (P, *latent), P = 1 to 6
        Orthonormal rows B.
    memory : int, default 2 GiB
        Bytes that enumerating the cells may take.

    Raises
    ------
    PartitionError
        `memory` does not suffice for all cells.

    Notes
    -----
    Enumerates the partition of V_z (`cpwl.subdivide`); the cost is that of its cells.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> cpwl.local_complexity(network, [0.0, 0.0], 0.1, [[1, 0], [0, 1]])
    4
    >>> cpwl.local_complexity(network, [0.0, 1.0], 0.1, [[1, 0], [0, 1]])
    2
    """
    domain = cross_polytope(z, radius, basis)
    partition = subdivide(network, domain, memory=memory, progress=False)
    require_complete(partition)
    return partition.num_cells
