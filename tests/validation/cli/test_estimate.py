"""`cpwl describe` and `cpwl field`: what they write, what an interruption leaves, every error."""

from __future__ import annotations

import functools
import importlib
import json
import signal
import sys
import types
from types import MappingProxyType

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from support.decoders import dense, relu_conv, relu_mlp, silu_conv
from torch import nn

import approx
from approx.decoder import loading

# the package has a function of that name
describing = importlib.import_module("approx.tables.loop")


def _save(module, shape, path):
    batch = {0: torch.export.Dim("batch")}
    example = torch.zeros(2, *shape)
    torch.export.save(torch.export.export(module, (example,), dynamic_shapes=(batch,)), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with models and latents."""
    folder = tmp_path_factory.mktemp("models")
    for name, make in (("mlp", relu_mlp), ("conv", relu_conv), ("silu", silu_conv)):
        _save(*make(), folder / f"{name}.pt2")
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(9, 12))
    np.save(folder / "nine.npy", latents)
    np.save(folder / "three.npy", latents[:3].astype(np.float32))
    np.save(folder / "images.npy", rng.normal(size=(3, 4, 3, 3)))
    np.save(folder / "squares.npy", rng.normal(size=(3, 6, 2, 2)))
    np.save(folder / "labels.npy", np.array(list("aabbaabba")))
    np.save(folder / "line.npy", np.outer([0, 1, 2], latents[0]))
    np.save(folder / "whole.npy", np.arange(24).reshape(2, 12))
    np.save(folder / "wrong.npy", latents[:, :5])
    np.save(folder / "none.npy", latents[:0])
    latents[7, 3] = np.nan
    np.save(folder / "nan.npy", latents)
    np.save(folder / "pickle.npy", np.array([{"a": 1}]), allow_pickle=True)
    (folder / "damaged").mkdir()
    (folder / "damaged" / "config.json").write_text("{", encoding="utf-8")
    (folder / "other").mkdir()
    (folder / "other" / "config.json").write_text('{"_class_name": "UNet"}', encoding="utf-8")
    (folder / "empty").mkdir()
    return folder


def test_describe_writes_every_format(run, tmp_path, folder):
    files = ["a.csv", "a.parquet", "a.nc", "a.zarr", "a.png", "a.svg"]
    status, out, err = run(
        "describe @mlp.pt2 @nine.npy --method exact --seed 3 --labels @labels.npy "
        + " ".join(f"-o {file}" for file in files)
    )
    assert (status, err) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)
    assert all(f"wrote {file}" in out for file in files)
    assert out.startswith("9 latents in ")
    # oracle: the dense Jacobian of the module that was saved
    module, _ = relu_mlp()
    sigma = torch.linalg.svdvals(dense(module, torch.from_numpy(np.load(folder / "nine.npy"))))
    frame = pd.read_parquet(tmp_path / "a.parquet")
    np.testing.assert_allclose(frame.psi, sigma.log().sum(dim=1), atol=1e-9)
    assert "".join(frame.label) == "aabbaabba"
    assert (frame.attrs["seed"], frame.attrs["complete"], frame.attrs["k"]) == ("3", 1, 12)
    rows = pd.read_csv(tmp_path / "a.csv", comment="#", index_col="latent")
    pd.testing.assert_frame_equal(rows, frame, check_exact=True, check_index_type=False)
    assert _header(tmp_path / "a.csv") == {
        name: " ".join(str(value).split()) for name, value in frame.attrs.items()
    }
    for dataset in (xr.load_dataset(tmp_path / "a.nc"), xr.load_dataset(tmp_path / "a.zarr")):
        np.testing.assert_array_equal(dataset.psi, frame.psi)
        np.testing.assert_array_equal(dataset.delta, frame.delta)
        assert "".join(dataset.label.values) == "aabbaabba"
        assert dataset.attrs["dtype"] == "float64"


def _header(path):
    """Attributes before the columns of a .csv file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))


def test_a_csv_file_keeps_labels_with_marks(run, tmp_path):
    labels = np.array(["#1, a", 'say "b"', "c"])
    np.save(tmp_path / "marks.npy", labels)
    line = "describe @mlp.pt2 @three.npy --k 4 --labels marks.npy --no-delta -o a.csv"
    assert run(line)[0] == 0
    rows = pd.read_csv(tmp_path / "a.csv", comment="#")
    assert rows.label.tolist() == labels.tolist()


