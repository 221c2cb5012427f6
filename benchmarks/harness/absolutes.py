"""Figures that are not ratios of times in one process: starting up, importing, compiling, memory.

Each is a short program in workloads/processes/, run in a process of its own: a process starts, and imports, only once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness.machine import untuned
from harness.places import BENCHMARKS, peers_python

PROCESSES = BENCHMARKS / "workloads" / "processes"


def run(
    *arguments: str | os.PathLike[str], python: str | os.PathLike[str] | None = None, **environment: str
) -> tuple[float, str]:
    """Wall time of a Python process from start to end in seconds, and what it printed; raises if the process fails."""
    with tempfile.TemporaryDirectory() as folder:  # not the repository: only installed packages may be imported
        start = time.perf_counter()
        done = subprocess.run(
            [python or sys.executable, *arguments],
            cwd=folder,
            env={**untuned(os.environ), "PYTHONPATH": "", **environment},
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - start
    if done.returncode != 0:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise RuntimeError(f"exit status {done.returncode}: {last}")
    return seconds, done.stdout


def python_of(library: str) -> str | Path:
    return sys.executable if library == "nbprop" else peers_python()


def start_to_gradient(library: str) -> float:
    """Seconds from process start to the first gradient, with the disk cache of the last run."""
    return run(PROCESSES / "first_gradient.py", library, python=python_of(library))[0]


def cold_first_gradient() -> float:
    """The same with an empty disk cache."""
    with tempfile.TemporaryDirectory() as folder:
        return run(PROCESSES / "first_gradient.py", "nbprop", **_empty_caches(folder))[0]


def new_architecture(library: str) -> float:
    """Seconds from description to first gradient for a network of a shape a warm process has not seen."""
    return float(run(PROCESSES / "first_gradient.py", library, "--new", python=python_of(library))[1])


def import_seconds(module: str) -> float:
    """Seconds that a process takes to import a module and exit."""
    return run("-c", f"import {module}")[0]


def allocations() -> int:
    """Number of allocations that Numba makes in a hundred compiled training steps."""
    return int(run(PROCESSES / "allocations.py", NUMBA_NRT_STATS="1")[1])


def workspace() -> float:
    """The large net's workspace divided by the memory that is live at once."""
    return float(run(PROCESSES / "workspace.py")[1])


def cold_demo() -> float:
    """Seconds of `nbprop demo` on a machine that has never run nbprop."""
    with tempfile.TemporaryDirectory() as folder:
        return run("-m", "nbprop", "demo", **_empty_caches(folder))[0]


def _empty_caches(folder: str) -> dict[str, str]:
    """An environment in which every cache directory is an empty folder."""
    return dict.fromkeys(("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "NUMBA_CACHE_DIR"), folder)
