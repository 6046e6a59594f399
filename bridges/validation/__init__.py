"""The exact engine and the estimates held against each other: `validate` and its report."""

from bridges.validation.report import AgreementError, Report
from bridges.validation.run import validate

__all__ = ["AgreementError", "Report", "validate"]
