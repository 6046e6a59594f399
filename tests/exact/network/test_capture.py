"""Capture's errors, rounding bounds against exact arithmetic, and model files."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import cpwl
from cpwl.network.network import CaptureError, Network, UnsupportedOperationError, inspect


class Call(nn.Module):
    """A function after a linear layer, as a module."""

    def __init__(self, function):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.function = function

    def forward(self, x):
        return self.function(self.linear(x))


REFUSED = [
    (functional.silu, "'silu' at 'silu'"),
    (lambda x: functional.softmax(x, 1), "'softmax'"),
    (lambda x: functional.layer_norm(x, (4,)), "'layer_norm'"),
    (lambda x: x * x, "multiplies two tensors that both depend on the input"),
    (lambda x: x @ x.T, "multiplies two tensors that both depend on the input"),
    (lambda x: x / (1 + x.abs()), "divides by a tensor that depends on the input"),
    (torch.floor, "'floor' at 'floor': it jumps; only inside a triangle wave"),
    (lambda x: x % 1.0, "'remainder'"),
    (torch.sin, "only inside a triangle wave"),
    (lambda x: torch.abs(torch.remainder(x, 1.0) - 0.3), "'remainder'"),
    (lambda x: functional.threshold(x, 0.0, 1.0), "it jumps from 1.0 to 0.0 at its threshold"),
    (functional.hardshrink, "it jumps by 0.5 where the two sides of its condition are equal"),
    (lambda x: torch.where(x > 0, x, 0.1), "write it with relu, clamp, abs or maximum"),
    (lambda x: functional.dropout(x), "dropout in training mode is random"),
    (lambda x: x + torch.rand(4, generator=torch.Generator().manual_seed(0)), "it is random"),
    (lambda x: x - x.mean(0), "reduces over the batch axis"),
    (lambda x: x.int().to(x.dtype), "rounds input-dependent values to torch.int32"),
]


@pytest.mark.parametrize(("function", "text"), REFUSED)
def test_refused_operation_is_named(function, text):
    with pytest.raises(UnsupportedOperationError) as error:
        Network.from_torch(Call(function), (4,))
    assert text in str(error.value)
    assert re.search("[Uu]se approx(, which| for the whole)", str(error.value))
    listed = inspect(Call(function), (4,))
    assert "refused" in {op.kind for op in listed}
    assert any(op.name == "linear" and op.kind == "affine" for op in listed)


def test_refused_operation_names_its_module_path():
    module = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.SiLU()))
    with pytest.raises(UnsupportedOperationError, match=r"got 'silu' at '1\.1'") as error:
        Network.from_torch(module, (2,))
    assert (error.value.operation, error.value.place) == ("silu", "1.1")
    kinds = {op.name: op.kind for op in inspect(module, (2,))}
    assert kinds == {"0": "affine", "1.0": "cpwl", "1.1": "refused"}


@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_trailing_squashing_suggests_upto(name):
    module = Call(lambda x: (getattr(torch, name)(x) + 1) / 2)
    with pytest.raises(UnsupportedOperationError, match=f"Pass upto='{name}' to stop at its"):
        Network.from_torch(module, (4,))
    assert Network.from_torch(module, (4,), upto=name).num_units == 0


def test_squashing_on_a_branch_does_not_suggest_upto():
    with pytest.raises(UnsupportedOperationError, match="Use approx"):
        Network.from_torch(Call(functional.tanhshrink), (4,))


ERRORS = [
    (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), (4,), None,
     r"evaluation mode, got BatchNorm1d at '1' in training mode\. Call module\.eval\(\)"),
    (nn.Sequential(nn.Dropout()), (4,), None, r"got Dropout at '0' in training mode"),
    (nn.Linear(3, 4), (4,), None, r"float64 batch of shape \(N, 4\).*Give the shape of one sample"),
    (nn.Linear(3, 4), (), None, r"Expected input_shape as positive sizes of one sample, got \(\)"),
    (nn.LSTM(4, 2), (4, 4), None, r"output is one tensor, got a tuple of 2\. Choose one: output=0"),
    (Call(lambda x: x.sum()), (4,), None, r"output with the batch axis first, got shape \(\)"),
    (Call(lambda x: x.argmax(1)), (4,), None, r"floating-point output, got torch\.int64"),
    (Call(lambda x: x[:, :0]), (4,), None, r"output with entries, got shape \(2, 0\)"),
    (Call(lambda x: x.scatter(1, torch.tensor([[0, 0]]).expand(x.shape[0], -1), 2 * x[:, :2])),
     (4,), None, r"Where two numbers are written to one place, .* make the places distinct"),
    (Call(lambda x: x.reshape(2, 4)), (4,), None, r"with a free batch axis.*view\(1, -1\)"),
    (Call(lambda x: x.flip(0)), (4,), None, r"mixes the samples of a batch"),
    (Call(lambda x: 0 * torch.ones(x.shape[0], 1)), (4,), None, r"got a constant output"),
    (Call(torch.relu), (4,), "tanh", r"upto= to name an operation or submodule, got 'tanh'"),
    (nn.ReLU(), None, None, r"Expected input_shape as positive sizes of one sample, got None"),
    (nn.ReLU(), torch.zeros(1, 2), None, r"got a Tensor of shape \(1, 2\)\. Leave the batch"),
    (torch.ones(4), (4,), None, r"Expected a torch\.nn\.Module, or a method .* got Tensor"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "shape", "upto", "text"), ERRORS)
def test_error_says_what_to_do(module, shape, upto, text):
    with pytest.raises(CaptureError, match=f"(?s){text}"):
        Network.from_torch(module, shape, upto=upto)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_parameter_that_is_not_finite_is_named(value):
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    module[0].bias.data[1] = value
    with pytest.raises(CaptureError, match=r"got NaN or infinity in '0\.bias'"):
        Network.from_torch(module, (2,))


def test_points_of_the_wrong_shape():
    network = Network.from_torch(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), (2,))
    with pytest.raises(ValueError, match=r"shape \(N, 2\), got \(3,\)\. Put the batch axis first"):
        network(torch.zeros(3))


def test_flat_points_and_domains_fit_inputs_of_as_many_entries():
    image = Network.from_torch(nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU()), (1, 2, 2))
    z = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(image(z), image(z.view(5, 1, 2, 2)))
    plane = cpwl.Slice.through(*z[:3])
    domain = plane.box([-1, -1], [1, 1])
    whole = cpwl.subdivide(image, domain, progress=False)
    images = cpwl.Slice.through(*z[:3].view(3, 1, 2, 2)).box([-1, -1], [1, 1])
    shaped = cpwl.subdivide(image, images, progress=False)
    assert whole.domain.slice.latent_shape == (1, 2, 2)
    assert np.array_equal(whole.points, shaped.points)
    assert np.array_equal(plane.project(z.view(5, 1, 2, 2)), plane.project(z))
    assert np.array_equal(whole.domain.slice.project(z), plane.project(z))
    # the other way round: images into a network of vectors
    flat = Network.from_torch(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), (4,))
    assert torch.equal(flat(z.view(5, 1, 2, 2)), flat(z))
    assert cpwl.subdivide(flat, images, progress=False).domain.slice.latent_shape == (4,)
    # two shapes that are not flat have no common order
    for given in (torch.zeros(5, 2, 2, 1), torch.zeros(5, 3), torch.zeros(4)):
        with pytest.raises(ValueError, match=r"shape \(N, 1, 2, 2\) or \(N, 4\), got"):
            image(given)
    other = cpwl.Slice(np.zeros((2, 2, 1)), np.eye(4)[:2].reshape(2, 2, 2, 1)).box([-1, -1], [1, 1])
    with pytest.raises(ValueError, match=r"of shape \(1, 2, 2\), got \(2, 2, 1\)\. Build it"):
        cpwl.subdivide(image, other, progress=False)


def test_periodic_knots_need_a_range():
    network = Network.from_torch(Call(lambda x: (x % 1 - 0.5).abs()), (4,))
    assert network.stage_is_periodic(0)
    with pytest.raises(ValueError, match="Expected low and high for the periodic units of stage 0"):
        network.knots(0)
    low, high = np.full(4, -0.5), np.full(4, 1.0)
    knots = network.knots(0, low, high)
    np.testing.assert_array_equal(knots.value.reshape(4, 2), [[0.0, 0.5]] * 4)
    np.testing.assert_array_equal(knots.base, [-1] * 4)


def exact_stages(layers, point):
    """Pre-activations of linear layers with leaky slopes, in rational arithmetic."""
    x = [Fraction(float(value)) for value in point]
    stages = []
    for layer, slope in layers:
        weight, bias = layer.weight.tolist(), layer.bias.tolist()
        h = [
            sum((Fraction(w) * v for w, v in zip(row, x, strict=True)), Fraction(b))
            for row, b in zip(weight, bias, strict=True)
        ]
        stages.append(h)
        x = [value if value > 0 else Fraction(slope) * value for value in h]
    return stages


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_rounding_error_bounds_the_exact_error(scale):
    torch.manual_seed(0)
    layers = [(nn.Linear(3, 12).double(), 0.1), (nn.Linear(12, 9).double(), 0.3),
              (nn.Linear(9, 5).double(), 0.0)]  # fmt: skip
    modules = [part for layer, slope in layers for part in (layer, nn.LeakyReLU(slope))]
    network = Network.from_torch(nn.Sequential(*modules), (3,))
    z = scale * torch.randn(40, 3, dtype=torch.float64)
    exact = [exact_stages(layers, row) for row in z]
    for stage in range(3):
        values, bound, fresh = network.rounding_errors(z, stage)
        assert torch.equal(bound, network.rounding_error(z, stage))
        assert (fresh <= bound).all()
        assert (fresh > 0).all()
        errors = np.array([
            [abs(float(Fraction(v) - e)) for v, e in zip(row, one[stage], strict=True)]
            for row, one in zip(values.tolist(), exact, strict=True)
        ])  # fmt: skip
        assert (errors <= bound.numpy()).all()
        magnitude = values.abs().amax(0).numpy()
        assert (bound.numpy() <= 1e-12 * magnitude.max()).all()
        assert errors.max() > 0


@pytest.mark.parametrize("name", ["image", "joined"])
def test_rounding_error_bounds_a_float32_copy(name):
    """The bound scaled to float32's unit roundoff holds for the same steps in float32."""
    torch.manual_seed(1)
    image = nn.Sequential(
        nn.Linear(3, 32), nn.Unflatten(1, (2, 4, 4)), nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4), nn.LeakyReLU(0.1), nn.MaxPool2d(3, 2, 1), nn.Upsample(scale_factor=2),
        nn.ConvTranspose2d(4, 2, 4, 2, 1), nn.AvgPool2d(2), nn.Hardtanh(-0.2, 0.2), nn.Flatten(),
        nn.Linear(32, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(),
    )  # fmt: skip
    joined = Call(lambda x: (torch.cat([x, 1 - x / 3], 1).abs()[:, :4] + 7 * x).relu())
    module, shape = (image.eval(), (3,)) if name == "image" else (joined, (4,))
    network = Network.from_torch(module, shape)
    z = torch.randn(50, *shape)
    last = network.num_stages - 1
    head = network.groups[-1]
    assert head.kind == "relu"
    values, bound, _ = network.rounding_errors(z.double(), last)
    if name == "image":
        single = module[:-1](z)
    else:
        x = module.linear(z)
        single = torch.cat([x, 1 - x / 3], 1).abs()[:, :4] + 7 * x
    error = (single.double() - values).abs().amax(0)
    assert (error <= bound * 2.0**29 * 1.01).all()
    assert bound.max() <= 1e-11


