"""Claims about populations, made of the numbers that `populations` found."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np

from bridges.studies.claims import Claim, Direction

SOURCES = ("training", "test", "generated", "shuffled")
BASELINES = {
    "norm": "norm of the latent", "error": "reconstruction error", "bytes": "compressed size",
    "mahalanobis": "Mahalanobis distance of LeNet-5 features",
}  # fmt: skip


def claims_of(data: Mapping[str, Any]) -> tuple[Claim, ...]:
    """Return the claims, with the controls behind those that they belong to."""
    return (*_of_levels(data), *_of_groups(data), *_of_outsiders(data), *_of_complexity(data))


def _claim(words: str, paper: Direction, effect: str, values: Any) -> Claim:
    return Claim(words, paper, effect, tuple(np.asarray(values).tolist()))


def _of_levels(data: Mapping[str, Any]) -> list[Claim]:
    words = {"vendi": "Vendi score", "classes": "effective number of classes",
             "within": "Vendi score within a class"}  # fmt: skip
    claims = []
    models = {"": "", "autoencoder: ": ", latent autoencoder"}
    for (start, of), source in product(models.items(), SOURCES):
        for by, scores in data["levels"].get(start + source, {}).items():
            for name, score in words.items():
                known = name == "vendi" and by == "psi"
                directions: list[Direction] = ["not said", "not said"]
                if known:
                    directions = ["rises", "falls"]
                text = f"Figures 9, 27: {source} digits{of}, {score} by {by}"
                if source == "shuffled":
                    directions = ["none", "none"]
                    text = f"control: {score} by shuffled {by}{of}"
                values = scores[name]["score"]
                claims += [
                    _claim(text, directions[0], "middle minus lowest set", values[2] - values[0]),
                    _claim(text, directions[1], "highest minus middle set", values[4] - values[2]),
                ]
    return claims


def _of_groups(data: Mapping[str, Any]) -> list[Claim]:
    claims = []
    share = "epsilon squared of a class and the rest, mean of ten"
    for by, found in data["classes"].items():
        text = f"Figures 13, 28: classes of digits differ in {by}"
        claims += [
            _claim(text, "not said", share, found["explained"]),
            _claim(f"{text}, matched on ink", "not said", share, found["matched"]),
            _claim(f"control: shuffled classes differ in {by}", "none", share, found["shuffled"]),
        ]
    effect = "AUROC - 0.5 within a class"
    for name, table in data["subpopulations"].items():
        control = name == "shuffled"
        paper: Direction = "none" if control else "not said"
        start = "control: halves drawn at random" if control else f"Figures 13, 28: digits {name}"
        for by, found in table.items():
            claims += [
                _claim(f"{start}, {by}", paper, effect, found["before"] - 0.5),
                _claim(f"{start}, {by}, matched on ink", paper, effect, found["matched"] - 0.5),
            ]
    return claims


def _of_outsiders(data: Mapping[str, Any]) -> list[Claim]:
    claims = []
    for model, others in data["auroc"].items():
        for kind, scores in others.items():
            for score, values in scores.items():
                if score in ("bytes", "mahalanobis") and not model.startswith("VAE of"):
                    continue  # the same for all models of digits
                known = (
                    kind == "letters"
                    and model in ("VAE", "VAE of digits")
                    and score in ("psi", "nu")
                )
                text = f"Figure 7: {model}, {kind} outside by {BASELINES.get(score, score)}"
                claims.append(
                    _claim(f"{'baseline: ' * (score in BASELINES)}{text}",
                           "rises" if known else "not said", "AUROC - 0.5", values - 0.5)
                )  # fmt: skip
    for model, kinds in data["detail"].items():
        own = model.removeprefix("VAE of ") if model.startswith("VAE of") else "digits"
        start = f"arXiv 2604.18804: {model}, delta follows the gradients' energy"
        claims.append(_claim(f"{start} of {own}", "rises", "rank correlation", kinds[own]))
        claims += [
            _claim(f"{start} of {own} more than of {kind}", "rises",
                   "difference of rank correlations", kinds[own] - values)
            for kind, values in kinds.items()
            if kind != own
        ]  # fmt: skip
    return claims


def _of_complexity(data: Mapping[str, Any]) -> list[Claim]:
    return [
        _claim(f"{by} with the label: {label}" + (", given norm, ink and compressed size"
               if way == "given" else ""), "not said", "rank correlation", values)
        for label, table in data["complexity"].items()
        for by, ways in table.items()
        for way, values in ways.items()
    ]  # fmt: skip
