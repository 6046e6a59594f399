"""The comparison of a capture with its module, without which no `Network` is handed out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from cpwl.errors import CaptureError
from cpwl.network.capture.lowering import Listing
from cpwl.network.capture.preparation import call_fixed
from cpwl.network.capture.tracing import random_points
from cpwl.network.files import Output
from cpwl.network.program import Program, Step, Triangle, call, error_analysis, passes

POINTS = 3
RELATIVE_TOLERANCE = 1e-10
# asin has an infinite slope at 1: asin(sin(x)) is off by sqrt(eps) near its peaks.
WAVE_TOLERANCE = 1e-7
AFFINE_TOLERANCE = 1e-9
ADVICE = "This is a defect of the capture: please report it with the module."
MIXING = "The module mixes the samples of a batch; make it treat each sample on its own."


def verify(
    program: Program,
    input_shape: tuple[int, ...],
    module: nn.Module,
    copied: nn.Module,
    listing: Listing,
    upto: str | None,
    fixed: Mapping[str, Any],
    output: Output | None,
) -> None:
    """Check a capture on random points.

    The program against the float64 copy and against a copy in the module's own dtype; that every
    affine step is affine; that samples do not influence each other; and that `apply_pieces` at a
    point's own pieces gives the network's value.

    Raises
    ------
    CaptureError
        Naming what differed, and by how much.
    """
    z, y = verify_values(program, input_shape, copied, listing, upto)
    absolute = _cancelled(program, z)
    if upto is None:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            _compare_in_own_dtype(program, module, z, fixed, output)
    rows = torch.cat([passes.evaluate(program, row[None]) for row in z])
    _compare("itself, one sample at a time", y, rows, RELATIVE_TOLERANCE, absolute, MIXING)
    _check_affine(program)
    num_units = sum(head.units for heads in program.heads for head in heads)
    held = passes.apply_pieces(program, z, passes.pieces(program, z, num_units))
    _compare("itself with its pieces held fixed", y, held, RELATIVE_TOLERANCE, absolute)


def verify_values(
    program: Program,
    input_shape: tuple[int, ...],
    copied: Callable[[Tensor], Tensor],
    listing: Listing,
    upto: str | None,
    advice: str = ADVICE,
) -> tuple[Tensor, Tensor]:
    """Compare a program with the float64 copy of its module on random points; return both.

    Raises
    ------
    CaptureError
        Saying by how much they differ, and ending in `advice`.
    """
    z, y = _finite_points(program, input_shape)
    tolerance = WAVE_TOLERANCE if _has_wave(program) else RELATIVE_TOLERANCE
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        expected = copied(z)
        if not isinstance(expected, Tensor):
            raise CaptureError(
                f"Expected one tensor from the module, got {type(expected).__name__}. {advice}"
            )
        if upto is None:
            pairs = [("the module in float64", y, expected, tolerance)]
        else:
            cut, end = _graph_values(listing, z)
            pairs = [("the exported module", end, expected, RELATIVE_TOLERANCE),
                     (f"the module up to '{upto}'", y, cut, tolerance)]  # fmt: skip
    for what, got, wanted, relative in pairs:
        if got.shape != wanted.shape or not torch.equal(got, wanted):
            _compare(what, got, wanted, relative, _cancelled(program, z), advice)
    return z, y


def _cancelled(program: Program, z: Tensor) -> float:
    """Bound the rounding that is left where an output cancels to nothing."""
    return 2 * error_analysis.output_bound(program, z).max().item()


def _has_wave(program: Program) -> bool:
    return any(isinstance(step.nonlinearity, Triangle) for step in program.steps)


def _compare(
    what: str,
    got: Tensor,
    expected: Tensor,
    relative: float,
    absolute: float,
    advice: str = ADVICE,
) -> None:
    if got.shape != expected.shape:
        raise CaptureError(
            f"Expected the network to equal {what}, got output shape {tuple(got.shape)} instead of "
            f"{tuple(expected.shape)}. {advice}"
        )
    error = (got - expected).abs().max().item() if got.numel() else 0.0
    scale = expected.abs().max().item() if got.numel() else 0.0
    if not error <= relative * max(scale, 1e-30) + absolute:
        raise CaptureError(
            f"Expected the network to equal {what}, got a difference of {error:.3g} at a magnitude "
            f"of {scale:.3g}. {advice}"
        )


def _finite_points(program: Program, input_shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Random points at which the network does not overflow, near 0 if need be, and its values."""
    z = random_points(POINTS, input_shape, seed=1)
    for scale in (1.0, 2.0**-100, 2.0**-1000):
        y = passes.evaluate(program, z * scale)
        if bool(torch.isfinite(y).all()):
            return z * scale, y
    raise CaptureError(
        "Expected a network with finite outputs near 0, got inf or NaN: it overflows float64. "
        "Rescale its weights."
    )