def save(tmp_path, module, shape, **options):
    example = (torch.randn(2, *shape),)
    batch = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(module.eval(), example, dynamic_shapes=batch, **options)
    path = tmp_path / "model.pt2"
    torch.export.save(exported, path)
    return path


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
class TestArchive:
    """Files of torch.export.save."""

    def module(self):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3), nn.Tanh(),
        ).eval()  # fmt: skip

    def test_equals_the_module(self, tmp_path):
        module = self.module()
        path = save(tmp_path, module, (2, 4, 4))
        network = Network.load(path, upto="tanh")
        z = torch.randn(5, 2, 4, 4, dtype=torch.float64)
        expected = module.double()(z).detach()
        torch.testing.assert_close(torch.tanh(network(z)), expected, rtol=1e-12, atol=1e-12)
        assert [group.name for group in network.groups] == ["2", "3", "3"]
        assert [op.kind for op in inspect(path)][-1] == "refused"

    def test_code_in_a_weight_is_refused_and_not_run(self, tmp_path):
        path = save(tmp_path, self.module(), (2, 4, 4))
        marker = tmp_path / "executed"

        class Harmful:
            def __reduce__(self):
                return open, (str(marker), "w")

        evil = tmp_path / "evil.pt2"
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(evil, "w") as new:
            for name in old.namelist():
                body = old.read(name)
                if name.endswith("model_weights_config.json"):
                    config = json.loads(body)
                    config["config"]["0.weight"]["use_pickle"] = True
                    body = json.dumps(config).encode()
                if name.endswith(("weights/weight_0", "sample_inputs/model.pt")):
                    body = pickle.dumps(Harmful())
                new.writestr(name, body)
        with pytest.raises(CaptureError, match=r"pickle for '0\.weight' that could run code"):
            Network.load(evil)
        assert not marker.exists()

    def test_foreign_operation_is_refused(self, tmp_path):
        path = save(tmp_path, self.module(), (2, 4, 4))
        evil = tmp_path / "evil.pt2"
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(evil, "w") as new:
            for name in old.namelist():
                body = old.read(name).replace(b"torch.ops.aten.relu_.default", b"os.system")
                new.writestr(name, body)
        with pytest.raises(
            CaptureError, match=r"only ATen operations .* in 'evil\.pt2', got 'os\.sys"
        ):
            Network.load(evil)

    def test_truncated(self, tmp_path):
        path = save(tmp_path, self.module(), (2, 4, 4))
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(CaptureError, match=r"damaged or truncated.*Copy it again"):
            Network.load(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("model.pth", r"got 'model\.pth', a pickle, .*weights_only=True.*Network\.from_torch"),
        ("model.ckpt", "a pickle"),
        ("model.pkl", "a pickle"),
        ("model.txt", r"Expected a \.onnx or \.pt2 file, got 'model\.txt'"),
        ("missing.pt2", r"Expected a \.pt2 file, got no file at .*Check the path"),
        ("missing.onnx", r"Expected an \.onnx file, got no file at .*Check the path"),
    ],
)
def test_file_of_another_kind(tmp_path, name, text):
    if name.endswith("onnx"):
        pytest.importorskip("onnx")
    with pytest.raises(CaptureError, match=text):
        Network.load(tmp_path / name)


