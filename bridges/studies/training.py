"""Models in training: noise, fine-tuning and how mixed the data are; Figures 4 and 17 of the paper.

Of A. I. Humayun et al., "What secrets do your manifolds hold?" (arXiv 2408.08307), on variational
autoencoders of MNIST, and on the pretrained denoiser of latent digits. A seed is one draw of
weights, batches, noise and classes; effects are paired by seed. psi and nu are those of the decoder
before and after its sigmoid, delta has the same knots either way. "White" are coordinates in which
the aggregate posterior of the training images is white, see `approx.whitening`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from approx import Whitening, bind, describe, whitening
from bridges.monitor import Monitor
from bridges.networks.autoencoders import Vae
from bridges.networks.diffusion import mnist_denoiser, mnist_encoder
from bridges.networks.pretrained import read_images
from bridges.networks.training import Trained, train_denoiser, train_vae
from bridges.studies.claims import Claim, Direction, Invariant, Study
from bridges.studies.digits import Floats, stacked

KINDS: Mapping[str, Literal["mnist", "fashion-mnist", "notmnist"]] = {
    "digits": "mnist", "clothes": "fashion-mnist", "letters": "notmnist",
}  # fmt: skip
ABRUPT = "no warm-up"
"""The training without noise whose KL divergence has its whole weight from the first step."""
WORDS = {
    "psi": "local scaling", "psi after": "local scaling after the sigmoid",
    "psi white": "white local scaling", "psi white after": "white local scaling after the sigmoid",
    "nu white": "white local rank", "nu white after": "white local rank after the sigmoid",
    "delta": "local complexity", "delta white": "white local complexity",
}  # fmt: skip
WHITE = tuple(name for name in WORDS if "white" in name)
DIPS = ("psi", "delta", "psi white", "psi white after", "delta white")
RADIUS = 0.1  # of the cross-polytope in which knots are counted; latents deviate by about 1
TIME = 0.5  # from 0, noise, to 1, at which the denoiser is described
RATE = 1e-3  # of the denoiser's fine-tuning, a quarter of that of its training
OF_DENOISER = {"psi": "local scaling", "nu": "local rank", "soft": "soft complexity"}

Numbers = dict[str, float]


class Size(NamedTuple):
    """How much is run.

    Attributes
    ----------
    seeds : int
        Where none are given.
    noises : tuple of float
        Standard deviations of noise on the training images: 0 first, the negative control second.
    images, shown : int
        That are trained on, and other ones whose codes are measured.
    steps, batch, warmup : int
        Of training, images in each, and until the KL divergence has its whole weight.
    measured : tuple of int
        Steps, from 0 to the last.
    settled : int
        One of these: where the start, which depends on the first weights alone, is over.
    latents, width, depth : int
        Of the autoencoders.
    tuned : tuple of int
        Steps of fine-tuning that are measured, from 0 to the last.
    classes : tuple of int
        In rising order; 10 last, which is the training without noise.
    denoiser, codes : int
        Steps of fine-tuning the denoiser, and noisy latents at which it is measured.
    """

    seeds: int
    noises: tuple[float, ...]
    images: int
    shown: int
    steps: int
    batch: int
    warmup: int
    measured: tuple[int, ...]
    settled: int
    latents: int
    width: int
    depth: int
    tuned: tuple[int, ...]
    classes: tuple[int, ...]
    denoiser: int
    codes: int


FULL = Size(
    5, (0.0, 1e-4, 1e-3, 1e-2, 0.1), 5000, 64, 1500, 64, 500,
    (0, 25, 50, 100, 200, 300, 400, 500, 650, 800, 1000, 1250, 1500), 100,
    10, 128, 5, (0, 25, 100, 250, 500), (1, 2, 5, 10), 200, 32,
)  # fmt: skip
SMALL = Size(
    2, (0.0, 1e-4, 0.1), 500, 16, 60, 32, 20, (0, 10, 20, 40, 60), 10,
    4, 32, 3, (0, 20), (1, 5, 10), 3, 3,
)  # fmt: skip


class Parts(NamedTuple):
    """What all seeds share, by kind of image.

    Attributes
    ----------
    train, shown : mapping of Tensor
        Images (N, 784).
    labelled : (Tensor, array)
        All digits to choose classes from, and their labels.
    tested : (Tensor, array)
        Test digits and their labels.
    codes : mapping of (Tensor, Tensor)
        Latents (N, 1, 6, 6) and labels that the denoiser is trained on.
    """

    train: Mapping[str, Tensor]
    shown: Mapping[str, Tensor]
    labelled: tuple[Tensor, Any]
    tested: tuple[Tensor, Any]
    codes: Mapping[str, tuple[Tensor, Tensor]]


def study(size: Size, seeds: Sequence[int]) -> Study:
    """Run the study at some size; `FULL` takes some ten minutes of one core.

    After Ctrl-C it is of the seeds that are whole.

    Its data, with the seeds along the last axis: `curves`, by training (a noise, or `ABRUPT`) and
    quantity of `WORDS`, (measured, seeds); `tuned`, by kind of image trained on, then by "KIND:
    QUANTITY" with the kind whose codes are measured, (tuned, seeds); `classes`, by "same" images or
    those of the "own" classes and quantity, (classes, seeds); `denoiser`, by kind and quantity,
    (seeds,), with "start"; `losses` by training, first and last.
    """
    parts = _parts(size)
    found = []
    try:
        for seed in tqdm(seeds, desc="seeds"):
            found.append(_seed(parts, size, seed))
    except KeyboardInterrupt:
        if not found:
            raise
    seeds = tuple(seeds)[: len(found)]
    data: dict[str, Any] = stacked(found)
    held = _invariants(size, data)
    data |= {"steps": list(size.measured), "tuned steps": list(size.tuned)}
    data |= {"noises": list(size.noises), "number of classes": list(size.classes)}
    return Study("training", size == FULL, seeds, tuple(_claims(size, data)), held, data)


def _parts(size: Size) -> Parts:
    encoder = mnist_encoder()
    digits = read_images("mnist", 60_000, part="train")
    tested = read_images("mnist")
    train, shown, codes = {}, {}, {}
    for name, kind in KINDS.items():
        if kind == "notmnist":  # has no images for training
            both = read_images(kind, size.images + size.shown)
            one, other = both.pixels[: size.images], both.pixels[size.images :]
            labels = both.labels[: size.images]
        else:
            some = read_images(kind, size.images, part="train")
            one, other, labels = some.pixels, read_images(kind, size.shown).pixels, some.labels
        train[name], shown[name] = torch.from_numpy(one), torch.from_numpy(other)
        with torch.no_grad():
            pictures = train[name].view(-1, 1, 28, 28).split(500)
            z = torch.cat([encoder(part)[:, :1] for part in pictures])
        codes[name] = z, torch.from_numpy(labels.astype(np.int64))
    return Parts(
        train, shown, (torch.from_numpy(digits.pixels), digits.labels),
        (torch.from_numpy(tested.pixels), tested.labels), codes,
    )  # fmt: skip


# -- measures --------------------------------------------------------------------------------------


def _white(vae: Vae, images: Tensor) -> Whitening:
    """Return the coordinates in which the aggregate posterior of images is white."""
    with torch.no_grad():
        mean, log_variance = vae.encode(images)
    return whitening(mean, log_variance.exp())


def _described(vae: Vae, images: Tensor, encoder: Vae, of: Tensor) -> Numbers:
    """Return means over images' codes of all of `WORDS`, white by the codes of others."""
    white = _white(encoder, of)
    with torch.no_grad():
        z = encoder.encode(images)[0]
    found: Numbers = {"log volume": white.log_volume}
    latents = {"": z, " white": white.coordinates(z)}
    for after, plain in (("", vae.decoder), (" after", vae.decode)):
        for name, u in latents.items():
            decoder = white.decoder(plain) if name else plain
            # directions and all else of one seed, the same for every model
            table = describe(
                decoder, u, method="exact", neighbourhood=None if after else (4, RADIUS), seed=0,
                batch=len(u), progress=False,
            )  # fmt: skip
            kept = {f"psi{name}{after}": table.psi, f"nu{name}{after}": table.nu}
            if table.delta is not None:
                kept[f"delta{name}"] = table.delta
            found |= {key: float(np.mean(value)) for key, value in kept.items()}
    return {name: found[name] for name in (*WORDS, "log volume")}


