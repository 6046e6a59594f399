"""Digits along their sampling, and the descriptors of what decodes them: what studies share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from approx import describe
from bridges.networks.diffusion import mnist_decoder

NAMES = ("psi", "nu", "soft")
WORDS = {"psi": "local scaling", "nu": "local rank", "soft": "soft complexity"}
SETTLED = 0.05  # of its end, the estimate of x_0 stays within
# soft complexity is per unit radius: the radius counts the knots alone, which are not used here
OPTIONS: Mapping[str, Any] = {"neighbourhood": (4, 1e-2), "seed": 0, "progress": False}

Floats = NDArray[np.float64]
Table = dict[str, Floats]


def described(decoder: Callable[[Tensor], Any], z: Tensor, **options: Any) -> Table:
    """Return the descriptors at latents (*axes, N, 1, side, side), as (*axes, N) arrays."""
    table = describe(decoder, z.flatten(0, -4), **OPTIONS, **options)
    columns = table.columns()
    return {name: np.asarray(columns[name]).reshape(z.shape[:-3]) for name in NAMES}


def untrained_decoder(seed: int) -> nn.Module:
    """Return the decoder of `mnist_decoder` with new weights, as torch draws them."""
    decoder = mnist_decoder()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in decoder.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.reset_parameters()
    return decoder


def sampled(
    pipe: Any, labels: Tensor, noise: Tensor, guidance: float, steps: int
) -> tuple[Tensor, Tensor, list[float]]:
    """Return the samples (steps + 1, N, ...), estimates of x_0 (steps, N, ...), and sigmas.

    `pipe` is one of `bridges.networks.pipelines`.
    """
    samples = [noise]

    def keep(pipe: Any, step: int, time: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        samples.append(tensors["latents"])
        return tensors

    pipe(
        labels,
        guidance_scale=guidance,
        num_inference_steps=steps,
        latents=noise,
        output_type="latent",
        callback_on_step_end=keep,
    )
    x = torch.stack(samples)
    sigmas = pipe.scheduler.sigmas.view(-1, *[1] * noise.ndim)
    # a step is on the line from the sample to the estimate
    clean = (sigmas[:-1] * x[1:] - sigmas[1:] * x[:-1]) / (sigmas[:-1] - sigmas[1:])
    return x, clean, pipe.scheduler.sigmas.tolist()


def settled(clean: Tensor, end: Tensor) -> Floats:
    """Return the step (N,) behind the last one whose estimate of x_0 is too far from the end.

    Too far is more than `SETTLED` of the end's norm; `clean` is (steps, N, ...), `end` (N, ...).
    """
    far = (clean - end).flatten(2).norm(dim=2) > SETTLED * end.flatten(1).norm(dim=1)
    return (torch.arange(1, len(clean) + 1)[:, None] * far).amax(dim=0).double().numpy()
