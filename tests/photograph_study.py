"""Descriptors of a latent diffusion decoder over the plane through three photographs.

    CPWL_DATA=... python tests/photograph_study.py figure.png [pixels] [side]

encodes photographs with TAEF2, prints what `approx.describe` says of each, describes the plane
through the first three on a grid, and draws its maps and the decoded images at both ends of psi.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr
from torch import nn

import approx
from approx import plot
from bridges import pretrained
from cpwl.storage import atomic_path

# at 1e-5 no knot is near most latents of this size, and the map would be empty
NEIGHBOURHOOD = (4, 1e-2)
K = 32


def draw(decoder: nn.Module, plane: xr.Dataset, images: int = 7) -> Any:
    """Draw the maps, and the images at the ends of psi."""
    figure = plt.figure(figsize=(11.5, 6.2), layout="constrained")
    upper, lower = np.ravel(np.asarray(figure.subfigures(2, 1, height_ratios=[1.25, 1])))
    plot.fields(plane, figure=upper)
    apart = 0.08 * float(np.ptp(plane.u.values))
    plot.gallery(decoder, plane, "psi", images, apart=apart, figure=lower)
    return figure


def main() -> None:
    """Print the table and write the figure."""
    data = Path(os.environ["CPWL_DATA"])
    pixels = int(sys.argv[2]) if len(sys.argv) > 2 else 24
    side = int(sys.argv[3]) if len(sys.argv) > 3 else 8
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    decoder = pretrained.taef2_decoder(data)
    latents = pretrained.photograph_latents(side, folder=data)
    options: dict[str, Any] = {"neighbourhood": NEIGHBOURHOOD, "k": K, "generator": 0}
    table = approx.describe(decoder, latents, **options).to_pandas()
    table.index = list(pretrained.PHOTOGRAPHS)
    print(table[["psi", "psi_error", "nu", "nu_error", "effective_rank", "delta", "products"]])
    plane = approx.field(decoder, latents[:3], pixels, **options)
    with atomic_path(sys.argv[1]) as part:
        draw(decoder, plane).savefig(part, dpi=110)


if __name__ == "__main__":
    main()
