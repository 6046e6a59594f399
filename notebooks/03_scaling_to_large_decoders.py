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
# # Scaling to large decoders
#
# The decoder of a latent diffusion model has more cells than anyone could enumerate, or is smooth
# and has none. `approx` estimates local scaling ψ, local rank ν and local complexity δ from a few
# products with the Jacobian, each with its error. This notebook
#
# 1. maps ψ, ν and δ over the plane through three photographs in the latent space of TAEF2, a
#    pretrained autoencoder, and shows the images at both ends of each;
# 2. counts what that costs for the decoder of Stable Diffusion 1.4;
# 3. holds estimates against the truth where there is one: on a pretrained decoder of Stable
#    Diffusion latents that is exactly piecewise linear, `cpwl` enumerates slices, and `approx`
#    describes the same latents.
#
# Every claim is asserted by the cell that follows its figure. `CPWL_SMALL=1` runs fewer and smaller
# latents.

# %%
import os
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import MaxNLocator
from scipy.sparse import coo_array
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import approx
import cpwl
from approx import plot
from bridges.networks import pretrained

SMALL = os.environ.get("CPWL_SMALL", "0") != "0"
HERE = Path(__file__).parent if "__file__" in globals() else Path()
FIGURES = Path(os.environ.get("CPWL_FIGURES", HERE / "figures"))
FIGURES.mkdir(parents=True, exist_ok=True)
# where cores are shared, two threads spend most of their time waiting for each other
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

WIDTH = 7.2  # inches, the width of a page's text
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "0.6"  # Okabe and Ito's
plt.rcParams.update({
    "font.size": 7, "axes.titlesize": 8, "axes.labelsize": 7, "legend.fontsize": 6.5,
    "xtick.labelsize": 6, "ytick.labelsize": 6, "axes.linewidth": 0.6, "legend.frameon": False,
})  # fmt: skip


def save(figure, name, dpi=200):
    """Write a figure, and show it where there is somewhere to show it."""
    figure.savefig(FIGURES / f"{name}.png", dpi=dpi, pil_kwargs={"optimize": True})
    if plt.get_backend().lower() != "agg":
        plt.show()
    plt.close(figure)


def title(ax, letter, text):
    """Put the panel's letter and title over it."""
    ax.set_title(text)
    ax.set_title(letter, loc="left", fontweight="bold")


def correlation(a, b):
    """Return Spearman's rank correlation."""
    return float(spearmanr(a, b).statistic)


# %% [markdown]
# ## 1. The plane through three photographs
#
# TAEF2 decodes latents of 32 x h x w to pictures of 3 x 8h x 8w. It is not piecewise linear: its
# input is clamped by a tanh, and three of its blocks have a group normalisation. Three photographs
# that scikit-image carries (A an astronaut, B a cat, C a cup of coffee), encoded, span a plane;
# every point of it decodes to an image.

# %%
SIDE, PIXELS, K, PRODUCTS, IMAGES = (4, 4, 12, 8, 2) if SMALL else (8, 16, 32, 16, 5)
RADIUS = 1e-2  # of the neighbourhood in which knots are counted
NAMES = pretrained.PHOTOGRAPHS[:3]

decoder = pretrained.taef2_decoder()
photographs = torch.stack([pretrained.photograph(name, 8 * SIDE) for name in NAMES])
with torch.no_grad():
    anchors = pretrained.taef2_encoder()(photographs)
    loss = (decoder(anchors) - photographs).square().mean(dim=(1, 2, 3))
decibels = -10 * loss.log10()
print("encoded and decoded again, the photographs have a PSNR of",
      ", ".join(f"{x:.1f} dB ({n})" for x, n in zip(decibels, NAMES, strict=True)))  # fmt: skip
assert decibels.min() > 18, "Expected latents that decode to the photographs"

options = {"k": K, "products": PRODUCTS, "neighbourhood": (4, RADIUS), "generator": 0}
plane = approx.field(decoder, anchors, PIXELS, progress=False, **options)
print(f"{plane.psi.size} latents, {int(plane.products.max())} Jacobian products each at most; "
      f"predicted rather than measured at {1 - float(plane.fell_back.mean()):.0%}; "
      f"ψ is of {plane.attrs['definition']}")  # fmt: skip

# %%
figure = plt.figure(figsize=(WIDTH, 6.3), layout="constrained")
rows = np.ravel(figure.subfigures(3, 1))
apart = 0.12 * float(np.ptp(plane.u.values))  # neighbouring pixels look alike
for letter, name, row in zip("abc", ("psi", "nu", "delta"), rows, strict=True):
    plot.gallery(decoder, plane, name, IMAGES, apart=apart, figure=row)
    row.subfigs[0].axes[0].set_title(letter, loc="left", fontweight="bold")
save(figure, "photographs", dpi=115)

# %% [markdown]
# Are the images at both ends really at the ends? The maps are estimates that share their probes. So
# every latent of the galleries is measured again in ways that share nothing with the map but the
# decoder: ψ and ν by the published projection with another seed, on all k rows; δ by the published
# method, signs at the vertices of the neighbourhood, in float64; and what ψ mostly is, the
# Jacobian's Frobenius norm, without any derivative: how far the image moves when the latent moves a
# small step in random directions.


