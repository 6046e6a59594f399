"""Kernels that cut the cells of a planar complex.

They take arrays and scalars, write into arrays that the caller has allocated, release the GIL and
work on a range ``[start, stop)`` of cells, so that the caller can hand disjoint ranges to several
threads. Nothing here allocates more than a workspace for one cell.

Vocabulary. A *column* is one switch of the stage at work: a unit together with one of its
breakpoints; its sign at a vertex is +1, 0 or -1, stored as one bit in ``pos`` and one in ``neg``.
A column is *active* in a cell that has corners on both of its sides. A *chord* is the trace of one
or several coinciding active columns in a convex cell: it joins two points of the cell's boundary.
Inside a cell, boundary points have the *local* numbers 0, 1, ..., size - 1, anticlockwise, and the
vertices where chords cross those from size on.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

from cpwl.arrays import EPS, Floats, Ints

# Columns of ``count``: what a cell is cut into, its active columns, and what came of it. Those of
# ``bases`` are the first four.
FACES, VERTICES, EDGES, CORNERS, COLUMNS, STATE = range(6)
# States of a cell. WHOLE: its signs are inconsistent, since rounding broke convexity. IN_DOUBT: the
# side of a vertex of a chord is open.
CUT, WHOLE, IN_DOUBT = range(3)
# Entries of ``ask``. On which side of chord C is the vertex where A and B meet? A runs from vertex
# FROM to vertex TO, B and C are those of the columns ACROSS and COLUMN, and RIGHT tells whether the
# latter is positive on the right of C. TAKEN counts the sides that were taken as 0.
A, B, C, FROM, TO, ACROSS, COLUMN, RIGHT, TAKEN = range(9)
# The side of a vertex of a chord, where it is not -1, 0 or 1.
_OPEN = 2
# Entries of ``HalfEdges.used``.
_HALVES, _LOCALS = 0, 1
# Chords that cross at a smaller angle are left to rational arithmetic.
_PARALLEL = 3e-5
# Shorter chords lose too much of their length to underflow for a bound on the angle.
_TINY = 1e-130


class Uncut(NamedTuple):
    """The cells of a complex, signs at their corners, and vertices that wait on their edges."""

    cell_offsets: Ints  # this and the next three as in `Complex`
    cell_corners: NDArray[np.int32]
    cell_edges: NDArray[np.int32]
    edge_points: NDArray[np.int32]
    pos: NDArray[np.uint64]  # this and the next three as in `StageSigns`
    neg: NDArray[np.uint64]
    offsets: Ints
    column: NDArray[np.int32]
    vertex: NDArray[np.int32]  # (X,) vertex in which a column crosses an edge
    edge_first: Ints  # (E + 1,) number of the first segment of each edge in the output


class Pieces(NamedTuple):
    """The output: places for everything that the cells are cut into."""

    points: Floats  # (V, 2) the old vertices and those on edges are there already
    error: Floats  # (V,)
    origin: NDArray[np.int32]  # (inner vertices, 3) ends of a chord through it, column of another
    edge_points: NDArray[np.int32]  # (E, 2) the segments of the old edges are there already
    edge_cells: NDArray[np.int32]  # (E, 2) -1
    edge_column: NDArray[np.int32]  # (E,) set for edges inside the old cells
    corners: NDArray[np.int32]  # (N,)
    edges: NDArray[np.int32]  # (N,)
    sizes: Ints  # (faces,) 0
    patterns: NDArray[np.uint64]  # (faces, W) the stage's words are the last


class Doubts(NamedTuple):
    """What decides the sides that float64 leaves open."""

    known: NDArray[np.int32]  # (n, 4) A, B, C and the side
    ask: NDArray[np.int32]  # (9,) the question that is open, and how many sides were taken as 0
    lenient: bool  # what is not known is taken as 0


class Boundary(NamedTuple):
    """Workspace: a cell's boundary with the new vertices in it, and which columns are active."""

    words: NDArray[np.uint64]  # (W,) active columns, packed
    rank: Ints  # (W,) number of active columns before each word
    loop: NDArray[np.int32]  # (L,) vertices
    segment: NDArray[np.int32]  # (L,) 2 * edge that leaves the point, + 1 if it ends there
    corner_after: NDArray[np.int32]  # (L,) next old corner


