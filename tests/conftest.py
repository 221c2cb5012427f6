"""What the tests share: threads beyond the machine's cores, plans made once, and a way to run a script of its own."""

import os
import subprocess
import sys

import pytest

import nbprop
import nbprop.cuda
from nbprop.runtime import workers
from support import ROOT, cases

# tests/cuda runs on a GPU, or in the simulator: NUMBA_ENABLE_CUDASIM=1 python -m pytest tests/cuda
collect_ignore = [] if nbprop.cuda.available() else ["cuda"]


def pytest_terminal_summary(terminalreporter):
    """Say that the device's tests were left out, and why."""
    if collect_ignore:
        terminalreporter.write_line(f"tests/cuda did not run: {nbprop.cuda.missing()}")


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="try as often as `make test-long` does")


@pytest.fixture(scope="session")
def rounds(request):
    """rounds(short, long): how often a test that tries at random tries; the second with `--long`."""
    return lambda short, long: long if request.config.getoption("--long") else short


@pytest.fixture(scope="session")
def four_cores():
    """Let four threads walk even where there are fewer cores: slow, but their bits and their meetings are real."""
    before, workers.processor_share = workers.processor_share, lambda: 4
    workers.ensure(4)
    workers.insist(True)
    yield
    workers.insist(False)
    workers.processor_share = before


@pytest.fixture(scope="session")
def classifier():
    """A plan for (3,) -> 4 classes, float64, batch 6; what most tests of arguments use."""
    return nbprop.plan(cases.CLASSIFIER, loss="softmax_cross_entropy", batch=6)


@pytest.fixture(scope="session")
def regressor():
    """A plan for (3,) -> (2,) with mean squared error, float64, batch 6."""
    return nbprop.plan(cases.REGRESSOR, loss="mse", batch=6)


@pytest.fixture
def script(tmp_path):
    """run(source, *arguments, timeout=, **environment): a Python script in a process of its own; its standard output.

    Fails when the process does, or when it takes longer than `timeout` seconds: a deadlock ends there.
    """

    def run(source, *arguments, timeout=120, expect=0, **environment):
        path = tmp_path / "script.py"
        path.write_text(source, encoding="utf-8")
        package = environment.pop("PYTHONPATH", str(ROOT))
        done = subprocess.run(
            [sys.executable, "-W", "error", str(path), *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": package} | {name: str(value) for name, value in environment.items()},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        run.stderr = done.stderr
        return done.stdout

    return run
