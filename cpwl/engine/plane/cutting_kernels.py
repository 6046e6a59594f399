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
from numba import uint64
from numpy.typing import NDArray

from cpwl.arrays import EPS, Floats, Ints, inlined, inner, kernel

# Columns of ``count``: what a cell is cut into, its active columns, and what came of it. Those of
# ``bases`` are the first four.
FACES, VERTICES, EDGES, CORNERS, COLUMNS, STATE = range(6)
# States of a cell. WHOLE: its signs are inconsistent, since rounding broke convexity. IN_DOUBT: the
# side of a vertex of a chord is open.
CUT, WHOLE, IN_DOUBT = range(3)
# Entries of ``ask``. On which side of chord C is the vertex where A and B meet? A runs from vertex
# FROM to vertex TO, B and C are those of the columns ACROSS and COLUMN, and RIGHT tells whether the
# latter is positive on the right of C. TAKEN counts the sides that were taken as 0. ALONG is the
# column of A.
A, B, C, FROM, TO, ACROSS, COLUMN, RIGHT, TAKEN, ALONG = range(10)
# The side of a vertex of a chord, where it is not -1, 0 or 1.
OPEN = 2
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
    ask: NDArray[np.int32]  # (10,) the question that is open, and how many sides were taken as 0
    lenient: bool  # what is not known is taken as 0


# Workspaces of one cell: rows of integers with named columns, and what goes with them.


class Boundary(NamedTuple):
    """A cell's boundary with the new vertices in it, and which columns are active."""

    words: NDArray[np.uint64]  # (W,) active columns, packed
    rank: Ints  # (W,) number of active columns before each word
    ring: Ints  # (L, 3) boundary points


class Chords(NamedTuple):
    """Chords, and the vertices in which they cross."""

    ends: Ints  # (U, 2) of active columns, and then of chords
    made: Ints  # (inner vertices, 2) the two chords that each was made from
    xy: Floats  # (local vertices, 3) scaled coordinates, and the bound on their error


# Columns of ``ring``: vertex, 2 * edge that leaves it (+ 1 if it ends there), next old corner.
VERTEX, SEGMENT, BESIDE = range(3)
# Columns of ``ends``: boundary points, ascending.
START, END = range(2)
# Columns of ``columns`` (U rows): number, whether it is positive on the right of its chord, chord;
# first column of chord u, and the column of the same chord that follows u (-1: none).
NUMBER, ON_RIGHT, CHORD, FIRST, NEXT = range(5)
# Columns of ``half``, half-edges with their face on the left: local vertex where it starts; the
# same edge from the other side (-1 on the boundary); the next and previous one of the face; chord
# (-1 on the boundary); face, counted within the cell; edge in the output.
ORG, TWIN, AFTER, BEFORE, LABEL, FACE, EDGE = range(7)
# Columns of ``faces``: one of its half-edges, whether its bits are written, face that waits.
HALF, SEEN, WAITING = range(3)


@inlined
def _popcount(word):
    """Count the set bits of a 64-bit word."""
    word = word - ((word >> uint64(1)) & uint64(0x5555555555555555))
    word = (word & uint64(0x3333333333333333)) + ((word >> uint64(2)) & uint64(0x3333333333333333))
    word = (word + (word >> uint64(4))) & uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * uint64(0x0101010101010101)) >> uint64(56))


@inlined
def _lowest(word):
    """Give the index of the lowest set bit of a non-zero word."""
    return _popcount((word & (~word + uint64(1))) - uint64(1))


@inlined
def _bit(words, row, column):
    """Tell whether bit ``column`` of a packed row is set."""
    return (words[row, column >> 6] >> uint64(column & 63)) & uint64(1) != uint64(0)


@inlined
def _flip(words, row, column):
    """Flip bit ``column`` of a packed row."""
    words[row, column >> 6] ^= uint64(1) << uint64(column & 63)


# --- the boundary of a cell --------------------------------------------------------------------


