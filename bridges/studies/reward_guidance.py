"""Sampling guided by a reward on local scaling: Section 4, Figures 1, 10, 11 and 20 of the paper.

Claims of A. I. Humayun et al., "What secrets do your manifolds hold?" (arXiv 2408.08307), on the
pretrained latent diffusion of MNIST's digits. A seed is one batch of noise with classifiers fitted
anew; effects are paired by noise. Needs the extra cpwl[diffusers].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from approx.diffusion import ExactReward, SketchReward, guide, reward, schedule_of
from bridges.networks import pipelines, pretrained
from bridges.networks.diffusion import mnist_classifier
from bridges.studies import digits
from bridges.studies.claims import Claim, Direction, Invariant, Study, stacked, whole_seeds
from bridges.studies.digits import NAMES, Floats, described, sampled
from bridges.studies.quality import features, ink_and_edges, quality

RHOS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
CLASSES = 2.0  # the pipeline's own guidance by the digit
CLIP = 0.3
"""Bound on the change of the prediction, of the exact and the sketched reward."""
UNIT = 25.0
"""Nats of psi in one unit of these rewards. A gradient of psi has a norm of 30 to 50 on this
decoder, that of a classifier's log p about 1 to 2: divided by 25, the same rho means alike."""
FITTED = (*NAMES, "ink", "edge")
WORDS = digits.WORDS | {"ink": "ink", "edge": "edge energy"}
KINDS = {"uniform": "classifier of uniform bins", "quantile": "classifier of quantile bins",
         "exact": "exact gradient", "sketch": "sketched log |J|_F^2"}  # fmt: skip
QUALITY = ("kept", "vendi", "precision", "recall")

Numbers = dict[str, float]


class Size(NamedTuple):
    """How much is run.

    Attributes
    ----------
    seeds : int
        Where none are given.
    rhos : tuple of float
        In rising order, 0 among them.
    codes, digits, described : int
        Latents that classifiers are fitted to; drawn for each seed and strength; and the first of
        these, whose descriptors are measured, and which the exact and sketched rewards guide.
    steps, times : int
        Of sampling, and levels of noise in training.
    epochs, width, probes : int
        Of the classifiers, and random products of the sketch.
    real : int
        Digits of the test set, for precision and recall.
    """

    seeds: int
    rhos: tuple[float, ...]
    codes: int
    digits: int
    described: int
    steps: int
    times: int
    epochs: int
    width: int
    probes: int
    real: int


FULL = Size(8, RHOS, 400, 100, 10, 20, 8, 10, 24, 2, 1000)
SMALL = Size(2, (-2.0, 0.0, 2.0), 60, 20, 2, 4, 4, 15, 16, 1, 50)


class Parts(NamedTuple):
    """What all seeds share."""

    pipe: Any
    decoder: nn.Module
    lenet: nn.Sequential
    real: Floats
    codes: Tensor
    values: Mapping[str, Floats]


def study(size: Size, seeds: Sequence[int]) -> Study:
    """Run the study at some size; `FULL` takes some twenty minutes of one core.

    After Ctrl-C it is of the seeds that are whole.

    Its data: `rhos`; `rewards`, by kind and quantity (rhos, seeds), where `psi` is the difference
    to no guidance and all others are as measured; `fitted`, by what a classifier was fitted to and
    quantity, the differences (seeds,) at the largest rho, and under `flipped` those of the
    classifier of minus the same; `cosines` (steps, seeds) with the exact gradient, at `sigmas`;
    `accuracy` (times, seeds) on held-out codes, at `times`.
    """
    parts = _parts(size)
    found = whole_seeds(seeds, lambda seed: _seed(parts, size, seed))
    seeds = tuple(seeds)[: len(found)]
    together: dict[str, Any] = stacked(found)
    data = {"rhos": list(size.rhos), "clip": CLIP, "unit": UNIT} | together
    data["sigmas"], data["times"] = found[0]["sigmas"], found[0]["times"]
    claims = _claims(size, together)
    held = _invariants(size, parts, together)
    for name in ("same", "sigmas", "times"):
        together.pop(name)
    return Study("reward_guidance", size == FULL, seeds, tuple(claims), tuple(held), data)


# -- what all seeds share --------------------------------------------------------------------------


def _parts(size: Size) -> Parts:
    """Return the networks, features of real digits, and codes with their values."""
    pipe = pipelines.mnist_pipeline()
    pipe.set_progress_bar_config(disable=True)
    decoder, lenet = pipe.vae.network, mnist_classifier()
    pixels = torch.from_numpy(pretrained.read_images("mnist", size.real).pixels)
    codes = _drawn(pipe, _normal(1_000_000, size.codes), size.steps)
    parts = Parts(pipe, decoder, lenet, features(lenet, pixels.view(-1, 1, 28, 28)), codes, {})
    values = ink_and_edges(_pictures(parts, codes)) | described(decoder, codes, method="exact")
    return parts._replace(values=values)


def _normal(seed: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 6, 6, generator=generator)


def _labels(count: int) -> Tensor:
    return torch.arange(count) % 10


