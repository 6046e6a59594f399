"""`cell_at`: the cell around one latent in the whole latent space; no other is visited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cpwl.arrays import EPS, UNIT_ROUNDOFF, Floats, Ints, denormals
from cpwl.cells.inequalities import HalfSpaces
from cpwl.domain import floats
from cpwl.network import Network, require_captured
from cpwl.network.program import linearise


class Doubt(NamedTuple):
    """How far the half-spaces of a cell may be off.

    The computed distance of a point x from knot i differs from the exact one by at most
    ``error[i] + tilt[i] * ||x - z||``.

    Parameters
    ----------
    error : (m,) float64
    tilt : (m,) float64
    """

    error: Floats
    tilt: Floats


@dataclass(frozen=True, eq=False)
class Cell:
    """The cell of a network that holds a latent z of E coordinates, and the map on it.

    Parameters
    ----------
    network : Network
    z : (E,) float64
        The latent, flattened in C order, as all coordinates here are.
    pieces : (num_units,) int32
        The activation pattern; 0 for a unit without effect (in a losing half of a max-pooling).
    A : (D, E) float64
        On the cell G(x) = A x + b.
    b : (D,) float64
    halfspaces : HalfSpaces
        Every knot that bounds the pattern, linearised on the cell, in the order of the units:
        the closed cell is where they all hold. A unit between two breakpoints has two, a
        max-pooling one for each candidate that loses, named after the match in which it meets the
        winner. Most may be redundant: see `cpwl.facets`.
    distances : (m,) float64
        Distance of z from each knot.
    doubt : Doubt
        Bounds on the rounding errors of half-spaces and distances.
    distance : float
        Distance of z from the nearest knot of the network (inf if there is none): the radius of
        the largest ball around z inside the cell.
    distance_error : float
        Bound on its rounding error.
    undecided : (k,) int64
        Units whose knot passes so near to z that float64 does not prove on which side z lies. The
        pattern is proven if there is none.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.ReLU(), (2,))
    >>> cell = cpwl.cell_at(network, [1.0, 0.0])
    >>> cell.pieces.tolist(), cell.distances.tolist(), cell.undecided.tolist()
    ([1, 0], [1.0, 0.0], [1])
    """

    network: Network
    z: Floats
    pieces: NDArray[np.int32]
    A: Floats
    b: Floats
    halfspaces: HalfSpaces
    distances: Floats
    doubt: Doubt
    distance: float
    distance_error: float
    undecided: Ints

    def __repr__(self) -> str:
        """Summarise: the arrays themselves are long."""
        state = f"{len(self.undecided)} units undecided" if len(self.undecided) else "proven"
        return (
            f"Cell({len(self.distances):,} half-spaces in {len(self.z)}-D, nearest knot at "
            f"{self.distance:.3g}, {state})"
        )


def cell_at(network: Network, z: Any) -> Cell:
    """Return the cell that holds a latent: pattern, map, half-spaces and the nearest knot.

    Parameters
    ----------
    network : Network
    z : array_like or torch.Tensor, (*input_shape,) or (E,)
        One latent, without a batch axis.

    Returns
    -------
    Cell

    Raises
    ------
    ValueError
        A latent of another shape, with NaN or infinite entries, or one at which the network
        overflows.

    Notes
    -----
    One forward pass for the latent and one for E directions, with every unit held on its piece: no
    derivative is estimated and no other cell is visited. Memory: 8 (num_units + D) E bytes and
    about twice as much for the time being.

    No unit switches within the distance to the nearest half-space, so that within this ball the
    half-spaces are the knots themselves, those of later layers included: the least distance from
    a half-space is that from the network's nearest knot. Its error is that of a running error
    analysis of both passes (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed.,
    section 3.1). Subtract it for a ball that is proven to hold no knot.

    A latent on a knot gets the closed cell on whose side the unit's value is not above its
    breakpoint. Where several knots meet, no cell of full dimension may have that pattern;
    `chebyshev_ball` then refuses it.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> cell = cpwl.cell_at(network, [-1.0, 3.0])
    >>> cell
    Cell(2 half-spaces in 2-D, nearest knot at 1, proven)
    >>> cell.pieces.tolist(), cell.A.tolist()
    ([0, 1], [[0.5, 0.0], [0.0, 1.0]])
    >>> cell.halfspaces.A.tolist(), cell.halfspaces.b.tolist()
    ([[1.0, 0.0], [-0.0, -1.0]], [0.0, 0.0])
    """
    require_captured(network)
    point = latent(network, z, "z")
    with denormals():
        batch = torch.tensor(point).reshape(1, *network.input_shape)
        made = linearise(network.program, batch, network.num_units)
        if not all(np.isfinite(x).all() for x in (made.value, made.slope, made.A, made.b)):
            raise ValueError(
                "Expected a latent at which the network's values are finite, got inf or NaN: it "
                "overflows float64 there. Choose a latent nearer to the origin."
            )
        return _cell(network, point, made)


def latent(network: Network, z: Any, name: str) -> Floats:
    """Return a caller's latent as a vector of E entries."""
    point = floats(z, name)
    size = int(np.prod(network.input_shape, dtype=np.int64))
    if point.shape not in (network.input_shape, (size,)):
        shapes = " or ".join(dict.fromkeys((str(network.input_shape), f"({size},)")))
        raise ValueError(
            f"Expected {name} as one latent of shape {shapes}, got shape {point.shape}. "
            "Leave the batch axis out."
        )
    return point.reshape(-1)