def test_truncated_onnx(tmp_path, data):
    pytest.importorskip("onnx")
    path = tmp_path / "model.onnx"
    path.write_bytes((data / "onnx" / "acasxu_1_1.onnx").read_bytes()[:5000])
    with pytest.raises(CaptureError, match=r"got 'model\.onnx', which is damaged or truncated"):
        Network.load(path)


@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("acasxu_1_1", 300), ("acasxu_2_7", 300), ("acasxu_4_3", 300),
        ("cifar10_resnet_2b", 6244), ("mnist_convnet_maxpool", 40608),
    ],
)  # fmt: skip
def test_onnx_files_equal_the_reference_evaluator(name, units, data):
    pytest.importorskip("onnx")
    from onnx import load
    from onnx.reference import ReferenceEvaluator

    path = data / "onnx" / f"{name}.onnx"
    network = Network.from_onnx(path)
    assert network.num_units == units
    z = torch.rand(3, *network.input_shape)
    source = next(v.name for v in load(path).graph.input
                  if v.name not in {i.name for i in load(path).graph.initializer})  # fmt: skip
    evaluator = ReferenceEvaluator(str(path))
    expected = np.concatenate([evaluator.run(None, {source: row[None].numpy()})[0] for row in z])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(network(z.double()).numpy(), expected, atol=1e-5 * scale)


