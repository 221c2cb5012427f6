"""Tests on 64-bit ARM, under qemu: a Debian root for it, its Python, and the wheels of pyproject.toml's dependencies.

Emulation takes some twenty times as long, and Numba compiles in it; what is left out here takes hours.

    make test-arm64
    make test-arm64 TESTS="tests/layers/test_contract.py -k dense"
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys

import debian
from matrix import PROJECT, ROOT, TOOLS

FOLDER = ROOT / "build" / "arm64"
SUITE, PYTHON = "bookworm", "3.11"

# Products, functions whose bits must be x86's, and the contract of layers that use them.
TESTS = [
    *("tests/numerics/test_gemm.py", "tests/numerics/test_functions.py"),
    *("tests/layers/test_bits.py", "tests/layers/test_contract.py", "-k"),
    "test_gemm or test_functions or dense or conv or lstm",
]


def packages():
    """A folder with the dependencies and pytest, as wheels for this processor have them."""
    folder, made = FOLDER / "packages", FOLDER / "packages" / "made"
    wanted = [*PROJECT["dependencies"], *TOOLS]
    if not (made.is_file() and made.read_text() == "\n".join(wanted)):
        shutil.rmtree(folder, ignore_errors=True)
        platforms = [f"--platform=manylinux{glibc}_aarch64" for glibc in ("_2_28", "_2_27", "_2_17", "2014")]
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-compile"]
        options = ["--only-binary=:all:", f"--python-version={PYTHON}", f"--target={folder}", *platforms]
        if subprocess.run([*pip, *options, *wanted], check=False).returncode != 0:
            raise debian.NotToBeHad("pip cannot get the wheels")
        made.write_text("\n".join(wanted))
    return folder


def command():
    """How Python is started, and the changes of its environment."""
    root = debian.root(FOLDER / "root", SUITE, "arm64", f"python{PYTHON}")
    python = str(root / "usr" / "bin" / f"python{PYTHON}")
    cache = {"NUMBA_CACHE_DIR": str(FOLDER / "cache"), "PYTHONPATH": os.pathsep.join([str(ROOT), str(packages())])}
    if platform.machine() in ("aarch64", "arm64"):
        return [sys.executable], cache
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if emulator is None:
        raise debian.NotToBeHad("qemu is not installed (Debian: apt-get install qemu-user-static)")
    return [emulator, "-L", str(root), python], cache


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs=argparse.REMAINDER, help="for pytest; a selection if left out")
    tests = parser.parse_args().tests or TESTS
    try:
        start, changes = command()
    except debian.NotToBeHad as error:
        sys.exit(f"test-arm64 cannot run: {error}")
    done = subprocess.run(
        [*start, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env=os.environ | changes,
        check=False,
    )
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