# %%
def ends(name):
    """Return latents with the highest and with the lowest values on the plane, (n, ...) each."""
    order = np.argsort(plane[name].values.ravel(), kind="stable")
    return (approx.latents_at(plane, part) for part in (order[-IMAGES:], order[:IMAGES]))


def again(name, z):
    """Measure a descriptor of latents once more, by other means."""
    if name == "delta":
        around = approx.neighbourhood(z.shape[1:], 4, torch.Generator().manual_seed(0))
        table = approx.knots(decoder, z, radius=RADIUS, directions=around, method="hull",
                             dtype=torch.float64)  # fmt: skip
        return table.count.numpy()
    table = approx.describe(decoder, z, k=K, method="paper", neighbourhood=None, generator=1,
                            progress=False)  # fmt: skip
    return getattr(table, name)


@torch.no_grad()
def moves(z, step=1e-3, times=8):
    """Return how far images move, root mean square over random directions, per unit of latent."""
    n = torch.randn(times, *z.shape[1:], generator=torch.Generator().manual_seed(2))
    y = [decoder(one[None] + step * n) - decoder(one[None]) for one in z]
    return np.array([float(d.double().square().sum((1, 2, 3)).mean().sqrt()) / step for d in y])


for name in ("psi", "nu", "delta"):
    high, low = ends(name)
    above, below = again(name, high), again(name, low)
    print(f"{name:5}: measured again, highest {above.min():.2f} to {above.max():.2f}, "
          f"lowest {below.min():.2f} to {below.max():.2f}")  # fmt: skip
    assert above.min() > below.max(), f"Expected the ends of the map of {name} to be its ends"
    if name == "psi":
        far, near = moves(high), moves(low)
        print(f"a small step moves the image {far.min():.2f} to {far.max():.2f} times as far "
              f"where psi is highest, {near.min():.2f} to {near.max():.2f} where it is lowest"
        )  # fmt: skip
        assert far.min() > near.max(), "Expected images to move most where psi is highest"

# %% [markdown]
# The map of δ has its peak between the photographs. That is no accident of pixels: the mean of the
# three latents, which decodes to all three pictures at once, has more knots about it than any of
# the photographs.

# %%
blend = torch.cat([anchors, anchors.mean(dim=0, keepdim=True)])
knots = approx.knots(decoder, blend, radius=RADIUS, dtype=torch.float64)
print(f"knots within r, in float64, of {int(knots.units.sum()):,} units: "
      + ", ".join(f"{n} ({name})" for n, name in zip(knots.count, (*NAMES, "blend"), strict=True))
)  # fmt: skip
assert knots.count[3] > 1.2 * knots.count[:3].max(), "Expected a blend to have the most knots"
assert (knots.undecided == 0).all(), "Expected float64 to decide every unit"

# %% [markdown]
# ## 2. What it costs: the decoder of Stable Diffusion 1.4
#
# Its configuration is enough to count operations: torch's `FlopCounterMode` follows a forward pass
# and the products on the `meta` device, where tensors have shapes and no entries. The decoder is
# written down here in plain torch, so that counting needs no other package; where diffusers is
# installed, its `AutoencoderKL` has to agree.


# %%
class Residual(nn.Module):
    """Two normalised convolutions and a skip connection."""

    def __init__(self, fan_in, fan_out):
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(32, fan_in, 1e-6), nn.SiLU(), nn.Conv2d(fan_in, fan_out, 3, padding=1),
            nn.GroupNorm(32, fan_out, 1e-6), nn.SiLU(), nn.Conv2d(fan_out, fan_out, 3, padding=1),
        )  # fmt: skip
        self.skip = nn.Identity() if fan_in == fan_out else nn.Conv2d(fan_in, fan_out, 1)

    def forward(self, x):
        """Add what the convolutions make of x."""
        return self.skip(x) + self.body(x)


class Attention(nn.Module):
    """Self-attention over the pixels, with one head."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.GroupNorm(32, width, 1e-6)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        """Mix the pixels of x."""
        pixels = self.norm(x).flatten(2).mT[:, None]
        mixed = functional.scaled_dot_product_attention(
            self.q(pixels), self.k(pixels), self.v(pixels)
        )
        return x + self.out(mixed)[:, 0].mT.unflatten(2, x.shape[2:])


def stable_diffusion():
    """Return the decoder of Stable Diffusion 1.4, 4 x h x w -> 3 x 8h x 8w, random weights."""
    layers = [nn.Conv2d(4, 4, 1), nn.Conv2d(4, 512, 3, padding=1)]
    layers += [Residual(512, 512), Attention(512), Residual(512, 512)]
    last = 512
    for stage, width in enumerate((512, 512, 256, 128)):
        if stage:
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(last, last, 3, padding=1)]
        layers += [Residual(last, width), Residual(width, width), Residual(width, width)]
        last = width
    layers += [nn.GroupNorm(32, 128, 1e-6), nn.SiLU(), nn.Conv2d(128, 3, 3, padding=1)]
    return nn.Sequential(*layers).eval()


def counted(module, side):
    """Count operations of a forward pass and of products, in TFLOP; and the graph's GiB."""
    z = torch.empty(1, 4, side, side, device="meta")
    with FlopCounterMode(display=False) as forward:
        operator = approx.JacobianOperator(module, z)
    found = [forward.get_total_flops() / 1e12]
    # tangents of one pass share its forward part: `predict` has blocks of 2 columns, `topk` of 16
    for product, size, columns in (
        (operator.rmatmat, operator.rows, 1),
        (operator.matmat, operator.columns, 2),
        (operator.matmat, operator.columns, 16),
    ):
        with FlopCounterMode(display=False) as flops:
            product(torch.empty(size, columns, device="meta"))
        found.append(flops.get_total_flops() / 1e12 / columns)
    return *found, operator.graph_bytes / 2**30


