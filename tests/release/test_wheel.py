"""The archives of a release: what they hold, and that they work where nothing else of the project is."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import nbprop
from nbprop.cli import warming
from nbprop.compiler import prebuilt
from support import ROOT, release_script

pytest.importorskip("build")
archiver = release_script("archives")

# Tests of the installed package: files, the command line, and what compiles little.
SELECTION = ["tests/io/test_data.py", "tests/networks/test_fields.py", "tests/losses/test_targets.py"]


def python(program, *arguments, folder, **environment):
    """Run a Python that sees no clone; returns what it prints."""
    given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run(
        [program, *map(str, arguments)], cwd=folder, env=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """(source archive, wheel) of this commit, without kernels, which take minutes to compile."""
    folder = tmp_path_factory.mktemp("archives")
    return archiver.build(folder / "dist", folder / "tree", isolated=False, pack=lambda tree: None)


def installed(archive, folder):
    """Install an archive alone; the libraries that it needs are those of this environment."""
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index"]
    python(sys.executable, "-m", "pip", "install", *options, "--target", folder / "site", archive, folder=folder)
    return folder / "site"


@pytest.mark.more
def test_both_archives_hold_what_is_needed(archives):
    source, wheel = archives
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        (metadata,) = [file.read(name).decode() for name in names if name.endswith(".dist-info/METADATA")]
    with tarfile.open(source) as file:
        of_source = [name.partition("/")[2] for name in file.getnames()]
    data = [path for path in (ROOT / "nbprop").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    package = {path.relative_to(ROOT).as_posix() for path in data if "prebuilt" not in path.parts}
    assert {"nbprop/py.typed", "nbprop/__init__.pyi", "nbprop/data/digits.npz", "nbprop/data/ATTRIBUTION.md"} <= package
    assert package <= set(names)
    assert package <= set(of_source)
    assert {"LICENSE", "README.md", "pyproject.toml"} <= set(of_source)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"nbprop"}
    assert f"Version: {nbprop.__version__}\n" in metadata
    assert (ROOT / "README.md").read_text(encoding="utf-8").strip() in metadata
    python_tag = "cp{}{}".format(*sys.version_info)
    assert f"-{python_tag}-{python_tag}-" in wheel.name
    assert "none-any" not in wheel.name


@pytest.mark.more
@pytest.mark.parametrize("which", [0, 1], ids=["source", "wheel"])
def test_an_archive_works_outside_the_clone(archives, which, tmp_path):
    site = installed(archives[which], tmp_path)
    where = python(sys.executable, "-c", "import nbprop; print(nbprop.__file__)", folder=tmp_path, PYTHONPATH=str(site))
    assert Path(where.strip()) == site / "nbprop" / "__init__.py"
    version = python(sys.executable, site / "bin" / "nbprop", "--version", folder=tmp_path, PYTHONPATH=str(site))
    assert version.split()[:2] == ["nbprop", nbprop.__version__]
    if which == 1:
        told = python(sys.executable, "-m", "nbprop", "demo", folder=tmp_path, PYTHONPATH=str(site))
        assert "right" in told
        run_tests(sys.executable, tmp_path, PYTHONPATH=str(site))


def run_tests(program, folder, **environment):
    """Tests of the clone, copied, on the installed package."""
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    told = python(program, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SELECTION, folder=folder, **environment)
    assert " passed" in told
    assert " failed" not in told


FIVE_LINES = """
import time
begun = time.process_time()
import numpy as np, nbprop

x = np.linspace(-1, 1, 200)[:, None]
net = nbprop.network((1,), nbprop.dense(16, activation="tanh"), nbprop.dense(1))
params = nbprop.init(net, seed=0)
history = nbprop.fit(net, params, x, np.sin(4 * x), loss="mse", lr=0.01, batch=20, epochs=200)
print(time.process_time() - begun, history.loss[-1])
"""

GRADIENT = """
import sys, time
import numba
begun = time.process_time()
import numpy as np
import nbprop
dtype = np.dtype(sys.argv[1])
net = nbprop.network((4,), nbprop.dense(32, "tanh"), nbprop.dense(3))
params = nbprop.init(net, seed=1).astype(dtype)
plan = nbprop.plan(net, "mse", batch=33, dtype=dtype)
x, y, grads = np.ones((33, 4), dtype), np.ones((33, 3), dtype), np.empty_like(params)
nbprop.value_and_grad(plan, params, x, y, grads, nbprop.workspace(plan))
print(time.process_time() - begun)
"""


@pytest.mark.long
def test_a_wheel_in_a_fresh_environment_compiles_nothing_first(tmp_path):
    """With its kernels, installed with its dependencies from an index. Times are the processor's: a test is not alone.

    NBPROP_DIST names a folder that `make wheel` has just written; otherwise a wheel is built, which takes minutes.
    """
    if "NBPROP_DIST" in os.environ:
        (wheel,) = Path(os.environ["NBPROP_DIST"]).glob(f"nbprop-{nbprop.__version__}-cp*.whl")
    else:
        _, wheel = archiver.build(tmp_path / "dist", tmp_path / "tree", isolated=False)
    with zipfile.ZipFile(wheel) as file:
        assert {f"nbprop/prebuilt/{prebuilt.file_name(target)}" for target in warming.targets()} <= set(file.namelist())
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "fresh"], check=True)
    program = tmp_path / "fresh" / "bin" / "python"
    install = [program, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    if subprocess.run([*install, "numba"], check=False).returncode != 0:
        pytest.skip("there is no index of packages")
    python(*install, wheel, "pytest", "hypothesis", folder=tmp_path)
    python(program, "-m", "pip", "check", folder=tmp_path)
    none = tmp_path / "a file, so that nothing can be kept below it"
    none.touch()
    empty = {"NUMBA_CACHE_DIR": str(none)}
    # Twice each: the first run of all compiles Python's bytecode.
    for dtype in ("float64", "float32"):
        spent = [float(python(program, "-c", GRADIENT, dtype, folder=tmp_path, **empty)) for _ in range(2)]
        assert min(spent) < 1.5, (dtype, spent)
    spent, loss = map(float, python(program, "-c", FIVE_LINES, folder=tmp_path, **empty).split())
    assert spent < 5.0
    assert loss < 1e-2
    assert (tmp_path / "fresh" / "bin" / "nbprop").is_file()
    assert nbprop.__version__ in python(tmp_path / "fresh" / "bin" / "nbprop", "--version", folder=tmp_path)
    python(tmp_path / "fresh" / "bin" / "nbprop", "demo", folder=tmp_path)
    run_tests(program, tmp_path)
