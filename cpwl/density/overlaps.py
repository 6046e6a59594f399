"""Overlaps of cells' images: what can be decided, and what stands in the way of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import shapely

from cpwl.affine import columns_and_offsets, evaluate, num_outputs, over_maps
from cpwl.arrays import EPS, Floats, Ints, require_at_least
from cpwl.descriptors import frames

if TYPE_CHECKING:
    from cpwl.partition import Partition


# A plane is located to eps times the condition number of its cell's map, times this.
_ROUNDING = 1e3 * EPS
# The union of more polygons than this takes longer than enumerating them.
_UNION = 20_000


@dataclass(frozen=True)
class Overlap:
    """Whether G is injective on the domain up to sets of volume zero.

    Parameters
    ----------
    between_cells : {"none", "some", "unknown"}
        Whether images of different cells overlap in a set of positive P-dimensional volume;
        decided in float64 with the tolerance below, not proven in exact arithmetic.
    squeezed : int
        Cells of rank below P: their images have no volume.
    reason : str
        How `between_cells` was decided, or what stands in the way.
    tolerance : float
        Relative distance below which two planes count as one and an area as zero.
    """

    between_cells: str
    squeezed: int
    reason: str
    tolerance: float

    @property
    def injective(self) -> str:
        """Return "yes", "no" or "unknown"."""
        if self.squeezed or self.between_cells == "some":
            return "no"
        return "yes" if self.between_cells == "none" else "unknown"


def overlap(partition: Partition, *, tolerance: float = 1e-9) -> Overlap:
    """Return whether images of different cells overlap in a set of positive volume.

    Parameters
    ----------
    partition : Partition
        With its network.
    tolerance : float
        See `Overlap`.

    Raises
    ------
    ValueError, PartitionError
        As for `affine_maps`.

    Notes
    -----
    Squeezed cells cannot take part. For the others, with P coordinates and D outputs:

    - D = P: where one orientation holds everywhere, the number of preimages of a point is the
      winding number of the domain boundary's image about it (degree theory), so the boundary
      alone decides. Neighbours of opposite orientation fold onto each other; where squeezed cells
      may lie between them, the images' union is computed.
    - D > P: two cells can share a set of positive volume only if their images lie in one plane.
      Planes are sorted by random projections of their position, one pass over the maps; the few
      cells that share one are compared as polygons.

    For P >= 3 what would need the union of polytopes stays "unknown": images in one plane, and
    D = P where no cell is turned over.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> cpwl.overlap(partition).between_cells
    'none'
    """
    require_at_least(0, tolerance, "tolerance", "Leave it out.")
    outputs = num_outputs(partition)
    if outputs < partition.dim:
        reason = f"with {outputs} outputs for {partition.dim} coordinates every cell is squeezed"
        return Overlap("none", partition.num_cells, reason, tolerance)
    (found,) = over_maps(partition, planes)
    return overlap_of(partition, found, tolerance)


def overlap_of(partition: Partition, found: Floats, tolerance: float = 1e-9) -> Overlap:
    """Decide from the cells' `planes` (C, 6), for at least as many outputs as coordinates."""
    keys, slack, orientation = found[:, :4], found[:, 4], found[:, 5]
    cells, outputs = partition.num_cells, num_outputs(partition)
    full = np.flatnonzero(orientation)
    if not len(full):
        verdict, reason = "none", "every cell is squeezed"
    elif outputs == partition.dim:
        verdict, reason = _same_dimension(partition, orientation, tolerance)
    else:
        verdict, reason = _between_planes(partition, full, keys[full], slack[full], tolerance)
    return Overlap(verdict, cells - len(full), reason, tolerance)


def planes(base: Floats, columns: Floats) -> Floats:
    """Return per map: four keys, relative slack, orientation or 0 where squeezed, (n, 6).

    The keys are random projections: of the image's plane, its direction and its position; of the
    map, its slope and its shift. The orientation is the sign of det A where D = P, else 1.
    """
    # fixed, so that the same partition always gets the same answer
    dim, _, outputs = columns.shape
    draws = np.random.default_rng(20).standard_normal((6, outputs)) / np.sqrt(outputs)
    frame, thickness, largest = frames(columns)
    full = thickness > 64 * EPS * largest
    condition = largest / np.where(full, thickness, 1.0)
    projected = frame @ draws.T  # (P, n, 6)
    offset = base @ draws.T - np.einsum("pnd,nd,pnk->nk", frame, base, projected)
    size = np.abs(base).max(axis=1) + 1e-300
    direction = (projected[..., 0] * projected[..., 1]).sum(axis=0)
    slope, shift = (columns @ draws[3]).sum(axis=0), base @ draws[4]
    slack = _ROUNDING * condition * np.maximum(size, 1.0)
    matrix = columns.transpose(1, 2, 0)
    sign = np.sign(np.linalg.det(matrix)) if outputs == dim else np.ones(len(base))
    return np.column_stack([direction, offset[:, 2], slope, shift, slack, np.where(full, sign, 0)])


