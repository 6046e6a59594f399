"""Partitions written and read back, and files that are whole or not there."""

from __future__ import annotations

import io
import pickle
import stat
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.grids import grid
from support.samples import generator, mlp, partition_of, sample

import cpwl
from cpwl import storage
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
    assert back.status == partition.status._replace(exact=with_network)
    assert ("not proven: loaded without its network" in repr(back)) == (not with_network)
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
    """Change an array after the file was written."""

    def apply(path):
        stored = dict(np.load(path))
        stored[name] = change(stored[name])
        with path.open("wb") as file:
            np.savez(file, **stored)

    return apply


def _forged(name, change):
    """Change an array, and the digest with it."""

    def apply(path):
        stored = dict(np.load(path))
        stored[name] = change(stored[name])
        del stored["digest"]
        stored["digest"] = np.array(storage.digest(stored))
        with path.open("wb") as file:
            np.savez(file, **stored)

    return apply


def _header(old, new):
    return _forged("header", lambda header: np.array(str(header).replace(old, new)))


def _with(array, place, value):
    array = array.copy()
    array[place] = value
    return array


def _compressed(path):
    stored = dict(np.load(path))
    with path.open("wb") as file:
        np.savez_compressed(file, **stored)


def _with_member(name, body=b""):
    def apply(path):
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, body)

    return apply