@inner
def _find_active(lo, hi, corners, pos, neg, words, rank):
    """Write the columns with corners on both sides as ``words`` and ``rank``; count them."""
    active = 0
    for w in range(words.shape[0]):
        p = uint64(0)
        n = uint64(0)
        for i in range(lo, hi):
            p |= pos[corners[i], w]
            n |= neg[corners[i], w]
        words[w] = p & n
        rank[w] = active
        active += _popcount(p & n)
    return active


@inlined
def _meets(k, at, words, rank, ends):
    """Note that column k meets the boundary at a point; tell whether that is its third one."""
    u = rank[k >> 6] + _popcount(words[k >> 6] & ((uint64(1) << uint64(k & 63)) - uint64(1)))
    third = ends[u, END] >= 0
    if ends[u, START] < 0:
        ends[u, START] = at
    elif not third:
        ends[u, END] = at
    return third


@inner
def _walk_boundary(cell, uncut, boundary, ends):
    """List a cell's boundary with the new vertices in it and the two ends of each active column.

    before                     after: ring = [c0, x, c1, ...], with c1 beside c0 and x
        c2 ------- c1              c2 ------- c1
         |          |               |          x    column with c0, c1 on different sides
         +---- c0 --+               +---- c0 --+

    Returns the number of points on the boundary and of active columns, and whether each of these
    meets the boundary in exactly two points.
    """
    words, rank, ring = boundary
    cell_offsets, cell_corners, cell_edges, edge_points, pos, neg = uncut[:6]
    offsets, column, vertex, edge_first = uncut[6:]
    lo, hi = cell_offsets[cell], cell_offsets[cell + 1]
    active = _find_active(lo, hi, cell_corners, pos, neg, words, rank)
    if active == 0:
        return hi - lo, 0, True
    for u in range(active):
        ends[u, START] = -1
        ends[u, END] = -1
    sound = True
    at = 0
    for i in range(lo, hi):
        v, e = cell_corners[i], cell_edges[i]
        beside = cell_corners[i + 1] if i + 1 < hi else cell_corners[lo]
        forward = edge_points[e, 0] == v
        # segments of an edge are numbered from its first end
        segment = 2 * edge_first[e] if forward else 2 * edge_first[e + 1] - 1
        ring[at, VERTEX], ring[at, SEGMENT], ring[at, BESIDE] = v, segment, beside
        for w in range(words.shape[0]):
            zero = words[w] & ~(pos[v, w] | neg[v, w])
            while zero != uint64(0):
                sound &= not _meets(64 * w + _lowest(zero), at, words, rank, ends)
                zero &= zero - uint64(1)
        at += 1
        previous = -1
        first, last = offsets[e], offsets[e + 1]
        for q in range(last - first):
            x = first + q if forward else last - 1 - q
            if vertex[x] != previous:
                previous = vertex[x]
                segment += 2 if forward else -2
                ring[at, VERTEX], ring[at, SEGMENT], ring[at, BESIDE] = previous, segment, beside
                at += 1
            sound &= not _meets(column[x], at - 1, words, rank, ends)
    for u in range(active):
        sound &= ends[u, END] >= 0
    return at, active, sound


@inlined
def _interleave(i, j, k, m):
    """Tell whether the chords (i, j) and (k, m), each ascending, cross strictly inside."""
    return (i < k and k < j and j < m) or (k < i and i < m and m < j)


@inner
def _merge_chords(active, ends, columns):
    """Merge columns with the same two ends into one chord; returns the number of chords.

    Rewrites ``ends`` (one row a chord) and sets the chord of each column.
    """
    n = 0
    for u in range(active):
        found = -1
        for c in range(n):
            if ends[c, START] == ends[u, START] and ends[c, END] == ends[u, END]:
                found = c
                break
        if found < 0:
            found = n
            ends[n, START], ends[n, END] = ends[u, START], ends[u, END]
            n += 1
        columns[u, CHORD] = found
    return n


