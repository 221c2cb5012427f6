"""Files that somebody else has written, or a disk has damaged: refused by one clear error, or read right."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.scaled
def test_hostile_files(tmp_path, rounds):
    command = [sys.executable, str(Path(__file__).with_name("hostile.py")), str(tmp_path)]
    done = subprocess.run([*command, str(rounds(500, 10_000)), "0"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for kind in ("Model", "Checkpoint", "Csv", "Npz"):
        assert found[f"{kind} refused"] > 25
    assert found["Csv right"] > 5  # and not all is refused
