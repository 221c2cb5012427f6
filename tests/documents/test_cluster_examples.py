"""The recipes of examples/cluster for batch systems, run here by the environment variables that SLURM sets."""

import os
import re
import subprocess
import sys

import pytest

from support import ROOT

FOLDER = ROOT / "examples" / "cluster"


def start(script, *options, **environment):
    """A process of a script, without what the tests' own environment may say of SLURM."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return subprocess.Popen(
        [sys.executable, "-W", "error", FOLDER / script, *map(str, options)],
        env=clean | {name: str(value) for name, value in environment.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process, status=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, err
    return out if status == 0 else err


def test_every_script_has_a_row():
    page = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    for path in FOLDER.glob("*.py"):
        assert f"[cluster/{path.name}](cluster/{path.name})" in page


def array(tasks, folder, numbers, **environment):
    options = ("--tasks", tasks, "--folder", folder, "--maxiter", 6)
    started = [start("slurm_array.py", *options, SLURM_ARRAY_TASK_ID=k, **environment) for k in numbers]
    for process in started:
        assert ended(process) == ""
    return start("slurm_array.py", "--collect", "--folder", folder)


@pytest.mark.more
def test_any_number_of_tasks_gives_the_same_bits(tmp_path):
    """One task, and an array of four of which one comes later."""
    whole = ended(array(1, tmp_path / "one", [0]))
    assert re.match(r"16 candidates; the best has l2=\S+, seed \d: \d\d\.\d% right\nlosses: [0-9a-f]{16}\n$", whole)
    folder = tmp_path / "four"
    said = ended(array(4, folder, [0, 1, 3], SLURM_CPUS_PER_TASK=2), status=1)
    assert "candidates [2, 6, 10, 14] have no result; run their tasks again" in said
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert ended(array(4, folder, [2, 3])) == whole
    assert all(path.stat().st_mtime_ns == then for path, then in before.items()), "a task that is done does nothing"
    assert len(list(folder.iterdir())) == 4


@pytest.mark.more
def test_an_array_that_does_not_fit_is_refused(tmp_path):
    process = start("slurm_array.py", "--tasks", 4, "--folder", tmp_path, SLURM_ARRAY_TASK_ID=4)
    assert "SLURM_ARRAY_TASK_ID=4 is none of --tasks 4" in ended(process, status=2)
    assert "--folder is needed" in ended(start("slurm_array.py", SLURM_ARRAY_TASK_ID=1), status=2)


@pytest.mark.more
def test_processes_share_a_study(tmp_path):
    """Three processes that SLURM would have started, then a later one that finds the study done."""
    optuna = pytest.importorskip("optuna")
    from optuna.storages.journal import JournalFileBackend

    path = tmp_path / "study.log"
    options = ("--storage", path, "--trials", 6, "--epochs", 2)
    for process in [start("optuna_study.py", *options, SLURM_PROCID=k) for k in range(3)]:
        ended(process)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    study = optuna.load_study(study_name="digits", storage=storage)
    done = sum(trial.state.is_finished() for trial in study.trials)
    assert 6 <= done <= 8  # a process ends the trial that it has begun
    assert study.best_value > 0.5
    said = ended(start("optuna_study.py", *options, SLURM_PROCID=0))
    assert re.match(r"\d trials; the best: \d\d\.\d% right with hidden \d+, lr \S+, l2 \S+\n$", said)
    assert len(study.get_trials()) == done