class Chords(NamedTuple):
    """Workspace: chords and the vertices in which they cross."""

    start: NDArray[np.int32]  # (U,) lower and higher boundary point, of columns and then of chords
    end: NDArray[np.int32]
    one: NDArray[np.int32]  # (inner vertices,) the two chords that it was made from
    other: NDArray[np.int32]
    xy: Floats  # (local vertices, 3) scaled coordinates, and the bound on their error


class Columns(NamedTuple):
    """Workspace: active columns, and those of each chord as a linked list."""

    number: NDArray[np.int32]  # (U,) ascending
    right: NDArray[np.bool_]  # (U,) positive on the right of its chord
    chord: NDArray[np.int32]  # (U,)
    first: NDArray[np.int32]  # (chords,)
    next: NDArray[np.int32]  # (U,) -1 ends the list


class HalfEdges(NamedTuple):
    """Workspace: the faces of a cell, each on the left of a ring of half-edges."""

    used: NDArray[np.int32]  # (2,) numbers of half-edges and of local vertices
    org: NDArray[np.int32]  # local vertex where it starts
    twin: NDArray[np.int32]  # the same edge from the other side, -1 on the boundary
    after: NDArray[np.int32]
    before: NDArray[np.int32]
    label: NDArray[np.int32]  # chord, -1 on the boundary
    face: NDArray[np.int32]  # counted within the cell
    edge: NDArray[np.int32]  # in the output
    first: NDArray[np.int32]  # (faces,) a half-edge of each


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
def _bit(words, row, column):
    """Tell whether bit ``column`` of a packed row is set."""
    return (words[row, column >> 6] >> uint64(column & 63)) & uint64(1) != uint64(0)


@njit(cache=True, nogil=True, inline="always")
def _flip(words, row, column):
    """Flip bit ``column`` of a packed row."""
    words[row, column >> 6] ^= uint64(1) << uint64(column & 63)


# --- the boundary of a cell --------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _find_active(corners, pos, neg, words, rank):
    """Write the columns with corners on both sides as ``words`` and ``rank``; count them."""
    active = 0
    for w in range(words.shape[0]):
        p = uint64(0)
        n = uint64(0)
        for v in corners:
            p |= pos[v, w]
            n |= neg[v, w]
        words[w] = p & n
        rank[w] = active
        active += _popcount(p & n)
    return active


@njit(cache=True, nogil=True, inline="always")
def _meets(k, at, words, rank, start, end):
    """Note that column k meets the boundary at a point; tell whether that is its third one."""
    u = rank[k >> 6] + _popcount(words[k >> 6] & ((uint64(1) << uint64(k & 63)) - uint64(1)))
    third = end[u] >= 0
    if start[u] < 0:
        start[u] = at
    elif not third:
        end[u] = at
    return third


