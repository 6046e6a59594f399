"""ONNX files read as networks: values worked out by hand, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from cpwl import CaptureError, Network, UnsupportedOperationError
from cpwl.network.files import read_onnx
from cpwl.network.network import inspect

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

node = helper.make_node


def f(values: Any) -> np.ndarray[Any, Any]:
    return np.asarray(values, np.float32)


def i(values: Any) -> np.ndarray[Any, Any]:
    return np.asarray(values, np.int64)


@pytest.fixture
def read(tmp_path):
    """Return a function that reads nodes as a module on float64 batches."""

    def call(nodes, constants, shape, opset=17, output="y"):
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        y = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        tensors = [numpy_helper.from_array(value, key) for key, value in constants.items()]
        graph = helper.make_graph(nodes, "g", [x], [y], tensors)
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.example", 1)]
        path = tmp_path / "model.onnx"
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
        return read_onnx(path, None)[0].double()

    return call


def resize(scales, **attributes):
    return [node("Resize", ["x", "", "s"], ["y"], **attributes)], {"s": f(scales)}


# Name, nodes, constants, shape, operator set, input, output by hand.
CASES = [
    # x / 3: 0, .33, .67, 1, 1.33, 1.67, 2, 2.33, 2.67; halves go down, beyond the end counts as 2
    ("nearest", *resize([1, 1, 3], mode="nearest", coordinate_transformation_mode="asymmetric"),
     [1, 1, 3], 13, [[[5, 6, 7]]], [5, 5, 6, 6, 6, 7, 7, 7, 7]),
    ("Einsum with dots", [node("Einsum", ["x", "w"], ["y"], equation="...j,jk")],
     {"w": f([[1, 2], [3, 4]])}, [1, 2, 2], 17, [[[1, 0], [0, 1]]], [1, 2, 3, 4]),
    # operator set 10 says no rounding: 0, 1.33, 2.67 go up where entries are dropped
    ("nearest of set 10", [node("Resize", ["x", "s"], ["y"], mode="nearest")],
     {"s": f([1, 1, 0.75])}, [1, 1, 4], 10, [[[4, 5, 6, 7]]], [4, 6, 7]),
    # (x + .5) / 2 - .5: -.25, .25, .75, 1.25
    ("nearest ceil", *resize([1, 1, 2], mode="nearest", nearest_mode="ceil",
                             coordinate_transformation_mode="half_pixel"),
     [1, 1, 2], 13, [[[3, 8]]], [3, 8, 8, 8]),
    # the triangle of half-width 2 at .5 and 2.5: weights 3, 3, 1 of 7 at the borders (the fourth
    # tap lies outside and counts as the border), 1/8, 3/8, 3/8, 1/8 with all four inside
    ("linear antialias", *resize([1, 1, 0.5], mode="linear", antialias=1),
     [1, 1, 6], 18, [[[0, 0, 8, 8, 0, 0]]], [1, 6, 1]),
    ("Clip by Cast", [node("Cast", ["q"], ["a"], to=1), node("Clip", ["x", "a"], ["y"])],
     {"q": i(-2)}, [1, 1], 17, [[-3]], [-2]),
    ("Clip by Div", [node("Div", ["p", "q"], ["r"]), node("Cast", ["r"], ["a"], to=1),
                     node("Clip", ["x", "", "a"], ["y"])],
     {"p": i(-7), "q": i(2)}, [1, 1], 17, [[9]], [-3]),
    ("Split by Identity", [node("Identity", ["s"], ["t"]),
                           node("Split", ["x", "t"], ["a", "b"], axis=1),
                           node("Concat", ["b", "a"], ["y"], axis=1)],
     {"s": i([2, 1])}, [1, 3], 17, [[1, 2, 3]], [3, 1, 2]),
    ("Pad by Identity", [node("Identity", ["c"], ["d"]), node("Pad", ["x", "p", "d"], ["y"])],
     {"p": i([0, 2, 0, 0]), "c": f(7)}, [1, 1], 17, [[1]], [7, 7, 1]),
    ("Pad with axes", [node("Pad", ["x", "p", "", "a"], ["y"])],
     {"p": i([0, 2, 1, 0]), "a": i([1, 2])}, [1, 1, 2], 18, [[[1, 2]]], [0, 0, 1, 2, 0, 0, 0, 0]),
    ("weights by Cast", [node("Cast", ["w"], ["v"], to=1), node("MatMul", ["x", "v"], ["y"])],
     {"w": np.array([[-5], [6]], np.int8)}, [1, 2], 17, [[1, 2]], [7]),
    # int8 weights (w - 1) * .5
    ("weights by DequantizeLinear",
     [node("DequantizeLinear", ["w", "s", "z"], ["v"]), node("MatMul", ["x", "v"], ["y"])],
     {"w": np.array([[5], [-3]], np.int8), "s": f(0.5), "z": np.array(1, np.int8)},
     [1, 2], 17, [[1, 10]], [-18]),
    ("Dropout with a mask", [node("Dropout", ["x"], ["u", "m"]), node("Neg", ["u"], ["y"])],
     {}, [1, 2], 12, [[1, 2]], [-1, -2]),
    ("MaxPool with indices", [node("MaxPool", ["x"], ["y", "m"], kernel_shape=[2])],
     {}, [1, 1, 3], 12, [[[1, 5, 2]]], [5, 5]),
    # the window at the border holds padding, which never wins
    ("MaxPool SAME_UPPER",
     [node("MaxPool", ["x"], ["y"], kernel_shape=[2], auto_pad="SAME_UPPER")],
     {}, [1, 1, 3], 12, [[[-1, -5, -2]]], [-1, -2, -2]),
    ("AveragePool with ceil_mode",
     [node("AveragePool", ["x"], ["y"], kernel_shape=[2], strides=[2], ceil_mode=1)],
     {}, [1, 1, 3], 13, [[[2, 4, 9]]], [3, 9]),
    ("Conv with unequal pads", [node("Conv", ["x", "w"], ["y"], pads=[2, 0])],
     {"w": f([[[1, 10]]])}, [1, 1, 2], 13, [[[3, 4]]], [0, 30, 43]),
    ("ConvTranspose with unequal pads", [node("ConvTranspose", ["x", "w"], ["y"], pads=[1, 0])],
     {"w": f([[[1, 10]]])}, [1, 1, 2], 13, [[[3, 4]]], [34, 40]),
    ("Flatten from the back", [node("Flatten", ["x"], ["y"], axis=-2)],
     {}, [1, 2, 2], 13, [[[1, 2], [3, 4]]], [1, 2, 3, 4]),
    # before version 13 all axes from the first named one on count as one
    ("Softmax-11", [node("Softmax", ["x"], ["y"], axis=1)],
     {}, [1, 2, 2], 11, [[[0, 0], [0, 0]]], [0.25] * 4),
    ("Softmax-13", [node("Softmax", ["x"], ["y"], axis=1)],
     {}, [1, 2, 2], 13, [[[0, 0], [0, 0]]], [0.5] * 4),
    ("BatchNormalization-9", [node("BatchNormalization", list("xsbmv"), ["y"], epsilon=0.0)],
     {"s": f([3]), "b": f([1]), "m": f([2]), "v": f([9])}, [1, 1, 1], 9, [[[8]]], [7]),
    ("CumSum", [node("CumSum", ["x", "a"], ["y"], reverse=1, exclusive=1)],
     {"a": i(1)}, [1, 3], 17, [[1, 2, 3]], [5, 3, 0]),
    ("TopK", [node("TopK", ["x", "k"], ["y", "n"], largest=0)],
     {"k": i([2])}, [1, 3], 17, [[3, 1, 2]], [1, 2]),
    ("ScatterND", [node("ScatterND", ["x", "n", "u"], ["y"])],
     {"n": i([[[0, 2]]]), "u": f([[8]])}, [1, 3], 17, [[1, 2, 3]], [1, 2, 8]),
    ("Where", [node("Where", ["c", "x", "z"], ["y"])],
     {"c": np.array([True, False]), "z": f(4)}, [1, 2], 17, [[1, 2]], [1, 4]),
    # a shape that is computed from the input's own, with integers
    ("Reshape by Shape",
     [node("Shape", ["x"], ["s"]), node("Gather", ["s", "o"], ["b"]),
      node("Concat", ["b", "r"], ["t"], axis=0), node("Reshape", ["x", "t"], ["y"])],
     {"o": i([0]), "r": i([-1])}, ["N", 2, 2], 17, [[[1, 2], [3, 4]]], [1, 2, 3, 4]),
    ("Concat with ConstantOfShape",
     [node("Shape", ["x"], ["s"]), node("ConstantOfShape", ["s"], ["z"]),
      node("Concat", ["x", "z"], ["y"], axis=1)],
     {}, ["N", 2], 17, [[1, 2]], [1, 2, 0, 0]),
    ("through the samples' axis and back",
     [node("Transpose", ["x"], ["t"], perm=[1, 0, 2]), node("MatMul", ["t", "w"], ["u"]),
      node("Transpose", ["u"], ["y"], perm=[1, 0, 2])],
     {"w": f([[1, 0], [1, 1]])}, ["N", 2, 2], 17, [[[1, 2], [3, 4]]], [3, 2, 7, 4]),
    ("an input without a batch axis", [node("CumSum", ["x", "a"], ["y"])],
     {"a": i(0)}, [3], 17, [1, 2, 3], [1, 3, 6]),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_values_by_hand(read, case):
    _, nodes, constants, shape, opset, x, y = case
    module = read(nodes, constants, shape, opset)
    z = torch.tensor(x, dtype=torch.float64)
    z = z[None] if len(shape) == 1 else z
    both = torch.cat([z, 2 * z + 1])
    got = module(both)
    np.testing.assert_allclose(got[0].flatten(), y, rtol=1e-7)
    torch.testing.assert_close(got[1:], module(both[1:]))


# Name, nodes, constants, shape, operator set, what the error says.
REFUSED = [
    ("unknown operation", [node("Det", ["x"], ["y"], name="d")], {}, [1, 2, 2], 17,
     "got 'Det' at 'd': the ONNX reader has no counterpart"),
    ("unknown domain", [node("Relu", ["x"], ["y"], domain="com.example")], {}, [1, 2], 17,
     r"got 'com\.example\.Relu'"),
    ("Cast to int8", [node("Cast", ["x"], ["q"], to=3), node("Cast", ["q"], ["y"], to=1)],
     {}, [1, 1], 17, "to type 3, which jumps"),
    ("Dropout in training", [node("Dropout", ["x", "r", "t"], ["y"])],
     {"r": f(0.3), "t": np.array(True)}, [1, 2], 17, "in training mode, which is random"),
    ("Dropout's mask", [node("Dropout", ["x"], ["u", "m"]), node("Cast", ["m"], ["y"], to=1)],
     {}, [1, 2], 12, "where its output 1, 'm', is read"),
    ("batch-norm in training",
     [node("BatchNormalization", list("xsbmv"), list("yt"), training_mode=1)],
     {k: f([1]) for k in "sbmv"}, [1, 1, 1], 15, "got it with training_mode=1"),
    ("a bound from the input", [node("ReduceMax", ["x"], ["m"], keepdims=0),
                                node("Clip", ["x", "", "m"], ["y"])],
     {}, [1, 2], 17, "where its input 2 depends on the model's input"),
    ("a crop that wraps", [node("Pad", ["x", "p"], ["y"], mode="wrap")],
     {"p": i([0, -1, 0, 2])}, [1, 4], 19, r"with negative pads \[-1, 2\] and mode=wrap"),
    ("axis beyond the rank", [node("Softmax", ["x"], ["y"], axis=7)], {}, [1, 2], 17,
     "axis 7 on 2 axes"),
    ("missing attribute", [node("Concat", ["x", "x"], ["y"])], {}, [1, 2], 17,
     "Expected the attribute 'axis' on ONNX Concat"),
    ("unknown attribute", [node("Relu", ["x"], ["y"], slope=2.0)], {}, [1, 2], 17,
     "got 'slope', which is unknown"),
    ("samples joined", [node("Softmax", ["x"], ["y"], axis=0)], {}, ["N", 2], 17,
     "Expected samples that do not meet"),
    ("samples flattened", [node("Flatten", ["x"], ["y"], axis=0)], {}, ["N", 2], 17,
     "Expected samples that do not meet"),
    ("samples of a fixed batch", [node("ReduceSum", ["x", "a"], ["y"])], {"a": i([0])}, [4, 2], 17,
     "along the batch axis of size 4"),
    ("1e10 values", [node("Expand", ["x", "s"], ["y"])], {"s": i([1, 100000, 100000, 2])},
     [1, 2], 17, "Expected at most 16777216 values at ONNX Expand"),
    ("1e9 constants", [node("ConstantOfShape", ["s"], ["c"]), node("Add", ["x", "c"], ["y"])],
     {"s": i([1000000000, 1])}, [1, 2], 17, "Expected at most 16777216 values"),
    ("1e12 windows", [node("Pad", ["x", "p"], ["u"]),
                      node("MaxPool", ["u"], ["y"], kernel_shape=[1000000])],
     {"p": i([0, 0, 1000000, 0, 0, 1000000])}, [1, 1, 2], 17, "Expected at most"),
    ("mixed types", [node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((2, 2))}, [1, 2], 17,
     "Expected inputs of one type at ONNX MatMul .* got FLOAT and DOUBLE"),
    ("infinite weights", [node("Add", ["x", "w"], ["y"])], {"w": f(np.inf)}, [1, 2], 17,
     "Expected finite numbers in 'w'"),
    ("no input", [node("Relu", ["w"], ["y"])], {"w": f([[1, 2]])}, [1, 2], 17,
     "an output that depends on its input|output depends on its input"),
    ("a newer operator set", [node("Relu", ["x"], ["y"])], {}, [1, 2], 9999,
     "Expected one ONNX operator set of version 1 to"),
    ("a circle", [node("Add", ["x", "b"], ["y"]), node("Relu", ["y"], ["b"])], {}, [1, 2], 17,
     "Add reads 'b' before anything computes it"),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=[case[0] for case in REFUSED])
def test_refusals(read, case):
    _, nodes, constants, shape, opset, text = case
    with pytest.raises(CaptureError, match=text) as caught:
        read(nodes, constants, shape, opset)
    assert "\n" not in str(caught.value)


def test_jumps_are_left_to_the_capture(tmp_path, read):
    module = read([node("ThresholdedRelu", ["x"], ["y"], alpha=1.0)], {}, [1, 2])
    with pytest.raises(UnsupportedOperationError):
        Network.from_torch(module, (2,))


@pytest.mark.parametrize("name", ["result", "forward", "training", "to", "a/b.c d", "/", "1", ""])
def test_nodes_may_have_any_name(tmp_path, read, name):
    nodes = [node("Relu", ["x"], ["h"], name=name), node("Neg", ["h"], ["y"], name=name)]
    network = Network.from_torch(read(nodes, {}, ["N", 2]), (2,))
    assert network(torch.tensor([[-1.0, 3.0]])).tolist() == [[0, -3]]


def _weights_beside(folder, **entries):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 2])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    x, y = (helper.make_tensor_value_info(k, TensorProto.FLOAT, ["N", 2]) for k in "xy")
    graph = helper.make_graph([node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def test_weights_beside_the_file(tmp_path):
    (tmp_path / "w.bin").write_bytes(b"\0" * 4 + f([[1, 2], [3, 4]]).tobytes())
    path = _weights_beside(tmp_path, location="w.bin", offset=4, length=16)
    module, shape = read_onnx(path, None)
    assert shape == (2,)
    assert module(torch.ones(1, 2)).tolist() == [[4, 6]]


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"location": "/dev/zero", "length": 16}, "got '/dev/zero'"),
        ({"location": "../w.bin", "length": 16}, r"got '\.\./w\.bin'"),
        ({"location": "link", "length": 16}, "got the link 'link'"),
        ({"location": "none", "length": 16}, "no plain file 'none'"),
        ({"location": "pipe", "length": 16}, "no plain file 'pipe'"),
        ({"location": "w.bin", "offset": -4, "length": 16}, "got offset '-4'"),
        ({"location": "w.bin", "offset": "2**9", "length": 16}, "got offset"),
        ({"location": "w.bin", "length": 10**12}, "got bytes 0 to 1000000000000 of 20"),
        ({"location": "w.bin", "offset": 8, "length": 16}, "got bytes 8 to 24 of 20"),
    ],
)
def test_weights_elsewhere_are_not_opened(tmp_path, entries, text):
    import os

    (tmp_path / "w.bin").write_bytes(b"\0" * 20)
    (tmp_path / "link").symlink_to(tmp_path / "w.bin")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CaptureError, match=text):
        read_onnx(_weights_beside(tmp_path, **entries), None)


@pytest.mark.parametrize("kind", ["COMPLEX64", "STRING", "FLOAT"])
def test_sizes_of_tensors_are_compared_with_their_bytes(tmp_path, kind):
    tensor = TensorProto(name="w", data_type=getattr(TensorProto, kind), dims=[10**12, 2])
    tensor.raw_data = b"\0" * 64
    x, y = (helper.make_tensor_value_info(k, TensorProto.FLOAT, ["N", 2]) for k in "xy")
    graph = helper.make_graph([node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    text = "needs 8000000000000 bytes, it has 64" if kind == "FLOAT" else f"got data type {kind}"
    with pytest.raises(CaptureError, match=text):
        read_onnx(tmp_path / "m.onnx", None)


def test_long_files_are_read(tmp_path, read):
    """Once, 300 nodes took 26 s and the time grew with their square."""
    names = ["x", *(f"h{k}" for k in range(999)), "y"]
    nodes = [node("Relu", [a], [b]) for a, b in pairwise(names)]
    read(nodes, {}, ["N", 2])
    operations = inspect(tmp_path / "model.onnx")
    assert [operation.name for operation in operations] == [f"Relu_{k}" for k in range(1000)]
