"""Validation of one network: the exact engine and the estimates held against each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

import approx
import cpwl
from approx import JacobianOperator
from approx.decoder import Output, modules_of, pick
from bridges.validation import complexity, densities, jacobians, spectra
from bridges.validation.cut import cut
from bridges.validation.findings import Absent, Section
from bridges.validation.report import Report
from bridges.validation.subject import Subject, around
from cpwl.domain import in_shape
from cpwl.partition import require_complete

Decoder = Callable[[Tensor], Any]


class _Part(NamedTuple):
    """A section before it is measured; `smooth` is its claim where there are no cells."""

    name: str
    heading: str
    claim: str
    smooth: str | None
    measure: Callable[..., Any]
    draw: Callable[..., None]
    size: tuple[float, float]
    alt: str


_PARTS = (
    _Part(
        name="jacobian",
        heading="Jacobians",
        claim="On every cell w the decoder is A_w z + b_w: its Jacobian by autograd and by "
        "products is A_w, to rounding.",
        smooth="The Jacobian by autograd, by products J X and by products J^T Y is one and the "
        "same, and that of finite differences.",
        measure=jacobians.measure,
        draw=jacobians.draw,
        size=(10, 4.2),
        alt="Distributions over the cells of the relative errors of Jacobians and values.",
    ),
    _Part(
        name="spectrum",
        heading="psi and nu",
        claim="Every method estimates what it says it does: without bias, and within its stated "
        "error. How near that is to the generator's own psi and nu is reported.",
        smooth="Every method estimates what it says it does, here from autograd's Jacobian: "
        "without bias, and within its stated error.",
        measure=spectra.measure,
        draw=spectra.draw,
        size=(10, 7.6),
        alt="Estimates of psi and nu against exact values for each method, and their errors "
        "against the number of Jacobian products.",
    ),
    _Part(
        name="complexity",
        heading="Local complexity",
        claim="Counted knots are the exact ones of the neighbourhood, and bound its cells, at the "
        "radius in use.",
        smooth=None,
        measure=complexity.measure,
        draw=complexity.draw,
        size=(10, 7.2),
        alt="Knots and cells in a neighbourhood against its radius, exact and counted, with the "
        "radii from which knots fold.",
    ),
    _Part(
        name="density",
        heading="Output density",
        claim="Exact density, entropy and uniform samples are those of Monte Carlo, of nearest "
        "neighbours and of rejection sampling.",
        smooth=None,
        measure=densities.measure,
        draw=densities.draw,
        size=(12, 7.4),
        alt="Estimated against exact log-densities, entropy against the number of samples, and "
        "uniform samples of the image from two methods.",
    ),
)


def validate(
    module: nn.Module | Decoder,
    domain: cpwl.Domain | cpwl.Slice,
    *,
    input_shape: tuple[int, ...] | None = None,
    upto: str | None = None,
    fixed: Mapping[str, Any] | None = None,
    output: Output | None = None,
    decoder: Decoder | None = None,
    name: str | None = None,
    cells: int | None = None,
    latents: int | None = None,
    methods: Mapping[str, spectra.Estimator] | None = None,
    k: int | None = None,
    seeds: int | None = None,
    radius: float = 1e-5,
    directions: Sequence[int] = (1, 2, 4),
    radii: Sequence[float] | None = None,
    samples: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Report:
    r"""Compare the estimates with the exact engine, on a network small enough for both.

    The report has four sections: Jacobians, psi and nu, local complexity, and output densities;
    each is a package of `bridges.validation`. A module that is not piecewise linear has no cells:
    its Jacobian, psi and nu are compared with autograd's, and the report says why the rest does not
    apply.

    Parameters
    ----------
    module : nn.Module or callable
        The network, on the CPU and in evaluation mode; what `cpwl.Network.from_torch` takes.
    domain : Domain or Slice
        Where latents come from, of one to six dimensions. A slice through latents
        (`cpwl.Slice.through`) stands for a box around them.
    input_shape : tuple of int, optional
        Shape of one latent, where those of the domain are flat.
    upto : str, optional
        Operation ("tanh", "sigmoid") or submodule path at which both sides are cut: the exact one
        as by `cpwl.Network.from_torch`, the estimated one in the graph that torch exports.
    fixed, output : optional
        As for `cpwl.Network.from_torch`: values of further arguments by name, and what picks the
        tensor from what the module returns. They hold for `decoder` as well. Tensors in `fixed`
        have no axes, or a first one of length one, that of the latents, as in `approx.bind`.
    decoder : callable, optional
        What is estimated in place of the module itself: a compiled or rewritten version, or one
        with rounded weights. A module or a module's method that takes latents (B, \*latent) on the
        CPU, and of which a copy runs in float64, which packed integer weights do not. With `upto`
        it is cut as well.
    name : str, optional
        What the report calls the network; by default the module's class.
    cells : int, optional
        At most so many cells for the Jacobians.
    latents : int, optional
        Latents at which psi, nu and delta are compared, and Jacobians where there are no cells.
    methods : mapping of str to Estimator, optional
        What estimates psi and nu; by default `bridges.validation.spectra.default_methods`.
    k : int, optional
        Singular values behind psi and nu.
    seeds : int, optional
        Repetitions of the estimates of psi and nu, for their bias and coverage.
    radius : float
        Radius of the neighbourhood of delta at which agreement is claimed.
    directions : sequence of int
        Numbers P of directions of that neighbourhood.
    radii : sequence of float, optional
        Radii at which knots are counted besides.
    samples : int, optional
        At most so many latents are decoded for each estimate of the densities.
    seed : int
        Of everything random: the same seed gives the same report.
    progress : bool
        Show the section at work on standard error.

    Returns
    -------
    Report
        ``print(report)``, ``report.require()``, ``report.save_html(path)``.

    Raises
    ------
    CaptureError
        The module cannot be captured.
    ValueError
        The domain or the decoder does not fit the module; a decoder given for a module that has no
        exact side; a slice without latents.
    PartitionError
        The cells do not fit in memory.

    Notes
    -----
    Takes about a minute for a toy on two cores, nearly all of it repetitions.

    Examples
    --------
    >>> import bridges, cpwl
    >>> module = bridges.networks.toys.random_mlp((2, 4, 3))
    >>> report = bridges.validate(
    ...     module, cpwl.box([-1, -1], [1, 1]), cells=5, latents=4, seeds=6, samples=2000,
    ...     directions=(2,), radii=(), progress=False,
    ... )
    >>> report.ok
    True
    >>> report.section("jacobian").result.rows[0].name
    'jacobian: cells, one latent in each: compared'
    """
    began = time.perf_counter()
    options = {
        "jacobian": {"cells": cells, "latents": latents},
        "spectrum": {"latents": latents, "seeds": seeds, "k": k, "methods": methods},
        "complexity": {
            "latents": latents, "radius": radius, "directions": tuple(directions), "radii": radii,
        },
        "density": dict.fromkeys(("samples", "nearest", "proposals"), samples),
    }  # fmt: skip
    with tqdm(total=2 + len(_PARTS), disable=not progress, leave=False, unit="part") as bar:
        place = domain if isinstance(domain, cpwl.Domain) else around(domain)
        place = place if input_shape is None else in_shape(place, input_shape)
        call = _Call(upto, fixed or {}, output)
        subject, reason = _subject(module, place, decoder, call, bar)
        sections, absent = [], []
        settings: dict[str, object] = {"seed": seed}
        for part in _PARTS:
            bar.set_description(part.name)
            given = {key: value for key, value in options[part.name].items() if value is not None}
            found = _section(part, subject, given, seed)
            if found is None:
                absent.append(Absent(part.name, part.heading, f"It needs cells. {reason}"))
            else:
                sections.append(found)
                settings[part.name] = _said(part.measure, given)
            bar.update()
    named = name or getattr(module, "__qualname__", type(module).__name__)
    title = named + (f" up to {upto}" if upto else "")
    return Report(
        title=f"Validation of {title}",
        facts=_facts(subject),
        sections=tuple(sections),
        absent=tuple(absent),
        settings=settings,
        seconds=time.perf_counter() - began,
    )


class _Call(NamedTuple):
    """How a module is called, and how far."""

    upto: str | None
    fixed: Mapping[str, Any]
    output: Output | None


def _subject(
    module: nn.Module | Decoder,
    place: cpwl.Domain,
    decoder: Decoder | None,
    call: _Call,
    bar: tqdm,
) -> tuple[Subject, str]:
    """Return the two sides of a module, and why there is no exact one."""
    bar.set_description("network")
    network, reason = _captured(module, place.slice.latent_shape, call)
    estimated = _estimated(module, decoder, place, network, reason, call)
    bar.update()
    bar.set_description("cells")
    partition = None
    if network is not None:
        partition = cpwl.subdivide(network, place, progress=False)
        require_complete(partition)
    bar.update()
    outputs = _output_size(estimated, place, network)
    return Subject(estimated, place, network, partition, outputs), reason


def _section(part: _Part, subject: Subject, given: Mapping[str, Any], seed: int) -> Section | None:
    """Measure one section, or return None where it does not apply."""
    claim = part.smooth if subject.network is None else part.claim
    if claim is None:
        return None
    start = time.perf_counter()
    result = part.measure(subject, **given, seed=seed)
    return Section(
        name=part.name,
        heading=part.heading,
        claim=claim,
        result=result,
        draw=part.draw,
        size=part.size,
        alt=part.alt,
        seconds=time.perf_counter() - start,
    )


def _captured(
    module: nn.Module | Decoder, shape: tuple[int, ...], call: _Call
) -> tuple[cpwl.Network | None, str]:
    """Return the exact side, or why there is none."""
    try:
        return cpwl.Network.from_torch(module, shape, **call._asdict()), ""
    except cpwl.UnsupportedOperationError as error:
        return None, str(error)


def _estimated(
    module: nn.Module | Decoder,
    decoder: Decoder | None,
    domain: cpwl.Domain,
    network: cpwl.Network | None,
    reason: str,
    call: _Call,
) -> Decoder:
    """Return the estimated side."""
    if decoder is not None and network is None:
        raise ValueError(
            "Expected a piecewise-linear module to hold decoder= against, got one that has no "
            f"exact side: {reason} Leave decoder= out."
        )
    chosen = module if decoder is None else decoder
    held = [value for part in modules_of(chosen) for value in (*part.parameters(), *part.buffers())]
    places = {value.device.type for value in held}
    if places - {"cpu"}:
        raise ValueError(
            f"Expected a module on the CPU, where the exact engine is, got one on "
            f"{', '.join(sorted(places))}. Pass module.cpu()."
        )
    if call.upto is not None:
        return cut(chosen, domain.slice.latent_shape, call.upto, call.fixed, call.output)
    bound = approx.bind(chosen, **call.fixed) if call.fixed else chosen
    return bound if call.output is None else _picking(bound, call.output)


def _picking(decoder: Decoder, output: Output) -> Decoder:
    """Return a decoder of what `output` picks."""

    def decode(z: Tensor) -> Tensor:
        return pick(decoder(z), output)

    return decode


def _output_size(decoder: Decoder, domain: cpwl.Domain, network: cpwl.Network | None) -> int:
    """Decode one latent, and refuse a decoder whose outputs are not of the module's shape."""
    z = torch.from_numpy(domain.slice.embed(domain.corners[:1]))
    try:
        with JacobianOperator(decoder, z, dtype=torch.float64) as operator:
            shape = tuple(operator.output.shape[1:])
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"Expected a decoder that takes latents of shape {tuple(z.shape)} in float64, as the "
            f"exact engine computes, got {type(error).__name__}: {reason} Give one whose weights "
            "are parameters, not packed integers or constants of another dtype."
        ) from error
    if network is not None and shape != network.output_shape:
        raise ValueError(
            f"Expected a decoder with outputs of shape {network.output_shape}, as the module has, "
            f"got {shape}. Give another version of the same network."
        )
    return int(torch.Size(shape).numel())


