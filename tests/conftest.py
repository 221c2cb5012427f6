"""What the tests share: threads beyond the machine's cores, plans made once, and a way to run a script of its own."""

import os
import signal
import subprocess
import sys

import pytest
from numba.core import dispatcher

import nbprop
import nbprop.cuda
from nbprop.compiler.fingerprint import is_ours
from nbprop.compiler.registry import known_natives
from nbprop.losses import LOSSES
from nbprop.networks.layer import REGISTRY
from nbprop.runtime import workers
from support import ROOT, cases

# tests/cuda runs on a GPU, or in the simulator: NUMBA_ENABLE_CUDASIM=1 python -m pytest tests/cuda
collect_ignore = [] if nbprop.cuda.available() else ["cuda"]


def pytest_terminal_summary(terminalreporter, config):
    """Say that the device's tests were left out, and why; and with coverage, which kernels no test has loaded."""
    if config.getoption("cov_source", None):
        ours = {native.name for native in known_natives if is_ours(native.function)}
        text = f"kernels and entries, which no tracer sees: {len(ours & _loaded)} of {len(ours)} compiled and in use"
        terminalreporter.write_line(text)
        terminalreporter.write_line("\n".join(f"    {name}: never" for name in sorted(ours - _loaded)))
    if collect_ignore:
        terminalreporter.write_line(f"tests/cuda did not run: {nbprop.cuda.missing()}")


def pytest_configure(config):
    """Ctrl-C is heard, here and in children: a process in the background of a shell starts with it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="try as often as `make test-long` does")


# -- coverage: lines are counted by pytest-cov, compiled code here -----------------------------------------------------


def _untraced(compile_function):
    """Numba's compiler untraced: coverage would make it take half as long again, and little of it is nbprop's."""

    def compile_untraced(*arguments):
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return compile_function(*arguments)
        finally:
            sys.settrace(tracer)

    return compile_untraced


dispatcher._FunctionCompiler.compile = _untraced(dispatcher._FunctionCompiler.compile)
_loaded: set[str] = set()  # by the workers of xdist, where there are any


def pytest_sessionfinish(session):
    loaded = {native.name for native in known_natives if native._loaded}
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["loaded"] = sorted(loaded)
    _loaded.update(loaded)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    _loaded.update(getattr(node, "workeroutput", {}).get("loaded", ()))


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


@pytest.fixture
def registries():
    """Kinds that a test defines are forgotten after it."""
    before = dict(REGISTRY), dict(LOSSES)
    yield
    for registry, kept in zip((REGISTRY, LOSSES), before, strict=True):
        registry.clear()
        registry.update(kept)
