"""Names, shapes and batch axes of an exported graph's nodes."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Node

# Size of the batch that modules are exported with; symbolic sizes are multiples of it.
EXAMPLE_BATCH = 2
# Assertions of the exporter: they compute nothing.
SKIPPED = frozenset(
    [
        "_assert_tensor_metadata",
        "_assert_scalar",
        "_assert_async",
        "sym_constrain_range",
        "sym_constrain_range_for_size",
    ]
)


def place_of(node: Node) -> str:
    """Name a node: its torch module's path, or path and node name inside a module of one's own."""
    stack = node.meta.get("nn_module_stack") or {}
    entries = [entry for entry in stack.values() if isinstance(entry, tuple)]
    if not entries:
        return node.name
    path, cls = entries[-1][0], entries[-1][1]
    kind = cls if isinstance(cls, str) else f"{cls.__module__}.{cls.__qualname__}"
    if not path or path.startswith("_empty_nn_module_stack"):
        return node.name
    return (
        path
        if kind.startswith(("torch.nn.", "cpwl.network.files.calls."))
        else f"{path}.{node.name}"
    )


def packet_name(target: Any) -> str:
    """Operation without namespace and overload."""
    packet = getattr(target, "overloadpacket", None)
    return getattr(target, "__name__", str(target)) if packet is None else packet.__name__


def _hint(size: Any) -> int:
    if isinstance(size, int):
        return size
    return 1 if size.node.hint is None else int(size.node.hint)


def is_data_sized(node: Node) -> bool:
    """Whether the node's shape depends on the values of the input."""
    value = result_of(node)
    sizes = value.shape if isinstance(value, Tensor) else ()
    return any(not isinstance(size, int) and size.node.hint is None for size in sizes)


def result_of(node: Node) -> Any:
    """Return the value as traced; of several, the first."""
    value = node.meta.get("val")
    return value[0] if isinstance(value, (list, tuple)) else value


def example_shape(node: Node) -> tuple[int, ...]:
    """Shape at the example batch."""
    return tuple(_hint(size) for size in result_of(node).shape)


def batch_axis(node: Node) -> int | None:
    """Position of the axis that grows with the batch, None if no axis does."""
    symbolic = [k for k, n in enumerate(result_of(node).shape) if not isinstance(n, int)]
    return symbolic[0] if symbolic else None


def has_batch(node: Node) -> bool:
    """Whether the node is a tensor with a batch axis."""
    return isinstance(result_of(node), Tensor) and batch_axis(node) is not None


def single_shape(node: Node) -> tuple[tuple[int, ...], bool]:
    """Shape for a batch of one, and whether the batch axis is first and holds nothing else."""
    sizes = result_of(node).shape
    single = tuple(n if isinstance(n, int) else max(1, _hint(n) // EXAMPLE_BATCH) for n in sizes)
    symbolic = [n for n in sizes if not isinstance(n, int)]
    leading = len(symbolic) == 1 and not isinstance(sizes[0], int) and str(sizes[0]).isidentifier()
    return single, leading
