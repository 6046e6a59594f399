"""Commands of the exact engine: `cpwl info`, `partition`, `survey`, `verify` and `demo`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bridges.cli.arguments import check_output, client_of, cluster_options, model_options
from bridges.cli.errors import Stopped
from bridges.cli.slicing import Place, domain_of, slice_options

# `cpwl --help` should not wait for torch: the commands import what they need.
if TYPE_CHECKING:
    import cpwl
    from cpwl.engine import HowProven

_PICTURES = (".png", ".pdf", ".svg")
_SURFACES = (".ply", ".glb")
_PROOF = ".json"
_SUFFIXES = (*_PICTURES, ".gif", ".parquet", *_SURFACES, ".npz", _PROOF)

_PATH = click.Path(path_type=Path)
_model = click.argument("model", type=_PATH)
_upto = click.option(
    "--upto", metavar="NAME", help="Leave out this operation and all after it, for example tanh."
)
_proof = click.option(
    "--proof",
    default="auto",
    show_default=True,
    type=click.Choice(("auto", "float64", "full")),
    help="Of networks too large for rational arithmetic: in 106 bits, or not at all (float64).",
)


# packages that write a format, and the extra that installs them
_PACKAGES = {
    ".parquet": ("geo", "geopandas", "pyarrow"),
    ".ply": ("mesh", "trimesh"),
    ".glb": ("mesh", "trimesh"),
}


def _suffixes(dim: int, outputs: int) -> tuple[str, ...]:
    """Return in which formats a partition of so many dimensions can be written."""
    left_out = {
        *(_PICTURES if dim > 3 else ()),
        *((".gif",) if dim != 3 else ()),
        *((".parquet", _PROOF) if dim > 2 else ()),
        *(_SURFACES if dim != 3 and (dim, outputs) != (2, 3) else ()),
    }
    return tuple(suffix for suffix in _SUFFIXES if suffix not in left_out)


class _Colors(click.ParamType):
    """Choice of a descriptor or none; read only when asked for, as its table imports torch."""

    name = "color"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Return one of the choices, or fail."""
        return self._choice().convert(value, param, ctx)

    def get_metavar(self, param: Any, ctx: Any) -> str | None:
        """List the choices for --help."""
        return self._choice().get_metavar(param=param, ctx=ctx)

    def _choice(self) -> click.Choice[str]:
        from cpwl.descriptors import DESCRIPTORS

        return click.Choice((*DESCRIPTORS, "none"))


@click.command()
@click.option("-o", "--output", type=_PATH, default="cpwl-demo.png", show_default=True)
@click.option("--seed", default=0, show_default=True, help="Seed of the training and the latents.")
@click.option(
    "--dim",
    default=2,
    show_default=True,
    type=click.IntRange(2, 3),
    help="Latent dimension; in three, an output ending in .gif is an animation.",
)
def demo(output: Path, seed: int, dim: int) -> None:
    """Train a toy generator R^2 -> R^3, enumerate it, and draw what it does to density.

    With --dim 3, a generator R^3 -> R^3, whose cells are drawn as solids.
    """
    check_output(output, _PICTURES if dim == 2 else (*_PICTURES, ".gif"))
    from bridges.demo import run_demo, run_solid_demo

    run = run_demo if dim == 2 else run_solid_demo
    click.echo(str(run(output, seed, progress=sys.stderr.isatty())))
    click.echo(f"wrote {output}")


@click.command()
@_model
@model_options
@_upto
def info(model: Path, upto: str | None, reading: dict[str, Any]) -> None:
    """List a model's operations and units, and say what is piecewise linear and what is not.

    MODEL is an .onnx file, or a .pt2 file from torch.export.
    """
    import cpwl
    from cpwl.network import inspect

    network = None
    try:
        network = cpwl.Network.load(model, upto=upto, **reading)
    except cpwl.UnsupportedOperationError:
        if upto is not None:
            raise
    whole = network is not None and upto is None  # captured once where that tells all
    operations = network.operations if network and whole else inspect(model, **reading)
    click.echo(f"{len(operations)} operations")
    width = max((len(operation.name) for operation in operations), default=0)
    for operation in operations:
        line = f"  {operation.kind:<8} {operation.name:<{width}}  {operation.target}"
        click.echo(f"{line}: {operation.reason}" if operation.reason else line)
    refused = [operation for operation in operations if operation.kind == "refused"]
    if network is None:
        click.echo(
            f"not piecewise linear: {len(refused)} of them. --upto NAME leaves out a trailing one."
        )
        return
    click.echo(f"piecewise linear{f' up to {upto}' if upto else ''}")
    click.echo(f"input {network.input_shape}, output {network.output_shape}")
    click.echo(f"{network.num_units:,} units in {network.num_stages} stages")
    for group in network.groups:
        click.echo(f"  stage {group.stage}: {group.kind} {group.name} {group.shape}")


