"""Files that are written whole or not at all: ended, killed and full."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import cpwl
from cpwl import files

SCRIPT = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
with files.atomic_path(sys.argv[2]) as part:
    part.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@contextmanager
def writing(path):
    """A process in the middle of writing a file."""
    command = [sys.executable, "-c", SCRIPT, files.__file__, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        yield process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_process_that_is_ended_leaves_the_old_file_alone(tmp_path, number):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with writing(path) as process:
        assert len(list(tmp_path.iterdir())) == 2
        process.send_signal(number)
        status = process.wait(20)
    assert status == (-number if number == signal.SIGINT else 128 + number)
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]
    assert path.read_text() == "old"


def test_what_a_killed_process_leaves_is_swept_by_the_next_that_writes_the_file(tmp_path):
    path = tmp_path / "table.csv"
    with writing(path) as process:
        process.kill()
    with writing(path) as alive:
        left = [file.name for file in tmp_path.iterdir()]
        assert len(left) == 1  # not the dead process's, but that of the living one
        (tmp_path / left[0].replace("table", "other")).write_text("of another file")
        with files.atomic_path(path) as part:
            part.write_text("new")
        assert {file.name for file in tmp_path.iterdir()} == {
            "table.csv", left[0], left[0].replace("table", "other")
        }  # fmt: skip
        alive.kill()
    with files.atomic_path(path) as part:
        part.write_text("newer")
    assert {file.name for file in tmp_path.iterdir()} == {
        "table.csv", left[0].replace("table", "other")
    }  # fmt: skip


def test_a_folder_that_is_written_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "store.zarr"
    for text in ("old", "new"):
        with files.atomic_folder(path) as part:
            part.mkdir()
            (part / "a").write_text(text)
    with pytest.raises(KeyError), files.atomic_folder(path) as part:  # noqa: PT012
        part.mkdir()
        raise KeyError
    assert (path / "a").read_text() == "new"
    assert os.listdir(tmp_path) == ["store.zarr"]


def test_signals_are_the_callers_again_afterwards(tmp_path):
    mine = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        handler = signal.getsignal(signal.SIGTERM)
        with files.atomic_path(tmp_path / "a") as part:
            assert signal.getsignal(signal.SIGTERM) is handler
            part.touch()
    finally:
        signal.signal(signal.SIGTERM, mine)
    with files.atomic_path(tmp_path / "a") as part:
        part.touch()
    assert signal.getsignal(signal.SIGTERM) is mine


@contextmanager
def full_disk(size):
    """No file of this process grows beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["partition.npz", "proof.json", "cells.parquet"])
def test_a_full_disk_names_the_file(tmp_path, name):
    module = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    network = cpwl.Network.from_torch(module, (2,))
    partition = cpwl.subdivide(network, cpwl.box([-2, -2], [2, 2]), progress=False)
    path = tmp_path / name
    write = {
        ".npz": lambda: cpwl.save_partition(partition, path),
        ".json": cpwl.certify(partition, progress=False).save,
        ".parquet": lambda: cpwl.write_geoparquet(partition, path),
    }[path.suffix]
    with (
        full_disk(256),
        pytest.raises(OSError, match=r"Expected room on the disk for .*Free") as error,
    ):
        write(path) if path.suffix == ".json" else write()
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_only_one_place_writes_parts() -> None:
    """Every writer goes through `atomic_path`, or `approx`'s own for the small files of stores."""
    folder = Path(cpwl.__file__).parents[1]
    users = [
        file.relative_to(folder).as_posix()
        for package in ("cpwl", "bridges", "approx")
        for file in (folder / package).rglob("*.py")
        if "os.replace(" in file.read_text()
    ]
    assert sorted(users) == ["approx/stores/folder.py", "cpwl/files.py"]
