"""Samples weighed by local scaling: uniform on the image (MaGNET), or tempered (polarity).

Claims of A. I. Humayun, R. Balestriero and R. Baraniuk, "MaGNET: uniform sampling from deep
generative network manifolds without retraining" and "Polarity sampling: quality and diversity
control of pre-trained generative networks via singular values" (both 2022), on generators of
MNIST's digits. A seed is a pool of latents; every sample is held against one whose weights have
been dealt to other latents of the pool, which is worth as many independent draws.

The Jacobian of the whole GAN loses rank at nearly all of its latents, so that its image has no
64-dimensional volume to weigh: that is measured, and a section of 8 coordinates is sampled instead,
with the other 56 held at a draw of the prior. `bridges.studies.faces` does the same to faces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special, stats
from torch import Tensor, nn
from torch.distributions import Normal, Uniform

from approx import sampling
from bridges.networks import pretrained
from bridges.networks.diffusion import mnist_classifier
from bridges.studies.associations import related
from bridges.studies.claims import Claim, Direction, Invariant, Study, stacked, whole_seeds
from bridges.studies.digits import Floats
from bridges.studies.quality import features, near

RHOS = (-2.0, -1.0, -0.5, -0.2, -0.1, 0.0, 0.1, 0.2, 0.5, 1.0, 2.0)
LEAST = 50  # effective sample size, below which no sample is drawn
KEPT = 8
"""Coordinates of the GAN's latents that a section varies."""
HALF = 3**0.5
"""Half the side of MaGNET's box: each coordinate has the prior's variance."""
NETWORKS = ("GAN section", "GAN section before tanh", "VAE", "VAE before sigmoid")
QUANTITIES = ("precision", "recall", "entropy")
WORDS = {"precision": "precision", "recall": "recall", "entropy": "entropy of classes (nats)"}
POLARITY: Mapping[str, Direction] = {
    "precision": "falls", "recall": "rises", "entropy": "not said",
}  # fmt: skip
OPTIONS: Mapping[str, Any] = {"dtype": torch.float64, "progress": False}


class Size(NamedTuple):
    """How much is run.

    Attributes
    ----------
    seeds : int
        Where none are given.
    pool, drawn : int
        Latents that are weighed, and samples of them.
    rhos : tuple of float
        In rising order, symmetric, 0 among them.
    shuffles : int
        Of the weights; one more is the control.
    real : int
        Digits of the test set, for precision and recall.
    whole : int
        Latents of the whole GAN.
    """

    seeds: int
    pool: int
    drawn: int
    rhos: tuple[float, ...]
    shuffles: int
    real: int
    whole: int


FULL = Size(12, 4096, 500, RHOS, 4, 500, 256)
SMALL = Size(2, 300, 60, (-0.2, 0.0, 0.2), 2, 100, 16)


class Section(nn.Module):
    """A generator on some latent coordinates, the others held."""

    held: Tensor

    def __init__(self, generator: nn.Module, held: Tensor) -> None:
        super().__init__()
        self.generator = generator
        self.register_buffer("held", held)

    def forward(self, y: Tensor) -> Tensor:
        """Put y (B, d) before the held coordinates, and generate."""
        return self.generator(torch.cat([y, self.held.to(y).expand(len(y), -1)], dim=1))


class Subject(NamedTuple):
    """What is weighed, what makes its pictures, and how many latent coordinates it has."""

    weighed: nn.Module
    pictures: Callable[[Tensor], Tensor]
    d: int


class Seen(NamedTuple):
    """What LeNet-5 sees in a pool's pictures: the class, 84 features, whether near real digits."""

    classes: NDArray[np.int64]
    features: Floats
    near: NDArray[np.bool_]


