"""The diffusion models of characters as pipelines of diffusers, with a flow-matching scheduler.

Imported where diffusers is: it is an extra, and only the functions here need it. `folder` is as for
`bridges.networks.data.path`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bridges.networks.diffusion import (
    Denoiser,
    Transformer,
    emnist_decoder,
    emnist_denoiser,
    mnist_decoder,
    mnist_denoiser,
    mnist_transformer,
)

TIMES = 1000  # the scheduler's times at pure noise
OUTPUTS = ("pil", "np", "pt", "latent")


class _Part(nn.Module):
    """What a pipeline asks its parts beside `forward`."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


class Velocity(_Part):
    """Velocity eps - x_0 of a sample, at the times and of the labels that a scheduler knows.

    Parameters
    ----------
    network : Denoiser or Transformer
        Of `bridges.networks.diffusion`; their own time runs from 0, noise, to 1.
    """

    def __init__(self, network: Denoiser | Transformer) -> None:
        super().__init__()
        self.network = network
        latent = isinstance(network, Denoiser)
        self.classes = network.yemb.in_features if latent else network.y_encoder.num_embeddings - 1
        side = round(network.yemb.out_features**0.5) if latent else 28
        self.shape = (1, side, side)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """Return the velocities (B, 1, side, side).

        Parameters
        ----------
        sample : Tensor
            (B, 1, side, side): (1 - sigma) x_0 + sigma eps.
        timestep : Tensor
            () or (B,), sigma times 1,000.
        class_labels : Tensor
            (B,) int64; -1 for any.
        """
        sigma = (timestep / TIMES).to(sample).expand(len(sample))
        if isinstance(self.network, Denoiser):
            known = torch.arange(self.classes, device=class_labels.device)
            y = (class_labels[:, None] == known).to(sample)
            return -self.network(sample, 1 - sigma, y)
        clean = self.network(sample, 1 - sigma, class_labels)
        return (sample - clean) / sigma[:, None, None, None]


class LatentDecoder(_Part):
    """A decoder with the `decode` and the `config` of diffusers' autoencoders."""

    def __init__(self, network: nn.Module) -> None:
        from diffusers.configuration_utils import FrozenDict

        super().__init__()
        self.network = network
        self.config = FrozenDict(scaling_factor=1.0, latent_channels=1)

    def decode(self, z: Tensor, return_dict: bool = True) -> Any:
        """Return pictures (B, 1, 28, 28) of latents, as `.sample` or as a tuple's only entry."""
        from diffusers.models.autoencoders.vae import DecoderOutput

        pictures = self.network(z)
        return DecoderOutput(sample=pictures) if return_dict else (pictures,)