def test_onnx_operators_equal_the_reference_evaluator(tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    rng = np.random.default_rng(0)
    constants = {
        "w": rng.normal(size=(4, 2, 3, 3)), "scale": rng.normal(size=4), "b": rng.normal(size=4),
        "mean": rng.normal(size=4), "var": rng.uniform(1, 2, size=4),
        "slope": np.full((4, 1, 1), 0.2),
        "low": np.array(-0.5), "high": np.array(0.5), "target": np.array([1, -1]),
        "starts": np.array([1]), "ends": np.array([9]), "axes": np.array([1]),
        "pads": np.array([0, 0, 1, 0, 0, 0, 0, 1]), "scales": np.array([1.0, 1, 2, 2]),
        "dims": np.array([2, 3]),
    }  # fmt: skip
    whole = {"target", "starts", "ends", "axes", "pads", "dims"}
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["a0"]),
        helper.make_node("Conv", ["a0", "w"], ["a1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a1", "scale", "b", "mean", "var"], ["a2"]),
        helper.make_node("PRelu", ["a2", "slope"], ["a3"]),
        helper.make_node("Resize", ["a3", "", "scales"], ["a4"], mode="nearest",
                         coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        helper.make_node("AveragePool", ["a4"], ["a5"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Clip", ["a5", "low", "high"], ["a6"]),
        helper.make_node("LeakyRelu", ["a6"], ["a7"], alpha=0.3),
        helper.make_node("Max", ["a7", "a5"], ["a8"]),
        helper.make_node("Transpose", ["a8"], ["a9"], perm=[0, 2, 3, 1]),
        helper.make_node("Slice", ["a9", "starts", "ends", "axes"], ["b0"]),
        helper.make_node("Concat", ["b0", "a9"], ["b1"], axis=1),
        helper.make_node("Split", ["b1"], ["b2", "b3"], axis=3, num_outputs=2),
        helper.make_node("Sub", ["b2", "b3"], ["b4"]),
        helper.make_node("ReduceMean", ["b4", "dims"], ["b5"], keepdims=1),
        helper.make_node("Mul", ["b4", "high"], ["b6"]),
        helper.make_node("Add", ["b5", "b6"], ["b7"]),
        helper.make_node("Reshape", ["b7", "target"], ["y"]),
    ]  # fmt: skip
    tensors = [
        numpy_helper.from_array(value.astype(np.int64 if key in whole else np.float32), key)
        for key, value in constants.items()
    ]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 2, 4, 4])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, None])
    graph = helper.make_graph(nodes, "graph", [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    network = Network.load(path)
    z = rng.normal(size=(4, 2, 4, 4)).astype(np.float32)
    evaluator = ReferenceEvaluator(str(path))
    expected = np.concatenate([evaluator.run(None, {"x": row[None]})[0] for row in z])
    np.testing.assert_allclose(network(z).numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("offset", [1e8, 1e20, 1e200])
def test_offsets_of_any_size_are_taken(offset):
    """Beside them the difference of two values says nothing about a derivative."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
    ).double()
    with torch.no_grad():
        module[0].bias[0] += min(offset, 1e100)
        module[2].bias[0] += offset
    assert Network.from_torch(module, (2,)).num_units == 8