def _compare_in_own_dtype(
    program: Program,
    module: nn.Module,
    z: Tensor,
    fixed: Mapping[str, Any],
    output: Output | None,
) -> None:
    """Compare with a copy that keeps dtype and device, as far as that dtype's rounding allows."""
    tensors = (*module.parameters(), *module.buffers())
    parameters = [p for p in tensors if p.is_floating_point()]
    if not parameters or parameters[0].dtype == torch.float64:
        return
    dtype, device = parameters[0].dtype, parameters[0].device
    memo = {id(p): p for p in module.parameters()}  # read only; buffers may count calls
    try:
        twin = copy.deepcopy(module, memo)
        rounded = z.to(device=device, dtype=dtype)
        own = call_fixed(twin, rounded, fixed, output).to(device="cpu", dtype=torch.float64)
    except (RuntimeError, NotImplementedError):
        return  # e.g. float16 convolutions, which torch does not have on every device
    if not bool(torch.isfinite(own).all()):
        return  # the dtype's range is too small for these points, not the capture wrong
    eps = torch.finfo(dtype).eps
    z = rounded.to(device="cpu", dtype=torch.float64)
    bound = error_analysis.output_bound(program, z).max().item()
    _compare(
        f"the module in {dtype}",
        passes.evaluate(program, z),
        own,
        eps**0.5,
        bound * eps / torch.finfo(torch.float64).eps,
    )


def _graph_values(listing: Listing, z: Tensor) -> tuple[Tensor, Tensor]:
    """Value of the cut node and of the whole graph's output."""
    values: dict[Node, Any] = {}
    last: Node | None = None
    for node in listing.graph.nodes:
        if node is listing.input:
            values[node] = z
        elif node in listing.constants:
            values[node] = listing.constants[node]
        elif node.op == "call_function":
            assert callable(node.target)
            args = torch.fx.map_arg(node.args, lambda n: values[n])
            kwargs = torch.fx.map_arg(node.kwargs, lambda n: values[n])
            values[node] = node.target(*args, **kwargs)
        elif node.op == "output":
            last = node.all_input_nodes[-1]
    assert last is not None
    return values[listing.output], values[last]


def _check_affine(program: Program) -> None:
    """Check f(x + y) + f(0) = f(x) + f(y) for every affine step, on a batch of one.

    Its matrix is read by automatic differentiation: that has to be the transpose of what f does.
    """
    sizes = error_analysis.single_values(program)
    for index in program.output_plan.order:
        step = program.steps[index]
        if step.kind != "affine":
            continue
        draws = [
            {i: random_points(1, program.steps[i].single, seed)[0] for i in step.data}
            for seed in (2 * index, 2 * index + 1)
        ]
        x, y = (call(step, {**sizes, **draw}) for draw in draws)
        both = {i: draws[0][i] + draws[1][i] for i in step.data}
        zero = {i: torch.zeros_like(value) for i, value in both.items()}
        left = call(step, {**sizes, **both}) + call(step, {**sizes, **zero})
        what = f"an affine map at '{step.name}' ({step.target})"
        scale = max(x.abs().max().item(), y.abs().max().item()) if x.numel() else 0.0
        _compare(what, left, x + y, 0.0, AFFINE_TOLERANCE * max(scale, 1e-30))
        _check_transpose(step, sizes, draws[0], x, call(step, {**sizes, **zero}))


def _check_transpose(
    step: Step, sizes: Mapping[int, Any], draw: dict[int, Tensor], value: Tensor, offset: Tensor
) -> None:
    """Check <w, L x> = <L^T w, x> with the derivative that torch knows."""
    mapped = value - offset
    with torch.enable_grad():
        leaves = {i: value.clone().requires_grad_() for i, value in draw.items()}
        w = random_points(1, tuple(mapped.shape), seed=1)[0]
        try:
            out = call(step, {**sizes, **leaves})
            pulled = torch.autograd.grad(out, list(leaves.values()), w, allow_unused=True)
        except (RuntimeError, NotImplementedError):
            return  # torch has no derivative: the step has no matrix either
    ours = torch.stack([
        (g * x).sum() for g, x in zip(pulled, draw.values(), strict=True) if g is not None
    ] or [torch.zeros((), dtype=torch.float64)]).sum()  # fmt: skip
    # the offset's rounding is in the difference
    scale = (w.abs() * (mapped.abs() + offset.abs())).sum().item()
    _compare(
        f"its derivative at '{step.name}' ({step.target})", ours, (w * mapped).sum(), 0.0,
        AFFINE_TOLERANCE * max(scale, 1e-30),
        "Where two numbers are written to one place, torch's derivative counts both: make the "
        "places distinct.",
    )  # fmt: skip
