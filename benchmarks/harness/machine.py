"""What is recorded with a measurement: processor, versions, commit and time."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from harness.places import BENCHMARKS, REPOSITORY

LIBRARIES = ("nbprop", "numba", "llvmlite", "numpy", "scipy", "torch", "jax", "scikit-learn")


def processor() -> str:
    """The processor's name as the operating system reports it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    """A field of /proc/cpuinfo for the first core; empty where there is none."""
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""


def cores() -> int:
    """The number of cores that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gib() -> float | None:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)


def versions() -> dict[str, str]:
    """Installed versions in this interpreter's environment; missing libraries are omitted."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def versions_of(python: Path) -> dict[str, str]:
    """versions() of another environment; empty if there is no such interpreter."""
    if not python.exists():
        return {}
    source = "import json; from harness.machine import versions; print(json.dumps(versions()))"
    run = subprocess.run([python, "-c", source], cwd=BENCHMARKS, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


# Prefixes of environment variables that choose kernels, vector instructions and thread pools for a library.
TUNING = (
    *("OPENBLAS_", "GOTO_", "BLIS_", "MKL_", "ONEDNN_", "DNNL_", "ATEN_CPU_", "XLA_FLAGS", "NPY_", "NUMBA_CPU_"),
    *("NUMBA_OPT", "NUMBA_LOOP_VECTORIZE", "NUMBA_SLP_VECTORIZE", "OMP_", "KMP_", "GOMP_", "JAX_"),
)


def untuned(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without variables that tune a library.

    OPENBLAS_CORETYPE=Haswell makes a product 2.8 times slower where OpenBLAS has kernels for AVX-512: a peer that is
    held back flatters us.
    """
    return {name: value for name, value in environment.items() if not name.startswith(TUNING)}


def commit() -> dict[str, object]:
    """The current commit, and whether the working tree differs from it."""

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True)
        return run.stdout.strip() if run.returncode == 0 else ""

    return {"hash": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}


def describe() -> dict[str, object]:
    return {
        "processor": processor(),
        "architecture": platform.machine(),
        "cores": cores(),
        "memory_gib": memory_gib(),
        "system": platform.system(),
    }


def name() -> str:
    """The name under which results of this kind of machine are kept: its processor and cores, not its host.

    With family and model, since a virtual machine may call generations of processors by one name ("AMD EPYC"), with
    vectors of different width: no ratio can be compared between them.
    """
    plain = re.sub(r"\(.*?\)|@.*|\bCPU\b|\bProcessor\b", "", processor())
    generation = f"{_cpuinfo('cpu family')} {_cpuinfo('model')}"
    return re.sub(r"[^a-z0-9]+", "-", f"{plain} {generation} {cores()} cores".lower()).strip("-")


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
