"""Files that somebody else has written, or a disk has damaged: refused by one clear error, or read right."""

import json

import pytest

from support import run_module


@pytest.mark.scaled
def test_hostile_files(tmp_path, rounds):
    done = run_module("hostile", tmp_path, rounds(500, 10_000), 0)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for kind in ("Model", "Checkpoint", "Csv", "Npz"):
        assert found[f"{kind} refused"] > 25
    assert found["Csv right"] > 5  # and not all is refused
