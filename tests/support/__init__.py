"""What tests share: tables of cases, slow references, hostile input, and a way to run one of them as a process."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent


def run_module(name, *arguments, timeout=None, **options):
    """Run tests/support/<name>.py in a process of its own, warnings as errors; returns the CompletedProcess."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", f"support.{name}", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)])},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )


def release_script(name):
    """The module release/<name>.py."""
    folder = str(ROOT / "release")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)
