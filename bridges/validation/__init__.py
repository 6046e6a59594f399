"""Validation: the exact engine and the estimates held against each other on one network.

A module and a domain go into `validate`; a `Report` comes out, of four sections of one shape:
`jacobians`, `spectra`, `complexity`, `densities`. Imports `approx` and `cpwl`.
"""

from bridges.validation.findings import AgreementError
from bridges.validation.report import Report
from bridges.validation.run import validate
from bridges.validation.subject import around
from bridges.validation.text import write_csv

__all__ = ["AgreementError", "Report", "around", "validate", "write_csv"]
