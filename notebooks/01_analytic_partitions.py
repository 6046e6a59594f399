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
# one affine map, G(z) = A z + b. What this notebook shows is computed from those cells and maps;
# sampling the network only checks it:
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
# 4. how ψ, ν and the size of cells are related, on five kinds of networks;
# 5. the density of generated samples is proportional to exp(-ψ);
# 6. samples that are uniform on the learned manifold.
#
# Every claim is asserted by the cell that follows its figure. `CPWL_SMALL=1` runs smaller slices
# and fewer samples.

# %%
# ruff: noqa: RUF001 - ν and ρ are meant
import copy
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import shapely
import torch
from matplotlib.collections import LineCollection
from matplotlib.ticker import FixedLocator, MaxNLocator, MultipleLocator, NullLocator
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from scipy.stats import chi2, gamma, kstest, norm, spearmanr
from torch import nn

import cpwl
from bridges.networks import data, pretrained
from bridges.networks.toys import RADIUS, bumps, random_mlp, toy_generator
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
    figure.savefig(FIGURES / f"01_{name}.png", dpi=100 if SMALL else 150)
    if plt.get_backend().lower() != "agg":
        plt.show()
    plt.close(figure)


def title(ax, letter, text):
    """Put the panel's letter and title over it."""
    ax.set_title(text)
    ax.set_title(letter, loc="left", fontweight="bold")


def below(figure, ax, label):
    """Put a colour bar for the first thing drawn under the axes."""
    look = {"location": "bottom", "pad": 0.02, "shrink": 0.8, "ticks": MaxNLocator(4)}
    figure.colorbar(ax.collections[0], ax=ax, **look).set_label(label)


def pictures(panels, names, images):
    """Show decoded images in the panels of these names."""
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
    """Return a square of the plane of three latents, `zoom` times as wide as their triangle."""
    plane = cpwl.Slice.through(*latents)
    middle = plane.anchors.mean(axis=0)
    half = zoom * np.ptp(plane.anchors, axis=0).max() / 2
    return plane.box(middle - half, middle + half)


def normal(*shape, seed=0):
    """Return three standard normal latents."""
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed))


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
tops = [figure.add_subplot(2, 4, 1 + k) for k in range(4)]
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
    space = figure.add_subplot(2, 4, 5 + k, projection="3d")
    plot.image(partition, values, ax=space, edges=False, **look)
    below(figure, space, name)
    bottoms.append(space)
shown = slice(None, 5000)
look = {"c": 1e3 * estimate[shown], "cmap": "cividis", "s": 1, "linewidths": 0}
look["vmin"], look["vmax"] = np.quantile(look["c"], [0.01, 0.99])
tops[3].scatter(*latents[shown].T, **look)
tops[3].set(xlim=(-RADIUS, RADIUS), ylim=(-RADIUS, RADIUS), aspect="equal")
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
# (the certificate above). (2) ψ follows the logarithm of the area element: on the graph of f that
# is ½ log(1 + |∇f|²), known from the bumps without the network. (3) δ is what enumerating single
# neighbourhoods gives. (4) A density estimate that knows nothing of ψ ranks the samples much as
# exp(-ψ) does, away from the border, where some of the neighbours are missing.

# %%
assert partition.status.exact, "a sign of the toy's partition is not proven"

at = torch.tensor(centroids, requires_grad=True)
(slope,) = torch.autograd.grad(bumps(at).sum(), at)
element = 0.5 * np.log1p((slope**2).sum(dim=1).numpy())
agreement = np.corrcoef(psi[of_sample], element[of_sample])[0, 1]
print(f"correlation of ψ and the bumps' own area element, over uniform latents: {agreement:.2f}")
assert agreement > 0.85, "ψ does not follow the area element of what was learned"

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
if SMALL:  # move them together
    gan_latents = gan_latents.mean(dim=0) + 0.2 * (gan_latents - gan_latents.mean(dim=0))
domain = through(gan_latents, 1.5)
gan_network = cpwl.Network.from_torch(gan, (64,), upto="tanh")
gan_partition = cpwl.subdivide(gan_network, domain, progress=False)
gan_spectrum = cpwl.spectrum(gan_partition)
gan_psi = cpwl.local_scaling(gan_spectrum)
gan_nu = cpwl.local_rank(gan_spectrum)
print(gan_partition)

