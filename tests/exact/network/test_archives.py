""".pt2 archives of strangers: refused in one line before anything runs, and nothing is written."""

from __future__ import annotations

import json
import resource
import zipfile
from pathlib import Path

import pytest
import torch
from support.archives import edit_json, insert_node, rewrite, save_pt2
from torch import nn

from bridges.cli import group
from cpwl import CaptureError, Network
from cpwl.network.capture import affine_operations, piecewise_operations
from cpwl.network.files import pure_operations, read_pt2

X = {"as_tensor": {"name": "input"}}
WEIGHT = {"as_tensor": {"name": "p_0_weight"}}
ATEN = "torch.ops.aten."


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Return an archive of a small network."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 4), nn.ReLU(inplace=True), nn.Linear(4, 3))
    return save_pt2(module, (2,), tmp_path_factory.mktemp("archives") / "model.pt2")


def call(name: str, **arguments):
    """Return a change that adds a call."""
    return insert_node(ATEN + name, arguments)


def ints(*values: int) -> dict:
    return {"as_ints": list(values)}


def number(value: float) -> dict:
    return {"as_int" if isinstance(value, int) else "as_float": value}


def text(value: str) -> dict:
    return {"as_string": value}


TRUE = {"as_bool": True}
# nothing of these may run
FORBIDDEN = {
    "from_file": call("from_file.default", filename=text("TARGET"), shared=TRUE, size=number(8)),
    "set_": call("set_.source_Tensor", self=X, source=WEIGHT),
    "resize_": call("resize_.default", self=X, size=ints(10**9)),
    "resize": call("resize.default", self=X, size=ints(10**9)),
    "as_strided": call("as_strided.default", self=X, size=ints(9), stride=ints(10**6)),
    "as_strided_": call("as_strided_.default", self=X, size=ints(9), stride=ints(10**6)),
    "out=": call("add.out", self=X, other=X, out=WEIGHT),
    "out= of a reduction": call("sort.values", self=X, values=WEIGHT, indices=WEIGHT),
    "empty": call("empty.memory_format", size=ints(2, 2)),
    "empty_like": call("empty_like.default", self=X),
    "new_empty": call("new_empty.default", self=X, size=ints(2, 2)),
    "rand": call("rand.default", size=ints(2, 2)),
    "rand_like": call("rand_like.default", self=X),
    "bernoulli": call("bernoulli.default", self=X),
    "normal_": call("normal_.default", self=X),
    "uniform_": call("uniform_.default", self=X),
    "multinomial": call("multinomial.default", self=X, num_samples=number(1)),
    "item": call("item.default", self=X),
    "_local_scalar_dense": call("_local_scalar_dense.default", self=X),
    "nonzero": call("nonzero.default", self=X),
    "view of bits": call("view.dtype", self=X, dtype={"as_scalar_type": 5}),
    "_foreach_": call("_foreach_add_.Scalar", self={"as_tensors": [X["as_tensor"]]}),
    "pin_memory": call("pin_memory.default", self=X),
    "_reshape_alias": call("_reshape_alias.default", self=X, size=ints(9), stride=ints(9)),
    "native_batch_norm": call("native_batch_norm.default", input=X),
    "prims": insert_node("torch.ops.prims.svd.default", {"self": X}),
    "another library": insert_node("torch.ops.profiler._record_function_enter.default", {}),
    "higher order": insert_node("torch.ops.higher_order.cond", {}),
    "builtins": insert_node("builtins.exec", {"self": text("1")}),
    "_operator": insert_node("_operator.attrgetter", {"self": text("x")}),
    "TorchScript": insert_node(ATEN + "sort.str", {"self": text("x")}),
    "dropout in training": call("dropout.default", input=X, p=number(0.5), train=TRUE),
    "batch norm in training": call("batch_norm.default", input=X, training=TRUE),
    "attention with dropout": call(
        "scaled_dot_product_attention.default", query=X, key=X, value=X, dropout_p=number(0.1)
    ),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_an_operation_that_does_more_than_compute_is_refused_by_name(
    model, tmp_path, monkeypatch, what
) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"untouched")
    evil = rewrite(model, tmp_path / "evil.pt2", FORBIDDEN[what])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "TARGET").write_bytes(b"untouched")
    monkeypatch.setattr(torch._ops.OpOverload, "__call__", _never)
    with pytest.raises(CaptureError, match="Expected only ATen operations that compute") as failed:
        read_pt2(evil, None)
    assert "\n" not in str(failed.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["TARGET", "evil.pt2", "target"]
    assert (tmp_path / "TARGET").read_bytes() == b"untouched"


def _never(*arguments, **options):
    raise AssertionError("an operation ran")


# these would take memory, or write where they may not
UNFIT = {
    "full": (call("full.default", size=ints(10**10), fill_value=number(1)), "bytes where"),
    "zeros": (call("zeros.default", size=ints(10**5, 10**5)), "bytes where"),
    "arange": (call("arange.default", end=number(10**11)), "bytes where"),
    "eye": (call("eye.default", n=number(10**6)), "bytes where"),
    "constants in small parts": (
        lambda members: [
            insert_node(ATEN + "ones.default", {"size": ints(2**22)}, name=f"part{k}")(members)
            for k in range(9)
        ],
        "bytes where",
    ),
    "repeat": (call("repeat.default", self=X, repeats=ints(10**5, 10**5)), "bytes where"),
    "pad": (
        call("constant_pad_nd.default", self=X, pad=ints(0, 10**9), value=number(0)),
        "bytes where",
    ),
    "expand and clone": (
        lambda members: (
            call("clone.default", self={"as_tensor": {"name": "wide"}})(members),
            insert_node(
                ATEN + "expand.default", {"self": WEIGHT, "size": ints(10**9, 4, 2)}, name="wide"
            )(members),
        ),
        "bytes where",
    ),
    "inside an operation": (
        call("cdist.default", x1={"as_tensor": {"name": "p_0_weight"}}, x2=WEIGHT, p=text("x")),
        "'aten.cdist.default'",
    ),
    "upsample": (
        call("upsample_nearest1d.default", self=X, output_size=ints(10**10)),
        "aten.upsample_nearest1d.default",
    ),
    "in place on a weight": (call("relu_.default", self=WEIGHT), "it writes into a weight"),
    "in place on a weight's view": (
        lambda members: (
            call("fill_.Scalar", self={"as_tensor": {"name": "seen"}}, value=number(1))(members),
            insert_node(ATEN + "t.default", {"self": WEIGHT}, name="seen")(members),
        ),
        "it writes into a weight",
    ),
    "a list times a number": (
        insert_node("_operator.mul", {"a": ints(0), "b": number(10**12)}),
        "something else than numbers",
    ),
    "long products": (
        insert_node("_operator.mul", {"a": number(2**40), "b": number(2**40)}),
        "longer than 62 bits",
    ),
    "part of a tensor": (insert_node("_operator.getitem", {"a": X, "b": number(0)}), "has none"),
    "scales": (
        lambda members: (
            call(
                "upsample_nearest1d.default", self={"as_tensor": {"name": "signal"}},
                output_size=ints(4), scales=number(1e-9),
            )(members),
            insert_node(
                ATEN + "unsqueeze.default", {"self": X, "dim": number(0)}, name="signal"
            )(members),
        ),
        "its scale 1e-09 does not take 2 to 4",
    ),
    "short statistics": (
        call(
            "_native_batch_norm_legit_no_training.default", input=X,
            weight={"as_none": True}, bias={"as_none": True},
            running_mean={"as_tensor": {"name": "p_0_bias"}},
            running_var={"as_tensor": {"name": "p_0_bias"}},
            momentum=number(0.1), eps=number(0.1),
        ),
        "not of 2 channels",
    ),
    "whole numbers": (
        lambda members: (
            call("div.Tensor_mode", self={"as_tensor": {"name": "whole"}},
                 other={"as_tensor": {"name": "whole"}}, rounding_mode=text("trunc"))(members),
            insert_node(ATEN + "arange.default", {"end": number(3)}, name="whole")(members),
        ),
        "it divides whole numbers",
    ),
    "shapes": (call("mm.default", self=X, mat2=WEIGHT), "'aten.mm.default' at 'added'"),
    "kinds": (call("add.Tensor", self=X, other=text("x")), "'aten.add.Tensor'"),
    "a value that is not there": (
        call("relu.default", self={"as_tensor": {"name": "gone"}}), "lacks or changes 'gone'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", UNFIT)
def test_a_call_that_does_not_fit_is_refused_on_shapes_alone(model, tmp_path, what) -> None:
    change, message = UNFIT[what]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CaptureError, match="got") as failed:
        read_pt2(rewrite(model, tmp_path / "evil.pt2", change), None)
    assert message in str(failed.value)
    assert "\n" not in str(failed.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_exact_networks_may_hold_less_than_decoders(model, tmp_path) -> None:
    wide = call("repeat.default", self=X, repeats=ints(1, 2**26))  # 512 MiB for each sample
    path = rewrite(model, tmp_path / "wide.pt2", wide)
    read_pt2(path, None)
    with pytest.raises(CaptureError, match="bytes where"):
        Network.load(path)


def _meta(content: dict) -> dict:
    return content["config"]["0.weight"]["tensor_meta"]


def weight(**changes):
    """Return a change of the first weight's description."""
    return edit_json(
        "data/weights/model_weights_config.json", lambda content: _meta(content).update(changes)
    )


def entry(**changes):
    return edit_json(
        "data/weights/model_weights_config.json",
        lambda content: content["config"]["0.weight"].update(changes),
    )


def replaced(body: bytes):
    return lambda members: members.update({"models/model.json": body})


def graph(change):
    return edit_json("models/model.json", lambda content: change(content["graph_module"]))


def deep_path(module: dict) -> None:
    path = ".".join("a" * 9999)
    module["graph"]["nodes"][0]["metadata"]["nn_module_stack"] = f"x,{path},torch.nn.ReLU"


def escape(module: dict) -> None:
    module["graph"]["nodes"][0]["metadata"]["nn_module_stack"] = "x,\x1b[2J,torch.nn.ReLU"


SIZES = [{"as_int": 10**6}, {"as_int": 10**6}]
DAMAGED = {
    "a weight of stride 0": (
        weight(sizes=SIZES, strides=[{"as_int": 0}] * 2), "a tensor of sizes [1000000, 1000000]"
    ),
    "overlapping strides": (
        weight(sizes=[{"as_int": 4}] * 14, strides=[{"as_int": 0}] * 14), "a tensor of sizes"
    ),
    "a weight beyond its bytes": (weight(sizes=SIZES), "values of torch.float32 in 32 bytes"),
    "an offset": (weight(storage_offset={"as_int": 10**12}), "in 32 bytes"),
    "a negative stride": (weight(strides=[{"as_int": -2}, {"as_int": 1}]), "'-2' where a size"),
    "a long size": (weight(sizes=[{"as_int": 10**30}]), "where a size is needed"),
    "a size in text": (weight(sizes=[{"as_int": "4"}]), "'4' where a size is needed"),
    "no strides": (weight(strides=[]), "damaged"),
    "another dtype": (weight(dtype=99), "lacks or changes 99"),
    "a pickle": (entry(use_pickle=True), "a pickle for '0.weight' that could run code"),
    "a file elsewhere": (entry(path_name="../../../etc/passwd"), "lacks or changes"),
    "many tensors of one member": (
        edit_json(
            "data/weights/model_weights_config.json",
            lambda content: content["config"].update(
                {
                    f"w{k}": {
                        "path_name": "weight_0", "use_pickle": False,
                        "tensor_meta": dict(_meta(content), sizes=[{"as_int": 2**22}],
                                            strides=[{"as_int": 0}]),
                    }
                    for k in range(999)
                }
            ),
        ),
        "a tensor of sizes",
    ),
    "not JSON": (replaced(b"{"), "damaged or truncated"),
    "a list": (replaced(b"[1]"), "lacks or changes"),
    "text": (replaced(b'"x"'), "lacks or changes"),
    "depth": (replaced(b"[" * 200_000), "JSON that is nested too deeply"),
    "deep objects": (replaced(b'{"a":' * 200_000), "JSON that is nested too deeply"),
    "NaN": (replaced(b'{"graph_module": NaN}'), "NaN in a file without such numbers"),
    "infinity": (replaced(b'{"graph_module": -Infinity}'), "-Infinity in a file"),
    "a long number": (replaced(b'{"a": ' + b"1" * 10_000 + b"}"), "damaged or truncated"),
    "a key twice": (replaced(b'{"a": 1, "a": 2}'), "the key 'a' twice"),
    "bytes": (replaced(b"\xff\xfe"), "damaged or truncated"),
    "no model": (lambda members: members.pop("models/model.json"), "without models/model.json"),
    "no nodes": (graph(lambda module: module["graph"].pop("nodes")), "lacks or changes 'nodes'"),
    "another output": (
        graph(
            lambda module: module["signature"]["output_specs"][0]["user_output"].update(
                arg={"as_tensor": {"name": "gone"}}
            )
        ),
        "lacks or changes 'gone'",
    ),
    "a large input": (
        graph(lambda module: module["graph"]["tensor_values"]["input"].update(
            sizes=[{"as_int": 2}, {"as_int": 10**12}])),
        "an input of shape",
    ),
    "a large batch": (
        graph(lambda module: module["graph"]["tensor_values"]["input"].update(
            sizes=[{"as_int": 10**17}, {"as_int": 2}])),
        "where a size is needed",
    ),
    "a deep path": (graph(deep_path), "a module path"),
    "a path that drives the terminal": (graph(escape), r"a module path '\x1b[2J"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_archive_is_refused_in_one_line(model, tmp_path, what) -> None:
    change, message = DAMAGED[what]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CaptureError, match=r"Expected .*, got ") as failed:
        read_pt2(rewrite(model, tmp_path / "evil.pt2", change), None)
    assert message in str(failed.value)
    assert "\n" not in str(failed.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_compressed_members_are_refused_without_unpacking(model, tmp_path) -> None:
    bomb = rewrite(
        model, tmp_path / "bomb.pt2",
        lambda members: members.update({"models/model.json": b" " * 10**7}), zipfile.ZIP_DEFLATED,
    )  # fmt: skip
    assert bomb.stat().st_size < 200_000
    with pytest.raises(CaptureError, match="is compressed or encrypted, not stored"):
        read_pt2(bomb, None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../outside", "a member of the name '../outside'"),
        ("/etc/passwd", "a member of the name '/etc/passwd'"),
        ("model\\x", "a member of the name"),
        ("other/models/model.json", "its members lie in several folders"),
        ("model/models/model.json", "two members of the name"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_of_members_are_checked(model, tmp_path, name, message) -> None:
    evil = rewrite(model, tmp_path / "evil.pt2", lambda members: None)
    with zipfile.ZipFile(evil, "a") as archive:
        archive.writestr(name, b"{}")
    with pytest.raises(CaptureError) as failed:
        read_pt2(evil, None)
    assert message in str(failed.value)


def test_members_that_are_not_needed_are_not_opened(model, tmp_path) -> None:
    def add(members: dict[str, bytes]) -> None:
        members["data/sample_inputs/model.pt"] = b"no pickle at all"
        members["extra/notes"] = b"\x80\x04."

    read_pt2(rewrite(model, tmp_path / "more.pt2", add), None)


def test_what_a_file_may_name_computes_and_writes_nothing() -> None:
    aten, found = torch.ops.aten, 0
    for name in {*pure_operations.PURE, *pure_operations.IN_PLACE}:
        allowed = [o for o in getattr(aten, name).overloads()
                   if pure_operations.find_operation(name, o)]  # fmt: skip
        assert allowed, name
        found += len(allowed)
        for overload in allowed:
            operation = getattr(getattr(aten, name), overload)
            random = torch.Tag.nondeterministic_seeded in operation.tags
            assert not random or name in pure_operations.SWITCHES, name
            assert operation._schema.is_mutable == (name in pure_operations.IN_PLACE)
            assert not any(argument.is_out for argument in operation._schema.arguments)
    assert 550 < found < 700


def test_a_file_may_name_what_a_module_may() -> None:
    known = {*affine_operations.TABLE, *piecewise_operations.TABLE}
    named = pure_operations.PURE | {*pure_operations.IN_PLACE}
    # its kernel reads beyond statistics that are too short; the size of its result is not known
    # before it runs; torch.export does not write it
    left_out = {"native_batch_norm", "masked_select", "_grid_sampler_2d_cpu_fallback"}
    assert {name for name in known - named if hasattr(torch.ops.aten, name)} == left_out


def test_values_are_computed_in_place_and_the_callers_input_stays(tmp_path) -> None:
    class Writes(nn.Module):
        def forward(self, x):
            y = torch.relu_(x)
            y = y * 2
            part = y[:, 0]
            part += 1
            return y + torch.tensor(float("inf")).clamp(max=3.0)

    path = save_pt2(Writes(), (2,), tmp_path / "writes.pt2")
    module, shape = read_pt2(path, None)
    x = torch.tensor([[-1.0, 2.0], [3.0, -4.0], [5.0, 6.0]])
    before = x.clone()
    expected = [[4.0, 7.0], [10.0, 3.0], [14.0, 15.0]]
    assert module(x).tolist() == expected
    assert torch.equal(x, before)
    assert shape == (2,)


def test_masks_and_repeats_of_constants_have_known_shapes(tmp_path) -> None:
    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([True, False, True]))

        def forward(self, x):
            return x[:, self.mask].repeat_interleave(2, 1)

    path = save_pt2(Picks(), (3,), tmp_path / "picks.pt2")
    module, _ = read_pt2(path, None)
    assert module(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[1.0, 1.0, 3.0, 3.0]]


SMOOTH = {
    "attention": lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True),
    "group norm": lambda: nn.Sequential(
        nn.Unflatten(1, (4, 5)), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv1d(4, 4, 3), nn.GELU()
    ),
    "resampling": lambda: nn.Sequential(
        nn.Unflatten(1, (4, 5, 1)), nn.Upsample(scale_factor=2, mode="bicubic"),
        nn.ConvTranspose2d(4, 4, 3), nn.InstanceNorm2d(4), nn.PixelShuffle(2), nn.Softmax(1),
    ),
    "recurrent": lambda: _Last(nn.GRU(8, 4, batch_first=True)),
    "lstm": lambda: _Last(nn.LSTM(8, 4, batch_first=True)),
    "others": lambda: _Others(),
}  # fmt: skip


class _Last(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x)[0]


class _Others(nn.Module):
    def forward(self, x):
        y = torch.einsum("bi,bj->bij", x, x).exp().log1p() / (1 + x.pow(2).mean(1))[:, None, None]
        y = torch.bmm(y, y).var(1).rsqrt() + torch.arange(20, device=x.device)
        return torch.where(y > 0, torch.erf(y), y.sigmoid()).to(torch.float64).float()


@pytest.mark.parametrize("what", SMOOTH)
def test_smooth_decoders_are_read(tmp_path, what) -> None:
    torch.manual_seed(0)
    module = SMOOTH[what]().eval()
    shape = (3, 8) if what in ("attention", "recurrent", "lstm") else (20,)
    path = save_pt2(module, shape, tmp_path / "smooth.pt2")
    x = torch.randn(3, *shape)
    with torch.no_grad():
        torch.testing.assert_close(read_pt2(path, None)[0](x), module(x))


def test_reading_is_linear_in_the_number_of_operations(model, tmp_path) -> None:
    def long(program: dict) -> None:
        nodes = program["graph_module"]["graph"]["nodes"]
        relu = next(node for node in nodes if node["target"].endswith("relu_.default"))
        place, name = nodes.index(relu), relu["inputs"][0]["arg"]["as_tensor"]["name"]
        chain = []
        for k in range(3000):
            text = json.dumps(relu).replace(f'"{name}"', f'"x{k}"' if k else f'"{name}"')
            chain.append(json.loads(text.replace('"relu_"', f'"x{k + 1}"')))
        chain.append(json.loads(json.dumps(relu).replace(f'"{name}"', '"x3000"')))
        nodes[place : place + 1] = chain

    path = rewrite(model, tmp_path / "long.pt2", edit_json("models/model.json", long))
    # torch's own memory of shapes: as many fakes as operations, each of them once
    module, _ = read_pt2(path, None)
    assert len(module.calls) == 3003


def test_the_command_refuses_in_one_line_and_writes_nothing(model, tmp_path, capsys) -> None:
    target = tmp_path / "victim"
    target.write_bytes(b"untouched")
    steal = insert_node(
        ATEN + "from_file.default", {"filename": text(str(target)), "shared": TRUE}
    )  # fmt: skip
    evil = rewrite(model, tmp_path / "evil.pt2", steal)
    with pytest.raises(SystemExit) as stopped:
        group.main(["info", str(evil)])
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    assert err.startswith("cpwl: Expected only ATen operations")
    assert err.count("\n") == 1
    assert target.read_bytes() == b"untouched"
