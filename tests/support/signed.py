"""Twelve decoders written out by hand that say themselves which piece every unit is on.

The oracle of knots: called with a list, a decoder appends for every layer of units one integer for
each unit, the piece that it is on, or -1 where it has none (a window of a max-pooling whose winner
a ReLU holds at zero). Nothing here is shared with `approx`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

Pieces = list[Tensor] | None


class Signed(nn.Module):
    """Layers in turn: modules, and functions (x, pieces) -> x that tell their units."""

    def __init__(self, *layers: nn.Module | Callable[[Tensor, Pieces], Tensor]) -> None:
        super().__init__()
        self.modules_ = nn.ModuleList(x for x in layers if isinstance(x, nn.Module))
        self.layers = layers

    def forward(self, z: Tensor, pieces: Pieces = None) -> Tensor:
        for layer in self.layers:
            told = isinstance(layer, Signed | Added) or not isinstance(layer, nn.Module)
            z = layer(z, pieces) if told else layer(z)
        return z


def at_zero(act: Callable[[Tensor], Tensor], *knots: float) -> Callable[[Tensor, Pieces], Tensor]:
    """Return an activation with knots at zero, or where it is said."""

    def run(x: Tensor, pieces: Pieces) -> Tensor:
        if pieces is not None:
            pieces.extend((x > knot).flatten(1).long() for knot in knots or (0.0,))
        return act(x)

    return run


def pooled(after_relu: bool) -> Callable[[Tensor, Pieces], Tensor]:
    """Return max-pooling over 2 x 2."""

    def run(x: Tensor, pieces: Pieces) -> Tensor:
        y, winner = F.max_pool2d(x, 2, return_indices=True)
        if pieces is not None:
            none = (y == 0) if after_relu else torch.zeros_like(y, dtype=torch.bool)
            pieces.append(winner.masked_fill(none, -1).flatten(1))
        return y

    return run


def maxout(x: Tensor, pieces: Pieces) -> Tensor:
    """Return the larger half."""
    first, second = x.chunk(2, 1)
    if pieces is not None:
        pieces.append((first > second).flatten(1).long())
    return torch.maximum(first, second)


class Added(nn.Module):
    """What comes in, and what layers make of it."""

    def __init__(self, *layers: nn.Module | Callable[[Tensor, Pieces], Tensor]) -> None:
        super().__init__()
        self.inner = Signed(*layers)

    def forward(self, x: Tensor, pieces: Pieces = None) -> Tensor:
        return x + self.inner(x, pieces)


class Attention(nn.Module):
    """Self-attention of (B, tokens, channels)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _mlp(width: int, depth: int, act: Callable[[Tensor, Pieces], Tensor]) -> Signed:
    inner = [layer for _ in range(depth - 1) for layer in (nn.Linear(width, width), act)]
    return Signed(nn.Linear(12, width), act, *inner, nn.Linear(width, 40))


def _normalised() -> nn.Module:
    norm = nn.BatchNorm2d(8)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_(0, 0.1)
    norm.running_var.uniform_(0.5, 2)
    return norm


def _residual(act: Callable[[Tensor, Pieces], Tensor], norm: Callable[[], nn.Module]) -> Signed:
    def conv(into: int = 8) -> nn.Module:
        return nn.Conv2d(8, into, 3, padding=1)

    block = [Added(norm(), act, conv(), norm(), act, conv()) for _ in range(2)]
    return Signed(
        nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 8, 1), block[0], nn.Upsample(scale_factor=2),
        block[1], act, conv(3),
    )  # fmt: skip


def _transformer() -> Signed:
    def block() -> list[Callable[[Tensor, Pieces], Tensor]]:
        gelu = at_zero(F.gelu)
        mixing = Added(nn.LayerNorm(8), Attention(8, 2))
        return [
            mixing,
            Added(nn.LayerNorm(8), nn.Linear(8, 24), gelu, nn.Linear(24, 8)),
        ]

    return Signed(
        nn.Linear(12, 48), nn.Unflatten(1, (6, 8)), *block(), *block(), nn.Flatten(),
    )  # fmt: skip


def _attending() -> Signed:
    silu = at_zero(F.silu)
    first = _residual(silu, lambda: nn.GroupNorm(4, 8))
    mixing = Added(nn.LayerNorm(16), Attention(16, 2))
    return Signed(
        first, nn.Flatten(2), mixing, nn.Unflatten(2, (4, 4)),
        nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), silu, nn.Conv2d(8, 3, 1),
    )  # fmt: skip


def _pooling(after_relu: bool) -> Signed:
    relu = at_zero(F.relu)
    first = [relu, pooled(True)] if after_relu else [pooled(False), relu]
    return Signed(
        nn.Linear(12, 128), nn.Unflatten(1, (2, 8, 8)), nn.Conv2d(2, 6, 3, padding=1), *first,
        nn.Conv2d(6, 6, 3), relu, *([pooled(True)] if after_relu else []), nn.Flatten(),
        nn.Linear(6 if after_relu else 24, 40),
    )  # fmt: skip


def _dcgan() -> Signed:
    relu = at_zero(F.relu)
    return Signed(
        nn.Unflatten(1, (12, 1, 1)), nn.ConvTranspose2d(12, 8, 3), _normalised(), relu,
        nn.ConvTranspose2d(8, 8, 4, 2, 1), _normalised(), relu, nn.Conv2d(8, 3, 3, padding=1),
        nn.Tanh(),
    )  # fmt: skip


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "relu mlp": lambda: _mlp(64, 3, at_zero(lambda x: torch.where(x > 0, x, 0))),
    "deep relu mlp": lambda: _mlp(48, 8, at_zero(F.relu)),
    "dcgan": _dcgan,
    "leaky residual": lambda: _residual(at_zero(lambda x: F.leaky_relu(x, 0.1)), nn.Identity),
    "relu6 mlp": lambda: _mlp(64, 3, at_zero(F.relu6, 0.0, 6.0)),
    "maxout": lambda: Signed(
        nn.Linear(12, 96), maxout, nn.Linear(48, 96), maxout, nn.Linear(48, 40)
    ),
    "pooling": lambda: _pooling(after_relu=False),
    "pooling of relu": lambda: _pooling(after_relu=True),
    "silu group norm": lambda: _residual(at_zero(F.silu), lambda: nn.GroupNorm(4, 8)),
    "gelu mlp": lambda: _mlp(64, 3, at_zero(F.gelu)),
    "transformer": _transformer,
    "silu attention": _attending,
}


def make(name: str) -> nn.Module:
    """Return a decoder of 12 coordinates in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MAKERS[name]().eval().double()


def changed(module: nn.Module, z: Tensor, directions: Tensor, radius: float) -> Tensor:
    """Return (B,) how many units are on different pieces at the vertices z +- r b_p."""
    first: Tensor | None = None
    differs = torch.zeros(0)
    for b in directions:
        for sign in (1, -1):
            told: list[Tensor] = []
            with torch.no_grad():
                module(z + sign * radius * b, told)
            now = torch.cat(told, 1)
            if first is None:
                first, differs = now, torch.zeros_like(now, dtype=torch.bool)
            differs |= (now != first) & (now >= 0) & (first >= 0)
            first = torch.where(first < 0, now, first)
    return differs.sum(1)
