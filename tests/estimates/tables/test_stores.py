"""Stores of tables: equal to one run however they were made, and never half of anything."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from support import decoders
from support.disks import small_disk
from support.matrices import wide
from support.tables import quiet
from torch import Tensor, nn

import approx
from approx import Descriptors, StoredDescriptors, StoreError, bind, open_store
from approx.stores import open_group, writing
from approx.tables import jobs

OPTIONS: dict[str, Any] = {"neighbourhood": (2, 0.1), "batch": 3, "chunk": 6}


def made(latents: int = 20) -> tuple[nn.Module, Tensor]:
    """Make a small decoder and latents."""
    torch.manual_seed(0)
    layers = nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 5)
    return nn.Sequential(*layers), torch.randn(latents, 3)


def one_run(decoder: Any, latents: Any, **options: Any) -> Descriptors:
    return quiet(decoder, latents, **{k: v for k, v in (OPTIONS | options).items() if k != "chunk"})


def stored(decoder: Any, latents: Any, store: Any, **options: Any) -> StoredDescriptors:
    found = quiet(decoder, latents, store=store, **(OPTIONS | options))
    assert isinstance(found, StoredDescriptors)
    return found


def assert_equal(found: Descriptors, expected: Descriptors) -> None:
    """Equal bit for bit, in every field."""
    for f in fields(expected):
        one, other = getattr(found, f.name), getattr(expected, f.name)
        if isinstance(other, np.ndarray):
            assert one.dtype == other.dtype, f.name
            np.testing.assert_array_equal(one, other, err_msg=f.name)
        else:
            assert one == other or (one != one and other != other), f.name


class Stopping:
    """Latents in pieces, with an interruption after some."""

    def __init__(self, latents: Tensor, after: int) -> None:
        self.latents, self.after = latents, after

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.latents[: self.after].split(2)
        raise KeyboardInterrupt


@pytest.mark.parametrize("method", ["predict", "exact"])
def test_a_run_interrupted_after_each_chunk_equals_one_run(tmp_path: Path, method: str) -> None:
    """With rows that fail, notes, and a last chunk that is not full."""
    module, shape = decoders.DECODERS["relu_mlp"]()
    z = decoders.latents(shape, 20)
    z[7] = torch.nan
    options: dict[str, Any] = {"method": method, "k": 4, "on_error": "nan"}
    for after in (6, 12, 18):
        with pytest.warns(RuntimeWarning, match=f"Interrupted after {after} latents: these are in"):
            part = stored(module, Stopping(z, after + 2), tmp_path / "a", **options)
        assert (len(part), part.complete, part.store.latents) == (after, False, None)
    expected = one_run(module, z, **options)
    table = stored(module, z, tmp_path / "a", **options)
    assert table.complete
    assert_equal(table, expected)
    assert_equal(table.load(), expected)
    assert_equal(open_store(tmp_path / "a"), expected)
    whole = stored(module, z, tmp_path / "b", **options)
    assert [vars(m) for m in whole.store.markers.values()] == [
        vars(m) for m in table.store.markers.values()
    ]
    with torch.no_grad():  # a finished store runs the decoder once, and that alone
        calls: list[int] = []
        handle = module.register_forward_hook(lambda *_: calls.append(1))
        assert stored(module, z, tmp_path / "a", **options).complete
        handle.remove()
    assert len(calls) == 1


def test_a_store_equals_one_run_where_latents_differ_in_their_products(tmp_path: Path) -> None:
    """Batches with latents that fall back, and others that are predicted from 26 products."""
    module, z = wide("silu_conv", batch=4)
    options: dict[str, Any] = {
        "method": "predict", "k": 48, "neighbourhood": None, "generator": 3, "batch": 2, "chunk": 2,
    }  # fmt: skip
    expected = one_run(module, z, **options)
    assert 62 in expected.products  # 52 rows for 48, and 10 for both predictions: one falls back
    assert {26, 58} & set(expected.products.tolist())  # both, or none
    stored(module, z[:2], tmp_path / "a", **options)
    assert_equal(stored(module, z, tmp_path / "a", **options), expected)


def test_a_store_fixes_batch_chunk_and_seed(tmp_path: Path) -> None:
    decoder, z = made(50)
    options: dict[str, Any] = {"batch": "auto", "chunk": "auto", "generator": None}
    with pytest.raises(approx.DescribeError, match="off"):
        stored(decoder, itertools.chain(z[:10], _raising()), tmp_path / "a", **options)
    header = open_store(tmp_path / "a").store.header
    assert header["chunk"] % header["batch"] == 0
    table = stored(decoder, z, tmp_path / "a", **options)
    assert_equal(table, one_run(decoder, z, batch=header["batch"], generator=table.seed))


def _raising() -> Iterator[Tensor]:
    raise RuntimeError("off")
    yield


def test_more_latents_are_appended_and_a_partial_chunk_done_again(tmp_path: Path) -> None:
    decoder, z = made(40)
    stored(decoder, z[:10], tmp_path / "a")
    for count in (10, 14, 40):
        table = stored(decoder, z[:count], tmp_path / "a")
        assert_equal(table, one_run(decoder, z[:count]))
    with pytest.raises(StoreError, match=r"the 40 latents that .* has rows for.*, got 39: give"):
        stored(decoder, z[:39], tmp_path / "a")
    with pytest.raises(StoreError, match=r"the 40 latents that .* has rows for.*, got 39: give"):
        stored(decoder, list(z[:39]), tmp_path / "a")
    assert open_store(tmp_path / "a").complete


def test_every_kind_of_latents_gives_the_same(tmp_path: Path) -> None:
    xr, da = pytest.importorskip("xarray"), pytest.importorskip("dask.array")
    decoder, z = made()
    np.save(tmp_path / "z.npy", z.numpy())
    held = zarr.create_array(store=str(tmp_path / "z.zarr"), data=z.numpy(), chunks=(4, 3))
    kinds = {
        "array": z.numpy(),
        "in a file": np.load(tmp_path / "z.npy", mmap_mode="r"),
        "zarr": held,
        "xarray": xr.DataArray(z.numpy()),
        "dask": da.from_zarr(held),
        "batches": z.split(7),
        "one by one": list(z),
    }
    expected = one_run(decoder, z)
    stored(decoder, z, tmp_path / "all")
    for name, latents in kinds.items():
        assert_equal(stored(decoder, latents, tmp_path / name), expected)
        assert stored(decoder, latents, tmp_path / "all").complete  # the same digests


def test_views_of_a_store_read_what_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, z = made()
    expected = one_run(decoder, z)
    table = stored(decoder, z, tmp_path / "a")
    read = []
    array = zarr.Array.__getitem__
    monkeypatch.setattr(zarr.Array, "__getitem__", lambda a, i: read.append(a.name) or array(a, i))
    text = f"StoredDescriptors(20 of 20 latents in {tmp_path / 'a'}, psi and nu (exact), k=3, "
    assert repr(table) == f"{text}float32, seed=5, complete)"
    lazy = table.to_xarray()
    assert (len(table), table.k, "psi" in table.columns(), read) == (20, 3, True, [])
    np.testing.assert_array_equal(lazy.psi[4:9], expected.psi[4:9])
    frame = table.to_pandas(["nu"])
    np.testing.assert_array_equal(frame["nu"], expected.nu)
    assert read == ["/psi", "/nu"]
    assert (lazy.attrs, frame.attrs) == (expected.attributes(), expected.attributes())
    assert lazy.psi.attrs["definition"] == expected.definition
    for rows in (slice(2, 15), slice(5, 7), slice(18, None), slice(3, 3)):
        part = table[rows]
        for name, column in expected.columns().items():
            np.testing.assert_array_equal(part.columns()[name], column[rows])
    with pytest.raises(ValueError, match="Expected a slice of rows in their order, got step 2"):
        table[::2]
    assert len(approx.concatenate([table, expected])) == 40
    # as anybody opens it
    xr = pytest.importorskip("xarray")
    opened = xr.open_zarr(tmp_path / "a", consolidated=False, chunks=None)
    np.testing.assert_array_equal(opened.delta, expected.delta)
    assert opened.attrs["definition"] == expected.definition


class Other(nn.Module):
    """The same weights, and other code around them."""

    def __init__(self, inner: nn.Sequential) -> None:
        super().__init__()
        for name, part in inner.named_children():
            self.add_module(name, part)

    def forward(self, z: Tensor) -> Tensor:
        return 2 * self._modules["2"](self._modules["1"](self._modules["0"](z)))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"generator": 6},
         "Expected seed=5, with which .* was begun; got seed=6: give the former, or choose"),
        ({"k": 2}, "Expected k=None, with which .*; got k=2"),
        ({"batch": 2}, "Expected batch=3, with which .*; got batch=2"),
        ({"chunk": 3}, "Expected chunk=6, with which .*; got chunk=3"),
        ({"dtype": torch.float64, "method": "paper"},
         "Expected method='auto', dtype=None, with .*; got method='paper', dtype='float64'"),
        ({"neighbourhood": (3, 0.1)}, r"neighbourhood=\[2, 0.1\], with .*; got .*=\[3, 0.1\]"),
        ({"on_error": "nan"}, "Expected on_error='raise', with which .*; got on_error='nan'"),
    ],
)  # fmt: skip
def test_another_run_is_refused_by_what_differs(tmp_path: Path, change: Any, said: str) -> None:
    decoder, z = made()
    stored(decoder, z, tmp_path / "a")
    before = _contents(tmp_path)
    with pytest.raises(StoreError, match=said):
        stored(decoder, z, tmp_path / "a", **change)
    assert _contents(tmp_path) == before


def test_other_latents_and_decoders_are_refused(tmp_path: Path) -> None:
    decoder, z = made()
    stored(decoder, z, tmp_path / "a")
    before = _contents(tmp_path)
    other = z.clone()
    other[13, 1] += 1e-6
    with pytest.raises(
        StoreError, match=r"got others in rows 12 to 17: give those \(of .*, or choose"
    ):
        stored(decoder, torch.cat([other, z]), tmp_path / "a")
    with pytest.raises(StoreError, match="got others from the first on: give those"):
        stored(decoder, z.flip(0), tmp_path / "a")
    with pytest.raises(StoreError, match="a decoder of these modules, by which the store was"):
        stored(Other(decoder), z, tmp_path / "a")  # type: ignore[arg-type]
    smooth = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 8))
    stored(smooth, z, tmp_path / "smooth")
    smooth[1] = nn.GELU(approximate="tanh")
    with pytest.raises(StoreError, match="a decoder of these modules, by which the store was"):
        stored(smooth, z, tmp_path / "smooth")
    shutil.rmtree(tmp_path / "smooth")
    with torch.no_grad():
        decoder[0].bias[2] += 1e-6  # type: ignore[index, union-attr]
    with pytest.raises(StoreError, match="a decoder with these weights, by which the store was"):
        stored(decoder, z, tmp_path / "a")
    assert _contents(tmp_path) == before


def test_rows_of_a_bound_decoder_belong_to_its_latents(tmp_path: Path) -> None:
    _, z = made()
    rows = torch.rand(20, 1) + 1

    def decode(z: Tensor, scale: Tensor) -> Tensor:
        return torch.tanh(z) * scale

    stored(bind(decode, scale=rows[:14]), z[:14], tmp_path / "a")
    table = stored(bind(decode, scale=rows), z, tmp_path / "a")
    assert_equal(table, one_run(bind(decode, scale=rows), z))
    with pytest.raises(StoreError, match="got others in rows 6 to 11"):
        stored(bind(decode, scale=torch.cat([rows[:8], rows[8:] + 1])), z, tmp_path / "a")


def test_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, z = made()
    stored(decoder, z, tmp_path / "a")
    monkeypatch.setattr(jobs.importlib.metadata, "version", lambda name: "99.0")
    with pytest.raises(StoreError, match=r"Expected this version of cpwl, .* got 99\.0: give the"):
        stored(decoder, z, tmp_path / "a")


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 16
    path.write_bytes(bytes(data))


DAMAGES = {
    "flipped": _flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "another's": lambda path: shutil.copy(path.with_name("2"), path),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_chunk_is_told_and_done_again(tmp_path: Path, damage: str) -> None:
    decoder, z = made()
    table = stored(decoder, z, tmp_path / "a")
    DAMAGES[damage](tmp_path / "a" / "psi" / "c" / "1")
    marker = tmp_path / "a" / "run" / "000001.json"
    said = rf"column psi of .* rows 6 to 11: delete {marker} and describe the same latents"
    with pytest.raises(StoreError, match=said):
        open_store(tmp_path / "a").psi  # noqa: B018
    np.testing.assert_array_equal(table[12:].psi, one_run(decoder, z).psi[12:])
    marker.unlink()
    unfinished = open_store(tmp_path / "a")
    assert (unfinished.complete, unfinished.store.done, len(unfinished)) == (False, 14, 20)
    assert np.isnan(unfinished.psi).tolist() == [6 <= i < 12 for i in range(20)]
    assert_equal(stored(decoder, z, tmp_path / "a"), one_run(decoder, z))


@pytest.mark.parametrize("text", ["{", "{}", "null"])
def test_a_damaged_column_is_told_by_whoever_writes_to_it(tmp_path: Path, text: str) -> None:
    decoder, z = made()
    stored(decoder, z, tmp_path / "a")
    (tmp_path / "a" / "psi" / "zarr.json").write_text(text)
    (tmp_path / "a" / "run" / "000001.json").unlink()
    with pytest.raises(StoreError, match=r"column psi of .* got a damaged zarr.json in it \("):
        stored(decoder, z, tmp_path / "a")


def test_a_damaged_marker_costs_its_chunk_and_a_damaged_header_is_told(tmp_path: Path) -> None:
    decoder, z = made()
    stored(decoder, z, tmp_path / "a")
    _flip(tmp_path / "a" / "run" / "000002.json")
    with pytest.warns(RuntimeWarning, match=r"000002\.json is damaged: its chunk counts as not"):
        assert not open_store(tmp_path / "a").complete
    with pytest.warns(RuntimeWarning, match="is damaged"):
        table = stored(decoder, z, tmp_path / "a")
    assert_equal(table, one_run(decoder, z))
    path = tmp_path / "a" / "zarr.json"
    path.write_text(path.read_text().replace('"seed": 5', '"seed": 7'))
    with pytest.raises(StoreError, match=r"header of .* got a damaged zarr.json: put a copy"):
        stored(decoder, z, tmp_path / "a")


def test_other_formats_and_folders_are_refused_and_left_alone(tmp_path: Path) -> None:
    decoder, z = made()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    zarr.create_group(store=str(tmp_path / "group"))
    shutil.copytree(tmp_path / "group", tmp_path / "newer")
    group = json.loads((tmp_path / "newer" / "zarr.json").read_text())
    group["attributes"] = {"cpwl_store": {"format": 2}}
    (tmp_path / "newer" / "zarr.json").write_text(json.dumps(group))
    before = _contents(tmp_path)
    for name, said in {
        "thesis": r"Expected PLACE at .*, got thesis\.tex: choose another",
        "file": r"Expected PLACE at .*, got a file: choose",
        "group": "Expected a store of descriptors at .*, got another Zarr group: choose",
        "newer": "Expected a store of format 1 at .*, got 2: it was made by a newer version",
    }.items():
        for call, place in (
            (lambda to: stored(decoder, z, to), "a store or an empty place"),
            (open_store, "a store"),
        ):
            with pytest.raises(StoreError, match=said.replace("PLACE", place)):
                call(tmp_path / name)
    assert _contents(tmp_path) == before
    with pytest.raises(StoreError, match=r"Expected a store at .*none, got nothing"):
        open_store(tmp_path / "none")


def test_two_runs_on_one_store(tmp_path: Path) -> None:
    decoder, z = made()
    with writing(tmp_path / "a"):
        said = rf"Expected to be the only run on .*, got one of process {os.getpid()} on .* since"
        with pytest.raises(StoreError, match=said):
            stored(decoder, z, tmp_path / "a")
    assert_equal(stored(decoder, z, tmp_path / "a"), one_run(decoder, z))


@pytest.mark.parametrize(
    ("owner", "gone"),
    [
        ({}, False),
        ({"started": "1"}, True),  # the number of a process, given again
        ({"pid": 2**22 + 1}, True),
        (None, True),
    ],
)
def test_the_lock_of_a_process_that_is_gone_is_taken_over(
    tmp_path: Path, owner: dict[str, Any] | None, gone: bool
) -> None:
    decoder, z = made()
    path = tmp_path / "a" / "run" / "lock.json"
    with writing(tmp_path / "a"):
        own = json.loads(path.read_text())
    path.write_text("" if owner is None else json.dumps(own | owner))
    if gone:
        with pytest.warns(RuntimeWarning, match=r"is gone without giving it back: this one goes"):
            stored(decoder, z, tmp_path / "a")
        assert not path.exists()
    else:
        with pytest.raises(StoreError, match="Expected to be the only run"):
            stored(decoder, z, tmp_path / "a")
        assert path.exists()


@pytest.mark.parametrize("alive", [False, True])
@pytest.mark.parametrize("clock", [-1e6, 0.0, 1e6])
def test_a_lock_of_another_machine_is_watched_whatever_its_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: bool, clock: float
) -> None:
    monkeypatch.setattr("approx.stores.locking._BEAT", 0.1)
    decoder, z = made()
    path = tmp_path / "a" / "run" / "lock.json"
    with writing(tmp_path / "a"):
        owner = json.loads(path.read_text()) | {"place": "another machine"}

    def beat(n: int) -> None:
        path.write_text(json.dumps(owner | {"alive": time.time() + clock + n}))

    beat(0)
    watched = pytest.warns(RuntimeWarning, match="looking for up to 0 s whether it is alive")
    if not alive:
        with watched, pytest.warns(RuntimeWarning, match="is gone without giving it back"):
            stored(decoder, z, tmp_path / "a")
        assert not path.exists()
        return
    beating = threading.Timer(0.05, beat, (1,))
    beating.start()
    with watched, pytest.raises(StoreError, match="Expected to be the only run"):
        stored(decoder, z, tmp_path / "a")
    beating.join()
    assert path.exists()


@pytest.mark.parametrize("text", ["", "[1]", '{"pid": "x", "alive": "x"}', '{"alive": null}'])
def test_a_lock_of_nobody_is_taken_over(tmp_path: Path, text: str) -> None:
    module, z = made()
    stored(module, z[:6], tmp_path / "a")
    (tmp_path / "a" / "run" / "lock.json").write_text(text)
    with pytest.warns(RuntimeWarning, match="is gone without giving it back"):
        assert len(stored(module, z, tmp_path / "a")) == 20


@pytest.mark.parametrize("name", ["run/lock.json", "zarr.json", "run/marks"])
def test_a_folder_in_place_of_a_file_is_said_to_be_one(tmp_path: Path, name: str) -> None:
    module, z = made()
    stored(module, z[:6], tmp_path / "a")
    path = tmp_path / "a" / name
    if name == "run/marks":
        path = next(p for p in (tmp_path / "a" / "run").rglob("*") if p.is_file())
    path.unlink(missing_ok=True)
    path.mkdir()
    with pytest.raises(approx.StoreError, match=r"Expected a file .* got a folder: remove it"):
        stored(module, z, tmp_path / "a")


def test_a_run_whose_lock_was_taken_stops(tmp_path: Path) -> None:
    decoder, z = made()

    def latents() -> Iterator[Tensor]:
        yield z[:9]
        path = tmp_path / "a" / "run" / "lock.json"
        path.write_text(path.read_text().replace('"token": "', '"token": "x'))
        yield z[9:]

    with pytest.raises(StoreError, match=r"got its lock taken by process .*: this run stops"):
        stored(decoder, latents(), tmp_path / "a")
    assert len(open_store(tmp_path / "a")) == 6
    assert (tmp_path / "a" / "run" / "lock.json").exists()  # the other's


def test_a_heartbeat_keeps_the_lock_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("approx.stores.locking._BEAT", 0.01)
    path = tmp_path / "a" / "run" / "lock.json"
    with writing(tmp_path / "a"):
        first = json.loads(path.read_text())["alive"]
        end = time.monotonic() + 10
        while json.loads(path.read_text())["alive"] == first:
            assert time.monotonic() < end
    assert not path.exists()


def test_a_disk_full_at_any_write_costs_the_chunk_in_work() -> None:
    """Which is also a crash at any of them: nothing after it is written."""
    disk = small_disk()
    columns = [{"x": np.arange(4.0) + i, "y": np.arange(4) % 2 == i} for i in range(3)]

    def write(url: str) -> None:
        with writing(url) as writer:
            if writer.header is None:
                writer.start({"chunk": 4})
            for number in {0, 1, 2} - writer.markers.keys():
                writer.commit(number, "", columns[number], {})
            writer.expect(12)
            writer.finish({"k": 3})

    write("small://once")
    disk.room = 10_000
    write("small://all")
    writes = int(10_000 - disk.room)
    assert writes > 15
    for room in range(writes):
        disk.room, url = room, f"small://{room}"
        with pytest.raises(StoreError, match=r"Expected room and leave to write to .*No space"):
            write(url)
        disk.room = float("inf")
        if f"/{room}/zarr.json" in disk.store:
            found = open_group(url)
            for name in found.names():  # whole chunks, and nothing of others
                expected = [columns[number][name] for number in found.markers]
                np.testing.assert_array_equal(found.read(name), np.concatenate(expected))
        write(url)
        for name in ("x", "y"):
            whole = np.concatenate([part[name] for part in columns])
            np.testing.assert_array_equal(open_group(url).read(name), whole)


def test_a_table_goes_on_after_its_disk_was_full() -> None:
    decoder, z = made()
    disk = small_disk()
    disk.room = 70
    with pytest.raises(StoreError, match=r"Expected room and leave to write to small://a, got "):
        stored(decoder, z, "small://a")
    assert 0 < len(open_store("small://a")) < 20
    disk.room = float("inf")
    assert_equal(stored(decoder, z, "small://a"), one_run(decoder, z))


def test_a_store_needs_zarr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, z = made()
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r"zarr to be installed, got .*pip install 'cpwl\[table"):
        stored(decoder, z, tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"chunk": 0}, "chunk as a positive integer or 'auto', got 0"),
        ({"chunk": 7}, "chunk as a multiple of the batch of 3, got 7: give 9, or chunk='auto'"),
        ({"store": None}, r"store= with chunk=6, got none: give both or neither"),
    ],
)
def test_bad_options(tmp_path: Path, options: Any, said: str) -> None:
    decoder, z = made()
    with pytest.raises(ValueError, match=said):
        quiet(decoder, z, **(OPTIONS | {"store": tmp_path / "a"} | options))


def test_a_batch_of_auto_divides_any_chunk(tmp_path: Path) -> None:
    decoder, z = made()
    table = stored(decoder, z, tmp_path / "a", batch="auto", chunk=7)
    header = table.store.header
    assert header["chunk"] == 7
    assert header["batch"] <= 7
    assert_equal(stored(decoder, z, tmp_path / "a", batch="auto", chunk=7), table)


def test_a_file_above_the_store_is_told(tmp_path: Path) -> None:
    decoder, z = made()
    (tmp_path / "a").write_text("x")
    with pytest.raises(StoreError, match=r"Expected a folder for the store .*: choose a place in"):
        stored(decoder, z, tmp_path / "a" / "b")


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    module, z = made()
    numbers: dict[str, Any] = {
        "k": np.int64(2), "products": np.int32(16), "neighbourhood": (np.int64(2), np.float64(0.1)),
    }  # fmt: skip
    table = stored(module, z, tmp_path / "a", **numbers)
    assert_equal(stored(module, z, tmp_path / "a", k=2, products=16), table)


def test_a_place_is_one_whatever_the_current_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, z = made()
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("a.zarr", "~/b.zarr", "c, # ü.zarr", "d::e.zarr"):
        monkeypatch.chdir(tmp_path)
        table = stored(module, z, name)
        monkeypatch.chdir(home)
        assert len(table.psi) == 20
        assert "::" in name or len(table.to_xarray().psi) == 20  # xarray takes that for a URL
    assert sorted(x.name for x in tmp_path.iterdir()) == [
        "a.zarr",
        "c, # ü.zarr",
        "d::e.zarr",
        "home",
    ]
    assert [x.name for x in home.iterdir()] == ["b.zarr"]


@pytest.mark.parametrize(
    ("store", "said"),
    [
        (3, "Expected store as a path or a URL, got 3: name a folder"),
        ("", "Expected store as a path or a URL, got '': name a folder"),
        ("foo://a", "URL that fsspec opens, got foo://a: Protocol not known: foo"),
    ],
)
def test_places_that_are_none(store: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        stored(*made(), store)


def test_a_chunk_that_fails_as_a_whole_hides_nothing(tmp_path: Path) -> None:
    """Neither what ended the run after it, nor how large batches of the others may be."""
    module, z = made()
    z[:6] = torch.nan

    def broken() -> Iterator[Tensor]:
        yield from z[:6].split(2)
        raise OSError("the reader broke")

    with pytest.raises(OSError, match="the reader broke"):
        stored(module, broken(), tmp_path / "a", on_error="nan")
    with pytest.raises(KeyboardInterrupt):
        stored(module, Stopping(z, 10), tmp_path / "b", on_error="nan")
    table = stored(module, z, tmp_path / "a", on_error="nan")
    assert_equal(table, one_run(module, z, on_error="nan"))
    auto: Any = {"batch": "auto", "chunk": "auto"}
    assert stored(module, z, tmp_path / "c", on_error="nan", **auto).store.header["batch"] > 1


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_other_code_of_equal_weights_is_refused_in_any_dtype(tmp_path: Path, dtype: Any) -> None:
    module, z = made()
    plain: Any = lambda z: module(z)  # noqa: E731
    stored(plain, z, tmp_path / "a", dtype=dtype)
    leaky: Any = lambda z: module(z) + 0.01 * z.sum(dim=1, keepdim=True)  # noqa: E731
    with pytest.raises(StoreError, match="the weights are the same and the code around"):
        stored(leaky, z, tmp_path / "a", dtype=dtype)
    overflowing: Any = lambda z: module(z) / 0  # noqa: E731
    with pytest.raises(StoreError, match="got none that is finite: the weights are the same"):
        stored(overflowing, z, tmp_path / "a", dtype=dtype, on_error="raise")


def test_a_chunk_fixes_the_batch_that_is_tried_for(tmp_path: Path) -> None:
    decoder, z = made(40)
    table = stored(decoder, z, tmp_path / "a", batch="auto", chunk=15)
    assert (table.store.header["chunk"], table.store.header["batch"]) == (15, 15)


def test_a_field_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("xarray")
    decoder, _ = made()
    anchors = torch.eye(3)
    options = OPTIONS | {"progress": False, "generator": 5, "store": tmp_path / "a"}
    calls = 0

    def interrupt(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 40:
            raise KeyboardInterrupt

    handle = decoder.register_forward_hook(interrupt)
    with pytest.warns(RuntimeWarning, match="Interrupted after"):
        part = approx.field(decoder, anchors, (5, 4), **options)
    handle.remove()
    done = int(np.isfinite(part.psi.values).sum())
    assert 0 < done < 20
    assert np.isfinite(part.psi.values.ravel()[:done]).all()
    assert part.attrs["complete"] == 0
    whole = approx.field(decoder, anchors, (5, 4), **options)
    alone = {k: v for k, v in options.items() if k not in ("store", "chunk")}
    assert whole.identical(approx.field(decoder, anchors, (5, 4), **alone))


def test_a_pool_goes_on(tmp_path: Path) -> None:
    decoder, _ = made()
    square = torch.distributions.Uniform(-torch.ones(3), torch.ones(3))
    options: dict[str, Any] = {"progress": False, "seed": 0, "batch": 10}
    expected = approx.sampling.measure(decoder, square, 50, **options)
    for size in (30, 50):
        pool = approx.sampling.measure(decoder, square, size, **options, store=tmp_path / "a")
    assert_equal(pool.table, expected.table)
    np.testing.assert_array_equal(pool.marks, expected.marks)


_CHILD = """
import sys, torch
sys.path[:0] = sys.argv[2:]
import approx
torch.manual_seed(0)
layers = torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 5)
decoder, z = torch.nn.Sequential(*layers), torch.randn(150, 3)
torch.set_num_threads(1)
print("begun", flush=True)
approx.describe(decoder, z, neighbourhood=(2, 0.1), batch=3, chunk=6, seed=5, progress=False,
                store=sys.argv[1])
