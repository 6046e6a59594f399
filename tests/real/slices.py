"""Slices of the real networks in `$CPWL_DATA`, for the tests and for the README's table.

    CPWL_DATA=... python tests/real/slices.py

prints the table: cells, seconds, peak memory and check() of each slice, worked off in a process of
its own with the kernels' cache warm.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

import cpwl
from bridges.networks import pretrained

ACAS_ADVISORIES = ("clear of conflict", "weak left", "weak right", "strong left", "strong right")


def _digits(data: Path) -> pretrained.Images:
    """Read the first 0, 1 and 7 of the MNIST test digits."""
    return pretrained.first_of(pretrained.read_images("mnist", 100, data), (0, 1, 7))


def _latents(*shape: int) -> torch.Tensor:
    """Three standard normal latents from a fixed seed."""
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))


def _around(slice_: cpwl.Slice, zoom: float) -> cpwl.Domain:
    """A square about the middle of the anchors, `zoom` times as wide as they lie apart."""
    assert slice_.anchors is not None
    middle = slice_.anchors.mean(axis=0)
    half = zoom * np.ptp(slice_.anchors, axis=0).max() / 2
    return slice_.box(middle - half, middle + half)


def mnist_gan(data: Path, zoom: float = 1.5) -> tuple[cpwl.Network, cpwl.Domain]:
    """MNIST GAN before its tanh, through three latents."""
    network = cpwl.Network.from_torch(pretrained.mnist_gan(data), (64,), upto="tanh")
    return network, _around(cpwl.Slice.through(*_latents(64)), zoom)


def mnist_vae(data: Path, zoom: float = 2.0) -> tuple[cpwl.Network, cpwl.Domain]:
    """MNIST VAE decoder before its sigmoid, through the codes of the first 0, 1 and 7."""
    network = cpwl.Network.from_torch(pretrained.mnist_vae_decoder(data), (20,), upto="sigmoid")
    codes = pretrained.codes(_digits(data), data)
    return network, _around(cpwl.Slice.through(*codes), zoom)


def dcgan_faces(data: Path, zoom: float = 0.002) -> tuple[cpwl.Network, cpwl.Domain]:
    """DCGAN faces before their tanh, about the middle of three latents."""
    network = cpwl.Network.from_torch(pretrained.dcgan_faces(data), (100, 1, 1), upto="tanh")
    return network, _around(cpwl.Slice.through(*_latents(100, 1, 1)), zoom)


def sd_latents(data: Path, zoom: float = 0.0007) -> tuple[cpwl.Network, cpwl.Domain]:
    """The SD-latent decoder on 4 x 8 x 8 latents, about the middle of three of them."""
    network = cpwl.Network.from_torch(pretrained.sd_latent_decoder(data), (4, 8, 8))
    return network, _around(cpwl.Slice.through(*_latents(4, 8, 8)), zoom)


def acas(data: Path, name: str) -> tuple[cpwl.Network, cpwl.Domain]:
    """Bearing and distance of the intruder, on a head-on course at the speeds' means.

    The inputs are normalised: distance (feet - 19791) / 60261, angles / 2 pi.
    """
    network = cpwl.Network.from_onnx(data / "onnx" / f"acasxu_{name}.onnx")
    origin = np.zeros(network.input_shape)
    origin.reshape(-1)[2] = -0.5
    basis = np.zeros((2, *network.input_shape))
    basis[0].reshape(-1)[1] = 1
    basis[1].reshape(-1)[0] = 1
    return network, cpwl.Slice(origin, basis).box([-0.5, -0.328], [0.5, 0.679])


def cifar_resnet(data: Path, zoom: float = 0.05) -> tuple[cpwl.Network, cpwl.Domain]:
    """The residual CIFAR-10 classifier, about the middle of three noise images."""
    network = cpwl.Network.from_onnx(data / "onnx" / "cifar10_resnet_2b.onnx")
    return network, _around(cpwl.Slice.through(*_latents(*network.input_shape)), zoom)


def mnist_convnet(data: Path, zoom: float = 0.05) -> tuple[cpwl.Network, cpwl.Domain]:
    """The max-pooling ConvNet, about the middle of three test digits."""
    network = cpwl.Network.from_onnx(data / "onnx" / "mnist_convnet_maxpool.onnx")
    digits = _digits(data).pixels.reshape(3, *network.input_shape)
    return network, _around(cpwl.Slice.through(*digits), zoom)


def fitted_image(size: int = 64, steps: int = 300) -> tuple[cpwl.Network, cpwl.Domain]:
    """An implicit image 2-256-256-256-256-256-3, fitted to a photograph here, on all of it."""
    from bridges.networks.toys import one_thread, random_mlp

    module = random_mlp((2, 256, 256, 256, 256, 256, 3)).train()
    pixels = pretrained.photograph("astronaut", size).flatten(1).T
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    places = torch.cartesian_prod(axis, axis)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3)
    with one_thread():
        for _ in range(steps):
            loss = ((module(places) - pixels) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return cpwl.Network.from_torch(module.eval(), (2,)), cpwl.box([-1, -1], [1, 1])


class _Block(nn.Module):
    """Two convolutions and what skips them, of a ResNet."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False), nn.BatchNorm2d(fan_out),
            nn.ReLU(), nn.Conv2d(fan_out, fan_out, 3, 1, 1, bias=False), nn.BatchNorm2d(fan_out),
        )  # fmt: skip
        skips = nn.Conv2d(fan_in, fan_out, 1, stride, bias=False), nn.BatchNorm2d(fan_out)
        self.skip = nn.Sequential(*skips) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.inner(x) + self.skip(x))


