"""The encoder finds latents of digits, and training is repeatable, resumable and interruptible."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bridges.networks.diffusion import Denoiser, mnist_decoder, mnist_encoder
from bridges.networks.pretrained import read_images
from bridges.networks.training import train_denoiser


def latents(n=20):
    """Return latents with labels."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 1, 6, 6, generator=generator), torch.arange(n) % 10


def states_are_equal(a, b):
    """Tell whether two trained denoisers are the same, bit for bit."""
    pairs = zip(a.module.state_dict().values(), b.module.state_dict().values(), strict=True)
    return torch.equal(a.losses, b.losses) and all(torch.equal(x, y) for x, y in pairs)


def test_the_encoder_is_the_other_half_of_the_decoder(data):
    pictures = torch.from_numpy(read_images("mnist", 100, data, part="train").pixels)
    pictures = pictures.view(-1, 1, 28, 28)
    with torch.no_grad():
        z, spread = mnist_encoder(data)(pictures).chunk(2, dim=1)
        error = (mnist_decoder(data)(z) - pictures).square().mean()
        shuffled = (mnist_decoder(data)(z.roll(1, dims=0)) - pictures).square().mean()
    assert error < 0.2 * pictures.var()  # 36 numbers for 784
    assert error < 0.15 * shuffled
    assert spread.mean() < 0  # less than that of the prior


def test_training_images_are_not_those_of_the_test(data):
    train, test = (read_images("mnist", 5, data, part=part) for part in ("train", "t10k"))
    assert train.labels.tolist() == [5, 0, 4, 1, 9]  # as everyone knows them
    assert test.labels.tolist() == [7, 2, 1, 0, 4]


def test_the_loss_falls():
    z, labels = latents(2)
    losses = train_denoiser(z, labels, steps=60, batch=16, progress=False).losses
    assert losses[-10:].mean() < 0.7 * losses[:10].mean()


def test_a_seed_gives_the_same_network_and_touches_no_other_generator():
    z, labels = latents()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (
        train_denoiser(z, labels, steps=3, batch=4, seed=seed, progress=False) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert states_are_equal(first, again)
    assert not states_are_equal(first, other)


def test_an_interrupt_keeps_what_is_done_and_training_goes_on(tmp_path, monkeypatch):
    z, labels = latents()
    options = {"steps": 7, "batch": 4, "progress": False}
    whole = train_denoiser(z, labels, **options)
    assert whole.complete
    forward, calls = Denoiser.forward, []

    def interrupted(self, *args):
        calls.append(None)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return forward(self, *args)

    file = tmp_path / "checkpoint.pt"
    monkeypatch.setattr(Denoiser, "forward", interrupted)
    with pytest.warns(RuntimeWarning, match="stopped after 5 of 7 steps"):
        part = train_denoiser(z, labels, **options, checkpoint=file, every=2)
    assert not part.complete
    assert torch.equal(part.losses, whole.losses[:5])
    assert len(torch.load(file, weights_only=True)["losses"]) == 4  # the last whole one
    assert states_are_equal(train_denoiser(z, labels, **options, checkpoint=file), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_checkpoint_of_other_options_is_refused(tmp_path):
    z, labels = latents()
    file = tmp_path / "checkpoint.pt"
    train_denoiser(z, labels, steps=2, batch=4, checkpoint=file, progress=False)
    with pytest.raises(
        ValueError, match=r"same training in .* got another seed: give another file"
    ):
        train_denoiser(z, labels, steps=2, batch=4, seed=1, checkpoint=file, progress=False)


@pytest.mark.parametrize(
    ("z", "labels", "message"),
    [
        (
            latents()[0],
            torch.arange(3),
            r"got \(20, 1, 6, 6\) torch\.float32 and \(3,\) torch\.int64",
        ),
        (latents()[0], None, "got Tensor and NoneType"),
        (latents()[0], latents()[1].float(), r"and \(20,\) torch\.float32"),
        (latents()[0], latents()[1] + 1, "labels from 1 to 10"),
        (latents()[0] * torch.nan, latents()[1], "and 720 entries that are not finite"),
        (latents()[0][:0], latents()[1][:0], r"got \(0, 1, 6, 6\)"),
        (
            latents()[0][:, :, :1, :1],
            latents()[1],
            r"of a side of 2 or more, .* got \(20, 1, 1, 1\)",
        ),
    ],
)
def test_latents_without_labels_are_refused(z, labels, message):
    with pytest.raises(ValueError, match=f"Expected finite latents .*{message}.*: give one label"):
        train_denoiser(z, labels, steps=1)


def test_latents_and_labels_of_every_dtype_are_trained_on():
    z, labels = latents()
    options = {"steps": 2, "batch": 4, "progress": False}
    whole = train_denoiser(z, labels, **options)
    for other in ((z.double(), labels.int()), (z.numpy(), labels.tolist())):
        assert states_are_equal(train_denoiser(*other, **options), whole)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"dropout": 2}, "dropout= from 0 to 1, got 2"),
        ({"batch": 0}, "batch= as an integer of at least 1, got 0"),
        ({"start": nn.Linear(1, 1)}, "start= as a Denoiser, got Linear"),
        ({"start": Denoiser(10, 5, 4)}, r"start= with weights of the shapes .*, got .*: give the"),
    ],
)
def test_options_that_are_none_are_refused(other, message):
    with pytest.raises(ValueError, match=f"Expected {message}"):
        train_denoiser(*latents(), **{"steps": 1} | other)