@njit(cache=True, nogil=True)
def _walk_boundary(cell, uncut, boundary, start, end):
    """List a cell's boundary with the new vertices in it and the two ends of each active column.

    before                     after: loop = [c0, x, c1, ...]; corner_after[x] = vertex of c1
        c2 ------- c1              c2 ------- c1
         |          |               |          x    column with c0, c1 on different sides
         +---- c0 --+               +---- c0 --+

    Returns the number of points on the boundary and of active columns, and whether each of these
    meets the boundary in exactly two points.
    """
    words, rank, loop, segment, corner_after = boundary
    pos, neg, column, vertex = uncut.pos, uncut.neg, uncut.column, uncut.vertex
    lo, hi = uncut.cell_offsets[cell], uncut.cell_offsets[cell + 1]
    corners = uncut.cell_corners[lo:hi]
    active = _find_active(corners, pos, neg, words, rank)
    if active == 0:
        return hi - lo, 0, True
    for u in range(active):
        start[u] = -1
        end[u] = -1
    sound = True
    at = 0
    for i in range(hi - lo):
        v = corners[i]
        after = corners[i + 1] if i + 1 < hi - lo else corners[0]
        e = uncut.cell_edges[lo + i]
        forward = uncut.edge_points[e, 0] == v
        loop[at] = v
        corner_after[at] = after
        # segments of an edge are numbered from its first end
        segment[at] = 2 * uncut.edge_first[e] if forward else 2 * uncut.edge_first[e + 1] - 1
        for w in range(words.shape[0]):
            zero = words[w] & ~(pos[v, w] | neg[v, w])
            while zero != uint64(0):
                sound &= not _meets(64 * w + _lowest(zero), at, words, rank, start, end)
                zero &= zero - uint64(1)
        at += 1
        previous = -1
        first, last = uncut.offsets[e], uncut.offsets[e + 1]
        for q in range(last - first):
            x = first + q if forward else last - 1 - q
            if vertex[x] != previous:
                previous = vertex[x]
                loop[at] = previous
                corner_after[at] = after
                segment[at] = segment[at - 1] + (2 if forward else -2)
                at += 1
            sound &= not _meets(column[x], at - 1, words, rank, start, end)
    for u in range(active):
        sound &= end[u] >= 0
    return at, active, sound


@njit(cache=True, nogil=True, inline="always")
def _interleave(i, j, k, m):
    """Tell whether the chords (i, j) and (k, m), each ascending, cross strictly inside."""
    return (i < k and k < j and j < m) or (k < i and i < m and m < j)


@njit(cache=True, nogil=True)
def _merge_chords(active, start, end, chord):
    """Merge columns with the same two ends into one chord; returns the number of chords.

    Rewrites ``start`` and ``end`` (one entry a chord) and sets ``chord`` of each column.
    """
    n = 0
    for u in range(active):
        found = -1
        for c in range(n):
            if start[c] == start[u] and end[c] == end[u]:
                found = c
                break
        if found < 0:
            found = n
            start[n], end[n] = start[u], end[u]
            n += 1
        chord[u] = found
    return n


@njit(cache=True, nogil=True)
def _boundary_of(most, n_words):
    """Make room for the boundary of a cell with at most so many boundary points."""
    return Boundary(
        np.empty(n_words, np.uint64), np.empty(n_words, np.int64),
        np.empty(most, np.int32), np.empty(most, np.int32), np.empty(most, np.int32),
    )  # fmt: skip


@njit(cache=True, nogil=True)
def count_cell_pieces(uncut, longest, start, stop, count):
    """Bound what the arrangement of chords in each cell creates: ``count``, all of its columns.

    All are exact unless three chords meet in one interior point. ``longest`` bounds the number of
    boundary points of any cell of the range.
    """
    n_words = uncut.pos.shape[1]
    boundary = _boundary_of(longest, n_words)
    begin, end, chord = np.empty((3, 64 * n_words), np.int32)
    for cell in range(start, stop):
        size, active, sound = _walk_boundary(cell, uncut, boundary, begin, end)
        chords = 0
        crossings = 0
        if sound:
            chords = _merge_chords(active, begin, end, chord)
            for a in range(chords):
                for b in range(a):
                    crossings += _interleave(begin[a], end[a], begin[b], end[b])
        count[cell, FACES] = 1 + chords + crossings
        count[cell, VERTICES] = crossings
        count[cell, EDGES] = chords + 2 * crossings
        count[cell, CORNERS] = size + 2 * (chords + 2 * crossings)
        count[cell, COLUMNS] = active
        count[cell, STATE] = CUT if sound else WHOLE


# --- sides of chords ---------------------------------------------------------------------------