uniform = cpwl.sample_image(gan_partition, 2000, rng, rho=0, source=gan_spectrum)
outputs = uniform.outputs[:500]
axes = np.linalg.svd(outputs - outputs.mean(axis=0), full_matrices=False)[2][:3]
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
for letter, text in (
    ("a", f"{gan_partition.num_cells:,} cells"),
    ("b", "the same cells"),
    ("c", "image of a"),
):
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
# **Claims.** (5) The cells' maps are the generator: at uniform latents A s + b is torch's own
# forward pass in float64, to rounding. (6) Every sign of this partition is proven as well, and its
# invariants hold: Euler's characteristic, areas, continuity across every knot.


# %%
def worst_error(module, partition, points, cells):
    """Return how far A s + b is from the module in float64, relative to the largest output."""
    with torch.no_grad():
        double = copy.deepcopy(module).double()
        output = double(torch.from_numpy(partition.domain.slice.embed(points))).flatten(1).numpy()
    A, b = map(np.concatenate, zip(*cpwl.affine_maps(partition, cells), strict=True))
    return np.abs(np.einsum("ndp,np->nd", A, points) + b - output).max() / np.abs(output).max()


error = worst_error(gan[:-1], gan_partition, uniform.points[:500], uniform.cells[:500])
print(f"largest error of A s + b, relative to the largest output: {error:.1e}")
assert error < 1e-12, "a cell's map is not the generator's"
assert gan_partition.status.exact, "a sign of the GAN's partition is not proven"
assert cpwl.check(gan_partition).ok, "an invariant of the GAN's partition does not hold"

# %% [markdown]
# ### DCGAN faces, 100 → 3 × 64 × 64
#
# Its 122,880 units fold the latent space so finely that a plane through three faces A, B and C has
# far too many cells to draw. This is a tiny square of it around B: to the eye one face.

# %%
torch.set_num_threads(2)
dcgan = pretrained.dcgan_faces()
face_latents = normal(100, 1, 1)
faces_plane = cpwl.Slice.through(*face_latents)
face = faces_plane.anchors[1]
half = 0.0015 if SMALL else 0.006
dcgan_domain = faces_plane.box(face - half, face + half)
dcgan_network = cpwl.Network.from_torch(dcgan, (100, 1, 1), upto="tanh")
dcgan_partition = cpwl.subdivide(dcgan_network, dcgan_domain, progress=False)
dcgan_psi = cpwl.local_scaling(dcgan_partition)
assert dcgan_network.num_units == 122_880
print(f"{dcgan_partition} in a square of width {2 * half}")
print(f"{dcgan_partition.status.undecided} signs lie within float64's rigorous bound")

# %%
A, _ = next(cpwl.affine_maps(dcgan_partition, cpwl.locate(dcgan_partition, [face])))
speed = np.linalg.norm(A[0].reshape(3, 64, 64, 2), axis=(0, 3))
with torch.no_grad():
    faces = dcgan(face_latents).permute(0, 2, 3, 1) / 2 + 0.5

figure, panels = plt.subplot_mosaic(
    [["A", "a", "b"], ["B", "a", "b"], ["C", "a", "b"]],
    figsize=(WIDTH, 2.6), width_ratios=[0.32, 1, 1],
)  # fmt: skip
plot.partition(dcgan_partition, dcgan_psi, ax=panels["a"], knots=False, colorbar=False)
panels["a"].add_collection(LineCollection(knots(dcgan_partition)[0], colors="k", linewidths=0.1))
title(panels["a"], "a", f"{dcgan_partition.num_cells:,} cells around B")
panels["a"].set(xticks=face[0] + [-half, half], xticklabels=[f"{-half:g}", f"{half:g}"])
panels["a"].set(yticks=face[1] + [-half, half], yticklabels=[f"{-half:g}", f"{half:g}"])
panels["a"].set(xlabel="$s_0$ from B", ylabel="$s_1$ from B")
below(figure, panels["a"], plot.LABELS["psi"])
shown = panels["b"].imshow(speed, cmap="magma")
panels["b"].set(xticks=[], yticks=[])
title(panels["b"], "b", "where face B changes")
bar = figure.colorbar(shown, ax=panels["b"], location="bottom", pad=0.02, shrink=0.8)
bar.set_label("norm of a pixel's part of A")
pictures(panels, "ABC", faces)
save(figure, "dcgan")

# %% [markdown]
# **Claims.** (7) The DCGAN's cells are far smaller than the GAN's, measured by the distance of the
# latents, but crossing a knot changes ψ far less: many small kinks instead of a few large ones. (8)
# Its maps are torch's forward pass, too.


# %%
def step_and_width(partition, psi, apart):
    """Return the median change of ψ across a knot, and the mean width of a cell over `apart`."""
    sides = partition.facet_cells[partition.facet_unit >= 0]
    width = np.sqrt(partition.domain.volume / partition.num_cells)
    return np.median(np.abs(np.diff(psi[sides], axis=1))), width / apart


