"""Descriptors of real decoders at real latents, against closed forms and dense Jacobians."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from real import mnist_study
from scipy.stats import mannwhitneyu
from support.decoders import dense, double

import approx
from bridges.networks import diffusion, pipelines, pretrained


@pytest.fixture(scope="module", params=[2_500, pytest.param(10_000, marks=pytest.mark.nightly)])
def study(data, request):
    """Return digits, by night all, and letters: images, codes, tables of the decoder's logits."""
    decoder = mnist_study.decoders(data)["logits"]
    found = {}
    for kind, count in (("mnist", request.param), ("notmnist", 2_500)):
        images = pretrained.read_images(kind, count, data)
        codes = pretrained.codes(images, data)
        found[kind] = images, codes, mnist_study.described(decoder, codes)
    return found


def test_digits_are_described_exactly(study, data):
    images, codes, table = study["mnist"]
    assert len(table) == len(images.labels) >= 2_500
    assert (table.complete, table.k, table.method) == (True, 20, "exact")
    # oracle: J = W2 diag(on) W1, and the knots of the hidden layer are hyperplanes
    first, _, second = mnist_study.decoders(data)["logits"]
    w1, b1, w2 = (x.detach().double().numpy() for x in (first.weight, first.bias, second.weight))
    h = codes.double().numpy() @ w1.T + b1
    some = np.arange(0, len(table), 50)
    sigma = np.linalg.svd((w2 * (h[some] > 0)[:, None]) @ w1, compute_uv=False)
    np.testing.assert_allclose(table.psi[some], np.log(sigma).sum(axis=1), atol=1e-10)
    alpha = sigma / sigma.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(table.nu[some], np.exp(-(alpha * np.log(alpha)).sum(1)), atol=1e-10)
    count, radius = mnist_study.NEIGHBOURHOOD
    basis = approx.neighbourhood((20,), count, torch.Generator().manual_seed(table.seed))
    reach = radius * np.abs(w1 @ basis.double().numpy().T).max(axis=1)
    np.testing.assert_array_equal(table.delta, (np.abs(h) < reach).sum(axis=1))


def test_letters_are_told_from_digits(study):
    (_, _, digits), (_, _, letters) = study["mnist"], study["notmnist"]
    measured = {
        name: mnist_study.auroc(getattr(letters, name), getattr(digits, name))
        for name in mnist_study.COLUMNS
    }
    # what `python tests/real/mnist_study.py` prints for all 10,000 letters; three standard errors
    expected = {"psi": 0.160, "nu": 0.943, "delta": 0.233}
    assert measured == pytest.approx(expected, abs=0.02)


def test_auroc_is_the_rank_statistic():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 50), rng.integers(2, 12, 70)  # with ties
    pairs = (a[:, None] > b).mean() + (a[:, None] == b).mean() / 2
    assert mnist_study.auroc(a, b) == pytest.approx(pairs, abs=1e-12)
    assert mnist_study.auroc(a, b) == pytest.approx(mannwhitneyu(a, b).statistic / (50 * 70))


def test_the_study_draws_every_class(study):
    (digits, _, inside), (letters, _, outside) = study["mnist"], study["notmnist"]
    figure = mnist_study.draw(inside, digits.labels, outside, letters.labels)
    assert len(figure.axes) == 6
    for axes, names in ((figure.axes[0], "0123456789"), (figure.axes[3], "ABCDEFGHIJ")):
        assert "".join(text.get_text() for text in axes.get_xticklabels()) == names
    import matplotlib.pyplot as plt

    plt.close(figure)


def test_what_the_state_dict_leaves_open_is_as_it_was_trained(data):
    """Photographs survive encoding and decoding, and less so with other groups or no clamp."""
    pictures = torch.stack([pretrained.photograph(n, 128) for n in pretrained.PHOTOGRAPHS])
    encoder, decoder = pretrained.taef2_encoder(data), pretrained.taef2_decoder(data)
    with torch.no_grad():
        z = encoder(pictures)
        right = _decibels(decoder(z), pictures)
        assert z.shape == (4, 32, 16, 16)
        assert right > 27
        for groups in (1, 2, 16):
            other = copy.deepcopy(decoder)
            for module in other.modules():
                if isinstance(module, torch.nn.GroupNorm):
                    module.num_groups = groups
            assert _decibels(other(z), pictures) < right - 0.5
        assert _decibels(decoder[1:](z), pictures) < right - 0.5


def _decibels(y, pictures):
    return float(-10 * (y - pictures).square().mean(dim=(1, 2, 3)).log10().mean())


