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
# `python -m bridges.studies reward_guidance --full` compares it with other rewards.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from approx.diffusion import ExactReward, guide, reward
from bridges.networks import pipelines
from bridges.networks.diffusion import mnist_decoder

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
        rf"$\rho = {rho:+g}$" + "\n" + rf"$\psi = {psi(z).mean():.1f}$" if rho else
        r"$\rho = 0$" + "\n" + rf"$\psi = {psi(z).mean():.1f}$",
        rotation=0, ha="right", va="center", fontsize=8,
    )  # fmt: skip
figure.subplots_adjust(0.09, 0.005, 0.995, 0.995, 0.03, 0.03)
figure.savefig(FIGURES / "06_guidance.png", dpi=200)
plt.show()
