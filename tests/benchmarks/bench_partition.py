"""Speed and memory of the exact engine in 2-D, against regioncam and against the floor.

    pytest tests/benchmarks/bench_partition.py -s

Every measurement is a process of its own; the engines take turns, and the best of the rounds
counts. Each test prints its table and asserts the project's targets.
"""

from __future__ import annotations

from typing import Any

from benchmarks.measuring import best, measure

NETWORKS = {"2-20-20-20-3": 1839, "2-64-64-64-3": 18863, "2-128-128-128-3": 65799,
            "2-256-256-256-3": 269845, "2-512-512-512-3": None}  # fmt: skip


def test_against_regioncam_and_floor() -> None:
    print("\n| network | cells | cpwl wall s | CPU s | MB | regioncam wall s | MB | its cells "
          "| times faster | floor s | cpwl / floor |\n" + "|---" * 11 + "|")  # fmt: skip
    short = []
    for widths, cells in NETWORKS.items():
        ours, peer, floor = engines_in_turns(widths)
        print(row(widths, ours, peer, floor), flush=True)
        if peer and widths != "2-20-20-20-3" and peer["wall"] < 10 * ours["wall"]:
            short.append(f"{widths}: {peer['wall'] / ours['wall']:.1f} times")
        if cells is not None:
            assert ours["cells"] == cells
        if widths.startswith("2-256"):
            assert ours["rss"] <= 6.6e9 / 20
    assert not short, f"Expected 10 times regioncam's speed, got {', '.join(short)}"


def engines_in_turns(widths: str) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any]]:
    """Measure cpwl, regioncam (where it fits) and the floor."""
    large = widths.startswith(("2-256", "2-512"))
    rounds: dict[str, list[dict[str, Any]]] = {"cpwl": [], "regioncam": [], "floor": []}
    for k in range(2 if large else 3):
        for engine, made in rounds.items():
            if engine == "regioncam" and (widths.startswith("2-512") or (large and k)):
                continue  # 25 s and 6.6 GB at 2-256 already
            slow = engine == "regioncam" and widths.startswith("2-128")
            once = engine == "regioncam" and large
            made.append(measure(engine, widths, repeat=1 if once else 3 if slow or large else 10))
    peer = best(rounds["regioncam"]) if rounds["regioncam"] else None
    return best(rounds["cpwl"]), peer, best(rounds["floor"])


def row(
    widths: str, ours: dict[str, Any], peer: dict[str, Any] | None, floor: dict[str, Any]
) -> str:
    """Row of the table."""
    text = f"| {widths} | {ours['cells']:,} | {ours['wall']:.3f} | {ours['cpu']:.3f} "
    text += f"| {ours['rss'] / 1e6:.0f} "
    if peer:
        text += f"| {peer['wall']:.3f} | {peer['rss'] / 1e6:.0f} | {peer['cells']:,} "
        text += f"| {peer['wall'] / ours['wall']:.1f} "
    else:
        text += "| - | - | - | - "
    return f"{text}| {floor['wall']:.4f} | {ours['wall'] / floor['wall']:.2f} |"


def test_cost_per_cell_is_flat() -> None:
    """Width 512, the domain growing: from about 1e4 to about 1e6 cells."""
    print("\n| network | domain | cells | microseconds a cell |\n" + "|---" * 4 + "|")
    costs = []
    for size in (0.12, 0.35, 1.0, 3.0, 10.0):
        made = best([measure("cpwl", "2-512-512-512-3", size=size, repeat=2) for _ in range(2)])
        costs.append(1e6 * made["wall"] / made["cells"])
        print(f"| 2-512-512-512-3 | ±{size:g} | {made['cells']:,} | {costs[-1]:.2f} |", flush=True)
    assert max(costs) <= 1.5 * costs[0]


def test_two_cores() -> None:
    print("\n| network | cells | one core s | two cores s | ratio |\n" + "|---" * 5 + "|")
    for widths in ("2-128-128-128-128-3", "2-256-256-256-3"):
        rounds = [(measure("cpwl", widths, cores=1), measure("cpwl", widths)) for _ in range(3)]
        one, two = best([r[0] for r in rounds]), best([r[1] for r in rounds])
        ratio = one["wall"] / two["wall"]
        print(f"| {widths} | {two['cells']:,} | {one['wall']:.3f} | {two['wall']:.3f} "
              f"| {ratio:.2f} |", flush=True)  # fmt: skip
        assert two["cells"] >= 1e5
        assert ratio >= 1.6