gan_step, gan_width = step_and_width(gan_partition, gan_psi, np.sqrt(2 * 64))
dcgan_step, dcgan_width = step_and_width(dcgan_partition, dcgan_psi, np.sqrt(2 * 100))
print(f"median change of ψ across a knot: GAN {gan_step:.1e}, DCGAN {dcgan_step:.1e}")
print(f"width of a cell / distance of latents: GAN {gan_width:.1e}, DCGAN {dcgan_width:.1e}")
print(f"cells in a square as wide as latents are apart, at this density: {dcgan_width**-2:.0e}")
assert dcgan_width**-2 > 1e8, "a plane through three faces could be enumerated"
assert gan_width > 50 * dcgan_width, "the DCGAN's cells are not far smaller"
assert gan_step > 10 * dcgan_step, "the DCGAN's knots do not change ψ far less"

some = rng.choice(dcgan_partition.num_cells, 10, replace=False)
there = cpwl.centroids(dcgan_partition)[some]
error = worst_error(dcgan[:-1], dcgan_partition, there, some)
print(f"largest error of A s + b, relative to the largest output: {error:.1e}")
assert error < 1e-12, "a cell's map is not the DCGAN's"

# %% [markdown]
# ### ACAS Xu, a collision-avoidance controller
#
# Six trained layers map the geometry of an encounter to the costs of five advisories; the cheapest
# is given. The slice is an intruder on a head-on course, by its bearing and distance, at the mean
# speeds of both aircraft. Inside a cell every cost is affine: the boundaries between advisories are
# polygons with exact corners, and can bend only at knots. Where the costs do not depend on both
# coordinates, b is grey.

# %%
torch.set_num_threads(1)
ADVISORIES = ["clear of conflict", "weak left", "weak right", "strong left", "strong right"]
COLORS = ["#E8E8E8", "#56B4E9", "#F0C987", "#0072B2", "#D55E00"]


def encounter(network, low, high):
    """Return head-on encounters: bearing / 2π, and (distance in feet - 19791) / 60261."""
    origin = np.array([0, 0, -0.5, 0, 0]).reshape(network.input_shape)
    basis = np.eye(5)[[1, 0]].reshape(2, *network.input_shape)
    return cpwl.Slice(origin, basis).box(low, high)


acas_network = cpwl.Network.from_onnx(data.path("onnx/acasxu_1_1.onnx"))
low, high = ([-0.1, -0.28], [0.1, -0.08]) if SMALL else ([-0.25, -0.328], [0.25, 0.172])
acas_partition = cpwl.subdivide(acas_network, encounter(acas_network, low, high), progress=False)
acas_spectrum = cpwl.spectrum(acas_partition)
acas_psi = cpwl.local_scaling(acas_spectrum)
acas_window = cpwl.subdivide(
    acas_network, encounter(acas_network, [-0.02, -0.23], [0.06, -0.15]), progress=False
)
print(acas_partition, acas_partition.status.arbitrated, "signs that float64 left open")

# %%
figure, (left, center, right) = plt.subplots(1, 3, figsize=(WIDTH, 2.5))
style = {"labels": ADVISORIES, "colors": COLORS, "legend": False}
plot.decision_regions(acas_partition, "argmin", ax=left, **style)
handles = left.get_legend_handles_labels()[0]
figure.legend(handles=handles, loc="outside lower left", ncols=5)
plot.partition(
    acas_partition, np.where(acas_spectrum.rank == 2, acas_psi, np.nan),
    ax=center, knots=False, label=plot.LABELS["psi"],
)  # fmt: skip
center.set_facecolor("0.8")
plot.decision_regions(acas_window, "argmin", ax=right, **style)
right.add_collection(LineCollection(knots(acas_window)[0], colors="k", linewidths=0.15))
title(left, "a", "advisory")
title(center, "b", f"{acas_partition.num_cells:,} cells")
title(right, "c", f"part of a: {acas_window.num_cells:,} cells")
for ax in (left, center, right):
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.xaxis.set_major_locator(MultipleLocator((30 if np.ptp(ax.get_xlim()) > 0.25 else 10) / 360))
    ax.xaxis.set_major_formatter(lambda value, _: f"{360 * value:.0f}°")
    ax.yaxis.set_major_formatter(lambda value, _: f"{(19.791 + 60.261 * value):.0f}")
    ax.set(xlabel="bearing", ylabel="distance / 1000 ft" if ax is left else "")
