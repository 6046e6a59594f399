"""Commands `cpwl describe` and `field`: estimates for decoders too large to enumerate."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import numpy as np

from bridges.cli.arguments import (
    AT_A_TIME,
    check_latents,
    check_output,
    client_of,
    cluster_options,
    load_npy,
    model_options,
    read_pixels,
    shaped_latents,
)
from bridges.cli.errors import Stopped

# `cpwl --help` should not wait for torch: the commands import what they need.
if TYPE_CHECKING:
    import torch
    import xarray as xr

    from approx import Descriptors, StoredDescriptors
    from bridges.cli.loading import Loaded

_PICTURES = (".png", ".pdf", ".svg")
_SUFFIXES = (".csv", ".parquet", ".nc", ".zarr", *_PICTURES)
_DTYPES = ("float32", "float64", "bfloat16", "float16")
_DESCRIPTORS = ("psi", "nu", "delta")

_PATH = click.Path(path_type=Path)


class _Method(click.Choice[str]):
    """A name in approx's table of methods, which is imported when a command runs."""

    def __init__(self) -> None:
        self.case_sensitive = True

    @property
    def choices(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        from approx.spectra import METHODS

        return tuple(METHODS)


_OPTIONS = (
    click.option(
        "-o",
        "--output",
        type=_PATH,
        multiple=True,
        help=f"Result, its format by its suffix: {', '.join(_SUFFIXES)}. May be repeated.",
    ),
    click.option(
        "--store",
        metavar="PATH",
        help="Zarr store, a folder or a URL, to which rows are written as they are done; the same "
        "command again goes on.  [needed without -o, and on a cluster]",
    ),
    click.option(
        "--method",
        default="auto",
        show_default=True,
        type=_Method(),
        help="How psi and nu are estimated.",
    ),
    click.option(
        "--k",
        type=click.IntRange(min=1),
        help="Singular values behind psi and nu.  [default: 120, or as many as there are]",
    ),
    click.option(
        "--neighbourhood",
        type=(int, float),
        default=(4, 1e-5),
        show_default=True,
        metavar="P R",
        help="Directions and radius of the neighbourhood of delta.",
    ),
    click.option("--no-delta", is_flag=True, help="Leave delta out."),
    click.option("--seed", type=int, help="Seed of the probes and directions.  [default: random]"),
    click.option(
        "--batch", type=click.IntRange(min=1), help="Latents at a time.  [default: as many as fit]"
    ),
    click.option(
        "--dtype",
        type=click.Choice(_DTYPES),
        help="What the decoder runs in.  [default: float32, for exact float64]",
    ),
    click.option(
        "--device", help="Such as cuda:1 or mps.  [default: cuda if there is one, or cpu]"
    ),
    click.option(
        "--memory",
        default=1.0,
        show_default=True,
        type=click.FloatRange(0, min_open=True),
        help="GiB that the dense Jacobians of --method exact may take.",
    ),
    click.option(
        "--on-error",
        default="raise",
        show_default=True,
        type=click.Choice(("raise", "nan")),
        help="Stop at a latent that fails, or give it a row of NaN.",
    ),
    click.option(
        "--straight-through",
        is_flag=True,
        help="Accept a derivative that is not that of what the decoder computes.",
    ),
)


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what both commands have in common."""
    command = cluster_options(model_options(command))
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


class _Work(NamedTuple):
    """A decoder, latents and the options of `approx.describe`."""

    decode: Callable[[torch.Tensor], Any]
    # what approx is given: on a cluster each worker loads it
    decoder: Any
    latents: np.ndarray
    dtype: torch.dtype
    device: str
    options: dict[str, Any]
    # rows that the store had before
    held: int

    def tensor(self, values: np.ndarray) -> torch.Tensor:
        """Return latents where the decoder is."""
        import torch

        return torch.from_numpy(np.array(values)).to(device=self.device, dtype=self.dtype)


@click.command()
@click.argument("model")
@click.argument("latents", type=_PATH)
@click.option("--labels", type=_PATH, help="A .npy file with a class for each latent.")
@_options
def describe(model: str, latents: Path, labels: Path | None, **options: Any) -> None:
    """Estimate psi, nu and delta of a decoder at each of many latents.

    MODEL is an .onnx file, a .pt2 file from torch.export, or an autoencoder of diffusers
    (AutoencoderKL, Tiny, DC, Oobleck, VQModel): its folder, or its name on the hub. LATENTS is a
    .npy file (N, ...), read as it is needed; those of a VQModel are not quantised. A picture shows
    the distributions, by class with --labels.

    After Ctrl-C what is done is in --store, or else is written as NAME.partial.SUFFIX.
    """
    outputs: tuple[Path, ...] = options["output"]
    _check_outputs(outputs, options["store"])
    work = _prepare(model, latents, options)
    classes = None if labels is None else load_npy(labels, "--labels")
    if classes is not None and classes.shape != (len(work.latents),):
        raise ValueError(
            f"Expected one label for each of {len(work.latents)} latents in {labels}, got shape "
            f"{classes.shape}. Save an array of one axis, in the order of the latents."
        )
    import approx

    def run() -> Descriptors:
        here = work.options["client"] is None
        latents = _stream(work) if here else work.latents
        return approx.describe(work.decoder, latents, total=len(work.latents), **work.options)

    start, store = time.perf_counter(), options["store"]
    table = _run(run, outputs, store, lambda table, path: _write_table(table, path, classes))
    click.echo(_summary(table, time.perf_counter() - start, work.held))
    _keep(table.complete, f"{len(table):,} of {len(work.latents):,} latents", outputs, store,
          lambda path: _write_table(table, path, classes))  # fmt: skip


@click.command()
@click.argument("model")
@click.argument("anchors", type=_PATH)
@click.option(
    "--resolution", default="64", show_default=True, metavar="N", help="Pixels: 64, or 64,48."
)
@click.option(
    "--margin",
    default=0.25,
    show_default=True,
    type=click.FloatRange(0),
    help="Room around the anchors, as a share of the longer side.",
)
@click.option(
    "--gallery", type=_PATH, help="Picture of the images at the highest and lowest values."
)
@click.option("--by", default="psi", show_default=True, type=click.Choice(_DESCRIPTORS))
@click.option("--images", default=8, show_default=True, type=click.IntRange(1), help="In a row.")
@_options
def field(
    model: str,
    anchors: Path,
    resolution: str,
    margin: float,
    gallery: Path | None,
    by: str,
    images: int,
    **options: Any,
) -> None:
    """Estimate psi, nu and delta of a decoder over the plane through three latents.

    MODEL is an .onnx file, a .pt2 file from torch.export, or an autoencoder of diffusers
    (AutoencoderKL, Tiny, DC, Oobleck, VQModel): its folder, or its name on the hub. ANCHORS is a
    .npy file (3, ...); those of a VQModel are not quantised. A picture shows the maps with the
    anchors marked; --gallery decodes the extremes of --by.

    After Ctrl-C what is done is in --store, or else is written as NAME.partial.SUFFIX, missing
    pixels as NaN.
    """
    outputs: tuple[Path, ...] = options["output"]
    _check_outputs(outputs, options["store"])
    if gallery is not None:
        check_output(gallery, _PICTURES, "--gallery")
    if gallery is not None and by == "delta" and options["no_delta"]:
        raise ValueError("Expected delta for --by delta, got --no-delta. Leave one of them out.")
    pixels = read_pixels(resolution)
    work = _prepare(model, anchors, options, plane=True)
    if len(work.latents) != 3:
        raise ValueError(
            f"Expected three latents in {anchors}, got {len(work.latents)}. "
            "Stack them along a new first axis and save them with numpy.save."
        )
    import approx
    from approx import plot
    from bridges.cli.writing import write_figure

    points = work.tensor(work.latents)

    def run() -> xr.Dataset:
        return approx.field(work.decoder, points, pixels, margin=margin, **work.options)

    start = time.perf_counter()
    store = options["store"]
    dataset = _run(run, outputs, store, lambda table, path: _write_table(table, path, None))
    done, of = int(np.isfinite(dataset["psi"].values).sum()), dataset["psi"].size
    shape = f"{dataset.sizes['u']} x {dataset.sizes['v']} pixels"
    click.echo(f"{shape} in {time.perf_counter() - start:.1f} s, seed {dataset.attrs['seed']}")
    _keep(bool(dataset.attrs["complete"]), f"{done:,} of {of:,} pixels", outputs, store,
          lambda path: _write_field(dataset, path))  # fmt: skip
    if gallery is not None:
        write_figure(plot.gallery(work.decode, dataset, by, images), gallery)
        click.echo(f"wrote {gallery}")


def _prepare(model: str, path: Path, options: dict[str, Any], *, plane: bool = False) -> _Work:
    """Read model and latents, and check what can be checked before the work."""
    import torch

    from approx import Factory
    from approx.spectra import METHODS
    from bridges.cli.loading import check_device, load_decode, load_decoder

    _check_cluster(options)
    method, name = options["method"], options["dtype"]
    double = name == "float64" or (name is None and METHODS[method].dense)
    dtype = torch.float64 if double else torch.float32
    values = load_npy(path, "the latents", mapped=True)
    values = check_latents(values, path, finite=options["on_error"] == "raise")
    stored = _stored(options["store"])
    # what is all there is compared here, and needs no workers
    whole = stored is not None and stored.complete and (plane or len(stored) == len(values))
    client = None if whole else client_of(options["scheduler"], options["workers"])
    device = options["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
    device = "cpu" if client is not None else device
    check_device(device)
    reading = options["reading"]
    loaded = load_decoder(model, dtype, device, **reading)
    if (shape := loaded.latent_shape or reading["input_shape"]) is not None:
        values = shaped_latents(values, shape, str(path))
    else:
        values = _sized_latents(values, loaded, path)
    directions, radius = options["neighbourhood"]
    sent = Factory(partial(load_decode, str(Path(model).resolve()) if Path(model).exists() else
                           model, dtype, **reading))  # fmt: skip
    return _Work(
        loaded.decode,
        loaded.decode if client is None else sent,
        values,
        dtype,
        device,
        {
            "method": method,
            "k": options["k"],
            "neighbourhood": None if options["no_delta"] else (directions, radius),
            "generator": options["seed"],
            "batch": options["batch"] or "auto",
            "dtype": getattr(torch, name) if name in _DTYPES[2:] else None,
            "max_bytes": options["memory"] * 2**30,
            "straight_through": options["straight_through"],
            "on_error": options["on_error"],
            "progress": sys.stderr.isatty(),
            "store": options["store"],
            "client": client,
        },
        0 if stored is None else stored.store.done,
    )


def _check_cluster(options: dict[str, Any]) -> None:
    """Refuse a cluster without a store, and with a device."""
    cluster = options["scheduler"] is not None or options["workers"] is not None
    if cluster and (options["store"] is None or options["device"] is not None):
        raise click.UsageError(
            "Expected --store, and no --device, with --scheduler or --workers: the rows are "
            "written to a store, and each worker takes its own device."
        )


def _sized_latents(values: np.ndarray, loaded: Loaded, path: Path) -> np.ndarray:
    """Return latents (N, channels, *sizes) of a model that takes any size."""
    rank = 1 + len(loaded.axes)
    if values.ndim not in (rank, rank + 1) or values.shape[-rank] != loaded.channels:
        raise ValueError(
            f"Expected latents of shape (N, {loaded.channels}, {', '.join(loaded.axes)}) in "
            f"{path}, got shape {values.shape}. Give what the model's decode takes."
        )
    return values.reshape(-1, *values.shape[-rank:])


def _check_outputs(paths: tuple[Path, ...], store: str | None) -> None:
    """Refuse results that could not be written, before the work and not after it."""
    if not paths and store is None:
        raise click.UsageError("Missing option '-o' / '--output', or '--store'.")
    for path in paths:
        check_output(path, _SUFFIXES)
    from bridges.cli.writing import check_packages, check_store

    for path in paths:
        check_store(path)
    check_packages(paths)


def _stream(work: _Work) -> Iterator[torch.Tensor]:
    for start in range(0, len(work.latents), AT_A_TIME):
        yield work.tensor(work.latents[start : start + AT_A_TIME])


def _run(
    work: Callable[[], Any],
    outputs: tuple[Path, ...],
    store: str | None,
    save: Callable[[Descriptors, Path], None],
) -> Any:
    """Do the work; an error half-way writes what is done and is one line, as are torch's own."""
    from approx import DescribeError

    if store is not None and not sys.stderr.isatty():
        click.echo(
            f"writing to {store}, which holds what is done; a terminal would show how far it is"
        )
    try:
        with warnings.catch_warnings():
            # that it was interrupted is said below, with where the partial result is
            warnings.filterwarnings("ignore", "Interrupted after", RuntimeWarning)
            return work()
    except DescribeError as error:
        table, rows = error.partial, len(error.partial)
        names = _write_partial(outputs, store, lambda path: save(table, path))
        reason = " ".join(str(error.__cause__).split()).rstrip(".")
        raise Stopped(f"{reason}. Stopped after {rows:,} latents; {names}.", 2) from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if reason.startswith("Expected"):
            raise ValueError(reason) from error
        raise ValueError(
            f"Expected a model that runs on these latents, got {type(error).__name__}: {reason} "
            "Check their shape; a file exported with a fixed batch needs --batch of that size."
        ) from error


def _keep(
    complete: bool,
    done: str,
    outputs: tuple[Path, ...],
    store: str | None,
    save: Callable[[Path], None],
) -> None:
    """Write a whole result under its names, or a part of one under partial names."""
    if not complete:
        raise Stopped(f"interrupted after {done}; {_write_partial(outputs, store, save)}.", 130)
    from bridges.cli.writing import write_all

    for path, failure in write_all(outputs, save):
        if failure is None:
            click.echo(f"wrote {path}")


def _write_partial(
    outputs: tuple[Path, ...], store: str | None, save: Callable[[Path], None]
) -> str:
    """Write what is done, where no store has it, and say where it is."""
    if store is not None:
        return f"they are in {store}, and the same command goes on"
    from bridges.cli.writing import check_store, partial_path, write_all

    names = [partial_path(path) for path in outputs]
    for name in names:
        check_store(name)
    list(write_all(tuple(names), save))
    return f"wrote {' and '.join(map(str, names))}"


def _write_table(table: Descriptors, path: Path, labels: np.ndarray | None) -> None:
    from approx import plot
    from bridges.cli.writing import write_dataset, write_figure

    if labels is not None:
        labels = labels[: len(table)]
    if path.suffix in _PICTURES:
        chosen = [name for name in _DESCRIPTORS if name in table.columns()]
        if labels is None:
            groups, names = np.zeros(len(table), int), {0: "all"}
            figure = plot.distribution(table, groups, chosen, names=names, xlabel="")
        else:
            figure = plot.distribution(table, labels, chosen)
        write_figure(figure, path)
        return
    dataset = table.to_xarray()
    if labels is not None:
        dataset["label"] = ("latent", labels)
    write_dataset(dataset, path)


def _write_field(dataset: xr.Dataset, path: Path) -> None:
    from approx import plot
    from bridges.cli.writing import write_dataset, write_figure

    if path.suffix in _PICTURES:
        write_figure(plot.fields(dataset), path)
    else:
        write_dataset(dataset, path)


def _stored(store: str | None) -> StoredDescriptors | None:
    """Open the store of a run that goes on."""
    from approx import StoreError, open_store

    try:
        return None if store is None else open_store(store)
    except StoreError:  # none yet, or one of which the run says what is wrong
        return None


def _summary(table: Descriptors, seconds: float, held: int) -> str:
    """Say what was estimated, and how; of a store, how many rows were there before."""
    from approx.spectra import named

    before = f" ({held:,} of them were in the store before)" if held else ""
    lines = [
        f"{len(table):,} latents in {seconds:.1f} s{before}, seed {table.seed}",
        f"{table.definition} (method {table.method}: {table.ran()})",
        *_why_measured(table),
        *table.doubts(),
        *([table.note] if table.note else []),
    ]
    columns = table.columns()
    for name in _DESCRIPTORS:
        if name in columns and np.isfinite(columns[name]).any():
            low, middle, high = np.nanquantile(columns[name], [0.05, 0.5, 0.95])
            shown = name if name == "delta" else named(name, table.subscript)
            lines.append(f"{shown:<6} {middle:.6g}  (5 % {low:.6g}, 95 % {high:.6g})")
    return "\n".join(lines)


def _why_measured(table: Descriptors) -> list[str]:
    """Say where "predict" made all products, and when it does not."""
    if not (back := table.fallen()):
        return []
    return [
        f"{back:,} of {len(table):,} latents made all {table.k} products: a prediction from fewer "
        "takes k / r_eff up to 0.8 and k above 16"
    ]
