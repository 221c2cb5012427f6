"""The time of a step on many processes, from what benchmarks/cluster.py measured: the figure of docs/cluster.md.

    python benchmarks/cluster_model.py [RESULT]

It writes the figures into docs/cluster.md, between its markers, and draws docs/cluster.svg.

A step of R ranks, with one piece each and a sharded update, is modelled as

    t(R) = fixed + work batch / R + update / R + messages(R) (software + latency) + 2 (R - 1) / R bytes / bandwidth

fixed + work n is the time of a gradient of n samples; it is fitted to measurements in one process: even one sample
passes over all parameters. messages(R) = 4 ceil(log2 R): the ranks meet, gradients are halved, and parameters gathered.
software, the time of a message but for the network's, and the bandwidth between processes of this machine are fitted to
sums of many sizes on 2 ranks and more, as many as have a core. On the cluster, latency and bandwidth are those that
NVIDIA publishes for InfiniBand HDR: below 600 ns and 200 Gb/s
(https://docs.nvidia.com/networking/display/ConnectX6EN/Introduction).
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
from cluster import AT_MOST
from document import between
from scipy.optimize import nnls

from harness.places import REPOSITORY, RESULTS

LATENCY, BANDWIDTH = 600e-9, 200e9 / 8  # seconds, bytes per second
BATCH = 8192
RANKS = tuple(1 << k for k in range(11))


def fitted(times, columns):
    """The factors, none below 0, of columns whose sum is closest to the times, relatively; (factors, largest error)."""
    times, matrix = np.array(times), np.array(columns, float).T / np.array(times)[:, None]
    factors, _ = nnls(matrix, np.ones(len(times)))
    return factors, float(np.abs(matrix @ factors - 1).max())


def messages(ranks):
    return 4 * math.ceil(math.log2(ranks)) if ranks > 1 else 0


def volume(ranks):
    """How often a vector travels from and to each rank."""
    return 2 * (ranks - 1) / ranks


def model(stored):
    """{network: parts}, and (software, bandwidth) of this machine with the largest error of their fit."""
    rows, cores = stored["scaling"], stored["machine"]["cores"]
    networks = {}
    for row in rows:
        if "update" in row:
            counts = [int(name.rsplit(" ", 1)[1]) for name in row if name.startswith("gradient of")]
            seconds = [row[f"gradient of {n}"] for n in counts]
            (fixed, work), error = fitted(seconds, [[1] * len(counts), counts])
            name = "-".join(map(str, row["widths"]))
            networks[name] = {"fixed": fixed, "work": work, "update": row["update"], "bytes": 4 * row["n_params"]}
            networks[name]["error"] = error
    sums = [row for row in rows if "sum" in row and 1 < row["ranks"] <= max(2, cores)]
    columns = [[2 * math.log2(row["ranks"]) for row in sums], [volume(row["ranks"]) * row["bytes"] for row in sums]]
    (software, inverse), error = fitted([row["sum"] for row in sums], columns)
    return networks, {"software": software, "bandwidth": 1 / max(inverse, 1e-15), "error": error}


def step(network, machine, ranks, latency=LATENCY, bandwidth=BANDWIDTH, batch=BATCH):
    """Seconds of a step."""
    alone = network["fixed"] + network["work"] * batch / ranks + network["update"] / ranks
    on_the_way = messages(ranks) * (machine["software"] + latency) + volume(ranks) * network["bytes"] / bandwidth
    return alone + on_the_way


def table(networks, machine):
    """Where it stops to pay, as Markdown."""
    header = "network", "parameters", "one process", "half of the time is used up to", "fastest with", "speed then"
    lines = [header, ("---",) * len(header)]
    for name, network in networks.items():
        times = {ranks: step(network, machine, ranks) for ranks in RANKS}
        efficient = max(ranks for ranks in RANKS if times[1] / times[ranks] / ranks >= 0.5)
        best = min(RANKS, key=times.__getitem__)
        count, alone, speed = network["bytes"] // 4, times[1] * 1e3, times[1] / times[best]
        lines.append((name, f"{count:,}", f"{alone:.1f} ms", str(efficient), str(best), f"{speed:.0f}"))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(networks, machine, stored, path):
    """Speed over ranks: measured here, and modelled on a cluster."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    import nbprop

    with nbprop.plot.style():
        figure, (here, there) = plt.subplots(1, 2, figsize=(8, 3.6))
        for name in networks:
            rows = [row for row in stored["scaling"] if "step" in row and "-".join(map(str, row["widths"])) == name]
            first = next(row["step"] for row in rows if row["ranks"] == 1)
            here.plot([row["ranks"] for row in rows], [first / row["step"] for row in rows], "o-", label=name)
            times = [step(networks[name], machine, ranks) for ranks in RANKS]
            there.loglog(RANKS, [times[0] / seconds for seconds in times], "-", label=name, base=2)
        here.set(title=f"Measured, {stored['machine']['cores']} cores, batch 256", xlabel="processes", ylabel="speed")
        there.loglog(RANKS, RANKS, ":", color="0.5", base=2)
        there.set(title=f"Model, InfiniBand HDR, batch {BATCH:,}", xlabel="processes, each with a core", ylabel="speed")
        there.legend()
        figure.savefig(path, metadata={"Date": None})


def section(stored):
    """What docs/cluster.md says of a result, as Markdown."""
    networks, machine = model(stored)
    first = stored["machine"]
    lines = [f"On {first['cores']} cores ({first['processor']}), the processes over shared memory:\n"]
    if stored["quick"]:
        lines.append("*A first run, of few slices, on a machine that was not idle: it shows what is measured.*\n")
    lines += ["| figure | median [quartiles] | at most |", "|---|---|---|"]
    for name, (median, low, high) in stored["figures"].items():
        lines.append(f"| {name} | {median:.3g} [{low:.3g}, {high:.3g}] | {AT_MOST.get(name, '')} |")
    lines += ["", "The parts of a step in one process, from which the model is made:\n"]
    lines += ["| network | gradient of n samples | its fit within | update |", "|---|---|---|---|"]
    for name, network in networks.items():
        gradient = f"{network['fixed'] * 1e6:.1f} us + n {network['work'] * 1e6:.2f} us"
        lines.append(f"| {name} | {gradient} | {network['error']:.0%} | {network['update'] * 1e6:.0f} us |")
    links = f"{machine['software'] * 1e6:.1f} us a message and {machine['bandwidth'] / 1e9:.1f} GB/s"
    lines.append(f"\nBetween processes, fitted to sums of 64 bytes to 8 MB: {links} (within {machine['error']:.0%}).\n")
    lines.append(f"With {BATCH:,} samples a batch, over InfiniBand HDR:\n")
    return "\n".join([*lines, table(networks, machine)]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", nargs="?", type=Path, default=RESULTS / "cluster.json")
    stored = json.loads(parser.parse_args().result.read_text())
    document, text = REPOSITORY / "docs" / "cluster.md", section(stored)
    found = between("cluster").subn(lambda match: match[1] + text + match[3], document.read_text(encoding="utf-8"))
    if found[1] != 1:
        raise SystemExit(f"{document} must have one pair of markers `bench cluster`, and has {found[1]}")
    document.write_text(found[0], encoding="utf-8")
    draw(*model(stored), stored, REPOSITORY / "docs" / "cluster.svg")
    print(text)


if __name__ == "__main__":
    main()
