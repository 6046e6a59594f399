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
from bridges.studies import load_study

HERE = Path(__file__).parent if "__file__" in globals() else Path()
FIGURES = Path(os.environ.get("CPWL_FIGURES", HERE / "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
WIDTH = 7.2  # inches, the width of a page's text
plt.rcParams.update({"font.size": 7, "axes.titlesize": 8, "legend.frameon": False})
LABELS = {"psi": r"local scaling $\psi$", "nu": r"local rank $\nu$",
          "soft": r"soft complexity $\delta_{\mathrm{soft}}$"}  # fmt: skip

study = load_study(HERE / "results" / "trajectories.json")
print(study.table().drop(columns="effect").to_string(index=False))
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
# norm two comparisons disagree on ψ: scaled to one norm it rises, in a regression it falls.

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
axes[0].set(title="step that settles", xlabel="guidance")
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
# The place of `bridges.studies.memorisation`.
