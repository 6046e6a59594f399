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
# # Analytic partitions
#
# A piecewise-linear generator G cuts its latent space into convex cells, and on each of them it is
# one affine map, G(z) = A z + b. Everything that this notebook shows is computed from those cells
# and maps, none of it is sampled on a grid or fitted:
#
# - **local scaling** ψ, the sum of the logarithms of A's singular values: how much G stretches;
# - **local rank** ν, the exponential of the entropy of the singular values' shares: into how many
#   directions;
# - **local complexity** δ, the number of cells that meet a small neighbourhood.
#
# 1. the toy generator R² → R³: partition and image (after Fig. 2 of Humayun et al., *What secrets
#    do your manifolds hold?*);
# 2. slices of real networks: an MNIST GAN, DCGAN faces, ACAS Xu;
# 3. which knots come from which layer;
# 4. how ψ, ν and the size of cells are related, on five networks;
# 5. the density of generated samples is proportional to exp(-ψ);
# 6. samples that are uniform on the learned manifold.
#
# Every claim is asserted by the cell that follows its figure. `CPWL_SMALL=1` runs smaller slices
# and fewer samples.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import shapely
import torch
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from scipy.stats import chi2, gamma, gaussian_kde, kstest, spearmanr
from torch import nn

import cpwl
from bridges import data, pretrained
from bridges.toys import RADIUS, bumps, toy_generator
from cpwl import plot

SMALL = os.environ.get("CPWL_SMALL", "0") != "0"
HERE = Path(__file__).parent if "__file__" in globals() else Path()
FIGURES = Path(os.environ.get("CPWL_FIGURES", HERE / "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)

WIDTH = 7.2  # inches, the width of a page's text
LAYERS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000"]  # Okabe and Ito's
plt.rcParams.update({
    "font.size": 7, "axes.titlesize": 8, "axes.labelsize": 7, "legend.fontsize": 6.5,
    "xtick.labelsize": 6, "ytick.labelsize": 6, "axes.linewidth": 0.6, "legend.frameon": False,
    "figure.constrained_layout.use": True,
})  # fmt: skip


def save(figure, name):
    """Write a figure, and show it where there is somewhere to show it."""
    figure.savefig(FIGURES / f"01_{name}.png", dpi=160)
    if plt.get_backend().lower() != "agg":
        plt.show()
    plt.close(figure)


def title(ax, letter, text):
    """Put the panel's letter and title over it."""
    ax.set_title(text)
    ax.set_title(letter, loc="left", fontweight="bold")


def below(figure, ax, label):
    """Put a colour bar for the first thing drawn under the axes."""
    bar = figure.colorbar(ax.collections[0], ax=ax, location="bottom", pad=0.02, shrink=0.8)
    bar.set_label(label)


def pictures(panels, names, images):
    """Show decoded images, light on dark or in colour, in the panels of these names."""
    for name, image in zip(names, images, strict=True):
        panels[name].imshow(image, cmap="gray_r")
        panels[name].set(xticks=[], yticks=[], ylabel=name)


def correlation(a, b):
    """Return Spearman's rank correlation."""
    return float(spearmanr(a, b).statistic)


def knots(partition):
    """Return the cells' common sides (K, 2, 2), the unit of each, and its layer from 0."""
    inner = np.flatnonzero(partition.facet_unit >= 0)
    unit = partition.facet_unit[inner]
    layer = np.searchsorted(partition.network.stage_offsets, unit, side="right") - 1
    return partition.points[partition.facet_points[inner]], unit, layer


def through(latents, zoom):
    """Return a square of the plane through three latents, `zoom` times as wide as their triangle."""
    plane = cpwl.Slice.through(*latents)
    middle = plane.anchors.mean(axis=0)
    half = zoom * np.ptp(plane.anchors, axis=0).max() / 2
    return plane.box(middle - half, middle + half)


def normal(*shape, seed=0):
    """Return three standard normal latents; at the small size closer together."""
    latents = torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed))
    middle = latents.mean(dim=0)
    return middle + (0.3 if SMALL else 1.0) * (latents - middle)


