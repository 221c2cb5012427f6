"""The process of one contender: it answers requests, a line of JSON each, until the pipe closes.

    {"row": "tiny_step"}                  build and warm up the work   -> {"check": ..., "seconds": ...}
    {"row": "tiny_step", "slice": 0.1}    run it for that many seconds -> {"seconds": the time of one call}
    {"kernels": true}                     say which kernels it chose   -> {"kernels": ...}

The `seconds` of the first answer are the time to build, compile and warm up. To try one by hand, in benchmarks/:

    echo '{"row": "tiny_step", "slice": 0.3}' | ../.venv-peers/bin/python -m harness.worker torch --threads 1
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable

from harness.chosen import kernels
from harness.contender import MODULES
from harness.work import Work
from workloads.growth import row_named

WARM_SHARE = 0.2  # of a slice runs untimed first: the others' slices have emptied the caches and lowered the clock
SETTLE = 0.01  # seconds of sleep before a slice, in which the last one's idle threads (OpenMP's) stop spinning


def build(library: str, name: str, threads: int) -> Work:
    """A row's work: by the library's function in workloads/<module>.py if the row names a module, or by contenders/.

    The machine's limits need only a row's sizes, so contenders/ceilings.py builds them for every row.
    """
    module = "" if MODULES[library] == "ceilings" else row_named(name).module
    if not module:
        return importlib.import_module(f"contenders.{MODULES[library]}").build(library, name, threads)
    function = getattr(importlib.import_module(f"workloads.{module}"), library.replace("-", "_"), None)
    if function is None:
        raise NotImplementedError(f"workloads/{module}.py has nothing for {library}")
    return function(row_named(name), threads)


def pin(threads: int) -> None:
    """Keep this process on `threads` cores, if the system allows it: the last ones, as the first serves interrupts."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, set(cores[-threads:]))


def calls_for(run: Callable[[int], None], seconds: float) -> int:
    """How many calls fill `seconds`: more and more are run until one run is long enough to tell."""
    n = 1
    while True:
        start = time.perf_counter()
        run(n)
        elapsed = time.perf_counter() - start
        if elapsed >= seconds / 8:
            return max(1, round(n * seconds / elapsed))
        n *= 2 if elapsed > seconds / 64 else 8


def timed_slice(work: Work, n: int) -> float:
    """Seconds per unit, over n calls, after a short untimed run."""
    time.sleep(SETTLE)
    work.run(max(1, int(n * WARM_SHARE)))
    start = time.perf_counter()
    work.run(n)
    return (time.perf_counter() - start) / (n * work.units)


def serve(library: str, threads: int) -> None:
    """Answer requests until the pipe closes. Whatever the libraries print goes to standard error, not to the pipe."""
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
        except (ImportError, AttributeError, NotImplementedError) as error:
            # This commit or environment lacks it.
            answer = {"missing": f"{type(error).__name__}: {error}"}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=sorted(MODULES))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    serve(arguments.library, arguments.threads)
