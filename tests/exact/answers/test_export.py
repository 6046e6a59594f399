"""Polygons, GeoParquet and meshes, read back by the libraries that others use."""

from __future__ import annotations

import sys

import geopandas
import numpy as np
import pandas as pd
import pytest
import shapely
import trimesh
from support.grids import grid
from support.samples import KINDS, generator, mlp, partition_of, sample

import cpwl
from cpwl.descriptors.table import DESCRIPTORS, describe


@pytest.mark.parametrize("kind", KINDS)
def test_polygons_are_the_cells(kind):
    _, partition = sample(kind)
    found = cpwl.polygons(partition)
    assert found.shape == (partition.num_cells,)
    assert shapely.is_valid(found).all()
    assert shapely.is_ccw(shapely.get_exterior_ring(found)).all()
    np.testing.assert_allclose(shapely.area(found), cpwl.volumes(partition), rtol=1e-9)
    sizes = shapely.get_num_coordinates(found) - 1
    np.testing.assert_array_equal(sizes, np.diff(partition.cell_offsets))
    assert shapely.area(shapely.union_all(found)) == pytest.approx(partition.domain.volume)


def test_polygons_need_two_dimensions():
    with pytest.raises(ValueError, match="Expected a 2-D partition for polygons, got a 1-D one"):
        cpwl.polygons(sample("mlp", 1)[1])


def test_cells_of_space_have_descriptors_but_no_polygons(tmp_path):
    partition = grid((0.1, 0.4), (-0.3,), (0.7,))
    found = describe(partition)
    assert set(found) == set(DESCRIPTORS)
    assert all(len(column) == partition.num_cells for column in found.values())
    message = "Expected a 2-D partition for polygons, got a 3-D one. Subdivide a slice of two axes,"
    for export in (cpwl.polygons, cpwl.to_geodataframe):
        with pytest.raises(ValueError, match=message):
            export(partition)
    message = (
        "Expected a 3-D partition, or a 2-D one of a network with 3 outputs, for a mesh, got a 4-D"
    )
    with pytest.raises(ValueError, match=message):
        cpwl.write_mesh(grid((0.1,), (), (), ()), tmp_path / "a.ply")


@pytest.mark.parametrize("suffix", [".ply", ".glb"])
def test_cells_of_space_are_closed_surfaces(tmp_path, suffix):
    partition = grid((0.1, 0.4), (-0.3,), (0.7,))
    mesh = cpwl.surface(partition, cpwl.volumes(partition))
    assert len(mesh.vertices) == 8 * partition.num_cells
    bodies = mesh.split(only_watertight=True)
    assert len(bodies) == partition.num_cells
    np.testing.assert_allclose(
        sorted(body.volume for body in bodies), np.sort(cpwl.volumes(partition))
    )
    np.testing.assert_allclose(
        mesh.face_attributes["value"], cpwl.volumes(partition)[mesh.face_attributes["cell"]]
    )
    cpwl.write_mesh(partition, tmp_path / f"a{suffix}", "psi")
    back = trimesh.load_mesh(tmp_path / f"a{suffix}")
    assert back.area == pytest.approx(mesh.area, rel=1e-6)


def test_describe_gives_every_descriptor_and_refuses_others():
    partition = generator()
    found = describe(partition)
    assert tuple(found) == tuple(DESCRIPTORS)
    np.testing.assert_array_equal(found["psi"], cpwl.local_scaling(partition))
    np.testing.assert_array_equal(found["image_volume"], cpwl.image_volumes(partition))
    with pytest.raises(ValueError, match=r"Expected descriptors among psi, nu, .*, got sigma, mu"):
        describe(partition, ["psi", "sigma", "mu"])


def test_geodataframe_survives_the_way_through_parquet(tmp_path):
    partition = generator()
    path = tmp_path / "cells.parquet"
    cpwl.write_geoparquet(partition, path)
    back = geopandas.read_parquet(path)
    assert list(back.columns) == ["cell", *DESCRIPTORS, "geometry"]
    assert back.crs is None
    assert back.attrs["psi"].endswith(
        "non-zero singular values of the cell's map from slice coordinates."
    )
    np.testing.assert_array_equal(back["psi"], cpwl.local_scaling(partition))
    np.testing.assert_allclose(back.area, back["volume"], rtol=1e-9)
    plain = pd.read_parquet(path)  # without geopandas: the geometry is WKB
    shapes = shapely.from_wkb(plain["geometry"])
    assert shapely.equals_exact(shapes, cpwl.polygons(partition)).all()


def test_geodataframe_takes_columns_of_ones_own_and_one_dimension():
    _, partition = sample("mlp", 1)
    mine = np.arange(partition.num_cells) % 3
    frame = cpwl.to_geodataframe(partition, {"colour": mine})
    assert list(frame.columns) == ["cell", "colour", "geometry"]
    np.testing.assert_allclose(frame.length, cpwl.volumes(partition), rtol=1e-12)
    with pytest.raises(ValueError, match=r"Expected one value for each of \d+ cells, got shape"):
        cpwl.to_geodataframe(partition, {"colour": mine[1:]})


