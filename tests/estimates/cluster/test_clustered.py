"""`describe` and `field` on a cluster: the same rows as in this process, from any latents."""

from __future__ import annotations

import functools
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import approx
from approx.tables.clustered import gpu

SETTINGS = {"seed": 3, "batch": 5, "chunk": 10, "neighbourhood": (2, 0.1), "progress": False}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 6))


@pytest.fixture(scope="module")
def latents() -> Tensor:
    return torch.randn(47, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def expected(latents: Tensor, one_thread) -> approx.Descriptors:
    settings = {name: value for name, value in SETTINGS.items() if name != "chunk"}
    return approx.describe(network(), latents, **settings)


def check(found: approx.Descriptors, expected: approx.Descriptors) -> None:
    assert found.complete
    for name, column in expected.columns().items():
        np.testing.assert_array_equal(found.columns()[name], column)


def arrays(kind: str, latents: Tensor, folder: Path):
    if kind == "tensor":
        return latents
    if kind == "numbers":
        return latents.double().numpy()  # take the decoder's dtype
    if kind == "stream":
        return iter(latents.split(4))
    da = pytest.importorskip("dask.array")
    if kind == "dask":
        return da.from_array(latents.numpy(), chunks=(20, 3))
    if kind == "xarray":
        return pytest.importorskip("xarray").DataArray(
            da.from_array(latents.numpy(), chunks=(9, 3))
        )
    zarr = pytest.importorskip("zarr")
    found = zarr.create_array(
        f"{folder}/latents.zarr", shape=latents.shape, chunks=(13, 3), dtype="f4"
    )
    found[:] = latents.numpy()
    return found


@pytest.mark.parametrize("kind", ["tensor", "numbers", "stream", "dask", "xarray", "zarr"])
def test_rows_are_those_of_this_process_whatever_the_latents(
    kind, client, latents, expected, tmp_path
) -> None:
    given = arrays(kind, latents, tmp_path)
    run = functools.partial(
        approx.describe, network(), store=tmp_path / "run.zarr", client=client, **SETTINGS
    )
    check(run(given), expected)
    with pytest.raises(approx.StoreError, match="got others in rows 40 to 46"):
        run(torch.cat([latents[:-1], torch.zeros(1, 3)]))
    # the same store goes on in this process, and with more latents
    more = torch.cat([latents, latents[:5]])
    here = approx.describe(network(), more, store=tmp_path / "run.zarr", **SETTINGS)
    np.testing.assert_array_equal(here.psi[:47], expected.psi)
    assert len(run(more)) == 52


def test_latents_that_are_images(client, tmp_path) -> None:
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "images"
    folder.mkdir()
    values = np.random.default_rng(0).integers(0, 255, (12, 4, 4, 3), dtype=np.uint8)
    for number, pixels in enumerate(values):
        image.fromarray(pixels).save(folder / f"{number:02}.png")
    (folder / "labels.txt").write_text("no image")
    encode = functools.partial(torch.mean, dim=(2, 3))
    images = approx.Images(folder, encode)
    settings = SETTINGS | {"chunk": 5}
    latents = torch.from_numpy(values.astype(np.float32) / 255).mean((1, 2))
    store = tmp_path / "run.zarr"
    found = approx.describe(network(), images, store=store, client=client, **settings)
    expected = approx.describe(network(), latents, seed=3, neighbourhood=(2, 0.1), progress=False)
    np.testing.assert_allclose(found.psi, expected.psi, rtol=1e-5)
    # what is done is known by the files, and its images are not encoded again
    seen = []
    spied = approx.Images(folder, lambda x: seen.append(x) or encode(x))
    check(approx.describe(network(), spied, store=store, **settings), found)
    assert len(seen) <= 8  # the first, for the header
    image.fromarray(values[0]).save(folder / "03.png")
    with pytest.raises(approx.StoreError, match="got others in rows 0 to 4"):
        approx.describe(network(), images, store=store, client=client, **settings)
    (folder / "03.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(approx.DescribeError, match=r"Expected an image in .*03.png, got .*Remove"):
        approx.describe(network(), images, **settings | {"chunk": "auto"})
    with pytest.raises(ValueError, match=r"Expected images .* in .*, got none"):
        approx.describe(network(), approx.Images(tmp_path / "none", encode), progress=False)
    with pytest.raises(ValueError, match="Expected an encoder that returns one latent"):
        approx.describe(network(), approx.Images(folder, lambda x: x[0, 0, 0]), progress=False)


def test_a_plane_of_latents(client, latents, tmp_path) -> None:
    pytest.importorskip("xarray")
    settings = SETTINGS | {"resolution": (9, 5)}
    here = approx.field(network(), latents[:3], store=tmp_path / "a.zarr", **settings)
    there = approx.field(
        network(), latents[:3], store=tmp_path / "b.zarr", client=client, **settings
    )
    np.testing.assert_array_equal(there.psi, here.psi)
    np.testing.assert_array_equal(there.delta, here.delta)


def test_a_decoder_is_made_once_on_each_worker(client, latents, expected, tmp_path) -> None:
    made = tmp_path / "made"
    made.mkdir()

    def make() -> nn.Module:
        (made / str(os.getpid())).touch(exist_ok=False)
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 6))

    found = approx.describe(
        approx.Factory(make), latents, store=tmp_path / "run", client=client, **SETTINGS
    )
    check(found, expected)
    assert 1 <= len(list(made.iterdir())) <= 2
    with pytest.raises(ValueError, match="Expected a factory that returns a decoder, got NoneType"):
        approx.describe(approx.Factory(lambda: None), latents, progress=False)


