"""A monitor measures where it is asked to, leaves no trace in the module, and loses nothing."""

from __future__ import annotations

import copy
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.samples import mlp
from torch import nn

import approx
import cpwl
from bridges import Monitor, MonitorError

LATENTS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def decoder(latents: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(latents, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 5))


def weight(module) -> dict[str, torch.Tensor]:
    return {"weight": module.weight.mean()}


def train(steps, monitor, start=0, module=None):
    """Set the weight to the step: what is measured is then known."""
    module = nn.Linear(1, 1) if module is None else module
    for step in range(start, steps):
        nn.init.constant_(module.weight, float(step))
        monitor(module, step)
    return module


def test_it_measures_every_so_many_steps():
    monitor = Monitor(weight, every=3)
    train(8, monitor)
    assert monitor.columns()["step"].tolist() == [0, 3, 6]
    assert monitor.columns()["weight"].tolist() == [0, 3, 6]
    assert monitor.table.to_dict("list") == {"step": [0, 3, 6], "weight": [0, 3, 6]}


def test_it_measures_at_the_steps_named_and_after_those_that_a_loop_leaves_out():
    named, jumping = Monitor(weight, every={1, 4, 5}), Monitor(weight, every=5)
    train(8, named)
    for step in range(0, 22, 4):
        train(step + 1, jumping, start=step)
    assert named.columns()["step"].tolist() == [1, 4, 5]
    assert jumping.columns()["step"].tolist() == [0, 8, 12, 16, 20]  # first at 5, 10, 15, 20 or on


def test_descriptors_of_latents_are_a_table_by_step_and_latent():
    module = decoder()
    options = {"neighbourhood": None, "seed": 0, "progress": False}
    monitor = Monitor(lambda m: approx.describe(m, LATENTS, **options), every=1)
    psi = []
    for step in range(2):
        monitor(module, step)
        psi.append(approx.describe(copy.deepcopy(module).eval(), LATENTS, **options).psi)
        with torch.no_grad():
            module[0].weight.mul_(2)
    np.testing.assert_array_equal(monitor.columns()["psi"], psi)
    table = monitor.table
    assert table[["step", "row"]].values.tolist() == [[i, j] for i in range(2) for j in range(4)]
    np.testing.assert_array_equal(table["psi"], np.concatenate(psi))
    np.testing.assert_allclose(psi[1] - psi[0], 3 * np.log(2), atol=1e-4)


def test_numbers_beside_arrays_are_repeated_and_images_are_left_to_columns():
    monitor = Monitor(
        lambda m: {"a": 1, "b": torch.arange(2), "c": np.ones((2, 3))[:size]}, every=1
    )
    size = 2
    monitor(nn.Linear(1, 1), 0)
    assert monitor.columns()["c"].shape == (1, 2, 3)
    with pytest.raises(
        ValueError, match=r"got the shapes \[\(2,\), \(2, 3\)\].*\.columns\(\) does"
    ):
        _ = monitor.table
    flat = Monitor(lambda m: {"a": 1, "b": torch.arange(2)}, every=1)
    flat(nn.Linear(1, 1), 7)
    assert flat.table.values.tolist() == [[7, 0, 1, 0], [7, 1, 1, 1]]


def disturbing(module):
    """Do to a module all that a careless measure does."""
    assert not any(part.training for part in module.modules())
    module.train()
    module(LATENTS).sum().backward()
    module[1].running_mean = torch.full((6,), 5.0)
    module[3].requires_grad_(False)
    return {"drawn": torch.rand(()) + random.random() + np.random.rand()}  # noqa: NPY002


@pytest.mark.parametrize("fails", [False, True])
def test_measuring_leaves_the_module_and_all_random_numbers_as_they_were(fails):
    module = decoder().train()
    module[1].eval()  # frozen statistics: the modes of parts differ
    module(LATENTS).square().sum().backward()
    waiting = module(LATENTS).sum()  # a graph that is walked after measuring
    before = copy.deepcopy(module.state_dict()), [part.training for part in module.modules()]
    grads = [p.grad.clone() for p in module.parameters()]

    def measure(m):
        found = disturbing(m)
        return {} if fails else found

    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    expected = torch.rand(()), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    monitor = Monitor(measure, every=1)
    if fails:
        with pytest.raises(MonitorError):
            monitor(module, 0)
    else:
        monitor(module, 0)
    assert (torch.rand(()), random.random(), np.random.rand()) == expected  # noqa: NPY002
    assert [part.training for part in module.modules()] == before[1]
    assert all(torch.equal(before[0][k], v) for k, v in module.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(module.parameters(), grads, strict=True))
    assert all(p.requires_grad for p in module.parameters())
    waiting.backward()


