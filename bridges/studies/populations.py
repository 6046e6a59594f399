"""What psi, nu and delta say of sets of images: Figures 7, 9, 13, 27 and 28 of the paper.

Claims of A. I. Humayun et al., "What secrets do your manifolds hold?" (arXiv 2408.08307), as far as
they are known here, and one of arXiv 2604.18804, on autoencoders and a GAN of digits. A seed is a
sample of images that no other seed has, with autoencoders trained anew and digits drawn anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from approx import describe, level_sets, score_sets
from approx.populations import (
    Matched,
    auroc,
    classifier_margin,
    compressed_size,
    confounds,
    matched,
    vendi,
)
from bridges.networks.diffusion import mnist_classifier
from bridges.networks.pretrained import Images, read_images
from bridges.studies import outside
from bridges.studies.associations import explained, rank_correlation, slant
from bridges.studies.claims import Invariant, Study, stacked, whole_seeds
from bridges.studies.outside import KINDS, LETTERS, Floats, Model, Table
from bridges.studies.population_claims import claims_of
from bridges.studies.quality import features, ink_and_edges

BY = ("psi", "nu", "delta", "psi after")
SETS = 5
KNOWN = 3000
"""Training images behind a Mahalanobis distance."""


class Size(NamedTuple):
    """How much is run.

    Attributes
    ----------
    seeds : int
        Where none are given; 5 at most at full size, for there are 10,000 test digits.
    digits : int
        Of the training, of the test, and generated: for level sets and classes.
    latent : int
        As many for level sets of the latent autoencoder; 0 for none.
    together, apart, repeats : int
        Digits in a draw of a level set, in one of a class within it, and how many draws.
    images, smooth, inverted : int
        Of each kind, for autoencoders, for the smooth one, and for the GAN.
    steps, inversion : int
        Of training, and of inversion.
    """

    seeds: int
    digits: int
    latent: int
    together: int
    apart: int
    repeats: int
    images: int
    smooth: int
    inverted: int
    steps: int
    inversion: int


FULL = Size(5, 1500, 750, 100, 12, 29, 300, 50, 100, 1500, 200)
SMALL = Size(2, 300, 0, 20, 3, 3, 24, 2, 8, 20, 30)


class Parts(NamedTuple):
    """What all seeds share: networks, and images by kind for training and to be looked at.

    `known` has features and labels of the first that are trained on.
    """

    vae: Model
    smooth: Model
    lenet: nn.Sequential
    train: Mapping[str, Images]
    shown: Mapping[str, Images]
    known: Mapping[str, tuple[Floats, NDArray[Any]]]


def study(size: Size, seeds: Sequence[int]) -> Study:
    """Run the study at some size; `FULL` takes some twenty minutes of one core.

    Its data, seeds along the last axis: `levels`, by source, which "autoencoder: " precedes where
    it is not of the published VAE, descriptor and score ("vendi", "classes", and "within" a class),
    the scores of level sets and of permuted ones (sets, seeds) with p-values; `classes` and
    `subpopulations`, before and after matching on ink; `auroc`, by model, kind of the others, and
    score; `error`, medians by model and kind; `detail`, by model and kind, the rank correlation of
    delta with the energy of gradients; `complexity`, by label and descriptor, plain and partial
    rank correlations.

    Raises
    ------
    ValueError
        More seeds than there are images.
    """
    most = min(10_000 // size.digits, (10_000 - LETTERS) // size.images)
    if max(seeds) >= most:
        raise ValueError(
            f"Expected seeds below {most}, got {max(seeds)}: each has images of its own, and there "
            "are no more."
        )
    parts = _parts()
    found = whole_seeds(seeds, lambda seed: _seed(parts, size, seed))
    data = stacked(found)
    held = _invariants(parts, data)
    return Study(
        "populations", size == FULL, tuple(seeds)[: len(found)], claims_of(data), held, data
    )  # fmt: skip


def _parts() -> Parts:
    """Return the published networks and all images."""
    lenet, letters = mnist_classifier(), read_images("notmnist")
    train = {
        "mnist": read_images("mnist", 60_000, part="train"),
        "notmnist": Images(letters.pixels[:LETTERS], letters.labels[:LETTERS]),
        "fashion-mnist": read_images("fashion-mnist", 60_000, part="train"),
    }
    shown = {
        "mnist": read_images("mnist"),
        "notmnist": Images(letters.pixels[LETTERS:], letters.labels[LETTERS:]),
        "fashion-mnist": read_images("fashion-mnist"),
    }
    known = {
        kind: (features(lenet, _square(torch.from_numpy(pixels[:KNOWN]))), labels[:KNOWN])
        for kind, (pixels, labels) in train.items()
    }
    vae, smooth = outside.published_vae(), outside.latent_autoencoder()
    return Parts(vae, smooth, lenet, train, shown, known)


def _square(images: Tensor) -> Tensor:
    return images.view(-1, 1, 28, 28)


# -- one seed --------------------------------------------------------------------------------------


def _seed(parts: Parts, size: Size, seed: int) -> dict[str, Any]:
    """Return what `study` describes, of one seed."""
    levels: dict[str, Any] = {}
    digits: dict[str, tuple[Tensor, NDArray[Any], Table]] = {}
    for start, source, pixels, labels, table in _populations(parts, size, seed):
        digits[start + source] = pixels, labels, table
        seen = features(parts.lenet, _square(pixels))
        columns = {start + source: {by: table[by] for by in BY if by in table}}
        if source == "test":
            order = np.random.default_rng(seed).permutation(len(labels))
            columns[f"{start}shuffled"] = {"psi": table["psi"][order]}
        levels |= {
            name: {by: _levels(values, labels, seen, size, seed) for by, values in of.items()}
            for name, of in columns.items()
        }
    pixels, labels, table = digits["test"]
    found: dict[str, Any] = {"levels": levels}
    found |= _classes(parts, pixels, labels, table, seed)
    found |= _outsiders(parts, size, seed)
    more, _, other = digits["generated"]
    both = torch.cat([pixels, more])
    joined = {name: np.concatenate([table[name], other[name]]) for name in (*BY, "norm")}
    margin = classifier_margin(parts.lenet)(_square(pixels))
    found["complexity"] |= {
        "classifier's margin": _partial(margin, table, pixels),
        "generated": _partial(np.arange(len(both)) >= len(pixels), joined, both),
    }
    return found


def _populations(
    parts: Parts, size: Size, seed: int
) -> Iterator[tuple[str, str, Tensor, NDArray[Any], Table]]:
    """Yield digits of both models: the model, the source, images, classes and descriptors.

    Classes of generated digits are those that LeNet-5 sees.
    """
    models = ("", parts.vae, size.digits), ("autoencoder: ", parts.smooth, size.latent)
    for start, model, count in (m for m in models if m[2]):
        rows = slice(seed * size.digits, seed * size.digits + count)
        for source, images in (("training", parts.train["mnist"]), ("test", parts.shown["mnist"])):
            pixels = torch.from_numpy(images.pixels[rows])
            with torch.no_grad():
                z = model.encode(pixels)
            table = outside.described(model, z, seed)
            yield start, source, pixels, images.labels[rows].astype(int), table
        z = outside.drawn(model, count, 1_000_000 + seed)
        pixels = outside.decoded(model, z).clamp(0, 1)
        with torch.no_grad():
            labels = parts.lenet(_square(pixels)).argmax(1).numpy()
        yield start, "generated", pixels, labels, outside.described(model, z, seed)


def _levels(
    values: Floats, labels: NDArray[Any], seen: Floats, size: Size, seed: int
) -> dict[str, Any]:
    """Return scores of level sets, and of level sets of each class alone.

    Sets of a class are of its own values, of equal counts, with ties in an order that is drawn:
    every set then has the same mixture of classes.
    """
    options: dict[str, Any] = {"repeats": size.repeats, "seed": seed, "progress": False}
    scorers = {"vendi": vendi, "classes": vendi}
    data = {"vendi": seen, "classes": np.eye(10)[labels]}
    sets = level_sets({"value": values}, "value", SETS, labels=labels)
    whole = score_sets(sets, data, scorers, n=size.together, within=None, **options)
    place = np.empty(len(values))
    for c in np.unique(labels):
        own = np.flatnonzero(labels == c)
        ties = np.random.default_rng(seed).random(len(own))
        place[own[np.lexsort((ties, values[own]))]] = (np.arange(len(own)) + 0.5) / len(own)
    inner = score_sets(
        level_sets({"place": place}, "place", SETS, labels=labels), seen, {"within": vendi},
        n=size.apart, within="label", **options,
    )  # fmt: skip
    found = {}
    for scores in (whole, inner):
        for name in dict.fromkeys(scores.scorer.tolist()):
            of = scores.scorer == name
            found[name] = {"score": scores.score[of], "null": scores.null[of], "p": scores.p[of]}
    return found


def _classes(
    parts: Parts, pixels: Tensor, labels: NDArray[Any], table: Table, seed: int
) -> dict[str, Any]:
    """Return what classes and sub-populations say of the descriptors, also matched on ink."""
    ink = confounds(pixels)["ink"]
    # a class and the rest, as many of each: all ten classes share but a small range of ink
    even = [matched(labels == c, {"ink": ink}, bins=20, seed=seed) for c in range(10)]
    drawn = [matched(labels == c, {"": 0 * ink}, seed=seed) for c in range(10)]
    strata = np.searchsorted(np.quantile(ink, np.linspace(0, 1, 21)[1:-1]), ink)
    leaning, margin = (
        slant(pixels.view(-1, 28, 28)),
        classifier_margin(parts.lenet)(_square(pixels)),
    )
    halves = {"leaning right": leaning, "of little margin": -margin}
    mixed = np.random.default_rng(seed).permutation(labels)
    classes: dict[str, Any] = {}
    groups: dict[str, Any] = {name: {} for name in (*halves, "shuffled")}
    upper = {name: _upper(values, labels) for name, values in halves.items()}
    upper["shuffled"] = np.random.default_rng(seed).permutation(upper["leaning right"])
    for by in BY:
        x = table[by]
        classes[by] = {
            "explained": _explained(x, labels, drawn),
            "matched": _explained(x, labels, even),
            "shuffled": _explained(x, mixed, drawn),
            "auroc": [_apart(x, labels == c) for c in range(10)],
            "auroc matched": [_apart(x, labels == c, strata) for c in range(10)],
        }
        for name, of in upper.items():
            groups[name][by] = {"before": _apart(x, of, labels),
                                "matched": _apart(x, of, 100 * labels + strata)}  # fmt: skip
    balance = {
        "rows": [len(m.rows) for m in even],
        "before": [m.before["ink"] for m in even],
        "after": [m.after["ink"] for m in even],
    }
    return {"classes": classes, "subpopulations": groups, "balance": balance}


def _explained(x: Floats, labels: NDArray[Any], chosen: Sequence[Matched]) -> float:
    """Return the share of ranks that a class explains in its rows, the mean over the classes."""
    return float(np.mean([explained(x[m.rows], labels[m.rows] == c) for c, m in enumerate(chosen)]))


def _upper(values: Floats, labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return who is above the median of its class."""
    medians = np.array([np.median(values[labels == c]) for c in range(10)])
    return values > medians[labels]


