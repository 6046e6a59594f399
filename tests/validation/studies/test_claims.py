"""Verdicts of claims, and the file of a study."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import stats

from approx import describe
from bridges.networks.training import train_vae
from bridges.studies import Claim, Invariant, Study, interval, load_study, save_study
from bridges.studies.__main__ import NAMES, main
from bridges.studies.claims import p_value, provenance, whole_seeds


def claim(paper, values):
    return Claim("c", paper, "slope", tuple(values))


def test_the_interval_is_that_of_a_t_test():
    values = np.random.default_rng(0).normal(1, 2, 9)
    found = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose(interval(values)[1:], (found.low, found.high), rtol=1e-12)


@pytest.mark.parametrize(
    ("paper", "values", "verdict"),
    [
        ("rises", (1, 1.1, 1.2), "replicates"),
        ("falls", (1, 1.1, 1.2), "opposite"),
        ("falls", (-6.8e-17, -6.9e-17, -7e-17), "undecided"),
        ("falls", (-1, -1.1, -1.2), "replicates"),
        ("rises", (-1, 1.1, 1.2), "undecided"),
        ("rises", (5,), "undecided"),
        ("rises", (1, 1.1, float("nan")), "undecided"),
        ("none", (-1, 1.1, 1.2), "no effect, as it should be"),
        ("none", (1, 1.1, 1.2), "an effect"),
        ("none", (5,), "undecided"),
        ("none", (1, 1.1, float("nan")), "undecided"),
        ("not said", (1, 1.1, 1.2), "rises"),
    ],
)
def test_verdicts(paper, values, verdict):
    assert claim(paper, values).verdict == verdict


@pytest.mark.parametrize(
    ("values", "p"),
    [((1.0, 1.0), 0.0), ((0.0, 1e-13), 1.0), ((5.0,), np.nan), ((1, np.nan), np.nan)],
)
def test_p_values_without_a_spread(values, p):
    assert p_value(values) == pytest.approx(p, nan_ok=True)


def test_p_values_are_corrected_for_the_claims_that_have_one():
    """Holm by hand: the smallest times 2, the other at least as large; one seed does not count."""
    first, second = (1.0, 1.1, 1.2), (1.0, 2.0, 3.0)
    claims = (claim("rises", second), claim("none", (5.0,)), claim("rises", first))
    found = Study("s", True, (0, 1, 2), claims, ()).table()["p_holm"]
    p = [stats.ttest_1samp(values, 0).pvalue for values in (second, first)]
    assert p[1] < p[0] / 2
    np.testing.assert_allclose(found, [p[0], np.nan, 2 * p[1]], rtol=0.05)


def test_no_values_are_refused():
    with pytest.raises(ValueError, match=r"Expected one effect for each seed, got an array"):
        interval([])


def study():
    return Study(
        "s", True, (3, 4), (claim("rises", (1.0, 2.0)),), (Invariant("i", True, "0 of 3"),),
        {"map": np.array([[1 / 3, np.nan], [2, 3]]), "n": np.int64(3), "deep": {"x": [1, 2]}},
    )  # fmt: skip


def test_a_study_is_read_as_it_was_written(tmp_path):
    file = tmp_path / "s.json"
    save_study(replace(study(), made_by=provenance("python -m x")), file)
    found = load_study(file)
    assert found.claims == study().claims
    assert found.invariants == study().invariants
    assert found.seeds == (3, 4)
    assert found.data["map"][0][0] == 0.333333
    assert found.data["n"] == 3
    assert found.made_by["command"] == "python -m x"
    assert list(found.table().verdict) == ["undecided"]
    assert [f.name for f in tmp_path.iterdir()] == ["s.json"]


def test_another_file_is_refused(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"claims": [{"values": [1]}], "seeds": []}))
    with pytest.raises(ValueError, match=r"Expected a study that save_study wrote in"):
        load_study(tmp_path / "x.json")


def test_the_exit_status_is_that_of_the_invariants(monkeypatch, tmp_path):
    import sys
    import types

    made = types.ModuleType("bridges.studies.trajectories")
    opposite = Study("s", False, (0, 1, 2), (claim("falls", (1, 1.1, 1.2)),), (), {})
    made.FULL = made.SMALL = types.SimpleNamespace(seeds=3)
    made.study = lambda size, seeds: opposite
    monkeypatch.setitem(sys.modules, "bridges.studies.trajectories", made)
    done = CliRunner().invoke(main, ["trajectories", "--out", str(tmp_path / "new" / "s.json")])
    assert done.exit_code == 0
    assert "opposite" in done.output
    assert "Stopped" not in done.output
    assert load_study(tmp_path / "new" / "s.json").name == "s"
    broken = Study("s", False, (0,), (), (Invariant("exact", False, "3 of 4"),), {})
    made.study = lambda size, seeds: broken
    done = CliRunner().invoke(main, ["trajectories"])
    assert done.exit_code == 1
    assert "FAILS: exact: 3 of 4" in done.output
    assert "Stopped: 1 of 3 seeds are whole." in done.output


@pytest.mark.parametrize("name", NAMES)
def test_every_study_is_of_whole_seeds(name):
    """What Ctrl-C leaves of each, its own tests see: all run as `support.studies.first_alone`."""
    assert importlib.import_module(f"bridges.studies.{name}").whole_seeds is whole_seeds


def describing(stop):
    calls = 0

    def decoder(z):
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return torch.stack([z, z**2], dim=1).flatten(1)

    table = describe(decoder, torch.ones(4, 2), batch=1, neighbourhood=None, progress=False)
    assert table.complete
    return calls


def training(stop):
    def watch(module, step):
        if step == stop:
            raise KeyboardInterrupt

    sizes = {"latents": 2, "width": 4, "depth": 1, "progress": False}
    assert train_vae(torch.eye(4), steps=3, watch=watch, **sizes).complete
    return 3


@pytest.mark.parametrize("run", [describing, training])
def test_what_a_call_keeps_of_ctrl_c_is_no_whole_seed(run):
    """Both return what is done, with a warning."""
    last = run(stop=None)
    with pytest.warns(RuntimeWarning, match="nterrupted|stopped"), pytest.raises(AssertionError):
        run(stop=last)
    assert whole_seeds([5, 6, 7], lambda seed: run(last if seed == 6 else None)) == [last]
    with pytest.raises(KeyboardInterrupt):
        whole_seeds([6, 7], lambda _: run(last))
    with pytest.raises(ZeroDivisionError):
        whole_seeds([1, 0], lambda seed: 1 / seed)


def test_what_cannot_be_written_is_refused_before_the_study(tmp_path):
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(main, ["trajectories", "--out", str(tmp_path / "file" / "s.json")])
    assert done.exit_code == 2
    assert "Expected a file that can be written" in done.output