def test_a_table_in_a_file_goes_on_after_a_stop(tmp_path):
    file = tmp_path / "monitor.npz"
    whole = Monitor(weight, every=2)
    train(9, whole)
    train(6, Monitor(weight, every=2, file=file))
    again = Monitor(weight, every=2, file=file)
    assert len(again) == 3
    train(9, again, start=6)
    assert again.table.equals(whole.table)
    assert Monitor(weight, file=file).table.equals(whole.table)
    assert [path.name for path in tmp_path.iterdir()] == ["monitor.npz"]


def test_a_training_that_goes_back_to_a_checkpoint_is_measured_again(tmp_path):
    monitor = Monitor(weight, every=2, file=tmp_path / "monitor.npz")
    train(9, monitor)
    state = copy.deepcopy(monitor.state_dict())
    with pytest.warns(RuntimeWarning, match=r"back to step 4: 3 steps .* are replaced"):
        train(6, monitor, start=4)
    assert monitor.columns()["step"].tolist() == [0, 2, 4]
    monitor.load_state_dict(state)
    assert monitor.columns()["step"].tolist() == [0, 2, 4, 6, 8]
    train(11, monitor, start=8)  # 8 is there: not measured again, without a warning
    assert monitor.columns()["weight"].tolist() == [0, 2, 4, 6, 8, 10]


def test_another_training_does_not_overwrite_a_table(tmp_path):
    file = tmp_path / "monitor.npz"
    train(5, Monitor(weight, every=2, file=file))
    kept = file.read_bytes()
    with pytest.raises(
        MonitorError, match=r"Expected a step after 0, got 0: the table has 3 steps"
    ):
        train(1, Monitor(weight, every=2, file=file))
    assert file.read_bytes() == kept


def test_a_module_whose_latent_size_changes_is_one_error_and_loses_nothing(tmp_path):
    def measure(m):
        return approx.describe(m, LATENTS, neighbourhood=None, seed=0, progress=False)

    monitor = Monitor(measure, every=10, file=tmp_path / "monitor.npz")
    monitor(decoder(), 0)
    with pytest.raises(
        MonitorError, match=r"measure the module at step 10, got .*1 measured steps"
    ):
        monitor(decoder(latents=7), 10)
    assert len(monitor) == len(Monitor(measure, file=tmp_path / "monitor.npz")) == 1
    monitor(decoder(), 20)
    assert monitor.columns()["step"].tolist() == [0, 20]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("psi", "Expected numbers by name, got str"),
        ({}, "Expected numbers by name, got dict"),
        ({"a": "x"}, "got 'a' with str"),
        ({"a": 1j}, "got 'a' with complex"),
        ({"a": None}, "got 'a' with NoneType of object"),
        ({"step": 1.0}, "other than 'step' and 'row', got 'step'"),
        ({"b": 1.0}, r"got 'a' of shape nothing after \(2,\): measure the same latents"),
        ({"a": np.ones(3)}, r"got 'a' of shape \(3,\) after \(2,\)"),
    ],
)
def test_what_is_no_row_of_the_table_is_refused_with_its_step(found, message):
    answers = [{"a": np.ones(2)}, found]
    monitor = Monitor(lambda m: answers[m.answer], every=1)
    module = nn.Linear(1, 1)
    for module.answer in (0, 1):
        if module.answer == 0:
            monitor(module, 3)
    with pytest.raises(MonitorError, match=f"at step 4, got .*{message}"):
        monitor(module, 4)
    assert monitor.table["a"].tolist() == [1, 1]


def test_ctrl_c_keeps_what_is_measured_and_the_step_is_measured_after_it(tmp_path):
    file, stops = tmp_path / "monitor.npz", [False, True, False]

    def measure(module):
        if stops.pop(0):
            raise KeyboardInterrupt
        return weight(module)

    monitor = Monitor(measure, every=4, file=file)
    module = nn.Linear(1, 1)
    with pytest.raises(KeyboardInterrupt):
        train(8, monitor, module=module)
    assert module.training
    assert len(Monitor(weight, file=file)) == 1
    train(5, monitor, start=4)
    assert monitor.columns()["step"].tolist() == [0, 4]


