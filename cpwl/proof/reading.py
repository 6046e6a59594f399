"""A captured network as the plain steps that a proof works on."""

from __future__ import annotations

import hashlib
import json
from math import prod

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array

from cpwl.network import Network
from cpwl.network.program import Extremum, Pointwise, Program, Ref, Tournament, Triangle
from cpwl.proof.exact_network import (
    Affine,
    Contest,
    Convolution,
    ExactNetwork,
    Matrix,
    Part,
    Pieces,
    Step,
    Wave,
    coefficients,
    plain_matrix,
    sources,
)
from cpwl.proof.large_steps import listed, read_large
from cpwl.proof.plain import as_plain

MOST_ENTRIES = 2**22
"""Coefficients of a network that is still certified, a convolution's counted once: each is
multiplied for every group of cells that agree up to it."""
_LISTED_AT_MOST = 2**20  # by `read_matrices`


def read_exactly(network: Network, *, large: bool = False) -> ExactNetwork:
    """Read a network's steps; ``large`` ones may have convolutions whose matrix is not listed.

    Raises
    ------
    ValueError
        The network is too large, or has an operation without an exact matrix.
    """
    matrices, program = network.matrices, network.program
    if not matrices.complete and not large:
        raise _too_large(matrices.reason, _LISTED_AT_MOST)
    reading = _Reading(program)
    for index, step in enumerate(program.steps):
        if step.kind == "affine":
            if matrices.complete:
                held, offset = listed(matrices.steps[index]), matrices.steps[index].offset
            else:
                found = read_large(program, step)
                if isinstance(found, str):
                    raise _too_large(found)
                held, offset = found
            reading.affine(index, held, offset)
        elif step.kind == "cpwl":
            if not matrices.complete and isinstance(step.nonlinearity, Triangle):
                raise _too_large(f"{step.name} is a triangle wave")
            reading.bend(index)
    exact = reading.finish(network)
    entries = coefficients(exact)
    if entries > MOST_ENTRIES:
        raise _too_large(f"its affine operations have {entries:,} coefficients")
    return exact


def _too_large(reason: str, most: int = MOST_ENTRIES) -> ValueError:
    return ValueError(
        f"Expected a network of at most {most:,} coefficients, all of which are multiplied "
        f"in exact arithmetic for nearly every cell, got one where {reason}. Use cpwl.check, which "
        "works in float64."
    )


