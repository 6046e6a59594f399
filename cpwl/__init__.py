"""Exact geometry of continuous piecewise-linear (CPWL) generators.

A network of affine operations and CPWL non-linearities cuts its input space into convex cells and
is affine on each of them. `subdivide` enumerates every cell over a bounded domain of one to six
dimensions; free functions compute maps, descriptors, densities and pictures from its `Partition`.
"""

from typing import TYPE_CHECKING

from cpwl.affine import affine_maps
from cpwl.checks.report import check
from cpwl.density.density import (
    entropy,
    entropy_difference,
    log_density,
    sample_image,
    total_image_volume,
)
from cpwl.density.latents import Gaussian, Uniform, cell_masses
from cpwl.density.overlaps import overlap
from cpwl.descriptors.spectra import (
    centroids,
    condition_number,
    image_volumes,
    local_complexity,
    local_rank,
    local_scaling,
    spectrum,
    volumes,
)
from cpwl.domain.domain import Domain, Slice
from cpwl.domain.shapes import box, cross_polytope, polygon, polytope, segment, simplex
from cpwl.dual.location import adjacency, locate, regions
from cpwl.errors import CaptureError, PartitionError, UnsupportedOperationError
from cpwl.export import describe, polygons, surface, to_geodataframe, write_geoparquet, write_mesh
from cpwl.network.network import Network
from cpwl.partition import Partition, subdivide
from cpwl.proof.certificate import Certificate, CertificateError, certify, verify
from cpwl.storage import load_partition

if TYPE_CHECKING:
    from types import ModuleType

    from cpwl import plot

__all__ = [
    "CaptureError",
    "Certificate",
    "CertificateError",
    "Domain",
    "Gaussian",
    "Network",
    "Partition",
    "PartitionError",
    "Slice",
    "Uniform",
    "UnsupportedOperationError",
    "adjacency",
    "affine_maps",
    "box",
    "cell_masses",
    "centroids",
    "certify",
    "check",
    "condition_number",
    "cross_polytope",
    "describe",
    "entropy",
    "entropy_difference",
    "image_volumes",
    "load_partition",
    "local_complexity",
    "local_rank",
    "local_scaling",
    "locate",
    "log_density",
    "overlap",
    "plot",
    "polygon",
    "polygons",
    "polytope",
    "regions",
    "sample_image",
    "segment",
    "simplex",
    "spectrum",
    "subdivide",
    "surface",
    "to_geodataframe",
    "total_image_volume",
    "verify",
    "volumes",
    "write_geoparquet",
    "write_mesh",
]


def __getattr__(name: str) -> "ModuleType":
    """Import `cpwl.plot` when it is first asked for: matplotlib takes longer than all the rest."""
    if name == "plot":
        import cpwl.plot

        return cpwl.plot
    raise AttributeError(f"module 'cpwl' has no attribute {name!r}")
