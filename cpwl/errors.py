"""The errors of capturing a network, and of partitions that are wrong or not whole."""

from __future__ import annotations


class CaptureError(ValueError):
    """A module, file or argument that cannot be made into a `Network`.

    The message says what was expected, what was got and what to do.
    """


class UnsupportedOperationError(CaptureError):
    """An operation that is not continuous piecewise linear.

    Attributes
    ----------
    operation : str
        The operation's name without overload, e.g. ``"silu"``.
    place : str
        Module path (and node name) of the operation.
    """

    def __init__(self, operation: str, place: str, reason: str, remedy: str) -> None:
        self.operation = operation
        self.place = place
        self.reason = reason
        super().__init__(
            f"Expected only continuous piecewise-linear operations, got '{operation}' at "
            f"'{place}': {reason}. {remedy}"
        )


class PartitionError(ValueError):
    """A partition that failed `check`, or one that is incomplete where all cells are needed."""


class CertificateError(ValueError):
    """A partition, or a written proof of one, that does not hold.

    Attributes
    ----------
    cell : int or None
        Number of the cell where the proof fails, None where it is not about one cell.
    """

    def __init__(self, cell: int | None, expected: str, got: str, remedy: str = "") -> None:
        self.cell = cell
        start = "Expected" if cell is None else f"cell {cell}: expected"
        remedy = remedy or (
            "Subdivide and certify again; if this stays, please report network and domain."
        )
        super().__init__(f"{start} {expected}, got {got}. {remedy}")
