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
# # Models in training
#
# What happens to local scaling ψ, local rank ν and local complexity δ of a variational autoencoder
# of handwritten digits in training: with noise on its images (Figure 4 of arXiv 2408.08307), when
# its decoder is tuned to other images (Figure 17), and when its training images are more mixed.
# `python -m bridges.studies training --full` trains and measures; its kept results are below.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import approx
from bridges import Monitor
from bridges.networks.pretrained import read_images
from bridges.networks.training import train_vae
from bridges.studies import interval, load_study

HERE = Path(__file__).parent if "__file__" in globals() else Path()
FIGURES = Path(os.environ.get("CPWL_FIGURES", HERE / "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
WIDTH = 7.2  # inches, the width of a page's text
plt.rcParams.update({"font.size": 7, "axes.titlesize": 8, "legend.frameon": False})

# %% [markdown]
# ## A monitor
#
# A measure takes the module and returns numbers. This one encodes the same digits anew at each
# step, and describes the decoder at their codes in white coordinates: those in which the codes of
# the training images have unit covariance. There, ψ does not follow the scale of the latents.

# %%
digits = torch.from_numpy(read_images("mnist", 2000, part="train").pixels)


def measure(vae):
    """Return mean descriptors at the codes of the first 32 digits."""
    with torch.no_grad():
        means, log_variances = vae.encode(digits)
    white = approx.whitening(means, log_variances.exp())
    table = approx.describe(
        white.decoder(vae.decoder), white.coordinates(means[:32]), method="exact",
        neighbourhood=(4, 0.1), seed=0, progress=False,
    )  # fmt: skip
    return {"psi": table.psi.mean(), "nu": table.nu.mean(), "delta": table.delta.mean()}


monitor = Monitor(measure, every=50)
sizes = {"latents": 10, "width": 64, "depth": 3, "batch": 64}
train_vae(digits, steps=200, warmup=0, watch=monitor, progress=False, **sizes)
print(monitor.table.round(2).to_string(index=False))

# %% [markdown]
# ## The claims
#
# Five seeds, each with its own weights, batches, noise and classes. Effects are paired by seed.
# "Before" and "after" are of the decoder's sigmoid, which changes ψ and ν and leaves δ.

# %%
study = load_study(HERE / "results" / "training.json")
print(study.table().to_string(index=False))
assert not study.failed(), "Expected the invariants to hold"
curves, steps, noises = (study.data[name] for name in ("curves", "steps", "noises"))
effects = {claim.claim: claim for claim in study.claims}


def band(ax, x, rows, label, colour):
    """Plot the mean of each row and its 95 % interval over seeds."""
    mean, low, high = np.array([interval(row) for row in rows]).T
    ax.plot(x, mean, "o-", color=colour, ms=2, lw=1, label=label)
    ax.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)


# %% [markdown]
# ### Noise
#
# Each curve is a training, its band the 95 % interval over seeds. Raw ψ is beside the white one.

# %%
SHOWN = {
    "psi": r"raw $\psi$, before the sigmoid", "psi white": r"white $\psi$, before",
    "psi white after": r"white $\psi$, after", "nu white": r"white $\nu$, before",
    "delta": r"raw $\delta$", "delta white": r"white $\delta$",
}  # fmt: skip
figure, axes = plt.subplots(2, 3, figsize=(WIDTH, 4.2), layout="constrained")
for ax, (name, title) in zip(axes.flat, SHOWN.items(), strict=True):
    for number, training in enumerate(curves):
        words = training if "warm" in training else f"noise {training}"
        band(ax, steps, curves[training][name], words, f"C{number}")
    ax.set(title=title, xlabel="step")
    ax.set_xscale("symlog", linthresh=20)
    ax.set_xlim(0, steps[-1])
figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=6, loc="outside upper center")
figure.savefig(FIGURES / "08_noise.png", dpi=200)
plt.show()
