"""Knots near a latent: the proxy of local complexity for networks of any size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from approx.complexity.counting import NoBatch, other_layers
from approx.complexity.passes import (
    Part,
    Sizes,
    by_derivatives,
    by_signs,
    fitting,
    shapes_of_one,
    too_large,
)
from approx.decoder import Output, Prepared, out_of_memory, prepare, session

__all__ = ["Knots", "knots", "neighbourhood"]


@dataclass(frozen=True, eq=False)
class Knots:
    """Knots that meet the cross-polytope {z + sum_p c_p b_p : sum_p |c_p| < radius} at B latents.

    `knots` makes it. Tensors are on the latents' device.

    Attributes
    ----------
    count : Tensor
        (B,) float64 (float32 on MPS): the proxy of local complexity, units whose knot meets the
        neighbourhood. A unit with two knots (relu6, hardtanh, clamp) can count twice. 0 for a
        linear decoder; NaN for one that is not linear and has no units, as `density`, `soft`,
        `undecided` and `zaslavsky` are: `passed_over` says what it executes.
    undecided : Tensor
        (B,): units so near to the criterion's threshold that the rounding error of h in `dtype` may
        have put them on the wrong side of it: an estimate of how far off `count` can be (see
        `roundings`).
    per_layer : Tensor
        (B, L): `count` by layer, in the order of execution.
    layers : tuple of str
        Names of the L layers: the path of the module that ran, with the operation where the module
        is no activation of torch's.
    units : Tensor
        (L,) int64: units of each layer.
    density : Tensor
        (B,): knots per unit radius, sum over |h| < window of max_p |dh/db_p| / window; NaN with
        method "hull".
    soft : Tensor
        (B,): delta_soft = 2 sum max_p |dh/db_p| |act''(h)| over the units of smooth activations
        (and the smooth part of ELU and its like); NaN with method "hull".
    zaslavsky : Tensor
        (B,) float64: sum_{i <= P} C(count, i), an upper bound on the number of cells that meet the
        neighbourhood where no knot bends inside it.
    suggested_radius : float
        The radius at which about ten knots would be met (all of them, if there are fewer): the
        median over some latents, to first order; NaN without units and with method "hull".
    radius, window : float
        As given.
    roundings : float
        The multiple of the estimated rounding error within which a unit is undecided.
    directions : Tensor
        (P, d): the directions b_p.
    method : str
        "jvp" or "hull".
    products : int
        Jacobian products per latent.
    passes : int
        Cost in forward passes: 1 + P for "jvp", 2 P for "hull".
    dtype : torch.dtype
        The dtype in which h was computed.
    passed_over : tuple of str
        Bends and jumps that ran and are no units here (softmax, sigmoid, tanh, conditions that
        jump, ...); for a decoder without units, everything that is not affine.

    Examples
    --------
    >>> import torch
    >>> from approx import knots
    >>> found = knots(lambda z: z.relu(), torch.tensor([[0.05, 3.0], [2.0, 3.0]]), radius=0.2,
    ...               directions=torch.eye(2))
    >>> found.count.tolist(), found.layers, found.units.tolist()
    ([1.0, 0.0], ('relu',), [2])
    """

    count: Tensor
    undecided: Tensor
    per_layer: Tensor
    layers: tuple[str, ...]
    units: Tensor
    density: Tensor
    soft: Tensor
    zaslavsky: Tensor
    suggested_radius: float
    radius: float
    window: float
    roundings: float
    directions: Tensor
    method: str
    products: int
    passes: int
    dtype: torch.dtype
    passed_over: tuple[str, ...]


def neighbourhood(
    latent_shape: tuple[int, ...],
    directions: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw orthonormal directions b_1, ..., b_P, uniformly (Haar), on the CPU in float64.

    Parameters
    ----------
    latent_shape : tuple of int
        Shape of one latent, of d coordinates.
    directions : int
        P, between 1 and d.
    generator : torch.Generator, optional
        A CPU generator; without one, the generator with seed 0.

    Returns
    -------
    Tensor
        (P, d), orthonormal rows.

    Raises
    ------
    ValueError
        If P is below one or larger than the latent.

    Notes
    -----
    QR factorisation of a Gaussian matrix, signs fixed (Mezzadri 2007). Cost: O(d P^2).

    Examples
    --------
    >>> import torch
    >>> from approx import neighbourhood
    >>> basis = neighbourhood((4, 8, 8), 3)
    >>> basis.shape, torch.allclose(basis @ basis.T, torch.eye(3).double())
    (torch.Size([3, 256]), True)
    """
    size = math.prod(latent_shape)
    if not 1 <= directions <= size:
        raise ValueError(
            f"Expected between 1 and {size} directions for latents of {size} coordinates, got "
            f"{directions}: ask for fewer"
        )
    generator = generator or torch.Generator().manual_seed(0)
    gaussian = torch.randn(size, directions, generator=generator, dtype=torch.float64)
    basis, triangle = torch.linalg.qr(gaussian)
    # without the signs, QR's own convention would make the distribution other than Haar's
    return (basis * triangle.diagonal().sign()).T.contiguous()