with torch.device("meta"):
    large = stable_diffusion()
weights = sum(weight.numel() for weight in large.parameters())
SIDES = (16, 64) if SMALL else (8, 16, 32, 64)
cost = pd.DataFrame(
    [counted(large, side) for side in SIDES],
    index=pd.Index(SIDES, name="latent's side"),
    columns=["forward TFLOP", "Jᵀy TFLOP", "Jx by 2 TFLOP", "Jx by 16 TFLOP", "graph GiB, float32"],
)
print(f"{weights:,} weights\n{cost.round(4).to_string()}")
assert weights == 49_490_199, "Expected the published decoder's number of weights"
assert (cost["Jᵀy TFLOP"] <= 1.05 * cost["forward TFLOP"]).all(), "Expected Jᵀy for one pass"
assert abs(cost.loc[64, "forward TFLOP"] - 2.515) < 1e-3, "Expected a pass of 2.515 TFLOP"
assert abs(cost.loc[64, "Jᵀy TFLOP"] - 2.549) < 1e-3, "Expected a product of 2.549 TFLOP"

try:
    from diffusers import AutoencoderKL
except ImportError:
    print("diffusers is not installed: its decoder is not counted beside ours")
else:
    with torch.device("meta"):
        theirs = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            norm_num_groups=32,
            sample_size=512,
        ).eval()
    row = counted(theirs.decode, 64)
    print("diffusers' decoder, 64 x 64:", np.round(row, 4))
    # the graph may keep a few small tensors more
    np.testing.assert_allclose(row, cost.loc[64], rtol=1e-6, err_msg="diffusers' decoder differs")

# %% [markdown]
# A method makes one forward pass and so many products; δ by derivatives costs 1 + P forward passes.
# How many products there are of each kind is counted on a small linear decoder. What they would
# take at the peak of an H100 in bfloat16, 989 TFLOP/s by its data sheet, is **arithmetic, not
# measured**: no decoder reaches the peak, and no such machine was used here.

# %%
PEAK = 989.0  # TFLOP/s, dense
EXACT = 4 * 64 * 64  # columns of the Jacobian


class Counting:
    """An operator that counts its products."""

    def __init__(self, operator):
        self.operator, self.back, self.ahead = operator, 0, 0

    def __getattr__(self, name):
        return getattr(self.operator, name)

    def matmat(self, x):
        """Return J x."""
        self.ahead += x.shape[-1]
        return self.operator.matmat(x)

    def rmatmat(self, y):
        """Return Jᵀy."""
        self.back += y.shape[-1]
        return self.operator.rmatmat(y)


def products(method):
    """Count the products Jᵀy and Jx of a method at k = 120."""
    with approx.JacobianOperator(nn.Linear(800, 1000), torch.randn(1, 800)) as operator:
        counting = Counting(operator)
        found = approx.spectrum(counting, method=method, k=120, generator=0)
    assert counting.back + counting.ahead == found.products, "Expected as many as it says"
    return counting.back, counting.ahead


forward, back, by2, by16, graph = cost.loc[64]
lines = {}
for method, each in (("predict", by2), ("paper", 0), ("topk", by16)):
    y, x = products(method)
    lines[f"psi, nu: {method}, k = 120"] = (y + x, forward + y * back + x * each)
lines["psi, nu: exact"] = (EXACT, forward + EXACT * by16)
lines["delta: jvp, P = 4"] = (4, 5 * forward)
lines["delta: hull, P = 4"] = (0, 8 * forward)
ways = pd.DataFrame(lines, index=["products", "TFLOP"]).T.rename_axis("64 x 64 latent")
ways["H100 s (arithmetic)"] = ways["TFLOP"] / PEAK
print(ways.to_string(float_format=lambda x: f"{x:,.3f}", formatters={"products": "{:,.0f}".format}))

# %%
figure = plt.figure(figsize=(WIDTH, 2.2), layout="constrained")
axes = figure.subplots(1, 3, width_ratios=[1, 1, 1.3])
axes[0].loglog(SIDES, cost["forward TFLOP"], "o-", color=BLUE, ms=4, lw=1, label="forward pass")
axes[0].loglog(SIDES, cost["Jᵀy TFLOP"], "x", color=ORANGE, ms=6, label="product $J^T y$")
axes[0].loglog(SIDES, cost["Jx by 16 TFLOP"], "+", color=GREEN, ms=6, label="product $J x$")
axes[0].set_ylabel("TFLOP")
axes[0].legend()
title(axes[0], "a", "operations")
axes[1].loglog(SIDES, cost["graph GiB, float32"], "o-", color=BLUE, ms=4, lw=1)
axes[1].set_ylabel("GiB in float32")
title(axes[1], "b", "memory of the graph")
for ax in axes[:2]:
    limits = ax.get_ylim()
    ax.set_xticks(SIDES, [str(side) for side in SIDES])
    ax.set_yticks([0.03, 0.1, 0.3, 1, 3], ["0.03", "0.1", "0.3", "1", "3"])
    ax.minorticks_off()
    ax.set(ylim=limits, xlabel="side of the latent")
    ax.grid(lw=0.3, color="0.85")