def character_pipeline(network: Denoiser | Transformer, decoder: nn.Module | None = None) -> Any:
    """Return a pipeline of diffusers that draws characters; it needs the extra cpwl[diffusers].

    Parameters
    ----------
    network : Denoiser or Transformer
        Of latents that the decoder takes, or of pictures without one.
    decoder : nn.Module, optional
        Latents to pictures, ink 1 and paper 0.

    Returns
    -------
    diffusers.DiffusionPipeline
        With `unet` (a `Velocity`), `vae` (a `LatentDecoder`, or None) and `scheduler`, a
        FlowMatchEulerDiscreteScheduler. It is called with the labels (B,), -1 for any, and with
        ``guidance_scale=2.0, num_inference_steps=50, generator=None, latents=None,
        output_type="pil"`` and `callback_on_step_end`, as in diffusers. Guidance is free of
        classifiers: velocity of any class and `guidance_scale` times the difference that the label
        makes, so that 1 is the conditional model and 0 draws any class. Steps are equal.
        Its result has `.images`: PIL, arrays or tensors in [0, 1], or what comes before the decoder
        for "latent". It is made of files that run no code, and not kept by `save_pretrained`.

    Raises
    ------
    ValueError
        When it is called: labels of no class, no steps, another output_type.
    """
    from diffusers.image_processor import VaeImageProcessor
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
        FlowMatchEulerDiscreteScheduler,
    )
    from diffusers.utils.torch_utils import randn_tensor

    class CharacterPipeline(DiffusionPipeline):
        model_cpu_offload_seq = "unet->vae"
        _optional_components = ("vae",)

        def __init__(self, unet: Velocity, vae: LatentDecoder | None, scheduler: Any) -> None:
            super().__init__()
            self.register_modules(unet=unet, vae=vae, scheduler=scheduler)

        @torch.no_grad()
        def __call__(
            self,
            labels: Sequence[int] | Tensor,
            guidance_scale: float = 2.0,
            num_inference_steps: int = 50,
            generator: torch.Generator | list[torch.Generator] | None = None,
            latents: Tensor | None = None,
            output_type: str = "pil",
            return_dict: bool = True,
            callback_on_step_end: Callable[..., dict[str, Tensor]] | None = None,
        ) -> Any:
            device, dtype = self._execution_device, self.unet.dtype
            labels = torch.as_tensor(labels, dtype=torch.int64, device=device)
            _check(labels, self.unet.classes, num_inference_steps, output_type)
            if latents is None:
                shape = (len(labels), *self.unet.shape)
                latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
            x: Any = latents.to(device=device, dtype=dtype)
            # equal steps, the last of which ends at 0
            sigmas = [1 - i / num_inference_steps for i in range(num_inference_steps)]
            self.scheduler.set_timesteps(sigmas=sigmas, device=device)
            bar: Any = self.progress_bar
            for number, t in enumerate(bar(self.scheduler.timesteps)):
                x = self.scheduler.step(self._guided(x, t, labels, guidance_scale), t, x)[0]
                if callback_on_step_end is not None:
                    x = callback_on_step_end(self, number, t, {"latents": x}).get("latents", x)
            if output_type != "latent":
                if self.vae is not None:
                    x = self.vae.decode(x / self.vae.config.scaling_factor, return_dict=False)[0]
                plain = [False] * len(x)
                x = VaeImageProcessor().postprocess(x.clamp(0, 1), output_type, plain)
            return ImagePipelineOutput(images=x) if return_dict else (x,)  # type: ignore[arg-type]

        def _guided(self, x: Tensor, t: Tensor, labels: Tensor, scale: float) -> Tensor:
            """Return the velocity of any class, and `scale` times what the labels change."""
            if scale == 1:
                return self.unet(x, t, labels)
            free = torch.full_like(labels, -1)
            if scale == 0:
                return self.unet(x, t, free)
            twice, both = torch.cat([x, x]), torch.cat([free, labels])
            free, told = self.unet(twice, t, both).chunk(2)
            return free + scale * (told - free)

    vae = None if decoder is None else LatentDecoder(decoder).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIMES)
    return CharacterPipeline(Velocity(network).eval(), vae, scheduler)


def _check(labels: Tensor, classes: int, steps: int, output_type: str) -> None:
    """Refuse what cannot be drawn."""
    wrong = labels[(labels < -1) | (labels >= classes)] if labels.ndim == 1 else labels.new_ones(0)
    if labels.ndim != 1 or not len(labels) or len(wrong):
        got = f"{int(wrong[0])}" if len(wrong) else f"labels of shape {tuple(labels.shape)}"
        raise ValueError(
            f"Expected a list of labels from 0 to {classes - 1}, or -1 for any, got {got}: give "
            "one for each sample."
        )
    if steps < 1:
        raise ValueError(f"Expected num_inference_steps of at least 1, got {steps}: give more.")
    if output_type not in OUTPUTS:
        raise ValueError(
            f"Expected output_type as one of {', '.join(OUTPUTS)}, got {output_type!r}: take one "
            "of these."
        )


def mnist_pipeline(folder: Path | None = None) -> Any:
    """Return the pretrained latent diffusion of MNIST's digits, see `character_pipeline`."""
    return character_pipeline(mnist_denoiser(folder), mnist_decoder(folder))


def emnist_pipeline(folder: Path | None = None) -> Any:
    """Return the pretrained latent diffusion of EMNIST's 47 classes, see `character_pipeline`."""
    return character_pipeline(emnist_denoiser(folder), emnist_decoder(folder))


def transformer_pipeline(folder: Path | None = None) -> Any:
    """Return the pretrained diffusion transformer of digits on pixels, see `character_pipeline`."""
    return character_pipeline(mnist_transformer(folder))