# %% [markdown]
# ## 1. The toy generator: partition and image
#
# A ReLU network with three hidden layers of width 20 learns the graph (z₁, z₂, f(z)) of five bumps.

# %%
toy = toy_generator()
network = cpwl.Network.from_torch(toy, (2,))
square = cpwl.box([-RADIUS, -RADIUS], [RADIUS, RADIUS])
partition = cpwl.subdivide(network, square, progress=False)
spectrum = cpwl.spectrum(partition)
psi, nu = cpwl.local_scaling(spectrum), cpwl.local_rank(spectrum)
print(partition)
print(cpwl.certify(partition, progress=False))

# %% [markdown]
# δ of a cell is the number of cells that meet the diamond |x - c|₁ < r around its centroid c. With
# all polygons at hand that is one query of a search tree; `cpwl.local_complexity` enumerates one
# diamond from scratch, in any latent space.

# %%
r = 0.5
reach = RADIUS + r  # diamonds at the border look beyond it
wider = cpwl.subdivide(network, cpwl.box([-reach] * 2, [reach] * 2), progress=False)
centroids = cpwl.centroids(partition)
diamonds = shapely.polygons(centroids[:, None] + r * np.array([[1, 0], [0, 1], [-1, 0], [0, -1]]))
met, _ = shapely.STRtree(cpwl.polygons(wider)).query(diamonds, predicate="intersects")
delta = np.bincount(met, minlength=partition.num_cells)

# the density at generated samples, from the distance of the k-th nearest one: ψ does not enter
rng = np.random.default_rng(0)
n, k = 20_000, 100
latents = rng.uniform(-RADIUS, RADIUS, (n, 2))
samples = network(latents).numpy()
radius = cKDTree(samples).query(samples, k + 1)[0][:, k]
estimate = k / (n * np.pi * radius**2)
of_sample = cpwl.locate(partition, latents)

# %%
figure = plt.figure(figsize=(WIDTH, 3.5))
tops = figure.subplots(2, 4)[0]
bottoms = []
for k, (name, values, cmap) in enumerate([
    (plot.LABELS["psi"], psi, "viridis"),
    (plot.LABELS["nu"], nu, "cividis"),
    (rf"local complexity $\delta$, $r={r}$", delta, "inferno"),
]):  # fmt: skip
    limits = np.quantile(values[of_sample], [0.01, 0.99])
    look = {"cmap": cmap, "limits": limits, "colorbar": False}
    plot.partition(partition, values, ax=tops[k], knots=False, **look)
    tops[k].add_collection(LineCollection(knots(partition)[0], colors="k", linewidths=0.15))
    figure.axes[4].remove()
    space = figure.add_subplot(2, 4, 5 + k, projection="3d")
    plot.image(partition, values, ax=space, edges=False, **look)
    below(figure, space, name)
    bottoms.append(space)
shown = slice(None, 5000)
look = {"c": 1e3 * estimate[shown], "cmap": "cividis", "s": 1, "linewidths": 0}
look["vmin"], look["vmax"] = np.quantile(look["c"], [0.01, 0.99])
tops[3].scatter(*latents[shown].T, **look)
tops[3].set(xlim=(-RADIUS, RADIUS), ylim=(-RADIUS, RADIUS), aspect="equal")
figure.axes[4].remove()
space = figure.add_subplot(2, 4, 8, projection="3d")
space.scatter(*samples[shown].T, depthshade=False, **look)
below(figure, space, "estimated density / 10$^{-3}$")
bottoms.append(space)
for ax, letter in zip(tops, "abcd", strict=True):
    title(ax, letter, "samples" if letter == "d" else f"{partition.num_cells:,} cells")
    ax.set(xlabel="$z_1$", ylabel="$z_2$" if letter == "a" else "", xticks=(-10, 0, 10))
    ax.set_yticks((-10, 0, 10))
for ax in bottoms:
    ax.set_axis_off()
    ax.set_box_aspect((4, 4, 3), zoom=1.2)