def _apart(x: Floats, of: NDArray[np.bool_], strata: NDArray[Any] | None = None) -> float:
    """Return the AUROC of a group against the others, over all pairs or within strata."""
    return auroc(x[of], x[~of], None if strata is None else (strata[of], strata[~of])).value


def _outsiders(parts: Parts, size: Size, seed: int) -> dict[str, Any]:
    """Return how far scores tell other kinds of images, for every model."""
    gan = outside.inverted_gan(size.inversion, seed)
    models = {"VAE": parts.vae, "autoencoder": parts.smooth, "GAN": gan}
    models |= {
        f"VAE of {word}": outside.trained_vae(kind, parts.train[kind].pixels, size.steps, seed)
        for kind, word in KINDS.items()
    }
    counts = {"autoencoder": size.smooth, "GAN": size.inverted}
    rows = slice(seed * size.images, (seed + 1) * size.images)
    samples = {kind: torch.from_numpy(x.pixels[rows]) for kind, x in parts.shown.items()}
    extra = {
        (kind, known): outside.mahalanobis(features(parts.lenet, _square(x)), *parts.known[known])
        for kind, x in samples.items()
        for known in KINDS
    }
    edges = {kind: ink_and_edges(_square(x))["edge"] for kind, x in samples.items()}
    found: dict[str, Any] = {"auroc": {}, "error": {}, "detail": {}, "bound": {}, "complexity": {}}
    for name, model in models.items():
        count = counts.get(name, size.images)
        some = {kind: x[:count] for kind, x in samples.items()}
        tables = dict(zip(some, outside.measured(model, list(some.values()), seed), strict=True))
        for kind, table in tables.items():
            table["bytes"] = compressed_size(some[kind])
            table["mahalanobis"] = extra[kind, model.kind][:count]
        own = tables[model.kind]
        found["auroc"][name] = {
            KINDS[kind]: {s: auroc(table[s], own[s]).value for s in own}
            for kind, table in tables.items()
            if kind != model.kind
        }
        found["error"][name] = {KINDS[k]: float(np.median(t["error"])) for k, t in tables.items()}
        found["detail"][name] = {
            KINDS[kind]: rank_correlation(table["delta"], edges[kind][:count])
            for kind, table in tables.items()
        }
        if "psi after" in own:
            found["bound"][name] = max(float((t["psi after"] - t["psi"]).max())
                                       for t in tables.values())  # fmt: skip
        if name == "VAE":
            for kind in ("notmnist", "fashion-mnist"):
                joined = {s: np.concatenate([own[s], tables[kind][s]]) for s in (*BY, "norm")}
                pixels = torch.cat([samples[model.kind], samples[kind]])
                label = np.arange(len(pixels)) >= len(samples[model.kind])
                found["complexity"][KINDS[kind]] = _partial(label, joined, pixels)
    found["inversion"] = _inversion(gan, size, seed)
    return found


