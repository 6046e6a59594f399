"""float64 checks of a finished partition.

A `Partition` goes in; a report of invariants with figures comes out. Imports nothing of
`cpwl.engine` or `cpwl.proof`: what a check finds is evidence because it shares no code with what
it checks.
"""

from cpwl.checks.findings import Limits, Tolerances
from cpwl.checks.report import check

__all__ = ["Limits", "Tolerances", "check"]
