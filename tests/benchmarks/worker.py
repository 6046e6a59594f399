"""Time one engine on one benchmark network in a process of its own; print one line of JSON.

    PYTHONPATH=tests python -m benchmarks.worker cpwl 2-64-64-64-3 [--size 10] [--repeat 3]
        [--cores 2]

Engines, on the box [-size, size]^P whose dimension is the network's first width:

- ``cpwl``: cells, patterns, facets, adjacency; ``maps``: the same, and every cell's affine map.
- ``regioncam``: cells, facets, adjacency, in 2-D (one thread, float32).
- ``splinecam``: cells and their affine maps, in 2-D, neither facets nor adjacency. It is no
  package: SPLINECAM is the folder of a checkout, whose needs the interpreter must have.
- ``affinitree``: a decision tree whose leaves are the cells with their maps (one thread); it has
  neither vertices nor facets nor adjacency.
- ``relucent``: cells, the facets' units and adjacency by search, without vertices; all cores. It
  stops after ``--limit`` seconds with the cells that it has.
- ``floor``: one float64 forward pass of torch at the vertices of cpwl's final partition.

Compilation is warmed on a tiny network first. ``cpu`` includes worker processes; ``rss`` is the
peak memory above what this process held then, without them. With ``--account 1``, ``proof`` has the
seconds that went into bounds on rounding errors and into rational arithmetic (in the round that
took ``wall``). With ``--check 1``, ``patterns`` is how many different activation patterns the
network has at interior points of the cells: as many as cells, if each is a cell of the network.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import time

import torch
from benchmarks.common import Found, count_patterns, digest, make_network

OURS = ("cpwl", "maps", "floor")
PEERS = ("regioncam", "splinecam", "affinitree", "relucent")


def main() -> None:
    """Run the engine named on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=[*OURS, *PEERS])
    parser.add_argument("widths")
    parser.add_argument("--size", type=float, default=10.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cores", type=int, default=0)
    parser.add_argument("--limit", type=float, default=60.0)
    parser.add_argument("--account", type=int, default=0)
    parser.add_argument("--check", type=int, default=0)
    args = parser.parse_args()
    if args.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
        torch.set_num_threads(args.cores)
    home = "engines" if args.engine in OURS else "peers"
    engines = importlib.import_module(f"benchmarks.{home}")
    make = engines.ENGINES[args.engine]
    inputs, outputs = args.widths.split("-")[0], args.widths.split("-")[-1]
    make(make_network(f"{inputs}-8-8-{outputs}"), args.size, args.limit)()
    name = digest(make_network(args.widths))
    run = make(make_network(args.widths), args.size, args.limit)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    account = engines.Account() if args.account else None
    wall, cpu, proof, found = [], [], [], Found(0)
    for _ in range(args.repeat):
        found = Found(0)  # frees the last round's result
        if account is not None:
            account.seconds = 0.0
        start, start_cpu = time.perf_counter(), _cpu_seconds()
        found = run()
        wall.append(time.perf_counter() - start)
        cpu.append(_cpu_seconds() - start_cpu)
        proof.append(account.seconds if account is not None else 0.0)
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    quickest = wall.index(min(wall))
    made = {"cells": found.cells, "complete": found.complete, "network": name}
    made |= {"wall": wall[quickest], "cpu": min(cpu), "rss": rss * 1024, "proof": proof[quickest]}
    if args.check and found.centres is not None:
        made["patterns"] = count_patterns(make_network(args.widths), found.centres())
    print(json.dumps(made))


def _cpu_seconds() -> float:
    """CPU time of this process and of those that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main()