def test_files_of_something_else_and_no_steps_are_refused(tmp_path):
    for name, content in (("text.npz", b"text"), ("empty.npz", b"")):
        (tmp_path / name).write_bytes(content)
    np.savez(tmp_path / "other.npz", a=np.ones(2))
    np.save(tmp_path / "array.npz.npy", np.ones(2))
    for path in tmp_path.iterdir():
        with pytest.raises(
            ValueError, match=r"Expected a table of bridges\.Monitor in .*give another"
        ):
            Monitor(weight, file=path)
    with pytest.raises(ValueError, match="Expected measure as a function of the module, got dict"):
        Monitor({})  # pyright: ignore
    for state in ({}, {"step": [0, 1], "values": {"a": [1.0]}}, {"step": [1, 0], "values": {}}):
        with pytest.raises(ValueError, match="Expected the state_dict of a Monitor, got "):
            Monitor(weight).load_state_dict(state)
    assert Monitor(weight).columns()["step"].shape == (0,)
    assert Monitor(weight).table.empty


def test_a_trainer_of_lightning_calls_it():
    """As pytorch_lightning 2.6 does: every hook by getattr, after each batch, of one process."""
    monitor, module = Monitor(weight, every=2), nn.Linear(1, 1)
    trainer = SimpleNamespace(global_step=0, is_global_zero=True)
    for hook in ("setup", "on_fit_start", "on_train_start", "on_train_epoch_start"):
        getattr(monitor, hook)(trainer, module)
    for batch in range(8):  # gradients of two batches make a step
        nn.init.constant_(module.weight, float(trainer.global_step))
        monitor.on_train_batch_start(trainer, module, None, batch)
        trainer.global_step += batch % 2
        monitor.on_train_batch_end(trainer, module, None, None, batch)
    monitor.on_train_batch_end(SimpleNamespace(global_step=6, is_global_zero=False), module)
    monitor.teardown(trainer, module, stage="fit")
    assert monitor.columns()["step"].tolist() == [0, 2, 4]
    assert monitor.columns()["weight"][1:].tolist() == [1, 3]
    assert not hasattr(monitor, "other")
    assert Monitor(weight, name="a").state_key != Monitor(weight, name="b").state_key


def test_accelerate_logs_to_it():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    module = accelerator.prepare(nn.Linear(1, 1))
    monitor = Monitor(weight, every=2, module=module)
    accelerator.trackers.append(monitor)
    for step in range(5):
        nn.init.constant_(module.weight, float(step))
        accelerator.log({"loss": 0.0}, step=step)
    accelerator.end_training()
    assert monitor.columns()["weight"].tolist() == [0, 2, 4]
    with pytest.raises(ValueError, match="got no step"):
        accelerator.log({"loss": 0.0})
    with pytest.raises(ValueError, match="got no module"):
        Monitor(weight).log({}, step=1)


def test_the_exact_partition_of_a_training_by_loop_lightning_and_accelerate(tmp_path):
    """Each step's numbers are those of a fresh capture of that step's weights."""
    square = cpwl.box([-2, -2], [2, 2])
    module = mlp(2, 6, 3).train()
    network = cpwl.Network.from_torch(module, (2,))

    def measure(m):
        return cpwl.summary(cpwl.subdivide(network.with_weights(m), square, progress=False))

    loop, callback = (Monitor(measure, every=1, file=tmp_path / f"{k}.npz") for k in "ab")
    tracker = Monitor(measure, every=1, module=module)
    expected = []
    for step in range(3):
        with torch.no_grad():
            module[0].weight.add_(0.3)
        loop(module, step)
        callback.on_train_batch_end(SimpleNamespace(global_step=step), module, None, None, step)
        tracker.log({"loss": 0.0}, step=step)
        fresh = cpwl.Network.from_torch(module, (2,))
        expected.append(cpwl.summary(cpwl.subdivide(fresh, square, progress=False)))
    assert module.training
    assert len({row["psi_mean"] for row in expected}) == 3
    for monitor in (loop, callback, tracker):
        table = monitor.table
        assert table["step"].tolist() == [0, 1, 2]
        for name in expected[0].keys() - {"seconds"}:
            np.testing.assert_array_equal(table[name], [row[name] for row in expected], name)
    with pytest.raises(MonitorError, match=r"at step 3, got CaptureError: .* architecture"):
        loop(mlp(2, 7, 3), 3)
    assert len(Monitor(measure, file=tmp_path / "a.npz")) == 3


