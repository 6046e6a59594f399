# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Populations
#
# What ψ, ν and δ of a decoder say of sets of images: of level sets, of classes, and of images
# unlike those of the training (Figures 7, 9, 13, 16, 18, 27 and 28 of arXiv 2408.08307).
# `python -m bridges.studies populations --full` makes the results that are kept below.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from approx import describe, level_sets, plot
from approx.populations import reconstruction_error
from bridges.networks import pretrained
from bridges.studies import interval, load_study

HERE = Path(__file__).parent if "__file__" in globals() else Path()
FIGURES = Path(os.environ.get("CPWL_FIGURES", HERE / "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
WIDTH = 7.2  # inches, the width of a page's text
plt.rcParams.update({"font.size": 7, "axes.titlesize": 8, "legend.frameon": False})

# %% [markdown]
# ## Joint distributions and level sets
#
# Digits, letters and clothes are encoded by an autoencoder of digits. Its decoder is described
# before the sigmoid.

# %%
encoder, decoder = pretrained.mnist_vae_encoder(), pretrained.mnist_vae_decoder()
KINDS = {"mnist": "digits", "notmnist": "letters", "fashion-mnist": "clothes"}
images = {kind: pretrained.read_images(kind, 300) for kind in KINDS}
pixels = torch.from_numpy(np.concatenate([i.pixels for i in images.values()]))
with torch.no_grad():
    codes = encoder(pixels)
table = describe(decoder[:-1], codes, neighbourhood=(20, 0.1), seed=0, progress=False)
columns = {"error": reconstruction_error(encoder, decoder)(pixels)} | {
    name: table.columns()[name] for name in ("psi", "nu", "delta")
}
kinds = np.repeat(list(KINDS.values()), 300)
figure = plot.joint(columns, list(columns), kinds)
figure.savefig(FIGURES / "07_joint.png", dpi=110)
plt.show()

# %%
digits = kinds == "digits"
sets = level_sets({"psi": table.psi[digits]}, "psi", 5, labels=images["mnist"].labels)
figure = plot.plate(pixels[digits].view(-1, 28, 28), sets, k=2)
figure.savefig(FIGURES / "07_plate.png", dpi=90)
plt.show()

# %% [markdown]
# ## The claims
#
# Each seed has images of its own. What is claimed in a direction, and the controls, are printed in
# full; of the others the verdicts are counted. `p_holm` is corrected for all claims together.

# %%
study = load_study(HERE / "results" / "populations.json")
found, data = study.table(), study.data
print(found[found.paper != "not said"].drop(columns="seeds").to_string(index=False))
print(f"{len(found)} claims, {(found.p_holm < 0.05).sum()} with a corrected p below 0.05")
print(found.groupby(["paper", "verdict"]).size())
for invariant in study.invariants:
    print(f"{invariant.name}: {invariant.measured}")
assert not study.failed(), "Expected the invariants to hold"

# %% [markdown]
# ### Level sets
#
# Scores at equal n, for five sets of equal counts. Dashed: test digits that traded places with
# others of their class. In the last row the sets are of each class alone.

# %%
BY = {"psi": r"$\psi$", "nu": r"$\nu$", "delta": r"$\delta$", "psi after": r"$\psi$, sigmoid"}
SCORES = {"vendi": "Vendi score", "classes": "effective classes", "within": "Vendi in a class"}


def means(rows):
    """Return mean and ends of the interval of each row of values by seed, (3, rows)."""
    return np.array([interval(row) for row in rows]).T


figure, axes = plt.subplots(3, 4, figsize=(WIDTH, 4.6), sharex=True, sharey="row",
                            layout="constrained")  # fmt: skip
for row, (score, words) in zip(axes, SCORES.items(), strict=True):
    for ax, (by, symbol) in zip(row, BY.items(), strict=True):
        for number, source in enumerate(("training", "test", "generated")):
            values = data["levels"][source][by][score]
            mean, low, high = means(values["score"])
            ax.plot(range(1, 6), mean, "o-", color=f"C{number}", ms=2, lw=1, label=source)
            ax.fill_between(range(1, 6), low, high, color=f"C{number}", alpha=0.2, lw=0)
            if source == "test":
                ax.plot(range(1, 6), means(values["null"])[0], "--", color="0.5", lw=1,
                        label="test, permuted")  # fmt: skip
        axes[0, list(BY).index(by)].set_title(symbol)
    row[0].set_ylabel(words)
for ax in axes[-1]:
    ax.set_xlabel("level set")
figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=4, loc="outside upper center")
figure.savefig(FIGURES / "07_level_sets.png", dpi=150)
plt.show()

# %% [markdown]
# ### Images unlike the training's
#
# AUROC of those outside against those inside: 1 where all outside are higher, 0 where all are
# lower.

# %%
COLUMNS = ("psi", "nu", "delta", "psi_W", "psi after", "nu after", "norm", "error", "bytes",
           "mahalanobis")  # fmt: skip
rows = [(model, kind) for model, kinds in data["auroc"].items() for kind in kinds]
grid = np.array([[interval(data["auroc"][m][k].get(c, [np.nan])).mean for c in COLUMNS]
                 for m, k in rows])  # fmt: skip
figure, ax = plt.subplots(figsize=(WIDTH, 3.6), layout="constrained")
ax.imshow(grid, cmap="PuOr", vmin=0, vmax=1, aspect="auto")
for (i, j), value in np.ndenumerate(grid):
    if np.isfinite(value):
        ax.text(j, i, f"{value:.2f}", ha="center", va="center",
                color="white" if abs(value - 0.5) > 0.35 else "black")  # fmt: skip
ax.set_xticks(range(len(COLUMNS)), COLUMNS, rotation=30)
ax.set_yticks(range(len(rows)), [f"{model}: {kind}" for model, kind in rows])
figure.savefig(FIGURES / "07_outside.png", dpi=150)
plt.show()
for model, errors in data["error"].items():
    print(f"{model}: error", ", ".join(f"{k} {interval(v).mean:.4f}" for k, v in errors.items()))
inverted = {name: interval(values) for name, values in data["inversion"].items()}
print("the GAN's own digits:", ", ".join(f"{k} {v.mean:.3g}" for k, v in inverted.items()))

# %% [markdown]
# ### Classes, detail and image complexity

# %%
figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 2.6), layout="constrained")
for number, (by, symbol) in enumerate(list(BY.items())[:3]):
    before, after = (means(data["classes"][by][a])[0] for a in ("auroc", "auroc matched"))
    axes[0].plot(before, after, "o", ms=3, color=f"C{number}", label=symbol)
    for digit in (0, 1, 7):
        axes[0].annotate(str(digit), (before[digit], after[digit]), fontsize=6)