def resnet18() -> nn.Module:
    """The residual network of 18 layers for 32 x 32 images, with random weights."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    for fan_in, fan_out in ((64, 64), (64, 128), (128, 256), (256, 512)):
        layers += [_Block(fan_in, fan_out, 1 + (fan_out > fan_in)), _Block(fan_out, fan_out, 1)]
    return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(512, 10)).eval()


def vgg11() -> nn.Module:
    """The network of eight convolutions, five max-poolings and a linear layer, random weights."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    fan_in = 3
    for fan_out, pool in ((64, 1), (128, 1), (256, 0), (256, 1), (512, 0), (512, 1), (512, 0),
                          (512, 1)):  # fmt: skip
        layers += [nn.Conv2d(fan_in, fan_out, 3, 1, 1), nn.BatchNorm2d(fan_out), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] * pool
        fan_in = fan_out
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10)).eval()


def dncnn(data: Path) -> nn.Module:
    """The part of the bias-free denoiser of 20 convolutions that finds the noise."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        file = torch.load(data / "denoiser" / "bf_dncnn_0-100.pt", "cpu", weights_only=True)
    state = file["model"][0]
    layers: list[nn.Module] = []
    for k, name in enumerate(name for name in state if name.endswith("layer.weight")
                             or name.startswith("hidden_layer_list")):  # fmt: skip
        weight = state[name].double()
        if 0 < k < 19:
            norm = f"bn_layer_list.{k - 1}"
            scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"].sqrt() + 1e-5)
            weight = weight * scale[:, None, None, None]
        layers += [nn.Conv2d(*weight.shape[1::-1], 3, 1, 1, bias=False), nn.ReLU()]
        layers[-2].weight = nn.Parameter(weight.float())
    return nn.Sequential(*layers[:-1]).eval()


def denoiser(data: Path, zoom: float = 0.0005) -> tuple[cpwl.Network, cpwl.Domain]:
    """The denoiser's noise of a patch of 12 x 12, about the middle of three noisy ones."""
    network = cpwl.Network.from_torch(dncnn(data), (1, 12, 12))
    noisy = torch.from_numpy(np.load(data / "denoiser" / "noisy_im_30.npy")).double()
    patches = [
        noisy.reshape(30, 30)[None, i : i + 12, j : j + 12] for i, j in ((0, 0), (4, 15), (17, 8))
    ]
    return network, _around(cpwl.Slice.through(*patches), zoom)


def of_images(module: nn.Module, zoom: float) -> tuple[cpwl.Network, cpwl.Domain]:
    """A classifier of 32 x 32 images, about the middle of three noise images."""
    network = cpwl.Network.from_torch(module, (3, 32, 32))
    return network, _around(cpwl.Slice.through(*_latents(3, 32, 32)), zoom)


def all_slices(data: Path) -> Iterator[tuple[str, Callable[[], tuple[cpwl.Network, cpwl.Domain]]]]:
    """Name every slice of the README's table, with the function that makes it."""
    yield "MNIST GAN 64-256-256-784", lambda: mnist_gan(data)
    yield "MNIST VAE decoder 20-400-784", lambda: mnist_vae(data)
    yield "DCGAN faces 100-3x64x64", lambda: dcgan_faces(data)
    yield "SD-latent decoder 4x8x8-3x16x16", lambda: sd_latents(data)
    for name in ("1_1", "2_7", "4_3"):
        yield f"ACAS Xu {name}", lambda name=name: acas(data, name)
    yield "CIFAR-10 ResNet 2b", lambda: cifar_resnet(data)
    yield "MNIST ConvNet, max-pooling", lambda: mnist_convnet(data)
    yield "fitted image 2-256x5-3", fitted_image
    yield "DnCNN, 20 convolutions", lambda: denoiser(data)
    yield "ResNet-18, random weights", lambda: of_images(resnet18(), 1e-5)
    yield "VGG-11, random weights", lambda: of_images(vgg11(), 5e-5)


def report(name: str) -> None:
    """Print one row of the table."""
    make = dict(all_slices(Path(os.environ["CPWL_DATA"])))[name]
    network, domain = make()
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clock = time.perf_counter()
    partition = cpwl.subdivide(network, domain, progress=False)
    seconds = time.perf_counter() - clock
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1000
    findings = cpwl.check(partition)
    width = float((domain.corners.max(axis=0) - domain.corners.min(axis=0)).max())
    print(
        f"| {name} | {network.num_units:,} | {width:.3g} | {partition.num_cells:,} "
        f"| {seconds:.2f} | {peak:.0f} | {'ok' if findings.ok else 'FAILED'} |",
        flush=True,
    )


def main() -> None:
    """Print the whole table, or the row that is named."""
    if len(sys.argv) > 1:
        report(sys.argv[1])
        return
    print("| network | units | slice width | cells | seconds | peak MB above start | check() |")
    print("|---" * 7 + "|", flush=True)
    for name, _ in all_slices(Path(os.environ["CPWL_DATA"])):
        subprocess.run([sys.executable, __file__, name], check=True)


if __name__ == "__main__":
    main()