class _Reading:
    """Steps so far; `place` says which of their values holds the value of a program's step."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.steps: list[Step] = []
        self.names: list[str] = []
        self.place = {0: 0}

    def add(self, step: Step, name: str) -> int:
        """Append a step; return the number of its value."""
        self.steps.append(step)
        self.names.append(name)
        return len(self.steps)

    def affine(
        self, index: int, parts: list[tuple[int, Matrix | Convolution]], offset: NDArray
    ) -> None:
        """Append an affine step, unless it only passes its operand on."""
        if any(source not in self.place for source, _ in parts):
            return  # behind an operation that the output does not depend on
        held = [Part(self.place[source], matrix) for source, matrix in parts]
        if len(held) == 1 and not offset.any() and _is_identity(held[0].matrix):
            self.place[index] = held[0].source
        else:
            name = self.program.steps[index].name
            self.place[index] = self.add(Affine(tuple(held), offset), name)

    def bend(self, index: int) -> None:
        """Append a CPWL step."""
        step = self.program.steps[index]
        bend = step.nonlinearity
        first = self.program.first_unit.get((index, 0))
        if first is None:  # the output does not depend on it
            return
        name = f"{bend.kind} {step.name}" if bend is not None else step.name
        if isinstance(bend, Tournament):
            self.place[index] = self.add(self._tournament(index, bend), name)
            return
        assert bend is not None
        shape = bend.shapes[0]
        n = prod(shape)
        operands = [self._operand(arg, shape, name) for arg in step.args]
        if isinstance(bend, Extremum):
            parts = tuple(
                Part(source, _selection(side * n + np.arange(n), np.arange(n), 2 * n, n))
                for side, source in enumerate(operands)
            )
            both = self.add(Affine(parts, np.zeros(2 * n)), name)
            match = np.arange(n)
            made: Step = Contest(
                source=both,
                units=first + match,
                left=match,
                right=n + match,
                outputs=2 * n + match,
                largest=bend.largest,
            )
        elif isinstance(bend, Triangle):
            made = Wave(
                source=operands[0],
                first_unit=first,
                size=n,
                period=bend.period,
                phase=bend.phase,
                scale=bend.scale,
                offset=bend.offset,
            )
        else:
            assert isinstance(bend, Pointwise)
            tables = (
                np.stack([np.broadcast_to(np.asarray(x, np.float64), shape).ravel() for x in table])
                for table in (bend.points, bend.slopes, bend.offsets)
            )
            made = Pieces(operands[0], first, *tables)
        self.place[index] = self.add(made, name)

    def _operand(self, arg: object, shape: tuple[int, ...], name: str) -> int:
        """Value that holds an operand, spread to the shape that it broadcasts to."""
        n = prod(shape)
        if not isinstance(arg, Ref):
            constant = np.broadcast_to(np.asarray(arg, np.float64), (1, *shape)).ravel()
            return self.add(Affine((), constant.copy()), name)
        single = self.program.steps[arg.index].single
        grid = np.broadcast_to(np.arange(prod(single)).reshape(single), (1, *shape)).ravel()
        if prod(single) == n:
            return self.place[arg.index]
        spread = _selection(np.arange(n), grid, n, prod(single))
        return self.add(Affine((Part(self.place[arg.index], spread),), np.zeros(n)), name)

    def _tournament(self, index: int, bend: Tournament) -> Contest:
        """Give every round's candidates the numbers of the entries or matches they come from."""
        arg = self.program.steps[index].args[0]
        assert isinstance(arg, Ref)
        n = prod(self.program.steps[arg.index].single)
        node = np.arange(n)
        left, right, units, played = [], [], [], 0
        for round_, (a, b, passing) in enumerate(
            zip(bend.left, bend.right, bend.passing, strict=True)
        ):
            left.append(node[a.numpy()])
            right.append(node[b.numpy()])
            units.append(self.program.first_unit[index, round_] + np.arange(len(a)))
            node = np.concatenate([n + played + np.arange(len(a)), node[passing.numpy()]])
            played += len(a)
        outputs = node[bend.final.numpy()]
        return Contest(
            source=self.place[arg.index],
            units=np.concatenate(units),
            left=np.concatenate(left),
            right=np.concatenate(right),
            outputs=outputs,
            largest=bend.largest,
        )

    def finish(self, network: Network) -> ExactNetwork:
        """Drop what no unit depends on; of it, a hash is left."""
        needed: set[int] = set()
        for number in range(len(self.steps), 0, -1):
            step = self.steps[number - 1]
            if number in needed or not isinstance(step, Affine):
                needed.update((number, *sources(step)))
        kept = sorted(needed - {0})
        new = {0: 0, **{number: i + 1 for i, number in enumerate(kept)}}
        steps = tuple(_renumbered(self.steps[number - 1], new) for number in kept)
        names = tuple(self.names[number - 1] for number in kept)
        return ExactNetwork(
            prod(network.input_shape), network.num_units, steps, names, self._tail(new)
        )

    def _tail(self, new: dict[int, int]) -> str:
        """Hash the affine steps from the last units to the output."""
        output = self.place[self.program.output]
        needed = {output}
        for number in range(output, 0, -1):
            if number in needed and number not in new:
                needed.update(sources(self.steps[number - 1]))
        hashed = hashlib.sha256()
        new = dict(new)
        for number in sorted(needed):
            if number not in new:
                new[number] = len(new)
                step = _renumbered(self.steps[number - 1], new)
                hashed.update(json.dumps(as_plain(step), sort_keys=True).encode())
        hashed.update(f"output {new[output]}".encode())
        return hashed.hexdigest()


def _renumbered(step: Step, new: dict[int, int]) -> Step:
    if isinstance(step, Affine):
        return Affine(tuple(Part(new[source], m) for source, m in step.parts), step.offset)
    return step._replace(source=new[step.source])


def _selection(rows: NDArray, columns: NDArray, height: int, width: int) -> Matrix:
    """Return the matrix with ones at these places."""
    entries = (np.ones(len(rows)), (rows, columns))
    return plain_matrix(coo_array(entries, shape=(height, width)))


def _is_identity(matrix: Matrix | Convolution) -> bool:
    return (
        isinstance(matrix, Matrix)
        and matrix.shape[0] == matrix.shape[1] == len(matrix.columns)
        and bool((matrix.columns == np.arange(len(matrix.columns))).all())
        and bool((matrix.counts == 1).all())
        and bool((matrix.values == 1.0).all())
    )
