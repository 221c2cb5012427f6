"""Any argument of any public function: what is wrong is refused by name, and nothing crashes; see any_argument.py."""

import pytest

from support import run_module


@pytest.mark.scaled
def test_wrong_arguments_are_refused_by_name(rounds, tmp_path):
    """In a process of its own, so that a crash is told with the call that it happened in."""
    log = tmp_path / "log"
    done = run_module("any_argument", log, rounds(10, 300), cwd=tmp_path, timeout=rounds(240, 3600))
    last = log.read_text(encoding="utf-8").strip() if log.exists() else "no call"
    assert done.returncode == 0, f"exit code {done.returncode} in\n{last}\n{done.stderr[-3000:]}"
    first, *faults = done.stdout.splitlines()
    assert " 0 faults" in first, "\n".join([first, *faults])