def _whole(trained: Trained[Any]) -> Any:
    """Return the module of a training that went to its end."""
    if not trained.complete:
        raise KeyboardInterrupt
    return trained.module


# -- one seed --------------------------------------------------------------------------------------


def _seed(parts: Parts, size: Size, seed: int) -> dict[str, Any]:
    """Return what `study` describes, of one seed."""
    options: dict[str, Any] = {
        "batch": size.batch, "latents": size.latents, "width": size.width, "depth": size.depth,
        "seed": seed, "progress": False,
    }  # fmt: skip
    digits, shown = parts.train["digits"], parts.shown["digits"]
    trainings = {f"{noise:g}": {"noise": noise, "warmup": size.warmup} for noise in size.noises}
    trainings[ABRUPT] = {"noise": 0.0, "warmup": 0}
    curves, losses, base = {}, {}, None
    for name, more in trainings.items():
        monitor = Monitor(lambda vae: _described(vae, shown, vae, digits), every=size.measured)
        trained = train_vae(digits, steps=size.steps, watch=monitor, **more, **options)
        base = base or _whole(trained)
        curves[name] = _columns(monitor)
        tenth = size.steps // 10
        losses[name] = [
            float(trained.losses[part].mean()) for part in (slice(tenth), slice(-tenth, None))
        ]
    assert base is not None
    return {
        "curves": curves,
        "losses": losses,
        "tuned": _tuned(parts, size, base, options),
        "classes": _classes(parts, size, seed, base, options),
        "denoiser": _denoisers(parts, size, seed),
    }


