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
# # Descriptors along guided sampling
#
# A pretrained latent diffusion model of handwritten digits draws the same seeds at six strengths of
# guidance. Local scaling ψ, local rank ν and soft complexity δ of its decoder are described at the
# samples x_t and at the estimates of x_0 along the way (Figure 8 of arXiv 2408.08307).
#
# The figures show the kept results at full size; `python -m bridges.studies trajectories --full`
# makes them again.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from approx.diffusion import record
from bridges.networks import pipelines
from bridges.networks.pretrained import read_images
from bridges.studies import interval, load_study

HERE = Path(__file__).parent if "__file__" in globals() else Path()
FIGURES = Path(os.environ.get("CPWL_FIGURES", HERE / "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
WIDTH = 7.2  # inches, the width of a page's text
plt.rcParams.update({"font.size": 7, "axes.titlesize": 8, "legend.frameon": False})
LABELS = {"psi": r"local scaling $\psi$", "nu": r"local rank $\nu$",
          "soft": r"soft complexity $\delta_{\mathrm{soft}}$"}  # fmt: skip

study = load_study(HERE / "results" / "trajectories.json")
print(study.text())
assert not study.failed(), "Expected the invariants to hold"

# %%
figure, axes = plt.subplots(2, 3, figsize=(WIDTH, 4.2), sharex=True, layout="constrained")
colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(study.data["guidances"])))
for column, (name, label) in zip(axes.T, LABELS.items(), strict=True):
    for ax, (place, words) in zip(
        column, (("sample", "at $x_t$"), ("clean", r"at $\hat{x}_0$")), strict=True
    ):
        curves = study.data["curves"][name][place]
        for colour, (guidance, rows) in zip(colours, curves.items(), strict=True):
            mean, low, high = np.array(rows).T[:3]
            ax.plot(study.data["steps"], mean, color=colour, lw=1, label=guidance)
            ax.fill_between(study.data["steps"], low, high, color=colour, alpha=0.2, lw=0)
        ax.set_title(f"{label} {words}")
    column[1].set_xlabel("step")
figure.legend(
    *axes[0, 0].get_legend_handles_labels(), title="guidance", ncols=6, loc="outside upper center"
)
figure.savefig(FIGURES / "05_guidance.png", dpi=200)
plt.show()

# %% [markdown]
# ψ falls with guidance as published, and ν rises, against what is published. The norm of the latent
# more than doubles over the same guidances, and random latents of these norms do the same. At equal
# norm two comparisons disagree on ψ, which is then undecided: scaled to one norm it rises, in a
# regression it falls.

# %% [markdown]
# ## One run
#
# `record` watches the scheduler of any pipeline of diffusers while it draws, and describes its
# decoder on exit. Below, one digit at three strengths of guidance: the decoded estimates of x_0,
# and their ψ.

# %%
pipe = pipelines.mnist_pipeline()
pipe.set_progress_bar_config(disable=True)
noise = torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(3))
figure, axes = plt.subplots(3, 8, figsize=(WIDTH, 3.1), layout="constrained")
for row, guidance in zip(axes, (1, 3, 9), strict=True):
    with record(pipe, every=7, at="clean", seed=0, progress=False) as run:
        pipe([3], guidance, latents=noise)
    with torch.no_grad():
        pictures = [pipe.vae.decode(seen.latents).sample[0, 0] for seen in run.seen]
    for ax, picture, step, psi in zip(row, pictures, run.table.step, run.table.psi, strict=True):
        ax.imshow(picture, cmap="gray_r", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[], xlabel=rf"$\psi = {psi:.0f}$")
        if guidance == 1:
            ax.set_title(f"step {step}")
    row[0].set_ylabel(f"guidance {guidance}")
figure.savefig(FIGURES / "05_steps.png", dpi=200)
plt.show()
print(run.table[["step", "timestep", "sigma", "sample", "at", "norm", "psi", "nu", "density"]])

# %% [markdown]
# The left panel below is Figure 12: when the estimate of x_0 comes within 5 % of the end for good.
# The others are of a diffusion transformer on pixels: ψ, ν and δ of its map from x_t to the
# estimate of x_0, all 784 singular values. ψ of all its steps at once is the sum over the steps,
# to rounding.

