"""Compiled loops over the faces of a partition, for what looks at a finished one.

In a file of their own, as numba's on-disk cache does not notice a change in a callee that lives in
another one. Indices are known to be in range when these run.
"""

from __future__ import annotations

import numpy as np

from cpwl.arrays import njit


@njit(cache=True, nogil=True, inline="always")
def _mark_corners(face, offsets, items, below_offsets, below_items, mark):
    """Mark a face's corners with its number, and count them."""
    count = 0
    for i in range(offsets[face], offsets[face + 1]):
        for j in range(below_offsets[items[i]], below_offsets[items[i] + 1]):
            if mark[below_items[j]] != face:
                mark[below_items[j]] = face
                count += 1
    return count


@njit(cache=True, nogil=True)
def count_corners(offsets, items, below_offsets, below_items, mark, size):
    """Count the different corners of faces, given those of the faces below."""
    mark[:] = -1
    for face in range(len(offsets) - 1):
        size[face] = _mark_corners(face, offsets, items, below_offsets, below_items, mark)


@njit(cache=True, nogil=True)
def list_corners(offsets, items, below_offsets, below_items, mark, out):
    """List the corners that `count_corners` counts, face after face."""
    mark[:] = -1
    end = 0
    for face in range(len(offsets) - 1):
        for i in range(offsets[face], offsets[face + 1]):
            for j in range(below_offsets[items[i]], below_offsets[items[i] + 1]):
                if mark[below_items[j]] != face:
                    mark[below_items[j]] = face
                    out[end] = below_items[j]
                    end += 1


@njit(cache=True, nogil=True)
def unlike(offsets, items, below_offsets, below_items, listed_offsets, listed, mark, wrong):
    """Mark the faces whose corners are not those listed, ascending."""
    mark[:] = -1
    for face in range(len(offsets) - 1):
        count = _mark_corners(face, offsets, items, below_offsets, below_items, mark)
        # as many, all different, all of them corners
        first, last = listed_offsets[face], listed_offsets[face + 1]
        wrong[face] = last - first != count
        for i in range(first, last):
            if mark[listed[i]] != face or (i > first and listed[i] <= listed[i - 1]):
                wrong[face] = True


@njit(cache=True, nogil=True)
def open_faces(offsets, items, below_offsets, below_items, mark, times, wrong):
    """Mark the faces of which some ridge is not on exactly two facets."""
    mark[:] = -1
    for face in range(len(offsets) - 1):
        odd = 0  # ridges that are not on two facets so far
        for i in range(offsets[face], offsets[face + 1]):
            for j in range(below_offsets[items[i]], below_offsets[items[i] + 1]):
                ridge = below_items[j]
                if mark[ridge] != face:
                    mark[ridge] = face
                    times[ridge] = 0
                times[ridge] += 1
                if times[ridge] == 2:
                    odd -= 1
                elif times[ridge] <= 3:
                    odd += 1
        wrong[face] = odd != 0


@njit(cache=True, nogil=True)
def look_along_facets(
    points, facets, facet_offsets, facet_corners, facet_cells, cell_offsets, cell_corners, off,
    outward, bent, dented,
):  # fmt: skip
    """Compare the corners of facets, and of the cells beside them, with the facets' hyperplanes.

    The plane is the one through P of the facet's corners, each the farthest from those before it.
    Let x_0..x_{P-1} be these as stored, and y another stored point at the height h over their
    plane: y = sum l_i x_i + h m with the unit normal m and sum l_i = 1. The points that are meant,
    of which these are roundings, are off by at most ``off`` each. Let n be the unit normal of the
    plane through the x_i that are meant, which makes an angle a < 90 degrees with m. Then
    n . (y - sum l_i x_i) = h cos a, and the height that is meant differs from it by at most
    off (1 + sum |l_i|). So if y is meant to be on the plane or below, then

        h <= off (1 + sum |l_i|) / cos a,

    which is what is allowed. It is never less than ``off``, and far more where a plane is carried
    on to points that are far away compared with the facet's width.

    The angle: t, the part of n in the plane of the x_i, has t . (x_i - x_0) = n . (x_i - x_0), at
    most 2 off, and is sum (t . (x_i - x_0)) d_i, where d_1..d_{P-1}, the gradients of the l_i, are
    the dual basis. So sin a = |t| <= 2 off sum |d_i|. Where this is no bound, the stored corners do
    not determine a plane, and nothing is compared with it.

    Writes the unit normal, from the first cell towards the second, whether some corner of the facet
    is off its plane, and whether some corner of a cell is on the wrong side of it. Which side is
    the first cell's is taken from the cells' corners, as what contradicts them less.
    """
    dim = points.shape[1]
    arms = np.empty((np.diff(facet_offsets).max(), dim))
    work = np.empty((3, dim, dim))
    dual, normal = np.empty((dim, dim)), np.empty(dim)
    side = np.empty((2, 2))
    for place in range(len(facets)):
        facet = facets[place]
        mine = facet_corners[facet_offsets[facet] : facet_offsets[facet + 1]]
        rank, cosine = _plane(points, mine, off, arms, work, dual, normal)
        bent[place] = _bent(points, mine, off, cosine, normal, dual, rank)
        # how far the cells reach to either side, in units of what is allowed
        side[:] = 0.0
        for which in range(2):
            cell = facet_cells[facet, which]
            if cell >= 0:
                for i in range(cell_offsets[cell], cell_offsets[cell + 1]):
                    share = _height(points, cell_corners[i], mine[0], normal, dual, rank) / off
                    side[which, 0] = max(side[which, 0], -share)
                    side[which, 1] = max(side[which, 1], share)
        turned = max(side[0, 1], side[1, 0]) > max(side[0, 0], side[1, 1])
        for axis in range(dim):
            outward[place, axis] = -normal[axis] if turned else normal[axis]
        dented[place, 0] = side[0, 0 if turned else 1] * cosine > 1
        dented[place, 1] = side[1, 1 if turned else 0] * cosine > 1


