"""What a measurement has to say about where and when it was taken."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
LIBRARIES = ("nbprop", "numba", "llvmlite", "numpy", "scipy", "torch", "jax", "scikit-learn")


def processor() -> str:
    """The processor's name as the system tells it."""
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores this process may use, not those the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gib() -> float | None:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)


def versions() -> dict[str, str]:
    """Installed versions in this interpreter's environment; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def versions_of(python: Path) -> dict[str, str]:
    """versions() of another environment; empty where there is no such interpreter."""
    if not python.exists():
        return {}
    source = "import json, machine; print(json.dumps(machine.versions()))"
    run = subprocess.run([python, "-c", source], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def commit() -> dict[str, object]:
    """The commit the working tree stands on, and whether it holds anything beyond it."""

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
    """What results of this kind of machine are kept under: hosts come and go, a processor stays comparable."""
    plain = re.sub(r"\(.*?\)|@.*|\bCPU\b|\bProcessor\b", "", processor())
    return re.sub(r"[^a-z0-9]+", "-", f"{plain} {cores()} cores".lower()).strip("-")


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
