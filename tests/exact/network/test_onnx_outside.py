"""ONNX files against others: the tests that onnx brings, and onnxruntime on random graphs."""

from __future__ import annotations

from itertools import chain

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.onnx_graphs import open_batch, random_model
from support.onnx_models import Case, counts, file_cases, judge, node_cases

from cpwl import CaptureError
from cpwl.network.files import read_onnx

# What CI looks at, of the files that onnx brings: one of each kind, small ones.
SAMPLE = (
    "test_operator_pad", "test_operator_maxpool", "test_operator_conv", "test_operator_flatten",
    "test_operator_permute2", "test_operator_reduced_mean_keepdim", "test_operator_addmm",
    "test_operator_concat2", "test_operator_clip", "test_operator_chunk", "test_Conv2d_strided",
    "test_Conv2d_groups", "test_ConvTranspose2d", "test_BatchNorm2d_eval", "test_PReLU_2d",
    "test_AvgPool2d_stride", "test_MaxPool2d_stride_padding_dilation", "test_PixelShuffle",
    "test_ConstantPad2d", "test_ReflectionPad2d", "test_Linear_no_bias", "test_GLU_dim",
    "test_Embedding", "test_Softmax", "test_ELU", "test_Softplus",
)  # fmt: skip


def test_models_from_torch_agree_with_onnx(tmp_path):
    verdicts = [judge(case, tmp_path) for case in file_cases(SAMPLE)]
    assert [v for v in verdicts if v.kind == "wrong"] == []
    assert len([v for v in verdicts if v.kind == "agrees"]) >= 24


def test_a_wrong_value_is_noticed(tmp_path):
    case = next(iter(file_cases(("test_PReLU_2d",))))
    changed = Case(**{**case._asdict(), "outputs": [case.outputs[0] + 0.01]})
    assert judge(case, tmp_path).kind == "agrees"
    assert judge(changed, tmp_path).kind == "wrong"


@pytest.mark.nightly
def test_all_of_onnx_agrees_or_is_refused(tmp_path):
    """Counts with onnx 1.23: 859 agree, 395 refused, 0 wrong, 747 out of scope."""
    verdicts = [judge(case, tmp_path) for case in chain(file_cases(), node_cases())]
    print(counts(verdicts))
    assert [v for v in verdicts if v.kind == "wrong"] == []
    assert len([v for v in verdicts if v.kind == "agrees"]) >= 800


def _compare(seed, path, *, free):
    """Compare a random graph with onnxruntime; return whether both took it."""
    runtime = pytest.importorskip("onnxruntime")
    model = open_batch(random_model(seed)) if free else random_model(seed)
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    sizes = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    z = np.random.default_rng(seed).integers(-12, 13, (3, *sizes)).astype(np.float32) / 4
    refused = (
        runtime.capi.onnxruntime_pybind11_state.Fail,
        runtime.capi.onnxruntime_pybind11_state.InvalidArgument,
        runtime.capi.onnxruntime_pybind11_state.RuntimeException,
    )
    try:
        if free:
            expected = session.run(None, {"x": z})[0]
        else:
            expected = np.stack([session.run(None, {"x": row[None]})[0] for row in z])
    except refused:
        return False
    onnx.save(model, path)
    try:
        module, _ = read_onnx(path, None)
    except CaptureError:
        return False
    got = module.double()(torch.from_numpy(z).double()).detach().numpy()
    if not free and expected.shape[1] == 1 and got.shape == (3, *expected.shape[2:]):
        expected = expected[:, 0]  # the file's batch of one
    scale = 1 + np.abs(expected[np.isfinite(expected)]).max(initial=0)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * scale)
    return True


@given(seed=st.integers(0, 10**6), free=st.booleans())
@settings(max_examples=300, derandomize=True, deadline=None, database=None)
def test_random_graphs_agree_with_onnxruntime(tmp_path_factory, seed, free):
    _compare(seed, tmp_path_factory.getbasetemp() / "random.onnx", free=free)


@pytest.mark.nightly
@pytest.mark.parametrize("free", [False, True])
def test_many_random_graphs_agree_with_onnxruntime(tmp_path, free):
    read = sum(_compare(seed, tmp_path / "m.onnx", free=free) for seed in range(2000))
    assert read > (1350 if free else 1950)