def _drawn(pipe: Any, noise: Tensor, steps: int, **options: Any) -> Tensor:
    """Return the latents of digits 0, 1, 2, ... that the pipeline makes of noise."""
    return pipe(
        _labels(len(noise)), CLASSES, steps, latents=noise, output_type="latent", **options
    ).images


def _pictures(parts: Parts, z: Tensor) -> Tensor:
    with torch.no_grad():
        return parts.decoder(z).clamp(0, 1)


# -- one seed --------------------------------------------------------------------------------------


def _seed(parts: Parts, size: Size, seed: int) -> dict[str, Any]:
    """Return what `study` describes, of one seed."""
    noise = _normal(2_000_000 + seed, size.digits)
    few = noise[: size.described]
    exact, sketch = ExactReward(parts.decoder), SketchReward(
        parts.decoder, probes=size.probes, seed=seed, log=True
    )  # fmt: skip
    fitted, reports = {}, {}
    for name in FITTED:
        for sign in (1, -1):
            fitted[name, sign], reports[name, sign] = _fitted(
                parts, size, sign * parts.values[name], "quantile", seed
            )
    uniform, of_uniform = _fitted(parts, size, parts.values["psi"], "uniform", seed)
    unguided, few_unguided = (_drawn(parts.pipe, z, size.steps) for z in (noise, few))
    rewards = {
        "uniform": (uniform, noise, unguided, None),
        "quantile": (fitted["psi", 1], noise, unguided, None),
        "exact": (lambda z: exact(z) / UNIT, few, few_unguided, CLIP),
        "sketch": (lambda z: sketch(z) / UNIT, few, few_unguided, CLIP),
    }
    results, same = {}, {}
    for kind, (value, start, plain, clip) in rewards.items():
        base = float(exact(plain[: size.described]).mean())
        rows = []
        for rho in size.rhos:
            with guide(parts.pipe, value, rho, clip=clip):
                z = _drawn(parts.pipe, start, size.steps)
            if rho == 0:
                same[kind] = float(torch.equal(z, plain))
            psi = float(exact(z[: size.described]).mean()) - base
            like = quality(parts.lenet, parts.real, _pictures(parts, z), _labels(len(z)))
            if start is few:  # too few to tell how they vary
                like = {"kept": like["kept"]}
            rows.append({"psi": psi} | like)
        results[kind] = {name: [row[name] for row in rows] for name in rows[0]}

    drawn = [unguided]
    for value in fitted.values():
        with guide(parts.pipe, value, max(size.rhos)):
            drawn.append(_drawn(parts.pipe, noise, size.steps))
    before, *others = _values(parts, size, drawn)
    after: dict[str, Any] = {name: {} for name in FITTED}
    for (name, sign), values in zip(fitted, others, strict=True):
        moved = {k: v - before[k] for k, v in values.items()}
        after[name]["fitted" if sign > 0 else "flipped"] = moved
    cosines, sigmas = _cosines(parts, size, few, uniform, fitted["psi", 1], exact, sketch)
    report = reports["psi", 1]
    return {
        "rewards": results,
        "fitted": after,
        "cosines": cosines,
        "accuracy": {
            "uniform": of_uniform.accuracy, "uniform, most common": of_uniform.baseline,
            "quantile": report.accuracy, "quantile, most common": report.baseline,
        },
        "same": same,
        "sigmas": sigmas,
        "times": report.times.tolist(),
    }  # fmt: skip


def _fitted(
    parts: Parts, size: Size, values: Floats, binning: Any, seed: int
) -> tuple[reward.ClassifierReward, reward.Report]:
    """Return a classifier of values of the codes, and its report."""
    collected = reward.collect(
        parts.codes, values, parts.pipe.scheduler, times=size.times, binning=binning,
        generator=seed,
    )  # fmt: skip
    found = reward.fit(
        collected,
        epochs=size.epochs,
        width=size.width,
        batch=48,
        rate=2e-3,
        generator=seed,
        progress=False,
    )
    return found, reward.report(found, collected)


def _values(parts: Parts, size: Size, drawn: list[Tensor]) -> list[Numbers]:
    """Return means of all that classifiers are fitted to, for each batch that was drawn."""
    z = torch.stack(drawn)
    few = z[:, : size.described].flatten(0, 1)
    found = ink_and_edges(_pictures(parts, z.flatten(0, 1)))
    found |= described(parts.decoder, few, method="exact")
    means = {name: values.reshape(len(z), -1).mean(axis=1) for name, values in found.items()}
    return [{name: float(means[name][i]) for name in FITTED} for i in range(len(z))]