def study(size: Size, seeds: Sequence[int]) -> Study:
    """Run the study at some size; `FULL` takes some six minutes of one core.

    Its data: `rhos`; by network, `polarity` and `magnet`, each with `ess`, and of samples `psi`,
    `distinct`, `precision`, `recall` and `entropy`, each (rhos, seeds) for polarity and (seeds,)
    for MaGNET, NaN where the weights are refused; under `shuffled` the means of the same with
    shuffled weights, and under `null` those of one more shuffle; `std`, of psi over the pool, and
    `lost`, the share of it where the Jacobian loses rank, and the weight is 0. `rho`
    is the largest that no seed refuses in either sign. `whole`: of the GAN on all of its 64
    coordinates, the `ranks` of its Jacobian (seeds, latents), Spearman's `correlation` of psi with
    them, and `ess` at the smallest rho above 0. Ctrl-C keeps the seeds before it.
    """
    lenet = mnist_classifier()
    pixels = torch.from_numpy(pretrained.read_images("mnist", size.real).pixels)
    real = features(lenet, pixels.view(-1, 1, 28, 28))
    found = whole_seeds(seeds, lambda seed: _seed(lenet, real, size, seed))
    together: dict[str, Any] = stacked(found)
    whole, off = together.pop("whole"), together.pop("off")
    for network in together.values():
        network["rho"] = largest(size.rhos, network["polarity"]["recall"])
    data = {"rhos": list(size.rhos), "networks": together, "whole": whole}
    held = invariants(size.rhos, size.pool, together, off, 1e-6)
    claims, done = tuple(_claims(size, together)), tuple(seeds)[: len(found)]
    return Study("sampling", size == FULL, done, claims, held, data)


def largest(rhos: Sequence[float], values: Floats) -> float:
    """Return the largest rho whose samples (rhos, seeds) are there in both signs; 0 without."""
    there = np.all(np.isfinite(values), axis=1)
    both = [r for r, a, b in zip(rhos, there, np.flip(there), strict=True) if a and b]
    return max(both, default=0.0)


# -- one seed --------------------------------------------------------------------------------------


def _subjects(seed: int) -> dict[str, Subject]:
    gan, vae = pretrained.mnist_gan(), pretrained.mnist_vae_decoder()
    generator = torch.Generator().manual_seed(seed)
    held = torch.randn(64 - KEPT, generator=generator)
    whole = Section(gan, held)

    def digits(y: Tensor) -> Tensor:
        return (whole(y) + 1) / 2

    return dict(
        zip(
            NETWORKS,
            (
                Subject(whole, digits, KEPT), Subject(Section(gan[:-1], held), digits, KEPT),
                Subject(vae, vae, 20), Subject(vae[:-1], vae, 20),
            ),
            strict=True,
        )
    )  # fmt: skip


def _seed(lenet: nn.Sequential, real: Floats, size: Size, seed: int) -> dict[str, Any]:
    """Return what one seed gives, by network, of the whole GAN, and how far psi is off."""
    found: dict[str, Any] = {"whole": _whole(size, seed), "off": 0.0}
    seen: dict[Any, Seen] = {}
    for name, (weighed, pictures, d) in _subjects(seed).items():
        side = torch.full((d,), HALF)
        priors = {"polarity": Normal(torch.zeros(d), 1.0), "magnet": Uniform(-side, side)}
        row: dict[str, Any] = {}
        for kind, prior in priors.items():
            pool = sampling.measure(weighed, prior, size.pool, seed=seed, **OPTIONS)
            found["off"] = max(found["off"], off_by(weighed, pool))
            if (d, kind) not in seen:  # a map before its last layer makes the same pictures
                z = pool.latents(np.arange(size.pool))
                seen[d, kind] = _seen(lenet, real, pictures, z)
            quality = partial(_quality, seen[d, kind], real)
            look = partial(sampled, quality, QUANTITIES, pool, size.shuffles, seed)
            if kind == "magnet":
                row[kind] = look(1.0, partial(sampling.magnet, None, pool, size.drawn, seed=seed))
            else:
                row["std"] = pool.table.psi.std()
                row["lost"] = np.mean(pool.table.rank < d)
                draw = partial(sampling.polarity, None, pool, size.drawn, seed=seed)
                row[kind] = stacked([look(rho, partial(draw, rho)) for rho in size.rhos])
        found[name] = row
    return found


