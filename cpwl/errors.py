"""The errors of capturing a network, and of partitions that are wrong or not whole."""

from __future__ import annotations


def require_kind(value: object, kind: type, remedy: str) -> None:
    """Refuse what is handed in instead of an object of this package.

    Raises
    ------
    TypeError
        With the class that was expected, that of the value, and the remedy.
    """
    if not isinstance(value, kind):
        got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise TypeError(f"Expected a cpwl.{kind.__name__}, got {got}. {remedy}")


class CaptureError(ValueError):
    """A module, file or argument that cannot be made into a `Network`.

    The message says what was expected, what was got and what to do.

    Examples
    --------
    >>> import cpwl, torch
    >>> cpwl.Network.from_torch(torch.nn.ReLU(), (0,))
    Traceback (most recent call last):
        ...
    cpwl.errors.CaptureError: Expected input_shape as positive sizes of one sample, got (0,)...
    """


class UnsupportedOperationError(CaptureError):
    """An operation that is not continuous piecewise linear.

    Attributes
    ----------
    operation : str
        The operation's name without overload, e.g. ``"silu"``.
    place : str
        Module path (and node name) of the operation.

    Examples
    --------
    >>> import cpwl, torch
    >>> try:
    ...     cpwl.Network.from_torch(torch.nn.SiLU(), (2,))
    ... except cpwl.UnsupportedOperationError as error:
    ...     print(error.operation)
    silu
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
    """A partition that failed `check`, or one that is incomplete where all cells are needed.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> import dataclasses
    >>> cpwl.check(dataclasses.replace(partition, points=2 * partition.points)).require()
    Traceback (most recent call last):
        ...
    cpwl.errors.PartitionError: Expected a partition of 4 cells that passes all 24 checks, got ...
    """


class CertificateError(ValueError):
    """A partition, or a written proof of one, that does not hold.

    Attributes
    ----------
    cell : int or None
        Number of the cell where the proof fails, None where it is not about one cell.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> partition = cpwl.subdivide(network, cpwl.box([-1, -1], [1, 1]))
    >>> import dataclasses
    >>> cpwl.certify(dataclasses.replace(partition, points=2 * partition.points))
    Traceback (most recent call last):
        ...
    cpwl.errors.CertificateError: cell ...: expected ...
    """

    def __init__(self, cell: int | None, expected: str, got: str, remedy: str = "") -> None:
        self.cell = cell
        start = "Expected" if cell is None else f"cell {cell}: expected"
        remedy = remedy or (
            "Subdivide and certify again; if this stays, please report network and domain."
        )
        super().__init__(f"{start} {expected}, got {got}. {remedy}")
