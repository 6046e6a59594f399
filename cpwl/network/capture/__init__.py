"""Capture of a torch module as a program of affine and piecewise-linear steps.

A module goes in, a `Program` comes out, checked against the module. Knows no `Network`.
"""

from cpwl.network.capture.fx_nodes import SKIPPED, packet_name
from cpwl.network.capture.lowering import Listing, Lowered, Operation, lower
from cpwl.network.capture.premises import (
    ANEW,
    Premises,
    architecture,
    check_read,
    run,
    state_of,
)
from cpwl.network.capture.preparation import float64_copy, unwrap
from cpwl.network.capture.tracing import (
    CAPTURING,
    export,
    list_graph,
    read_exported,
    write_exported,
)
from cpwl.network.capture.verification import verify, verify_values

__all__ = [
    "ANEW",
    "CAPTURING",
    "SKIPPED",
    "Listing",
    "Lowered",
    "Operation",
    "Premises",
    "architecture",
    "check_read",
    "export",
    "float64_copy",
    "list_graph",
    "lower",
    "packet_name",
    "read_exported",
    "run",
    "state_of",
    "unwrap",
    "verify",
    "verify_values",
    "write_exported",
]