def knots(
    decoder: Callable[[Tensor], Any],
    z: Tensor,
    *,
    radius: float = 1e-5,
    directions: int | Tensor = 4,
    method: Literal["jvp", "hull"] = "jvp",
    generator: torch.Generator | None = None,
    output: Output | None = None,
    dtype: torch.dtype | None = None,
    window: float = 1e-2,
    roundings: float = 8.0,
    batch: int | Literal["auto"] = "auto",
) -> Knots:
    """Count the knots that meet the neighbourhood {z + sum_p c_p b_p : sum_p |c_p| < r}.

    Units are read off the operations of ATen that the decoder executes, however it spells them:
    modules, functions, methods, in place, scripted, in custom autograd functions or detached. They
    are the ReLU family and its smooth relatives; clamp, maximum and minimum; max-pooling; and
    conditions that make a continuous function, as `where(x > 0, x, 0.1 * x)` or `x * (x > 0)`. The
    knot of a unit is where what enters it, h (after normalisation), is zero, or at the bounds
    (relu6, hardtanh and clamp have two). A slope of 1 is no knot. A window of a max-pooling is one
    unit: it meets its knot where another candidate overtakes the winner inside the neighbourhood,
    to first order; its density is that of the second best. Softmax has no knots. Knots that
    coincide are counted once: those of relu(relu(x)), of relu(x) - 0.1 relu(-x), and of a
    max-pooling where the last positive entry of a ReLU leaves its window.

    With "jvp", a unit counts if |h| < r max_p |dh/db_p|: h is linear to first order, and this is
    the least |h| over the cross-polytope. One forward pass carries all P tangents. In float64,
    latents that are within the curvature of h of the threshold, or meet several knots, are counted
    by signs as well, and these decide. With "hull", the published way, a unit counts if its sign at
    one of the 2 P vertices z +- r b_p differs from that at the first, z + r b_1; in float32 and r =
    1e-5 that is mostly rounding noise.

    Parameters
    ----------
    decoder : callable
        Takes (B, *latent_shape); a torch module, a bound method of one, or a function.
    z : Tensor
        (B, *latent_shape), floating point, on the decoder's device.
    radius : float
        r, in units of the latents.
    directions : int or Tensor
        P, at most d of which are taken, or the directions b_p themselves, (P, d) or
        (P, *latent_shape), which all latents share.
    method : {"jvp", "hull"}
        See above.
    generator : torch.Generator, optional
        For the directions; seed 0 without one.
    output : callable, str or int, optional
        Picks the tensor from what the decoder returns, to check that it is finite.
    dtype : torch.dtype, optional
        torch.float64 runs a copy of the decoder in float64.
    window : float
        w of the density, in units of h.
    roundings : float
        A unit is undecided within this multiple of eps sqrt(depth) times the root mean square of h
        over its layer and latent, depth counting layers of units. 8 covered 99 % of the errors of
        float32 in every decoder measured (TAEF2's 34 layers among them). It does not see a
        normalisation that subtracts a mean much larger than what it leaves; float64 settles it.
    batch : int or "auto"
        Latents in one pass; "auto" goes by the free memory. Halved when memory runs out.

    Returns
    -------
    Knots
        Counts by latent and layer, with how many rounding leaves open.

    Raises
    ------
    ValueError
        If r or w is not positive, P is below 1, latents or directions are not finite floating-point
        numbers, the decoder is not deterministic or returns no finite tensor, or different latents
        execute different layers.
    NotImplementedError
        If units hide in a fused operation (fractional max-pooling), or torch knows no forward-mode
        derivative of an operation.

    Notes
    -----
    Time per latent: 1 + P forward passes for "jvp", in float64 2 P more for the latents in doubt (1
    to 7 % at r = 1e-3, decoders of 400 units; all where counts are many), 2 P for "hull". Memory: 1
    + P times that of a forward pass without a graph for "jvp". Which axis of an activation is the
    batch is told by a forward pass of one latent; where that is not clear, latents are run one at a
    time.

    Of 2,000 latents of twelve architectures (max-pooling and attention among them), at r = 1e-5,
    1e-4 and 1e-3, none is off from the signs at the vertices in float64.

    Criterion and delta_soft after T. Zaslavsky, "Facing up to arrangements", 1975 (the bound), and
    A. I. Humayun et al., "What secrets do your manifolds hold?", 2024 (the neighbourhood and the
    hull).

    Examples
    --------
    >>> import torch
    >>> from approx import knots
    >>> found = knots(torch.nn.ReLU(), torch.tensor([[0.05, 3.0]]), radius=0.2, directions=2)
    >>> found.count.tolist(), found.undecided.tolist(), found.passes
    ([1.0], [0.0], 3)
    """
    prepared = prepare(decoder, z, output=output, dtype=dtype)
    for name, value in (("radius", radius), ("window", window)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"Expected a positive {name}, got {value}: give a length.")
    if method not in ("jvp", "hull"):
        raise ValueError(f"Expected method as 'jvp' or 'hull', got {method!r}: give one of them.")
    if batch != "auto" and batch < 1:
        raise ValueError(f"Expected batch as a positive integer or 'auto', got {batch}.")
    prepared.check_rows(len(z))
    basis = _directions(directions, z, generator).to(device=z.device, dtype=prepared.dtype)
    z = z.detach().to(prepared.dtype)
    sizes = Sizes(radius, window, roundings)
    parts = _in_batches(prepared, z, basis, sizes, method, batch)
    return _joined(parts, prepared, basis, sizes, method)