@njit(cache=True, nogil=True, inline="always")
def _length(x, y):
    """Length of a vector whose entries are no larger than 1 or so; at least that in any case."""
    return np.sqrt(x * x + y * y) + 1e-150  # what squares below the smallest number lose


@njit(cache=True, nogil=True)
def _settle(a, b, chord, doubts):
    """Look the side of a vertex up that float64 leaves open: 0 or `_OPEN` where it is not known."""
    known, ask, lenient = doubts
    for row in range(known.shape[0]):
        if known[row, A] == a and known[row, B] == b and known[row, C] == chord:
            return known[row, 3]
    if lenient:
        ask[TAKEN] += 1
        return 0
    ask[A], ask[B], ask[C] = a, b, chord
    return _OPEN


@njit(cache=True, nogil=True)
def _side(v, chord, size, chords, doubts):
    """Side of local vertex ``v`` of the directed chord: -1 right, 0 on it, +1 left, or `_OPEN`.

    Combinatorial wherever it can be: a boundary vertex lies on the right exactly when it comes
    between the chord's ends on the anticlockwise boundary, and an interior vertex lies on the side
    of any chord through it that does not cross this one. What remains is decided by one
    orientation test with a bound on its error, and what that leaves open by `_settle`.
    """
    start, end, one, other, xy = chords
    i, j = start[chord], end[chord]
    if v < size:
        if v in (i, j):
            return 0
        return -1 if i < v and v < j else 1
    a, b = one[v - size], other[v - size]
    if chord in (a, b):
        return 0
    for c in (a, b):
        k, m = start[c], end[c]
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
    return _settle(a, b, chord, doubts)


# --- inserting a chord -------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _intersect(a, b, v, chords):
    """Place local vertex ``v`` where chords ``a`` and ``b`` cross, with a bound on its error.

    The point lies within some distance of either chord. The sum of both over the sine of the least
    angle that the chords may have bounds its distance from where they really meet.
    """
    xy = chords.xy
    p, q = chords.start[a], chords.end[a]
    r, s = chords.start[b], chords.end[b]
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
def _enter(h, chord, size, chords, half, doubts):
    """Rotate about the start of a half-edge to the face that a chord through it enters.

    Returns the half-edge that starts there and belongs to that face, -WHOLE or -IN_DOUBT.
    """
    for _ in range(half.used[_HALVES] + 1):
        following = _side(half.org[half.after[h]], chord, size, chords, doubts)
        previous = _side(half.org[half.before[h]], chord, size, chords, doubts)
        if following == _OPEN or previous == _OPEN:
            return -IN_DOUBT
        if following < 0 and previous > 0:
            return h
        h = half.twin[half.before[h]]
        if h < 0:
            break
    return -WHOLE


@njit(cache=True, nogil=True)
def _leave(h, chord, size, chords, half, doubts):
    """Find where a chord leaves the face that it enters at the start of a half-edge.

    Returns the first half-edge that does not start on the chord's right, -WHOLE or -IN_DOUBT, and
    the side on which it starts: 0 if the chord leaves there, 1 if through the edge before.
    """
    g = half.after[h]
    side = -1
    while side < 0:
        g = half.after[g]
        if g == h:
            return -WHOLE, side
        side = _side(half.org[g], chord, size, chords, doubts)
    return (-IN_DOUBT if side == _OPEN else g), side