def _facts(subject: Subject) -> dict[str, str]:
    """Say how large the network is."""
    latent = "x".join(map(str, subject.latent_shape))
    facts = {
        "Latents": f"{latent} coordinates, a domain of {subject.domain.dim}",
        "Outputs": f"{subject.outputs:,} coordinates",
    }
    if subject.network is None or subject.partition is None:
        return facts
    exact = "proven" if subject.partition.status.exact else "not all signs proven"
    counted = f"{subject.partition.num_cells:,}, {cpwl.regions(subject.partition).count:,} linear"
    return facts | {
        "Units": f"{subject.network.num_units:,} in {subject.network.num_stages} stages",
        "Cells": f"{counted} regions, {exact}",
    }


def _said(measure: Callable[..., Any], given: Mapping[str, Any]) -> str:
    """Write what a section was measured with, its own defaults included."""
    parameters = signature(measure).parameters.values()
    values = {p.name: p.default for p in parameters if p.default is not p.empty} | dict(given)
    values.pop("seed", None)  # said once for all
    return ", ".join(f"{key} = {_value(value)}" for key, value in values.items())


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(value) + ")"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "(" + ", ".join(map(_value, value)) + ")"
    if value is None:
        return "automatic"
    return f"{value:g}" if isinstance(value, float) else str(value)
