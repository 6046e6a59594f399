"""Descriptors inside the hull of encoded images, and how the radius of delta matters.

Figures 5 and 21 to 26 of A. I. Humayun et al., "What secrets do your manifolds hold?"
(arXiv 2408.08307), which show planes through three latents of images. A seed is one plane for each
decoder: points of the triangle of its anchors against points of the three congruent triangles that
border on it. The control is the same plane with the coordinates of all anchors permuted alike:
every length and angle stays, and the anchors are latents of images no more.

The radius of delta is studied with exact numbers of cells around random latents, along P random
orthonormal directions. The bias-free denoiser is left out: one stage of its 30 x 30 patch has
57,600 units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import cpwl
from approx import describe
from bridges.networks import pretrained
from bridges.networks.diffusion import mnist_decoder, mnist_encoder
from bridges.networks.toys import RADIUS, toy_generator
from bridges.studies.associations import rank_correlation
from bridges.studies.claims import Claim, Invariant, Study, stacked, whole_seeds
from bridges.studies.digits import Floats

NAMES = ("psi", "nu", "delta")
WORDS = {"psi": "local scaling", "nu": "local rank", "delta": "local complexity"}
DECODERS = {"digits": "MNIST autoencoder", "photographs": "TAEF2"}
PLACES = ("encoded", "permuted")
SPAN = 256  # pixels of a photograph, of which a crop has 8 x 8
DIRECTIONS = {"toy": (1, 2), "gan": (1, 2, 3)}
MODELS = {"toy": "toy", "gan": "MNIST GAN"}


class Size(NamedTuple):
    """How much is run.

    Attributes
    ----------
    seeds : int
        Where none are given; as many planes of each decoder.
    points : int
        Inside of the anchors' triangle, and as many outside.
    latents : int
        Whose cells are counted.
    radii : tuple of float
        In rising order.
    steps : int
        Of the toy's training.
    """

    seeds: int
    points: int
    latents: int
    radii: tuple[float, ...]
    steps: int


FULL = Size(20, 4, 20, (1e-6, 1e-4, 1e-2, 1e-1, 1.0), 4000)
SMALL = Size(2, 1, 4, (1e-2, 1.0), 200)


def study(size: Size, seeds: Sequence[int]) -> Study:
    """Run the study at some size; `FULL` takes some four minutes of one core.

    Its data: `planes`, by decoder, `PLACES` and descriptor, the means `inside` and `outside`
    (seeds,), and `norm`, of the points; `radii`; `cells`, by model and P, delta (draws, radii,
    latents, seeds) of two draws of B. Ctrl-C keeps the seeds before it.
    """
    decoders = {"digits": mnist_decoder(), "photographs": pretrained.taef2_decoder()}
    models = {"toy": toy_generator(steps=size.steps), "gan": pretrained.mnist_gan()[:-1]}
    networks = {
        name: cpwl.Network.from_torch(model, (model[0].in_features,))
        for name, model in models.items()
    }

    def one(seed: int) -> dict[str, Any]:
        planes = {
            name: _plane(decoder, _anchors(name, seed), size, seed)
            for name, decoder in decoders.items()
        }
        cells = {name: _cells(name, net, size, seed) for name, net in networks.items()}
        return {"planes": planes, "cells": cells}

    found = whole_seeds(seeds, one)
    data = stacked(found)
    claims = (*_hulls(data["planes"]), *_radii(size, data["cells"]))
    held = _invariants(data)
    done = tuple(seeds)[: len(found)]
    return Study("geometry", size == FULL, done, claims, held, {"radii": list(size.radii)} | data)


# -- planes ----------------------------------------------------------------------------------------


def _anchors(name: str, seed: int) -> Tensor:
    """Return the latents of three images (3, *latent_shape), others for each seed."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        if name == "digits":
            digits = pretrained.read_images("mnist")
            pixels = digits.pixels[rng.choice(len(digits.pixels), 3, replace=False)]
            return mnist_encoder()(torch.from_numpy(pixels).view(-1, 1, 28, 28))[:, :1]
        crops = []
        for photograph in rng.choice(pretrained.PHOTOGRAPHS, 3, replace=False):
            top, left = rng.integers(SPAN - 8, size=2)
            crops.append(pretrained.photograph(str(photograph), SPAN)[:, top:, left:][:, :8, :8])
        return pretrained.taef2_encoder()(torch.stack(crops))


def _plane(decoder: nn.Module, anchors: Tensor, size: Size, seed: int) -> dict[str, Any]:
    """Return the mean descriptors of points of a plane, inside and outside of the anchors' hull."""
    rng = np.random.default_rng([seed, 1])
    inside = rng.dirichlet(np.ones(3), size.points)
    # turned by half about the middle of an edge: a_i + a_j - p
    edges = 1 - np.eye(3)[rng.integers(3, size=size.points)]
    shares = torch.from_numpy(np.concatenate([inside, edges - inside])).float()
    flat = anchors.flatten(1)
    permuted = flat[:, torch.from_numpy(rng.permutation(flat.shape[1]))]
    found: dict[str, Any] = {}
    for place, ends in zip(PLACES, (flat, permuted), strict=True):
        z = (shares @ ends).view(-1, *anchors.shape[1:])
        table = describe(decoder, z, method="exact", neighbourhood=(4, 1e-2), seed=seed,
                         progress=False)  # fmt: skip
        columns = table.columns()
        halves = {name: np.asarray(columns[name]).reshape(2, -1).mean(axis=1) for name in NAMES}
        halves["norm"] = z.flatten(1).norm(dim=1).view(2, -1).mean(dim=1).numpy()
        found[place] = {
            name: dict(zip(("inside", "outside"), half, strict=True))
            for name, half in halves.items()
        }
    return found


