"""Speed in three dimensions and more, and what proofs cost.

    pytest tests/benchmarks/bench_dimensions.py -s

Every measurement is a process of its own, and the best of the rounds counts. Each test prints its
table and asserts the project's targets. `bench_peers` holds the same networks against peers.
"""

from __future__ import annotations

from benchmarks.measuring import best, measure

# cells, and the most seconds that the issue allows for cells, facets, adjacency and maps
NETWORKS = {"3-16-16-3": (4287, None), "4-10-10-3": (5672, 0.06), "3-32-32-3": (39175, 0.4)}

# some thousand cells in every dimension
DIMENSIONS = {"2-64-64-3": 7556, "3-19-19-3": 6126, "4-10-10-3": 5672, "5-8-8-3": 5701,
              "6-8-8-3": 9431}  # fmt: skip


def test_cells_and_maps() -> None:
    """Cells, faces of every dimension, adjacency, proofs and all affine maps."""
    print("\n| network | cells | wall s | CPU s | peak MB |\n" + "|---" * 5 + "|")
    slow = []
    for widths, (cells, target) in NETWORKS.items():
        made = best([measure("maps", widths, repeat=10) for _ in range(3)])
        print(f"| {widths} | {made['cells']:,} | {made['wall']:.3f} | {made['cpu']:.3f} "
              f"| {made['rss'] / 1e6:.0f} |", flush=True)  # fmt: skip
        assert made["cells"] == cells
        assert made["complete"]
        if target is not None and made["wall"] > target:
            slow.append(f"{widths}: {made['wall']:.3f} s instead of {target} s")
    assert not slow, f"Expected the targets to be met, got {', '.join(slow)}"


def test_cost_per_cell_by_dimension() -> None:
    print("\n| network | dimension | cells | without maps s | microseconds a cell | with maps s "
          "| microseconds a cell |\n" + "|---" * 7 + "|")  # fmt: skip
    for widths, cells in DIMENSIONS.items():
        engines = {}
        for engine in ("cpwl", "maps"):
            engines[engine] = best([measure(engine, widths, repeat=10) for _ in range(2)])
        row = f"| {widths} | {widths[0]} | {engines['cpwl']['cells']:,} "
        for made in engines.values():
            assert made["cells"] == cells
            assert made["complete"]
            row += f"| {made['wall']:.4f} | {1e6 * made['wall'] / made['cells']:.2f} "
        print(f"{row}|", flush=True)


def test_share_of_time_for_proofs() -> None:
    """Bounds and rational arithmetic, on generic networks; at most a tenth of the time."""
    print("\n| network | cells | wall s | of it for proofs s | share |\n" + "|---" * 5 + "|")
    dear = []
    for widths in ("2-64-64-64-3", "2-128-128-128-3", "2-256-256-256-3", "3-32-32-3", "4-10-10-3"):
        repeat = 3 if widths.startswith("2-256") else 10
        made = best([measure("cpwl", widths, repeat=repeat, account=1) for _ in range(2)])
        share = made["proof"] / made["wall"]
        print(f"| {widths} | {made['cells']:,} | {made['wall']:.3f} | {made['proof']:.4f} "
              f"| {share:.1%} |", flush=True)  # fmt: skip
        assert made["complete"]
        if share > 0.1:
            dear.append(f"{widths}: {share:.1%}")
    assert not dear, f"Expected proofs to take at most 10 % of the time, got {', '.join(dear)}"