save(figure, "acas")

# %% [markdown]
# **Claims.** (9) The regions of the advisories tile the slice, and at uniform points they give the
# advisory that the network itself gives. (10) Although float64 left some signs open, every one is
# proven.

# %%
areas = cpwl.decision_regions(acas_partition, "argmin")
share = np.bincount(areas.labels, areas.areas, 5) / acas_partition.domain.volume
print({name: f"{100 * part:.1f} %" for name, part in zip(ADVISORIES, share, strict=True)})
assert abs(share.sum() - 1) < 1e-9, "the advisories' regions do not tile the slice"

points = rng.uniform(low, high, (2000, 2))
costs = acas_network(acas_partition.domain.slice.embed(points)).reshape(len(points), 5)
point, region = shapely.STRtree(areas.polygons).query(shapely.points(points), predicate="within")
assert len(point) == len(points), "a point lies in no region, or in two"
assert (areas.labels[region] == costs.argmin(1).numpy()[point]).all(), "a region gives other advice"
assert acas_partition.status.exact, "a sign of the controller's partition is not proven"

# %% [markdown]
# ## 3. Knots by layer
#
# A unit of the first layer is affine in the latent: its knot is a straight line. A unit of a deeper
# layer is affine on each cell of the layers before, so that its knot bends where it crosses theirs.

# %%
center = domain.corners.mean(axis=0)
gan_window = cpwl.subdivide(
    gan_network, domain.slice.box(center - 0.5, center + 0.5), progress=False
)
shown = {
    "toy": partition,
    "MNIST GAN": gan_window,
    "DCGAN": dcgan_partition,
    "ACAS Xu": acas_window,
}


def cells_by_depth(partition):
    """Count the cells of the first 0, 1, ... layers: those that no knot of these layers parts."""
    sides = partition.facet_cells[partition.facet_unit >= 0]
    _, _, layer = knots(partition)
    counts = []
    for depth in range(partition.network.num_stages + 1):
        joined = sides[layer >= depth]
        graph = coo_array((np.ones(len(joined)), joined.T), shape=2 * (partition.num_cells,))
        counts.append(connected_components(graph, directed=False)[0])
    return np.array(counts)


def share_bent(partition):
    """Return, for each layer, the share of the units met here whose knot is no straight line."""
    ends, unit, layer = knots(partition)
    bent = [[] for _ in range(partition.network.num_stages)]
    for u in np.unique(unit):
        points = ends[unit == u].reshape(-1, 2)
        spread = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
        bent[layer[unit == u][0]].append(spread[1] > 1e-9 * spread[0])
    return np.array([np.mean(units) if units else np.nan for units in bent])


depths = {name: cells_by_depth(part) for name, part in shown.items()}
bends = {name: share_bent(part) for name, part in shown.items()}
for name in shown:
    print(f"{name}: cells of the first layers {depths[name]}, bent knots {bends[name].round(2)}")

# %%
figure, rows = plt.subplots(2, 4, figsize=(WIDTH, 3.7), height_ratios=[1, 0.72])
for ax, letter, (name, part) in zip(rows[0], "abcd", shown.items(), strict=True):
    ends, _, layer = knots(part)
    plot.partition(part, ax=ax, knots=False)
    for s in range(part.network.num_stages):
        lines = LineCollection(ends[layer == s], colors=LAYERS[s], linewidths=0.5)
        lines.set(label=f"layer {s + 1}", zorder=3 - s / 10)
        ax.add_collection(lines)
    ax.set(xticks=[], yticks=[], xlabel=f"{part.num_cells:,} cells", ylabel="")
    title(ax, letter, name)
figure.legend(*rows[0, 3].get_legend_handles_labels(), loc="outside lower center", ncols=6)
for ax, letter, part in zip(rows[1], "efgh", shown.values(), strict=True):
    ends, unit, layer = knots(part)
    stages = np.arange(part.network.num_stages)
    length = np.bincount(layer, np.linalg.norm(np.diff(ends, axis=1)[:, 0], axis=1), len(stages))
    units = np.diff(part.network.stage_offsets)
    ax.bar(stages - 0.2, units / units.sum(), 0.4, color="0.8", label="of units")
    ax.bar(stages + 0.2, length / length.sum(), 0.4, color=LAYERS[: len(stages)], label="of knots")
    ax.set(xticks=stages, xticklabels=stages + 1, xlabel="layer", ylim=(0, 1))
    title(ax, letter, "")
rows[1, 0].set_ylabel("share of units (grey)\nand of the knots' length")
save(figure, "layers")

