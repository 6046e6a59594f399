"""Surveys by tiles against one partition of the whole domain, counted without their code."""

from __future__ import annotations

import errno
import math
import os
import pickle
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.bodies import domain_of
from support import strategies
from support.agreement import capture
from support.samples import mlp, sample
from torch import nn

import cpwl
from cpwl.files import atomic_path
from cpwl.network.program import read_matrices
from cpwl.surveys import store as stores
from cpwl.surveys.store import owned


def assert_same_cells(found, network, domain) -> cpwl.Partition:
    """Compare the counts of a survey, and return the partition of the whole domain."""
    whole = cpwl.subdivide(network, domain, progress=False)
    assert found.status.exact == whole.status.exact
    assert found.unmatched == 0
    assert found.cells == whole.num_cells
    inner = whole.facet_cells.min(axis=1) >= 0
    units, sides = whole.facet_unit[inner], np.sort(whole.facet_cells[inner], axis=1)
    stage = [sum(unit >= first for first in network.stage_offsets[1:]) for unit in units.tolist()]
    pairs = {(*side, k) for side, k in zip(sides.tolist(), stage, strict=True)}
    expected = [sum(k == own for *_, own in pairs) for k in range(network.num_stages)]
    assert found.facets.tolist() == expected
    assert found.volume == pytest.approx(domain.volume, rel=1e-9)
    return whole


def assert_same(network, domain, tiles) -> None:
    """Compare a survey with one partition: counts exactly, sums to rounding."""
    found = cpwl.survey(network, domain, tiles=tiles, progress=False)
    whole = assert_same_cells(found, network, domain)
    numbers = cpwl.summary(whole)
    assert found.regions == numbers["regions"]
    close = {"rel": 1e-9, "abs": 1e-9}
    assert found.psi.mean == pytest.approx(numbers["psi_mean"], **close)
    assert found.nu.mean == pytest.approx(numbers["nu_mean"], **close)
    assert found.squeezed == pytest.approx(numbers["squeezed"], **close)
    assert found.total_image_volume == pytest.approx(numbers["total_image_volume"], **close)
    if not math.isnan(numbers["entropy"]):
        assert found.entropy_bound == pytest.approx(numbers["entropy"], **close)
    volume = cpwl.volumes(whole)
    psi, nu = cpwl.local_scaling(whole), cpwl.local_rank(whole)
    for histogram, values in ((found.psi, psi), (found.nu, nu)):
        off = np.abs(values[:, None] - histogram.centres)
        share = (off <= histogram.width / 2 * (1 + 1e-6)).T @ volume
        np.testing.assert_allclose(histogram.volumes, share, atol=1e-9, rtol=1e-9)


grids = st.tuples(st.integers(1, 5), st.integers(1, 4))


def well_conditioned(shapes):
    """Networks whose sums rounding leaves alone."""
    return st.one_of(strategies.degenerate_networks(shapes), strategies.generic_networks(shapes))


@given(
    well_conditioned(strategies.some_architectures(6, 2, strategies.ALL, width=5)),
    strategies.places(2),
    grids,
)
@strategies.ordinary(6)
def test_planes_by_tiles(layers, place, tiles):
    assert_same(capture(layers), domain_of(place), tiles)


@pytest.mark.nightly
@given(well_conditioned(strategies.shapes(2)), strategies.places(2), grids)
@strategies.nightly(1500)
def test_many_planes_by_tiles(layers, place, tiles):
    assert_same(capture(layers), domain_of(place), tiles)


@pytest.mark.nightly
@given(strategies.nearly_degenerate_networks(strategies.shapes(2)), strategies.places(2), grids)
@strategies.nightly(700)
def test_nearly_degenerate_planes_by_tiles(layers, place, tiles):
    network, domain = capture(layers), domain_of(place)
    found = cpwl.survey(network, domain, tiles=tiles, maps=False, progress=False)
    assert_same_cells(found, network, domain)
    assert math.isnan(found.psi.mean)
    assert math.isnan(found.regions)


@pytest.mark.nightly
@given(well_conditioned(strategies.shapes(2)), strategies.places(2), grids)
@strategies.nightly(300)
def test_planes_by_tiles_proven_in_106_bits(layers, place, tiles):
    network, domain = capture(layers), domain_of(place)
    network = replace(network, matrices=read_matrices(network.program, most_entries=-1))
    found = cpwl.survey(network, domain, tiles=tiles, maps=False, progress=False)
    whole = cpwl.subdivide(network, domain, progress=False)
    assert found.status.exact == whole.status.exact
    if found.status.exact:
        assert found.cells == whole.num_cells
        assert found.status.refined >= whole.status.refined


