"""Repeat history: run each script on many seeds, and store how often it reproduces its result.

A script in this folder is registered by a line in EXPERIMENTS. It has a function ``run(seed, quick=False)``, or several
of that form, named "script.function", which return a dict that JSON can represent, with

    "reproduced"   bool, whether this seed shows what the paper shows
    anything else  what was measured: numbers and short texts

quick=True is for the tests: the same outcome within about ten seconds, on a smaller scale if necessary (the docstring
says how). It may return {"skipped": reason} if a file that it needs is missing. command.py is the command line that
they share.

Run: python examples/history/results.py [name ...]     (all by default; results/<name>.json is written for each)
"""

import argparse
import datetime
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

from nbprop.io.atomic import write_atomically

FOLDER = Path(__file__).resolve().parent
REQUIRED = 0.9

# name -> seeds of the long run
EXPERIMENTS = {
    "rumelhart_1986.xor": 20,
    "rumelhart_1986.parity": 20,
    "rumelhart_1986.encoder": 20,
    "rumelhart_1986.symmetry": 20,
    "rumelhart_1986.t_c": 20,
    "rumelhart_1986.trees": 50,
    "rumelhart_1986.shift_register": 20,
    "rumelhart_1986.sequences": 20,
    "elastic": 10,
    "why_backprop": 10,
    "gpt": 10,
    "werbos_bptt": 20,
    "lenet": 10,
    "lenet.digits": 10,
    "alexnet": 10,
}


def experiment(name):
    """The function run(seed, quick=False) of a name."""
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    script, _, function = name.partition(".")
    return getattr(importlib.import_module(script), function or "run")


def path_of(name):
    """The file of an experiment's results."""
    return FOLDER / "results" / f"{name}.json"


def commit():
    """The current commit, with a + if files differ from it."""

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=FOLDER, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", FOLDER.parent.parent.as_posix(), ":!results")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


def repeat(name, seeds):
    """Run an experiment on seeds 0, 1, ... and return everything that is stored about it."""
    run, runs = experiment(name), []
    for seed in range(seeds):
        begin = time.perf_counter()
        result = run(seed)
        if "skipped" in result:
            return None
        runs.append({"seed": seed, **result, "seconds": round(time.perf_counter() - begin, 2)})
        print(f"  seed {seed}: {'reproduced' if result['reproduced'] else 'NOT reproduced'}", flush=True)
    count = sum(one["reproduced"] for one in runs)
    return {
        "experiment": name,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "reproduced": count,
        "seeds": seeds,
        "runs": runs,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(EXPERIMENTS)}")
    names = parser.parse_args().names or list(EXPERIMENTS)
    unknown = [name for name in names if name not in EXPERIMENTS]
    if unknown:
        parser.error(f"unknown {', '.join(unknown)}; known: {', '.join(EXPERIMENTS)}")
    failed = []
    for name in names:
        print(name, flush=True)
        stored = repeat(name, EXPERIMENTS[name])
        if stored is None:
            print("  skipped: a file that it needs is missing")
            continue
        path_of(name).parent.mkdir(exist_ok=True)
        text = json.dumps(stored, indent=1) + "\n"
        write_atomically(path_of(name), lambda path, text=text: Path(path).write_text(text, encoding="utf-8"))
        print(f"  {stored['reproduced']} of {stored['seeds']} seeds")
        if stored["reproduced"] < REQUIRED * stored["seeds"]:
            failed.append(name)
    if failed:
        sys.exit(f"not reproduced on {REQUIRED:.0%} of the seeds: {', '.join(failed)}")


if __name__ == "__main__":
    main()
