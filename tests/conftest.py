"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from bridges.cli import group


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Look for examples in the packages, and not in what tests and benchmarks import."""
    return True if collection_path.suffix == ".py" and collection_path.name[:5] != "test_" else None


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder with the real networks and data sets, from the environment variable CPWL_DATA."""
    folder = os.environ.get("CPWL_DATA")
    if not folder:
        pytest.skip("set the environment variable CPWL_DATA to the folder with the real networks")
    return Path(folder)


@pytest.fixture(scope="module")
def one_thread():
    """One torch thread: on tiny networks more of them only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(folder, monkeypatch, capsys, tmp_path):
    """Return a function that runs the command in a fresh folder: status, stdout, stderr.

    An @ in its line stands for the test module's own fixture `folder`.
    """
    monkeypatch.chdir(tmp_path)

    def command(line):
        words = line.replace("@", f"{folder}/").split()
        with pytest.raises(SystemExit) as stopped:
            group.main(words)
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return command
