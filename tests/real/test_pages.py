"""Examples of the README and the recipes that need published models; the others are doctests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest


def example(word: str, page: str = "README.md") -> str:
    """Return the one block of code in which a word stands."""
    text = (Path(__file__).parents[2] / page).read_text()
    (found,) = [b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if word in b]
    return found


def test_the_plane_through_three_digits(data: Path) -> None:
    lines, names = example("mnist_vae_decoder"), dict[str, Any]()
    exec(lines, names)
    partition = names["partition"]
    # codes are an encoder's in float32: their last bits, and the plane, differ between processors
    (said,) = re.findall(r"([\d,]+) cells, each sign proven", lines)
    assert partition.num_cells == pytest.approx(int(said.replace(",", "")), abs=5)
    assert partition.status.exact
    assert len(names["plane"].anchors) == 3


def test_sampling_steered_by_psi(data: Path) -> None:
    pytest.importorskip("diffusers")
    lines, names = example("mnist_pipeline"), dict[str, Any]()
    assert "torch.arange(200)" in lines
    exec(lines.replace("torch.arange(200)", "torch.arange(12)"), names)
    assert set(names["run"].table.step) == {0, 10, 20, 30, 40, 49, 50}
    assert [image.size for image in names["images"]] == [(28, 28)] * 2


def test_the_advisories_of_acas_xu(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data / "onnx")
    names = dict[str, Any]()
    exec(example("acasxu_1_1", "notebooks/site/recipes.md"), names)
    assert names["regions"].areas.sum() == pytest.approx(names["domain"].volume, rel=1e-9)
    assert names["five"].status.exact
    assert names["five"].dim == 5
    plt.close("all")