def _seen(
    lenet: nn.Sequential, real: Floats, pictures: Callable[[Tensor], Tensor], z: Tensor
) -> Seen:
    """Return what LeNet-5 sees in the pictures of latents (N, d)."""
    with torch.no_grad():
        shown = torch.cat([pictures(part).view(-1, 1, 28, 28) for part in z.split(512)])
        found = features(lenet, shown)
        classes = lenet[-1](torch.from_numpy(found).float()).argmax(dim=1)
    return Seen(classes.numpy(), found, near(found, real))


def sampled(
    quality: Callable[[NDArray[np.int64]], dict[str, float]], names: Sequence[str],
    pool: sampling.Pool, shuffles: int, seed: int, rho: float, draw: Callable[[], sampling.Sample],
) -> dict[str, Any]:  # fmt: skip
    """Return what a sample and its shuffles are like; NaN where its weights are refused.

    `quality` returns numbers by `names` of latents of the pool, which are given by their indices.
    """
    psi = pool.table.psi
    # a latent whose image has no volume weighs nothing
    lost = (pool.table.rank < pool.table.k) & (rho != 0)
    weights = special.softmax(np.where(lost, -np.inf, rho * psi))
    mean = weights @ psi
    found: dict[str, Any] = {"ess": 1 / np.square(weights).sum(), "given": np.nan}
    try:
        sample = draw()
    except sampling.PoolError:
        nothing = dict.fromkeys(names, np.nan)
        unknown = dict.fromkeys(("psi", "off", "distinct"), np.nan)
        return found | unknown | {"shuffled": nothing, "null": nothing} | nothing
    # in standard errors of as many independent draws
    off = (sample.psi.mean() - mean) / np.sqrt(weights @ (psi - mean) ** 2 / len(sample))
    found |= {"given": sample.ess, "psi": sample.psi.mean(), "off": off}
    found["distinct"] = sample.distinct
    rng = np.random.default_rng([seed, round(1000 * abs(rho)), rho > 0])
    # latents that trade places keep how often each is drawn
    dealt = [rng.permutation(len(pool))[sample.indices] for _ in range(shuffles + 1)]
    *shuffled, null = [quality(indices) for indices in dealt]
    means = {name: values.mean() for name, values in stacked(shuffled).items()}
    return found | quality(sample.indices) | {"shuffled": means, "null": null}


def _quality(seen: Seen, real: Floats, indices: NDArray[np.int64]) -> dict[str, float]:
    """Return precision, recall and the entropy of classes of latents of a pool, by number."""
    shares = np.bincount(seen.classes[indices], minlength=10) / len(indices)
    return {
        "precision": float(seen.near[indices].mean()),
        # a latent drawn twice would be its own neighbour
        "recall": float(near(real, seen.features[np.unique(indices)]).mean()),
        "entropy": float(stats.entropy(shares)),
    }


def _whole(size: Size, seed: int) -> dict[str, Any]:
    """Return ranks of the whole GAN's Jacobian, and what its latents are worth as a pool."""
    prior = Normal(torch.zeros(64), 1.0)
    pool = sampling.measure(pretrained.mnist_gan(), prior, size.whole, seed=seed, **OPTIONS)
    ranks, psi = pool.table.rank, pool.table.psi
    full = psi[ranks == 64]
    least = min(rho for rho in size.rhos if rho > 0)
    ess = 1 / np.square(special.softmax(least * full)).sum() if len(full) else 0.0
    return {"ranks": ranks, "correlation": related(psi, ranks), "ess": ess}


def off_by(weighed: nn.Module, pool: sampling.Pool) -> float:
    """Return how far psi is from that of torch's own derivatives, in nats.

    Both are over the singular values that are not 0.
    """
    z = pool.latents([0, len(pool) - 1]).double()
    double = deepcopy(weighed).double()
    jacobians = torch.func.vmap(torch.func.jacfwd(lambda y: double(y[None]).flatten()))(z)
    values = torch.linalg.svdvals(jacobians).detach().numpy()
    logs = np.where(values > 1e-11 * values[:, :1], np.log(values), 0.0)
    return float(np.abs(logs.sum(axis=1) - pool.table.psi[[0, -1]]).max())