def test_describe_is_what_the_library_returns(run, tmp_path, folder):
    status, _, _ = run("describe @silu.pt2 @images.npy --k 6 --seed 1 --batch 2 -o a.parquet")
    assert status == 0
    module, _ = silu_conv()
    z = torch.from_numpy(np.load(folder / "images.npy")).float()
    table = approx.describe(module, z, k=6, generator=1, progress=False)
    frame = pd.read_parquet(tmp_path / "a.parquet")
    np.testing.assert_allclose(frame.psi, table.psi, atol=1e-4)
    np.testing.assert_array_equal(frame.delta, table.delta)
    np.testing.assert_allclose(frame.soft, table.soft, rtol=1e-4)


def test_options_reach_the_estimate(run, tmp_path):
    options = "--method paper --k 5 --no-delta --seed 2 --dtype bfloat16 --device cpu"
    status, out, err = run(f"describe @conv.pt2 @squares.npy {options} -o a.nc")
    assert (status, err) == (0, "")
    dataset = xr.load_dataset(tmp_path / "a.nc")
    assert "delta" not in dataset
    assert "delta" not in out
    kept = {name: dataset.attrs[name] for name in ("method", "k", "seed", "dtype", "directions")}
    assert kept == {
        "method": "paper", "k": 5, "seed": "2", "dtype": "bfloat16", "directions": 0,
    }  # fmt: skip


def test_flat_latents_take_the_models_shape(run, folder, tmp_path):
    np.save(tmp_path / "flat.npy", np.load(folder / "squares.npy").reshape(3, -1))
    first = run("describe @conv.pt2 flat.npy --seed 0 -o a.parquet")
    second = run("describe @conv.pt2 @squares.npy --seed 0 -o b.parquet")
    assert (first[0], second[0]) == (0, 0)
    pd.testing.assert_frame_equal(pd.read_parquet("a.parquet"), pd.read_parquet("b.parquet"))


def test_field_writes_every_format(run, tmp_path):
    files = ["a.csv", "a.parquet", "a.nc", "a.zarr", "a.png"]
    status, out, err = run(
        "field @conv.pt2 @squares.npy --resolution 6,5 --seed 0 --k 4 "
        + " ".join(f"-o {file}" for file in files)
    )
    assert (status, err) == (0, "")
    assert out.startswith("6 x 5 pixels in ")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)
    dataset = xr.load_dataset(tmp_path / "a.nc")
    assert dict(dataset.psi.sizes) == {"v": 5, "u": 6}
    frame = pd.read_parquet(tmp_path / "a.parquet")
    np.testing.assert_array_equal(frame.psi, dataset.psi.values.ravel())
    np.testing.assert_allclose(frame.u[:6], dataset.u)
    rows = pd.read_csv(tmp_path / "a.csv", comment="#")
    pd.testing.assert_frame_equal(rows, frame, check_exact=True)
    assert _header(tmp_path / "a.csv")["definition"] == dataset.attrs["definition"]
    xr.testing.assert_identical(dataset.psi, xr.load_dataset(tmp_path / "a.zarr").psi)
    assert approx.latents_at(dataset, [0, 29]).shape == (2, 6, 2, 2)


def test_field_draws_a_gallery(run, tmp_path):
    line = "field @silu.pt2 @images.npy --resolution 5 --seed 0 --k 4 -o a.nc --gallery g.png"
    status, out, _ = run(f"{line} --images 3 --by delta")
    assert status == 0
    assert out.endswith("wrote g.png\n")
    assert (tmp_path / "g.png").stat().st_size > 10_000


def test_a_zarr_store_is_replaced_and_nothing_else_is(run, tmp_path):
    assert run("describe @mlp.pt2 @nine.npy -o a.zarr")[0] == 0
    assert run("describe @mlp.pt2 @three.npy -o a.zarr")[0] == 0
    assert xr.load_dataset(tmp_path / "a.zarr").sizes["latent"] == 3
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "b.zarr" / "thesis.tex").touch()
    status, _, err = run("describe @mlp.pt2 @three.npy -o b.zarr")
    assert status == 2
    assert "a Zarr store to replace, got something else" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "b.zarr"]


