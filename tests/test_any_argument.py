"""Any argument of any public function: what is wrong is refused by name, and nothing crashes; see any_argument.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.scaled
def test_wrong_arguments_are_refused_by_name(rounds, tmp_path):
    """In a process of its own, so that a crash is told with the call that it happened in."""
    log = tmp_path / "log"
    done = subprocess.run(
        [sys.executable, "-W", "error", HERE / "any_argument.py", log, str(rounds(10, 300))],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=rounds(240, 3600),
    )
    last = log.read_text(encoding="utf-8").strip() if log.exists() else "no call"
    assert done.returncode == 0, f"exit code {done.returncode} in\n{last}\n{done.stderr[-3000:]}"
    first, *faults = done.stdout.splitlines()
    assert " 0 faults" in first, "\n".join([first, *faults])
