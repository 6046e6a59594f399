"""Files of the real networks: found where they are said to be, or downloaded and checked."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import re
import socket
import sys
import threading
import zipfile

import numpy as np
import pytest
import torch

from bridges.networks import data as files
from bridges.networks import pretrained
from bridges.networks.data import FILES, Source

VAE = "weights/mnist_vae.pth"
# MD5 of what is inside of gzip files that were compressed anew: as the page of MNIST's authors had
# it, and as Fashion-MNIST's file has it that is downloaded (its images: as others unpacked them)
UNPACKED = {
    "mnist/t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
    "mnist/t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
    "mnist/train-images-idx3-ubyte.gz": "6bbc9ace898e44ae57da46a324031adb",
    "mnist/train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
    "fashion-mnist/t10k-images-idx3-ubyte.gz": "8181f5470baa50b63fa0f6fddb340f0a",
    "fashion-mnist/t10k-labels-idx1-ubyte.gz": "15d484375f8d13e6eb1aabb0c3f46965",
    "fashion-mnist/train-images-idx3-ubyte.gz": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "fashion-mnist/train-labels-idx1-ubyte.gz": "9018921c3c673c538a1fc5bad174d6f9",
}


class Server(http.server.ThreadingHTTPServer):
    """Serves bytes by their path, and remembers what it was asked for."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents: dict[str, bytes] = {}
        self.asked: list[str] = []

    def put(self, name, content):
        """Serve a content; return its URL."""
        self.contents[f"/{name}"] = content
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        content = self.server.contents[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        """Print nothing."""


@pytest.fixture
def server():
    with Server() as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield served
        served.shutdown()
        thread.join()


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Return the folder of the user's cache: an empty one, which nobody says to look beside."""
    monkeypatch.delenv(files.FOLDER, raising=False)
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / name)
    return tmp_path / "cpwl"


@pytest.fixture
def known(monkeypatch):
    """Return a function that makes a file known."""

    def add(name, source):
        monkeypatch.setattr(files, "FILES", {**files.FILES, name: source})

    return add


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def zipped(member, content):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("other.txt", "another file")
        archive.writestr(member, content)
    return packed.getvalue()


def test_a_folder_goes_before_the_environment(monkeypatch, tmp_path):
    for folder in ("given", "named"):
        (tmp_path / folder / "weights").mkdir(parents=True)
        (tmp_path / folder / VAE).write_bytes(b"")
    monkeypatch.setenv("CPWL_DATA", str(tmp_path / "named"))
    assert files.path(VAE) == tmp_path / "named" / VAE
    assert files.path(VAE, tmp_path / "given") == tmp_path / "given" / VAE


def test_what_is_not_in_the_folder_is_not_looked_for_elsewhere(
    monkeypatch, tmp_path, server, known
):
    known(VAE, Source(server.put("vae", b"vae"), sha256(b"vae")))
    monkeypatch.setenv("CPWL_DATA", str(tmp_path))
    for folder in (None, tmp_path):
        with pytest.raises(FileNotFoundError) as error:
            files.path(VAE, folder)
        assert str(error.value) == (
            f"Expected the file {VAE} in {tmp_path}, got none. Its source is "
            f"{files.FILES[VAE].url}; without a folder, and without CPWL_DATA in the environment, "
            "it is downloaded."
        )
    assert server.asked == []


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Expected one of the files datasaurus_dozen.tsv, mnist/"):
        files.path("weights/mnist.pth", tmp_path)


@pytest.mark.parametrize("set_to", [None, ""])
def test_a_file_is_downloaded_once(set_to, cache, server, known, monkeypatch):
    if set_to is not None:
        monkeypatch.setenv("CPWL_DATA", set_to)
    known(VAE, Source(server.put("vae", b"weights"), sha256(b"weights")))
    for _ in range(2):
        found = files.path(VAE)
        assert found == cache / VAE
        assert found.read_bytes() == b"weights"
        assert server.asked == ["/vae"]
    found.write_bytes(b"weight")  # damaged in the cache
    assert files.path(VAE).read_bytes() == b"weights"
    assert server.asked == ["/vae"] * 2


def test_a_corrupted_download_is_refused_and_not_kept(cache, server, known):
    right, wrong = sha256(b"weights"), sha256(b"weightz")
    known(VAE, Source(server.put("vae", b"weightz"), right))
    with pytest.raises(ValueError, match=f"{right} but got {wrong}.*Try again, or set CPWL_DATA"):
        files.path(VAE)
    assert [entry for entry in cache.rglob("*") if entry.is_file()] == []
    server.put("vae", b"weights")
    assert files.path(VAE).read_bytes() == b"weights"