# %% [markdown]
# **Claims.** (11) Knots of the first layer are straight in all four; most of the toy's deeper knots
# bend. (12) The toy's first layer cuts the square into 1 + lines + crossings cells (Zaslavsky), all
# counted from its weights alone. (13) Leaving out the knots of deeper layers gives the cells of the
# network that ends there: counts by depth are those of the truncated networks.

# %%
assert all(bent[0] == 0 for bent in bends.values()), "a knot of a first layer bends"
assert min(bends["toy"][1:]) > 0.5, "the toy's deeper knots are mostly straight"

W, b = toy[0].weight.double().numpy(), toy[0].bias.double().numpy()
side = W @ square.corners.T + b[:, None]
lines = np.flatnonzero((side.min(axis=1) < 0) & (side.max(axis=1) > 0))
i, j = lines[np.stack(np.triu_indices(len(lines), 1))]
meet = np.linalg.solve(W[np.stack([i, j], axis=1)], -b[np.stack([i, j], axis=1)][..., None])
crossings = (np.abs(meet) < RADIUS).all(axis=(1, 2)).sum()
print(f"the toy's first layer: {len(lines)} lines and {crossings} crossings")
assert depths["toy"][1] == 1 + len(lines) + crossings, "the first layer is not its arrangement"

for name, module, part in (("toy", toy, partition), ("MNIST GAN", gan, gan_window)):
    for depth in range(1, part.network.num_stages):
        cut = cpwl.Network.from_torch(module[: 2 * depth], part.network.input_shape)
        count = cpwl.subdivide(cut, part.domain, progress=False).num_cells
        assert count == depths[name][depth], f"{name}: other cells when cut after layer {depth}"

# %% [markdown]
# ## 4. Local scaling, local rank and the size of cells
#
# Are small cells where G stretches? Are ψ and ν two names for one thing? Several slices each of
# five kinds of networks, at uniform latents: large cells count for as much as they cover.


# %%
def at_uniform_latents(network, domain):
    """Return ψ, ν and the cell's area at uniform latents, but for cells that are flattened."""
    part = cpwl.subdivide(network, domain, progress=False)
    area = cpwl.volumes(part)
    cells = rng.choice(part.num_cells, 800 if SMALL else 3000, p=area / area.sum())
    found = cpwl.spectrum(part, cells)
    full = found.rank == 2
    return cpwl.local_scaling(found)[full], cpwl.local_rank(found)[full], area[cells[full]]


vae = pretrained.mnist_vae_decoder()
vae_network = cpwl.Network.from_torch(vae, (20,), upto="sigmoid")
kinds = {"toy": [(network, square)], "random MLP": [], "MNIST GAN": [], "MNIST VAE": []}
for seed in range(1 if SMALL else 5):
    mlp = cpwl.Network.from_torch(random_mlp((2, 64, 64, 64, 3), seed), (2,))
    kinds["random MLP"].append((mlp, square))
    kinds["MNIST GAN"].append((gan_network, through(normal(64, seed=seed), 0.6 if SMALL else 1.0)))
    kinds["MNIST VAE"].append((vae_network, through(normal(20, seed=seed), 1.0)))
for seed in () if SMALL else (1, 2):
    kinds["toy"].append((cpwl.Network.from_torch(toy_generator(seed), (2,)), square))
kinds["ACAS Xu"] = [(acas_network, encounter(acas_network, low, high))]
for file in () if SMALL else ("2_7", "4_3"):
    other = cpwl.Network.from_onnx(data.path(f"onnx/acasxu_{file}.onnx"))
    kinds["ACAS Xu"].append((other, encounter(other, low, high)))
table = {kind: [at_uniform_latents(*one) for one in many] for kind, many in kinds.items()}

pairs = {"ψ, size": (0, 2), "ν, size": (1, 2), "ψ, ν": (0, 1)}
ranks = {
    kind: np.array([[correlation(one[i], one[j]) for i, j in pairs.values()] for one in many])
    for kind, many in table.items()
}
print("rank correlations, from slice to slice:")
for kind, rows in ranks.items():
    spans = [
        f"{name} {rows[:, p].min():+.2f} to {rows[:, p].max():+.2f}" for p, name in enumerate(pairs)
    ]
    print(f"{kind:11s}", "; ".join(spans))

# %%
figure = plt.figure(figsize=(WIDTH, 3.6))
top, bottom = figure.subfigures(2, 1, height_ratios=[1.1, 1])
axes = top.subplots(1, 5)
for ax, letter, (kind, many) in zip(axes, "abcde", table.items(), strict=True):
    some_psi, some_nu, area = many[0]
    points = ax.scatter(
        area / area.mean(), some_psi, c=some_nu, s=1.5, linewidths=0, cmap="cividis", vmin=1, vmax=2
    )
    ax.set(xscale="log", xlabel="area / mean area")
    title(ax, letter, kind)
