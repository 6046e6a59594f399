"""Measurement of the decoder's Jacobian, in three ways, against the exact map of every cell."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

import cpwl
from approx import JacobianOperator
from bridges.validation import autograd
from bridges.validation.jacobians.interior import clear_of_knots, inner_points
from bridges.validation.jacobians.result import (
    AUTOGRAD,
    DIFFERENCES,
    ESTIMATE,
    FORWARD,
    REVERSE,
    SINGLE,
    VALUES,
    Jacobians,
)
from bridges.validation.jacobians.rows import rows_of
from bridges.validation.subject import Latents, Subject, uniform
from cpwl.arrays import Floats
from cpwl.density import uniform_in_cells

_IDENTITY = 64  # coordinates up to which every direction is multiplied
_COTANGENTS = 16  # random directions of an output that has more
_NUMBERS = 2**25  # entries of all the matrices compared
_AT_ONCE = 2**22  # entries of those that are held at a time
_FLOOR = 1e-3  # of the median size, which an error is relative to where the map is smaller


def measure(
    subject: Subject, *, cells: int = 2000, latents: int = 64, limit: float = 1e-9, seed: int = 0
) -> Jacobians:
    r"""Compare the decoder's Jacobian with A_w, and its values with A_w z + b_w, in float64.

    Parameters
    ----------
    subject : Subject
    cells : int
        At most so many cells, chosen at random, with one latent inside each.
    latents : int
        Uniform latents of a network without cells.
    limit : float
        Relative error claimed, see Notes.
    seed : int
        Of latents and directions.

    Returns
    -------
    Jacobians
        `errors` has, with cells: "autograd", "operator J X" and "operator J^T Y" against A_w,
        "decoder's values" at another point of the cell against A_w z + b_w, "autograd, float32"
        against A_w. Without: "central differences" against "operator J X", over their own error
        estimate, so that 1 is the limit, and that relative estimate, "central differences'
        estimate". Both have the operator's two against autograd: "operator J X, autograd" and
        "operator J^T Y, autograd".

    Raises
    ------
    ValueError
        `cells` or `latents` below 1.

    Notes
    -----
    Errors are in the Frobenius norm, relative to |A_w| or to a thousandth of the cells' median
    |A_w|, whichever is larger; those of values to |A_w z| + |b_w|, whose sum may cancel. Rounding
    leaves 1e-16 to 1e-13 of that, times what products of layers cancel; a weight that is off by
    1e-6 leaves 1e-7 and more in the worst cell, so the limit of 1e-9 lies well between.

    Where rounding alone could put the latent on another piece of a unit (`clear_of_knots`), the
    Jacobian may be the neighbour's. Such latents are counted in a row of their own and not claimed.
    If there is no other, the claims fail.

    Latents of more than 64 coordinates are multiplied with the P directions of the slice, which
    leaves P columns of A_w, instead of all; outputs of more than 64 with 16 Gaussian directions: Y
    is N(0, 1/16), so that |Y^T M| is |M| on average, and no difference hides from it. At most 2^25
    entries of A_w are compared, else fewer cells.

    Cost for each latent: about 4 forward passes for each column of X, and as many for each of Y.
    """
    for name, value in (("cells", cells), ("latents", latents)):
        if value < 1:
            raise ValueError(f"Expected {name} >= 1, got {value}: give how many to compare.")
    rng = np.random.default_rng(seed)
    X = _directions(subject)
    Y = _cotangents(subject.outputs, rng)
    if subject.partition is None:
        result = _smooth(subject, uniform(subject, latents, rng), X, Y, limit)
    else:
        result = _exact(subject, cells, X, Y, limit=limit, rng=rng)
    return replace(result, rows=rows_of(result))


def _exact(
    subject: Subject, most: int, X: Tensor, Y: Tensor, *, limit: float, rng: np.random.Generator
) -> Jacobians:
    """Compare on the cells."""
    partition, network = subject.partition, subject.network
    assert partition is not None
    assert network is not None
    affordable = max(1, _NUMBERS // (subject.outputs * X.shape[1]))
    chosen = np.arange(partition.num_cells)
    if min(most, affordable) < len(chosen):
        chosen = np.sort(rng.choice(chosen, min(most, affordable), replace=False))
    here = inner_points(subject, chosen, rng)
    s = uniform_in_cells(partition, chosen, rng)
    there = Latents(s, torch.from_numpy(subject.domain.slice.embed(s)), chosen)
    clear = clear_of_knots(network, partition, here, there)

    blocks: list[dict[str, Floats]] = []
    sizes, terms = np.empty((2, len(chosen)))
    along = "latent" if X.shape[0] == X.shape[1] else "slice"
    parts = zip(
        _blocks(here.z, X, Y),
        cpwl.affine_maps(partition, chosen, wrt=along, chunk=_at_once(X, Y)),
        strict=True,
    )
    for part, (A_w, b_w) in parts:
        A, b, z = torch.from_numpy(A_w), torch.from_numpy(b_w), here.z[part]
        found = _distances(subject, z, X, Y, A)[1]
        sizes[part] = A.flatten(1).norm(dim=1).numpy()
        single = autograd.pulled_back(subject.decoder, z.float(), Y).double() @ X
        found[SINGLE] = _norms(single - Y.T @ A)
        x = there.z[part].flatten(1) if along == "latent" else torch.from_numpy(there.s[part])
        moved = (A @ x[:, :, None])[:, :, 0]
        value = autograd.decode(subject.decoder, there.z[part])
        found[VALUES] = (value - moved - b).norm(dim=1).numpy()
        terms[part] = (moved.norm(dim=1) + b.norm(dim=1)).numpy()
        blocks.append(found)
    errors = {
        name: _relative(gap, terms if name == VALUES else sizes)
        for name, gap in _joined(blocks).items()
    }
    return Jacobians(
        latents=here,
        errors=errors,
        clear=clear,
        limit=limit,
        directions=X.shape[1],
        elsewhere=there,
        cells=partition.num_cells,
    )


def _smooth(subject: Subject, at: Latents, X: Tensor, Y: Tensor, limit: float) -> Jacobians:
    """Compare where there are no cells."""
    blocks: list[dict[str, Floats]] = []
    sizes, estimates, quotients = np.empty((3, len(at.s)))
    for part in _blocks(at.z, X, Y):
        J, found = _distances(subject, at.z[part], X, Y)
        blocks.append(found)
        sizes[part] = _norms(J)
        differences = autograd.central_differences(subject.decoder, at.z[part], X)
        estimates[part] = differences.error.numpy()
        quotients[part] = _norms(differences.value - J)
    errors = {name: _relative(gap, sizes) for name, gap in _joined(blocks).items()}
    errors[DIFFERENCES] = quotients / estimates
    errors[ESTIMATE] = _relative(estimates, sizes)
    return Jacobians(
        latents=at,
        errors=errors,
        clear=np.ones(len(at.s), bool),
        limit=limit,
        directions=X.shape[1],
    )


def _distances(
    subject: Subject, z: Tensor, X: Tensor, Y: Tensor, A: Tensor | None = None
) -> tuple[Tensor, dict[str, Floats]]:
    """Return J X, and the operator's and autograd's distances from each other and from A."""
    with JacobianOperator(subject.decoder, z, dtype=torch.float64) as op:
        pushed, pulled = op.matmat(X), op.rmatmat(Y).mT @ X
    reverse = autograd.pulled_back(subject.decoder, z, Y) @ X
    found = {
        f"{FORWARD}, {AUTOGRAD}": _norms(Y.T @ pushed - reverse),
        f"{REVERSE}, {AUTOGRAD}": _norms(pulled - reverse),
    }
    if A is not None:
        found[AUTOGRAD] = _norms(reverse - Y.T @ A)
        found[FORWARD] = _norms(pushed - A)
        found[REVERSE] = _norms(pulled - Y.T @ A)
    return pushed, found


def _joined(blocks: list[dict[str, Floats]]) -> dict[str, Floats]:
    """Put the arrays of the same name end to end."""
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _directions(subject: Subject) -> Tensor:
    """Return X (E, k): all coordinates of a latent, or the slice's directions."""
    if subject.latent_size <= _IDENTITY:
        return torch.eye(subject.latent_size, dtype=torch.float64)
    basis = subject.domain.slice.basis
    return torch.tensor(basis.reshape(len(basis), -1).T)


