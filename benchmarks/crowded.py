"""Several threads when other processes need the cores: how many times as long as one thread do they take?

    python benchmarks/crowded.py [threads]

The two take turns, slice by slice, in one process; a figure is the median of the slices' ratios, with its quartiles.
It should stay below 1.5 whatever else runs. "busy processes" are as many endless loops as there are cores.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numba
import numpy as np

import nbprop
from harness.machine import cores
from harness.paired import ratio, rotate

SECONDS, ROTATIONS = 0.2, 15
dense = nbprop.dense
NETS = {
    "4-32-32-1, 64 samples": (nbprop.network((4,), dense(32, "tanh"), dense(32, "tanh"), dense(1)), 64),
    "32-64-64-64-4, 64 samples": (nbprop.network((32,), *[dense(64, "tanh")] * 3, dense(4)), 64),
    "784-128-10, 128 samples": (nbprop.network((784,), dense(128, "relu"), dense(10)), 128),
}


@numba.njit
def gradients(plan, params, x, target, grads, work, n):
    loss = 0.0
    for _ in range(n):
        loss += nbprop.value_and_grad(plan, params, x, target, grads, work)
    return loss


def timer(plan: nbprop.plan, net: nbprop.network, batch: int) -> Callable[[], float]:
    """Seconds per gradient, over calls that fill a slice."""
    params, x = nbprop.init(net, seed=0), np.ones((batch, *net.input_shape))
    given = params, x, np.zeros((batch, *net.output_shape)), np.empty_like(params), nbprop.workspace(plan)
    gradients(plan, *given, 1)

    def run() -> float:
        begin, n = time.perf_counter(), 0
        while time.perf_counter() - begin < SECONDS:
            gradients(plan, *given, 10)
            n += 10
        return (time.perf_counter() - begin) / n

    return run


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Processes that run endless loops."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


@contextlib.contextmanager
def narrowed() -> Iterator[None]:
    """All threads of this process, which has started more, on one core."""
    before = os.sched_getaffinity(0)
    threads = [int(name) for name in os.listdir("/proc/self/task")]
    for thread in threads:
        os.sched_setaffinity(thread, {max(before)})
    try:
        yield
    finally:
        for thread in threads:
            os.sched_setaffinity(thread, before)


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else cores()
    surroundings = {"alone": contextlib.nullcontext, "next to busy processes": lambda: busy(cores())}
    if hasattr(os, "sched_setaffinity"):
        surroundings["all threads on one core"] = narrowed
    for title, (net, batch) in NETS.items():
        timers = {count: timer(nbprop.plan(net, "mse", batch, threads=count), net, batch) for count in (1, threads)}
        for name, surrounding in surroundings.items():
            with surrounding():
                times = rotate(timers, ROTATIONS)
            found = ratio(times, threads, 1)
            alone, together = (1e6 * float(np.median(times[count])) for count in (1, threads))
            print(
                f"{title}, {name}: 1 thread {alone:.0f} us, {threads} threads {together:.0f} us, "
                f"{found.median:.2f} [{found.q25:.2f}, {found.q75:.2f}]",
                flush=True,
            )


if __name__ == "__main__":
    main()
