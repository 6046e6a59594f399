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
# # How good is the approximation?
#
# `approx` estimates local scaling ψ, local rank ν and local complexity δ of decoders of any size
# from a few Jacobian products. `cpwl` knows all three exactly, on networks that are small enough
# to enumerate. Here the one is held against the other:
#
# 0. which ψ is which: three numbers of that name on one plane;
# 1. everything that `bridges.validate` compares, on the toy generator and a convolutional decoder;
# 2. what the published projection on k = 120 random directions measures: a Frobenius norm and an
#    effective rank, by formula, theory and measurement on spectra of all kinds;
# 3. when a knot count in float32 is noise;
# 4. what to use when.
#
# `CPWL_SMALL=1` runs a smaller version of everything.

# %%
import math
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

import approx
import bridges
import cpwl
from bridges.networks import pretrained, toys

SMALL = bool(os.environ.get("CPWL_SMALL"))
HERE = Path(__file__).parent if "__file__" in globals() else Path()
FIGURES = Path(os.environ.get("CPWL_FIGURES", HERE / "figures"))
FIGURES.mkdir(exist_ok=True)
torch.set_num_threads(2)
plt.switch_backend(plt.get_backend())  # loads it now, and so shows the figures of reports
plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def save(figure, name):
    """Write a figure of this notebook."""
    figure.savefig(FIGURES / f"02_{name}.png", dpi=130)


# %% [markdown]
# ## 0. Which ψ?
#
# Three numbers are called local scaling, and none can stand for another:
#
# - ψ **in a slice**: the volume change of the map restricted to the plane on which it is drawn, two
#   singular values. Partition plots show it (`wrt="slice"`);
# - **ψ**: the log-volume change of the whole Jacobian, all min(d, D) singular values. That is what
#   `approx.describe` gives wherever min(d, D) <= 120, and `cpwl` with `wrt="latent"`;
# - **ψ_W**: that of W J for k random output directions W, the published projection. It is what
#   `describe` predicts for larger decoders, where the whole is out of reach.
#
# The MNIST VAE's decoder (20 latent coordinates, 784 pixels, before the sigmoid) on the plane
# through the codes of three digits:

# %%
vae = pretrained.mnist_vae_decoder()[:-1]  # without the sigmoid
digits = pretrained.first_of(pretrained.read_images("mnist"), (0, 4, 7))
anchors = pretrained.codes(digits)
grid = {"resolution": 16 if SMALL else 96, "neighbourhood": None, "seed": 0, "progress": False}
whole = approx.field(vae, anchors, **grid)
projected = approx.field(vae, anchors, method="paper", **grid)
plane = cpwl.Slice.through(*anchors)
corners = [[float(axis.min()), float(axis.max())] for axis in (whole.u, whole.v)]
partition = cpwl.subdivide(
    cpwl.Network.from_torch(vae, (20,)), plane.box(*np.array(corners).T), progress=False
)
pixels = np.stack(np.meshgrid(whole.u, whole.v), axis=-1).reshape(-1, 2)
cells = cpwl.locate(partition, pixels)
in_slice = cpwl.local_scaling(cpwl.spectrum(partition, np.unique(cells)))
in_slice = in_slice[np.unique(cells, return_inverse=True)[1]].reshape(whole.psi.shape)
exact = cpwl.local_scaling(cpwl.spectrum(partition, cells[:1], wrt="latent"))
print(whole.psi.definition, projected.psi.definition, sep="\n")

# %%
shown = {
    r"$\psi$ in the slice, 2 singular values": in_slice,
    r"$\psi$, all 20": whole.psi.values,
    r"$\psi_W$, of 20 random output directions": projected.psi.values,
}
figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
extent = [float(x) for axis in (whole.u, whole.v) for x in (axis.min(), axis.max())]
for ax, letter, (name, values) in zip(axes, "abc", shown.items(), strict=True):
    image = ax.imshow(values, origin="lower", extent=extent)
    figure.colorbar(image, ax=ax, shrink=0.85)
    ax.set_title(f"{letter}  {name}", loc="left", fontsize=9)
    ax.set(xlabel="$u$", ylabel="$v$")
    ax.plot(whole.anchor_u, whole.anchor_v, "o", color="white", mec="black", ms=5)
    for u, v, digit in zip(whole.anchor_u, whole.anchor_v, "047", strict=True):
        ax.annotate(digit, (u, v), xytext=(5, 4), textcoords="offset points", color="white")