@pytest.fixture
def stop(monkeypatch):
    """Return a function that makes the third batch raise."""
    plain = describing._one

    def after_two(error):
        calls = []

        def one(plan, z, start):
            calls.append(len(z))
            if len(calls) == 3:
                raise error
            return plain(plan, z, start)

        monkeypatch.setattr(describing, "_one", one)

    return after_two


def test_a_bad_latent_gets_a_row_of_nan_and_the_summary_says_so(run, tmp_path):
    z = np.random.default_rng(0).normal(size=(9, 12)).astype(np.float32)
    z[4, 0] = np.nan
    np.save(tmp_path / "bad.npy", z)
    status, out, err = run("describe @mlp.pt2 bad.npy --on-error nan -o a.csv")
    assert (status, err) == (0, "")
    assert "1 failed" in out
    frame = pd.read_csv(tmp_path / "a.csv", comment="#")
    assert frame.psi.isna().tolist() == [i == 4 for i in range(9)]
    assert "latent 4: Expected finite latents" in (tmp_path / "a.csv").read_text()
    assert run("describe @mlp.pt2 bad.npy -o b.csv")[0] == 2


def test_interruption_keeps_what_is_done_under_another_name(run, tmp_path, stop):
    stop(KeyboardInterrupt())
    line = "describe @mlp.pt2 @nine.npy --batch 2 --labels @labels.npy"
    status, _, err = run(f"{line} -o a.parquet -o a.zarr -o a.png")
    assert status == 130
    assert err == (
        "cpwl: interrupted after 4 of 9 latents; wrote a.partial.parquet and a.partial.zarr and "
        "a.partial.png.\n"
    )
    names = ["a.partial.parquet", "a.partial.png", "a.partial.zarr"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    frame = pd.read_parquet(tmp_path / "a.partial.parquet")
    assert (len(frame), frame.attrs["complete"], "".join(frame.label)) == (4, 0, "aabb")


def test_interruption_of_a_field_leaves_pixels_out(run, tmp_path, stop):
    stop(KeyboardInterrupt())
    status, out, err = run(
        "field @conv.pt2 @squares.npy --resolution 4,4 --batch 3 -o a.nc -o a.png --gallery g.png"
    )
    assert status == 130
    assert "interrupted after 6 of 16 pixels; wrote a.partial.nc and a.partial.png." in err
    assert "wrote g.png" not in out
    psi = xr.load_dataset(tmp_path / "a.partial.nc").psi.values.ravel()
    assert np.isfinite(psi[:6]).all()
    assert np.isnan(psi[6:]).all()


def test_a_store_goes_on_where_it_was_stopped(run, tmp_path, stop, monkeypatch):
    jobs = importlib.import_module("approx.tables.jobs")
    monkeypatch.setattr(jobs, "begin", functools.partial(jobs.begin, rows=2))
    line = "describe @mlp.pt2 @nine.npy --batch 2 --store run.zarr"
    assert run("describe @mlp.pt2 @nine.npy")[::2] == (
        2, "cpwl: Missing option '-o' / '--output', or '--store'.\n",
    )  # fmt: skip
    for error, status, said in (
        (KeyboardInterrupt(), 130, "interrupted after 2 of 9 latents; they are in run.zarr, and "
         "the same command goes on."),
        (RuntimeError("it fell off"), 2, "it fell off. Stopped after 6 latents; they are in "
         "run.zarr, and the same command goes on."),
    ):  # fmt: skip
        stop(error)
        assert run(f"{line} -o a.csv")[::2] == (status, f"cpwl: {said}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["run.zarr"]
    status, out, err = run(f"{line} -o a.parquet")
    assert (status, err, "wrote a.parquet" in out) == (0, "", True)
    seed = out.partition("seed ")[2].split()[0]
    assert run(f"describe @mlp.pt2 @nine.npy --batch 2 --seed {seed} -o b.parquet")[0] == 0
    a, b = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in "ab")
    pd.testing.assert_frame_equal(a, b, check_exact=True)
    for wrong, said in (
        ("describe @mlp.pt2 @nine.npy -o run.zarr", "got the store of a run. Give another name"),
        (f"{line} --k 3", "Expected k=None, with which run.zarr was begun; got k=3: "),
        ("describe @mlp.pt2 @nine.npy --store .", "a store or an empty place at ., got a.parquet"),
    ):
        status, _, err = run(wrong)
        assert (status, err.count(said)) == (2, 1)


def test_workers_of_this_machine_and_none_for_a_store_that_is_whole(run, tmp_path, monkeypatch):
    pytest.importorskip("distributed", reason='pip install ".[cluster]"')
    cluster = importlib.import_module("approx.cluster")
    line = "describe @mlp.pt2 @nine.npy --batch 2 --seed 0 -o a.parquet"
    assert run(line)[0] == 0
    one = pd.read_parquet(tmp_path / "a.parquet")
    line += " --store run.zarr --workers 1"
    status, out, err = run(line)
    assert (status, "writing to run.zarr" in out) == (0, True), err
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "a.parquet"), one, check_exact=True)

    def started(*given):
        raise AssertionError("no cluster is needed")

    monkeypatch.setattr(cluster, "connected", started)
    assert run(line)[0] == 0
    with pytest.raises(AssertionError, match="no cluster is needed"):
        run(line.replace("run.zarr", "other.zarr"))
    assert run(line.replace(" --store run.zarr", ""))[::2] == (
        2, "cpwl: Expected --store, and no --device, with --scheduler or --workers: the rows are "
        "written to a store, and each worker takes its own device.\n",
    )  # fmt: skip