colours = [BLUE if line.startswith("psi") else GREEN for line in ways.index]
places = np.arange(len(ways))[::-1]
axes[2].barh(places, ways["H100 s (arithmetic)"], color=colours, height=0.6)
LATEX = {"psi": r"$\psi$", "nu": r"$\nu$", "delta": r"$\delta$"}
labels = ways.index.to_series()
for name, symbol in LATEX.items():
    labels = labels.str.replace(name, symbol)
axes[2].set_yticks(places, labels)
for place, seconds in zip(places, ways["H100 s (arithmetic)"], strict=True):
    axes[2].annotate(f"{seconds:.3g}", (seconds, place), xytext=(3, 0), va="center",
                     textcoords="offset points", fontsize=6)  # fmt: skip
axes[2].set(xscale="log", xlim=(5e-3, 400), xlabel="s at an H100's bf16 peak: arithmetic")
title(axes[2], "c", "one latent, 64 x 64")
for ax in axes:
    ax.spines[["top", "right"]].set_visible(False)
save(figure, "03_cost")

# %%
default = ways.loc["psi, nu: predict, k = 120"]
assert default["products"] == 16, "Expected 16 products from predict"
saved = ways.loc["psi, nu: paper, k = 120", "TFLOP"] / default["TFLOP"]
print(f"predict takes {saved:.1f} times fewer operations than the k = 120 products it predicts, "
      f"and psi, nu and delta together take {(default['TFLOP'] + 5 * forward) / forward:.0f} "
      "forward passes")  # fmt: skip
assert saved > 6, "Expected predict to save a factor of 6"
quadrupled = cost["forward TFLOP"].to_numpy()[-1] / cost["forward TFLOP"].to_numpy()[0]
area = (SIDES[-1] / SIDES[0]) ** 2
assert 1 <= quadrupled / area < 1.02, "Expected operations to grow as the latent's area"

# %% [markdown]
# Measured, not computed: the same decoder with random weights, on a latent that this machine can
# afford, in float32. Seconds are of processor time, which other work on the machine does not change
# much.

# %%
SIDE_MEASURED, K_MEASURED, PRODUCTS_MEASURED = (4, 9, 8) if SMALL else (8, 32, 16)
torch.manual_seed(0)
large = stable_diffusion()
z = torch.randn(1, 4, SIDE_MEASURED, SIDE_MEASURED)
with torch.no_grad():
    large(z)
    clock = time.process_time()
    large(z)
seconds = {"forward pass": time.process_time() - clock}
found = {}
for method in ("predict", "paper"):
    clock = time.process_time()
    found[method] = approx.describe(
        large, z, k=K_MEASURED, products=PRODUCTS_MEASURED, method=method, neighbourhood=None,
        generator={"predict": 0, "paper": 1}[method], progress=False,
    )  # fmt: skip
    made = int(found[method].products[0])
    seconds[f"{method}, k = {K_MEASURED}, {made} products"] = time.process_time() - clock
print(f"4x{SIDE_MEASURED}x{SIDE_MEASURED}, CPU seconds: "
      + "; ".join(f"{name} {value:.2f}" for name, value in seconds.items()))  # fmt: skip
one, other = found["predict"], found["paper"]
print(f"predicted psi {one.psi[0]:.2f} ± {one.psi_error[0]:.2f}, measured {other.psi[0]:.2f}; "
      f"nu {one.nu[0]:.2f} ± {one.nu_error[0]:.2f}, measured {other.nu[0]:.2f}")  # fmt: skip
assert one.products[0] == PRODUCTS_MEASURED, "Expected a prediction from so many products"
assert not one.fell_back[0], "Expected psi to be predicted, not measured"
assert abs(one.psi[0] - other.psi[0]) < 4 * one.psi_error[0], "Expected psi within four errors"
assert abs(one.nu[0] - other.nu[0]) < 4 * one.nu_error[0], "Expected nu within four errors"

# %% [markdown]
# ## 3. Where the truth is known: exact slices of a pretrained decoder
#
# `vae_approx_sd15`, with which an image generator previews Stable Diffusion latents of 4 x h x w as
# pictures of 3 x 2h x 2w, has eight convolutions with leaky ReLUs and nothing else. So it is
# exactly piecewise linear, and slices of its latent space can be enumerated. It comes without an
# encoder: latents of the three photographs are found by least squares.

# %%
preview = pretrained.sd_latent_decoder()
network = cpwl.Network.from_torch(preview, (4, 8, 8))
targets = 2 * torch.stack([pretrained.photograph(name, 16) for name in NAMES]) - 1
found = torch.zeros(3, 4, 8, 8, requires_grad=True)
optimizer = torch.optim.LBFGS([found], max_iter=40, line_search_fn="strong_wolfe")