def _in_batches(
    prepared: Prepared,
    z: Tensor,
    basis: Tensor,
    sizes: Sizes,
    method: str,
    batch: int | Literal["auto"],
) -> list[Part]:
    """Count batch after batch, in smaller ones where memory or an activation's layout asks."""
    count = by_derivatives if method == "jvp" else by_signs
    parts: list[Part] = []
    one: dict[str, torch.Size] | None = None
    # the first latent alone says what one takes
    step, start = (1 if batch == "auto" else batch), 0
    while start < len(z):
        chunk = z[start : start + step]
        try:
            some = prepared.at(slice(start, start + len(chunk)))
            with session(some), torch.no_grad():
                if one is None and len(chunk) > 1:
                    one = shapes_of_one(prepared.at(slice(start, start + 1)), chunk)
                parts.append(count(some, chunk, basis, sizes, one or {}))
        except NoBatch:
            step = batch = 1
            continue
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if len(chunk) == 1:
                raise too_large(error, prepared, method, len(basis)) from error
            step = batch = len(chunk) // 2
            continue
        start += len(chunk)
        if batch == "auto":
            step = fitting(parts[0], prepared, 1 + len(basis) if method == "jvp" else 2)
    return parts


def _joined(
    parts: list[Part], prepared: Prepared, basis: Tensor, sizes: Sizes, method: str
) -> Knots:
    """Join the batches' counts, which must be of the same layers."""
    first = parts[0]
    for part in parts:
        if part.layers != first.layers:
            raise ValueError(other_layers(first.layers, part.layers))
    per_layer = torch.cat([part.count for part in parts])
    undecided = torch.cat([part.undecided for part in parts])
    density = torch.cat([part.density for part in parts])
    soft = torch.cat([part.soft for part in parts])
    total, size = per_layer.sum(1), len(basis)
    passed_over = tuple(dict.fromkeys(name for part in parts for name in part.passed_over))
    if not first.layers and passed_over:  # not a linear map: nobody knows how it bends
        for column in (total, undecided, density, soft):
            column.fill_(math.nan)
    radii = torch.cat([part.radii for part in parts])
    return Knots(
        count=total,
        undecided=undecided,
        per_layer=per_layer,
        layers=first.layers,
        units=torch.tensor(first.units, dtype=torch.int64),
        density=density,
        soft=soft,
        zaslavsky=_cells(total.cpu(), size),
        suggested_radius=float(radii.nanmedian()) if len(radii) else math.nan,
        radius=sizes.radius,
        window=sizes.window,
        roundings=sizes.roundings,
        directions=basis,
        method=method,
        products=size if method == "jvp" else 0,
        passes=1 + size if method == "jvp" else 2 * size,
        dtype=prepared.autocast or prepared.inner,
        passed_over=passed_over,
    )


def _cells(total: Tensor, size: int) -> Tensor:
    """Return Zaslavsky's bound: sum_{i <= size} C(n, i)."""
    cells = [
        float(sum(math.comb(int(n), i) for i in range(size + 1))) if math.isfinite(n) else math.nan
        for n in total.tolist()
    ]
    return torch.tensor(cells, dtype=torch.float64)


def _directions(directions: int | Tensor, z: Tensor, generator: torch.Generator | None) -> Tensor:
    shape = tuple(z.shape[1:])
    size = math.prod(shape)
    if not isinstance(directions, Tensor):
        return neighbourhood(shape, min(directions, size), generator)
    rows = directions.reshape(len(directions), -1) if directions.ndim else directions
    if rows.ndim != 2 or rows.shape[1] != size or not 1 <= len(rows) <= size:
        raise ValueError(
            f"Expected directions of shape (P, {size}) with P at most {size}, got "
            f"{tuple(directions.shape)}: one row for every direction in the latent space"
        )
    if not (rows.is_floating_point() and bool(rows.isfinite().all())):
        raise ValueError(
            "Expected finite floating-point directions, got "
            + ("NaN or infinity" if rows.is_floating_point() else str(rows.dtype))
        )
    return rows.detach()
