"""Where the files of the real networks and data sets are."""

from __future__ import annotations

import os
from pathlib import Path


def path(name: str, folder: Path | None = None) -> Path:
    """Return the path of a file in `folder`, or else in the folder named by `$CPWL_DATA`."""
    found = folder or Path(os.environ["CPWL_DATA"])
    return found / name
