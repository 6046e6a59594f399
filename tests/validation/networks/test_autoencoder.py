"""Autoencoders: their loss in closed form, repeatable training, noise, going on, the command."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import distributions, nn

from bridges import Monitor, MonitorError
from bridges.networks.autoencoders import Vae, negative_bound
from bridges.networks.training import cached_vae, load_vae, train_denoiser, train_vae
from bridges.networks.training.__main__ import main

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {"latents": 2, "width": 16, "depth": 2}
OPTIONS = SIZES | {"steps": 7, "batch": 4, "warmup": 0, "progress": False}


def images(count=20):
    return torch.rand(count, 9, generator=torch.Generator().manual_seed(0))


def same(a, b):
    """Tell whether two trainings gave the same, bit for bit."""
    states = (each.module.state_dict().values() for each in (a, b))
    pairs = zip(*states, strict=True)
    return torch.equal(a.losses, b.losses) and all(torch.equal(x, y) for x, y in pairs)


def recorded(train, *arguments, **options):
    """Return the parameters before the first step and after each."""
    seen = []

    def watch(module, _):
        seen.append([p.detach().clone() for p in module.parameters()])

    train(*arguments, **options, watch=watch)
    return seen


def test_the_sizes_are_those_of_the_study_and_the_decoder_is_piecewise_linear():
    vae = Vae()
    shapes = [tuple(layer.weight.shape) for layer in vae.decoder[::2]]
    assert shapes == [(128, 20), *[(128, 128)] * 4, (784, 128)]
    assert [tuple(layer.weight.shape) for layer in vae.encoder[::2]] == [
        (128, 784), *[(128, 128)] * 4, (40, 128)
    ]  # fmt: skip
    assert {type(layer) for layer in vae.decoder} == {nn.Linear, nn.ReLU}


def test_the_loss_is_the_negative_evidence_lower_bound():
    vae, x = Vae(pixels=9, **SIZES).double(), images(5).double()
    noise = torch.randn(5, 2, dtype=torch.float64)
    mean, log_variance = vae.encode(x)
    posterior = distributions.Normal(mean, (log_variance / 2).exp())
    z = mean + noise * posterior.stddev
    p = vae.decode(z)
    fit = x * p.log() + (1 - x) * (1 - p).log()
    divergence = distributions.kl_divergence(posterior, distributions.Normal(0.0, 1.0))
    for beta in (0.0, 1.0, 4.0):
        expected = (beta * divergence.sum() - fit.sum()) / 5
        torch.testing.assert_close(negative_bound(x, vae(x, noise), beta), expected)


def test_it_learns_what_there_is_to_learn():
    two = torch.cat([torch.zeros(1, 9), torch.ones(1, 9)])
    trained = train_vae(two, rate=0.01, **OPTIONS | {"steps": 200})
    assert trained.complete
    assert not trained.module.training
    with torch.no_grad():
        mean, _ = trained.module.encode(two)
        assert (trained.module.decode(mean) - two).abs().max() < 0.1
    assert trained.losses[-20:].mean() < 3  # of mean pictures it is 9 log 2; log 2 is the least


def test_beta_shrinks_the_divergence():
    def divergence(beta):
        vae = train_vae(images(), rate=0.01, beta=beta, **OPTIONS | {"steps": 100}).module
        with torch.no_grad():
            mean, log_variance = vae.encode(images())
        return float((mean.square() + log_variance.exp() - 1 - log_variance).sum())

    assert divergence(20.0) < 0.1 * divergence(0.01)


def test_beta_rises_in_the_warmup():
    seen = {warmup: train_vae(images(), **OPTIONS | {"warmup": warmup}) for warmup in (0, 4)}
    free = train_vae(images(), beta=0.0, **OPTIONS)
    assert seen[4].losses[0] == free.losses[0] < seen[0].losses[0]
    half = train_vae(images(), **OPTIONS | {"steps": 1}, start=seen[4].module, beta=0.5)
    rising = train_vae(images(), **OPTIONS | {"steps": 3, "warmup": 2, "rate": 0.0},
                       start=seen[4].module)  # fmt: skip
    same_batch = train_vae(images(), **OPTIONS | {"steps": 3, "rate": 0.0}, beta=0.5,
                           start=seen[4].module)  # fmt: skip
    assert half.losses[0] == same_batch.losses[0]
    assert rising.losses[1] == same_batch.losses[1]
    assert rising.losses[2] > same_batch.losses[2]


def test_a_seed_gives_the_same_network_and_touches_no_other_generator():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (train_vae(images(), seed=seed, **OPTIONS) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(first, again)
    assert not same(first, other)
    torch.set_num_threads(2)
    assert same(first, train_vae(images().numpy(), seed=1, **OPTIONS))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("kind", ["noise", "weight_noise"])
def test_noise_changes_as_much_as_it_says_and_nothing_else_of_the_draws(kind):
    plain = train_vae(images(), **OPTIONS)
    assert same(plain, train_vae(images(), **OPTIONS, **{kind: 0.0}))
    gaps = [
        float((train_vae(images(), **OPTIONS, **{kind: level}).losses - plain.losses).abs().mean())
        for level in (1e-4, 1e-2)
    ]
    assert 0 < gaps[0] < 0.02
    assert 30 < gaps[1] / gaps[0] < 300  # in proportion: other batches would differ by 0.3


@pytest.mark.filterwarnings("ignore:Training was stopped")
@pytest.mark.parametrize("noises", [{}, {"noise": 0.1, "weight_noise": 0.1}])
def test_an_interrupt_keeps_what_is_done_and_training_goes_on(tmp_path, noises):
    whole, file = train_vae(images(), **OPTIONS, **noises), tmp_path / "vae.pt"

    def stopping(_, step):
        if step == 5:
            raise KeyboardInterrupt

    part = train_vae(images(), **OPTIONS, **noises, checkpoint=file, every=2, watch=stopping)
    assert not part.complete
    assert torch.equal(part.losses, whole.losses[:5])
    assert not load_vae(file).complete
    again = train_vae(images(), **OPTIONS, **noises, checkpoint=file)
    assert same(again, whole)
    assert load_vae(file).complete
    assert same(load_vae(file), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["vae.pt"]


@pytest.mark.filterwarnings("ignore:Training was stopped", "ignore:The training went back")
def test_a_monitor_watches_and_changes_nothing_across_a_stop(tmp_path):
    stops = []

    def measure(vae):
        if len(stops) == 3:
            stops.append(None)
            raise KeyboardInterrupt
        stops.append(None)
        return {"norm": vae.decoder[0].weight.norm()}

    files = {"checkpoint": tmp_path / "vae.pt", "every": 3}
    for _ in range(2):
        monitor = Monitor(measure, every=2, file=tmp_path / "monitor.npz")
        watched = train_vae(images(), **OPTIONS, **files, watch=monitor)
    assert same(watched, train_vae(images(), **OPTIONS))
    whole = Monitor(measure, every=2)
    train_vae(images(), **OPTIONS, watch=whole)
    assert whole.table.equals(monitor.table)
    assert monitor.table["step"].tolist() == [0, 2, 4, 6]


def test_a_watcher_that_fails_loses_no_step(tmp_path):
    file = tmp_path / "vae.pt"
    with pytest.raises(MonitorError, match="at step 5, got ZeroDivisionError"):
        train_vae(images(), **OPTIONS, checkpoint=file, watch=Monitor(lambda m: 1 / 0, every={5}))
    assert len(load_vae(file).losses) == 5
    assert same(train_vae(images(), **OPTIONS, checkpoint=file), train_vae(images(), **OPTIONS))


def test_training_further_on_other_images():
    first = train_vae(images(), **OPTIONS)
    before = {name: value.clone() for name, value in first.module.state_dict().items()}
    other = 1 - images()
    seen = recorded(train_vae, other, **OPTIONS, start=first.module)
    assert all(torch.equal(a, b) for a, b in zip(seen[0], before.values(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(seen[1], seen[0], strict=True))
    more = train_vae(other, **OPTIONS, start=first.module, decoder_only=True).module
    for name, value in more.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("encoder")
    assert all(p.requires_grad for p in more.parameters())
    assert all(torch.equal(before[k], v) for k, v in first.module.state_dict().items())
    with pytest.raises(ValueError, match=r"Expected start= with weights of the shapes \[\(8, 9\)"):
        train_vae(other, **OPTIONS | {"width": 8}, start=first.module)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"images": images(3) * 255}, r"got shape \(3, 9\) with entries from 5.* to 242"),
        ({"images": images(3) * torch.nan}, "with entries from nan to nan: flatten them"),
        ({"images": images(9).view(9, 3, 3)}, r"got shape \(9, 3, 3\)"),
        ({"images": images(0)}, r"got shape \(0, 9\): flatten"),
        ({"images": images(3).cfloat()}, "got Tensor: flatten"),
        ({"images": None}, "got NoneType: flatten"),
        ({"noise": -1.0}, r"noise= as a finite number of 0 or more, got -1\.0"),
        ({"weight_noise": float("inf")}, "weight_noise= as a finite number of 0 or more, got inf"),
        ({"beta": float("nan")}, "beta= as a finite number of 0 or more, got nan"),
        ({"rate": "fast"}, "rate= as a finite number of 0 or more, got 'fast'"),
        ({"rate": 1e30}, "Expected a finite loss at step 1, got nan: give a smaller rate"),
        ({"steps": -1}, "steps= as an integer of at least 0, got -1"),
        ({"batch": 0}, "batch= as an integer of at least 1, got 0"),
        ({"every": 0}, "every= as an integer of at least 1, got 0"),
        ({"seed": 2.5}, r"seed= as an integer of at least 0, got 2\.5"),
        ({"width": 0}, "width= as an integer of at least 1, got 0"),
        ({"depth": True}, "depth= as an integer of at least 1, got True"),
        ({"start": "vae.pt"}, "start= as a Vae, got str"),
        ({"watch": 3}, "watch= as a function of module and steps, got int"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(other, message):
    given = OPTIONS | {"images": images()} | other
    with pytest.raises(ValueError, match=message):
        train_vae(given.pop("images"), **given)


def test_images_of_every_dtype_are_trained_on(tmp_path):
    """And options of NumPy, which a checkpoint could not hold, are numbers as others."""
    x, file = (images() > 0.5).float(), str(tmp_path / "vae.pt")
    whole = train_vae(x, **OPTIONS, seed=3)
    for other in (x.double(), x.half(), x.bool(), x.byte(), x.numpy(), x.tolist()):
        assert same(train_vae(other, **OPTIONS, seed=3), whole)
    numbers = {"steps": np.int64(7), "seed": np.int64(3), "beta": np.float64(1), "checkpoint": file}
    assert same(train_vae(x, **OPTIONS | numbers), whole)
    assert same(train_vae(x, **OPTIONS, seed=3, checkpoint=file), whole)
    assert same(load_vae(file), whole)


def test_files_of_something_else_are_refused(tmp_path):
    file = tmp_path / "vae.pt"
    train_vae(images(), **OPTIONS, checkpoint=file)
    for changed, name in (({"seed": 1}, "seed"), ({"noise": 0.1}, "noise")):
        with pytest.raises(ValueError, match=f"got another {name}: give another file"):
            train_vae(images(), **OPTIONS, **changed, checkpoint=file)
    with pytest.raises(ValueError, match="got another sum: give"):
        train_vae(images() / 2, **OPTIONS, checkpoint=file)
    text = tmp_path / "text.pt"
    text.write_text("text")
    with pytest.raises(ValueError, match=r"Expected a checkpoint of bridges\.networks"):
        load_vae(text)
    denoiser = tmp_path / "denoiser.pt"
    z, labels = torch.zeros(2, 1, 6, 6), torch.arange(2)
    train_denoiser(z, labels, steps=1, batch=2, checkpoint=denoiser, progress=False)
    with pytest.raises(ValueError, match="got the checkpoint of another training"):
        load_vae(denoiser)
    with pytest.raises(FileNotFoundError):
        load_vae(tmp_path / "none.pt")


def test_a_denoiser_is_trained_further():
    z, labels = torch.randn(4, 1, 6, 6), torch.arange(4)
    first = train_denoiser(z, labels, steps=2, batch=2, progress=False).module
    seen = recorded(train_denoiser, -z, labels, steps=1, batch=2, progress=False, start=first)
    assert all(torch.equal(a, b) for a, b in zip(seen[0], first.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(seen[1], seen[0], strict=True))


def test_the_command_trains_caches_and_trains_further(data, tmp_path):
    first, second = tmp_path / "digits.pt", tmp_path / "clothes.pt"
    small = ["vae", "--quiet", "--count", "50", "--steps", "4", "--width", "8", "--depth", "1"]

    def run(*arguments):
        done = CliRunner().invoke(main, [*small, *map(str, arguments)])
        return done.exit_code, done.stdout, done.stderr

    status, out, err = run("--out", first, "--seed", 3, "--beta", 4)
    assert (status, err) == (0, "")
    assert out.startswith("4 steps, loss ")
    options = {"steps": 4, "width": 8, "depth": 1, "progress": False}
    assert same(load_vae(first), cached_vae(first, "mnist", 50, seed=3, beta=4.0, **options))
    status, _, err = run("--out", second, "--data", "fashion-mnist", "--start", first)
    assert (status, err) == (0, "")
    assert load_vae(second).complete
    status, _, err = run("--out", second, "--rate", "nan")
    assert (status, err.partition(",")[0]) == (
        1,
        "Error: Expected rate= as a finite number of 0 or more",
    )
    status, _, err = run("--out", first)
    assert status == 1
    assert err.startswith("Error: Expected a checkpoint of the same training")
    assert load_vae(first).losses[0] != load_vae(second).losses[0]


def test_a_checkpoint_tells_images_apart_that_have_one_sum(tmp_path):
    x = images(6)
    train_vae(x, checkpoint=tmp_path / "v.pt", **OPTIONS)
    with pytest.raises(ValueError, match="Expected a checkpoint of the same training"):
        train_vae(x.flip(1), checkpoint=tmp_path / "v.pt", **OPTIONS)


def test_a_checkpoint_that_lacks_a_part_is_refused(tmp_path):
    file, other = tmp_path / "vae.pt", tmp_path / "other.pt"
    train_vae(images(), **OPTIONS, checkpoint=file)
    state = torch.load(file, weights_only=True)
    first = next(iter(state["module"]))
    changes = [{name: 3} for name in state] + [
        {"options": {k: v for k, v in state["options"].items() if k != "width"}},
        {"options": state["options"] | {"width": 17}},
        {"module": {k: v for k, v in state["module"].items() if k != first}},
    ]
    for change in changes:
        torch.save(state | change, other)
        with pytest.raises(
            ValueError, match=r"Expected a (whole )?checkpoint of .* delete this one"
        ):
            load_vae(other)
    for change in ({"optimiser": {}}, {"generator": torch.zeros(4)}, {"losses": torch.zeros(9)}):
        torch.save(state | change, other)
        with pytest.raises(ValueError, match=r"Expected a whole checkpoint of .* delete this one"):
            train_vae(images(), **OPTIONS, checkpoint=other)


def test_a_damaged_checkpoint_is_refused_or_read_as_it_was(tmp_path):
    """torch itself reads flipped weights without a word."""
    file, rng = tmp_path / "vae.pt", np.random.default_rng(0)
    whole, refused, read = train_vae(images(), **OPTIONS, checkpoint=file), 0, 0
    kept = file.read_bytes()
    for i in range(60):
        damaged = bytearray(kept)
        damaged[int(rng.integers(len(kept)))] ^= int(rng.integers(1, 256))
        file.write_bytes(damaged if i % 4 else kept[: int(rng.integers(len(kept)))])
        try:
            found = load_vae(file)
        except ValueError as error:
            refused += str(error).startswith(
                "Expected a checkpoint of bridges.networks.training in "
            )
        else:
            read += same(found, whole)
    assert refused + read == 60
    assert refused > 30


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(tmp_path):
    file = tmp_path / "vae.pt"

    def spoiling(vae, step):
        if step == 5:
            vae.decoder[0].weight.data.fill_(torch.nan)

    with pytest.raises(ValueError, match="Expected a finite loss at step 5, got nan"):
        train_vae(images(), **OPTIONS, checkpoint=file, every=2, watch=spoiling)
    assert len(load_vae(file).losses) == 4
