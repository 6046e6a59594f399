"""torch's own samples of its operators, captured and compared with torch cell by cell.

Every sample's first tensor becomes a function of two latents, x = sample + B z, its other arguments
stay constant; torch.vmap gives the operator its batch axis. A sample ends as *taken* (the affine
map of every cell equals torch's value and Jacobian at the cell's centroid), *refused* (by name), or
*skipped* (torch itself cannot run it so).
"""

from __future__ import annotations

import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import cpwl
from cpwl.errors import CaptureError, UnsupportedOperationError
from cpwl.network import Network

LATENTS = 2
# Cells of a sample's plane that are compared.
MOST_CELLS = 60
# Entries of the samples taken.
MOST_ENTRIES = 400
# A network is a function of real numbers: these casts are identities by definition.
CASTS = ("float", "half", "bfloat16")
# torch itself writes beyond its memory on these samples' made-up arguments.
BREAKING = ("lu_unpack",)
AXES = {"dim", "dims", "dim0", "dim1", "axis", "start_dim", "end_dim", "source", "destination"}


class Verdict(NamedTuple):
    """What became of a sample: "taken", "refused", "skipped" or "wrong", and why."""

    outcome: str
    reason: str = ""


class Sample(nn.Module):
    """An operator of one sample as a module of two latents.

    `spread` gives tensor arguments a batch axis of their own, as gather and scatter ask for.
    """

    def __init__(self, form: Form, base: Tensor, *, spread: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.base = base.detach()
        self.plane = torch.randn((LATENTS, base.numel()), generator=generator, dtype=torch.float64)
        self.form, self.spread = form, spread

    def forward(self, z: Tensor) -> Tensor:
        x = (z @ self.plane).reshape(-1, *self.base.shape) + self.base
        args, kwargs = self.form.args, self.form.kwargs
        if self.spread:
            args = tuple(_spread(value, x) for value in args)
            kwargs = {key: _spread(value, x) for key, value in kwargs.items()}
        result = self.form.operator(x, *args, **kwargs)
        parts = [result] if isinstance(result, Tensor) else list(result)
        parts = [
            p.reshape(z.shape[0], -1)
            for p in parts
            if isinstance(p, Tensor) and p.is_floating_point()
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class Form(NamedTuple):
    """An operator and its arguments after the first."""

    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def _spread(value: Any, x: Tensor) -> Any:
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    return value.expand(x.shape[0], *value.shape)


def _shifted(operator: Any, form: Form) -> Form:
    """Count axes from behind a batch axis in front."""
    names = _argument_names(operator.name)
    args = tuple(
        _shift(v) if names[k : k + 1] and names[k] in AXES else v for k, v in enumerate(form.args)
    )
    kwargs = {key: _shift(v) if key in AXES else v for key, v in form.kwargs.items()}
    return Form(form.operator, args, kwargs)


def _shift(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_shift(item) for item in value)
    return value + 1 if isinstance(value, int) and value >= 0 else value


def _argument_names(name: str) -> list[str]:
    """Names of the arguments after the first that may be an axis, from ATen's schema."""
    packet = getattr(torch.ops.aten, name.split(".")[-1], None)
    for overload in () if packet is None else packet.overloads():
        names = [a.name for a in getattr(packet, overload)._schema.arguments[1:]]
        if not AXES.isdisjoint(names):
            return names
    return []


def _row(value: Any, x: Tensor) -> Any:
    rows = isinstance(value, Tensor) and value.ndim and len(value) == len(x)
    return value[0] if rows else value


def _module(operator: Any, form: Form, x: Tensor) -> Sample | str:
    """The first way to give the operator a batch axis that torch takes; else torch's objection."""
    reason = "it has no form that treats the samples of a batch one by one"
    shifted = _shifted(operator, form)
    forms = [(shifted, x, False), (shifted, x, True)]
    if x.ndim:  # the sample's own first axis as the batch's
        split = Form(form.operator, *tree_map(lambda v: _row(v, x), (form.args, form.kwargs)))
        forms += [(form, x[0], False), (split, x[0], True)]
    for one, base, spread in forms:
        module = Sample(one, base, spread=spread)
        z = torch.linspace(-0.3, 0.4, 3 * LATENTS, dtype=torch.float64).reshape(3, LATENTS)
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                whole = module(z)
                single = torch.cat([module(row[None]) for row in z])
        except Exception as error:  # what torch raises by itself is torch's business
            reason = f"{type(error).__name__}: {_line(error)}"
            continue
        if whole.shape == single.shape and torch.allclose(whole, single, equal_nan=True):
            return module
    return reason


def operators() -> dict[str, Any]:
    """torch's operators that take float64, by their names with the variant."""
    from torch.testing._internal.common_methods_invocations import op_db

    return {
        o.full_name: o
        for o in op_db
        if torch.float64 in o.dtypes and o.full_name not in (*CASTS, *BREAKING)
    }


def samples(operator: Any, count: int) -> Iterator[Sample | str]:
    """Spread `count` over the samples whose first argument is a small tensor of numbers."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [
            s
            for s in islice(operator.sample_inputs("cpu", torch.float64), 40)
            if isinstance(s.input, Tensor)
            and s.input.is_floating_point()
            and s.input.layout == torch.strided
            and bool(torch.isfinite(s.input).all())
            and 0 < s.input.numel() <= MOST_ENTRIES
        ]
        found.sort(key=lambda s: s.input.ndim == 0)
        made = [_module(operator, Form(operator.op, s.args, s.kwargs), s.input) for s in found]
    taken = [module for module in made if not isinstance(module, str)]
    step = max(1, len(taken) // count)
    yield from taken[::step][:count] or made[:1]


def judge(module: Sample | str) -> Verdict:
    """Capture a sample's module and compare it with torch."""
    if isinstance(module, str):
        return Verdict("skipped", module)
    try:
        network = Network.from_torch(module, (LATENTS,))
    except UnsupportedOperationError as error:
        return Verdict("refused", f"{error.operation}: {error.reason}")
    except CaptureError as error:
        return Verdict("refused", _line(error))
    half = min(1.0, 8 / module.base.numel())  # a few of many units' knots
    box = cpwl.box([-half] * LATENTS, [half] * LATENTS)
    partition = cpwl.subdivide(network, box, progress=False)
    return compare(module, partition)


def compare(module: nn.Module, partition: cpwl.Partition) -> Verdict:
    """Hold every cell's affine map against torch's value and Jacobian at its centroid."""
    count = min(partition.num_cells, MOST_CELLS)
    cells = np.linspace(0, partition.num_cells - 1, count).astype(int)
    centroids = cpwl.centroids(partition)[cells]
    maps = cpwl.affine_maps(partition, cells)
    A, b = (np.concatenate(parts) for parts in zip(*maps, strict=True))
    for k, point in enumerate(centroids):
        row = torch.from_numpy(point)[None]
        value = module(row)[0].detach().numpy()
        try:
            slope = torch.autograd.functional.jacobian(module, row)[0, :, 0].numpy()
        except RuntimeError:  # torch has no derivative of it
            slope = A[k]
        size = 1e-8 * max(1.0, np.abs(value).max(), np.abs(slope).max())
        if not np.abs(A[k] @ point + b[k] - value).max() <= size:
            return Verdict("wrong", f"value at {point.tolist()}")
        # torch's own backward passes hold some constants in float32 (hardsigmoid's sixth)
        if not np.abs(A[k] - slope).max() <= 100 * size:
            return Verdict("wrong", f"Jacobian at {point.tolist()}")
    return Verdict("taken", f"{network_units(partition)} units, {partition.num_cells} cells")


def network_units(partition: cpwl.Partition) -> int:
    """Units of a partition's network."""
    assert partition.network is not None
    return partition.network.num_units


def _line(error: BaseException) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    # of a trace that failed, what torch says, without our advice
    text = re.split(" Avoid Python| Give the shape", text.split("got from Sample: ")[-1])[0]
    return textwrap.shorten(text, 140, placeholder=" ...")


def verdicts(names: Iterable[str], count: int) -> Iterator[tuple[str, list[Verdict]]]:
    """Judge `count` samples of each operator."""
    known = operators()
    for name in names:
        yield name, [judge(module) for module in samples(known[name], count)]


def summary(found: Sequence[Verdict]) -> Verdict:
    """Put the verdicts of an operator's samples into one: the worst, but taken before skipped."""
    for outcome in ("wrong", "refused", "taken", "skipped"):
        for verdict in found:
            if verdict.outcome == outcome:
                taken = sum(v.outcome == "taken" for v in found)
                some = outcome == "refused" and taken
                return Verdict("in part" if some else outcome, verdict.reason)
    return Verdict("skipped", "it has no sample whose first argument is a small tensor")


def write_table(path: Path, rows: Sequence[tuple[str, Verdict]]) -> None:
    """Write the site's page of operators."""
    count = Counter(verdict.outcome for _, verdict in rows)
    lines = [
        "# Operators",
        "",
        "What `cpwl.Network.from_torch` makes of the operators that torch tests itself with",
        "(`torch.testing._internal.common_methods_invocations.op_db`, float64): samples of each,",
        "as functions of two latents, are captured and compared with torch cell by cell, value and",
        "Jacobian. *In part*: some of the samples are taken, some refused. Operators without a",
        "form that treats the samples of a batch one by one are left out.",
        "",
        f"{count['taken']} are taken, {count['in part']} in part, {count['refused']} refused, "
        f"{count['wrong']} wrong; {count['skipped']} are left out.",
        "",
        "| operator | | why refused |",
        "|---|---|---|",
    ]
    for name, verdict in rows:
        if verdict.outcome != "skipped":
            reason = "" if verdict.outcome == "taken" else verdict.reason.replace("|", "\\|")
            lines.append(f"| `{name}` | {verdict.outcome} | {reason} |")
    path.write_text("\n".join(lines) + "\n")