@inner
def _boundary_of(most, n_words):
    """Make room for the boundary of a cell with at most so many boundary points."""
    return Boundary(
        np.empty(n_words, np.uint64), np.empty(n_words, np.int64), np.empty((most, 3), np.int64)
    )


@kernel
def count_cell_pieces(uncut, longest, start, stop, count):
    """Bound what the arrangement of chords in each cell creates: ``count``, all of its columns.

    All are exact unless three chords meet in one interior point. ``longest`` bounds the number of
    boundary points of any cell of the range.
    """
    n_words = uncut.pos.shape[1]
    boundary = _boundary_of(longest, n_words)
    ends = np.empty((64 * n_words, 2), np.int64)
    columns = np.empty((64 * n_words, 5), np.int64)
    for cell in range(start, stop):
        size, active, sound = _walk_boundary(cell, uncut, boundary, ends)
        chords = 0
        crossings = 0
        if sound:
            chords = _merge_chords(active, ends, columns)
            for a in range(chords):
                for b in range(a):
                    crossings += _interleave(ends[a, 0], ends[a, 1], ends[b, 0], ends[b, 1])
        count[cell, FACES] = 1 + chords + crossings
        count[cell, VERTICES] = crossings
        count[cell, EDGES] = chords + 2 * crossings
        count[cell, CORNERS] = size + 2 * (chords + 2 * crossings)
        count[cell, COLUMNS] = active
        count[cell, STATE] = CUT if sound else WHOLE


# --- sides of chords ---------------------------------------------------------------------------


@inlined
def _length(x, y):
    """Length of a vector whose entries are no larger than 1 or so; at least that in any case."""
    return np.sqrt(x * x + y * y) + 1e-150  # what squares below the smallest number lose


@inner
def _settle(a, b, chord, doubts):
    """Look the side of a vertex up that float64 leaves open: 0 or `OPEN` where it is not known."""
    known, ask, lenient = doubts
    for row in range(known.shape[0]):
        if known[row, A] == a and known[row, B] == b and known[row, C] == chord:
            return known[row, 3]
    if lenient:
        ask[TAKEN] += 1
        return 0
    ask[A], ask[B], ask[C] = a, b, chord
    return OPEN


@inner
def _side(v, chord, size, chords, doubts):
    """Side of local vertex ``v`` of the directed chord: -1 right, 0 on it, +1 left, or `OPEN`.

    Combinatorial wherever it can be: a boundary vertex lies on the right exactly when it comes
    between the chord's ends on the anticlockwise boundary, and an interior vertex lies on the side
    of any chord through it that does not cross this one. What remains is decided by one
    orientation test with a bound on its error, and what that leaves open by `_settle`.
    """
    ends, made, xy = chords
    i, j = ends[chord, START], ends[chord, END]
    if v < size:
        if v in (i, j):
            return 0
        return -1 if i < v and v < j else 1
    a, b = made[v - size, 0], made[v - size, 1]
    if chord in (a, b):
        return 0
    for c in (a, b):
        k, m = ends[c, START], ends[c, END]
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


@inner
def _intersect(a, b, v, chords):
    """Place local vertex ``v`` where chords ``a`` and ``b`` cross, with a bound on its error.

    The point lies within some distance of either chord. The sum of both over the sine of the least
    angle that the chords may have bounds its distance from where they really meet.
    """
    ends, _, xy = chords
    p, q = ends[a, START], ends[a, END]
    r, s = ends[b, START], ends[b, END]
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


@inner
def _enter(h, chord, size, n_half, chords, half, doubts):
    """Rotate about the start of a half-edge to the face that a chord through it enters.

    Returns the half-edge that starts there and belongs to that face, -WHOLE or -IN_DOUBT.
    """
    for _ in range(n_half + 1):
        following = _side(half[half[h, AFTER], ORG], chord, size, chords, doubts)
        previous = _side(half[half[h, BEFORE], ORG], chord, size, chords, doubts)
        if following == OPEN or previous == OPEN:
            return -IN_DOUBT
        if following < 0 and previous > 0:
            return h
        h = half[half[h, BEFORE], TWIN]
        if h < 0:
            break
    return -WHOLE


