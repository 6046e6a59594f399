"""Figures of approx: what they show, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from support import decoders
from torch import Tensor, nn

from approx import DecoderError, Descriptors, along, bind, describe, field, latents_at, plot

pytest.importorskip("xarray")

OPTIONS: dict[str, Any] = {"generator": 2, "progress": False, "neighbourhood": (2, 0.3), "k": 6}


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    before = dict(mpl.rcParams)
    yield
    plt.close("all")
    assert dict(mpl.rcParams) == before


@pytest.fixture(scope="module")
def decoder() -> nn.Module:
    return decoders.relu_conv()[0]


@pytest.fixture(scope="module")
def plane(decoder: nn.Module) -> Any:
    return field(decoder, decoders.latents((6, 2, 2), 3), (9, 7), **OPTIONS)


@pytest.fixture(scope="module")
def walk(decoder: nn.Module) -> Any:
    start, stop = decoders.latents((6, 2, 2), 2)
    return along(
        decoder, torch.lerp(start, stop, torch.linspace(0, 1, 8)[:, None, None, None]), **OPTIONS
    )


@pytest.fixture(scope="module")
def table(decoder: nn.Module) -> Descriptors:
    return describe(decoder, decoders.latents((6, 2, 2), 20), **OPTIONS)


def shown(ax: Any) -> np.ma.MaskedArray:
    (image,) = ax.get_images()
    return image.get_array()


def drawn(figure: Any) -> Any:
    figure.canvas.draw()
    return figure


def gray(y: Tensor) -> Tensor:
    return y[0]


def test_maps(plane: Any) -> None:
    figure = drawn(plot.fields(plane, names="PQR"))
    axes = [ax for ax in figure.axes if ax.get_images()]
    assert len(axes) == 3
    for ax, name in zip(axes, ("psi", "nu", "delta"), strict=True):
        np.testing.assert_array_equal(shown(ax), plane[name])
        left, right, bottom, top = ax.get_images()[0].get_extent()
        step = float(plane.u[1] - plane.u[0])
        assert left == pytest.approx(float(plane.u[0]) - step / 2)
        assert right == pytest.approx(float(plane.u[-1]) + step / 2)
        assert bottom < plane.v[0] < plane.v[-1] < top
        assert ax.get_images()[0].origin == "lower"
        (marks,) = ax.get_lines()
        np.testing.assert_allclose(marks.get_xdata(), plane.anchor_u)
        np.testing.assert_allclose(marks.get_ydata(), plane.anchor_v)
        assert [text.get_text() for text in ax.texts] == ["P", "Q", "R"]
    bars = [ax.child_axes[0].get_ylabel() for ax in axes]
    assert [r"\pm" in text for text in bars] == [True, True, False]  # psi and nu have errors


def test_a_map_that_was_interrupted_is_grey_there(plane: Any) -> None:
    broken = plane.copy(deep=True)
    broken["psi"][3:] = np.nan
    broken["nu"][:] = np.nan
    figure = drawn(plot.fields(broken, ["psi", "nu"]))
    assert shown(figure.axes[0]).mask[3:].all()
    assert not shown(figure.axes[0]).mask[:3].any()
    assert shown(figure.axes[1]).mask.all()


def test_paths(walk: Any) -> None:
    figure = drawn(plot.path(walk))
    assert [ax.get_ylabel().split(" $")[0] for ax in figure.axes] == [
        "local scaling", "local rank", "local complexity",
    ]  # fmt: skip
    np.testing.assert_array_equal(figure.axes[0].get_lines()[0].get_ydata(), walk.psi)
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(float(walk.psi_low.min()))
    figure = plot.path(walk, ["effective_rank"], against="distance", xlabel="length")
    np.testing.assert_array_equal(figure.axes[0].get_lines()[0].get_xdata(), walk.distance)
    assert figure.axes[0].get_xlabel() == "length"


def test_gallery_of_a_plane(decoder: nn.Module, plane: Any) -> None:
    figure = drawn(plot.gallery(decoder, plane, "psi", 4, image=gray))
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert len(panels) == 8
    order = np.argsort(plane.psi.values.ravel())
    captions = [float(ax.get_title().split(":")[1].replace("\N{MINUS SIGN}", "-")) for ax in panels]
    values = plane.psi.values.ravel()[order]
    assert captions[:4] == pytest.approx(values[::-1][:4].tolist(), rel=0.01)
    assert captions[4:] == pytest.approx(values[:4].tolist(), rel=0.01)


def test_gallery_shows_the_decoded_latents(decoder: nn.Module, table: Descriptors) -> None:
    z = decoders.latents((6, 2, 2), 20)
    figure = plot.gallery(decoder, table, "nu", 3, latents=z, image=gray)
    with torch.no_grad():
        images = decoder(z)[:, 0].numpy()
    order = np.argsort(table.nu)
    for ax, index in zip(figure.axes, [*order[::-1][:3], *order[:3]], strict=True):
        np.testing.assert_allclose(shown(ax), images[index], atol=1e-6)
    assert figure.axes[0].get_ylabel().startswith("highest")
    assert figure.axes[3].get_ylabel().startswith("lowest")


def test_gallery_of_bound_rows() -> None:
    shades = torch.linspace(1, 2, 6)[:, None, None]
    decoder = bind(lambda z, shade: shade * z[:, :, None].expand(-1, -1, 2), shade=shades)
    z, shown = torch.ones(6, 2), []
    table = describe(decoder, z, neighbourhood=None, progress=False)
    plot.gallery(decoder, table, "psi", 2, latents=z, image=lambda y: shown.append(y[0, 0]) or y)
    assert torch.equal(torch.stack(shown), shades[[5, 4, 0, 1], 0, 0])
    with pytest.raises(DecoderError, match="a row of shade= for each of 5 latents, got 6"):
        plot.gallery(
            decoder,
            describe(bind(decoder.target, shade=2.0), z[:5], neighbourhood=None, progress=False),
            k=2,
            latents=z[:5],
        )


def test_gallery_apart(decoder: nn.Module, plane: Any) -> None:
    from approx.plot.pictures import extremes

    values = plane.psi.values.ravel()
    high, low, z = extremes(plane, values, 4, 1.0, None)
    flat = z.flatten(1)
    for half in (flat[:4], flat[4:]):
        assert torch.pdist(half).min() >= 1.0
    # greedy: nothing better was passed over but for being near one that was kept
    assert high[0] == values.argmax()
    assert low[0] == values.argmin()
    better = np.flatnonzero(values > values[high[-1]])
    near = torch.cdist(latents_at(plane, better).flatten(1), flat[:4]).min(dim=1).values
    assert (near < 1.0).all()
    with pytest.raises(ValueError, match=r"Expected 4 latents at least 100 apart, got 1: lower"):
        plot.gallery(decoder, plane, "psi", 4, apart=100)


@pytest.mark.parametrize("size", [(16,), (4, 4), (1, 4, 4), (3, 4, 4)])
def test_pictures_of_usual_shapes(size: tuple[int, ...]) -> None:
    module = nn.Sequential(nn.Linear(5, 48), nn.ReLU(), nn.Linear(48, int(np.prod(size))))
    module = nn.Sequential(module, nn.Unflatten(1, size))
    z = decoders.latents((5,), 6)
    described = describe(module, z, **OPTIONS | {"k": 4})
    figure = drawn(plot.gallery(module, described, k=2, latents=z))
    pixels = shown(figure.axes[0])
    assert pixels.shape == ((4, 4, 3) if size[0] == 3 else (4, 4))
    every = np.concatenate([shown(ax).ravel() for ax in figure.axes])
    assert every.min() == 0
    assert every.max() == 1


def test_distributions(table: Descriptors) -> None:
    labels = np.arange(20) % 3
    labels[0] = 7  # a class of one
    figure = drawn(plot.distribution(table, labels, names={7: "seven"}, xlabel="digit"))
    assert len(figure.axes) == 3
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0", "1", "2", "seven"]
    medians = [line.get_ydata()[0] for line in ax.get_lines()]
    assert medians == pytest.approx([np.median(table.psi[labels == c]) for c in (0, 1, 2, 7)])
    frame = {"psi": table.psi}
    figure = plot.distribution(frame, labels, by="psi", figure=plt.figure())
    assert len(figure.axes) == 1


def test_bad_arguments(decoder: nn.Module, plane: Any, walk: Any, table: Descriptors) -> None:
    for call, message in (
        (lambda: plot.fields(walk), "Expected a dataset from field, got one over"),
        (lambda: plot.path(plane), "Expected a dataset from along, got one over"),
        (lambda: plot.fields(plane, ["phi"]), "Expected columns of the dataset, got 'phi'"),
        (lambda: plot.path(walk, against="time"), "Expected against as 'step' or 'distance'"),
        (lambda: plot.gallery(decoder, plane, "phi"), "Expected a column, got 'phi'"),
        (lambda: plot.gallery(decoder, plane, k=40), "between 1 and half of the 63 latents"),
        (lambda: plot.gallery(decoder, table), "Expected latents= with the 20 latents"),
        (lambda: plot.gallery(decoder, walk, k=2), r"Expected outputs \(H, W\), \(1, H, W\)"),
        (
            lambda: plot.distribution(table, [0, 1]),
            r"one label for each entry of a column, got shapes \(2,\) and \(20,\)",
        ),
        (lambda: plot.distribution({"psi": []}, [], "psi"), "one class or more, got none"),
        (lambda: plot.distribution(table, [0] * 20, by="phi"), "Expected columns of the table"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_trajectories_have_a_line_for_each_place_and_bands_over_samples() -> None:
    samples, steps = 11, 3
    run = {
        "step": np.repeat(np.arange(steps), 2 * samples),
        "sigma": np.repeat([np.inf, 1.0, 0.0], 2 * samples),
        "at": np.tile(np.repeat(["sample", "clean"], samples), steps),
        "psi": np.tile(np.concatenate([np.arange(11.0), 10 * np.arange(11.0)]), steps),
    }
    figure = plot.trajectory(run)
    (ax,) = figure.axes
    at_sample, at_clean = ax.lines
    np.testing.assert_array_equal(at_sample.get_xdata(), [0, 1, 2])
    np.testing.assert_array_equal(at_sample.get_ydata(), [5, 5, 5])
    np.testing.assert_array_equal(at_clean.get_ydata(), [50, 50, 50])
    band = np.asarray(ax.collections[1].get_paths()[0].vertices, dtype=float)
    assert (band[:, 1].min(), band[:, 1].max()) == (10, 90)  # the middle 80 %
    (ax,) = plot.trajectory(run, "psi", against="sigma").axes
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [1.0])
    assert ax.get_xscale() == "log"
    assert ax.xaxis_inverted()
    with pytest.raises(ValueError, match=r"columns of a recorded run, got none named 'nu' among"):
        plot.trajectory(run, ["nu"])
    with pytest.raises(ValueError, match=r"a run with described steps, got none: record some"):
        plot.trajectory({name: column[:0] for name, column in run.items()})


def test_the_band_of_one_sample_is_its_interval() -> None:
    run = {"step": [0, 1], "at": ["sample"] * 2, "psi": [0.0, 1.0],
           "psi_low": [-1.0, 0.0], "psi_high": [2.0, 4.0]}  # fmt: skip
    (ax,) = plot.trajectory(run).axes
    band = np.asarray(ax.collections[0].get_paths()[0].vertices, dtype=float)
    assert (band[:, 1].min(), band[:, 1].max()) == (-1, 4)


def test_populations_are_laid_over_one_another_by_their_shares() -> None:
    psi = np.concatenate([np.linspace(0, 1, 90), np.linspace(2, 3, 10)])
    labels = np.repeat(["digits", "letters"], [90, 10])
    (ax,) = plot.distribution({"psi": psi}, labels, "psi", xlabel="of", overlaid=True).axes
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["digits", "letters"]
    heights = {p.get_label(): np.max(p.get_path().vertices[:, 1]) for p in ax.patches}
    assert 0 < heights["digits"] < 3 / 10
    assert 0 < heights["letters"] < 3 / 10  # although they are nine times fewer
    with pytest.raises(ValueError, match=r"at most 7 classes to overlay, got 8: draw fewer"):
        plot.distribution({"psi": np.arange(8.0)}, np.arange(8), "psi", overlaid=True)
