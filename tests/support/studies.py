"""Studies that Ctrl-C stops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from bridges.studies import Study
from bridges.studies.claims import whole_seeds


def first_alone(module: Any, size: Any, seeds: Sequence[int] = (3, 4)) -> Study:
    """Return the study of a module, stopped in its second seed, of which nothing is run."""

    def stopped(seeds: Sequence[int], of: Callable[[int], Any]) -> list[Any]:
        def one(seed: int) -> Any:
            if seed != seeds[0]:
                raise KeyboardInterrupt
            return of(seed)

        return whole_seeds(seeds, one)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "whole_seeds", stopped)
        found = module.study(size, seeds)
    assert found.seeds == tuple(seeds[:1])
    return found