def test_photographs_exactly(data):
    """At 32 x 2 x 2: 128 inputs, 768 outputs."""
    decoder = pretrained.taef2_decoder(data)
    z = pretrained.photograph_latents(2, ("chelsea", "coffee"), folder=data)
    options = {"k": 4, "neighbourhood": (4, 1e-3), "generator": 0, "progress": False}
    table = approx.describe(decoder, z, **options)
    exact = approx.describe(decoder, z, method="exact", **options)
    sigma = torch.linalg.svdvals(_jacobians(decoder, z))
    np.testing.assert_allclose(exact.psi, sigma[:, :4].log().sum(dim=1).numpy(), atol=1e-9)
    # float32 differs from float64 in units that it declares undecided, and in no others
    assert table.delta is not None
    assert table.delta_error is not None
    assert (table.delta > 0).all()
    assert (np.abs(table.delta - exact.delta) <= table.delta_error).all()
    assert table.units == exact.units


@pytest.mark.nightly
def test_photographs_predicted_as_the_dense_jacobian_has_it(data):
    """At 32 x 4 x 4: 512 inputs, 3,072 outputs."""
    decoder = pretrained.taef2_decoder(data)
    z = pretrained.photograph_latents(4, ("astronaut",), folder=data)
    table = approx.describe(decoder, z, k=10, products=8, generator=0, progress=False)
    assert table.products.tolist() == [8]
    assert not table.fell_back.any()
    jacobians = _jacobians(decoder, z)
    drawn = []  # psi of W J over many W
    generator = torch.Generator().manual_seed(1)
    for _ in range(100):
        w = torch.linalg.qr(torch.randn(3072, 10, generator=generator, dtype=torch.float64))[0]
        drawn.append(torch.linalg.svdvals(w.T @ jacobians).log().sum(dim=1))
    mean = torch.stack(drawn).mean(dim=0).numpy()
    assert (np.abs(table.psi - mean) < 3 * table.psi_error).all()


@pytest.mark.nightly
def test_photographs_at_16x16(data):
    decoder = pretrained.taef2_decoder(data)
    z = pretrained.photograph_latents(16, ("coffee",), folder=data)
    table = approx.describe(decoder, z, neighbourhood=(2, 1e-5), generator=0, progress=False)
    assert (table.latent_shape, table.output_shape) == ((32, 16, 16), (3, 128, 128))
    assert (table.k, table.products.tolist(), table.fell_back.tolist()) == (120, [16], [False])
    assert table.psi[0] == pytest.approx(-219.9, abs=4 * 1.7)
    assert table.nu[0] == pytest.approx(115.95, abs=4 * 0.5)
    assert table.passed_over == ("0.tanh",)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("dcgan_faces", (100, 1, 1)), ("sd_latent_decoder", (4, 4, 4)), ("mnist_vae_decoder", (20,))],
)
def test_generators_against_the_dense_jacobian(data, name, shape):
    decoder = getattr(pretrained, name)(data)
    z = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    table = approx.describe(decoder, z, method="exact", generator=0, progress=False)
    sigma = torch.linalg.svdvals(_jacobians(decoder, z))
    np.testing.assert_allclose(table.psi, sigma.log().sum(dim=1).numpy(), atol=1e-8)
    assert table.k == z[0].numel()
    assert table.density is not None
    assert (table.density > 0).all()


