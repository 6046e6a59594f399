"""Exact geometry of continuous piecewise-linear (CPWL) generators.

A network of affine operations and CPWL non-linearities cuts its input space into convex cells and
is affine on each of them. `subdivide` enumerates every cell over a bounded domain of one to six
dimensions; free functions compute maps, descriptors, densities and pictures from its `Partition`.
"""

from typing import TYPE_CHECKING, Any

from cpwl.affine import affine_maps
from cpwl.checks import check
from cpwl.density import (
    Gaussian,
    Uniform,
    cell_masses,
    entropy,
    entropy_difference,
    log_density,
    overlap,
    sample_image,
    total_image_volume,
)
from cpwl.descriptors import (
    centroids,
    condition_number,
    describe,
    image_volumes,
    local_complexity,
    local_rank,
    local_scaling,
    spectrum,
    volumes,
)
from cpwl.domain import Domain, Slice, box, cross_polytope, polygon, polytope, segment, simplex
from cpwl.dual import adjacency, locate, regions
from cpwl.engine import subdivide
from cpwl.errors import CaptureError, CertificateError, PartitionError, UnsupportedOperationError
from cpwl.export import surface, to_geodataframe, write_geoparquet, write_mesh
from cpwl.geometry import polygons
from cpwl.network import Network
from cpwl.partition import Partition
from cpwl.proof import Certificate, certify, verify
from cpwl.storage import load_partition, save_partition
from cpwl.summaries import summary

if TYPE_CHECKING:
    from cpwl import plot

    __version__: str

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
    "save_partition",
    "segment",
    "simplex",
    "spectrum",
    "subdivide",
    "summary",
    "surface",
    "to_geodataframe",
    "total_image_volume",
    "verify",
    "volumes",
    "write_geoparquet",
    "write_mesh",
]


def __getattr__(name: str) -> Any:
    """Return `cpwl.plot`, which imports matplotlib, or `cpwl.__version__`, when first asked for."""
    if name == "plot":
        import cpwl.plot

        return cpwl.plot
    if name == "__version__":
        from importlib.metadata import version

        return version("cpwl")
    raise AttributeError(f"module 'cpwl' has no attribute {name!r}")