@njit(cache=True, nogil=True)
def bent_facets(points, facets, offsets, corners, off, bent):
    """Mark which of some facets have a corner off their plane, as `look_along_facets` does."""
    dim = points.shape[1]
    arms = np.empty((np.diff(offsets).max(), dim))
    work = np.empty((3, dim, dim))
    dual, normal = np.empty((dim, dim)), np.empty(dim)
    for place in range(len(facets)):
        mine = corners[offsets[facets[place]] : offsets[facets[place] + 1]]
        rank, cosine = _plane(points, mine, off, arms, work, dual, normal)
        bent[place] = _bent(points, mine, off, cosine, normal, dual, rank)


@njit(cache=True, nogil=True)
def _bent(points, corners, off, cosine, normal, dual, rank):
    """Whether some corner of a facet is off its plane."""
    for i in range(len(corners)):
        height = _height(points, corners[i], corners[0], normal, dual, rank)
        if abs(height) * cosine > off:
            return True
    return False


@njit(cache=True, nogil=True)
def _plane(points, corners, off, arms, work, dual, normal):
    """Choose P corners; write the dual basis and the normal; return how many of them span, cos a.

    The cosine is 0 where the corners do not determine a plane.
    """
    dim = points.shape[1]
    along, low, chosen = work  # an orthonormal basis; x_i - x_0 in it; x_i - x_0
    base = corners[0]
    for i in range(len(corners)):
        for axis in range(dim):
            arms[i, axis] = points[corners[i], axis] - points[base, axis]
    rank = 0
    while rank < dim - 1:
        longest, best = off * off, -1  # what is nearer than that determines nothing
        for i in range(len(corners)):
            squares = 0.0
            for axis in range(dim):
                squares += arms[i, axis] ** 2
            if squares > longest:
                longest, best = squares, i
        if best < 0:
            break
        for axis in range(dim):
            along[rank, axis] = arms[best, axis]
            chosen[rank, axis] = points[corners[best], axis] - points[base, axis]
        _orthonormalize(along, rank)
        for i in range(len(corners)):
            part = 0.0
            for axis in range(dim):
                part += arms[i, axis] * along[rank, axis]
            for axis in range(dim):
                arms[i, axis] -= part * along[rank, axis]
        for k in range(rank + 1):
            low[rank, k] = 0.0
            for axis in range(dim):
                low[rank, k] += chosen[rank, axis] * along[k, axis]
        rank += 1
    # low is triangular, and the dual basis its inverse
    total = 0.0
    for i in range(rank):
        squares = 0.0
        for axis in range(dim):
            dual[i, axis] = 0.0
        for k in range(i, rank):
            part = 1.0 if k == i else 0.0
            for j in range(i, k):
                part -= normal[j] * low[k, j]
            normal[k] = part / low[k, k]  # a workspace for now
            squares += normal[k] ** 2
            for axis in range(dim):
                dual[i, axis] += normal[k] * along[k, axis]
        total += np.sqrt(squares)
    _complement(along, rank, normal)
    sine = 2 * off * total if rank == dim - 1 else 1.0
    return rank, np.sqrt(1 - sine * sine) if sine < 1 else 0.0


@njit(cache=True, nogil=True)
def _orthonormalize(rows, k):
    """Make row k, nearly orthogonal to those before it, orthogonal to them and of length 1."""
    for _ in range(2):
        for j in range(k):
            part = 0.0
            for axis in range(rows.shape[1]):
                part += rows[k, axis] * rows[j, axis]
            for axis in range(rows.shape[1]):
                rows[k, axis] -= part * rows[j, axis]
        squares = 0.0
        for axis in range(rows.shape[1]):
            squares += rows[k, axis] ** 2
        for axis in range(rows.shape[1]):
            rows[k, axis] /= np.sqrt(squares)


@njit(cache=True, nogil=True)
def _complement(rows, rank, out):
    """Find a unit vector orthogonal to some orthonormal rows, which then has a row after them."""
    least, best = np.inf, 0
    for axis in range(rows.shape[1]):
        squares = 0.0
        for k in range(rank):
            squares += rows[k, axis] ** 2
        if squares < least:
            least, best = squares, axis
    rows[rank] = 0.0
    rows[rank, best] = 1.0
    _orthonormalize(rows, rank)
    out[:] = rows[rank]


@njit(cache=True, nogil=True)
def _height(points, y, base, normal, dual, rank):
    """Return the height of y over a plane, divided by 1 + sum |l_i|."""
    height, rest, weight = 0.0, 1.0, 1.0
    for axis in range(points.shape[1]):
        height += (points[y, axis] - points[base, axis]) * normal[axis]
    for i in range(rank):
        part = 0.0
        for axis in range(points.shape[1]):
            part += (points[y, axis] - points[base, axis]) * dual[i, axis]
        weight += abs(part)
        rest -= part
    return height / (weight + abs(rest))
