"""The `cpwl` command: what it writes, and one line for every user error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.metadata import version
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import cpwl
from bridges.networks.toys import random_mlp
from cpwl import plot
from cpwl.descriptors import DESCRIPTORS


def _save(module, shape, path):
    batch = {0: torch.export.Dim("batch")}
    example = torch.zeros(2, *shape)
    exported = torch.export.export(module.eval(), (example,), dynamic_shapes=(batch,))
    torch.export.save(exported, path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with models and latents."""
    folder = tmp_path_factory.mktemp("models")
    _save(random_mlp((2, 8, 8, 3)), (2,), folder / "plane.pt2")
    _save(nn.Sequential(random_mlp((5, 8, 3)), nn.Tanh()), (5,), folder / "tanh.pt2")
    _save(random_mlp((7, 4, 2)), (7,), folder / "wide.pt2")
    _save(random_mlp((3, 5, 3)), (3,), folder / "space.pt2")
    latents = np.random.default_rng(0).normal(size=(3, 5))
    np.save(folder / "three.npy", latents)
    np.save(folder / "two.npy", latents[:2])
    np.save(folder / "one.npy", latents[:1])
    np.save(folder / "eight.npy", np.eye(8, 7))
    np.save(folder / "basis.npy", np.eye(7))
    np.save(folder / "four.npy", np.eye(7)[:4])
    (folder / "folder.npz").mkdir()
    np.save(folder / "wrong.npy", latents[:, :4])
    np.save(folder / "pickle.npy", np.array([{"a": 1}]), allow_pickle=True)
    np.savez(folder / "archive.npy.npz", latents=latents)
    (folder / "archive.npy.npz").rename(folder / "archive.npy")
    (folder / "broken.npy").write_bytes(b"\x93NUMPY\x01")
    (folder / "empty.npy").write_bytes(b"")
    (folder / "broken.pt2").write_bytes(b"PK\x03\x04")
    return folder


def test_help_lists_the_commands_without_waiting_for_torch(run):
    status, out, _ = run("--help")
    assert status == 0
    assert all(name in out for name in ("demo", "info", "partition"))
    code = "import sys, bridges.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_version_is_that_of_the_distribution_and_does_not_wait_for_torch(run):
    assert run("--version") == (0, f"cpwl {version('cpwl')}\n", "")
    code = "import sys, bridges.cli\ntry: bridges.cli.main(['--version'])\n"
    code += "except SystemExit: sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_colors_are_the_descriptors_or_none(run):
    choices = "|".join((*DESCRIPTORS, "none"))
    assert f"[{choices}]" in "".join(run("partition --help")[1].split())


def test_info_tells_operations_and_units(run):
    status, out, _ = run("info @plane.pt2")
    assert status == 0
    assert "5 operations" in out
    assert out.count("  affine ") == 3
    assert out.count("  cpwl ") == 2
    assert "piecewise linear\ninput (2,), output (3,)\n16 units in 2 stages" in out
    assert "stage 1: relu" in out


def test_info_tells_what_is_not_piecewise_linear(run):
    status, out, _ = run("info @tanh.pt2")
    assert status == 0
    assert out.count("  refused ") == 1
    assert "not piecewise linear: 1 of them. --upto NAME leaves out a trailing one." in out
    status, out, _ = run("info @tanh.pt2 --upto tanh")
    assert status == 0
    assert "piecewise linear up to tanh\ninput (5,), output (3,)\n8 units in 1 stages" in out


def test_partition_writes_every_format(run, folder, tmp_path):
    pytest.importorskip("geopandas")
    pytest.importorskip("trimesh")
    files = ["a.png", "a.pdf", "a.npz", "a.parquet", "a.ply", "a.glb"]
    status, out, err = run(
        "partition @plane.pt2 --box -2 2 " + " ".join(f"-o {file}" for file in files)
    )
    assert (status, err) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)
    assert all(f"wrote {file}" in out for file in files)
    partition = cpwl.load_partition(tmp_path / "a.npz")
    network = cpwl.Network.load(folder / "plane.pt2")
    regions = cpwl.regions(cpwl.load_partition(tmp_path / "a.npz", network=network)).count
    assert out.endswith(f"{partition.num_cells:,} cells, {regions:,} linear regions\n")
    assert partition.domain.volume == 16


