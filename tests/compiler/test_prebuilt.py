"""Packs of prebuilt code: used only where they are right, nothing compiles where one is, and the bits are the same."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

from nbprop.cli import warming
from nbprop.compiler import prebuilt
from nbprop.compiler.registry import known_natives
from nbprop.compiler.simd import VECTOR_BYTES, instruction_sets
from support import ROOT

# What a gradient of dense layers takes.
NAMES = [
    "nbprop.losses.base.loss_mean",
    "nbprop.losses.mse.mse_kernel",
    "nbprop.numerics.copies.copy",
    "nbprop.layers.activation.activation_inplace",
    "nbprop.layers.activation.activation_backward",
    "nbprop.numerics.gemm.blocked.gemm_ahead",
    "nbprop.layers.dense.kernels.dense_forward",
    "nbprop.layers.dense.kernels.dense_backward_parameters",
    "nbprop.layers.dense.kernels.dense_transpose",
    "nbprop.layers.dense.kernels.dense_backward_input",
    "nbprop.runtime.entries.forward",
    "nbprop.runtime.entries.value",
    "nbprop.runtime.entries.value_and_grad",
    "nbprop.runtime.entries.backward",
]

# The target that this processor loads; a wheel has the others, too, which takes minutes more.
TARGET = warming.targets()[0]
PACK = f"""
from nbprop.cli import warming
if __name__ == "__main__":
    print(warming.pack("nbprop/prebuilt", {TARGET!r}, {NAMES!r}, workers=2))
"""

GRADIENT = """
import hashlib
import sys
import sysconfig
import numba
import numpy as np
from numba.core import event
import nbprop


class Compiled(event.Listener):
    def on_start(self, event):
        print("compiled", event.data["dispatcher"].py_func.__qualname__)

    def on_end(self, event):
        pass


event.register("numba:compile", Compiled())
net = nbprop.network((4,), nbprop.dense(32, "tanh"), nbprop.dense(3))
for dtype in (np.float32, np.float64):
    params = nbprop.init(net, seed=1).astype(dtype)
    plan = nbprop.plan(net, "mse", batch=33, dtype=dtype)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((33, 4)).astype(dtype), rng.standard_normal((33, 3)).astype(dtype)
    grads = np.empty_like(params)
    loss = nbprop.value_and_grad(plan, params, x, y, grads, nbprop.workspace(plan))
    print(dtype.__name__, loss, hashlib.blake2b(grads.tobytes(), digest_size=8).hexdigest())
"""


def python(folder, source, *arguments, **environment):
    (folder / "script.py").write_text(source, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "script.py", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A copy of the package with a pack of what a gradient of dense layers takes."""
    folder = tmp_path_factory.mktemp("packed")
    shutil.copytree(ROOT / "nbprop", folder / "nbprop", ignore=shutil.ignore_patterns("__pycache__", "prebuilt"))
    assert len(python(folder, PACK)) == 1
    return folder


def test_every_native_has_a_name_of_its_own():
    """By which a pack finds it: of two with one name, a pack held the other."""
    warming._natives()
    names = [native.name for native in known_natives if native.name.startswith("nbprop.")]
    assert [name for name in set(names) if names.count(name) > 1] == []


FACES = """
from nbprop.cli import warming
for module, name, _ in warming._faces(False):
    print(module, name)
"""


