"""Kernels that cut the faces of a lattice by one column.

They take arrays and scalars, write into arrays that the caller has allocated (large enough), and
release the GIL.

Vocabulary. A *column* is one switch of the stage at work: a unit together with one of its
breakpoints. At most 64 columns, a *batch*, are cut together: bit j of a face's words ``pos`` and
``neg`` tells whether the face has a vertex on the positive, negative side of column j. A face with
both is *split* by the column into its negative part, which keeps the number, its positive part and
the *cut* between them; a face with neither is *flat*, it lies in the knot.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import uint64
from numpy.typing import NDArray

from cpwl.arrays import EPS, Floats, Ints, njit

# Values of ``place``. BROKEN: a face that had to stay whole although it has both signs.
WHOLE, BROKEN = -1, -2


class Faces(NamedTuple):
    """Faces of one dimension as ragged rows; a row that grows moves to the end of the items.

    Face f has the boundary ``items[start[f] : start[f] + size[f]]``, faces of one dimension less.
    Faces with the same ``flat`` are parts of one face from before the stage, or of the cut of one
    flat by one column.
    """

    start: Ints
    size: NDArray[np.int32]
    items: NDArray[np.int32]
    pos: NDArray[np.uint64]
    neg: NDArray[np.uint64]
    place: NDArray[np.int32]  # number among the faces that the column splits, WHOLE or BROKEN
    flat: NDArray[np.int32]
    newest: NDArray[np.int32]  # first cut of each flat by the latest column


class Vertices(NamedTuple):
    """Vertices, with the values and the signs of a batch's columns."""

    points: Floats  # (V, P)
    error: Floats  # (V,) bound on the distance of a point from the exact vertex
    likely: Floats  # (V,) the same as an estimate
    rounds: NDArray[np.int32]  # (V,) how often values were interpolated from interpolated ones
    values: Floats  # (V, K) column j of the batch is ``values[:, shift + j]``
    pos: NDArray[np.uint64]  # (V,)
    neg: NDArray[np.uint64]  # (V,)
    unsure: NDArray[np.uint64]  # (V,) neither sign is certain


class Errors(NamedTuple):
    """What bounds the errors of the values of a batch's columns; all (K,)."""

    slack: Floats  # of a value at an exact point
    rounding: Floats  # of an interpolation
    lipschitz: Floats
    most: Floats  # what an error is taken to be at most; infinite where signs are proven


# --- signs -------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def decide(vertices, shift, errors, start, stop):
    """Write the sign words of vertices; returns the number of those with a column in doubt.

    In doubt is what lies within its error bound.
    """
    _, error, _, rounds, values, pos, neg, unsure = vertices
    slack, rounding, lipschitz, _ = errors
    found = 0
    for v in range(start, stop):
        p = uint64(0)
        n = uint64(0)
        u = uint64(0)
        for j in range(slack.shape[0]):
            x = values[v, shift + j]
            bound = slack[j] + rounds[v] * rounding[j] + lipschitz[j] * error[v]
            bit = uint64(1) << uint64(j)
            if x > bound:
                p |= bit
            elif x < -bound:
                n |= bit
            else:  # also where the bound is NaN
                u |= bit
        pos[v] = p
        neg[v] = n
        unsure[v] = u
        found += u != uint64(0)
    return found


@njit(cache=True, nogil=True)
def gather_words(start, size, items, lower_pos, lower_neg, first, stop, pos, neg):
    """Write the sign words of faces: those of their boundaries together."""
    for f in range(first, stop):
        p = uint64(0)
        n = uint64(0)
        for i in range(start[f], start[f] + size[f]):
            p |= lower_pos[items[i]]
            n |= lower_neg[items[i]]
        pos[f] = p
        neg[f] = n


@njit(cache=True, nogil=True)
def find_split(pos, neg, size, count, bit, found):
    """List the faces with both signs; returns how many, and the sum of their sizes."""
    mask = uint64(1) << uint64(bit)
    n = 0
    total = 0
    for f in range(count):
        if pos[f] & neg[f] & mask != uint64(0):
            found[n] = f
            n += 1
            total += size[f]
    return n, total


@njit(cache=True, nogil=True)
def count_second(found, start, size, items, lower_size):
    """Count the faces of the boundaries of the boundaries of faces, with repetition."""
    total = 0
    for f in found:
        for i in range(start[f], start[f] + size[f]):
            total += lower_size[items[i]]
    return total


# --- vertices and edges ------------------------------------------------------------------------


