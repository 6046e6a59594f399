"""`cpwl validate`: what reaches `validate`, what is written, exit statuses, every error."""

from __future__ import annotations

import csv
import sys

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from onnx import helper
from support import reports
from torch import nn

import cpwl
from bridges import validation
from bridges.cli import group
from bridges.networks.toys import RADIUS, TOYS, Toy, random_mlp


def _save(module, shape, path):
    batch = {0: torch.export.Dim("batch")}
    example = torch.zeros(2, *shape)
    torch.export.save(torch.export.export(module, (example,), dynamic_shapes=(batch,)), path)


def _save_onnx(module, path):
    """Write Linear, ReLU, Linear."""
    weights = {
        f"{name}_{k}": value.detach().numpy()
        for k in (0, 2)
        for name, value in module[k].named_parameters()
    }
    nodes = [
        helper.make_node("Gemm", ["z", "weight_0", "bias_0"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("Gemm", ["a", "weight_2", "bias_2"], ["x"], transB=1),
    ]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", size])
        for name, size in (("z", 2), ("x", 3))
    ]
    stored = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], stored)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with models and latents."""
    folder = tmp_path_factory.mktemp("models")
    module = random_mlp((2, 8, 3))
    _save(module, (2,), folder / "plane.pt2")
    _save_onnx(module, folder / "plane.onnx")
    with torch.no_grad():
        module[0].weight[3, 1] *= 1 + 1e-5
    _save(module, (2,), folder / "other.pt2")
    _save(random_mlp((2, 8, 4)), (2,), folder / "larger.pt2")
    _save(nn.Sequential(random_mlp((9, 8, 3)), nn.Tanh()), (9,), folder / "wide.pt2")
    _save(nn.Sequential(nn.Linear(2, 3), nn.SiLU()), (2,), folder / "silu.pt2")
    np.save(folder / "three.npy", np.random.default_rng(0).normal(size=(3, 9)))
    return folder


@pytest.fixture
def asked(monkeypatch):
    """Return what reaches `validate`, which answers with a made-up report that agrees."""
    calls = []

    def validate(module, domain, **options):
        calls.append((module, domain, options))
        return reports.report(failing=options["seed"] == 13)

    monkeypatch.setattr(validation, "validate", validate)
    return calls


def test_every_option_reaches_validate(run, asked, folder):
    line = "validate @wide.pt2 --through @three.npy --box -1 2 --upto tanh --radius 1e-4 "
    status, out, err = run(f"{line} --latents 7 --samples 2000 --seed 3 --decoder @wide.pt2")
    assert (status, err) == (0, "")
    assert out == f"{reports.report()}\n"
    (module, domain, options), = asked  # fmt: skip
    np.testing.assert_array_equal(domain.corners.min(0), [-1, -1])
    np.testing.assert_array_equal(domain.corners.max(0), [2, 2])
    np.testing.assert_allclose(domain.slice.origin, np.load(folder / "three.npy")[0])
    assert module(torch.zeros(2, 9)).shape == (2, 3)
    other = options.pop("decoder")
    assert other is not module
    assert torch.equal(other(torch.ones(2, 9)), module(torch.ones(2, 9)))
    assert options == {
        "upto": "tanh", "name": "wide.pt2", "radius": 1e-4, "latents": 7, "samples": 2000,
        "seed": 3, "progress": sys.stderr.isatty(),
    }  # fmt: skip


def test_what_is_not_asked_for_is_left_to_validate(run, asked):
    assert run("validate @plane.pt2 --box 0 1")[0] == 0
    assert asked[0][2] == {
        "upto": None, "decoder": None, "name": "plane.pt2", "radius": 1e-5, "latents": None,
        "samples": None, "seed": 0, "progress": False,
    }  # fmt: skip


def test_a_toy_has_a_domain_of_its_own(run, asked, monkeypatch):
    # training it would take seconds
    made = Toy("generator", random_mlp((2, 4, 3)), cpwl.box([-RADIUS] * 2, [RADIUS] * 2), "")
    monkeypatch.setattr("bridges.networks.toys.TOYS", {**TOYS, "generator": lambda: made})
    for line in ("", "--box -1 3", "--origin 0,1 --basis 1,0 --box -1 3"):
        assert run(f"validate generator {line}")[0] == 0
    own, part, line = (domain for _, domain, _ in asked)
    assert own is made.domain
    np.testing.assert_array_equal(part.corners.max(0), [3, 3])
    assert line.dim == 1
    assert [options["name"] for _, _, options in asked] == ["generator"] * 3


def test_pages_and_tables_are_written(run, asked, tmp_path):
    status, out, _ = run("validate @plane.pt2 --box 0 1 --html a.html -o a.csv -o a.parquet")
    assert status == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.html", "a.parquet"]
    assert out.endswith("wrote a.csv\nwrote a.parquet\nwrote a.html\n")
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "a.parquet"), reports.report().to_pandas()
    )
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as handle:
        assert len(list(csv.DictReader(handle))) == len(reports.report().rows)
    assert "<h1>Toy, seed 0</h1>" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_disagreement_is_status_1_with_table_and_files(run, asked, tmp_path):
    status, out, err = run("validate @plane.pt2 --box 0 1 --seed 13 --html a.html -o a.csv")
    assert (status, err) == (1, "")
    assert out.startswith(f"{reports.report(failing=True)}\n")  # no colours but on a terminal
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.html"]
    assert "DISAGREES" in (tmp_path / "a.csv").read_text(encoding="utf-8")


def test_interrupted_work_leaves_nothing(run, monkeypatch, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(validation, "validate", interrupted)
    status, _, err = run("validate @plane.pt2 --box 0 1 --html a.html -o a.csv")
    assert (status, err.strip()) == (130, "cpwl: interrupted; nothing was left half-written.")
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_fails_does_not_cost_the_table(run, asked, monkeypatch, tmp_path):
    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr("bridges.validation.page.page", broken)
    status, out, err = run("validate @plane.pt2 --box 0 1 --html a.html -o a.csv")
    assert (status, err) == (2, "cpwl: disk full\n")
    assert out.endswith("wrote a.csv\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_files_have_weights_in_any_precision(run, asked):
    """`approx` sees a module's dtype in its parameters, and files come with buffers."""
    for name in ("plane.pt2", "plane.onnx"):
        assert run(f"validate @{name} --box 0 1")[0] == 0
    for module, _, _ in asked:
        assert {value.dtype for value in module.parameters()} == {torch.float32}
        assert sum(value.numel() for value in module.parameters()) == 2 * 8 + 8 + 8 * 3 + 3
        assert not any(value.is_floating_point() for value in module.buffers())