@njit(cache=True, nogil=True)
def _split_edge(e, chord, size, chords, half):
    """Put a vertex z where a chord crosses the edge of half-edge e and its twin t.

    before  x ------ e ------> y    after  x -- e --> z -- e2 -> y
            x <----- t ------- y           x <- t2 -- z <- t --- y

    Returns e2 and t2.
    """
    after, before, twin = half.after, half.before, half.twin
    z, e2 = half.used[_LOCALS], half.used[_HALVES]
    t, t2 = twin[e], e2 + 1
    half.used[_LOCALS] += 1
    half.used[_HALVES] += 2
    chords.one[z - size], chords.other[z - size] = chord, half.label[e]
    _intersect(chord, half.label[e], z, chords)
    half.org[e2], half.org[t2] = z, z
    half.label[e2], half.label[t2] = half.label[e], half.label[e]
    twin[e], twin[t2], twin[e2], twin[t] = t2, e, t, e2
    after[e2], before[e2] = after[e], e
    before[after[e]], after[e] = e2, e2
    after[t2], before[t2] = after[t], t
    before[after[t]], after[t] = t2, t2
    return e2, t2


@njit(cache=True, nogil=True)
def _split_face(h, g, chord, half):
    """Cut a face along a chord, from the start w of half-edge h to the start z of half-edge g.

            y --- . --- .             y --- . --- .
            |  left     |             |           |    ``after[c1]`` continues at z -> y,
            z           w             z <-- c1 -- w    ``after[c2]`` at w -> (right vertices)
            |  right    |             z --- c2 -> w
            x --- . --- .             x --- . --- .

    Returns c2.
    """
    after, before = half.after, half.before
    c1 = half.used[_HALVES]
    c2 = c1 + 1
    half.used[_HALVES] += 2
    half.org[c1], half.org[c2] = half.org[h], half.org[g]
    half.label[c1], half.label[c2] = chord, chord
    half.twin[c1], half.twin[c2] = c2, c1
    tail_h, tail_g = before[h], before[g]
    after[c1], before[g] = g, c1
    before[c1], after[tail_h] = tail_h, c1
    after[c2], before[h] = h, c2
    before[c2], after[tail_g] = tail_g, c2
    return c2


@njit(cache=True, nogil=True)
def _insert_chord(chord, size, chords, half, doubts):
    """Cut the faces that a chord runs through, from one end to the other; returns the state.

    In each face the chord enters at a vertex, with the face's next vertex on its right and the
    previous one on its left, and leaves through a vertex or an edge.
    """
    # boundary half-edge p always starts at local vertex p
    h = _enter(chords.start[chord], chord, size, chords, half, doubts)
    while h >= 0:
        g, side = _leave(h, chord, size, chords, half, doubts)
        if g < 0:
            return -g
        behind = -1
        if side > 0:
            if half.twin[half.before[g]] < 0:
                return WHOLE
            g, behind = _split_edge(half.before[g], chord, size, chords, half)
        z = half.org[g]
        back = _split_face(h, g, chord, half)
        if z == chords.end[chord]:
            return CUT
        if side > 0:
            h = behind
        elif z < size:
            return WHOLE
        else:
            h = _enter(back, chord, size, chords, half, doubts)
    return -h


# --- cutting a cell ----------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _any_positive(cell, uncut, bits, face):
    """Set the bits of the columns that are positive at any of a cell's corners."""
    for w in range(bits.shape[1]):
        word = uint64(0)
        for i in range(uncut.cell_offsets[cell], uncut.cell_offsets[cell + 1]):
            word |= uncut.pos[uncut.cell_corners[i], w]
        bits[face, w] = word


@njit(cache=True, nogil=True)
def _copy(cell, uncut, base, out):
    """Copy a cell that nothing crosses; nothing crosses its edges either."""
    face, corner = base[FACES], base[CORNERS]
    lo, hi = uncut.cell_offsets[cell], uncut.cell_offsets[cell + 1]
    for i in range(lo, hi):
        v, e = uncut.cell_corners[i], uncut.cell_edges[i]
        out.corners[corner + i - lo] = v
        out.edges[corner + i - lo] = uncut.edge_first[e]
        side = 0 if uncut.edge_points[e, 0] == v else 1
        out.edge_cells[uncut.edge_first[e], side] = face
    out.sizes[face] = hi - lo