@given(
    strategies.degenerate_networks(strategies.some_architectures(3, 1, strategies.ALL)),
    strategies.places(1),
    st.integers(1, 7),
)
@strategies.ordinary(5)
def test_segments_by_tiles(layers, place, tiles):
    assert_same(capture(layers), domain_of(place), tiles)


@given(
    strategies.degenerate_networks(strategies.some_architectures(3, 3, strategies.SIMPLE)),
    st.integers(1, 3),
)
@strategies.ordinary(3)
def test_boxes_by_tiles(layers, tiles):
    assert_same(capture(layers), cpwl.box([-2.0] * 3, [2.0, 1.0, 2.0]), (tiles, 1, 2))


@pytest.mark.parametrize("kind", ["conv", "max-pool"])
def test_convolutions_by_tiles(kind):
    partition = sample(kind)[1]
    assert_same(partition.network, partition.domain, (2, 3))


@pytest.fixture(scope="module")
def plane() -> tuple[cpwl.Network, cpwl.Domain]:
    network = cpwl.Network.from_torch(mlp(2, 12, 12, 3, seed=1), (2,))
    return network, cpwl.polygon([[-2, -2], [2, -1], [2, 2], [-1, 2]])


def folder_of(store: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


def test_auto_tiles_are_kept_in_the_store(plane, tmp_path):
    first = cpwl.survey(*plane, store=tmp_path / "s", progress=False)
    assert list(first.tiles) == [1]
    with pytest.raises(ValueError, match=r"differs in tiles \(auto there, \[2, 2\] here\)"):
        cpwl.survey(*plane, store=tmp_path / "s", tiles=2, progress=False)
    cpwl.survey(*plane, store=tmp_path / "t", tiles=2, progress=False)
    assert list(cpwl.survey(*plane, store=tmp_path / "t", progress=False).tiles) == [4, 5, 6, 7]


def auto(cells: int):
    """Make tiles of at most twice so many cells where they are chosen."""
    return mock.patch("cpwl.surveys.measurement._CELLS", cells)


@given(
    well_conditioned(strategies.some_architectures(6, 2, strategies.ALL, width=5)),
    strategies.places(2),
    st.integers(9, 20),
)
@strategies.ordinary(5)
def test_planes_by_halves_of_halves(layers, place, cells):
    with auto(cells):
        assert_same(capture(layers), domain_of(place), "auto")


@pytest.mark.nightly
@given(well_conditioned(strategies.shapes(2)), strategies.places(2), st.integers(9, 40))
@strategies.nightly(500)
def test_many_planes_by_halves_of_halves(layers, place, cells):
    with auto(cells):
        assert_same(capture(layers), domain_of(place), "auto")


def test_boxes_by_halves_of_halves():
    network = cpwl.Network.from_torch(mlp(3, 9, 9, 2, seed=1), (3,))
    domain = cpwl.box([-2.0] * 3, [2.0, 1.0, 2.0])
    with auto(25):
        assert_same(network, domain, "auto")
        assert len(cpwl.survey(network, domain, maps=False, progress=False).tiles) > 3


@pytest.mark.parametrize("trials", [0, 8])
def test_a_crowd_of_cells_is_cut_small_though_no_box_sees_it(trials, monkeypatch):
    """All but a few hundredths of the cells are in a thousandth of the plane."""
    torch.manual_seed(0)
    first = nn.Linear(2, 60)
    with torch.no_grad():
        first.bias.copy_(first.weight @ torch.tensor([-3.1, 2.3]) + 0.02 * torch.randn(60))
    network = cpwl.Network.from_torch(nn.Sequential(first, nn.ReLU()), (2,))
    domain = cpwl.box([-5, -5], [5, 5])
    monkeypatch.setattr("cpwl.surveys.tiles._TRIALS", trials)
    with auto(200):
        found = cpwl.survey(network, domain, maps=False, progress=False)
    assert_same_cells(found, network, domain)
    sizes = [cpwl.subdivide(network, own, progress=False).num_cells for own in found.tiles.values()]
    assert max(sizes) <= 400
    assert len(sizes) < 80
    areas = [own.volume for own in found.tiles.values()]
    assert max(areas) > 1000 * min(areas)


def test_cells_that_all_meet_in_a_point_are_one_tile(monkeypatch):
    monkeypatch.setattr("cpwl.surveys.measurement._HALVED", 2)
    torch.manual_seed(0)
    network = cpwl.Network.from_torch(nn.Sequential(nn.Linear(2, 9, bias=False), nn.ReLU()), (2,))
    domain = cpwl.box([-1, -1], [1, 1])
    with auto(5):
        found = cpwl.survey(network, domain, maps=False, progress=False)
    assert_same_cells(found, network, domain)
    sizes = [cpwl.subdivide(network, own, progress=False).num_cells for own in found.tiles.values()]
    assert max(sizes) == found.cells == 18
    assert max(found.tiles).bit_length() == 5


def large_box() -> tuple[cpwl.Network, cpwl.Domain]:
    network = cpwl.Network.from_torch(mlp(3, 20, 20, 2, seed=1), (3,))
    return network, cpwl.box([-2.0] * 3, [2.0, 1.0, 2.0])


def test_tiles_that_do_not_fit_the_memory_are_halved():
    network, domain = large_box()
    memory = 2**20
    assert not cpwl.subdivide(network, domain, memory=memory, progress=False).status.complete
    found = cpwl.survey(network, domain, memory=memory, maps=False, progress=False)
    assert_same_cells(found, network, domain)


@pytest.mark.parametrize("tiles", [2, "auto"])
def test_what_did_not_fit_the_memory_is_done_again_with_more(plane, tmp_path, tiles):
    options = {"tiles": tiles, "store": tmp_path, "progress": False}
    assert not cpwl.survey(*plane, memory=1000, **options).status.complete
    found = cpwl.survey(*plane, **options)
    assert_same_cells(found, *plane)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_networks_without_units_are_one_cell(dim):
    network = cpwl.Network.from_torch(nn.Linear(dim, 2), (dim,))
    large = replace(network, matrices=read_matrices(network.program, most_entries=-1))
    domain = cpwl.box([-1] * dim, [1] * dim)
    for own in (network, large):
        assert_same(own, domain, "auto")
        assert cpwl.subdivide(own, domain, progress=False).status.exact


@pytest.mark.parametrize("size", [1e-170, 1e170])
def test_volumes_that_float64_does_not_hold_weigh_nothing(plane, size):
    domain = cpwl.box([-size, -size], [size, size])
    found = cpwl.survey(plane[0], domain, progress=False)
    assert found.status.exact
    assert found.cells == cpwl.subdivide(plane[0], domain, progress=False).num_cells
    numbers = (found.regions, found.psi.mean, found.nu.mean, found.squeezed, found.entropy_bound)
    assert np.isnan([*numbers, found.total_image_volume]).all()


def test_tiles_of_a_box_end_where_its_sides_are_and_not_where_float64_has_them():
    """A knot lies between 1/3 and the nearest number below."""
    layer = nn.Linear(3, 1).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0, 0]]))
        layer.bias.fill_(-1 / 3)
    network = cpwl.Network.from_torch(nn.Sequential(layer, nn.ReLU()), (3,))
    sides = [[3, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]]
    domain = cpwl.polytope(sides, [1, 0, 1, 0, 1, 0])
    assert cpwl.survey(network, domain, tiles=2, maps=False, progress=False).cells == 2
    sides[0] = [3, 0, 2**-60]
    with pytest.raises(ValueError, match="Expected a box in 3 dimensions"):
        cpwl.survey(network, cpwl.polytope(sides, [1, 0, 1, 0, 1, 0]), progress=False)


