"""Capture of a torch module as a program of affine and piecewise-linear steps.

A module goes in, a `Program` comes out, checked against the module. Knows no `Network`.
"""

from cpwl.network.capture.fx_nodes import SKIPPED, packet_name
from cpwl.network.capture.lowering import Listing, Lowered, Operation, lower
from cpwl.network.capture.preparation import float64_copy, unwrap
from cpwl.network.capture.tracing import (
    CAPTURING,
    export,
    list_graph,
    read_exported,
    write_exported,
)
from cpwl.network.capture.verification import verify

__all__ = [
    "CAPTURING",
    "SKIPPED",
    "Listing",
    "Lowered",
    "Operation",
    "export",
    "float64_copy",
    "list_graph",
    "lower",
    "packet_name",
    "read_exported",
    "unwrap",
    "verify",
    "write_exported",
]
