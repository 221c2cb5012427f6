"""A telling selection of tests on every Python, and on the oldest and newest Numba, NumPy and SciPy, that are allowed.

Each row of the table is an environment of its own in build/matrix, with the dependencies that pyproject.toml allows.
Interpreters are those on the path, pyenv's, or, where apt is there, those of the Debian release that has them. What
cannot be had is told, and is no failure; a failed test is.

    make test-matrix
    make test-matrix ONLY="3.14 oldest"
    make test-matrix TESTS="tests/estimators tests/numerics"
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import NamedTuple

import debian

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "matrix"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Python, and the Debian release that has it.
PYTHONS = {"3.11": "bookworm", "3.12": None, "3.13": "trixie", "3.14": "forky"}

# What uses Numba's internals, NumPy's and SciPy's most: types of arguments, late names, the disk cache, layers with
# and without scratch, solvers, training; some minutes where nothing is compiled.
TESTS = [
    *("tests/compiler/test_cache.py", "tests/compiler/test_prebuilt.py", "tests/runtime/test_njit.py"),
    *("tests/solvers/test_scipy.py", "tests/solvers/test_marquardt.py", "tests/training/test_parts_of_fit.py"),
    *("tests/losses/test_targets.py", "tests/numerics/test_gemm.py"),
]
TOOLS = ["pytest", "hypothesis", "mpmath"]


class Environment(NamedTuple):
    name: str
    python: str
    requirements: list[str]


def bounds(requirement):
    """(name, lowest version) of a requirement such as numpy>=2.0,<3."""
    name, lowest = re.fullmatch(r"([\w-]+)>=([\d.]+)(?:,<[\d.]+)?", requirement).groups()
    return name, lowest


def environments():
    """Each Python with the newest of everything, and the oldest Python with the oldest."""
    newest = [Environment(python, python, PROJECT["dependencies"]) for python in PYTHONS]
    lowest = [f"{name}=={version}.*" for name, version in map(bounds, PROJECT["dependencies"])]
    return [*newest, Environment("oldest", min(PYTHONS, key=lambda text: int(text[2:])), lowest)]


def with_numba(minor):
    """The oldest Python with one minor version of Numba."""
    rest = [requirement for requirement in PROJECT["dependencies"] if not requirement.startswith("numba")]
    return Environment(f"numba-{minor}", "3.11", [f"numba=={minor}.*", *rest])


def interpreter(version):
    """The program of a Python; raises NotToBeHad."""
    candidates = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
    for program in filter(None, candidates):
        tried = subprocess.run([program, "-c", "import venv"], capture_output=True, check=False)
        if tried.returncode == 0:
            return Path(program)
    if PYTHONS[version] is None:
        raise debian.NotToBeHad(f"there is no python{version}, and no release of Debian has it")
    return debian.python(FOLDER / f"python{version}", PYTHONS[version])


def prepare(environment):
    """The Python of an environment that has all it needs."""
    folder = FOLDER / environment.name
    program, made = folder / "bin" / "python", folder / "made"
    wanted = "\n".join([*environment.requirements, *TOOLS])
    if not (made.is_file() and made.read_text() == wanted):
        shutil.rmtree(folder, ignore_errors=True)
        # Debian's venv looks for pip at a fixed place, which the unpacked root is not: this environment's pip is used.
        subprocess.run([interpreter(environment.python), "-m", "venv", "--without-pip", folder], check=True)
        pip = [sys.executable, "-m", "pip", "--python", program, "--quiet", "--disable-pip-version-check", "install"]
        done = subprocess.run([*pip, *environment.requirements, *TOOLS], check=False)
        if done.returncode != 0:
            raise debian.NotToBeHad("pip cannot install " + " ".join(environment.requirements))
        made.write_text(wanted)
    return program


VERSIONS = """
import sys, numba, numpy, scipy
print(sys.version.split()[0], numba.__version__, numpy.__version__, scipy.__version__)
"""


def run(environment, tests):
    """(versions, result) of the tests in an environment; its cache is its own."""
    program = prepare(environment)
    changes = {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(FOLDER / "cache" / environment.name)}
    given = {"cwd": ROOT, "env": os.environ | changes}
    versions = subprocess.run([program, "-c", VERSIONS], capture_output=True, text=True, check=True, **given).stdout
    options = ["-q", "-p", "no:cacheprovider"]
    done = subprocess.run([program, "-W", "error", "-m", "pytest", *options, *tests], check=False, **given)
    return versions.split(), "passed" if done.returncode == 0 else "FAILED"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of 3.11, 3.12, ..., oldest, numba-0.66")
    parser.add_argument("tests", nargs="*", default=TESTS, help="files or folders; a telling selection if left out")
    arguments = parser.parse_args()
    wanted = {environment.name: environment for environment in environments()}
    names = arguments.only or list(wanted)
    rows, failed = [], False
    for name in names:
        environment = wanted.get(name) or with_numba(name.removeprefix("numba-"))
        print(f"== {name}", flush=True)
        begun = time.monotonic()
        try:
            versions, result = run(environment, arguments.tests)
        except debian.NotToBeHad as error:
            versions, result = ["-"] * 4, f"not to be had: {error}"
        failed |= result == "FAILED"
        rows.append([name, *versions, f"{time.monotonic() - begun:.0f} s", result])
    print(f"\n{'':12}{'Python':10}{'Numba':10}{'NumPy':10}{'SciPy':10}")
    for name, *cells, result in rows:
        print(f"{name:12}" + "".join(f"{cell:10}" for cell in cells) + result)
    sys.exit(failed)


if __name__ == "__main__":
    main()