@pytest.mark.more
def test_natives_are_told_from_what_python_calls(tmp_path):
    """Without a pack that this processor can use, the calls that show what Python calls compile natives, too."""
    found = python(tmp_path, FACES, PYTHONPATH=str(ROOT), NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    assert found
    for line in found:
        module, name = line.split()
        assert hasattr(getattr(importlib.import_module(module), name), "compile"), line


@pytest.mark.more
def test_nothing_compiles_and_the_bits_are_native_codes(packed, tmp_path):
    cache = tmp_path / "cache"
    found = python(packed, GRADIENT, NUMBA_CACHE_DIR=str(cache))
    native = python(tmp_path, GRADIENT, PYTHONPATH=str(ROOT))
    assert found == [line for line in native if not line.startswith("compiled")]
    assert not cache.exists()


@pytest.mark.more
def test_what_a_pack_lacks_or_holds_damaged_is_compiled(packed, tmp_path):
    """One function is cut out, and another's code has a changed byte: results are the same."""
    folder = tmp_path / "damaged"
    shutil.copytree(packed, folder)
    for path in (folder / "nbprop" / "prebuilt").iterdir():
        with zipfile.ZipFile(path) as file:
            members = {name: bytearray(file.read(name)) for name in file.namelist()}
        sizes = sorted((len(content), name) for name, content in members.items() if name != prebuilt.MANIFEST)
        members[sizes[-1][1]][-100] ^= 1
        del members[sizes[-2][1]]
        with zipfile.ZipFile(path, "w") as file:
            for name, content in members.items():
                file.writestr(name, bytes(content))
    found = python(folder, GRADIENT, NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    whole = python(packed, GRADIENT, NUMBA_CACHE_DIR=str(tmp_path / "cache of none"))
    assert [line for line in found if not line.startswith("compiled")] == whole
    assert any(line.startswith("compiled") for line in found)
    assert list((tmp_path / "cache").rglob("*.nbc"))


def manifest(**changes):
    given = {
        "versions": prebuilt.versions(),
        "vector_bytes": VECTOR_BYTES,
        "magic": [prebuilt.llvm.get_process_triple(), "x", "y"],
        "needs": sorted(instruction_sets())[:3],
    }
    return given | changes


def test_a_pack_is_used_only_where_its_code_is_right():
    processor = instruction_sets()
    assert prebuilt.usable(manifest(), VECTOR_BYTES, processor)
    for changes in (
        {"versions": [*prebuilt.versions()[:2], "3.9"]},
        {"versions": ["0.1", *prebuilt.versions()[1:]]},
        {"vector_bytes": VECTOR_BYTES // 2},
        {"magic": ["riscv64-unknown-linux-gnu", "x", "y"]},
        {"needs": ["an instruction set of tomorrow"]},
    ):
        assert not prebuilt.usable(manifest(**changes), VECTOR_BYTES, processor), changes


def write(path, given):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(prebuilt.MANIFEST, json.dumps(given))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", None, b"{}"])
def test_a_broken_pack_is_told_and_left_alone(content, tmp_path, monkeypatch):
    path = tmp_path / prebuilt.file_name(warming.targets()[-1])
    if content is None:
        write(path, {"versions": 3})
    else:
        path.write_bytes(content)
    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path)
    with pytest.warns(RuntimeWarning, match="cannot be read"):
        assert prebuilt.pack.__wrapped__() is None


def test_the_best_target_that_fits_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path)
    assert prebuilt.pack.__wrapped__() is None
    write(tmp_path / prebuilt.file_name("generic"), manifest())
    assert prebuilt.pack.__wrapped__().manifest == manifest()
    write(tmp_path / prebuilt.file_name("x86-64-v3"), manifest(needs=["no such"]))
    assert prebuilt.pack.__wrapped__().manifest == manifest()
    write(tmp_path / prebuilt.file_name("x86-64-v4"), manifest(needs=[]))
    assert prebuilt.pack.__wrapped__().manifest == manifest(needs=[])
    monkeypatch.setattr(prebuilt.numba.config, "CPU_NAME", "skylake")
    assert prebuilt.pack.__wrapped__() is None


@pytest.mark.more
def test_a_wheel_runs_outside_the_clone(packed, tmp_path):
    """Built as `make wheel` builds it, installed into an environment of its own: its command, its data, its kernels."""
    source, environment = tmp_path / "source", tmp_path / "environment"
    shutil.copytree(packed, source)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    for wanted in ("nbprop/py.typed", "nbprop/__init__.pyi", "nbprop/data/digits.npz", "nbprop/export/c/dense.c"):
        assert wanted in names
    assert f"nbprop/prebuilt/{prebuilt.file_name(TARGET)}" in names
    assert any(name.endswith("LICENSE") for name in names)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    interpreter = environment / "bin" / "python"
    subprocess.run([*pip, "--python", interpreter, "install", "--no-deps", wheel], check=True)
    site = next((environment / "lib").glob("python*/site-packages"))
    # The dependencies are those of the tests' environment: a path alone, which brings no editable install with it.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    outside = tmp_path / "outside"
    outside.mkdir()
    run = {"cwd": outside, "env": {"PATH": os.environ["PATH"], "NUMBA_CACHE_DIR": str(tmp_path / "cache")}}
    version = subprocess.run([environment / "bin" / "nbprop", "--version"], capture_output=True, text=True, **run)
    assert version.stdout.startswith("nbprop ")
    script = GRADIENT + "\nprint(nbprop.__file__)\n"
    done = subprocess.run([interpreter, "-W", "error", "-c", script], capture_output=True, text=True, **run)
    assert done.returncode == 0, done.stderr
    *found, place = done.stdout.splitlines()
    assert place.startswith(str(site))
    assert [line.split()[0] for line in found] == ["float32", "float64"]