def test_a_survey_has_the_numbers_of_a_partition_and_goes_on_from_its_store(run):
    status, out, _ = run("survey @plane.pt2 --box -2 2 --tiles 2 --store s --cells")
    network = cpwl.Network.from_torch(random_mlp((2, 8, 8, 3)), (2,))
    whole = cpwl.subdivide(network, cpwl.box([-2, -2], [2, 2]), progress=False)
    assert status == 0
    assert out.startswith(f"Survey({whole.num_cells:,} cells, ")
    assert f"psi: mean {cpwl.summary(whole)['psi_mean']:.6g}, " in out
    assert run("survey @plane.pt2 --box -2 2 --store s --cells")[:2] == (0, out)
    status, _, err = run("survey @plane.pt2 --box -1 2 --store s")
    assert status == 2
    assert "differs in the domain, cells" in err


def test_a_partition_of_space_is_drawn_as_solids_and_as_a_sweep(run, tmp_path, monkeypatch):
    monkeypatch.setitem(plot.sweep.__kwdefaults__, "frames", 3)
    status, out, err = run("partition @space.pt2 --box -2 2 -o a.png -o a.gif --color nu")
    assert (status, err) == (0, "")
    assert "vertices in 3-D, complete" in out
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 3
    with Image.open(tmp_path / "a.png") as image:
        assert min(image.size) > 800


@pytest.mark.parametrize(
    ("slicing", "corners"),
    [
        ("--through @two.npy --box -1 2", [[-1], [2]]),
        (
            "--origin 0,0,0,0,0 --basis 1,0,0,0,0;0,1,0,0,0 --box -2 2 --box -1 1",
            [[-2, -1], [2, -1], [2, 1], [-2, 1]],
        ),
        ("--origin 0,0,0,0,0 --basis @two.npy --box 0 1", [[0, 0], [1, 0], [1, 1], [0, 1]]),
    ],
)
def test_slices_are_given_through_latents_or_by_origin_and_basis(run, tmp_path, slicing, corners):
    status, _, err = run(
        f"partition @tanh.pt2 --upto tanh {slicing} -o a.npz -o a.png --color none"
    )
    assert (status, err) == (0, "")
    assert cpwl.load_partition(tmp_path / "a.npz").domain.corners.tolist() == corners


def test_the_default_domain_holds_the_latents(run, tmp_path):
    status, _, _ = run("partition @tanh.pt2 --upto tanh --through @three.npy -o a.npz")
    assert status == 0
    domain = cpwl.load_partition(tmp_path / "a.npz").domain
    anchors = domain.slice.anchors
    assert anchors is not None
    assert np.all(anchors > domain.corners.min(0))
    assert np.all(anchors < domain.corners.max(0))


def test_demo_writes_its_figure(run, tmp_path, monkeypatch):
    from bridges.demo import plane
    from bridges.networks.toys import toy_generator

    monkeypatch.setattr(plane, "toy_generator", lambda seed: toy_generator(seed, steps=20))
    status, out, err = run("demo -o here.png --seed 3")
    assert (status, err) == (0, "")
    assert out.endswith("s in all\nwrote here.png\n")
    assert [path.name for path in tmp_path.iterdir()] == ["here.png"]


def test_demo_in_three_dimensions_writes_its_figure(run, tmp_path, monkeypatch):
    from bridges.demo import solid
    from bridges.networks.toys import toy_solid

    monkeypatch.setattr(solid, "toy_solid", lambda seed: toy_solid(seed, steps=20))
    status, out, err = run("demo --dim 3 -o solid.png")
    assert (status, err) == (0, "")
    assert "linear regions and" in out
    assert out.endswith("s in all\nwrote solid.png\n")