save(figure, "toy")

# %% [markdown]
# **Claims.** (1) The partition is proven: every sign in it is exact, and the cells tile the square
# (the certificate above). (2) ψ is the logarithm of the area element: on the graph of f that is
# ½ log(1 + |∇f|²), known from the bumps without the network. (3) δ is what enumerating single
# neighbourhoods gives. (4) A density estimate that knows nothing of ψ ranks the samples as exp(-ψ)
# does, away from the border, where half of the neighbours are missing.

# %%
assert partition.status.exact, "a sign of the toy's partition is not proven"

at = torch.tensor(centroids, requires_grad=True)
(slope,) = torch.autograd.grad(bumps(at).sum(), at)
element = 0.5 * np.log1p((slope**2).sum(dim=1).numpy())
agreement = np.corrcoef(psi[of_sample], element[of_sample])[0, 1]
print(f"correlation of ψ and the bumps' own area element, over uniform latents: {agreement:.2f}")
assert agreement > 0.85, "ψ is not the learned surface's area element"

some = rng.choice(partition.num_cells, 40, replace=False)
again = [cpwl.local_complexity(network, centroids[c], r, np.eye(2)) for c in some]
assert again == delta[some].tolist(), "δ from the polygons is not that of single neighbourhoods"

inner = np.all(np.abs(latents) + radius[:, None] < RADIUS, axis=1)
ranks = correlation(estimate[inner], np.exp(-psi[of_sample[inner]]))
print(f"rank correlation of the estimated density and exp(-ψ): {ranks:.2f}")
assert ranks > 0.75, "the density of samples does not follow exp(-ψ)"

# %% [markdown]
# ## 2. Slices of real networks
#
# ### An MNIST GAN, 64 → 256 → 256 → 784
#
# The plane through three standard normal latents A, B and C. Its image is a surface of flat pieces
# in R⁷⁸⁴; it is shown in its three principal axes, themselves a linear layer behind the generator,
# so that the picture is exact as well.

# %%
gan = pretrained.mnist_gan()
gan_latents = normal(64)
domain = through(gan_latents, 1.5)
gan_network = cpwl.Network.from_torch(gan, (64,), upto="tanh")
gan_partition = cpwl.subdivide(gan_network, domain, progress=False)
gan_spectrum = cpwl.spectrum(gan_partition)
gan_psi = cpwl.local_scaling(gan_spectrum)
gan_nu = cpwl.local_rank(gan_spectrum)
print(gan_partition)

uniform = cpwl.sample_image(gan_partition, 2000, rng, rho=0, source=gan_spectrum)
axes = np.linalg.svd(uniform.outputs - uniform.outputs.mean(axis=0), full_matrices=False)[2][:3]
projection = nn.Linear(784, 3, bias=False)
projection.weight = nn.Parameter(torch.tensor(axes, dtype=torch.float32))
projected = cpwl.subdivide(
    cpwl.Network.from_torch(nn.Sequential(*gan[:-1], projection), (64,)), domain, progress=False
)
assert np.array_equal(projected.patterns, gan_partition.patterns), "the projection moved cells"

# %%
figure, panels = plt.subplot_mosaic(
    [["a", "b", "c", "A"], ["a", "b", "c", "B"], ["a", "b", "c", "C"]],
    figsize=(WIDTH, 2.3), width_ratios=[1, 1, 1, 0.24], per_subplot_kw={"c": {"projection": "3d"}},
)  # fmt: skip
plot.partition(gan_partition, gan_psi, ax=panels["a"], knots=False, colorbar=False)
plot.partition(gan_partition, gan_nu, ax=panels["b"], knots=False, colorbar=False, cmap="cividis")
plot.image(projected, gan_psi, ax=panels["c"], colorbar=False, edges=False)
for letter, text in (("a", f"{gan_partition.num_cells:,} cells"), ("b", ""), ("c", "image of a")):
    title(panels[letter], letter, text)
    below(figure, panels[letter], plot.LABELS["nu" if letter == "b" else "psi"])
