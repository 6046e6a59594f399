"""Memory: what is free, what a graph holds, and how many products fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from approx.decoder.graph import nodes_behind

# memory of a column's pass, in largest tensors of the graph: the gradients that a layer takes and
# gives, one that waits at a skip connection, and a convolution's workspace
LIVE = 4
# share of the free memory that "auto" gives to one chunk of columns
SHARE = 0.5
# bytes of largest tensors that "auto" batches on a CPU: beyond its caches, batching costs time
CACHED = 2**21
# columns that fill an accelerator
MOST = 64


class Held(NamedTuple):
    """Bytes of the tensors that an autograd graph keeps: of all, and of the largest."""

    total: int
    largest: int


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that is free on a device, or None where nobody says."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + reserved
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    if device.type != "cpu":
        return None
    return min((n for n in (_available(), _unclaimed()) if n is not None), default=None)


def _available() -> int | None:
    """Return what the machine has left."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on this system
        return None


def _unclaimed() -> int | None:
    """Return what is left of a container's limit."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        return None if limit == "max" else int(limit) - int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return None


def held_bytes(output: Tensor, besides: Iterable[Tensor] = ()) -> Held:
    """Add up what the graph behind a tensor saved for the backward pass, besides parameters."""
    sizes: dict[int, int] = {}
    # a sparse tensor, of weights, has no storage of its own
    strided = (tensor for tensor in besides if tensor.layout == torch.strided)
    known = {tensor.untyped_storage()._cdata for tensor in strided}
    for node in nodes_behind([output]):
        saved = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        for value in saved:
            for tensor in value if isinstance(value, tuple | list) else (value,):
                if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                    storage = tensor.untyped_storage()
                    if storage._cdata not in known:
                        sizes[storage._cdata] = storage.nbytes()
    return Held(sum(sizes.values()), max(sizes.values(), default=0))


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception is torch's way of saying that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in text or "out of memory" in text or "not enough memory" in text
    )


def product_bytes(held: Held, ends: int) -> int:
    """Return about what one column takes, given the bytes of a latent and an output."""
    return LIVE * held.largest + ends


def columns_at_once(device: torch.device, held: Held, each: int) -> tuple[int, int]:
    """Return how many columns to batch: (the fastest, the most that fit, both at least 1)."""
    free = free_bytes(device)
    most = MOST if free is None else min(MOST, int(SHARE * free / max(1, each)))
    fastest = CACHED // max(1, held.largest) if device.type == "cpu" else MOST
    most = max(1, most)
    return max(1, min(most, fastest)), most


def chunked(columns: int, chunk: int, work: Callable[[int, int], None]) -> int:
    """Call work(start, stop) over 0 <= start < stop <= columns in steps of at most `chunk`.

    A step that runs out of memory is done again in halves; the chunk that worked is returned.
    At one column the exception is the caller's.
    """
    start = 0
    while start < columns:
        stop = min(start + chunk, columns)
        try:
            work(start, stop)
        except (RuntimeError, MemoryError) as error:
            if stop - start == 1 or not out_of_memory(error):
                raise
            chunk = (stop - start + 1) // 2
            continue
        start = stop
    return chunk


def sized(n: float) -> str:
    """Return bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    raise AssertionError