def test_interruption_is_one_line(run, monkeypatch, tmp_path):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cpwl, "subdivide", interrupted)
    status, _, err = run("partition @plane.pt2 --box 0 1 -o a.npz")
    assert status == 130
    assert err.strip() == "cpwl: interrupted; nothing was left half-written."  # after ^C
    assert list(tmp_path.iterdir()) == []


def test_a_warning_is_one_line(folder, tmp_path):
    code = (
        "import sys, warnings, bridges.cli, cpwl\n"
        "def survey(*_, **__):\n"
        "    warnings.warn('Took a store\\n over.', RuntimeWarning)\n"
        "    raise ValueError('Expected it.')\n"
        "cpwl.survey = survey\n"
        "bridges.cli.main(sys.argv[1:])\n"
    )
    arguments = ["survey", str(folder / "plane.pt2"), "--box", "0", "1"]
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr == "cpwl: warning: Took a store over.\ncpwl: Expected it.\n"


BAD = {
    "frob": "No such command 'frob'",
    "partition @plane.pt2 --box 0 1": "Missing option '-o'",
    "partition @plane.pt2 --box 0 1 -o a.foo": "-o ending in .png, .pdf, .svg, .gif,",
    "partition @plane.pt2 --box 0 1 -o no/a.png": "an existing folder for -o 'no/a.png'",
    "partition @plane.pt2 --box 0 1 -o a.png --color red": "'red' is not one of 'psi', 'nu'",
    "partition @plane.pt2 --box 0 1 -o a.png --memory 0": "0 is not in the range x>0",
    "partition @plane.pt2 --box 1 0 -o a.png": "lo < hi on every axis, got lo = 1 and hi = 0",
    "partition @plane.pt2 -o a.png": "--box LO HI for this slice, got none. Give it once",
    "partition @plane.pt2 --box 0 1 --box 0 1 --box 0 1 -o a.png": "each of 2 axes, got it 3 times",
    "partition @plane.pt2 --box 0 1 -o a.png --input-shape 2,x": "whole numbers, got '2,x'. Give",
    "partition @missing.pt2 --box 0 1 -o a.png": "missing.pt2",
    "partition @broken.pt2 --box 0 1 -o a.png": "broken.pt2",
    "partition model.pth --box 0 1 -o a.png": "a pickle, which could run any code",
    "partition @tanh.pt2 --through @three.npy -o a.png": "'tanh'",
    "partition @tanh.pt2 --upto tanh -o a.png": "--box LO HI for this slice, got none",
    "partition @wide.pt2 --box 0 1 -o a.png": "slice through the model's 7 inputs, got none. Give",
    "partition @wide.pt2 --through @eight.npy -o a.png": "dimension 1 to 6, got 7. The number of",
    "partition @wide.pt2 --origin 0,0,0,0,0,0,0 --basis @basis.npy --box 0 1 -o a.png": (
        "dimension 1 to 6, got 7. The number of cells"
    ),
    "partition @tanh.pt2 --upto tanh --through @three.npy --origin 0 -o a.png": "got both. Choose",
    "partition @tanh.pt2 --upto tanh --origin 0,0,0,0,0 -o a.png": "--basis together, got one",
    "partition @tanh.pt2 --upto tanh --origin 0,0 --basis 0,1 -o a.png": "(5,) in --origin, got",
    "partition @tanh.pt2 --upto tanh --origin 0,a --basis 0 -o a.png": "numbers such as 1,0,0",
    "partition @tanh.pt2 --upto tanh --through @one.npy -o a.png": "two to seven latents in",
    "partition @tanh.pt2 --upto tanh --through @wrong.npy -o a.png": "got shape (3, 4). Give",
    "partition @tanh.pt2 --upto tanh --through @none.npy -o a.png": "got no file at",
    "partition @tanh.pt2 --upto tanh --through @pickle.npy -o a.png": "array of numbers for --thr",
    "partition @tanh.pt2 --upto tanh --through @broken.npy -o a.png": "array of numbers for --thr",
    "partition @tanh.pt2 --upto tanh --through @empty.npy -o a.png": "array of numbers for --thr",
    "partition @tanh.pt2 --upto tanh --through @archive.npy -o a.png": "(an archive of several",
    "partition @tanh.pt2 --upto tanh --through @two.npy -o a.parquet -o a.ply": (
        "-o ending in .png, .pdf, .svg, .parquet, .npz, .json for 1 axis and 3 outputs, got 'a.ply'"
    ),
    "partition @plane.pt2 --box -2 2 -o a.png -o b.gif": "-o ending in .png, .pdf, .svg, .parquet,",
    "partition @space.pt2 --box -2 2 -o a.parquet": ".gif, .ply, .glb, .npz for 3 axes and 3 outp",
    "partition @wide.pt2 --origin 0,0,0,0,0,0,0 --basis @four.npy --box 0 1 -o a.png": (
        "-o ending in .npz for 4 axes and 2 outputs, got 'a.png'"
    ),
    "partition @plane.pt2 --box 0 1 -o .": "-o ending in",
    "partition @plane.pt2 --box 0 1 -o @folder.npz": "Expected -o as a file, got the folder '",
    "info @missing.pt2": "missing.pt2",
    "demo -o demo.gif": "-o ending in .png, .pdf, .svg, got 'demo.gif'",
    "demo --dim 3 -o demo.ply": "-o ending in .png, .pdf, .svg, .gif, got 'demo.ply'",
    "demo --dim 4": "4 is not in the range 2<=x<=3",
    "demo -o demo.txt": "-o ending in .png, .pdf, .svg, got 'demo.txt'",
}


