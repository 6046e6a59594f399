"""A caller's decoder, run without leaving a trace.

A module or function goes in; outputs, its parts and what fits into memory come out, and the
module, its device, its training flag and all generators are as before. Imports `approx.devices`.
"""

from approx.decoder.binding import Bound, bind
from approx.decoder.checks import (
    HALF,
    DecoderError,
    Output,
    as_array,
    check_deterministic,
    check_latents,
    check_output,
    check_shape,
    finite_rows,
    not_finite,
    pick,
    refuse_infinite,
    whole,
)
from approx.decoder.coordinates import Whitening, whitening
from approx.decoder.failures import first_line, in_words, no_graph
from approx.decoder.forward_rules import ForwardRules, Widened
from approx.decoder.graph import hooked, narrowest, transpose
from approx.decoder.loading import Unquantised, load_diffusers
from approx.decoder.memory import (
    LIVE,
    SHARE,
    chunked,
    columns_at_once,
    free_bytes,
    held_bytes,
    out_of_memory,
    product_bytes,
    sized,
)
from approx.decoder.opening import READERS, Factory, moved, opened
from approx.decoder.parts import as_latents, dtypes_of, modules_of, tensors_of
from approx.decoder.recording import fitting, no_room, recorded
from approx.decoder.running import (
    Prepared,
    deterministic,
    forward,
    held_by_one,
    precision,
    prepare,
    session,
)
from approx.decoder.soundness import check_decoder

__all__ = [
    "HALF",
    "LIVE",
    "READERS",
    "SHARE",
    "Bound",
    "DecoderError",
    "Factory",
    "ForwardRules",
    "Output",
    "Prepared",
    "Unquantised",
    "Whitening",
    "Widened",
    "as_array",
    "as_latents",
    "bind",
    "check_decoder",
    "check_deterministic",
    "check_latents",
    "check_output",
    "check_shape",
    "chunked",
    "columns_at_once",
    "deterministic",
    "dtypes_of",
    "finite_rows",
    "first_line",
    "fitting",
    "forward",
    "free_bytes",
    "held_by_one",
    "held_bytes",
    "hooked",
    "in_words",
    "load_diffusers",
    "modules_of",
    "moved",
    "narrowest",
    "no_graph",
    "no_room",
    "not_finite",
    "opened",
    "out_of_memory",
    "pick",
    "precision",
    "prepare",
    "product_bytes",
    "recorded",
    "refuse_infinite",
    "session",
    "sized",
    "tensors_of",
    "transpose",
    "whitening",
    "whole",
]
