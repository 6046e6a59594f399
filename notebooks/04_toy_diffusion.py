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
# # A toy diffusion, exactly
#
# A ReLU denoiser of 142 points draws a dinosaur by a diffusion of 50 steps. At a fixed time t it is
# piecewise affine in x, so local scaling ψ, local rank ν and local complexity δ of a step are known
# exactly over the plane, beside what `approx` estimates (Figures 3 and 19 of arXiv 2408.08307).
# What a perfect denoiser would show is known in closed form.
#
# The table holds the kept results at full size; `python -m bridges.studies toy_diffusion --full`
# makes them again.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.ticker import MaxNLocator

import cpwl
from bridges.networks.datasaurus import IdealDenoiser, read_datasaurus, signal_shares, toy_ddpm
from bridges.studies import Claim, interval, load_study
from bridges.studies.toy_maps import HALF, estimated, exact_partition, plane

HERE = Path(__file__).parent if "__file__" in globals() else Path()
FIGURES = Path(os.environ.get("CPWL_FIGURES", HERE / "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
WIDTH = 7.2  # inches, the width of a page's text
plt.rcParams.update({"font.size": 7, "axes.titlesize": 8, "legend.frameon": False})

study = load_study(HERE / "results" / "toy_diffusion.json")
print(study.text())
assert not study.failed(), "Expected the invariants to hold"
times, marks = study.data["times"], study.data["marks"]

# %% [markdown]
# The table looks over the plane; the next cell has the same change from early to late at samples
# x_t, where the network was trained. Rows were chosen after a first look at small size and are not
# corrected for their number; for ψ of the step, plane and samples disagree. "Reflects the data" is
# our reading: the size of a rank correlation with the distance to the data.

# %%
noisy = study.data["correlations"]["noisy"]
for name, by_mark in noisy.items():
    early, late = (np.abs(by_mark[str(mark)]) for mark in (marks[1], marks[-1]))
    for when, change in (("t = 6", (late - early)[:, 0]), ("mean", (late - early).mean(axis=1))):
        claim = Claim(name, "rises", "late minus early", tuple(change))
        mean, low, high = interval(change)
        print(f"{name:10} {when:6} {mean:6.3f} [{low:6.3f}, {high:6.3f}] {claim.verdict}")

# %% [markdown]
# ## Maps by time
#
# One training, early and late, and the ideal denoiser: descriptors of the step from x_t to x_{t-1}.
# Early and late share a scale of colours at each time: look at its ends. Dots are the data where
# they lie at time t.

# %%
points = read_datasaurus()
trained = toy_ddpm(points, steps=marks[-1], marks=marks[:2]).denoisers
rows = {"early": trained[marks[1]], "late": trained[marks[-1]]}
rows["ideal"] = IdealDenoiser(points, signal_shares())
PIXELS = 40
found = {
    (name, t): estimated(denoiser, t, plane(PIXELS), delta=name != "ideal")
    for name, denoiser in rows.items()
    for t in times
}
SHOWN = {
    "step psi": (r"$\psi$", "viridis", ".3f", ("early", "late", "ideal")),
    "step nu": (r"$\nu$", "cividis", ".4f", ("early", "late", "ideal")),
    "delta": (r"$\delta$", "magma", ".0f", ("early", "late")),
}
figure, axes = plt.subplots(8, len(times), figsize=(WIDTH, 11), layout="constrained")
lines = [(key, name) for key, (*_, names) in SHOWN.items() for name in names]
for column, t in zip(axes.T, times, strict=True):
    data = (signal_shares()[t].sqrt() * points).numpy()
    for ax, (key, name) in zip(column, lines, strict=True):
        label, cmap, digits, names = SHOWN[key]
        both = np.concatenate([found[n, t][key] for n in names if n != "ideal"])
        low, high = np.quantile(both, [0.01, 0.99])
        picture = ax.imshow(
            found[name, t][key].reshape(PIXELS, PIXELS), origin="lower", extent=[-HALF, HALF] * 2,
            cmap=cmap, vmin=low, vmax=high,
        )  # fmt: skip
        ax.plot(*data.T, ".", ms=1, color="white", alpha=0.7, mew=0)
        ax.set(xticks=[], yticks=[])
        if name == "early":
            bar = figure.colorbar(picture, ax=column[[k == key for k, _ in lines]], aspect=18,
                                  location="bottom", pad=0.02)  # fmt: skip
            bar.set_ticks([low, high], labels=[f"{end:{digits}}" for end in (low, high)])
            for text, side in zip(bar.ax.get_xticklabels(), ("left", "right"), strict=True):
                text.set(ha=side, fontsize=6)
        if t == times[0]:
            ax.set_ylabel(f"{label} {name}")
    column[0].set_title(f"$t = {t}$")
figure.savefig(FIGURES / "04_maps.png", dpi=120)
plt.show()

# %% [markdown]
# ## Exact cells beside the estimates
#
# ψ of the step at t = 6, in the middle of the plane: by `approx` at pixels, and of the exact cells,
# with their edges.

# %%
MIDDLE = 0.5
pixels = MIDDLE / HALF * plane(80)
figure, axes = plt.subplots(1, 4, figsize=(WIDTH, 2.5), layout="constrained", sharey=True)
for pair, name in zip((axes[:2], axes[2:]), ("early", "late"), strict=True):
    partition = exact_partition(rows[name], "step", times[0], MIDDLE)
    psi = cpwl.local_scaling(partition)
    estimate = estimated(rows[name], times[0], pixels)["step psi"]
    exact = psi[cpwl.locate(partition, pixels.numpy())]
    print(f"{name}: {partition.num_cells:,} cells, apart by {np.abs(exact - estimate).max():.1e}")
    low, high = np.quantile(exact, [0.01, 0.99])
    picture = pair[0].imshow(
        estimate.reshape(80, 80), origin="lower", extent=[-MIDDLE, MIDDLE] * 2, vmin=low, vmax=high
    )
    cpwl.plot.partition(partition, psi, ax=pair[1], limits=(low, high), colorbar=False)
    pair[0].set_title(f"{name}: pixels of approx")
    pair[1].set_title(f"{name}: {partition.num_cells:,} cells")
    figure.colorbar(picture, ax=list(pair), location="bottom", label=r"$\psi$", aspect=30,
                    ticks=MaxNLocator(4))  # fmt: skip
    for ax in pair:
        ax.set(xticks=[-MIDDLE, 0, MIDDLE], yticks=[-MIDDLE, 0, MIDDLE], xlabel="", ylabel="")
figure.savefig(FIGURES / "04_exact.png", dpi=130)
plt.show()

# %% [markdown]
# ## Over training
#
# Left: how far ψ of the step is from the ideal denoiser's, at samples x_t. Middle and right: the
# correlation of ψ and δ with the distance to the data over the plane. Bands and bars are 95 %
# intervals over seeds.
#
# Training brings ψ nearer to the ideal at t = 6, from 0.070 to 0.028, and hardly or not at all from
# t = 17 on, where an early network is already as near. There the ideal is almost constant, and what
# the networks show from t = 28 on is their own. δ is larger near the data, and most of that is the
# initialisation: untrained networks have -0.5 of the late -0.7 to -0.8.

# %%
figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 2.4), layout="constrained")
colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(times)))
apart = {int(mark): np.array(v) for mark, v in study.data["apart"]["step psi"].items()}
for i, (t, colour) in enumerate(zip(times, colours, strict=True)):
    mean, low, high = np.array([interval(apart[mark][:, i]) for mark in marks]).T
    axes[0].plot(marks, mean, color=colour, label=f"$t = {t}$", marker=".", ms=3, lw=1)
    axes[0].fill_between(marks, low, high, color=colour, alpha=0.2, lw=0)
