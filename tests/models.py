"""The real generators of `$CPWL_DATA`, built from their published architectures."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def mnist_gan(data: Path) -> nn.Module:
    """MNIST GAN generator, 64 -> 256 -> 256 -> 784, tanh at the end."""
    layers = nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 784),
        nn.Tanh(),
    )  # fmt: skip
    layers.load_state_dict(_state(data / "weights" / "mnist_gan_mlp.ckpt"))
    return layers.eval()


def mnist_vae_decoder(data: Path) -> nn.Module:
    """MNIST VAE decoder, 20 -> 400 -> 784, sigmoid at the end."""
    layers = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784), nn.Sigmoid())
    state = _state(data / "weights" / "mnist_vae.pth")
    layers.load_state_dict(_rename(state, {"fc3": "0", "fc4": "2"}))
    return layers.eval()


def mnist_vae_encoder(data: Path) -> nn.Module:
    """MNIST VAE encoder to the latent's mean, 784 -> 400 -> 20."""
    layers = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 20))
    state = _state(data / "weights" / "mnist_vae.pth")
    layers.load_state_dict(_rename(state, {"fc1": "0", "fc21": "2"}))
    return layers.eval()


def dcgan_faces(data: Path) -> nn.Module:
    """DCGAN face generator, 100 x 1 x 1 -> 3 x 64 x 64, tanh at the end."""
    channels = [100, 512, 256, 128, 64, 3]
    layers: list[nn.Module] = []
    for k, (cin, cout) in enumerate(pairwise(channels)):
        stride, padding = (1, 0) if k == 0 else (2, 1)
        layers.append(nn.ConvTranspose2d(cin, cout, 4, stride, padding, bias=False))
        if k < 4:
            layers += [nn.BatchNorm2d(cout), nn.ReLU(inplace=True)]
    module = nn.Sequential(*layers, nn.Tanh())
    state = _state(data / "weights" / "dcgan_faces.pth")
    # The file's keys differ from ours in their prefix only; the order is that of the layers.
    module.load_state_dict(dict(zip(module.state_dict(), state.values(), strict=True)))
    return module.eval()


class LatentDecoder(nn.Module):
    """Small decoder of Stable Diffusion latents, 4 x h x w -> 3 x 2h x 2w."""

    def __init__(self) -> None:
        super().__init__()
        kernels = (7, 5, 3, 3, 3, 3, 3, 3)
        channels = (4, 8, 16, 32, 64, 32, 16, 8, 3)
        for k, size in enumerate(kernels):
            setattr(self, f"conv{k + 1}", nn.Conv2d(channels[k], channels[k + 1], size))

    def forward(self, x: Tensor) -> Tensor:
        """Upsample, pad, and eight convolutions."""
        x = functional.interpolate(x, scale_factor=2.0)
        x = functional.pad(x, (11, 11, 11, 11))
        for k in range(8):
            x = functional.leaky_relu(getattr(self, f"conv{k + 1}")(x), 0.1)
        return x


def sd_latent_decoder(data: Path) -> nn.Module:
    """Load the latent decoder `vae_approx_sd15`."""
    module = LatentDecoder()
    module.load_state_dict(_state(data / "weights" / "vae_approx_sd15.pt"))
    return module.eval()


def _state(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def _rename(state: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    pairs = ((key.split(".", 1), value) for key, value in state.items())
    return {f"{names[old]}.{rest}": value for (old, rest), value in pairs if old in names}