axes[0].set_ylabel(plot.LABELS["psi"])
top.colorbar(points, ax=axes, pad=0.01).set_label(plot.LABELS["nu"])
for p, (ax, letter, name) in enumerate(
    zip(bottom.subplots(1, 3, sharey=True), "fgh", pairs, strict=True)
):
    for k, rows in enumerate(ranks.values()):
        ax.plot(rows[:, p], np.full(len(rows), k), "o", color=LAYERS[k], ms=4, alpha=0.7)
    ax.axvline(0, color="0.6", lw=0.6, zorder=0)
    ax.set(xlim=(-1, 1), ylim=(4.5, -0.5), xlabel="rank correlation")
    ax.set_yticks(range(5), list(ranks))
    title(ax, letter, name)
save(figure, "descriptors")

# %% [markdown]
# **Claims.** (14) In the GAN and the controllers, cells are smaller where G stretches, on every
# slice; in the VAE's decoder, which has one hidden layer, they are larger; with random weights
# there is hardly a relation. So the density of knots is no stand-in for ψ. (15) Nor is ν: its
# correlation with ψ has one sign in the toy generator and the other with random weights.

# %%
for kind in ("MNIST GAN", "ACAS Xu"):
    assert (ranks[kind][:, 0] < -0.1).all(), f"{kind}: stretched cells are not the small ones"
assert (ranks["MNIST VAE"][:, 0] > 0.05).all(), "MNIST VAE: stretched cells are not the large ones"
assert (np.abs(ranks["random MLP"][:, 0]) < 0.3).all(), "random MLP: size depends on stretching"
assert (ranks["toy"][:, 2] < -0.2).all(), "toy: ψ and ν are not opposed"
assert (ranks["random MLP"][:, 2] > 0.05).all(), "random MLP: ψ and ν do not go together"

# %% [markdown]
# ## 5. Density is proportional to exp(-ψ)
#
# For a uniform latent the density of generated samples, per area of the image, is constant on a
# cell's image: exp(-ψ) / area of the slice. The other side is nothing but sampling: of N samples of
# the decoder, how many fall within ε of a point G(s)? ε reaches half-way to the nearest knot around
# s, so that the ball cuts a whole disc out of one flat piece, and the count is Poisson with mean
# λ = N π ε² exp(-ψ) / area. The points are centroids of cells over the whole range of ψ: in each
# tenth of the range some of the largest cells.


# %%
def count_in_balls(network, partition, n):
    """Return ψ at centroids, the number of samples expected within ε of them, and that counted."""
    psi, area = cpwl.local_scaling(partition), partition.domain.volume
    tenth = np.digitize(psi, np.linspace(psi.min(), psi.max(), 11)[1:-1])
    order = np.argsort(-cpwl.volumes(partition))
    cells = np.concatenate([order[tenth[order] == k][:15] for k in range(10)])
    psi, s = psi[cells], cpwl.centroids(partition)[cells]
    eps = np.empty(len(cells))
    maps = np.concatenate([A for A, _ in cpwl.affine_maps(partition, cells)])
    for k, polygon in enumerate(cpwl.polygons(partition)[cells]):
        R = np.linalg.qr(maps[k], mode="r")  # lays the cell's image into the plane
        border = shapely.linearrings(shapely.get_coordinates(polygon) @ R.T)
        eps[k] = border.distance(shapely.Point(R @ s[k])) / 2
    expected = n * np.pi * eps**2 * np.exp(-psi) / area
    enough = expected > 10
    embed, corners = partition.domain.slice.embed, partition.domain.corners
    goals = network(embed(s[enough])).flatten(1)
    counted = np.zeros(len(goals))
    for _ in range(n // 5000):
        latents = rng.uniform(corners.min(axis=0), corners.max(axis=0), (5000, 2))
        distance = torch.cdist(goals, network(embed(latents)).flatten(1)).numpy()
        counted += (distance < eps[enough, None]).sum(axis=1)
    return psi[enough], expected[enough], counted


n = 20_000 if SMALL else 200_000
counts = {
    "toy": count_in_balls(network, partition, 10 * n),
    "MNIST GAN": count_in_balls(gan_network, gan_window, 3 * n),
}

# %%
figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 2.3))
for ax, letter, color, (name, (at_psi, expected, counted)) in zip(
    axes[:2], "ab", LAYERS[:2], counts.items(), strict=True
):
    exact = np.exp(at_psi.mean() - at_psi)  # relative to the density at the mean of ψ
    ax.errorbar(
        exact, exact * counted / expected, exact * np.sqrt(counted) / expected,
        fmt="o", ms=2, lw=0.6, color=color,
    )  # fmt: skip
    ends = np.array([0.85 * exact.min(), 1.18 * exact.max()])
    ax.plot(ends, ends, "k", lw=0.6, zorder=0)
    ax.set(xscale="log", yscale="log", xlabel=r"$\propto\exp(-\psi)$, exact", xlim=ends)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(FixedLocator([0.25, 0.5, 1, 2, 4]))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    title(ax, letter, name)
    z = np.sort((counted - expected) / np.sqrt(expected))
    axes[2].plot(
        norm.ppf((np.arange(len(z)) + 0.5) / len(z)), z, ".", ms=3, color=color, label=name
    )
