"""What all stages of an enumeration share, and the refusal of one that is too large."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from cpwl.arrays import Floats
from cpwl.domain import Slice
from cpwl.engine.rational import Arbiter
from cpwl.network import Network


@dataclass(frozen=True)
class Work:
    """What all stages and tiles share."""

    network: Network
    arbiter: Arbiter
    slice: Slice
    embed: Callable[[Floats], torch.Tensor]
    memory: int
    pool: ThreadPoolExecutor
    report: Callable[[float, int], None]  # share of the domain's work done, cells found


class TooLargeError(Exception):
    """The refined complex would take more memory than there is room for."""

    def __init__(self, needed: int, stage: int = 0) -> None:
        super().__init__(needed, stage)
        self.needed = needed
        self.stage = stage
