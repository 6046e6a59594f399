"""How well a classifier tells the bins, on codes that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest

from approx.diffusion.reward.classifier import ClassifierReward
from approx.diffusion.reward.noising import Collected

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_SHARES = 10  # of confidence
_BATCH = 1024


@dataclass(frozen=True, eq=False)
class Report:
    """Accuracy by level and calibration, on the held-out codes.

    Attributes
    ----------
    times : (T,) float64
        From the noisiest on.
    counts : (T,) int64
        Samples, one for each code that is held out.
    accuracy, low, high : (T,) float64
        Share of right bins, and its 95 % interval (Wilson).
    baseline : (T,) float64
        Share of right bins if the most common bin of the training codes is always answered.
    confidence, right : (10,) float64
        By confidence from 0 to 1: mean of the largest probability, and share of right bins; NaN
        where there are none.
    weights : (10,) int64
        Number of samples behind each of these.
    calibration_error : float
        Mean of |confidence - right| over the samples (ECE).
    confusion : (bins, bins) int64
        Samples by true bin (rows) and most probable bin.
    edges : tuple of float
        Of the bins.
    """

    times: Floats
    counts: Integers
    accuracy: Floats
    low: Floats
    high: Floats
    baseline: Floats
    confidence: Floats
    right: Floats
    weights: Integers
    calibration_error: float
    confusion: Integers
    edges: tuple[float, ...]

    def __str__(self) -> str:
        lines = ["    time  codes  accuracy   95 % interval  majority"]
        columns = (self.times, self.counts, self.accuracy, self.low, self.high, self.baseline)
        for time, count, accuracy, low, high, baseline in zip(*columns, strict=True):
            lines.append(
                f"{time:8g} {count:6,} {accuracy:9.3f}  {low:.3f} to {high:.3f} {baseline:9.3f}"
            )
        lines.append(f"expected calibration error {self.calibration_error:.3f}")
        lines.append("confusion, a row for each true bin:")
        lines += [" ".join(f"{n:6,}" for n in row) for row in self.confusion]
        return "\n".join(lines)


def report(reward: ClassifierReward, collected: Collected) -> Report:
    """Report on a classifier, on the codes that `collect` held out.

    Parameters
    ----------
    reward : ClassifierReward
        Fitted to `collected`.
    collected : Collected
        The same: another choice of held-out codes would hold some that were fitted.

    Returns
    -------
    Report
        As text by `str`. Intervals of different times are of the same codes, and not independent.

    Raises
    ------
    ValueError
        Bins other than the classifier's.
    """
    if reward.edges != collected.edges:
        raise ValueError(
            f"Expected the bins that the classifier was fitted to, got edges {collected.edges} and "
            f"{reward.edges}: report on what was given to fit."
        )
    bins, levels = len(collected.edges) - 1, len(collected.levels)
    fitted = collected.bin[~collected.held_out]
    common = int(torch.bincount(fitted, minlength=bins).argmax())
    true, best, sure, level = [], [], [], []
    for number, where in enumerate(collected.levels):
        at = torch.nonzero(collected.held_out & (collected.level == number))[:, 0]
        for rows in at.split(_BATCH):
            samples = collected.samples[rows.to(collected.samples.device)]
            with torch.no_grad():
                found = reward.log_probabilities(samples, where).exp().max(1)
            true.append(collected.bin[rows])
            best.append(found.indices.cpu())
            sure.append(found.values.cpu().double())
            level.append(torch.full_like(rows, number))
    truth, answer, of_level = (torch.cat(x).numpy() for x in (true, best, level))
    chance = torch.cat(sure).numpy()
    hit = truth == answer

    counts = np.bincount(of_level, minlength=levels)
    hits = np.bincount(of_level, weights=hit, minlength=levels).astype(np.int64)
    majority = np.bincount(of_level, weights=truth == common, minlength=levels) / counts
    ends = [
        binomtest(int(k), int(n)).proportion_ci(method="wilson")
        for k, n in zip(hits, counts, strict=True)
    ]
    share = (chance * _SHARES).astype(np.int64).clip(0, _SHARES - 1)
    weights = np.bincount(share, minlength=_SHARES)
    with np.errstate(invalid="ignore"):  # 0 / 0 where there are none
        confidence = np.bincount(share, weights=chance, minlength=_SHARES) / weights
        right = np.bincount(share, weights=hit, minlength=_SHARES) / weights
    confusion = np.zeros((bins, bins), dtype=np.int64)
    np.add.at(confusion, (truth, answer), 1)
    return Report(
        times=np.array([level.time for level in collected.levels]),
        counts=counts,
        accuracy=hits / counts,
        low=np.array([float(end.low) for end in ends]),
        high=np.array([float(end.high) for end in ends]),
        baseline=majority,
        confidence=confidence,
        right=right,
        weights=weights,
        calibration_error=float(np.nansum(weights * np.abs(confidence - right)) / len(hit)),
        confusion=confusion,
        edges=collected.edges,
    )