def _bomb(path):
    """Add a member of 2 GB that takes 2 MB."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        head = io.BytesIO()
        shape = {"descr": "|u1", "fortran_order": False, "shape": (2 * 10**7,)}
        np.lib.format.write_array_header_1_0(head, shape)
        archive.writestr("junk.npy", head.getvalue() + bytes(2 * 10**7))


def _npy(descr, shape, name="points.npy"):
    """Put an array's header in the place of an array, with 8 bytes behind it."""

    def apply(path):
        text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
        body = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(8)
        with zipfile.ZipFile(path) as archive:
            members = {item: archive.read(item) for item in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for item, old in {**members, name: body}.items():
                archive.writestr(item, old if item != name else body)

    return apply


WHOLE = "Expected a whole .npz file written by cpwl.save_partition in .*"
FIT = r"Expected a partition \(cpwl partition 3\) .* got a file that does not fit: .*"
DAMAGE = {
    "truncated": (_truncated, WHOLE + "a damaged file"),
    "flipped": (_flipped, "a damaged file"),
    "pickled": (_pickled, WHOLE + "got something else or a damaged file"),
    "objects": (_objects, WHOLE + "describes no numbers"),
    "empty": (lambda path: path.write_bytes(b""), WHOLE),
    "text": (lambda path: path.write_text("PLY"), WHOLE),
    "other arrays": (lambda path: np.savez(path, a=np.zeros(3)), "'a.npy', which no partition has"),
    "a single array": (_single_array, WHOLE + "no whole zip archive"),
    "compressed": (_compressed, WHOLE + "is compressed or encrypted, not stored"),
    "a bomb": (_bomb, WHOLE + "is compressed or encrypted, not stored"),
    "another member": (_with_member("x.npy"), "'x.npy', which no partition has"),
    "a member elsewhere": (_with_member("../points.npy"), "a member of the name"),
    "a member twice": (_with_member("points.npy"), "two members of the name 'points.npy'"),
    "1e12 points": (_npy("'<f8'", (10**12, 3)), "8 bytes for float64 of shape"),
    "2^62 points": (_npy("'<f8'", (2**62, 4)), "a damaged file .shape"),
    "negative shape": (_npy("'<f8'", (-1, 3)), "a damaged file .shape"),
    "text for a shape": (_npy("'<f8'", "'x'"), "a header that describes no numbers"),
    "open brackets": (_npy("'<f8'", "(((1,"), "a header that cannot be read"),
    "a call": (_npy("'<f8'", "print()"), "a header that cannot be read"),
    "no such dtype": (_npy("'<q99'", "(1,)"), "a header that cannot be read"),
    "a record": (_npy("[('a', '<f8')]", "(1,)"), "a header that describes no numbers"),
    "numbers of no bytes": (_npy("'|V0'", (10**12,)), "a header that describes no numbers"),
    "format 0": (_header("n 3", "n 0"), "'cpwl partition 0' is another format"),
    "format 1": (_header("n 3", "n 1"), "'cpwl partition 1' has neither facets .* Subdivide again"),
    "format 2": (_header("n 3", "n 2"), "'cpwl partition 2' has no digest of its arrays"),
    "no header": (lambda path: np.savez(path, points=np.zeros((3, 3))), FIT + "header"),
    "big-endian": (_changed("cell_corners", lambda x: x.astype(">i4")), "order of other machines"),
    "bytes": (_changed("patterns", lambda x: x.astype("u1")), "patterns has dtype uint8"),
    "floats": (_changed("patterns", lambda x: x.astype(float)), "patterns has dtype float64"),
    "complex": (_changed("points", lambda x: x.astype(complex)), "points has dtype complex128"),
    "float faces": (_changed("faces_1", lambda x: x.astype(float)), "faces_1 has dtype float64"),
    "axes": (_changed("points", lambda x: x.ravel()), "points has dtype float64 and shape"),
    "NaN": (_forged("points", lambda x: _with(x, 0, np.nan)), "points is not finite"),
    "inf": (_forged("corners", lambda x: _with(x, 0, np.inf)), "corners is not finite"),
    "moved": (_changed("points", lambda x: x + 1e-9), FIT + "their digest differs"),
    "another pattern": (_changed("patterns", lambda x: x ^ np.uint64(1)), "their digest differs"),
    "another corner": (
        _changed("facet_corners", lambda x: _with(x, 3, (x[3] + 1) % 9)), "their digest differs"
    ),
    "another header": (
        _changed("header", lambda h: np.array(str(h).replace('"undecided": 0', '"undecided": 1'))),
        "their digest differs",
    ),
    "few points": (_forged("points", lambda x: x[:3]), "its arrays do not fit each other"),
    "corners": (_forged("cell_corners", lambda x: x + 1000), "its arrays do not fit each other"),
    "faces": (_forged("faces_1", lambda x: x + 1000), "its arrays do not fit each other"),
    "face rows": (_forged("faces_2_offsets", lambda x: x[:-1]), "its arrays do not fit each other"),
    "facet rows": (_forged("cell_facet_offsets", lambda x: x + 1), "do not fit each other"),
    "no rows": (_forged("cell_offsets", lambda x: x[:0]), "its arrays do not fit each other"),
    "far rows": (
        _forged("cell_offsets", lambda x: _with(x, 1, np.iinfo(np.int64).min)), "do not fit"
    ),
    "sides": (_forged("side_corners", lambda x: x + 1), "domain's corners and sides do not fit"),
    "domain": (_forged("corners", lambda x: 2 * x), "domain's corners and sides do not fit"),
    "basis": (_forged("slice_basis", lambda x: 0 * x), FIT + "linearly independent basis rows"),
    "ratio": (_header("1/1", "1/0"), FIT + "Fraction"),
    "list": (_forged("header", lambda h: np.array("[1]")), FIT + "list indices"),
    "NaN in the header": (_header('"broken": 0', '"broken": NaN'), "NaN in a file without such"),
    "a status in text": (_header('"complete": true', '"complete": "yes"'), "a status that cannot"),
    "a negative count": (_header('"broken": 0', '"broken": -1'), "a status that cannot be"),
    "more in a status": (_header('"broken": 0', '"broken": 0, "proven": true'), FIT + "proven"),
    "exact and incomplete": (_header('"complete": true', '"complete": false'), "a status that can"),
    "more stages": (_header('"stages": 1', '"stages": 7'), "a status that cannot be"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_files_are_named(tmp_path, what):
    damage, message = DAMAGE[what]
    path = tmp_path / "a.npz"
    cpwl.save_partition(grid((0.1, 0.4), (-0.3,), (0.7,)), path)
    damage(path)
    with pytest.raises(ValueError, match=message) as failed:
        cpwl.load_partition(path)
    assert "\n" not in str(failed.value)


def test_check_raises_on_no_file_that_loads(tmp_path):
    path = tmp_path / "a.npz"
    partition = grid((0.1, 0.4), (-0.3,), (0.7,))
    cpwl.save_partition(partition, path)
    whole = path.read_bytes()
    for name in ARRAYS:
        for place in (0, -1):
            path.write_bytes(whole)
            _changed(name, lambda x, at=place: _with(x, (at,) * x.ndim, x[(0,) * x.ndim] + 1))(path)
            if (getattr(partition, name) != np.load(path)[name]).any():
                with pytest.raises(ValueError, match=r"does not fit|damaged"):
                    cpwl.load_partition(path, partition.network)
    path.write_bytes(whole)
    assert cpwl.check(cpwl.load_partition(path, partition.network), samples=64).ok


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