def misfit():
    """Return the squared error of the decoded photographs, and its gradient in `found`."""
    optimizer.zero_grad()
    error = (preview(found) - targets).square().sum()
    error.backward()
    return error.detach()


optimizer.step(misfit)
pictures = found.detach().double()
with torch.no_grad():
    loss = (preview(pictures.float()) - targets).square().mean(dim=(1, 2, 3)) / 4
print(f"{network.num_units:,} units; the photographs have a PSNR of",
      ", ".join(f"{-10 * float(x.log10()):.1f} dB" for x in loss))  # fmt: skip
assert network.num_units == 104_480, "Expected every leaky ReLU of a 4 x 8 x 8 latent as a unit"
assert loss.max() < 10**-2, "Expected latents that decode to the photographs, 20 dB or better"

# %% [markdown]
# The cells are small: a square in the middle between the three latents, with sides of thousandths,
# has a map's worth of them. An estimate reaches over the whole plane of the photographs; the square
# is where it is held against the truth.
#
# **ψ of the slice and ψ of the latent space are different things.** On a cell, G(z) = A z + b with
# A of 768 x 256. On the slice z = z₀ + Bᵀs, with two orthonormal rows in B, it is A Bᵀ s + const.
# The ψ of the slice (`wrt="slice"`) has the two singular values of A Bᵀ: it says how areas of this
# plane grow, and is what density and entropy of samples from the plane need. The ψ of the latent
# space (`wrt="latent"`) has the 256 singular values of A: how volumes of the latent space grow.
# `approx` describes the latent space: with `method="exact"` this very ψ, by default ψ_W, that of
# W A for k random orthonormal output directions W.
#
# A network of this size is out of reach of rational arithmetic. The signs that decide about cells
# are float64's, and the status counts those that a rigorous bound leaves open; `cpwl.check` tests
# what they add up to.

# %%
EXTENT, GRID, WIDE, SAMPLED = (0.002, 8, 4, 1) if SMALL else (0.006, 24, 24, 6)
K3, PRODUCTS3 = 12, 8
through = cpwl.Slice.through(*pictures)
middle = through.anchors.mean(axis=0)
# the same plane, from its middle
slice_ = cpwl.Slice(through.embed(middle[None])[0], through.basis)
NEAR = EXTENT / 16  # radius of the neighbourhoods in which knots are counted
half = EXTENT / 2 + NEAR  # so that those at the square's edge are inside
domain = slice_.box([-half, -half], [half, half])
partition = cpwl.subdivide(network, domain, progress=False)
psi_slice = cpwl.local_scaling(partition)
print(partition, partition.status, sep="\n")
assert partition.status.complete, "Expected all cells"
if not SMALL:  # as expensive as the partition
    assert cpwl.check(partition).ok, "Expected cells that tile the square, and maps that fit"

rng = np.random.default_rng(0)
# ψ of the latent space costs 256 columns a cell: all cells at full size, a few at the small one
sampled = np.sort(rng.choice(partition.num_cells, SAMPLED, replace=False))
cells = sampled if SMALL else np.arange(partition.num_cells)
spectrum = cpwl.spectrum(partition, cells, wrt="latent")
psi_latent = np.full(partition.num_cells, np.nan)
psi_latent[cells] = cpwl.local_scaling(spectrum)

options = {"k": K3, "products": PRODUCTS3, "generator": 0, "dtype": torch.float32,
           "knots_dtype": torch.float64, "progress": False}  # fmt: skip
wide = approx.field(preview, pictures, WIDE, neighbourhood=None, **options)
corners = EXTENT * (np.array([[0, 0], [1, 0], [0, 1]]) - 0.5)
three = torch.from_numpy(slice_.embed(corners))
basis = torch.from_numpy(slice_.basis.reshape(2, -1).copy())
square = approx.field(preview, three, (GRID, GRID), margin=0, neighbourhood=(basis, NEAR),
                      **options)  # fmt: skip

# %% [markdown]
# With all cells at hand, the exact knots in a neighbourhood |s - s₀|₁ < r are those whose facets
# meet it, and its exact δ is the number of cells that do.


# %%
def meets(segments, centres, radius):
    """Tell which open diamonds about `centres` (n, 2) meet which segments (F, 2, 2): (n, F)."""
    first = segments[:, 0] - centres[:, None]
    along = segments[:, 1] - segments[:, 0]
    # |first + t along|₁ is convex and linear in between: least at an end or where one term is 0
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.nan_to_num(-first / along).clip(0, 1)
    t = np.concatenate([t, np.zeros_like(t[..., :1]), np.ones_like(t[..., :1])], axis=-1)
    distance = np.abs(first[:, :, None] + t[..., None] * along[:, None]).sum(axis=-1)
    return distance.min(axis=-1) < radius


inner = np.flatnonzero(partition.facet_unit >= 0)
segments = partition.points[partition.facet_points[inner]]
units, unit = np.unique(partition.facet_unit[inner], return_inverse=True)
stage = np.searchsorted(network.stage_offsets, units, side="right") - 1
of_unit = coo_array((np.ones(len(inner)), (np.arange(len(inner)), unit))).tocsr()
ends_of = np.repeat(np.arange(len(inner)), 2), partition.facet_cells[inner].ravel()
of_cell = coo_array((np.ones(2 * len(inner)), ends_of), (len(inner), partition.num_cells)).tocsr()
geometry = replace(partition, network=None)  # cells are then searched for without forward passes