@inner
def _leave(h, chord, size, chords, half, doubts):
    """Find where a chord leaves the face that it enters at the start of a half-edge.

    Returns the first half-edge that does not start on the chord's right, -WHOLE or -IN_DOUBT, and
    the side on which it starts: 0 if the chord leaves there, 1 if through the edge before.
    """
    g = half[h, AFTER]
    side = -1
    while side < 0:
        g = half[g, AFTER]
        if g == h:
            return -WHOLE, side
        side = _side(half[g, ORG], chord, size, chords, doubts)
    return (-IN_DOUBT if side == OPEN else g), side


@inner
def _split_edge(e, chord, z, e2, size, chords, half):
    """Put a vertex z where a chord crosses the edge of half-edge e, and make e2 and t2 = e2 + 1.

    before  x ------ e ------> y    after  x -- e --> z -- e2 -> y
            x <----- t ------- y           x <- t2 -- z <- t --- y
    """
    t, t2 = half[e, TWIN], e2 + 1
    chords.made[z - size, 0], chords.made[z - size, 1] = chord, half[e, LABEL]
    _intersect(chord, half[e, LABEL], z, chords)
    half[e2, ORG], half[t2, ORG] = z, z
    half[e2, LABEL], half[t2, LABEL] = half[e, LABEL], half[e, LABEL]
    half[e, TWIN], half[t2, TWIN], half[e2, TWIN], half[t, TWIN] = t2, e, t, e2
    for old, new in ((e, e2), (t, t2)):
        half[new, AFTER], half[new, BEFORE] = half[old, AFTER], old
        half[half[old, AFTER], BEFORE], half[old, AFTER] = new, new


@inner
def _split_face(h, g, chord, c1, half):
    """Cut a face from the start w of half-edge h to the start z of g; make c1 and c2 = c1 + 1.

    y --- . --- .             y --- . --- .
    |  left     |             |           |    ``AFTER`` c1 continues at z -> y,
    z           w             z <-- c1 -- w    ``AFTER`` c2 at w -> (right vertices)
    |  right    |             z --- c2 -> w
    x --- . --- .             x --- . --- .
    """
    c2 = c1 + 1
    half[c1, ORG], half[c2, ORG] = half[h, ORG], half[g, ORG]
    half[c1, LABEL], half[c2, LABEL] = chord, chord
    half[c1, TWIN], half[c2, TWIN] = c2, c1
    tail_h, tail_g = half[h, BEFORE], half[g, BEFORE]
    half[c1, AFTER], half[g, BEFORE] = g, c1
    half[c1, BEFORE], half[tail_h, AFTER] = tail_h, c1
    half[c2, AFTER], half[h, BEFORE] = h, c2
    half[c2, BEFORE], half[tail_g, AFTER] = tail_g, c2


@inner
def _insert_chord(chord, size, n_half, n_local, chords, half, doubts):
    """Cut the faces that a chord runs through, from one end to the other.

    In each face the chord enters at a vertex, with the face's next vertex on its right and the
    previous one on its left, and leaves through a vertex or an edge. Returns the state and the new
    numbers of half-edges and of local vertices.
    """
    # boundary half-edge p always starts at local vertex p
    h = _enter(chords.ends[chord, START], chord, size, n_half, chords, half, doubts)
    while h >= 0:
        g, side = _leave(h, chord, size, chords, half, doubts)
        if g < 0:
            return -g, n_half, n_local
        if side > 0:
            e = half[g, BEFORE]
            if half[e, TWIN] < 0:
                return WHOLE, n_half, n_local
            _split_edge(e, chord, n_local, n_half, size, chords, half)
            g = n_half
            n_local += 1
            n_half += 2
        z = half[g, ORG]
        _split_face(h, g, chord, n_half, half)
        n_half += 2
        if z == chords.ends[chord, END]:
            return CUT, n_half, n_local
        if side > 0:
            h = g + 1  # starts at z too, in the face behind the edge
        elif z < size:
            return WHOLE, n_half, n_local
        else:
            h = _enter(n_half - 1, chord, size, n_half, chords, half, doubts)
    return -h, n_half, n_local