def _cell(network: Network, point: Floats, made: Any) -> Cell:
    """Turn functions between two breakpoints into half-spaces with normals of length one."""
    size = len(point)
    norm = np.linalg.norm(made.slope, axis=1)
    # of the normal as a vector: the error of each entry, and what the norm and a quotient round
    norm_error = np.sqrt(size) * made.slope_error * (1 + EPS)
    above, below = np.flatnonzero(made.upper < np.inf), np.flatnonzero(made.lower > -np.inf)
    row = np.concatenate([above, below])
    sign = np.repeat([1.0, -1.0], [len(above), len(below)])
    limit = np.concatenate([made.upper[above], made.lower[below]])
    order = np.argsort(row, kind="stable")
    row, sign, limit = row[order], sign[order], limit[order]
    slack = sign * (limit - made.value[row])
    slack_error = made.value_error[row] + 2 * EPS * np.abs(limit) + UNIT_ROUNDOFF * np.abs(slack)
    norm, norm_error = norm[row], norm_error[row]
    # a function without slope is a constant, and of one lost in rounding no direction is known
    tilted = norm > 4 * norm_error
    lost = ~tilted & (norm + norm_error > np.finfo(float).tiny)
    undecided = np.unique(made.unit[row[lost & (slack <= slack_error)]])
    away = np.maximum(slack - slack_error, 0.0)[lost] / (norm + norm_error)[lost]
    row, sign, slack, slack_error, norm, norm_error = (
        x[tilted] for x in (row, sign, slack, slack_error, norm, norm_error)
    )
    normals = made.slope[row]
    normals *= (sign / norm)[:, None]
    distances = slack / norm
    rounding = (size + 8) * UNIT_ROUNDOFF
    error = (slack_error + np.abs(distances) * norm_error) / (norm - norm_error)
    doubt = Doubt(
        error=(error + rounding * np.abs(distances)) * (1 + rounding),
        tilt=(2 * norm_error / norm + 2 * rounding) * (1 + rounding),
    )
    unit = made.unit[row]
    distances = np.maximum(distances, 0.0)
    nearest = float(distances.min(initial=np.inf))
    least = min((distances - doubt.error).min(initial=np.inf), away.min(initial=np.inf))
    most = float((distances + doubt.error).min(initial=np.inf))
    off = max(nearest - max(float(least), 0.0), most - nearest) if np.isfinite(nearest) else 0.0
    return Cell(
        network=network,
        z=point,
        pieces=made.pieces.astype(np.int32),
        A=made.A,
        b=made.b,
        halfspaces=HalfSpaces(
            A=normals,
            b=distances + normals @ point,
            unit=unit,
            stage=np.searchsorted(network.stage_offsets, unit, side="right") - 1,
        ),
        distances=distances,
        doubt=doubt,
        distance=nearest,
        distance_error=float(off),
        undecided=np.union1d(undecided, unit[distances <= doubt.error]),
    )