save(figure, "which_psi")
plt.show()
for name, values in shown.items():
    print(f"{name:45} {np.median(values):8.2f}  ({values.min():.2f} to {values.max():.2f})")

# %% [markdown]
# The levels are tens of nats apart, and so are the maps: the projection W mixes each singular value
# with all others, so that its levels are others and it varies elsewhere. Columns, axis labels and
# files say which one they hold (`definition`), and tables of two definitions are not joined.

# %%
inside = (projected.psi_low <= whole.psi) & (whole.psi <= projected.psi_high)
assert abs(exact[0] - whole.psi.values.ravel()[0]) < 1e-3, "psi is the whole Jacobian's"
assert not inside.any(), "the interval of psi_W is one for psi_W"
medians = sorted(np.median(values) for values in shown.values())
assert min(np.diff(medians)) > 5, "the three should be far apart"

# %% [markdown]
# ## 1. The report
#
# `bridges.validate` enumerates the cells of a network and compares with them, cell by cell or
# latent by latent: autograd's Jacobian and A_w; ψ and ν of every method; knots counted by either
# method in either precision; densities, entropies and samples with Monte Carlo. A row either has
# limits, from theory or from the error that the estimator states itself, and then it agrees or
# not; or it is only reported. `require()` raises if a row disagrees.

# %%
few = {"latents": 8, "seeds": 16, "samples": 50_000, "cells": 200} if SMALL else {}
toy = toys.toy("generator")
report = bridges.validate(toy.module, toy.domain, name=toy.name, progress=False, **few)
report.require()
print(report)

# %%
report.plot("spectrum")

# %%
report.plot("complexity")

# %%
report.plot("density")

# %% [markdown]
# A decoder with 128 latent coordinates leaves the methods more room: `predict` makes 16 products
# where `paper` makes k, and the neighbourhood of δ can have P = 4 directions.

# %%
toy = toys.toy("conv")
if SMALL:
    few = {"cells": 20, "latents": 4, "seeds": 8, "samples": 2_000}
    few |= {"directions": (1,), "radii": (1e-3,)}
conv = bridges.validate(toy.module, toy.domain, name=toy.name, progress=False, **few)
conv.require()
print(conv)

# %%
spectra = conv.section("spectrum").result
methods = pd.DataFrame(
    {
        "k": runs.k,
        "products": runs.products,
        "psi": runs.psi.mean(),
        "nu": runs.nu.mean(),
        "stated error of psi": runs.psi_stderr.mean(),
    }
    for runs in spectra.runs.values()
).set_index(pd.Index(spectra.runs, name="method"))
methods.round(3)

# %% [markdown]
# `predict` estimates what `paper` measures, from fewer products. That quantity is neither ψ of the
# whole Jacobian, which `exact` has, nor that of its k largest singular values, which `topk` has. It
# follows from two numbers of the Jacobian, its Frobenius norm and its effective rank. The next
# section says how; here is its mean at each latent beside that formula.

# %%
k, sigma = spectra.k, spectra.singular_values
r_eff = (sigma**2).sum(axis=1) ** 2 / (sigma**4).sum(axis=1)
outputs = toy.module(torch.zeros(1, *toy.domain.slice.latent_shape)).numel()
size = np.linalg.norm(sigma, axis=1) / math.sqrt(outputs)
formula = k * np.log(size) - k**2 / (4 * r_eff)
projected = spectra.laws[k].psi.mean(axis=0)
print(f"rank correlation {spearmanr(projected, formula).statistic:.3f} over latents")
print(
    f"largest difference {np.abs(projected - formula).max():.3f} of {np.abs(projected).mean():.1f}"
)

# %%
assert methods.loc["predict", "products"] < methods.loc["paper", "products"] / 1.4
assert not spectra.runs["predict"].fell_back.any(), "predict had to make all products"
assert abs(methods.loc["predict", "psi"] - methods.loc["paper", "psi"]) < 1
assert methods.loc["topk", "psi"] - methods.loc["paper", "psi"] > 10, "these should be far apart"
assert np.abs(projected / formula - 1).max() < 0.02, "psi_W is not what the formula says"

