"""Sweeps over many networks: each compared with the rational oracle, cell for cell."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from oracles.layers import Layer
from support.agreement import subdivide_and_compare
from support.strategies import places, shapes

Networks = Callable[[st.SearchStrategy], st.SearchStrategy[tuple[Layer, ...]]]


def sweep(networks: Networks, dim: int, profile: settings, *, thin: bool = False) -> None:
    """Draw networks and domains of a dimension and compare all of them with the oracle."""

    # a seed has no smaller one, and looking for smaller architectures is slow
    @settings(profile, phases=[Phase.explicit, Phase.generate])
    @given(networks(shapes(dim)), places(dim))
    def agree(layers, domain) -> None:
        subdivide_and_compare(layers, domain, thin=thin)

    agree()