def _cotangents(outputs: int, rng: np.random.Generator) -> Tensor:
    """Return Y (D, k): all coordinates of an output, or some random directions."""
    if outputs <= _IDENTITY:
        return torch.eye(outputs, dtype=torch.float64)
    drawn = rng.standard_normal((outputs, _COTANGENTS)) / math.sqrt(_COTANGENTS)
    return torch.from_numpy(drawn)


def _at_once(X: Tensor, Y: Tensor) -> int:
    """Return how many latents to work on at a time."""
    each = max(len(Y) * X.shape[1], len(X) * Y.shape[1])
    return min(512, max(1, _AT_ONCE // each))


def _blocks(z: Tensor, X: Tensor, Y: Tensor) -> Iterator[slice]:
    for start, stop in pairwise([*range(0, len(z), _at_once(X, Y)), len(z)]):
        yield slice(start, stop)


def _norms(M: Tensor) -> Floats:
    return M.flatten(1).norm(dim=1).numpy()


def _relative(gap: Floats, size: Floats) -> Floats:
    """Return errors relative to sizes, or to a small share of their median."""
    scale = np.maximum(size, _FLOOR * float(np.median(size)))
    return np.where(gap == 0, 0.0, gap / np.where(scale > 0, scale, np.finfo(float).tiny))