@njit(cache=True, nogil=True, inline="always")
def _place(x, a, b, bit, shift, vertices, errors):
    """Put vertex x where the column's value is zero between two vertices.

    before  a ------- b       after  a --- x --- b      value(x) = 0 by construction

    With values va, vb known within ea and eb, the place t = va / (va - vb) is known within ((1 - t)
    ea + t eb) / (|va - vb| - ea - eb). Values of later columns are interpolated.

    ``likely`` is an estimate: evaluation is rarely off by more than 1/64 of its bound, and its
    error is not amplified from line to line, for the values at a vertex belong to its coordinates.
    """
    points, error, likely, rounds, values, _, _, _ = vertices
    slack, rounding, lipschitz, most = errors
    va, vb = values[a, shift + bit], values[b, shift + bit]
    ea = min(slack[bit] + lipschitz[bit] * error[a], most[bit]) + rounds[a] * rounding[bit]
    eb = min(slack[bit] + lipschitz[bit] * error[b], most[bit]) + rounds[b] * rounding[bit]
    gap = abs(va - vb) - ea - eb
    t = va / (va - vb) if va != vb else 0.5
    t = min(max(t, 0.0), 1.0)
    s = vb / (vb - va) if va != vb else 0.5  # 1 - t, without cancellation
    s = min(max(s, 0.0), 1.0)
    off = min((s * ea + t * eb) / gap + 4 * EPS, 1.0) if gap > 0 else 1.0
    length = 0.0  # or more, if its square is not representable
    squares = 0.0
    norm = 0.0
    for d in range(points.shape[1]):
        step = points[b, d] - points[a, d]
        squares += step * step
        length += abs(step)
        if t <= 0.5:
            points[x, d] = points[a, d] + t * step
        else:
            points[x, d] = points[b, d] - s * step
        norm += abs(points[x, d])
    if 1e-290 < squares < 1e290:
        length = np.sqrt(squares)
    reach = length + error[a] + error[b]
    error[x] = max(error[a], error[b]) + off * reach + 2 * EPS * norm
    apart = abs(va - vb)
    noise = max(rounding[bit] / 4, slack[bit] / 64)
    off = noise / apart if apart > 0 else np.inf
    likely[x] = max(likely[a], likely[b], off * length) + EPS * norm
    rounds[x] = max(rounds[a], rounds[b]) + 1
    for j in range(shift + bit + 1, values.shape[1]):
        step = values[b, j] - values[a, j]
        values[x, j] = values[a, j] + t * step if t <= 0.5 else values[b, j] - s * step


@njit(cache=True, nogil=True)
def place_vertices(found, bit, line, edge_pos, edge_neg, shift, errors, first, vertices):
    """Put a vertex, from number ``first`` on, where the column is zero on each split edge.

    The place is interpolated between the ends ``line[e]`` of the straight line that the edge is a
    part of and on which the columns are affine: they were placed, and evaluated, more precisely
    than the ends of the edge.

    The new vertex has the edge's signs; only columns of the batch that split the edge as well, and
    come later, are decided by their values. Returns the number of vertices with an undecided sign,
    and the columns that are zero at some vertex by now.
    """
    _, error, _, rounds, values, pos, neg, unsure = vertices
    slack, rounding, lipschitz, _ = errors
    here = uint64(1) << uint64(bit)
    later = ~(here | (here - uint64(1)))
    n_unsure = 0
    touched = uint64(0)
    for i in range(found.shape[0]):
        e = found[i]
        x = first + i
        _place(x, line[e, 0], line[e, 1], bit, shift, vertices, errors)
        both = edge_pos[e] & edge_neg[e]
        p = edge_pos[e] & ~both
        n = edge_neg[e] & ~both
        u = uint64(0)
        both &= later
        j = bit + 1
        while both >> uint64(j) != uint64(0) and j < 64:
            one = uint64(1) << uint64(j)
            if both & one != uint64(0):
                value = values[x, shift + j]
                bound = slack[j] + rounds[x] * rounding[j] + lipschitz[j] * error[x]
                if value > bound:
                    p |= one
                elif value < -bound:
                    n |= one
                else:
                    u |= one
            j += 1
        pos[x] = p
        neg[x] = n
        unsure[x] = u
        n_unsure += u != uint64(0)
        touched |= ~(p | n)
    return n_unsure, touched


@njit(cache=True, nogil=True)
def cut_edges(found, bit, vertex, vertex_pos, vertex_neg, first, items, pos, neg, place):
    """Cut edges at their new vertices, numbered from ``vertex``; edge e has items 2 e, 2 e + 1."""
    mask = uint64(1) << uint64(bit)
    for i in range(found.shape[0]):
        e = found[i]
        x = vertex + i
        a, b = items[2 * e], items[2 * e + 1]
        if vertex_neg[a] & mask == uint64(0):
            a, b = b, a
        place[e] = i
        f = first + i
        items[2 * e] = a
        items[2 * e + 1] = x
        items[2 * f] = x
        items[2 * f + 1] = b
        pos[e] = vertex_pos[a] | vertex_pos[x]
        neg[e] = vertex_neg[a] | vertex_neg[x]
        pos[f] = vertex_pos[b] | vertex_pos[x]
        neg[f] = vertex_neg[b] | vertex_neg[x]


