"""Questions asked of a table of descriptors: of level sets, of classes, of an order of images.

Tables of `describe` and labels or images go in; scores, tests and matched rows come out, each with
its interval or its p-value. Imports the tables, and scipy.
"""

from approx.populations.comparisons import Comparison, compare, corrected
from approx.populations.levels import LevelSets, level_sets
from approx.populations.matching import Matched, matched
from approx.populations.ordering import Ordered, order
from approx.populations.scorers import (
    classifier_margin,
    compressed_size,
    confounds,
    reconstruction_error,
    vendi,
)
from approx.populations.scores import ScoreError, SetScores
from approx.populations.scoring import score_sets
from approx.populations.separation import Auroc, auroc

__all__ = [
    "Auroc",
    "Comparison",
    "LevelSets",
    "Matched",
    "Ordered",
    "ScoreError",
    "SetScores",
    "auroc",
    "classifier_margin",
    "compare",
    "compressed_size",
    "confounds",
    "corrected",
    "level_sets",
    "matched",
    "order",
    "reconstruction_error",
    "score_sets",
    "vendi",
]
