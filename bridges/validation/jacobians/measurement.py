"""The decoder's Jacobian, had in three ways, against the exact map A_w z + b_w of every cell."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import cpwl
from approx import JacobianOperator
from bridges.validation import autograd
from bridges.validation.findings import Row
from bridges.validation.jacobians.figure import draw as draw
from bridges.validation.jacobians.interior import clear_of_knots, inner_points
from bridges.validation.jacobians.result import Jacobians
from bridges.validation.subject import Latents, Subject, uniform
from cpwl.arrays import Floats
from cpwl.density import uniform_in_cells

_IDENTITY = 64  # coordinates up to which every direction is multiplied
_COTANGENTS = 16  # random directions of an output that has more
_NUMBERS = 2**25  # entries of all the matrices compared
_AT_ONCE = 2**22  # entries of those that are held at a time
_FLOOR = 1e-3  # of the median size, which an error is relative to where the map is smaller
SWITCHED = 1e-4  # relative error of a float32 Jacobian above which it is another cell's

AUTOGRAD, FORWARD, REVERSE = "autograd", "operator J X", "operator J^T Y"
VALUES, SINGLE, DIFFERENCES = "decoder's values", "autograd, float32", "central differences"


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
        against A_w. Without: "operator J X" against central differences (over their own error
        estimate, so that 1 is the limit). Both have the operator's two against autograd:
        "operator J X, autograd" and "operator J^T Y, autograd".

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
        return _smooth(subject, uniform(subject, latents, rng), X, Y, limit)
    return _exact(subject, cells, X, Y, limit, rng)


def _exact(
    subject: Subject, most: int, X: Tensor, Y: Tensor, limit: float, rng: np.random.Generator
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

    names = [AUTOGRAD, FORWARD, REVERSE, VALUES, SINGLE]
    names += [f"{FORWARD}, {AUTOGRAD}", f"{REVERSE}, {AUTOGRAD}"]
    gaps = {name: np.empty(len(chosen)) for name in names}
    sizes, terms = np.empty(len(chosen)), np.empty(len(chosen))
    along = "latent" if X.shape[0] == X.shape[1] else "slice"
    parts = zip(
        _blocks(here.z, X, Y),
        cpwl.affine_maps(partition, chosen, wrt=along, chunk=_at_once(X, Y)),
        strict=True,
    )
    for part, (A_w, b_w) in parts:
        A, b, z = torch.from_numpy(A_w), torch.from_numpy(b_w), here.z[part]
        _products(subject, z, X, Y, gaps, part, A)
        sizes[part] = A.flatten(1).norm(dim=1).numpy()
        single = autograd.pulled_back(subject.decoder, z.float(), Y).double() @ X
        gaps[SINGLE][part] = _norms(single - Y.T @ A)
        x = there.z[part].flatten(1) if along == "latent" else torch.from_numpy(there.s[part])
        moved = (A @ x[:, :, None])[:, :, 0]
        value = autograd.decode(subject.decoder, there.z[part])
        gaps[VALUES][part] = (value - moved - b).norm(dim=1).numpy()
        terms[part] = (moved.norm(dim=1) + b.norm(dim=1)).numpy()
    errors = {
        name: _relative(gap, terms if name == VALUES else sizes) for name, gap in gaps.items()
    }
    rows = _exact_rows(partition, here, there, errors, clear, X, limit)
    return Jacobians(tuple(rows), here, errors, clear, limit)


def _smooth(subject: Subject, at: Latents, X: Tensor, Y: Tensor, limit: float) -> Jacobians:
    """Compare where there are no cells."""
    names = [f"{FORWARD}, {AUTOGRAD}", f"{REVERSE}, {AUTOGRAD}"]
    gaps = {name: np.empty(len(at.s)) for name in names}
    sizes, errors_of_quotients, quotients = np.empty((3, len(at.s)))
    for part in _blocks(at.z, X, Y):
        J = _products(subject, at.z[part], X, Y, gaps, part, None)
        sizes[part] = _norms(J)
        found = autograd.central_differences(subject.decoder, at.z[part], X)
        errors_of_quotients[part] = found.error.numpy()
        quotients[part] = _norms(found.value - J)
    errors = {name: _relative(gap, sizes) for name, gap in gaps.items()}
    errors[DIFFERENCES] = quotients / errors_of_quotients
    clear = np.ones(len(at.s), bool)
    rows = [
        _worst("J", f"{name.split(',')[0]} against autograd", errors[name], at, clear, limit)
        for name in names
    ]
    rows += [
        _worst("J", f"{FORWARD} against central differences", errors[DIFFERENCES], at, clear, 1.0)
        ._replace(statistic="worst error over its estimate"),
        Row(
            "jacobian", "J", "central differences", "worst error estimate",
            float(_relative(errors_of_quotients, sizes).max()),
            note="relative; from two steps, with the rounding of the values",
        ),
    ]  # fmt: skip
    return Jacobians(tuple(rows), at, errors, clear, limit)


def _products(
    subject: Subject,
    z: Tensor,
    X: Tensor,
    Y: Tensor,
    gaps: Mapping[str, Floats],
    part: slice,
    A: Tensor | None,
) -> Tensor:
    """Write the operator's and autograd's distances from A and from each other; return J X."""
    with JacobianOperator(subject.decoder, z, dtype=torch.float64) as op:
        pushed, pulled = op.matmat(X), op.rmatmat(Y).mT @ X
    reverse = autograd.pulled_back(subject.decoder, z, Y) @ X
    gaps[f"{FORWARD}, {AUTOGRAD}"][part] = _norms(Y.T @ pushed - reverse)
    gaps[f"{REVERSE}, {AUTOGRAD}"][part] = _norms(pulled - reverse)
    if A is not None:
        gaps[AUTOGRAD][part] = _norms(reverse - Y.T @ A)
        gaps[FORWARD][part] = _norms(pushed - A)
        gaps[REVERSE][part] = _norms(pulled - Y.T @ A)
    return pushed


def _exact_rows(
    partition: cpwl.Partition,
    here: Latents,
    there: Latents,
    errors: Mapping[str, Floats],
    clear: NDArray[np.bool_],
    X: Tensor,
    limit: float,
) -> list[Row]:
    """Sum the errors up."""
    of = f"of {partition.num_cells:,}"
    if len(X) > X.shape[1]:
        of += f"; along the slice's {X.shape[1]} directions, as E = {len(X):,}"
    rows = [
        Row("jacobian", "cells", "one latent in each", "compared", float(len(clear)), note=of),
        Row(
            "jacobian", "cells", "one latent in each", "unclear", float((~clear).sum()),
            note="latents within float64's rounding of a knot, without a claim",
        ),
    ]  # fmt: skip
    for name in (AUTOGRAD, FORWARD, REVERSE):
        rows.append(_worst("A_w", name, errors[name], here, clear, limit))
        rows.append(_median("A_w", name, errors[name], clear))
    everywhere = np.ones(len(clear), bool)  # values are continuous across knots
    rows.append(_worst("A_w z + b_w", VALUES, errors[VALUES], there, everywhere, limit))
    rows.append(_median("A_w z + b_w", VALUES, errors[VALUES], everywhere))
    for name in (FORWARD, REVERSE):
        error = errors[f"{name}, {AUTOGRAD}"]
        rows.append(_worst("J", f"{name} against autograd", error, here, everywhere, limit))
    single = errors[SINGLE]
    rows += [
        Row(
            "jacobian", "A_w", SINGLE, "share on another cell", float((single > SWITCHED).mean()),
            note=f"relative error above {SWITCHED:g}: float32 has another activation pattern",
        ),
        _median("A_w", SINGLE, single, single <= SWITCHED)._replace(note="of the others"),
    ]  # fmt: skip
    return rows


def _worst(
    quantity: str, case: str, error: Floats, at: Latents, mask: NDArray[np.bool_], limit: float
) -> Row:
    """Return the row of the largest error and where it is; NaN, which fails, if there is none."""
    where = np.flatnonzero(mask)
    if not len(where):
        note = "no latent is clear of float64's rounding of a knot"
        return Row(
            "jacobian", quantity, case, "worst relative error", math.nan, high=limit, note=note
        )
    i = where[np.argmax(np.nan_to_num(error[where], nan=math.inf))]
    place = ", ".join(f"{x:.6g}" for x in at.s[i])
    cell = f"cell {at.cells[i]}, " if at.cells[i] >= 0 else ""
    return Row(
        "jacobian", quantity, case, "worst relative error", float(error[i]), high=limit,
        note=f"{cell}s = ({place})" if error[i] != 0 else "the same to the last bit everywhere",
    )  # fmt: skip


def _median(quantity: str, case: str, error: Floats, mask: NDArray[np.bool_]) -> Row:
    value = float(np.median(error[mask])) if mask.any() else math.nan
    return Row("jacobian", quantity, case, "median relative error", value)


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
