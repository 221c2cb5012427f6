"""Several processes over MPI, against threads of one process, mpich's own reduction, and torch.distributed.

    python benchmarks/cluster.py [--quick]

Writes benchmarks/results/cluster.json, from which docs/cluster_model.py fits the model of docs/cluster.md. The groups
of processes take turns, slice by slice; while one runs, the others wait on a socket, which takes no time. A figure is
the median of the slices' ratios, with its quartiles. Needs mpi4py and mpich (`make test` installs them), and
.venv-peers for torch.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from harness import machine
from harness.paired import Spread, ratio, rotate
from harness.places import BENCHMARKS, RESULTS, peers_python

WORKER = BENCHMARKS / "workloads" / "processes" / "cluster_worker.py"
BATCH = 256
LARGE = [784, 1024, 1024, 10]
MEDIUM = [784, 128, 10]
SMALL = [64, 64, 10]
# What each figure may be at most, as the documentation promises.
AT_MOST = {
    "2 ranks / 2 threads": 1.05,
    "2 ranks, sharded / 2 threads": 1.05,
    "comm of one rank / none": 1.02,
    "sum of 4 MB / Allreduce of mpich": 1.3,
    "2 ranks / torch gloo": 0.5,
}


class Group:
    """Processes that make one training together; each waits for requests on a socket of its own."""

    def __init__(self, kind: str, size: int, folder: str):
        path = os.path.join(folder, f"{kind}-{size}")
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)
        server.listen(size)
        server.settimeout(300)
        python = peers_python() if kind == "gloo" else sys.executable
        command = [os.fspath(python), os.fspath(WORKER), kind, path]
        environment = {**machine.untuned(os.environ), "OMP_NUM_THREADS": "1"}
        if kind == "ranks":
            beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
            mpiexec = shutil.which("mpiexec", path=beside)
            if mpiexec is None:
                raise FileNotFoundError("there is no mpiexec: `pip install mpich`, or an MPI of the system's")
            commands = [[mpiexec, "-n", str(size), *command]]
        else:
            commands = [[*command, str(rank), str(size), os.path.join(folder, "gloo")] for rank in range(size)]
        self._running = [subprocess.Popen(line, env=environment) for line in commands]
        self._streams = [server.accept()[0].makefile("rw") for _ in range(size)]

    def ask(self, **request: object) -> dict[str, list[float]]:
        """{name: seconds}, of the slowest process in each."""
        for stream in self._streams:
            stream.write(json.dumps(request) + "\n")
            stream.flush()
        answers = []
        for stream in self._streams:
            line = stream.readline()
            if not line:
                raise RuntimeError("a process of the group has ended; see its message above")
            answers.append(json.loads(line))
        return {name: max(answer[name] for answer in answers) for name in answers[0]}

    def timer(self, **request: object) -> Callable[[], float]:
        self.ask(**request)  # warms up
        return lambda: self.ask(**request)["seconds"]

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        for process in self._running:
            process.wait()


def compare(folder: str, quick: bool) -> tuple[dict[str, Spread], dict[str, float]]:
    """The paired figures, and the medians of seconds behind them."""
    rotations, steps = (3, 4) if quick else (25, 30)
    ranks, alone = Group("ranks", 2, folder), Group("ranks", 1, folder)
    groups, gloo = [ranks, alone], None
    if peers_python().exists():
        gloo = Group("gloo", 2, folder)
        groups.append(gloo)
    work = {"work": "step", "widths": LARGE, "batch": BATCH, "steps": steps}
    timers = {
        "2 ranks": ranks.timer(**work, pieces=2),
        "2 ranks, sharded": ranks.timer(**work, pieces=2, sharded=True),
        "2 threads": alone.timer(**work, threads=2),
        "one process": alone.timer(**work),
        "comm of one rank": alone.timer(**work, pieces=1),
        "comm of one rank, 2 pieces": alone.timer(**work, pieces=2),
    }
    if gloo is not None:
        timers["gloo"] = gloo.timer(**work)
    times = rotate(timers, rotations)
    sums = [ranks.ask(work="sum", count=1_000_000, steps=5 if quick else 40) for _ in range(rotations)]
    overlap = {"work": "overlap", "widths": LARGE, "batch": BATCH, "steps": 3 if quick else 30}
    ranks.ask(**overlap)
    overlaps = [ranks.ask(**overlap) for _ in range(2 if quick else 7)]
    times |= {name: [found[name] for found in all_of] for all_of in (sums, overlaps) for name in all_of[0]}
    for group in groups:
        group.close()
    figures = {
        "2 ranks / 2 threads": ratio(times, "2 ranks", "2 threads"),
        "2 ranks, sharded / 2 threads": ratio(times, "2 ranks, sharded", "2 threads"),
        "comm of one rank / none": ratio(times, "comm of one rank", "one process"),
        "comm of one rank, 2 pieces / none": ratio(times, "comm of one rank, 2 pieces", "one process"),
        "message during / after the gradient": ratio(times, "message during", "message after"),
        "message by a thread / after the gradient": ratio(times, "by a thread", "message after"),
        "sum of 4 MB / Allreduce of mpich": ratio(times, "sum", "allreduce"),
    }
    if gloo is not None:
        figures["2 ranks / torch gloo"] = ratio(times, "2 ranks", "gloo")
        figures["2 ranks, sharded / torch gloo"] = ratio(times, "2 ranks, sharded", "gloo")
    return figures, {name: Spread.of(values).median for name, values in times.items()}


def scaling(folder: str, quick: bool, sizes: tuple[int, ...]) -> list[dict[str, object]]:
    """Rows of seconds: of a step on 1 to 8 processes, of sums by their bytes, and of gradients by their samples."""
    rows: list[dict[str, object]] = []
    for size in sizes:
        group = Group("ranks", size, os.path.join(folder, "scaling"))
        for widths in (SMALL, MEDIUM, LARGE):
            request = {"work": "step", "widths": widths, "batch": BATCH, "pieces": 8, "steps": 3 if quick else 20}
            group.ask(**request)
            found = [group.ask(**request)["seconds"] for _ in range(2 if quick else 7)]
            rows.append({"ranks": size, "widths": widths, "batch": BATCH, "step": min(found)})
            if size == 1:
                request = {"work": "parts", "widths": widths, "steps": 20 if quick else 50}
                rows.append({"widths": widths} | group.ask(**request))
        for count in (1 << k for k in range(4, 23, 3)):
            request = {"work": "sum", "count": count, "steps": 20 if quick else 100, "least": True}
            seconds = min(group.ask(**request)["sum"] for _ in range(2 if quick else 7))
            rows.append({"ranks": size, "bytes": 4 * count, "sum": seconds})
        group.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few slices: to see that it runs")
    parser.add_argument("--output", type=Path, default=RESULTS / "cluster.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(os.path.join(folder, "scaling"))
        begun = time.perf_counter()
        figures, seconds = compare(folder, arguments.quick)
        rows = scaling(folder, arguments.quick, (1, 2, 4) if arguments.quick else (1, 2, 3, 4, 6, 8))
    for name, figure in figures.items():
        most = AT_MOST.get(name)
        said = "" if most is None else f"  (at most {most}: {'yes' if figure.median <= most else 'NO'})"
        print(f"{name:42} {figure.median:.3f} [{figure.q25:.3f}, {figure.q75:.3f}]{said}")
    stored = {
        **{"machine": machine.describe(), "versions": machine.versions(), "commit": machine.commit()},
        **{"time": machine.now(), "quick": arguments.quick},
        "figures": {name: [figure.median, figure.q25, figure.q75] for name, figure in figures.items()},
        **{"seconds": seconds, "scaling": rows},
    }
    arguments.output.write_text(json.dumps(stored, indent=1) + "\n")
    print(f"{arguments.output}, {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