def _same_dimension(partition: Partition, orientation: Floats, tolerance: float) -> tuple[str, str]:
    """Decide D = P."""
    full = np.flatnonzero(orientation)
    positive = int((orientation > 0).sum())
    if 0 < positive < len(full):
        reason = f"{positive} of {len(full)} cells keep their orientation, the others reverse it"
        if len(full) == partition.num_cells:
            return "some", f"G folds: {reason}"
        if len(full) > _UNION or partition.dim > 2:
            return "unknown", f"{reason}, with squeezed cells that may lie between them"
        twice, total = _shared_volume(partition, full)
        share = f"of an image volume of {total:.6g}, {twice:.6g} is counted more than once"
        return ("some" if twice > np.sqrt(tolerance) * total else "none"), share
    if partition.dim == 1:
        return "none", "G is monotone"
    if partition.dim > 2:
        reason = f"one orientation; the boundary's image in {partition.dim}-D is not examined"
        return "unknown", reason
    image = evaluate(partition, partition.points[boundary_loop(partition)])
    ring = shapely.linearrings(image)
    if shapely.is_simple(ring):
        return "none", "one orientation, and the boundary's image does not meet itself"
    faces = list(shapely.get_parts(shapely.polygonize([shapely.union_all(ring)])))
    area = np.array([shapely.area(face) for face in faces])
    turns = np.array([_winding(image, shapely.point_on_surface(face)) for face in faces])
    twice = float(area[np.abs(turns) > 1].sum())
    if twice > tolerance * float(area.sum()):
        return "some", f"an area of {twice:.6g} has several preimages"
    return "none", "one orientation, and the boundary's image winds once around what it encloses"


def _between_planes(
    partition: Partition, full: Ints, keys: Floats, slack: Floats, tolerance: float
) -> tuple[str, str]:
    """Decide D > P, for the cells of full rank, whose keys and slack are given."""
    vague = int((slack > 1e-4).sum())
    if vague:
        return "unknown", f"rounding leaves the plane open for {vague} ill-conditioned cells"
    width = np.maximum(slack, tolerance)
    direction, position, slope, shift = keys.T
    group = np.zeros(len(keys), np.int64)
    for values in (direction, position, direction):
        group = _clusters(group, values, width)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    sizes = np.diff(np.append(starts, len(order)))
    shared = np.zeros(len(starts), bool)
    # cells that share even the map are disjoint in the plane, as in the domain
    for values in (slope[order], shift[order]):
        spread = np.maximum.reduceat(values, starts) - np.minimum.reduceat(values, starts)
        scale = np.maximum.reduceat(np.abs(values), starts)
        shared |= spread > tolerance * np.maximum(scale, 1e-300)
    several = shared & (sizes > 1)
    if several.any() and partition.dim > 2:
        count = int(sizes[several].sum())
        return "unknown", f"{count} images share {partition.dim}-dimensional planes with others"
    for start, size in zip(starts[several], sizes[several], strict=True):
        cells = full[order[start : start + size]]
        twice, total = _shared_volume(partition, cells)
        if twice > np.sqrt(tolerance) * total:
            shown = ", ".join(map(str, np.sort(cells)[:4]))
            return "some", f"cells {shown}{', ...' if size > 4 else ''} overlap in one plane"
    return "none", "no two cells' images overlap in a common plane"


def _clusters(group: Ints, values: Floats, width: Floats) -> Ints:
    """Split groups where sorted values are further apart than their widths."""
    order = np.lexsort((values, group))
    gap = np.diff(values[order]) > width[order][1:] + width[order][:-1]
    apart = gap | (np.diff(group[order]) > 0)
    result = np.empty_like(group)
    result[order] = np.concatenate([[0], np.cumsum(apart)])
    return result


def _shared_volume(partition: Partition, cells: Ints) -> tuple[float, float]:
    """Return the volume that images in one plane cover more than once, and their sum."""
    (_, columns), *_ = columns_and_offsets(partition, cells[:1])
    frame, *_ = frames(columns)
    flat = frame[:, 0].T  # (D, P)
    offsets, corners = partition.cell_offsets, partition.cell_corners
    images = [
        evaluate(partition, partition.points[corners[offsets[c] : offsets[c + 1]]]) @ flat
        for c in cells
    ]
    if partition.dim == 1:
        lines = np.array([shapely.LineString(np.pad(image, ((0, 0), (0, 1)))) for image in images])
        total = float(shapely.length(lines).sum())
        return total - float(shapely.length(shapely.union_all(lines))), total
    shapes = shapely.make_valid(np.array([shapely.Polygon(image) for image in images]))
    total = float(shapely.area(shapes).sum())
    return total - float(shapely.area(shapely.union_all(shapes))), total


def boundary_loop(partition: Partition) -> Ints:
    """Return the ids of the points on the domain's boundary, anticlockwise (P = 2)."""
    outer = np.flatnonzero((partition.facet_cells < 0).any(axis=1))
    ends = partition.facet_points[outer].astype(np.int64)
    backwards = partition.facet_cells[outer, 0] < 0
    ends[backwards] = ends[backwards, ::-1]
    following = np.full(len(partition.points), -1)
    following[ends[:, 0]] = ends[:, 1]
    loop = np.empty(len(outer), np.int64)
    point = ends[0, 0]
    for i in range(len(loop)):
        loop[i] = point
        point = following[point]
    return loop


def _winding(loop: Floats, point: shapely.Point) -> int:
    """Return how often a closed loop (n, 2) turns around a point."""
    arms = loop - np.array([point.x, point.y])
    following = np.roll(arms, -1, axis=0)
    cross = arms[:, 0] * following[:, 1] - arms[:, 1] * following[:, 0]
    angles = np.arctan2(cross, (arms * following).sum(axis=1))
    return round(float(angles.sum()) / (2 * np.pi))
