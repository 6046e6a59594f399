"""The exact engine and the estimates held against each other: `validate` and its report."""

from bridges.validation.findings import AgreementError
from bridges.validation.report import Report
from bridges.validation.run import validate
from bridges.validation.subject import around
from bridges.validation.text import write_csv

__all__ = ["AgreementError", "Report", "around", "validate", "write_csv"]