def test_the_store_of_a_field_goes_on(run, tmp_path, stop, monkeypatch):
    jobs = importlib.import_module("approx.tables.jobs")
    monkeypatch.setattr(jobs, "begin", functools.partial(jobs.begin, rows=3))
    line = "field @conv.pt2 @squares.npy --resolution 4,4 --batch 3 --store run.zarr"
    stop(KeyboardInterrupt())
    status, _, err = run(line)
    assert (status, err) == (
        130, "cpwl: interrupted after 3 of 16 pixels; they are in run.zarr, and the same command "
        "goes on.\n",
    )  # fmt: skip
    assert run(f"{line} -o a.nc")[0] == 0
    assert np.isfinite(xr.load_dataset(tmp_path / "a.nc").psi.values).all()


def test_the_summary_says_why_predict_made_all_products(run):
    out = run("describe @mlp.pt2 @nine.npy --method predict -o a.csv")[1]
    assert "W (12, D) Haar, unscaled (method predict: paper)\n9 of 9 latents made all 12" in out
    assert "made all" not in run("describe @mlp.pt2 @nine.npy --method paper -o a.csv")[1]


@pytest.mark.parametrize("command", ["describe @mlp.pt2 @nine.npy",
                                     "field @mlp.pt2 @three.npy --resolution 3"])  # fmt: skip
def test_a_command_that_is_ended_gives_its_store_back(run, tmp_path, monkeypatch, command):
    for number, said in ((signal.SIGTERM, "ended by SIGTERM"), (signal.SIGINT, "interrupted")):
        with monkeypatch.context() as patched:
            patched.setattr(describing, "_one", lambda *_, n=number: signal.raise_signal(n))
            status, _, err = run(f"{command} --store run.zarr")
        assert (status, err.strip()) == (
            128 + number, f"cpwl: {said}; the same command goes on after what is in run.zarr."
        )  # fmt: skip
        assert not (tmp_path / "run.zarr" / "run" / "lock.json").exists()
    assert run(f"{command} --store run.zarr")[::2] == (0, "")


def test_interruption_before_anything_is_done(run, tmp_path, monkeypatch):
    def one(plan, z, start):
        raise KeyboardInterrupt

    monkeypatch.setattr(describing, "_one", one)
    status, _, err = run("describe @mlp.pt2 @nine.npy -o a.nc")
    assert (status, list(tmp_path.iterdir())) == (130, [])
    assert err.strip() == "cpwl: interrupted; nothing was left half-written."


def test_an_error_half_way_keeps_what_is_done(run, tmp_path, stop):
    stop(RuntimeError("the accelerator\nfell off"))
    status, _, err = run("describe @mlp.pt2 @nine.npy --batch 2 -o a.nc")
    assert status == 2
    assert err == ("cpwl: the accelerator fell off. Stopped after 4 latents; wrote a.partial.nc.\n")
    assert xr.load_dataset(tmp_path / "a.partial.nc").sizes["latent"] == 4


