"""Pipelines of the small diffusion models, against loops written by hand and a classifier."""

from __future__ import annotations

import pytest
import torch

from bridges.networks import diffusion, pipelines

LABELS = torch.arange(20) % 10


@pytest.fixture(scope="module")
def pipes(data):
    pytest.importorskip("diffusers", reason="needs the extra cpwl[diffusers]")
    made = {
        "mnist": pipelines.mnist_pipeline(data),
        "emnist": pipelines.emnist_pipeline(data),
        "transformer": pipelines.transformer_pipeline(data),
    }
    for pipe in made.values():
        pipe.set_progress_bar_config(disable=True)
    return made


def latent_velocity(network):
    """Return v = x_1 - x_0 by the network's own conventions, -1 for any class."""

    def velocity(x, t, label):
        y = torch.zeros(len(x), network.yemb.in_features)
        if label is not None:
            y[torch.arange(len(x)), label] = 1
        return network(x, torch.full((len(x),), t), y)

    return velocity


def picture_velocity(network):
    def velocity(x, t, label):
        digit = torch.full((len(x),), -1) if label is None else label
        return (network(x, torch.full((len(x),), t), digit) - x) / (1 - t)

    return velocity


@pytest.mark.parametrize("guidance", [0, 1, 2.5])
@pytest.mark.parametrize("name", ["mnist", "emnist", "transformer"])
def test_samples_are_those_of_eulers_method_from_0_to_1(pipes, name, guidance):
    pipe = pipes[name]
    network = pipe.unet.network
    velocity = (picture_velocity if name == "transformer" else latent_velocity)(network)
    steps = 7
    noise = torch.randn(len(LABELS), *pipe.unet.shape, generator=torch.Generator().manual_seed(3))
    found = pipe(
        LABELS,
        guidance_scale=guidance,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images
    x = noise.clone()
    with torch.no_grad():
        for step in range(steps):
            free = velocity(x, step / steps, None)
            x = x + (free + guidance * (velocity(x, step / steps, LABELS) - free)) / steps
    torch.testing.assert_close(found, x, atol=1e-5, rtol=1e-5)
    (again,) = pipe(
        LABELS.tolist(),
        guidance_scale=guidance,
        num_inference_steps=steps,
        latents=noise,
        output_type="latent",
        return_dict=False,
    )
    assert torch.equal(again, found)


@pytest.mark.parametrize("name", ["mnist", "transformer"])
def test_digits_are_those_asked_for(pipes, data, name):
    """LeNet-5 agrees with at least 95 % of 200 at guidance 2."""
    labels = torch.arange(200) % 10
    steps = 50 if name == "mnist" else 20
    generator = torch.Generator().manual_seed(0)
    drawn = pipes[name](
        labels, num_inference_steps=steps, generator=generator, output_type="pt"
    ).images
    assert drawn.shape == (200, 1, 28, 28)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    with torch.no_grad():
        found = diffusion.mnist_classifier(data)(drawn).argmax(dim=1)
    assert (found == labels).sum() >= 190


def test_outputs_are_those_of_diffusers(pipes):
    pipe = pipes["mnist"]
    arguments = {"num_inference_steps": 2, "latents": torch.zeros(2, 1, 6, 6)}
    z = pipe([1, -1], **arguments, output_type="latent").images
    drawn = pipe([1, -1], **arguments, output_type="pt").images
    with torch.no_grad():
        by_hand = pipe.vae.network(z).clamp(0, 1)
        assert torch.equal(pipe.vae.decode(z).sample, pipe.vae.decode(z, return_dict=False)[0])
    assert torch.equal(drawn, by_hand)
    assert pipe.vae.config.scaling_factor == 1
    arrays = pipe([1, -1], **arguments, output_type="np").images
    assert arrays.shape == (2, 28, 28, 1)
    pictures = pipe([1, -1], **arguments).images
    assert [picture.size for picture in pictures] == [(28, 28)] * 2
    assert pipes["transformer"].vae is None


def test_a_pipeline_moves_to_another_dtype(data):
    pytest.importorskip("diffusers", reason="needs the extra cpwl[diffusers]")
    pipe = pipelines.mnist_pipeline(data).to(torch.float64)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    drawn = pipe([3], num_inference_steps=2, generator=generator, output_type="pt").images
    assert drawn.dtype == torch.float64


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([3, 10], {}, r"Expected a list of labels from 0 to 9, or -1 for any, got 10: give one"),
        ([-2], {}, r"or -1 for any, got -2: give one for each sample"),
        (3, {}, r"got labels of shape \(\): give one for each sample"),
        ([], {}, r"got labels of shape \(0,\): give"),
        ([3], {"num_inference_steps": 0}, r"Expected num_inference_steps of at least 1, got 0"),
        ([3], {"output_type": "jpg"}, r"Expected output_type as one of pil, np, pt, latent, got"),
    ],
)
def test_what_cannot_be_drawn_is_refused(pipes, labels, options, message):
    with pytest.raises(ValueError, match=message):
        pipes["mnist"](labels, **options)