@click.command()
@_model
@click.option(
    "-o",
    "--output",
    type=_PATH,
    multiple=True,
    help=f"Result, its format by its suffix: {', '.join(_SUFFIXES)} (a proof). May be repeated.",
)
@click.option(
    "--certify", is_flag=True, help="Prove the result in exact arithmetic before it is written."
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    help="Stop that proof after these, with as many cells as are proven.  [default: all cells]",
)
@_proof
@slice_options
@click.option("--color", default="psi", show_default=True, type=_Colors())
@model_options
@_upto
@click.option(
    "--memory",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="GiB that evaluating the network may take.",
)
def partition(
    model: Path,
    output: tuple[Path, ...],
    certify: bool,
    seconds: float | None,
    proof: HowProven,
    through: Path | None,
    origin: str | None,
    basis: str | None,
    box: tuple[tuple[float, float], ...],
    color: str,
    upto: str | None,
    memory: float,
    reading: dict[str, Any],
) -> None:
    """Enumerate a slice of a model; write pictures, tables, surfaces or the partition.

    In three dimensions a picture shows the cells cut open and pulled apart, and a .gif a plane that
    sweeps through them.

    MODEL is an .onnx file, or a .pt2 file from torch.export. The slice goes through given latents
    (--through), or is --origin plus multiples of --basis; a model of one to six inputs needs none.
    """
    if not output and not certify:
        raise click.UsageError("Missing option '-o' / '--output', or '--certify'.")
    for path in output:
        check_output(path, _SUFFIXES)
    import cpwl
    from bridges.cli.writing import check_packages
    from cpwl.proof import read_provable

    check_packages(output, _PACKAGES)
    network = cpwl.Network.load(model, upto=upto, **reading)
    domain = domain_of(network.input_shape, Place(through, origin, basis, box))
    certify = certify or seconds is not None or any(path.suffix == _PROOF for path in output)
    if certify:
        read_provable(network, domain)  # what cannot be proven is refused before the work
    outputs = math.prod(network.output_shape)
    of = f" for {domain.dim} {'axis' if domain.dim == 1 else 'axes'} and {outputs} outputs"
    for path in output:
        check_output(path, _suffixes(domain.dim, outputs), result=of)
    result = cpwl.subdivide(
        network, domain, memory=int(memory * 2**30), proof=proof, progress=sys.stderr.isatty()
    )
    click.echo(repr(result))
    certificate = None
    if certify:
        limit = math.inf if seconds is None else seconds
        certificate = _proven(
            lambda: cpwl.certify(result, seconds=limit, progress=sys.stderr.isatty())
        )
        click.echo(str(certificate))
    for path in output:
        if certificate is not None and path.suffix == _PROOF:
            certificate.save(path)
        else:
            _write(result, path, color)
        click.echo(f"wrote {path}")
    if result.status.complete:  # last, as it may take longer than all the rest
        count = cpwl.regions(result).count
        click.echo(f"{result.num_cells:,} cells, {count:,} linear regions")


