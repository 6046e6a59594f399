"""`Network`: a torch module as affine operations and continuous piecewise-linear (CPWL) units.

A CPWL operation consists of scalar *units*. Each unit has a *switching function*; its breakpoints
cut the line into *pieces*, and on every piece the unit is affine. Units whose switching functions
depend on no other unit are stage 0; a unit is one stage above the highest unit it depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram

from cpwl.arrays import Floats, Ints, denormals
from cpwl.errors import CaptureError, UnsupportedOperationError, require_kind
from cpwl.network.capture import (
    ANEW,
    CAPTURING,
    Lowered,
    Operation,
    Premises,
    architecture,
    check_read,
    export,
    float64_copy,
    list_graph,
    lower,
    read_exported,
    run,
    state_of,
    unwrap,
    verify,
    verify_values,
    write_exported,
)
from cpwl.network.files import Output
from cpwl.network.program import (
    Matrices,
    Program,
    Segment,
    Triangle,
    as_batch,
    error_analysis,
    passes,
    peak_values,
    read_matrices,
    segments,
    stage_plan,
)

__all__ = [
    "CaptureError",
    "Knots",
    "Network",
    "Operation",
    "UnitGroup",
    "UnsupportedOperationError",
    "inspect",
]


class Knots(NamedTuple):
    """Breakpoints of the units of one stage.

    Attributes
    ----------
    unit : (K,) int64
        Number of the unit within its stage, ascending.
    value : (K,) float64
        Value of the switching function, ascending within a unit.
    base : (units,) int64
        Piece of each unit below its first breakpoint.
    """

    unit: Ints
    value: Floats
    base: Ints


@dataclass(frozen=True)
class UnitGroup:
    """The units of one CPWL operation in one stage, in C order of `shape`."""

    name: str
    kind: str
    stage: int
    first_unit: int
    shape: tuple[int, ...]


class Origin(NamedTuple):
    """What a network was built from.

    An exported graph or a file's module; where it was cut; what the graph takes for granted (None
    for files); and the values that stand in for the graph's own parameters, where there are some.
    """

    source: ExportedProgram | nn.Module
    upto: str | None
    premises: Premises | None = None
    state: Mapping[str, Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Network:
    """A CPWL network in float64.

    Build one with `from_torch`, `from_onnx` or `load`.

    Attributes
    ----------
    input_shape, output_shape : tuple of int
        Shape of one sample, without the batch axis.
    num_units : int
        Units are numbered stage by stage; within a stage by operation, flattened in C order.
    stage_offsets : (num_stages + 1,) int64
        Units of stage s are stage_offsets[s] to stage_offsets[s + 1] - 1.
    groups : tuple of UnitGroup
        One per CPWL operation; one per round for a max-pooling over more than two.
    operations : tuple of Operation
        Every operation in order, "affine" or "cpwl".
    contests : (K, 3) int32
        Rows (parent unit, piece, child unit): while the parent is on that piece, the child's piece
        has no effect on the output. Every unit of the losing half of a tournament is listed.
    matrices : Matrices
        The affine operations as sparse matrices, for rational arithmetic and norms; empty, with
        the reason, if they are too large.

    Notes
    -----
    A network pickles and copies: what is stored is the exported float64 graph, from which it is
    built again (under a second). As with every pickle, unpickling can run code.

    Examples
    --------
    >>> import cpwl, torch
    >>> network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    >>> network
    Network(input_shape=(2,), output_shape=(2,), num_units=2, stage_offsets=array([0, 2]))
    >>> z = torch.tensor([[-1.0, 3.0]])
    >>> network(z).tolist(), network.pieces(z).tolist()
    ([[-0.5, 3.0]], [[0, 1]])
    """

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    num_units: int
    stage_offsets: Ints
    groups: tuple[UnitGroup, ...] = field(repr=False)
    operations: tuple[Operation, ...] = field(repr=False)
    contests: NDArray[np.int32] = field(repr=False)
    program: Program = field(repr=False)
    matrices: Matrices = field(repr=False)
    origin: Origin = field(repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Store the exported graph in place of the program, whose steps hold functions."""
        data = write_exported(self.origin.source, self.input_shape)
        return _restore, (data, self.input_shape, *self.origin[1:])

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return len(self.stage_offsets) - 1

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """What runs between the stages, see `cpwl.network.program.segments`."""
        return segments(self.program)

    @staticmethod
    @denormals(all_threads=True)
    def from_torch(
        module: nn.Module | Callable[..., Any],
        input_shape: tuple[int, ...],
        *,
        upto: str | None = None,
        fixed: Mapping[str, Any] | None = None,
        output: Output | None = None,
    ) -> Network:
        """Capture a torch module, or a method or function around one.

        The module is only read: its device, dtype, training flag, hooks and random state stay as
        they are. Parameters of lower precision are taken as the float64 they convert to exactly.
        A network is a function of real numbers: casts between floating types of what depends on
        the input (``.float()``, ``.to(dtype)``) are identities; constants that forward makes are
        what the module makes of them, in its own type. The result is compared with the module on
        random points before it is returned.

        Parameters
        ----------
        module : nn.Module or callable
            In evaluation mode if it has batch-norm or dropout. Wrappers of torch.compile and
            DataParallel are taken off. A method (``vae.decode``), a function, a partial or what
            `approx.bind` returns is a module of the modules behind it: those that it is bound to,
            closes over or names. Paths are then those within the one module behind it; of several,
            they begin with the name that the function has for each.
        input_shape : tuple of int
            Shape of one sample, without the batch axis.
        upto : str, optional
            Operation ("tanh", "sigmoid") or submodule path; the output is its input.
        fixed : mapping of str to tensors, numbers, None, or tuples and dicts of them, optional
            Values of forward's further arguments by name. A tensor whose batch axis has length one
            holds for every sample.
        output : str, int or callable, optional
            Picks the tensor from what the module returns: a key, a position, an attribute
            (".sample"), or a function of it. By default a tensor is taken as it is, a structure by
            its ``.sample``.

        Raises
        ------
        UnsupportedOperationError
            At an operation that is not CPWL, naming it and its place.
        CaptureError
            If the module cannot be captured, or the capture differs from the module.

        Notes
        -----
        Takes seconds, nearly all of it in `torch.export`. Threads wait for each other, since
        `torch.export` changes torch's global state for the duration.

        Examples
        --------
        >>> import cpwl, torch
        >>> module = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Tanh())
        >>> network = cpwl.Network.from_torch(module, (2,), upto="tanh")
        >>> [(operation.name, operation.kind) for operation in network.operations]
        [('0', 'affine'), ('1', 'cpwl')]

        A network that takes the time as its second argument:

        >>> class Timed(torch.nn.Module):
        ...     def forward(self, z, t):
        ...         return torch.relu(z - t.float().sqrt())
        >>> cpwl.Network.from_torch(Timed(), (2,), fixed={"t": torch.tensor([4])}).num_units
        2

        The decoder of an autoencoder whose method returns a dictionary:

        >>> class Autoencoder(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.decoder = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU())
        ...     def decode(self, z):
        ...         return {"images": self.decoder(z), "z": z}
        >>> cpwl.Network.from_torch(Autoencoder().decode, (2,), output="images").output_shape
        (8,)
        """
        shape = _check_shape(input_shape)
        module = unwrap(module)
        with CAPTURING:
            read: list[Any] = []
            copied = float64_copy(module, fixed, output, read)
            exported = export(copied, shape)
            origin = Origin(copied, upto)
            if isinstance(exported, ExportedProgram):
                premises = Premises(architecture(copied), read, dict(fixed or {}), output)
                origin = Origin(exported, upto, premises)
            listing = list_graph(exported, upto)
            network = _assemble(lower(listing), shape, origin)
            verify(network.program, shape, module, copied, listing, upto, fixed or {}, output)
        return network

    @staticmethod
    def from_onnx(
        path: str | PathLike[str],
        *,
        input_shape: tuple[int, ...] | None = None,
        upto: str | None = None,
        fixed: Mapping[str, Any] | None = None,
        output: str | int | None = None,
    ) -> Network:
        """Read an ONNX model (extra ``cpwl[onnx]``).

        Parameters
        ----------
        path : path-like
            The .onnx file.
        input_shape : tuple of int, optional
            Shape of one sample; needed only if the file leaves it open.
        upto : str, optional
            As in `from_torch`; names are the ONNX nodes' names.
        fixed : mapping of str to numbers, arrays or tensors, optional
            Values of all inputs but one, by name; they hold for every sample.
        output : str or int, optional
            Name or position of the output, where the file has several.

        Raises
        ------
        CaptureError
            Also if the file is missing or truncated, or leaves open which is its input or output.
        """
        from cpwl.network.files import read_onnx

        module, shape = read_onnx(Path(path), input_shape, fixed=fixed, output=output)
        return Network.from_torch(module, shape, upto=upto)

    @staticmethod
    def load(
        path: str | PathLike[str],
        *,
        input_shape: tuple[int, ...] | None = None,
        upto: str | None = None,
        fixed: Mapping[str, Any] | None = None,
        output: str | int | None = None,
    ) -> Network:
        """Read a model file: .onnx, or .pt2 as `torch.export.save` writes it.

        Nothing in the file is executed or unpickled: an archive's weights are read as plain
        tensors and its graph may only name ATen operations.

        Parameters
        ----------
        path, input_shape, upto, fixed, output
            As in `from_onnx`. The outputs of a .pt2 file have names where its module returned a
            dictionary: its keys.

        Raises
        ------
        CaptureError
            Also for files of any other kind, pickles (.pt, .pth, .ckpt, .pkl) among them.
        """
        module, shape = _read(Path(path), input_shape, fixed, output)
        return Network.from_torch(module, shape, upto=upto)

    @denormals(all_threads=True)
    def with_weights(self, module: nn.Module | Callable[..., Any]) -> Network:
        """Capture a module of the same architecture with other parameters, without tracing it.

        The graph that was captured is read again with the module's parameters, buffers and tensor
        attributes. The result is the network that `from_torch` would make, bit for bit; what
        depends on values, such as which conditions are continuous, is decided anew.

        Parameters
        ----------
        module : nn.Module or callable
            As for `from_torch`, with this network's `upto`, `fixed` and `output`. It is only
            read.

        Raises
        ------
        UnsupportedOperationError
            As `from_torch`, where an operation is CPWL only with other parameters.
        CaptureError
            Another architecture; a forward that reads other numbers or masks of its parameters
            (``item()``, branches); values that differ from the network's; a network of a file.

        Notes
        -----
        The architecture is the tree of parts with their classes, torch.nn's settings, and the names
        and shapes of all tensors. Python numbers that a module of one's own holds are not in it:
        that they act as before is checked by values alone, on random points at each call.

        Cost: 3.8 ms for 2-20-20-20-3, where `from_torch` takes 240; half of it is the reading of
        `matrices` (tests/benchmarks/bench_training.py).

        Examples
        --------
        >>> import cpwl, torch
        >>> module = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU())
        >>> network = cpwl.Network.from_torch(module, (2,))
        >>> _ = torch.nn.init.ones_(module[0].weight), torch.nn.init.ones_(module[0].bias)
        >>> network.with_weights(module)(torch.ones(1, 2)).unique()
        tensor([3.], dtype=torch.float64)
        """
        source, upto, premises, _ = self.origin
        if premises is None or not isinstance(source, ExportedProgram):
            raise CaptureError(
                "Expected a network captured from a module, got one read from a file, which names "
                "its parameters in its own way. Capture the module with Network.from_torch."
            )
        read: list[Any] = []
        with CAPTURING:
            copied = float64_copy(unwrap(module), premises.fixed, premises.output, read)
            state = state_of(copied, source, premises)
            listing = list_graph(source, upto, state)
            origin = Origin(source, upto, premises, state)
            network = _assemble(lower(listing), self.input_shape, origin)

            def first_pass(z: Tensor) -> Tensor:
                result = run(copied, z)
                check_read(read, premises)
                return result

            verify_values(network.program, self.input_shape, first_pass, listing, upto, ANEW)
        return network

    @denormals()
    def __call__(self, z: Tensor | NDArray[Any]) -> Tensor:
        """Evaluate: (N, *input_shape) or flat (N, E) -> (N, *output_shape) float64, no gradient."""
        return passes.evaluate(self.program, as_batch(z, self.input_shape))

    @denormals()
    def preactivations(self, z: Tensor | NDArray[Any], stage: int) -> Tensor:
        """Switching functions of a stage: (N, *input_shape) -> (N, n_stage) float64.

        relu, clamp, abs, triangle: the operation's argument h; maximum(a, b): a - b. Only what the
        stage needs is evaluated, and tensors are freed after their last use.
        """
        return passes.preactivations(self.program, as_batch(z, self.input_shape), stage)

    @denormals()
    def rounding_error(self, z: Tensor | NDArray[Any], stage: int) -> Tensor:
        """Bound on |computed - exact| of `preactivations`, (n_stage,), valid for every row of z.

        A running error analysis (see `cpwl.network.program.rounding`): one forward pass for the
        magnitudes, and one pass on a single sample.
        """
        return error_analysis.rounding_errors(self.program, as_batch(z, self.input_shape), stage)[1]

    @denormals()
    def rounding_errors(
        self, z: Tensor | NDArray[Any], stage: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`preactivations`, `rounding_error`, and the bound's fresh part, from one forward pass.

        The fresh part (n_stage,) takes the results of earlier layers to be exact: not a bound, but
        the size of the errors that are really met. The bound adds up the worst case over all
        layers and grows with depth (7e-8 in the last layer of a DCGAN).
        """
        return error_analysis.rounding_errors(self.program, as_batch(z, self.input_shape), stage)

    @denormals()
    def pieces(self, z: Tensor | NDArray[Any]) -> Tensor:
        """Piece of every unit at every point, (N, num_units) int64: breakpoints below h."""
        return passes.pieces(self.program, as_batch(z, self.input_shape), self.num_units)

    @denormals()
    def apply_pieces(self, z: Tensor, pieces: Tensor) -> Tensor:
        """Evaluate with every unit held on a given piece: an affine function of z.

        Parameters
        ----------
        z : (N, *input_shape) float64 tensor
        pieces : (N, num_units) integer tensor

        Returns
        -------
        (N, *output_shape) float64 tensor
            Differentiable in z, also under torch.func.jvp, vjp and vmap.
        """
        return passes.apply_pieces(self.program, z, pieces)

    def stage_is_periodic(self, stage: int) -> bool:
        """Whether the stage has units with infinitely many pieces."""
        return any(
            isinstance(self.program.steps[head.step].nonlinearity, Triangle)
            for head in self.program.heads[stage]
        )

    def knots(
        self,
        stage: int,
        low: Floats | None = None,
        high: Floats | None = None,
    ) -> Knots:
        """Breakpoints of a stage.

        Parameters
        ----------
        low, high : (n_stage,) arrays, optional
            Range of each switching function; needed where `stage_is_periodic`. A periodic unit
            returns its breakpoints strictly between them, and `base` is its piece at `low`.

        Raises
        ------
        ValueError
            If the stage is periodic and no range is given.
        """
        if self.stage_is_periodic(stage):
            return _knots(self.program, stage, low, high)
        unit, value, base = self._fixed_knots[stage]
        return Knots(unit.copy(), value.copy(), base.copy())

    @cached_property
    def _fixed_knots(self) -> dict[int, Knots]:
        """Breakpoints of the stages that have no periodic unit."""
        fixed = (s for s in range(self.num_stages) if not self.stage_is_periodic(s))
        return {stage: _knots(self.program, stage, None, None) for stage in fixed}

    def bytes_per_sample(self, stage: int) -> int:
        """Estimate the peak bytes per sample that `preactivations(z, stage)` needs."""
        return self._bytes[stage]

    @cached_property
    def _bytes(self) -> list[int]:
        widths = np.diff(self.stage_offsets).tolist()
        plans = (stage_plan(self.program, stage) for stage in range(self.num_stages))
        return [
            8 * peak_values(self.program, plan, width)
            for plan, width in zip(plans, widths, strict=True)
        ]


def require_captured(network: Network) -> None:
    """Raise TypeError for a module, or anything else that was not captured."""
    require_kind(
        network, Network, "Capture a module first: cpwl.Network.from_torch(module, input_shape)."
    )


def inspect(
    model: nn.Module | Callable[..., Any] | str | PathLike[str],
    input_shape: tuple[int, ...] | None = None,
    *,
    fixed: Mapping[str, Any] | None = None,
    output: Output | None = None,
) -> tuple[Operation, ...]:
    """List every operation of a module or model file, refused ones included.

    Parameters
    ----------
    model, input_shape, fixed, output
        As in `Network.from_torch` and `Network.load`.

    Returns
    -------
    tuple of Operation
        With kind "affine", "cpwl" or "refused" (and then a reason).

    Raises
    ------
    CaptureError
        If there is nothing to list: the model cannot be read or traced.
    """
    if not isinstance(model, (str, PathLike)):
        if input_shape is None:
            raise CaptureError(
                "Expected input_shape with a module, got None. Give the shape of one sample, "
                "without the batch axis."
            )
        module, shape = unwrap(model), input_shape
    else:
        module, shape = _read(Path(model), input_shape, fixed, output)
        fixed = output = None
    shape = _check_shape(shape)
    with CAPTURING:
        listing = list_graph(export(float64_copy(module, fixed, output), shape))
        return lower(listing, refuse=False).operations


def _restore(
    data: bytes,
    input_shape: tuple[int, ...],
    upto: str | None,
    premises: Premises | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> Network:
    """Build a pickled network again; it was verified when it was captured."""
    with CAPTURING:
        exported = read_exported(data)
        lowered = lower(list_graph(exported, upto, state))
        return _assemble(lowered, input_shape, Origin(exported, upto, premises, state))


def _read(
    path: Path,
    input_shape: tuple[int, ...] | None,
    fixed: Mapping[str, Any] | None,
    output: Output | None,
) -> tuple[nn.Module, tuple[int, ...]]:
    suffix = path.suffix.lower()
    if suffix in (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin"):
        raise CaptureError(
            f"Expected a .onnx or .pt2 file, got '{path.name}', a pickle, which could run any code "
            "when opened. Load its state dict into the module with "
            "module.load_state_dict(torch.load(path, weights_only=True)), then use "
            "Network.from_torch, or save the module with torch.export.save as .pt2."
        )
    if suffix not in (".onnx", ".pt2"):
        raise CaptureError(
            f"Expected a .onnx or .pt2 file, got '{path.name}'. Export the model with "
            "torch.onnx.export or torch.export.save."
        )
    if suffix == ".onnx":
        from cpwl.network.files import read_onnx

        return read_onnx(path, input_shape, fixed=fixed, output=output)
    from cpwl.network.files import read_pt2

    # exact partitions of networks with larger values are out of reach, and float64 doubles them
    return read_pt2(path, input_shape, fixed=fixed, output=output, most_live=2**27)


def _check_shape(input_shape: Any) -> tuple[int, ...]:
    if isinstance(input_shape, int):
        input_shape = (input_shape,)
    sizes = tuple(input_shape) if isinstance(input_shape, Iterable) else ()
    if not sizes or not all(isinstance(n, (int, np.integer)) and n > 0 for n in sizes):
        # of a sample in the place of its shape nobody reads the numbers
        shape = getattr(input_shape, "shape", None)
        kind = type(input_shape).__name__
        got = f"a {kind} of shape {tuple(shape)}" if shape else repr(input_shape)
        raise CaptureError(
            f"Expected input_shape as positive sizes of one sample, got {got}. "
            "Leave the batch axis out, e.g. (2,) or (3, 32, 32)."
        )
    return tuple(int(n) for n in sizes)


def _assemble(lowered: Lowered, input_shape: tuple[int, ...], origin: Origin) -> Network:
    program = lowered.program
    groups, offsets = [], [0]
    for stage, heads in enumerate(program.heads):
        for head in heads:
            step = program.steps[head.step]
            assert step.nonlinearity is not None
            first = program.first_unit[head.step, head.round]
            shape = step.nonlinearity.shapes[head.round]
            groups.append(UnitGroup(step.name, step.nonlinearity.kind, stage, first, shape))
        offsets.append(offsets[-1] + sum(head.units for head in heads))
    output = program.steps[program.output]
    return Network(
        input_shape=input_shape,
        output_shape=output.single[1:],
        num_units=offsets[-1],
        stage_offsets=np.array(offsets, np.int64),
        groups=tuple(groups),
        operations=lowered.operations,
        contests=lowered.contests,
        program=program,
        matrices=read_matrices(program),
        origin=origin,
    )


def _knots(
    program: Program,
    stage: int,
    low: Floats | None,
    high: Floats | None,
) -> Knots:
    units, values, bases, first = [], [], [], 0
    for head in program.heads[stage]:
        nonlinearity = program.steps[head.step].nonlinearity
        assert nonlinearity is not None
        span = slice(first, first + head.units)
        if isinstance(nonlinearity, Triangle):
            if low is None or high is None:
                raise ValueError(
                    f"Expected low and high for the periodic units of stage {stage}, got None. "
                    "Give the range of every switching function of the stage."
                )
            unit, value, base = _periodic_knots(nonlinearity, low[span], high[span])
        else:
            breaks = [b.numpy().reshape(-1) for b in nonlinearity.breaks(head.round)]
            table = np.stack(breaks, axis=1)
            base = (table == -np.inf).sum(axis=1)
            unit, _ = np.nonzero(np.isfinite(table))
            value = table[np.isfinite(table)]
        units.append(unit + first)
        values.append(value)
        bases.append(base)
        first += head.units
    return Knots(np.concatenate(units), np.concatenate(values), np.concatenate(bases))


def _periodic_knots(wave: Triangle, low: Floats, high: Floats) -> tuple[Ints, Floats, Ints]:
    """Knots strictly between low and high, and the interval just above low."""
    start = wave.interval(torch.from_numpy(np.ascontiguousarray(low))).numpy()
    # `interval` puts a point on a knot below it; strictly above low, that knot is passed.
    start = start + (wave.knot(torch.from_numpy(start + 1)).numpy() <= low)
    end = wave.interval(torch.from_numpy(np.ascontiguousarray(high))).numpy()
    counts = np.maximum(end - start, 0)
    unit = np.repeat(np.arange(len(low)), counts)
    within = np.arange(len(unit)) - np.repeat(np.cumsum(counts) - counts, counts)
    k = start[unit] + 1 + within
    return unit, wave.knot(torch.from_numpy(k)).numpy(), start