def test_a_monitor_is_a_stateful_object_of_checkpoints(tmp_path):
    monitor = Monitor(lambda m: {"a": m.weight, "b": 1.0}, every=1)
    train(3, monitor)
    torch.save(monitor.state_dict(), tmp_path / "state.pt")
    again = Monitor(weight)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert {k: v.tolist() for k, v in again.columns().items()} == {
        "step": [0, 1, 2], "a": [[[0.0]], [[1.0]], [[2.0]]], "b": [1.0] * 3,
    }  # fmt: skip


def test_what_a_measure_registers_and_lazy_weights_leave_no_trace():
    def registering(module):
        module.register_buffer("junk", torch.ones(1))
        return {"x": 1.0}

    module = decoder().train()
    Monitor(registering)(module, 0)
    assert "junk" not in module.state_dict()
    lazy = nn.Sequential(nn.LazyLinear(3), nn.Dropout())
    with pytest.raises(MonitorError, match="got ZeroDivisionError"):
        Monitor(lambda m: {"x": 1 / 0})(lazy, 0)
    assert all(part.training for part in lazy.modules())


@pytest.mark.parametrize(
    "every", [0, -3, True, 2.5, "5", None, [], {1.5}, [-1], [True], np.array([]), iter([1])]
)
def test_steps_that_are_none_are_refused(every):
    with pytest.raises(
        ValueError, match=r"Expected every= as an integer .* got .*: 1 is each step"
    ):
        Monitor(weight, every=every)


@pytest.mark.parametrize("every", [np.int64(5), torch.tensor(5), np.array([0, 5]), range(0, 9, 5)])
def test_steps_of_numpy_and_torch_are_steps(every):
    monitor = Monitor(weight, every=every)
    train(9, monitor)
    assert monitor.columns()["step"].tolist() == [0, 5]
    with pytest.raises(ValueError, match=r"Expected step as an integer, got 9\.5"):
        monitor(nn.Linear(1, 1), 9.5)  # pyright: ignore


def test_a_damaged_file_is_one_error_or_the_right_table(tmp_path):
    """Also where the end of the archive lost a column, which zipfile does not see."""
    file, rng = tmp_path / "monitor.npz", np.random.default_rng(0)
    whole = Monitor(lambda m: {"a": np.arange(3.0), "b": 1.0}, every=1, file=file)
    for step in range(4):
        whole(nn.Linear(1, 1), step)
    kept, refused, read = file.read_bytes(), 0, 0
    for i in range(300):
        damaged = bytearray(kept)
        for _ in range(1 + 4 * (i % 2)):
            place = len(kept) - 1 - int(rng.integers(300 if i % 3 else len(kept)))
            damaged[place] ^= int(rng.integers(1, 256))
        file.write_bytes(damaged if i % 5 else kept[: int(rng.integers(len(kept)))])
        try:
            found = Monitor(weight, file=file).columns()
        except ValueError as error:
            refused += str(error).startswith("Expected a table of bridges.Monitor in ")
        else:
            read += str(found) == str(whole.columns())
    assert refused + read == 300
    assert refused > 200


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_scripted_module_is_measured_and_left_as_it_was():
    plain = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Dropout()).train()
    x = torch.randn(5, 1)

    def measure(module):
        assert not module.training
        module.train()
        return {"y": module(x).sum()}  # changes the statistics

    scripted, frozen = torch.jit.script(plain), torch.jit.freeze(torch.jit.script(plain.eval()))
    before = {name: value.clone() for name, value in scripted.state_dict().items()}
    monitor = Monitor(measure, every=1)
    for step in range(2):
        monitor(scripted, step)
    assert all(part.training for part in scripted.modules())
    assert all(torch.equal(before[k], v) for k, v in scripted.state_dict().items())
    monitor = Monitor(lambda module: {"y": module(x).sum()})
    monitor(frozen, 0)
    assert monitor.columns()["y"] == pytest.approx(float(plain(x).detach().sum()))
