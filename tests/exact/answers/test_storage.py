"""Partitions written and read back, and files that are whole or not there."""

from __future__ import annotations

import pickle
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.grids import grid
from support.samples import generator, mlp, partition_of, sample

import cpwl
from cpwl.files import atomic_path

ARRAYS = (
    *("points", "cell_offsets", "cell_corners", "cell_facets"),
    *("cell_facet_offsets", "facet_offsets", "facet_corners", "facet_cells", "facet_unit"),
    *("patterns", "bit_unit", "unit_base"),
)


@pytest.mark.parametrize("kind", ["mlp", "max-pool"])
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("with_network", [True, False])
def test_a_partition_comes_back_as_it_was(tmp_path, kind, dim, with_network):
    _, partition = sample(kind, dim)
    path = tmp_path / "cells.npz"
    cpwl.save_partition(partition, path)
    back = cpwl.load_partition(path, partition.network if with_network else None)
    for name in ARRAYS:
        ours, theirs = getattr(partition, name), getattr(back, name)
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    assert back.status == partition.status
    assert type(back.status) is type(partition.status)
    np.testing.assert_array_equal(back.domain.corners, partition.domain.corners)
    np.testing.assert_array_equal(back.domain.slice.origin, partition.domain.slice.origin)
    np.testing.assert_array_equal(back.domain.slice.basis, partition.domain.slice.basis)
    np.testing.assert_array_equal(back.pieces(), partition.pieces())
    np.testing.assert_array_equal(cpwl.volumes(back), cpwl.volumes(partition))
    if with_network:
        np.testing.assert_array_equal(cpwl.local_scaling(back), cpwl.local_scaling(partition))


@pytest.mark.parametrize("cuts", [((0.1, 0.4), (-0.3,), (0.7,)), ((0.1,), (), (), (), (), ())])
def test_partitions_of_space_come_back_as_they_were(tmp_path, cuts):
    partition = grid(*cuts)
    cpwl.save_partition(partition, tmp_path / "a.npz")
    back = cpwl.load_partition(tmp_path / "a.npz", partition.network)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(partition, name), getattr(back, name))
    assert len(back.skeleton) == len(cuts) - 1
    for ours, theirs in zip(partition.skeleton, back.skeleton, strict=True):
        np.testing.assert_array_equal(ours.offsets, theirs.offsets)
        np.testing.assert_array_equal(ours.items, theirs.items)
    np.testing.assert_array_equal(cpwl.volumes(back), cpwl.volumes(partition))
    np.testing.assert_array_equal(cpwl.local_scaling(back), cpwl.local_scaling(partition))


@pytest.mark.parametrize("dim", [2, 3])
def test_corners_that_float64_cannot_hold_come_back_exactly(tmp_path, dim):
    axes = 3 * np.eye(dim)
    domain = cpwl.polytope(np.vstack([axes, -axes.sum(axis=0)]), [*[1.0] * dim, 1.0])
    partition = generator() if dim == 2 else grid((0.1,), (0.2,), (0.3,))
    cpwl.save_partition(replace(partition, domain=domain), tmp_path / "a.npz")
    back = cpwl.load_partition(tmp_path / "a.npz").domain
    assert back.exact_corners == domain.exact_corners
    assert any(x.denominator == 3 for point in back.exact_corners for x in point)
    assert back.sides == domain.sides
    assert back.volume == domain.volume


def test_anchors_are_kept(tmp_path):
    network = generator().network
    place = cpwl.Slice.through([0.0, 0.0], [1.0, 0.0], [0.5, 0.5])
    partition = cpwl.subdivide(network, place.box([-1, -1], [1, 1]), progress=False)
    cpwl.save_partition(partition, str(tmp_path / "a"))  # the name is kept as given
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    back = cpwl.load_partition(tmp_path / "a")
    np.testing.assert_array_equal(back.domain.slice.anchors, place.anchors)


@pytest.mark.parametrize(
    "evaluate",
    [
        cpwl.local_scaling,
        cpwl.regions,
        cpwl.surface,
        lambda p: next(cpwl.affine_maps(p)),
        lambda p: cpwl.sample_image(p, 1, np.random.default_rng(0)),
        lambda p: cpwl.save_partition(p, "never written"),
    ],
)
def test_without_its_network_evaluation_says_what_to_pass(tmp_path, evaluate):
    cpwl.save_partition(generator(), tmp_path / "a.npz")
    partition = cpwl.load_partition(tmp_path / "a.npz")
    assert len(cpwl.polygons(partition)) == partition.num_cells
    message = "got one loaded from a file without it. Pass the network: cpwl.load_partition"
    with pytest.raises(ValueError, match=message):
        evaluate(partition)
    assert not Path("never written").exists()


