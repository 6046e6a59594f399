"""Exact certificates of partitions.

A `Partition` goes in; a `Certificate` and its JSON file come out, or a refusal with the place
that fails. Imports nothing of `cpwl.engine` or `cpwl.checks`: a proof shares no code with what it
proves.
"""

from cpwl.proof.certificate import Certificate, certify, read_provable, verify

__all__ = ["Certificate", "certify", "read_provable", "verify"]
