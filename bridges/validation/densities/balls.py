"""Balls of the image, each inside the image of one cell, and the samples that fall into them."""

from __future__ import annotations

import numpy as np

import cpwl
from bridges.validation.densities.decoding import decode, stretches
from bridges.validation.densities.nearest import ball_volume
from bridges.validation.densities.result import Balls
from bridges.validation.subject import Latents, Subject
from cpwl.arrays import Floats, Ints
from cpwl.descriptors import Spectrum

# Of the way to the nearest border of the cell's image: rounding does not reach it.
_INSIDE = 0.98
# Fewer expected samples, and their number is not normally distributed.
_FEWEST = 25


def count_in_balls(subject: Subject, source: Spectrum, latents: Latents, most: int) -> Balls:
    """Count which of the latents the decoder brings into balls of the image.

    Parameters
    ----------
    subject : Subject
        With a partition.
    source : Spectrum
        `cpwl.spectrum(partition)`.
    latents : Latents
        Uniform on the domain.
    most : int
        At most so many balls.

    Notes
    -----
    A ball is centred at the decoded centroid of a cell and reaches almost to the image of the
    cell's nearest facet, so that its trace on the cell's image is a whole P-dimensional ball. Only
    latents of the same cell are counted: other sheets of the image may come near. The radius comes
    from autograd's Jacobian, and only the expected number from the exact density.

    Of the cells of largest volume, those in whose ball at least 25 samples are expected are
    candidates, and of as many classes of equal density as there may be balls the fullest one each.
    """
    partition = subject.partition
    assert partition is not None
    regular = np.flatnonzero(source.rank == partition.dim)
    share = cpwl.volumes(partition) / partition.domain.volume
    # a ball holds no more than its cell
    cells = regular[len(latents.s) * share[regular] >= _FEWEST]
    cells = cells[np.argsort(-share[cells], kind="stable")[: 4 * most]]
    centres = cpwl.centroids(partition)[cells]
    triangles = stretches(subject, centres).triangles
    radii = _INSIDE * np.array(
        [_depth(partition, *one) for one in zip(cells, centres, triangles, strict=True)]
    )
    log_density = cpwl.log_density(partition, source=source)[cells]
    volume = ball_volume(partition.dim) * radii**partition.dim
    expected = len(latents.s) * np.exp(log_density) * volume
    chosen = np.flatnonzero(expected >= _FEWEST)
    chosen = chosen[np.argsort(log_density[chosen], kind="stable")]
    if len(chosen) > most:
        ranks = np.array_split(chosen, most)
        chosen = np.array([some[expected[some].argmax()] for some in ranks])
    counted = _counts(subject, latents, cells[chosen], centres[chosen], radii[chosen])
    return Balls(
        cells=cells[chosen],
        centres=centres[chosen],
        radii=radii[chosen],
        log_density=log_density[chosen],
        expected=expected[chosen],
        counted=counted,
        samples=len(latents.s),
    )


def _counts(
    subject: Subject, latents: Latents, cells: Ints, centres: Floats, radii: Floats
) -> Ints:
    """Return how many latents of each cell are decoded within the radius of its centre's image."""
    assert subject.partition is not None
    number = np.full(subject.partition.num_cells, -1)
    number[cells] = np.arange(len(cells))
    mine = np.flatnonzero(latents.cells >= 0)
    mine = mine[number[latents.cells[mine]] >= 0]
    ball = number[latents.cells[mine]]
    middle = decode(subject, centres)
    counted = np.zeros(len(cells), np.int64)
    rows = max(1, 2**24 // subject.outputs)
    for start in range(0, len(mine), rows):
        part = slice(start, start + rows)
        away = decode(subject, latents.s[mine[part]]) - middle[ball[part]]
        inside = np.einsum("nd,nd->n", away, away) < radii[ball[part]] ** 2
        counted += np.bincount(ball[part][inside], minlength=len(cells))
    return counted


def _depth(partition: cpwl.Partition, cell: int, centre: Floats, triangle: Floats) -> float:
    """Return the distance in the image from a point of a cell to its nearest facet's plane.

    For a facet in {n . s = c} it is the least |A t| with n . t = c - n . s: |c - n . s| divided by
    |pinv(A)^T n| = |R^-T n|, A = Q R.
    """
    if not np.diagonal(triangle).all():  # the decoder has no image of full dimension here
        return 0.0
    offsets, items = partition.cell_facet_offsets, partition.cell_facets
    least = np.inf
    for facet in items[offsets[cell] : offsets[cell + 1]]:
        start, stop = partition.facet_offsets[facet : facet + 2]
        corners = partition.points[partition.facet_corners[start:stop]]
        middle = corners.mean(axis=0)
        normal = np.linalg.svd(corners - middle)[2][-1]  # of a point, P = 1: any direction
        across = np.linalg.norm(np.linalg.solve(triangle.T, normal))
        least = min(least, abs(normal @ (middle - centre)) / across)
    return float(least)