def test_a_file_is_validated_for_real(run, tmp_path):
    line = "validate @plane.onnx --box -3 3 --latents 4 --samples 2000"
    status, out, err = run(f"{line} --html a.html -o a.csv")
    assert (status, err) == (0, "")
    assert "Validation of plane.onnx" in out
    assert all(f"\n{name}: " in out for name in ("jacobian", "spectrum", "complexity", "density"))
    frame = pd.read_csv(tmp_path / "a.csv")
    assert set(frame.verdict.dropna()) == {"agrees"}
    assert set(frame.section) == {"jacobian", "spectrum", "complexity", "density"}
    # the same again: nothing depends on the time or the process
    assert run(f"{line} -o b.csv")[0] == 0
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()


def test_another_version_of_a_file_that_differs_is_found(run, tmp_path):
    line = "validate @plane.pt2 --decoder @other.pt2 --box -3 3 --latents 4 --samples 2000"
    status, out, err = run(f"{line} -o a.csv")
    assert (status, err) == (1, "")
    assert "DISAGREE" in out.splitlines()[-2]
    frame = pd.read_csv(tmp_path / "a.csv")
    wrong = frame[frame.verdict == "DISAGREES"]
    assert "A_w" in set(wrong.quantity)
    assert set(wrong.section) <= {"jacobian", "spectrum"}


def test_help_lists_the_toys_without_waiting_for_torch(run):
    status, out, _ = run("validate --help")
    assert status == 0
    assert all(name in " ".join(out.split()) for name in TOYS)
    assert callable(group.validate)


BAD = {
    "validate nothing": "got 'nothing'. Check the name.",
    "validate missing.pt2 --box 0 1": "missing.pt2",
    "validate @three.npy --box 0 1": "Expected a .onnx or .pt2 file, got 'three.npy'. Export the",
    "validate generator --input-shape 2": "a file only, got one of them for the toy 'generator'",
    "validate @plane.pt2": "--box LO HI for this slice, got none. Give it once",
    "validate @plane.pt2 --box 1 0": "lo < hi on every axis, got lo = 1 and hi = 0",
    "validate @wide.pt2 --box 0 1": "slice through the model's 9 inputs, got none. Give",
    "validate @plane.pt2 --box 0 1 --radius 0": "0 is not in the range x>0",
    "validate @plane.pt2 --box 0 1 --latents 1": "1 is not in the range x>=2",
    "validate @plane.pt2 --box 0 1 --samples 9": "9 is not in the range x>=1000",
    "validate @plane.pt2 --box 0 1 -o a.txt": "ending in .csv, .parquet, got 'a.txt'. The suffix",
    "validate @plane.pt2 --box 0 1 --html a.pdf": "Expected --html ending in .html, got 'a.pdf'",
    "validate @plane.pt2 --box 0 1 --html no/a.html": "folder for --html 'no/a.html', got none",
    "validate @plane.pt2 --box 0 1 --upto tanh": "operation or submodule, got 'tanh'",
    "validate @plane.pt2 --box 0 1 --decoder @larger.pt2": (
        "outputs of shape (3,), as the module has, got (4,). Give another version"
    ),
    "validate @silu.pt2 --box 0 1 --decoder @plane.pt2": (
        "hold --decoder against, got one that has no exact side: Expected only continuous"
    ),
}


@pytest.mark.parametrize("line", BAD)
def test_user_errors_are_one_line_on_stderr(run, tmp_path, line):
    status, _, err = run(line)
    assert status == 2
    assert err.startswith("cpwl: ")
    assert err.count("\n") == 1
    assert BAD[line] in err
    assert list(tmp_path.iterdir()) == []
