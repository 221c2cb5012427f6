"""Names are imported when they are first used, and a user meets no difference: not in Python, not in compiled code."""

import importlib
import json
import os
import subprocess
import sys

import pytest

import nbprop
from nbprop.optimizers import step
from support import ROOT

# Nothing here compiles; prints what it finds as JSON.
IN_PYTHON = r"""
import json, rlcompleter, sys, threading, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numba  # and all that it brings is not nbprop's doing
before = set(sys.modules)

import nbprop

found = {"imported": sorted(set(sys.modules) - before)}


class Slow:
    # A finder that finds nothing, but lets the other threads go on in the middle of an import.
    @staticmethod
    def find_spec(name, path, target=None):
        time.sleep(1.0 if name == "nbprop.layers.attention" else 0.0)


def threads(*functions):
    start, caught = threading.Barrier(len(functions)), []

    def run(function):
        start.wait()
        try:
            function()
        except BaseException as error:
            caught.append(repr(error))

    running = [threading.Thread(target=run, args=(function,), daemon=True) for function in functions]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(30)
    return [*caught, *("waits for ever" for thread in running if thread.is_alive())]


if __name__ == "__main__":
    found["dir"] = dir(nbprop)
    found["after_dir"] = sorted(name for name in sys.modules if name.startswith("nbprop"))
    from nbprop.networks.network import Network  # without the layers, which enter their registry when they are imported
    found["absent"] = [hasattr(nbprop, name) for name in ("nothing", "__wrapped__", "__main__", "_repr_html_")]
    try:
        nbprop.forwards
    except AttributeError as error:
        found["message"] = str(error)
    net = Network.from_json('{"input_shape": [4, 3], "layers": [{"kind": "gru", "units": 2}]}')
    found["read"] = repr(net)
    # One thread in the middle of a package, another in need of a module that it has not come to.
    sys.meta_path.insert(0, Slow)
    found["threads"] = threads(lambda: nbprop.gru, lambda: nbprop.explain, lambda: nbprop.fit, lambda: nbprop.mse)
    sys.meta_path.remove(Slow)
    completer = rlcompleter.Completer({"nbprop": nbprop})
    found["completed"] = [completer.complete("nbprop.val", k) for k in range(5)]
    found["modules"] = [
        nbprop.layers.dense is nbprop.dense, nbprop.solvers.ITERATIONS >= 0, nbprop.schedules.step(0, 1.0, 5),
        nbprop.marquardt.__name__, nbprop.cuda.__name__, nbprop.data.digits.__name__,
    ]
    everything = {}
    exec("from nbprop import *", everything)
    found["star"] = sorted(set(everything) - {"__builtins__"})
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        net = nbprop.network((3,), nbprop.dense(2))
        found["spawned"] = pool.submit(nbprop.init, net, 1).result().tolist() == nbprop.init(net, 1).tolist()
    print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What a fresh process finds."""
    path = tmp_path_factory.mktemp("imports") / "in_python.py"
    path.write_text(IN_PYTHON, encoding="utf-8")
    done = subprocess.run([sys.executable, "-W", "error", path], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_an_import_brings_little(found):
    """A count of modules, not a time: the compiler's few, and none of what only some programs need."""
    ours = [name for name in found["imported"] if name.partition(".")[0] == "nbprop"]
    assert {name for name in ours if name.count(".") < 2} == {"nbprop", "nbprop.compiler", "nbprop.system"}, ours
    assert len(found["imported"]) < 20, found["imported"]
    assert not {"scipy.optimize", "tqdm", "matplotlib", "safetensors"} & set(found["imported"])


def test_names_are_found_before_they_are_imported(found):
    assert set(nbprop.__all__) <= set(found["dir"])
    assert {"layers", "losses", "solvers", "schedules", "cuda", "data", "__version__"} <= set(found["dir"])
    assert found["after_dir"] == [name for name in found["imported"] if name.startswith("nbprop")]
    calls = [f"nbprop.{name}(" for name in ("value", "value_and_grad", "value_and_grad_on_ranks")]
    assert found["completed"] == ["nbprop.validation", *calls, None]
    assert found["star"] == nbprop.__all__


def test_a_file_may_name_any_layer(found):
    assert found["read"] == repr(nbprop.network((4, 3), nbprop.gru(2)))


def test_what_is_not_there_is_an_attribute_error(found):
    assert found["absent"] == [False] * 4
    assert found["message"] == "module 'nbprop' has no attribute 'forwards'"


def test_modules_are_attributes(found):
    assert found["modules"] == [True, True, 1.0, "nbprop.solvers.levenberg_marquardt", "nbprop.cuda", "digits"]


def test_threads_and_processes_may_be_first(found):
    assert found["threads"] == []
    assert found["spawned"]


def test_the_stub_lists_what_is_there():
    """Type checkers read `__init__.pyi`; each name is where it says, under the name that it says."""
    assert nbprop.__all__ == sorted(set(nbprop.__all__))
    for name, place in nbprop._PLACES.items():
        whole = importlib.import_module(f"nbprop.{name}" if place == "nbprop" else place)
        assert getattr(nbprop, name) is (whole if place == "nbprop" else getattr(whole, name)), name
    stub = (ROOT / "nbprop" / "__init__.pyi").read_text(encoding="utf-8")
    assert all(f"{name} as {name}" in stub for name in nbprop.__all__)


# Each names first what it calls where it calls it, so that Numba's typing imports it.
USERS = """
import threading

import numba
import numpy as np
from numba.extending import overload

import nbprop


@numba.njit(cache=True)
def inner(params, grads, state):
    nbprop.sgd(params, grads, state, 0, 0.5)
    return nbprop.schedules.step(7, 1.0, 5)


@numba.njit(cache=True)
def outer(params, grads, state):
    return inner(params, grads, state) + nbprop.clip_norm(grads, 1.0)


def meanwhile():
    '''While Numba types a call of this, another thread imports all there is.'''


@overload(meanwhile)
def _meanwhile():
    thread = threading.Thread(target=lambda: [getattr(nbprop, name) for name in nbprop.__all__], daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    return lambda: None


@numba.njit
def overtaken(grads):
    meanwhile()
    start, stop = nbprop.share(10, 1, 2)
    nbprop.clip_value(grads, 0.25)
    return nbprop.schedules.warm_up(0, 1.0, 5) + start
"""

FIRST_USES = """
import sys
import numpy as np
import users

grads, state = np.array([3.0, 4.0]), np.zeros(0)
params = np.zeros(2)
late = "nbprop.optimizers.api"
assert late not in sys.modules
assert users.outer(params, grads, state) == 0.1 + 5.0
assert params.tolist() == [-1.5, -2.0] and np.allclose(grads, [0.6, 0.8])
hits = sum(users.outer.stats.cache_hits.values())
if not hits:
    assert users.overtaken(grads) == 0.1 + 5 and grads.tolist() == [0.25, 0.25]
print(hits)
"""


def test_compiled_code_may_be_first(script, tmp_path):
    """Typing imports the names; in the next process nothing is typed, and the address table imports what is called."""
    (tmp_path / "users.py").write_text(USERS, encoding="utf-8")
    folders = os.pathsep.join([str(ROOT), str(tmp_path)])
    assert int(script(FIRST_USES, PYTHONPATH=folders)) == 0
    assert int(script(FIRST_USES, PYTHONPATH=folders)) == 1


FIND = """
import sys
import nbprop
from nbprop.compiler.registry import find
assert "nbprop.optimizers" not in sys.modules
print(find(int(sys.argv[1])) > 0, find(12345))
"""


def test_addresses_are_found_before_anything_is_imported(script):
    """The table of addresses imports everything before it gives a fingerprint up."""
    assert script(FIND, step._ENTRY.fingerprint()) == "True 0\n"