# --- cutting a cell ----------------------------------------------------------------------------


@inner
def _any_positive(cell, uncut, bits, face):
    """Set the bits of the columns that are positive at any of a cell's corners."""
    for w in range(bits.shape[1]):
        word = uint64(0)
        for i in range(uncut.cell_offsets[cell], uncut.cell_offsets[cell + 1]):
            word |= uncut.pos[uncut.cell_corners[i], w]
        bits[face, w] = word


@inner
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


@inner
def _halve(i, j, size, column, ring, base, out):
    """Cut a cell from boundary point i to j > i: face on the chord's right, then on its left.

    j --- . --- .
    |  face + 1  |      the boundary runs anticlockwise, so i+1, ..., j-1 lie on the right of
    j <-- edge -- i     the chord from i to j
    |    face    |
    . --- . --- .
    """
    face, edge, corner = base[FACES], base[EDGES], base[CORNERS]
    out.edge_points[edge, 0], out.edge_points[edge, 1] = ring[i, VERTEX], ring[j, VERTEX]
    out.edge_cells[edge, 0], out.edge_cells[edge, 1] = face + 1, face
    out.edge_column[edge] = column
    for side in range(2):
        first, last = (i, j) if side == 0 else (j, i + size)
        for q in range(first, last):
            p = q if q < size else q - size
            segment = ring[p, SEGMENT]
            out.corners[corner], out.edges[corner] = ring[p, VERTEX], segment >> 1
            out.edge_cells[segment >> 1, segment & 1] = face + side
            corner += 1
        out.corners[corner], out.edges[corner] = ring[j if side == 0 else i, VERTEX], edge
        out.sizes[face + side] = last - first + 1
        corner += 1


@inner
def _list_columns(uncut, boundary, ends, columns):
    """List the active columns and their sides; tell whether all have one right of their chord."""
    n = 0
    for w in range(boundary.words.shape[0]):
        word = boundary.words[w]
        while word != uint64(0):
            k = 64 * w + _lowest(word)
            word &= word - uint64(1)
            # the corner behind the chord's first end lies on the chord's right
            corner = boundary.ring[ends[n, START], BESIDE]
            columns[n, NUMBER] = k
            columns[n, ON_RIGHT] = _bit(uncut.pos, corner, k)
            if not columns[n, ON_RIGHT] and not _bit(uncut.neg, corner, k):
                return False
            n += 1
    return True


@inner
def _open_cell(size, scale, ring, out, xy, half):
    """Make the half-edges of an uncut cell, and the coordinates of its boundary points."""
    for p in range(size):
        half[p, ORG], half[p, TWIN], half[p, LABEL] = p, -1, -1
        half[p, AFTER] = p + 1 if p + 1 < size else 0
        half[p, BEFORE] = p - 1 if p > 0 else size - 1
        v = ring[p, VERTEX]
        xy[p, 0], xy[p, 1] = scale * out.points[v, 0], scale * out.points[v, 1]
        xy[p, 2] = scale * out.error[v]


@inner
def _insert_chords(active, size, chords, columns, half, doubts):
    """Merge the active columns into chords and insert all of these.

    Returns the state and the numbers of half-edges and of local vertices.
    """
    n_half, n_local = size, size
    n = _merge_chords(active, chords.ends, columns)
    for c in range(n):
        columns[c, FIRST] = -1
    for u in range(active - 1, -1, -1):
        c = columns[u, CHORD]
        columns[u, NEXT] = columns[c, FIRST]
        columns[c, FIRST] = u
    for c in range(n):
        state, n_half, n_local = _insert_chord(c, size, n_half, n_local, chords, half, doubts)
        if state != CUT:
            return state, n_half, n_local
    return CUT, n_half, n_local