# %% [markdown]
# ## 2. What a projection on k random directions measures
#
# The published recipe takes the singular values of W J, where the k = 120 rows of W are random and
# orthonormal in the output space of D dimensions, and reports their ψ_W = Σ log σ_i and ν_W. The k
# rows see every singular value of J a little, instead of the k largest fully: W J (W J)ᵀ is a k ×
# k matrix close to ‖J‖²_F / D times the identity, and its eigenvalues fluctuate about that as
# those of a Wishart matrix of r_eff = (Σσ²)² / Σσ⁴ degrees of freedom. To leading order in k /
# r_eff
#
# $$ \psi_W \simeq k \log\frac{\|J\|_F}{\sqrt D} - \frac{k^2}{4\,r_\mathrm{eff}}, \qquad
#    \nu_W \simeq k \exp\!\Big(-\frac{k}{8\,r_\mathrm{eff}}\Big). $$
#
# So ψ_W says how large J is in all, and ν_W how many directions share it; neither knows the k
# largest singular values. Linear maps with prescribed singular values show how well that holds and
# where it ends. Their true top-k values are known, the mean of ψ_W is measured over independent W,
# and the default method of `approx` predicts it from 16 products, or from 50 where those are too
# few.

# %%
COLUMNS, ROWS, K, DRAWS = (384, 1536, 90, 8) if SMALL else (1024, 4096, 120, 16)