def _hulls(planes: Mapping[str, Any]) -> list[Claim]:
    """Return what the inside of the anchors' hull has more than the outside."""
    claims = []
    for decoder, words in DECODERS.items():
        for name in NAMES:
            more = [planes[decoder][place][name]["inside"] - planes[decoder][place][name]["outside"]
                    for place in PLACES]  # fmt: skip
            text = f"Figures 5, 21 to 26, {words}: {WORDS[name]} inside the anchors' hull"
            claims += [
                Claim(text, "not said", f"{name}, less outside", tuple(more[0].tolist())),
                Claim(f"control: {text}, coordinates permuted", "none", f"{name}, less outside",
                      tuple(more[1].tolist())),
                Claim(f"{text}, less the control", "not said", f"{name}, less outside",
                      tuple((more[0] - more[1]).tolist())),
            ]  # fmt: skip
    return claims


# -- the radius ------------------------------------------------------------------------------------


def _cells(name: str, network: cpwl.Network, size: Size, seed: int) -> dict[str, Floats]:
    """Return delta (2 draws of B, radii, latents), by P."""
    rng = np.random.default_rng([seed, 2])
    shape = (size.latents, network.input_shape[0])
    latents = rng.uniform(-RADIUS, RADIUS, shape) if name == "toy" else rng.standard_normal(shape)
    found = {str(p): np.empty((2, len(size.radii), size.latents)) for p in DIRECTIONS[name]}
    for draw in range(2):
        # the rows of a smaller P are among those of a larger one, and its cells too
        basis = np.linalg.qr(rng.standard_normal((shape[1], max(DIRECTIONS[name]))))[0].T
        for p in DIRECTIONS[name]:
            for at, radius in enumerate(size.radii):
                found[str(p)][draw, at] = [
                    cpwl.local_complexity(network, z, radius, basis[:p]) for z in latents
                ]
    return found


def _radii(size: Size, cells: Mapping[str, Any]) -> list[Claim]:
    """Return whether delta ranks latents alike at other radii, other P and other draws of B."""
    claims: list[Claim] = []
    for model, by_p in cells.items():
        most = by_p[str(max(DIRECTIONS[model]))]
        for (a, low), (b, high) in pairwise(enumerate(size.radii)):
            text = f"radius of delta, {MODELS[model]}: ranks at {low:g} are those at {high:g}"
            claims += _ranks(text, most[0, a], most[0, b])
        for at, radius in enumerate(size.radii):
            text = f"draw of B, {MODELS[model]}: ranks are those of another, at {radius:g}"
            claims += _ranks(text, most[0, at], most[1, at])
            text = f"P, {MODELS[model]}: ranks at P = 1 are those of the largest, at {radius:g}"
            claims += _ranks(text, by_p["1"][0, at], most[0, at])
    return claims


def _ranks(text: str, values: Floats, others: Floats) -> list[Claim]:
    """Return Spearman's correlation over latents (latents, seeds), and that with other latents.

    There is no claim where delta is the same at all latents of a seed.
    """
    found = [
        [
            rank_correlation(a, b)
            for a, b in zip(values.T, np.roll(others, by, axis=1).T, strict=True)
        ]
        for by in (0, 1)
    ]
    if not np.isfinite(found).all():
        return []
    return [
        Claim(text, "not said", "Spearman's correlation", tuple(found[0])),
        Claim(f"control: {text}, of another seed's latents", "none", "Spearman's correlation",
              tuple(found[1])),
    ]  # fmt: skip


def _invariants(data: Mapping[str, Any]) -> tuple[Invariant, ...]:
    """Return what holds whatever the claims are."""
    apart = 0.0
    for both in data["planes"].values():
        for half in ("inside", "outside"):
            here, there = (both[place]["norm"][half] for place in PLACES)
            apart = max(apart, float(np.abs(here / there - 1).max()))
    counts = [by_p[p] for by_p in data["cells"].values() for p in by_p]
    grows = min(float(np.diff(count, axis=1).min()) for count in counts)
    more = min(
        float((by_p[str(p + 1)] - by_p[str(p)]).min())
        for by_p in data["cells"].values()
        for p in range(1, len(by_p))
    )
    return (
        Invariant("permuted planes have the same norms", apart < 1e-4, f"within {apart:.1e}"),
        Invariant("delta does not fall with the radius", grows >= 0, f"least step {grows:g}"),
        Invariant("delta does not fall with P", more >= 0, f"least step {more:g}"),
    )