@njit(cache=True, nogil=True)
def _halve(i, j, size, column, boundary, base, out):
    """Cut a cell from boundary point i to j > i: face on the chord's right, then on its left.

    j --- . --- .
    |  face + 1  |      the boundary runs anticlockwise, so i+1, ..., j-1 lie on the right of
    j <-- edge -- i     the chord from i to j
    |    face    |
    . --- . --- .
    """
    loop, segment = boundary.loop, boundary.segment
    face, edge, corner = base[FACES], base[EDGES], base[CORNERS]
    out.edge_points[edge, 0], out.edge_points[edge, 1] = loop[i], loop[j]
    out.edge_cells[edge, 0], out.edge_cells[edge, 1] = face + 1, face
    out.edge_column[edge] = column
    for side in range(2):
        first, last = (i, j) if side == 0 else (j, i + size)
        for q in range(first, last):
            p = q if q < size else q - size
            out.corners[corner], out.edges[corner] = loop[p], segment[p] >> 1
            out.edge_cells[segment[p] >> 1, segment[p] & 1] = face + side
            corner += 1
        out.corners[corner], out.edges[corner] = loop[j if side == 0 else i], edge
        out.sizes[face + side] = last - first + 1
        corner += 1


@njit(cache=True, nogil=True)
def _list_columns(uncut, boundary, chords, columns):
    """List the active columns and their sides; tell whether all have one right of their chord."""
    n = 0
    for w in range(boundary.words.shape[0]):
        word = boundary.words[w]
        while word != uint64(0):
            k = 64 * w + _lowest(word)
            word &= word - uint64(1)
            # the corner behind the chord's first end lies on the chord's right
            beside = boundary.corner_after[chords.start[n]]
            columns.number[n] = k
            columns.right[n] = _bit(uncut.pos, beside, k)
            if not columns.right[n] and not _bit(uncut.neg, beside, k):
                return False
            n += 1
    return True


@njit(cache=True, nogil=True)
def _open_cell(size, scale, boundary, out, chords, half):
    """Make the half-edges of an uncut cell, and the coordinates of its boundary points."""
    for p in range(size):
        half.org[p], half.twin[p], half.label[p] = p, -1, -1
        half.after[p] = p + 1 if p + 1 < size else 0
        half.before[p] = p - 1 if p > 0 else size - 1
        v = boundary.loop[p]
        chords.xy[p, 0], chords.xy[p, 1] = scale * out.points[v, 0], scale * out.points[v, 1]
        chords.xy[p, 2] = scale * out.error[v]
    half.used[_HALVES] = size
    half.used[_LOCALS] = size


@njit(cache=True, nogil=True)
def _insert_chords(active, size, chords, columns, half, doubts):
    """Merge the active columns into chords and insert all of these; returns the state."""
    n = _merge_chords(active, chords.start, chords.end, columns.chord)
    for c in range(n):
        columns.first[c] = -1
    for u in range(active - 1, -1, -1):
        c = columns.chord[u]
        columns.next[u] = columns.first[c]
        columns.first[c] = u
    for c in range(n):
        state = _insert_chord(c, size, chords, half, doubts)
        if state != CUT:
            return state
    return CUT


@njit(cache=True, nogil=True)
def _flip_first(active, size, chords, columns, half, doubts, bits, face):
    """Flip the bits of columns on whose negative side the first face lies; returns the state."""
    for u in range(active):
        h = 0  # a half-edge of the first face
        side = 0
        while side == 0 or side == _OPEN:
            h = half.after[h]
            side = _side(half.org[h], columns.chord[u], size, chords, doubts)
            if h == 0 and (side == 0 or side == _OPEN):
                return IN_DOUBT
        if (side < 0) != columns.right[u]:
            _flip(bits, face, columns.number[u])
    return CUT