def _partial(label: Any, table: Table, pixels: Tensor) -> dict[str, Any]:
    """Return the rank correlations of a label with descriptors, plain and given confounds."""
    given = confounds(pixels) | {"norm": table["norm"]}
    return {by: {"plain": rank_correlation(table[by], label),
                 "given": rank_correlation(table[by], label, given)} for by in BY}  # fmt: skip


def _inversion(gan: Model, size: Size, seed: int) -> dict[str, float]:
    """Return how well the GAN's own digits are inverted, whose latents are known."""
    draw = torch.Generator().manual_seed(2_000_000 + seed)
    z = torch.randn(size.inverted, 64, generator=draw)
    pixels = outside.decoded(gan, z)
    true, found = outside.described(gan, z, seed), outside.measured(gan, [pixels], seed)[0]
    both = {f"{by} found": rank_correlation(true[by], found[by]) for by in ("psi", "nu", "delta")}
    return both | {"error": float(np.median(found["error"]))}


# -- what must hold --------------------------------------------------------------------------------


def _invariants(parts: Parts, data: Mapping[str, Any]) -> tuple[Invariant, ...]:
    """Return what holds whatever the claims are."""
    z = torch.randn(20, 20, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"neighbourhood": (20, 0.1), "seed": 0, "progress": False}
    squashed = nn.Sequential(parts.vae.decoder, nn.Sigmoid())
    both = parts.vae.decoder, squashed
    knots = [np.asarray(describe(decoder, z, **options).delta) for decoder in both]
    vaes = max(v.max() for n, v in data["bound"].items() if n != "GAN") + 20 * np.log(4)
    gan = data["bound"]["GAN"].max()
    error, digits = data["inversion"]["error"], data["error"]["GAN"]["digits"]
    before, after = (data["balance"][when].mean(axis=0) for when in ("before", "after"))
    return (
        Invariant("a sigmoid adds no knots", bool((knots[0] == knots[1]).all()),
                  f"{knots[0].sum():g} and {knots[1].sum():g}"),
        Invariant("psi behind a sigmoid is E log 4 lower or more, and behind a tanh not higher",
                  bool(vaes <= 1e-3 and gan <= 1e-3), f"at most {vaes:.3g} and {gan:.3g} above"),
        Invariant("the GAN's own digits are inverted better than others",
                  bool((error < digits).all()), f"error {error.mean():.4f}, {digits.mean():.4f}"),
        Invariant("matching on ink makes its means more equal", bool((after < before).all()),
                  f"{before.mean():.2f} to {after.mean():.2f} deviations"),
    )  # fmt: skip
