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
# # Guidance by a reward on local scaling
#
# A pretrained latent diffusion model of handwritten digits is steered by a classifier of noisy
# latents by the local scaling ψ of the clean one (Section 4 of arXiv 2408.08307).
# `python -m bridges.studies reward_guidance --full` compares it with other rewards; its kept
# results are below.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from approx.diffusion import ExactReward, guide, reward
from bridges.networks import pipelines
from bridges.networks.diffusion import mnist_decoder
from bridges.studies import interval, load_study

HERE = Path(__file__).parent if "__file__" in globals() else Path()
FIGURES = Path(os.environ.get("CPWL_FIGURES", HERE / "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
WIDTH = 7.2  # inches, the width of a page's text
plt.rcParams.update({"font.size": 7, "axes.titlesize": 8, "legend.frameon": False})

# %% [markdown]
# ## Ten lines
#
# Draw latents, compute ψ, collect noisy copies, fit a classifier, see how well it tells the bins,
# and guide the pipeline.

# %%
pipe, psi = pipelines.mnist_pipeline(), ExactReward(mnist_decoder())
pipe.set_progress_bar_config(disable=True)
digits = torch.arange(300) % 10
noise = torch.randn(300, 1, 6, 6, generator=torch.Generator().manual_seed(7))
codes = pipe(digits, num_inference_steps=10, latents=noise, output_type="latent").images
found = reward.collect(codes, psi(codes), pipe.scheduler, binning="quantile", generator=0)
fitted = reward.fit(found, epochs=10, width=32, batch=64, progress=False)
print(reward.report(fitted, found))
with guide(pipe, fitted, rho=1.0):
    raised = pipe(digits[:10], latents=noise[:10], output_type="latent").images
plain = pipe(digits[:10], latents=noise[:10], output_type="latent").images
print(f"psi {psi(plain).mean():.2f}, guided {psi(raised).mean():.2f}")

# %%
strengths = (-2.0, -1.0, 0.0, 1.0, 2.0)
figure, axes = plt.subplots(len(strengths), 10, figsize=(WIDTH, 3.75))
for row, rho in zip(axes, strengths, strict=True):
    with guide(pipe, fitted, rho):
        z = pipe(digits[:10], latents=noise[:10], output_type="latent").images
    with torch.no_grad():
        pictures = pipe.vae.decode(z).sample[:, 0]
    for ax, picture in zip(row, pictures, strict=True):
        ax.imshow(picture, cmap="gray_r", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    row[0].set_ylabel(
        (rf"$\rho = {rho:+g}$" if rho else r"$\rho = 0$") + f"\nmean $\\psi$ {psi(z).mean():.1f}",
        rotation=0, ha="right", va="center", fontsize=8,
    )  # fmt: skip
figure.subplots_adjust(0.09, 0.005, 0.995, 0.995, 0.03, 0.03)
figure.savefig(FIGURES / "06_guidance.png", dpi=200)
plt.show()

# %% [markdown]
# ## The claims
#
# Four rewards: classifiers of ψ in uniform bins, as published, and in quantile bins; the gradient
# of ψ itself, which is said to be too expensive; and a sketch of log |J|²_F. Further classifiers
# are fitted to ν, to δ, and to two placebos, ink and edge energy, each also to the negative.
#
# Gradients of ψ are some 25 times as long as those of a classifier's log p. The last two rewards
# are divided by 25, and the change of the prediction is bounded to 0.3 of it (`clip`), so that one
# ρ means alike for all. They guide ten digits a seed, the classifiers a hundred.

# %%
study = load_study(HERE / "results" / "reward_guidance.json")
print(study.text())
assert not study.failed(), "Expected the invariants to hold"

# %%
WORDS = {
    "uniform": "classifier, uniform bins", "quantile": "classifier, quantile bins",
    "exact": r"gradient of $\psi$", "sketch": r"sketch of log $|J|_F^2$",
}  # fmt: skip
rewards, rhos = study.data["rewards"], study.data["rhos"]


def band(ax, x, rows, label, colour):
    """Plot the mean of each row and its 95 % interval over seeds."""
    mean, low, high = np.array([interval(row) for row in rows]).T
    ax.plot(x, mean, "o-", color=colour, ms=2, lw=1, label=label)
    ax.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)


figure, axes = plt.subplots(2, 3, figsize=(WIDTH, 4.2), layout="constrained")
for number, (kind, words) in enumerate(WORDS.items()):
    band(axes[0, 0], rhos, rewards[kind]["psi"], words, f"C{number}")
    if "vendi" in rewards[kind]:
        band(axes[0, 1], rhos, rewards[kind]["kept"], words, f"C{number}")
        band(axes[0, 2], rhos, rewards[kind]["vendi"], words, f"C{number}")
        band(axes[1, 0], rhos, rewards[kind]["recall"], words, f"C{number}")
    if kind in study.data["cosines"]:
        band(axes[1, 1], study.data["sigmas"], study.data["cosines"][kind], words, f"C{number}")
titles = (r"change of $\psi$", "digits kept (LeNet-5)", "Vendi score in a digit", "recall")
for ax, title in zip(axes.flat, titles, strict=False):
    ax.set(title=title, xlabel=r"$\rho$")
axes[1, 1].axhline(0, color="0.7", lw=0.7)
axes[1, 1].set(title=r"cosine with the gradient of $\psi$", xlabel=r"$\sigma$")
axes[1, 1].invert_xaxis()  # in the order of sampling
names = {"psi": r"$\psi$", "nu": r"$\nu$", "soft": r"$\delta$", "ink": "ink", "edge": "edges"}
for place, both in enumerate(study.data["fitted"].values()):
    for shift, (sign, colour) in enumerate((("fitted", "C1"), ("flipped", "0.6"))):
        mean, low, high = interval(both[sign]["psi"])
        axes[1, 2].bar(place + 0.4 * shift - 0.2, mean, 0.38, color=colour,
                       label=f"{sign}" if place == 0 else None,
                       yerr=[[mean - low], [high - mean]], error_kw={"lw": 0.8})  # fmt: skip
axes[1, 2].set(title=rf"change of $\psi$ at $\rho = {rhos[-1]:g}$", xlabel="fitted to")
axes[1, 2].set_xticks(range(len(names)), names.values())
axes[1, 2].axhline(0, color="0.7", lw=0.7)
axes[1, 2].set_ylim(top=7.5)
axes[1, 2].legend(ncols=2, loc="upper right")
figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=4, loc="outside upper center")
figure.savefig(FIGURES / "06_rewards.png", dpi=200)
plt.show()

change = {name: interval(both["fitted"]["psi"]).mean for name, both in study.data["fitted"].items()}
assert change["psi"] > change["ink"] > change["psi"] / 2
vendi = np.mean(rewards["quantile"]["vendi"], axis=1)
assert vendi[0] > vendi[-1] > vendi[rhos.index(0.0)]

# %% [markdown]
# Every reward on ψ moves it in the direction that is asked for, as published. Classifiers do it
# although their gradients hardly point as that of ψ does (cosine 0.05). Variety within a digit does
# not rise with ρ: guidance of either sign makes digits more various, and the negative one more.
# The two rewards by gradients keep all their digits. Two
# thirds of what the reward does to ψ a classifier of mere ink does as well: on this decoder, ψ and
# ink go together.
