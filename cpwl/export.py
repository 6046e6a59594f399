"""Partitions as shapely polygons, tables and surface meshes."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray

from cpwl.affine import evaluate, num_outputs
from cpwl.arrays import Floats, fans
from cpwl.decision import Contour
from cpwl.descriptors import DESCRIPTORS, Spectrum, describe
from cpwl.files import atomic_path
from cpwl.geometry import polygons, solid_loops
from cpwl.partition import require_network, require_partition

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from pandas import DataFrame
    from trimesh import Trimesh

    from cpwl.partition import Partition


def to_pandas(
    partition: Partition,
    descriptors: Iterable[str] | Mapping[str, ArrayLike] = tuple(DESCRIPTORS),
) -> DataFrame:
    """Return the descriptors of the cells as a DataFrame, one row per cell.

    Parameters
    ----------
    partition : Partition
        Of any dimension.
    descriptors : iterable of names, or mapping of names to (C,) arrays
        Names as for `describe`; a mapping gives columns of your own.

    Returns
    -------
    pandas.DataFrame
        The columns of `to_geodataframe` without the geometry; `attrs` say what each is.

    Raises
    ------
    ImportError
        pandas is missing.
    ValueError
        An unknown name, or a column of the wrong length.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> cpwl.to_pandas(partition, ["volume", "rank"]).sum().to_dict()
    {'cell': 6.0, 'volume': 4.0, 'rank': 8.0}
    """
    require_partition(partition)
    pandas = imported("pandas", "table")
    columns: dict[str, NDArray[Any]] = {"cell": np.arange(partition.num_cells)}
    frame = pandas.DataFrame(columns | columns_of(partition, descriptors))
    if not isinstance(descriptors, Mapping):
        named = (name for name in frame.columns if name in DESCRIPTORS)
        frame.attrs = {name: DESCRIPTORS[name].definition for name in named}
    return frame


def to_geodataframe(
    partition: Partition,
    descriptors: Iterable[str] | Mapping[str, ArrayLike] = tuple(DESCRIPTORS),
) -> GeoDataFrame:
    """Return the cells as a GeoDataFrame, one row per cell, descriptors as columns.

    Its `attrs`, which files keep, say what each descriptor is.

    Parameters
    ----------
    partition : Partition
        2-D: polygons. 1-D: lines along y = 0. No other dimension.
    descriptors : iterable of names, or mapping of names to (C,) arrays
        Names as for `describe`; a mapping gives columns of your own.

    Raises
    ------
    ImportError
        geopandas is missing.
    ValueError
        An unknown name, a column of the wrong length, or a partition of dimension 3 or more.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> frame = cpwl.to_geodataframe(partition, ["volume", "rank"])
    >>> list(frame.columns), frame["rank"].tolist()
    (['cell', 'volume', 'rank', 'geometry'], [2, 2, 2, 2])
    """
    geopandas = imported("geopandas", "geo")
    table = to_pandas(partition, descriptors)
    if partition.dim > 1:
        shapes = polygons(partition)
    else:
        ends = partition.points[partition.cell_corners].reshape(-1, 2)
        shapes = shapely.linestrings(np.stack([ends, np.zeros_like(ends)], axis=2))
    frame = geopandas.GeoDataFrame(table, geometry=shapes)
    frame.attrs = table.attrs
    return frame


def write_geoparquet(
    partition: Partition,
    path: str | os.PathLike[str],
    descriptors: Iterable[str] | Mapping[str, ArrayLike] = tuple(DESCRIPTORS),
) -> None:
    """Write `to_geodataframe` as GeoParquet, whole or not at all.

    QGIS, DuckDB's spatial extension and pandas read it (geometry as WKB, in slice coordinates and
    therefore without a reference system).

    Raises
    ------
    ImportError, ValueError
        As for `to_geodataframe`; also an ImportError where pyarrow is missing.
    FileNotFoundError
        The folder of `path` does not exist.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> import geopandas, pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "square.parquet")
    ...     cpwl.write_geoparquet(partition, path, ["volume"])
    ...     geopandas.read_parquet(path).volume.tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    frame = to_geodataframe(partition, descriptors)
    with atomic_path(path) as part:
        frame.to_parquet(part)


