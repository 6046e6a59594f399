"""cpwl against SplineCam, regioncam, relucent and affinitree, on the same networks: one table.

    pytest tests/benchmarks/bench_peers.py -s
    python -m benchmarks.bench_peers --networks 3-16-16-3 --peers affinitree --limit 60

Every measurement is a process of its own, and cpwl takes its turn before and after each peer; the
rows of cpwl are the best of all its turns. cpwl computes cells, patterns, faces of every dimension,
adjacency and proofs of every sign, and in its second row all affine maps too. Peers that give every
cell's affine map are compared with the second row, the others with the first; what else each of
them computes is in the worker's docstring. With `--check`, the table has how many of a peer's cells
are different cells of the network.

`pip install ".[peers]"` adds three of them (relucent needs Gurobi, whose restricted licence, part
of its package, suffices here). SplineCam is no package: SPLINECAM names the folder of a checkout,
and SPLINECAM_PYTHON an interpreter with torch, scipy, matplotlib, networkx, igraph, pycairo and
graph-tool 2.45, where this one has them not. What is missing is named in the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from benchmarks.measuring import NotFinishedError, best, measure

PLANE, SPACE = ("splinecam", "regioncam", "affinitree", "relucent"), ("affinitree", "relucent")
# cells, proven by cpwl and checked by other means in the tests; who is measured
NETWORKS: dict[str, tuple[int, tuple[str, ...]]] = {
    "2-20-20-20-3": (1839, PLANE),
    "2-64-64-64-3": (18863, PLANE),
    "2-128-128-128-3": (65799, ("regioncam",)),
    "2-256-256-256-3": (269845, ("regioncam",)),
    "3-16-16-3": (4287, SPACE),
    "4-10-10-3": (5672, SPACE),
    "3-32-32-3": (39175, SPACE),
}
# the engine of ours that computes no less
MATES = {"splinecam": "maps", "regioncam": "cpwl", "affinitree": "maps", "relucent": "cpwl"}
OURS = {"cpwl": "cpwl", "maps": "cpwl, maps too"}
START = 60  # seconds that a process may take for imports, the tiny network, and the check
HEAD = "| network | cells | engine | wall s | CPU s | peak MB | its cells | right? "
HEAD += "| times slower than cpwl |"


def compare(widths: str, peers: list[str], limit: float, check: bool) -> Iterator[str]:
    """Yield the rows of one network, cpwl's last."""
    cells = NETWORKS[widths][0]
    repeat = 3 if widths.startswith("2-256") else 10
    ours: dict[str, list[dict[str, Any]]] = {}
    for peer in peers:
        turns = ours.setdefault(MATES[peer], [])
        turns.append(measure(MATES[peer], widths, repeat=repeat))
        row = f"| {widths} | {cells:,} | {peer} "
        try:
            made = _measure_peer(peer, widths, turns[-1]["wall"], limit, check)
        except NotFinishedError:
            yield f"{row}| not finished in {limit:g} s | | | | | |"
            continue
        except RuntimeError as error:
            missing = "ModuleNotFoundError" in str(error)
            reason = "not installed" if missing else str(error).partition(": ")[2]
            yield f"{row}| {reason} | | | | | |"
            continue
        turns.append(measure(MATES[peer], widths, repeat=repeat))
        assert made["network"] == turns[-1]["network"], f"{peer} was given another network"
        ratio = made["wall"] / best(turns[-2:])["wall"]
        least = "" if made["complete"] else "> "
        yield f"{row}{_numbers(made, cells, check)}| {least}{ratio:,.{0 if ratio >= 10 else 1}f} |"
    for engine, turns in sorted(ours.items()):
        assert all(made["complete"] and made["cells"] == cells for made in turns)
        yield f"| {widths} | {cells:,} | {OURS[engine]} {_numbers(best(turns), cells, False)}| |"


def _measure_peer(peer: str, widths: str, ours: float, limit: float, check: bool) -> dict[str, Any]:
    """Measure a peer: ten times where it takes about as long as cpwl, else once."""
    patience = limit + START * (5 if check else 1)
    repeat = 10 if peer == "regioncam" and ours < 0.1 else 1
    return measure(peer, widths, patience=patience, repeat=repeat, limit=limit, check=int(check))


def _numbers(made: dict[str, Any], cells: int, check: bool) -> str:
    """Cells of the table: wall, CPU, MB, cells, whether they are right."""
    wall, surplus = made["wall"], made["cells"] - cells
    if not made["complete"]:
        right = "stopped"
    elif surplus:
        right = f"{abs(surplus):,} {'too many' if surplus > 0 else 'missing'}"
    else:
        right = "yes"
    if check:
        right += f", {made['patterns']:,} different"
    digits = 3 if wall < 1 else 2 if wall < 10 else 0
    return (
        f"| {wall:,.{digits}f} | {made['cpu']:,.{digits}f} | {made['rss'] / 1e6:,.0f} "
        f"| {made['cells']:,} | {right} "
    )


def test_against_peers() -> None:
    print(f"\n{HEAD}\n" + "|---" * 9 + "|")
    for widths, (_, peers) in NETWORKS.items():
        for row in compare(widths, list(peers), 300, check=False):
            print(row, flush=True)


def main() -> None:
    """Print the table for the networks and peers named on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--peers", nargs="+", choices=PLANE, default=list(PLANE))
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for each peer")
    parser.add_argument("--check", action="store_true", help="count the network's cells in it")
    args = parser.parse_args()
    print(f"{HEAD}\n" + "|---" * 9 + "|")
    for widths in args.networks:
        peers = [peer for peer in NETWORKS[widths][1] if peer in args.peers]
        for row in compare(widths, peers, args.limit, args.check):
            print(row, flush=True)


if __name__ == "__main__":
    main()
