"""Values at which a tensor lies on a flat piece, or crosses a knot that was counted upstream.

Behind a ReLU, zero is such a *level*: an entry is there, or leaves it, where the ReLU's own knot
is. A max-pooling whose window is left by the last positive entry, a second ReLU, or a maximum with
zero have no knot of their own there.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from approx.complexity.pointwise import scaling
from approx.complexity.tangents import Tangents

__all__ = ["Levels"]

# entries of the result are entries of the arguments
_KEEPING = frozenset(
    [
        *("cat", "stack", "clone", "to_copy", "constant_pad_nd", "repeat", "flip", "roll"),
        *("index", "index_select", "gather", "take", "unsafe_view", "unsafe_split"),
        *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle"),
        *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
        *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
        *("max", "min", "amax", "amin", "maximum", "minimum", "max_pool2d_with_indices"),
        *("max_pool3d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool3d"),
    ]
)


class Levels:
    """Levels of the tensors alive."""

    def __init__(self, tangents: Tangents) -> None:
        self._tangents = tangents
        self._of = WeakTensorKeyDictionary()

    def __call__(self, x: Any) -> tuple[float, ...]:
        """Levels of a tensor."""
        levels, version = self._of.get(x) or ((), 0)
        return levels if version == self._tangents.writes(x) else ()

    def remember(self, result: Any, levels: tuple[float, ...]) -> None:
        """Keep the levels of a result until it is written into."""
        for x in tree_leaves(result) if levels else ():
            if isinstance(x, Tensor) and x.is_floating_point():
                self._of[x] = (levels, self._tangents.writes(x))

    def after(self, name: str, func: Any, args: Any, kwargs: Any) -> tuple[float, ...]:
        """Levels that an operation leaves: of copied and scaled entries."""
        given = tree_leaves((args, kwargs))
        moving = [x for x in given if self._tangents.moves(x)]
        known = [self(x) for x in moving]
        if not known or not all(known):
            return ()
        if func.is_view or name in _KEEPING:
            return tuple(level for level in known[0] if all(level in other for other in known))
        if len(moving) == 1 and (line := scaling(func, args, kwargs, moving[0])) is not None:
            return tuple(line[0] * level + line[1] for level in known[0]) if line[0] else ()
        return ()
