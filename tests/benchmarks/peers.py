"""Other systems that enumerate the cells of ReLU networks, behind the benchmarks' interface.

None of them is needed unless it is measured, and this module must not import cpwl: SplineCam's
interpreter may lack what cpwl needs.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import types
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from benchmarks.common import Found
from scipy.optimize import linprog
from torch import Tensor, nn


def regioncam_engine(module: nn.Sequential, size: float, limit: float) -> Callable[[], Found]:
    """Add all layers to a new Regioncam."""
    import regioncam

    layers = [
        regioncam.nn.Linear(layer.weight.detach().numpy().T.copy(), layer.bias.detach().numpy())
        if isinstance(layer, nn.Linear)
        else regioncam.nn.ReLU()
        for layer in module
    ]

    def run() -> Found:
        camera = regioncam.Regioncam(size=size)
        camera.add(layers)

        def centres() -> Tensor:
            corners = np.asarray(camera.vertex_inputs)
            return _means([corners[face.vertex_ids] for face in camera.faces])

        return Found(camera.num_faces, centres=centres)

    return run


def splinecam_engine(module: nn.Sequential, size: float, limit: float) -> Callable[[], Found]:
    """Compute the partition from the checkout named by SPLINECAM, on the CPU.

    Its code names the GPU in many places, and torch 1.12, whose TorchScript took more of Python. So
    `Tensor.cuda` returns the tensor, functions that cannot be scripted run as Python, and data
    loaders start no processes (on a CPU that only costs). The decision boundary, which it would
    compute last and no other system here does, is left out.
    """
    sys.path.insert(0, os.environ["SPLINECAM"])
    torch.set_num_threads(1)  # faster than two: its tensors are a cell's
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        unused = types.ModuleType("torchvision")  # its example networks would come from there
        unused.models = None  # pyright: ignore[reportAttributeAccessIssue]
        sys.modules["torchvision"] = unused
    script = torch.jit.script
    torch.jit.script = partial(_script_or_not, script)
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor
    import splinecam

    torch.jit.script = script
    step = splinecam.graph.to_next_layer_partition_batched
    if not isinstance(step, partial):  # the second network of this process
        splinecam.graph.to_next_layer_partition_batched = partial(step, device="cpu", workers=0)
        splinecam.compute.to_next_layer_partition_batched = _refuse
    corners = [[-size, -size], [size, -size], [size, size], [-size, size], [-size, -size]]
    domain = torch.tensor(corners, dtype=torch.float64)
    plane = splinecam.utils.get_proj_mat(domain)
    wrapped = splinecam.wrappers.model_wrapper(
        module.double(), input_shape=(2,), T=plane, dtype=torch.float64, device="cpu"
    )
    assert wrapped.verify()

    def run() -> Found:
        cells, _, _ = splinecam.compute.get_partitions_with_db(domain, plane, wrapped, n_workers=0)

        def centres() -> Tensor:
            return _means([cell.numpy() for cell in cells]) @ plane[:, :2].T + plane[:, 2]

        return Found(len(cells), centres=centres)

    return run


def affinitree_engine(module: nn.Sequential, size: float, limit: float) -> Callable[[], Found]:
    """Distil the module into a tree, on the box."""
    import affinitree

    dim = module[0].in_features
    architecture = affinitree.extract_pytorch_architecture(dim, module)
    sides = affinitree.Polytope.hyperrectangle(dim, [(-size, size)] * dim)

    def run() -> Found:
        box = affinitree.AffTree.from_poly(sides, affinitree.AffFunc.identity(dim))
        tree = affinitree.builder.from_layers(architecture, box)
        return Found(tree.num_terminals(), centres=lambda: _leaves(tree))

    return run


def relucent_engine(module: nn.Sequential, size: float, limit: float) -> Callable[[], Found]:
    """Search from cell to cell, until the limit."""
    import relucent

    class Stop(BaseException):
        """Nobody handles this one on its way."""

    def stop(*_: object) -> None:
        raise Stop

    def run() -> Found:
        complex_ = relucent.Complex(module)

        def found(complete: bool) -> Found:
            return Found(
                len(complex_),
                complete,
                lambda: torch.from_numpy(np.array([cell.interior_point for cell in complex_])),
            )

        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, limit, 10)  # and again where a callback lost it
        try:
            # without its verification: a second pass over all cells
            complex_.bfs(cube_mode="intersect", cube_radius=size, verify=False, verbose=0)
        except Stop:
            return found(False)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return found(bool(complex_.complete))

    return run


def _script_or_not(script: Callable, function: Callable, **options: object) -> Callable:
    try:
        return script(function, **options)
    except RuntimeError:
        return function


def _refuse(*_: object, **__: object) -> None:
    raise NotImplementedError


def _means(cells: list[np.ndarray]) -> Tensor:
    """Mean of every cell's vertices."""
    return torch.from_numpy(np.array([cell.mean(0, dtype=np.float64) for cell in cells]))


def _leaves(tree: object) -> Tensor:
    """Centre of the largest ball in every leaf of affinitree's tree."""
    centres = []
    for _, node, polytope in tree.polyhedra():  # pyright: ignore[reportAttributeAccessIssue]
        if node.is_terminal():
            A, b = np.asarray(polytope.mat), np.asarray(polytope.bias)
            norms = np.linalg.norm(A, axis=1, keepdims=True)
            objective = np.append(np.zeros(A.shape[1]), -1.0)
            solved = linprog(objective, np.hstack([A, norms]), b, bounds=(None, None))
            centres.append(solved.x[:-1])
    return torch.from_numpy(np.array(centres))


ENGINES = {
    "regioncam": regioncam_engine,
    "splinecam": splinecam_engine,
    "affinitree": affinitree_engine,
    "relucent": relucent_engine,
}
