"""Descriptors inside the hull of encoded images, and how the radius of delta matters.

Figures 5 and 21 to 26 of A. I. Humayun et al., "What secrets do your manifolds hold?"
(arXiv 2408.08307), which show planes through three latents of images. A seed is one plane for each
decoder: points of the triangle of its anchors against points of the three congruent triangles that
border on it. The control is the same plane with the coordinates of all anchors permuted alike:
every length and angle stays, and the anchors are latents of images no more.

The radius of delta is studied with exact numbers of cells around random latents, along P random
orthonormal directions. The latents of a bias-free denoiser are patches of a noisy photograph. The
error bound of float64 leaves most signs behind its tenth stage undecided, so that nothing is proven
there: its cells are counted along one direction, in float64. A test holds them against activation
patterns.
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
from bridges.networks import data as files
from bridges.networks import pretrained
from bridges.networks.diffusion import mnist_decoder, mnist_encoder
from bridges.networks.toys import RADIUS, toy_generator
from bridges.studies.associations import rank_correlation
from bridges.studies.claims import Claim, Invariant, Study, stacked, whole_seeds
from bridges.studies.digits import Floats

NAMES = ("psi", "nu", "delta")
WORDS = {"psi": "local scaling", "nu": "local rank", "delta": "local complexity"}
DECODERS = {
    "digits": "MNIST autoencoder", "photographs": "TAEF2, 8 x 8 pixels",
    "larger photographs": "TAEF2, 16 x 16 pixels",
}  # fmt: skip
SIDES = {"digits": 1, "photographs": 1, "larger photographs": 2}  # of a crop's latent
PLACES = ("encoded", "permuted")
SPAN = 256  # pixels of a photograph, of which a crop has 8 x 8 for each of its latent's
PATCH = 6  # pixels, of a noisy photograph
DIRECTIONS = {"toy": (1, 2), "gan": (1, 2, 3), "denoiser": (1,)}
REACH = (1e-1, 1e-2)
"""The largest radius around a patch, by draw: at 1 a segment has 17,000 knots, and takes 36 s."""
MODELS = {"toy": "toy", "gan": "MNIST GAN", "denoiser": "bias-free DnCNN"}


class Size(NamedTuple):
    """How much is run.

    Attributes
    ----------
    seeds : int
        Where none are given; as many planes of each decoder.
    points : int
        Inside of the anchors' triangle, and as many outside.
    large : int
        The same of photographs of 16 x 16 pixels, whose points take three times as long; 0 leaves
        them out.
    latents, patches : int
        Whose cells are counted; patches are those of the denoiser.
    radii : tuple of float
        In rising order.
    steps : int
        Of the toy's training.
    """

    seeds: int
    points: int
    large: int
    latents: int
    patches: int
    radii: tuple[float, ...]
    steps: int


FULL = Size(20, 2, 1, 20, 4, (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0), 4000)
SMALL = Size(2, 1, 0, 4, 2, (1e-3, 1.0), 200)


def study(size: Size, seeds: Sequence[int]) -> Study:
    """Run the study at some size; `FULL` takes some twelve minutes of one core.

    Its data: `planes`, by decoder, `PLACES` and descriptor, the means `inside` and `outside`
    (seeds,), and `norm`, of the points; `radii`; `cells`, by model and P, delta (draws, radii,
    latents, seeds) of two draws of B, NaN beyond the denoiser's `REACH`. Ctrl-C keeps the seeds
    before it.
    """
    taef2 = pretrained.taef2_decoder()
    decoders = {"digits": mnist_decoder(), "photographs": taef2}
    if size.large:
        decoders["larger photographs"] = taef2
    networks = {
        "toy": cpwl.Network.from_torch(toy_generator(steps=size.steps), (2,)),
        "gan": cpwl.Network.from_torch(pretrained.mnist_gan()[:-1], (64,)),
    }
    denoiser = pretrained.bias_free_dncnn().double()

    def one(seed: int) -> dict[str, Any]:
        planes = {
            name: _plane(
                decoder, _anchors(name, seed), size.points if SIDES[name] == 1 else size.large, seed
            )
            for name, decoder in decoders.items()
        }
        cells = {name: _cells(name, net, size, seed) for name, net in networks.items()}
        cells["denoiser"] = {"1": _denoiser_cells(denoiser, size, seed)}
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
        side = 8 * SIDES[name]
        crops = []
        for photograph in rng.choice(pretrained.PHOTOGRAPHS, 3, replace=False):
            top, left = rng.integers(SPAN - side, size=2)
            whole = pretrained.photograph(str(photograph), SPAN)
            crops.append(whole[:, top : top + side, left : left + side])
        return pretrained.taef2_encoder()(torch.stack(crops))


def _plane(decoder: nn.Module, anchors: Tensor, points: int, seed: int) -> dict[str, Any]:
    """Return the mean descriptors of points of a plane, inside and outside of the anchors' hull."""
    rng = np.random.default_rng([seed, 1])
    inside = rng.dirichlet(np.ones(3), points)
    # turned by half about the middle of an edge: a_i + a_j - p
    edges = 1 - np.eye(3)[rng.integers(3, size=points)]
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
    for decoder, by_place in planes.items():
        words = DECODERS[decoder]
        for name in NAMES:
            more = [by_place[place][name]["inside"] - by_place[place][name]["outside"]
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


def _denoiser_cells(denoiser: pretrained.Dncnn, size: Size, seed: int) -> Floats:
    """Return delta along one direction (2 draws of it, radii, patches)."""
    rng = np.random.default_rng([seed, 2])
    noisy = np.load(files.path("denoiser/noisy_im_30.npy"))
    corners = rng.integers(len(noisy) - PATCH + 1, size=(size.patches, 2))
    found = np.full((2, len(size.radii), size.patches), np.nan)
    for draw, most in enumerate(REACH):
        radii = [radius for radius in size.radii if radius <= most]
        way = rng.standard_normal((PATCH, PATCH))
        way /= np.linalg.norm(way)
        for k, (top, left) in enumerate(corners):
            patch = noisy[top : top + PATCH, left : left + PATCH]
            at = np.abs(knots(denoiser.body, patch, way, radii[-1]))
            found[draw, : len(radii), k] = [1 + np.sum(at < radius) for radius in radii]
    return found


def knots(body: nn.Sequential, patch: Floats, way: Floats, radius: float) -> Floats:
    """Return where units of a stack of convolutions and ReLU switch along patch + t way, |t| < r.

    Between two knots of the layers before it a layer is affine, and a unit's zero there is found
    from its values at both ends. A rounding moves a knot, and may swap two within it.
    """
    t = np.array([-radius, radius])
    x = torch.from_numpy(patch + t[:, None, None] * way)[:, None]
    with torch.no_grad():
        for layer in body:
            if isinstance(layer, nn.ReLU):
                flat = x.flatten(1)
                on = flat > 0
                at, unit = (on[:-1] != on[1:]).nonzero(as_tuple=True)
                start, end = flat[at, unit], flat[at + 1, unit]
                share = start / (start - end)
                inside = torch.lerp(x[at], x[at + 1], share.view(-1, *[1] * (x.ndim - 1)))
                ends = t[at.numpy()], t[at.numpy() + 1]
                t = np.concatenate([t, ends[0] + share.numpy() * (ends[1] - ends[0])])
                order = np.argsort(t, kind="stable")
                t, x = t[order], torch.cat([x, inside])[torch.from_numpy(order)]
            x = layer(x)
    return t[1:-1]


def _radii(size: Size, cells: Mapping[str, Any]) -> list[Claim]:
    """Return whether delta ranks latents alike at other radii, other P and other draws of B."""
    claims: list[Claim] = []
    for model, by_p in cells.items():
        most = by_p[max(by_p)]
        for (a, low), (b, high) in pairwise(enumerate(size.radii)):
            text = f"radius of delta, {MODELS[model]}: ranks at {low:g} are those at {high:g}"
            claims += _ranks(text, most[0, a], most[0, b])
        for at, radius in enumerate(size.radii):
            text = f"draw of B, {MODELS[model]}: ranks are those of another, at {radius:g}"
            claims += _ranks(text, most[0, at], most[1, at])
            if len(by_p) > 1:
                text = f"P, {MODELS[model]}: ranks at P = 1 are those of the largest, at {radius:g}"
                claims += _ranks(text, by_p["1"][0, at], most[0, at])
    return claims


def _ranks(text: str, values: Floats, others: Floats) -> list[Claim]:
    """Return Spearman's correlation over latents (latents, seeds), and that with other latents.

    There is no claim where delta is the same at all latents of a seed, or not counted.
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
    # fmin passes over what is not counted
    grows = min(float(np.fmin.reduce(np.diff(count, axis=1), axis=None)) for count in counts)
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
