"""`make bench-docs`: write the stored tables into README.md and docs/performance.md, between their markers.

The lines are those of results/table.json. If results/table_again.json holds a later run of some of them, they are taken
from there. README shows the ten lines of TEN, docs/performance.md all of them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from table import quantity

from harness.places import REPOSITORY, RESULTS
from workloads.rows import LIMITS, PEERS

HEADINGS = ("work", "threads", "called from", "nbprop", "compared with", "its time", "ratio [quartiles]")

# (work, peer, threads): from the largest gain on small networks to where the peer is faster.
TEN = (
    ("4-32-32-1 tanh, batch 64, Adam step", "torch", 1),
    ("4-32-32-1 tanh, batch 64, Adam step", "jax-scan", 1),
    ("200 steps of a simulation with 4-32-32-2 tanh, float64, with gradient", "jax-scan", 1),
    ("4-32-32-1 tanh, 1,000 samples, float64, 200 iterations of L-BFGS-B", "jax-jit", 1),
    ("GPT, 4 layers, 4 heads, 128 wide, 64 positions, batch 12, AdamW step", "torch", 1),
    ("784-128-10 relu, batch 128, Adam step", "jax-jit", 1),
    ("784-1024-1024-10 relu, batch 256, Adam step", "jax-jit", 1),
    ("conv2d 3x3, 64-64 channels, 28x28, batch 16, forward and backward", "torch", 1),
    ("process start to first gradient, warm disk cache", "jax", 1),
    ("product 64 x 32 x 4", "blas", 1),
)


def stored(results: Path = RESULTS) -> dict[tuple[str, str, str, int], dict]:
    """(work, ours, peer, threads) -> the newest line that has two times, in the order of the table."""
    lines: dict[tuple[str, str, str, int], dict] = {}
    runs = [
        json.loads(path.read_text()) for path in (results / "table.json", results / "table_again.json") if path.exists()
    ]
    for run in sorted(runs, key=lambda run: run["date"]):
        for line in run["lines"]:
            lines[line["work"], line["ours"], line["peer"], line["threads"]] = line
    return {
        key: line for key, line in lines.items() if line["ours_time"] and line["peer_time"] and line["time_unit"] == "s"
    }


def ratio(value: float) -> str:
    """Two digits below 1; from there on three, since 1.03 is slower and would read 1."""
    return f"{value:.2g}" if value < 0.95 else f"{value:.3g}"


def row(line: dict) -> str:
    """A line of the Markdown table."""
    if line["figure_unit"] == "ratio":
        median, low, high = (ratio(line["figure"][name]) for name in ("median", "q25", "q75"))
        figure = f"{median} [{low}, {high}]"
    else:
        figure = ratio(line["ours_time"] / line["peer_time"])
    ours, theirs = (quantity(line[side], "s") for side in ("ours_time", "peer_time"))
    called = {"nbprop": "Python", "nbprop-njit": "@njit"}[line["ours"]]
    peer, work = (PEERS | LIMITS)[line["peer"]], line["work"].removesuffix(", beside 1 thread")
    return f"| {work} | {line['threads']} | {called} | {ours} | {peer} | {theirs} | {figure} |"


def tables(results: Path = RESULTS) -> dict[tuple[str, str], str]:
    """(document, marker) -> the Markdown table that stands there."""
    lines = stored(results)
    by_peer = {(work, peer, threads): line for (work, _, peer, threads), line in lines.items()}
    chosen = {
        ("README.md", "ten"): [by_peer[key] for key in TEN],
        ("docs/performance.md", "peers"): [line for line in lines.values() if line["peer"] in PEERS],
        ("docs/performance.md", "limits"): [line for line in lines.values() if line["peer"] in LIMITS],
    }
    head = f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}\n"
    return {place: head + "\n".join(map(row, found)) + "\n" for place, found in chosen.items()}


def between(marker: str) -> re.Pattern[str]:
    """What stands between a document's two markers of that name."""
    return re.compile(rf"(<!-- bench {marker}: begin.*?-->\n)(.*?)(<!-- bench {marker}: end -->)", re.S)


def main() -> None:
    for (name, marker), text in tables().items():
        path = REPOSITORY / name
        before = path.read_text(encoding="utf-8")
        after, count = between(marker).subn(lambda found, text=text: found[1] + text + found[3], before)
        if count != 1:
            raise SystemExit(f"{name}: it must have one pair of markers `bench {marker}`, and has {count}")
        path.write_text(after, encoding="utf-8")
        print(f"{name}: {marker}, {text.count(chr(10)) - 2} lines")


if __name__ == "__main__":
    main()
