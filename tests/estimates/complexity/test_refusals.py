"""What `knots` refuses, and what it says."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as torch's own documentation has it
from support.decoders import latents
from torch import Tensor, nn

from approx import DecoderError, knots, neighbourhood

NET = nn.Sequential(nn.Linear(6, 8), nn.ReLU()).eval()
Z = latents((6,), 2)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("Expected a positive radius, got 0", lambda: knots(NET, Z, radius=0)),
        ("Expected a positive radius, got nan", lambda: knots(NET, Z, radius=math.nan)),
        ("Expected a positive window, got -1", lambda: knots(NET, Z, window=-1)),
        ("Expected method as 'jvp' or 'hull', got 'svd'", lambda: knots(NET, Z, method="svd")),
        ("Expected batch as a positive integer", lambda: knots(NET, Z, batch=0)),
        ("between 1 and 6 directions .* got 7", lambda: neighbourhood((6,), 7)),
        ("between 1 and 6 directions .* got 0", lambda: knots(NET, Z, directions=0)),
        (
            r"directions of shape \(P, 6\) .* got \(2, 5\)",
            lambda: knots(NET, Z, directions=torch.ones(2, 5)),
        ),
        (
            "finite floating-point directions, got NaN",
            lambda: knots(NET, Z, directions=torch.full((2, 6), math.nan)),
        ),
        (
            "finite floating-point directions, got torch.int64",
            lambda: knots(NET, Z, directions=torch.ones(2, 6, dtype=torch.long)),
        ),
        ("Expected floating-point latents, got dtype torch.int64", lambda: knots(NET, Z.long())),
        ("Expected finite latents", lambda: knots(NET, Z * math.nan)),
        ("Expected the same layers for every latent", lambda: knots(Branching(), BRANCHING)),
    ],
)
def test_what_knots_refuses(message, call):
    with pytest.raises(ValueError, match=message):
        call()


class Branching(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return F.relu(z) if float(z.detach().sum()) > 0 else F.silu(z).abs()


BRANCHING = torch.tensor([[1.0, 2.0, 3.0, 4.0], [-1.0, -2.0, -3.0, -4.0]])


@pytest.mark.parametrize("method", ["jvp", "hull"])
def test_decoders_that_knots_refuses(method):
    dropout = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout())
    with pytest.raises(DecoderError, match="in training mode"):
        knots(dropout.train(), Z, method=method)
    with pytest.raises(DecoderError, match="draws random numbers"):
        knots(lambda z: F.relu(NET(z)) + torch.rand(1), Z, method=method)
    with pytest.raises(DecoderError, match="Expected finite outputs"):
        knots(lambda z: F.relu(NET(z)) / 0, Z, method=method)
    with pytest.raises(DecoderError, match="Expected a tensor from the decoder"):
        knots(lambda z: {"image": NET(z)}, Z, method=method)
    found = knots(lambda z: {"image": NET(z)}, Z, method=method, output=lambda y: y["image"])
    assert found.layers == ("1",)


def test_units_inside_of_fused_operations_are_refused():
    with pytest.raises(NotImplementedError, match="got fractional_max_pool2d, whose units lie"):
        knots(lambda z: F.fractional_max_pool2d(NET(z).view(-1, 1, 2, 4), 2, (1, 2)), Z)


def test_operations_without_a_derivative_are_refused():
    def into(z: Tensor) -> Tensor:
        return torch.add(z, z, out=torch.empty_like(z))

    with pytest.raises(NotImplementedError, match=r"got aten.add.out, which writes into a tensor"):
        knots(into, Z)


def test_out_of_memory_halves_the_batch_and_says_what_would_fit():
    class Tight(nn.Module):
        def __init__(self, most: int) -> None:
            super().__init__()
            self.inner, self.most, self.seen = NET, most, []

        def forward(self, z: Tensor) -> Tensor:
            self.seen.append(len(z))
            if len(z) > self.most:
                raise torch.OutOfMemoryError("out of memory: tried to allocate 1 TiB")
            return self.inner(z)

    z = latents((6,), 8)
    tight = Tight(2)
    found = knots(tight, z, radius=0.1, batch=8)
    assert tight.seen == [1, 8, 4, 2, 2, 2, 2]
    assert torch.equal(found.count, knots(NET, z, radius=0.1).count)
    with pytest.raises(MemoryError, match=r"one latent and 4 directions, .* fewer directions"):
        knots(Tight(0), z)
    with pytest.raises(MemoryError, match="more memory, or in a narrower dtype"):
        knots(Tight(0), z, method="hull")


def test_operations_without_forward_mode_are_counted_through():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        grid, image = nn.Linear(6, 18), torch.randn(1, 1, 5, 5, dtype=torch.float64)
    grid.double()

    def decoder(z: Tensor) -> Tensor:
        at = grid(z).tanh().view(-1, 3, 3, 2)
        return F.relu(F.grid_sample(image.expand(len(z), -1, -1, -1), at, align_corners=False))

    z = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, signs = (knots(decoder, z, radius=1e-2, method=m) for m in ("jvp", "hull"))
    assert found.count.sum() > 0
    assert found.count.tolist() == signs.count.tolist()
