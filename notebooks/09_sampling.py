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
# # Samples weighed by local scaling, planes, and the radius of δ
#
# MaGNET weighs latents by exp(ψ), so that their images are uniform on the learned manifold, and
# polarity sampling by exp(ρψ), towards the modes for ρ < 0. `python -m bridges.studies sampling
# --full` asks what that does to digits, `geometry` asks of planes and of δ: kept results are below.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.distributions import Normal, Uniform

from approx import sampling
from bridges.networks import pretrained
from bridges.studies import interval, load_study

HERE = Path(__file__).parent if "__file__" in globals() else Path()
FIGURES = Path(os.environ.get("CPWL_FIGURES", HERE / "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
WIDTH = 7.2  # inches, the width of a page's text
plt.rcParams.update({"font.size": 7, "axes.titlesize": 8, "legend.frameon": False})

# %% [markdown]
# A pool of latents is described once, and serves every ρ. Before its sigmoid, ψ of the MNIST VAE
# has a standard deviation of 1.1 nats, and a thousand latents allow ρ from -1 to 1.

# %%
decoder, prior = pretrained.mnist_vae_decoder(), Normal(torch.zeros(20), 1.0)
pool = sampling.measure(decoder[:-1], prior, 1000, seed=0, progress=False)
samples = {rf"$\rho = {rho}$": sampling.polarity(None, pool, 14, rho, seed=0) for rho in (-1, 0, 1)}
box = Uniform(-(3**0.5) * torch.ones(20), 3**0.5 * torch.ones(20))
samples["MaGNET"] = sampling.magnet(decoder[:-1], box, 14, size=1000, seed=0, progress=False)

figure, axes = plt.subplots(len(samples), 14, figsize=(WIDTH, 2.2))
for row, (name, sample) in zip(axes, samples.items(), strict=True):
    with torch.no_grad():
        pictures = decoder(sample.latents).view(-1, 28, 28)
    for ax, picture in zip(row, pictures, strict=True):
        ax.imshow(picture, cmap="gray_r", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    row[0].set_ylabel(f"{name}\nESS {sample.ess:.0f}", rotation=0, ha="right", va="center")
figure.subplots_adjust(0.09, 0.005, 0.995, 0.995, 0.03, 0.03)
figure.savefig(FIGURES / "09_samples.png", dpi=200)
plt.show()

# %% [markdown]
# ## The claims
#
# On the MNIST VAE, and on a section of the MNIST GAN: 8 latent coordinates, with the other 56 held
# at a draw that differs by seed; each before and after the last activation. Effects are between the
# largest ρ of both signs that no seed refuses, less those of the same weights dealt to other
# latents: few distinct latents change recall by themselves.

# %%
study = load_study(HERE / "results" / "sampling.json")
print(study.table().to_string(index=False))
assert not study.failed(), "Expected the invariants to hold"
rhos, networks, whole = (study.data[name] for name in ("rhos", "networks", "whole"))
for name, both in networks.items():
    print(f"{name}: psi spreads by {np.mean(both['std']):.1f} nats; rho to {both['rho']:g}; MaGNET "
          f"refused for {np.isnan(both['magnet']['recall']).sum()} seeds")  # fmt: skip
ranks = np.array(whole["ranks"])
print(f"whole GAN: rank 64 at {np.mean(ranks == 64):.1%} of latents, median {np.median(ranks):g}, "
      f"psi against rank {np.mean(whole['correlation']):.2f}")  # fmt: skip

# %%
figure, axes = plt.subplots(1, 4, figsize=(WIDTH, 2.4), layout="constrained")
x = np.arange(len(rhos))
for number, (name, both) in enumerate(networks.items()):
    draw, colour = both["polarity"], f"C{number}"
    axes[0].plot(x, np.median(draw["ess"], axis=1), "o-", ms=2, lw=1, color=colour, label=name)
    for ax, quantity in zip(axes[1:], ("precision", "recall", "entropy"), strict=True):
        less = np.subtract(draw[quantity], draw["shuffled"][quantity])
        mean, low, high = np.array([interval(row) for row in less]).T
        ax.plot(x, mean, "o-", ms=2, lw=1, color=colour)
        ax.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
        ax.set(title=f"{quantity}, less shuffled")
axes[0].axhline(50, color="0.5", lw=0.7, ls=":")
axes[0].set(title="effective sample size, median", yscale="log")
for ax in axes:
    ax.set(xlabel=r"$\rho$", xticks=x[::2], xticklabels=[f"{rho:g}" for rho in rhos[::2]])
figure.legend(*axes[0].get_legend_handles_labels(), ncols=4, loc="outside upper center")
figure.savefig(FIGURES / "09_polarity.png", dpi=200)
plt.show()

ours = {(claim.claim.partition(":")[0], claim.effect[:6]): interval(claim.values)
        for claim in study.claims if claim.paper != "none"}  # fmt: skip
assert not any(found.low > 0 for (_, effect), found in ours.items() if effect == "recall")
assert ours["polarity, VAE", "entrop"].low > 0 > ours["polarity, VAE before sigmoid", "entrop"].high
draw = networks["VAE"]["polarity"]
less = np.subtract(draw["entropy"], draw["shuffled"]["entropy"]).mean(axis=1)
assert less[rhos.index(-0.2)] < less[rhos.index(0.2)] < less[rhos.index(0.0)] + 0.01

# %% [markdown]
# The whole GAN cannot be weighed: fewer than 64 units of its second layer are active at nearly
# every latent, and its image consists of pieces of 7 to 64 dimensions. Elsewhere weights are
# refused beyond a ρ of 0.2 to 1. As ρ rises, the section's precision falls, as published, and its
# classes even out; neither survives the correction for the number of claims. Recall rises nowhere.
# On the VAE either sign of ρ makes the classes less even, the negative more; with ψ before the
# sigmoid only the positive does. MaGNET there lowers recall and evenness, against what is published
# for faces.
#
# ## Faces
#
# ψ of the DCGAN of faces: all 100 coordinates, and a section of 8. There are no real faces here,
# and no classifier of them, so that nothing tells precision or recall: variety is that of pixels.

# %%
faces = load_study(HERE / "results" / "faces.json")
print(faces.table().to_string(index=False))
assert not faces.failed(), "Expected the invariants to hold"
whole, section = faces.data["whole"], faces.data["section"]
print(f"whole psi spreads by {np.std(whole['psi']):.0f} nats; {np.size(whole['psi'])} latents are "
      f"worth half at rho = {whole['half'][0]:.3f} and {whole['half'][1]:.3f}")  # fmt: skip
print(f"a section's spreads by {np.mean(section['std']):.1f} nats; rho to {section['rho']:g}; "
      f"MaGNET refused for {np.isnan(section['magnet']['psi']).sum()} seeds")  # fmt: skip
figure, axes = plt.subplots(1, 4, figsize=(WIDTH, 2.1), layout="constrained")
x = np.arange(len(faces.data["rhos"]))
axes[0].plot(x, whole["ess"], "o-", ms=2, lw=1, color="0.5", label="all coordinates")
axes[0].plot(x, np.median(section["polarity"]["ess"], axis=1), "o-", ms=2, lw=1, label="section")
axes[0].axhline(50, color="0.5", lw=0.7, ls=":")
axes[0].set(title="effective sample size", yscale="log", ylim=(0.7, 3e3))  # room for the legend
axes[0].legend(loc="upper left")
for ax, quantity in zip(axes[1:], ("vendi", "distance", "brightness"), strict=True):
    draw = section["polarity"]
    less = np.subtract(draw[quantity], draw["shuffled"][quantity])
    mean, low, high = np.array([interval(row) for row in less]).T
    ax.plot(x, mean, "o-", ms=2, lw=1)
    ax.fill_between(x, low, high, alpha=0.2, lw=0)
    ax.set(title=f"{quantity}, less shuffled")
for ax in axes:
    ax.set(xlabel=r"$\rho$", xticks=x[::2], xticklabels=[f"{r:g}" for r in faces.data["rhos"][::2]])
figure.savefig(FIGURES / "09_faces.png", dpi=200)
plt.show()
assert max(whole["ess"][0], whole["ess"][-1]) < 1.01
assert all(claim.verdict in ("undecided", "no effect, as it should be") for claim in faces.claims)

# %% [markdown]
# ψ of all coordinates spreads by 25 nats. A pool of 60 latents is worth one at |ρ| = 1, and half of
# it at ρ of -0.027 and 0.044: nothing that the papers do can be done with it. A section's ψ spreads
# by 0.8 nats, and |ρ| = 0.5 and MaGNET are refused for no seed. What either does to the variety of
# pixels is undecided: the intervals of all claims have 0 in them. Only the faces themselves, with
# tanh, are weighed.
#
# ## Planes through encoded images, and the radius of δ
#
# Triangles of three encoded images against the congruent triangles around them (Figures 5 and 21 to
# 26 of arXiv 2408.08307): digits in the MNIST autoencoder, crops of photographs in TAEF2. In the
# control the coordinates of all anchors are permuted alike. δ is counted exactly.

# %%
geometry = load_study(HERE / "results" / "geometry.json")
print(geometry.table().to_string(index=False))
assert not geometry.failed(), "Expected the invariants to hold"
radii, planes, cells = (geometry.data[name] for name in ("radii", "planes", "cells"))
figure, axes = plt.subplots(1, 3 + len(cells), figsize=(WIDTH, 2.2), layout="constrained")
for ax, name in zip(axes, ("psi", "nu", "delta"), strict=False):
    for shift, (kind, colour) in enumerate((("encoded", "C0"), ("permuted", "0.6"))):
        both = [planes[decoder][kind][name] for decoder in planes]
        mean, low, high = np.array(
            [interval(np.subtract(row["inside"], row["outside"])) for row in both]
        ).T
        ax.errorbar(np.arange(len(planes)) + 0.2 * shift - 0.1, mean, (mean - low, high - mean),
                    fmt="o", ms=3, color=colour, label=kind)  # fmt: skip
    ax.axhline(0, color="0.7", lw=0.7)
    ax.set(title=rf"$\{name}$, in less out", xlim=(-0.5, len(planes) - 0.5))
    ax.set_xticks(range(len(planes)), ("digits", "TAEF2\n8 x 8", "16 x 16")[: len(planes)])
for ax, (model, by_p) in zip(axes[3:], cells.items(), strict=True):
    for p, counts in by_p.items():
        more = np.array(counts)[0].mean(axis=(1, 2)) - 1  # NaN where not counted
        ax.plot(radii, more, "o-", ms=2, lw=1, label=f"P = {p}")
    ax.set(
        title=rf"$\delta - 1$, {model.replace('gan', 'GAN')}",
        xlabel="r",
        xscale="log",
        yscale="log",
    )
axes[0].set_ylim(top=22)  # room for the legend
for ax in (axes[0], *axes[3:]):
    ax.legend(loc="upper left")
figure.savefig(FIGURES / "09_geometry.png", dpi=200)
plt.show()

# %% [markdown]
# On both decoders ψ and δ are higher inside the hull, and so they are in the permuted planes, whose
# anchors encode no image: no interval of the difference excludes 0. Points inside are nearer to the
# origin. Along one direction knots grow in proportion to r (4 per unit for the toy, 36 to 40 for
# the GAN); along P, cells grow as r^P. At r of 1e-4 and less nearly every latent sees one cell
# alone, and there is nothing to rank. Ranks agree by 0.4 to 0.7 between radii a factor of ten
# apart, by 0.77 and more between draws of B, and between P = 1 and the largest: the radius matters,
# B and P less.
