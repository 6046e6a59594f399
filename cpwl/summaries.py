"""A partition in a few numbers, for the loggers of a training."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np

from cpwl.affine import over_maps
from cpwl.arrays import Floats
from cpwl.density import overlap_of, planes
from cpwl.descriptors import (
    image_volumes,
    local_rank,
    local_scaling,
    singular_values,
    spectrum_of,
    volumes,
)
from cpwl.dual import projected, regions_of
from cpwl.partition import require_partition

if TYPE_CHECKING:
    from cpwl.partition import Partition

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def summary(partition: Partition) -> dict[str, bool | int | float]:
    """Return counts, psi, nu, entropy and image volume as plain numbers.

    TensorBoard's `add_scalar`, W&B's `log`, a CSV writer and `bridges.Monitor` take them as they
    are.

    Parameters
    ----------
    partition : Partition
        With its network. Without one, or where it is incomplete, what needs the cells' maps is NaN.

    Returns
    -------
    dict of str to bool, int or float
        The same names for every partition:

        - "complete"; "cells", those at hand; "regions", sets of them with one map (`regions`);
        - "psi_mean", "psi_q05", "psi_q25", "psi_q50", "psi_q75", "psi_q95", and the same of "nu",
          weighted by the cells' volumes in the slice: over a uniform latent. q05 is the lowest psi
          that 5 % of the volume does not exceed;
        - "squeezed", the share of the volume that the map takes to a rank below P;
        - "entropy" of the output for a uniform latent, in nats: -inf where a share is squeezed, NaN
          where images of cells overlap or may, and log volume + psi_mean is then an upper bound;
        - "total_image_volume", counted once per preimage;
        - "seconds" that this call took.

    Notes
    -----
    Cost: one pass over the maps, and the comparison of images that share a plane. Beside a training
    step in tests/benchmarks/bench_training.py.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> found = cpwl.summary(partition)
    >>> [round(found[name], 4) for name in ("psi_mean", "psi_q05", "entropy")]
    [-0.6931, -1.3863, 0.6931]
    >>> found["cells"], found["regions"], found["total_image_volume"]
    (4, 4, 2.25)
    """
    require_partition(partition)
    began = time.perf_counter()
    count = scaling = rank = lost = density = image = math.nan
    share = np.ones(1)
    volume = volumes(partition)
    total = float(volume.sum())
    if partition.status.complete and partition.network is not None and 0 < total < math.inf:
        values, maps, keys = over_maps(partition, singular_values, projected, planes)
        source = spectrum_of(partition, values)
        scaling, rank, share = local_scaling(source), local_rank(source), volume / total
        count = regions_of(partition, maps).count
        image = float(image_volumes(partition, source).sum())
        lost = float(share[source.rank < partition.dim].sum())
        if lost > 0:
            density = -math.inf  # whether images overlap as well does not matter
        elif overlap_of(partition, keys).injective == "yes":
            density = math.log(total) + float(share @ scaling)
    return {
        "complete": partition.status.complete,
        "cells": partition.num_cells,
        "regions": count,
        **_spread("psi", np.atleast_1d(scaling), share),
        **_spread("nu", np.atleast_1d(rank), share),
        "squeezed": lost,
        "entropy": density,
        "total_image_volume": image,
        "seconds": time.perf_counter() - began,
    }


def _spread(name: str, values: Floats, share: Floats) -> dict[str, float]:
    """Return the weighted mean and quantiles by name."""
    levels = np.quantile(values, _QUANTILES, weights=share, method="inverted_cdf")
    names = (f"{name}_q{round(100 * level):02d}" for level in _QUANTILES)
    mean = {f"{name}_mean": float(share @ values)}
    return mean | dict(zip(names, levels.tolist(), strict=True))
