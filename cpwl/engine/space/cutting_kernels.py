"""Compiled kernels of the n-dimensional engine: cutting the faces of a complex by one column.

All of them live in this one file because numba's on-disk cache does not notice a change in a callee
that lives in another file. They take arrays and scalars, write into arrays that the caller has
allocated (large enough), and release the GIL.

Vocabulary. A *column* is one switch of the stage at work: a unit together with one of its
breakpoints. At most 64 columns, a *batch*, are worked off together: bit j of a face's words ``pos``
and ``neg`` tells whether the face has a vertex on the positive, negative side of column j. A face
with both is *split* by the column into its negative part, which keeps the number, its positive part
and the *cut* between them; a face with neither is *flat*, it lies in the knot.

The faces of one dimension are ragged rows: face f has the boundary ``items[start[f] : start[f] +
size[f]]``, numbers of faces of one dimension less. Rows that grow move to the end of ``items``.
``place[f]`` is -1, or -2 for a face that had to stay whole although it has both signs, or the
number of f among the faces that the column at work splits, in the order of their numbers.
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint64

from cpwl.arrays import EPS

WHOLE = -1
BROKEN = -2


# --- signs -------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def decide(
    values, shift, error, rounds, slack, rounding, lipschitz, start, stop, pos, neg, unsure
):  # fmt: skip
    """Write the sign words of the vertices; column j of the batch is ``values[:, shift + j]``.

    Sets ``unsure`` where a value lies within its error bound, and neither sign. Returns the number
    of vertices that have such a value.
    """
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


@njit(cache=True, nogil=True)
def place_vertices(
    found, bit, line, edge_pos, edge_neg, shift, slack, rounding, lipschitz, most,
    first, points, error, likely, rounds, values, pos, neg, unsure,
):  # fmt: skip
    """Put a vertex where the column's value on each split edge is zero.

    before  a ------- b       after  a --- x --- b      value(x) = 0 by construction

    The place is interpolated between the ends ``line[e]`` of the straight line that the edge is a
    part of and on which the columns are affine: they were placed, and evaluated, more precisely
    than the ends of the edge. With values va, vb there, known within ea and eb (or ``most``, which
    is infinite where signs are proven), the place t = va / (va - vb) is known within ((1 - t) ea +
    t eb) / (|va - vb| - ea - eb).

    ``likely`` is what the error really is, about: evaluation is rarely off by more than 1/64 of its
    bound, and what it is off by is not amplified from line to line, for the values at a vertex
    belong to its coordinates.

    The new vertex has the edge's signs; only columns of the batch that split the edge as well, and
    come later, are decided by their values. Returns the number of vertices with an undecided sign,
    and the columns that are zero at some vertex by now.
    """
    here = uint64(1) << uint64(bit)
    later = ~(here | (here - uint64(1)))
    dim = points.shape[1]
    n_unsure = 0
    touched = uint64(0)
    for i in range(found.shape[0]):
        e = found[i]
        x = first + i
        a, b = line[e, 0], line[e, 1]
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
        for d in range(dim):
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
def _is_sphere(elements, start, size, items, dim):
    """Tell whether faces of dimension ``dim`` fit together to one closed surface.

    Every face of one dimension less must lie in exactly two of them, they must be connected, and as
    many as a polytope has at least; of dimension 0 there must be two. Only asked where signs were
    not proven.
    """
    n = elements.shape[0]
    if dim == 0:
        return n == 2 and elements[0] != elements[1]
    if n < dim + 2:
        return False
    total = 0
    for i in range(n):
        total += size[elements[i]]
    faces = np.empty(total, np.int64)
    owner = np.empty(total, np.int64)
    at = 0
    for i in range(n):
        for j in range(start[elements[i]], start[elements[i]] + size[elements[i]]):
            faces[at] = items[j]
            owner[at] = i
            at += 1
    order = np.argsort(faces)
    root = np.arange(n)
    parts = n
    for j in range(0, total - 1, 2):
        a, b = order[j], order[j + 1]
        if faces[a] != faces[b] or (j + 2 < total and faces[order[j + 2]] == faces[a]):
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


@njit(cache=True, nogil=True)
def cut_faces(
    found, bit, dim, touching, careful,
    first, start, size, items, end, pos, neg, place, flat, newest,
    lower_first, lower_cut, lower_start, lower_size, lower_items, lower_end,
    lower_pos, lower_neg, lower_place, lower_flat, lower_newest,
    bottom_cut, bottom_start, bottom_size, bottom_items, bottom_pos, bottom_neg,
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

    Faces with the same ``flat`` are parts of one face from before the stage, or of the cut of one
    flat by one column; ``newest`` has the first cut of each flat by the latest column.

    With ``careful`` a face is left whole (and ``place`` says so) unless its cut is one closed
    surface. Returns the number of faces split, of those left whole, and the new ends of the items.
    """
    mask = uint64(1) << uint64(bit)
    made = 0
    broken = 0
    for i in range(found.shape[0]):
        f = found[i]
        low, high = start[f], start[f] + size[f]
        sound = True
        at = lower_end
        cut_pos = uint64(0)
        cut_neg = uint64(0)
        for j in range(low, high):
            g = items[j]
            p = lower_place[g]
            if p >= 0:
                h = bottom_cut + p
                lower_items[at] = h
                at += 1
                cut_pos |= bottom_pos[h]
                cut_neg |= bottom_neg[h]
            elif p != WHOLE or (lower_pos[g] | lower_neg[g]) & mask == uint64(0):
                sound = False
            elif touching and lower_neg[g] & mask != uint64(0):
                for k in range(lower_start[g], lower_start[g] + lower_size[g]):
                    h = lower_items[k]
                    if (bottom_pos[h] | bottom_neg[h]) & mask == uint64(0):
                        lower_items[at] = h
                        at += 1
                        cut_pos |= bottom_pos[h]
                        cut_neg |= bottom_neg[h]
        if careful and not (
            sound
            and _is_sphere(
                lower_items[lower_end:at], bottom_start, bottom_size, bottom_items, dim - 2
            )
        ):
            place[f] = BROKEN
            broken += 1
            start[f], size[f] = end, high - low
            for j in range(low, high):
                g = items[j]
                p = lower_place[g]
                items[end] = g
                end += 1
                if p >= 0:  # what is left whole has both parts of what is split
                    items[end] = lower_first + p
                    end += 1
                    size[f] += 1
            continue
        place[f] = made
        cut = lower_cut + made
        lower_start[cut] = lower_end
        lower_size[cut] = at - lower_end
        lower_pos[cut] = cut_pos
        lower_neg[cut] = cut_neg
        lower_place[cut] = WHOLE
        if newest[flat[f]] < lower_cut:  # the column's first cut of this flat
            newest[flat[f]] = cut
            lower_newest[cut] = -1
        lower_flat[cut] = newest[flat[f]]
        lower_end = at

        new = first + made
        keep = low
        put = end
        p0 = cut_pos
        n0 = cut_neg
        p1 = cut_pos
        n1 = cut_neg
        for j in range(low, high):
            g = items[j]
            p = lower_place[g]
            if p >= 0:
                h = lower_first + p
                items[keep] = g
                keep += 1
                items[put] = h
                put += 1
                p0 |= lower_pos[g]
                n0 |= lower_neg[g]
                p1 |= lower_pos[h]
                n1 |= lower_neg[h]
            elif lower_neg[g] & mask != uint64(0):
                items[keep] = g
                keep += 1
                p0 |= lower_pos[g]
                n0 |= lower_neg[g]
            else:
                items[put] = g
                put += 1
                p1 |= lower_pos[g]
                n1 |= lower_neg[g]
        items[put] = cut
        put += 1
        start[new] = end
        size[new] = put - end
        pos[new] = p1
        neg[new] = n1
        place[new] = WHOLE
        flat[new] = flat[f]
        end = put
        size[f] = keep - low + 1
        if keep == high:  # no room for the cut
            start[f] = end
            for j in range(low, high):
                items[end] = items[j]
                end += 1
            items[end] = cut
            end += 1
        else:
            items[keep] = cut
        pos[f] = p0
        neg[f] = n0
        made += 1
    return made, broken, end, lower_end