@pytest.mark.parametrize("line", BAD)
def test_user_errors_are_one_line_on_stderr(run, tmp_path, line):
    status, out, err = run(line)
    assert out == ""  # nothing was enumerated
    assert status == 2
    assert err.startswith("cpwl: ")
    assert err.count("\n") == 1
    assert BAD[line] in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_outputs_are_refused_before_the_work(run, tmp_path, monkeypatch):
    """Where a package is missing, and in a folder that may not be written to."""
    monkeypatch.setattr(cpwl, "subdivide", Mock(side_effect=AssertionError))
    with monkeypatch.context() as patched:
        patched.setattr("importlib.util.find_spec", lambda name: None)
        for path, extra in (("a.parquet", "geo"), ("a.ply", "mesh")):
            status, _, err = run(f"partition @plane.pt2 --box -1 1 -o {path}")
            assert (status, f"pip install 'cpwl[{extra}]'" in err) == (2, True), err
    monkeypatch.setattr("os.access", lambda path, mode: mode == os.R_OK)
    status, _, err = run("partition @plane.pt2 --box -1 1 -o a.npz")
    assert (status, "leave to write to the folder of -o 'a.npz'" in err) == (2, True), err


@pytest.mark.parametrize("line", ["partition @plane.pt2 --box 0 1 -o a.npz",
                                  "survey @plane.pt2 --box 0 1 --store s"])  # fmt: skip
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_ended_says_what_it_leaves(run, tmp_path, monkeypatch, line, number):
    def ended(*arguments, **options):
        signal.raise_signal(number)

    monkeypatch.setattr(cpwl, line.split()[0].replace("partition", "subdivide"), ended)
    status, _, err = run(line)
    said = "interrupted" if number == signal.SIGINT else "ended by SIGTERM"
    left = "the same command goes on after what is in s." if "store" in line else (
        "nothing was left half-written."
    )  # fmt: skip
    assert (status, err.strip()) == (128 + number, f"cpwl: {said}; {left}")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
