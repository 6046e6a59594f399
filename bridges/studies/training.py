"""Models in training: noise, fine-tuning and how mixed the data are; Figures 4 and 17 of the paper.

Of A. I. Humayun et al., "What secrets do your manifolds hold?" (arXiv 2408.08307), on variational
autoencoders of MNIST, and on the pretrained denoiser of latent digits. A seed is one draw of
weights, batches, noise and classes; effects are paired by seed. psi and nu are those of the decoder
before and after its sigmoid, delta has the same knots either way. "White" are coordinates in which
the aggregate posterior of the training images is white, see `approx.whitening`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bridges.studies.claims import Claim, Direction, Invariant, Study, stacked, whole_seeds
from bridges.studies.digits import Floats
from bridges.studies.training_models import (
    ABRUPT,
    KINDS,
    OF_DENOISER,
    WHITE,
    WORDS,
    Size,
    one_seed,
    parts_of,
)

DIPS = ("psi", "delta", "psi white", "psi white after", "delta white")

FULL = Size(
    5, (0.0, 1e-4, 1e-3, 1e-2, 0.1), 5000, 64, 3000, 1000, 64, 300,
    (0, 20, 50, 100, 200, 300, 500, 700, 1000, 1500, 2200, 3000), 50,
    16, 128, 5, (0, 50, 250), (1, 2, 5, 10), 150, 24,
)  # fmt: skip
SMALL = Size(
    2, (0.0, 1e-4), 500, 8, 60, 30, 32, 20, (0, 10, 30, 60), 10,
    4, 32, 3, (0, 20), (1, 10), 3, 2,
)  # fmt: skip


def study(size: Size, seeds: Sequence[int]) -> Study:
    """Run the study at some size; `FULL` takes some fifteen minutes of one core.

    After Ctrl-C it is of the seeds that are whole.

    Its data, with the seeds along the last axis: `curves`, by training (a noise, or `ABRUPT`) and
    quantity of `WORDS`, (measured, seeds); `tuned`, by kind of image trained on, then by "KIND:
    QUANTITY" with the kind whose codes are measured, (tuned, seeds); `classes`, by "same" images or
    those of the "own" classes and quantity, (classes, seeds); `denoiser`, by kind and quantity,
    (seeds,), with "start"; `losses` by training, first and last.
    """
    parts = parts_of(size)
    found = whole_seeds(seeds, lambda seed: one_seed(parts, size, seed))
    seeds = tuple(seeds)[: len(found)]
    data: dict[str, Any] = stacked(found)
    held = _invariants(size, data)
    data |= {"steps": list(size.measured), "tuned steps": list(size.tuned)}
    data |= {"noises": list(size.noises), "number of classes": list(size.classes)}
    return Study("training", size == FULL, seeds, tuple(_claims(size, data)), tuple(held), data)


# -- claims, and what must hold --------------------------------------------------------------------


def _claims(size: Size, found: Mapping[str, Any]) -> list[Claim]:
    """Return the effects of noise, dips, fine-tuning and classes."""
    return [
        *_of_noise(size, found["curves"]),
        *_of_dips(size, found["curves"]),
        *_of_tuning(found["tuned"], found["denoiser"]),
        *_of_classes(size, found["classes"]),
    ]


def _of_noise(size: Size, curves: Mapping[str, Any]) -> list[Claim]:
    """Return differences to the training without noise, after the warm-up."""
    late = np.array(size.measured) >= size.warmup
    claims = []
    for number, noise in enumerate(size.noises[1:]):
        for name, words in WORDS.items():
            less, more = (
                curves[f"{n:g}"][name][late].mean(axis=0) for n in (size.noises[0], noise)
            )
            paper: Direction = "not said" if number else "none"
            claims.append(
                Claim(f"Figure 4: {'' if number else 'control: '}noise {noise:g}: {words}", paper,
                      f"{name}, from step {size.warmup}, minus without noise", _values(more - less))
            )  # fmt: skip
    return claims


def _of_dips(size: Size, curves: Mapping[str, Any]) -> list[Claim]:
    """Return depths of minima inside of the training."""
    trainings = (f"{size.noises[0]:g}", f"{size.noises[-1]:g}", ABRUPT)
    return [
        Claim(
            f"Figure 4: {WORDS[name]} dips in training, {_named(training)}, from step {since}",
            "not said" if "white" in name else "rises",
            "depth below both ends, where the other seeds' mean is least",
            _values(dip(curves[training][name][size.measured.index(since):])),
        )
        for training in trainings for since in (0, size.settled) for name in DIPS
    ]  # fmt: skip


def _named(training: str) -> str:
    return training if training == ABRUPT else f"noise {training}"


def dip(curves: Any) -> Floats:
    """Return how far curves (steps, seeds) fall inside below the lower of their ends (seeds,).

    The place is where the mean of the other curves is least, so that a curve that scatters around a
    line has a depth of at most 0 on average. Of one curve alone it is not known: NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from bridges.studies.training import dip
    >>> dip(np.array([[3.0, 2.0], [1.0, 1.0], [0.0, 2.0], [4.0, 3.0]]))  # at steps 1 and 2
    array([2., 0.])
    """
    curves = np.asarray(curves, dtype=np.float64)
    count = curves.shape[1]
    if count == 1:
        return np.full(1, np.nan)
    others = curves.sum(axis=1, keepdims=True) - curves
    place = others[1:-1].argmin(axis=0) + 1
    depth: Floats = curves[[0, -1]].min(axis=0) - curves[place, np.arange(count)]
    return depth


def _of_tuning(tuned: Mapping[str, Any], denoiser: Mapping[str, Any]) -> list[Claim]:
    """Return differences to going on with digits, and the change in that."""
    claims = []
    for name in WHITE:
        before, *_, after = tuned["digits"][f"digits: {name}"]
        claims.append(
            Claim(f"Figure 17: control: going on with digits: {WORDS[name]} at digits", "none",
                  f"{name}, end minus start", _values(after - before))
        )  # fmt: skip
    of = "of the denoiser"
    more, less = denoiser["digits"], denoiser["start"]
    for name, words in OF_DENOISER.items():
        claims.append(
            Claim(f"Figure 17: control: going on with digits: {words} {of}", "none",
                  f"{name}, end minus start", _values(more[name] - less[name]))
        )  # fmt: skip
    for kind in list(KINDS)[1:]:
        what = f"Figure 17: tuned from digits to {kind}"
        for where in ("digits", kind):
            for name in WHITE:
                here, there = (tuned[k][f"{where}: {name}"][-1] for k in (kind, "digits"))
                claims.append(
                    Claim(f"{what}: {WORDS[name]} at {where}", "not said",
                          f"{name}, minus going on with digits", _values(here - there))
                )  # fmt: skip
        for name, words in OF_DENOISER.items():
            claims.append(
                Claim(f"{what}: {words} {of}", "not said", f"{name}, minus going on with digits",
                      _values(denoiser[kind][name] - denoiser["digits"][name]))
            )  # fmt: skip
    return claims


def _of_classes(size: Size, classes: Mapping[str, Any]) -> list[Claim]:
    """Return slopes over the logarithm of the number of classes."""
    decades = np.log10(size.classes)
    images = {"same": "same images", "own": "own images"}
    return [
        Claim(
            f"heterogeneity: {WORDS[name]}, {images[where]}", "not said",
            f"slope of {name} over log10 of {size.classes[0]} to {size.classes[-1]} classes",
            _values(np.polyfit(decades, classes[where][name], 1)[0]),
        )
        for where in images for name in WHITE
    ]  # fmt: skip


def _values(effects: Floats) -> tuple[float, ...]:
    return tuple(np.asarray(effects, dtype=np.float64).tolist())


def _invariants(size: Size, found: Mapping[str, Any]) -> list[Invariant]:
    """Return what holds whatever the claims are."""
    curves = found["curves"]
    fell = max(float((loss[1] / loss[0]).max()) for loss in found["losses"].values())
    off = max(
        float(np.abs(c["psi white"] - c["psi"] - c["log volume"]).max()) for c in curves.values()
    )
    left = max(
        float((c[f"psi{white} after"] - c[f"psi{white}"]).max()) + size.latents * np.log(4)
        for c in curves.values() for white in ("", " white")
    )  # fmt: skip
    base, starts = curves[f"{size.noises[0]:g}"], found["tuned"].values()
    same = all(np.array_equal(t[f"digits: {n}"][0], base[n][-1]) for t in starts for n in WHITE)
    return [
        Invariant("the loss falls in training", fell < 1, f"to {fell:.2f} of the start"),
        Invariant("white psi is psi plus the log-volume of the codes", off < 1e-6, f"{off:.1e}"),
        Invariant("a sigmoid, of slope 1/4 at most, lowers psi by E log 4 or more", left < 1e-6,
                  f"by {-left:.3g} more at least"),
        Invariant("fine-tuning starts at the model trained", same, f"{same}"),
    ]  # fmt: skip