def _columns(monitor: Monitor) -> dict[str, Floats]:
    return {
        name: np.asarray(v, np.float64) for name, v in monitor.columns().items() if name != "step"
    }


def _tuned(
    parts: Parts, size: Size, base: Vae, options: Mapping[str, Any]
) -> dict[str, dict[str, Floats]]:
    """Return measures along the fine-tuning of the decoder to each kind, the encoder fixed."""

    def measure(vae: Vae) -> Numbers:
        return {
            f"{where}: {name}": value
            for where, images in parts.shown.items()
            for name, value in _described(vae, images, vae, parts.train["digits"]).items()
            if name in WHITE
        }

    found = {}
    for kind, images in parts.train.items():
        monitor = Monitor(measure, every=size.tuned)
        _whole(train_vae(
            images, steps=size.tuned[-1], warmup=0, start=base, decoder_only=True, watch=monitor,
            **options,
        ))  # fmt: skip
        found[kind] = _columns(monitor)
    return found


def _classes(
    parts: Parts, size: Size, seed: int, base: Vae, options: Mapping[str, Any]
) -> dict[str, dict[str, list[float]]]:
    """Return measures of models of ever more classes, each class in all the models after it."""
    order = np.random.default_rng(seed).permutation(10)
    found: dict[str, dict[str, list[float]]] = {
        where: {name: [] for name in WHITE} for where in ("same", "own")
    }
    for count in size.classes:
        images, shown = (
            pixels[np.flatnonzero(np.isin(labels, order[:number]))[:some]]
            for (pixels, labels), number, some in (
                (parts.labelled, count, size.images), (parts.tested, count, size.shown)
            )
        )  # fmt: skip
        first = parts.tested[0][np.flatnonzero(parts.tested[1] == order[0])[: size.shown]]
        vae = base if count == 10 else _whole(
            train_vae(images, steps=size.steps, warmup=size.warmup, **options)
        )  # fmt: skip
        for where, pictures in (("same", first), ("own", shown)):
            for name, value in _described(vae, pictures, vae, images).items():
                if name in WHITE:
                    found[where][name].append(value)
    return found


def _denoisers(parts: Parts, size: Size, seed: int) -> dict[str, Numbers]:
    """Return measures of the estimate of x_0 of digits, before and after training it further."""
    start = mnist_denoiser()
    z, labels = parts.codes["digits"]
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(z), (size.codes,), generator=generator)
    noise = torch.randn(size.codes, *z.shape[1:], generator=generator)
    x, y = TIME * z[rows] + (1 - TIME) * noise, nn.functional.one_hot(labels[rows], 10)
    found = {"start": _estimate(start, x, y)}
    for kind, (latents, of) in parts.codes.items():
        trained = train_denoiser(
            latents, of, steps=size.denoiser, rate=RATE, start=start, seed=seed, progress=False
        )
        found[kind] = _estimate(_whole(trained), x, y)
    return found


def _estimate(denoiser: nn.Module, x: Tensor, y: Tensor) -> Numbers:
    """Return means of psi, nu and soft complexity of noisy latent -> estimate of x_0."""
    wide = copy.deepcopy(denoiser).double().requires_grad_(False)

    def clean(x: Tensor, *, y: Tensor) -> Tensor:  # the velocity leads from noise to x_0
        velocity: Tensor = wide(x, torch.full((len(x),), TIME, dtype=x.dtype), y)
        return x + (1 - TIME) * velocity

    table = describe(
        bind(clean, y=y.double()), x.double(), method="exact", neighbourhood=(4, RADIUS), seed=0,
        batch=len(x), progress=False,
    )  # fmt: skip
    return {name: float(np.mean(table.columns()[name])) for name in OF_DENOISER}


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
    for name, words in OF_DENOISER.items():
        claims.append(
            Claim(f"Figure 17: control: going on with digits: {words} {of}", "none",
                  f"{name}, end minus start", _values(denoiser["digits"][name] - denoiser["start"][name]))
        )  # fmt: skip
    for kind in list(KINDS)[1:]:
        what = f"Figure 17: tuned from digits to {kind}"
        for where in ("digits", kind):
            for name in WHITE:
                more, less = (tuned[k][f"{where}: {name}"][-1] for k in (kind, "digits"))
                claims.append(
                    Claim(f"{what}: {WORDS[name]} at {where}", "not said",
                          f"{name}, minus going on with digits", _values(more - less))
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
    base, starts = curves[f"{size.noises[0]:g}"], [t for t in found["tuned"].values()]
    same = all(np.array_equal(t[f"digits: {n}"][0], base[n][-1]) for t in starts for n in WHITE)
    return [
        Invariant("the loss falls in training", fell < 1, f"to {fell:.2f} of the start"),
        Invariant("white psi is psi plus the log-volume of the codes", off < 1e-6, f"{off:.1e}"),
        Invariant("a sigmoid, of slope 1/4 at most, lowers psi by E log 4 or more", left < 1e-6,
                  f"by {-left:.3g} more at least"),
        Invariant("fine-tuning starts at the model trained", same, f"{same}"),
    ]  # fmt: skip