def test_a_file_that_cannot_be_written_costs_no_other(run, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", fail)
    status, out, err = run("describe @mlp.pt2 @nine.npy -o a.parquet -o a.nc")
    assert (status, out.count("wrote a.nc")) == (2, 1)
    assert "No space left on device" in err
    assert [path.name for path in tmp_path.iterdir()] == ["a.nc"]


def test_a_missing_package_is_told_before_the_work(run, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "zarr" else found(name, *a)
    )
    status, _, err = run("describe @mlp.pt2 @nine.npy -o a.zarr")
    assert status == 2
    assert "Expected zarr to be installed for 'a.zarr', got none: pip install 'cpwl[table]'" in err


def _write_onnx(path, operation):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])
        for name, size in (("z", 4), ("y", 6))
    ]
    nodes = [
        helper.make_node("MatMul", ["z", "w"], ["h"]),
        helper.make_node(operation, ["h"], ["y"]),
    ]
    initial = [numpy_helper.from_array(weight, "w")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return weight


def test_onnx_models_are_read(run, tmp_path):
    weight = _write_onnx(tmp_path / "m.onnx", "Tanh")
    z = np.random.default_rng(1).normal(size=(3, 4))
    np.save(tmp_path / "z.npy", z)
    status, _, err = run("describe m.onnx z.npy --no-delta --method exact -o a.parquet")
    assert (status, err) == (0, "")
    slope = 1 - np.tanh(z @ weight) ** 2
    sigma = np.linalg.svd(slope[:, :, None] * weight.T, compute_uv=False)
    frame = pd.read_parquet(tmp_path / "a.parquet")
    np.testing.assert_allclose(frame.psi, np.log(sigma).sum(axis=1), atol=1e-6)


def test_smooth_onnx_operations_are_read(run, tmp_path):
    weight = _write_onnx(tmp_path / "m.onnx", "Erf")
    z = np.random.default_rng(1).normal(size=(3, 4))
    np.save(tmp_path / "z.npy", z)
    status, _, err = run("describe m.onnx z.npy --no-delta --method exact -o a.parquet")
    assert (status, err) == (0, "")
    slope = 2 / np.sqrt(np.pi) * np.exp(-((z @ weight) ** 2))
    sigma = np.linalg.svd(slope[:, :, None] * weight.T, compute_uv=False)
    psi = pd.read_parquet(tmp_path / "a.parquet").psi
    np.testing.assert_allclose(psi, np.log(sigma).sum(axis=1), atol=1e-5)


def test_other_onnx_operations_are_refused(run, tmp_path):
    _write_onnx(tmp_path / "m.onnx", "Det")
    np.save(tmp_path / "z.npy", np.ones((2, 4)))
    status, _, err = run("describe m.onnx z.npy -o a.parquet")
    assert status == 2
    assert "operations that the ONNX reader knows in 'm.onnx', got 'Det' at 'Det_1'." in err


class _Config(dict):
    """Entries that are attributes too."""

    __getattr__ = dict.__getitem__


class _Tiny(nn.Module):
    """Stands for diffusers' autoencoders: `decode` returns a structure."""

    config = MappingProxyType({})

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(2, 2)
        self.quant_conv = nn.Linear(2, 2)
        self.decoder, _ = silu_conv()

    @classmethod
    def from_pretrained(cls, source, **options):
        cls.asked = (source, options)
        return cls().to(options["torch_dtype"])

    def decode(self, z):
        return types.SimpleNamespace(sample=self.decoder(z))


class _Sound(_Tiny):
    """Latents with one axis behind their channels, whose number is a default."""

    config = MappingProxyType({"decoder_input_channels": 3})

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.decoder = nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.SiLU(), nn.Conv1d(4, 5, 1))