@njit(cache=True, nogil=True)
def span_lines(first, stop, items, flat, mark, line):
    """Give new edges the ends of the line that they are a part of.

    before  a --- b ----- c - d     after  line of all three: (a, d)

    The parts of a line have the same ``flat``, the number of the first of them; its ends are the
    vertices that only one part has. Coordinates would not do: they round. Where signs were not
    proven there may be other than two, and every edge is a line of its own. ``mark`` (one entry a
    vertex) holds no number from ``first`` on.
    """
    n = stop - first
    after = np.zeros(n + 1, np.int64)  # edges, line after line
    for e in range(first, stop):
        after[flat[e] - first + 1] += 1
    for i in range(n):
        after[i + 1] += after[i]
    edges = np.empty(n, np.int64)
    for e in range(stop - 1, first - 1, -1):
        g = flat[e] - first + 1
        after[g] -= 1
        edges[after[g]] = e
    for g in range(n):  # after[g + 1] is where line g begins by now
        begin = after[g + 1]
        end = after[g + 2] if g + 2 <= n else n
        for i in range(begin, end):
            for v in items[2 * edges[i] : 2 * edges[i] + 2]:
                mark[v] = -1 if mark[v] == first + g else first + g
        found = 0
        low = -1
        high = -1
        for i in range(begin, end):
            for v in items[2 * edges[i] : 2 * edges[i] + 2]:
                if mark[v] == first + g:
                    low, high = high, v
                    found += 1
        for i in range(begin, end):
            e = edges[i]
            line[e, 0] = low if found == 2 else items[2 * e]
            line[e, 1] = high if found == 2 else items[2 * e + 1]


# --- faces of dimension two and more -----------------------------------------------------------


@njit(cache=True, nogil=True)
def _is_sphere(elements, faces, dim):
    """Tell whether faces of dimension ``dim`` fit together to one closed surface.

    Every face of one dimension less must lie in exactly two of them, they must be connected, and as
    many as a polytope has at least; of dimension 0 there must be two. Only asked where signs were
    not proven.
    """
    start, size, items = faces.start, faces.size, faces.items
    n = elements.shape[0]
    if dim == 0:
        return n == 2 and elements[0] != elements[1]
    if n < dim + 2:
        return False
    total = 0
    for i in range(n):
        total += size[elements[i]]
    ridges = np.empty(total, np.int64)
    owner = np.empty(total, np.int64)
    at = 0
    for i in range(n):
        for j in range(start[elements[i]], start[elements[i]] + size[elements[i]]):
            ridges[at] = items[j]
            owner[at] = i
            at += 1
    order = np.argsort(ridges)
    root = np.arange(n)
    parts = n
    for j in range(0, total - 1, 2):
        a, b = order[j], order[j + 1]
        if ridges[a] != ridges[b] or (j + 2 < total and ridges[order[j + 2]] == ridges[a]):
            return False
        a, b = owner[a], owner[b]
        while root[a] != a:
            a = root[a]
        while root[b] != b:
            b = root[b]
        if a != b:
            root[a] = b
            parts -= 1
    return total % 2 == 0 and parts == 1


@njit(cache=True, nogil=True, inline="always")
def _bound_cut(f, mask, touching, faces, lower, at, bottom, cuts):
    """Write the boundary of a face's cut to the items of ``lower``, from ``at`` on.

    Returns the end, the cut's sign words, and whether the face's boundary fits its signs.
    """
    items, place, lower_items = faces.items, lower.place, lower.items
    pos, neg, bottom_pos, bottom_neg = lower.pos, lower.neg, bottom.pos, bottom.neg
    sound = True
    cut_pos = uint64(0)
    cut_neg = uint64(0)
    for j in range(faces.start[f], faces.start[f] + faces.size[f]):
        g = items[j]
        if place[g] >= 0:
            h = cuts + place[g]
            lower_items[at] = h
            at += 1
            cut_pos |= bottom_pos[h]
            cut_neg |= bottom_neg[h]
        elif place[g] != WHOLE or (pos[g] | neg[g]) & mask == uint64(0):
            sound = False
        elif touching and neg[g] & mask != uint64(0):
            for k in range(lower.start[g], lower.start[g] + lower.size[g]):
                h = lower_items[k]
                if (bottom_pos[h] | bottom_neg[h]) & mask == uint64(0):
                    lower_items[at] = h
                    at += 1
                    cut_pos |= bottom_pos[h]
                    cut_neg |= bottom_neg[h]
    return at, cut_pos, cut_neg, sound