def test_another_network_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    module = mlp(2, 5, 3)
    cpwl.save_partition(partition_of(module), path)
    other = mlp(2, 6, 3)
    message = r"Expected the stored network, \(2,\) -> \(3,\) with units by stage from \[0, 5\]"
    with pytest.raises(ValueError, match=message):
        cpwl.load_partition(path, cpwl.Network.from_torch(other, (2,)))
    with torch.no_grad():  # one weight of the last layer, by its last bit
        weight = module[2].weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    message = "Expected the stored network, got one of the same shape with other parameters"
    with pytest.raises(ValueError, match=message):
        cpwl.load_partition(path, cpwl.Network.from_torch(module, (2,)))


def _truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def _flipped(path):
    body = bytearray(path.read_bytes())
    points = grid((0.1, 0.4), (-0.3,), (0.7,)).points.tobytes()
    body[body.index(points) + 99] ^= 255  # not in the archive's own headers
    path.write_bytes(body)


def _pickled(path):
    path.write_bytes(pickle.dumps({"points": [1, 2, 3]}))


def _objects(path):
    with path.open("wb") as file:
        np.savez(file, header=np.array([{}], dtype=object))


def _single_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def _changed(name, change):
    def apply(path):
        stored = dict(np.load(path))
        stored[name] = change(stored[name])
        with path.open("wb") as file:
            np.savez(file, **stored)

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            _truncated,
            "Expected a whole .npz file written by cpwl.save_partition in .*a damaged file",
        ),
        (_flipped, "a damaged file"),
        (_pickled, "Expected a whole .npz file .* got something else or a damaged file"),
        (_objects, "Expected a whole .npz file"),
        (lambda path: path.write_bytes(b""), "Expected a whole .npz file"),
        (lambda path: path.write_text("PLY"), "Expected a whole .npz file"),
        (
            lambda path: np.savez(path, a=np.zeros(3)),
            r"Expected a partition \(cpwl partition 2\) .* got a file that does not fit: .*header",
        ),
        (
            _single_array,
            "Expected a whole .npz file .*a single array",
        ),
        (
            _changed("header", lambda h: np.array(str(h).replace("n 2", "n 0"))),
            "'cpwl partition 0'",
        ),
        (
            _changed("header", lambda h: np.array(str(h).replace("n 2", "n 1"))),
            "'cpwl partition 1' has neither facets of n dimensions nor .* Subdivide again",
        ),
        (_changed("points", lambda x: x[:3]), "its arrays do not fit each other"),
        (_changed("cell_corners", lambda x: x + 1000), "its arrays do not fit each other"),
        (_changed("patterns", lambda x: x.astype(float)), "patterns has dtype float64"),
        (_changed("faces_1", lambda x: x + 1000), "its arrays do not fit each other"),
        (_changed("faces_2_offsets", lambda x: x[:-1]), "its arrays do not fit each other"),
        (_changed("faces_1", lambda x: x.astype(float)), "faces_1 has dtype float64"),
        (_changed("cell_facet_offsets", lambda x: x + 1), "its arrays do not fit each other"),
        (_changed("side_corners", lambda x: x + 1), "domain's corners and sides do not fit"),
        (_changed("corners", lambda x: 2 * x), "domain's corners and sides do not fit each other"),
        (
            _changed("header", lambda h: np.array(str(h).replace("1/1", "1/0"))),
            "got a file that does not fit: Fraction",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path, damage, message):
    path = tmp_path / "a.npz"
    cpwl.save_partition(grid((0.1, 0.4), (-0.3,), (0.7,)), path)
    damage(path)
    with pytest.raises(ValueError, match=message):
        cpwl.load_partition(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"Expected a partition file, got no file at .*gone"
    ):
        cpwl.load_partition(tmp_path / "gone.npz")


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch, stop):
    path = tmp_path / "a.npz"
    cpwl.save_partition(generator(), path)
    before = path.read_bytes()

    def half(file, **arrays):
        file.write(b"half a file")
        raise stop("in the middle")

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(stop):
        cpwl.save_partition(generator(), path)
    assert path.read_bytes() == before
    with pytest.raises(stop):
        cpwl.save_partition(generator(), tmp_path / "b.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]


def test_atomic_path_moves_the_file_on_success_only(tmp_path):
    final = tmp_path / "figure.png"
    with atomic_path(final) as part:
        assert part.parent == tmp_path
        assert part.suffix == ".png"
        part.write_text("whole")
        assert not final.exists()
    assert final.read_text() == "whole"
    plain = tmp_path / "plain"
    plain.write_text("")
    assert stat.S_IMODE(final.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    with pytest.raises(RuntimeError, match=r"to be written, got no file. Write to the path"):
        _leave_unwritten(tmp_path / "x")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["figure.png", "plain"]


def _leave_unwritten(path):
    with atomic_path(path):
        pass