@njit(cache=True, nogil=True)
def _complete_question(ask, boundary, chords, columns):
    """Extend the chords in ``ask`` by what they stand for."""
    ask[FROM], ask[TO] = boundary.loop[chords.start[ask[A]]], boundary.loop[chords.end[ask[A]]]
    ask[ACROSS] = columns.number[columns.first[ask[B]]]
    ask[COLUMN] = columns.number[columns.first[ask[C]]]
    ask[RIGHT] = columns.right[columns.first[ask[C]]]


@njit(cache=True, nogil=True)
def _name_faces(size, base, boundary, columns, half, out):
    """Write the faces and edges of a cell; returns the numbers of faces, edges and corners.

    Faces are the rings of ``after``, in the order of their first half-edges.
    """
    loop, inner = boundary.loop, base[VERTICES] - size
    for h in range(half.used[_HALVES]):
        half.face[h] = -1
        half.edge[h] = -1
    n_faces = 0
    edge = base[EDGES]
    corner = base[CORNERS]
    for first in range(half.used[_HALVES]):
        if half.face[first] >= 0:
            continue
        face = base[FACES] + n_faces
        half.first[n_faces] = first
        first_corner = corner
        h = first
        while True:
            half.face[h] = n_faces
            v = half.org[h]
            t = half.twin[h]
            out.corners[corner] = loop[v] if v < size else inner + v
            if t < 0:
                half.edge[h] = boundary.segment[h] >> 1
                out.edge_cells[half.edge[h], boundary.segment[h] & 1] = face
            elif half.edge[h] < 0:
                half.edge[h], half.edge[t] = edge, edge
                v2 = half.org[t]
                out.edge_points[edge, 0] = out.corners[corner]
                out.edge_points[edge, 1] = loop[v2] if v2 < size else inner + v2
                out.edge_cells[edge, 0] = face
                # an edge is labelled by the first column of its chord
                out.edge_column[edge] = columns.number[columns.first[half.label[h]]]
                edge += 1
            else:
                out.edge_cells[half.edge[h], 1] = face
            out.edges[corner] = half.edge[h]
            corner += 1
            h = half.after[h]
            if h == first:
                break
        out.sizes[face] = corner - first_corner
        n_faces += 1
    return n_faces, edge - base[EDGES], corner - base[CORNERS]


@njit(cache=True, nogil=True)
def _write_inner(size, scale, vertex, origin, boundary, chords, columns, half, out):
    """Write the vertices inside a cell, from number ``vertex`` and from row ``origin`` on."""
    for i in range(half.used[_LOCALS] - size):
        xy = chords.xy[size + i]
        out.points[vertex + i, 0], out.points[vertex + i, 1] = xy[0] / scale, xy[1] / scale
        out.error[vertex + i] = xy[2] / scale
        a, b = chords.one[i], chords.other[i]
        out.origin[origin + i, 0] = boundary.loop[chords.start[a]]
        out.origin[origin + i, 1] = boundary.loop[chords.end[a]]
        out.origin[origin + i, 2] = columns.number[columns.first[b]]


@njit(cache=True, nogil=True)
def _spread_bits(n_faces, columns, half, stack, bits, face0):
    """Write the bits of all faces of a cell from those of the first, by flipping across edges."""
    seen, waiting = stack
    for f in range(n_faces):
        seen[f] = f == 0
    waiting[0] = 0
    n = 1
    while n > 0:
        n -= 1
        f = waiting[n]
        h = half.first[f]
        while True:
            t = half.twin[h]
            if t >= 0 and not seen[half.face[t]]:
                f2 = half.face[t]
                seen[f2] = True
                waiting[n] = f2
                n += 1
                for w in range(bits.shape[1]):
                    bits[face0 + f2, w] = bits[face0 + f, w]
                u = columns.first[half.label[h]]
                while u >= 0:
                    _flip(bits, face0 + f2, columns.number[u])
                    u = columns.next[u]
            h = half.after[h]
            if h == half.first[f]:
                break


