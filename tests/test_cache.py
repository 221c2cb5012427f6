"""The disk cache of compiled code: races, broken files, folders that cannot be written, and what never compiles."""

import os
import subprocess
import sys

import numba
import numpy as np
import pytest
from conftest import ROOT
from numba.core import event

import nbprop
from nbprop import jit

# Compiles five small functions and says how many came from the cache, and what was warned of.
FUNCTIONS = f"""
import warnings
from nbprop import jit
{
    "".join(
        f'''
def function_{k}(x):
    return x + {k}
'''
        for k in range(5)
    )
}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    made = [jit.njit(function) for function in (function_0, function_1, function_2, function_3, function_4)]
    assert [compiled(2) for compiled in made] == [2, 3, 4, 5, 6]
print(sum(sum(one.stats.cache_hits.values()) for one in made), [str(w.message) for w in caught])
"""

DYNAMIC = """
from nbprop import jit
exec("def function(x): return x + 1", made := {})
print(jit.njit(made["function"])(1))
"""


@pytest.fixture
def cache(tmp_path):
    """A cache folder of the test's own, as the user would set it."""
    return tmp_path / "cache"


def files(cache):
    return sorted(path for path in cache.rglob("*") if path.is_file())


def test_files_are_kept_and_found_where_the_user_says(script, cache, tmp_path):
    assert script(FUNCTIONS, NUMBA_CACHE_DIR=cache) == "0 []\n"
    kept = files(cache)
    assert len(kept) == 5
    assert all(path.suffix == ".nbc" and path.is_relative_to(cache / "nbprop") for path in kept)
    assert script(FUNCTIONS, NUMBA_CACHE_DIR=cache) == "5 []\n"
    assert files(cache) == kept
    if sys.platform == "linux":
        assert script(FUNCTIONS, NUMBA_CACHE_DIR="", XDG_CACHE_HOME=tmp_path / "xdg") == "0 []\n"
        assert len(files(tmp_path / "xdg" / "nbprop")) == 5


