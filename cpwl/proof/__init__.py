"""Exact certificates of partitions.

A `Partition` goes in; a `Certificate` and its JSON file come out, or a refusal with the place
that fails. Patterns go in; the knots beside them come out as fractions. Imports nothing of
`cpwl.engine` or `cpwl.checks`: a proof shares no code with what it proves.
"""

from cpwl.proof.certificate import Certificate, certify, read_provable, verify
from cpwl.proof.knots import knot_rows

__all__ = ["Certificate", "certify", "knot_rows", "read_provable", "verify"]