class _Codes(_Tiny):
    """A decoder behind a quantiser, normalised by the codes or not."""

    config = _Config(vq_embed_dim=3, latent_channels=4, norm_type="spatial")

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.post_quant_conv = nn.Conv2d(3, 4, 1)

        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner, _ = silu_conv()

            def forward(self, z, codes):
                return self.inner(z) * codes.mean(dim=(1, 2, 3), keepdim=True)

        self.decoder = Two()

    def decode(self, z):
        raise AssertionError("the quantiser is not to be run")


@pytest.fixture
def fake_diffusers(monkeypatch):
    """Install a stand-in for diffusers, which notes how it was asked."""
    fake = types.ModuleType("diffusers")
    fake.AutoencoderKL = _Tiny  # type: ignore[attr-defined]
    fake.AutoencoderOobleck = _Sound  # type: ignore[attr-defined]
    fake.VQModel = _Codes  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "diffusers", fake)
    return fake


def test_diffusers_folders_are_read_without_pickles(run, tmp_path, fake_diffusers):
    inside = tmp_path / "pipeline" / "vae"
    inside.mkdir(parents=True)
    config = {"_class_name": "AutoencoderKL", "latent_channels": 4}
    (inside / "config.json").write_text(json.dumps(config), encoding="utf-8")
    status, _, err = run("describe pipeline @images.npy --seed 0 --k 4 -o a.parquet")
    assert (status, err) == (0, "")
    source, options = _Tiny.asked
    assert source.endswith("vae")
    assert (options["use_safetensors"], options["local_files_only"]) == (True, True)
    decoder = loading.load_diffusers(inside)
    assert decoder.channels == 4
    assert decoder.decode.__self__.encoder is None  # type: ignore[attr-defined]
    status, _, err = run("describe pipeline @squares.npy -o a.parquet")
    assert status == 2
    assert "latents of shape (N, 4, height, width) in" in err


@pytest.mark.parametrize(
    ("name", "config", "shape", "axes"),
    [
        ("AutoencoderOobleck", {}, (2, 3, 5), "(N, 3, length)"),
        ("VQModel", {"vq_embed_dim": None, "latent_channels": 3}, (2, 3, 3, 3), "(N, 3, height"),
        ("VQModel", {"vq_embed_dim": 3, "latent_channels": 4}, (2, 3, 3, 3), "(N, 3, height"),
    ],
)
def test_latents_have_the_axes_of_their_autoencoder(
    run, tmp_path, fake_diffusers, name, config, shape, axes
):
    (tmp_path / "model").mkdir()
    config = {"_class_name": name} | config
    (tmp_path / "model" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(size=shape))
    status, _, err = run("describe model z.npy --method exact -o a.parquet")
    assert (status, err) == (0, "")
    found = loading.load_diffusers(tmp_path / "model", dtype=torch.float64)
    z = torch.from_numpy(np.load(tmp_path / "z.npy"))
    J = torch.func.jacrev(lambda x: _image(found.decode(x[None])).flatten())(z[0]).flatten(1)
    psi = pd.read_parquet(tmp_path / "a.parquet").psi[0]
    np.testing.assert_allclose(psi, torch.linalg.svdvals(J).log().sum().item(), atol=1e-8)
    np.save(tmp_path / "flat.npy", np.load("z.npy").reshape(2, -1))
    status, _, err = run("describe model flat.npy -o a.parquet")
    assert status == 2
    assert f"latents of shape {axes}" in err


def _image(found):
    return getattr(found, "sample", found)


def test_diffusers_errors_are_one_line(run, folder, fake_diffusers, monkeypatch):
    folder_of = folder / "model"
    folder_of.mkdir(exist_ok=True)
    config = {"_class_name": "AutoencoderKL", "latent_channels": 4}
    (folder_of / "config.json").write_text(json.dumps(config), encoding="utf-8")

    def stop(error):
        def from_pretrained(source, **options):
            raise error

        monkeypatch.setattr(_Tiny, "from_pretrained", from_pretrained)
        return run("describe @model @images.npy -o a.nc")[2]

    assert "weights as .safetensors in" in stop(OSError("Error no file named x found"))
    assert "a whole diffusers model in" in stop(RuntimeError("size mismatch\nfor conv"))

    def missing(name):
        raise RuntimeError("Failed to import\nbecause")

    monkeypatch.delattr(fake_diffusers, "AutoencoderKL")
    fake_diffusers.__getattr__ = missing
    err = run("describe @model @images.npy -o a.nc")[2]
    assert "Expected diffusers to import AutoencoderKL, got Failed to import. Check the" in err
    monkeypatch.setitem(sys.modules, "diffusers", None)
    err = run("describe @model @images.npy -o a.nc")[2]
    assert err.startswith("cpwl: Expected diffusers for reading")
    assert "pip install 'cpwl[diffusers]'" in err