axes[0].set_ylabel("density of samples, counted")
axes[2].axline((0, 0), slope=1, color="k", lw=0.6, zorder=0)
axes[2].set(xlabel="normal quantile", ylabel=r"(count $-\,\lambda$) / $\sqrt{\lambda}$")
axes[2].set(xlim=(-3.2, 3.2), ylim=(-3.9, 3.9))
axes[2].legend(loc="upper left")
title(axes[2], "c", "deviations")
save(figure, "density")

# %% [markdown]
# **Claims.** (16) The counts are those of the exact density: χ² over the points, which a density
# that is the same everywhere fails. (17) The logarithm of the counted density falls with ψ with
# slope -1, to the slope's own standard error.

# %%
for name, (some_psi, expected, counted) in counts.items():
    p_value = chi2.sf(((counted - expected) ** 2 / expected).sum(), len(expected))
    flat = expected * np.exp(some_psi)
    flat *= counted.sum() / flat.sum()
    p_flat = chi2.sf(((counted - flat) ** 2 / flat).sum(), len(flat) - 1)
    away = some_psi - np.average(some_psi, weights=expected)
    variance = (expected * away**2).sum()
    # d log(count / expected) / dψ, to first order in the deviations: 0 where the slope is -1
    slope, error = -1 + (away * (counted - expected)).sum() / variance, variance**-0.5
    print(
        f"{name}: {len(expected)} points, χ² p = {p_value:.2g} (flat density: {p_flat:.1g}), "
        f"slope {slope:.3f} ± {error:.3f}"
    )
    assert len(expected) > 20, f"{name}: too few points with enough samples"
    assert p_value > 1e-4, f"{name}: counts are not those of exp(-ψ)"
    assert p_flat < 1e-3, f"{name}: the test cannot tell exp(-ψ) from a flat density"
    assert abs(slope + 1) < 4 * error, f"{name}: the slope is not -1"

# %% [markdown]
# ## 6. Samples that are uniform on the manifold
#
# `cpwl.sample_image` draws a cell with probability proportional to area × exp(ρ ψ), and a point
# uniformly in it. ρ = 0 is the generator as it is; ρ = 1 is uniform on its image, exactly.
#
# Whether samples are uniform can be seen without ψ: of n uniform samples on a surface of area V,
# let d be the distance of one to its k-th nearest; then n π d² / V is Gamma(k) distributed, but for
# borders and curvature.

# %%
k, n = 5, 4000 if SMALL else 16_000
volume = cpwl.total_image_volume(partition, source=spectrum).value
drawn, spacing = {}, {}
for rho in (0, 1):
    drawn[rho] = cpwl.sample_image(partition, n, rng, rho=rho, source=spectrum)
    distance = cKDTree(drawn[rho].outputs).query(drawn[rho].outputs, k + 1)[0][:, k]
    spacing[rho] = n * np.pi * distance**2 / volume

gan_drawn = {
    rho: cpwl.sample_image(gan_partition, 4000, rng, rho=rho, source=gan_spectrum) for rho in (0, 1)
}
area = cpwl.volumes(gan_partition)
share = {rho: area * np.exp(rho * gan_psi) for rho in (0, 1)}
share = {rho: weight / weight.sum() for rho, weight in share.items()}
order = np.argsort(gan_psi)

