"""A small denoiser of vectors, and explicit Jacobians."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

STEPS = 5
SIZE = 5


class Small(nn.Module):
    """A smooth denoiser of vectors, told a time and a row of a condition."""

    seen: ClassVar[set[torch.dtype]] = set()  # of copies too

    def __init__(self, act: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(SIZE + 2, 24), nn.Linear(24, SIZE)
        self.act = act

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.seen.update([x.dtype, t.dtype])
        assert t.shape == (len(x),)
        told = torch.stack([t.to(x) / 1000, x.new_zeros(len(x)) if y is None else y], dim=1)
        inner = self.act(self.first(torch.cat([x, told], dim=1)))
        # near what a trained one says, so that steps stay invertible
        return 0.3 * x + 0.3 * self.last(inner)


def small(dtype: torch.dtype = torch.float64, **options: Any) -> Small:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Small(**options).to(dtype).eval().requires_grad_(False)


def noise(count: int = 2, size: int = SIZE, seed: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator, dtype=torch.float64)


def gap(got: Any, expected: Any) -> float:
    got, expected = (torch.as_tensor(v).detach().double() for v in (got, expected))
    return float((got - expected).norm() / expected.norm())


def jacobians(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Return (B, D, d) by autograd, one output of one latent at a time."""
    rows = [
        torch.autograd.functional.jacobian(lambda x: function(x[None])[0].flatten(), one)
        for one in z
    ]
    return torch.stack(rows).flatten(2)


def timed(make: Callable[..., Any], **options: Any) -> Any:
    scheduler = make(**options)
    scheduler.set_timesteps(STEPS)
    return scheduler