def test_memory_that_holds_nothing_leaves_a_survey_incomplete(plane):
    for network, domain in (plane, large_box()):
        found = cpwl.survey(network, domain, memory=1000, progress=False)
        assert list(found.tiles) == [1]
        assert not found.status.complete
        assert found.status.needed > 1000


_ENDED = """
import pickle, signal, sys
import cpwl
from cpwl.surveys import measurement

def ending(number, enumerate_):
    left = [4]

    def enumerated(*arguments, **options):
        left[0] -= 1
        if not left[0]:
            signal.raise_signal(number)
        return enumerate_(*arguments, **options)

    return enumerated

network, domain, root, tiles = pickle.load(open(sys.argv[1], "rb"))
measurement._CELLS = 30
used = "attempt" if tiles == "auto" else "subdivide"
whole = getattr(measurement, used)
for name in ("SIGINT", "SIGTERM", "SIGKILL"):
    setattr(measurement, used, ending(getattr(signal, name), whole))
    try:
        cpwl.survey(network, domain, tiles=tiles, store=root / name, progress=False)
    except (KeyboardInterrupt, SystemExit) as error:
        print(name, type(error).__name__, error, flush=True)
"""


@pytest.mark.parametrize("tiles", [3, "auto"])
def test_a_store_goes_on_where_a_process_was_ended(plane, tmp_path, tiles):
    """One process is interrupted, asked to end and killed, each in the fourth tile."""
    (tmp_path / "plane.pkl").write_bytes(pickle.dumps((*plane, tmp_path, tiles)))
    command = [sys.executable, "-c", _ENDED, tmp_path / "plane.pkl"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout.split("\n") == ["SIGINT KeyboardInterrupt ", "SIGTERM SystemExit 143", ""]
    with auto(30):
        again = cpwl.survey(*plane, tiles=tiles, progress=False)
    assert len(again.tiles) > 5
    for name in ("SIGINT", "SIGTERM", "SIGKILL"):
        before = folder_of(tmp_path / name)
        there = sum(path.startswith("tiles/") for path in before)
        assert there == 3 if tiles == 3 else there > 3  # and what says where to cut
        told = nullcontext()  # the lock was given back
        if name == "SIGKILL":
            told = pytest.warns(RuntimeWarning, match=r"over from process \d+ on .*, which has end")
        with told, auto(30):
            found = cpwl.survey(*plane, tiles=tiles, store=tmp_path / name, progress=False)
        after = folder_of(tmp_path / name)
        assert all(after[path] == before[path] for path in before if path.startswith("tiles/"))
        assert found.psi.mean == again.psi.mean
        assert found.psi.volumes.tolist() == again.psi.volumes.tolist()
        assert (found.cells, found.regions) == (again.cells, again.regions)


def test_two_processes_on_one_store_are_one_too_many(plane, tmp_path):
    with (
        owned(tmp_path / "store"),
        pytest.raises(BlockingIOError, match=r"process \d+ on .* is writ"),
    ):
        cpwl.survey(*plane, store=tmp_path / "store", progress=False)
    cpwl.survey(*plane, store=tmp_path / "store", progress=False)


def test_a_full_disk_keeps_what_was_done(plane, tmp_path, monkeypatch):
    write, left = stores.write_result, [3]

    def full(*arguments):
        left[0] -= 1
        if not left[0]:
            with atomic_path(stores.result_path(*arguments[:2])):
                raise OSError(errno.ENOSPC, "No space left on device")
        write(*arguments)

    monkeypatch.setattr(stores, "write_result", full)
    with pytest.raises(OSError, match="Expected room on the disk"):
        cpwl.survey(*plane, tiles=2, store=tmp_path / "s", progress=False)
    assert len(list((tmp_path / "s" / "tiles").iterdir())) == 2
    assert cpwl.survey(*plane, tiles=2, store=tmp_path / "s", progress=False).unmatched == 0


def test_stores_of_something_else_are_refused_and_damage_is_told(plane, tmp_path):
    network, domain = plane
    store = tmp_path / "store"
    cpwl.survey(network, domain, tiles=2, store=store, progress=False)
    other = cpwl.Network.from_torch(mlp(2, 12, 12, 3, seed=2), (2,))
    with pytest.raises(ValueError, match="differs in the network's parameters"):
        cpwl.survey(other, domain, tiles=2, store=store, progress=False)
    dead = mlp(2, 12, 12, 3, seed=1)
    with torch.no_grad():
        dead[0].bias[3] = -1e6
        cpwl.survey(cpwl.Network.from_torch(dead, (2,)), domain, tiles=1, store=tmp_path / "dead",
                    progress=False)  # fmt: skip
        dead[0].bias[3] = -2e6
    with pytest.raises(ValueError, match="differs in the network's parameters"):
        cpwl.survey(cpwl.Network.from_torch(dead, (2,)), domain, store=tmp_path / "dead",
                    progress=False)  # fmt: skip
    with pytest.raises(ValueError, match=r"differs in the domain, maps \(True there, False here\)"):
        cpwl.survey(network, cpwl.box([-1, -1], [1, 1]), maps=False, store=store, progress=False)
    tile = store / "tiles" / "00000005.npz"
    data = bytearray(tile.read_bytes())
    data[len(data) // 2] ^= 1
    tile.write_bytes(data)
    with pytest.raises(ValueError, match=r"00000005.npz, got a damaged one .* Delete it and call"):
        cpwl.survey(network, domain, store=store, progress=False)
    for whole in (store / "tiles" / "00000004.npz", tmp_path / "dead" / "tiles" / "00000001.npz"):
        tile.write_bytes(whole.read_bytes())
        with pytest.raises(ValueError, match=r"00000005.npz, .*written of this tile"):
            cpwl.survey(network, domain, store=store, progress=False)
    tile.unlink()
    assert cpwl.survey(network, domain, store=store, progress=False).unmatched == 0
    header = store / "survey.json"
    header.write_text(header.read_text().replace("cpwl survey 3", "cpwl survey 7"))
    with pytest.raises(
        ValueError, match=r"of the format 'cpwl survey 3' at .*, got 'cpwl survey 7'"
    ):
        cpwl.survey(network, domain, store=store, progress=False)
    header.write_text("{")
    with pytest.raises(ValueError, match=r"survey.json, got a damaged one"):
        cpwl.survey(network, domain, store=store, progress=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"Expected a new folder or the store of a survey"):
        cpwl.survey(network, domain, store=tmp_path / "mine", progress=False)


def test_a_store_whose_header_was_half_written_is_begun_again(plane, tmp_path):
    with atomic_path(tmp_path / "survey.json") as part:
        part.write_text("{}")
        left = tmp_path / part.name.replace(f"-{os.getpid()}-", "-999999999-")
    (tmp_path / "survey.json").unlink()
    left.write_text('{"for')
    assert cpwl.survey(*plane, store=tmp_path, progress=False).status.exact
    assert not left.exists()


@pytest.mark.parametrize("made", ["mkdir", "write_text"])
def test_a_store_that_cannot_be_made_is_one_error(plane, tmp_path, monkeypatch, made):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, made, full)
    with pytest.raises(OSError, match=r"Expected a folder for the store at .*s that can be made"):
        cpwl.survey(*plane, store=tmp_path / "s", progress=False)
    for store in ("", 3):
        with pytest.raises(ValueError, match="Expected store as a path, got"):
            cpwl.survey(*plane, store=store, progress=False)


def test_networks_too_large_for_rational_arithmetic_are_proven_as_asked(plane, tmp_path):
    network, domain = plane
    large = replace(network, matrices=read_matrices(network.program, most_entries=-1))
    store = tmp_path / "store"
    proven = cpwl.survey(large, domain, tiles=2, store=store, progress=False)
    counted = cpwl.survey(large, domain, tiles=2, proof="float64", progress=False)
    assert proven.status.exact
    assert proven.status.refined > 0
    assert not counted.status.exact
    assert counted.status.refined == 0
    assert counted.cells == proven.cells
    with pytest.raises(ValueError, match=r"differs in proof \(auto there, float64 here\)"):
        cpwl.survey(large, domain, store=store, proof="float64", progress=False)


def test_bad_arguments_are_refused_in_their_own_words(plane):
    network, domain = plane
    with pytest.raises(ValueError, match="Expected proof to be one of 'auto', 'float64', 'full'"):
        cpwl.survey(network, domain, proof="maybe")
    for tiles in (0, (2,), (2, 0), 1.5, "many", True):
        with pytest.raises(ValueError, match='Expected tiles="auto", a whole number'):
            cpwl.survey(network, domain, tiles=tiles)
    with pytest.raises(ValueError, match="Expected a store for the cells, got none"):
        cpwl.survey(network, domain, cells=True)
    with pytest.raises(ValueError, match=r"Expected client as a distributed.Client, got 'tcp://a"):
        cpwl.survey(network, domain, tiles=2, client="tcp://a:8786", progress=False)
    with pytest.raises(ValueError, match=r"Expected descriptors among .*, got colour"):
        cpwl.survey(network, domain, cells=["colour"], store="s")
    solid = cpwl.Network.from_torch(nn.ReLU(), (3,))
    with pytest.raises(ValueError, match="Expected a box in 3 dimensions, got a polytope of 4"):
        cpwl.survey(solid, cpwl.simplex([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]))


def test_all_cells_are_read_by_dask_geopandas_and_duckdb(plane, tmp_path):
    dask_geopandas = pytest.importorskip("dask_geopandas", reason="needs dask-geopandas")
    duckdb = pytest.importorskip("duckdb", reason="needs duckdb")
    network, domain = plane
    found = cpwl.survey(network, domain, tiles=3, store=tmp_path, cells=True, progress=False)
    whole = cpwl.subdivide(network, domain, progress=False)
    rows = dask_geopandas.read_parquet(tmp_path / "cells").compute()
    assert rows.id.nunique() == found.cells == whole.num_cells
    assert rows[~rows.piece].id.is_unique
    assert rows[rows.piece].groupby("id").size().max() > 1
    # every cell of the whole domain is the union of what has one id
    parts = rows.dissolve("id", aggfunc={"psi": "first", "volume": "sum"})
    areas = np.sort(parts.area.to_numpy())
    np.testing.assert_allclose(areas, np.sort(cpwl.volumes(whole)), atol=1e-12)
    np.testing.assert_allclose(parts.volume, parts.area, atol=1e-12)
    assert parts.geometry.convex_hull.area.sum() == pytest.approx(domain.volume)
    query = "select count(distinct id), sum(volume), count(geometry) from '{}/cells/*.parquet'"
    count, volume, shapes = duckdb.sql(query.format(tmp_path)).fetchall()[0]
    assert (count, shapes) == (found.cells, len(rows))
    assert volume == pytest.approx(domain.volume)


class Answering:
    """A client whose only worker does one thing with every task."""

    status = "running"

    def __init__(self, answer):
        self.answer = answer
        self.cancelled = []

    def submit(self, function, *arguments, pure):
        assert not pure
        return mock.Mock(exception=lambda: self.answer(function, *arguments))

    def wait_for_workers(self, count, timeout):
        assert count == 1

    def cancel(self, futures):
        self.cancelled += futures


def raised(function, *arguments):
    try:
        function(*arguments)
    except RuntimeError as error:
        return error


def other_version(function, data, version):
    return raised(function, data, "0.0.1")


def gone(*arguments):
    Answering.status = "closed"


@pytest.mark.parametrize(
    ("answer", "kind", "told"),
    [
        (lambda *_: ModuleNotFoundError("No module named 'cpwl'"), RuntimeError,
         r"Expected a scheduler and workers that have cpwl .*, got one without it \(No module"),
        (lambda *_: AttributeError("no '_received'"), RuntimeError, "got one without it"),
        (lambda *_: RuntimeError("Error during deserialization of the task graph."), RuntimeError,
         "Install the same version there"),
        (other_version, RuntimeError,
         r"Expected workers of cpwl 0.0.1, as the client has, got one of .*\. Install the same"),
        (gone, ConnectionError, r"Expected a client with a scheduler, got one that is closed\."),
    ],
)  # fmt: skip
def test_a_cluster_that_cannot_work_is_one_error(plane, tmp_path, monkeypatch, answer, kind, told):
    pytest.importorskip("distributed", reason="needs cpwl[cluster]")
    monkeypatch.setattr(Answering, "status", "running")
    client = Answering(answer)
    with pytest.raises(kind, match=told):
        cpwl.survey(*plane, tiles=2, store=tmp_path, client=client, progress=False)
    assert len(client.cancelled) == (client.status == "running")
    assert cpwl.survey(*plane, tiles=2, store=tmp_path, progress=False).unmatched == 0


@pytest.mark.nightly
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("tiles", [4, "auto"])
def test_a_cluster_finds_the_same_though_a_worker_dies(plane, tmp_path, tiles):
    distributed = pytest.importorskip("distributed", reason="needs cpwl[cluster]")
    place = large_box() if tiles == "auto" else plane
    options = {"tiles": tiles, "memory": 2**20, "progress": False}
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        stop = {"after": 3}
        write = stores.write_result

        def killing(*arguments):
            stop["after"] -= 1
            if not stop["after"]:
                worker = next(iter(client.run(os.getpid).values()))
                os.kill(worker, signal.SIGKILL)
            write(*arguments)

        with mock.patch.object(stores, "write_result", killing):
            found = cpwl.survey(*place, **options, store=tmp_path / "s", client=client)
    alone = cpwl.survey(*place, **options)
    assert list(found.tiles) == list(alone.tiles)
    assert len(found.tiles) > 3
    assert (found.cells, found.regions, found.unmatched) == (alone.cells, alone.regions, 0)
    assert found.psi.mean == pytest.approx(alone.psi.mean, rel=1e-12)


def test_clients_that_nothing_would_answer_are_refused(plane, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr("cpwl.surveys.running._PATIENCE", 0.1)
    with distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster:
        client = distributed.Client(cluster, set_as_default=False)
        with client, pytest.raises(ConnectionError, match=r"Expected workers on .*, got none"):
            cpwl.survey(*plane, tiles=2, client=client, progress=False)
        with pytest.raises(ConnectionError, match="got one that is closed"):
            cpwl.survey(*plane, tiles=2, client=client, progress=False)
