"""A contender in a process of its own, timed on request.

torch, JAX and nbprop each need their own environment, thread settings and cores, and none may be disturbed by the
others' thread pools; yet their slices have to interleave. So each runs in a process (worker.py) that waits on a pipe,
at no cost, until it is told to run one slice.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from harness.machine import untuned
from harness.places import BENCHMARKS, peers_python

# The module in contenders/ that builds a library's work.
MODULES = {
    "nbprop": "ours", "nbprop-njit": "ours",
    "torch": "peers", "jax-jit": "peers", "jax-scan": "peers", "sklearn": "peers",
    "blas": "ceilings", "fma": "ceilings", "copy": "ceilings",
    # only in modules of workloads/: nbprop's own gradient, a write to memory, SciPy's solvers
    "nbprop-gradient": "ours", "write": "ours", "lbfgsb": "ours", "scipy-differences": "ours",
}  # fmt: skip


class Contender:
    """The controlling side: starts the process and hands it rows and slices."""

    def __init__(self, library: str, threads: int, python: str | os.PathLike[str] | None = None):
        if python is None:
            python = peers_python() if MODULES[library] == "peers" else sys.executable
        if not Path(python).exists():
            raise FileNotFoundError(f"{library} needs {python}; run `make .venv-peers` or set NBPROP_PEERS_PYTHON")
        self.library, self.threads = library, threads
        # From benchmarks/, not from the repository: there the working tree's nbprop would hide the installed one.
        self._process = subprocess.Popen(
            [os.fspath(python), "-m", "harness.worker", library, "--threads", str(threads)],
            cwd=BENCHMARKS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment(threads),
        )  # fmt: skip

    def ask(self, **request: object) -> dict:
        """Send one request and return its answer; a failure in the process is raised here."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the process printed the reason before it died; the empty answer below reports it
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.library} ended with status {self._process.wait()}; see its message above")
        answer = json.loads(line)
        if answer.get("missing"):
            raise NotImplementedError(f"{self.library}: {answer['missing']}")
        if "error" in answer:
            raise RuntimeError(f"{self.library}: {answer['error']}")
        return answer

    def prepare(self, row: str) -> dict:
        """Build and warm up a row's work; returns its `check` and the `seconds` that took."""
        return self.ask(row=row)

    def slice(self, row: str, seconds: float) -> float:
        """Run one slice of about `seconds`; returns the seconds that one unit of the row's work took."""
        return float(self.ask(row=row, slice=seconds)["seconds"])

    def kernels(self) -> str:
        """Which kernels the library chose in that process."""
        return str(self.ask(kernels=True)["kernels"])

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()

    def __enter__(self) -> Contender:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _environment(threads: int) -> dict[str, str]:
    """This environment without anything that tunes a library, and with each library's thread count set in advance."""
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    return {**untuned(os.environ), **dict.fromkeys(counts, str(threads)), "PYTHONPATH": "", "JAX_PLATFORMS": "cpu"}