def surface(
    partition: Partition | Contour,
    values: str | ArrayLike | None = None,
    *,
    cmap: str = "viridis",
) -> Trimesh:
    """Return the image of a 2-D partition in R^3, or a solid or level set in 3-D, as a mesh.

    Parameters
    ----------
    partition : Partition or Contour
        2-D, with its network, which must have 3 outputs. 3-D: its cells in slice coordinates. A
        contour of a 3-D partition: its triangles.
    values : str or (C,) array_like, optional
        A descriptor's name or one number per cell, by default psi. Every triangle of a cell carries
        it, as the face attribute of that name ("value" for an array) and as its colour. Of a
        contour one number per triangle, for example ``psi[contour.cells]``; without them it has no
        colours.
    cmap : str
        A matplotlib colour map, between the 1st and the 99th percentile.

    Returns
    -------
    trimesh.Trimesh
        2-D: vertices are G at the partition's points, shared between cells. 3-D: every cell is a
        closed surface with vertices of its own, so that it can be moved or hidden alone. Contour:
        its own vertices and triangles, which are anticlockwise seen from where the function is
        larger. The face attribute "cell" tells where a triangle comes from.

    Raises
    ------
    ImportError
        trimesh is missing.
    ValueError
        Neither a 2-D partition with 3 outputs nor a 3-D one nor a contour of a 3-D one, or values
        of the wrong length.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (3,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1, -1], [1, 1, 1]))
    >>> mesh = cpwl.surface(partition)  # eight cubes of twelve triangles
    >>> mesh.faces.shape, mesh.face_attributes["cell"].max().item()
    ((96, 3), 7)
    """
    trimesh = imported("trimesh", "mesh")
    if isinstance(partition, Contour):
        return _level_set(partition, values, cmap)
    values = "psi" if values is None else values
    if partition.dim != 3:
        _require_surface(partition)
    name = values if isinstance(values, str) else "value"
    per_cell = describe(partition, (values,))[values] if isinstance(values, str) else values
    per_cell = _one_each(per_cell, partition.num_cells, "cells").astype(np.float64)
    if partition.dim == 3:
        solid = solid_loops.cells(partition)
        vertices, (faces, loops) = solid.corners, fans(solid.offsets)
        # corners of a cell's facets are one where they are the same point
        corner = np.repeat(solid.cell, np.diff(solid.offsets))
        rows, ids = np.unique(np.column_stack([corner, vertices]), axis=0, return_inverse=True)
        vertices, faces, cells = rows[:, 1:], ids[faces], solid.cell[loops]
    else:
        vertices = evaluate(partition, partition.points)
        faces, cells = fans(partition.cell_offsets)
        faces = partition.cell_corners.astype(np.int64)[faces]
    mesh = trimesh.Trimesh(
        vertices=vertices,
        faces=faces,
        face_colors=_colours(per_cell, cmap)[cells],
        process=False,
    )
    mesh.face_attributes[name] = per_cell[cells]
    mesh.face_attributes["cell"] = cells.astype(np.int32)
    return mesh


