"""Pipelines of diffusers with tiny random weights, made in code: prompts are embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor, nn

# of a latent (channels, height, width); a picture is twice as high and wide
LATENT = (4, 4, 8)
SQUARE = (4, 4, 4)  # DiT draws no others
PIXELS = (1, 4, 8)
PROMPTS = 2
STEPS = 4
_TOKENS, _WIDTH, _POOLED = 3, 16, 8


class PipelineCase(NamedTuple):
    """A pipeline and how it is called.

    Attributes
    ----------
    name : str
        "pipeline-scheduler".
    build : callable
        () or (dtype) -> pipeline, the same weights each time, progress bars off.
    arguments : callable
        () or (dtype) -> keyword arguments of its call, without a generator: a batch of `PROMPTS`,
        `STEPS` steps, guidance where it has one. Its `output_type` may be "np" or "pt"; "latent"
        too where `latent` says so.
    shape : tuple of int
        Of one latent, neither packed nor doubled.
    latent : bool
        Whether `output_type="latent"` is understood.
    denoiser : str
        Name of the module that predicts.
    """

    name: str
    build: Callable[..., Any]
    arguments: Callable[..., dict[str, Any]]
    shape: tuple[int, ...]
    latent: bool
    denoiser: str

    def __str__(self) -> str:
        return self.name


_PRESERVING = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "ddpm": lambda: diffusers.DDPMScheduler(),
    "ddim-clipped": lambda: diffusers.DDIMScheduler(),
    "ddim": lambda: diffusers.DDIMScheduler(
        **_PRESERVING, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    ),
    "euler": lambda: diffusers.EulerDiscreteScheduler(**_PRESERVING, steps_offset=1),
    "dpm": lambda: diffusers.DPMSolverMultistepScheduler(**_PRESERVING, steps_offset=1),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(**_PRESERVING, steps_offset=1),
    "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow-shifted": lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
}


def _vae(**options: Any) -> nn.Module:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=LATENT[0],
        norm_num_groups=4,
        sample_size=8,
        force_upcast=False,
        **options,
    )


def _conditional_unet(**options: Any) -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=4,
        in_channels=LATENT[0],
        out_channels=LATENT[0],
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=_WIDTH,
        attention_head_dim=2,
        **options,
    )


def _stable_diffusion(scheduler: Any) -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=_vae(scaling_factor=0.18215),
        text_encoder=None,
        tokenizer=None,
        unet=_conditional_unet(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(scheduler: Any) -> Any:
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae(scaling_factor=0.13025),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=_conditional_unet(
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=_POOLED + 6 * 4,
        ),
        scheduler=scheduler,
        add_watermarker=False,
    )


def _sd3(scheduler: Any) -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=LATENT[0],
        out_channels=LATENT[0],
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=_WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=_POOLED,
        pos_embed_max_size=8,
    )
    nothing: dict[str, Any] = {
        f"{part}{number}": None
        for part in ("text_encoder", "tokenizer")
        for number in ("", "_2", "_3")
    }
    vae = _vae(scaling_factor=1.5305, shift_factor=0.0609)
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=scheduler, vae=vae, **nothing
    )


def _flux(scheduler: Any) -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT[0],
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=_WIDTH,
        pooled_projection_dim=_POOLED,
        axes_dims_rope=(2, 2, 4),
    )
    return diffusers.FluxPipeline(
        scheduler=scheduler,
        vae=_vae(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )


def _transformer(kind: Any, **options: Any) -> nn.Module:
    return kind(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=LATENT[0],
        out_channels=2 * LATENT[0],  # the second half is a variance
        num_layers=2,
        sample_size=4,
        patch_size=2,
        **options,
    )


def _dit(scheduler: Any) -> Any:
    transformer = _transformer(diffusers.DiTTransformer2DModel, num_embeds_ada_norm=1000)
    vae = _vae(scaling_factor=0.18215)
    return diffusers.DiTPipeline(transformer=transformer, vae=vae, scheduler=scheduler)


def _pixart(scheduler: Any) -> Any:
    transformer = _transformer(
        diffusers.PixArtTransformer2DModel,
        cross_attention_dim=16,
        caption_channels=_WIDTH,
        attention_bias=True,
    )
    return diffusers.PixArtSigmaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=_vae(scaling_factor=0.13025),
        transformer=transformer,
        scheduler=scheduler,
    )


def _on_pixels(kind: Any) -> Callable[[Any], Any]:
    def pipeline(scheduler: Any) -> Any:
        unet = diffusers.UNet2DModel(
            sample_size=PIXELS[1:],
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
        )
        return kind(unet=unet, scheduler=scheduler)

    return pipeline


def _prompts(dtype: torch.dtype, seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(PROMPTS, *shape, generator=generator).to(dtype)


def _prompted(
    pooled: bool = False, mask: bool = False, **options: Any
) -> Callable[..., dict[str, Any]]:
    """Return the arguments of a pipeline that takes prompts."""

    def arguments(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        given: dict[str, Any] = {
            "prompt_embeds": _prompts(dtype, 1, _TOKENS, _WIDTH),
            "negative_prompt_embeds": _prompts(dtype, 2, _TOKENS, _WIDTH),
            "height": 2 * LATENT[1],
            "width": 2 * LATENT[2],
            "num_inference_steps": STEPS,
            "output_type": "pt",
        }
        if pooled:
            given["pooled_prompt_embeds"] = _prompts(dtype, 3, _POOLED)
            given["negative_pooled_prompt_embeds"] = _prompts(dtype, 4, _POOLED)
        if mask:
            given["negative_prompt"] = None
            for name in ("prompt_attention_mask", "negative_prompt_attention_mask"):
                given[name] = torch.ones(PROMPTS, _TOKENS, dtype=torch.int64)
        return given | options

    return arguments


def _plain(**options: Any) -> Callable[..., dict[str, Any]]:
    """Return the arguments of a pipeline without prompts."""

    def arguments(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        return {"num_inference_steps": STEPS} | options

    return arguments


def _built(make: Callable[[Any], Any], scheduler: str) -> Callable[..., Any]:
    def build(dtype: torch.dtype = torch.float32) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipe = make(SCHEDULERS[scheduler]())
        pipe.set_progress_bar_config(disable=True)
        for module in pipe.components.values():
            if isinstance(module, nn.Module):
                nn.Module.to(module, dtype)  # that of diffusers warns of any dtype
                module.eval().requires_grad_(False)
        return pipe

    return build


_PIPELINES: dict[str, Any] = {
    # name: pipeline, arguments, latent shape, latents can be asked for, denoiser, schedulers
    "sd": (_stable_diffusion, _prompted(guidance_scale=5.0), LATENT, True, "unet",
           ("ddim", "euler", "dpm", "unipc")),
    "sdxl": (_sdxl, _prompted(pooled=True, guidance_scale=5.0), LATENT, True, "unet",
             ("ddim", "euler", "dpm", "unipc")),
    "sd3": (_sd3, _prompted(pooled=True, guidance_scale=5.0), LATENT, True, "transformer",
            ("flow",)),
    "flux": (_flux, _prompted(pooled=True, true_cfg_scale=2.0), LATENT, True, "transformer",
             ("flow-shifted",)),
    "dit": (_dit, _plain(class_labels=[3, 7], guidance_scale=4.0, output_type="np"), SQUARE, False,
            "transformer", ("ddim", "euler", "dpm", "unipc")),
    "pixart": (_pixart, _prompted(mask=True, guidance_scale=4.5, use_resolution_binning=False),
               LATENT, True, "transformer", ("ddim", "euler", "dpm", "unipc")),
    "ddpm": (_on_pixels(diffusers.DDPMPipeline), _plain(batch_size=PROMPTS, output_type="np"),
             PIXELS, False, "unet", ("ddpm",)),
    "ddim": (_on_pixels(diffusers.DDIMPipeline), _plain(batch_size=PROMPTS, output_type="np"),
             PIXELS, False, "unet", ("ddim-clipped",)),
}  # fmt: skip
CASES = tuple(
    PipelineCase(f"{name}-{scheduler}", _built(make, scheduler), arguments, *rest)
    for name, (make, arguments, *rest, schedulers) in _PIPELINES.items()
    for scheduler in schedulers
)