for letter in "ab":
    plot.mark(panels[letter], domain.slice.anchors, "ABC", s=20)
with torch.no_grad():
    pictures(panels, "ABC", gan(gan_latents).reshape(3, 28, 28))
panels["c"].set_axis_off()
panels["c"].set_box_aspect((1, 1, 1), zoom=1.25)
save(figure, "mnist_gan")

# %% [markdown]
# **Claims.** (5) The cells' maps are the generator: at uniform latents A s + b is torch's own float64
# forward pass, to rounding. (6) Every sign of this partition is proven as well, and its invariants
# hold: Euler's characteristic, areas, continuity across every knot.

# %%
module = nn.Sequential(*gan[:-1]).double()
there = uniform.points[:500]
with torch.no_grad():
    forward = module(torch.from_numpy(domain.slice.embed(there))).numpy()
maps = cpwl.affine_maps(gan_partition, uniform.cells[:500])
A, b = map(np.concatenate, zip(*maps, strict=True))
error = np.abs(np.einsum("ndp,np->nd", A, there) + b - forward).max() / np.abs(forward).max()
print(f"largest error of A s + b, relative to the largest output: {error:.1e}")
assert error < 1e-12, "a cell's map is not the generator's"
assert gan_partition.status.exact, "a sign of the GAN's partition is not proven"
assert cpwl.check(gan_partition).ok, "an invariant of the GAN's partition does not hold"

# %% [markdown]
# ### DCGAN faces, 100 → 3 × 64 × 64
#
# Its 122,880 units fold the latent space so finely that a plane through three faces would have
# billions of cells. This is a tiny square in the middle of such a plane: to the eye one face.

# %%
torch.set_num_threads(2)
dcgan = pretrained.dcgan_faces()
face_latents = torch.randn(3, 100, 1, 1, generator=torch.Generator().manual_seed(0))
dcgan_network = cpwl.Network.from_torch(dcgan, (100, 1, 1), upto="tanh")
dcgan_domain = through(face_latents, 0.00015 if SMALL else 0.0005)
dcgan_partition = cpwl.subdivide(dcgan_network, dcgan_domain, progress=False)
dcgan_psi = cpwl.local_scaling(dcgan_partition)
width = np.ptp(dcgan_domain.corners[:, 0])
print(f"{dcgan_partition} in a square of width {width:.2g}")
print(f"{dcgan_partition.status.undecided} signs lie within float64's rigorous bound")

# %%
middle = dcgan_domain.corners.mean(axis=0)
A, _ = next(cpwl.affine_maps(dcgan_partition, cpwl.locate(dcgan_partition, [middle])))
moved = np.linalg.norm(A[0].reshape(3, 64, 64, 2), axis=(0, 3))
center = torch.from_numpy(dcgan_domain.slice.embed(middle[None])).float()
with torch.no_grad():
    faces = dcgan(torch.cat([face_latents, center])).permute(0, 2, 3, 1) / 2 + 0.5

figure, panels = plt.subplot_mosaic(
    [["a", "b", "A", "B"], ["a", "b", "C", "middle"]],
    figsize=(WIDTH, 2.5), width_ratios=[1, 1, 0.42, 0.42],
)  # fmt: skip
plot.partition(dcgan_partition, dcgan_psi, ax=panels["a"], knots=False, colorbar=False)
title(panels["a"], "a", f"{dcgan_partition.num_cells:,} cells")
below(figure, panels["a"], plot.LABELS["psi"])
shown = panels["b"].imshow(moved, cmap="magma")
panels["b"].set(xticks=[], yticks=[], xlabel="pixels")
title(panels["b"], "b", "speed of the pixels, in the middle")
bar = figure.colorbar(shown, ax=panels["b"], location="bottom", pad=0.02, shrink=0.8)
bar.set_label("Frobenius norm of a pixel's rows of A")
pictures(panels, ["A", "B", "C", "middle"], faces)
save(figure, "dcgan")

