"""Exact geometry of continuous piecewise-linear (CPWL) generators.

A network of affine operations and CPWL non-linearities cuts its input space into convex cells and
is affine on each of them. `subdivide` enumerates every cell over a bounded domain of one to six
dimensions; free functions compute maps, descriptors, densities and pictures from its `Partition`.
"""

from typing import TYPE_CHECKING, Any

from cpwl.affine import affine_maps
from cpwl.cells import (
    Ball,
    Cell,
    Facets,
    HalfSpaces,
    NearCells,
    cell_at,
    cells_near,
    chebyshev_ball,
    facets,
    halfspaces,
    neighbours,
    vertices,
    write_polyhedron,
)
from cpwl.checks import check
from cpwl.decision import Contour, DecisionRegions, contour, decision_regions
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
from cpwl.export import (
    surface,
    to_geodataframe,
    to_pandas,
    write_geoparquet,
    write_mesh,
)
from cpwl.geometry import polygons
from cpwl.network import Network
from cpwl.partition import Partition
from cpwl.proof import Certificate, certify, verify
from cpwl.rasters import to_xarray
from cpwl.storage import load_partition, save_partition
from cpwl.summaries import summary
from cpwl.surveys import Histogram, Survey, survey

if TYPE_CHECKING:
    from cpwl import plot

    __version__: str

__all__ = [
    "Ball",
    "CaptureError",
    "Cell",
    "Certificate",
    "CertificateError",
    "Contour",
    "DecisionRegions",
    "Domain",
    "Facets",
    "Gaussian",
    "HalfSpaces",
    "Histogram",
    "NearCells",
    "Network",
    "Partition",
    "PartitionError",
    "Slice",
    "Survey",
    "Uniform",
    "UnsupportedOperationError",
    "adjacency",
    "affine_maps",
    "box",
    "cell_at",
    "cell_masses",
    "cells_near",
    "centroids",
    "certify",
    "chebyshev_ball",
    "check",
    "condition_number",
    "contour",
    "cross_polytope",
    "decision_regions",
    "describe",
    "entropy",
    "entropy_difference",
    "facets",
    "halfspaces",
    "image_volumes",
    "load_partition",
    "local_complexity",
    "local_rank",
    "local_scaling",
    "locate",
    "log_density",
    "neighbours",
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
    "survey",
    "to_geodataframe",
    "to_pandas",
    "to_xarray",
    "total_image_volume",
    "verify",
    "vertices",
    "volumes",
    "write_geoparquet",
    "write_mesh",
    "write_polyhedron",
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