def _blocks(kind):
    return (f"{kind}Block2D",)


# keyword arguments of diffusers' classes at their smallest, and a latent's shape
SMALL = {
    "AutoencoderDC": (
        {
            "latent_channels": 4, "attention_head_dim": 8,
            **{f"{half}_block_types": ("ResBlock",) * 2 for half in ("encoder", "decoder")},
            **{f"{half}_block_out_channels": (8, 16) for half in ("encoder", "decoder")},
            **{f"{half}_layers_per_block": (1, 1) for half in ("encoder", "decoder")},
            **{f"{half}_qkv_multiscales": ((), ()) for half in ("encoder", "decoder")},
        },
        (4, 2, 2),
    ),
    "AutoencoderOobleck": (
        {
            "encoder_hidden_size": 8, "downsampling_ratios": [2, 2], "channel_multiples": [1, 2],
            "decoder_channels": 8, "decoder_input_channels": 4, "audio_channels": 1,
        },
        (4, 5),
    ),
    "VQModel": (
        {
            "block_out_channels": (8,), "latent_channels": 3, "norm_num_groups": 4,
            "vq_embed_dim": 4, "num_vq_embeddings": 16,
        },
        (4, 3, 3),
    ),
    "AsymmetricAutoencoderKL": (
        {
            "down_block_types": _blocks("DownEncoder"), "down_block_out_channels": (8,),
            "up_block_types": _blocks("UpDecoder"), "up_block_out_channels": (8,),
            "latent_channels": 4, "norm_num_groups": 4,
        },
        (4, 3, 3),
    ),
    "AutoencoderKLFlux2": (
        {
            "block_out_channels": (8,), "layers_per_block": 1, "latent_channels": 4,
            "norm_num_groups": 4, "down_block_types": _blocks("DownEncoder"),
            "up_block_types": _blocks("UpDecoder"),
        },
        (4, 3, 3),
    ),
    "AutoencoderKLHunyuanImage": (
        {
            "in_channels": 3, "out_channels": 3, "latent_channels": 32, "sample_size": 8,
            "block_out_channels": (32, 64), "layers_per_block": 1, "spatial_compression_ratio": 2,
        },
        (32, 1, 2),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("name", SMALL)
def test_real_autoencoders_of_every_class(run, tmp_path, name):
    models = pytest.importorskip("diffusers.models.autoencoders", reason="cpwl[diffusers]")
    options, shape = SMALL[name]
    torch.manual_seed(0)
    model = getattr(models, name)(**options).eval()
    model.save_pretrained(tmp_path / "model")
    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(size=(2, *shape)))
    assert run("describe model z.npy --method exact --no-delta -o a.parquet")[0] == 0
    extra = {"force_not_quantize": True} if name == "VQModel" else {}
    model, z = model.double(), torch.from_numpy(np.load("z.npy"))
    values = [
        torch.linalg.svdvals(
            torch.autograd.functional.jacobian(
                lambda x: model.decode(x[None], **extra).sample.flatten(), latent
            ).flatten(1)
        )
        for latent in z
    ]
    psi = [v[v > 1e-14 * v[0]].log().sum().item() for v in values]
    np.testing.assert_allclose(pd.read_parquet("a.parquet").psi, psi, atol=1e-6)


def test_real_diffusers_folders(run, tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="needs the extra cpwl[diffusers]")
    try:
        tiny = diffusers.AutoencoderTiny
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"diffusers cannot be imported here: {str(error).splitlines()[0]}")
    channels = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    torch.manual_seed(0)
    model = tiny(**channels, **blocks, latent_channels=4).eval()
    model.save_pretrained(tmp_path / "safe")
    model.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(size=(2, 4, 3, 3)))
    # diffusers itself remarks on its own configuration file
    assert run("describe safe z.npy --method exact -o a.parquet")[0] == 0

    class Sampled(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, z):
            return self.model.decode(z).sample

    sigma = torch.linalg.svdvals(dense(Sampled(), torch.from_numpy(np.load("z.npy"))))
    frame = pd.read_parquet("a.parquet")
    np.testing.assert_allclose(frame.psi, sigma.log().sum(dim=1), atol=1e-8)
    status, _, err = run("describe pickled z.npy -o b.parquet")
    assert status == 2
    assert "Pickled weights (.bin) could run code" in err