axes[0].set_xscale("symlog", linthresh=50)
axes[0].set_xticks(marks, marks)
axes[0].minorticks_off()
axes[0].set(yscale="log", xlabel="training steps", title=r"$|\psi - \psi_{\mathrm{ideal}}|$")
axes[0].legend(fontsize=6)
words = {marks[0]: "untrained", marks[1]: "early", marks[-1]: "late"}
for ax, key, title in zip(axes[1:], ("step psi", "delta"), (r"$\psi$", r"$\delta$"), strict=True):
    for shift, (mark, word) in zip((-0.15, 0, 0.15), words.items(), strict=True):
        table = np.array(study.data["correlations"]["plane"][key][str(mark)])
        mean, low, high = np.array([interval(column) for column in table.T]).T
        x = np.arange(len(times)) + shift
        ax.errorbar(x, mean, [mean - low, high - mean], fmt="o", ms=3, lw=1, label=word)
    if key in study.data["ideal"]["plane"]:
        ax.plot(study.data["ideal"]["plane"][key], "k_", ms=12, label="ideal")
    ax.axhline(0, color="0.7", lw=0.5, zorder=0)
    ax.set(title=f"{title} and distance, correlation", xlabel="$t$", ylim=(-1, 1))
    ax.set_xticks(range(len(times)), times)
    ax.legend(fontsize=6)
figure.savefig(FIGURES / "04_training.png", dpi=200)
plt.show()