# -- what all seeds say ----------------------------------------------------------------------------


def _claims(size: Size, found: Mapping[str, Any]) -> list[Claim]:
    """Return the effects of both ways to weigh, without those of shuffled weights, by network."""
    claims: list[Claim] = []
    for network, both in found.items():
        claims += tempered(network, size.rhos, both, POLARITY, WORDS)
        directions: dict[str, Direction] = dict.fromkeys(QUANTITIES, "rises")
        claims += uniform(network, both, directions, WORDS)
    return claims


def tempered(
    network: str, rhos: Sequence[float], both: Mapping[str, Any], paper: Mapping[str, Direction],
    words: Mapping[str, str],
) -> list[Claim]:  # fmt: skip
    """Return what polarity does between the largest rhos of either sign; none where refused."""
    rho = both["rho"]
    if not rho:
        return []
    ends = [rhos.index(-rho), rhos.index(rho)]
    text = f"polarity, {network}: from rho = {-rho:g} to {rho:g}"
    return _compared(text, paper, words, _cut(both["polarity"], ends))


def uniform(
    network: str, both: Mapping[str, Any], paper: Mapping[str, Direction], words: Mapping[str, str]
) -> list[Claim]:
    """Return what MaGNET does; nothing where the weights of some seed are refused."""
    if not np.isfinite(both["magnet"]["psi"]).all():
        return []
    return _compared(f"MaGNET, {network}: uniform on the image", paper, words, both["magnet"])


def _cut(values: Any, ends: list[int]) -> Any:
    """Return the difference of the values at two rhos, by name."""
    if isinstance(values, dict):
        return {name: _cut(value, ends) for name, value in values.items()}
    return values[ends[1]] - values[ends[0]]


def _compared(
    text: str, paper: Mapping[str, Direction], words: Mapping[str, str], row: Mapping[str, Any]
) -> list[Claim]:
    claims = []
    for name, direction in paper.items():
        effect = f"{words[name]}, less that of shuffled weights"
        less = row["shuffled"][name]
        claims += [
            Claim(text, direction, effect, tuple((row[name] - less).tolist())),
            Claim(f"control: {text}, weights shuffled once more", "none", effect,
                  tuple((row["null"][name] - less).tolist())),
        ]  # fmt: skip
    return claims


def invariants(
    rhos: Sequence[float], pool: int, found: Mapping[str, Any], off: Floats, within: float
) -> tuple[Invariant, ...]:
    """Return what holds whatever the claims are; psi is off by less than `within` nats."""
    draws = [both[kind] for both in found.values() for kind in ("polarity", "magnet")]
    ess, given = (np.concatenate([np.ravel(d[k]) for d in draws]) for k in ("ess", "given"))
    kept = np.isfinite(given)
    apart = float(np.abs(given[kept] / ess[kept] - 1).max())
    plain = [both["polarity"]["ess"][rhos.index(0.0)] for both in found.values()]
    errors = np.concatenate([np.ravel(draw["off"]) for draw in draws])[kept]
    return (
        Invariant("psi is that of torch's own Jacobian", bool(off.max() < within),
                  f"within {off.max():.1e} nats"),
        Invariant(f"weights are refused where they are worth less than {LEAST} samples",
                  bool((kept == (ess >= LEAST)).all()), f"{(~kept).sum()} of {len(kept)} refused"),
        Invariant("the effective sample size is (sum w)^2 / sum w^2", apart < 1e-6,
                  f"within {apart:.1e} of it"),
        Invariant("rho = 0 is the whole pool", bool(np.allclose(plain, pool)),
                  f"{np.min(plain):,.0f} of {pool:,}"),
        Invariant("samples have the mean psi that their weights give",
                  bool((np.abs(errors) < 5).all()),
                  f"within {np.abs(errors).max():.1f} standard errors"),
    )  # fmt: skip