@njit(cache=True, nogil=True)
def _workspace(count, longest, uncut):
    """Make room for the largest of some cells."""
    columns, inner, faces = 1, 1, 1
    halves = longest
    for cell in range(count.shape[0]):
        columns = max(columns, count[cell, COLUMNS])
        halves = max(halves, count[cell, CORNERS])
        inner = max(inner, count[cell, VERTICES])
        faces = max(faces, count[cell, FACES])
    u = np.empty((6, columns), np.int32)
    h = np.empty((7, halves), np.int32)
    chords = Chords(
        u[0], u[1], np.empty(inner, np.int32), np.empty(inner, np.int32),
        np.empty((longest + inner, 3), np.float64),
    )  # fmt: skip
    half = HalfEdges(
        np.empty(2, np.int32), h[0], h[1], h[2], h[3], h[4], h[5], h[6], np.empty(faces, np.int32)
    )
    return (
        _boundary_of(longest, uncut.pos.shape[1]), chords,
        Columns(u[2], np.empty(columns, np.bool_), u[3], u[4], u[5]), half,
        (np.empty(faces, np.bool_), np.empty(faces, np.int32)),
    )  # fmt: skip


@njit(cache=True, nogil=True)
def split_cells(uncut, count, bases, longest, scale, doubts, start, stop, out):
    """Cut each cell by its active columns.

    ``bases[cell]`` holds the numbers of the cell's first face, interior vertex, interior edge and
    corner in the output; ``count`` comes from `count_cell_pieces` and is set right where fewer were
    made because chords met in one point, or where signs were inconsistent: such a cell is left
    whole. Where a side is in doubt and not known, the cell's state becomes IN_DOUBT, nothing else
    of it can be relied on, and ``ask`` holds the question (for a range of one cell). Returns the
    number of cells set right.

    Lengths are taken times ``scale``, a power of two, so that no product of them underflows or
    overflows. Cost: proportional to the size of the arrangement in each cell.
    """
    boundary, chords, columns, half, stack = _workspace(count[start:stop], longest, uncut)
    bits = out.patterns[:, out.patterns.shape[1] - uncut.pos.shape[1] :]
    surprises = 0
    for cell in range(start, stop):
        base = bases[cell]
        face = base[FACES]
        _any_positive(cell, uncut, bits, face)
        if count[cell, COLUMNS] == 0:
            _copy(cell, uncut, base, out)
            continue
        size, active, sound = _walk_boundary(cell, uncut, boundary, chords.start, chords.end)
        sound = sound and _list_columns(uncut, boundary, chords, columns)
        if sound and active == 1:  # the common case, without half-edges
            i, j, k = chords.start[0], chords.end[0], columns.number[0]
            _halve(i, j, size, k, boundary, base, out)
            for w in range(bits.shape[1]):
                bits[face + 1, w] = bits[face, w]
            _flip(bits, face + 1 if columns.right[0] else face, k)
            continue
        _open_cell(size, scale, boundary, out, chords, half)
        state = WHOLE
        if sound:
            state = _insert_chords(active, size, chords, columns, half, doubts)
        if state == CUT:
            state = _flip_first(active, size, chords, columns, half, doubts, bits, face)
        count[cell, STATE] = state
        if state == IN_DOUBT:
            _complete_question(doubts.ask, boundary, chords, columns)
            continue
        if state == WHOLE:  # the status will say so
            _open_cell(size, scale, boundary, out, chords, half)
        n_faces, n_edges, n_corners = _name_faces(size, base, boundary, columns, half, out)
        origin = base[VERTICES] - bases[0, VERTICES]
        _write_inner(size, scale, base[VERTICES], origin, boundary, chords, columns, half, out)
        _spread_bits(n_faces, columns, half, stack, bits, face)
        if count[cell, FACES] != n_faces or state == WHOLE:
            surprises += 1
            count[cell, FACES], count[cell, VERTICES] = n_faces, half.used[_LOCALS] - size
            count[cell, EDGES], count[cell, CORNERS] = n_edges, n_corners
    return surprises