axes[0].axline((0.5, 0.5), slope=1, color="0.8", lw=0.7, zorder=0)
axes[0].set(title="a digit against the rest, AUROC", xlabel="all", ylabel="matched on ink")
axes[0].legend()
for number, (model, kinds) in enumerate(data["detail"].items()):
    mean, low, high = means(kinds[kind] for kind in KINDS.values())
    axes[1].errorbar(np.arange(3) + 0.1 * number - 0.25, mean, [mean - low, high - mean], fmt="o",
                     ms=3, lw=0.8, label=model)  # fmt: skip
axes[1].set_xticks(range(3), KINDS.values())
axes[1].axhline(0, color="0.8", lw=0.7, zorder=0)
axes[1].set_title(r"$\delta$ with the gradients' energy, $r_s$")
axes[1].legend(fontsize=5)
for number, way in enumerate(("plain", "given")):
    values = [[t[by][way] for by in list(BY)[:3]] for t in data["complexity"].values()]
    mean, low, high = means(v for group in values for v in group)
    place = np.arange(len(mean)) + np.arange(len(mean)) // 3 + 0.35 * number
    axes[2].bar(place, mean, 0.35, color=("0.7", "C1")[number], label=way,
                yerr=[mean - low, high - mean], error_kw={"lw": 0.7})  # fmt: skip
axes[2].set_xticks(4 * np.arange(4) + 1.2, [k.replace("classifier's ", "")
                                            for k in data["complexity"]])  # fmt: skip
axes[2].set_title(r"label with $\psi$, $\nu$, $\delta$, $r_s$")
axes[2].axhline(0, color="0.8", lw=0.7, zorder=0)
axes[2].legend()
figure.savefig(FIGURES / "07_classes.png", dpi=150)
plt.show()