def exact_knots(centres, radius):
    """Return which units have their knot in the diamonds about `centres` (n, 2), (n, units)."""
    parts = np.array_split(centres, 1 + len(centres) // 500)
    return np.concatenate([meets(segments, x, radius) @ of_unit > 0 for x in parts])


def exact_cells(centres, radius):
    """Return how many cells meet diamonds inside the domain, (n,)."""
    met = meets(segments, centres, radius) @ of_cell > 0
    met[np.arange(len(centres)), cpwl.locate(geometry, centres)] = True
    return met.sum(axis=1)


def grid(n):
    """Return the centres of n x n pixels of the square, (n n, 2), in the order of `field`."""
    at = EXTENT * ((np.arange(n) + 0.5) / n - 0.5)
    return np.stack([x.ravel() for x in np.meshgrid(at, at)], axis=1)


centres = grid(GRID)
met = exact_knots(centres, NEAR)
stages_exact = np.stack([met[:, stage == k].sum(axis=1) for k in range(network.num_stages)], axis=1)
knots_exact, cells_exact = met.sum(axis=1), exact_cells(centres, NEAR)

# %%
figure = plt.figure(figsize=(WIDTH, 4.7), layout="constrained")
axes = figure.subplots(2, 3)
edge = EXTENT / 2
zoomed = (-edge, edge, -edge, edge)


def finish(ax, shown, letter, text, ticks=None):
    """Give a map its colour bar, as high as the map, and its title."""
    bar = ax.figure.colorbar(shown, cax=ax.inset_axes((1.04, 0, 0.05, 1)), ticks=ticks)
    bar.ax.ticklabel_format(useOffset=False) if ticks is None else None
    ax.set_title(rf"$\bf{{{letter}}}$  {text}", loc="left")
    ax.set(xlabel="$s_0$", ylabel="$s_1$")


def frame(ax):
    """Give a map of the square its axes."""
    ax.set(xlim=(-edge, edge), ylim=(-edge, edge), xticks=(-edge, 0, edge), yticks=(-edge, 0, edge))
    ax.ticklabel_format(scilimits=(0, 0))


def pixels(ax, values, extent, **style):
    """Draw a map of pixels."""
    return ax.imshow(values, origin="lower", extent=extent, interpolation="nearest", **style)


u, v = wide.u.values - middle[0], wide.v.values - middle[1]
pixel = u[1] - u[0]
everything = (u[0] - pixel / 2, u[-1] + pixel / 2, v[0] - pixel / 2, v[-1] + pixel / 2)
shown = pixels(axes[0, 0], wide.psi, everything)
cpwl.plot.mark(axes[0, 0], through.anchors - middle, color="white", s=16, edgecolors="black")
for name, at in zip("ABC", through.anchors - middle, strict=True):
    axes[0, 0].annotate(name, at, xytext=(-4, 5), textcoords="offset points", color="white")
axes[0, 0].plot(0, 0, "s", ms=5, mfc="none", mec=ORANGE, mew=1.3)
finish(axes[0, 0], shown, "a", rf"$\psi_W$, estimated (k = {K3})")
for ax, values, letter, name in (
    (axes[0, 1], psi_slice, "b", "slice"), (axes[0, 2], psi_latent, "c", "latent space"),
):  # fmt: skip
    cpwl.plot.partition(partition, values, ax=ax, colorbar=False)
    frame(ax)
    finish(ax, ax.collections[0], letter, rf"$\psi$ of the {name}, exact")
shown = pixels(axes[1, 0], square.psi, zoomed)
frame(axes[1, 0])
finish(axes[1, 0], shown, "d", r"$\psi_W$, estimated")
most = int(max(knots_exact.max(), square.delta.max()))
counts = {"cmap": plt.get_cmap("viridis", most + 1), "vmin": -0.5, "vmax": most + 0.5}
FINE = 120
finer = exact_knots(grid(FINE), NEAR).sum(axis=1).reshape(FINE, FINE)
for ax, values, letter, text in (
    (axes[1, 1], finer, "e", "exact"), (axes[1, 2], square.delta, "f", "estimated"),
):  # fmt: skip
    shown = pixels(ax, values, zoomed, **counts)
    frame(ax)
    finish(ax, shown, letter, f"knots within r, {text}", range(0, most + 1, 1 + most // 6))
save(figure, "03_exact_slices")

# %% [markdown]
# a: ψ_W over the plane through the photographs A, B and C; b to f: the small square in its middle.
# The map d is an estimate as well, and shows the cells all the same: G is affine on a cell, so that
# the estimate is one number there, and common probes make differences between cells much more
# certain than the values. It resembles c, the ψ of the latent space that it samples, and not b.

# %%
cell = cpwl.locate(geometry, centres)
clear = exact_knots(centres, NEAR / 4).sum(axis=1) == 0  # float32 is on the same side of a knot
estimate, error = square.psi.values.ravel(), float(square.psi_error.median())
flat = pd.Series(estimate[clear]).groupby(cell[clear]).agg(["max", "min", "mean"])
inside, between = (flat["max"] - flat["min"]).max(), float(np.ptp(flat["mean"]))
print(f"d: standard error {error:.2f}; within a cell the estimate varies by {inside:.1e}, "
      f"between cells by {between:.1e}")  # fmt: skip
assert inside < 0.05 * between, "Expected one estimate on each cell"
assert between < error, "Expected differences that only common probes can show"
print(
    f"a: {1 - float(wide.fell_back.mean()):.0%} of the plane's latents are predicted from "
    f"{PRODUCTS3} products or a few more, the others have too large a k / r_eff, and are measured "
    f"with {K3}"
)
assert wide.fell_back.mean() < 0.5, "Expected predictions on most of the plane"
assert not square.fell_back.any(), "Expected predictions on the square"

A = np.concatenate([a for a, _ in cpwl.affine_maps(partition, sampled, wrt="latent")])
B = slice_.basis.reshape(2, -1)
for one, row in zip(sampled, A, strict=True):
    sigma = np.log(np.linalg.svd(row, compute_uv=False))
    in_slice = np.log(np.linalg.svd(row @ B.T, compute_uv=False)).sum()
    np.testing.assert_allclose(psi_latent[one], sigma.sum(), atol=1e-8, err_msg="psi, latent space")
    np.testing.assert_allclose(psi_slice[one], in_slice, atol=1e-8, err_msg="psi, slice")
    print(f"cell {one}: psi of the slice {in_slice:.3f}, of the latent space {sigma.sum():.2f}")
    corners = partition.points[
        partition.cell_corners[slice(*partition.cell_offsets[one : one + 2])]
    ]
    ends = np.stack([corners.mean(axis=0), (corners.mean(axis=0) + corners[0]) / 2])
    y = network(torch.from_numpy(slice_.embed(ends))).numpy().reshape(2, -1)
    moved = row @ B.T @ (ends[1] - ends[0])
    np.testing.assert_allclose(y[1] - y[0], moved, atol=1e-12, err_msg="A against the decoder")
    assert sigma[-2:].sum() <= in_slice <= sigma[:2].sum(), "Expected what interlacing allows"
if not SMALL:
    seen = flat.index.to_numpy()
    like_b, like_c = (correlation(flat["mean"], x[seen]) for x in (psi_slice, psi_latent))
    print(f"rank correlation over the square's cells: psi of the slice and of the latent space "
          f"{correlation(psi_slice, psi_latent):+.2f}, the estimate and psi of the slice "
          f"{like_b:+.2f}, the estimate and psi of the latent space {like_c:+.2f}")  # fmt: skip
    assert like_c > max(like_b, 0.5), "Expected the estimate to follow psi of the latent space"

# %% [markdown]
# Now latent by latent.
#
# - **ψ**: `approx` with `method="exact"` against `cpwl`, at latents of the square and at those of
#   photographs, each in the cell that `cpwl` finds about it.
# - **ψ_W**: a prediction has a 95 % interval for ψ_W of another draw of W. Such a draw is made here
#   in numpy, from the exact A of the latent's cell. (Where the products suggest k / r_eff > 0.8,
#   all k are made.)
# - **δ**: knots counted from pre-activations and their derivatives, in float64, against the exact
#   ones in the same neighbourhood. The count takes every unit as affine there. That holds up to the
#   first stage that has a knot in it; behind a knot the others bend, and the count may miss one or
#   see one too many.

# %%
FAR, TRIALS = (1, 30) if SMALL else (3, 120)


def exact_psi(z):
    """Return ψ of the latent space on the cell about a latent, by enumeration."""
    near = cpwl.cross_polytope(z, NEAR / 10, slice_.basis)
    part = cpwl.subdivide(network, near, progress=False)
    spectrum = cpwl.spectrum(part, cpwl.locate(part, np.zeros((1, 2))), wrt="latent")
    return cpwl.local_scaling(spectrum)[0]


points = cpwl.centroids(partition)[sampled]
inside_cells = torch.from_numpy(slice_.embed(points))
table = approx.describe(preview, torch.cat([pictures[:FAR], inside_cells]), method="exact",
                        neighbourhood=None, progress=False)  # fmt: skip
truth = np.concatenate([[exact_psi(z) for z in pictures[:FAR]], psi_latent[sampled]])
difference = np.abs(table.psi - truth)

trials, measured = [], 0
for trial in range(TRIALS):
    which = trial % SAMPLED
    with approx.JacobianOperator(preview, inside_cells[which][None].float()) as operator:
        found = approx.spectrum(operator, k=K3, products=PRODUCTS3, generator=trial)
    measured += int(found.fell_back.any())
    W = np.linalg.qr(rng.standard_normal((A.shape[1], K3)))[0].T
    drawn = np.log(np.linalg.svd(W @ A[which], compute_uv=False)).sum()
    trials.append(
        (*found.psi_interval[0].tolist(), float(found.psi), float(found.psi_stderr), drawn)
    )
low, high, predicted, stderr, drawn = np.array(trials).T
inside = (low < drawn) & (drawn < high)

counted64 = approx.knots(preview, approx.latents_at(square, np.arange(square.psi.size)),
                         radius=NEAR, directions=basis, dtype=torch.float64)  # fmt: skip
stages_counted = counted64.per_layer.numpy()
knots_counted = stages_counted.sum(axis=1)

# %%
figure = plt.figure(figsize=(WIDTH, 2.1), layout="constrained")
axes = figure.subplots(1, 4, width_ratios=[1, 1.35, 1, 1])
ax = axes[0]
ends_of_psi = (truth.min() - 10, truth.max() + 10)
ax.plot(ends_of_psi, ends_of_psi, color=GREY, lw=0.6)
ax.plot(truth[:FAR], table.psi[:FAR], "o", color=ORANGE, ms=5, mfc="none", label="photographs")
ax.plot(truth[FAR:], table.psi[FAR:], "x", color=BLUE, ms=5, label="in the square")
ax.set(xlabel=r"$\psi$, cpwl", ylabel=r"$\psi$, approx")
ax.legend(loc="upper left")
order = np.argsort(predicted - drawn)
place = np.arange(TRIALS)
ax = axes[1]
ax.vlines(place, (low - drawn)[order], (high - drawn)[order], lw=0.8,
          color=np.where(inside[order], BLUE, ORANGE))  # fmt: skip
ax.plot(place, (predicted - drawn)[order], ".", color="black", ms=2)
ax.axhline(0, color=GREY, lw=0.6)
ax.set(xlabel="trial", ylabel=r"predicted $-$ drawn $\psi_W$")
for ax, y, name in ((axes[2], knots_counted, "estimated knots"), (axes[3], cells_exact, "cells")):
    pairs, many = np.unique(np.stack([knots_exact, y]), axis=1, return_counts=True)
    ax.scatter(*pairs, s=120 * many / many.max(), color=BLUE, lw=0, zorder=3)
    ax.set(xlabel="exact knots", ylabel=name)
    ax.margins(0.12)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
n = np.arange(knots_exact.max() + 1)
axes[2].plot(n, n, color=ORANGE, lw=0.8, label="equal")
axes[3].plot(n, 1 + n + n * (n - 1) // 2, color=ORANGE, lw=0.8, label="Zaslavsky")
for ax in axes[2:]:
    ax.legend(loc="upper left")
for letter, ax in zip("abcd", axes, strict=True):
    ax.set_title(letter, loc="left", fontweight="bold")
    ax.spines[["top", "right"]].set_visible(False)
save(figure, "03_agreement")

# %%
print(f"a: psi of {len(truth)} latents from {truth.min():.1f} to {truth.max():.1f}, "
      f"the two differ by at most {difference.max():.1e}")  # fmt: skip
assert difference.max() < 1e-8, "Expected approx's exact psi to be cpwl's"
assert truth[:FAR].min() > truth[FAR:].max(), "Expected blends to be contracted most"

scores = (predicted - drawn) / stderr
least = 0.95 - 3 * np.sqrt(0.95 * 0.05 / TRIALS)
print(f"b: {inside.mean():.0%} of {TRIALS} intervals hold another draw (at least {least:.0%} "
      f"expected), {measured} with all {K3} products; differences over their standard errors: mean "
      f"{scores.mean():+.2f}, standard deviation {scores.std():.2f}")  # fmt: skip
assert measured <= 0.1 * TRIALS, "Expected predictions from few products"
assert inside.mean() >= least, "Expected intervals that hold at their stated rate"
assert abs(scores.mean()) < 4 / np.sqrt(TRIALS), "Expected predictions without bias"
assert 0.6 < scores.std() < 1.5, "Expected standard errors that are neither too small nor too large"

equal = knots_counted == knots_exact
first = np.where(knots_exact > 0, (stages_exact > 0).argmax(axis=1), network.num_stages)
known = np.arange(network.num_stages) <= first[:, None]
print(
    f"c: {equal.mean():.1%} of {len(equal)} counts are the exact ones, of 0 to "
    f"{knots_exact.max()} knots; {(~equal & (knots_exact < 2)).sum()} others have fewer than two"
)
assert (knots_counted == square.delta.values.ravel()).all(), "Expected the map's own counts"
assert (stages_counted == stages_exact)[known].all(), "Expected exact counts up to the first stage"
assert equal.mean() > 0.95, "Expected nearly all counts to be exact at this radius"

bound = 1 + knots_exact + knots_exact * (knots_exact - 1) // 2
straight = ((stages_exact > 0).sum(axis=1) <= 1) | (knots_exact <= 1)
print(
    f"d: {cells_exact.max()} cells at most; Zaslavsky's bound is reached at "
    f"{(cells_exact == bound).mean():.0%} and exceeded at {(cells_exact > bound).sum()} latents"
)
assert (cells_exact <= bound)[straight].all(), "Expected no more cells than straight knots can make"
for i in rng.choice(len(centres), 2 if SMALL else 8, replace=False):
    z = slice_.embed(centres[i][None])[0]
    delta = cpwl.local_complexity(network, z, NEAR, slice_.basis)
    assert delta == cells_exact[i], "Expected as many cells as an enumeration of V_z finds"

# %% [markdown]
# The two engines share no code and agree wherever both can go: `method="exact"` has the ψ of the
# cell, predictions keep their intervals, and knots counted in float64 are those of the partition up
# to where they bend. That is the case for believing the estimates where nothing else can go.
