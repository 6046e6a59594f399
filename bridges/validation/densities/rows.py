"""Rows of the densities' agreement: what is claimed, number by number, and within which limits."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from bridges.validation.densities.result import Balls, Densities, Moments, Nearest, Samples
from bridges.validation.findings import Row
from cpwl.arrays import Floats
from cpwl.density import Entropy

_SECTION = "density"
# Standard errors that a limit leaves room for: one agreement in 16,000 is missed.
_SIGMAS = 4.0
# Probability of what is taken for disagreement.
_RARE = 1e-4
# Of sums of logarithms and of exponentials, where nothing is random (a linear generator).
_ROUNDING = 1e-9


def rows_of(result: Densities) -> tuple[Row, ...]:
    """Return the rows of a result that has none yet."""
    if result.balls is None or result.moments is None or result.samples is None:
        note = "every cell is squeezed to fewer dimensions: the output has no density to compare"
        return (Row(_SECTION, "squeezed cells", "all", "probability", 1.0, note=note),)
    return (
        *_density(result.balls),
        *_moments(result.moments, result.entropy),
        _nearest(result.entropy, result.nearest, result.neighbours, result.corners.shape[1]),
        *_samples(result.samples),
    )


def _density(balls: Balls) -> list[Row]:
    """Return the rows of the counts in balls."""
    case = f"{len(balls.cells)} balls, {balls.samples:,} samples"
    if not len(balls.cells):
        note = "no cell is large enough for a ball in which 25 samples are expected"
        return [Row(_SECTION, "density", case, "chi-square p-value", math.nan, note=note)]
    expected, counted = balls.expected, balls.counted
    share = float(expected.sum()) / balls.samples
    rest = (counted.sum() - expected.sum()) ** 2 / (balls.samples * (1 - share))
    square = float(((counted - expected) ** 2 / expected).sum() + rest)
    error = math.sqrt((1 - share) / (balls.samples * share))
    tails = _tails(balls)
    worst = int(tails.argmin())
    sigmas = math.copysign(stats.norm.isf(tails[worst]), counted[worst] - expected[worst])
    place = ", ".join(f"{x:.4g}" for x in balls.centres[worst])
    change = counted[worst] / expected[worst] - 1
    found = (
        f"cell {balls.cells[worst]} at s = ({place}): {counted[worst]:,} counted, "
        f"{expected[worst]:,.0f} expected ({change:+.1%})"
    )
    spread = math.exp(float(np.ptp(balls.log_density)))
    held = f"the balls hold {share:.1%} of the samples; the limit is {_SIGMAS:g} standard errors"
    return [
        Row(
            _SECTION, "density", case, "chi-square p-value",
            float(stats.chi2.sf(square, len(expected))), low=_RARE,
            note=f"chi-square {square:.1f}, {len(expected)} degrees of freedom",
        ),
        _within(
            "density", case, "relative difference of all counts",
            float(counted.sum() / expected.sum() - 1), _SIGMAS * error, held,
        ),
        _within(
            "density", case, "worst deviation in sigmas", sigmas,
            float(stats.norm.isf(_RARE / 2 / len(expected))), found,
        ),
        Row(_SECTION, "density", case, "largest over smallest density compared", spread),
    ]  # fmt: skip


def _moments(found: Moments, entropy: Entropy) -> list[Row]:
    """Return the rows of the means of exp(psi) and psi, by autograd at random latents."""
    case = f"autograd at {found.latents:,} latents"
    limits = f"the limit is {_SIGMAS:g} standard errors"
    rows = [
        _within(
            "image volume", case, "relative difference", found.volume_change,
            _SIGMAS * found.volume_error, f"volume {found.volume:.6g}, once per preimage; {limits}",
        )
    ]  # fmt: skip
    p = entropy.squeezed
    if found.lost > 0 or p > 0:
        rows.append(
            _within(
                "squeezed cells", case, "difference of their probability", found.lost - p,
                _SIGMAS * math.sqrt(p * (1 - p) / found.latents),
                f"probability {p:.4g}: no density there, and the entropy without them is compared",
            )
        )  # fmt: skip
    if found.lost < 1:
        rows.append(
            _within(
                "entropy", case, "difference in nats", found.entropy_change,
                _SIGMAS * found.entropy_error, f"entropy {entropy.regular:.6f}; {limits}",
            )
        )  # fmt: skip
    return rows


def _nearest(entropy: Entropy, near: Nearest | None, neighbours: int, dim: int) -> Row:
    """Return the row of the entropy from nearest neighbours."""
    if near is None:
        note = f"left out for P = {dim}: its bias falls like N^(-1/{dim})"
        case = f"{neighbours} nearest neighbours"
        return Row(_SECTION, "entropy", case, "difference in nats", math.nan, note=note)
    case = f"{neighbours} nearest of {near.sizes[0]:,} outputs"
    value = float(near.entropy[0]) - entropy.regular
    limit = 2 * near.bias + _SIGMAS * near.error
    note = f"limit: twice its bias ({near.bias:.2g}) by the change with N and 4 standard errors"
    if not math.isfinite(limit):
        note = "too few outputs to tell its bias"
        return Row(_SECTION, "entropy", case, "difference in nats", value, note=note)
    if entropy.overlap.between_cells == "none":
        return _within("entropy", case, "difference in nats", value, limit, note)
    if entropy.overlap.between_cells == "some":
        why = "images of cells overlap"
    else:
        why = "whether images of cells overlap is not decided"
    note = f"{why}: the exact value is an upper bound; {note}"
    return Row(_SECTION, "entropy", case, "difference in nats", value, high=limit, note=note)


def _samples(samples: Samples) -> list[Row]:
    """Return the rows of the two-sample tests."""
    m = len(samples.accepted)
    rows = []
    for name, test in (("outputs", samples.outputs), ("slice coordinates", samples.coordinates)):
        case = f"{m:,} {name} against rejection"
        if test is None:
            note = f"only {m} of {samples.proposals:,} proposals were accepted"
            rows.append(Row(_SECTION, "uniform samples", case, "p-value", math.nan, note=note))
        else:
            note = f"energy distance {test.distance:.3g}, {len(test.null):,} permutations"
            rows.append(
                Row(_SECTION, "uniform samples", case, "p-value", test.p_value, low=1e-3, note=note)
            )
    if samples.control is not None:
        note = "uniform latents in the place of samples uniform on the image: what the test tells"
        case = f"{m:,} outputs of uniform latents"
        rows.append(
            Row(_SECTION, "uniform samples", case, "p-value", samples.control.p_value, note=note)
        )
    case = f"{samples.proposals:,} proposals"
    rows.append(Row(_SECTION, "uniform samples", case, "share accepted", samples.acceptance))
    return rows


def _tails(balls: Balls) -> Floats:
    """Return the probability of counts as far from what is expected, on the same side, (Q,)."""
    law = stats.binom(balls.samples, balls.expected / balls.samples)
    least = np.minimum(law.cdf(balls.counted), law.sf(balls.counted - 1))
    return np.maximum(least, 1e-300)  # a probability of 0 is that of no number of sigmas


def _within(quantity: str, case: str, statistic: str, value: float, limit: float, note: str) -> Row:
    """Return the row of a difference that may be off by a limit, and by rounding."""
    limit += _ROUNDING
    return Row(_SECTION, quantity, case, statistic, value, low=-limit, high=limit, note=note)