def _cosines(
    parts: Parts, size: Size, noise: Tensor, uniform: Any, quantile: Any, exact: Any, sketch: Any
) -> tuple[dict[str, list[float]], list[float]]:
    """Return mean cosines with the gradient of psi at every other step, and the sigmas there."""
    samples, estimates, _ = sampled(
        parts.pipe, _labels(len(noise)), noise, CLASSES, size.steps
    )  # fmt: skip
    levels = schedule_of(parts.pipe.scheduler).levels
    found: dict[str, list[float]] = {"uniform": [], "quantile": [], "sketch": []}
    sigmas = []
    for step in range(0, size.steps, 2):
        level, x, clean = levels[step], samples[step], estimates[step]
        true = _gradient(exact, clean)
        others = {
            "uniform": _gradient(lambda v, at=level: uniform(v, at), x),
            "quantile": _gradient(lambda v, at=level: quantile(v, at), x),
            "sketch": _gradient(sketch, clean),
        }
        for name, other in others.items():
            cosine = torch.cosine_similarity(true.flatten(1), other.flatten(1))
            found[name].append(float(cosine.mean()))
        sigmas.append(level.sigma)
    return found, sigmas


def _gradient(value: Any, z: Tensor) -> Tensor:
    leaf = z.clone().requires_grad_()
    return torch.autograd.grad(value(leaf).sum(), leaf)[0]


# -- claims, and what must hold --------------------------------------------------------------------


def _claims(size: Size, found: Mapping[str, Any]) -> list[Claim]:
    """Return slopes over rho, and differences at the largest rho."""
    rhos = np.array(size.rhos)
    over = f"over rho {rhos[0]:g} to {rhos[-1]:g}"
    at = f"at rho = {rhos[-1]:g} minus without"

    def slope(values: Floats) -> tuple[float, ...]:
        return tuple(np.polyfit(rhos, values, 1)[0].tolist())

    how = f", the change clipped at {CLIP:g}"
    clipped: dict[str, str] = {"exact": how, "sketch": how}
    claims = [
        Claim(f"Section 4: a reward on local scaling moves it: {words}", "rises",
              f"slope of psi {over}{clipped.get(kind, '')}", slope(found["rewards"][kind]["psi"]))
        for kind, words in KINDS.items()
    ]  # fmt: skip
    directions: dict[str, Direction] = {"vendi": "rises"}
    words = {"kept": "share of digits that LeNet-5 sees as asked",
             "vendi": "Vendi score in a digit", "precision": "precision",
             "recall": "recall"}  # fmt: skip
    for kind in KINDS:
        for name in QUALITY if kind not in clipped else ("kept",):
            where = "Section 4: diversity" if name == "vendi" else words[name]
            claims.append(
                Claim(f"{where}, {KINDS[kind]}", directions.get(name, "not said"),
                      f"slope of {words[name]} {over}", slope(found["rewards"][kind][name]))
            )  # fmt: skip
    for name, both in found["fitted"].items():
        own = "its own value" if name == "psi" else f"mean {WORDS[name]}"
        claims += [
            Claim(f"classifier fitted to {WORDS[name]}: {own}", "not said", f"{name} {at}",
                  tuple(both["fitted"][name].tolist())),
            Claim(f"control: fitted to minus {WORDS[name]}: {own}", "not said", f"{name} {at}",
                  tuple(both["flipped"][name].tolist())),
        ]  # fmt: skip
        if name == "psi":
            claims += [
                Claim(f"classifier fitted to local scaling: mean {WORDS[other]}", "not said",
                      f"{other} {at}", tuple(both["fitted"][other].tolist()))
                for other in FITTED[1:]
            ]  # fmt: skip
        else:
            placebo = name in ("ink", "edge")
            claims.append(
                Claim(f"{'control: ' * placebo}classifier fitted to {WORDS[name]}: local scaling",
                      "none" if placebo else "not said", f"psi {at}",
                      tuple(both["fitted"]["psi"].tolist()))
            )  # fmt: skip
    claims += [
        Claim(f"gradient of the {KINDS[kind]} points as that of psi", "not said",
              "cosine, mean of the steps", tuple(values.mean(axis=0).tolist()))
        for kind, values in found["cosines"].items()
    ]  # fmt: skip
    return claims


def _invariants(size: Size, parts: Parts, found: Mapping[str, Any]) -> list[Invariant]:
    """Return what holds whatever the claims are."""
    same = all(bool(values.all()) for values in found["same"].values())
    psi = found["rewards"]["exact"]["psi"].mean(axis=1)
    right = all(value * rho > 0 for value, rho in zip(psi, size.rhos, strict=True) if rho)
    some = parts.codes[: size.described]
    off = float(
        np.abs(ExactReward(parts.decoder)(some).numpy() - parts.values["psi"][: len(some)]).max()
    )
    held = [
        Invariant("rho = 0 is bitwise the result without a reward", same, f"{same}"),
        Invariant("the exact reward raises psi at rho > 0 and lowers it at rho < 0", right,
                  ", ".join(f"{v:+.2f}" for v in psi)),
        Invariant("psi of the exact reward is that of describe", off < 1e-2, f"within {off:.1e}"),
    ]  # fmt: skip
    for name, both in found["fitted"].items():
        if name in NAMES and size != FULL:
            continue  # descriptors of a few latents scatter more than they move
        up, down = (float(both[sign][name].mean()) for sign in ("fitted", "flipped"))
        held.append(
            Invariant(f"fitted to minus {WORDS[name]}, a reward lowers what it raised",
                      down < 0 < up, f"{up:+.3g}, flipped {down:+.3g}")
        )  # fmt: skip
    return held