# %%
COLOR = {0: "#0072B2", 1: "#D55E00"}
figure = plt.figure(figsize=(WIDTH, 4.2))
grid = figure.add_gridspec(2, 4)
for column, rho in enumerate((0, 1)):
    space = figure.add_subplot(grid[0, column], projection="3d")
    space.scatter(*drawn[rho].outputs[:4000].T, s=0.8, color=COLOR[rho], linewidths=0)
    space.set_box_aspect((4, 4, 3), zoom=1.4)
    space.set_axis_off()
    title(space, "ab"[column], rf"toy, $\rho={rho}$")
    plane = figure.add_subplot(grid[1, column])
    plane.plot(*gan_drawn[rho].points.T, ".", ms=1, color=COLOR[rho])
    plane.set(xlim=domain.corners[[0, 1], 0], ylim=domain.corners[[1, 2], 1], aspect="equal")
    plane.set(xlabel="$s_0$", ylabel="" if rho else "$s_1$")
    title(plane, "ef"[column], rf"MNIST GAN, $\rho={rho}$")
    digits = gan_drawn[rho].outputs[:36].reshape(6, 6, 28, 28).transpose(0, 2, 1, 3)
    sheet = figure.add_subplot(grid[1, 2 + column])
    sheet.imshow(np.tanh(digits.reshape(168, 168)), cmap="gray_r")
    sheet.set(xticks=[], yticks=[])
    title(sheet, "gh"[column], rf"decoded, $\rho={rho}$")
law = figure.add_subplot(grid[0, 2])
bins = np.linspace(0, 15, 31)
for rho in (0, 1):
    law.hist(
        spacing[rho], bins, density=True, histtype="step", color=COLOR[rho], label=rf"$\rho={rho}$"
    )
law.plot(bins, gamma(k).pdf(bins), "k", lw=0.8, label="uniform: Gamma(5)")
law.set(xlabel=r"$n\,\pi d^2/V$", ylabel="probability density", ylim=(0, 0.3))
law.legend()
title(law, "c", "toy: 5th nearest")
scale = figure.add_subplot(grid[0, 3])
for rho in (0, 1):
    scale.plot(gan_psi[order], np.cumsum(share[rho][order]), color="k", lw=0.6, zorder=3)
    scale.ecdf(gan_psi[gan_drawn[rho].cells], color=COLOR[rho], lw=2.5, label=rf"$\rho={rho}$")
scale.plot([], [], color="k", lw=0.6, label="exact")
scale.set(xlabel=plot.LABELS["psi"], ylabel="share of samples below")
scale.legend()
title(scale, "d", "MNIST GAN: ψ")
save(figure, "uniform")

# %% [markdown]
# **Claims.** (18) Samples with ρ = 1 are uniform on the toy's surface by a law in which ψ does not
# enter, and those of the generator are not. (19) In the GAN's slice the samples by ψ are those of
# the exact cell probabilities. (20) How far the generator is from uniform on its own image is known
# exactly: the logarithm of the image's area less the entropy of the samples is the Kullback-Leibler
# divergence, in nats.

# %%
gap = {rho: kstest(spacing[rho], gamma(k).cdf).statistic for rho in (0, 1)}
print(f"distance from Gamma({k}): {gap[0]:.3f} for ρ = 0, {gap[1]:.3f} for ρ = 1")
assert gap[1] < 0.03, "ρ = 1 is not uniform on the surface"
assert gap[0] > 0.05, "the test cannot tell the generator's samples from uniform ones"

tenth = np.digitize(gan_psi, np.quantile(gan_psi, np.arange(1, 10) / 10))
for rho in (0, 1):
    exact = 4000 * np.bincount(tenth, share[rho])
    counted = np.bincount(tenth[gan_drawn[rho].cells], minlength=10)
    p_value = chi2.sf(((counted - exact) ** 2 / exact).sum(), 9)
    print(f"ρ = {rho}: mean ψ {gan_psi[gan_drawn[rho].cells].mean():.2f}, χ² p = {p_value:.2g}")
    assert p_value > 1e-4, "samples do not have the cells' exact probabilities"

parts = np.log(share[0] / share[1])
divergence = np.log(cpwl.image_volumes(gan_partition, gan_spectrum).sum())
divergence -= cpwl.entropy(gan_partition, source=gan_spectrum).value
print(
    f"log area less entropy: {divergence:.4f}; Kullback-Leibler divergence: {share[0] @ parts:.4f}"
)
assert abs(divergence - share[0] @ parts) < 1e-9, "entropy and area do not give the divergence"
drawn_parts = parts[gan_drawn[0].cells]
error = drawn_parts.std() / np.sqrt(len(drawn_parts))
print(f"the same from samples: {drawn_parts.mean():.4f} ± {error:.4f}")
assert abs(drawn_parts.mean() - divergence) < 4 * error, "samples show another divergence"
