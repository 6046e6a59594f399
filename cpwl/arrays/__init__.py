"""NumPy helpers that every package shares; no mathematics of partitions.

Arrays go in, arrays come out: ragged rows, packed bits, constants of float64, work shared between
threads. Imports nothing of cpwl.
"""

from cpwl.arrays.bits import pack_row, padded, unpack
from cpwl.arrays.floats import EPS, SMALLEST, UNIT_ROUNDOFF, Floats, Ints, magnitude
from cpwl.arrays.kernels import inlined, inner, kernel, on_compilation
from cpwl.arrays.limits import require_at_least
from cpwl.arrays.parallel import available_cores, in_parallel
from cpwl.arrays.ragged import Ragged, fans, nbytes, next_corner, prefix, take_rows
from cpwl.arrays.small_numbers import denormals
from cpwl.arrays.torch_threads import TorchThreads

__all__ = [
    "EPS",
    "SMALLEST",
    "UNIT_ROUNDOFF",
    "Floats",
    "Ints",
    "Ragged",
    "TorchThreads",
    "available_cores",
    "denormals",
    "fans",
    "in_parallel",
    "inlined",
    "inner",
    "kernel",
    "magnitude",
    "nbytes",
    "next_corner",
    "on_compilation",
    "pack_row",
    "padded",
    "prefix",
    "require_at_least",
    "take_rows",
    "unpack",
]