def linear_map(values, rows, seed=0):
    """Return a linear map, without bias, that has these singular values."""
    generator = torch.Generator().manual_seed(seed)
    d = len(values)
    draw = [torch.randn(n, d, generator=generator, dtype=torch.float64) for n in (rows, d)]
    left, right = (torch.linalg.qr(g)[0] for g in draw)
    module = torch.nn.Linear(d, rows, bias=False, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(left * torch.as_tensor(values) @ right.T)
    return module


def psi_nu(values):
    """Return ψ and ν of positive singular values, by their definition."""
    share = values / values.sum()
    return np.log(values).sum(), np.exp(-(share * np.log(share)).sum())


j = np.arange(1, COLUMNS + 1)
normal = np.sort(np.random.default_rng(0).standard_normal(COLUMNS))[::-1]
given = {
    "flat": np.ones(COLUMNS),
    "lognormal, 0.25": np.exp(0.25 * normal),
    "power 0.1": j**-0.1,
    "power 0.2": j**-0.2,
    "lognormal, 0.5": np.exp(0.5 * normal),
    "power 0.35": j**-0.35,
    "exponential": np.exp(-4 * j / COLUMNS),
    "one outlier, x 8": np.r_[8.0, np.ones(COLUMNS - 1)],
    "power 0.5": j**-0.5,
    "power 1": 1.0 / j,
}
table = []
for name, sigma in given.items():
    operator = approx.JacobianOperator(
        linear_map(sigma, ROWS), torch.zeros(1, COLUMNS, dtype=torch.float64)
    )
    draws = [approx.spectrum(operator, method="paper", k=K, generator=i) for i in range(DRAWS)]
    predicted = [approx.spectrum(operator, k=K, generator=100 + i) for i in range(DRAWS)]
    r_eff = (sigma**2).sum() ** 2 / (sigma**4).sum()
    psi_top, nu_top = psi_nu(sigma[:K])
    table.append(
        {
            "spectrum": name,
            "k / r_eff": K / r_eff,
            "psi of the top k": psi_top,
            "psi_W": np.mean([float(d.psi) for d in draws]),
            "psi_W, theory": K * math.log(np.linalg.norm(sigma) / math.sqrt(ROWS))
            - K**2 / (4 * r_eff),
            "psi_W, predicted": np.mean([float(p.psi) for p in predicted]),
            "psi, stated error": np.mean([float(p.psi_stderr) for p in predicted]),
            "nu of the top k": nu_top,
            "nu_W": np.mean([float(d.nu) for d in draws]),
            "nu_W, theory": K * math.exp(-K / (8 * r_eff)),
            "nu_W, predicted": np.mean([float(p.nu) for p in predicted]),
            "nu, stated error": np.mean([float(p.nu_stderr) for p in predicted]),
            "predicted": not any(bool(p.fell_back) for p in predicted),
        }
    )
projection = pd.DataFrame(table).set_index("spectrum")
projection.round(3)

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
safe = projection["k / r_eff"] < 0.5
true = {"marker": "s", "color": "#D55E00", "mfc": "none", "ls": ""}
theory = {"marker": "o", "color": "#0072B2", "ls": ""}
shipped = {"marker": "+", "color": "k", "ms": 8, "ls": ""}
measured = projection["psi_W"]
axes[0].plot(measured, projection["psi of the top k"], label="true, k largest", **true)
axes[0].plot(measured[safe], projection["psi_W, theory"][safe], label="theory", **theory)
beyond = {**theory, "mfc": "none", "label": "theory where k / r_eff > 0.5"}
axes[0].plot(measured[~safe], projection["psi_W, theory"][~safe], **beyond)
axes[0].plot(measured, projection["psi_W, predicted"], label="`predict` as shipped", **shipped)
axes[0].axline((0, 0), slope=1, color="0.7", lw=1, zorder=0)
low, high = measured.min(), measured.max()
axes[0].set(ylim=(low - 0.4 * (high - low), high + 0.9 * (high - low)))
axes[0].set(xlabel=r"$\psi_W$, measured", ylabel=r"$\psi$")
axes[0].legend(frameon=False, loc="upper left", fontsize=8)

share = projection["k / r_eff"]
grid = np.logspace(math.log10(share.min()), math.log10(share.max()))
axes[1].semilogx(grid, np.exp(-grid / 8), color="#0072B2", lw=1)
axes[1].semilogx(share, projection["nu of the top k"] / K, **true)
axes[1].semilogx(share, projection["nu_W"] / K, "o", color="0.6", ms=8, label="measured")
axes[1].semilogx(share, projection["nu_W, predicted"] / K, **shipped)
axes[1].set(xlabel="k / r_eff", ylabel=r"$\nu / k$")
axes[1].legend(frameon=False, loc="lower left", fontsize=8)

for name, style in {"theory": theory, "predicted": shipped}.items():
    error = (projection[f"psi_W, {name}"] / projection["psi_W"] - 1).abs()
    axes[2].loglog(share, error, **style)
axes[2].axvline(0.5, color="0.7", lw=1)
axes[2].set(xlabel="k / r_eff", ylabel=r"relative error of $\psi_W$")
for letter, ax in zip("abc", axes, strict=True):
    ax.set_title(letter, loc="left", fontweight="bold")
save(figure, "projection")
plt.show()

# %% [markdown]
# Where k / r_eff < 0.5 the leading order is within a few per cent; the shipped prediction, which
# carries the expansion further, is within the noise of the measurement. Beyond, the expansion is
# worthless: `predict` notices, takes more products up to 0.8, and makes all k above, or where one
# outlier decides. (Close to these limits its own estimate of r_eff decides, which selects among its
# results: at 0.52 one outlier moves ν_W by a standard error.) ψ of the k largest singular values is
# another quantity altogether, by tens to hundreds of nats.

# %%
inside = projection[safe]
assert len(inside) >= 4
assert (inside["psi_W, theory"] / inside["psi_W"] - 1).abs().max() < 0.03
assert (inside["nu_W, theory"] / inside["nu_W"] - 1).abs().max() < 0.01
# where k / r_eff is near 0.5 an estimate decides how many products are made, and that selects
clear = projection[(projection["k / r_eff"] - 0.5).abs() > 0.1]
for word in ("psi", "nu"):
    off = (clear[f"{word}_W, predicted"] - clear[f"{word}_W"]).abs()
    assert (off < 4 * clear[f"{word}, stated error"] / math.sqrt(DRAWS)).all(), word
assert (projection["psi of the top k"] - projection["psi_W"]).min() > 20
assert not projection["predicted"][projection["k / r_eff"] > 1].any()

# %% [markdown]
# ## 3. When a knot count in float32 is noise
#
# The number of knots within r of a latent falls in proportion to r, and the number of units whose
# sign float32 cannot tell does not: it is a property of the network and its rounding. Below the
# radius at which the two cross, a count in float32 is noise, whichever way it is made.
# `approx.knots` says so: `undecided` is that number. TAEF2 is a pretrained decoder of 32-channel
# latents; the latents are photographs.

# %%
SIDE, PHOTOGRAPHS = (4, 2) if SMALL else (8, 4)
RADII = np.logspace(-6, -2, 5) if SMALL else np.logspace(-7, -2, 11)
decoder = pretrained.taef2_decoder()
latents = pretrained.photograph_latents(SIDE)[:PHOTOGRAPHS]
directions = approx.neighbourhood(latents.shape[1:], 4)
single = {"dtype": torch.float32, "directions": directions}
double = {"dtype": torch.float64, "directions": directions}
table = []
for radius in RADII:
    exact = approx.knots(decoder, latents, radius=radius, **double)
    jvp = approx.knots(decoder, latents, radius=radius, **single)
    hull = approx.knots(decoder, latents, radius=radius, method="hull", **single)
    hull64 = approx.knots(decoder, latents, radius=radius, method="hull", **double)
    moved = latents + radius * directions[0].reshape(latents.shape[1:]).float()
    table.append(
        {
            "radius": radius,
            "float64": float(exact.count.double().mean()),
            "float64, hull": float(hull64.count.double().mean()),
            "float32": float(jvp.count.double().mean()),
            "float32, hull": float(hull.count.double().mean()),
            "undecided": float(jvp.undecided.double().mean()),
            "wrong": float((jvp.count - exact.count).abs().double().mean()),
            "wrong, hull": float((hull.count - exact.count).abs().double().mean()),
            "coordinates that move": float((moved != latents).double().mean()),
            "density x r": float(exact.density.mean() * radius),
        }
    )
knots = pd.DataFrame(table).set_index("radius")
knots.round(3)

# %%
floor = knots["undecided"].iloc[0]
crossing = floor / (knots["density x r"] / knots.index).iloc[-1]
figure, ax = plt.subplots(figsize=(5.6, 3.8), layout="constrained")
ax.plot(knots.index, knots["density x r"], color="0.6", lw=1, label="density x r")
for name, style in {
    "float64": {"marker": "o", "color": "#0072B2"},
    "float32": {"marker": "x", "color": "#D55E00"},
    "float32, hull": {"marker": "+", "color": "#CC79A7"},
}.items():
    ax.plot(knots.index, knots[name], ls="", label=name, **style)
ax.plot(knots.index, knots["undecided"], "--", color="#D55E00", label="undecided in float32")
ax.axvspan(knots.index[0], crossing, color="0.93", zorder=0)
ax.text(crossing * 0.8, 300, "noise", ha="right", color="0.4")
ax.set_xscale("log")
ax.set_yscale("symlog", linthresh=0.25)
ax.set(xlabel="radius r", ylabel="knots within r, mean over latents", ylim=(-0.05, None))
ax.legend(frameon=False, fontsize=8, loc="upper left")
save(figure, "float32_knots")
plt.show()
print(f"float32 leaves {floor:.1f} units of a latent undecided: noise below r = {crossing:.1e}")

# %%
assert (knots["float64"] - knots["float64, hull"]).abs().max() <= 0.02 * knots["float64"].max()
assert (knots["wrong"] <= knots["undecided"]).all(), "float32 is further off than it says"
assert crossing > 1e-5, "the published radius would be large enough for float32"
small = knots[knots.index < 1.1e-5]
assert (small["float64"] < small["undecided"] / 4).all(), "more knots than undecided units"
assert abs(knots["density x r"].iloc[-1] / knots["float64"].iloc[-1] - 1) < 0.2
assert knots["coordinates that move"].iloc[0] < 0.8, "z + r b is z, in many coordinates"

# %% [markdown]
# ## 4. What to use when
#
# - **A network that can be enumerated on a slice**, some 10⁵ units: `cpwl`. Everything is exact.
# - **The log-volume change**: the default, the whole Jacobian wherever min(d, D) <= 120, and
#   `method="exact"` up to some thousand.
# - **ψ and ν as they are published**: `method="predict"`, the same quantity from 16 products, with
#   an interval; where k is too large for that it makes all k products by itself. They say how much
#   the decoder stretches in all, and how many directions share it (sections 1 and 2).
# - **The volume change along the k strongest directions**: `method="topk"`. ψ_W is off that by tens
#   to hundreds of nats (section 2).
# - **Knots within a small r**: `dtype=torch.float64`; float32 decides only above its noise (section
#   3). To compare latents, `Knots.density`, knots per unit of r, which float32 has.
# - **Cells, not knots**: `cpwl.local_complexity`. Zaslavsky's bound on them holds as long as no
#   knot folds in the neighbourhood (section 1).
