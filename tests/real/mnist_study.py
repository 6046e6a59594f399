"""Local scaling, rank and complexity of an MNIST VAE at all test digits, and at letters.

    CPWL_DATA=... python tests/real/mnist_study.py [figure.png]

prints the quantiles by class and how well each descriptor tells letters from digits, and draws
both. The decoder, 20 -> 400 -> 784, is described with its sigmoid ("pixels") and without
("logits", piecewise linear). 20 products give a latent's whole Jacobian, so psi and nu are exact.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from torch import Tensor, nn

import approx
from approx import Descriptors, plot
from bridges.networks import pretrained
from cpwl.files import atomic_path

COLUMNS = ("psi", "nu", "delta")
# knots of one hidden layer are hyperplanes, so that delta is exact at any radius; at 1e-5 it is 0
NEIGHBOURHOOD = (4, 0.5)


def decoders(data: Path) -> dict[str, nn.Module]:
    """Return the decoder with and without its sigmoid."""
    decoder = pretrained.mnist_vae_decoder(data)
    return {"pixels": decoder, "logits": decoder[:-1]}


def described(decoder: nn.Module, codes: Tensor) -> Descriptors:
    """Return psi, nu and delta of every code."""
    return approx.describe(
        decoder, codes, method="exact", neighbourhood=NEIGHBOURHOOD, generator=0, progress=False
    )


def auroc(scores: ArrayLike, others: ArrayLike) -> float:
    """Chance that a score is above one of the others, ties counting half: from the ranks' sum."""
    scores, others = np.asarray(scores), np.asarray(others)
    ranks = rankdata(np.concatenate([scores, others]))[: len(scores)]
    return float((ranks.sum() - len(scores) * (len(scores) + 1) / 2) / (len(scores) * len(others)))


def draw(
    digits: Descriptors, labels: NDArray[np.uint8], letters: Descriptors, kinds: NDArray[np.uint8]
) -> Any:
    """Draw the descriptors by class: digits 0 to 9, and letters A to J."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(14, 6), layout="constrained")
    upper, lower = np.ravel(np.asarray(figure.subfigures(2, 1)))
    plot.distribution(digits, labels, COLUMNS, xlabel="encoded digit", figure=upper)
    names = dict(enumerate("ABCDEFGHIJ"))
    plot.distribution(letters, kinds, COLUMNS, names=names, xlabel="encoded letter", figure=lower)
    for above, below in zip(upper.axes, lower.axes, strict=True):  # one scale for both
        low, high = zip(above.get_ylim(), below.get_ylim(), strict=True)
        above.set_ylim(min(low), max(high))
        below.set_ylim(min(low), max(high))
    return figure


def main() -> None:
    """Print the table and write the figure."""
    data = Path(os.environ["CPWL_DATA"])
    digits = pretrained.read_images("mnist", folder=data)
    letters = pretrained.read_images("notmnist", folder=data)
    codes = [pretrained.codes(images, data) for images in (digits, letters)]
    lengths = [z.norm(dim=1).numpy() for z in codes]
    print(
        "AUROC: chance that a letter's value is above a digit's (below 0.5: letters are lower).\n"
    )
    print("| output | descriptor | digits, median (5 % to 95 %) | letters | AUROC |")
    print("|---" * 5 + "|")
    for name, decoder in decoders(data).items():
        start = time.perf_counter()
        inside, outside = (described(decoder, z) for z in codes)
        seconds = time.perf_counter() - start
        for column in COLUMNS:
            values = [getattr(table, column) for table in (inside, outside)]
            cells = " | ".join(_quantiles(v) for v in values)
            print(f"| {name} | {column} | {cells} | {auroc(values[1], values[0]):.3f} |")
        print(f"| {name} | seconds for 20,000 | {seconds:.0f} | | |", flush=True)
        if name == "logits":
            figure = draw(inside, digits.labels, outside, letters.labels)
            for digit in range(10):
                member = digits.labels == digit
                row = [f"{np.median(getattr(inside, c)[member]):.4g}" for c in COLUMNS]
                print(f"digit {digit}, {member.sum()} codes, medians:", *row, file=sys.stderr)
            if len(sys.argv) > 1:
                with atomic_path(sys.argv[1]) as part:
                    figure.savefig(part, dpi=110)
    print(f"| - | distance from 0 | {' | '.join(map(_quantiles, lengths))} "
          f"| {auroc(lengths[1], lengths[0]):.3f} |")  # fmt: skip


def _quantiles(values: NDArray[Any]) -> str:
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return f"{middle:.4g} ({low:.4g} to {high:.4g})"


if __name__ == "__main__":
    main()
