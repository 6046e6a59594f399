"""The exact engine and the estimates held against each other: `validate` and its report."""

from bridges.validation.findings import AgreementError
from bridges.validation.report import Report
from bridges.validation.run import validate

__all__ = ["AgreementError", "Report", "validate"]