# %%
figure, axes = plt.subplots(1, 4, figsize=(WIDTH, 1.9), layout="constrained")
settled = study.data["ends"]["settled"]
axes[0].boxplot(list(settled.values()), tick_labels=list(settled), widths=0.6)
axes[0].set(title="latent model: step", xlabel="guidance")
transformer = study.data["transformer"]
for ax, (name, label) in zip(axes[1:], LABELS.items(), strict=True):
    mean, low, high = np.array(transformer["curves"][name]).T[:3]
    ax.plot(transformer["steps"], mean, "o-", ms=2, lw=1)
    ax.fill_between(transformer["steps"], low, high, alpha=0.2, lw=0)
    ax.set(title=label, xlabel="step")
figure.savefig(FIGURES / "05_transformer.png", dpi=200)
plt.show()

# %% [markdown]
# ## Memorisation
#
# A denoiser of 16,000 parameters is trained on 10, 100, 1,000 and 10,000 digits, and on 5,000 with
# ten planted 500 times. A sample is memorised where the nearest training digit is less than a third
# as far as the second. Do the descriptors tell? `python -m bridges.studies memorisation --full`
# makes the results again.

# %%
memory = load_study(HERE / "results" / "memorisation.json")
print(memory.text())
assert not memory.failed(), "Expected the invariants to hold"
shown = memory.data["shown"]
digits = read_images("mnist", memory.data["size"]["digits"], part="train").pixels

figure, axes = plt.subplots(2 * len(shown), 10, figsize=(WIDTH, 1.42 * len(shown)))
for pair, (training, first) in zip(axes.reshape(-1, 2, 10), shown.items(), strict=True):
    z = torch.tensor(first["latents"]).view(-1, 1, 6, 6)
    with torch.no_grad():
        drawn = pipe.vae.decode(z).sample[:, 0]
    for row, pictures in zip(pair, (drawn, digits[first["nearest"]]), strict=True):
        for ax, picture in zip(row, pictures, strict=True):
            ax.imshow(picture.reshape(28, 28), cmap="gray_r", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
    pair[0, 0].set_ylabel(
        training if training == "planted" else f"{training} digits",
        rotation=0,
        ha="right",
        va="center",
    )
    pair[1, 0].set_ylabel("nearest", rotation=0, ha="right", va="center", color="0.5")
figure.subplots_adjust(0.08, 0.01, 0.99, 0.99, 0.03, 0.06)
figure.savefig(FIGURES / "05_memorised.png", dpi=200)
plt.show()

# %%
for training, values in memory.data["share"].items():
    print(
        f"{training} digits: {np.mean(values):.0%} memorised, from {min(values)} to {max(values)}"
    )
WAYS = {"planted": "within planted", "matched": "all, matched by compressed size"}
figure, ax = plt.subplots(figsize=(WIDTH, 3.4), layout="constrained")
for shift, (way, words) in enumerate(WAYS.items()):
    claims = [c for c in memory.claims if c.effect.endswith(way) and "control" not in c.claim]
    mean, low, high = np.array([interval(c.values) for c in claims]).T
    places = np.arange(len(claims)) + 0.3 * shift
    ax.errorbar(mean + 0.5, places, xerr=[mean - low, high - mean], fmt="o", ms=3, lw=1,
                label=words)  # fmt: skip
ax.set_yticks(np.arange(len(claims)) + 0.15, [c.claim.split(": ")[-1] for c in claims])
ax.axvline(0.5, color="0.7", lw=0.7)
ax.invert_yaxis()
ax.set(xlabel="smaller in memorised ← AUROC, 95 % interval over seeds → larger", xlim=(0, 1))
figure.legend(ncols=2, loc="outside upper right")
figure.savefig(FIGURES / "05_auroc.png", dpi=200)
plt.show()
within = {c.claim: interval(c.values).mean for c in memory.claims if c.effect.endswith("planted")}
assert abs(within["local scaling of the decoder"]) < 0.1  # it does not see what was trained on
assert within["local scaling of the denoiser, t = 0.8"] < -0.4
assert within["baseline: local dimension, t = 0.8"] < -0.4

# %% [markdown]
# Ten digits are memorised, a hundred hardly, and of those planted one sample in five. ψ of the
# denoiser's map from x_t to x_0 tells them: it is smaller where a sample is memorised, also within
# one denoiser (AUROC 0.06 at t = 0.8, which tells as well as 0.94). An estimate of the local
# dimension tells as well (0.04), the norm of what the label changes less (0.86), and the mere norm
# of the latent a little (0.73). ψ, ν and δ of the decoder tell next to nothing (0.44 to 0.58): it
# has not seen the training set of the denoiser. That the estimate of x_0 would settle early in
# memorised samples is undecided within one denoiser. Two of six controls show an effect, δ of an
# untrained decoder (-0.23) among them: matching by size leaves something of what a picture is like.