@inner
def _flip_first(active, size, chords, columns, half, doubts, bits, face):
    """Flip the bits of columns on whose negative side the first face lies; returns the state."""
    for u in range(active):
        h = 0  # a half-edge of the first face
        side = 0
        while side == 0 or side == OPEN:
            h = half[h, AFTER]
            side = _side(half[h, ORG], columns[u, CHORD], size, chords, doubts)
            if h == 0 and (side == 0 or side == OPEN):
                return IN_DOUBT
        if (side < 0) != columns[u, ON_RIGHT]:
            _flip(bits, face, columns[u, NUMBER])
    return CUT


@inner
def _complete_question(ask, ring, ends, columns):
    """Extend the chords in ``ask`` by what they stand for."""
    first = columns[ask[C], FIRST]
    ask[FROM], ask[TO] = ring[ends[ask[A], START], VERTEX], ring[ends[ask[A], END], VERTEX]
    ask[ACROSS], ask[COLUMN] = columns[columns[ask[B], FIRST], NUMBER], columns[first, NUMBER]
    ask[RIGHT] = columns[first, ON_RIGHT]
    ask[ALONG] = columns[columns[ask[A], FIRST], NUMBER]


@inner
def _name_faces(size, n_half, base, ring, columns, half, faces, out):
    """Write the faces and edges of a cell; returns the numbers of faces, edges and corners.

    Faces are the rings of ``AFTER``, in the order of their first half-edges.
    """
    inner = base[VERTICES] - size
    for h in range(n_half):
        half[h, FACE] = -1
        half[h, EDGE] = -1
    n_faces = 0
    edge, corner = base[EDGES], base[CORNERS]
    for first in range(n_half):
        if half[first, FACE] >= 0:
            continue
        face = base[FACES] + n_faces
        faces[n_faces, HALF] = first
        first_corner = corner
        h = first
        while True:
            half[h, FACE] = n_faces
            v, t = half[h, ORG], half[h, TWIN]
            out.corners[corner] = ring[v, VERTEX] if v < size else inner + v
            if t < 0:
                half[h, EDGE] = ring[h, SEGMENT] >> 1
                out.edge_cells[half[h, EDGE], ring[h, SEGMENT] & 1] = face
            elif half[h, EDGE] < 0:
                half[h, EDGE], half[t, EDGE] = edge, edge
                v2 = half[t, ORG]
                out.edge_points[edge, 0] = out.corners[corner]
                out.edge_points[edge, 1] = ring[v2, VERTEX] if v2 < size else inner + v2
                out.edge_cells[edge, 0] = face
                # an edge is labelled by the first column of its chord
                out.edge_column[edge] = columns[columns[half[h, LABEL], FIRST], NUMBER]
                edge += 1
            else:
                out.edge_cells[half[h, EDGE], 1] = face
            out.edges[corner] = half[h, EDGE]
            corner += 1
            h = half[h, AFTER]
            if h == first:
                break
        out.sizes[face] = corner - first_corner
        n_faces += 1
    return n_faces, edge - base[EDGES], corner - base[CORNERS]


@inner
def _write_inner(size, n_local, scale, vertex, origin, ring, chords, columns, out):
    """Write the vertices inside a cell, from number ``vertex`` and from row ``origin`` on."""
    ends, made, xy = chords
    for i in range(n_local - size):
        v = size + i
        out.points[vertex + i, 0], out.points[vertex + i, 1] = xy[v, 0] / scale, xy[v, 1] / scale
        out.error[vertex + i] = xy[v, 2] / scale
        out.origin[origin + i, 0] = ring[ends[made[i, 0], START], VERTEX]
        out.origin[origin + i, 1] = ring[ends[made[i, 0], END], VERTEX]
        out.origin[origin + i, 2] = columns[columns[made[i, 1], FIRST], NUMBER]


