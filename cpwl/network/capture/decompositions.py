"""Operations written with others before they are classified: sorting networks, norms, scans.

Each entry of `TABLE` takes an ATen operation's arguments and returns its results, as torch's own
decompositions do. Batcher's odd-even merge sort compares fixed pairs of entries; one comparison is

    d = relu(a - b),   larger = b + d,   smaller = a - d,

a single unit. Where only some of the sorted entries are asked for, the comparisons that they do not
need are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def comparisons(count: int) -> list[tuple[int, int]]:
    """Pairs (low, high) of Batcher's odd-even merge sort, for any number of entries, in order."""
    pairs = []
    p = 1
    while p < count:
        k = p
        while k >= 1:
            for j in range(k % p, count - k, 2 * k):
                for i in range(min(k, count - j - k)):
                    low, high = i + j, i + j + k
                    if low // (2 * p) == high // (2 * p):
                        pairs.append((low, high))
            k //= 2
        p *= 2
    return pairs


def layers(count: int, wanted: Iterable[int]) -> list[list[tuple[int, int]]]:
    """Comparisons that the wanted places of the sorted list need, those of one layer disjoint."""
    needed, kept = set(wanted), []
    for pair in reversed(comparisons(count)):
        if not needed.isdisjoint(pair):
            needed.update(pair)
            kept.append(pair)
    found: list[list[tuple[int, int]]] = []
    depth = [0] * count
    for low, high in reversed(kept):
        level = max(depth[low], depth[high])
        depth[low] = depth[high] = level + 1
        if level == len(found):
            found.append([])
        found[level].append((low, high))
    return found


def _sorted(x: Tensor, dim: int, wanted: Sequence[int], descending: bool = False) -> Tensor:
    """Entries along an axis that has `wanted` places of the sorted list."""
    parts = list(x.split(1, dim))
    for pairs in layers(len(parts), wanted):
        first, second = (torch.cat([parts[pair[k]] for pair in pairs], dim) for k in (0, 1))
        if descending:
            d = torch.relu(second - first)
            first, second = first + d, second - d
        else:
            d = torch.relu(first - second)
            first, second = first - d, second + d
        for pair, low, high in zip(pairs, first.split(1, dim), second.split(1, dim), strict=True):
            parts[pair[0]], parts[pair[1]] = low, high
    return torch.cat([parts[k] for k in wanted], dim)


def _indices(values: Tensor) -> Tensor:
    """Stand-in of the right shape for places that jump: a cast that is refused where it is read."""
    return values.to(torch.int64)


def _axis(x: Tensor, dim: int) -> int | None:
    """Axis counted from the front; None for the batch axis, along which nothing is sorted."""
    axis = dim % x.ndim if x.ndim else 0
    return axis if x.ndim and isinstance(x.shape[axis], int) else None


def _sort(x: Tensor, dim: int = -1, descending: bool = False) -> Any:
    axis = _axis(x, dim)
    if axis is None:
        return NotImplemented
    values = _sorted(x, axis, range(x.shape[axis]), descending)
    return values, _indices(values)


def _sort_stable(
    x: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> Any:
    return _sort(x, dim, descending)


def _topk(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    axis = _axis(x, dim)
    if axis is None:
        return NotImplemented
    values = _sorted(x, axis, range(k), largest)
    return values, _indices(values)


def _kthvalue(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    axis = _axis(x, dim)
    if axis is None:
        return NotImplemented
    values = _sorted(x, axis, [k - 1])
    values = values if keepdim else values.squeeze(axis)
    return values, _indices(values)


def _median(x: Tensor, dim: int, keepdim: bool = False) -> Any:
    return _kthvalue(x, (x.shape[dim] + 1) // 2, dim, keepdim)


def _cumulative(larger: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    def scan(x: Tensor, dim: int) -> Any:
        axis = _axis(x, dim)
        if axis is None:
            return NotImplemented
        parts = [x.narrow(axis, 0, 1)]
        for k in range(1, x.shape[axis]):
            parts.append(larger(parts[-1], x.narrow(axis, k, 1)))
        values = torch.cat(parts, axis)
        return values, _indices(values)

    return scan


def _aminmax(x: Tensor, *, dim: int | None = None, keepdim: bool = False) -> Any:
    axes = [] if dim is None else [dim]
    return torch.amin(x, axes, keepdim), torch.amax(x, axes, keepdim)


def _vector_norm(
    x: Tensor,
    ord: float = 2,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    size = x.abs()
    axes = list(range(x.ndim)) if dim is None else list(dim)
    if ord == 1:
        return size.sum(axes, keepdim)
    if ord in (inf, -inf) and axes:
        return (torch.amax if ord == inf else torch.amin)(size, axes, keepdim)
    return NotImplemented


def _cdist(a: Tensor, b: Tensor, p: float, mode: int | None = None) -> Any:
    apart = a.unsqueeze(-2) - b.unsqueeze(-3)
    return _vector_norm(apart, p, [-1])


def _nan_to_num(x: Tensor, *rest: Any, **values: Any) -> Tensor:
    return x.clone()  # a network's numbers are finite


def _no(x: Tensor) -> Tensor:
    return torch.zeros_like(x, dtype=torch.bool)


def _yes(x: Tensor) -> Tensor:
    return torch.ones_like(x, dtype=torch.bool)


def _softshrink(x: Tensor, width: Any = 0.5) -> Tensor:
    return x.clone() if width == 0 else x - x.clamp(-width, width)


# fmt: off
TABLE: dict[Any, Callable[..., Any]] = {
    aten.sort.default: _sort,
    aten.sort.stable: _sort_stable,
    aten.topk.default: _topk,
    aten.kthvalue.default: _kthvalue,
    aten.median.dim: _median,
    aten.nanmedian.dim: _median,
    aten.cummax.default: _cumulative(torch.maximum),
    aten.cummin.default: _cumulative(torch.minimum),
    aten.aminmax.default: _aminmax,
    aten.linalg_vector_norm.default: _vector_norm,
    aten._cdist_forward.default: _cdist,
    aten.fmax.default: torch.maximum,
    aten.fmin.default: torch.minimum,
    aten.nan_to_num.default: _nan_to_num,
    aten.isnan.default: _no,
    aten.isinf.default: _no,
    aten.isposinf.default: _no,
    aten.isneginf.default: _no,
    aten.isfinite.default: _yes,
    aten.softshrink.default: _softshrink,
}
# fmt: on