def test_surface_is_the_graph_of_the_generator():
    partition = generator()
    mesh = cpwl.surface(partition)
    np.testing.assert_allclose(mesh.vertices, partition.network(partition.points), atol=1e-15)
    cells = mesh.face_attributes["cell"]
    np.testing.assert_array_equal(mesh.face_attributes["psi"], cpwl.local_scaling(partition)[cells])
    area = np.bincount(cells, mesh.area_faces, partition.num_cells)
    np.testing.assert_allclose(area, cpwl.image_volumes(partition), rtol=1e-6, atol=1e-12)
    assert mesh.visual.face_colors.shape == (len(mesh.faces), 4)
    assert len(np.unique(mesh.visual.face_colors, axis=0)) > 10


def test_ply_carries_psi_and_colour_on_every_face(tmp_path):
    partition = generator()
    path = tmp_path / "surface.ply"
    cpwl.write_mesh(partition, path)
    header = path.read_bytes().split(b"end_header")[0].decode()
    assert "property double psi" in header
    assert "property uchar red" in header
    back = trimesh.load(path, process=False)
    mesh = cpwl.surface(partition)
    assert back.visual.kind == "face"
    np.testing.assert_array_equal(back.visual.face_colors, mesh.visual.face_colors)
    faces = back.metadata["_ply_raw"]["face"]["data"]
    np.testing.assert_array_equal(faces["psi"], mesh.face_attributes["psi"])


def test_glb_carries_colour_and_psi_on_corners_of_its_own(tmp_path):
    partition = generator()
    path = tmp_path / "surface.glb"
    values = np.arange(partition.num_cells, dtype=float)
    values[0] = np.inf
    cpwl.write_mesh(partition, path, values)
    (back,) = trimesh.load_scene(path, process=False).geometry.values()
    mesh = cpwl.surface(partition, values)
    assert len(back.vertices) == 3 * len(mesh.faces)
    colours = back.visual.vertex_colors.reshape(-1, 3, 4)
    np.testing.assert_array_equal(colours, np.repeat(mesh.visual.face_colors[:, None], 3, axis=1))
    grey = mesh.face_attributes["cell"] == 0
    assert (mesh.visual.face_colors[grey] == [128, 128, 128, 255]).all()
    np.testing.assert_allclose(
        back.vertex_attributes["_VALUE"].reshape(-1, 3)[:, 0], mesh.face_attributes["value"]
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda folder: cpwl.write_mesh(generator(), folder / "a.obj"),
            r"Expected a path that ends in .ply or .glb, got a.obj. Both are read",
        ),
        (
            lambda folder: cpwl.surface(partition_of(mlp(2, 3, 2))),
            r"a 2-D one of a network with 3 outputs, for a mesh, got a 2-D one "
            r"with outputs of shape \(2,\) \(2 numbers\). Append a linear layer",
        ),
        (
            lambda folder: cpwl.write_mesh(generator(), folder / "none" / "a.ply"),
            "Expected an existing folder for a.ply, got .*none. Create the folder first",
        ),
    ],
)
def test_bad_exports_are_named(tmp_path, call, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        call(tmp_path)


@pytest.mark.parametrize(
    ("call", "package", "extra"),
    [
        (cpwl.to_geodataframe, "geopandas", "geo"),
        (cpwl.to_pandas, "pandas", "table"),
        (cpwl.to_xarray, "xarray", "table"),
        (cpwl.surface, "trimesh", "mesh"),
    ],
)
def test_a_missing_extra_is_named(monkeypatch, call, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'Expected {package} .* pip install "cpwl\[{extra}\]"'):
        call(generator())


def test_a_table_needs_no_geopandas_and_has_its_columns(monkeypatch):
    with_shapes = cpwl.to_geodataframe(generator())
    monkeypatch.setitem(sys.modules, "geopandas", None)
    table = cpwl.to_pandas(generator())
    pd.testing.assert_frame_equal(table, pd.DataFrame(with_shapes.drop(columns="geometry")))
    assert table.attrs == with_shapes.attrs
    own = cpwl.to_pandas(grid((0.1,), (0.2,), (0.3,)), {"mine": np.arange(8)})
    assert list(own.columns) == ["cell", "mine"]
    assert own.attrs == {}


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize(
    ("name", "write", "target"),
    [
        ("a.parquet", cpwl.write_geoparquet, "geopandas.GeoDataFrame.to_parquet"),
        ("a.ply", cpwl.write_mesh, "trimesh.Trimesh.export"),
        ("a.glb", cpwl.write_mesh, "trimesh.Trimesh.export"),
    ],
)
@pytest.mark.parametrize("existing", [False, True])
def test_interrupted_exports_leave_nothing_behind(
    tmp_path, monkeypatch, stop, name, write, target, existing
):
    def half(self, path, *args, **kwargs):
        path.write_bytes(b"half a file")
        raise stop("in the middle")

    monkeypatch.setattr(target, half)
    path = tmp_path / name
    if existing:
        path.write_bytes(b"old")
    with pytest.raises(stop):
        write(generator(), path)
    assert [file.name for file in tmp_path.iterdir()] == ([name] if existing else [])
    assert not existing or path.read_bytes() == b"old"
