"""Files with random damage: each ends right or in one line, in time and in memory."""

from __future__ import annotations

import random
import resource
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.archives import rewrite, save_pt2
from support.damage import small
from torch import nn

import cpwl
from bridges.cli.arguments import check_latents, load_npy
from cpwl.network.files import read_onnx, read_pt2

pytestmark = pytest.mark.usefixtures("one_thread")

SECONDS, KIBIBYTES = 2.0, 2**20


def _write_npz(path: Path) -> None:
    cpwl.save_partition(small(), path)


def _write_json(path: Path) -> None:
    cpwl.certify(small(), progress=False).save(path)


def _module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 4), nn.Hardtanh())


def _write_pt2(path: Path) -> None:
    save_pt2(_module(), (2,), path)


def _write_onnx(path: Path) -> None:
    torch.onnx.export(
        _module().eval(), (torch.zeros(1, 2),), str(path), opset_version=17, dynamo=False
    )


def _write_npy(path: Path) -> None:
    np.save(path, np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32))


def _read_partition(path: Path) -> None:
    partition = cpwl.load_partition(path)
    assert partition.num_cells == small().num_cells
    np.testing.assert_array_equal(partition.patterns, small().patterns)


def _read_proof(path: Path) -> None:
    assert cpwl.verify(path, progress=False).cells == small().num_cells


def _read_latents(path: Path) -> None:
    for mapped in (False, True):
        check_latents(load_npy(path, "the latents", mapped=mapped), path)


FORMATS: dict[str, tuple[Callable[[Path], None], Callable[[Path], object]]] = {
    ".npz": (_write_npz, _read_partition),
    ".json": (_write_json, _read_proof),
    ".pt2": (_write_pt2, lambda path: read_pt2(path, None)),
    ".npy": (_write_npy, _read_latents),
    ".onnx": (_write_onnx, lambda path: read_onnx(path, None)),
}


def _flipped(body: bytes, choose: random.Random) -> bytes:
    """Change some bytes, cut the end off, or take a part out."""
    changed = bytearray(body)
    kind = choose.randrange(5)
    place = choose.randrange(len(body)) if body else 0
    if kind == 0:
        return body[:place]
    if kind == 1:
        return body[:place] + body[place + choose.randrange(1, 9) :]
    for _ in range(choose.choice((1, 1, 2, 8)) if body else 0):
        place = choose.randrange(len(changed))
        if kind == 2:  # a digit for a digit: other sizes, the same grammar
            digits = [k for k, byte in enumerate(changed) if byte in b"0123456789"]
            place = choose.choice(digits) if digits else place
            changed[place] = choose.choice(b"0123456789")
        else:
            changed[place] ^= 1 << choose.randrange(8)
    return bytes(changed)


def _damage(path: Path, original: Path, choose: random.Random) -> None:
    """Damage a file; in an archive half of the time a member, whose checksum then fits."""
    if zipfile.is_zipfile(original) and choose.random() < 0.7:

        def change(members: dict[str, bytes]) -> None:
            name = choose.choice(sorted(members))
            members[name] = _flipped(members[name], choose)

        rewrite(original, path, change)
        return
    path.write_bytes(_flipped(original.read_bytes(), choose))


def _fuzz(suffix: str, folder: Path, count: int) -> dict[str, int]:
    write, read = FORMATS[suffix]
    original, damaged = folder / f"original{suffix}", folder / f"damaged{suffix}"
    write(original)
    read(original)
    found = {"read": 0, "refused": 0}
    for seed in range(count):
        _damage(damaged, original, random.Random(f"{suffix} {seed}"))
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        try:
            read(damaged)
            found["read"] += 1
        except ValueError as error:
            message = str(error)
            assert "xpected " in message, f"{suffix} {seed}: {message}"
            assert ", got " in message, f"{suffix} {seed}: {message}"
            assert "\n" not in message, f"{suffix} {seed}: {message}"
            assert len(message) < 1000, f"{suffix} {seed}: {message}"
            found["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{suffix} {seed}: {type(error).__name__}: {error}") from error
        spent = time.process_time() - start
        taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert spent < SECONDS, f"{suffix} {seed}: {spent} s"
        assert taken < KIBIBYTES, f"{suffix} {seed}: {taken} KiB"
    assert sorted(file.name for file in folder.iterdir()) == [damaged.name, original.name]
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Duplicate name")
@pytest.mark.parametrize("suffix", FORMATS)
def test_forty_damaged_files_end_right_or_in_one_line(suffix, tmp_path) -> None:
    found = _fuzz(suffix, tmp_path, 40)
    assert found["refused"] >= 10, found


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Duplicate name")
@pytest.mark.parametrize("suffix", FORMATS)
def test_five_hundred_damaged_files_end_right_or_in_one_line(suffix, tmp_path) -> None:
    print(suffix, _fuzz(suffix, tmp_path, 500))
