"""What a pipeline's latents are: how those that it steps become those that its decoder takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from approx.decoder import HALF, Unquantised, modules_of
from approx.diffusion.schedules import mean_of
from approx.diffusion.stepping import Step

Codes = Callable[[Tensor], Tensor]
"""Latents as a pipeline steps them -> as its decoder takes them."""

_DENOISERS = ("transformer", "transformer_2", "unet")
_AUTOENCODERS = ("vae", "vqvae")
# of the norm, between latents that a pipeline decodes and ours; and in half precision
_TOLERANCE, _HALF_TOLERANCE = 1e-4, 0.02


def autoencoder_of(pipe: Any) -> Any:
    """Return the autoencoder of a pipeline, or None."""
    found = (getattr(pipe, name, None) for name in _AUTOENCODERS)
    return next((part for part in found if hasattr(part, "decode")), None)


def decoder_of(pipe: Any) -> Callable[[Tensor], Any] | None:
    """Return what decodes a pipeline's latents, or None without an autoencoder.

    Of a VQModel it is the decoder behind the quantiser, whose derivative is 0.
    """
    part = autoencoder_of(pipe)
    if part is None:
        return None
    if type(part).__name__ == "VQModel":
        return Unquantised(part).eval()
    return getattr(part.decode, "behind", part.decode)  # not what listens to it


def denoiser_of(pipe: Any) -> nn.Module:
    """Return the denoiser of a pipeline, of samples and times alone.

    Raises
    ------
    ValueError
        None, or one that needs more than a sample and a time.
    """
    found = next((getattr(pipe, n) for n in _DENOISERS if getattr(pipe, n, None) is not None), None)
    if found is None:
        raise ValueError(
            f"Expected a pipeline with a vae, or with a unet or transformer of samples and times, "
            f"got {type(pipe).__name__} with neither: give denoiser= or decoder=."
        )
    needed = [
        name
        for name, p in list(inspect.signature(found.forward).parameters.items())[2:]
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    if needed:
        raise ValueError(
            f"Expected a vae, or a denoiser of samples and times alone, got a "
            f"{type(found).__name__} that needs {', '.join(needed)}: give denoiser= with those "
            "bound."
        )
    return found


def unscaled(z: Tensor, part: Any) -> Tensor:
    """Return latents (B, C, ...) with the normalisation of an autoencoder undone.

    z std / scaling_factor + mean + shift_factor, with those that its configuration has: latents are
    scaled to unit variance before a diffusion model is trained on them.
    """
    config = getattr(part, "config", None)

    def known(name: str) -> Any:
        return getattr(config, name, None)

    per_channel = (1, -1, *[1] * (z.ndim - 2))
    if known("latents_std") is not None:
        z = z * torch.as_tensor(known("latents_std"), dtype=z.dtype, device=z.device).view(
            per_channel
        )
    if known("scaling_factor") is not None:
        z = z / known("scaling_factor")
    if known("latents_mean") is not None:
        z = z + torch.as_tensor(known("latents_mean"), dtype=z.dtype, device=z.device).view(
            per_channel
        )
    return z if known("shift_factor") is None else z + known("shift_factor")


def unpacked(z: Tensor, ids: Tensor) -> Tensor:
    """Return tokens (B, L, 4 C) of 2 x 2 pixels as latents (B, C, H, W).

    `ids` (at least L, 3) has the row and column of each token behind a first number. Raises
    ValueError where they are no grid.
    """
    b, length, channels = z.shape
    places = ids.reshape(-1, ids.shape[-1])[:length, -2:]  # images to edit come behind
    h, w = (int(n) + 1 for n in (places.amax(0) - places.amin(0)).tolist())
    if h * w != length or channels % 4:
        raise ValueError(
            f"Expected packed latents (B, height x width, 4 channels), got {tuple(z.shape)} on a "
            f"grid of {h} x {w}: give codes=, from these to what the decoder takes."
        )
    z = z.reshape(b, h, w, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return z.reshape(b, channels // 4, 2 * h, 2 * w)


@dataclass(eq=False)
class Layout:
    """How a pipeline lays its latents out, as its denoiser was last told.

    Attributes
    ----------
    part : autoencoder or None
    codes : callable or None
        The caller's own, in place of all else.
    told : dict
        Arguments of the denoiser by name.
    doubled : bool
        Whether a sample has every latent twice, for guidance. Settled in a call's first step.
    call : int
        Of the pipeline, from 0; -1 before any.
    begun : int
        Its number among the runs that are watched.
    finished : Tensor or None
        The sample behind a call's last step.
    decodes : dict of int to bool
        By call, whether the pipeline then decoded what this makes of it.
    """

    part: Any
    codes: Codes | None
    told: dict[str, Any] = field(default_factory=dict)
    doubled: bool = False
    call: int = -1
    begun: int = -1
    finished: Tensor | None = None
    decodes: dict[int, bool] = field(default_factory=dict)

    def begins(self, step: Step) -> bool:
        """Tell whether a step is the first of a call, and settle whether samples are doubled.

        Two equal latents may be two prompts, so equality is not enough. The halves of sample and
        prediction are bitwise equal, and the denoiser was called with as many rows, under
        conditions that differ between the halves. Prompts that differ have different predictions,
        and those that do not have the same conditions.
        """
        if step.call == self.begun:
            return False
        self.begun, self.call, self.finished = step.call, self.call + 1, None
        x = step.sample
        self.doubled = (
            len(x) % 2 == 0
            and _repeats(x)
            and _repeats(mean_of(step.given, x))
            and any(len(t) == len(x) and not _repeats(t) for t in self.told.values() if _listed(t))
        )
        return True

    def ended(self, step: Step, sample: Tensor) -> None:
        """Keep the sample behind the last step: what was decoded before is a preview."""
        if step.number == len(step.schedule) - 1:
            self.finished = sample

    def __call__(self, z: Tensor, *, scaled: bool = False) -> Tensor:
        """Return latents as the decoder takes them, or still scaled, in at least float32."""
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        if self.codes is not None:
            return self.codes(z)
        if self.doubled:
            z = z[: len(z) // 2]
        ids = self.told.get("img_ids")
        if z.ndim == 3 and isinstance(ids, Tensor):
            z = unpacked(z, ids)
        return z if scaled else unscaled(z, self.part)

    def check(self) -> None:
        """Refuse latents that are not those which the pipeline decoded."""
        wrong = [call for call, right in self.decodes.items() if not right]
        if wrong and self.codes is None:
            raise ValueError(
                f"Expected the pipeline to decode the sample behind its last step, got other "
                f"latents in call {wrong[0]}: it scales or changes them in its own way. Give "
                "codes=, from the latents that the scheduler steps to those that the decoder takes."
            )


@contextmanager
def laid_out(pipe: Any, codes: Codes | None, denoiser: Any = None) -> Iterator[Layout]:
    """Listen to a pipeline's denoiser and to what it decodes; it is as before afterwards."""
    part: Any = autoencoder_of(pipe)
    layout = Layout(part, codes)
    named = [getattr(pipe, name, None) for name in _DENOISERS]
    parts = named if denoiser is None else modules_of(denoiser)

    def told(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        layout.told = {**{str(n): a for n, a in enumerate(args)}, **kwargs}

    hooks = [
        p.register_forward_pre_hook(told, with_kwargs=True)
        for p in parts
        if isinstance(p, nn.Module)
    ]
    own = getattr(part, "__dict__", {}).get("decode")
    if part is not None:
        decode: Any = part.decode

        def decoding(*args: Any, **kwargs: Any) -> Any:
            given = args[0] if args else next(iter(kwargs.values()), None)
            # with gradients it is a reward that decodes, or the caller
            finished = None if torch.is_grad_enabled() else layout.finished
            if finished is not None and isinstance(given, Tensor):
                ours = layout(finished)
                if given.numel() == ours.numel():  # others are previews of the caller's
                    half = {given.dtype, finished.dtype} & set(HALF)
                    right = _close(given, ours, _HALF_TOLERANCE if half else _TOLERANCE)
                    layout.decodes[layout.call] = right or layout.decodes.get(layout.call, False)
            return decode(*args, **kwargs)

        vars(decoding)["behind"] = getattr(decode, "behind", decode)
        part.decode = decoding
    try:
        yield layout
    finally:
        layout.told, layout.finished = {}, None
        for hook in hooks:
            hook.remove()
        if part is not None:
            del part.decode
            if own is not None:
                part.decode = own


@contextmanager
def loaded(decoder: Any, home: torch.device) -> Iterator[torch.device]:
    """Hold a decoder on the device that it runs on, without accelerate's hooks.

    A copy of a module with its hook would be one of the model before it as well. Weights that are
    not in memory as a whole are refused.
    """
    taken = []
    try:
        for module in modules_of(decoder):
            hook: Any = getattr(module, "_hf_hook", None)
            if any(p.is_meta for p in module.parameters()):
                raise ValueError(
                    f"Expected the weights of {type(module).__name__} in memory, got them "
                    "offloaded layer by layer: use pipe.enable_model_cpu_offload(), which moves "
                    "whole models, or give decoder=; run.seen has the latents."
                )
            if hasattr(hook, "execution_device"):
                from accelerate.hooks import remove_hook_from_module

                hook.pre_forward(module)  # as its first call would
                remove_hook_from_module(module)
                taken.append((module, hook))
            home = next((p.device for p in module.parameters()), home)
        yield home
    finally:
        for module, hook in taken:
            from accelerate.hooks import add_hook_to_module

            add_hook_to_module(module, hook)  # and the module moves where it was


def _listed(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _repeats(x: Tensor) -> bool:
    """Tell whether the second half of the rows is the first."""
    half = len(x) // 2
    return torch.equal(x[:half], x[half:])


def _close(given: Tensor, ours: Tensor, tolerance: float) -> bool:
    """Tell whether as many numbers are the same, to a share of their norm."""
    given, ours = given.double().flatten(), ours.double().flatten()
    # not <=: latents with NaN fail elsewhere
    return not float((given - ours).norm()) > tolerance * float(ours.norm())