def write_mesh(
    partition: Partition | Contour,
    path: str | os.PathLike[str],
    values: str | ArrayLike | None = None,
    *,
    cmap: str = "viridis",
) -> None:
    """Write `surface` as PLY (values and colours per face) or GLB (colours), whole or not at all.

    Parameters
    ----------
    partition, values, cmap
        As for `surface`.
    path : str or path
        Ends in .ply or .glb. glTF has no colours of faces: in a .glb every triangle has corners of
        its own, in its colour, with its value as the vertex attribute _PSI (the name in capitals).

    Raises
    ------
    FileNotFoundError
        The folder of `path` does not exist.
    ImportError, ValueError
        As for `surface`; also a ValueError for another suffix.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (3,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1, -1], [1, 1, 1]))
    >>> import pathlib, tempfile, trimesh
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "cube.ply")
    ...     cpwl.write_mesh(partition, path)
    ...     trimesh.load_mesh(path).faces.shape
    (96, 3)
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".ply", ".glb"):
        raise ValueError(
            f"Expected a path that ends in .ply or .glb, got {Path(path).name}. "
            "Both are read by Blender and MeshLab; .glb also by browsers."
        )
    mesh = surface(partition, values, cmap=cmap)
    if suffix == ".glb" and len(mesh.face_attributes) > 1:
        mesh = _with_own_corners(mesh)
    with atomic_path(path) as part:
        mesh.export(part, file_type=suffix[1:])


def _level_set(contour: Contour, values: str | ArrayLike | None, cmap: str) -> Trimesh:
    """Return the triangles of a contour."""
    import trimesh

    if contour.dim != 3 or isinstance(values, str):
        what = f"that of a {contour.dim}-D one" if contour.dim != 3 else f"values {values!r}"
        raise ValueError(
            f"Expected the contour of a 3-D partition and one value per triangle, got {what}. "
            "Values of cells are those of triangles by values[contour.cells]."
        )
    data = None
    if values is not None:
        data = _one_each(values, len(contour.simplices), "triangles").astype(np.float64)
    mesh = trimesh.Trimesh(
        contour.vertices,
        contour.simplices,
        face_colors=None if data is None else _colours(data, cmap),
        process=False,
    )
    if data is not None:
        mesh.face_attributes["value"] = data
    mesh.face_attributes["cell"] = contour.cells.astype(np.int32)
    return mesh


def _require_surface(partition: Partition) -> None:
    """Raise unless the image of the partition is a surface in R^3."""
    outputs = num_outputs(partition)
    if partition.dim != 2 or outputs != 3:
        shape = require_network(partition).output_shape
        raise ValueError(
            "Expected a 3-D partition, or a 2-D one of a network with 3 outputs, for a mesh, got "
            f"a {partition.dim}-D one with outputs of shape {shape} ({outputs} numbers). Append a "
            "linear layer that projects the outputs to three dimensions."
        )


def _colours(values: Floats, cmap: str) -> NDArray[np.uint8]:
    """Return RGBA bytes; grey where a value is not finite."""
    finite = np.isfinite(values)
    low, high = np.percentile(values[finite], [1, 99]) if finite.any() else (0.0, 1.0)
    share = np.clip((np.where(finite, values, low) - low) / (high - low or 1.0), 0, 1)
    colours = mpl.colormaps[cmap](share, bytes=True)
    colours[~finite] = (128, 128, 128, 255)
    return colours


def _with_own_corners(mesh: Trimesh) -> Trimesh:
    """Return the mesh with no shared vertices and the faces' colours and values on them."""
    import trimesh

    corners = mesh.vertices[mesh.faces].reshape(-1, 3)
    colours: Any = mesh.visual
    apart = trimesh.Trimesh(
        vertices=corners,
        faces=np.arange(len(corners)).reshape(-1, 3),
        vertex_colors=np.repeat(colours.face_colors, 3, axis=0),
        process=False,
    )
    for name, value in mesh.face_attributes.items():
        apart.vertex_attributes[f"_{name.upper()}"] = np.repeat(value, 3).astype(np.float32)
    return apart


def columns_of(
    partition: Partition,
    descriptors: Iterable[str] | Mapping[str, ArrayLike],
    source: Spectrum | None = None,
) -> dict[str, NDArray[Any]]:
    """Return descriptors by name, or a caller's own columns."""
    if isinstance(descriptors, Mapping):
        count = partition.num_cells
        return {name: _one_each(value, count, "cells") for name, value in descriptors.items()}
    return describe(partition, descriptors, source=source)


def _one_each(values: ArrayLike, count: int, what: str) -> NDArray[Any]:
    """Return values as an array with one entry for each of so many, or raise."""
    array = np.asarray(values)
    if array.shape != (count,):
        raise ValueError(
            f"Expected one value for each of {count} {what}, got shape {array.shape}. "
            f"Give an array of shape ({count},)."
        )
    return array


def imported(package: str, extra: str) -> Any:
    """Import an optional dependency, or say how to get it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"Expected {package} to be installed for this export, got no such package. "
            f'Install it with: pip install "cpwl[{extra}]"'
        ) from error
