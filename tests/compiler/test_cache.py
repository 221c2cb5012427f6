"""The disk cache of compiled code: races, broken files, folders that cannot be written, and what never compiles."""

import os
import subprocess
import sys
import types

import numba
import numpy as np
import pytest
from numba.core import event

import nbprop
from nbprop.compiler import cache as disk_cache
from nbprop.compiler import fingerprint as sources
from nbprop.compiler import jit
from nbprop.numerics import partition
from support import ROOT

# Compiles five small functions and says how many came from the cache, and what was warned of.
FUNCTIONS = f"""
import warnings
from nbprop.compiler import jit
from nbprop.numerics import partition
from nbprop.compiler import cache as disk_cache
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
from nbprop.compiler import jit
from nbprop.numerics import partition
from nbprop.compiler import cache as disk_cache
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


RACE = (
    FUNCTIONS.split("with warnings", 1)[0]
    + """
import os, sys
from pathlib import Path

def made():
    return [jit.njit(function) for function in (function_0, function_1)]

assert jit.njit(lambda x: -x)(2) == -2  # what the first compilation needs is there before the race
files = lambda: sorted(path for path in Path(os.environ["NUMBA_CACHE_DIR"]).rglob("function_*") if path.is_file())
whole = None
for damage in (None, lambda content: content[: len(content) // 2], lambda content: os.urandom(len(content))):
    if damage is not None:
        for path in files():
            path.write_bytes(damage(path.read_bytes()))
    racers = []
    for _ in range(8):
        racers.append(os.fork())
        if racers[-1] == 0:
            warnings.simplefilter("error")
            os._exit([function(2) for function in made()] != [2, 3])
    assert [os.waitpid(racer, 0)[1] for racer in racers] == [0] * 8
    whole = whole or files()
    assert files() == whole and len(whole) == 2 and all(path.suffix == ".nbc" for path in whole)
    found = made()
    assert [function(2) for function in found] == [2, 3]
    assert sum(sum(function.stats.cache_hits.values()) for function in found) == 2
print("done")
"""
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_eight_processes_race(script, cache):
    """On an empty cache, on truncated and on garbage files: all work, and what they leave behind is whole."""
    assert script(RACE, NUMBA_CACHE_DIR=cache) == "done\n"


@pytest.mark.long
@pytest.mark.parametrize("damage", ["none", "truncated", "garbage"])
def test_eight_processes_race_for_a_network(cache, tmp_path, damage):
    """The same with processes of their own, and all that a network's first gradient compiles."""
    path, environment = tmp_path / "script.py", {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    path.write_text(GRADIENT, encoding="utf-8")
    command = [sys.executable, "-W", "error", str(path)]
    if damage != "none":
        subprocess.run(command, env=environment, check=True, timeout=300, capture_output=True)
        for file in files(cache):
            content = file.read_bytes()
            file.write_bytes(content[: len(content) // 2] if damage == "truncated" else os.urandom(len(content)))
    racers = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(8)]
    answers = {racer.communicate(timeout=600)[0] for racer in racers}
    assert [racer.returncode for racer in racers] == [0] * 8
    assert len(answers) == 1


GRADIENT = """
import numpy as np, nbprop
net = nbprop.network((4,), nbprop.dense(5, activation="tanh"), nbprop.dense(3))
plan, params = nbprop.plan(net, "mse", batch=2), nbprop.init(net, seed=1)
grads = np.empty_like(params)
loss = nbprop.value_and_grad(plan, params, np.ones((2, 4)), np.zeros((2, 3)), grads, nbprop.workspace(plan))
print(loss, grads.tobytes().hex())
"""


def test_a_file_says_whose_it_is(script, cache):
    """Whole files under each other's names are not taken: what they hold has other arguments, or does other things."""
    script(FUNCTIONS, NUMBA_CACHE_DIR=cache)
    kept = files(cache)
    contents = [path.read_bytes() for path in kept]
    for path, content in zip(kept, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)
    assert script(FUNCTIONS, NUMBA_CACHE_DIR=cache) == "0 []\n"
    whose = len(disk_cache._MAGIC) + 16  # the mark of the format, then the key that a file belongs to
    assert [path.read_bytes()[:whose] for path in kept] == [content[:whose] for content in contents]


def test_addresses_of_this_process_are_not_kept(monkeypatch, cache):
    """A large global array is compiled in by its address, which is nothing in the next process."""
    monkeypatch.setattr(disk_cache, "cache_root", lambda: cache)
    large, small = np.ones(200_000), np.ones(2)
    one, two = jit.njit(lambda i: large[i]), jit.njit(lambda i: small[i])
    assert one(0) == two(0) == 1.0
    assert len(files(cache)) == 1


@pytest.fixture
def homeless(monkeypatch, tmp_path):
    """A user without a home directory."""

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(disk_cache.Path, "home", home)
    monkeypatch.setattr(disk_cache.numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(disk_cache.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(disk_cache.tempfile, "tempdir", str(tmp_path))
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    disk_cache._temporary_root.cache_clear()
    disk_cache._warn_once.cache_clear()
    yield tmp_path
    disk_cache._temporary_root.cache_clear()


def test_without_a_home_the_code_goes_to_a_temporary_folder(homeless):
    with pytest.warns(RuntimeWarning, match="finds no home directory.*set NUMBA_CACHE_DIR") as caught:
        root = disk_cache.cache_root()
    assert disk_cache.cache_root() == root
    assert len(caught) == 1
    assert root.is_dir()
    assert root.parent == homeless
    if hasattr(os, "getuid"):
        assert root.stat().st_mode & 0o077 == 0


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="folders have no owners here")
@pytest.mark.parametrize("how", ["writable", "link", "file"])
def test_a_temporary_folder_that_others_can_write_to_is_not_used(homeless, how):
    """What lies there is run."""
    planted = homeless / f"nbprop-{os.getuid()}"
    if how == "writable":
        planted.mkdir()
        planted.chmod(0o777)
    elif how == "link":
        (homeless / "elsewhere").mkdir()
        planted.symlink_to(homeless / "elsewhere")
    else:
        planted.write_text("")
    with pytest.warns(RuntimeWarning, match="finds no home directory"):
        root = disk_cache.cache_root()
    assert root != planted
    assert root.is_dir()
    assert root.stat().st_mode & 0o077 == 0


def test_without_numbas_compiler_it_says_so(script):
    """NUMBA_DISABLE_JIT makes Numba return plain functions."""
    source = "try: import nbprop\nexcept RuntimeError as error: print(error)"
    assert "NUMBA_DISABLE_JIT is set" in script(source, NUMBA_DISABLE_JIT=1)


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

    disk_cache._warn_once.cache_clear()
    monkeypatch.setattr(disk_cache, "cache_root", lambda: cache)
    monkeypatch.setattr(disk_cache.os, "replace", full)

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


def made(text, **names):
    """The function f of a text, as a notebook's cell makes it: there is no file to read."""
    exec(text, space := names | {"__name__": "user"})
    return space["f"]


def plus(x):
    return x + 1


def minus(x):
    return x - 1


def test_a_functions_identity_is_what_it_is_made_of():
    """Closures, constants and globals tell functions of the same name apart; the same text is the same function."""

    def digest(text, **names):
        return sources.digest_of(made(text, **names))

    one = digest("def f(x): return x + K", K=1)
    assert one == digest("def f(x): return x + K", K=1)
    helper = "def f(x): return h(x)"
    assert digest(helper, h=plus) != digest(helper, h=minus)
    options = [{}, {"fastmath": True}, {"fastmath": {"nsz", "contract"}}, {"error_model": "numpy"}]
    compiled = [digest(helper, h=numba.njit(**given)(plus)) for given in options]
    assert len(set(compiled)) == len(options)
    assert compiled[2] == digest(helper, h=numba.njit(fastmath={"contract", "nsz"})(plus))


MODULE = types.ModuleType("helpers")
OTHER_MODULE = types.ModuleType("helpers")
MODULE.scale, OTHER_MODULE.scale = numba.njit(plus), numba.njit(minus)
CHAIN = "def g(x): return h(x)\ndef f(x): return g(x)"
SAME = "def f(x): return x + K"
DEFAULT = "def g(x, k=1): return k\ndef f(x): return g(x)"
INNER = "def f(x): return (lambda y: y + K)(x)"
TWINS = {
    "constant": ("def f(x): return x + 1", "def f(x): return x + 2"),
    "operator": ("def f(x): return x + 1", "def f(x): return x - 1"),
    "attribute": ("import math\ndef f(x): return math.sin(x)", "import math\ndef f(x): return math.cos(x)"),
    "type of a constant": ("def f(x): return x * 1", "def f(x): return x * 1.0"),
    "sign of zero": ("def f(x): return x * 0.0", "def f(x): return x * -0.0"),
    "parameter's name": ("def f(x, n, size): return x", "def f(x, n, rows): return x"),
    "default": ("def f(x, k=1): return x + k", "def f(x, k=2): return x + k"),
    "helper's default": (DEFAULT, DEFAULT.replace("k=1", "k=2")),
    "inner function": ("def f(x): return (lambda y: y + 1)(x)", "def f(x): return (lambda y: y - 1)(x)"),
    "global of an inner function": ((INNER, 1), (INNER, 2)),
    "global": ((SAME, 1), (SAME, 2)),
    "type of a global": ((SAME, 1), (SAME, np.float32(1))),
    "dtype of a global": ((SAME, np.zeros(2, np.int64)), (SAME, np.zeros(2))),
    "shape of a global": ((SAME, np.zeros((2, 3))), (SAME, np.zeros((3, 2)))),
    "numbers in a tuple": ((SAME, (1, np.ones(2))), (SAME, (1, np.zeros(2)))),
    "helper's helper": ((CHAIN.replace("h(", "K("), plus), (CHAIN.replace("h(", "K("), minus)),
    "helper in a module": (("def f(x): return K.scale(x)", MODULE), ("def f(x): return K.scale(x)", OTHER_MODULE)),
}  # fmt: skip


@pytest.mark.parametrize("twins", TWINS.values(), ids=TWINS)
def test_what_differs_in_one_thing_is_another_function(twins):
    one, other = (
        sources.digest_of(made(twin) if isinstance(twin, str) else made(twin[0], K=twin[1])) for twin in twins
    )
    assert one != other


def test_a_copy_is_compiled_with_what_is_there_now():
    """Numba compiles a helper once, with the globals of that moment; the copy's helpers are new, options are kept."""
    space = {"__name__": "user", "njit": numba.njit}
    exec(
        "@njit\ndef h(x): return 1\n@njit\ndef g(x): return h(x)\n@njit(error_model='numpy')\ndef f(x): return g(x)",
        space,
    )
    exec("@njit\ndef itself(x): return itself(x - 1)", space)
    assert space["f"](0) == 1
    exec("@njit\ndef h(x): return 2", space)
    assert space["f"](0) == 1, "Numba no longer freezes a helper: renewed() may not be needed"
    again = sources.renewed(space["f"])
    assert again(0) == 2
    assert again.targetoptions == space["f"].targetoptions
    assert sources.digest_of(again) == sources.digest_of(space["f"])
    copy = sources.renewed(space["itself"])
    assert copy.py_func.__globals__["itself"] is copy
    assert sources.renewed(partition.share) is partition.share


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


# Two closures of one factory, each of which calls a closure that is not inlined. The order of sets is part of Numba's
# symbols, too: with one hash seed, only the numbers of functions tell them apart.
CLOSURES = """
import ctypes
from numba import types
from nbprop.compiler.jit import njit
from nbprop.compiler.native import CompiledEntry

def entry_of(k):
    @njit
    def helper(x):
        return k + x if x < 2 else helper(x - 1) + helper(x - 2)

    @njit
    def entry(x):
        return helper(x)

    return CompiledEntry(entry, lambda dtype: types.int64(types.int64), f"entry {k}")

result, error = ctypes.c_int64(), ctypes.c_void_p()
call = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)

def value(k):
    call(entry_of(k).load())(ctypes.addressof(result), ctypes.addressof(error), 10)
    return result.value
"""


def test_code_of_two_processes_keeps_apart(script, cache):
    """Numba counts functions from 1 in each process: their code, loaded by a third, would have the same symbols."""
    environment = {"NUMBA_CACHE_DIR": cache, "PYTHONHASHSEED": "0"}
    assert script(CLOSURES + "print(value(1000))", **environment) == "89055\n"
    assert script(CLOSURES + "print(value(2000))", **environment) == "178055\n"
    assert script(CLOSURES + "print(value(1000), value(2000))", **environment) == "89055 178055\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_code_of_forked_processes_keeps_apart(script, cache):
    forked = """
import os
from nbprop.compiler.jit import njit
njit(lambda x: x)  # the parent has begun to count
for k in (1000, 2000):
    child = os.fork()
    if child == 0:
        os._exit(value(k) != {1000: 89055, 2000: 178055}[k])
    assert os.waitpid(child, 0)[1] == 0
print(value(1000), value(2000))
"""
    assert script(CLOSURES + forked, NUMBA_CACHE_DIR=cache, PYTHONHASHSEED="0") == "89055 178055\n"