@click.command()
@_model
@slice_options
@click.option("--store", type=_PATH, help="A folder that keeps what is done; call again to go on.")
@click.option(
    "--tiles",
    type=click.IntRange(min=1),
    help="Along every axis.  [default: halves of halves, of some 10^5 cells each]",
)
@click.option("--no-maps", is_flag=True, help="Leave out psi, nu, regions and image volume.")
@click.option("--cells", is_flag=True, help="Write all cells to STORE/cells as GeoParquet.")
@_proof
@cluster_options
@model_options
@_upto
def survey(
    model: Path,
    store: Path | None,
    tiles: int | None,
    no_maps: bool,
    cells: bool,
    proof: HowProven,
    scheduler: str | None,
    workers: int | None,
    upto: str | None,
    reading: dict[str, Any],
    **place: Any,
) -> None:
    """Count and measure the cells of a slice that has too many for the memory, tile by tile.

    MODEL and the slice are those of `cpwl partition`. A tile is enumerated as a whole, which takes
    some 300 bytes a cell, and its cells are then dropped, or written with --cells. After Ctrl-C or
    a crash the same command goes on where it stopped, if it has a --store.
    """
    import cpwl

    network = cpwl.Network.load(model, upto=upto, **reading)
    found = cpwl.survey(
        network, domain_of(network.input_shape, Place(**place)), store=store, cells=cells,
        tiles="auto" if tiles is None else tiles, maps=not no_maps, progress=sys.stderr.isatty(),
        client=client_of(scheduler, workers), proof=proof,
    )  # fmt: skip
    click.echo(repr(found))
    click.echo(f"facets by stage: {', '.join(f'{n:,}' for n in found.facets)}")
    if not no_maps:
        for name, values in (("psi", found.psi), ("nu", found.nu)):
            low, middle, high = map(values.quantile, (0.05, 0.5, 0.95))
            click.echo(f"{name}: mean {values.mean:.6g}, 5 % {low:.3f}, 50 % {middle:.3f}, "
                       f"95 % {high:.3f}")  # fmt: skip
        bound = found.entropy_bound
        entropy = f"entropy at most {bound:.6g}"
        if bound == -math.inf:
            entropy = "entropy -inf, as some of the volume is squeezed"
        click.echo(f"squeezed {found.squeezed:.4g}, image volume {found.total_image_volume:.6g}, "
                   f"{entropy}")  # fmt: skip


@click.command()
@click.argument("proof", type=_PATH)
@click.argument("model", type=_PATH, required=False)
@slice_options
@model_options
@_upto
def verify(
    proof: Path, model: Path | None, upto: str | None, reading: dict[str, Any], **place: Any
) -> None:
    """Prove again, from the file PROOF alone, what `cpwl partition --certify -o PROOF` proved.

    With MODEL, an .onnx or .pt2 file, the proof must also be about that model, and with the options
    of `cpwl partition` that give a domain (--box, --through, --origin, --basis) about that domain.
    Exit status 1 tells that the proof does not hold.
    """
    where = Place(**place)
    given = where.sliced or bool(where.box)
    if given and model is None:
        raise ValueError(
            "Expected MODEL with --box, --through, --origin or --basis, got none. Name the model "
            "file after PROOF: its inputs are what these options are about."
        )
    import cpwl

    network = domain = None
    if model is not None:
        network = cpwl.Network.load(model, upto=upto, **reading)
        domain = domain_of(network.input_shape, where) if given else None
    certificate = _proven(
        lambda: cpwl.verify(proof, network, domain=domain, progress=sys.stderr.isatty())
    )
    click.echo(str(certificate))


def _proven(prove: Callable[[], cpwl.Certificate]) -> cpwl.Certificate:
    """Return a certificate; a proof that fails is one line on stderr and exit status 1."""
    import cpwl

    try:
        return prove()
    except cpwl.CertificateError as error:
        raise Stopped(str(error), 1) from error


def _write(partition: cpwl.Partition, path: Path, color: str) -> None:
    """Write one result in the format of its suffix, whole or not at all."""
    import cpwl
    from cpwl import plot
    from cpwl.files import atomic_path

    if path.suffix == ".npz":
        cpwl.save_partition(partition, path)
    elif path.suffix == ".parquet":
        cpwl.write_geoparquet(partition, path)
    elif path.suffix in _SURFACES:
        cpwl.write_mesh(partition, path, "psi" if color == "none" else color)
    elif path.suffix == ".gif":
        color = "psi" if color == "none" else color
        plot.sweep(partition, path, values=color, progress=sys.stderr.isatty())
    else:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 6.4), layout="constrained")
        values = None if color == "none" else color
        if partition.dim == 3:
            axes = figure.add_subplot(projection="3d", computed_zorder=False)
            plot.cells3d(partition, values, ax=axes)
        else:
            axes = figure.add_subplot()
            plot.partition(partition, values, ax=axes)
        with atomic_path(path) as part:
            figure.savefig(part, dpi=150, bbox_inches="tight")  # a legend may stick out
