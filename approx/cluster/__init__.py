"""Pieces of work on the workers of a Dask cluster, with one writer.

A client of `dask.distributed`, a function that each worker calls once to set itself up, and pieces
go in; the caller's process gets each result, once. Imports neither torch nor anything of approx.
"""

from approx.cluster.connection import check_client, connected
from approx.cluster.pieces import Crew, Place, crew, each, one

__all__ = ["Crew", "Place", "check_client", "connected", "crew", "each", "one"]
