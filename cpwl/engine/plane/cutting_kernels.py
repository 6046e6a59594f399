"""Every compiled kernel of the exact engine.

All kernels live in this one file because numba's on-disk cache does not notice a change in a callee
that lives in another file. They take arrays and scalars, write into arrays that the caller has
allocated, release the GIL and work on a range ``[start, stop)``, so that the caller can hand
disjoint ranges to several threads. Nothing here allocates more than a workspace for one cell.

Vocabulary. A *column* is one switch of the stage at work: a unit together with one of its
breakpoints; its sign at a vertex is +1, 0 or -1, stored as one bit in ``pos`` and one in ``neg``.
A column is *active* in a cell that has corners on both of its sides. A *chord* is the trace of one
or several coinciding active columns in a convex cell: it joins two points of the cell's boundary.
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint64

from cpwl.arrays import EPS

# Chords that cross at a smaller angle are left to rational arithmetic.
_PARALLEL = 3e-5
# Shorter chords lose too much of their length to underflow for a bound on the angle.
_TINY = 1e-130


@njit(cache=True, nogil=True, inline="always")
def _popcount(word):
    """Count the set bits of a 64-bit word."""
    word = word - ((word >> uint64(1)) & uint64(0x5555555555555555))
    word = (word & uint64(0x3333333333333333)) + ((word >> uint64(2)) & uint64(0x3333333333333333))
    word = (word + (word >> uint64(4))) & uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * uint64(0x0101010101010101)) >> uint64(56))


@njit(cache=True, nogil=True, inline="always")
def _lowest(word):
    """Give the index of the lowest set bit of a non-zero word."""
    return _popcount((word & (~word + uint64(1))) - uint64(1))


@njit(cache=True, nogil=True, inline="always")
def _bit(words, column):
    """Tell whether bit ``column`` of a packed row is set."""
    return (words[column >> 6] >> uint64(column & 63)) & uint64(1) != uint64(0)


# --- signs of the columns at the vertices -----------------------------------------------------


# --- crossings of the columns with the edges ---------------------------------------------------


# --- cells in one dimension --------------------------------------------------------------------


# --- cells in two dimensions -------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _walk_boundary(
    cell, cell_offsets, cell_corners, cell_edges, edge_points, pos, neg,
    offsets, column, vertex, edge_first, words, rank, loop, segment, corner_after,
    chord_from, chord_to,
):  # fmt: skip
    """List a cell's boundary with the new vertices in it and the two ends of each active column.

    before                     after: loop = [c0, x, c1, ...]; corner_after[x] = vertex of c1
        c2 ------- c1              c2 ------- c1
         |          |               |          x    column with c0, c1 on different sides
         +---- c0 --+               +---- c0 --+

    Fills ``words`` with the active columns (packed) and ``rank`` with the number of active columns
    before each word. ``segment`` is twice the output's number of the edge that leaves each boundary
    point, plus one where the cell runs along it backwards. Returns the number of points on the
    boundary, of active columns, and of columns that do not meet the boundary in exactly two points
    (rounding broke convexity).
    """
    lo, hi = cell_offsets[cell], cell_offsets[cell + 1]
    active = 0
    for w in range(words.shape[0]):
        p = uint64(0)
        n = uint64(0)
        for i in range(lo, hi):
            p |= pos[cell_corners[i], w]
            n |= neg[cell_corners[i], w]
        words[w] = p & n
        rank[w] = active
        active += _popcount(p & n)
    if active == 0:
        return hi - lo, 0, 0
    for u in range(active):
        chord_from[u] = -1
        chord_to[u] = -1
    bad = 0
    at = 0
    for i in range(lo, hi):
        v = cell_corners[i]
        after = cell_corners[i + 1] if i + 1 < hi else cell_corners[lo]
        e = cell_edges[i]
        forward = edge_points[e, 0] == v
        first, last = offsets[e], offsets[e + 1]
        loop[at] = v
        corner_after[at] = after
        if forward:  # segments of an edge are numbered from its first end
            segment[at] = 2 * edge_first[e]
            step = 2
        else:
            segment[at] = 2 * edge_first[e + 1] - 1
            step = -2
        for w in range(words.shape[0]):
            zero = words[w] & ~(pos[v, w] | neg[v, w])
            while zero != uint64(0):
                bit = zero & (~zero + uint64(1))
                zero ^= bit
                u = rank[w] + _popcount(words[w] & (bit - uint64(1)))
                if chord_from[u] < 0:
                    chord_from[u] = at
                elif chord_to[u] < 0:
                    chord_to[u] = at
                else:
                    bad += 1
        at += 1
        previous = -1
        for q in range(last - first):
            x = first + q if forward else last - 1 - q
            if vertex[x] != previous:
                previous = vertex[x]
                loop[at] = previous
                corner_after[at] = after
                segment[at] = segment[at - 1] + step
                at += 1
            k = column[x]
            w = k >> 6
            below = words[w] & ((uint64(1) << uint64(k & 63)) - uint64(1))
            u = rank[w] + _popcount(below)
            if chord_from[u] < 0:
                chord_from[u] = at - 1
            elif chord_to[u] < 0:
                chord_to[u] = at - 1
            else:
                bad += 1
    for u in range(active):
        if chord_to[u] < 0:
            bad += 1
    return at, active, bad


@njit(cache=True, nogil=True, inline="always")
def _interleave(i, j, k, m):
    """Tell whether the chords (i, j) and (k, m), each ascending, cross strictly inside."""
    return (i < k and k < j and j < m) or (k < i and i < m and m < j)


@njit(cache=True, nogil=True)
def _merge_chords(active, chord_from, chord_to, chord_of):
    """Merge columns with the same two ends into one chord; returns the number of chords.

    Rewrites ``chord_from`` and ``chord_to`` (one entry a chord) and sets ``chord_of``.
    """
    n = 0
    for u in range(active):
        found = -1
        for c in range(n):
            if chord_from[c] == chord_from[u] and chord_to[c] == chord_to[u]:
                found = c
                break
        if found < 0:
            found = n
            chord_from[n], chord_to[n] = chord_from[u], chord_to[u]
            n += 1
        chord_of[u] = found
    return n


@njit(cache=True, nogil=True)
def count_cell_pieces(
    cell_offsets, cell_corners, cell_edges, edge_points, pos, neg,
    offsets, column, vertex, edge_first, longest, start, stop, count,
):  # fmt: skip
    """Bound what the arrangement of chords in each cell creates.

    ``count[cell]`` = (boundary points, active columns, faces, interior vertices, interior edges,
    corners, inconsistent columns). All are exact unless three chords meet in one interior point.
    ``longest`` bounds the number of boundary points of any cell of the range.
    """
    n_words = pos.shape[1]
    words = np.empty(n_words, np.uint64)
    rank = np.empty(n_words, np.int64)
    loop = np.empty(longest, np.int32)
    segment = np.empty(longest, np.int32)
    corner_after = np.empty(longest, np.int32)
    chord_from = np.empty(64 * n_words, np.int32)
    chord_to = np.empty(64 * n_words, np.int32)
    chord_of = np.empty(64 * n_words, np.int32)
    for cell in range(start, stop):
        size, active, bad = _walk_boundary(
            cell, cell_offsets, cell_corners, cell_edges, edge_points, pos, neg,
            offsets, column, vertex, edge_first, words, rank, loop, segment, corner_after,
            chord_from, chord_to,
        )  # fmt: skip
        chords = 0
        crossings = 0
        if bad == 0:
            chords = _merge_chords(active, chord_from, chord_to, chord_of)
            for a in range(chords):
                for b in range(a):
                    crossings += _interleave(chord_from[a], chord_to[a], chord_from[b], chord_to[b])
        count[cell, 0] = size
        count[cell, 1] = active
        count[cell, 2] = 1 + chords + crossings
        count[cell, 3] = crossings
        count[cell, 4] = chords + 2 * crossings
        count[cell, 5] = size + 2 * (chords + 2 * crossings)
        count[cell, 6] = bad


@njit(cache=True, nogil=True, inline="always")
def _length(x, y):
    """Length of a vector whose entries are no larger than 1 or so; at least that in any case."""
    return np.sqrt(x * x + y * y) + 1e-150  # what squares below the smallest number lose


@njit(cache=True, nogil=True)
def _side(v, chord, size, chord_from, chord_to, made_a, made_b, xy):
    """Side of local vertex ``v`` of the directed chord: -1 right, 0 on it, +1 left, 2 in doubt.

    Combinatorial wherever it can be: a boundary vertex lies on the right exactly when it comes
    between the chord's ends on the anticlockwise boundary, and an interior vertex lies on the side
    of any chord through it that does not cross this one. What remains is decided by one
    orientation test with a bound on its error, and what that leaves open by `_settle`. A row of
    ``xy`` holds a vertex's coordinates and the bound on their error.
    """
    i, j = chord_from[chord], chord_to[chord]
    if v < size:
        if v in (i, j):
            return 0
        return -1 if i < v and v < j else 1
    a, b = made_a[v - size], made_b[v - size]
    if chord in (a, b):
        return 0
    for c in (a, b):
        k, m = chord_from[c], chord_to[c]
        if not _interleave(i, j, k, m):
            if k in (i, j):
                k = m
            return -1 if i < k and k < j else 1
    dx, dy = xy[j, 0] - xy[i, 0], xy[j, 1] - xy[i, 1]
    ex, ey = xy[v, 0] - xy[i, 0], xy[v, 1] - xy[i, 1]
    d, e = _length(dx, dy), _length(ex, ey)
    near_i, near_j = xy[v, 2] + xy[i, 2], xy[j, 2] + xy[i, 2]
    value = dx * ey - dy * ex
    doubt = d * near_i + e * near_j + near_i * near_j + 8 * EPS * d * e
    if abs(value) > doubt:
        return 1 if value > 0 else -1
    return 2


@njit(cache=True, nogil=True)
def _settle(v, chord, size, made_a, made_b, known, ask, lenient):
    """Side of an inner vertex of a chord where the orientation test leaves it open.

    Found in ``known`` (rows: two chords that meet in the vertex, chord, side). What is not known is
    left in ``ask``, the same three, and still 2; or, if ``lenient``, it lies on the chord and
    ``ask[8]`` counts it.
    """
    a, b = made_a[v - size], made_b[v - size]
    for row in range(known.shape[0]):
        if known[row, 0] == a and known[row, 1] == b and known[row, 2] == chord:
            return known[row, 3]
    if lenient:
        ask[8] += 1
        return 0
    ask[0], ask[1], ask[2] = a, b, chord
    return 2


@njit(cache=True, nogil=True)
def _intersect(a, b, v, chord_from, chord_to, xy):
    """Place local vertex ``v`` where chords ``a`` and ``b`` cross, with a bound on its error.

    The point lies within some distance of either chord; the sum of both over the sine of the least
    angle that the chords may have is how far the point can be from where they really meet.
    """
    p, q = chord_from[a], chord_to[a]
    r, s = chord_from[b], chord_to[b]
    ax, ay = xy[q, 0] - xy[p, 0], xy[q, 1] - xy[p, 1]
    bx, by = xy[s, 0] - xy[r, 0], xy[s, 1] - xy[r, 1]
    det = ax * by - ay * bx
    t = 0.5
    if det != 0.0:
        t = ((xy[r, 0] - xy[p, 0]) * by - (xy[r, 1] - xy[p, 1]) * bx) / det
        t = min(max(t, 0.0), 1.0)  # the chords cross: combinatorially certain
    xy[v, 0] = xy[p, 0] + t * ax
    xy[v, 1] = xy[p, 1] + t * ay
    long_a, long_b = _length(ax, ay), _length(bx, by)
    off_a, off_b = max(xy[p, 2], xy[q, 2]), max(xy[r, 2], xy[s, 2])
    apart = abs(xy[r, 0] - xy[p, 0]) + abs(xy[r, 1] - xy[p, 1])
    rounding = 4 * EPS * (abs(xy[p, 0]) + abs(xy[p, 1]) + long_a + apart)
    xy[v, 2] = np.inf
    if long_a > _TINY and long_b > _TINY:
        sine = abs(det) / (long_a * long_b) - 2 * (off_a / long_a + off_b / long_b) - 8 * EPS
        if sine > _PARALLEL:
            xy[v, 2] = (off_a + off_b + 2 * rounding) / sine


@njit(cache=True, nogil=True)
def _insert_chord(
    chord, size, n_half, n_local, chord_from, chord_to,
    org, twin, after, before, label, made_a, made_b, xy, known, ask, lenient,
):  # fmt: skip
    """Cut the faces that a chord runs through, from one end to the other.

    In each face the chord enters at a vertex w, with the face's next vertex on its right and the
    previous one on its left, and leaves through a vertex or an edge:

            y --- . --- .             y --- . --- .
            |  left     |      z is   |           |    ``after[c1]`` continues at z -> y,
        ... z           w      new    z <-- c1 -- w    ``after[c2]`` at w -> (right vertices)
            |  right    |             z --- c2 -> w
            x --- . --- .             x --- . --- .

    Returns the new numbers of half-edges and of local vertices, (-2, -2) where a side is in doubt,
    or (-1, -1) where the chord's path is inconsistent.
    """
    geometry = (size, chord_from, chord_to, made_a, made_b, xy)
    doubts = (size, made_a, made_b, known, ask, lenient)
    h = chord_from[chord]  # boundary half-edge p always starts at local vertex p
    goal = chord_to[chord]
    while True:  # rotate about the chord's first end to the face that it enters
        nxt = _side(org[after[h]], chord, *geometry)
        prv = _side(org[before[h]], chord, *geometry)
        if nxt == 2:
            nxt = _settle(org[after[h]], chord, *doubts)
        if prv == 2:
            prv = _settle(org[before[h]], chord, *doubts)
        if nxt == 2 or prv == 2:
            return -2, -2
        if nxt < 0 and prv > 0:
            break
        h = twin[before[h]]
        if h < 0:
            return -1, -1
    while True:
        w = org[h]
        g = after[h]
        side = -1
        while side < 0:
            g = after[g]
            if g == h:
                return -1, -1
            side = _side(org[g], chord, *geometry)
            if side == 2:
                side = _settle(org[g], chord, *doubts)
            if side == 2:
                return -2, -2
        through_edge = side > 0
        entry = -1
        if through_edge:
            e = before[g]  # x -> y, x on the right and y on the left
            t = twin[e]
            if t < 0:
                return -1, -1
            z = n_local
            n_local += 1
            made_a[z - size], made_b[z - size] = chord, label[e]
            _intersect(chord, label[e], z, chord_from, chord_to, xy)
            e2, t2 = n_half, n_half + 1
            n_half += 2
            org[e2], org[t2] = z, z
            label[e2], label[t2] = label[e], label[e]
            twin[e], twin[t2], twin[e2], twin[t] = t2, e, t, e2
            after[e2], before[e2] = g, e
            before[g], after[e] = e2, e2
            after[t2], before[t2] = after[t], t
            before[after[t]], after[t] = t2, t2
            g = e2
            entry = t2
        z = org[g]
        c1, c2 = n_half, n_half + 1
        n_half += 2
        org[c1], org[c2] = w, z
        label[c1], label[c2] = chord, chord
        twin[c1], twin[c2] = c2, c1
        tail_h, tail_g = before[h], before[g]
        after[c1], before[g] = g, c1
        before[c1], after[tail_h] = tail_h, c1
        after[c2], before[h] = h, c2
        before[c2], after[tail_g] = tail_g, c2
        if z == goal:
            return n_half, n_local
        if not through_edge:
            if z < size:
                return -1, -1
            r = twin[before[g]]  # rotate about z, starting behind the face just cut
            turns = 0
            while True:
                nxt = _side(org[after[r]], chord, *geometry)
                prv = _side(org[before[r]], chord, *geometry)
                if nxt == 2:
                    nxt = _settle(org[after[r]], chord, *doubts)
                if prv == 2:
                    prv = _settle(org[before[r]], chord, *doubts)
                if nxt == 2 or prv == 2:
                    return -2, -2
                if nxt < 0 and prv > 0:
                    break
                r = twin[before[r]]
                turns += 1
                if turns > n_half:
                    return -1, -1
            entry = r
        h = entry


@njit(cache=True, nogil=True)
def _any_positive(corners, pos, bits):
    """Set the bits of the columns that are positive at any of the corners."""
    for w in range(bits.shape[0]):
        bits[w] = uint64(0)
        for v in corners:
            bits[w] |= pos[v, w]


@njit(cache=True, nogil=True)
def _halve(
    i, j, size, loop, segment, face, edge, corner,
    out_edge_points, out_edge_cells, out_corners, out_edges, out_sizes,
):  # fmt: skip
    """Cut a cell from boundary point i to j > i: face on the chord's right, then on its left.

    j --- . --- .
    |  face + 1  |      the boundary runs anticlockwise, so i+1, ..., j-1 lie on the right of
    j <-- edge -- i     the chord from i to j
    |    face    |
    . --- . --- .
    """
    out_edge_points[edge, 0], out_edge_points[edge, 1] = loop[i], loop[j]
    out_edge_cells[edge, 0], out_edge_cells[edge, 1] = face + 1, face
    for p in range(i, j):
        out_corners[corner], out_edges[corner] = loop[p], segment[p] >> 1
        out_edge_cells[segment[p] >> 1, segment[p] & 1] = face
        corner += 1
    out_corners[corner], out_edges[corner] = loop[j], edge
    out_sizes[face] = j - i + 1
    corner += 1
    for p in range(j, size):
        out_corners[corner], out_edges[corner] = loop[p], segment[p] >> 1
        out_edge_cells[segment[p] >> 1, segment[p] & 1] = face + 1
        corner += 1
    for p in range(i):
        out_corners[corner], out_edges[corner] = loop[p], segment[p] >> 1
        out_edge_cells[segment[p] >> 1, segment[p] & 1] = face + 1
        corner += 1
    out_corners[corner], out_edges[corner] = loop[i], edge
    out_sizes[face + 1] = size - j + i + 1


@njit(cache=True, nogil=True)
def _complete_question(ask, loop, chord_from, chord_to, column_of, first_of, right):
    """Extend the chords in ``ask`` by what they stand for; see `split_cells`."""
    a, b, c = ask[0], ask[1], ask[2]
    first = first_of[c]
    ask[0], ask[1] = loop[chord_from[a]], loop[chord_to[a]]
    ask[2], ask[3] = column_of[first_of[b]], column_of[first]
    ask[4] = right[first]
    ask[5], ask[6], ask[7] = a, b, c


@njit(cache=True, nogil=True)
def split_cells(
    cell_offsets, cell_corners, cell_edges, edge_points, pos, neg,
    offsets, column, vertex, edge_first, count, bases, longest, scale, known, ask, lenient,
    start, stop, out_points, out_error, out_origin, out_edge_points, out_edge_cells,
    out_edge_column,
    out_corners, out_edges, out_sizes, out_bits,
):  # fmt: skip
    """Cut each cell by its active columns.

    ``bases[cell]`` holds the numbers of the cell's first face, interior vertex, interior edge and
    corner in the output; ``count`` comes from `count_cell_pieces` and is set right where fewer were
    made because chords met in one point, or where signs were inconsistent: such a cell is left
    whole and ``count[cell, 6]`` set to 1. Where a side is in doubt and not ``known`` (see `_side`;
    for a range of one cell) it is set to 2, nothing else of the cell can be relied on, and ``ask``
    becomes (two ends of the first chord, column of the second, column of the third, whether that is
    positive on the right of its chord, the three chords). Returns the number of cells set right.

    Lengths are taken times ``scale``, a power of two, so that no product of them underflows or
    overflows. ``edge_first[e]`` is the number of the first segment of edge e in the output,
    ``out_points`` and ``out_error`` hold the old vertices and those on edges already. An inner
    vertex has in ``out_origin`` the two ends of one chord through it and the column of another.
    Cost: proportional to the size of the arrangement in each cell.
    """
    n_words = pos.shape[1]
    widest = 1
    most_half = longest
    most_inner = 1
    most_faces = 1
    for cell in range(start, stop):
        widest = max(widest, count[cell, 1])
        most_half = max(most_half, count[cell, 5])
        most_inner = max(most_inner, count[cell, 3])
        most_faces = max(most_faces, count[cell, 2])
    words = np.empty(n_words, np.uint64)
    rank = np.empty(n_words, np.int64)
    loop = np.empty(longest, np.int32)
    segment = np.empty(longest, np.int32)
    corner_after = np.empty(longest, np.int32)
    chord_from = np.empty(widest, np.int32)
    chord_to = np.empty(widest, np.int32)
    chord_of = np.empty(widest, np.int32)
    column_of = np.empty(widest, np.int32)
    right = np.empty(widest, np.bool_)
    first_of = np.empty(widest, np.int32)  # the columns of a chord, as a linked list
    next_of = np.empty(widest, np.int32)
    org = np.empty(most_half, np.int32)
    twin = np.empty(most_half, np.int32)
    after = np.empty(most_half, np.int32)
    before = np.empty(most_half, np.int32)
    label = np.empty(most_half, np.int32)
    face_of = np.empty(most_half, np.int32)
    edge_of = np.empty(most_half, np.int32)
    made_a = np.empty(most_inner, np.int32)
    made_b = np.empty(most_inner, np.int32)
    xy = np.empty((longest + most_inner, 3), np.float64)
    first_half = np.empty(most_faces, np.int32)
    seen = np.empty(most_faces, np.bool_)
    stack = np.empty(most_faces, np.int32)
    surprises = 0

    for cell in range(start, stop):
        face0, vertex0 = bases[cell, 0], bases[cell, 1]
        edge0, corner0 = bases[cell, 2], bases[cell, 3]
        lo, hi = cell_offsets[cell], cell_offsets[cell + 1]
        if count[cell, 1] == 0:  # nothing crosses this cell, so nothing crosses its edges either
            for i in range(lo, hi):
                e = cell_edges[i]
                out_corners[corner0 + i - lo] = cell_corners[i]
                out_edges[corner0 + i - lo] = edge_first[e]
                forward = edge_points[e, 0] == cell_corners[i]
                out_edge_cells[edge_first[e], 0 if forward else 1] = face0
            out_sizes[face0] = hi - lo
            _any_positive(cell_corners[lo:hi], pos, out_bits[face0])
            continue

        size, active, bad = _walk_boundary(
            cell, cell_offsets, cell_corners, cell_edges, edge_points, pos, neg,
            offsets, column, vertex, edge_first, words, rank, loop, segment, corner_after,
            chord_from, chord_to,
        )  # fmt: skip
        if active == 1 and bad == 0:  # one chord, two faces: the common case, without half-edges
            w = 0
            while words[w] == uint64(0):
                w += 1
            k = 64 * w + _lowest(words[w])
            i, j = chord_from[0], chord_to[0]
            beside = corner_after[i]
            if _bit(pos[beside], k) or _bit(neg[beside], k):
                _halve(
                    i, j, size, loop, segment, face0, edge0, corner0,
                    out_edge_points, out_edge_cells, out_corners, out_edges, out_sizes,
                )  # fmt: skip
                out_edge_column[edge0] = k
                _any_positive(cell_corners[lo:hi], pos, out_bits[face0])
                out_bits[face0 + 1] = out_bits[face0]
                behind = face0 + 1 if _bit(pos[beside], k) else face0
                out_bits[behind, k >> 6] ^= uint64(1) << uint64(k & 63)
                continue
        n_half = size
        n_local = size
        for p in range(size):
            org[p], twin[p], label[p] = p, -1, -1
            after[p] = p + 1 if p + 1 < size else 0
            before[p] = p - 1 if p > 0 else size - 1
            xy[p, 0], xy[p, 1] = scale * out_points[loop[p], 0], scale * out_points[loop[p], 1]
            xy[p, 2] = scale * out_error[loop[p]]
        n = 0
        for w in range(n_words):
            word = words[w]
            while word != uint64(0):
                k = 64 * w + _lowest(word)
                word &= word - uint64(1)
                column_of[n] = k
                if bad == 0:
                    # the corner behind the chord's first end lies on the chord's right
                    beside = corner_after[chord_from[n]]
                    right[n] = _bit(pos[beside], k)
                    if not right[n] and not _bit(neg[beside], k):
                        bad = 1
                n += 1
        if bad == 0:
            chords = _merge_chords(active, chord_from, chord_to, chord_of)
            for c in range(chords):
                first_of[c] = -1
            for u in range(active - 1, -1, -1):
                next_of[u] = first_of[chord_of[u]]
                first_of[chord_of[u]] = u
            for c in range(chords):
                n_half, n_local = _insert_chord(
                    c, size, n_half, n_local, chord_from, chord_to,
                    org, twin, after, before, label, made_a, made_b, xy, known, ask, lenient,
                )  # fmt: skip
                if n_half < 0:
                    bad = -n_half
                    break
        if bad == 2:
            _complete_question(ask, loop, chord_from, chord_to, column_of, first_of, right)
            count[cell, 6] = 2
            continue
        if bad != 0:  # leave the cell whole; the status will say so
            bad = 1
            active = 0
            n_half = size
            n_local = size
            for p in range(size):
                after[p] = p + 1 if p + 1 < size else 0
                before[p] = p - 1 if p > 0 else size - 1
                twin[p] = -1

        # faces: follow ``after`` from every half-edge that has no face yet
        for h in range(n_half):
            face_of[h] = -1
            edge_of[h] = -1
        n_faces = 0
        n_edges = 0
        corner = corner0
        for h0 in range(n_half):
            if face_of[h0] >= 0:
                continue
            face = face0 + n_faces
            first_half[n_faces] = h0
            first_corner = corner
            h = h0
            while True:
                face_of[h] = n_faces
                v = org[h]
                out_corners[corner] = loop[v] if v < size else vertex0 + v - size
                if twin[h] < 0:
                    edge_of[h] = segment[h] >> 1
                    out_edge_cells[edge_of[h], segment[h] & 1] = face
                elif edge_of[h] < 0:
                    e = edge0 + n_edges
                    n_edges += 1
                    edge_of[h], edge_of[twin[h]] = e, e
                    v2 = org[twin[h]]
                    out_edge_points[e, 0] = out_corners[corner]
                    out_edge_points[e, 1] = loop[v2] if v2 < size else vertex0 + v2 - size
                    out_edge_cells[e, 0] = face
                else:
                    out_edge_cells[edge_of[h], 1] = face
                out_edges[corner] = edge_of[h]
                corner += 1
                h = after[h]
                if h == h0:
                    break
            out_sizes[face] = corner - first_corner
            n_faces += 1
        for v in range(size, n_local):
            x = vertex0 + v - size
            out_points[x, 0], out_points[x, 1] = xy[v, 0] / scale, xy[v, 1] / scale
            out_error[x] = xy[v, 2] / scale
            a, b = made_a[v - size], made_b[v - size]
            origin = x - bases[0, 1]
            out_origin[origin, 0], out_origin[origin, 1] = loop[chord_from[a]], loop[chord_to[a]]
            out_origin[origin, 2] = column_of[first_of[b]]

        # bits: the first face from the sides it lies on, its neighbours by flipping
        _any_positive(cell_corners[lo:hi], pos, out_bits[face0])
        for u in range(active):
            h = first_half[0]
            side = 0
            while side == 0 or side == 2:
                h = after[h]
                side = _side(org[h], chord_of[u], size, chord_from, chord_to, made_a, made_b, xy)
                if side == 2:
                    side = _settle(org[h], chord_of[u], size, made_a, made_b, known, ask, lenient)
                if h == first_half[0] and (side == 0 or side == 2):
                    bad = 2
                    break
            if (side < 0) != right[u]:
                k = column_of[u]
                out_bits[face0, k >> 6] ^= uint64(1) << uint64(k & 63)
        if bad == 2:
            _complete_question(ask, loop, chord_from, chord_to, column_of, first_of, right)
            count[cell, 6] = 2
            continue
        for f in range(n_faces):
            seen[f] = f == 0
        n = 1
        stack[0] = 0
        while n > 0:
            n -= 1
            f = stack[n]
            h = first_half[f]
            while True:
                t = twin[h]
                if t >= 0 and not seen[face_of[t]]:
                    f2 = face_of[t]
                    seen[f2] = True
                    stack[n] = f2
                    n += 1
                    for w in range(n_words):
                        out_bits[face0 + f2, w] = out_bits[face0 + f, w]
                    u = first_of[label[h]]
                    while u >= 0:
                        k = column_of[u]
                        out_bits[face0 + f2, k >> 6] ^= uint64(1) << uint64(k & 63)
                        u = next_of[u]
                h = after[h]
                if h == first_half[f]:
                    break
        for h in range(size, n_half):  # an edge is labelled by the first column of its chord
            out_edge_column[edge_of[h]] = column_of[first_of[label[h]]]
        count[cell, 6] = bad
        if count[cell, 2] != n_faces or bad != 0:
            surprises += 1
            count[cell, 2], count[cell, 3] = n_faces, n_local - size
            count[cell, 4], count[cell, 5] = n_edges, corner - corner0
    return surprises