# %% [markdown]
# **Claims.** (7) The DCGAN's cells are far smaller than the GAN's, in units of the latents' own
# distances, but crossing a knot changes ψ far less: many small kinks instead of a few large ones.
# (8) Its maps are torch's forward pass as well.

# %%
def step_and_size(partition, psi):
    """Return the median change of psi across a knot, and the cells' mean width over the anchors'."""
    inner = partition.facet_cells[partition.facet_unit >= 0]
    apart = np.ptp(partition.domain.slice.anchors, axis=0).max()
    size = np.sqrt(partition.domain.volume / partition.num_cells) / apart
    return np.median(np.abs(np.diff(psi[inner], axis=1))), size


(gan_step, gan_size) = step_and_size(gan_partition, gan_psi)
(dcgan_step, dcgan_size) = step_and_size(dcgan_partition, dcgan_psi)
if SMALL:
    gan_size *= 0.3  # its anchors were moved together
print(f"median change of ψ across a knot: GAN {gan_step:.1e}, DCGAN {dcgan_step:.1e}")
print(f"width of a cell: GAN {gan_size:.1e}, DCGAN {dcgan_size:.1e} of the latents' distance")
assert gan_size > 50 * dcgan_size, "the DCGAN's cells are not far smaller"
assert gan_step > 10 * dcgan_step, "the DCGAN's knots do not change ψ far less"

some = rng.choice(dcgan_partition.num_cells, 20, replace=False)
there = cpwl.centroids(dcgan_partition)[some]
A, b = map(np.concatenate, zip(*cpwl.affine_maps(dcgan_partition, some), strict=True))
with torch.no_grad():
    module = nn.Sequential(*dcgan[:-1]).double()
    forward = module(torch.from_numpy(dcgan_domain.slice.embed(there))).flatten(1).numpy()
error = np.abs(np.einsum("ndp,np->nd", A, there) + b - forward).max() / np.abs(forward).max()
print(f"largest error of A s + b, relative to the largest output: {error:.1e}")
assert error < 1e-11, "a cell's map is not the DCGAN's"
assert cpwl.check(dcgan_partition).ok, "an invariant of the DCGAN's partition does not hold"

# %% [markdown]
# ### ACAS Xu, a collision-avoidance controller
#
# Six trained layers map the encounter's geometry to the costs of five advisories; the cheapest one
# is given. The slice is an intruder on a head-on course, by its bearing and distance, at the mean
# speeds of both aircraft. Inside a cell every cost is affine, so that the boundaries between
# advisories are polygons with exact corners.

# %%
torch.set_num_threads(1)
ADVISORIES = ["clear of conflict", "weak left", "weak right", "strong left", "strong right"]
acas_network = cpwl.Network.from_onnx(data.path("onnx/acasxu_1_1.onnx"))
# inputs are normalised: distance (feet - 19791) / 60261, then angles / 2π, then speeds
origin = np.array([0, 0, -0.5, 0, 0]).reshape(acas_network.input_shape)
basis = np.eye(5)[[1, 0]].reshape(2, *acas_network.input_shape)
plane = cpwl.Slice(origin, basis)
acas_domain = plane.box([-0.25, -0.328], [0.25, 0.172]) if SMALL else plane.box([-0.5, -0.328], [0.5, 0.672])
acas_partition = cpwl.subdivide(acas_network, acas_domain, progress=False)
acas_spectrum = cpwl.spectrum(acas_partition)
acas_psi = cpwl.local_scaling(acas_spectrum)
flattened = acas_spectrum.rank < 2  # the costs do not depend on both coordinates
print(acas_partition, acas_partition.status.arbitrated, "signs decided in rational arithmetic")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.6), width_ratios=[1, 1])
colors = ["#E8E8E8", "#56B4E9", "#F0C987", "#0072B2", "#D55E00"]
plot.decision_regions(acas_partition, "argmin", labels=ADVISORIES, colors=colors, ax=left)
plot.partition(acas_partition, np.where(flattened, np.nan, acas_psi), ax=right, knots=False)
title(left, "a", "advisory")
title(right, "b", f"{acas_partition.num_cells:,} cells")
save(figure, "acas")
