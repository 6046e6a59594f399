"""`validate`: the toys agree, what is wrong is found where it is, both sides are cut alike."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from support import decoders
from support.subjects import Sawtooth
from torch import nn

import bridges
import cpwl
from bridges.networks.toys import TOYS, random_mlp, toy
from bridges.validation import run, spectra
from bridges.validation.cut import cut
from bridges.validation.findings import AgreementError
from bridges.validation.run import validate

SECTIONS = ["jacobian", "spectrum", "complexity", "density"]
# every section, at a size of seconds
SMALL = {"cells": 30, "latents": 4, "seeds": 10, "samples": 2000, "progress": False}
LEAST = {**SMALL, "cells": 12, "latents": 2, "directions": (2,)}


def failing(report):
    """Return the sections, quantities and cases that disagree."""
    return {(row.section, row.quantity, row.case) for row in report.failures}


@pytest.fixture(scope="module")
def whole():
    """Return the toy generator's report at full size, and the seconds of processor it took."""
    made = toy("generator")
    began = time.process_time()
    report = validate(made.module, made.domain, name="generator", progress=False)
    return report, time.process_time() - began


def test_the_toy_generator_agrees_within_two_minutes(whole):
    report, seconds = whole
    report.require()
    assert report.ok
    # of processor, both cores together: what a clock says depends on what else is running
    assert seconds < 120
    assert [section.name for section in report.sections] == SECTIONS
    assert report.absent == ()
    assert report.title == "Validation of generator"
    assert report.facts["Units"] == "60 in 3 stages"
    assert report.facts["Cells"].endswith(", proven")
    for section in report.sections:
        rows = section.result.rows
        assert {row.section for row in rows} == {section.name}
        assert sum(row.claimed for row in rows) >= 4
        assert 8 <= len(rows) <= 30
        assert 0 < section.seconds < report.seconds
    assert report.settings["seed"] == 0
    assert "radius = 1e-05, directions = (1, 2, 4), radii = automatic" in str(
        report.settings["complexity"]
    )


