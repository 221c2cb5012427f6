"""A contender in a process of its own, timed on request.

torch, JAX and nbprop each want their own environment, thread settings and place on the processor, and none
may feel the others' thread pools; yet their slices have to interleave. So each runs in a process that waits
on a pipe (and costs nothing while it waits) until it is told to run one slice:

    {"row": "tiny_step"}                  build and warm the work      -> {"check": ..., "seconds": ...}
    {"row": "tiny_step", "slice": 0.1}    run it for that many seconds -> {"seconds": one call's time}
    {"kernels": true}                     say which kernels it chose   -> {"kernels": ...}

`seconds` of the first answer is how long building, compiling and warming took.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chosen import kernels
from machine import untuned
from rows import BY_NAME

HERE = Path(__file__).resolve().parent
MODULES = {
    "nbprop": "ours", "nbprop-njit": "ours",
    "torch": "peers", "jax-jit": "peers", "jax-scan": "peers", "sklearn": "peers", "blas": "ceilings",
    "fma": "ceilings", "copy": "ceilings",
    # of single modules in works/: nbprop's own gradient, a write to memory, SciPy's solvers
    "nbprop-gradient": "ours", "write": "ours", "lbfgsb": "ours", "scipy-differences": "ours",
}  # fmt: skip
WARM_SHARE = 0.2  # of a slice runs untimed first: it brings caches and clock back after the others' slices
# seconds of sleep before a slice: idle threads of the last one (OpenMP's spin) get out of the way
SETTLE = 0.01


@dataclass(frozen=True)
class Work:
    """`run(n)` does n calls, each worth `units` of the row's work; `check` is a number all contenders must
    agree on."""

    run: Callable[[int], None]
    units: int = 1
    check: float | None = None


def peers_python() -> Path:
    """The interpreter of the peers' environment: $NBPROP_PEERS_PYTHON, else .venv-peers beside the
    repository."""
    return Path(os.environ.get("NBPROP_PEERS_PYTHON", HERE.parent / ".venv-peers" / "bin" / "python"))


class Contender:
    """The controlling side: starts the process, hands it rows and slices."""

    def __init__(self, library: str, threads: int, python: str | os.PathLike[str] | None = None):
        if python is None:
            python = peers_python() if MODULES[library] == "peers" else sys.executable
        if not Path(python).exists():
            raise FileNotFoundError(f"{library} needs {python}; run `make .venv-peers` or set NBPROP_PEERS_PYTHON")
        self.library, self.threads = library, threads
        command = [os.fspath(python), os.fspath(HERE / "contender.py"), library, "--threads", str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment(threads)
        )

    def ask(self, **request: object) -> dict:
        """One request, one answer; a failure over there is raised here."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the reason is in what it said before it died, read below
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.library} ended with status {self._process.wait()}; its message stands above")
        answer = json.loads(line)
        if answer.get("missing"):
            raise NotImplementedError(f"{self.library}: {answer['missing']}")
        if "error" in answer:
            raise RuntimeError(f"{self.library}: {answer['error']}")
        return answer

    def prepare(self, row: str) -> dict:
        return self.ask(row=row)

    def slice(self, row: str, seconds: float) -> float:
        """Seconds a unit of the row's work takes, from one slice."""
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
    """This environment without what tunes a library, and with the thread count of each set before it is loaded."""
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    return {**untuned(os.environ), **dict.fromkeys(counts, str(threads)), "PYTHONPATH": "", "JAX_PLATFORMS": "cpu"}


def pin(threads: int) -> None:
    """Keep this process on `threads` cores (the last ones: the first serves most interrupts), where the
    system can."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, set(cores[-threads:]))


def calls_for(run: Callable[[int], None], seconds: float) -> int:
    """How many calls fill `seconds`: doubles until a run is long enough to tell."""
    n = 1
    while True:
        start = time.perf_counter()
        run(n)
        elapsed = time.perf_counter() - start
        if elapsed >= seconds / 8:
            return max(1, round(n * seconds / elapsed))
        n *= 2 if elapsed > seconds / 64 else 8


def timed_slice(work: Work, n: int) -> float:
    """Seconds a unit, over n calls, after a short untimed run."""
    time.sleep(SETTLE)
    work.run(max(1, int(n * WARM_SHARE)))
    start = time.perf_counter()
    work.run(n)
    return (time.perf_counter() - start) / (n * work.units)


def build(library: str, name: str, threads: int) -> Work:
    """A row's work: from works/<module>.py where the row names one, by the function for this library; the machine's
    limits and dense nets from the library's own module."""
    module = "" if MODULES[library] == "ceilings" else BY_NAME[name].module
    if not module:
        return importlib.import_module(MODULES[library]).build(library, name, threads)
    function = getattr(importlib.import_module(f"works.{module}"), library.replace("-", "_"), None)
    if function is None:
        raise NotImplementedError(f"works/{module}.py has nothing for {library}")
    return function(BY_NAME[name], threads)


def serve(library: str, threads: int) -> None:
    """Answer requests until the pipe closes. Whatever the libraries print goes to standard error, not to
    the pipe."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    pin(threads)
    prepared: dict[str, Work] = {}
    calls: dict[tuple[str, float], int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "kernels" in request:
                answers.write(json.dumps({"kernels": kernels(library)}) + "\n")
                continue
            name = request["row"]
            start = time.perf_counter()
            if name not in prepared:
                prepared[name] = build(library, name, threads)
                prepared[name].run(1)
            if "slice" not in request:
                answer = {"check": prepared[name].check, "seconds": time.perf_counter() - start}
            else:
                key = (name, request["slice"])
                if key not in calls:
                    calls[key] = calls_for(prepared[name].run, request["slice"])
                answer = {"seconds": timed_slice(prepared[name], calls[key])}
        # this commit or environment lacks it
        except (ImportError, AttributeError, NotImplementedError) as error:
            answer = {"missing": f"{type(error).__name__}: {error}"}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    # so that `from contender import Work` is this very class
    sys.modules["contender"] = sys.modules["__main__"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=sorted(MODULES))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    serve(arguments.library, arguments.threads)
