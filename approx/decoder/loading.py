"""Decoders from files that run no code when they are opened: diffusers folders.

`torch.load` and `torch.export.load` unpickle, which can run anything. Nothing here does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_IMAGE, _SOUND = ("height", "width"), ("length",)
# the keys of a configuration that may have the number of latent channels, and the axes behind them
CLASSES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = MappingProxyType(
    {
        "AutoencoderKL": (("latent_channels",), _IMAGE),
        "AutoencoderTiny": (("latent_channels",), _IMAGE),
        "AutoencoderDC": (("latent_channels",), _IMAGE),
        "AsymmetricAutoencoderKL": (("latent_channels",), _IMAGE),
        "AutoencoderKLFlux2": (("latent_channels",), _IMAGE),
        "AutoencoderKLHunyuanImage": (("latent_channels",), _IMAGE),
        "VQModel": (("vq_embed_dim", "latent_channels"), _IMAGE),
        "AutoencoderOobleck": (("decoder_input_channels",), _SOUND),
    }
)
"""Classes of diffusers whose `decode` takes latents alone."""


class Decoder(NamedTuple):
    """A decoder with what its file says of its latents.

    Attributes
    ----------
    decode : callable
        Takes latents (B, channels, *sizes); a module, or its `decode` method.
    channels : int
        Number of latent channels.
    axes : tuple of str
        Behind the channels, their sizes the latents' own: ("height", "width"), or ("length",).
    """

    decode: Callable[[Tensor], Any]
    channels: int
    axes: tuple[str, ...]


class Unquantised(nn.Module):
    """The decoder of a VQModel from behind its quantiser, which has no derivative but 0."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.post_quant_conv = model.post_quant_conv
        self.decoder = model.decoder
        # such a decoder is normalised by the codes as well
        self.spatial = model.config.norm_type == "spatial"

    def forward(self, z: Tensor) -> Tensor:
        """Decode vectors (B, channels, height, width), codes or not."""
        return self.decoder(self.post_quant_conv(z), z if self.spatial else None)


def load_diffusers(
    source: str | PathLike[str], *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Decoder:
    """Load the decoder half of an autoencoder of diffusers (extra ``cpwl[diffusers]``).

    It is an AutoencoderKL (also AsymmetricAutoencoderKL, AutoencoderKLFlux2 or
    AutoencoderKLHunyuanImage), AutoencoderTiny, AutoencoderDC, AutoencoderOobleck or VQModel.

    Parameters
    ----------
    source : str or path
        The model's folder, a pipeline's folder with the model in `vae`, or the name of either on
        the Hugging Face hub, such as "madebyollin/taesd", from which it is then downloaded.
    dtype : torch.dtype
        Of the weights, in whatever precision they were kept.
    device : str
        Where the weights go.

    Returns
    -------
    Decoder
        Its latents are what the model's `decode` takes: those of a diffusion pipeline divided by
        `scaling_factor` (and shifted by `shift_factor`). Those of a VQModel are vectors as its
        codebook has them, and need not be in it: they are not quantised.

    Raises
    ------
    ImportError
        diffusers is missing or cannot be imported.
    ValueError
        Another kind of model, or a damaged one; weights as a pickle and not as safetensors.
    OSError
        There is no such folder or name.
    """
    try:
        import diffusers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"Expected diffusers for reading '{source}', got {error}: "
            "pip install 'cpwl[diffusers]'."
        ) from error
    folder = Path(source)
    local = folder.is_dir()
    inside: dict[str, str] = {}
    if local:
        if not (folder / "config.json").is_file() and (folder / "vae" / "config.json").is_file():
            folder = folder / "vae"
        config = _local_config(folder)
    else:
        config, inside = _hub_config(str(source))
    name: Any = config.get("_class_name")
    if name not in CLASSES:
        raise ValueError(
            f"Expected a model of class {', '.join(CLASSES)} in '{source}', got {name!r}: give the "
            "autoencoder's own folder, or load it in Python and call approx.describe."
        )
    # diffusers imports its models when they are asked for, and wraps what goes wrong
    try:
        cls = getattr(diffusers, name)
    except (ImportError, RuntimeError, AttributeError) as error:
        raise ImportError(
            f"Expected diffusers to import {name}, got {_first_line(error)} Check the versions of "
            "diffusers, transformers and torchvision against torch's."
        ) from error
    try:
        model = cls.from_pretrained(
            str(folder) if local else str(source),
            use_safetensors=True,  # weights as a pickle are refused
            local_files_only=local,
            torch_dtype=dtype,
            low_cpu_mem_usage=False,
            **inside,
        )
    except OSError as error:
        raise OSError(
            f"Expected weights as .safetensors in '{source}', got {_first_line(error)} Pickled "
            "weights (.bin) could run code and are not opened: convert them with "
            "save_pretrained(folder, safe_serialization=True)."
        ) from error
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        raise _damaged(source, error) from error
    except Exception as error:  # safetensors raises an error of its own, below Exception
        if type(error).__module__.startswith("safetensors"):
            raise _damaged(source, error) from error
        raise
    model.eval().requires_grad_(False)
    keys, axes = CLASSES[name]
    # what is left out of a configuration has its default in the model's
    known = dict(model.config) | config
    channels = next(int(known[key]) for key in keys if known.get(key) is not None)
    if name == "VQModel":
        return Decoder(Unquantised(model).to(device), channels, axes)
    # the encoder's weights would only take memory, and be copied with the model
    model.encoder = None
    if hasattr(model, "quant_conv"):
        model.quant_conv = None
    return Decoder(model.to(device).decode, channels, axes)


def _local_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"Expected config.json of a diffusers model in '{folder}', got none: give the folder "
            "that save_pretrained wrote."
        ) from None
    except ValueError as error:
        raise _damaged(folder, error) from error
    if not isinstance(config, dict):
        raise _damaged(folder, f"a config.json with a {type(config).__name__}")
    return config


def _hub_config(source: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a model's configuration on the hub, and in which subfolder of the name it lies."""
    from diffusers.configuration_utils import ConfigMixin  # pyright: ignore[reportMissingImports]

    class Config(ConfigMixin):
        config_name = "config.json"

    try:
        config: Any = Config.load_config(source)
    except OSError as error:
        try:
            config = Config.load_config(source, subfolder="vae")
            return dict(config), {"subfolder": "vae"}
        except OSError:
            raise OSError(
                f"Expected a model folder or a name on the hub, got '{source}': "
                f"{_first_line(error)} Check the name and the connection."
            ) from error
    return dict(config), {}


def _damaged(source: object, error: object) -> ValueError:
    return ValueError(
        f"Expected a whole diffusers model in '{source}', got {_first_line(error)} Write it anew "
        "with save_pretrained, or copy it again."
    )


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") + "." if lines else f"{type(error).__name__}."