BAD = {
    "describe @mlp.pt2 @nine.npy": "Missing option '-o'",
    "describe @mlp.pt2 @nine.npy -o a.tsv": (
        "ending in .csv, .parquet, .nc, .zarr, .png, .pdf, .svg, got"
    ),
    "describe @mlp.pt2 @nine.npy -o no/a.nc": "an existing folder for -o 'no/a.nc'",
    "describe @mlp.pt2 @gone.npy -o a.nc": "Expected a file for the latents, got no file at",
    "describe @mlp.pt2 @pickle.npy -o a.nc": "a .npy array of numbers for the latents",
    "describe @mlp.pt2 @whole.npy -o a.nc": "floating-point latents in",
    "describe @mlp.pt2 @nan.npy -o a.nc": "got NaN or infinity, first in entry 7. Remove",
    "describe @mlp.pt2 @none.npy -o a.nc": "Expected latents (N, ...) in",
    "describe @mlp.pt2 @wrong.npy -o a.nc": "Expected latents of shape (12,) in",
    "describe @gone.pt2 @nine.npy -o a.nc": "gone.pt2",
    "describe gone @nine.npy -o a.nc": "a diffusers folder or a name on the hub, got 'gone'",
    "describe model.pth @nine.npy -o a.nc": "a pickle, which could run any code",
    "describe @mlp.pt2 @nine.npy -o a.nc --k 13": "13",
    "describe @mlp.pt2 @nine.npy -o a.nc --k 0": "0 is not in the range x>=1",
    "describe @mlp.pt2 @nine.npy -o a.nc --method best": "'best' is not one of",
    "describe @mlp.pt2 @nine.npy -o a.nc --neighbourhood 4 0": "Expected a positive radius, got 0",
    "describe @mlp.pt2 @nine.npy -o a.nc --neighbourhood 0 1": "Expected between 1 and",
    "describe @mlp.pt2 @nine.npy -o a.nc --method exact --memory 1e-9": "raise --memory",
    "describe @mlp.pt2 @nine.npy -o a.nc --device quantum": "that torch has here, got 'quantum'",
    "describe @mlp.pt2 @nine.npy -o a.nc --labels @three.npy": "one label for each of 9 latents",
    "describe @mlp.pt2 @nine.npy -o a.nc --input-shape 3,x": "whole numbers, got '3,x'. Give",
    "field @mlp.pt2 @nine.npy -o a.nc": "Expected three latents in",
    "field @mlp.pt2 @line.npy -o a.nc": "three on one line",
    "field @mlp.pt2 @three.npy -o a.nc --resolution 1": "one or two whole numbers above 1, got '1'",
    "field @mlp.pt2 @three.npy -o a.nc --resolution a": "one or two whole numbers above 1, got 'a'",
    "field @mlp.pt2 @three.npy -o a.nc --gallery g.nc": "--gallery ending in .png, .pdf, .svg, got",
    "field @mlp.pt2 @three.npy -o a.nc --gallery g.png --by delta --no-delta": "got --no-delta.",
    "describe @damaged @nine.npy -o a.nc": "a whole diffusers model in",
    "describe @other @nine.npy -o a.nc": "a model of class AutoencoderKL, AutoencoderTiny, ",
    "describe @empty @nine.npy -o a.nc": "config.json of a diffusers model in",
}


@pytest.mark.parametrize("line", BAD)
def test_user_errors_are_one_line_on_stderr(run, tmp_path, line, fake_diffusers):
    status, _, err = run(line)
    assert status == 2
    assert err.startswith("cpwl: ")
    assert err.count("\n") == 1
    assert BAD[line] in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_help_lists_both_without_waiting_for_torch(run):
    status, out, _ = run("--help")
    assert status == 0
    assert "describe" in out
    assert "field" in out