def test_broken_files_are_survived_and_made_again(script, cache):
    script(FUNCTIONS, NUMBA_CACHE_DIR=cache)
    kept = files(cache)
    whole = [path.read_bytes() for path in kept]
    for path, content, damage in zip(
        kept,
        whole,
        (
            lambda content: b"",
            lambda content: content[: len(content) // 2],
            lambda content: b"\0" * len(content),
            lambda content: content[:-1] + bytes([content[-1] ^ 1]),
            lambda content: content + b"\0",
        ),
        strict=True,
    ):
        path.write_bytes(damage(content))
    assert script(FUNCTIONS, NUMBA_CACHE_DIR=cache) == "0 []\n"
    assert script(FUNCTIONS, NUMBA_CACHE_DIR=cache) == "5 []\n"
    assert files(cache) == kept


def test_functions_without_a_module_are_compiled_again(script, cache):
    """What exec made cannot be found by name in the next process; it is no reason to stop."""
    assert script(DYNAMIC, NUMBA_CACHE_DIR=cache) == script(DYNAMIC, NUMBA_CACHE_DIR=cache) == "2\n"


def test_four_processes_race(cache, tmp_path):
    """All work, and what they leave behind is whole."""
    path = tmp_path / "script.py"
    path.write_text(FUNCTIONS, encoding="utf-8")
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    racers = [
        subprocess.Popen([sys.executable, str(path)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    for racer in racers:
        out, err = racer.communicate(timeout=120)
        assert racer.returncode == 0, err.decode()
        assert out.decode().endswith("[]\n")
    assert len(files(cache)) == 5
    done = subprocess.run([sys.executable, str(path)], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "5 []\n"


def test_a_folder_that_cannot_be_written_warns_once(script, tmp_path):
    """A file stands where the folder should be (root may write to any folder, but not into a file)."""
    (tmp_path / "file").write_text("")
    hits, warning = script(FUNCTIONS, NUMBA_CACHE_DIR=tmp_path / "file").split(" ", 1)
    assert hits == "0"
    assert warning.count("nbprop cannot keep its compiled code in") == 1
    assert warning.count("set NUMBA_CACHE_DIR to a folder that can be written") == 1


def test_a_full_disk_leaves_nothing_behind(monkeypatch, cache):
    """The write fails half way: a warning, no partial file, and the function works."""

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jit, "_warned", [])
    monkeypatch.setattr(jit, "cache_root", lambda: cache)
    monkeypatch.setattr(jit.os, "replace", full)

    @jit.njit
    def function(x):
        return x + 1

    with pytest.warns(RuntimeWarning, match="No space left on device"):
        assert function(1) == 2
    assert files(cache) == []


def test_importing_leaves_numbas_settings_alone(script):
    """The cache folder of the user's own functions is the user's."""
    assert (
        script("import numba; before = numba.config.CACHE_DIR; import nbprop; print(numba.config.CACHE_DIR == before)")
        == "True\n"
    )


def test_a_functions_identity_is_what_it_is_made_of():
    """Closures, constants and globals tell functions of the same name apart; the same text is the same function."""

    def make(text, **names):
        exec(text, names | {"__name__": "user"}, found := {})
        return jit._digest_of(found["f"])

    one = make("def f(x): return x + K", K=1)
    assert one == make("def f(x): return x + K", K=1)
    assert one != make("def f(x): return x + K", K=2)
    assert one != make("def f(x): return x - K", K=1)
    assert make("def f(x): return x + 1") != make("def f(x): return x + 2")
    helper = "def f(x): return h(x)"

    def plus(x):
        return x + 1

    def minus(x):
        return x - 1

    assert make(helper, h=plus) != make(helper, h=minus)
    assert make(helper, h=plus) == make(helper, h=numba.njit(plus))


@pytest.fixture
def compilations():
    with event.install_recorder("numba:compile") as recorder:
        yield recorder.buffer


def run_everything(net, loss, n, target_dtype=None, threads=1):
    plan = nbprop.plan(net, loss, batch=n + 1, threads=threads)
    params, work = nbprop.init(net), nbprop.workspace(plan)
    shape = (n, *plan.target_shape)
    target = np.zeros(shape, target_dtype or (np.int64 if plan.classes else np.float64))
    x, y, grads = np.ones((n, *net.input_shape)), np.empty((n, *net.output_shape)), np.empty_like(params)
    nbprop.value_and_grad(plan, params, x, target, grads, work)
    nbprop.value(plan, params, x, target, work, np.ones(n))
    nbprop.forward(plan, params, x, y, work)
    nbprop.backward(plan, params, x, np.ones_like(y), grads, np.empty_like(x), work, True, None, 3)


def test_new_architectures_ranks_and_integers_compile_nothing(compilations):
    """Once the kernels are there, a plan is data: other sizes, depths, ranks, thread counts, kinds of class numbers."""
    dense, known = nbprop.dense, (np.int64,)
    loss = "softmax_cross_entropy"
    run_everything(
        nbprop.network((3,), dense(5, "tanh"), nbprop.residual(dense(5, "gelu")), dense(2)), loss, 4, threads=2
    )
    compilations.clear()
    run_everything(nbprop.network((7,), *[dense(11 + k, "gelu") for k in range(9)], dense(3)), loss, 13)
    run_everything(nbprop.network((4, 5, 6), nbprop.residual(dense(6, "relu")), dense(3)), loss, 2, threads=2)
    run_everything(nbprop.network((600,), dense(300, "silu"), dense(1000)), loss, 130)
    for dtype in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.uint64, *known):
        run_everything(nbprop.network((3,), dense(5)), loss, 4, dtype)
    assert compilations == []


def test_the_recorder_sees_a_compilation(compilations):
    """The check above can fail."""
    numba.njit(lambda x: x + 1)(1)
    assert len(compilations) > 0
