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

# %%
pipe = pipelines.mnist_pipeline()
pipe.set_progress_bar_config(disable=True)
shown, samples = range(0, 50, 7), []


def keep(pipe, number, time, tensors):
    """Decode the sample behind some steps."""
    if number in shown:
        samples.append(pipe.vae.decode(tensors["latents"]).sample[:, 0])
    return tensors


noise = torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(3))
figure, axes = plt.subplots(3, len(shown), figsize=(WIDTH, 2.9), layout="constrained")
for row, guidance in zip(axes, (1, 3, 9), strict=True):
    samples.clear()
    pipe([3], guidance, latents=noise, callback_on_step_end=keep)
    for ax, picture, step in zip(row, samples, shown, strict=True):
        ax.imshow(picture[0], cmap="gray_r", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[], title=f"step {step + 1}" if guidance == 1 else "")
    row[0].set_ylabel(f"guidance {guidance}")
figure.savefig(FIGURES / "05_steps.png", dpi=200)
plt.show()

# %% [markdown]
# ## Memorisation
#
# The place of `bridges.studies.memorisation`.