# --- finished lattices -------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def pack_rows(start, size, items, offsets, out):
    """Copy ragged rows, wherever they lie, end to end."""
    for f in range(offsets.shape[0] - 1):
        at = offsets[f]
        for i in range(start[f], start[f] + size[f]):
            out[at] = items[i]
            at += 1


@njit(cache=True, nogil=True)
def sort_rows(offsets, items):
    """Sort every ragged row; rows are short."""
    for f in range(offsets.shape[0] - 1):
        _sort(items, offsets[f], offsets[f + 1])


@njit(cache=True, nogil=True)
def _sort(items, low, high):
    """Sort ``items[low:high]`` by insertion with falling gaps."""
    n = high - low
    gap = 1
    while gap < n // 3:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(low + gap, high):
            x = items[i]
            j = i - gap
            while j >= low and items[j] > x:
                items[j + gap] = items[j]
                j -= gap
            items[j + gap] = x
        gap //= 3


@njit(cache=True, nogil=True)
def collect_corners(start, stop, offsets, items, below_offsets, below, mark, sort, size, out):
    """List the vertices of faces from the vertices ``below`` of their boundaries.

    Writes row after row, and the ``size`` of each, from face ``start`` on as far as they surely
    fit; returns the first face that is left. ``mark`` (one entry a vertex) must hold no number of
    these faces.
    """
    at = 0
    for f in range(start, stop):
        most = 0
        for i in range(offsets[f], offsets[f + 1]):
            g = items[i]
            most += below_offsets[g + 1] - below_offsets[g]
        if at + most > out.shape[0]:
            return f
        begin = at
        for i in range(offsets[f], offsets[f + 1]):
            g = items[i]
            for k in range(below_offsets[g], below_offsets[g + 1]):
                v = below[k]
                if mark[v] != f:
                    mark[v] = f
                    out[at] = v
                    at += 1
        if sort:
            _sort(out, begin, at)
        size[f] = at - begin
    return stop


@njit(cache=True, nogil=True)
def facet_sides(offsets, items, facet_bit, patterns, sides):
    """Write the cells of every facet: first the one where the facet's bit is not set.

    On the boundary, where the bit is negative, the one cell comes first. ``sides`` holds -1.
    """
    for c in range(offsets.shape[0] - 1):
        for i in range(offsets[c], offsets[c + 1]):
            bit = facet_bit[items[i]]
            side = 0
            if bit >= 0:
                word = patterns[c, bit >> 6]
                side = np.int64((word >> uint64(bit & 63)) & uint64(1))
            sides[items[i], side] = c