@inner
def _spread_bits(n_faces, columns, half, faces, bits, face0):
    """Write the bits of all faces of a cell from those of the first, by flipping across edges."""
    for f in range(n_faces):
        faces[f, SEEN] = f == 0
    faces[0, WAITING] = 0
    n = 1
    while n > 0:
        n -= 1
        f = faces[n, WAITING]
        h = faces[f, HALF]
        while True:
            t = half[h, TWIN]
            if t >= 0 and not faces[half[t, FACE], SEEN]:
                f2 = half[t, FACE]
                faces[f2, SEEN] = True
                faces[n, WAITING] = f2
                n += 1
                for w in range(bits.shape[1]):
                    bits[face0 + f2, w] = bits[face0 + f, w]
                u = columns[half[h, LABEL], FIRST]
                while u >= 0:
                    _flip(bits, face0 + f2, columns[u, NUMBER])
                    u = columns[u, NEXT]
            h = half[h, AFTER]
            if h == faces[f, HALF]:
                break


@kernel
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
    most = np.ones(STATE, np.int64)
    for cell in range(start, stop):
        for k in range(STATE):
            most[k] = max(most[k], count[cell, k])
    boundary = _boundary_of(longest, uncut.pos.shape[1])
    ring = boundary.ring
    ends, columns = np.empty((most[COLUMNS], 2), np.int64), np.empty((most[COLUMNS], 5), np.int64)
    xy = np.empty((longest + most[VERTICES], 3))
    chords = Chords(ends, np.empty((most[VERTICES], 2), np.int64), xy)
    half, faces = np.empty((most[CORNERS], 7), np.int64), np.empty((most[FACES], 3), np.int64)

    bits = out.patterns[:, out.patterns.shape[1] - uncut.pos.shape[1] :]
    surprises = 0
    for cell in range(start, stop):
        base = bases[cell]
        face = base[FACES]
        _any_positive(cell, uncut, bits, face)
        if count[cell, COLUMNS] == 0:
            _copy(cell, uncut, base, out)
            continue
        size, active, sound = _walk_boundary(cell, uncut, boundary, ends)
        sound = sound and _list_columns(uncut, boundary, ends, columns)
        if sound and active == 1:  # the common case, without half-edges
            k = columns[0, NUMBER]
            _halve(ends[0, START], ends[0, END], size, k, ring, base, out)
            for w in range(bits.shape[1]):
                bits[face + 1, w] = bits[face, w]
            _flip(bits, face + 1 if columns[0, ON_RIGHT] else face, k)
            continue
        _open_cell(size, scale, ring, out, xy, half)
        state, n_half, n_local = WHOLE, size, size
        if sound:
            state, n_half, n_local = _insert_chords(active, size, chords, columns, half, doubts)
        if state == CUT:
            state = _flip_first(active, size, chords, columns, half, doubts, bits, face)
        count[cell, STATE] = state
        if state == IN_DOUBT:
            _complete_question(doubts.ask, ring, ends, columns)
            continue
        if state == WHOLE:  # the status will say so
            n_half, n_local = size, size
            _open_cell(size, scale, ring, out, xy, half)
        made = _name_faces(size, n_half, base, ring, columns, half, faces, out)
        origin = base[VERTICES] - bases[0, VERTICES]
        _write_inner(size, n_local, scale, base[VERTICES], origin, ring, chords, columns, out)
        _spread_bits(made[0], columns, half, faces, bits, face)
        as_counted = count[cell, EDGES] == made[1] and count[cell, CORNERS] == made[2]
        if count[cell, FACES] != made[0] or not as_counted or state == WHOLE:
            surprises += 1
            count[cell, FACES], count[cell, EDGES], count[cell, CORNERS] = made
            count[cell, VERTICES] = n_local - size
    return surprises
