"""What the scripts that need a GPU share: using what a machine has, saying what that is, results as JSON.

`--here` takes the interpreter that runs the script with whatever is installed, and nbprop from this checkout: no
installation, no network. `python here.py -m pytest ...` runs a module so prepared, which is how children are started.
"""

import argparse
import datetime
import importlib.util
import json
import os
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def prepare():
    """Let `import nbprop` find this checkout, and numba-cuda take numba.cuda's place; children, too."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    # A .pth file sees to it where pip has installed numba-cuda; in a folder of `pip install --target` none is read.
    if importlib.util.find_spec("_numba_cuda_redirector") is not None:
        importlib.import_module("_numba_cuda_redirector")


def begin(description, prefix, **options):
    """The script's arguments, after it has printed what was found; options: more arguments, by name.

    Exits with 2 and the sentence "prefix: problem" where nothing can run.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--here", action="store_true", help="use this checkout and what this interpreter has")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    for name, option in options.items():
        parser.add_argument(f"--{name}", **option)
    given = parser.parse_args()
    import nbprop.cuda

    found = nbprop.cuda.versions()
    for name, version in {"python": sys.version.split()[0], **found}.items():
        print(f"{name:15} {version or 'not found'}")
    problem = nbprop.cuda.missing()
    if problem or nbprop.cuda.simulated():
        print(f"{prefix}: {problem or 'NUMBA_ENABLE_CUDASIM is set'}")
        sys.exit(2)
    return given


def command(*arguments):
    """The command of a child: a script's or a module's arguments, in this interpreter and so prepared."""
    return [sys.executable, str(Path(__file__).resolve()), *map(str, arguments)]


def store(path, results):
    """Write results with versions and the date; nowhere for None."""
    import nbprop.cuda

    if path is not None:
        about = {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
        about["versions"] = nbprop.cuda.versions()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(about | results, indent=2) + "\n", encoding="utf-8")
        print(f"stored in {path}")


def cores():
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    prepare()
    module = sys.argv[1] == "-m"
    sys.argv = sys.argv[2 if module else 1 :]
    if module:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
        runpy.run_path(sys.argv[0], run_name="__main__")
