"""Surveys of domains whose cells do not fit into memory at once.

A `Network` and a domain go in; numbers of cells, facets and regions, histograms of psi and nu come
out, and, in a folder, what is done so far and all cells. Imports the exports and everything below.
"""

from cpwl.surveys.running import survey
from cpwl.surveys.totals import Histogram, Survey

__all__ = ["Histogram", "Survey", "survey"]
