"""dist/: the source archive, and a wheel for this Python and platform that carries prebuilt kernels.

Made from what is committed, in a folder of its own, so that nothing else gets in. Compiling the kernels takes some ten
minutes on two cores. The wheel's platform is that of the installed Numba's, without which no kernel loads.
"""

import argparse
import io
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*command, folder):
    subprocess.run([sys.executable, *map(str, command)], cwd=folder, check=True)


def platform_of_numba():
    """The platform's tag of the installed Numba, such as manylinux_2_27_x86_64: of several, the first."""
    (metadata,) = [path for path in files("numba") or () if path.name == "WHEEL"]
    (first, *_) = [line for line in metadata.read_text().splitlines() if line.startswith("Tag: ")]
    return first.rpartition("-")[2].partition(".")[0]


def pack(tree):
    """Compile the kernels of the package in `tree` for each target, into `tree`."""
    run("-m", "nbprop", "cache", "--pack", "nbprop/prebuilt", folder=tree)


def build(output, tree, root=ROOT, isolated=True, pack=pack):
    """Build both archives of what is committed.

    Parameters
    ----------
    output : Path
        The folder that gets them.
    tree : Path
        A folder to work in, which is made anew.
    root : Path
        The repository.
    isolated : bool
        Whether the build gets setuptools by itself, or is given this environment's.
    pack : function (tree)
        Puts prebuilt kernels into the sources, for the wheel alone.

    Returns
    -------
    (Path, Path) : the source archive and the wheel
    """
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=root, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as file:
        file.extractall(tree, filter="data")
    options = ["--outdir", output] if isolated else ["--outdir", output, "--no-isolation"]
    run("-m", "build", "--sdist", *options, tree, folder=ROOT)
    pack(tree)
    run("-m", "build", "--wheel", *options, tree, folder=ROOT)
    (wheel,) = output.glob("nbprop-*-py3-none-any.whl")
    python = "cp{}{}".format(*sys.version_info)
    tags = ["--python-tag", python, "--abi-tag", python, "--platform-tag", platform_of_numba()]
    run("-m", "wheel", "tags", "--remove", *tags, wheel, folder=ROOT)
    version = wheel.name.split("-")[1]
    (tagged,) = output.glob(f"nbprop-{version}-{python}-{python}-*.whl")
    return output / f"nbprop-{version}.tar.gz", tagged


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="the folder that gets them (default: dist)")
    arguments = parser.parse_args()
    for path in build(arguments.output.resolve(), ROOT / "build" / "wheel"):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
