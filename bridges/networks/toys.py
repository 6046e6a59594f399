"""Small generators that everything is compared on, trained here or with random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

import cpwl
from bridges.networks import pretrained, toy_decoders

RADIUS = 10.0
"""Half the side of the square [-RADIUS, RADIUS]^2 on which the toy generator is trained."""

# centre x, centre y, standard deviation, height: five bumps of different steepness, none of them
# cut by the border of the square
_BUMPS = (
    (-5.0, -4.5, 1.4, 6.0),
    (-4.0, 5.0, 2.0, 4.0),
    (0.5, 0.0, 1.2, 7.0),
    (5.5, 4.5, 1.6, 5.0),
    (4.5, -5.5, 2.2, 4.5),
)


def bumps(z: Tensor) -> Tensor:
    """Return the heights of a mixture of five Gaussian bumps.

    Parameters
    ----------
    z : (N, 2) Tensor
        Places in the plane.

    Returns
    -------
    (N,) Tensor
        In the dtype of z.

    Examples
    --------
    >>> import torch
    >>> from bridges.networks.toys import bumps
    >>> bumps(torch.tensor([[0.5, 0.0], [9.0, 0.0]]))
    tensor([7.0526, 0.0332])
    """
    x, y, deviation, height = torch.tensor(_BUMPS, dtype=z.dtype, device=z.device).T
    squared = (z[:, :1] - x) ** 2 + (z[:, 1:] - y) ** 2
    return (height * torch.exp(-squared / (2 * deviation**2))).sum(1)


# centre, standard deviation, share of the way to the centre: one well in the middle, where a
# picture is cut open, and one at either end of a diagonal
_WELLS = (
    (0.0, 0.0, 0.0, 0.38, 0.95),
    (0.75, 0.7, 0.6, 0.30, 0.80),
    (-0.7, -0.75, -0.6, 0.35, 0.80),
)


def wells(z: Tensor) -> Tensor:
    """Return points pulled towards three others: near each, space shrinks to a fifth or less.

    Parameters
    ----------
    z : (N, 3) Tensor
        Places in space.

    Returns
    -------
    (N, 3) Tensor
        In the dtype of z.

    Examples
    --------
    >>> import torch
    >>> from bridges.networks.toys import wells
    >>> wells(torch.tensor([[0.1, 0.0, 0.0]]))
    tensor([[ 0.0076, -0.0005, -0.0004]])
    """
    parts = torch.tensor(_WELLS, dtype=z.dtype, device=z.device)
    away = z[:, None] - parts[:, :3]
    share = parts[:, 4] * torch.exp(-(away**2).sum(2) / (2 * parts[:, 3] ** 2))
    return z - (share[..., None] * away).sum(1)


def random_mlp(widths: Sequence[int], seed: int = 0) -> nn.Sequential:
    """Return Linear, ReLU, ..., Linear of these widths with PyTorch's default initialisation.

    The parameters are those that follow `torch.manual_seed(seed)`; the caller's random state is
    left as it was.

    Parameters
    ----------
    widths : sequence of int
        Input, hidden and output widths, for example (2, 64, 64, 64, 3).
    seed : int
        Seed of the initialisation.

    Returns
    -------
    nn.Sequential
        In float32 and training mode, with gradients.

    Raises
    ------
    ValueError
        Fewer than two widths.

    Examples
    --------
    >>> from bridges.networks.toys import random_mlp
    >>> random_mlp((2, 4, 3))
    Sequential(
      (0): Linear(in_features=2, out_features=4, bias=True)
      (1): ReLU()
      (2): Linear(in_features=4, out_features=3, bias=True)
    )
    """
    if len(widths) < 2:
        raise ValueError(
            f"Expected at least an input and an output width, got {list(widths)}. "
            "Give all the widths in order, for example (2, 64, 64, 64, 3)."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out, dtype=torch.float32), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def toy_generator(seed: int = 0, steps: int = 4000) -> nn.Sequential:
    """Train the toy generator G: R^2 -> R^3 onto the graph (z1, z2, f(z)) of `bumps`.

    Three hidden ReLU layers of width 20, fitted to uniform points of the square by Adam.

    Parameters
    ----------
    seed : int
        Seed of the initialisation and of the training points. The caller's random state and thread
        count are left as they were.
    steps : int
        Training steps of 1024 points each; the default takes some ten seconds.

    Returns
    -------
    nn.Sequential
        In evaluation mode, float32, without gradients.

    Examples
    --------
    >>> import torch
    >>> from bridges.networks.toys import toy_generator
    >>> toy_generator(steps=5)(torch.zeros(1, 2)).shape
    torch.Size([1, 3])
    """

    def graph(z: Tensor) -> Tensor:
        return torch.cat([z, bumps(z)[:, None]], dim=1)

    return _trained((2, 20, 20, 20, 3), graph, RADIUS, seed, steps)


def toy_solid(seed: int = 0, steps: int = 3000) -> nn.Sequential:
    """Train a toy generator G: R^3 -> R^3 that pulls [-1, 1]^3 towards three points (`wells`).

    Two hidden ReLU layers of width 24.

    Parameters
    ----------
    seed, steps : int
        As for `toy_generator`.

    Returns
    -------
    nn.Sequential
        In evaluation mode, float32, without gradients.

    Examples
    --------
    >>> import torch
    >>> from bridges.networks.toys import toy_solid
    >>> toy_solid(steps=5)(torch.zeros(1, 3)).shape
    torch.Size([1, 3])
    """
    return _trained((3, 24, 24, 3), wells, 1.0, seed, steps)


def _trained(
    widths: Sequence[int], target: Callable[[Tensor], Tensor], radius: float, seed: int, steps: int
) -> nn.Sequential:
    """Fit a network to a function on a cube.

    Mean squared error on fresh uniform points, Adam with a learning rate that falls to zero on a
    half cosine. One thread: at this size more of them only add overhead, and sums then do not
    depend on how many there are.
    """
    generator = torch.Generator().manual_seed(seed)
    model = random_mlp(widths, seed)
    with one_thread(), torch.enable_grad():
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
        for _ in range(steps):
            unit = torch.rand(1024, widths[0], generator=generator, dtype=torch.float32)
            z = radius * (2 * unit - 1)
            loss = nn.functional.mse_loss(model(z), target(z))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval().requires_grad_(False)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread, and give the caller's thread count back.

    Examples
    --------
    >>> import torch
    >>> from bridges.networks.toys import one_thread
    >>> with one_thread():
    ...     torch.get_num_threads()
    1
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Toy(NamedTuple):
    """A small generator and the part of its latent space that it is looked at on.

    Attributes
    ----------
    name : str
        Its key in `TOYS`.
    module : nn.Module
        In evaluation mode, float32; takes (B, *domain.slice.latent_shape).
    domain : Domain
        A square, on a plane through the latent space.
    note : str
        What it is, in one line.
    """

    name: str
    module: nn.Module
    domain: cpwl.Domain
    note: str


def toy(name: str) -> Toy:
    """Make one of `TOYS`.

    Parameters
    ----------
    name : str
        "generator" (trained, which takes some six seconds), "mnist-vae" (pretrained: a file that
        `bridges.networks.data.path` finds or downloads), or with random weights "conv",
        "residual", "max-pooling", or "smooth", which is not piecewise linear.

    Returns
    -------
    Toy
        Always the same one.

    Raises
    ------
    ValueError
        Another name.

    Examples
    --------
    >>> from bridges.networks.toys import toy
    >>> made = toy("max-pooling")
    >>> made.domain.slice.latent_shape, made.note
    ((12,), 'max-pooling, then convolutions and ReLU, 12 to 3x8x8')
    """
    if name not in TOYS:
        raise ValueError(f"Expected one of the toys {', '.join(TOYS)}, got '{name}'. Choose one.")
    return TOYS[name]()


def _generator() -> Toy:
    domain = cpwl.box([-RADIUS, -RADIUS], [RADIUS, RADIUS])
    return Toy("generator", toy_generator(), domain, "trained on five bumps, 2-20-20-20-3, ReLU")


def _mnist_vae() -> Toy:
    decoder = pretrained.mnist_vae_decoder()[:-1].eval()  # a part is a new module, in training
    digits = pretrained.first_of(pretrained.read_images("mnist", 100), (0, 1, 7))
    plane = cpwl.Slice.through(*pretrained.codes(digits))
    note = "decoder of an MNIST VAE before its sigmoid, 20-400-784, among the codes of a 0, 1 and 7"
    return Toy("mnist-vae", decoder, _around(plane, 0.4), note)


def _conv() -> Toy:
    note = "convolutional, ReLU, 8x4x4 to 3x16x16, orthogonal kernels: an effective rank near 70"
    return _random("conv", toy_decoders.conv, (8, 4, 4), 0.2, note)


def _residual() -> Toy:
    note = "residual convolutions, ReLU and leaky ReLU, 4x3x3 to 3x6x6"
    return _random("residual", toy_decoders.residual, (4, 3, 3), 0.2, note)


def _max_pooling() -> Toy:
    note = "max-pooling, then convolutions and ReLU, 12 to 3x8x8"
    return _random("max-pooling", toy_decoders.max_pooling, (12,), 0.4, note)


def _smooth() -> Toy:
    note = "SiLU, GroupNorm, attention, 4x4x4 to 3x8x8: not piecewise linear"
    return _random("smooth", toy_decoders.smooth, (4, 4, 4), 2.0, note)


TOYS: Mapping[str, Callable[[], Toy]] = MappingProxyType(
    {
        "generator": _generator,
        "mnist-vae": _mnist_vae,
        "conv": _conv,
        "residual": _residual,
        "max-pooling": _max_pooling,
        "smooth": _smooth,
    }
)
"""Every toy by its name, with the function that makes it, always the same."""


def _random(
    name: str, make: Callable[[], nn.Module], shape: tuple[int, ...], half: float, note: str
) -> Toy:
    """Return a seeded decoder on the square about the middle of three normal latents."""
    latents = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    plane = cpwl.Slice.through(*latents)
    return Toy(name, toy_decoders.seeded(make), _around(plane, half), note)


def _around(plane: cpwl.Slice, half: float) -> cpwl.Domain:
    """Return the square of this half width about the middle of a slice's anchors."""
    assert plane.anchors is not None
    middle = plane.anchors.mean(axis=0)
    return plane.box(middle - half, middle + half)
