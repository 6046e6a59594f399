"""The operator tests that the package onnx brings, as models of one float input with a batch.

`onnx.backend.test` has single nodes with inputs and outputs, and files exported from torch.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from cpwl import CaptureError
from cpwl.network.files import FileModule, read_onnx

FOLDERS = ("pytorch-operator", "pytorch-converted")


class Case(NamedTuple):
    """A model with its inputs and outputs."""

    name: str
    model: onnx.ModelProto
    inputs: list[Any]
    outputs: list[Any]
    rtol: float
    atol: float


class Verdict(NamedTuple):
    """What became of a case: agrees, refused, wrong, or out of scope, and why."""

    name: str
    kind: str
    reason: str


def node_cases() -> Iterator[Case]:
    """Yield the cases of single nodes."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    for case in found:
        if case.model is None or not case.data_sets:
            continue
        inputs, outputs = case.data_sets[0]
        yield Case(case.name, case.model, list(inputs), list(outputs), case.rtol, case.atol)


def file_cases(names: tuple[str, ...] | None = None) -> Iterator[Case]:
    """Yield the models exported from torch."""
    root = Path(onnx.__file__).parent / "backend" / "test" / "data"
    for folder in sorted(path for kind in FOLDERS for path in (root / kind).iterdir()):
        if names is not None and folder.name not in names:
            continue
        data = folder / "test_data_set_0"
        values = [
            [
                numpy_helper.to_array(onnx.load_tensor(str(data / f"{kind}_{k}.pb")))
                for k in range(len(list(data.glob(f"{kind}_*.pb"))))
            ]
            for kind in ("input", "output")
        ]
        yield Case(folder.name, onnx.load(folder / "model.onnx"), values[0], values[1], 1e-3, 1e-5)


def judge(case: Case, folder: Path) -> Verdict:
    """Read a case as a model of its first float input, and compare its first output.

    Further inputs become initialisers with the case's values. An output that is not read by
    anything is dropped. Both readings of the first axis are tried: as a batch, and, with a batch
    axis put in front, as an axis of the sample.
    """
    arrays = [np.asarray(x) if isinstance(x, (np.ndarray, np.generic)) else x for x in case.inputs]
    floats = [
        k for k, x in enumerate(arrays)
        if isinstance(x, np.ndarray) and x.dtype in (np.float16, np.float32, np.float64)
    ]  # fmt: skip
    expected = case.outputs[0] if case.outputs else None
    if not floats or not isinstance(expected, np.ndarray):
        return Verdict(case.name, "out of scope", "no float input")
    if any(not isinstance(x, np.ndarray) for x in arrays):
        return Verdict(case.name, "out of scope", "an input that is no tensor")
    if expected.dtype not in (np.float16, np.float32, np.float64):
        return Verdict(case.name, "out of scope", "an output that is not float")
    x = arrays[floats[0]]
    if x.ndim == 0 or x.size == 0:
        return Verdict(case.name, "out of scope", "an input without axes or entries")
    reasons = []
    for batched in (True, False):
        if batched and x.ndim == 1:
            continue
        path = folder / "case.onnx"
        if not _write(case, floats[0], arrays, path):
            return Verdict(case.name, "out of scope", "a first output that the graph lacks")
        try:
            module, _ = read_onnx(path, x.shape[1:] if batched else x.shape)
        except CaptureError as error:
            reasons.append(str(error))
            continue
        return _compare(case, module, x, batched, expected)
    return Verdict(case.name, "refused", reasons[-1])


def _write(case: Case, position: int, arrays: list[Any], path: Path) -> bool:
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    graph = model.graph
    held = {tensor.name for tensor in graph.initializer}
    names = [value.name for value in graph.input if value.name not in held]
    for k, (name, array) in enumerate(zip(names, arrays, strict=False)):
        if k != position:
            graph.initializer.append(numpy_helper.from_array(array, name))
    del graph.output[1:]
    onnx.save(model, path)
    return bool(graph.output[0].name)


def _compare(
    case: Case, module: Any, x: np.ndarray[Any, Any], batched: bool, expected: np.ndarray[Any, Any]
) -> Verdict:
    assert isinstance(module, FileModule)
    z = torch.from_numpy(np.array(x)).double()
    with torch.no_grad():
        got = module.double()(z if batched else z[None])
    values = got.numpy() if batched else got[0].numpy()
    if batched and x.shape[0] == 1 and expected.shape == values.shape[1:]:
        values = values[0]  # the file drops its batch of one
    if values.shape != expected.shape:
        reason = f"shape {values.shape} instead of {expected.shape}"
        return Verdict(case.name, "wrong", reason)
    wide = expected.astype(np.float64)
    atol, rtol = max(case.atol, 1e-6), max(case.rtol, 1e-5)
    if expected.dtype == np.float16:
        atol, rtol = max(atol, 1e-3), max(rtol, 2e-3)
    if not np.allclose(values, wide, rtol, atol, equal_nan=True):
        with np.errstate(invalid="ignore"):
            return Verdict(case.name, "wrong", f"off by {np.nanmax(np.abs(values - wide)):.3g}")
    return Verdict(case.name, "agrees", "")


def counts(verdicts: list[Verdict]) -> str:
    """Count verdicts, as one line of text."""
    kinds = Counter(v.kind for v in verdicts)
    order = ("agrees", "refused", "wrong", "out of scope")
    return ", ".join(f"{kinds[kind]} {kind}" for kind in order)
