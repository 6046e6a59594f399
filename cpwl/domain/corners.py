"""Convex polytopes by corners and sides, in rational arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain, pairwise

import numpy as np
from flint import fmpz, fmpz_mat

from cpwl.arrays import Floats, Ragged, prefix
from cpwl.domain.double_description import Row, extreme_rays, independent, whole

Point = tuple[Fraction, ...]
Points = tuple[Point, ...]
Sides = tuple[tuple[int, ...], ...]


def exact(points: Floats) -> Points:
    """Return float64 points as the rational points that they are."""
    return tuple(tuple(Fraction(x) for x in point) for point in points.tolist())


def rounded(points: Points) -> Floats:
    """Return the nearest float64 points, read-only."""
    try:
        out = np.array([[float(x) for x in point] for point in points])
    except OverflowError:
        raise ValueError(
            "Expected corners within the range of float64, got one beyond 1.8e308. "
            "Scale the coordinates of the slice."
        ) from None
    out.setflags(write=False)
    return out


def cut(normals: Floats, limits: Floats) -> tuple[Points, Sides]:
    """Return the corners, ascending, and the sides of {s : normals s <= limits}, or raise.

    Parameters
    ----------
    normals, limits : (m, P) and (m,) float64
        Taken as the rational numbers that they are. Sides come in the order of their first rows.

    Raises
    ------
    ValueError
        An empty set, one without bound, or one of a lower dimension, as rational arithmetic says.
    """
    dim = normals.shape[1]
    # a point s is the ray (1, s) of the cone of all x with row . x >= 0 and x[0] >= 0
    rows = [whole(map(Fraction, row)) for row in np.column_stack([limits, -normals]).tolist()]
    if any(row[0] < 0 and not any(row[1:]) for row in rows):
        raise _empty()
    rows = list(dict.fromkeys(row for row in rows if any(row[1:])))
    # rows of rank below P leave whole lines free; half of each, s[j] >= 0 for the axes j that
    # depend on the others, has no end either
    bound = independent([tuple(row[j] for row in rows) for j in range(1, dim + 1)])
    free = [_unit(j + 1, dim) for j in range(dim) if j not in bound]
    rays, tight = extreme_rays([_unit(0, dim), *rows, *free])
    finite = [k for k, ray in enumerate(rays) if ray[0] > 0]
    if not finite:
        raise _empty()
    for ray in rays:
        if ray[0] == 0:
            scale = max(map(abs, ray))
            along = ", ".join(f"{x / scale:.3g}" for x in ray[1:])
            raise ValueError(
                "Expected half-spaces whose intersection is bounded, got one that has no end along "
                f"({along}). Add the half-spaces of a box around it."
            )
    _require_interior(rays)
    corners = {k: tuple(Fraction(x, rays[k][0]) for x in rays[k][1:]) for k in finite}
    order = sorted(finite, key=corners.__getitem__)
    sides = largest(map(_mask, tight[order].T[1:]))
    return tuple(corners[k] for k in order), tuple(_numbers(side) for side in sides)


def hull(points: Points) -> tuple[Points, Sides]:
    """Return the corners, in the order given, and the sides of the convex hull of points, or raise.

    Raises
    ------
    ValueError
        Points that lie in one hyperplane, as rational arithmetic says.
    """
    distinct = list(dict.fromkeys(points))
    rows = [whole((Fraction(1), *point)) for point in distinct]
    _require_interior(rows)
    # the sides are the extreme rays of the cone of all functions x[0] + x[1:] . s >= 0 on the
    # points; a point that is no corner is on fewer of them than the corners of its face
    _, tight = extreme_rays(rows)
    on = [_mask(column) for column in tight.T]
    extreme = set(largest(on))
    corners = [i for i, sides in enumerate(on) if sides in extreme]
    sides = sorted(_numbers(_mask(row)) for row in tight[:, corners])
    return tuple(distinct[i] for i in corners), tuple(sides)


def face_lattice(sides: Sides, num_corners: int, dim: int) -> tuple[Ragged, ...]:
    """Return all faces of a polytope, each by the numbers of its own facets.

    Parameters
    ----------
    sides : tuple of tuples
        The corners on every side, as in `Domain.sides`.
    num_corners : int
        The number M of corners.
    dim : int
        The dimension P of the polytope.

    Returns
    -------
    tuple of P Ragged
        Entry k - 1 lists the faces of dimension k = 1..P by their faces of dimension k - 1,
        ascending: edges by two corners, ..., the one face of dimension P by its sides. Corners and
        sides keep their numbers.

    Notes
    -----
    A face is the set of its corners, and the facets of a face are the largest of its intersections
    with the sides that do not hold all of it. Only sets of corners are compared, so a corner on
    more than P sides is an ordinary one. Cost: faces times sides.
    """
    masks = [sum(1 << corner for corner in side) for side in sides]
    levels = [Ragged(prefix(np.array([len(sides)])), np.arange(len(sides), dtype=np.int32))]
    faces = masks
    for k in range(dim - 1, 0, -1):
        # corners are the faces of dimension 0, and have their numbers already
        number = {1 << corner: corner for corner in range(num_corners)} if k == 1 else {}
        boundary = [
            sorted(
                number.setdefault(facet, len(number))
                for facet in largest(face & mask for mask in masks if face & mask != face)
            )
            for face in faces
        ]
        levels.append(_ragged(boundary))
        faces = list(number)
    return tuple(reversed(levels))


def volume(corners: Points, sides: Sides) -> float:
    """Return the P-dimensional volume, correctly rounded; inf beyond the range of float64.

    The sum over the simplices of a pulling triangulation, each a determinant of whole numbers over
    the product of its corners' denominators. The common denominator of them all may have 1e5
    digits; so the terms are cut off after 128 binary places, unless that makes a difference.
    """
    rows = [whole((Fraction(1), *point)) for point in corners]
    table = [[fmpz(x) for x in row] for row in rows]
    dim = len(corners[0])
    terms = []
    for simplex in _simplices(face_lattice(sides, len(corners), dim)):
        size = abs(int(fmpz_mat([table[i] for i in simplex]).det()))
        terms.append((size, math.factorial(dim) * math.prod(rows[i][0] for i in simplex)))
    magnitude = max(size.bit_length() - scale.bit_length() for size, scale in terms)
    places = 128 - magnitude
    parts = [divmod(size << max(places, 0), scale << max(-places, 0)) for size, scale in terms]
    low = sum(part for part, _ in parts)
    high = low + sum(rest > 0 for _, rest in parts)
    ends = [_nearest(Fraction(end) / Fraction(2) ** places) for end in (low, high)]
    if ends[0] == ends[1]:
        return ends[0]
    return _nearest(sum((Fraction(*term) for term in terms), Fraction(0)))


def _nearest(x: Fraction) -> float:
    """Return the nearest float64, inf beyond its range."""
    try:
        return float(x)
    except OverflowError:
        return math.inf


def largest(sets: Iterable[int]) -> list[int]:
    """Return those of some sets, as bits of whole numbers, that no other one contains."""
    distinct = list(dict.fromkeys(sets))
    return [a for a in distinct if not any(a & b == a and a != b for b in distinct)]


def _mask(members: Iterable[bool]) -> int:
    """Return a row of flags as the bits of a whole number."""
    return sum(1 << i for i, member in enumerate(members) if member)


def _numbers(mask: int) -> tuple[int, ...]:
    """Return the bits that are set, ascending."""
    return tuple(i for i in range(mask.bit_length()) if mask >> i & 1)


def _unit(j: int, dim: int) -> Row:
    """Return the row of 1 + dim entries that is 1 at j."""
    return tuple(int(i == j) for i in range(1 + dim))


def _require_interior(points: list[Row]) -> None:
    """Refuse points, in homogeneous coordinates, that lie in one hyperplane."""
    dim, spanned = len(points[0]) - 1, len(independent(points)) - 1
    if spanned < dim:
        raise ValueError(
            f"Expected a domain of dimension {dim}, got one whose corners span only {spanned}. "
            "Take a slice with as many axes as the domain has dimensions."
        )


def _empty() -> ValueError:
    """Build the error for half-spaces without a common point."""
    return ValueError(
        "Expected half-spaces with a common point, got an empty intersection. "
        "Check the signs: a row of A and its entry of b stand for A s <= b."
    )


def _ragged(lists: list[list[int]]) -> Ragged:
    """Return lists of numbers as one array and offsets."""
    offsets = prefix(np.array([len(numbers) for numbers in lists]))
    return Ragged(offsets, np.fromiter(chain.from_iterable(lists), np.int32, offsets[-1]))


def _simplices(lattice: tuple[Ragged, ...]) -> Iterator[tuple[int, ...]]:
    """Yield the corners of simplices that fill the polytope.

    Those of a face are its least corner over those of its facets that the corner is not on.
    """
    faces = [
        [items[a:b].tolist() for a, b in pairwise(offsets.tolist())] for offsets, items in lattice
    ]
    least = [list(range(1 + int(lattice[0].items.max())))]
    for level in faces:
        least.append([min(least[-1][facet] for facet in face) for face in level])

    def fill(k: int, face: int) -> Iterator[tuple[int, ...]]:
        apex = least[k][face]
        if k == 0:
            yield (apex,)
            return
        for facet in faces[k - 1][face]:
            if least[k - 1][facet] != apex:  # a facet that the apex is on has it as its least
                for simplex in fill(k - 1, facet):
                    yield apex, *simplex

    return fill(len(faces), 0)
