"""Tables that are written chunk by chunk and go on where they were left.

Columns of numbers, what defines them and what belongs to each chunk go in; a Zarr group on anything
that fsspec opens comes out, with one writer at a time. Imports nothing of approx, and no torch.
"""

from approx.stores.errors import StoreError, imported
from approx.stores.group import FORMAT, Marker, Store, open_group, spans
from approx.stores.locking import Lock
from approx.stores.writer import Writer, digest, writing

__all__ = [
    "FORMAT",
    "Lock",
    "Marker",
    "Store",
    "StoreError",
    "Writer",
    "digest",
    "imported",
    "open_group",
    "spans",
    "writing",
]
