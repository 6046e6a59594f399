"""Training of the classifier, with checkpoints."""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map
from tqdm import tqdm

from approx.diffusion.reward.classifier import Classifier, ClassifierReward, share_of
from approx.diffusion.reward.noising import Collected
from approx.spectra import draw_seed

# between the seeds of epochs: each its own, so that a continued run is an uninterrupted one
_STRIDE = 0x9E3779B97F4A7C15
# what a checkpoint must have been made with to be continued
_SETTINGS = ("width", "batch", "rate", "seed", "data")


def fit(
    collected: Collected,
    *,
    epochs: int = 20,
    width: int = 64,
    batch: int = 128,
    rate: float = 1e-3,
    generator: torch.Generator | int | None = 0,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> ClassifierReward:
    """Fit a small classifier of noisy samples, told their time, to the bins.

    Parameters
    ----------
    collected : Collected
        Its samples that are not held out are used, on their device.
    epochs : int
        Passes over them.
    width : int
        Channels of the convolutions (latents (C, H, W)), or units of the linear layers.
    batch : int
        Samples a step.
    rate : float
        Learning rate of AdamW.
    generator : torch.Generator, int or None
        Seed of weights and order. torch's own generators are not touched.
    path : path, optional
        Checkpoint, written whole after each epoch. One that exists is continued.
    progress : bool
        Show a progress bar.

    Returns
    -------
    ClassifierReward
        After Ctrl-C of the last whole epoch, with a warning.

    Raises
    ------
    ValueError
        Another number of epochs or samples than at least 1; a checkpoint of other data or settings;
        a loss that is not finite.

    Examples
    --------
    >>> import torch
    >>> from approx.diffusion import Schedule, diffusion_levels, reward
    >>> schedule = Schedule(diffusion_levels([0.99], [0]), "epsilon")
    >>> codes = torch.linspace(-1, 1, 200)[:, None]
    >>> found = reward.collect(codes, codes[:, 0], schedule, bins=2, times=1, generator=0)
    >>> fitted = reward.fit(found, epochs=5, width=16, progress=False)
    >>> fitted(torch.tensor([[-1.0], [1.0]]), found.levels[0]).exp() > 0.5
    tensor([False,  True])
    """
    if not isinstance(collected, Collected):
        raise ValueError(
            f"Expected what reward.collect returned, got {type(collected).__name__}: collect noisy "
            "codes first."
        )
    if min(epochs, width, batch) < 1 or not rate > 0:
        raise ValueError(
            "Expected epochs, width and batch of at least 1 and a rate above 0, got "
            f"{epochs}, {width}, {batch} and {rate}: change these."
        )
    seed = draw_seed(generator)
    at = torch.nonzero(~collected.held_out)[:, 0]
    device = collected.samples.device
    inputs = _inputs(collected, at)
    samples = inputs[0]
    shape, bins = tuple(samples.shape[1:]), len(collected.edges) - 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Classifier(shape, bins, width)
    network.to(device).size.fill_(float(samples.square().mean().sqrt()))
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate)
    times = [level.time for level in collected.levels]
    state: dict[str, Any] = {
        "settings": {
            "width": width, "batch": batch, "rate": rate, "seed": seed, "data": _digest(collected),
        },
        "edges": list(collected.edges),
        "times": [min(times), max(times)],
        "latent_shape": list(shape),
        "epochs": 0,
        "of": epochs,
    }  # fmt: skip
    path = None if path is None else Path(path)
    if path is not None and path.exists():
        state = _continued(path, state, network, optimiser)
        state["of"] = max(epochs, state["epochs"])
    else:
        state |= _weights(network, optimiser)
    steps = -(-len(at) // batch)
    bar = tqdm(total=epochs * steps, initial=state["epochs"] * steps, disable=not progress,
               unit="step", dynamic_ncols=True)  # fmt: skip
    with bar:
        try:
            network.train()
            for epoch in range(state["epochs"], epochs):
                loss = _epoch(network, optimiser, inputs, batch, seed + epoch * _STRIDE, bar)
                if not math.isfinite(loss):
                    raise ValueError(
                        f"Expected a finite loss, got {loss} in epoch {epoch}: check the codes, or "
                        "lower rate."
                    )
                bar.set_postfix(loss=f"{loss:.3f}")
                state = {**state, "epochs": epoch + 1, **_weights(network, optimiser)}
                if path is not None:
                    _save(state, path)
        except KeyboardInterrupt:
            if not state["epochs"]:
                raise
            warnings.warn(
                f"Interrupted after {state['epochs']} of {epochs} epochs: the classifier is that "
                "of the last whole one and its `complete` is False; fit with the same path "
                "continues.",
                RuntimeWarning,
                stacklevel=2,
            )
    return _reward(state, device)


def load(path: str | os.PathLike[str]) -> ClassifierReward:
    """Return the classifier in a checkpoint of `fit`, on the CPU.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        A file that is no such checkpoint.
    """
    return _reward(_read(Path(path)), torch.device("cpu"))


def _epoch(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    inputs: tuple[Tensor, Tensor, Tensor],
    batch: int,
    seed: int,
    bar: Any,
) -> float:
    """Pass over all samples once, in the order of a seed; return the mean loss."""
    samples, share, labels = inputs
    own = torch.Generator().manual_seed(seed % 2**63)
    total = 0.0
    for rows in torch.randperm(len(samples), generator=own).split(batch):
        rows = rows.to(samples.device)
        loss = functional.cross_entropy(network(samples[rows], share[rows]), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        total += loss.item() * len(rows)
        bar.update()
    return total / len(samples)


def _inputs(collected: Collected, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return samples of unit-variance levels, their places in the range of times, and bins."""
    device = collected.samples.device
    norms = torch.tensor([level.norm for level in collected.levels])
    times = [level.time for level in collected.levels]
    shares = torch.tensor([share_of(t, (min(times), max(times))) for t in times])
    level = collected.level[at]
    samples = collected.samples[at.to(device)].float()
    norm = norms[level].to(device).reshape(-1, *[1] * (samples.ndim - 1))
    return samples / norm, shares[level].to(device), collected.bin[at].to(device)


def _weights(network: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Return copies of the states, which training then leaves alone."""
    states = {"network": network.state_dict(), "optimiser": optimiser.state_dict()}
    return tree_map(lambda x: x.detach().cpu().clone() if isinstance(x, Tensor) else x, states)


def _continued(
    path: Path, fresh: dict[str, Any], network: nn.Module, optimiser: torch.optim.Optimizer
) -> dict[str, Any]:
    """Return the state in a checkpoint, put into network and optimiser."""
    state = _read(path)
    for name in _SETTINGS:
        if state["settings"][name] != fresh["settings"][name]:
            raise ValueError(
                f"Expected a checkpoint at {path} with the same {name}, got "
                f"{state['settings'][name]} where {fresh['settings'][name]} is asked for: give "
                "another path, or the same data and settings."
            )
    network.load_state_dict(state["network"])
    optimiser.load_state_dict(state["optimiser"])
    return state


def _read(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        _ = state["settings"], state["network"], state["optimiser"], state["latent_shape"]
    except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError) as error:
        raise ValueError(
            f"Expected a checkpoint of approx.diffusion.reward.fit, got a file {path} that is none "
            f"({type(error).__name__}): give another path."
        ) from error
    return state


def _save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint that appears under its name only when it is whole."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(state, beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _reward(state: dict[str, Any], device: torch.device) -> ClassifierReward:
    shape = tuple(state["latent_shape"])
    edges = tuple(state["edges"])
    with torch.random.fork_rng(devices=[]):
        network = Classifier(shape, len(edges) - 1, state["settings"]["width"])
    network.load_state_dict(state["network"])
    network.to(device).eval().requires_grad_(False)
    low, high = state["times"]
    done = state["epochs"]
    return ClassifierReward(network, edges, (low, high), shape, done, complete=done >= state["of"])


def _digest(collected: Collected) -> str:
    """Return a digest of what is fitted to what."""
    found = hashlib.sha256()
    for part in (collected.samples.float(), collected.bin, collected.level, collected.held_out):
        found.update(part.cpu().contiguous().numpy().tobytes())
    found.update(repr((collected.edges, collected.levels)).encode())
    return found.hexdigest()
