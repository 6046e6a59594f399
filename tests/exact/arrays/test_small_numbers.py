"""A processor that takes numbers below 2^-1022 for zero."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import cpwl
from cpwl.arrays import denormals

SCRIPT = """
import sys, numpy, torch, cpwl
from cpwl.arrays import denormals
torch.set_num_threads(2)
when, path = sys.argv[1:]
small = torch.nn.Sequential(torch.nn.Linear(2, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)).eval()
draw = numpy.random.default_rng(1)
with torch.no_grad():
    for weights in small.parameters():
        weights.copy_(torch.from_numpy(draw.normal(size=tuple(weights.shape))))
    small[0].weight[:4] *= 1e-39  # float32 holds these as denormals
    small[0].bias[:4] *= 1e-39
if when == "before":  # torch's own threads start with the setting, and keep it
    torch.set_flush_denormal(True)
torch.ones(2**18).mul(2.0)
if when == "threads":
    torch.set_flush_denormal(True)
    torch.set_num_threads(4)
    torch.ones(2**20).mul(2.0)
    torch.set_flush_denormal(False)
many = torch.full((2**20,), 2.0**-1022, dtype=torch.float64)
with denormals(all_threads=True):
    assert (many * 0.5 > 0).all(), "a thread of torch flushes"
flushed = numpy.float64(2.0**-1022) / 2 == 0
network = cpwl.Network.from_torch(small, (2,))
partition = cpwl.subdivide(network, cpwl.box([-10, -10], [10, 10]), progress=False)
cpwl.certify(partition, progress=False).save(path)
assert cpwl.check(partition).ok
assert (numpy.float64(2.0**-1022) / 2 == 0) == flushed, "the setting was not put back"
print(partition.num_cells, torch.get_num_threads())
"""


@pytest.mark.parametrize("when", ["before", "threads"])
def test_the_setting_of_the_processor_changes_nothing(when, tmp_path):
    path = str(tmp_path / "proof.json")
    command = [sys.executable, "-c", SCRIPT, when, path]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["74", "4" if when == "threads" else "2"]
    assert cpwl.verify(path, progress=False).cells == 74


@denormals()
def fail_unless_small_numbers_count():
    if float(torch.tensor(2.0**-1022, dtype=torch.float64) * 0.5) > 0:
        raise KeyError


def test_the_callers_setting_is_put_back_after_an_error():
    torch.set_flush_denormal(True)
    try:
        with pytest.raises(KeyError):
            fail_unless_small_numbers_count()
        flushed = float(torch.tensor(2.0**-1022, dtype=torch.float64) * 0.5) == 0
    finally:
        torch.set_flush_denormal(False)
    assert flushed


def test_a_processor_that_goes_on_flushing_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "set_flush_denormal", lambda on: False)
    monkeypatch.setattr("cpwl.arrays.small_numbers._flushes", lambda: True)
    with pytest.raises(RuntimeError, match=r"Expected a processor .* got one .* Call torch"):
        cpwl.Network.from_torch(torch.nn.ReLU(), (2,))