"""


def _killed(store: Path, seconds: float, kill: int) -> bool:
    """Run a child and kill it some time after it begun; False if it was done before."""
    root = str(Path(approx.__file__).parents[1])
    command = [sys.executable, "-W", "ignore", "-c", _CHILD, str(store), root]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"begun\n"
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.send_signal(kill)
    return child.returncode != 0


def _kill_until_done(store: Path, times: list[float], signals: list[int]) -> int:
    kills = sum(_killed(store, t, s) for t, s in zip(times, signals, strict=True))
    decoder, z = made(150)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The run of", RuntimeWarning)
        table = stored(decoder, z, store)
    assert_equal(table, one_run(decoder, z))
    return kills


@pytest.mark.usefixtures("one_thread")
def test_a_run_that_is_killed_goes_on(tmp_path: Path) -> None:
    assert _kill_until_done(tmp_path / "a", [0.6], [signal.SIGKILL]) == 1


@pytest.mark.nightly
@pytest.mark.usefixtures("one_thread")
def test_a_run_that_is_killed_twenty_times_goes_on(tmp_path: Path) -> None:
    rng = random.Random(0)
    times = [rng.uniform(0, 0.8) for _ in range(20)]
    signals = [rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]) for _ in times]
    assert _kill_until_done(tmp_path / "a", times, signals) > 10