@njit(cache=True, nogil=True)
def _keep_whole(f, faces, end, lower, lower_first):
    """Give a face both parts of what is split of its boundary; returns the end of the items."""
    start, size, items = faces.start, faces.size, faces.items
    low, high = start[f], start[f] + size[f]
    faces.place[f] = BROKEN
    start[f] = end
    for j in range(low, high):
        items[end] = items[j]
        end += 1
        if lower.place[items[j]] >= 0:
            items[end] = lower_first + lower.place[items[j]]
            end += 1
    size[f] = end - start[f]
    return end


@njit(cache=True, nogil=True, inline="always")
def _halve(f, new, cut, mask, faces, end, lower, lower_first):
    """Split a face into its negative part, f, and its positive part; returns the end of the items.

    The negative part stays in its place, unless there is no room for the cut.
    """
    start, size, items = faces.start, faces.size, faces.items
    place, pos, neg = lower.place, lower.pos, lower.neg
    low, high = start[f], start[f] + size[f]
    keep = low
    put = end
    p0, n0 = pos[cut], neg[cut]
    p1, n1 = pos[cut], neg[cut]
    for j in range(low, high):
        g = items[j]
        p = place[g]
        if p >= 0:
            h = lower_first + p
            items[keep] = g
            keep += 1
            items[put] = h
            put += 1
            p0 |= pos[g]
            n0 |= neg[g]
            p1 |= pos[h]
            n1 |= neg[h]
        elif neg[g] & mask != uint64(0):
            items[keep] = g
            keep += 1
            p0 |= pos[g]
            n0 |= neg[g]
        else:
            items[put] = g
            put += 1
            p1 |= pos[g]
            n1 |= neg[g]
    items[put] = cut
    put += 1
    start[new], size[new] = end, put - end
    faces.pos[new], faces.neg[new] = p1, n1
    faces.place[new] = WHOLE
    faces.flat[new] = faces.flat[f]
    size[f] = keep - low + 1
    faces.pos[f], faces.neg[f] = p0, n0
    if keep < high:
        items[keep] = cut
        return put
    start[f] = put
    for j in range(low, high):
        items[put] = items[j]
        put += 1
    items[put] = cut
    return put + 1


@njit(cache=True, nogil=True)
def cut_faces(
    found, bit, dim, touching, careful, faces, first, end, lower, lower_first, lower_cut, lower_end,
    bottom, bottom_cut,
):  # fmt: skip
    """Split faces of dimension ``dim``, those of one dimension less being split already.

    before                  after: f keeps its negative part, + is new, and the cut between them
    +----------+            +----+-----+      has as boundary the cuts (here vertices) of the split
    |    f     |            | f  |  +  |      faces of f's boundary, and the flat faces of dimension
    +----------+            +----+-----+      dim - 2 of f

    Positive parts are numbered from ``first``, those of the boundary's faces from ``lower_first``,
    the cuts of f's dimension from ``lower_cut``, the cuts of the boundary's faces from
    ``bottom_cut``. A flat face of dimension dim - 2 lies in two faces of the boundary, a negative
    and a positive one, and is taken from the first; there is none unless ``touching``.

    With ``careful`` a face is left whole (and ``place`` says so) unless its cut is one closed
    surface. Returns the number of faces split, of those left whole, and the new ends of the items.
    """
    mask = uint64(1) << uint64(bit)
    made = 0
    broken = 0
    for i in range(found.shape[0]):
        f = found[i]
        at, cut_pos, cut_neg, sound = _bound_cut(
            f, mask, touching, faces, lower, lower_end, bottom, bottom_cut
        )
        if careful and not (sound and _is_sphere(lower.items[lower_end:at], bottom, dim - 2)):
            end = _keep_whole(f, faces, end, lower, lower_first)
            broken += 1
            continue
        faces.place[f] = made
        cut = lower_cut + made
        lower.start[cut], lower.size[cut] = lower_end, at - lower_end
        lower.pos[cut], lower.neg[cut] = cut_pos, cut_neg
        lower.place[cut] = WHOLE
        if faces.newest[faces.flat[f]] < lower_cut:  # the column's first cut of this flat
            faces.newest[faces.flat[f]] = cut
            lower.newest[cut] = -1
        lower.flat[cut] = faces.newest[faces.flat[f]]
        lower_end = at
        end = _halve(f, first + made, cut, mask, faces, end, lower, lower_first)
        made += 1
    return made, broken, end, lower_end