def test_the_bias_free_denoiser_has_the_published_jacobian(data):
    """Theirs is of the body, in float32."""
    module = pretrained.bias_free_dncnn(data)
    x = torch.from_numpy(np.load(data / "denoiser" / "noisy_im_30.npy")).float()[None, None]
    published = torch.from_numpy(np.load(data / "denoiser" / "Jacobian_30.npy"))
    pixels = [0, 29, 435, 899]
    with torch.no_grad():
        columns = torch.stack(
            [torch.func.jvp(module, (x,), (way.view_as(x),))[1].flatten()
             for way in torch.eye(900)[pixels]], dim=1,
        )  # fmt: skip
        assert (torch.eye(900)[:, pixels] - columns - published[:, pixels]).abs().max() < 6e-3
        torch.testing.assert_close(module(3 * x), 3 * module(x), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def drawn(data):
    """Two latents of each of the diffusion models."""
    pytest.importorskip("diffusers", reason="needs the extra cpwl[diffusers]")
    drawn = {}
    for name in ("mnist", "emnist"):
        pipe = getattr(pipelines, f"{name}_pipeline")(data)
        pipe.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": 25, "output_type": "latent"}
        generator = torch.Generator().manual_seed(0)
        drawn[name] = pipe([0, 1], generator=generator, **options).images
    return drawn


def test_real_digits_are_recognised(data):
    """By the classifier that scores what the pipelines draw."""
    images = pretrained.read_images("mnist", 500, data)
    with torch.no_grad():
        pixels = torch.from_numpy(images.pixels).view(-1, 1, 28, 28)
        found = diffusion.mnist_classifier(data)(pixels).argmax(dim=1)
    assert (found.numpy() == images.labels).mean() > 0.96


@pytest.mark.parametrize("name", ["mnist", "emnist"])
def test_smooth_latent_decoders_exactly(data, drawn, name):
    decoder, z = getattr(diffusion, f"{name}_decoder")(data), drawn[name]
    _assert_exact(decoder, z)


@pytest.mark.parametrize("name", ["mnist", "emnist"])
def test_denoisers_of_latents_exactly(data, drawn, name):
    module, z = getattr(diffusion, f"{name}_denoiser")(data), drawn[name]
    y = torch.nn.functional.one_hot(torch.tensor(3), module.temb.in_features)[None]

    class Bound(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, z):
            t = torch.full((len(z),), 0.5, dtype=z.dtype)
            return self.module(z, t, y.to(z.dtype).expand(len(z), -1))

    _assert_exact(Bound(), z)


def test_a_diffusion_transformer_exactly(data):
    """On ten directions of its 784 inputs."""
    module, generator = diffusion.mnist_transformer(data), torch.Generator().manual_seed(0)
    directions = torch.randn(10, 1, 28, 28, generator=generator)

    class Bound(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, z):
            x = torch.einsum("bd,d...->b...", z, directions.to(z.dtype))
            t = torch.full((len(z),), 0.5, dtype=z.dtype)
            return self.module(x, t, torch.full((len(z),), 7))

    _assert_exact(Bound(), torch.randn(2, 10, generator=generator))


def _assert_exact(module, z):
    table = approx.describe(
        module, z, method="exact", neighbourhood=(4, 0.1), generator=0, progress=False
    )
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        sigma = torch.linalg.svdvals(_jacobians(module, z))
    alpha = sigma / sigma.sum(dim=1, keepdim=True)
    np.testing.assert_allclose(table.psi, sigma.log().sum(dim=1), atol=1e-8)
    np.testing.assert_allclose(table.nu, torch.special.entr(alpha).sum(dim=1).exp(), atol=1e-8)
    assert table.k == z[0].numel()
    assert (table.delta > 0).all()


def _jacobians(decoder, z):
    """Oracle: (B, D, d) in float64, by torch.func on one latent at a time."""
    module = double(decoder)
    jacobian = torch.func.jacfwd(lambda x: module(x[None])[0].flatten())
    return torch.stack([jacobian(x).flatten(1) for x in z.double()]).detach()


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "shape"), [("taef2", (32, 64, 64)), ("sd_latent_decoder", (4, 64, 64))]
)
def test_full_size_latents(data, name, shape):
    if name == "taef2":
        decoder = pretrained.taef2_decoder(data)
        z = pretrained.photograph_latents(64, ("astronaut",), folder=data)
    else:
        decoder = pretrained.sd_latent_decoder(data)
        z = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    assert z.shape[1:] == shape
    table = approx.describe(decoder, z, generator=0, progress=False)
    assert (table.complete, table.products.tolist(), table.k) == (True, [16], 120)
    assert 100 < table.nu[0] < 120
    assert table.psi_error[0] < 3


@pytest.mark.parametrize("batch", [1, 3])
def test_the_stable_diffusion_decoder_runs(batch):
    """diffusers' architecture at its smallest latent, with random weights."""
    diffusers = pytest.importorskip("diffusers", reason="needs the extra cpwl[diffusers]")
    try:
        make = diffusers.AutoencoderKL
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"diffusers cannot be imported here: {str(error).splitlines()[0]}")
    torch.manual_seed(0)
    model = make(
        block_out_channels=(32, 64), layers_per_block=1, latent_channels=4, norm_num_groups=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip
    z = torch.randn(3, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    table = approx.describe(
        model.decode, z, method="exact", batch=batch, generator=0, progress=False
    )
    sigma = torch.linalg.svdvals(dense(_Sampled(model), z))
    np.testing.assert_allclose(table.psi, sigma.log().sum(dim=1).numpy(), atol=1e-8)
    assert (table.soft > 0).all()


class _Sampled(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, z):
        return self.model.decode(z).sample
