"""A captured network as data, and the passes that run it.

A `Program` and a batch go in; values, pieces, rounding errors and sparse matrices come out.
Imports only arrays and errors.
"""

from cpwl.network.program import error_analysis, max_pooling, nonlinearities, passes, tangents
from cpwl.network.program.error_analysis import (
    Analysis,
    absolute_part,
    offset_size,
    output_bound,
    rounding_noise,
    single_values,
)
from cpwl.network.program.linearisation import Linearisation, linearise
from cpwl.network.program.matrices import AffineMap, Matrices, read_matrices, read_step
from cpwl.network.program.max_pooling import (
    Tournament,
    adaptive_windows,
    make_tournament,
    pooling_taps,
    strided_windows,
)
from cpwl.network.program.nonlinearities import (
    Coefficient,
    Extremum,
    MaybeError,
    Nonlinearity,
    Pointwise,
    Triangle,
    clamp_pieces,
    largest_slope,
)
from cpwl.network.program.passes import held_pieces, held_switching
from cpwl.network.program.program import (
    Head,
    Plan,
    Program,
    Ref,
    Step,
    as_batch,
    call,
    fill,
    is_batched,
    make_plan,
    peak_values,
    references,
    stage_plan,
)
from cpwl.network.program.rounding import Rounding, absolute, gamma
from cpwl.network.program.segmentation import Segment, cost, segments

__all__ = [
    "AffineMap",
    "Analysis",
    "Coefficient",
    "Extremum",
    "Head",
    "Linearisation",
    "Matrices",
    "MaybeError",
    "Nonlinearity",
    "Plan",
    "Pointwise",
    "Program",
    "Ref",
    "Rounding",
    "Segment",
    "Step",
    "Tournament",
    "Triangle",
    "absolute",
    "absolute_part",
    "adaptive_windows",
    "as_batch",
    "call",
    "clamp_pieces",
    "cost",
    "error_analysis",
    "fill",
    "gamma",
    "held_pieces",
    "held_switching",
    "is_batched",
    "largest_slope",
    "linearise",
    "make_plan",
    "make_tournament",
    "max_pooling",
    "nonlinearities",
    "offset_size",
    "output_bound",
    "passes",
    "peak_values",
    "pooling_taps",
    "read_matrices",
    "read_step",
    "references",
    "rounding_noise",
    "segments",
    "single_values",
    "stage_plan",
    "strided_windows",
    "tangents",
]