def test_a_decoder_that_fails_on_one_worker(client, latents, expected, tmp_path) -> None:
    bad = min(client.run(os.getpid).values())

    class Bad(nn.Sequential):
        def forward(self, z: Tensor) -> Tensor:
            if os.getpid() == bad:
                raise RuntimeError("this GPU has fallen off the bus")
            return super().forward(z)

    for on_error in ("raise", "nan"):
        with pytest.warns(RuntimeWarning, match="fallen off the bus.*It gets no more of this run"):
            found = approx.describe(
                Bad(*network()), latents, store=tmp_path / on_error, client=client,
                on_error=on_error, **SETTINGS,
            )  # fmt: skip
        check(found, expected)


def test_a_latent_that_fails_everywhere_keeps_the_rest(client, latents, tmp_path) -> None:
    bad = latents.clone()
    bad[44] = torch.nan
    store = tmp_path / "run"
    from dask.array import from_array  # not looked at before

    with pytest.raises(approx.DescribeError, match="coordinates in latent 44: remove") as raised:
        approx.describe(
            network(), from_array(bad.numpy(), chunks=10), store=store, client=client, **SETTINGS
        )
    assert "On the worker tcp://" in "".join(raised.value.__cause__.__notes__)
    assert approx.open_store(store).store.done >= 10


def test_what_is_refused(client, latents, tmp_path) -> None:
    with pytest.raises(ValueError, match="Expected store= with client=, got none"):
        approx.describe(network(), latents, client=client)
    with pytest.raises(ValueError, match=r"Expected client= as a distributed\.Client, got 'tcp"):
        approx.describe(network(), latents, store=tmp_path / "a", client="tcp://host:8786")
    with pytest.raises(ValueError, match=r"a file that is read here \(.*\.pt2\), got 'no.file'"):
        approx.describe("no.file", latents)


def test_the_device_of_a_worker() -> None:
    assert [str(gpu(rank, 4)) for rank in range(6)] == [
        "cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:0", "cuda:1"]  # fmt: skip
    assert gpu(0, 0) == gpu(3, 0) == torch.device("cpu")


KILLED = """
import sys, torch
from distributed import Client
import approx

class Slow(torch.nn.Sequential):
    def forward(self, z):
        import time
        time.sleep(0.02)
        return super().forward(z)

if __name__ == "__main__":
    torch.manual_seed(0)
    layers = [torch.nn.Linear(3, 16), torch.nn.ReLU(), torch.nn.Linear(16, 6)]
    latents = torch.randn(600, 3, generator=torch.Generator().manual_seed(1))
    with Client(sys.argv[1]) as client:
        approx.describe(Slow(*layers), latents, store=sys.argv[2], client=client, seed=3, batch=5,
                        chunk=10, neighbourhood=(2, 0.1), progress=False)
"""


@pytest.mark.nightly
def test_twenty_kills_of_workers_and_clients_end_with_the_right_table(
    client, cluster, tmp_path
) -> None:
    script, store = tmp_path / "run.py", tmp_path / "run.zarr"
    script.write_text(KILLED)
    command = [sys.executable, str(script), cluster.scheduler_address, str(store)]
    draw, kills = random.Random(0), {"client": 0, "worker": 0}
    log = open(tmp_path / "log", "w")  # noqa: SIM115
    while True:
        paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = subprocess.Popen(command, stderr=log, env=os.environ | paths)
        while process.poll() is None:
            time.sleep(draw.uniform(2, 8))
            cluster.scale(2)  # where a nanny gave up
            if sum(kills.values()) >= 20:
                continue
            if draw.random() < 0.3:
                process.kill()
                kills["client"] += 1
            else:
                pids = list(client.run(os.getpid, on_error="ignore").values())
                if pids:
                    os.kill(draw.choice(pids), signal.SIGKILL)
                    kills["worker"] += 1
        if sum(kills.values()) >= 20 and process.returncode == 0:
            break
        if process.returncode == 0:  # too soon: once more, with what is done taken away
            for marker in (store / "run").rglob("*"):
                if marker.is_file() and marker.name != "zarr.json" and draw.random() < 0.7:
                    marker.unlink()
    latents = torch.randn(600, 3, generator=torch.Generator().manual_seed(1))
    settings = {name: value for name, value in SETTINGS.items() if name != "chunk"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = approx.open_store(store)
    check(found, approx.describe(network(), latents, **settings))
    assert kills["client"] >= 3
    assert kills["worker"] >= 10