def test_a_member_of_an_archive_is_unpacked_once(cache, server, known):
    name = "weights/faces.pth"
    content = zipped("package/weights.tar", b"faces")
    source = Source(server.put("wheel", content), sha256(content), "package/weights.tar")
    known(name, source)
    found = files.path(name)
    assert found == cache / name
    assert found.read_bytes() == b"faces"
    made = found.stat().st_mtime_ns
    assert files.path(name).stat().st_mtime_ns == made
    assert server.asked == ["/wheel"]
    # a new release: another archive under the same name
    content = zipped("package/weights.tar", b"other faces")
    known(name, Source(server.put("wheel", content), sha256(content), "package/weights.tar"))
    assert files.path(name).read_bytes() == b"other faces"
    assert [p.name for p in found.parent.iterdir() if p.name.startswith(".")] == []


@pytest.mark.usefixtures("cache")
def test_an_unreachable_source_is_an_os_error(known):
    with socket.socket() as nobody:  # has the port, and does not listen
        nobody.bind(("127.0.0.1", 0))
        known(VAE, Source(f"http://127.0.0.1:{nobody.getsockname()[1]}/vae", sha256(b"")))
        with pytest.raises(
            OSError, match=r"to download weights/mnist_vae.pth from http.*CPWL_DATA"
        ):
            files.path(VAE)


@pytest.mark.usefixtures("cache")
def test_without_pooch_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError) as error:
        files.path(VAE)
    assert str(error.value) == (
        f"Expected pooch, which downloads {VAE}, got none. Install the extra cpwl[data], or set "
        "CPWL_DATA to a folder that has the file."
    )


def test_sources_cannot_change():
    pinned = (
        r"https://raw\.githubusercontent\.com/[\w.-]+/[\w.-]+/[0-9a-f]{40}/.+",
        r"https://files\.pythonhosted\.org/packages/[0-9a-f]{2}/[0-9a-f]{2}/[0-9a-f]{60}/.+\.whl",
        r"https://storage\.googleapis\.com/cvdf-datasets/mnist/.+-ubyte\.gz",
    )
    for source in FILES.values():
        assert any(re.fullmatch(form, source.url) for form in pinned)
        assert re.fullmatch("[0-9a-f]{64}", source.sha256)


@pytest.mark.parametrize("name", FILES)
def test_the_folder_has_what_a_download_would_give(name, data):
    content = (data / name).read_bytes()
    if name in UNPACKED:
        digest = hashlib.md5(gzip.decompress(content), usedforsecurity=False).hexdigest()
        assert digest == UNPACKED[name]
    elif not FILES[name].member:
        assert sha256(content) == FILES[name].sha256


def test_networks_are_built_from_downloads(data, cache, server, known):
    """With the digests of the real sources, and the archive's keys as they were published."""
    known(VAE, FILES[VAE]._replace(url=server.put("vae", (data / VAE).read_bytes())))
    decoder = pretrained.mnist_vae_decoder()
    assert server.asked == ["/vae"]
    z = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(decoder(z), pretrained.mnist_vae_decoder(data)(z))

    name = "weights/dcgan_faces.pth"
    bare = torch.load(data / name, map_location="cpu", weights_only=True)
    published = io.BytesIO()
    torch.save({"netG_state_dict": bare}, published)
    content = zipped(FILES[name].member, published.getvalue())
    known(name, FILES[name]._replace(url=server.put("wheel", content), sha256=sha256(content)))
    faces = pretrained.dcgan_faces()
    assert (cache / name).is_file()
    assert all(
        torch.equal(a, b) for a, b in zip(faces.state_dict().values(), bare.values(), strict=True)
    )


def test_digits_and_letters(data):
    images = pretrained.read_images("mnist", 500, data)
    assert images.pixels.shape == (500, 784)
    assert (images.pixels.min(), images.pixels.max()) == (0, 1)
    assert images.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]  # as everybody has them
    chosen = pretrained.first_of(images, (0, 7, 1))
    assert chosen.labels.tolist() == [0, 7, 1]
    np.testing.assert_array_equal(chosen.pixels, images.pixels[[3, 0, 2]])
    letters = pretrained.read_images("notmnist", folder=data)
    assert len(letters.pixels) == len(letters.labels) == 10_000
    assert np.bincount(letters.labels).tolist() == [1000] * 10


def test_clothes_and_what_there_are_no_images_of(data):
    clothes = pretrained.read_images("fashion-mnist", folder=data)
    assert np.bincount(clothes.labels).tolist() == [1000] * 10
    train = pretrained.read_images("fashion-mnist", 4, data, part="train")
    assert train.labels.tolist() == [9, 0, 0, 3]  # an ankle boot, two shirts, a dress
    for kind, part in (("emnist", "t10k"), ("notmnist", "train")):
        with pytest.raises(ValueError, match=f"got those of '{kind}' for '{part}': choose one"):
            pretrained.read_images(kind, 1, data, part=part)
    with pytest.raises(
        ValueError, match=r"Expected 10,001 images in .*, got 10,000: ask for fewer"
    ):
        pretrained.read_images("notmnist", 10_001, data)