def test_the_toy_generators_page_has_every_figure(whole, tmp_path):
    report, _ = whole
    report.save_html(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("<img ") == len(SECTIONS)
    assert all(section.alt in text for section in report.sections)
    assert report.plot().axes


@pytest.fixture(scope="module")
def small():
    """Return a small generator, and its domain."""
    return random_mlp((2, 8, 6, 3), seed=1), cpwl.box([-3, -3], [3, 3])


def test_one_weight_perturbed_is_found_where_the_exact_maps_are_used(small):
    module, domain = small
    other = copy.deepcopy(module)
    with torch.no_grad():
        # the last layer's weight of the unit that is largest: one that is surely in use
        z = torch.from_numpy(domain.slice.embed(domain.corners)).float()
        unit = int(module[:-1](z).amax(dim=0).argmax())
        other[-1].weight[1, unit] *= 1 + 1e-6
    report = validate(module, domain, decoder=other, **SMALL)
    assert failing(report) == {
        ("jacobian", "A_w", "autograd"),
        ("jacobian", "A_w", "operator J X"),
        ("jacobian", "A_w", "operator J^T Y"),
        ("jacobian", "A_w z + b_w", "decoder's values"),
        ("spectrum", "psi", "exact, k = 2"),
        ("spectrum", "nu", "exact, k = 2"),
        ("spectrum", "psi", "topk, k = 2"),
        ("spectrum", "nu", "topk, k = 2"),
    }
    # what compares the decoder with itself does not mind
    same = {row.case for row in report.rows if row.quantity == "J" and row.claimed}
    assert same == {"operator J X against autograd", "operator J^T Y against autograd"}
    with pytest.raises(AgreementError, match=r"jacobian: A_w, operator J X: worst relative error"):
        report.require()


def test_a_dropped_scale_factor_is_found_in_the_rows_of_its_method():
    """W J of a random orthonormal W shrinks lengths by sqrt(k / D): forgotten, psi is too large."""
    module, domain = random_mlp((6, 12, 24), seed=1), cpwl.Slice(np.zeros(6), np.eye(6)[:2])
    methods = spectra.default_methods()

    def unscaled(operator, k, seed):
        found = methods["paper"](operator, k, seed)
        factor = k * math.log(math.sqrt(24 / k))
        return dataclasses.replace(
            found, psi=found.psi + factor, psi_interval=found.psi_interval + factor
        )

    report = validate(
        module, domain.box([-1, -1], [1, 1]), methods={**methods, "unscaled": unscaled}, k=3,
        **{**SMALL, "seeds": 40},
    )  # fmt: skip
    assert failing(report) == {("spectrum", "psi", "unscaled, k = 3")}
    statistics = {row.statistic for row in report.failures}
    assert "bias" in statistics
    with pytest.raises(AgreementError, match=r"spectrum: psi, unscaled, k = 3: bias: 3\."):
        report.require()


def test_a_radius_outside_the_valid_range_is_found_in_the_rows_of_that_radius(small):
    module, domain = small
    report = validate(module, domain, radius=6.0, **LEAST)
    assert {row.section for row in report.failures} == {"complexity"}
    # signs at the vertices settle float64 at any radius, and float32 has none to settle it
    case = "jvp float32 against float64, P = 2, r = 6"
    assert ("complexity", "knots", case) in failing(report)
    assert all("r = 6" in row.case for row in report.failures)
    with pytest.raises(AgreementError, match=f"complexity: knots, {case}: share within"):
        report.require()


def test_the_same_seed_gives_the_same_rows_and_another_does_not(small):
    module, domain = small
    first, again = (validate(module, domain, seed=4, **LEAST) for _ in range(2))
    np.testing.assert_equal(first.rows, again.rows)
    assert first.rows != validate(module, domain, seed=5, **LEAST).rows


def reduced(name):
    """Return the report of a toy at a size of seconds."""
    made = toy(name)
    return validate(made.module, made.domain, name=name, **LEAST)


@pytest.mark.parametrize(
    "name",
    ["max-pooling", *(pytest.param(n, marks=pytest.mark.nightly) for n in ("residual", "conv"))],
)
def test_toys_agree(name):
    report = reduced(name)
    report.require()
    assert [section.name for section in report.sections] == SECTIONS


def test_the_mnist_vae_agrees(data):
    report = reduced("mnist-vae")
    report.require()
    assert [section.name for section in report.sections] == SECTIONS


@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name in TOYS if name != "generator"])
def test_toys_agree_at_full_size(name, request):
    if name == "mnist-vae":
        request.getfixturevalue("data")
    made = toy(name)
    validate(made.module, made.domain, name=name, progress=False).require()


def test_a_smooth_toy_has_the_rows_that_need_no_cells_and_the_reason():
    report = reduced("smooth")
    report.require()
    assert [section.name for section in report.sections] == ["jacobian", "spectrum"]
    assert [absent.name for absent in report.absent] == ["complexity", "density"]
    assert all("got 'group_norm' at" in absent.reason for absent in report.absent)
    assert "autograd" in report.sections[0].claim
    assert "Cells" not in report.facts


def test_a_linear_map_is_one_cell_where_everything_is_known():
    """J has the singular values 3 and 4, so that psi is log 12; one cell, no knots."""
    module, _ = decoders.linear([3.0, 4.0], 5)
    report = validate(module, cpwl.box([-1, -1], [1, 1]), **SMALL)
    report.require()
    assert report.facts["Cells"] == "1, 1 linear regions, proven"
    volume = 4 * 12
    (note,) = [row.note for row in report.rows if row.quantity == "image volume"]
    assert note.startswith(f"volume {volume}")


