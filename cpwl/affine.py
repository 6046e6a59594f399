"""Affine maps G = A s + b of the cells, in closed form from their patterns, streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike

from cpwl.arrays import Floats, denormals, magnitude
from cpwl.network.program import tangents
from cpwl.partition import cell_indices, require_complete, require_network

if TYPE_CHECKING:
    from cpwl.network import Network
    from cpwl.partition import Partition


# Few enough rows that torch's allocations are used again instead of being mapped anew, enough that
# its threads meet rarely: 240,000 maps of 2-256-256-256-3 take 2.2 s at 512 to 4096 rows and 2.8 s
# at 8192 on two quiet cores; on busy ones small chunks suffer most.
_ROWS = 4096
_BUDGET = 64 * 2**20


def affine_maps(
    partition: Partition,
    cells: ArrayLike | slice | None = None,
    *,
    wrt: str = "slice",
    chunk: int | None = None,
) -> Iterator[tuple[Floats, Floats]]:
    """Stream the affine maps of the cells, in order, chunk by chunk.

    Parameters
    ----------
    partition : Partition
        With its network.
    cells : (n,) index array, boolean mask or slice, optional
        Which cells, in the order wanted; all of them by default.
    wrt : {"slice", "latent"}
        Coordinates that the maps start from.
    chunk : int, optional
        Cells per chunk; by default about 64 MiB of intermediate values.

    Yields
    ------
    A : (chunk, D, P) or (chunk, D, E) float64 ndarray
        Outputs and latents flattened in C order.
    b : (chunk, D) float64 ndarray
        G = A s + b in slice coordinates, or G = A z + b.

    Raises
    ------
    ValueError
        Another `wrt`, cells that do not exist, a chunk below 1, or a partition loaded without its
        network.
    PartitionError
        An incomplete partition: its cells are not those of the whole network.

    Notes
    -----
    Nothing is fitted to vertices: the network is evaluated with every unit held on the cell's
    piece. P + 1 forward passes per cell for slice coordinates, min(E, D) + 1 for latents.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> for A, b in cpwl.affine_maps(partition, [0, 1]):
    ...     print(A.tolist(), b.tolist())
    [[[0.5, 0.0], [0.0, 0.5]], [[1.0, 0.0], [0.0, 0.5]]] [[0.0, 0.0], [0.0, 0.0]]
    """
    for base, columns in columns_and_offsets(partition, cells, wrt=wrt, chunk=chunk):
        yield np.ascontiguousarray(columns.transpose(1, 2, 0)), base


def columns_and_offsets(
    partition: Partition,
    cells: ArrayLike | slice | None = None,
    *,
    wrt: str = "slice",
    chunk: int | None = None,
) -> Iterator[tuple[Floats, Floats]]:
    """Stream (b (chunk, D), columns of A (P or E, chunk, D)): contiguous columns, as computed."""
    if wrt not in ("slice", "latent"):
        raise ValueError(
            f'Expected wrt="slice" or wrt="latent", got {wrt!r}. '
            "The slice has P coordinates, the latent space all of the network's inputs."
        )
    if chunk is not None and not (isinstance(chunk, int | np.integer) and chunk >= 1):
        raise ValueError(f"Expected a chunk of at least one cell, got {chunk}. Leave it out.")
    require_complete(partition)
    index = cell_indices(partition, cells)
    place, network = partition.domain.slice, require_network(partition)
    latent = place.latent_shape
    size = int(np.prod(latent, dtype=np.int64))
    outputs = num_outputs(partition)
    if wrt == "slice":
        origin, directions = place.origin, place.basis
    else:
        origin = np.zeros(latent)
        directions = np.eye(size).reshape(size, *latent)
    transposed = outputs < len(directions)
    rows = chunk or _rows(network, len(directions), outputs, transposed)
    parts = {} if transposed else tangents.linear_parts(network.program)
    for start in range(0, len(index), rows):
        pieces = torch.from_numpy(partition.pieces(index[start : start + rows]))
        if transposed:
            base, jacobian = _rows_of_jacobian(network, origin, pieces, outputs)
            # (chunk, D, E) x (E, directions) -> (directions, chunk, D)
            flat = torch.tensor(directions.reshape(len(directions), size))
            columns = torch.einsum("pe,nde->pnd", flat, jacobian).numpy()
        else:
            base, columns = _columns_of_jacobian(
                network, parts, origin, directions, pieces, outputs
            )
        yield base, columns


def over_maps(
    partition: Partition,
    *functions: Callable[[Floats, Floats], Floats],
    cells: ArrayLike | slice | None = None,
    wrt: str = "slice",
) -> list[Floats]:
    """Return (n, ...) for each function of chunks of (b, columns of A), all from one pass."""
    count = len(cell_indices(partition, cells))
    found: list[Floats] = []
    start = 0
    for base, columns in columns_and_offsets(partition, cells, wrt=wrt):
        parts = [function(base, columns) for function in functions]
        # in one array each: small parts kept between the large ones would keep the heap from
        # using these again, some 200 MB for images
        found = found or [np.empty((count, *part.shape[1:]), part.dtype) for part in parts]
        for whole, part in zip(found, parts, strict=True):
            whole[start : start + len(part)] = part
        start += len(base)
    if not count:
        inputs = partition.dim if wrt == "slice" else partition.domain.slice.origin.size
        none = np.empty((inputs, 0, num_outputs(partition)))
        return [function(none[0], none) for function in functions]
    return found


def num_outputs(partition: Partition) -> int:
    """Return D, the flattened size of an output."""
    return int(np.prod(require_network(partition).output_shape, dtype=np.int64))


def evaluate(partition: Partition, points: Floats) -> Floats:
    """Return G at slice coordinates (n, P) as (n, D), in batches that fit the memory budget."""
    network = require_network(partition)
    outputs = num_outputs(partition)
    rows = _rows(network, 0, outputs, False)
    result = np.empty((len(points), outputs))
    for start in range(0, len(points), rows):
        z = partition.domain.slice.embed(points[start : start + rows])
        result[start : start + rows] = network(torch.from_numpy(z)).numpy().reshape(len(z), -1)
    return result


@denormals()
def _columns_of_jacobian(
    network: Network,
    parts: Mapping[int, tangents.LinearPart],
    origin: Floats,
    directions: Floats,
    pieces: torch.Tensor,
    outputs: int,
) -> tuple[Floats, Floats]:
    """Return b (n, D) = f(origin) and columns (p, n, D) = A u, one forward pass per direction."""
    n = len(pieces)

    def rows(z: Floats) -> torch.Tensor:
        return torch.tensor(z).expand(n, *z.shape)

    columns = np.empty((len(directions), n, outputs))
    with torch.no_grad():
        base = network.apply_pieces(rows(origin), pieces).numpy().reshape(n, outputs)
        for column, direction in zip(columns, directions, strict=True):
            exponent = magnitude(direction)  # so that no product of short ones underflows
            t = rows(np.ldexp(direction, -exponent))
            made = tangents.apply_slopes(network.program, parts, t, pieces).numpy()
            np.ldexp(made.reshape(n, outputs), exponent, out=column)
    columns += 0.0  # no -0.0
    return base, columns


@denormals()
def _rows_of_jacobian(
    network: Network, origin: Floats, pieces: torch.Tensor, outputs: int
) -> tuple[Floats, torch.Tensor]:
    """Return b (n, D) and the Jacobian (n, D, E), one backward pass per output."""
    n = len(pieces)
    z = torch.tensor(origin).expand(n, *origin.shape).clone()

    def flat(batch: torch.Tensor) -> torch.Tensor:
        return network.apply_pieces(batch, pieces).reshape(n, outputs)

    value, pull, *_ = torch.func.vjp(flat, z)
    units = torch.eye(outputs, dtype=torch.float64)
    (rows,) = torch.func.vmap(lambda unit: pull(unit.expand(n, outputs)))(units)
    return value.detach().numpy(), rows.detach().reshape(outputs, n, -1).transpose(0, 1)


def _rows(network: Network, directions: int, outputs: int, transposed: bool) -> int:
    """Return how many cells to work on at once."""
    sample = 4 * network.num_units + 8 * outputs * (3 * directions + 4)
    stages = network.num_stages
    sample += max((network.bytes_per_sample(s) for s in range(stages)), default=0)
    if transposed:  # the tape keeps the slopes of every unit, one backward pass per output runs
        sample += 8 * network.num_units * (1 + outputs)
    return int(max(1, min(_ROWS, _BUDGET // max(1, sample))))
