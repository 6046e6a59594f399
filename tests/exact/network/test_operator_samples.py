"""torch's own operator samples: each is captured and right, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import operator_samples

pytest.importorskip("expecttest")
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's samples warn of their own age

PAGE = Path(__file__).parents[3] / "notebooks" / "site" / "operators.md"

TAKEN = [
    "abs", "amax", "aminmax", "diff", "gather", "index_add", "kthvalue", "lerp", "masked_fill",
    "masked_scatter", "max.reduction_with_dim", "nn.functional.conv2d",
    "nn.functional.grid_sample", "nn.functional.hardsigmoid", "nn.functional.softshrink",
    "scatter_add", "sort", "take_along_dim", "where",
]  # fmt: skip
REFUSED = ["exp", "floor", "nn.functional.gelu", "prod", "sign", "std"]


@pytest.mark.parametrize("name", [*TAKEN, *REFUSED])
def test_some_operators(name):
    _, found = next(operator_samples.verdicts([name], 1))
    assert [v.outcome for v in found] == ["taken" if name in TAKEN else "refused"], found


@pytest.mark.nightly
def test_all_operators_and_write_their_page():
    names = sorted(operator_samples.operators())
    rows = []
    for name, found in operator_samples.verdicts(names, 2):
        assert not [v for v in found if v.outcome == "wrong"], (name, found)
        rows.append((name, operator_samples.summary(found)))
    operator_samples.write_table(PAGE, rows)