def test_upto_cuts_both_sides(small):
    body, domain = small
    module = nn.Sequential(body, nn.Tanh())
    report = validate(module, domain, upto="tanh", **LEAST)
    report.require()
    assert report.title == "Validation of Sequential up to tanh"
    assert [section.name for section in report.sections] == SECTIONS
    # the rows are those of the body, so that nothing of the squashing is left
    plain = validate(body, domain, **LEAST)
    # what is cut is traced in float64, and has no weights in float32
    rows = [row for row in plain.rows if row.case != "all of J, in float32"]
    for row, other in zip(report.rows, rows, strict=True):
        assert row[:4] == other[:4]
        np.testing.assert_allclose(row.value, other.value, rtol=1e-6, atol=1e-8)
    other = copy.deepcopy(module)
    with torch.no_grad():
        other[0][-1].bias[2] += 1e-3
    wrong = failing(validate(module, domain, upto="tanh", decoder=other, **LEAST))
    assert ("jacobian", "A_w z + b_w", "decoder's values") in wrong
    assert ("jacobian", "A_w", "autograd") not in wrong


CUT = {**decoders.CPWL, **decoders.SMOOTH}


@pytest.mark.parametrize("name", CUT)
def test_a_cut_module_is_the_part_before_bit_for_bit(name):
    module, shape = CUT[name]()
    part = cut(nn.Sequential(module, nn.Sigmoid()), shape, "sigmoid")
    z = decoders.latents(shape)
    for dtype in (torch.float32, torch.float64):
        expected = copy.deepcopy(module).to(dtype)(z.to(dtype))
        got = copy.deepcopy(part).to(dtype)(z.to(dtype))
        assert got.dtype == dtype
        torch.testing.assert_close(got, expected, rtol=1e-5 if dtype == torch.float32 else 1e-13,
                                   atol=1e-6 if dtype == torch.float32 else 1e-13)  # fmt: skip
    torch.testing.assert_close(part(z[:1].double()), part(z.double())[:1])


def test_a_cut_module_keeps_only_what_it_needs():
    module = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 9))
    part = cut(module, (2,), "tanh")
    assert sum(value.numel() for value in part.parameters()) == 2 * 4 + 4 + 4 * 3 + 3
    assert not any(value.requires_grad for value in part.parameters())
    assert {value.dtype for value in part.parameters()} == {torch.float64}
    with pytest.raises(cpwl.CaptureError, match="operation or submodule, got 'sigmoid'"):
        cut(module, (2,), "sigmoid")


def test_a_slice_through_latents_stands_for_a_box_around_them():
    z = np.eye(3)
    report = validate(random_mlp((3, 6, 2)), cpwl.Slice.through(*z), **LEAST)
    assert report.ok
    with pytest.raises(ValueError, match=r"slice that has no bounds. Give slice.box\(low, high\)"):
        validate(random_mlp((3, 6, 2)), cpwl.Slice(z[0], z[1:]), **SMALL)


def test_a_sawtooths_knots_fold_at_any_radius_and_nothing_else_is_wrong():
    """Every tooth's knots lie on those of the teeth before: no neighbourhood of one is simple."""
    report = validate(Sawtooth(4), cpwl.box([0.0], [1.0]), directions=(1,), **SMALL)
    assert report.facts["Cells"].startswith("16,")
    assert {row.section for row in report.failures} == {"complexity"}
    assert all("float64, P = 1, r = 1e-5" in row.case for row in report.failures)


def test_an_error_in_a_section_is_an_error(small, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of order")

    parts = list(run._PARTS)
    parts[2] = parts[2]._replace(measure=broken)
    monkeypatch.setattr(run, "_PARTS", tuple(parts))
    with pytest.raises(RuntimeError, match="out of order"):
        validate(*small, **SMALL)


def test_options_reach_the_sections(small, monkeypatch):
    """What is not given is left to the section."""
    seen = {}

    class Empty:
        rows = ()

    def recorded(name, measure):
        @functools.wraps(measure)
        def record(subject, **options):
            seen[name] = options
            return Empty

        return record

    parts = [part._replace(measure=recorded(part.name, part.measure)) for part in run._PARTS]
    monkeypatch.setattr(run, "_PARTS", tuple(parts))
    validate(*small, progress=False)
    usual = {"radius": 1e-5, "directions": (1, 2, 4)}
    assert seen == {
        "jacobian": {"seed": 0}, "spectrum": {"seed": 0}, "complexity": {"seed": 0, **usual},
        "density": {"seed": 0},
    }  # fmt: skip
    report = validate(
        *small, cells=1, latents=2, methods={"a": print}, k=3, seeds=4, radius=0.5,
        directions=[1], radii=[0.1, 1.0], samples=6, seed=7, progress=False,
    )  # fmt: skip
    assert seen == {
        "jacobian": {"cells": 1, "latents": 2, "seed": 7},
        "spectrum": {"latents": 2, "methods": {"a": print}, "k": 3, "seeds": 4, "seed": 7},
        "complexity": {
            "latents": 2, "radius": 0.5, "directions": (1,), "radii": [0.1, 1.0], "seed": 7,
        },
        "density": {"samples": 6, "nearest": 6, "proposals": 6, "seed": 7},
    }  # fmt: skip
    assert str(report.settings["spectrum"]).startswith("methods = (a), k = 3, latents = 2, seeds")
    assert "radii = (0.1, 1)" in str(report.settings["complexity"])


def test_progress_is_shown_on_stderr_alone(small, monkeypatch, capsys):
    def nothing(subject, **options):
        return type("Empty", (), {"rows": ()})

    parts = [part._replace(measure=nothing) for part in run._PARTS]
    monkeypatch.setattr(run, "_PARTS", tuple(parts))
    validate(*small, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "network" in captured.err
    validate(*small, progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_decoder_that_does_not_fit_is_refused(small):
    module, domain = small
    with pytest.raises(ValueError, match=r"outputs of shape \(3,\), as the module has, got \(4,\)"):
        validate(module, domain, decoder=random_mlp((2, 8, 4)), **SMALL)
    with pytest.raises(ValueError, match="upto= to name an operation or submodule, got 'tanh'"):
        validate(
            nn.Sequential(module, nn.Tanh()), domain, upto="tanh", decoder=lambda z: z, **SMALL
        )
    fixed = module[0].weight.detach().clone()  # as packed weights, in no dtype but their own

    class Packed(nn.Module):
        def forward(self, z):
            return z @ fixed.T

    with pytest.raises(ValueError, match=r"latents of shape \(B, 2\), got .* in Packed: pass"):
        validate(module, domain, decoder=Packed(), **SMALL)
    smooth = nn.Sequential(nn.Linear(2, 3), nn.SiLU())
    with pytest.raises(ValueError, match=r"one that has no exact side: .*'silu'.* Leave decoder="):
        validate(smooth, domain, decoder=module, **SMALL)
    with pytest.raises(ValueError, match=r"a module on the CPU, .* got one on meta. Pass module.c"):
        validate(module, domain, decoder=copy.deepcopy(module).to("meta"), **SMALL)
    with pytest.raises(cpwl.CaptureError, match="or a method or function around one, got str"):
        validate("model.onnx", domain, **SMALL)


# torch.compile looks at every tensor's gradient while it traces
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_other_versions_of_a_module_agree_with_it(small):
    module, domain = small

    class Rewritten(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = module

        def forward(self, z):
            for layer in self.body[::2]:
                z = z @ layer.weight.T + layer.bias
                z = z if layer is self.body[-1] else torch.clamp(z, min=0)
            return z

    for other in (Rewritten(), torch.compile(module, backend="eager")):
        report = validate(module, domain, decoder=other, **LEAST)
        report.require()
    rounded = copy.deepcopy(module).half().float()
    wrong = failing(validate(module, domain, decoder=rounded, **LEAST))
    assert ("jacobian", "A_w", "autograd") in wrong


def test_cells_that_are_not_all_there_are_refused(small, monkeypatch):
    limited = functools.partial(cpwl.subdivide, memory=1)
    monkeypatch.setattr(run.cpwl, "subdivide", limited)
    with pytest.raises(cpwl.errors.PartitionError, match="Expected a complete partition, got"):
        validate(*small, **SMALL)


def test_the_package_offers_validate_and_toys_lazily():
    assert bridges.validate is validate
    assert bridges.networks.toys.toy is toy
    code = "import sys, bridges; assert 'torch' not in sys.modules; bridges.validate"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
